//! Typed access to a document tree: every value knows the path of its field, every wrong type is reported.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::diagnostic::{Diagnostic, Location, Severity, shown};
use crate::dom::{Entry, Node, Position, Problem, Value};
use crate::names::{is_label_key, is_label_value};
use crate::scalar::ScalarType;

/// How many diagnostics one source may cause. Nobody reads more, and junk must not fill the memory.
pub(crate) const MAX_DIAGNOSTICS: usize = 10_000;

/// A node and the way to it from the root of its object.
#[derive(Clone, Copy)]
pub(crate) struct At<'a> {
    pub(crate) node: &'a Node,
    step: Step<'a>,
    parent: Option<&'a At<'a>>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Field(&'a str),
    Index(usize),
}

impl<'a> At<'a> {
    pub(crate) fn root(node: &'a Node) -> At<'a> {
        At { node, step: Step::Root, parent: None }
    }

    /// A field that is not there; its place is its parent's.
    pub(crate) fn missing(&'a self, name: &'a str) -> At<'a> {
        self.field(name, self.node)
    }

    fn field(&'a self, name: &'a str, node: &'a Node) -> At<'a> {
        At { node, step: Step::Field(name), parent: Some(self) }
    }

    fn index(&'a self, index: usize, node: &'a Node) -> At<'a> {
        At { node, step: Step::Index(index), parent: Some(self) }
    }

    /// The number of items, if it is a list.
    pub(crate) fn list_length(&self) -> Option<usize> {
        match &self.node.value {
            Value::Sequence(items) => Some(items.len()),
            Value::Scalar(..) | Value::Mapping(_) => None,
        }
    }

    /// The last field name on the way here.
    fn name(&self) -> &str {
        match (self.step, self.parent) {
            (Step::Field(name), _) => name,
            (Step::Index(_), Some(parent)) => parent.name(),
            (Step::Index(_) | Step::Root, _) => "",
        }
    }

    fn type_name(&self) -> &'static str {
        match &self.node.value {
            Value::Scalar(_, kind) => kind.name(),
            Value::Sequence(_) => "a list",
            Value::Mapping(_) => "a mapping",
        }
    }
}

/// The path, such as `spec.ingress[0].from`. A key that is no plain word, such as a label key with a prefix, is put
/// in brackets.
impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(parent) = self.parent else { return Ok(()) };
        parent.fmt(f)?;
        match self.step {
            Step::Root => Ok(()),
            Step::Index(index) => write!(f, "[{index}]"),
            Step::Field(name) => {
                let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
                if name.is_empty() || !name.chars().all(is_word) || name.len() > 63 {
                    write!(f, "[{}]", shown(name))
                } else if parent.parent.is_none() && matches!(parent.step, Step::Root) {
                    f.write_str(name)
                } else {
                    write!(f, ".{name}")
                }
            }
        }
    }
}

/// The entries of a mapping.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    pub(crate) at: &'a At<'a>,
    entries: &'a [Entry],
}

impl<'a> Fields<'a> {
    /// A field that is present and not null. The API reads null as absent.
    pub(crate) fn get(&self, name: &'a str) -> Option<At<'a>> {
        self.written(name).filter(|at| !at.node.is_null())
    }

    /// A field that is present, be it null.
    pub(crate) fn written(&self, name: &'a str) -> Option<At<'a>> {
        let entry = self.entries.iter().find(|entry| entry.key.text() == name)?;
        Some(self.at.field(name, &entry.value))
    }

    /// A field that is present and null, placed at its key.
    pub(crate) fn left_empty(&self, name: &'a str) -> Option<At<'a>> {
        let entry = self.entries.iter().find(|entry| entry.key.text() == name)?;
        entry.value.is_null().then(|| self.at.field(name, &entry.key))
    }

    /// All names that are written.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'a str> {
        let entries: &'a [Entry] = self.entries;
        entries.iter().map(|entry| entry.key.text())
    }

    /// Reports the fields that are not in `known`. `hint` may say where such a field belongs.
    pub(crate) fn only(&self, report: &mut Report, known: &[&str], hint: impl Fn(&str) -> Option<&'static str>) {
        for entry in self.entries {
            let name = entry.key.text();
            if known.contains(&name) {
                continue;
            }
            let hint = hint(name).map(str::to_owned).or_else(|| {
                let meant = known.iter().find(|known| known.eq_ignore_ascii_case(name))?;
                Some(format!("field names are case-sensitive: write `{meant}`"))
            });
            let hint = hint.unwrap_or_else(|| format!("the fields here are {}", known.join(", ")));
            report.error_hint(&self.at.field(name, &entry.key), format!("unknown field \"{}\"", shown(name)), hint);
        }
    }

    /// A text field that is present and not empty.
    pub(crate) fn text(&self, report: &mut Report, name: &'a str) -> Option<&'a str> {
        let at = self.get(name)?;
        let text = string(report, &at, name)?;
        (!text.is_empty()).then_some(text)
    }

    /// Reads a field that takes one of a few words. Nothing when it is absent, empty, or another word, which is reported.
    pub(crate) fn choice<T: Copy>(&self, report: &mut Report, name: &'a str, words: &[(&str, T)]) -> Option<T> {
        let at = self.get(name)?;
        let text = string(report, &at, name).filter(|text| !text.is_empty())?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            let message = format!("\"{}\" is not a {name}", shown(text));
            report.error_hint(&at, message, format!("it is one of {}", known.join(", ")));
        }
        found
    }

    /// A nested mapping; nothing when it is absent, null or wrong, which is reported.
    pub(crate) fn mapping(&self, report: &mut Report, name: &'a str, run: impl FnOnce(&mut Report, Fields<'_>)) {
        if let Some(at) = self.get(name)
            && let Some(fields) = mapping(report, &at)
        {
            run(report, fields);
        }
    }

    /// The items of a list; none when it is absent, null or wrong, which is reported.
    pub(crate) fn each(&self, report: &mut Report, name: &'a str, mut run: impl FnMut(&mut Report, &At<'_>)) {
        if let Some(at) = self.get(name)
            && let Some(items) = items(report, &at)
        {
            for item in &items {
                run(report, item);
            }
        }
    }
}

