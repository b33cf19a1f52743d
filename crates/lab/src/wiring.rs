//! The namespaces of a network, and the devices and routes that connect them.
//!
//! In the middle is the *fabric*, a router that every node and every host outside the cluster has a veth pair to. Pods
//! hang on their node, each by a veth pair, as [`PodNetwork`] says. Everybody else's default gateway exists nowhere but
//! in their neighbour table; routers have a route for each address by itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use ringfence_model::PodNetwork;

use crate::build_error::BuildError;
use crate::index::NodeIndex;
use crate::links::{self, Device, LO, Mac, Request, Route, RouteSocket};
use crate::namespace::{NetNs, set_sysctl};
use crate::spec::{EndpointSpec, NetworkSpec, NodeSpec, Place, Warning};

/// A gateway of either family.
type Gateways = [IpAddr; 2];

/// What pods send through: nobody's address or, where the node has a bridge, the bridge's.
const POD_GATEWAYS: Gateways =
    [IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)), IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1))];

/// What nodes and hosts outside send through.
const FABRIC_GATEWAYS: Gateways =
    [IpAddr::V4(Ipv4Addr::new(169, 254, 1, 2)), IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2))];

/// What ICMP errors of the fabric come from: the addresses meant for routers and hosts that have none of their own
/// (RFC 7600 and RFC 9780).
pub(crate) const FABRIC_ADDRESSES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 0, 8)), IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 1, 0, 0, 0, 8))];

/// The index of `eth0` in the namespace of a pod or a host outside.
const ETH0: u32 = 2;

/// Indexes of a node's devices, beyond any that the kernel makes by itself in a new namespace (tunnels). Those of the
/// devices that lead to endpoints follow each other, in the fabric as well.
const UPLINK: u32 = 900;
const BRIDGE: u32 = 901;
const VXLAN: u32 = 902;
const FIRST_ENDPOINT: u32 = 1000;

/// Indexes of the fabric's devices that lead to nodes start here.
const FIRST_NODE: u32 = 100_000;

const MTU: u32 = 1500;

/// What a VXLAN adds to a packet: an IPv4 or IPv6 header, UDP, its own, and an Ethernet header.
const VXLAN_OVER_V4: u32 = 20 + 8 + 8 + 14;
const VXLAN_OVER_V6: u32 = 40 + 8 + 8 + 14;

/// Settings of a router. Every ICMP error counts as an answer here, so none may be held back by a rate limit; and
/// nothing may wait for duplicate address detection or chatter about routers.
const ROUTER_SYSCTLS: &[(&str, &str)] = &[
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv4/icmp_ratemask", "0"),
    ("ipv6/conf/all/disable_ipv6", "0"),
    ("ipv6/conf/default/disable_ipv6", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/addr_gen_mode", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv6/icmp/ratemask", ""),
];

/// Settings of an endpoint, for the same reasons.
const ENDPOINT_SYSCTLS: &[(&str, &str)] = &[
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/icmp_ratemask", "0"),
    ("ipv6/conf/all/disable_ipv6", "0"),
    ("ipv6/conf/default/disable_ipv6", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/addr_gen_mode", "1"),
    ("ipv6/icmp/ratemask", ""),
];

/// A network whose namespaces are being connected.
pub(crate) struct Wiring<'a> {
    spec: &'a NetworkSpec,
    fabric: Site,
    nodes: Vec<WiredNode<'a>>,
    pod_mtu: u32,
    warnings: Vec<Warning>,
}

/// What is left of the wiring: the namespaces, those of the nodes in order.
pub(crate) struct Wired {
    pub(crate) fabric: NetNs,
    pub(crate) nodes: Vec<NetNs>,
    pub(crate) warnings: Vec<Warning>,
}

struct WiredNode<'a> {
    site: Site,
    sources: Sources<'a>,
    /// The ports of its bridge, if it has one.
    stations: Stations,
}

