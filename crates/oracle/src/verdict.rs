use std::net::IpAddr;

use ringfence_model::{
    Direction, EnforceAt, Enforcement, Flow, IpBlock, NamespaceScope, NodeTraffic, Peer, Peers, Pod, Policy, PolicyId,
    PortMatch, Ports, Rule, Transport,
};

use crate::selector::{matches, matches_by_name};
use crate::state::State;

/// What the policies say about a flow, direction by direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What the source's policies say.
    pub egress: Answer,
    /// What the destination's policies say.
    pub ingress: Answer,
}

impl Verdict {
    /// The flow passes only if both directions allow it.
    pub fn allowed(&self) -> bool {
        self.egress.allowed && self.ingress.allowed
    }
}

/// What the policies say in one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Yes or no.
    pub allowed: bool,
    /// Why.
    pub reason: Reason,
}

/// Why an [`Answer`] is what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The address belongs to no pod that policies can select.
    NotAPod,
    /// No policy isolates the pod in this direction.
    NotIsolated,
    /// Neighbour discovery, which policies never stop.
    NeighbourDiscovery,
    /// A pod to its own address.
    SameAddress,
    /// Traffic between a pod and its own node.
    OwnNode,
    /// Traffic between a pod and another node, where all nodes are trusted.
    TrustedNode,
    /// Another node has judged it; here it has that node's address.
    JudgedBefore,
    /// Others judge it, this node does not.
    NotJudgedHere,
    /// These rules allow it; never empty.
    AllowedBy(Vec<RuleRef>),
    /// These policies isolate the pod and none of their rules matches; never empty.
    IsolatedBy(Vec<PolicyId>),
}

/// One rule of one policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleRef {
    /// The policy.
    pub policy: PolicyId,
    /// The index of the rule in the policy's list of this direction, from 0.
    pub rule: usize,
}

/// Judges one flow between its true ends.
pub fn judge(state: &State, flow: &Flow) -> Verdict {
    let own_node = |pod: &Pod, other| state.is_own_node(pod, other).then_some(Reason::OwnNode);
    let side = |direction| answer(state, direction, flow, own_node);
    Verdict { egress: side(Direction::Egress), ingress: side(Direction::Ingress) }
}

/// How a flow came to its destination, as a node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It has come to the node for that address.
    AsItCame,
    /// The node has translated it, as for a port of its own. A node before saw a flow to another destination, and has not judged
    /// this one.
    TranslatedHere,
}

/// Judges a flow as one node must that forwards or sends it, with the addresses that it has there: after destination NAT and
/// before source NAT. A connection passes if every node on its way lets it pass.
///
/// A pod's own node always judges. Other nodes judge who connects to the pod, where they are told to: they see sources that
/// the pod's own node does not.
pub fn judge_at(state: &State, enforcement: Enforcement, node: &str, flow: &Flow, arrival: Arrival) -> Verdict {
    let runs_here = |pod: &Pod| pod.node.as_deref() == Some(node);
    let side = |direction| {
        let subject = match direction {
            Direction::Egress => flow.source,
            Direction::Ingress => flow.destination,
        };
        let judged = state.pod_at(subject).is_none_or(|pod| {
            runs_here(pod)
                || direction == Direction::Ingress
                    && match enforcement.at {
                        EnforceAt::Destination => false,
                        EnforceAt::Entry => !state.exposed_endpoints(subject, false).is_empty(),
                        EnforceAt::Everywhere => true,
                    }
        });
        if !judged {
            return Answer { allowed: true, reason: Reason::NotJudgedHere };
        }
        answer(state, direction, flow, |pod, other| {
            // Elsewhere, a packet with the address of the pod's own node proves nothing.
            if runs_here(pod) && state.is_own_node(pod, other) {
                return Some(Reason::OwnNode);
            }
            // What a node sends under its own address it sends, whichever pod claims that address.
            let is_this_node = state.is_node_named(node, other);
            let is_other_node = state.is_node(other) && !is_this_node && state.pod_at(other).is_none();
            if enforcement.node_traffic == NodeTraffic::All && (is_this_node || is_other_node) {
                return Some(Reason::TrustedNode);
            }
            if !is_other_node {
                return None;
            }
            let believes = direction == Direction::Ingress
                && runs_here(pod)
                && enforcement.node_traffic == NodeTraffic::Own
                && arrival == Arrival::AsItCame
                && match (enforcement.at, flow.transport) {
                    (EnforceAt::Everywhere, _) => true,
                    (EnforceAt::Entry, Transport::Port(protocol, port)) => {
                        state.exposed_endpoints(subject, true).contains(&(protocol, port))
                    }
                    (EnforceAt::Entry, _) | (EnforceAt::Destination, _) => false,
                };
            believes.then_some(Reason::JudgedBefore)
        })
    };
    Verdict { egress: side(Direction::Egress), ingress: side(Direction::Ingress) }
}