/// Reads a mapping.
pub(crate) fn mapping<'a>(report: &mut Report, at: &'a At<'a>) -> Option<Fields<'a>> {
    match &at.node.value {
        Value::Mapping(entries) => Some(Fields { at, entries }),
        Value::Sequence(_) => {
            let message = format!("{} is a list, not a mapping", subject(at));
            report.error_hint(at, message, "take the dash away: it is one mapping");
            None
        }
        Value::Scalar(_, ScalarType::Null) => {
            report.error_hint(at, format!("{} is empty", subject(at)), "write {} if nothing is what you mean");
            None
        }
        Value::Scalar(..) => {
            let message = format!("{} is {}, not a mapping", subject(at), at.type_name());
            report.error(at, message);
            None
        }
    }
}

/// Reads a list.
pub(crate) fn items<'a>(report: &mut Report, at: &'a At<'a>) -> Option<Vec<At<'a>>> {
    match &at.node.value {
        Value::Sequence(items) => Some(items.iter().enumerate().map(|(index, node)| at.index(index, node)).collect()),
        Value::Mapping(_) => {
            let message = format!("{} is a mapping, not a list", subject(at));
            report.error_hint(at, message, "put a dash: every entry of a list begins with `- `");
            None
        }
        Value::Scalar(..) => {
            let message = format!("{} is {}, not a list", subject(at), at.type_name());
            let hint = match at.name() {
                "ports" => "put a dash and name the field: `- port: 80`".to_owned(),
                _ => format!("put a dash: `- {}`", shown(at.node.text())),
            };
            report.error_hint(at, message, hint);
            None
        }
    }
}

/// How a message calls the value.
fn subject(at: &At<'_>) -> String {
    match at.step {
        Step::Root => "the document".to_owned(),
        Step::Field(name) => format!("`{}`", shown(name)),
        Step::Index(_) => format!("an entry of `{}`", shown(at.name())),
    }
}

/// Reads a string; `what` names it in messages.
pub(crate) fn string<'a>(report: &mut Report, at: &At<'a>, what: &str) -> Option<&'a str> {
    match &at.node.value {
        Value::Scalar(text, ScalarType::String | ScalarType::Merge) => Some(text),
        Value::Scalar(text, kind) => {
            let hint = match kind {
                ScalarType::Tagged => "remove the tag".to_owned(),
                ScalarType::Null => "write \"\" if the empty text is what you mean".to_owned(),
                _ => format!("quote it: \"{}\"", shown(text)),
            };
            report.error_hint(at, format!("{what} is {}, not a string", kind.name()), hint);
            None
        }
        Value::Sequence(_) | Value::Mapping(_) => {
            report.error(at, format!("{what} is {}, not a string", at.type_name()));
            None
        }
    }
}

/// Reads an integer; `what` names it in messages.
pub(crate) fn integer(report: &mut Report, at: &At<'_>, what: &str) -> Option<i64> {
    match &at.node.value {
        Value::Scalar(_, ScalarType::Integer(value)) => Some(*value),
        Value::Scalar(text, ScalarType::LeadingZero) => {
            let message = format!("{what} has a leading zero: {} is ambiguous, octal or decimal", shown(text));
            report.error_hint(at, message, "remove the zero");
            None
        }
        Value::Scalar(text, ScalarType::String) if text.parse::<i64>().is_ok() => {
            let message = format!("{what} is a string, not a number");
            report.error_hint(at, message, format!("remove the quotes: {}", shown(text)));
            None
        }
        Value::Scalar(_, ScalarType::Float) => {
            report.error(at, format!("{what} is not an integer that fits"));
            None
        }
        Value::Scalar(..) | Value::Sequence(_) | Value::Mapping(_) => {
            report.error(at, format!("{what} is {}, not a number", at.type_name()));
            None
        }
    }
}

