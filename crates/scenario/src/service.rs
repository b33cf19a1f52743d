use std::collections::BTreeMap;

use arbitrary::{Result, Unstructured};
use ringfence_model::{Endpoint, EndpointSlice, ExternalTraffic, Object, Service, ServiceKind};

use crate::cluster::{ADDRESSES, NAMESPACES, NODE_ADDRESSES, PORTS, address, node, protocol, text};

const SERVICES: [&str; 3] = ["front", "api", "db"];
const SLICES: [&str; 4] = ["front-1", "front-2", "api-1", "db-1"];

/// The objects of a cluster, and Services with endpoints among them, and nodes with tunnels.
///
/// # Errors
/// When the bytes do not suffice, which `arbitrary` treats as the end of input.
pub fn with_services(u: &mut Unstructured<'_>, objects: Vec<Object>) -> Result<Vec<Object>> {
    let mut all: BTreeMap<_, _> = objects.into_iter().map(|object| (object.key(), object)).collect();
    for _ in 0..u.int_in_range(4..=16)? {
        let object = service_object(u)?;
        all.insert(object.key(), object);
    }
    Ok(all.into_values().collect())
}

/// A Service, endpoints of one, or a node with tunnels.
///
/// # Errors
/// When the bytes do not suffice, which `arbitrary` treats as the end of input.
pub fn service_object(u: &mut Unstructured<'_>) -> Result<Object> {
    Ok(match u.int_in_range(0..=5)? {
        0 => {
            let mut node = node(u)?;
            for _ in 0..u.int_in_range(0..=2)? {
                // Tunnels have addresses of pod ranges, and may collide with pods.
                node.tunnel_addresses.push(address(u, &ADDRESSES)?);
            }
            Object::Node(node)
        }
        1..=2 => Object::Service(service(u)?),
        _ => Object::EndpointSlice(slice(u)?),
    })
}

fn service(u: &mut Unstructured<'_>) -> Result<Service> {
    let kinds = [ServiceKind::ClusterIp, ServiceKind::Headless, ServiceKind::NodePort, ServiceKind::LoadBalancer];
    Ok(Service {
        namespace: text(u, &NAMESPACES)?,
        name: text(u, &SERVICES)?,
        kind: *u.choose(&kinds)?,
        selector: BTreeMap::new(),
        cluster_addresses: Vec::new(),
        external_addresses: if u.ratio(1, 4)? { vec![address(u, &NODE_ADDRESSES)?] } else { Vec::new() },
        external_traffic: ExternalTraffic::Cluster,
        ports: Vec::new(),
    })
}

fn slice(u: &mut Unstructured<'_>) -> Result<EndpointSlice> {
    let mut endpoints = Vec::new();
    for _ in 0..u.int_in_range(0..=4)? {
        // Written by hand, endpoints can be anybody's.
        let pool: &[&'static str] = if u.ratio(1, 12)? { &NODE_ADDRESSES } else { &ADDRESSES };
        endpoints.push(Endpoint { address: address(u, pool)?, serving: u.ratio(2, 3)? });
    }
    let mut ports = Vec::new();
    for _ in 0..u.int_in_range(0..=2)? {
        ports.push((protocol(u)?, *u.choose(&PORTS)?));
    }
    let service = if u.ratio(9, 10)? { Some(text(u, &SERVICES)?) } else { None };
    Ok(EndpointSlice { namespace: text(u, &NAMESPACES)?, name: text(u, &SLICES)?, service, endpoints, ports })
}