impl<'a> Wiring<'a> {
    /// Makes the fabric and the nodes, the first of them in the namespaces `given`, and connects them.
    pub(crate) fn new(spec: &'a NetworkSpec, given: Vec<NetNs>) -> Result<Wiring<'a>, BuildError> {
        let mut fabric = Site::create("the fabric", ROUTER_SYSCTLS)?;
        let own = in_use(spec, FABRIC_ADDRESSES).map(|address| links::add_address(LO, address));
        fabric.apply([links::set_up(LO)].into_iter().chain(own).collect())?;
        let over = if underlay_is_v4(spec) { VXLAN_OVER_V4 } else { VXLAN_OVER_V6 };
        let pod_mtu = if spec.pod_network == PodNetwork::Vxlan { MTU - over } else { MTU };
        let mut wiring =
            Wiring { spec, fabric, nodes: Vec::with_capacity(spec.nodes.len()), pod_mtu, warnings: Vec::new() };
        let mut given = given.into_iter();
        for (position, node) in spec.nodes.iter().enumerate() {
            let mut site = match given.next() {
                Some(namespace) => Site::open(&node.name, namespace, ROUTER_SYSCTLS)?,
                None => Site::create(&node.name, ROUTER_SYSCTLS)?,
            };
            let number = device_number(position);
            let near = Device {
                name: format!("node{position}"),
                index: fabric_device(NodeIndex(position)),
                mac: mac(Side::Fabric, number),
            };
            let far = Device { name: "eth0".to_owned(), index: UPLINK, mac: mac(Side::Uplink, number) };
            wiring.connect_to_fabric(&near, &mut site, &far, &node.addresses)?;
            let stations = Stations::of(spec, NodeIndex(position));
            wiring.nodes.push(WiredNode { site, sources: Sources(&node.addresses), stations });
        }
        if spec.pod_network != PodNetwork::Routed {
            wiring.make_bridges()?;
        }
        if spec.pod_network == PodNetwork::Vxlan {
            wiring.make_overlay()?;
        }
        wiring.route_pods()?;
        Ok(wiring)
    }

    /// Makes the namespace of the endpoint at a position and connects it. `None`: it lives in that of its node.
    pub(crate) fn endpoint(&mut self, position: usize, endpoint: &EndpointSpec) -> Result<Option<NetNs>, BuildError> {
        let number = device_number(position);
        let index = FIRST_ENDPOINT + u32::from(number);
        let near = Device { name: interface_name(position), index, mac: mac(Side::Router, number) };
        let far = Device { name: "eth0".to_owned(), index: ETH0, mac: mac(Side::Endpoint, number) };
        match endpoint.place {
            Place::HostNetwork { .. } => Ok(None),
            Place::External => {
                let mut host = Site::create(&endpoint.name, ENDPOINT_SYSCTLS)?;
                self.connect_to_fabric(&near, &mut host, &far, &endpoint.addresses)?;
                Ok(Some(host.namespace))
            }
            Place::Pod { node } => {
                let mut pod = Site::create(&endpoint.name, ENDPOINT_SYSCTLS)?;
                // The planner admits no node that there is not.
                if let Some(node) = self.nodes.get_mut(node.0) {
                    connect_pod(node, &near, &mut pod, &far, &endpoint.addresses, self.pod_mtu)?;
                }
                Ok(Some(pod.namespace))
            }
        }
    }

    pub(crate) fn finish(self) -> Wired {
        let nodes = self.nodes.into_iter().map(|node| node.site.namespace).collect();
        Wired { fabric: self.fabric.namespace, nodes, warnings: self.warnings }
    }

    fn connect_to_fabric(
        &mut self,
        near: &Device,
        site: &mut Site,
        far: &Device,
        addresses: &[IpAddr],
    ) -> Result<(), BuildError> {
        let alias = links::set_alias(near.index, &site.name);
        site.blame(self.fabric.socket.apply(vec![links::create_veth(near, far, &site.namespace, MTU), alias]))?;
        site.settle(far.index, addresses, FABRIC_GATEWAYS, near.mac, Vec::new())?;
        let routes = lead(near.index, far.mac, addresses, Sources(&FABRIC_ADDRESSES));
        site.blame(self.fabric.socket.apply(routes))
    }

    fn make_bridges(&mut self) -> Result<(), BuildError> {
        let filter = if self.spec.bypass_bridge_filter { "0" } else { "1" };
        for (position, node) in self.nodes.iter_mut().enumerate() {
            let bridge = Device { name: BRIDGE_NAME.to_owned(), index: BRIDGE, mac: bridge_mac(position) };
            let addresses = in_use(self.spec, POD_GATEWAYS).map(|address| links::add_link_address(BRIDGE, address));
            node.site.apply([links::create_bridge(&bridge, self.pod_mtu)].into_iter().chain(addresses).collect())?;
            if !node.site.filter_bridge(filter)? && !self.spec.bypass_bridge_filter {
                self.warnings.push(Warning::NoBridgeFilter { node: node.site.name.clone() });
            }
        }
        Ok(())
    }

    /// Makes a VXLAN device on each node. Each knows behind which tunnel end each other's Ethernet address is, and the
    /// pods of a node are routed to its address on the device.
    fn make_overlay(&mut self) -> Result<(), BuildError> {
        let underlay_is_v4 = underlay_is_v4(self.spec);
        let end = |node: &NodeSpec| node.addresses.iter().copied().find(|address| address.is_ipv4() == underlay_is_v4);
        for (position, node) in self.nodes.iter_mut().enumerate() {
            let Some(local) = self.spec.nodes.get(position).and_then(end) else { continue };
            let vxlan =
                Device { name: "vxlan0".to_owned(), index: VXLAN, mac: mac(Side::Tunnel, device_number(position)) };
            let mut requests = vec![links::create_vxlan(&vxlan, self.pod_mtu, local)];
            let Some(spec) = self.spec.nodes.get(position) else { continue };
            requests.extend(spec.tunnel_addresses.iter().map(|&address| links::add_address(VXLAN, address)));
            let own = Sources(&spec.tunnel_addresses);
            let peers = self.spec.nodes.iter().enumerate();
            for (number, other) in peers.filter(|(number, other)| *number != position && other.cluster == spec.cluster)
            {
                let other_mac = mac(Side::Tunnel, device_number(number));
                requests.extend(end(other).map(|end| links::add_tunnel(VXLAN, other_mac, end)));
                let gateways = Sources(&other.addresses);
                requests.extend(gateways.all().map(|gateway| links::add_neighbour(VXLAN, gateway, other_mac)));
                let behind = pod_addresses(self.spec, NodeIndex(number)).chain(other.tunnel_addresses.iter().copied());
                for address in behind {
                    let source = own.towards(address).or_else(|| node.sources.towards(address));
                    let gateway = gateways.towards(address);
                    requests.push(links::add_route(Route { to: address.into(), device: VXLAN, gateway, source }));
                }
            }
            node.site.apply(requests)?;
        }
        Ok(())
    }

    /// Tells the fabric the way to the pods: their node, or the first one if the nodes have a network of their own.
    fn route_pods(&mut self) -> Result<(), BuildError> {
        let mut requests = Vec::new();
        for (number, node) in self.spec.nodes.iter().enumerate() {
            let gate = self.spec.gate(node.cluster);
            let border = if self.spec.pod_network == PodNetwork::Vxlan { gate } else { NodeIndex(number) };
            let Some(border_node) = self.spec.nodes.get(border.0) else { continue };
            // A Service's address is known to nobody else while there is one cluster.
            let services = self.spec.services.list.iter().filter(|service| service.cluster == node.cluster);
            let services = services.filter(|_| gate == NodeIndex(number) && self.spec.has_several_clusters());
            let services = services.flat_map(|service| service.cluster_ips.iter().copied());
            for address in pod_addresses(self.spec, NodeIndex(number)).chain(services) {
                let gateway = Sources(&border_node.addresses).towards(address);
                let source = Sources(&FABRIC_ADDRESSES).towards(address);
                let device = fabric_device(border);
                requests.push(links::add_route(Route { to: address.into(), device, gateway, source }));
            }
        }
        self.fabric.apply(requests)
    }
}

/// The name of a node's bridge.
pub(crate) const BRIDGE_NAME: &str = "cni0";

/// What the names of the devices that lead to endpoints begin with.
pub(crate) const INTERFACE_PREFIX: &str = "rf";

/// The router's end of the veth pair of the endpoint at a position.
pub(crate) fn interface_name(position: usize) -> String {
    format!("{INTERFACE_PREFIX}{position}")
}

/// The addresses of the pods on a node.
pub(crate) fn pod_addresses(spec: &NetworkSpec, node: NodeIndex) -> impl Iterator<Item = IpAddr> {
    let pods = spec.endpoints.iter().filter(move |endpoint| endpoint.place == Place::Pod { node });
    pods.flat_map(|pod| pod.addresses.iter().copied())
}

/// Connects a pod to its node, and if that has a bridge, to the other pods on it.
fn connect_pod(
    node: &mut WiredNode<'_>,
    near: &Device,
    pod: &mut Site,
    far: &Device,
    addresses: &[IpAddr],
    mtu: u32,
) -> Result<(), BuildError> {
    let mut requests =
        vec![links::create_veth(near, far, &pod.namespace, mtu), links::set_alias(near.index, &pod.name)];
    match &node.stations.bridge {
        None => {
            pod.blame(node.site.socket.apply(requests))?;
            pod.settle(far.index, addresses, POD_GATEWAYS, near.mac, Vec::new())?;
            let routes = lead(near.index, far.mac, addresses, node.sources);
            pod.blame(node.site.socket.apply(routes))
        }
        Some(bridge) => {
            requests.extend(links::make_port(near.index, BRIDGE));
            requests.push(links::add_station(near.index, far.mac));
            requests.extend(lead(BRIDGE, far.mac, addresses, node.sources));
            pod.blame(node.site.socket.apply(requests))?;
            pod.settle(far.index, addresses, POD_GATEWAYS, *bridge, node.stations.seen_from(addresses))
        }
    }
}

/// Neighbours and routes to addresses that one Ethernet address behind a device has.
fn lead(device: u32, mac: Mac, addresses: &[IpAddr], sources: Sources<'_>) -> Vec<Request> {
    let each = addresses.iter().flat_map(|&address| {
        let source = sources.towards(address);
        let route = Route { to: address.into(), device, gateway: None, source };
        [links::add_neighbour(device, address, mac), links::add_route(route)]
    });
    each.collect()
}

/// The ports of one bridge.
struct Stations {
    /// The bridge's own Ethernet address. `None`: there is no bridge.
    bridge: Option<Mac>,
    /// The addresses of the pods behind the ports.
    pods: Vec<(IpAddr, Mac)>,
    /// The same addresses and no others, in as few networks as possible.
    networks: Vec<IpNet>,
}

impl Stations {
    fn of(spec: &NetworkSpec, node: NodeIndex) -> Stations {
        if spec.pod_network == PodNetwork::Routed {
            return Stations { bridge: None, pods: Vec::new(), networks: Vec::new() };
        }
        let on_node = spec.endpoints.iter().enumerate().filter(|(_, endpoint)| endpoint.place == Place::Pod { node });
        let pods: Vec<(IpAddr, Mac)> = on_node
            .flat_map(|(position, pod)| {
                let mac = mac(Side::Endpoint, device_number(position));
                pod.addresses.iter().map(move |&address| (address, mac))
            })
            .collect();
        let networks = IpNet::aggregate(&pods.iter().map(|&(address, _)| address.into()).collect());
        Stations { bridge: Some(bridge_mac(node.0)), pods, networks }
    }

