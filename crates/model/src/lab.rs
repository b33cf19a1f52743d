//! What the lab plays and Kubernetes has no objects for.

use std::net::IpAddr;
use std::sync::Arc;

use crate::ContainerPort;

/// A host outside the cluster that the lab plays and the matrix shows. Not a Kubernetes object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalHost {
    /// A name for people.
    pub name: Arc<str>,
    /// Its addresses, outside the pod ranges.
    pub addresses: Vec<IpAddr>,
    /// The ports it listens on.
    pub ports: Vec<ContainerPort>,
}

/// The network around the pods. What it leaves out is decided by whoever builds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// How many nodes there are.
    pub nodes: Option<usize>,
    /// How packets between pods travel.
    pub pod_network: Option<PodNetwork>,
    /// Which packets of pods leave under their node's address.
    pub masquerade: Option<Masquerade>,
    /// Whether every call of a Service leaves under the node's address, as with `kube-proxy --masquerade-all`.
    pub masquerade_all: Option<bool>,
}

/// How packets between pods travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodNetwork {
    /// Every packet is routed: pods by their node, nodes by the network between them, which knows the node of each pod.
    #[default]
    Routed,
    /// The pods of a node are ports of a bridge and talk to each other at layer 2. Between nodes as in `Routed`.
    Bridge,
    /// A bridge on each node as in `Bridge`, and a VXLAN between the nodes.
    Vxlan,
}

/// Which packets of pods leave their node under the node's address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Masquerade {
    /// None.
    #[default]
    None,
    /// Those to addresses that are neither a pod's nor a node's.
    Outside,
    /// Those to everything but the pods of the same node: a misconfiguration that hides the source from policies.
    PodsToo,
}
