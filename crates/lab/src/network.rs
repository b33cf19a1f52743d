//! A cluster and the hosts around it as network namespaces: nodes, pods, and what is outside.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;

use ringfence_model::{PodNetwork, Protocol};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::build_error::BuildError;
use crate::conntrack;
use crate::index::{EndpointIndex, NodeIndex};
use crate::namespace::NetNs;
use crate::rules;
use crate::spec::{NetworkSpec, Place, Plan, Warning, plan};
use crate::wiring::{Wired, Wiring, interface_name};

/// Probes under way at most, whatever the file limit allows: enough to keep the CPUs busy, few enough that none times
/// out for want of CPU.
const MOST_PROBES: u64 = 512;

/// One node as built.
#[derive(Debug)]
pub struct Node {
    name: String,
    addresses: Vec<IpAddr>,
    tunnel_addresses: Vec<IpAddr>,
    cluster: usize,
    namespace: NetNs,
}

impl Node {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its addresses, as described.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// The addresses of its end of the tunnels.
    pub fn tunnel_addresses(&self) -> &[IpAddr] {
        &self.tunnel_addresses
    }

    /// Which of several clusters it belongs to.
    pub fn cluster(&self) -> usize {
        self.cluster
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &NetNs {
        &self.namespace
    }
}

/// One endpoint as built.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) name: String,
    /// As in the description; for an endpoint in the host network its node's, if it named none.
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) place: Place,
    /// `None` is that of its node.
    namespace: Option<NetNs>,
}

/// Nodes, endpoints, and the listeners in them. Dropping it ends them all.
#[derive(Debug)]
pub struct Network {
    nodes: Vec<Node>,
    fabric: NetNs,
    pod_network: PodNetwork,
    pub(crate) endpoints: Vec<Endpoint>,
    /// Who answers at each address, protocol and port.
    pub(crate) open_ports: BTreeMap<(IpAddr, Protocol, u16), EndpointIndex>,
    pub(crate) listeners: Mutex<JoinSet<()>>,
    pub(crate) probes: Semaphore,
    warnings: Vec<Warning>,
}

impl Network {
    /// Builds the network around the calling thread's own network namespace, which after [`enter`](fn@crate::enter) is the
    /// process's, so that whatever the process does to "the host" (packet filters, sockets) it does to the first node.
    ///
    /// `progress` is called with how many endpoints are done and how many there are.
    pub fn build(spec: NetworkSpec, progress: &mut dyn FnMut(usize, usize)) -> Result<Network, BuildError> {
        let first = NetNs::current();
        let of = || spec.nodes.first().map_or("the first node", |node| &node.name).to_owned();
        let first = first.map_err(|source| BuildError::Namespace { of: of(), source })?;
        Network::build_around(vec![first], spec, progress)
    }