    /// What a pod with these addresses has to know to reach all others on the bridge.
    fn seen_from(&self, addresses: &[IpAddr]) -> Vec<Request> {
        let speaks = |address: IpAddr| addresses.iter().any(|own| own.is_ipv4() == address.is_ipv4());
        let others = self.pods.iter().filter(|(address, _)| speaks(*address) && !addresses.contains(address));
        let neighbours = others.map(|&(address, mac)| links::add_neighbour(ETH0, address, mac));
        let networks = self.networks.iter().filter(|network| speaks(network.addr()));
        let routes = networks.map(|&to| links::add_route(Route { to, device: ETH0, gateway: None, source: None }));
        neighbours.chain(routes).collect()
    }
}

/// The addresses that packets to or through somebody can be given, of which the first of a family is taken.
#[derive(Clone, Copy)]
struct Sources<'a>(&'a [IpAddr]);

impl Sources<'_> {
    fn towards(self, address: IpAddr) -> Option<IpAddr> {
        self.0.iter().copied().find(|own| own.is_ipv4() == address.is_ipv4())
    }

    /// The first of each family.
    fn all(self) -> impl Iterator<Item = IpAddr> {
        let families: [fn(&IpAddr) -> bool; 2] = [IpAddr::is_ipv4, IpAddr::is_ipv6];
        families.into_iter().filter_map(move |family| self.0.iter().copied().find(family))
    }
}

