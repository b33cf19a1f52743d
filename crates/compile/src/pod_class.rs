//! Pod classes: pods that no policy in force can tell apart.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use ringfence_model::{ContainerPort, Labels, Peer, Peers, Pod, PodId, Policy, PortMatch, Ports, Protocol};

use crate::matcher::Matcher;

/// The name of a pod class inside one cluster state. Never used again once its class is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PodClassId(u64);

/// The name of a kind of pods inside one cluster state. Never used again once nobody is of that kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct KindId(u64);

/// A label's key and value.
pub(crate) type Label = (Arc<str>, Arc<str>);

/// Pod classes by namespace. None of the sets is empty.
pub(crate) type ByNamespace = HashMap<Arc<str>, BTreeSet<PodClassId>>;

/// Pods of one namespace with the same labels and the same ports, as one template makes them.
struct Kind {
    content: Content,
    class: PodClassId,
    members: BTreeSet<PodId>,
}

/// What the pods of a kind have in common.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Content {
    namespace: Arc<str>,
    labels: Labels,
    ports: Vec<ContainerPort>,
}

impl Content {
    fn of(pod: &Pod) -> Content {
        Content { namespace: pod.namespace.clone(), labels: pod.labels.clone(), ports: pod.ports.clone() }
    }

    fn port_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.ports.iter().filter_map(|port| port.name.as_ref())
    }
}

/// Pods of one namespace that agree in every label and every port name that some policy mentions.
pub(crate) struct PodClass {
    pub(crate) traits: PodTraits,
    kinds: BTreeSet<KindId>,
}

/// What policies can see of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PodTraits {
    pub(crate) namespace: Arc<str>,
    /// Only labels whose key some policy mentions.
    pub(crate) labels: Labels,
    /// Only named ports whose name some policy mentions.
    pub(crate) named_ports: BTreeSet<(Protocol, Arc<str>, u16)>,
}

impl PodTraits {
    /// The numbers that a mentioned port name stands for.
    pub(crate) fn numbers<'a>(&'a self, (protocol, name): &'a (Protocol, Arc<str>)) -> impl Iterator<Item = u16> + 'a {
        let named = self.named_ports.iter().filter(move |(p, n, _)| p == protocol && n == name);
        named.map(|(_, _, number)| *number)
    }
}

/// All pod classes, and which labels and port names tell pods apart.
///
/// What was mentioned once stays mentioned until the state is replaced: classes that are finer than they need to be are
/// still right, and no event looks at all of them.
#[derive(Default)]
pub(crate) struct PodClasses {
    mentioned: Mentioned,
    next: u64,
    kinds: HashMap<KindId, Kind>,
    by_content: HashMap<Content, KindId>,
    /// The kinds that have a label with a key, and those with a port of a name.
    by_key: HashMap<Arc<str>, BTreeSet<KindId>>,
    by_port_name: HashMap<Arc<str>, BTreeSet<KindId>>,
    by_traits: HashMap<PodTraits, PodClassId>,
    classes: BTreeMap<PodClassId, PodClass>,
    directory: Directory,
}

/// Where to find classes by what they have. Nothing in it is empty.
#[derive(Default)]
struct Directory {
    by_namespace: ByNamespace,
    by_label: HashMap<Label, ByNamespace>,
    /// By protocol and name, then by number.
    by_port: HashMap<(Protocol, Arc<str>), BTreeMap<u16, BTreeSet<PodClassId>>>,
    /// Counts changes of the numbers that port names stand for.
    numbers_version: u64,
}

impl Directory {
    fn add(&mut self, id: PodClassId, PodTraits { namespace, labels, named_ports }: &PodTraits) {
        self.by_namespace.entry(namespace.clone()).or_default().insert(id);
        for (key, value) in labels.iter() {
            let by_namespace = self.by_label.entry((key.clone(), value.clone())).or_default();
            by_namespace.entry(namespace.clone()).or_default().insert(id);
        }
        for (protocol, name, number) in named_ports {
            let numbers = self.by_port.entry((*protocol, name.clone())).or_default();
            let classes = numbers.entry(*number).or_default();
            self.numbers_version += u64::from(classes.is_empty());
            classes.insert(id);
        }
    }

