//! Announced sandboxes, laid over what the source says of the node's pods.
//!
//! The container runtime knows a pod's addresses before the API server does, and when it makes a pod's sandbox anew, the
//! pod's status goes on telling the addresses of the old one for a while. So a pod of this node that has sandboxes has their
//! addresses, and only theirs. What comes out follows from the pods and the sandboxes there are, in whatever order they came.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ringfence_control::Sandbox;
use ringfence_k8s::is_uid_of_pod;
use ringfence_model::{Object, Phase, Pod, PodId};

/// Namespace and name.
type PodName = (Arc<str>, Arc<str>);

/// The sandboxes of a node, and its pods as the source tells them.
#[derive(Clone, Debug)]
pub(crate) struct Announced {
    node: Arc<str>,
    pods: BTreeMap<PodName, BTreeMap<PodId, Pod>>,
    /// By the pod they name, then by their own id.
    sandboxes: BTreeMap<PodName, BTreeMap<String, Announcement>>,
    /// Whose sandbox an id is.
    names: BTreeMap<String, PodName>,
    /// For each address the sandboxes that have it, by the time of their announcement and their id; the last one's pod has it.
    claims: BTreeMap<IpAddr, BTreeSet<(i64, String)>>,
    /// Sandboxes whose pod is gone.
    forgotten: Vec<String>,
}

#[derive(Clone, Debug)]
struct Announcement {
    sandbox: Sandbox,
    /// In seconds since the epoch.
    since: i64,
}

impl Announced {
    pub(crate) fn new(node: Arc<str>) -> Announced {
        Announced {
            node,
            pods: BTreeMap::new(),
            sandboxes: BTreeMap::new(),
            names: BTreeMap::new(),
            claims: BTreeMap::new(),
            forgotten: Vec::new(),
        }
    }

    /// How many sandboxes there are.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    /// Adds a sandbox, or replaces the one with the same id. Returns the pods that may have other addresses now, with those.
    pub(crate) fn add(&mut self, sandbox: Sandbox, since: i64) -> Vec<Pod> {
        let mut changed = self.remove(&sandbox.id);
        let name: PodName = (sandbox.namespace.as_str().into(), sandbox.name.as_str().into());
        self.names.insert(sandbox.id.clone(), name.clone());
        for address in &sandbox.addresses {
            self.claims.entry(*address).or_default().insert((since, sandbox.id.clone()));
        }
        let addresses = sandbox.addresses.clone();
        let announcement = Announcement { sandbox, since };
        self.sandboxes.entry(name.clone()).or_default().insert(announcement.sandbox.id.clone(), announcement);
        // A pod that is in there twice is right the second time.
        changed.extend(self.called(&name));
        changed.extend(self.claimants(&addresses));
        changed
    }

    /// Removes a sandbox, if it is there. Returns the pods that may have other addresses now, with those.
    pub(crate) fn remove(&mut self, id: &str) -> Vec<Pod> {
        let Some(name) = self.names.remove(id) else { return Vec::new() };
        let Some(sandboxes) = self.sandboxes.get_mut(&name) else { return Vec::new() };
        let removed = sandboxes.remove(id);
        if sandboxes.is_empty() {
            self.sandboxes.remove(&name);
        }
        let mut changed = Vec::new();
        if let Some(Announcement { sandbox, since }) = removed {
            for address in &sandbox.addresses {
                if let Some(claims) = self.claims.get_mut(address) {
                    claims.remove(&(since, sandbox.id.clone()));
                    if claims.is_empty() {
                        self.claims.remove(address);
                    }
                }
            }
            changed = self.called(&name);
            changed.extend(self.claimants(&sandbox.addresses));
        }
        changed
    }

    /// The pods that have sandboxes with these addresses, with the addresses they have.
    fn claimants(&self, addresses: &[IpAddr]) -> Vec<Pod> {
        let claims = addresses.iter().filter_map(|address| self.claims.get(address)).flatten();
        claims.filter_map(|(_, id)| self.names.get(id)).flat_map(|name| self.called(name)).collect()
    }

    /// Whether no sandbox was announced with the address after this one. The runtime gives an address again when it is free,
    /// whether or not it has told that the sandbox before is gone.
    fn still_has(&self, announcement: &Announcement, address: IpAddr) -> bool {
        let last = self.claims.get(&address).and_then(BTreeSet::last);
        last.is_some_and(|(_, id)| *id == announcement.sandbox.id)
    }

    /// The source tells of a pod. Returns it, and others of its name, with the addresses they have.
    pub(crate) fn see(&mut self, pod: Pod) -> Vec<Pod> {
        if pod.node.as_ref() != Some(&self.node) {
            return vec![pod];
        }
        let name = name_of(&pod);
        self.pods.entry(name.clone()).or_default().insert(pod.id.clone(), pod);
        self.called(&name)
    }

