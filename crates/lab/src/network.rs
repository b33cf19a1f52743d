//! A node and its endpoints as network namespaces, wired and routed.
//!
//! Every endpoint that is not the node itself (a pod, or a host outside the cluster) has a namespace with one device,
//! `eth0`, whose other end is in the node's namespace. Pods know two addresses of the network only: their own and that
//! of a gateway which exists nowhere but in their neighbour table. The node routes each address by itself.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Mutex;

use ringfence_model::Protocol;
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::links::{self, LO, LinkError, Mac, RouteSocket, VethEnd};
use crate::namespace::{NetNs, SysctlError, set_sysctl};
use crate::spec::{NetworkSpec, Plan, PlanError, Warning, plan};

/// What pods send through. No device has these addresses; pods have permanent neighbour entries for them.
const GATEWAY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));
const GATEWAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));

/// The index of `eth0` in every endpoint's namespace.
const ETH0: u32 = 2;

/// Indexes of the node's devices start here, beyond any that the kernel makes by itself in a new namespace (tunnels).
const FIRST_INDEX: u32 = 1000;

/// Probes under way at most, whatever the file limit allows: enough to keep the CPUs busy, few enough that none times
/// out for want of CPU.
const MOST_PROBES: u64 = 512;

/// An endpoint by its position in [`NetworkSpec::endpoints`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointIndex(pub usize);

/// Why a network could not be built. The endpoints made until then are gone again; the node keeps what it was given.
#[derive(Debug, Error)]
pub enum BuildError {
    /// The description contradicts itself.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// No namespace for an endpoint.
    #[error(
        "cannot make the network namespace of {endpoint}: {source}; if that is ENOSPC, raise user.max_net_namespaces, if \
         it is EMFILE, the limit of open files (ulimit -n)"
    )]
    Namespace {
        /// The endpoint's name, or "the node".
        endpoint: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A kernel setting of a namespace.
    #[error("cannot configure {endpoint}: {source}")]
    Sysctl {
        /// The endpoint's name, or "the node".
        endpoint: String,
        /// Which setting and why.
        source: SysctlError,
    },
    /// A device, address or route.
    #[error("cannot wire {endpoint}: {source}")]
    Link {
        /// The endpoint's name, or "the node".
        endpoint: String,
        /// Which request and why.
        source: LinkError,
    },
}

/// One endpoint as built.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) name: String,
    /// As in the description; for an endpoint in the host network the node's, if it named none.
    pub(crate) addresses: Vec<IpAddr>,
    /// `None` is the node's.
    pub(crate) namespace: Option<NetNs>,
}

/// A node, its endpoints, and the listeners in them. Dropping it ends them all.
#[derive(Debug)]
pub struct Network {
    pub(crate) node: NetNs,
    pub(crate) node_addresses: Vec<IpAddr>,
    pub(crate) endpoints: Vec<Endpoint>,
    /// Who answers at each address, protocol and port.
    pub(crate) services: BTreeMap<(IpAddr, Protocol, u16), EndpointIndex>,
    pub(crate) listeners: Mutex<JoinSet<()>>,
    pub(crate) probes: Semaphore,
    warnings: Vec<Warning>,
}

impl Network {
    /// Builds the network around the calling thread's own network namespace, which after [`enter`](fn@crate::enter) is the
    /// process's, so that whatever the process does to "the host" (packet filters, sockets) it does to the node.
    ///
    /// `progress` is called with how many endpoints are done and how many there are.
    pub fn build(spec: NetworkSpec, progress: &mut dyn FnMut(usize, usize)) -> Result<Network, BuildError> {
        let node = NetNs::current().map_err(|source| BuildError::Namespace { endpoint: the_node(), source })?;
        Network::build_around(node, spec, progress)
    }

    /// Builds the network around `node`, an empty namespace such as [`NetNs::create`] makes.
    pub fn build_around(
        node: NetNs,
        spec: NetworkSpec,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Network, BuildError> {
        let Plan { node_addresses, endpoints: planned, services, warnings } = plan(spec)?;
        let mut node_socket = configure(&node, &the_node(), |socket| {
            for (name, value) in NODE_SYSCTLS {
                set(name, value, &the_node())?;
            }
            let mut requests = vec![links::set_up(LO)];
            requests.extend(node_addresses.iter().map(|&address| links::add_address(LO, address)));
            socket.apply(requests).map_err(|source| BuildError::Link { endpoint: the_node(), source })
        })?;
        let total = planned.len();
        let mut endpoints = Vec::with_capacity(total);
        progress(0, total);
        for (position, endpoint) in planned.into_iter().enumerate() {
            let namespace = if endpoint.host_network {
                None
            } else {
                let sources = Sources::of(&node_addresses);
                Some(wire(position, &endpoint.name, &endpoint.addresses, &sources, &mut node_socket)?)
            };
            endpoints.push(Endpoint { name: endpoint.name, addresses: endpoint.addresses, namespace });
            progress(position + 1, total);
        }
        let probes = Semaphore::new(probes_at_once(endpoints.len(), services.len()));
        let listeners = Mutex::new(JoinSet::new());
        Ok(Network { node, node_addresses, endpoints, services, listeners, probes, warnings })
    }

    /// The node's namespace.
    pub fn node(&self) -> &NetNs {
        &self.node
    }

    /// The namespace an endpoint is in, which for one in the host network is the node's. `None`: no such endpoint.
    pub fn namespace(&self, endpoint: EndpointIndex) -> Option<&NetNs> {
        Some(self.endpoints.get(endpoint.0)?.namespace.as_ref().unwrap_or(&self.node))
    }

    /// The name of the node's device that leads to an endpoint. `None`: no such endpoint, or it is in the host network.
    pub fn interface(&self, endpoint: EndpointIndex) -> Option<String> {
        self.endpoints.get(endpoint.0)?.namespace.as_ref().map(|_| interface_name(endpoint.0))
    }

    /// What could not be done as described, but does not stop the rest.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }
}

/// The addresses the node's own packets come from.
struct Sources {
    v4: Option<IpAddr>,
    v6: Option<IpAddr>,
}

impl Sources {
    fn of(node_addresses: &[IpAddr]) -> Sources {
        let first = |wanted: fn(&IpAddr) -> bool| node_addresses.iter().copied().find(wanted);
        Sources { v4: first(IpAddr::is_ipv4), v6: first(IpAddr::is_ipv6) }
    }

