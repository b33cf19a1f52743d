//! The state of the cluster: what objects there are now, indexed for the compiler.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use ringfence_model::{Labels, Namespace, Node, Object, ObjectKey, Phase, Pod, PodId, Policy, PolicyId, Tier};

use crate::guard::disjoint;
use crate::pod_class::{KindId, Label, PodClass, PodClassId, PodClasses, take};
use crate::served::Served;

/// The objects of a cluster. Its content follows from the last value applied for each object, in whatever order they came.
#[derive(Default)]
pub struct Cluster {
    namespaces: BTreeMap<Arc<str>, Labels>,
    /// None of the sets is empty.
    namespaces_by_label: HashMap<Label, BTreeSet<Arc<str>>>,
    nodes: BTreeMap<Arc<str>, Node>,
    pods: HashMap<PodId, PodEntry>,
    /// With the namespaces of the pods.
    by_node: BTreeMap<Arc<str>, BTreeSet<(Arc<str>, PodId)>>,
    policies: BTreeMap<Arc<str>, BTreeMap<PolicyId, Arc<Policy>>>,
    /// For each address the live pods that claim it, by creation; the last one owns it. Nearly always it is one.
    claims: HashMap<IpAddr, Vec<(i64, PodId)>>,
    classes: PodClasses,
    /// Endpoints of Services that can be called from outside.
    served: Served,
    /// Networks of other clusters. Not an object: who runs the agent names them.
    unmasqueraded: Arc<[IpNet]>,
}

struct PodEntry {
    pod: Arc<Pod>,
    /// None for pods that policies cannot see: finished ones and those on their node's network.
    kind: Option<KindId>,
}

/// What changed in a [`Cluster`] since a compiler last looked. Several changes can be collected in one.
#[derive(Clone, Debug, Default)]
pub struct Touched {
    /// The whole state is another one.
    pub(crate) everything: bool,
    /// Namespaces whose labels changed.
    pub(crate) namespaces: BTreeSet<Arc<str>>,
    /// Nodes whose own object changed, or one of whose pods did: with the namespaces of those pods.
    pub(crate) nodes: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// Namespaces in which a policy changed.
    pub(crate) policies: BTreeSet<Arc<str>>,
    /// Addresses whose owner, or whose owner's labels or ports, may have changed.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// Namespaces of these owners, before and after, and of pods that changed, wherever they are.
    pub(crate) pods: BTreeSet<Arc<str>>,
    /// Whether the object of some node changed.
    pub(crate) node_objects: bool,
    /// Addresses that answer for other Services, or on other ports, than before.
    pub(crate) endpoints: BTreeSet<IpAddr>,
    /// Namespaces of pods that own, or owned, an address at which a Service can be called from outside, if something about
    /// them changed.
    pub(crate) served: BTreeSet<Arc<str>>,
    /// Whether there are other networks towards which nothing is masqueraded.
    pub(crate) unmasqueraded: bool,
}

impl Touched {
    /// A change of everything: what a compiler that has seen nothing yet needs to hear.
    pub fn everything() -> Touched {
        Touched { everything: true, ..Touched::default() }
    }

    fn touch_pod(&mut self, node: &Arc<str>, namespace: &Arc<str>) {
        self.nodes.entry(node.clone()).or_default().insert(namespace.clone());
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        !self.everything
            && self.namespaces.is_empty()
            && self.nodes.is_empty()
            && self.policies.is_empty()
            && self.addresses.is_empty()
            && self.pods.is_empty()
            && !self.node_objects
            && self.endpoints.is_empty()
            && self.served.is_empty()
            && !self.unmasqueraded
    }
}

/// A policy of a tier that the compiler does not know yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsupportedTier(pub PolicyId);

impl std::fmt::Display for UnsupportedTier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "policy {} is of tier {:?}, which is not supported", self.0, self.0.tier)
    }
}

impl std::error::Error for UnsupportedTier {}

impl Cluster {
    /// A cluster without objects.
    pub fn new() -> Cluster {
        Cluster::default()
    }

