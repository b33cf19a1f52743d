//! What can go wrong, and for which requests.

use std::time::Duration;

use crate::request::{Request, Verb};

/// Something that goes wrong with one request.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// An answer with this code and a `Status` that says so. `retry_after` is in seconds.
    Status {
        /// The HTTP code: 429, 500, 503, 401, 403, 410, …
        code: u16,
        /// Seconds for the header `Retry-After`, if there shall be one.
        retry_after: Option<u32>,
    },
    /// This answer, whatever was asked: for proxies that speak for a server that is away.
    Answer {
        /// The HTTP code.
        code: u16,
        /// The header `Content-Type`.
        content_type: &'static str,
        /// All of the body.
        body: String,
    },
    /// The right answer, late.
    Delay(Duration),
    /// Accepts the request and never answers.
    Hang,
    /// Half of the answer, then silence on an open connection. A watch gets its headers and nothing more, whatever
    /// changes: no bookmark, no end.
    Stall,
    /// Half of the answer, then the connection breaks. A watch breaks in the middle of its next event.
    Cut,
    /// Half of the answer, in an HTTP message that ends as if it were whole. A watch ends in the middle of its next event.
    Truncate,
    /// A list of half of the objects, with a token for the rest that has expired when it is used.
    HalfList,
    /// A watch that begins with an event of type `ERROR`, with a `Status` of this code, and then ends. 410 tells that
    /// the version asked for is too old.
    ErrorEvent(u16),
    /// A watch that delivers every event twice.
    Duplicate,
    /// A watch that delivers, after each event, the one before it once more: an older version after a newer one.
    Replay,
    /// A watch that ends in good order after so many events.
    EndAfter(usize),
}

impl Fault {
    /// An answer with this code and without `Retry-After`.
    pub fn status(code: u16) -> Fault {
        Fault::Status { code, retry_after: None }
    }

    /// An answer that refuses this request and says how many seconds to wait.
    pub fn retry_after(code: u16, seconds: u32) -> Fault {
        Fault::Status { code, retry_after: Some(seconds) }
    }
}

/// Which requests a fault is for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct On {
    verb: Option<Verb>,
    resource: Option<String>,
    continued: bool,
}

impl On {
    /// All requests, of all resources.
    pub fn any() -> On {
        On::default()
    }

    /// All requests of one verb.
    pub fn verb(verb: Verb) -> On {
        On { verb: Some(verb), ..On::default() }
    }

    /// Lists of a resource, all pages of them.
    pub fn list(resource: &str) -> On {
        On::verb(Verb::List).of(resource)
    }

    /// Lists that go on with a `continue` token.
    pub fn continued(resource: &str) -> On {
        On { continued: true, ..On::list(resource) }
    }

    /// Watches of a resource.
    pub fn watch(resource: &str) -> On {
        On::verb(Verb::Watch).of(resource)
    }

    /// Requests for one object of a resource.
    pub fn get(resource: &str) -> On {
        On::verb(Verb::Get).of(resource)
    }

    /// Creation of objects of a resource.
    pub fn create(resource: &str) -> On {
        On::verb(Verb::Create).of(resource)
    }

    /// The same, of one resource: `pods`, or with its group, `events.events.k8s.io`.
    #[must_use]
    pub fn of(mut self, resource: &str) -> On {
        self.resource = Some(resource.to_owned());
        self
    }

    fn matches(&self, request: &Request) -> bool {
        self.verb.is_none_or(|verb| request.verb == Some(verb))
            && self.resource.as_ref().is_none_or(|resource| request.is_of(resource))
            && (!self.continued || request.query.contains_key("continue"))
    }
}

/// A fault waits for so many requests.
pub const ALWAYS: usize = usize::MAX;

/// The faults that wait for requests.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    on: On,
    times: usize,
    fault: Fault,
}

impl Faults {
    pub(crate) fn add(&mut self, on: On, times: usize, fault: Fault) {
        self.waiting.push(Waiting { on, times, fault });
    }

    pub(crate) fn clear(&mut self) {
        self.waiting.clear();
    }

    /// How many requests will still meet a fault.
    pub(crate) fn left(&self) -> usize {
        self.waiting.iter().map(|waiting| waiting.times).fold(0, usize::saturating_add)
    }

    /// The fault that this request meets: the first one that was asked for it.
    pub(crate) fn take(&mut self, request: &Request) -> Option<Fault> {
        let at = self.waiting.iter().position(|waiting| waiting.on.matches(request))?;
        let waiting = &mut self.waiting[at];
        let fault = waiting.fault.clone();
        if waiting.times != ALWAYS {
            waiting.times -= 1;
        }
        self.waiting.retain(|waiting| waiting.times > 0);
        Some(fault)
    }
}
