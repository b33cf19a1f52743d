//! Manifests say little about where things are. This gives every pod the node and the addresses it needs to exist, and every
//! Service the address and ports it needs to be reached.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use ringfence_model::{ExternalHost, Family, Node, Object, Phase, Pod, Protocol, Service, ServiceKind};

/// Where pods without an address get one when neither the options nor their node say so.
const DEFAULT_POD_CIDR: &str = "10.244.0.0/16";
/// Where nodes without an address get one: the documentation ranges, so that no policy means them by accident.
const NODE_CIDRS: [&str; 2] = ["192.0.2.0/24", "2001:db8:ffff::/64"];
/// Where Services without an address get one.
const SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];
/// Where ends of tunnels get addresses of a family in which their node's pods get none.
const TUNNEL_CIDRS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/64"];
/// Where Services with a port on every node get one that names none.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// How [`place`] fills the gaps.
#[derive(Clone, Debug, Default)]
pub struct PlacementOptions {
    /// Ranges for pods without an address, one of each family wanted. Empty: the node's `podCIDRs`, or 10.244.0.0/16.
    pub pod_cidrs: Vec<IpNet>,
    /// Have exactly this many nodes, at least one. `None`: the nodes of the input. Pods keep their node while it is one of
    /// them; the others are dealt out in turn.
    pub nodes: Option<usize>,
    /// Pods of different nodes talk through tunnels: give every node an address of each family for its end of them.
    pub tunnels: bool,
}

/// What [`place`] did that a user may want to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placed {
    /// Sentences for people.
    pub notes: Vec<String>,
}

/// Why pods could not be placed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// Two ends with one address: no packet could tell them apart.
    #[error("{first} and {second} both have the address {address}: give one of them another (or none, to get one)")]
    AddressTaken {
        /// The address.
        address: IpAddr,
        /// Who has it first.
        first: String,
        /// Who has it too.
        second: String,
    },
    /// A range without free addresses.
    #[error("the range {cidr} has no address left for {wanted_for}: choose a larger one")]
    RangeFull {
        /// The range.
        cidr: IpNet,
        /// Who came too late.
        wanted_for: String,
    },
}

/// Gives every live pod a node and addresses, every node and Service addresses; drops finished pods. Deterministic: the same
/// objects get the same addresses, in the order of their names.
///
/// # Errors
/// See [`PlacementError`].
pub fn place(
    objects: &mut Vec<Object>,
    externals: &[ExternalHost],
    options: &PlacementOptions,
) -> Result<Placed, PlacementError> {
    let mut placed = Placed::default();
    let finished = objects.len();
    objects.retain(|object| !matches!(object, Object::Pod(pod) if pod.phase == Phase::Finished));
    if objects.len() < finished {
        placed.notes.push(format!("left out: {} finished", count(finished - objects.len(), "pod")));
    }
    let mut pods: Vec<Pod> = Vec::new();
    let mut nodes: BTreeMap<Arc<str>, Node> = BTreeMap::new();
    for object in std::mem::take(objects) {
        match object {
            Object::Pod(pod) => pods.push(pod),
            Object::Node(node) => {
                nodes.insert(node.name.clone(), node);
            }
            other => objects.push(other),
        }
    }
    pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    assign_nodes(&mut pods, &mut nodes, options, &mut placed);
    learn_node_addresses(&pods, &mut nodes);

    let mut taken = Taken::default();
    for external in externals {
        taken.claim(&external.addresses, &format!("external host {}", external.name))?;
    }
    for node in nodes.values() {
        taken.claim(&node.addresses, &format!("node {}", node.name))?;
    }
    for pod in pods.iter().filter(|pod| !pod.host_network) {
        taken.claim(&pod.addresses, &format!("pod {pod}"))?;
    }
    for pod in pods.iter_mut().filter(|pod| pod.addresses.is_empty() && !pod.host_network) {
        for cidr in pod_cidrs(pod.node.as_ref().and_then(|node| nodes.get(node)), options) {
            pod.addresses.push(taken.allocate(cidr, &format!("pod {pod}"))?);
        }
    }
    address_nodes(&mut nodes, &pods, externals, &mut taken)?;
    address_services(objects, &pods, &mut taken)?;
    if options.tunnels {
        address_tunnels(&mut nodes, options, &mut taken)?;
    }
    for pod in pods.iter_mut().filter(|pod| pod.host_network) {
        if let Some(node) = pod.node.as_ref().and_then(|node| nodes.get(node)) {
            pod.addresses.clone_from(&node.addresses);
        }
    }
    objects.extend(nodes.into_values().map(Object::Node));
    objects.extend(pods.into_iter().map(Object::Pod));
    Ok(placed)
}