    /// The source has this pod no more. Returns the pods that may have other addresses now, with those.
    pub(crate) fn lose(&mut self, pod: &Pod) -> Vec<Pod> {
        let name = name_of(pod);
        let mut changed = Vec::new();
        if let Some(pods) = self.pods.get_mut(&name)
            && let Some(lost) = pods.remove(&pod.id)
        {
            if pods.is_empty() {
                self.pods.remove(&name);
            }
            changed = self.forget(&name, &lost);
        }
        changed.extend(self.called(&name));
        changed
    }

    /// The source tells of all pods at once; of these objects, those that are no pods are passed over.
    pub(crate) fn see_all<'a>(&mut self, objects: impl IntoIterator<Item = &'a Object>) {
        let before = std::mem::take(&mut self.pods);
        for object in objects {
            if let Object::Pod(pod) = object
                && pod.node.as_ref() == Some(&self.node)
            {
                self.pods.entry(name_of(pod)).or_default().insert(pod.id.clone(), pod.clone());
            }
        }
        for (name, pods) in before {
            for (id, lost) in pods {
                if !self.pods.get(&name).is_some_and(|pods| pods.contains_key(&id)) {
                    // The caller gives all pods their addresses.
                    let _ = self.forget(&name, &lost);
                }
            }
        }
    }

    /// A pod with the addresses it has: those of its sandboxes, or if it has none, those it came with.
    pub(crate) fn addressed(&self, mut pod: Pod) -> Pod {
        let Some(sandboxes) = self.sandboxes.get(&name_of(&pod)) else { return pod };
        let its = |announcement: &&Announcement| self.pod_of(&announcement.sandbox).is_some_and(|its| its.id == pod.id);
        let its: Vec<&Announcement> = sandboxes.values().filter(its).collect();
        // An address that two pods claim belongs to the one that came by it last.
        let Some(since) = its.iter().map(|announcement| announcement.since).max() else { return pod };
        pod.created = pod.created.max(since);
        pod.addresses.clear();
        for announcement in its {
            for address in &announcement.sandbox.addresses {
                if !pod.addresses.contains(address) && self.still_has(announcement, *address) {
                    pod.addresses.push(*address);
                }
            }
        }
        pod
    }

    /// The pod of this node that a sandbox belongs to, as the source tells it.
    ///
    /// Several can have the name of a sandbox without uid when a pod is made anew: it is the last one's. Pods without
    /// policy of their own, finished ones and those on the node's network, have no sandbox that matters.
    pub(crate) fn pod_of(&self, sandbox: &Sandbox) -> Option<&Pod> {
        let pods = self.namesakes(sandbox).filter(|pod| pod.phase == Phase::Live && !pod.host_network);
        pods.filter(|pod| is_of(sandbox, pod)).max_by_key(|pod| (pod.created, &pod.id))
    }

    /// The pods of this node that are called like the pod of a sandbox.
    pub(crate) fn namesakes(&self, sandbox: &Sandbox) -> impl Iterator<Item = &Pod> {
        let name: PodName = (sandbox.namespace.as_str().into(), sandbox.name.as_str().into());
        self.pods.get(&name).into_iter().flat_map(BTreeMap::values)
    }

    /// The ids of sandboxes that were dropped because their pod is gone, since this was asked last.
    pub(crate) fn take_forgotten(&mut self) -> Vec<String> {
        std::mem::take(&mut self.forgotten)
    }

    /// A pod is gone, and with it the sandboxes that name its uid. Those that name none may be the next pod's already; they
    /// stay until they are removed. Returns the pods that may have other addresses now, with those.
    fn forget(&mut self, name: &PodName, lost: &Pod) -> Vec<Pod> {
        let Some(sandboxes) = self.sandboxes.get(name) else { return Vec::new() };
        let others = self.pods.get(name);
        let is_other = |sandbox: &Sandbox| others.is_some_and(|pods| pods.values().any(|pod| is_of(sandbox, pod)));
        let gone = sandboxes.values().map(|announcement| &announcement.sandbox);
        let gone = gone.filter(|sandbox| sandbox.uid.is_some() && is_of(sandbox, lost) && !is_other(sandbox));
        let gone: Vec<String> = gone.map(|sandbox| sandbox.id.clone()).collect();
        let mut changed = Vec::new();
        for id in gone {
            changed.extend(self.remove(&id));
            self.forgotten.push(id);
        }
        changed
    }

    /// The pods of a name, with the addresses they have.
    fn called(&self, name: &PodName) -> Vec<Pod> {
        let pods = self.pods.get(name).into_iter().flat_map(BTreeMap::values);
        pods.map(|pod| self.addressed(pod.clone())).collect()
    }
}

fn name_of(pod: &Pod) -> PodName {
    (pod.namespace.clone(), pod.name.clone())
}

/// Whether a sandbox is that of a pod with the same namespace and name. The kubelet tells the runtime its own uid of a static
/// pod; a pod of a file may have none.
fn is_of(sandbox: &Sandbox, pod: &Pod) -> bool {
    let Some(uid) = sandbox.uid.as_deref() else { return true };
    uid == &*pod.id.0 || Some(uid) == pod.static_uid.as_deref() || !is_uid_of_pod(&pod.id)
}
