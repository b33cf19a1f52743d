//! Namespaces, nodes and Services.

use std::collections::BTreeMap;
use std::sync::Arc;

use ringfence_model::{ExternalTraffic, Namespace, Node, Service, ServiceKind, ServicePort, TargetPort};

use crate::diagnostic::shown;
use crate::metadata;
use crate::names::{is_dns_label, is_dns_subdomain};
use crate::peer::cidr;
use crate::pod::add_address;
use crate::ports::{NumberOrName, port_number, port_or_name, protocol};
use crate::read::{At, Fields, Report, labels, mapping, string};

/// The label every namespace has, with its name as the value.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// A namespace with no other label than its name.
pub(crate) fn bare_namespace(name: &Arc<str>) -> Namespace {
    Namespace { name: name.clone(), labels: [(NAME_LABEL.into(), name.clone())].into() }
}

/// Reads a Namespace.
pub(crate) fn namespace(report: &mut Report, object: Fields<'_>) -> Option<Namespace> {
    let identity = metadata::identity(report, object, is_dns_label, |_| true);
    let labels = metadata::object_labels(report, object);
    let name = identity.name?;
    if let Some(written) = labels.get(NAME_LABEL).filter(|written| **written != name) {
        report.warning(
            object.at,
            format!("the label {NAME_LABEL} is \"{}\" here: read as {name}", shown(written)),
            "the API server always sets it to the namespace's name",
        );
    }
    Some(Namespace { labels: labels.with(NAME_LABEL, name.clone()), name })
}

/// Reads a Node.
pub(crate) fn node(report: &mut Report, object: Fields<'_>) -> Option<Node> {
    let identity = metadata::identity(report, object, is_dns_subdomain, |_| true);
    let mut addresses = Vec::new();
    object.mapping(report, "status", |report, status| {
        status.each(report, "addresses", |report, at| {
            let Some(entry) = mapping(report, at) else { return };
            if let Some("InternalIP" | "ExternalIP") = entry.text(report, "type")
                && let Some(at) = entry.get("address")
            {
                add_address(report, &at, &mut addresses);
            }
        });
    });
    let mut pod_cidrs = Vec::new();
    object.mapping(report, "spec", |report, spec| {
        spec.each(report, "podCIDRs", |report, at| pod_cidrs.extend(cidr(report, at)));
        if let Some(at) = spec.get("podCIDR").filter(|at| !at.node.text().is_empty())
            && let Some(block) = cidr(report, &at)
            && !pod_cidrs.contains(&block)
        {
            pod_cidrs.push(block);
        }
    });
    Some(Node { name: identity.name?, addresses, tunnel_addresses: Vec::new(), pod_cidrs })
}

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
        spec.each(report, "ports", |report, at| {
            if let Some(fields) = mapping(report, at) {
                service.ports.extend(service_port(report, fields));
            }
        });
    });
    Some(service)
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
