use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

use crate::{PortRange, Protocol, Selector};

/// Whether a rule is about connections that come to a pod or that leave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Connections to the selected pods.
    Ingress,
    /// Connections from the selected pods.
    Egress,
}

impl Direction {
    /// Both directions.
    pub const ALL: [Direction; 2] = [Direction::Ingress, Direction::Egress];
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        })
    }
}

/// The order in which policies are asked. The first tier that answers Accept or Deny decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Cluster-wide rules of administrators, before everything else.
    Admin,
    /// `NetworkPolicy`: final for every pod it isolates in that direction.
    Namespace,
    /// Cluster-wide rules for pods that no `NetworkPolicy` isolates.
    Baseline,
}

/// What a rule says about a connection it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Let it through.
    Accept,
    /// Refuse it.
    Deny,
    /// Leave this tier without a decision.
    Pass,
}

/// The identity of a policy: unique in a cluster at one time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyId {
    /// The tier it belongs to.
    pub tier: Tier,
    /// Its namespace; empty for a cluster-scoped policy.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl fmt::Display for PolicyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// The directions in which a policy isolates the pods it selects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Isolation {
    /// Connections to the pods need a rule.
    pub ingress: bool,
    /// Connections from the pods need a rule.
    pub egress: bool,
}

impl Isolation {
    /// Whether this direction is isolated.
    pub fn covers(self, direction: Direction) -> bool {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }
}

/// One policy, defaulted and valid. A policy that failed validation is here too, isolating whom it selects and
/// allowing nothing: it fails closed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Policy {
    /// Tier, namespace and name.
    pub id: PolicyId,
    /// Order inside an ordered tier: lower goes first. Without meaning for `Tier::Namespace`.
    pub priority: i32,
    /// The namespaces whose pods it can select.
    pub namespaces: NamespaceScope,
    /// The pods it selects there.
    pub pods: Selector,
    /// The directions it isolates.
    pub isolates: Isolation,
    /// Rules about connections to the selected pods. Inert unless `isolates.ingress`.
    pub ingress: Vec<Rule>,
    /// Rules about connections from the selected pods. Inert unless `isolates.egress`.
    pub egress: Vec<Rule>,
}

impl Policy {
    /// The rules of one direction.
    pub fn rules(&self, direction: Direction) -> &[Rule] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

/// One rule: it matches a connection whose other end is one of `peers` and whose destination port is one of `ports`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// What it says about connections it matches. Always `Accept` in `Tier::Namespace`.
    pub action: Action,
    /// The other end.
    pub peers: Peers,
    /// Protocol and destination port.
    pub ports: Ports,
}

/// The other ends a rule speaks of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peers {
    /// Everyone, in and off the cluster (`from`/`to` absent or empty).
    Any,
    /// One of these. Never empty.
    OneOf(Vec<Peer>),
}

/// One entry of `from` or `to`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// Pods that match `pods` in the namespaces of `namespaces`.
    Pods {
        /// Where they are.
        namespaces: NamespaceScope,
        /// Which of them.
        pods: Selector,
    },
    /// Addresses, whoever owns them.
    Block(IpBlock),
}

/// A choice of namespaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NamespaceScope {
    /// The policy's own namespace.
    Own,
    /// Namespaces with matching labels.
    Matching(Selector),
}

/// `cidr` without the addresses of `except`. Host bits are zero.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpBlock {
    /// The block.
    pub cidr: IpNet,
    /// Strict subsets of `cidr` that do not belong to this peer. They may overlap each other.
    pub except: Vec<IpNet>,
}

/// The destination ports a rule speaks of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ports {
    /// Every port and every protocol, ICMP too (`ports` absent or empty).
    Any,
    /// One of these. Never empty.
    OneOf(Vec<PortMatch>),
}

/// One entry of `ports`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortMatch {
    /// Ports by number.
    Number(Protocol, PortRange),
    /// A container port of the destination pod, by protocol and name.
    Named(Protocol, Arc<str>),
}
