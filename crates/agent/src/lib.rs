//! The agent of one node: takes changes of the cluster, keeps the node's packet filter true to them.
//!
//! [`Agent`] has no source and no clock: the caller says what changed and when to synchronise. The lab drives it with
//! manifests. [`run::run`] is the loop around it on a real node: a source ([`kube`], [`directory`]) reports events, programs
//! on the node ask ([`server`]), a file may name other clusters ([`networks`]), the loop batches, retries, looks for what others
//! change, and tells how it is ([`status`]).

pub mod access;
mod announced;
mod backoff;
pub mod directory;
mod guard;
pub mod health;
pub mod kube;
pub mod networks;
mod node;
pub mod run;
pub mod server;
pub mod source;
pub mod status;
pub mod succession;
pub mod trouble;
mod waiting;
mod window;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use announced::Announced;
use ipnet::IpNet;
use ringfence_compile::{Cluster, Compiler, Touched, UnknownPods, UnsupportedTier};
use ringfence_control::{Counts, NodesApart, Sandbox};
use ringfence_dataplane::{ApplyError, Backend, Demand, Drift, Outcome, Reconciler};
use ringfence_model::{Enforcement, Object, ObjectKey, Pod, PodId};

/// One change of the cluster, as a source reports it.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "a change is handled at once, never stored in bulk")]
pub enum Change {
    /// The complete state; what is not in it is gone.
    Reset(Vec<Object>),
    /// What was applied and not deleted so far is the complete state. For sources that tell the first one piece by piece.
    Complete,
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

/// Why the policies of a pod are not known to be in force for its sandbox.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotCovered {
    /// Nothing is known yet.
    #[error("no complete state of the cluster has been received yet")]
    NoState,
    /// The source has not reported the pod, or not that it is on this node.
    #[error("no pod {namespace}/{name} on this node has been reported yet")]
    UnknownPod {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        name: String,
    },
    /// There are pods of that name, and none of them can be the one.
    #[error("pod {namespace}/{name} is another one, has ended, or uses its node's network")]
    AnotherPod {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        name: String,
    },
    /// The pod's namespace: policies elsewhere may select its pods by labels of the namespace.
    #[error("namespace {0} has not been reported yet")]
    UnknownNamespace(String),
    /// The pod is not known under an address, or a pod that claims the address since later is.
    #[error("{0} is not known as an address of this pod")]
    AnotherAddress(IpAddr),
    /// What is known is not written yet.
    #[error("what has been reported last is not in the packet filter yet")]
    NotInForce,
}

/// The agent of one node.
pub struct Agent<B: Backend> {
    node: Arc<str>,
    /// As the source tells it, except for the addresses of pods with announced sandboxes.
    cluster: Cluster,
    announced: Announced,
    compiler: <B::Demand as Demand>::Compiler,
    unknown_pods: UnknownPods,
    enforcement: Enforcement,
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
            enforcement: Enforcement::default(),
            announced: Announced::new(node.clone()),
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

    /// The same, with another choice about where policies are enforced. Not to be called once it has programmed something.
    #[must_use]
    pub fn with_enforcement(self, enforcement: Enforcement) -> Agent<B> {
        Agent { compiler: self.compiler.with_enforcement(enforcement), enforcement, ..self }
    }

    /// Where it enforces.
    pub fn enforcement(&self) -> Enforcement {
        self.enforcement
    }

    /// Names the networks towards which the node's pods keep their addresses, in place of those named before. They may
    /// overlap. The kernel hears of them with the next [`Agent::sync`].
    pub fn keep_sources_towards(&mut self, networks: &[IpNet]) {
        self.cluster.keep_sources_towards(networks, &mut self.touched);
        if !self.ready {
            // The first program is compiled from scratch.
            self.touched = Touched::default();
        }
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
        self.cluster.has_node(&self.node)
    }

    /// Takes note of a change. The kernel hears of it with the next [`Agent::sync`].
    ///
    /// # Errors
    /// A policy of a tier that is not supported. It is left out; a reset leaves the state as before.
    pub fn change(&mut self, change: Change) -> Result<(), UnsupportedTier> {
        match change {
            Change::Reset(objects) => {
                let before = self.announced.clone();
                self.announced.see_all(&objects);
                let objects = objects.into_iter().map(|object| self.addressed(object)).collect::<Vec<_>>();
                if let Err(error) = self.cluster.reset(objects, &mut self.touched) {
                    self.announced = before;
                    return Err(error);
                }
                self.ready = true;
            }
            Change::Complete => {
                self.ready = true;
                self.touched = Touched::everything();
            }
            Change::Apply(Object::Pod(pod)) => {
                // Pods do not move and are not renamed, but whatever the source says is taken as it is.
                let is_same = |known: &Pod| {
                    (&known.namespace, &known.name, &known.node) == (&pod.namespace, &pod.name, &pod.node)
                };
                if let Some(other) = self.cluster.pod(&pod.id).filter(|known| !is_same(known)).cloned() {
                    let namesakes = self.announced.lose(&other);
                    self.apply_pods(namesakes)?;
                }
                let pods = self.announced.see(pod);
                self.apply_pods(pods)?;
            }
            Change::Apply(object) => self.cluster.apply(object, &mut self.touched)?,
            Change::Delete(key) => {
                let lost = if let ObjectKey::Pod(id) = &key { self.cluster.pod(id).cloned() } else { None };
                self.cluster.delete(&key, &mut self.touched);
                if let Some(pod) = lost {
                    let namesakes = self.announced.lose(&pod);
                    self.apply_pods(namesakes)?;
                }
            }
        }
        if !self.ready {
            // The first program is compiled from scratch, whatever came in which order before.
            self.touched = Touched::default();
        }
        Ok(())
    }

