//! Answers that are no objects: `Status`, with the reasons and messages of the API server.

use serde_json::{Value, json};

use crate::resource::Resource;

/// A refusal, as clients get it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Refusal {
    pub(crate) code: u16,
    pub(crate) status: Value,
    /// Seconds, for the header of that name.
    pub(crate) retry_after: Option<u32>,
}

impl Refusal {
    pub(crate) fn new(code: u16, message: &str) -> Refusal {
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason(code), "code": code,
        });
        Refusal { code, status, retry_after: None }
    }

    /// What real servers answer to some mistakes of clients, for want of a better code.
    pub(crate) fn unforeseen(message: &str) -> Refusal {
        let mut refusal = Refusal::new(500, message);
        if let Some(status) = refusal.status.as_object_mut() {
            status.remove("reason");
        }
        refusal
    }

    pub(crate) fn retry_after(mut self, seconds: Option<u32>) -> Refusal {
        if let Some(seconds) = seconds {
            self.status["details"]["retryAfterSeconds"] = json!(seconds);
            self.retry_after = Some(seconds);
        }
        self
    }

    fn because(mut self, reason: &str) -> Refusal {
        self.status["reason"] = json!(reason);
        self
    }

    fn about(mut self, resource: &Resource, name: &str) -> Refusal {
        self.status["details"] = json!({"name": name, "kind": resource.plural});
        if !resource.group.is_empty() {
            self.status["details"]["group"] = json!(resource.group);
        }
        self
    }

    pub(crate) fn not_found(resource: &Resource, name: &str) -> Refusal {
        Refusal::new(404, &format!("{} {name:?} not found", resource.qualified())).about(resource, name)
    }

    pub(crate) fn already_exists(resource: &Resource, name: &str) -> Refusal {
        let message = format!("{} {name:?} already exists", resource.qualified());
        Refusal::new(409, &message).because("AlreadyExists").about(resource, name)
    }

    pub(crate) fn conflict(resource: &Resource, name: &str) -> Refusal {
        let message = format!(
            "Operation cannot be fulfilled on {} {name:?}: the object has been modified; please apply your changes to the \
             latest version and try again",
            resource.qualified()
        );
        Refusal::new(409, &message).about(resource, name)
    }

    /// A list at a version, or the rest of one, that is forgotten. `rest` continues with whatever there is now.
    pub(crate) fn expired_list(rest: Option<String>) -> Refusal {
        let Some(rest) = rest else {
            return Refusal::new(410, "The resourceVersion for the provided list is too old.");
        };
        let message = "The provided continue parameter is too old to display a consistent list result. You can start a new \
                       list without the continue parameter, or use the continue token in this response to retrieve the \
                       remainder of the results. Continuing with the provided token results in an inconsistent list - \
                       objects that were created, modified, or deleted between the time the first chunk was returned and \
                       now may show up in the list.";
        let mut refusal = Refusal::new(410, message);
        refusal.status["metadata"]["continue"] = json!(rest);
        refusal
    }

    pub(crate) fn expired_watch(version: u64, oldest: u64) -> Refusal {
        Refusal::new(410, &format!("too old resource version: {version} ({oldest})"))
    }

    pub(crate) fn from_the_future(version: u64, current: u64) -> Refusal {
        let message = format!("Timeout: Too large resource version: {version}, current: {current}");
        let mut refusal = Refusal::new(504, &message).retry_after(Some(1));
        let cause = json!({"reason": "ResourceVersionTooLarge", "message": "Too large resource version"});
        refusal.status["details"]["causes"] = json!([cause]);
        refusal
    }

    /// A combination of parameters that is refused.
    pub(crate) fn invalid_options(field: &str, problem: &str) -> Refusal {
        let message = format!("ListOptions.meta.k8s.io \"\" is invalid: {field}: Forbidden: {problem}");
        Refusal::new(422, &message)
    }
}

fn reason(code: u16) -> &'static str {
    match code {
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        405 => "MethodNotAllowed",
        409 => "Conflict",
        410 => "Expired",
        415 => "UnsupportedMediaType",
        422 => "Invalid",
        429 => "TooManyRequests",
        500 => "InternalError",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "",
    }
}
