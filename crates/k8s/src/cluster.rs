//! Namespaces and nodes.

use std::net::IpAddr;
use std::sync::Arc;

use ringfence_model::{Namespace, Node};

use crate::address::{parse_ip, unusable};

use crate::diagnostic::shown;
use crate::metadata;
use crate::names::{is_dns_label, is_dns_subdomain};
use crate::peer::cidr;
use crate::pod::add_address;
use crate::read::{At, Fields, Report, mapping};

/// The label every namespace has, with its name as the value.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// More addresses of a node than its status tells, with commas between them.
pub const ADDRESSES_ANNOTATION: &str = "ringfence.io/node-addresses";
/// What the agent of a node does: an [`Enforcement`](ringfence_model::Enforcement) as text.
pub const ENFORCEMENT_ANNOTATION: &str = "ringfence.io/enforcement";
/// How many addresses the annotation of a node may have: what is trusted stays small, whoever writes it.
pub const MOST_TUNNEL_ADDRESSES: usize = 64;

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
                drop_unusable(report, &at, &mut addresses);
            }
        });
    });
    let tunnel_addresses = tunnel_addresses(report, object, &addresses);
    let announced = metadata::annotation(object, ENFORCEMENT_ANNOTATION).and_then(|text| text.parse().ok());
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
    Some(Node { name: identity.name?, addresses, tunnel_addresses, announced, pod_cidrs })
}

/// The last address that was read must be one that packets of a node can come from.
fn drop_unusable(report: &mut Report, at: &At<'_>, addresses: &mut Vec<IpAddr>) {
    if let Some(reason) = addresses.last().and_then(|last| unusable(*last)) {
        addresses.pop();
        report.warning(
            at,
            format!("{} is {reason}: left out", at.node.text()),
            "write an address that other nodes reach",
        );
    }
}

/// Reads the annotation with more addresses. What is wrong in it is left out: fewer addresses are trusted.
fn tunnel_addresses(report: &mut Report, object: Fields<'_>, known: &[IpAddr]) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    metadata::with_annotation(report, object, ADDRESSES_ANNOTATION, |report, at, text| {
        const HINT: &str = "write addresses with commas between them";
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            let read = parse_ip(word).and_then(|address| unusable(address).map_or(Ok(address), Err));
            match read {
                Ok(address) if known.contains(&address) || addresses.contains(&address) => {}
                Ok(_) if addresses.len() == MOST_TUNNEL_ADDRESSES => {
                    let message = format!("more than {MOST_TUNNEL_ADDRESSES} addresses: the rest is left out");
                    report.warning(at, message, "a node has one for each bridge and tunnel");
                    return;
                }
                Ok(address) => addresses.push(address),
                Err(reason) => report.warning(at, format!("\"{}\" is {reason}: left out", shown(word)), HINT),
            }
        }
    });
    addresses
}