    fn remove(&mut self, id: PodClassId, PodTraits { namespace, labels, named_ports }: &PodTraits) {
        take(&mut self.by_namespace, namespace, &id);
        for (key, value) in labels.iter() {
            let label = (key.clone(), value.clone());
            if let Some(by_namespace) = self.by_label.get_mut(&label) {
                take(by_namespace, namespace, &id);
                if by_namespace.is_empty() {
                    self.by_label.remove(&label);
                }
            }
        }
        for (protocol, name, number) in named_ports {
            let name = (*protocol, name.clone());
            let Some(numbers) = self.by_port.get_mut(&name) else { continue };
            let Some(classes) = numbers.get_mut(number) else { continue };
            classes.remove(&id);
            if classes.is_empty() {
                numbers.remove(number);
                self.numbers_version += 1;
            }
            if numbers.is_empty() {
                self.by_port.remove(&name);
            }
        }
    }
}

/// Takes an item out of one of the sets, and the set with the last item.
pub(crate) fn take<K: Eq + Hash, T: Ord>(sets: &mut HashMap<K, BTreeSet<T>>, key: &K, item: &T) {
    if let Some(set) = sets.get_mut(key) {
        set.remove(item);
        if set.is_empty() {
            sets.remove(key);
        }
    }
}

#[derive(Default)]
struct Mentioned {
    label_keys: BTreeSet<Arc<str>>,
    port_names: BTreeSet<Arc<str>>,
}

impl Mentioned {
    fn traits(&self, content: &Content) -> PodTraits {
        let named_ports = content.ports.iter().filter_map(|ContainerPort { name, protocol, port }| {
            let name = name.as_ref().filter(|name| self.port_names.contains(*name))?;
            Some((*protocol, name.clone(), *port))
        });
        let labels = if content.labels.keys().all(|key| self.label_keys.contains(key)) {
            content.labels.clone()
        } else {
            let mentioned = content.labels.iter().filter(|(key, _)| self.label_keys.contains(*key));
            mentioned.map(|(key, value)| (key.clone(), value.clone())).collect()
        };
        PodTraits { namespace: content.namespace.clone(), labels, named_ports: named_ports.collect() }
    }
}

impl PodClasses {
    pub(crate) fn get(&self, id: PodClassId) -> Option<&PodClass> {
        self.classes.get(&id)
    }

    pub(crate) fn len(&self) -> usize {
        self.classes.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (PodClassId, &PodClass)> {
        self.classes.iter().map(|(id, class)| (*id, class))
    }

    /// The class that pods of a kind are in.
    pub(crate) fn class_of(&self, kind: KindId) -> Option<(PodClassId, &PodClass)> {
        let id = self.kinds.get(&kind)?.class;
        Some((id, self.classes.get(&id)?))
    }

    /// The pods of a class.
    pub(crate) fn members<'a>(&'a self, class: &'a PodClass) -> impl Iterator<Item = &'a PodId> + 'a {
        class.kinds.iter().filter_map(|kind| self.kinds.get(kind)).flat_map(|kind| &kind.members)
    }

    /// The classes of a namespace.
    pub(crate) fn in_namespace(&self, namespace: &Arc<str>) -> impl Iterator<Item = PodClassId> {
        self.directory.by_namespace.get(namespace).into_iter().flatten().copied()
    }

    /// The classes that have a mentioned label.
    pub(crate) fn with_label(&self, key: &Arc<str>, value: &Arc<str>) -> Option<&ByNamespace> {
        self.directory.by_label.get(&(key.clone(), value.clone()))
    }

    /// The classes on which a mentioned port name stands for a number.
    pub(crate) fn with_port(
        &self,
        protocol: Protocol,
        name: &Arc<str>,
        number: u16,
    ) -> impl Iterator<Item = PodClassId> {
        let numbers = self.directory.by_port.get(&(protocol, name.clone()));
        numbers.and_then(|numbers| numbers.get(&number)).into_iter().flatten().copied()
    }

    /// The numbers that a port name stands for, on whatever pod; in order.
    pub(crate) fn numbers(&self, protocol: Protocol, name: &Arc<str>) -> impl Iterator<Item = u16> {
        self.directory.by_port.get(&(protocol, name.clone())).into_iter().flat_map(BTreeMap::keys).copied()
    }

    /// Changes whenever some answer of [`PodClasses::numbers`] does.
    pub(crate) fn numbers_version(&self) -> u64 {
        self.directory.numbers_version
    }