    fn towards(&self, address: IpAddr) -> Option<IpAddr> {
        if address.is_ipv4() { self.v4 } else { self.v6 }
    }
}

/// Settings of the node. Every ICMP error counts as an answer here, so none may be held back by a rate limit; and
/// nothing may wait for duplicate address detection or chatter about routers.
const NODE_SYSCTLS: &[(&str, &str)] = &[
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
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

/// Makes an endpoint's namespace and connects it to the node.
fn wire(
    position: usize,
    name: &str,
    addresses: &[IpAddr],
    sources: &Sources,
    node_socket: &mut RouteSocket,
) -> Result<NetNs, BuildError> {
    let link = |source| BuildError::Link { endpoint: name.to_owned(), source };
    let namespace = NetNs::create().map_err(|source| BuildError::Namespace { endpoint: name.to_owned(), source })?;
    let mut own_socket = configure(&namespace, name, |_| {
        ENDPOINT_SYSCTLS.iter().try_for_each(|(setting, value)| set(setting, value, name))
    })?;

    // The planner admits no more endpoints than there are numbers.
    let number = u16::try_from(position).unwrap_or(u16::MAX);
    let near = VethEnd {
        name: interface_name(position),
        index: FIRST_INDEX + u32::from(number),
        mac: mac(Side::Node, number),
    };
    let far = VethEnd { name: "eth0".to_owned(), index: ETH0, mac: mac(Side::Endpoint, number) };
    node_socket
        .apply(vec![links::create_veth(&near, &far, &namespace), links::set_alias(near.index, name)])
        .map_err(link)?;

    let mut requests = vec![links::set_up(LO), links::set_up(ETH0)];
    requests.extend(addresses.iter().map(|&address| links::add_address(ETH0, address)));
    for (gateway, wanted) in
        [(GATEWAY_V4, addresses.iter().any(IpAddr::is_ipv4)), (GATEWAY_V6, addresses.iter().any(IpAddr::is_ipv6))]
    {
        if wanted {
            requests.push(links::add_neighbour(ETH0, gateway, near.mac));
            requests.push(links::add_default_route(ETH0, gateway));
        }
    }
    own_socket.apply(requests).map_err(link)?;

    let mut requests = Vec::with_capacity(2 * addresses.len());
    for &address in addresses {
        requests.push(links::add_neighbour(near.index, address, far.mac));
        // The planner has made sure that the node has an address of every family in use.
        if let Some(source) = sources.towards(address) {
            requests.push(links::add_host_route(near.index, address, source));
        }
    }
    node_socket.apply(requests).map_err(link)?;
    Ok(namespace)
}

/// Runs `inside` in a namespace, with a route socket of it that outlives the visit.
fn configure(
    namespace: &NetNs,
    name: &str,
    inside: impl FnOnce(&mut RouteSocket) -> Result<(), BuildError>,
) -> Result<RouteSocket, BuildError> {
    let failed = |source| BuildError::Namespace { endpoint: name.to_owned(), source };
    namespace
        .within(|| {
            let mut socket = RouteSocket::open().map_err(failed)?;
            inside(&mut socket)?;
            Ok(socket)
        })
        .map_err(failed)?
}

fn set(setting: &str, value: &str, endpoint: &str) -> Result<(), BuildError> {
    match set_sysctl(setting, value) {
        // A kernel without IPv6 has none of its settings, and will say so itself if an IPv6 address is asked for.
        Err(error) if error.is_absent() && setting.starts_with("ipv6/") => Ok(()),
        other => other.map_err(|source| BuildError::Sysctl { endpoint: endpoint.to_owned(), source }),
    }
}

fn the_node() -> String {
    "the node".to_owned()
}

fn interface_name(position: usize) -> String {
    format!("rf{position}")
}

#[derive(Clone, Copy)]
enum Side {
    Node,
    Endpoint,
}

/// A locally administered unicast address that says what it belongs to: 02:"RF":side:number.
fn mac(side: Side, number: u16) -> Mac {
    let [high, low] = number.to_be_bytes();
    let side = match side {
        Side::Node => 1,
        Side::Endpoint => 2,
    };
    [0x02, b'R', b'F', side, high, low]
}

/// A probe has one file open here and, over TCP, one at the listener. Half of what the network itself leaves free is
/// kept for the rest of the process.
fn probes_at_once(endpoints: usize, services: usize) -> usize {
    let limit =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    let own = 64 + 4 * endpoints as u64 + services as u64;
    let allowed = (limit.saturating_sub(own) / 4).clamp(8, MOST_PROBES);
    usize::try_from(allowed).unwrap_or(8)
}
