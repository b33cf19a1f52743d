//! Judging flows by an [`Acl`], the way a packet filter will: rule by rule.

use std::net::IpAddr;

use ringfence_model::{Direction, Flow, Transport};

use super::{Acl, AclBelieved, AclEntry, AclNamespace, AclPeers, AclPorts, Members, SetId};

/// What a list says about a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AclJudgement<'a> {
    /// The source's side.
    pub egress: AclVerdict<'a>,
    /// The destination's side.
    pub ingress: AclVerdict<'a>,
}

impl AclJudgement<'_> {
    /// Both sides said yes.
    pub fn allowed(self) -> bool {
        self.egress.allowed && self.ingress.allowed
    }
}

/// What a list says about one direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AclVerdict<'a> {
    /// Whether the flow may pass.
    pub allowed: bool,
    /// Why.
    pub because: AclReason<'a>,
}

/// The part of the list that decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AclReason<'a> {
    /// This node isolates no pod with that address in that direction.
    NotIsolated,
    /// Neighbour discovery.
    NeighbourDiscovery,
    /// A pod to its own address.
    SameAddress,
    /// Traffic between a pod and its own node.
    OwnNode,
    /// Traffic between a pod and a node of the cluster that is trusted.
    TrustedNode,
    /// Another node has judged the connection; this one sees that node's address only.
    JudgedBefore,
    /// The first rule that admits it.
    Rule {
        /// The policy's namespace.
        namespace: &'a str,
        /// The policy.
        policy: &'a str,
        /// Position of the rule in the policy, from 0.
        rule: usize,
    },
    /// No rule admits it.
    NoRule,
    /// No known pod has that address. NetworkPolicy does not ask for this: see [`UnknownPods`](crate::UnknownPods).
    UnknownPod,
}

impl Acl {
    /// Judges a flow.
    pub fn eval(&self, flow: &Flow) -> AclJudgement<'_> {
        AclJudgement {
            egress: self.eval_side(Direction::Egress, flow, flow.source, flow.destination),
            ingress: self.eval_side(Direction::Ingress, flow, flow.destination, flow.source),
        }
    }

    fn eval_side(&self, direction: Direction, flow: &Flow, subject: IpAddr, peer: IpAddr) -> AclVerdict<'_> {
        let yes = |because| AclVerdict { allowed: true, because };
        let no = |because| AclVerdict { allowed: false, because };
        let unknown = self.is_unknown(subject);
        let isolated = self.side(direction).iter().find(|(_, namespace)| self.holds(namespace.isolated, subject));
        if isolated.is_none() && !unknown {
            return yes(AclReason::NotIsolated);
        }
        if flow.transport.is_neighbour_discovery() {
            return yes(AclReason::NeighbourDiscovery);
        }
        if subject == peer && !unknown {
            return yes(AclReason::SameAddress);
        }
        // What is in a guarded range is the node's own, known or not.
        if self.node_addresses.contains(&peer) && (unknown || self.is_local(subject)) {
            return yes(AclReason::OwnNode);
        }
        if unknown {
            return no(AclReason::UnknownPod);
        }
        let trusts_all = self.reach.believed == AclBelieved::Everything;
        if trusts_all && (self.is_other_node(peer) || self.node_addresses.contains(&peer)) {
            return yes(AclReason::TrustedNode);
        }
        if subject == flow.destination && self.believes(flow) {
            return yes(AclReason::JudgedBefore);
        }
        let Some((name, namespace)) = isolated else {
            return yes(AclReason::NotIsolated);
        };
        self.first_rule(name, namespace, flow, subject, peer).map_or(no(AclReason::NoRule), yes)
    }

    /// Whether no known pod has an address, although pods of this node have such. Traffic of the node itself passes hooks
    /// where nobody asks.
    fn is_unknown(&self, address: IpAddr) -> bool {
        self.guard.as_ref().is_some_and(|guard| {
            let guarded = guard.ranges.iter().any(|range| range.contains(&address));
            guarded && !self.holds(guard.known, address) && !self.node_addresses.contains(&address)
        })
    }

    fn is_local(&self, subject: IpAddr) -> bool {
        !self.reach.judges_others || self.reach.local.is_some_and(|local| self.holds(local, subject))
    }

    fn is_other_node(&self, address: IpAddr) -> bool {
        self.reach.nodes.is_some_and(|nodes| self.holds(nodes, address))
    }

    /// Whether another node has judged a connection.
    fn believes(&self, flow: &Flow) -> bool {
        let covered = match (self.reach.believed, flow.transport) {
            (AclBelieved::Endpoints(set), Transport::Port(protocol, port)) => match self.members(set) {
                Some(Members::Endpoints(endpoints)) => endpoints.contains(&(flow.destination, protocol, port)),
                _ => false,
            },
            (AclBelieved::LocalPods, _) => self.reach.local.is_some_and(|local| self.holds(local, flow.destination)),
            (AclBelieved::Everything, _) => true,
            (AclBelieved::Endpoints(_) | AclBelieved::Nothing, _) => false,
        };
        covered && self.is_other_node(flow.source)
    }

    fn first_rule<'a>(
        &'a self,
        name: &'a str,
        namespace: &'a AclNamespace,
        flow: &Flow,
        subject: IpAddr,
        peer: IpAddr,
    ) -> Option<AclReason<'a>> {
        let selecting = namespace.policies.iter().filter(|policy| self.holds(policy.selected, subject));
        selecting.into_iter().find_map(|policy| {
            let admits = |entry: &AclEntry| self.admits(entry, flow, peer);
            let rule = policy.rules.iter().position(|rule| rule.entries.iter().any(admits))?;
            Some(AclReason::Rule { namespace: name, policy: &policy.name, rule })
        })
    }

    fn admits(&self, entry: &AclEntry, flow: &Flow, peer: IpAddr) -> bool {
        let peers = match entry.peers {
            AclPeers::Anyone => true,
            AclPeers::Set(set) => self.holds(set, peer),
        };
        let ports = match (entry.ports, flow.transport) {
            (AclPorts::Any, _) => true,
            (AclPorts::Range(range), Transport::Port(protocol, port)) => {
                range.protocol == protocol && (range.ports.first..=range.ports.last).contains(&port)
            }
            (AclPorts::Serving(set), Transport::Port(protocol, port)) => match self.members(set) {
                Some(Members::Endpoints(endpoints)) => endpoints.contains(&(flow.destination, protocol, port)),
                _ => false,
            },
            (AclPorts::Range(_) | AclPorts::Serving(_), _) => false,
        };
        peers && ports
    }

    fn members(&self, set: SetId) -> Option<&Members> {
        self.sets.get(&set).map(|set| &set.members)
    }

    fn holds(&self, set: SetId, address: IpAddr) -> bool {
        match self.members(set) {
            Some(Members::Addresses(addresses)) => addresses.contains(&address),
            Some(Members::Networks { cidrs, except }) => {
                cidrs.iter().any(|cidr| cidr.contains(&address)) && !except.iter().any(|cidr| cidr.contains(&address))
            }
            Some(Members::Endpoints(_)) | None => false,
        }
    }
}
