//! What a network shall look like, and whether that can be built.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ringfence_model::{Masquerade, PodNetwork, Protocol};
use thiserror::Error;

use crate::index::{EndpointIndex, NodeIndex};
use crate::services::{ServiceError, Services};
use crate::wiring::FABRIC_ADDRESSES;

/// A machine of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSpec {
    /// What errors and `lab exec` call it.
    pub name: String,
    /// Its addresses of either family, each without a prefix; the first of a family is what its packets come from.
    pub addresses: Vec<IpAddr>,
    /// Addresses of its end of the tunnels to the other nodes, from which its own packets and those that it masquerades come
    /// there. Mean nothing without tunnels.
    pub tunnel_addresses: Vec<IpAddr>,
    /// Which of several clusters it belongs to. Nodes of different clusters have no tunnels between them, other Services, and
    /// spare different pods when they masquerade.
    pub cluster: usize,
}

/// Where an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A pod with a network namespace of its own.
    Pod {
        /// Where it runs.
        node: NodeIndex,
    },
    /// A pod in the network namespace of its node, with the node's addresses.
    HostNetwork {
        /// Where it runs.
        node: NodeIndex,
    },
    /// A host outside the cluster.
    External,
}

impl Place {
    /// The node it is on, if it is in the cluster.
    pub fn node(self) -> Option<NodeIndex> {
        match self {
            Place::Pod { node } | Place::HostNetwork { node } => Some(node),
            Place::External => None,
        }
    }
}

/// A pod, or a host outside the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSpec {
    /// What its listeners answer with and what its device is labelled with, usually `namespace/pod`.
    pub name: String,
    /// Where it is.
    pub place: Place,
    /// Its addresses of either family, each without a prefix. Empty for an endpoint in the host network means all of
    /// its node's.
    pub addresses: Vec<IpAddr>,
    /// The ports it answers on, at each of its addresses. Doubles count once.
    pub listen: Vec<(Protocol, u16)>,
}

/// Nodes, what is connected to them, and what they do to packets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkSpec {
    /// At least one. The first is built in the namespace that [`Network::build`](crate::Network::build) finds itself in.
    pub nodes: Vec<NodeSpec>,
    /// How packets between pods travel.
    pub pod_network: PodNetwork,
    /// Whether packets between ports of one bridge go past the packet filter (`bridge-nf-call-iptables` is 0), so that
    /// no policy between pods of one node can hold. Means nothing without bridges.
    pub bypass_bridge_filter: bool,
    /// Which packets leave under their node's address.
    pub masquerade: Masquerade,
    /// Services, played by rules like those of kube-proxy.
    pub services: Services,
    /// Pods and external hosts.
    pub endpoints: Vec<EndpointSpec>,
}

impl NetworkSpec {
    /// The node of a cluster to which packets from outside come, where they do not come to the pod's own: its first.
    pub(crate) fn gate(&self, cluster: usize) -> NodeIndex {
        NodeIndex(self.nodes.iter().position(|node| node.cluster == cluster).unwrap_or_default())
    }

    /// Whether there is another cluster than that of the first node.
    pub(crate) fn has_several_clusters(&self) -> bool {
        self.nodes.iter().any(|node| self.nodes.first().is_some_and(|first| first.cluster != node.cluster))
    }
}

