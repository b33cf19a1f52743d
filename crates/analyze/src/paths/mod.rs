//! The paths that packets take to pods and away from them: same node or not, through a Service or not, from outside.
//!
//! A policy means the same on all of them; a packet filter sees each at another place, and on some of them the network has
//! replaced the source before the destination's node can look at it.

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ringfence_model::{EnforceAt, Family, Flow, Object, Pod, Protocol, Service, ServicePort, Transport};

use crate::matrix::{End, EndKind, Matrix};
use crate::slices::{backend, is_behind};
use world::World;

/// A kind of path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathKind {
    /// Pod to pod on one node.
    SameNode,
    /// Pod to pod on one node, through a Service.
    SameNodeService,
    /// Pod to pod on another node.
    OtherNode,
    /// Pod to pod on another node, through a Service.
    OtherNodeService,
    /// External client to a node port of the pod's own node.
    NodePortSameNode,
    /// External client to a node port of another node.
    NodePortOtherNode,
    /// Pod to external server.
    ToExternal,
    /// External client to the pod's address.
    FromExternal,
    /// Node to a pod of its own: what the kubelet's probes do.
    NodeToOwnPod,
    /// Node to a pod of another node.
    NodeToOtherPod,
    /// Pod on its node's network to pod.
    FromHostNetwork,
    /// Pod to pod on its node's network.
    ToHostNetwork,
    /// Pod to itself through its Service.
    Hairpin,
    /// Node to pod through a Service.
    NodeService,
    /// Node to pod through a node port, its own or another node's.
    NodeToNodePort,
    /// Pod to pod through a node port, of its own node or another.
    PodToNodePort,
    /// Pod to pod of another cluster.
    OtherCluster,
    /// Pod to pod of another cluster, through a Service there.
    OtherClusterService,
}

impl PathKind {
    /// A word for programs. Stable.
    pub fn id(self) -> &'static str {
        match self {
            PathKind::SameNode => "same-node",
            PathKind::SameNodeService => "same-node-service",
            PathKind::OtherNode => "other-node",
            PathKind::OtherNodeService => "other-node-service",
            PathKind::NodePortSameNode => "node-port-same-node",
            PathKind::NodePortOtherNode => "node-port-other-node",
            PathKind::ToExternal => "to-external",
            PathKind::FromExternal => "from-external",
            PathKind::NodeToOwnPod => "node-to-own-pod",
            PathKind::NodeToOtherPod => "node-to-other-pod",
            PathKind::FromHostNetwork => "from-host-network",
            PathKind::ToHostNetwork => "to-host-network",
            PathKind::Hairpin => "hairpin",
            PathKind::NodeService => "node-service",
            PathKind::NodeToNodePort => "node-to-node-port",
            PathKind::PodToNodePort => "pod-to-node-port",
            PathKind::OtherCluster => "other-cluster",
            PathKind::OtherClusterService => "other-cluster-service",
        }
    }

    /// A number and a few words: how reports name it.
    pub fn name(self) -> &'static str {
        match self {
            PathKind::SameNode => "1 same node: pod to pod",
            PathKind::SameNodeService => "2 same node: pod to pod through a Service",
            PathKind::OtherNode => "3 other node: pod to pod",
            PathKind::OtherNodeService => "4 other node: pod to pod through a Service",
            PathKind::NodePortSameNode => "5 outside: client to node port, pod on that node",
            PathKind::NodePortOtherNode => "5 outside: client to node port, pod on another node",
            PathKind::ToExternal => "5 outside: pod to server",
            PathKind::FromExternal => "5 outside: client to pod address",
            PathKind::NodeToOwnPod => "6 node to its own pod",
            PathKind::NodeToOtherPod => "6 node to a pod of another node",
            PathKind::FromHostNetwork => "7 host-network pod to pod",
            PathKind::ToHostNetwork => "7 pod to host-network pod",
            PathKind::Hairpin => "8 pod to itself through its Service",
            PathKind::NodeService => "6 node to pod through a Service",
            PathKind::NodeToNodePort => "6 node to node port",
            PathKind::PodToNodePort => "9 pod to node port",
            PathKind::OtherCluster => "10 other cluster: pod to pod",
            PathKind::OtherClusterService => "10 other cluster: pod to Service there",
        }
    }
}

/// Who starts a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Client {
    /// An end, by its position in [`Matrix::ends`].
    End(usize),
    /// A node itself.
    Node(Arc<str>),
}

/// Which node translates the destination of a connection, if any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Led {
    /// None: a direct call.
    Nowhere,
    /// The client's own.
    AtClient,
    /// This one.
    At(Arc<str>),
}

/// One who may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its position in [`Matrix::ends`].
    pub end: usize,
    /// The address and port it answers on.
    pub address: SocketAddr,
    /// The kind of path that leads there.
    pub kind: PathKind,
}

/// A connection to try on some path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Who starts it.
    pub from: Client,
    /// From which address.
    pub source: IpAddr,
    /// The address and port that are called.
    pub dial: SocketAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The Service that is called, for people; `None` for a direct call.
    pub via: Option<String>,
    /// Who leads the connection to a backend.
    pub led: Led,
    /// The cell of the matrix that is the same connection, and the path in it, by position.
    pub cell: Option<(usize, usize)>,
    /// Who may answer. Never empty; one for a direct call.
    pub backends: Vec<Backend>,
}

