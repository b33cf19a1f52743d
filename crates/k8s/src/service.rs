//! Services, and who answers for them.

use std::collections::BTreeMap;

use ringfence_model::{
    Endpoint, EndpointSlice, ExternalTraffic, Protocol, Service, ServiceKind, ServicePort, TargetPort,
};

use crate::diagnostic::shown;
use crate::metadata;
use crate::names::{is_dns_label, is_dns_subdomain};
use crate::pod::add_address;
use crate::ports::{NumberOrName, port_number, port_or_name, protocol};
use crate::read::{At, Fields, Report, boolean, labels, mapping, string};

/// The API version of EndpointSlices that is read.
pub(crate) const SLICE_API_VERSION: &str = "discovery.k8s.io/v1";
/// The label of an EndpointSlice that names its Service.
pub(crate) const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Reads a Service.
pub(crate) fn service(report: &mut Report, object: Fields<'_>) -> Option<Service> {
    let identity = metadata::identity(report, object, is_dns_label, is_dns_label);
    let mut service = Service {
        namespace: identity.namespace?,
        name: identity.name?,
        kind: ServiceKind::default(),
        selector: BTreeMap::new(),
        cluster_addresses: Vec::new(),
        external_addresses: Vec::new(),
        external_traffic: ExternalTraffic::default(),
        ports: Vec::new(),
    };
    object.mapping(report, "spec", |report, spec| {
        if let Some(at) = spec.get("selector") {
            service.selector = labels(report, &at);
        }
        let kinds = [
            ("ClusterIP", ServiceKind::ClusterIp),
            ("NodePort", ServiceKind::NodePort),
            ("LoadBalancer", ServiceKind::LoadBalancer),
            ("ExternalName", ServiceKind::Headless),
        ];
        service.kind = spec.choice(report, "type", &kinds).unwrap_or_default();
        let policies = [("Cluster", ExternalTraffic::Cluster), ("Local", ExternalTraffic::Local)];
        service.external_traffic = spec.choice(report, "externalTrafficPolicy", &policies).unwrap_or_default();
        cluster_addresses(report, spec, &mut service);
        spec.each(report, "externalIPs", |report, at| add_address(report, at, &mut service.external_addresses));
        spec.each(report, "ports", |report, at| {
            if let Some(fields) = mapping(report, at) {
                service.ports.extend(service_port(report, fields));
            }
        });
    });
    object.mapping(report, "status", |report, status| {
        status.mapping(report, "loadBalancer", |report, balancer| {
            balancer.each(report, "ingress", |report, at| balanced_address(report, at, &mut service));
        });
    });
    Some(service)
}

/// Reads one entry of `status.loadBalancer.ingress`. One with a name only has no address, and one in mode Proxy is not taken by
/// nodes: its balancer calls them under their own addresses.
fn balanced_address(report: &mut Report, at: &At<'_>, service: &mut Service) {
    let Some(entry) = mapping(report, at) else { return };
    if entry.text(report, "ipMode") != Some("Proxy")
        && let Some(at) = entry.get("ip")
    {
        add_address(report, &at, &mut service.external_addresses);
    }
}

/// What `addressType` of an EndpointSlice says about its addresses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AddressType {
    V4,
    V6,
    /// Names: nothing that packets have.
    Names,
}

/// Reads an EndpointSlice. What is wrong in it serves nothing; the rest counts.
pub(crate) fn endpoint_slice(report: &mut Report, object: Fields<'_>) -> Option<EndpointSlice> {
    let identity = metadata::identity(report, object, is_dns_subdomain, is_dns_label);
    let labels = metadata::object_labels(report, object);
    let mut slice = EndpointSlice {
        namespace: identity.namespace?,
        name: identity.name?,
        service: labels.get(SERVICE_LABEL).filter(|service| !service.is_empty()).cloned(),
        endpoints: Vec::new(),
        ports: Vec::new(),
    };
    let types = [("IPv4", AddressType::V4), ("IPv6", AddressType::V6), ("FQDN", AddressType::Names)];
    let Some(at) = object.get("addressType") else {
        report.error(&object.at.missing("addressType"), "`addressType` is missing: no endpoint counts");
        return Some(slice);
    };
    let Some(kind) = object.choice(report, "addressType", &types) else {
        if at.node.text().is_empty() {
            report.error(&at, "`addressType` is empty: no endpoint counts");
        }
        return Some(slice);
    };
    if kind == AddressType::Names {
        return Some(slice);
    }
    object.each(report, "endpoints", |report, at| endpoint(report, at, kind, &mut slice));
    object.each(report, "ports", |report, at| slice.ports.extend(endpoint_port(report, at)));
    Some(slice)
}