/// Reads a boolean; `what` names it in messages.
pub(crate) fn boolean(report: &mut Report, at: &At<'_>, what: &str) -> Option<bool> {
    if let Value::Scalar(_, ScalarType::Boolean(value)) = &at.node.value {
        return Some(*value);
    }
    report.error(at, format!("{what} is {}, not a boolean", at.type_name()));
    None
}

/// Reads labels: a mapping of label keys to label values.
pub(crate) fn labels(report: &mut Report, at: &At<'_>) -> BTreeMap<Arc<str>, Arc<str>> {
    let mut labels = BTreeMap::new();
    for_each_string(report, at, "label", |report, key_at, value_at, key, value| {
        if !is_label_key(key) {
            report.error(key_at, format!("\"{}\" is not a label key", shown(key)));
        } else if !is_label_value(value) {
            report.error_hint(
                value_at,
                format!("\"{}\" is not a label value", shown(value)),
                "at most 63 letters, digits, `-`, `_` and `.`, with a letter or a digit at both ends",
            );
        } else {
            labels.insert(key.into(), value.into());
        }
    });
    labels
}

/// Reads a mapping of strings to strings and hands each to `run`; `what` names it in messages.
pub(crate) fn for_each_string(
    report: &mut Report,
    at: &At<'_>,
    what: &str,
    mut run: impl FnMut(&mut Report, &At<'_>, &At<'_>, &str, &str),
) {
    let Some(fields) = mapping(report, at) else { return };
    for entry in fields.entries {
        let key_at = at.field(entry.key.text(), &entry.key);
        let value_at = at.field(entry.key.text(), &entry.value);
        let key = string(report, &key_at, &format!("{what} key"));
        let value = string(report, &value_at, &format!("{what} value"));
        if let (Some(key), Some(value)) = (key, value) {
            run(report, &key_at, &value_at, key, value);
        }
    }
}

/// Collects the diagnostics of one source.
#[derive(Debug)]
pub(crate) struct Report {
    file: Arc<str>,
    object: Option<String>,
    errors: usize,
    overflowed: bool,
    pub(crate) diagnostics: Vec<Diagnostic>,
}

impl Report {
    pub(crate) fn new(file: impl Into<Arc<str>>) -> Report {
        Report { file: file.into(), object: None, errors: 0, overflowed: false, diagnostics: Vec::new() }
    }

    /// What follows is about `object`. Errors are counted from here.
    pub(crate) fn begin(&mut self, object: Option<String>) {
        self.object = object;
        self.errors = 0;
    }

    /// What follows is about `object`, and so are the errors counted already.
    pub(crate) fn about(&mut self, object: String) {
        self.object = Some(object);
    }

    /// The object it is about now.
    pub(crate) fn object(&self) -> Option<&str> {
        self.object.as_deref()
    }

    /// The errors since the last [`begin`](Report::begin).
    pub(crate) fn errors(&self) -> usize {
        self.errors
    }

    /// Whether there were more than [`MAX_DIAGNOSTICS`], so that some are lost.
    pub(crate) fn overflowed(&self) -> bool {
        self.overflowed
    }

    pub(crate) fn error(&mut self, at: &At<'_>, message: impl Into<String>) {
        self.add(Severity::Error, at, message.into(), None);
    }

    pub(crate) fn error_hint(&mut self, at: &At<'_>, message: impl Into<String>, hint: impl Into<String>) {
        self.add(Severity::Error, at, message.into(), Some(hint.into()));
    }

    pub(crate) fn warning(&mut self, at: &At<'_>, message: impl Into<String>, hint: impl Into<String>) {
        self.add(Severity::Warning, at, message.into(), Some(hint.into()));
    }

    pub(crate) fn note(&mut self, at: &At<'_>, message: impl Into<String>) {
        self.add(Severity::Note, at, message.into(), None);
    }

    /// A document is lost.
    pub(crate) fn fatal(&mut self, problem: Problem) {
        self.diagnostics.push(Diagnostic {
            severity: Severity::Fatal,
            location: self.location(problem.position),
            object: None,
            field: String::new(),
            message: problem.message,
            hint: problem.hint,
        });
    }

    pub(crate) fn location(&self, position: Position) -> Location {
        Location { file: self.file.clone(), line: position.line, column: position.column }
    }

    fn add(&mut self, severity: Severity, at: &At<'_>, message: String, hint: Option<String>) {
        if severity == Severity::Error {
            self.errors += 1;
        }
        if self.diagnostics.len() >= MAX_DIAGNOSTICS {
            self.overflowed = true;
            return;
        }
        self.diagnostics.push(Diagnostic {
            severity,
            location: self.location(at.node.position),
            object: self.object.clone(),
            field: at.to_string(),
            message,
            hint,
        });
    }
}