/// A namespace, and a route socket of it.
struct Site {
    /// For errors.
    name: String,
    namespace: NetNs,
    socket: RouteSocket,
}

impl Site {
    fn create(name: &str, settings: &[(&str, &str)]) -> Result<Site, BuildError> {
        let namespace = NetNs::create().map_err(|source| BuildError::Namespace { of: name.to_owned(), source })?;
        Site::open(name, namespace, settings)
    }

    fn open(name: &str, namespace: NetNs, settings: &[(&str, &str)]) -> Result<Site, BuildError> {
        let failed = |source| BuildError::Namespace { of: name.to_owned(), source };
        let opened = namespace.within(|| {
            settings.iter().try_for_each(|(setting, value)| set(setting, value, name))?;
            RouteSocket::open().map_err(failed)
        });
        let socket = opened.map_err(failed)??;
        Ok(Site { name: name.to_owned(), namespace, socket })
    }

    fn apply(&mut self, requests: Vec<Request>) -> Result<(), BuildError> {
        let applied = self.socket.apply(requests);
        self.blame(applied)
    }

    /// Says that something failed on behalf of this site.
    fn blame(&self, result: Result<(), links::LinkError>) -> Result<(), BuildError> {
        result.map_err(|source| BuildError::Link { of: self.name.clone(), source })
    }

