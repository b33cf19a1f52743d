//! Standard output, standard error and exit codes.

use std::error::Error as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use ringfence_k8s::{Diagnostic, Severity};

use crate::args::{Args, When};

/// Why a command could not do what it was asked to. Exit code 2, except for a broken pipe.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("no .yaml, .yml or .json file in {}", .0.display())]
    NoManifests(PathBuf),
    #[error("some input could not be read (see above); what it says is unknown, so there is no answer")]
    Unreadable,
    #[error("the input has no pods: give manifests with Pods or workloads (Deployment, StatefulSet, ...)")]
    NoPods,
    #[error(transparent)]
    Placement(#[from] ringfence_analyze::PlacementError),
    #[error(transparent)]
    Unsupported(#[from] ringfence_compile::UnsupportedTier),
    #[error("{node}: no such node in the input; it has {known}")]
    NoSuchNode { node: String, known: String },
    #[error("the input has {0} nodes; choose one with --node ({1})")]
    WhichNode(usize, String),
    #[error("{0} is an option of --backend iptables")]
    NotForBackend(&'static str),
    #[error("{} holds no Topology", .0.display())]
    NoTopology(PathBuf),
    #[error("changing the packet filter needs CAP_NET_ADMIN: run as root")]
    NotPermitted,
    #[error("{0}")]
    Backend(#[from] ringfence_dataplane::ApplyError),
    #[error("{0}; `ringfence agent` makes the socket, --run-dir says where")]
    NoAgent(ringfence_control::ControlError),
    #[error(transparent)]
    Control(#[from] ringfence_control::ControlError),
    #[error("the agent does not tell how it is: {0}")]
    NoReport(String),
    #[error(transparent)]
    Lab(#[from] ringfence_lab::RunError),
    #[error(transparent)]
    Exec(#[from] ringfence_lab::exec::ExecError),
    #[error("{0}")]
    WhichLab(String),
    #[error("the lab has no {end}; it has node, {known}")]
    NoSuchEnd { end: String, known: String },
    #[error(transparent)]
    Cni(#[from] ringfence_cni::InstallError),
    #[error("cannot find this program's own file: {0}")]
    NoProgram(io::Error),
    #[error("cannot write the result: {0}")]
    Write(io::Error),
    #[error("cannot write to {}: {source}", path.display())]
    WriteTo { path: PathBuf, source: io::Error },
    #[error("standard output was closed")]
    BrokenPipe,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        if error.kind() == io::ErrorKind::BrokenPipe { Failure::BrokenPipe } else { Failure::Write(error) }
    }
}

/// Says why on standard error, down to the first cause.
pub(crate) fn report(failure: &Failure, args: &Args) -> ExitCode {
    let mut text = failure.to_string();
    let mut cause = failure.source();
    while let Some(error) = cause {
        // Many errors spell out their cause themselves.
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    if text.contains("(os error 24)") {
        text.push_str("; raise the limit of open files (ulimit -n)");
    }
    Messages::new(args.color).line(Color::Red, "error", &text);
    ExitCode::from(2)
}

/// Writes a result to standard output.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Whether standard output gets colours.
pub(crate) fn colored(when: When, terminal: bool) -> bool {
    match when {
        When::Always => true,
        When::Never => false,
        // https://no-color.org: set and not empty.
        When::Auto => terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
    }
}

/// How wide a table may get: the terminal, `COLUMNS`, or what fits on most screens.
pub(crate) fn width() -> usize {
    let terminal = terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| usize::from(width.0));
    let columns = || std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    terminal.or_else(columns).unwrap_or(140)
}

/// What is said beside the result, on standard error.
pub(crate) struct Messages {
    color: bool,
}

#[derive(Clone, Copy)]
pub(crate) enum Color {
    Red,
    Yellow,
    Blue,
}

impl Messages {
    pub(crate) fn new(when: When) -> Messages {
        Messages { color: colored(when, io::stderr().is_terminal()) }
    }

    pub(crate) fn note(&self, text: &str) {
        self.line(Color::Blue, "note", text);
    }

    pub(crate) fn warning(&self, text: &str) {
        self.line(Color::Yellow, "warning", text);
    }

    pub(crate) fn diagnostic(&self, diagnostic: &Diagnostic) {
        let text = diagnostic.to_string();
        let color = match diagnostic.severity {
            Severity::Note => Color::Blue,
            Severity::Warning => Color::Yellow,
            Severity::Error | Severity::Fatal => Color::Red,
        };
        self.write(&self.painted(color, &text));
    }

    fn line(&self, color: Color, word: &str, text: &str) {
        self.write(&format!("{} {text}", self.painted(color, &format!("{word}:"))));
    }

    fn painted(&self, color: Color, text: &str) -> String {
        let code = match color {
            Color::Red => 31,
            Color::Yellow => 33,
            Color::Blue => 34,
        };
        if self.color { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    /// Nobody can be told that standard error is gone.
    fn write(&self, line: &str) {
        let _ = writeln!(io::stderr().lock(), "{line}");
    }
}
