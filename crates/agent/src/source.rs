//! What the agent hears from a source of cluster state.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use ringfence_k8s::Diagnostic;
use tokio::time::Instant;

use crate::Change;

/// How many events may wait. A source that is faster waits for the loop.
pub const CAPACITY: usize = 64;

/// What a source reports.
#[derive(Debug)]
pub enum Event {
    /// Parts of the first state, which is still on its way: an update with [`Change::Complete`] will follow. Nothing to act
    /// upon yet.
    Begun(Vec<Change>),
    /// The cluster, or what there is to say about it, is different now. Also the sign that a failure is over.
    Update(Update),
    /// As [`Event::Update`], but another part of the source still cannot be read.
    Partial(Update),
    /// The source cannot tell what the cluster looks like. The last state stays valid, and the source tries again.
    Failed(SourceError),
}

/// From one complete state to the next.
#[derive(Debug)]
pub struct Update {
    /// When the source heard of the first of these changes.
    pub received: Instant,
    /// What differs. It belongs together: the state in between existed nowhere, and must not be enforced.
    pub changes: Vec<Change>,
    /// All there is to say about the new state, repetitions included. Nothing when that is what it was before.
    pub diagnostics: Option<Vec<Diagnostic>>,
}

impl Update {
    /// An update that is received now.
    pub fn new(changes: Vec<Change>, diagnostics: Vec<Diagnostic>) -> Update {
        Update { received: Instant::now(), changes, diagnostics: Some(diagnostics) }
    }
}

impl SourceError {
    /// What of the source cannot be read: a kind of objects, or all of it. Parts fail and recover on their own.
    pub(crate) fn part(&self) -> &str {
        match self {
            SourceError::Server { doing, .. } => doing.rsplit(' ').next().unwrap_or_default(),
            _ => "",
        }
    }
}

/// Why a source does not know the state of the cluster.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file or folder.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file, or nothing that has files in it, where a folder was expected.
    #[error("{} is not a folder", .0.display())]
    NotAFolder(PathBuf),
    /// A folder without a manifest. A cluster without objects is a file that says so, not a volume that is not mounted yet.
    #[error("no .yaml, .yml or .json file in {}", .0.display())]
    NoManifests(PathBuf),
    /// A file of no bytes: most likely it is about to be written.
    #[error("{} is empty: write to another name and rename", .0.display())]
    Empty(PathBuf),
    /// Files kept changing while they were read.
    #[error("the files below {} do not stop changing", .0.display())]
    Unsettled(PathBuf),
    /// A document that cannot be read: what it says is unknown.
    #[error("{0}")]
    Fatal(Box<Diagnostic>),
    /// An API server.
    #[error("cannot {doing} of {server}: {why}")]
    Server {
        /// Its address.
        server: Arc<str>,
        /// Such as `list pods`.
        doing: String,
        /// What went wrong, and what to do about it.
        why: String,
    },
}
