//! What one node must enforce: immutable data that backends write into the kernel, that can be printed, compared and
//! evaluated. It knows addresses and ports, no labels, no packet filter.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use ringfence_model::{Direction, Flow, Transport};

use crate::gate::{Admission, Gate, GateId};
use crate::guard::Guard;
use crate::port_table::PortTable;
use crate::reach::Reach;

/// What one node must enforce.
///
/// Cloning is cheap, and so is keeping an older one: the maps share what did not change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Counts the programs of one compiler, from 1. Says which is newer and nothing else.
    pub generation: u64,
    /// The node.
    pub node: Arc<str>,
    /// The node's own addresses. Traffic between them and the node's pods is never refused.
    pub node_addresses: BTreeSet<IpAddr>,
    /// Connections to local pods, and to those of other nodes where it judges these ([`Reach`]); the peer is the source.
    pub ingress: Side,
    /// Connections from local pods; the peer is the destination.
    pub egress: Side,
    /// Which addresses of local pods are unknown, and refused in both directions. An isolated pod's address is not.
    pub guard: Guard,
    /// What it has to do with connections beyond those of its own pods.
    pub reach: Reach,
}

/// One direction of a [`Program`].
///
/// A packet finds its subject, the subject's ports lead to a gate, and the peer passes the gate or does not:
/// two look-ups, however many policies there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Side {
    /// The pods it judges that are isolated in this direction, by address. All others may do everything.
    pub subjects: OrdMap<IpAddr, Subject>,
    /// The gates that subjects' ports lead to.
    pub gates: OrdMap<GateId, Arc<Gate>>,
    /// The gates that each peer class passes.
    pub classes: OrdMap<ClassId, Arc<BTreeSet<GateId>>>,
    /// Addresses of pods that pass some gate, to their class. Gates that concern the other family only are left out.
    pub peers: OrdMap<IpAddr, ClassId>,
}

/// An isolated pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject {
    /// `namespace/name`, for people.
    pub pod: Arc<str>,
    /// Whom it admits, by destination port.
    pub ports: Arc<PortTable>,
}

/// The name of a peer class. It follows from the gates its members pass.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassId(pub u128);

impl fmt::Debug for ClassId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// What the program says about one direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SideVerdict {
    /// Whether the flow may pass.
    pub allowed: bool,
    /// Why.
    pub because: Because,
}

/// The part of the program that decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
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
    /// The port is open to every peer.
    Anyone,
    /// The gate of the port, which the peer passes or does not.
    Gate(GateId),
    /// The port is closed to every peer.
    Closed,
    /// No known pod has that address. NetworkPolicy does not ask for this: see [`UnknownPods`](crate::UnknownPods).
    UnknownPod,
}

/// What the program says about a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The source's side.
    pub egress: SideVerdict,
    /// The destination's side.
    pub ingress: SideVerdict,
}

impl Judgement {
    /// Both sides said yes.
    pub fn allowed(self) -> bool {
        self.egress.allowed && self.ingress.allowed
    }
}

impl Program {
    /// A program that isolates nobody.
    pub fn empty(node: Arc<str>) -> Program {
        Program {
            generation: 0,
            node,
            node_addresses: BTreeSet::new(),
            ingress: Side::default(),
            egress: Side::default(),
            guard: Guard::default(),
            reach: Reach::default(),
        }
    }

    /// The side of a direction.
    pub fn side(&self, direction: Direction) -> &Side {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    /// Judges a flow the way the kernel will: by the same tables, in the same order.
    pub fn eval(&self, flow: &Flow) -> Judgement {
        Judgement {
            egress: self.eval_side(&self.egress, flow, flow.source, flow.destination),
            ingress: self.eval_side(&self.ingress, flow, flow.destination, flow.source),
        }
    }

    /// Whether no known pod has an address, although pods of this node have such. Traffic of the node itself passes hooks
    /// where nobody asks.
    fn is_unknown(&self, address: IpAddr) -> bool {
        self.guard.refuses(address) && !self.node_addresses.contains(&address)
    }

    fn eval_side(&self, side: &Side, flow: &Flow, subject: IpAddr, peer: IpAddr) -> SideVerdict {
        let yes = |because| SideVerdict { allowed: true, because };
        let no = |because| SideVerdict { allowed: false, because };
        let unknown = self.is_unknown(subject);
        let isolated = side.subjects.get(&subject);
        if isolated.is_none() && !unknown {
            return yes(Because::NotIsolated);
        }
        if flow.transport.is_neighbour_discovery() {
            return yes(Because::NeighbourDiscovery);
        }
        if subject == peer && !unknown {
            return yes(Because::SameAddress);
        }
        // What is in a guarded range is the node's own, known or not.
        if self.node_addresses.contains(&peer) && (unknown || self.reach.is_local(subject)) {
            return yes(Because::OwnNode);
        }
        if unknown {
            return no(Because::UnknownPod);
        }
        if self.reach.exempts(peer) || self.reach.trusts_all() && self.node_addresses.contains(&peer) {
            return yes(Because::TrustedNode);
        }
        let port = match flow.transport {
            Transport::Port(protocol, port) => Some((protocol, port)),
            Transport::Icmp(_) | Transport::Icmpv6(_) | Transport::Other(_) => None,
        };
        if subject == flow.destination && self.reach.believes(flow.source, flow.destination, port) {
            return yes(Because::JudgedBefore);
        }
        let Some(isolated) = isolated else {
            return yes(Because::NotIsolated);
        };
        match isolated.ports.admission(flow.transport) {
            None => no(Because::Closed),
            Some(Admission::Anyone) => yes(Because::Anyone),
            Some(Admission::Gate(gate)) => {
                SideVerdict { allowed: side.passes(peer, gate), because: Because::Gate(gate) }
            }
        }
    }
}

impl Side {
    /// Whether a peer passes a gate: as a pod, or by its address.
    pub fn passes(&self, peer: IpAddr, gate: GateId) -> bool {
        let class = self.peers.get(&peer).and_then(|class| self.classes.get(class));
        class.is_some_and(|gates| gates.contains(&gate))
            || self.gates.get(&gate).is_some_and(|gate| gate.admits_address(peer))
    }
}
