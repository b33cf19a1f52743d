//! Requests that are answered when something is in force, or when their patience is over.

use ringfence_control::{Response, Sandbox};
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Somebody waits until the policies of a pod are in force.
#[derive(Debug)]
struct Waiter {
    sandbox: Sandbox,
    until: Instant,
    answer: oneshot::Sender<Response>,
}

/// All who wait.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    waiters: Vec<Waiter>,
}

impl Waiting {
    pub(crate) fn add(&mut self, sandbox: Sandbox, until: Instant, answer: oneshot::Sender<Response>) {
        self.waiters.push(Waiter { sandbox, until, answer });
    }

    /// When the first patience is over.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.waiters.iter().map(|waiter| waiter.until).min()
    }

    pub(crate) fn sandboxes(&self) -> impl Iterator<Item = &Sandbox> {
        self.waiters.iter().map(|waiter| &waiter.sandbox)
    }

    /// Answers those whose sandbox is `covered`, and those whose patience is over, with the reason why it is not.
    pub(crate) fn settle(&mut self, now: Instant, covered: impl Fn(&Sandbox) -> Result<(), String>) {
        let waiters = std::mem::take(&mut self.waiters);
        for waiter in waiters.into_iter().filter(|waiter| !waiter.answer.is_closed()) {
            let answer = match covered(&waiter.sandbox) {
                Ok(()) => Response::Done,
                Err(reason) if waiter.until <= now => Response::NotYet { reason },
                Err(_) => {
                    self.waiters.push(waiter);
                    continue;
                }
            };
            // Who has gone away meanwhile needs no answer.
            let _ = waiter.answer.send(answer);
        }
    }
}
