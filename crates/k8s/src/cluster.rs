//! Namespaces, nodes, Services, and the external hosts of the lab.

use std::collections::BTreeMap;
use std::sync::Arc;

use ringfence_model::{ExternalHost, ExternalTraffic, Namespace, Node, Service, ServiceKind, ServicePort, TargetPort};

use crate::diagnostic::shown;
use crate::metadata::{self, check_strictly};
use crate::names::{is_dns_label, is_dns_subdomain};
use crate::peer::cidr;
use crate::pod::add_address;
use crate::ports::{NumberOrName, named_port, port_number, port_or_name, protocol};
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
    let mut labels = metadata::object_labels(report, object);
    let name = identity.name?;
    if let Some(written) = labels.insert(NAME_LABEL.into(), name.clone())
        && written != name
    {
        report.warning(
            object.at,
            format!("the label {NAME_LABEL} is \"{}\" here: read as {name}", shown(&written)),
            "the API server always sets it to the namespace's name",
        );
    }
    Some(Namespace { name, labels })
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
    Some(Node { name: identity.name?, addresses, pod_cidrs })
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
        service.kind = choice(report, spec, "type", &kinds);
        let policies = [("Cluster", ExternalTraffic::Cluster), ("Local", ExternalTraffic::Local)];
        service.external_traffic = choice(report, spec, "externalTrafficPolicy", &policies);
        cluster_addresses(report, spec, &mut service);
        spec.each(report, "ports", |report, at| {
            if let Some(fields) = mapping(report, at) {
                service.ports.extend(service_port(report, fields));
            }
        });
    });
    Some(service)
}

/// Reads a field that takes one of a few words; without the field, the first of them.
fn choice<T: Copy + Default>(report: &mut Report, spec: Fields<'_>, field: &'static str, words: &[(&str, T)]) -> T {
    let Some(at) = spec.get(field) else { return T::default() };
    let Some(text) = string(report, &at, field) else { return T::default() };
    if text.is_empty() {
        return T::default();
    }
    match words.iter().find(|(word, _)| *word == text) {
        Some((_, value)) => *value,
        None => {
            let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            report.error_hint(
                &at,
                format!("\"{}\" is not a {field}", shown(text)),
                format!("it is one of {}", known.join(", ")),
            );
            T::default()
        }
    }
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

/// Reads an ExternalHost. It is our own kind, so nothing in it is passed over; with any error there is no host.
pub(crate) fn external_host(report: &mut Report, object: Fields<'_>) -> Option<ExternalHost> {
    object.only(report, &["apiVersion", "kind", "metadata", "spec"], |_| None);
    check_strictly(report, object);
    let identity = metadata::identity(report, object, is_dns_subdomain, |_| true);
    let mut addresses = Vec::new();
    let mut ports = Vec::new();
    object.mapping(report, "spec", |report, spec| {
        spec.only(report, &["addresses", "ports"], |name| match name {
            "address" | "ip" | "ips" => Some("write `addresses`, a list"),
            _ => None,
        });
        spec.each(report, "addresses", |report, at| add_address(report, at, &mut addresses));
        spec.each(report, "ports", |report, at| {
            if let Some(fields) = mapping(report, at) {
                fields.only(report, &["name", "port", "protocol"], |name| match name {
                    "containerPort" => Some("write `port`"),
                    _ => None,
                });
                ports.extend(named_port(report, fields, "port"));
            }
        });
    });
    if addresses.is_empty() && report.errors() == 0 {
        report.error(object.at, "an external host needs at least one of `spec.addresses`");
    }
    let name = identity.name?;
    (report.errors() == 0).then_some(ExternalHost { name, addresses, ports })
}
