//! The same decisions in the shape of an access control list: policies, rules and sets of addresses, as their authors
//! know them. For packet filters whose rules people read; a [`Program`](crate::Program) decides faster.

mod compiler;
mod described;
mod eval;
mod population;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;
use ringfence_model::{Direction, Protocol};

use crate::ports::ProtocolRange;

pub use compiler::AclCompiler;
pub use eval::{AclJudgement, AclReason, AclVerdict};

/// What one node must enforce, policy by policy.
///
/// Cloning is cheap, and so is keeping an older one: what did not change is shared. A change of pods changes sets and
/// nothing else, unless it brings the first pod of its namespace to the node or takes the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    /// Counts the lists of one compiler, from 1. Says which is newer and nothing else.
    pub generation: u64,
    /// The node.
    pub node: Arc<str>,
    /// The node's own addresses. Traffic between them and the node's pods is never refused.
    pub node_addresses: BTreeSet<IpAddr>,
    /// Connections to local pods, by namespace of the pods.
    pub ingress: OrdMap<Arc<str>, Arc<AclNamespace>>,
    /// Connections from local pods, by namespace of the pods.
    pub egress: OrdMap<Arc<str>, Arc<AclNamespace>>,
    /// The ranges whose addresses are refused in both directions unless a known pod has them; nothing is guarded without.
    pub guard: Option<AclGuard>,
    /// What it has to do with connections beyond those of its own pods.
    pub reach: AclReach,
    /// The sets that namespaces, policies, rules and the guard refer to; no others.
    pub sets: OrdMap<SetId, AclSet>,
}

/// As [`Guard`](crate::Guard), with what is known in a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AclGuard {
    /// Never empty; disjoint, in order, without host bits.
    pub ranges: Arc<[IpNet]>,
    /// The addresses in the ranges that a pod owns ([`Members::Addresses`]).
    pub known: SetId,
}

/// As [`Reach`](crate::Reach), with addresses in sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AclReach {
    /// Whether the isolated pods of ingress may be pods of other nodes. The node's own traffic to these is judged, too, unless
    /// all nodes are trusted.
    pub judges_others: bool,
    /// The addresses of the node's own pods, isolated or not ([`Members::Addresses`]), if anything here asks for them.
    pub local: Option<SetId>,
    /// The addresses of all other nodes ([`Members::Addresses`]), if anything here asks for them.
    pub nodes: Option<SetId>,
    /// Which connections from `nodes` pass without being judged here. An address proves nothing by itself: packets that
    /// come from it must come from where it is.
    pub believed: AclBelieved,
    /// The networks towards which the pods of `local` keep their addresses, whatever else masquerades: disjoint, in order,
    /// without host bits.
    pub unmasqueraded: Arc<[IpNet]>,
}

/// As [`Believed`](crate::Believed), with endpoints in a set, and with the same exception.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AclBelieved {
    /// None.
    #[default]
    Nothing,
    /// Those to these endpoints of local pods ([`Members::Endpoints`]).
    Endpoints(SetId),
    /// Those to local pods.
    LocalPods,
    /// All, and also all connections *to* other nodes' addresses, and the node's own to pods of others.
    Everything,
}

/// A namespace that has pods whose connections the node judges, and policies of one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AclNamespace {
    /// The pods it judges that some policy isolates in this direction ([`Members::Addresses`]). Pods that are in none of these
    /// sets may do everything.
    pub isolated: SetId,
    /// The policies, by name, whether or not they select a pod at the moment.
    pub policies: Vec<Arc<AclPolicy>>,
}

/// The rules of one policy in one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AclPolicy {
    /// Its name.
    pub name: Arc<str>,
    /// The pods it selects of those that the node judges in some direction ([`Members::Addresses`]).
    pub selected: SetId,
    /// Its rules, in the order in which they are written.
    pub rules: Vec<AclRule>,
}

/// One rule of a policy: it admits a connection of a selected pod that one of its entries matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AclRule {
    /// No two are equal. None, when the rule can never match: for example a port name together with address blocks only.
    pub entries: Vec<AclEntry>,
}

/// One combination of peers and ports. Both must match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AclEntry {
    /// The other end.
    pub peers: AclPeers,
    /// Protocol and destination port.
    pub ports: AclPorts,
}

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AclPeers {
    /// Everyone, in and off the cluster.
    Anyone,
    /// A member of this set ([`Members::Addresses`] or [`Members::Networks`]).
    Set(SetId),
}

/// Destination ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AclPorts {
    /// Every port and every protocol, ICMP too.
    Any,
    /// Ports of one protocol.
    Range(ProtocolRange),
    /// Destination address, protocol and destination port are together a member of this set ([`Members::Endpoints`]):
    /// a port name, looked up on the destination pods.
    Serving(SetId),
}

/// The name of a set. It follows from how policies describe the members, never from who they are, so it is the same after
/// a restart. Sets with the same description are one set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetId(pub u128);

impl fmt::Display for SetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for SetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A set of peers or of local pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AclSet {
    /// What it is for.
    pub role: SetRole,
    /// Who is in it.
    pub members: Members,
    /// The description, for people: selectors or blocks. May be long; it holds what users wrote.
    pub origin: Arc<str>,
}

/// What a set is for. One more member of an `Isolated` set can only take rights away; one more member of any other set can
/// only give some.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetRole {
    /// Isolated pods of a namespace.
    Isolated,
    /// Pods that a policy selects.
    Selected,
    /// Peers of a rule.
    Peers,
    /// Pods with a named port, each with its number.
    Serving,
    /// Pods whose addresses the guard lets pass.
    Known,
    /// Pods of the node.
    Local,
    /// Addresses of other nodes.
    Nodes,
    /// Endpoints to which other nodes' judgement counts.
    Believed,
}

/// The members of a set. Both families may be in one set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Members {
    /// Addresses of pods.
    Addresses(OrdSet<IpAddr>),
    /// Addresses of pods, each with a protocol and a container port (host byte order).
    Endpoints(OrdSet<(IpAddr, Protocol, u16)>),
    /// The addresses in `cidrs` that are not in `except`, whoever owns them. Where there are exceptions there is one CIDR,
    /// and they are strict subsets of it: the most specific network decides. Both sorted, without duplicates, without
    /// host bits. `0.0.0.0/0` and `::/0` occur.
    Networks {
        /// Who is in.
        cidrs: Vec<IpNet>,
        /// Who is not.
        except: Vec<IpNet>,
    },
}

impl Acl {
    /// A list that isolates nobody.
    pub fn empty(node: Arc<str>) -> Acl {
        Acl {
            generation: 0,
            node,
            node_addresses: BTreeSet::new(),
            ingress: OrdMap::new(),
            egress: OrdMap::new(),
            guard: None,
            reach: AclReach::default(),
            sets: OrdMap::new(),
        }
    }

    /// The namespaces of a direction.
    pub fn side(&self, direction: Direction) -> &OrdMap<Arc<str>, Arc<AclNamespace>> {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}