    /// Builds the network around `nodes`, the namespaces of the first nodes: empty ones such as [`NetNs::create`] makes, but
    /// for packet filters that shall be there before the first pod. The other nodes get new ones.
    pub fn build_around(
        nodes: Vec<NetNs>,
        spec: NetworkSpec,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Network, BuildError> {
        let Plan { spec, open_ports, mut warnings } = plan(spec)?;
        let mut wiring = Wiring::new(&spec, nodes)?;
        let total = spec.endpoints.len();
        let mut namespaces = Vec::with_capacity(total);
        progress(0, total);
        for (position, endpoint) in spec.endpoints.iter().enumerate() {
            namespaces.push(wiring.endpoint(position, endpoint)?);
            progress(position + 1, total);
        }
        let Wired { fabric, nodes: node_namespaces, warnings: of_wiring } = wiring.finish();
        warnings.extend(of_wiring);
        for (position, namespace) in node_namespaces.iter().enumerate() {
            warnings.extend(rules::write(&spec, NodeIndex(position), namespace)?);
        }
        let pod_network = spec.pod_network;
        let nodes = spec.nodes.into_iter().zip(node_namespaces);
        let nodes = nodes.map(|(node, namespace)| Node {
            name: node.name,
            addresses: node.addresses,
            tunnel_addresses: node.tunnel_addresses,
            cluster: node.cluster,
            namespace,
        });
        let endpoints = spec.endpoints.into_iter().zip(namespaces).map(|(endpoint, namespace)| Endpoint {
            name: endpoint.name,
            addresses: endpoint.addresses,
            place: endpoint.place,
            namespace,
        });
        let probes = Semaphore::new(probes_at_once(total, open_ports.len()));
        Ok(Network {
            nodes: nodes.collect(),
            fabric,
            pod_network,
            endpoints: endpoints.collect(),
            open_ports,
            listeners: Mutex::new(JoinSet::new()),
            probes,
            warnings,
        })
    }

    /// The node of that name. `None`: there is no such node.
    pub fn node_named(&self, name: &str) -> Option<NodeIndex> {
        self.nodes.iter().position(|node| node.name == name).map(NodeIndex)
    }

    /// The nodes, in the order of the description.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// One node. `None`: there is no such node.
    pub fn node(&self, node: NodeIndex) -> Option<&Node> {
        self.nodes.get(node.0)
    }

    /// The node of a cluster to which packets from outside come, where they do not come to the pod's own: its first.
    pub(crate) fn gate(&self, cluster: usize) -> NodeIndex {
        NodeIndex(self.nodes.iter().position(|node| node.cluster == cluster).unwrap_or_default())
    }

    /// How packets between pods travel.
    pub(crate) fn pod_network(&self) -> PodNetwork {
        self.pod_network
    }

    /// The namespace between the nodes and the hosts outside.
    pub fn fabric(&self) -> &NetNs {
        &self.fabric
    }

    /// The namespace an endpoint is in, which for one in the host network is its node's. `None`: no such endpoint.
    pub fn namespace(&self, endpoint: EndpointIndex) -> Option<&NetNs> {
        let endpoint = self.endpoints.get(endpoint.0)?;
        endpoint.namespace.as_ref().or_else(|| Some(&self.node(endpoint.place.node()?)?.namespace))
    }

    /// The name of the device on its node that is a pod's alone. With bridges it is a port, and packets from the pod
    /// that are routed come in through the bridge. `None`: the endpoint is no pod with a namespace of its own.
    pub fn interface(&self, endpoint: EndpointIndex) -> Option<String> {
        let pod = self.endpoints.get(endpoint.0).filter(|endpoint| matches!(endpoint.place, Place::Pod { .. }));
        pod.map(|_| interface_name(endpoint.0))
    }

    /// What could not be done as described, but does not stop the rest.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// The source of a connection as rules of a node's forward hook saw it: after the destination was translated, before
    /// the source was. `backend` is where the connection ended, `seen` the source that the listener there saw.
    ///
    /// `Ok(None)`: the node's connection tracking knows no such connection. It knows none at all unless some rule in the
    /// node's namespace makes use of it.
    ///
    /// # Errors
    /// There is no such node, or its connection tracking cannot be asked.
    pub fn source_seen_by_rules(
        &self,
        node: NodeIndex,
        protocol: Protocol,
        backend: SocketAddr,
        seen: SocketAddr,
    ) -> io::Result<Option<SocketAddr>> {
        self.tracked_on(node)?.within(|| conntrack::original_source(protocol, backend, seen))?
    }

    /// Makes a node forget all connections, so that the next packet of each is judged, and translated, as a first one.
    ///
    /// # Errors
    /// There is no such node, or its connection tracking cannot be reached.
    pub fn forget_connections(&self, node: NodeIndex) -> io::Result<()> {
        self.tracked_on(node)?.within(conntrack::flush)?
    }

    fn tracked_on(&self, node: NodeIndex) -> io::Result<&NetNs> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("there is no node number {}", node.0));
        Ok(self.node(node).ok_or_else(missing)?.namespace())
    }
}

/// A probe has one file open here and, over TCP, one at the listener. Half of what the network itself leaves free is
/// kept for the rest of the process.
fn probes_at_once(endpoints: usize, open_ports: usize) -> usize {
    let limit =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    let own = 64 + 4 * endpoints as u64 + open_ports as u64;
    let allowed = (limit.saturating_sub(own) / 4).clamp(8, MOST_PROBES);
    usize::try_from(allowed).unwrap_or(8)
}
