//! Namespaces, nodes, Services, and the external hosts of the lab.

use std::sync::Arc;

use ringfence_model::{ContainerPort, ExternalHost, Namespace, Node, Service, ServicePort};

use crate::diagnostic::shown;
use crate::metadata::{self, check_strictly};
use crate::names::{is_dns_label, is_dns_subdomain};
use crate::peer::cidr;
use crate::pod::add_address;
use crate::ports::named_port;
use crate::read::{Fields, Report, labels, mapping};

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
    let mut selector = std::collections::BTreeMap::new();
    let mut ports = Vec::new();
    object.mapping(report, "spec", |report, spec| {
        if let Some(at) = spec.get("selector") {
            selector = labels(report, &at);
        }
        spec.each(report, "ports", |report, at| {
            if let Some(fields) = mapping(report, at)
                && let Some(ContainerPort { name, protocol, port }) = named_port(report, fields, "port")
            {
                ports.push(ServicePort { name, protocol, port });
            }
        });
    });
    Some(Service { namespace: identity.namespace?, name: identity.name?, selector, ports })
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
