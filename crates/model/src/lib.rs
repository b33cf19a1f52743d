//! The policy model: what ringfence knows about a cluster, free of Kubernetes syntax, of packet filters and of I/O.
//!
//! Types only. How a selector matches, what a rule allows and who wins is decided twice on purpose, in
//! `ringfence-oracle` (literally, slowly) and in `ringfence-compile` (incrementally, by classes); code they shared
//! would be code neither could check.

mod cluster;
mod enforcement;
mod flow;
mod lab;
mod labels;
mod net;
mod policy;

pub use cluster::{
    ContainerPort, Endpoint, EndpointSlice, ExternalTraffic, Namespace, Node, Object, ObjectKey, Phase, Pod, PodId,
    Service, ServiceKind, ServicePort, TargetPort,
};
pub use enforcement::{EnforceAt, Enforcement, NodeTraffic, NotAnEnforcement};
pub use flow::{Flow, Transport};
pub use lab::{ExternalHost, Masquerade, PodNetwork, Topology};
pub use labels::{Labels, Operator, Requirement, Selector};
pub use net::{AddressRange, Family, PortRange, Protocol};
pub use policy::{
    Action, Direction, IpBlock, Isolation, NamespaceScope, Peer, Peers, Policy, PolicyId, PortMatch, Ports, Rule, Tier,
};
