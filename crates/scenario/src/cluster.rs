use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use ipnet::IpNet;
use ringfence_model::{ContainerPort, Labels, Namespace, Node, Object, Phase, Pod, PodId, Protocol};

use crate::policy::policy;

pub(crate) const NAMESPACES: [&str; 3] = ["default", "shop", "web"];
pub(crate) const NODES: [&str; 2] = ["node-1", "node-2"];
pub(crate) const KEYS: [&str; 3] = ["app", "tier", "old"];
pub(crate) const VALUES: [&str; 4] = ["", "a", "b", "db"];
pub(crate) const PORT_NAMES: [&str; 3] = ["http", "dns", "metrics"];
pub(crate) const PORTS: [u16; 8] = [1, 53, 80, 443, 8080, 8081, 32000, 65535];

/// Addresses that pods and nodes have: neighbours inside small networks, at their borders and outside of all of them.
pub(crate) const ADDRESSES: [&str; 16] = [
    "10.0.0.0",
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.127",
    "10.0.0.128",
    "10.0.0.255",
    "10.0.1.0",
    "172.17.0.5",
    "172.17.1.5",
    "255.255.255.255",
    "fd00::",
    "fd00::1",
    "fd00::2",
    "fd00::ffff",
    "fd00:1::1",
    "2001:db8::7",
];
pub(crate) const NODE_ADDRESSES: [&str; 4] = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "10.0.0.2"];

/// Ranges that overlap, nest, touch and leave some of the addresses out.
const RANGES: [&str; 8] = [
    "10.0.0.0/24",
    "10.0.0.5/25",
    "10.0.1.0/24",
    "172.17.0.0/16",
    "10.0.0.1/32",
    "0.0.0.0/0",
    "fd00::/64",
    "fd00::/48",
];

/// Ranges for the pods of a node, as `spec.podCIDRs` says them; sometimes none.
///
/// # Errors
/// When the bytes do not suffice, which `arbitrary` treats as the end of input.
pub fn pod_ranges(u: &mut Unstructured<'_>) -> Result<Vec<IpNet>> {
    let mut ranges = Vec::new();
    for _ in 0..u.int_in_range(0..=3)? {
        ranges.push(u.choose(&RANGES)?.parse().map_err(|_| arbitrary::Error::IncorrectFormat)?);
    }
    Ok(ranges)
}

/// The objects of a small cluster, each identity once: up to 3 namespaces, 2 nodes, 14 pods and 40 policies.
///
/// # Errors
/// When the bytes do not suffice, which `arbitrary` treats as the end of input.
pub fn cluster(u: &mut Unstructured<'_>) -> Result<Vec<Object>> {
    let mut objects = Vec::new();
    for _ in 0..u.int_in_range(0..=3)? {
        objects.push(Object::Namespace(namespace(u)?));
    }
    for _ in 0..u.int_in_range(0..=2)? {
        objects.push(Object::Node(node(u)?));
    }
    for _ in 0..u.int_in_range(4..=14)? {
        objects.push(Object::Pod(pod(u)?));
    }
    // Mostly a few policies, sometimes dozens on the same pods.
    let most = if u.ratio(1, 8)? { 40 } else { 8 };
    for _ in 0..u.int_in_range(1..=most)? {
        objects.push(Object::Policy(policy(u)?));
    }
    let distinct: BTreeMap<_, _> = objects.into_iter().map(|object| (object.key(), object)).collect();
    Ok(distinct.into_values().collect())
}

/// One object of that world, new or one that is there already under the same identity.
///
/// # Errors
/// When the bytes do not suffice, which `arbitrary` treats as the end of input.
pub fn object(u: &mut Unstructured<'_>) -> Result<Object> {
    Ok(match u.int_in_range(0..=9)? {
        0 => Object::Namespace(namespace(u)?),
        1 => Object::Node(node(u)?),
        2..=6 => Object::Pod(pod(u)?),
        _ => Object::Policy(policy(u)?),
    })
}

pub(crate) fn text(u: &mut Unstructured<'_>, pool: &[&'static str]) -> Result<Arc<str>> {
    Ok(Arc::from(*u.choose(pool)?))
}

pub(crate) fn address(u: &mut Unstructured<'_>, pool: &[&'static str]) -> Result<IpAddr> {
    u.choose(pool)?.parse().map_err(|_| arbitrary::Error::IncorrectFormat)
}

pub(crate) fn protocol(u: &mut Unstructured<'_>) -> Result<Protocol> {
    u.choose(&Protocol::ALL).copied()
}

pub(crate) fn labels(u: &mut Unstructured<'_>) -> Result<Labels> {
    (0..u.int_in_range(0..=3)?).map(|_| Ok((text(u, &KEYS)?, text(u, &VALUES)?))).collect()
}

fn namespace(u: &mut Unstructured<'_>) -> Result<Namespace> {
    let name = text(u, &NAMESPACES)?;
    let labels = labels(u)?.with("kubernetes.io/metadata.name", name.clone());
    Ok(Namespace { name, labels })
}

pub(crate) fn node(u: &mut Unstructured<'_>) -> Result<Node> {
    let mut addresses = Vec::new();
    for _ in 0..u.int_in_range(0..=2)? {
        addresses.push(address(u, &NODE_ADDRESSES)?);
    }
    Ok(Node { name: text(u, &NODES)?, addresses, tunnel_addresses: Vec::new(), announced: None, pod_cidrs: Vec::new() })
}

fn pod(u: &mut Unstructured<'_>) -> Result<Pod> {
    let mut addresses = Vec::new();
    for _ in 0..if u.ratio(1, 8)? { 0 } else { u.int_in_range(1..=2)? } {
        addresses.push(address(u, &ADDRESSES)?);
    }
    let mut ports = Vec::new();
    for _ in 0..u.int_in_range(0..=3)? {
        let name = if u.ratio(2, 3)? { Some(text(u, &PORT_NAMES)?) } else { None };
        ports.push(ContainerPort { name, protocol: protocol(u)?, port: *u.choose(&PORTS)? });
    }
    // Few names: an applied pod often replaces one that is there. Few moments: claims to one address collide and tie.
    let name = format!("pod-{}", u.int_in_range(0..=15)?);
    Ok(Pod {
        id: PodId(name.as_str().into()),
        static_uid: None,
        name: name.into(),
        namespace: text(u, &NAMESPACES)?,
        labels: labels(u)?,
        node: if u.ratio(1, 8)? { None } else { Some(text(u, &NODES)?) },
        addresses,
        host_network: u.ratio(1, 10)?,
        phase: if u.ratio(1, 10)? { Phase::Finished } else { Phase::Live },
        created: u.int_in_range(0..=2)?,
        ports,
    })
}
