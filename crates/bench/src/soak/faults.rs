//! What goes wrong with the API server from time to time. All of it is over by itself.
//!
//! What is not here: watches that fall silent. An agent gives them up after two and a half minutes, which no check waits for.

use std::fmt;

use ringfence_fake_apiserver::{FakeApiServer, Fault, On};

const RESOURCES: [&str; 4] = ["pods", "networkpolicies", "namespaces", "nodes"];
const EVENTS: &str = "events.events.k8s.io";
/// The kinds of faults.
const KINDS: u8 = 13;

/// A fault that has been let loose, for people.
#[derive(Debug)]
pub(super) struct Struck(String);

impl fmt::Display for Struck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The faults, and whether the server is away because of one.
#[derive(Default)]
pub(super) struct Faults {
    away: bool,
    /// Kinds that have not struck since all have.
    left: Vec<u8>,
}

impl Faults {
    pub(super) fn strike(&mut self, server: &FakeApiServer, random: &mut fastrand::Rng) -> Struck {
        if self.left.is_empty() {
            self.left = (0..KINDS).collect();
        }
        let kind = self.left.swap_remove(random.usize(..self.left.len()));
        let resource = RESOURCES[random.usize(..RESOURCES.len())];
        let watch = |fault| {
            server.inject(On::watch(resource), 1, fault);
            server.end_watches(resource);
        };
        // A list is asked for when the past is forgotten.
        let list = |fault| {
            server.inject(On::list(resource), 1, fault);
            server.fail_watches(resource, 410);
        };
        let what = match kind {
            0 => {
                server.cut_watches(resource);
                "watches are cut"
            }
            1 => {
                server.end_watches(resource);
                "watches end"
            }
            2 => {
                server.fail_watches(resource, 410);
                "watches are told that their version is gone"
            }
            3 => {
                server.fail_watches(resource, 500);
                "watches fail"
            }
            4 => {
                server.compact();
                server.cut_watches(resource);
                "the past is forgotten and watches are cut"
            }
            5 => {
                watch(Fault::status(503));
                "a watch is refused"
            }
            6 => {
                watch(Fault::Duplicate);
                "a watch tells everything twice"
            }
            7 => {
                watch(Fault::Replay);
                "a watch repeats what is over"
            }
            8 => {
                watch(Fault::Truncate);
                "a watch ends in the middle"
            }
            9 => {
                list(Fault::retry_after(429, 1));
                "a list is put off"
            }
            10 => {
                list(Fault::HalfList);
                "a list breaks off"
            }
            11 => {
                server.replay(resource, 50);
                "old changes are told again"
            }
            _ => {
                server.go_away();
                self.away = true;
                return Struck("the server is away".to_owned());
            }
        };
        Struck(format!("{resource}: {what}"))
    }

    /// Ends what does not end by itself.
    pub(super) fn end(&mut self, server: &FakeApiServer) {
        if std::mem::take(&mut self.away) {
            server.come_back();
        }
    }

    /// What was asked, and what the agent told as Events, would grow here for ever.
    pub(super) fn tidy(server: &FakeApiServer) {
        server.forget_requests();
        for event in server.objects(EVENTS) {
            let text = |field: &str| event["metadata"][field].as_str().unwrap_or_default();
            server.delete(EVENTS, text("namespace"), text("name"));
        }
    }
}