/// `exempt` tells why the other end is exempt from the pod's policies, if it is.
fn answer(state: &State, direction: Direction, flow: &Flow, exempt: impl Fn(&Pod, IpAddr) -> Option<Reason>) -> Answer {
    let (own, other) = match direction {
        Direction::Egress => (flow.source, flow.destination),
        Direction::Ingress => (flow.destination, flow.source),
    };
    let yes = |reason| Answer { allowed: true, reason };

    let Some(pod) = state.pod_at(own) else {
        return yes(Reason::NotAPod);
    };
    let isolating: Vec<&Policy> =
        state.policies.iter().filter(|p| p.isolates.covers(direction) && selects(state, p, pod)).collect();
    if isolating.is_empty() {
        return yes(Reason::NotIsolated);
    }
    if flow.transport.is_neighbour_discovery() {
        return yes(Reason::NeighbourDiscovery);
    }
    if own == other {
        return yes(Reason::SameAddress);
    }
    if let Some(reason) = exempt(pod, other) {
        return yes(reason);
    }
    let mut allowing = Vec::new();
    for policy in &isolating {
        for (index, rule) in policy.rules(direction).iter().enumerate() {
            if rule_matches(state, policy, rule, direction, pod, other, flow.transport) {
                allowing.push(RuleRef { policy: policy.id.clone(), rule: index });
            }
        }
    }
    if allowing.is_empty() {
        let policies = isolating.iter().map(|policy| policy.id.clone()).collect();
        return Answer { allowed: false, reason: Reason::IsolatedBy(policies) };
    }
    yes(Reason::AllowedBy(allowing))
}

/// Whether the policy speaks of this pod.
fn selects(state: &State, policy: &Policy, pod: &Pod) -> bool {
    in_scope(state, policy, &policy.namespaces, pod) && matches(&policy.pods, &pod.labels)
}

/// Whether the pod's namespace belongs to a choice of namespaces made by a policy.
fn in_scope(state: &State, policy: &Policy, scope: &NamespaceScope, pod: &Pod) -> bool {
    match scope {
        NamespaceScope::Own => policy.id.namespace == pod.namespace,
        NamespaceScope::Matching(selector) => match state.namespace_labels(&pod.namespace) {
            Some(labels) => matches(selector, labels),
            None => matches_by_name(selector, &pod.namespace),
        },
    }
}

/// A rule is peers AND ports. Which ports a name stands for depends on how the peer was named, so the two are asked
/// together: a port name means nothing for a destination that is an address block or off the cluster.
fn rule_matches(
    state: &State,
    policy: &Policy,
    rule: &Rule,
    direction: Direction,
    own: &Pod,
    other: IpAddr,
    transport: Transport,
) -> bool {
    let other_pod = state.pod_at(other);
    let named_on = |as_pod: Option<&Pod>| match direction {
        Direction::Ingress => ports_match(&rule.ports, transport, Some(own)),
        Direction::Egress => ports_match(&rule.ports, transport, as_pod),
    };
    match &rule.peers {
        Peers::Any => named_on(other_pod),
        Peers::OneOf(peers) => peers.iter().any(|peer| match peer {
            Peer::Pods { namespaces, pods } => other_pod.is_some_and(|other_pod| {
                in_scope(state, policy, namespaces, other_pod)
                    && matches(pods, &other_pod.labels)
                    && named_on(Some(other_pod))
            }),
            Peer::Block(block) => in_block(block, other) && named_on(None),
        }),
    }
}

/// Whether a block holds an address, whoever owns it.
fn in_block(block: &IpBlock, address: IpAddr) -> bool {
    block.cidr.contains(&address) && !block.except.iter().any(|except| except.contains(&address))
}

/// Whether the transport is one of the ports; `named_on` is the pod whose container ports give names their numbers.
fn ports_match(ports: &Ports, transport: Transport, named_on: Option<&Pod>) -> bool {
    let entries = match ports {
        Ports::Any => return true,
        Ports::OneOf(entries) => entries,
    };
    let Transport::Port(protocol, port) = transport else {
        return false;
    };
    entries.iter().any(|entry| match entry {
        PortMatch::Number(wanted, range) => *wanted == protocol && range.first <= port && port <= range.last,
        PortMatch::Named(wanted, name) => {
            *wanted == protocol
                && named_on.is_some_and(|pod| {
                    pod.ports.iter().any(|p| p.name.as_ref() == Some(name) && p.protocol == protocol && p.port == port)
                })
        }
    })
}
