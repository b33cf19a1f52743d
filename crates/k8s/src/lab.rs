//! The lab's own kinds. Nothing in them is passed over: with any error there is no such object.

use ringfence_model::{ExternalHost, Masquerade, PodNetwork, Topology};

use crate::metadata::{self, check_strictly};
use crate::names::is_dns_subdomain;
use crate::pod::add_address;
use crate::ports::named_port;
use crate::read::{Fields, Report, boolean, integer, mapping};

/// The API version of the lab's kinds.
pub(crate) const API_VERSION: &str = "lab.ringfence/v1alpha1";

const OBJECT_FIELDS: &[&str] = &["apiVersion", "kind", "metadata", "spec"];

/// More nodes than this are a slip of the finger: each is a network namespace with a packet filter of its own.
const MAX_NODES: usize = 100;

/// Reads an ExternalHost.
pub(crate) fn external_host(report: &mut Report, object: Fields<'_>) -> Option<ExternalHost> {
    object.only(report, OBJECT_FIELDS, |_| None);
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

/// Reads a Topology.
pub(crate) fn topology(report: &mut Report, object: Fields<'_>) -> Option<Topology> {
    object.only(report, OBJECT_FIELDS, |_| None);
    check_strictly(report, object);
    metadata::identity(report, object, is_dns_subdomain, |_| true);
    let mut topology = Topology::default();
    object.mapping(report, "spec", |report, spec| {
        spec.only(report, &["nodes", "network", "masquerade", "masqueradeAll"], |_| None);
        if let Some(at) = spec.get("nodes")
            && let Some(nodes) = integer(report, &at, "nodes")
        {
            topology.nodes = usize::try_from(nodes).ok().filter(|nodes| (1..=MAX_NODES).contains(nodes));
            if topology.nodes.is_none() {
                report.error(&at, format!("{nodes} nodes: the lab plays 1 to {MAX_NODES}"));
            }
        }
        topology.pod_network = spec.choice(
            report,
            "network",
            &[("routed", PodNetwork::Routed), ("bridge", PodNetwork::Bridge), ("vxlan", PodNetwork::Vxlan)],
        );
        topology.masquerade = spec.choice(
            report,
            "masquerade",
            &[("none", Masquerade::None), ("outside", Masquerade::Outside), ("pods", Masquerade::PodsToo)],
        );
        topology.masquerade_all = spec.get("masqueradeAll").and_then(|at| boolean(report, &at, "masqueradeAll"));
    });
    (report.errors() == 0).then_some(topology)
}