    /// Whether nothing is left of pods that were there.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        let Directory { by_namespace, by_label, by_port, .. } = &self.directory;
        let kinds = self.kinds.is_empty() && self.by_content.is_empty();
        let classes = self.by_traits.is_empty() && self.classes.is_empty();
        let places = self.by_key.is_empty() && self.by_port_name.is_empty();
        kinds && classes && places && by_namespace.is_empty() && by_label.is_empty() && by_port.is_empty()
    }

    /// Puts a pod among those of its kind.
    pub(crate) fn join(&mut self, pod: &Pod) -> KindId {
        let content = Content::of(pod);
        let id = match self.by_content.get(&content) {
            Some(id) => *id,
            None => self.add_kind(content),
        };
        if let Some(kind) = self.kinds.get_mut(&id) {
            kind.members.insert(pod.id.clone());
        }
        id
    }

    /// Takes a pod out again. A kind without pods goes, and so does a class without kinds.
    pub(crate) fn leave(&mut self, id: KindId, pod: &PodId) {
        let Some(kind) = self.kinds.get_mut(&id) else { return };
        kind.members.remove(pod);
        if kind.members.is_empty()
            && let Some(kind) = self.kinds.remove(&id)
        {
            self.by_content.remove(&kind.content);
            for key in kind.content.labels.keys() {
                take(&mut self.by_key, key, &id);
            }
            for name in kind.content.port_names() {
                take(&mut self.by_port_name, name, &id);
            }
            self.leave_class(kind.class, id);
        }
    }

    fn add_kind(&mut self, content: Content) -> KindId {
        let id = KindId(self.next());
        for key in content.labels.keys() {
            self.by_key.entry(key.clone()).or_default().insert(id);
        }
        for name in content.port_names() {
            self.by_port_name.entry(name.clone()).or_default().insert(id);
        }
        let class = self.join_class(id, self.mentioned.traits(&content));
        self.by_content.insert(content.clone(), id);
        self.kinds.insert(id, Kind { content, class, members: BTreeSet::new() });
        id
    }

    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn join_class(&mut self, kind: KindId, traits: PodTraits) -> PodClassId {
        let id = match self.by_traits.get(&traits) {
            Some(id) => *id,
            None => {
                let id = PodClassId(self.next());
                self.by_traits.insert(traits.clone(), id);
                self.directory.add(id, &traits);
                self.classes.insert(id, PodClass { traits, kinds: BTreeSet::new() });
                id
            }
        };
        if let Some(class) = self.classes.get_mut(&id) {
            class.kinds.insert(kind);
        }
        id
    }

    fn leave_class(&mut self, id: PodClassId, kind: KindId) {
        let Some(class) = self.classes.get_mut(&id) else { return };
        class.kinds.remove(&kind);
        if class.kinds.is_empty()
            && let Some(class) = self.classes.remove(&id)
        {
            self.directory.remove(id, &class.traits);
            self.by_traits.remove(&class.traits);
        }
    }

    /// Takes note of the labels and port names of a policy and moves the kinds that have new ones.
    pub(crate) fn mention(&mut self, policy: &Policy) {
        let new = self.new_in(policy);
        let carrying = new.label_keys.iter().filter_map(|key| self.by_key.get(key));
        let naming = new.port_names.iter().filter_map(|name| self.by_port_name.get(name));
        let moving: BTreeSet<KindId> = carrying.chain(naming).flatten().copied().collect();
        self.mentioned.label_keys.extend(new.label_keys);
        self.mentioned.port_names.extend(new.port_names);
        for id in moving {
            let Some(kind) = self.kinds.get(&id) else { continue };
            let (before, traits) = (kind.class, self.mentioned.traits(&kind.content));
            let class = self.join_class(id, traits);
            if let Some(kind) = self.kinds.get_mut(&id) {
                kind.class = class;
            }
            if class != before {
                self.leave_class(before, id);
            }
        }
    }

    fn new_in(&self, policy: &Policy) -> Mentioned {
        let mut new = Mentioned::default();
        let mut keys = |matcher: &Matcher| {
            new.label_keys.extend(matcher.keys().filter(|key| !self.mentioned.label_keys.contains(*key)).cloned());
        };
        // Namespace selectors look at namespaces, whose labels no pod carries.
        let mut names = Vec::new();
        keys(&Matcher::new(&policy.pods));
        for rule in policy.ingress.iter().chain(&policy.egress) {
            if let Peers::OneOf(peers) = &rule.peers {
                for peer in peers {
                    if let Peer::Pods { pods, .. } = peer {
                        keys(&Matcher::new(pods));
                    }
                }
            }
            if let Ports::OneOf(ports) = &rule.ports {
                names.extend(ports.iter().filter_map(|port| match port {
                    PortMatch::Named(_, name) => Some(name),
                    PortMatch::Number(..) => None,
                }));
            }
        }
        new.port_names = names.into_iter().filter(|name| !self.mentioned.port_names.contains(*name)).cloned().collect();
        new
    }
}
