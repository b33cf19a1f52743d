//! Where policies are enforced, and which nodes are trusted. NetworkPolicy leaves both to who enforces it.

use std::fmt;
use std::str::FromStr;

/// Which nodes judge a connection to an isolated pod.
///
/// A node judges what it forwards and sends after destination NAT and before source NAT. Where packets are masqueraded on
/// their way to the pod's node, only the nodes before see the true source. The pod's own node always judges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EnforceAt {
    /// The pod's own node alone.
    #[default]
    Destination,
    /// Every node, if the pod is behind a Service that can be called from outside (NodePort, LoadBalancer, external
    /// addresses). What comes from another node's address to an endpoint of such a Service has been judged there.
    Entry,
    /// Every node, whichever pod. What comes from another node's address has been judged there.
    Everywhere,
}

/// Which nodes' addresses are exempt from policies, in both directions. A pod's own node always is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeTraffic {
    /// No other node's. But what other nodes have judged already ([`EnforceAt`]) is let through.
    #[default]
    Own,
    /// Those of all nodes of the cluster.
    All,
    /// No other node's, and other nodes' judgements count for nothing: their addresses are judged like any other.
    Policy,
}

impl EnforceAt {
    /// All of them.
    pub const ALL: [EnforceAt; 3] = [EnforceAt::Destination, EnforceAt::Entry, EnforceAt::Everywhere];

    /// The word for it, as on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            EnforceAt::Destination => "destination",
            EnforceAt::Entry => "entry",
            EnforceAt::Everywhere => "everywhere",
        }
    }
}

impl NodeTraffic {
    /// All of them.
    pub const ALL: [NodeTraffic; 3] = [NodeTraffic::Own, NodeTraffic::All, NodeTraffic::Policy];

    /// The word for it, as on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            NodeTraffic::Own => "own",
            NodeTraffic::All => "all",
            NodeTraffic::Policy => "policy",
        }
    }
}

/// Both choices. All nodes of a cluster must have made the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Enforcement {
    /// Which nodes judge.
    pub at: EnforceAt,
    /// Which nodes are exempt.
    pub node_traffic: NodeTraffic,
}

/// Such as `entry/own`.
impl fmt::Display for Enforcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.at.as_str(), self.node_traffic.as_str())
    }
}

/// No text of [`Enforcement`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAnEnforcement;

impl FromStr for Enforcement {
    type Err = NotAnEnforcement;

    fn from_str(text: &str) -> Result<Enforcement, NotAnEnforcement> {
        let (at, traffic) = text.split_once('/').ok_or(NotAnEnforcement)?;
        let at = EnforceAt::ALL.into_iter().find(|known| known.as_str() == at).ok_or(NotAnEnforcement)?;
        let node_traffic = NodeTraffic::ALL.into_iter().find(|known| known.as_str() == traffic);
        Ok(Enforcement { at, node_traffic: node_traffic.ok_or(NotAnEnforcement)? })
    }
}
