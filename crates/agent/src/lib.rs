//! The agent of one node: takes changes of the cluster, keeps the node's packet filter true to them.
//!
//! [`Agent`] has no source and no clock: the caller says what changed and when to synchronise. The lab drives it with
//! manifests. [`run::run`] is the loop around it on a real node: a source ([`kube`], [`directory`]) reports events, the loop batches
//! them, retries, looks for what others change, and tells how it is ([`health`]).

pub mod access;
mod backoff;
pub mod directory;
mod guard;
pub mod health;
pub mod kube;
pub mod run;
pub mod source;
pub mod succession;
pub mod trouble;
mod window;

use std::sync::Arc;

use ipnet::IpNet;
use ringfence_compile::{Cluster, Compiler, Touched, UnknownPods, UnsupportedTier};
use ringfence_dataplane::{ApplyError, Backend, Demand, Drift, Outcome, Reconciler};
use ringfence_model::{Object, ObjectKey, ObjectKind};

/// One change of the cluster, as a source reports it.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "a change is handled at once, never stored in bulk")]
pub enum Change {
    /// The complete state; what is not in it is gone.
    Reset(Vec<Object>),
    /// All objects of one kind; those that are not in it are gone.
    Relist(ObjectKind, Vec<Object>),
    /// An object is new or has changed.
    Apply(Object),
    /// An object is gone.
    Delete(ObjectKey),
}

/// Why the packet filter could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// There was no complete state yet. What an earlier run left in the kernel stays in force.
    #[error("no complete state of the cluster has been received yet")]
    NotReady,
    /// The backend failed. What the kernel had stays in force, and the next attempt writes everything.
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

/// The agent of one node.
pub struct Agent<B: Backend> {
    node: Arc<str>,
    cluster: Cluster,
    compiler: <B::Demand as Demand>::Compiler,
    unknown_pods: UnknownPods,
    /// What changed since the last program.
    touched: Touched,
    /// A complete state has arrived: nothing is programmed before.
    ready: bool,
    program: Option<B::Demand>,
    reconciler: Reconciler<B>,
}

impl<B: Backend> Agent<B> {
    /// An agent that has seen nothing and programmed nothing. It allows unknown pods.
    pub fn new(node: Arc<str>, backend: B) -> Agent<B> {
        Agent {
            compiler: Compiler::for_node(node.clone()),
            unknown_pods: UnknownPods::default(),
            node,
            cluster: Cluster::new(),
            touched: Touched::default(),
            ready: false,
            program: None,
            reconciler: Reconciler::new(backend),
        }
    }

    /// The same, with another choice about unknown pods. Not to be called once it has programmed something.
    #[must_use]
    pub fn with_unknown_pods(self, unknown_pods: UnknownPods) -> Agent<B> {
        Agent { compiler: self.compiler.with_unknown_pods(unknown_pods), unknown_pods, ..self }
    }

    /// The ranges that are guarded against unknown pods: none, when the node's own Node names none or is not there. Nothing
    /// when unknown pods are allowed.
    pub fn guarded(&self) -> Option<Vec<IpNet>> {
        (self.unknown_pods == UnknownPods::Deny).then(|| self.cluster.pod_ranges(&self.node))
    }

    /// The node it works for.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Whether the cluster has its node, or pods on it. Without, nothing is isolated here.
    pub fn knows_its_node(&self) -> bool {
        self.cluster.node_names().contains(&self.node)
    }

    /// Takes note of a change. The kernel hears of it with the next [`Agent::sync`].
    ///
    /// # Errors
    /// A policy of a tier that is not supported. It is left out; a reset leaves the state as before.
    pub fn change(&mut self, change: Change) -> Result<(), UnsupportedTier> {
        match change {
            Change::Reset(objects) => {
                self.cluster.reset(objects, &mut self.touched)?;
                self.ready = true;
            }
            Change::Relist(kind, objects) => self.cluster.relist(kind, objects, &mut self.touched)?,
            Change::Apply(object) => self.cluster.apply(object, &mut self.touched)?,
            Change::Delete(key) => self.cluster.delete(&key, &mut self.touched),
        }
        Ok(())
    }

    /// Compiles what changed and writes the difference into the kernel, as one transaction. Cheap when nothing changed.
    ///
    /// # Errors
    /// See [`SyncError`]. A later call tries again.
    pub fn sync(&mut self) -> Result<Outcome, SyncError> {
        if !self.ready {
            return Err(SyncError::NotReady);
        }
        let program = match self.program.take() {
            Some(program) if self.touched.is_empty() => program,
            _ => self.compiler.compile(&self.cluster, &std::mem::take(&mut self.touched)),
        };
        let outcome = self.reconciler.apply(&program);
        self.program = Some(program);
        Ok(outcome?)
    }

    /// Looks whether the kernel still has what was written last, and mends what others have changed. Tells what, if it had to.
    ///
    /// # Errors
    /// What the backend reports. The next [`Agent::sync`] writes everything.
    pub fn repair(&mut self) -> Result<Option<Drift>, ApplyError> {
        self.reconciler.repair()
    }

    /// The same, as far as the backend's alarm tells: see [`Backend::heed`].
    ///
    /// # Errors
    /// What the backend reports. The next [`Agent::sync`] writes everything.
    pub fn heed(&mut self) -> Result<Option<Drift>, ApplyError> {
        self.reconciler.heed()
    }

    /// How many pods the cluster has, as far as is known.
    pub fn pods(&self) -> usize {
        self.cluster.pod_counts().0
    }

    /// The program last compiled.
    pub fn program(&self) -> Option<&B::Demand> {
        self.program.as_ref()
    }

    /// The backend, to ask it what it holds.
    pub fn backend(&self) -> &B {
        self.reconciler.backend()
    }

    /// The backend, to do things behind the agent's back.
    pub fn backend_mut(&mut self) -> &mut B {
        self.reconciler.backend_mut()
    }

    /// Takes everything of ours out of the kernel.
    ///
    /// # Errors
    /// What the backend reports.
    pub fn cleanup(&mut self) -> Result<(), ApplyError> {
        self.reconciler.cleanup()
    }
}
