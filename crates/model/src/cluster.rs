use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::{Enforcement, Labels, Policy, PolicyId, Protocol};

/// A namespace. `labels` always has `kubernetes.io/metadata.name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Namespace {
    /// Its name.
    pub name: Arc<str>,
    /// Its labels.
    pub labels: Labels,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// Its name, as in `spec.nodeName` of its pods.
    pub name: Arc<str>,
    /// `status.addresses` that are IP addresses.
    pub addresses: Vec<IpAddr>,
    /// Addresses of its bridges and tunnels, which packets that it masquerades can come from (annotation
    /// `ringfence.io/node-addresses`).
    pub tunnel_addresses: Vec<IpAddr>,
    /// What its agent says it does (annotation `ringfence.io/enforcement`). Nothing but reports depends on it: who can write a
    /// Node can write this.
    pub announced: Option<Enforcement>,
    /// `spec.podCIDRs`: where its pods get their addresses from.
    pub pod_cidrs: Vec<ipnet::IpNet>,
}

/// The identity of one life of a pod (`metadata.uid`). A pod re-created under the same name is another one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodId(pub Arc<str>);

/// `status.phase` as far as policy cares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Pending, Running or Unknown, terminating or not: it may send packets.
    #[default]
    Live,
    /// Succeeded or Failed: it sends nothing any more and its address may belong to another pod.
    Finished,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pod {
    /// `metadata.uid`; for pods of files, made from namespace and name.
    pub id: PodId,
    /// The uid by which the kubelet knows a static pod (annotation `kubernetes.io/config.mirror` of its mirror pod). Who
    /// can write the pod can write this: it means something for pods of this name only.
    pub static_uid: Option<Arc<str>>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its labels.
    pub labels: Labels,
    /// `spec.nodeName`, once scheduled.
    pub node: Option<Arc<str>>,
    /// `status.podIPs`; at most one of each family in a real cluster.
    pub addresses: Vec<IpAddr>,
    /// It shares its node's network: never a subject of policy, never a pod peer.
    pub host_network: bool,
    /// Whether it still counts.
    pub phase: Phase,
    /// `metadata.creationTimestamp` in seconds since the epoch, 0 when unknown. Of two live pods with the same
    /// address the one created last owns it; of two created in the same second, the one with the greater id.
    pub created: i64,
    /// Container ports, those of restartable init containers included.
    pub ports: Vec<ContainerPort>,
}

impl fmt::Display for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One entry of a container's `ports`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerPort {
    /// Its name, which policies can use.
    pub name: Option<Arc<str>>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number, host byte order.
    pub port: u16,
}

/// A Service. Policies speak of pods; a Service is one more way to them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Service {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// How far it can be reached.
    pub kind: ServiceKind,
    /// The labels of the pods behind it; empty when its endpoints are written by hand.
    pub selector: BTreeMap<Arc<str>, Arc<str>>,
    /// Its own addresses, at most one of each family. Empty for one that has none yet.
    pub cluster_addresses: Vec<IpAddr>,
    /// Addresses outside the pod network under which every node takes its connections: `spec.externalIPs` and those of
    /// `status.loadBalancer.ingress`.
    pub external_addresses: Vec<IpAddr>,
    /// Whether a client from outside reaches the pods of the node it asks only.
    pub external_traffic: ExternalTraffic,
    /// Its ports.
    pub ports: Vec<ServicePort>,
}

/// `spec.type` of a Service, with headless ones apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceKind {
    /// An address inside the cluster.
    #[default]
    ClusterIp,
    /// `clusterIP: None`, or a mere name (`ExternalName`): no address of its own.
    Headless,
    /// An address inside the cluster and a port on every node.
    NodePort,
    /// As `NodePort`; the balancer before the nodes is not ours.
    LoadBalancer,
}

/// `spec.externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ExternalTraffic {
    /// Any node leads to any pod, under the node's address.
    #[default]
    Cluster,
    /// A node leads to its own pods, and the client's address is kept.
    Local,
}

/// One entry of a Service's `ports`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// Its name.
    pub name: Option<Arc<str>>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The Service's own port, host byte order.
    pub port: u16,
    /// The port of the pods.
    pub target: TargetPort,
    /// The port on every node, once there is one.
    pub node_port: Option<u16>,
}

/// `targetPort` of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TargetPort {
    /// The same number on every pod, host byte order.
    Number(u16),
    /// The container port of that name, on each pod.
    Name(Arc<str>),
}

/// Who answers for a Service (`discovery.k8s.io/v1` EndpointSlice). One Service can have several.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointSlice {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// The Service of the same namespace that it belongs to (label `kubernetes.io/service-name`).
    pub service: Option<Arc<str>>,
    /// Who answers.
    pub endpoints: Vec<Endpoint>,
    /// On which ports (host byte order), the same for all of them.
    pub ports: Vec<(Protocol, u16)>,
}

/// One entry of an EndpointSlice's `endpoints`, one address of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// Whether Services may lead to it: it is ready, or it is terminating and still serves.
    pub serving: bool,
}

/// Anything a cluster state is made of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::large_enum_variant, reason = "objects are moved once, from the source into the state")]
pub enum Object {
    /// A namespace.
    Namespace(Namespace),
    /// A node.
    Node(Node),
    /// A pod.
    Pod(Pod),
    /// A policy.
    Policy(Policy),
    /// A Service.
    Service(Service),
    /// Endpoints of a Service.
    EndpointSlice(EndpointSlice),
}

/// The identity of an [`Object`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKey {
    /// A namespace by name.
    Namespace(Arc<str>),
    /// A node by name.
    Node(Arc<str>),
    /// A pod by id.
    Pod(PodId),
    /// A policy by tier, namespace and name.
    Policy(PolicyId),
    /// A Service by namespace and name.
    Service(Arc<str>, Arc<str>),
    /// An EndpointSlice by namespace and name.
    EndpointSlice(Arc<str>, Arc<str>),
}

impl Object {
    /// Its identity.
    pub fn key(&self) -> ObjectKey {
        match self {
            Object::Namespace(namespace) => ObjectKey::Namespace(namespace.name.clone()),
            Object::Node(node) => ObjectKey::Node(node.name.clone()),
            Object::Pod(pod) => ObjectKey::Pod(pod.id.clone()),
            Object::Policy(policy) => ObjectKey::Policy(policy.id.clone()),
            Object::Service(service) => ObjectKey::Service(service.namespace.clone(), service.name.clone()),
            Object::EndpointSlice(slice) => ObjectKey::EndpointSlice(slice.namespace.clone(), slice.name.clone()),
        }
    }
}
