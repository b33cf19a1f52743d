//! The EndpointSlices that the cluster's own controller writes for Services with selectors. Files rarely have them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ringfence_model::{
    Endpoint, EndpointSlice, Family, Object, Phase, Pod, Protocol, Service, ServicePort, TargetPort,
};

/// Adds what is missing of placed objects: EndpointSlices of Services that select pods and have no slice yet. Every live pod
/// counts as ready; pods on their node's network answer at its addresses.
pub fn add_endpoint_slices(objects: &mut Vec<Object>) {
    let served: BTreeSet<(&Arc<str>, &Arc<str>)> = objects
        .iter()
        .filter_map(|object| match object {
            Object::EndpointSlice(slice) => Some((&slice.namespace, slice.service.as_ref()?)),
            _ => None,
        })
        .collect();
    let pods: Vec<&Pod> = objects
        .iter()
        .filter_map(|object| match object {
            Object::Pod(pod) if pod.phase == Phase::Live => Some(pod),
            _ => None,
        })
        .collect();
    let mut slices = Vec::new();
    for object in &*objects {
        let Object::Service(service) = object else { continue };
        if !served.contains(&(&service.namespace, &service.name)) {
            slices.extend(slices_of(service, &pods).into_iter().map(Object::EndpointSlice));
        }
    }
    objects.extend(slices);
}

/// On which a slice's endpoints answer.
type Ports = Vec<(Protocol, u16)>;

/// A slice has one list of ports, and a port's name may stand for another number on each pod: pods that differ in that are in
/// different slices, and so are addresses of different families.
fn slices_of(service: &Service, pods: &[&Pod]) -> Vec<EndpointSlice> {
    let mut groups: BTreeMap<(Family, Ports), Vec<Endpoint>> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| is_behind(service, pod)) {
        let resolve = |port: &ServicePort| Some((port.protocol, target(port, pod)?));
        let ports: BTreeSet<(Protocol, u16)> = service.ports.iter().filter_map(resolve).collect();
        for family in families(service, pod) {
            let Some(address) = pod.addresses.iter().copied().find(|address| Family::of(*address) == family) else {
                continue;
            };
            let group = groups.entry((family, ports.iter().copied().collect())).or_default();
            group.push(Endpoint { address, serving: true });
        }
    }
    let slice = |(number, ((_, ports), endpoints)): (usize, _)| EndpointSlice {
        namespace: service.namespace.clone(),
        name: format!("{}-{number}", service.name).into(),
        service: Some(service.name.clone()),
        endpoints,
        ports,
    };
    groups.into_iter().enumerate().map(slice).collect()
}

/// The families of the Service's own addresses; one that has none leads to all addresses of its pods.
fn families(service: &Service, pod: &Pod) -> BTreeSet<Family> {
    let of = |addresses: &[IpAddr]| addresses.iter().map(|address| Family::of(*address)).collect();
    if service.cluster_addresses.is_empty() { of(&pod.addresses) } else { of(&service.cluster_addresses) }
}

/// A Service without a selector has endpoints that others write; the input does not tell which.
pub(crate) fn is_behind(service: &Service, pod: &Pod) -> bool {
    !service.selector.is_empty()
        && pod.namespace == service.namespace
        && service.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
}

/// The number that a Service's port leads to on a pod. `None`: the pod has no port of that name.
pub(crate) fn target(port: &ServicePort, pod: &Pod) -> Option<u16> {
    match &port.target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => pod
            .ports
            .iter()
            .find(|candidate| candidate.protocol == port.protocol && candidate.name.as_ref() == Some(name))
            .map(|candidate| candidate.port),
    }
}

/// Where a pod answers for a port of a Service, over one family.
pub(crate) fn backend(port: &ServicePort, pod: &Pod, family: Family) -> Option<SocketAddr> {
    let address = pod.addresses.iter().find(|address| Family::of(**address) == family)?;
    Some(SocketAddr::new(*address, target(port, pod)?))
}