/// What came of an attempt with one of its backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trip {
    /// The kind of path.
    pub kind: PathKind,
    /// Who started it: a label of an end, or `node NAME`.
    pub from: String,
    /// Who answers: a label of an end.
    pub to: String,
    /// The Service that was called, for people.
    pub via: Option<String>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port on which the destination answers.
    pub port: u16,
    /// The client's address.
    pub source: IpAddr,
    /// The source address that the rules of the destination's node see. `None` where no policy is enforced at the
    /// destination (an external host, a node) or the connection could not be made even without policies.
    pub seen: Option<IpAddr>,
    /// Without any policy the connection can be made.
    pub carried: bool,
    /// The policies allow the flow between the true ends.
    pub intended: bool,
    /// Every node on the way that judges it allows it, with the source that it sees.
    pub expected: bool,
    /// Where the policies' answer is lost with the source: the least that would have to be enforced more to get it back.
    pub restored_by: Option<EnforceAt>,
    /// Whether it was made under the policies.
    pub measured: bool,
}

impl Trip {
    /// The destination's node sees another source than the client's address.
    pub fn replaced(&self) -> bool {
        self.seen.is_some_and(|seen| seen != self.source)
    }

    /// The result is not what the policies demand of what the node sees, or the network itself fails.
    pub fn differs(&self) -> bool {
        self.measured != self.expected || !self.carried
    }
}

/// One of the clusters whose pods are the ends of a matrix.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// Its objects, placed.
    pub objects: &'a [Object],
    /// The node to which packets from outside come that go to addresses of its Services. `None`: such are not tried.
    pub gate: Option<&'a Arc<str>>,
}

/// Every path between the ends of `matrix` and through the Services of each cluster.
pub fn attempts(clusters: &[Side<'_>], matrix: &Matrix) -> Vec<Attempt> {
    let worlds: Vec<World<'_>> = clusters.iter().map(|side| World::new(*side, matrix)).collect();
    let mut attempts = Vec::new();
    for (cell_position, cell) in matrix.cells.iter().enumerate() {
        let (Some(from), Some(to)) = (matrix.ends.get(cell.from), matrix.ends.get(cell.to)) else { continue };
        let together = worlds.iter().any(|world| world.has(from) && world.has(to));
        let outside = from.node().is_none() || to.node().is_none();
        let kind = if together || outside { direct(from, to) } else { PathKind::OtherCluster };
        for (path_position, path) in cell.paths.iter().enumerate() {
            let address = SocketAddr::new(path.destination, cell.port);
            attempts.push(Attempt {
                from: Client::End(cell.from),
                source: path.source,
                dial: address,
                protocol: cell.protocol,
                via: None,
                led: Led::Nowhere,
                cell: Some((cell_position, path_position)),
                backends: vec![Backend { end: cell.to, address, kind }],
            });
        }
    }
    for world in &worlds {
        world.node_calls(&mut attempts);
        world.service_calls(&mut attempts);
    }
    attempts
}

fn direct(from: &End, to: &End) -> PathKind {
    match (&from.kind, &to.kind) {
        (EndKind::External { .. }, _) => PathKind::FromExternal,
        (_, EndKind::External { .. }) => PathKind::ToExternal,
        (EndKind::Pod { host_network: true, .. }, _) => PathKind::FromHostNetwork,
        (_, EndKind::Pod { host_network: true, .. }) => PathKind::ToHostNetwork,
        (EndKind::Pod { node: a, .. }, EndKind::Pod { node: b, .. }) if a == b => PathKind::SameNode,
        _ => PathKind::OtherNode,
    }
}

/// A port of a Service and who is behind it, over one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend<'a> {
    /// The Service.
    pub service: &'a Service,
    /// Its port.
    pub port: &'a ServicePort,
    /// Positions of ends, with the address and port each answers on.
    pub backends: Vec<(usize, SocketAddr)>,
}

/// The ports of Services with the live pods behind them, one for each family that a Service speaks. Ports that nobody
/// serves have no backends.
pub fn frontends<'a>(objects: &'a [Object], ends: &[End]) -> Vec<(Family, Frontend<'a>)> {
    let position: BTreeMap<&str, usize> = ends.iter().enumerate().map(|(at, end)| (end.label.as_str(), at)).collect();
    let pods: Vec<(usize, &Pod)> = objects
        .iter()
        .filter_map(|object| match object {
            Object::Pod(pod) => Some((*position.get(pod.to_string().as_str())?, pod)),
            _ => None,
        })
        .collect();
    let mut found = Vec::new();
    for object in objects {
        let Object::Service(service) = object else { continue };
        let families: BTreeSet<Family> = service.cluster_addresses.iter().map(|a| Family::of(*a)).collect();
        for port in &service.ports {
            for family in &families {
                let backends = pods
                    .iter()
                    .filter(|(_, pod)| is_behind(service, pod))
                    .filter_map(|(end, pod)| Some((*end, backend(port, pod, *family)?)));
                found.push((*family, Frontend { service, port, backends: backends.collect() }));
            }
        }
    }
    found
}

impl Attempt {
    /// The flow to a backend as policies mean it: from the client's own address to the pod's.
    pub fn flow(&self, backend: &Backend) -> Flow {
        Flow {
            source: self.source,
            destination: backend.address.ip(),
            transport: Transport::Port(self.protocol, backend.address.port()),
        }
    }

    /// The flow as it is before anybody translates the destination.
    pub fn dialled(&self) -> Flow {
        Flow {
            source: self.source,
            destination: self.dial.ip(),
            transport: Transport::Port(self.protocol, self.dial.port()),
        }
    }
}