/// Why a network cannot be as described.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    /// The first node is the process's own namespace.
    #[error("a network needs at least one node")]
    NoNodes,
    /// Nodes are found by name.
    #[error("two nodes have the name {0}")]
    NodeNameTaken(String),
    /// A position beyond the list of nodes.
    #[error("{what} is on node number {}, but there are only {nodes}, numbered from 0", node.0)]
    NoSuchNode {
        /// Who: an endpoint, or a backend of a Service.
        what: String,
        /// The position.
        node: NodeIndex,
        /// How many nodes there are.
        nodes: usize,
    },
    /// Addresses are unique, and only the host network shares a node's.
    #[error("{second} has the address {address}, which {first} has already")]
    AddressTaken {
        /// The address.
        address: IpAddr,
        /// Whose it is.
        first: String,
        /// Who wants it too.
        second: String,
    },
    /// An address that cannot be routed.
    #[error("{owner} cannot have the address {address}: it is not a unicast address that can be routed")]
    AddressUnusable {
        /// Whose it would be.
        owner: String,
        /// The address.
        address: IpAddr,
    },
    /// An endpoint or node without any address.
    #[error("{owner} has no address")]
    NoAddress {
        /// Its name.
        owner: String,
    },
    /// A node has to answer each family's packets with ICMP errors, so it needs an address.
    #[error("{endpoint} has the address {address}, but its node {node} has none of that family; give it one")]
    NoNodeAddress {
        /// The endpoint's name.
        endpoint: String,
        /// The address.
        address: IpAddr,
        /// The node's name.
        node: String,
    },
    /// Host network means the node's addresses.
    #[error("{endpoint} is in the host network of {node}, but its address {address} is none of the node's")]
    NotTheNodes {
        /// The endpoint's name.
        endpoint: String,
        /// The address.
        address: IpAddr,
        /// The node's name.
        node: String,
    },
    /// In a VXLAN every node passes on the packets of every family, and carries them to each other node.
    #[error("a VXLAN needs nodes that have addresses of the same families, unlike {first} and {other}")]
    UnlikeNodes {
        /// The first node's name.
        first: String,
        /// A node with other families.
        other: String,
    },
    /// Nobody can listen on port 0.
    #[error("{endpoint} cannot listen on {protocol} port 0; ports are 1 to 65535")]
    PortZero {
        /// The endpoint's name.
        endpoint: String,
        /// Of which protocol.
        protocol: Protocol,
    },
    /// A Service that contradicts itself.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// Device numbers are two bytes.
    #[error("{count} {what} are more than one lab can have (65535)")]
    TooMany {
        /// Nodes or endpoints.
        what: &'static str,
        /// How many.
        count: usize,
    },
}

/// Something that cannot be as described, but leaves the rest usable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// Two endpoints in the host network want the same port. A real node could run only one of them.
    PortTaken {
        /// Of which protocol.
        protocol: Protocol,
        /// Which port.
        port: u16,
        /// Who answers there.
        first: String,
        /// Who does not.
        second: String,
    },
    /// The kernel cannot show bridged packets to the packet filter: policies between pods of this node do not hold.
    NoBridgeFilter {
        /// The node's name.
        node: String,
    },
    /// The kernel refuses rules about SCTP, so Services are built without their SCTP ports.
    NoSctpServices {
        /// The node's name.
        node: String,
        /// What refused them and why.
        reason: String,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::PortTaken { protocol, port, first, second } => write!(
                f,
                "{second} does not listen on {protocol} port {port} of the node, because {first} does; both are in the host \
                 network"
            ),
            Warning::NoBridgeFilter { node } => write!(
                f,
                "the kernel does not show the bridged packets of {node} to the packet filter, so nothing is enforced \
                 between its pods; as root of the host, load br_netfilter (`modprobe br_netfilter`)"
            ),
            Warning::NoSctpServices { node, reason } => {
                write!(f, "no Service of {node} answers over SCTP, because its rules were refused: {reason}")
            }
        }
    }
}

/// A description that holds together.
#[derive(Debug)]
pub(crate) struct Plan {
    /// As described, with the addresses of endpoints in the host network filled in.
    pub(crate) spec: NetworkSpec,
    /// Who answers where.
    pub(crate) open_ports: BTreeMap<(IpAddr, Protocol, u16), EndpointIndex>,
    pub(crate) warnings: Vec<Warning>,
}

/// Checks a description and decides who answers where.
pub(crate) fn plan(mut spec: NetworkSpec) -> Result<Plan, PlanError> {
    for (what, count) in [("nodes", spec.nodes.len()), ("endpoints", spec.endpoints.len())] {
        if count > usize::from(u16::MAX) {
            return Err(PlanError::TooMany { what, count });
        }
    }
    let mut owners = Owners::default();
    for address in FABRIC_ADDRESSES {
        owners.claim(address, "the fabric")?;
    }
    check_nodes(&spec, &mut owners)?;
    let nodes = &spec.nodes;
    for endpoint in &mut spec.endpoints {
        check_endpoint(endpoint, nodes, &mut owners)?;
    }
    for service in &spec.services.list {
        for &address in &service.cluster_ips {
            owners.claim(address, &format!("the Service {}", service.name))?;
        }
    }
    spec.services.check(&spec)?;
    let (open_ports, warnings) = open_ports(&spec.endpoints)?;
    Ok(Plan { spec, open_ports, warnings })
}

