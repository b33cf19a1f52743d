//! What can go wrong between the agent and the API server, and what it means for the next attempt.

use std::time::Duration;

use hyper::StatusCode;
use kube::core::Status;
use ringfence_k8s::Diagnostic;
use ringfence_k8s::api::Kind;

/// Why a request did not do.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// There is no client: unreadable certificates, a credential plugin that fails.
    #[error("{0}")]
    Client(String),
    /// No connection, or it broke.
    #[error("{0}")]
    Connection(String),
    /// No word for so long.
    #[error("no answer for {} s", .0.as_secs())]
    Silent(Duration),
    /// The server says no.
    #[error("{}", refusal(*.code, .message))]
    Refused {
        /// HTTP status code, also of an error inside a watch.
        code: u16,
        /// `reason` of the status object.
        reason: String,
        /// What the server says.
        message: String,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// What came is not what was asked for.
    #[error("{0}")]
    Malformed(String),
    /// An object without a name, or no object at all.
    #[error("{0}")]
    Unreadable(Box<Diagnostic>),
    /// A watch that brought an old state of an object that is not known any more.
    #[error("its watch is out of order, so everything is listed again")]
    Disorder,
}

impl Failure {
    /// The failure that a status object tells.
    pub(super) fn refused(status: Status, retry_after: Option<Duration>) -> Failure {
        let wanted = status.details.as_ref().map(|details| details.retry_after_seconds).filter(|seconds| *seconds > 0);
        Failure::Refused {
            code: status.code,
            reason: status.reason,
            message: status.message,
            retry_after: retry_after.or_else(|| wanted.map(|seconds| Duration::from_secs(seconds.into()))),
        }
    }

    /// Whether the version asked for is not to be had: too old, or from a future that never came (a restored backup). Then
    /// only a new list helps.
    pub(super) fn is_expired(&self) -> bool {
        match self {
            Failure::Refused { code, reason, message, .. } => {
                *code == StatusCode::GONE.as_u16()
                    || reason == "Expired"
                    || reason == "Gone"
                    || message.contains("Too large resource version")
            }
            _ => false,
        }
    }

    /// Whether what was heard so far is worth nothing.
    pub(super) fn needs_list(&self) -> bool {
        self.is_expired() || matches!(self, Failure::Disorder | Failure::Unreadable(_) | Failure::Malformed(_))
    }

    /// How long the server wants to be left alone.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Failure::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// What to say, with what to do about it.
    pub(super) fn explained(&self, kind: Kind) -> String {
        match self {
            Failure::Refused { code: 403, .. } => {
                let group = if kind.group().is_empty() { "\"\"" } else { kind.group() };
                format!(
                    "{self}; bind the agent's account to a ClusterRole with apiGroups: [{group}], resources: [{}], \
                     verbs: [get, list, watch]",
                    kind.resource()
                )
            }
            _ => self.to_string(),
        }
    }
}

fn refusal(code: u16, message: &str) -> String {
    let said = one_line(message);
    match code {
        401 => format!("it does not accept the credentials (401): {said}"),
        403 => format!("it forbids it (403): {said}"),
        429 => format!("it has too much to do (429): {said}"),
        _ => format!("{said} ({code})"),
    }
}

/// What a server says is data: on one line, and not without end.
pub(super) fn one_line(text: &str) -> String {
    const LONGEST: usize = 300;
    let mut out: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect();
    if text.chars().nth(LONGEST).is_some() {
        out.push('…');
    }
    out
}

/// An error with its causes.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Wrappers tend to repeat what they wrap.
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    one_line(&text)
}
