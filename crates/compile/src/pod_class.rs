//! Pod classes: pods that no policy in force can tell apart.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ringfence_model::{ContainerPort, Labels, Peer, Peers, Pod, PodId, Policy, PortMatch, Ports, Protocol};

use crate::matcher::Matcher;

/// The name of a pod class inside one cluster state. Never used again once its class is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PodClassId(u64);

/// Pods of one namespace that agree in every label and every port name that some policy mentions.
pub(crate) struct PodClass {
    pub(crate) traits: PodTraits,
    members: BTreeSet<PodId>,
}

impl PodClass {
    pub(crate) fn members(&self) -> impl Iterator<Item = &PodId> {
        self.members.iter()
    }
}

/// What policies can see of a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
/// still right, and forgetting would mean to regroup pods when a policy goes.
#[derive(Default)]
pub(crate) struct PodClasses {
    mentioned: Mentioned,
    next: u64,
    by_traits: BTreeMap<PodTraits, PodClassId>,
    classes: BTreeMap<PodClassId, PodClass>,
    numbers: PortNumbers,
}

/// Which numbers the mentioned port names stand for, on some pod.
#[derive(Default)]
struct PortNumbers {
    /// By protocol and name: number to how many classes have it.
    classes: BTreeMap<(Protocol, Arc<str>), BTreeMap<u16, usize>>,
    /// Counts changes of the numbers themselves.
    version: u64,
}

impl PortNumbers {
    fn add(&mut self, class: &PodClass) {
        for (protocol, name, number) in &class.traits.named_ports {
            let count = self.classes.entry((*protocol, name.clone())).or_default().entry(*number).or_default();
            self.version += u64::from(*count == 0);
            *count += 1;
        }
    }

    fn remove(&mut self, class: &PodClass) {
        for (protocol, name, number) in &class.traits.named_ports {
            let Some(numbers) = self.classes.get_mut(&(*protocol, name.clone())) else { continue };
            if let Some(count) = numbers.get_mut(number) {
                *count -= 1;
                if *count == 0 {
                    numbers.remove(number);
                    self.version += 1;
                }
            }
        }
    }
}

#[derive(Default)]
struct Mentioned {
    label_keys: BTreeSet<Arc<str>>,
    port_names: BTreeSet<Arc<str>>,
}

impl Mentioned {
    fn sees(&self, pod: &Pod) -> bool {
        pod.labels.keys().any(|key| self.label_keys.contains(key))
            || pod.ports.iter().any(|port| port.name.as_ref().is_some_and(|name| self.port_names.contains(name)))
    }

    fn traits(&self, pod: &Pod) -> PodTraits {
        let labels = pod.labels.iter().filter(|(key, _)| self.label_keys.contains(*key));
        let named_ports = pod.ports.iter().filter_map(|ContainerPort { name, protocol, port }| {
            let name = name.as_ref().filter(|name| self.port_names.contains(*name))?;
            Some((*protocol, name.clone(), *port))
        });
        PodTraits {
            namespace: pod.namespace.clone(),
            labels: labels.map(|(key, value)| (key.clone(), value.clone())).collect(),
            named_ports: named_ports.collect(),
        }
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

    /// The numbers that a port name stands for, on whatever pod.
    pub(crate) fn numbers(&self, protocol: Protocol, name: &Arc<str>) -> impl Iterator<Item = u16> {
        self.numbers.classes.get(&(protocol, name.clone())).into_iter().flat_map(BTreeMap::keys).copied()
    }

    /// Changes whenever some answer of [`PodClasses::numbers`] does.
    pub(crate) fn numbers_version(&self) -> u64 {
        self.numbers.version
    }

    /// Puts a pod into its class.
    pub(crate) fn join(&mut self, pod: &Pod) -> PodClassId {
        let traits = self.mentioned.traits(pod);
        let id = match self.by_traits.get(&traits) {
            Some(id) => *id,
            None => {
                let id = PodClassId(self.next);
                self.next += 1;
                self.by_traits.insert(traits.clone(), id);
                let class = PodClass { traits, members: BTreeSet::new() };
                self.numbers.add(&class);
                self.classes.insert(id, class);
                id
            }
        };
        if let Some(class) = self.classes.get_mut(&id) {
            class.members.insert(pod.id.clone());
        }
        id
    }

    /// Takes a pod out of its class; an empty class goes.
    pub(crate) fn leave(&mut self, id: PodClassId, pod: &PodId) {
        let Some(class) = self.classes.get_mut(&id) else { return };
        class.members.remove(pod);
        if class.members.is_empty()
            && let Some(class) = self.classes.remove(&id)
        {
            self.numbers.remove(&class);
            self.by_traits.remove(&class.traits);
        }
    }

    /// Takes note of the labels and port names of a policy and moves the pods that carry new ones.
    pub(crate) fn mention<'a>(
        &mut self,
        policy: &Policy,
        pods: impl Iterator<Item = (&'a Arc<Pod>, &'a mut Option<PodClassId>)>,
    ) {
        let new = self.new_in(policy);
        if new.label_keys.is_empty() && new.port_names.is_empty() {
            return;
        }
        self.mentioned.label_keys.extend(new.label_keys.iter().cloned());
        self.mentioned.port_names.extend(new.port_names.iter().cloned());
        for (pod, class) in pods {
            if let Some(class) = class.as_mut().filter(|_| new.sees(pod)) {
                self.leave(*class, &pod.id);
                *class = self.join(pod);
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