fn check_nodes(spec: &NetworkSpec, owners: &mut Owners) -> Result<(), PlanError> {
    if spec.nodes.is_empty() {
        return Err(PlanError::NoNodes);
    }
    let mut names = BTreeSet::new();
    for node in &spec.nodes {
        if !names.insert(&node.name) {
            return Err(PlanError::NodeNameTaken(node.name.clone()));
        }
        if node.addresses.is_empty() {
            return Err(PlanError::NoAddress { owner: node.name.clone() });
        }
        for &address in node.addresses.iter().chain(&node.tunnel_addresses) {
            owners.claim(address, &node.name)?;
        }
    }
    let families = |node: &NodeSpec| [IpAddr::is_ipv4, IpAddr::is_ipv6].map(|family| node.addresses.iter().any(family));
    if spec.pod_network == PodNetwork::Vxlan
        && let [first, rest @ ..] = spec.nodes.as_slice()
        && let Some(other) = rest.iter().find(|node| families(node) != families(first))
    {
        return Err(PlanError::UnlikeNodes { first: first.name.clone(), other: other.name.clone() });
    }
    Ok(())
}

fn check_endpoint(endpoint: &mut EndpointSpec, nodes: &[NodeSpec], owners: &mut Owners) -> Result<(), PlanError> {
    let node = endpoint.place.node().map(|node| node_at(nodes, node, || endpoint.name.clone())).transpose()?;
    let host = node.filter(|_| matches!(endpoint.place, Place::HostNetwork { .. }));
    if let Some(host) = host
        && endpoint.addresses.is_empty()
    {
        endpoint.addresses.clone_from(&host.addresses);
    }
    if endpoint.addresses.is_empty() {
        return Err(PlanError::NoAddress { owner: endpoint.name.clone() });
    }
    for &address in &endpoint.addresses {
        match host {
            None => owners.claim(address, &endpoint.name)?,
            Some(host) if host.addresses.contains(&address) => {}
            Some(host) => {
                let (endpoint, node) = (endpoint.name.clone(), host.name.clone());
                return Err(PlanError::NotTheNodes { endpoint, address, node });
            }
        }
        if let Some(node) = node
            && !node.addresses.iter().any(|own| own.is_ipv4() == address.is_ipv4())
        {
            let (endpoint, node) = (endpoint.name.clone(), node.name.clone());
            return Err(PlanError::NoNodeAddress { endpoint, address, node });
        }
    }
    Ok(())
}

/// The node at a position that `what` names.
pub(crate) fn node_at(
    nodes: &[NodeSpec],
    node: NodeIndex,
    what: impl FnOnce() -> String,
) -> Result<&NodeSpec, PlanError> {
    nodes.get(node.0).ok_or_else(|| PlanError::NoSuchNode { what: what(), node, nodes: nodes.len() })
}

type OpenPorts = BTreeMap<(IpAddr, Protocol, u16), EndpointIndex>;

fn open_ports(endpoints: &[EndpointSpec]) -> Result<(OpenPorts, Vec<Warning>), PlanError> {
    let mut open_ports = OpenPorts::new();
    let mut warnings = Vec::new();
    for (position, endpoint) in endpoints.iter().enumerate() {
        let ports: BTreeSet<(Protocol, u16)> = endpoint.listen.iter().copied().collect();
        for (protocol, port) in ports {
            if port == 0 {
                return Err(PlanError::PortZero { endpoint: endpoint.name.clone(), protocol });
            }
            let mut taken = None;
            for &address in &endpoint.addresses {
                let first = *open_ports.entry((address, protocol, port)).or_insert(EndpointIndex(position));
                if first.0 != position {
                    taken = Some(first);
                }
            }
            if let Some(first) = taken.and_then(|first| endpoints.get(first.0)) {
                let (first, second) = (first.name.clone(), endpoint.name.clone());
                warnings.push(Warning::PortTaken { protocol, port, first, second });
            }
        }
    }
    Ok((open_ports, warnings))
}

/// Whose each address is.
#[derive(Default)]
struct Owners(BTreeMap<IpAddr, String>);

