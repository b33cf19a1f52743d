use std::net::IpAddr;

use ringfence_model::{
    Direction, Flow, IpBlock, NamespaceScope, Peer, Peers, Pod, Policy, PolicyId, PortMatch, Ports, Rule, Transport,
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

/// Judges one flow.
pub fn judge(state: &State, flow: &Flow) -> Verdict {
    Verdict { egress: answer(state, Direction::Egress, flow), ingress: answer(state, Direction::Ingress, flow) }
}

fn answer(state: &State, direction: Direction, flow: &Flow) -> Answer {
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
    if state.is_own_node(pod, other) {
        return yes(Reason::OwnNode);
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