    /// Adds an object or replaces the one with the same identity.
    ///
    /// # Errors
    /// A policy of another tier than `Namespace`. The state is as before.
    pub fn apply(&mut self, object: Object, touched: &mut Touched) -> Result<(), UnsupportedTier> {
        match object {
            Object::Namespace(namespace) => self.apply_namespace(namespace, touched),
            Object::Node(node) => {
                if self.nodes.get(&node.name) != Some(&node) {
                    touched.nodes.entry(node.name.clone()).or_default();
                    touched.node_objects = true;
                    self.nodes.insert(node.name.clone(), node);
                }
            }
            Object::Pod(pod) => self.apply_pod(pod, touched),
            Object::Policy(policy) => {
                if policy.id.tier != Tier::Namespace {
                    return Err(UnsupportedTier(policy.id));
                }
                let known = self.policies.get(&policy.id.namespace).and_then(|known| known.get(&policy.id));
                if known.is_some_and(|known| **known == policy) {
                    return Ok(());
                }
                self.classes.mention(&policy);
                touched.policies.insert(policy.id.namespace.clone());
                let namespace = self.policies.entry(policy.id.namespace.clone()).or_default();
                namespace.insert(policy.id.clone(), Arc::new(policy));
            }
            // Policies are judged after destination NAT: Services decide only which nodes do so.
            Object::Service(service) => {
                let changed = self.served.apply_service(&service);
                self.touch_endpoints(changed, touched);
            }
            Object::EndpointSlice(slice) => {
                let changed = self.served.apply_slice(slice);
                self.touch_endpoints(changed, touched);
            }
        }
        Ok(())
    }

    /// Removes an object. One that is not there is no error: sources repeat themselves.
    pub fn delete(&mut self, key: &ObjectKey, touched: &mut Touched) {
        match key {
            ObjectKey::Namespace(name) => {
                if let Some(labels) = self.namespaces.remove(name) {
                    self.forget_labels(name, &labels);
                    touched.namespaces.insert(name.clone());
                }
            }
            ObjectKey::Node(name) => {
                if self.nodes.remove(name).is_some() {
                    touched.nodes.entry(name.clone()).or_default();
                    touched.node_objects = true;
                }
            }
            ObjectKey::Pod(id) => self.delete_pod(id, touched),
            ObjectKey::Policy(id) => {
                let Some(namespace) = self.policies.get_mut(&id.namespace) else {
                    return;
                };
                if namespace.remove(id).is_some() {
                    touched.policies.insert(id.namespace.clone());
                }
                if namespace.is_empty() {
                    self.policies.remove(&id.namespace);
                }
            }
            ObjectKey::Service(namespace, name) => {
                let changed = self.served.delete_service(namespace, name);
                self.touch_endpoints(changed, touched);
            }
            ObjectKey::EndpointSlice(namespace, name) => {
                let changed = self.served.delete_slice(namespace, name);
                self.touch_endpoints(changed, touched);
            }
        }
    }

    /// Replaces the whole state, as after a new list from the source.
    ///
    /// # Errors
    /// As [`Cluster::apply`]; the state is as before.
    pub fn reset(
        &mut self,
        objects: impl IntoIterator<Item = Object>,
        touched: &mut Touched,
    ) -> Result<(), UnsupportedTier> {
        let mut next = Cluster { unmasqueraded: self.unmasqueraded.clone(), ..Cluster::new() };
        let mut ignored = Touched::default();
        for object in objects {
            next.apply(object, &mut ignored)?;
        }
        *self = next;
        *touched = Touched::everything();
        Ok(())
    }

    /// Names the networks towards which the node's pods keep their addresses, whatever else masquerades: pod and Service
    /// ranges of other clusters. They may overlap. A reset of the state leaves them as they are.
    pub fn keep_sources_towards(&mut self, networks: &[IpNet], touched: &mut Touched) {
        let networks = disjoint(networks);
        if *self.unmasqueraded != *networks {
            self.unmasqueraded = networks.into();
            touched.unmasqueraded = true;
        }
    }

