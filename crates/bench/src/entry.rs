//! What it costs a connection that its entry node judges, too: the first packet with many Service backends, where policies
//! are enforced at the destination and where they are enforced on entry.

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr};

use comfy_table::Table;
use ringfence_compile::{Cluster, Compiler, Touched};
use ringfence_dataplane::{Backend, Demand, IptablesBackend, IptablesOptions, NftBackend, NftOptions, Reconciler};
use ringfence_model::{
    Endpoint, EndpointSlice, EnforceAt, Enforcement, ExternalTraffic, Node, NodeTraffic, Object, Protocol, Service,
    ServiceKind,
};
use serde::Serialize;

use crate::cluster::{CLIENT, OTHER_NODE, OUR_NODE, PORT, SERVER, app, our_node, own, pod, policy, rule};
use crate::filter::Filter;
use crate::report::{Report, markdown, median, ratios};
use crate::site::{Site, conntrack_only};

/// How many backends a slice has at most, as with the controller of Kubernetes.
const SLICE: usize = 100;
/// How many namespaces the backends are in.
const NAMESPACES: u32 = 20;

/// The first packet of a new flow through one node.
#[derive(Serialize)]
pub(crate) struct Entry {
    filter: String,
    enforce_at: String,
    /// Whether the pod that is called runs on this node.
    pod_is_here: bool,
    backends: u32,
    first_packet_us: f64,
    ratio_to_conntrack_only: f64,
    /// Of rounds in which both were measured one after the other. With the pod elsewhere, `destination` asks nothing.
    ratio_to_destination: f64,
}

struct Case {
    filter: Filter,
    at: EnforceAt,
    here: bool,
    site: Site,
}

pub(crate) fn measure(
    backends: u32,
    filters: &[Filter],
    rounds: usize,
    flows: usize,
    report: &mut Report,
) -> Result<(), Box<dyn Error>> {
    let baseline = Site::new("conntrack only", conntrack_only)?;
    let mut cases = Vec::new();
    for &filter in filters {
        for here in [true, false] {
            for at in [EnforceAt::Destination, EnforceAt::Entry, EnforceAt::Everywhere] {
                let name = format!("{filter}, {at:?}, pod {}", if here { "here" } else { "elsewhere" });
                report.progress(&format!("loading {backends} backends: {name}"));
                let site = Site::new(&name, || filter.judge(objects(backends, here), at))?;
                if here || at != EnforceAt::Destination {
                    site.check_refusal()?;
                }
                cases.push(Case { filter, at, here, site });
            }
        }
    }
    let mut base = Vec::new();
    let mut samples = vec![Vec::new(); cases.len()];
    for round in 0..=rounds {
        report.progress(&format!("entry, round {round} of {rounds}"));
        let reference = baseline.first_packets(flows)?;
        let row: Vec<f64> = cases.iter().map(|case| case.site.first_packets(flows)).collect::<Result<_, _>>()?;
        // The first round warms caches and is not counted.
        if round > 0 {
            base.push(reference);
            for (samples, sample) in samples.iter_mut().zip(row) {
                samples.push(sample);
            }
        }
    }
    for (position, case) in cases.iter().enumerate() {
        let destination = cases
            .iter()
            .position(|other| (other.filter, other.here, other.at) == (case.filter, case.here, EnforceAt::Destination));
        let destination = destination.and_then(|position| samples.get(position)).ok_or("nothing to compare with")?;
        report.entry.push(Entry {
            filter: case.filter.to_string(),
            enforce_at: format!("{:?}", case.at).to_lowercase(),
            pod_is_here: case.here,
            backends,
            first_packet_us: median(samples[position].clone()),
            ratio_to_conntrack_only: median(ratios(&samples[position], &base)),
            ratio_to_destination: median(ratios(&samples[position], destination)),
        });
    }
    Ok(())
}

impl Filter {
    /// Enforces what the policies of `objects` say, in the network namespace of the calling thread.
    fn judge(self, objects: Vec<Object>, at: EnforceAt) -> Result<(), Box<dyn Error>> {
        match self {
            Filter::Nftables => judge(NftBackend::new(NftOptions::default())?, objects, at),
            Filter::Iptables(variant) => {
                let options = IptablesOptions { variant: Some(variant), ..IptablesOptions::default() };
                judge(IptablesBackend::open(options)?, objects, at)
            }
        }
    }
}