    /// The container runtime has given a pod of this node its network: from now on the pod's addresses are those of its
    /// announced sandboxes, whatever its status tells. `since` is the time of the announcement in seconds since the epoch. A
    /// sandbox with the same id is replaced.
    ///
    /// The announcement waits for its pod if the source has not reported it yet; without a pod it grants nothing. Once the
    /// source has had the pod with that uid and has it no more, the announcement is dropped ([`Agent::take_forgotten`]).
    pub fn announce(&mut self, sandbox: Sandbox, since: i64) {
        let pods = self.announced.add(sandbox, since);
        // Only policies are refused.
        let _ = self.apply_pods(pods);
    }

    /// A sandbox is gone. When it was the last of its pod, the addresses of the pod are those of its status again.
    pub fn withdraw(&mut self, id: &str) {
        let pods = self.announced.remove(id);
        let _ = self.apply_pods(pods);
    }

    /// The ids of announced sandboxes that were dropped because their pod is gone, each once.
    pub fn take_forgotten(&mut self) -> Vec<String> {
        self.announced.take_forgotten()
    }

    /// Whether what the policies say about the pod of a sandbox is in force for the sandbox's addresses.
    ///
    /// # Errors
    /// Why not, or not yet.
    pub fn covers(&self, sandbox: &Sandbox) -> Result<(), NotCovered> {
        if !self.ready {
            return Err(NotCovered::NoState);
        }
        let (namespace, name) = (sandbox.namespace.clone(), sandbox.name.clone());
        let Some(pod) = self.announced.pod_of(sandbox) else {
            return Err(match self.announced.namesakes(sandbox).next() {
                Some(_) => NotCovered::AnotherPod { namespace, name },
                None => NotCovered::UnknownPod { namespace, name },
            });
        };
        if !self.cluster.has_namespace(&namespace) {
            return Err(NotCovered::UnknownNamespace(namespace));
        }
        let is_others = |address: &&IpAddr| self.cluster.owner(**address) != Some(&pod.id);
        if let Some(address) = sandbox.addresses.iter().find(is_others) {
            return Err(NotCovered::AnotherAddress(*address));
        }
        if self.is_behind() || self.reconciler.in_force().is_none() {
            return Err(NotCovered::NotInForce);
        }
        Ok(())
    }

    /// Whether the source has reported the pod of a sandbox.
    pub fn knows_pod_of(&self, sandbox: &Sandbox) -> bool {
        self.announced.pod_of(sandbox).is_some()
    }

    /// Whether something has changed since the last program was compiled.
    pub fn is_behind(&self) -> bool {
        !self.touched.is_empty()
    }

    fn addressed(&self, object: Object) -> Object {
        match object {
            Object::Pod(pod) => Object::Pod(self.announced.addressed(pod)),
            object => object,
        }
    }

    fn apply_pods(&mut self, pods: Vec<Pod>) -> Result<(), UnsupportedTier> {
        pods.into_iter().try_for_each(|pod| self.cluster.apply(Object::Pod(pod), &mut self.touched))
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

    /// How much there is of what, as far as is known. `isolated` are the addresses that some policy isolates; those of pods
    /// of other nodes are not counted.
    /// Invalid policies are not told apart from others: their number is left at 0.
    pub fn counts(&self, isolated: &BTreeSet<IpAddr>) -> Counts {
        if !self.ready {
            return Counts { sandboxes: self.announced.len() as u64, ..Counts::default() };
        }
        let owners: BTreeSet<_> = isolated.iter().filter_map(|address| self.cluster.owner(*address)).collect();
        let is_local = |id: &&PodId| self.cluster.pod(id).is_some_and(|pod| pod.node.as_deref() == Some(&*self.node));
        let (isolated, remote): (Vec<_>, Vec<_>) = owners.into_iter().partition(is_local);
        Counts {
            pods: self.cluster.pod_counts().0 as u64,
            local_pods: self.cluster.local_pod_count(&self.node) as u64,
            isolated_pods: isolated.len() as u64,
            remote_pods: remote.len() as u64,
            policies: self.cluster.policy_count() as u64,
            invalid_policies: 0,
            namespaces: self.cluster.namespace_count() as u64,
            sandboxes: self.announced.len() as u64,
            ..Counts::default()
        }
    }

    /// The nodes whose agents do not say that they enforce as this one does. One that says nothing enforces by default, as far
    /// as anybody knows.
    pub fn nodes_apart(&self) -> NodesApart {
        const NAMED: usize = 10;
        let others = self.cluster.nodes().filter(|node| node.name != self.node);
        let apart = others.filter(|node| node.announced.unwrap_or_default() != self.enforcement);
        let mut names: Vec<&str> = apart.map(|node| &*node.name).collect();
        names.sort_unstable();
        NodesApart { count: names.len() as u64, first: names.iter().take(NAMED).map(|&name| name.to_owned()).collect() }
    }

    /// The networks of [`Agent::keep_sources_towards`], without those that are part of others.
    pub fn unmasqueraded(&self) -> &[IpNet] {
        self.cluster.unmasqueraded()
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