    /// The names of the nodes that exist or that pods run on.
    pub fn node_names(&self) -> BTreeSet<Arc<str>> {
        self.nodes.keys().chain(self.by_node.keys()).cloned().collect()
    }

    /// Whether a node exists, or pods run on it.
    pub fn has_node(&self, name: &str) -> bool {
        self.nodes.contains_key(name) || self.by_node.contains_key(name)
    }

    /// How many pods it holds, and how many pod classes they fall into.
    pub fn pod_counts(&self) -> (usize, usize) {
        (self.pods.len(), self.classes.len())
    }

    /// Where the pods of a node get their addresses from (`spec.podCIDRs`): disjoint, in order, without host bits. Nothing
    /// when the node does not say or is not known.
    pub fn pod_ranges(&self, node: &str) -> Vec<IpNet> {
        self.node(node).map_or_else(Vec::new, |node| disjoint(&node.pod_cidrs))
    }

    /// How many pods of a node policies can select.
    pub fn local_pod_count(&self, node: &str) -> usize {
        let pods = self.by_node.get(node).into_iter().flatten().filter_map(|(_, id)| self.pods.get(id));
        pods.filter(|entry| entry.kind.is_some()).count()
    }

    /// How many policies it holds.
    pub fn policy_count(&self) -> usize {
        self.policies.values().map(BTreeMap::len).sum()
    }

    /// How many namespaces it holds. Pods and policies can be reported before their namespace, which then does not count.
    pub fn namespace_count(&self) -> usize {
        self.namespaces.len()
    }