fn assign_nodes(
    pods: &mut [Pod],
    nodes: &mut BTreeMap<Arc<str>, Node>,
    options: &PlacementOptions,
    placed: &mut Placed,
) {
    for name in pods.iter().filter_map(|pod| pod.node.clone()) {
        nodes.entry(name.clone()).or_insert_with(|| node_named(name));
    }
    let given = nodes.len();
    let wanted = options.nodes.unwrap_or(given).max(1);
    let mut number = 1;
    while nodes.len() < wanted {
        let name: Arc<str> = format!("node-{number}").into();
        nodes.entry(name.clone()).or_insert_with(|| node_named(name));
        number += 1;
    }
    if given > wanted {
        let kept: BTreeSet<Arc<str>> = nodes.keys().take(wanted).cloned().collect();
        nodes.retain(|name, _| kept.contains(name));
        placed.notes.push(format!("pods of {given} nodes run on {wanted}"));
    }
    let names: Vec<Arc<str>> = nodes.keys().cloned().collect();
    let mut turns = names.iter().cycle();
    for pod in pods {
        if pod.node.as_ref().is_some_and(|node| nodes.contains_key(node)) {
            continue;
        }
        pod.node = turns.next().cloned();
    }
}

/// A pod on its node's network has the node's addresses. Where the input does not have the node, they tell.
fn learn_node_addresses(pods: &[Pod], nodes: &mut BTreeMap<Arc<str>, Node>) {
    let unknown: BTreeSet<Arc<str>> =
        nodes.values().filter(|node| node.addresses.is_empty()).map(|node| node.name.clone()).collect();
    for pod in pods.iter().filter(|pod| pod.host_network) {
        let node = pod.node.as_ref().filter(|node| unknown.contains(*node)).and_then(|node| nodes.get_mut(node));
        let Some(node) = node else { continue };
        for address in &pod.addresses {
            if !node.addresses.contains(address) {
                node.addresses.push(*address);
            }
        }
    }
}