fn judge<B: Backend>(backend: B, objects: Vec<Object>, at: EnforceAt) -> Result<(), Box<dyn Error>> {
    type CompilerOf<B> = <<B as Backend>::Demand as Demand>::Compiler;
    let mut cluster = Cluster::new();
    let mut touched = Touched::default();
    cluster.reset(objects, &mut touched)?;
    let enforcement = Enforcement { at, node_traffic: NodeTraffic::Own };
    let mut compiler = CompilerOf::<B>::for_node(OUR_NODE.into()).with_enforcement(enforcement);
    Reconciler::new(backend).apply(&compiler.compile(&cluster, &touched))?;
    Ok(())
}

/// Isolated pods behind node ports, each of which lets in the clients of its namespace. One of them is called.
fn objects(backends: u32, here: bool) -> Vec<Object> {
    let other = Node {
        name: OTHER_NODE.into(),
        addresses: vec![IpAddr::V4(Ipv4Addr::new(192, 0, 2, 11))],
        tunnel_addresses: vec![IpAddr::V4(Ipv4Addr::new(10, 254, 0, 1))],
        announced: None,
        pod_cidrs: Vec::new(),
    };
    let mut objects = vec![our_node(), Object::Node(other)];
    for namespace in 0..NAMESPACES {
        let name = format!("shop-{namespace}");
        let mut addresses: Vec<IpAddr> = Vec::new();
        for number in (namespace..backends).step_by(usize::try_from(NAMESPACES).unwrap_or(1)) {
            let address = if number == 0 { SERVER } else { IpAddr::V4(Ipv4Addr::from(0x0a64_0000 + number)) };
            // As many backends run here as on an ordinary node.
            let node = if (number == 0 && here) || number % 20 == 1 { OUR_NODE } else { OTHER_NODE };
            objects.push(Object::Pod(pod(&name, &format!("backend-{number}"), address, "backend", node)));
            addresses.push(address);
        }
        let client = if namespace == 0 { CLIENT } else { IpAddr::V4(Ipv4Addr::from(0x0a65_0000 + namespace)) };
        objects.push(Object::Pod(pod(&name, &format!("client-{namespace}"), client, "client", OTHER_NODE)));
        let allow = rule(own(app("client")), PORT);
        objects.push(Object::Policy(policy(&name, "backend", app("backend"), vec![allow], vec![])));
        objects.push(Object::Service(Service {
            namespace: name.as_str().into(),
            name: "backend".into(),
            kind: ServiceKind::NodePort,
            selector: std::iter::once(("app".into(), "backend".into())).collect(),
            cluster_addresses: Vec::new(),
            external_addresses: Vec::new(),
            external_traffic: ExternalTraffic::Cluster,
            ports: Vec::new(),
        }));
        for (position, addresses) in addresses.chunks(SLICE).enumerate() {
            objects.push(Object::EndpointSlice(EndpointSlice {
                namespace: name.as_str().into(),
                name: format!("backend-{position}").into(),
                service: Some("backend".into()),
                endpoints: addresses.iter().map(|&address| Endpoint { address, serving: true }).collect(),
                ports: vec![(Protocol::Udp, PORT)],
            }));
        }
    }
    objects
}

/// What was measured.
pub(crate) fn tables(all: &[Entry]) -> Vec<(String, Table)> {
    let mut table = markdown(&[
        "packet filter",
        "enforce at",
        "the pod is",
        "backends",
        "first packet, us",
        "to conntrack only",
        "to destination",
    ]);
    for row in all {
        table.add_row([
            row.filter.clone(),
            row.enforce_at.clone(),
            if row.pod_is_here { "here" } else { "elsewhere" }.to_owned(),
            row.backends.to_string(),
            format!("{:.1}", row.first_packet_us),
            format!("{:.3}", row.ratio_to_conntrack_only),
            format!("{:.3}", row.ratio_to_destination),
        ]);
    }
    vec![("First packets where entry nodes judge, too".to_owned(), table)]
}
