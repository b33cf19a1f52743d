//! What the policies grant to the peers of one node's pods, in one direction.

use std::collections::BTreeMap;
use std::sync::Arc;

use ringfence_model::{Direction, Peer, Peers, Policy, Rule};

use crate::cluster::Cluster;
use crate::matcher::Matcher;
use crate::ports::PortSet;
use crate::terms::{LocalPod, PodTerm, PortSpec, Term, single};

/// What is granted on one pod: ports, and to whom, as a position in [`Rules::terms`].
pub(crate) type Grants = Vec<(PortSet, usize)>;

/// The rules that concern one node in one direction.
#[derive(Default)]
pub(crate) struct Rules {
    /// All terms in use; grants name them by their position.
    pub(crate) terms: Vec<Term>,
    /// The isolated pods of the node, each with what is granted to whom on it.
    pub(crate) subjects: Vec<(Arc<LocalPod>, Grants)>,
    /// Some rule names a port that has to be looked up on the peers.
    pub(crate) names_peer_ports: bool,
}

/// The pods of a node that policies can select, by namespace.
pub(crate) fn local_pods(cluster: &Cluster, node: &str) -> BTreeMap<Arc<str>, Vec<Arc<LocalPod>>> {
    let mut by_namespace: BTreeMap<Arc<str>, Vec<Arc<LocalPod>>> = BTreeMap::new();
    for (pod, addresses) in cluster.local_pods(node) {
        let local = Arc::new(LocalPod { pod: pod.clone(), addresses });
        by_namespace.entry(pod.namespace.clone()).or_default().push(local);
    }
    by_namespace
}

impl Rules {
    pub(crate) fn gather(
        cluster: &Cluster,
        local: &BTreeMap<Arc<str>, Vec<Arc<LocalPod>>>,
        direction: Direction,
    ) -> Rules {
        let mut gathering = Gathering { cluster, direction, rules: Rules::default(), positions: BTreeMap::new() };
        for (namespace, pods) in local {
            let mut subjects: Vec<Option<Grants>> = vec![None; pods.len()];
            for policy in cluster.policies_in(namespace).filter(|policy| policy.isolates.covers(direction)) {
                let selector = Matcher::new(&policy.pods);
                let selected: Vec<usize> =
                    (0..pods.len()).filter(|pod| selector.matches(&pods[*pod].pod.labels)).collect();
                if selected.is_empty() {
                    continue;
                }
                let grants = gathering.grants(policy);
                for pod in selected {
                    let subject = subjects[pod].get_or_insert_default();
                    for (ports, term) in &grants {
                        let ports = ports.resolve(&pods[pod].pod);
                        if !ports.is_empty() {
                            subject.push((ports, *term));
                        }
                    }
                }
            }
            for (pod, grants) in pods.iter().zip(subjects) {
                gathering.rules.subjects.extend(grants.map(|grants| (pod.clone(), grants)));
            }
        }
        gathering.rules
    }
}

struct Gathering<'c> {
    cluster: &'c Cluster,
    direction: Direction,
    rules: Rules,
    positions: BTreeMap<Term, usize>,
}

impl Gathering<'_> {
    /// What a policy grants. Port names are left only where they are looked up on the subject.
    fn grants(&mut self, policy: &Policy) -> Vec<(PortSpec, usize)> {
        let mut grants = Vec::new();
        for rule in policy.rules(self.direction) {
            self.add_rule(policy, rule, &mut grants);
        }
        grants
    }

    fn add_rule(&mut self, policy: &Policy, rule: &Rule, grants: &mut Vec<(PortSpec, usize)>) {
        let ports = PortSpec::of(&rule.ports);
        match &rule.peers {
            Peers::Any => {
                self.grant(Term::Anyone, &ports, grants);
                // To everyone, but a name has a meaning on pods only.
                self.grant_names(&PodTerm::everything(), &ports, grants);
            }
            Peers::OneOf(peers) => {
                for peer in peers {
                    match peer {
                        Peer::Block(block) => self.grant(Term::Block(block.clone()), &ports, grants),
                        Peer::Pods { namespaces, pods } => {
                            let term = PodTerm::of(&policy.id.namespace, namespaces, pods);
                            self.grant_names(&term, &ports, grants);
                            self.grant(Term::Pods(term), &ports, grants);
                        }
                    }
                }
            }
        }
    }

    /// Grants the ports that do not depend on the peer. A port name is looked up on the destination: for ingress that is
    /// the subject, whichever peer asks.
    fn grant(&mut self, term: Term, ports: &PortSpec, grants: &mut Vec<(PortSpec, usize)>) {
        let ports = match self.direction {
            Direction::Ingress => ports.clone(),
            Direction::Egress => PortSpec { numbers: ports.numbers.clone(), names: Default::default() },
        };
        if ports.numbers.is_empty() && ports.names.is_empty() {
            return;
        }
        grants.push((ports, self.position(term)));
    }

    /// For egress the destination is the peer: for each number that a name stands for somewhere, grants that number to the
    /// pods that have it.
    fn grant_names(&mut self, term: &PodTerm, ports: &PortSpec, grants: &mut Vec<(PortSpec, usize)>) {
        if self.direction == Direction::Ingress {
            return;
        }
        for (protocol, name) in &ports.names {
            self.rules.names_peer_ports = true;
            for number in self.cluster.classes().numbers(*protocol, name) {
                let serving = Some((*protocol, name.clone(), number));
                let position = self.position(Term::Pods(PodTerm { serving, ..term.clone() }));
                let numbers = PortSet::of([single(*protocol, number)]);
                grants.push((PortSpec { numbers, names: Default::default() }, position));
            }
        }
    }

    fn position(&mut self, term: Term) -> usize {
        let next = self.rules.terms.len();
        *self.positions.entry(term).or_insert_with_key(|term| {
            self.rules.terms.push(term.clone());
            next
        })
    }
}
