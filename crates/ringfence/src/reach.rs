//! What the command line says about connections beyond those of a node's own pods: which nodes judge them, which nodes are
//! trusted, and towards which networks sources are kept. Shared by all commands that compile for a node.

use clap::{Args as ClapArgs, ValueEnum};
use ipnet::IpNet;
use ringfence_model::{EnforceAt, Enforcement, NodeTraffic};

/// Where policies are enforced, and which sources are kept.
#[derive(Debug, Default, ClapArgs)]
pub(crate) struct ReachOptions {
    /// Which nodes judge connections to a pod. All nodes must run with the same.
    ///
    /// Where sources are masqueraded before the pod's node, only the nodes before see who calls: NodePort and the like with
    /// an overlay network, kube-proxy with masquerade-all.
    #[arg(long, value_enum, default_value_t = EnforceAtName::Destination)]
    pub(crate) enforce_at: EnforceAtName,
    /// Which nodes' addresses no policy holds back. A pod's own node is never held back. All nodes must run with the same.
    #[arg(long, value_enum, default_value_t = NodeTrafficName::Own)]
    pub(crate) node_traffic: NodeTrafficName,
    /// A network towards which this node's pods keep their addresses, whatever else masquerades: pod and Service ranges of
    /// other clusters. Repeat it or write commas for several.
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub(crate) no_masquerade_cidr: Vec<IpNet>,
}

impl ReachOptions {
    /// Both choices that all nodes share.
    pub(crate) fn enforcement(&self) -> Enforcement {
        Enforcement { at: self.enforce_at.into(), node_traffic: self.node_traffic.into() }
    }
}

/// The value of `--enforce-at`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum EnforceAtName {
    /// The pod's own.
    #[default]
    Destination,
    /// Also the node that a connection enters or starts on, for pods behind Services that can be called from outside. The
    /// pod's node believes other nodes about these pods' ports.
    Entry,
    /// Every node, for every pod. A pod's node believes other nodes.
    Everywhere,
}

impl From<EnforceAtName> for EnforceAt {
    fn from(name: EnforceAtName) -> EnforceAt {
        match name {
            EnforceAtName::Destination => EnforceAt::Destination,
            EnforceAtName::Entry => EnforceAt::Entry,
            EnforceAtName::Everywhere => EnforceAt::Everywhere,
        }
    }
}

/// The value of `--node-traffic`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum NodeTrafficName {
    /// The own node's. Other nodes are believed as far as --enforce-at says.
    #[default]
    Own,
    /// Those of all nodes of the cluster.
    All,
    /// The own node's, and no other node is believed.
    Policy,
}

impl From<NodeTrafficName> for NodeTraffic {
    fn from(name: NodeTrafficName) -> NodeTraffic {
        match name {
            NodeTrafficName::Own => NodeTraffic::Own,
            NodeTrafficName::All => NodeTraffic::All,
            NodeTrafficName::Policy => NodeTraffic::Policy,
        }
    }
}
