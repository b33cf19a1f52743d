//! Pods, and pod specs in templates.

use std::net::IpAddr;
use std::sync::Arc;

use ringfence_model::{ContainerPort, Phase, Pod, PodId};

use crate::address::parse_ip;
use crate::diagnostic::shown;
use crate::metadata::{self, Controller};
use crate::names::{is_dns_label, is_dns_subdomain};
use crate::ports::named_port;
use crate::read::{At, Fields, Report, boolean, mapping, string};

/// A pod, and who made it.
#[derive(Clone, Debug)]
pub(crate) struct ReadPod {
    pub(crate) pod: Pod,
    pub(crate) controller: Option<Controller>,
}

/// What policy wants to know of a pod spec, in a pod or in a workload's template.
#[derive(Clone, Debug, Default)]
pub(crate) struct PodSpec {
    pub(crate) node: Option<Arc<str>>,
    pub(crate) host_network: bool,
    pub(crate) ports: Vec<ContainerPort>,
}

/// What the kubelet writes on the API server's picture of a static pod: the uid it knows the pod by.
pub(crate) const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
/// How ids begin of pods without a uid. No uid has a colon.
const FILE_ID: &str = "file:";

/// The id of a pod that has no uid, because it comes from a file.
pub(crate) fn file_id(namespace: &str, name: &str) -> PodId {
    PodId(format!("{FILE_ID}{namespace}/{name}").into())
}

/// Whether an id is the `metadata.uid` of its pod. That of a pod whose manifest has none is made from its name.
pub fn is_uid_of_pod(id: &PodId) -> bool {
    !id.0.starts_with(FILE_ID)
}

/// Reads a Pod; nothing without a usable name and namespace.
pub(crate) fn pod(report: &mut Report, object: Fields<'_>) -> Option<ReadPod> {
    let identity = metadata::identity(report, object, is_dns_subdomain, is_dns_label);
    let labels = metadata::object_labels(report, object);
    let uid = metadata::uid(report, object);
    let created = metadata::created(report, object);
    let mut spec = PodSpec::default();
    object.mapping(report, "spec", |report, fields| spec = pod_spec(report, fields));
    let mut addresses = Vec::new();
    let mut phase = Phase::Live;
    object.mapping(report, "status", |report, status| {
        addresses = pod_addresses(report, status);
        if let Some("Succeeded" | "Failed") = status.text(report, "phase") {
            phase = Phase::Finished;
        }
    });
    let (namespace, name) = (identity.namespace?, identity.name?);
    let controller = metadata::controller(report, object, &namespace);
    let pod = Pod {
        id: uid.map_or_else(|| file_id(&namespace, &name), PodId),
        static_uid: metadata::annotation(object, MIRROR_ANNOTATION),
        namespace,
        name,
        labels,
        node: spec.node,
        addresses,
        host_network: spec.host_network,
        phase,
        created,
        ports: spec.ports,
    };
    Some(ReadPod { pod, controller })
}

/// Reads a pod spec: node, host network, and the ports of containers and of restartable init containers.
pub(crate) fn pod_spec(report: &mut Report, fields: Fields<'_>) -> PodSpec {
    let mut spec = PodSpec::default();
    if let Some(at) = fields.get("nodeName") {
        spec.node = string(report, &at, "node name").and_then(|name| {
            if is_dns_subdomain(name) {
                return Some(name.into());
            }
            if !name.is_empty() {
                report.error(&at, format!("\"{}\" is not a node name", shown(name)));
            }
            None
        });
    }
    if let Some(at) = fields.get("hostNetwork") {
        spec.host_network = boolean(report, &at, "hostNetwork").unwrap_or_default();
    }
    fields.each(report, "containers", |report, at| {
        container_ports(report, at, false, &mut spec.ports);
    });
    fields.each(report, "initContainers", |report, at| {
        container_ports(report, at, true, &mut spec.ports);
    });
    spec
}

fn container_ports(report: &mut Report, at: &At<'_>, is_init: bool, ports: &mut Vec<ContainerPort>) {
    let Some(container) = mapping(report, at) else { return };
    // An init container that restarts is a sidecar: it serves as long as the pod lives.
    if is_init && container.text(report, "restartPolicy") != Some("Always") {
        return;
    }
    container.each(report, "ports", |report, at| {
        if let Some(fields) = mapping(report, at) {
            ports.extend(named_port(report, fields, "containerPort"));
        }
    });
}

/// The union of `status.podIPs` and `status.podIP`, in this order.
fn pod_addresses(report: &mut Report, status: Fields<'_>) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    status.each(report, "podIPs", |report, at| {
        if let Some(entry) = mapping(report, at)
            && let Some(at) = entry.get("ip")
        {
            add_address(report, &at, &mut addresses);
        }
    });
    if let Some(at) = status.get("podIP") {
        add_address(report, &at, &mut addresses);
    }
    addresses
}

/// Reads an address into a list that has it only once. The empty text is no address yet.
pub(crate) fn add_address(report: &mut Report, at: &At<'_>, addresses: &mut Vec<IpAddr>) {
    let Some(text) = string(report, at, "address") else { return };
    if text.is_empty() {
        return;
    }
    match parse_ip(text) {
        Ok(address) if addresses.contains(&address) => {}
        Ok(address) => addresses.push(address),
        Err(reason) => report.error(at, format!("\"{}\" is {reason}", shown(text))),
    }
}
