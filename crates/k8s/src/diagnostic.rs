use std::fmt;
use std::sync::Arc;

/// How bad a [`Diagnostic`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Note,
    /// Suspicious, but read as the API server would read it.
    Warning,
    /// An object is invalid. A NetworkPolicy with an error fails closed.
    Error,
    /// A document could not be read at all. What it defines is unknown, so nothing that follows from the input can
    /// be trusted.
    Fatal,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
            Severity::Fatal => "fatal",
        })
    }
}

/// A place in the input. What an API server sent has no line: then line and column are 0, and the file is the server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// The name of the [`Source`](crate::Source).
    pub file: Arc<str>,
    /// The line, counted from 1; 0 when there is none.
    pub line: usize,
    /// The column in characters, counted from 1; 0 when there is none.
    pub column: usize,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{}:{line}:{}", self.file, self.column),
        }
    }
}

/// Something to say about the input, with its place.
///
/// Text taken from the input is escaped and cut, so a diagnostic can be printed to a terminal as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// Where it is.
    pub location: Location,
    /// The object it is about, such as `NetworkPolicy shop/db`.
    pub object: Option<String>,
    /// The API field it is about, such as `spec.ingress[0].ports[1].protocol`; empty when there is none.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: ", self.location, self.severity)?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, "\n    hint: {hint}")?;
        }
        Ok(())
    }
}

/// User text for a message: escaped, so that it cannot steer a terminal, and cut to a readable length.
pub(crate) fn shown(text: &str) -> String {
    escaped(text, 80)
}

/// A name for a message: a valid one is shown as it is, however long.
pub(crate) fn shown_name(text: &str) -> String {
    escaped(text, 253)
}

fn escaped(text: &str, longest: usize) -> String {
    let mut out: String = text.chars().take(longest).flat_map(char::escape_debug).collect();
    if text.chars().nth(longest).is_some() {
        out.push('…');
    }
    out
}
