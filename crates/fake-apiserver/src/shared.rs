//! What tests and requests share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::fault::Faults;
use crate::request::Request;
use crate::resource::{RESOURCES, Resource};
use crate::store::Store;
use crate::watch::Notice;

/// What the server makes of `sendInitialEvents`, which changed from version to version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WatchList {
    /// It is served, as since 1.34.
    #[default]
    Enabled,
    /// It is known and refused with 422, as from 1.27 on where the feature gate is off.
    Disabled,
    /// It is not known, and so passed over, as before 1.27.
    Unknown,
}

/// Everything that changes.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) store: Store,
    pub(crate) faults: Faults,
    pub(crate) requests: Vec<Request>,
    pub(crate) watch_list: WatchList,
    pub(crate) ready: bool,
    /// What reviews of access deny: verb and resource, each `*` for any.
    pub(crate) denied: Vec<(String, String)>,
    pub(crate) bookmark_every: Duration,
    watchers: BTreeMap<u64, Watcher>,
    next_watcher: u64,
}

#[derive(Debug)]
struct Watcher {
    resource: &'static Resource,
    notices: mpsc::UnboundedSender<Notice>,
}

impl State {
    fn new() -> State {
        State {
            store: Store::new(),
            faults: Faults::default(),
            requests: Vec::new(),
            watch_list: WatchList::default(),
            ready: true,
            denied: Vec::new(),
            bookmark_every: Duration::from_secs(60),
            watchers: BTreeMap::new(),
            next_watcher: 0,
        }
    }

    /// Changes the store, and tells those who watch.
    pub(crate) fn change<T>(&mut self, change: impl FnOnce(&mut Store) -> T) -> T {
        let before = self.store.version();
        let outcome = change(&mut self.store);
        for resource in &RESOURCES {
            if self.store.newest(resource).is_none_or(|newest| newest.version <= before) {
                continue;
            }
            // A change that is forgotten at once cannot be told to those who watch: the log holds at least one.
            for change in self.store.changes_after(resource, before).unwrap_or_default() {
                self.notify(resource, &Notice::Change(change));
            }
        }
        outcome
    }

    pub(crate) fn notify(&self, resource: &Resource, notice: &Notice) {
        for watcher in self.watchers.values().filter(|watcher| watcher.resource == resource) {
            // One that just ended needs no notice.
            let _ = watcher.notices.send(notice.clone());
        }
    }

    pub(crate) fn watchers(&self, resource: &Resource) -> usize {
        self.watchers.values().filter(|watcher| watcher.resource == resource).count()
    }
}

#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
}

impl Shared {
    pub(crate) fn new() -> Shared {
        Shared { state: Mutex::new(State::new()) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // A test that panics while it holds the lock has failed already.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When a watch that begins or got a bookmark now gets the next one.
    pub(crate) fn next_bookmark(&self) -> Option<Instant> {
        Instant::now().checked_add(self.lock().bookmark_every)
    }
}

/// The place of an open watch among the others. It is given up when this is dropped.
pub(crate) struct Place {
    pub(crate) shared: Arc<Shared>,
    pub(crate) notices: mpsc::UnboundedReceiver<Notice>,
    number: u64,
}

impl Place {
    /// Takes a place while the state is locked, so that no change is missed.
    pub(crate) fn take(shared: &Arc<Shared>, state: &mut State, resource: &'static Resource) -> Place {
        let (sender, notices) = mpsc::unbounded_channel();
        state.next_watcher += 1;
        let number = state.next_watcher;
        state.watchers.insert(number, Watcher { resource, notices: sender });
        Place { shared: Arc::clone(shared), notices, number }
    }

    pub(crate) fn ask_for_bookmark(&self) {
        let state = self.shared.lock();
        if let Some(watcher) = state.watchers.get(&self.number) {
            // The receiver is ours.
            let _ = watcher.notices.send(Notice::Bookmark(state.store.version()));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.lock().watchers.remove(&self.number);
    }
}
