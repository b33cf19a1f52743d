//! What an update that only took rights owes: a grace. It begins at once, and nobody waits for it until something is given.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

/// A grace that is owed, or none.
pub(super) struct Debt {
    /// Waits until the packets are through that are being judged when it is called.
    grace: Arc<dyn Fn() + Send + Sync>,
    owed: Option<Owed>,
}

/// A grace under way.
struct Owed {
    /// Without, where no thread could be started.
    thread: Option<JoinHandle<()>>,
    /// It came to its end: a thread that died did not.
    is_over: Arc<AtomicBool>,
}

impl Debt {
    /// No debt.
    pub(super) fn new(grace: impl Fn() + Send + Sync + 'static) -> Debt {
        Debt { grace: Arc::new(grace), owed: None }
    }

    /// Whether a giving has to wait.
    pub(super) fn is_owed(&self) -> bool {
        self.owed.as_ref().is_some_and(|owed| !owed.is_over.load(Ordering::Acquire))
    }

    /// An update is done. If it owes a grace, that begins now; it is good for what was owed before, too.
    pub(super) fn updated(&mut self, owes_grace: bool) {
        self.owed = owes_grace.then(|| {
            let is_over = Arc::new(AtomicBool::new(false));
            let (grace, ended) = (self.grace.clone(), is_over.clone());
            let thread = thread::Builder::new().name("grace".to_owned()).spawn(move || {
                grace();
                ended.store(true, Ordering::Release);
            });
            Owed { thread: thread.ok(), is_over }
        });
    }

    /// Packets that have seen what was before meet none of what is now.
    pub(super) fn forget(&mut self) {
        self.owed = None;
    }

    /// Waits until nothing is owed.
    pub(super) fn pay(&mut self) {
        let Some(Owed { thread, is_over }) = self.owed.take() else { return };
        if let Some(thread) = thread {
            let _ = thread.join();
        }
        if !is_over.load(Ordering::Acquire) {
            (self.grace)();
        }
    }
}

impl fmt::Debug for Debt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Debt").field("is_owed", &self.is_owed()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    /// Graces that end when they are told to, and how many have begun.
    fn told() -> (Debt, Sender<()>, Arc<AtomicUsize>) {
        let (end, ends) = channel();
        let (ends, begun) = (Mutex::new(ends), Arc::new(AtomicUsize::new(0)));
        let count = begun.clone();
        let grace = move || {
            count.fetch_add(1, Ordering::SeqCst);
            ends.lock().unwrap().recv().unwrap();
        };
        (Debt::new(grace), end, begun)
    }

    #[test]
    fn it_is_owed_until_the_grace_is_over() {
        let (mut debt, end, begun) = told();
        assert!(!debt.is_owed());
        debt.pay();
        assert_eq!(begun.load(Ordering::SeqCst), 0);
        debt.updated(true);
        assert!(debt.is_owed());
        end.send(()).unwrap();
        while debt.is_owed() {
            thread::yield_now();
        }
        debt.pay();
        assert_eq!(begun.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn to_pay_is_to_wait_for_it() {
        let (mut debt, end, begun) = told();
        debt.updated(true);
        let paid = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while begun.load(Ordering::SeqCst) == 0 {
                    thread::yield_now();
                }
                assert!(!paid.load(Ordering::SeqCst));
                end.send(()).unwrap();
            });
            debt.pay();
            paid.store(true, Ordering::SeqCst);
        });
        assert!(!debt.is_owed());
        assert_eq!(begun.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn the_next_taking_begins_another_one() {
        let (mut debt, end, begun) = told();
        debt.updated(true);
        debt.updated(true);
        // The first one's end says nothing about what was taken after it had begun.
        end.send(()).unwrap();
        while begun.load(Ordering::SeqCst) < 2 {
            thread::yield_now();
        }
        end.send(()).unwrap();
        debt.pay();
        debt.updated(true);
        debt.forget();
        assert!(!debt.is_owed());
        debt.updated(true);
        debt.updated(false);
        assert!(!debt.is_owed());
    }

    #[test]
    fn a_grace_that_dies_is_none() {
        let dies = AtomicBool::new(true);
        let begun = Arc::new(AtomicUsize::new(0));
        let count = begun.clone();
        let mut debt = Debt::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
            assert!(!dies.swap(false, Ordering::SeqCst), "as the test wants it");
        });
        debt.updated(true);
        while begun.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        assert!(debt.is_owed());
        debt.pay();
        assert_eq!(begun.load(Ordering::SeqCst), 2);
    }
}