/// Reads one entry of `endpoints`, which may have several addresses.
fn endpoint(report: &mut Report, at: &At<'_>, kind: AddressType, slice: &mut EndpointSlice) {
    let Some(fields) = mapping(report, at) else { return };
    let mut serving = true;
    fields.mapping(report, "conditions", |report, conditions| {
        let mut is = |name, absent| match conditions.get(name) {
            Some(at) => boolean(report, &at, name).unwrap_or(false),
            None => absent,
        };
        let ready = is("ready", true);
        serving = ready || (is("serving", ready) && is("terminating", false));
    });
    let mut addresses = Vec::new();
    fields.each(report, "addresses", |report, at| {
        let before = addresses.len();
        add_address(report, at, &mut addresses);
        let family = if kind == AddressType::V4 { "IPv4" } else { "IPv6" };
        if addresses.get(before).is_some_and(|address| address.is_ipv4() != (kind == AddressType::V4)) {
            addresses.truncate(before);
            report.error(at, format!("\"{}\" is no {family} address", shown(at.node.text())));
        }
    });
    slice.endpoints.extend(addresses.into_iter().map(|address| Endpoint { address, serving }));
}

/// Reads one entry of `ports`. Without a number it means all ports, which is no port that anybody vouches for.
fn endpoint_port(report: &mut Report, at: &At<'_>) -> Option<(Protocol, u16)> {
    let fields = mapping(report, at)?;
    let protocol = protocol(report, fields);
    let at = fields.get("port")?;
    let port = port_number(report, &at, "port")?;
    Some((protocol?, port))
}

/// Reads `clusterIPs` and `clusterIP`, which repeat each other.
fn cluster_addresses(report: &mut Report, spec: Fields<'_>, service: &mut Service) {
    let is_none = |at: &At<'_>| at.node.text() == "None";
    spec.each(report, "clusterIPs", |report, at| {
        if is_none(at) {
            service.kind = ServiceKind::Headless;
        } else {
            add_address(report, at, &mut service.cluster_addresses);
        }
    });
    let Some(at) = spec.get("clusterIP").filter(|at| !at.node.text().is_empty()) else { return };
    if is_none(&at) {
        service.kind = ServiceKind::Headless;
    } else if service.cluster_addresses.is_empty() {
        add_address(report, &at, &mut service.cluster_addresses);
    }
}

fn service_port(report: &mut Report, fields: Fields<'_>) -> Option<ServicePort> {
    let name = fields.get("name").and_then(|at| {
        let name = string(report, &at, "port name").filter(|name| !name.is_empty())?;
        if !is_dns_label(name) {
            report.error(&at, format!("\"{}\" is not a name of a Service's port", shown(name)));
            return None;
        }
        Some(name.into())
    });
    let protocol = protocol(report, fields);
    let Some(at) = fields.get("port") else {
        report.error(&fields.at.missing("port"), "`port` is missing");
        return None;
    };
    let port = port_number(report, &at, "port")?;
    let target = match fields.get("targetPort") {
        None => TargetPort::Number(port),
        Some(at) => match port_or_name(report, &at) {
            NumberOrName::Number(number) => TargetPort::Number(number),
            NumberOrName::Name(name) => TargetPort::Name(name.into()),
            NumberOrName::Wrong => return None,
        },
    };
    let node_port = fields.get("nodePort").and_then(|at| match at.node.text() {
        "0" => None,
        _ => port_number(report, &at, "nodePort"),
    });
    Some(ServicePort { name, protocol: protocol?, port, target, node_port })
}