fn count(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

fn node_named(name: Arc<str>) -> Node {
    Node { name, addresses: Vec::new(), tunnel_addresses: Vec::new(), announced: None, pod_cidrs: Vec::new() }
}

/// Where pods of a node get their addresses from.
fn pod_cidrs(node: Option<&Node>, options: &PlacementOptions) -> Vec<IpNet> {
    if !options.pod_cidrs.is_empty() {
        return options.pod_cidrs.clone();
    }
    match node {
        Some(node) if !node.pod_cidrs.is_empty() => node.pod_cidrs.clone(),
        _ => DEFAULT_POD_CIDR.parse().into_iter().collect(),
    }
}

/// A node needs an address of every family that is spoken in the cluster.
fn address_nodes(
    nodes: &mut BTreeMap<Arc<str>, Node>,
    pods: &[Pod],
    externals: &[ExternalHost],
    taken: &mut Taken,
) -> Result<(), PlacementError> {
    let pods = pods.iter().flat_map(|pod| &pod.addresses);
    let mut spoken: BTreeSet<Family> =
        pods.chain(externals.iter().flat_map(|e| &e.addresses)).map(|a| Family::of(*a)).collect();
    if spoken.is_empty() {
        spoken.insert(Family::V4);
    }
    for node in nodes.values_mut() {
        let has: BTreeSet<Family> = node.addresses.iter().map(|a| Family::of(*a)).collect();
        for cidr in NODE_CIDRS.iter().filter_map(|cidr| cidr.parse::<IpNet>().ok()) {
            let family = Family::of(cidr.addr());
            if spoken.contains(&family) && !has.contains(&family) {
                node.addresses.push(taken.allocate(cidr, &format!("node {}", node.name))?);
            }
        }
    }
    Ok(())
}

/// Tunnels end in the pod network, as those of common network plugins do.
fn address_tunnels(
    nodes: &mut BTreeMap<Arc<str>, Node>,
    options: &PlacementOptions,
    taken: &mut Taken,
) -> Result<(), PlacementError> {
    for node in nodes.values() {
        taken.claim(&node.tunnel_addresses, &format!("the tunnel of node {}", node.name))?;
    }
    for node in nodes.values_mut() {
        let families = |addresses: &[IpAddr]| addresses.iter().map(|a| Family::of(*a)).collect::<BTreeSet<_>>();
        let ranges = pod_cidrs(Some(node), options).into_iter();
        let ranges: Vec<IpNet> = ranges.chain(TUNNEL_CIDRS.iter().filter_map(|cidr| cidr.parse().ok())).collect();
        let has = families(&node.tunnel_addresses);
        for family in families(&node.addresses).difference(&has) {
            let range = ranges.iter().find(|range| Family::of(range.addr()) == *family);
            let Some(range) = range else { continue };
            let address = taken.allocate(*range, &format!("the tunnel of node {}", node.name))?;
            node.tunnel_addresses.push(address);
        }
    }
    Ok(())
}

/// A Service needs an address of every family that pods speak, and if it is open to the outside, ports on the nodes.
fn address_services(objects: &mut [Object], pods: &[Pod], taken: &mut Taken) -> Result<(), PlacementError> {
    let spoken: BTreeSet<Family> = pods.iter().flat_map(|pod| &pod.addresses).map(|a| Family::of(*a)).collect();
    let mut services: Vec<&mut Service> = objects
        .iter_mut()
        .filter_map(|object| match object {
            Object::Service(service) if service.kind != ServiceKind::Headless => Some(service),
            _ => None,
        })
        .collect();
    services.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    for service in &services {
        taken.claim(&service.cluster_addresses, &format!("Service {}/{}", service.namespace, service.name))?;
    }
    let mut node_ports: BTreeSet<(Protocol, u16)> = services
        .iter()
        .flat_map(|service| &service.ports)
        .filter_map(|port| Some((port.protocol, port.node_port?)))
        .collect();
    for service in services {
        if service.cluster_addresses.is_empty() {
            for cidr in SERVICE_CIDRS.iter().filter_map(|cidr| cidr.parse::<IpNet>().ok()) {
                if spoken.contains(&Family::of(cidr.addr())) {
                    let wanted_for = format!("Service {}/{}", service.namespace, service.name);
                    service.cluster_addresses.push(taken.allocate(cidr, &wanted_for)?);
                }
            }
        }
        if matches!(service.kind, ServiceKind::NodePort | ServiceKind::LoadBalancer) {
            for port in service.ports.iter_mut().filter(|port| port.node_port.is_none()) {
                port.node_port = NODE_PORTS.into_iter().find(|number| node_ports.insert((port.protocol, *number)));
            }
        }
    }
    Ok(())
}

/// Addresses in use, and where to look for the next free one of a range.
#[derive(Default)]
struct Taken {
    by: BTreeMap<IpAddr, String>,
    next: BTreeMap<IpNet, u128>,
}

impl Taken {
    fn claim(&mut self, addresses: &[IpAddr], who: &str) -> Result<(), PlacementError> {
        for address in addresses {
            if let Some(first) = self.by.insert(*address, who.to_owned())
                && first != who
            {
                return Err(PlacementError::AddressTaken { address: *address, first, second: who.to_owned() });
            }
        }
        Ok(())
    }

    /// The next free address. The first two and the last one of a range are left to the network and its gateway.
    fn allocate(&mut self, cidr: IpNet, who: &str) -> Result<IpAddr, PlacementError> {
        let (first, last) = (to_bits(cidr.network()), to_bits(cidr.broadcast()));
        let next = self.next.entry(cidr).or_insert(first.saturating_add(2));
        while *next < last {
            let address = from_bits(*next, cidr.addr());
            *next += 1;
            if let std::collections::btree_map::Entry::Vacant(free) = self.by.entry(address) {
                free.insert(who.to_owned());
                return Ok(address);
            }
        }
        Err(PlacementError::RangeFull { cidr, wanted_for: who.to_owned() })
    }
}

fn to_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn from_bits(bits: u128, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(u32::try_from(bits).unwrap_or(u32::MAX).into()),
        IpAddr::V6(_) => IpAddr::V6(bits.into()),
    }
}
