//! What one policy grants to the peers of the pods it selects, in one direction.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ringfence_model::{Direction, Peer, Peers, Pod, Policy, Protocol, Rule};

use crate::cluster::Cluster;
use crate::matcher::Matcher;
use crate::ports::PortSet;
use crate::terms::{PeerNames, PodTerm, PortSpec, ServingTerm, Term, TermId, single};

/// A policy, read for one direction.
pub(crate) struct Grants {
    source: Arc<Policy>,
    pods: Matcher,
    /// Ports, and to whom. Port names are left only where they are looked up on the subject.
    grants: Vec<(PortSpec, TermId)>,
    /// What the terms in `grants` say.
    pub(crate) terms: BTreeMap<TermId, Term>,
    /// For each port name that is looked up on the peers, the numbers that it stood for somewhere.
    numbers: BTreeMap<(Protocol, Arc<str>), Vec<u16>>,
}

impl Grants {
    pub(crate) fn of(policy: &Arc<Policy>, direction: Direction, cluster: &Cluster) -> Grants {
        let mut grants = Grants {
            source: policy.clone(),
            pods: Matcher::new(&policy.pods),
            grants: Vec::new(),
            terms: BTreeMap::new(),
            numbers: BTreeMap::new(),
        };
        for rule in policy.rules(direction) {
            grants.add_rule(rule, direction, cluster);
        }
        grants
    }

    /// Whether this is what reading the policy now would give.
    pub(crate) fn is_current(&self, policy: &Arc<Policy>, cluster: &Cluster) -> bool {
        Arc::ptr_eq(&self.source, policy) && self.has_current_numbers(cluster)
    }

    /// Whether the port names stand for the same numbers as when the policy was read.
    pub(crate) fn has_current_numbers(&self, cluster: &Cluster) -> bool {
        self.numbers
            .iter()
            .all(|((protocol, name), numbers)| cluster.classes().numbers(*protocol, name).eq(numbers.iter().copied()))
    }

    pub(crate) fn select(&self, pod: &Pod) -> bool {
        self.pods.matches(&pod.labels)
    }

    /// What is granted on a pod that the policy selects.
    pub(crate) fn on(&self, pod: &Pod) -> impl Iterator<Item = (PortSet, TermId)> {
        let resolved = self.grants.iter().map(|(ports, term)| (ports.resolve(pod), *term));
        resolved.filter(|(ports, _)| !ports.is_empty())
    }

    fn add_rule(&mut self, rule: &Rule, direction: Direction, cluster: &Cluster) {
        let mut ports = PortSpec::of(&rule.ports);
        // A port name is looked up on the destination: for ingress that is the subject, whichever peer asks; for egress it
        // is the peer.
        let names = match direction {
            Direction::Ingress => BTreeSet::new(),
            Direction::Egress => std::mem::take(&mut ports.names),
        };
        let mut pods = BTreeSet::new();
        match &rule.peers {
            Peers::Any => {
                self.grant(Term::Anyone, &ports);
                // To everyone, but a name has a meaning on pods only.
                pods.insert(PodTerm::everything());
            }
            Peers::OneOf(peers) => {
                for peer in peers {
                    match peer {
                        Peer::Block(block) => self.grant(Term::Block(block.clone()), &ports),
                        Peer::Pods { namespaces, pods: selector } => {
                            let term = PodTerm::of(&self.source.id.namespace, namespaces, selector);
                            self.grant(Term::Pods(term.clone()), &ports);
                            pods.insert(term);
                        }
                    }
                }
            }
        }
        if !pods.is_empty() && !names.is_empty() {
            self.grant_names(&pods, names, cluster);
        }
    }

    fn grant(&mut self, term: Term, ports: &PortSpec) {
        if ports.numbers.is_empty() && ports.names.is_empty() {
            return;
        }
        let id = term.id();
        self.terms.insert(id, term);
        self.grants.push((ports.clone(), id));
    }

    /// For each number that one of the names stands for somewhere, grants that number to the pods that have it.
    fn grant_names(&mut self, pods: &BTreeSet<PodTerm>, names: BTreeSet<(Protocol, Arc<str>)>, cluster: &Cluster) {
        let mut by_protocol: BTreeMap<Protocol, BTreeSet<Arc<str>>> = BTreeMap::new();
        for (protocol, name) in names {
            by_protocol.entry(protocol).or_default().insert(name);
        }
        for (protocol, names) in by_protocol {
            let mut all: BTreeSet<u16> = BTreeSet::new();
            for name in &names {
                let numbers: Vec<u16> = cluster.classes().numbers(protocol, name).collect();
                all.extend(&numbers);
                self.numbers.insert((protocol, name.clone()), numbers);
            }
            let peers = Arc::new(PeerNames::new(pods, names));
            for number in all {
                let term = Term::Serving(ServingTerm { peers: peers.clone(), protocol, number });
                let numbers = PortSet::of([single(protocol, number)]);
                self.grant(term, &PortSpec { numbers, names: BTreeSet::new() });
            }
        }
    }
}