impl Owners {
    fn claim(&mut self, address: IpAddr, owner: &str) -> Result<(), PlanError> {
        let owner = owner.to_owned();
        if !is_usable(address) {
            return Err(PlanError::AddressUnusable { owner, address });
        }
        match self.0.insert(address, owner.clone()) {
            None => Ok(()),
            Some(first) => Err(PlanError::AddressTaken { address, first, second: owner }),
        }
    }
}

/// Whether hosts can have the address and routers pass it on.
fn is_usable(address: IpAddr) -> bool {
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return false;
    }
    match address {
        IpAddr::V4(v4) => v4.octets()[0] != 0 && !v4.is_link_local() && !v4.is_broadcast(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local() && v6.to_ipv4_mapped().is_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::{Backend, ServicePortSpec, ServiceSpec};

    const NODE: NodeIndex = NodeIndex(0);
    const POD: Place = Place::Pod { node: NODE };
    const HOST: Place = Place::HostNetwork { node: NODE };

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn node(name: &str, addresses: &[&str]) -> NodeSpec {
        let addresses = addresses.iter().map(|text| ip(text)).collect();
        NodeSpec { name: name.to_owned(), addresses, ..NodeSpec::default() }
    }

    fn endpoint(name: &str, place: Place, addresses: &[&str], listen: &[(Protocol, u16)]) -> EndpointSpec {
        EndpointSpec {
            name: name.to_owned(),
            place,
            addresses: addresses.iter().map(|text| ip(text)).collect(),
            listen: listen.to_vec(),
        }
    }

    fn planned(endpoints: Vec<EndpointSpec>) -> Result<Plan, PlanError> {
        plan(NetworkSpec { nodes: vec![node("one", &["192.0.2.1"])], endpoints, ..NetworkSpec::default() })
    }

    fn error(spec: NetworkSpec) -> String {
        plan(spec).unwrap_err().to_string()
    }

    #[test]
    fn contradictions_are_named() {
        let tcp = Protocol::Tcp;
        let taken = planned(vec![endpoint("a", POD, &["10.0.0.1"], &[]), endpoint("b", POD, &["10.0.0.1"], &[])]);
        assert_eq!(taken.unwrap_err().to_string(), "b has the address 10.0.0.1, which a has already");
        let of_node = planned(vec![endpoint("a", POD, &["192.0.2.1"], &[])]);
        assert_eq!(of_node.unwrap_err().to_string(), "a has the address 192.0.2.1, which one has already");
        let of_fabric = planned(vec![endpoint("a", Place::External, &["192.0.0.8"], &[])]);
        assert_eq!(of_fabric.unwrap_err().to_string(), "a has the address 192.0.0.8, which the fabric has already");
        let nowhere = planned(vec![endpoint("a", Place::Pod { node: NodeIndex(1) }, &["10.0.0.1"], &[])]);
        let expected = "a is on node number 1, but there are only 1, numbered from 0";
        assert_eq!(nowhere.unwrap_err().to_string(), expected);
        for (name, bad) in [
            ("loopback", endpoint("a", POD, &["127.0.0.1"], &[])),
            ("link-local", endpoint("a", POD, &["fe80::1"], &[])),
            ("mapped", endpoint("a", POD, &["::ffff:10.0.0.1"], &[])),
            ("other family", endpoint("a", POD, &["2001:db8::1"], &[])),
            ("no address", endpoint("a", POD, &[], &[])),
            ("foreign host address", endpoint("a", HOST, &["10.0.0.1"], &[])),
            ("port 0", endpoint("a", POD, &["10.0.0.1"], &[(tcp, 0)])),
        ] {
            assert!(planned(vec![bad]).is_err(), "{name}");
        }
        // The fabric routes any family, so a host outside needs no node that speaks it.
        assert!(planned(vec![endpoint("a", Place::External, &["2001:db8::1"], &[])]).is_ok());
    }

    #[test]
    fn nodes_must_be_distinct_and_fit_their_overlay() {
        assert_eq!(plan(NetworkSpec::default()).unwrap_err(), PlanError::NoNodes);
        let with = |nodes| NetworkSpec { nodes, ..NetworkSpec::default() };
        assert_eq!(error(with(vec![node("one", &[])])), "one has no address");
        let twice = vec![node("one", &["192.0.2.1"]), node("two", &["192.0.2.1"])];
        assert_eq!(error(with(twice)), "two has the address 192.0.2.1, which one has already");
        let namesakes = vec![node("one", &["192.0.2.1"]), node("one", &["192.0.2.2"])];
        assert_eq!(error(with(namesakes)), "two nodes have the name one");
        let mixed = with(vec![node("one", &["192.0.2.1"]), node("two", &["2001:db8::2"])]);
        assert!(plan(mixed.clone()).is_ok());
        let overlay = NetworkSpec { pod_network: PodNetwork::Vxlan, ..mixed };
        assert_eq!(error(overlay), "a VXLAN needs nodes that have addresses of the same families, unlike one and two");
    }

    #[test]
    fn services_must_fit_the_network() {
        let backend = Backend { address: ip("10.0.0.1"), port: 80, node: NODE };
        let port = ServicePortSpec {
            name: None,
            protocol: Protocol::Tcp,
            port: 80,
            node_port: Some(30080),
            backends: vec![backend],
        };
        let service = |name: &str, address: &str, port: ServicePortSpec| ServiceSpec {
            name: name.to_owned(),
            cluster_ips: vec![ip(address)],
            ports: vec![port],
            ..ServiceSpec::default()
        };
        let with = |list: Vec<ServiceSpec>| NetworkSpec {
            nodes: vec![node("one", &["192.0.2.1"]), node("two", &["192.0.2.2"])],
            endpoints: vec![endpoint("a", POD, &["10.0.0.1"], &[])],
            services: Services { list, ..Services::default() },
            ..NetworkSpec::default()
        };
        let good = service("default/a", "10.96.0.1", port.clone());
        assert!(plan(with(vec![good.clone()])).is_ok());
        let error = |list| error(with(list));
        assert_eq!(
            error(vec![good.clone(), service("default/b", "10.96.0.2", port.clone())]),
            "the Service default/b wants the TCP node port 30080, which default/a has already"
        );
        assert_eq!(
            error(vec![service("default/a", "10.0.0.1", port.clone())]),
            "the Service default/a has the address 10.0.0.1, which a has already"
        );
        let elsewhere = ServicePortSpec { backends: vec![Backend { node: NodeIndex(1), ..backend }], ..port.clone() };
        assert_eq!(
            error(vec![service("default/a", "10.96.0.1", elsewhere)]),
            "the Service default/a has the backend 10.0.0.1 on two, but that address is on one"
        );
        let nowhere = ServicePortSpec { backends: vec![Backend { node: NodeIndex(2), ..backend }], ..port.clone() };
        let expected = "the backend 10.0.0.1 of default/a is on node number 2, but there are only 2, numbered from 0";
        assert_eq!(error(vec![service("default/a", "10.96.0.1", nowhere)]), expected);
        let foreign =
            ServicePortSpec { backends: vec![Backend { address: ip("2001:db8::1"), ..backend }], ..port.clone() };
        assert!(error(vec![service("default/a", "10.96.0.1", foreign)]).contains("no cluster IP of that family"));
        let zero = ServicePortSpec { port: 0, ..port.clone() };
        assert!(error(vec![service("default/a", "10.96.0.1", zero)]).contains("port 0"));
        let twice = ServiceSpec { ports: vec![port.clone(), ServicePortSpec { node_port: None, ..port }], ..good };
        assert_eq!(error(vec![twice]), "the Service default/a has TCP port 80 twice");
    }

    #[test]
    fn a_port_declared_twice_is_one_listener_and_the_host_network_is_shared() {
        let web = [(Protocol::Tcp, 80), (Protocol::Tcp, 80)];
        let plan = planned(vec![
            endpoint("pod", POD, &["10.0.0.1"], &web),
            endpoint("host-a", HOST, &[], &web),
            endpoint("host-b", HOST, &["192.0.2.1"], &web),
        ])
        .unwrap();
        assert_eq!(plan.open_ports.len(), 2);
        assert_eq!(plan.open_ports[&(ip("192.0.2.1"), Protocol::Tcp, 80)], EndpointIndex(1));
        let (first, second) = ("host-a".to_owned(), "host-b".to_owned());
        assert_eq!(plan.warnings, [Warning::PortTaken { protocol: Protocol::Tcp, port: 80, first, second }]);
    }
}