    /// Whether it holds a namespace.
    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.contains_key(name)
    }

    /// A pod.
    pub fn pod(&self, id: &PodId) -> Option<&Pod> {
        self.pods.get(id).map(|entry| &*entry.pod)
    }

    pub(crate) fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// The policies of a namespace, by name.
    pub(crate) fn policies_in(&self, namespace: &str) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.get(namespace).into_iter().flat_map(BTreeMap::values)
    }

    /// The labels of a namespace, if it is in the state. A source may report a pod before its namespace.
    pub(crate) fn namespace_labels(&self, name: &str) -> Option<&Labels> {
        self.namespaces.get(name)
    }

    /// The namespaces that have pods on a node that policies can select.
    pub(crate) fn local_namespaces(&self, node: &str) -> BTreeSet<Arc<str>> {
        let pods = self.by_node.get(node).into_iter().flatten();
        let visible = pods.filter(|(_, id)| self.pods.get(id).is_some_and(|entry| entry.kind.is_some()));
        visible.map(|(namespace, _)| namespace.clone()).collect()
    }

    /// The pods of a node and a namespace that policies can select, each with the addresses it owns.
    pub(crate) fn local_pods(
        &self,
        node: &str,
        namespace: &Arc<str>,
    ) -> impl Iterator<Item = (&Arc<Pod>, Vec<IpAddr>)> {
        let first = (namespace.clone(), PodId("".into()));
        let pods = self.by_node.get(node).into_iter().flat_map(move |pods| pods.range(first.clone()..));
        pods.take_while(move |(other, _)| other == namespace).filter_map(|(_, id)| {
            let entry = self.pods.get(id)?;
            entry.kind?;
            let owned = entry.pod.addresses.iter().copied().filter(|a| self.owner(*a) == Some(id)).collect();
            Some((&entry.pod, owned))
        })
    }

    /// The pods of a namespace that run elsewhere, or nowhere yet, and that policies can select, each with those of its own
    /// addresses that `judged` tells. In no order. Looks at all pods of the namespace.
    pub(crate) fn pods_elsewhere(
        &self,
        node: &str,
        namespace: &Arc<str>,
        judged: impl Fn(IpAddr) -> bool,
    ) -> impl Iterator<Item = (&Arc<Pod>, Vec<IpAddr>)> {
        let classes = self.classes.in_namespace(namespace).filter_map(|id| self.classes.get(id));
        let pods = classes.flat_map(|class| self.classes.members(class)).filter_map(|id| self.pods.get(id));
        pods.filter(move |entry| entry.pod.node.as_deref() != Some(node)).filter_map(move |PodEntry { pod, .. }| {
            let owns = |address: &IpAddr| self.owner(*address) == Some(&pod.id) && judged(*address);
            let owned: Vec<IpAddr> = pod.addresses.iter().copied().filter(owns).collect();
            (!owned.is_empty()).then_some((pod, owned))
        })
    }

    /// The namespaces that have pods that policies can select.
    pub(crate) fn pod_namespaces(&self) -> BTreeSet<Arc<str>> {
        self.classes.iter().map(|(_, class)| class.traits.namespace.clone()).collect()
    }

    /// The namespace and the node of the pod that owns an address.
    pub(crate) fn home_of(&self, address: IpAddr) -> Option<(&Arc<str>, Option<&Arc<str>>)> {
        let pod = &self.pods.get(self.owner(address)?)?.pod;
        Some((&pod.namespace, pod.node.as_ref()))
    }

    /// Endpoints of Services that can be called from outside.
    pub(crate) fn served(&self) -> &Served {
        &self.served
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// The networks of [`Cluster::keep_sources_towards`]: disjoint, in order, without host bits.
    pub fn unmasqueraded(&self) -> &Arc<[IpNet]> {
        &self.unmasqueraded
    }

    /// The pod class of the pod that owns an address.
    pub(crate) fn class_at(&self, address: IpAddr) -> Option<(PodClassId, &PodClass)> {
        self.classes.class_of(self.pods.get(self.owner(address)?)?.kind?)
    }

    /// The namespaces with a label.
    pub(crate) fn namespaces_with(&self, key: &Arc<str>, value: &Arc<str>) -> Option<&BTreeSet<Arc<str>>> {
        self.namespaces_by_label.get(&(key.clone(), value.clone()))
    }

    pub(crate) fn classes(&self) -> &PodClasses {
        &self.classes
    }

    /// The addresses that members of a pod class list. They own them unless another pod does.
    pub(crate) fn member_addresses<'a>(&'a self, class: &'a PodClass) -> impl Iterator<Item = IpAddr> + 'a {
        let members = self.classes.members(class).filter_map(|id| self.pods.get(id));
        members.flat_map(|entry| entry.pod.addresses.iter().copied())
    }

    /// Whether a pod owns an address and somebody enforces its policies: that takes a node.
    pub(crate) fn knows(&self, address: IpAddr) -> bool {
        let owner = self.owner(address).and_then(|id| self.pods.get(id));
        owner.is_some_and(|entry| entry.pod.node.is_some())
    }

    /// All addresses that it knows.
    pub(crate) fn known_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.claims.keys().copied().filter(|address| self.knows(*address))
    }

    /// The pod that packets from and to an address belong to: of those live ones that claim it, the one created last.
    pub fn owner(&self, address: IpAddr) -> Option<&PodId> {
        self.claims.get(&address)?.last().map(|(_, id)| id)
    }

    /// Whether nothing is left of objects that were there.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        let namespaces = self.namespaces.is_empty() && self.namespaces_by_label.is_empty() && self.policies.is_empty();
        let pods = self.pods.is_empty() && self.by_node.is_empty() && self.claims.is_empty() && self.nodes.is_empty();
        namespaces && pods && self.classes.is_empty() && self.served.is_empty()
    }

    fn apply_namespace(&mut self, namespace: Namespace, touched: &mut Touched) {
        let Namespace { name, labels } = namespace;
        if self.namespaces.get(&name) == Some(&labels) {
            return;
        }
        for (key, value) in labels.iter() {
            self.namespaces_by_label.entry((key.clone(), value.clone())).or_default().insert(name.clone());
        }
        touched.namespaces.insert(name.clone());
        if let Some(before) = self.namespaces.insert(name.clone(), labels.clone()) {
            let gone = before.iter().filter(|(key, value)| labels.get(key) != Some(*value));
            self.forget_labels(&name, &gone.map(|(key, value)| (key.clone(), value.clone())).collect());
        }
    }

    fn forget_labels(&mut self, namespace: &Arc<str>, labels: &Labels) {
        for (key, value) in labels.iter() {
            take(&mut self.namespaces_by_label, &(key.clone(), value.clone()), namespace);
        }
    }

    fn apply_pod(&mut self, pod: Pod, touched: &mut Touched) {
        if self.pods.get(&pod.id).is_some_and(|entry| *entry.pod == pod) {
            return;
        }
        self.delete_pod(&pod.id, touched);
        touched.pods.insert(pod.namespace.clone());
        let visible = pod.phase == Phase::Live && !pod.host_network;
        let kind = visible.then(|| self.classes.join(&pod));
        if visible {
            for address in &pod.addresses {
                self.touch_address(*address, touched);
                if self.served.holds(*address) {
                    touched.served.insert(pod.namespace.clone());
                }
                let claims = self.claims.entry(*address).or_insert_with(|| Vec::with_capacity(1));
                let claim = (pod.created, pod.id.clone());
                // A pod may list an address twice.
                if let Err(position) = claims.binary_search(&claim) {
                    claims.insert(position, claim);
                }
            }
        }
        if let Some(node) = &pod.node {
            touched.touch_pod(node, &pod.namespace);
            self.by_node.entry(node.clone()).or_default().insert((pod.namespace.clone(), pod.id.clone()));
        }
        self.pods.insert(pod.id.clone(), PodEntry { pod: Arc::new(pod), kind });
    }

    fn delete_pod(&mut self, id: &PodId, touched: &mut Touched) {
        let Some(PodEntry { pod, kind }) = self.pods.remove(id) else {
            return;
        };
        touched.pods.insert(pod.namespace.clone());
        if let Some(kind) = kind {
            self.classes.leave(kind, id);
            for address in &pod.addresses {
                self.touch_address(*address, touched);
                if self.served.holds(*address) {
                    touched.served.insert(pod.namespace.clone());
                }
                if let Some(claims) = self.claims.get_mut(address) {
                    claims.retain(|(_, claimant)| claimant != id);
                    if claims.is_empty() {
                        self.claims.remove(address);
                    }
                }
            }
        }
        if let Some(node) = &pod.node {
            touched.touch_pod(node, &pod.namespace);
            if let Some(pods) = self.by_node.get_mut(node) {
                pods.remove(&(pod.namespace.clone(), id.clone()));
                if pods.is_empty() {
                    self.by_node.remove(node);
                }
            }
        }
    }

    /// Notes that Services lead to other endpoints than before.
    fn touch_endpoints(&self, changed: Vec<IpAddr>, touched: &mut Touched) {
        for address in changed {
            touched.endpoints.insert(address);
            self.touch_claimants(address, touched);
        }
    }

    /// Notes that a claim to an address comes or goes, as far as endpoints of Services are concerned.
    fn touch_served(&self, address: IpAddr, touched: &mut Touched) {
        if self.served.holds(address) {
            self.touch_claimants(address, touched);
        }
    }

    fn touch_claimants(&self, address: IpAddr, touched: &mut Touched) {
        let claimants = self.claims.get(&address).into_iter().flatten().filter_map(|(_, id)| self.pods.get(id));
        touched.served.extend(claimants.map(|entry| entry.pod.namespace.clone()));
    }

    /// Notes that a claim to an address comes or goes. Every other pod that claims it may gain or lose it, so to the nodes
    /// of those pods it is a change of their own pods.
    fn touch_address(&self, address: IpAddr, touched: &mut Touched) {
        touched.addresses.insert(address);
        self.touch_served(address, touched);
        let others = self.claims.get(&address).into_iter().flatten().filter_map(|(_, id)| self.pods.get(id));
        for PodEntry { pod, .. } in others {
            touched.pods.insert(pod.namespace.clone());
            if let Some(node) = &pod.node {
                touched.touch_pod(node, &pod.namespace);
            }
        }
    }
}