    /// Gives the site its addresses and its default routes. `more` comes after the addresses.
    fn settle(
        &mut self,
        device: u32,
        addresses: &[IpAddr],
        gateways: Gateways,
        gateway_mac: Mac,
        more: Vec<Request>,
    ) -> Result<(), BuildError> {
        let mut requests = vec![links::set_up(LO), links::set_up(device)];
        requests.extend(addresses.iter().map(|&address| links::add_address(device, address)));
        for gateway in gateways {
            if let Some(source) = Sources(addresses).towards(gateway) {
                let (to, source) = (everything_like(gateway), Some(source));
                requests.push(links::add_neighbour(device, gateway, gateway_mac));
                requests.push(links::add_route(Route { to, device, gateway: Some(gateway), source }));
            }
        }
        requests.extend(more);
        self.apply(requests)
    }

    /// Decides whether bridged packets are shown to the packet filter. `false`: this kernel cannot.
    fn filter_bridge(&self, value: &str) -> Result<bool, BuildError> {
        let failed = |source| BuildError::Namespace { of: self.name.clone(), source };
        let settings = ["bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables"];
        let set = || settings.iter().try_for_each(|setting| set_sysctl(setting, value));
        match self.namespace.within(set).map_err(failed)? {
            Ok(()) => Ok(true),
            Err(error) if error.is_absent() => Ok(false),
            Err(source) => Err(BuildError::Sysctl { of: self.name.clone(), source }),
        }
    }
}

fn set(setting: &str, value: &str, of: &str) -> Result<(), BuildError> {
    match set_sysctl(setting, value) {
        // A kernel without IPv6 has none of its settings, and will say so itself if an IPv6 address is asked for.
        Err(error) if error.is_absent() && setting.starts_with("ipv6/") => Ok(()),
        other => other.map_err(|source| BuildError::Sysctl { of: of.to_owned(), source }),
    }
}

/// Those of the addresses whose family a node or an endpoint speaks: a kernel may have no other.
fn in_use(spec: &NetworkSpec, addresses: [IpAddr; 2]) -> impl Iterator<Item = IpAddr> {
    let of_nodes = spec.nodes.iter().flat_map(|node| &node.addresses);
    let all: Vec<&IpAddr> = of_nodes.chain(spec.endpoints.iter().flat_map(|endpoint| &endpoint.addresses)).collect();
    addresses.into_iter().filter(move |address| all.iter().any(|used| used.is_ipv4() == address.is_ipv4()))
}

fn everything_like(address: IpAddr) -> IpNet {
    if address.is_ipv4() { Ipv4Net::default().into() } else { Ipv6Net::default().into() }
}

/// Whether the tunnels of a VXLAN run over IPv4. The planner has made sure that the nodes have the same families.
fn underlay_is_v4(spec: &NetworkSpec) -> bool {
    spec.nodes.first().is_some_and(|node| node.addresses.iter().any(IpAddr::is_ipv4))
}

/// The planner admits no more nodes and endpoints than there are numbers.
fn device_number(position: usize) -> u16 {
    u16::try_from(position).unwrap_or(u16::MAX)
}

fn fabric_device(node: NodeIndex) -> u32 {
    FIRST_NODE + u32::from(device_number(node.0))
}

fn bridge_mac(node: usize) -> Mac {
    mac(Side::Bridge, device_number(node))
}

/// Whose an Ethernet address is.
#[derive(Clone, Copy)]
enum Side {
    /// The router's end of an endpoint's veth pair.
    Router = 1,
    /// The endpoint's end.
    Endpoint = 2,
    /// The node's end of the veth pair to the fabric.
    Uplink = 3,
    /// The fabric's end.
    Fabric = 4,
    Bridge = 5,
    Tunnel = 6,
}

/// A locally administered unicast address that says what it belongs to: 02:"RF":side:number.
fn mac(side: Side, number: u16) -> Mac {
    let [high, low] = number.to_be_bytes();
    [0x02, b'R', b'F', side as u8, high, low]
}
