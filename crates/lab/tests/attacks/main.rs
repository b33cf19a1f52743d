//! Whoever may not call a pod tries to, under other names and from other places, where nodes judge for each other and believe
//! each other: with every packet filter, on a routed network and through tunnels.
//!
//! The process enters its namespaces before it has a second thread, so it brings its own `main`.

mod clusters;
mod packet;

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use nix::sched::{CloneFlags, unshare};
use packet::{Ear, send};
use ringfence_analyze::paths::Trip;
use ringfence_analyze::{PlacementOptions, add_endpoint_slices, place, render};
use ringfence_dataplane::iptables::{IptablesBackend, IptablesOptions, Variant};
use ringfence_dataplane::{ApplyError, Backend, NftBackend, NftOptions};
use ringfence_k8s::{Source, parse};
use ringfence_lab::{EndpointIndex, Experiment, Finished, Isolation, NetNs, Tables};
use ringfence_model::{EnforceAt, Enforcement, NodeTraffic, PodNetwork, Topology};

/// The Service leads here.
const SERVED: u16 = 7000;
/// The Service's port on every node.
const NODE_PORT: u16 = 30007;
/// No Service leads here.
const UNSERVED: u16 = 7001;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each trial has networks of its own; side by side they would take each other's processors.
    arguments.test_threads = Some(1);
    if let Err(error) = ringfence_lab::enter(Isolation::Auto) {
        let trial = Trial::test("enter", move || Err(error.into()));
        return libtest_mimic::run(&arguments, vec![trial]).exit_code();
    }
    let mut trials = Vec::new();
    for at in [EnforceAt::Entry, EnforceAt::Everywhere] {
        for network in [PodNetwork::Routed, PodNetwork::Vxlan] {
            let case = Case { at, node_traffic: NodeTraffic::Own, network };
            trials.extend(trials_of(case));
        }
        trials.extend(trials_of(Case { at, node_traffic: NodeTraffic::Policy, network: PodNetwork::Bridge }));
    }
    trials.push(Trial::test("nftables sources", || {
        clusters::sources(Tables::Nft, || NftBackend::new(NftOptions::default()))
    }));
    // The nat table of one iptables does not keep the other's from masquerading.
    for (variant, tables) in [(Variant::Nft, Tables::Nft), (Variant::Legacy, Tables::Legacy)] {
        let name = format!("iptables-{variant:?} sources").to_lowercase();
        trials.push(Trial::test(name, move || clusters::sources(tables, iptables(variant))));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn iptables(variant: Variant) -> impl Fn() -> Result<IptablesBackend, ApplyError> {
    move || IptablesBackend::open(IptablesOptions { variant: Some(variant), ..IptablesOptions::default() })
}

/// A way to run all nodes.
#[derive(Clone, Copy)]
struct Case {
    at: EnforceAt,
    node_traffic: NodeTraffic,
    network: PodNetwork,
}

fn trials_of(case: Case) -> [Trial; 3] {
    let Case { at, node_traffic, network } = case;
    let name = |filter: &str| format!("{filter} {at:?} {node_traffic:?} {network:?}").to_lowercase();
    [
        Trial::test(name("nftables"), move || attack(case, Tables::Nft, || NftBackend::new(NftOptions::default()))),
        Trial::test(name("iptables-nft"), move || attack(case, Tables::Nft, iptables(Variant::Nft))),
        Trial::test(name("iptables-legacy"), move || attack(case, Tables::Legacy, iptables(Variant::Legacy))),
    ]
}

/// The cluster with its policies in force.
struct Site(Finished);

impl Site {
    fn build<B: Backend>(
        case: Case,
        service_tables: Tables,
        open: impl FnMut() -> Result<B, ApplyError>,
    ) -> Result<Site, Failed> {
        // Each trial has a thread, and each thread a first node of its own.
        unshare(CloneFlags::CLONE_NEWNET)?;
        let mut manifests = parse(&[Source { name: "cluster.yaml", text: include_bytes!("cluster.yaml") }]);
        let tunnels = case.network == PodNetwork::Vxlan;
        let options = PlacementOptions { tunnels, ..PlacementOptions::default() };
        place(&mut manifests.objects, &manifests.externals, &options)?;
        add_endpoint_slices(&mut manifests.objects);
        let experiment = Experiment {
            objects: manifests.objects,
            externals: manifests.externals,
            enforcement: Enforcement { at: case.at, node_traffic: case.node_traffic },
            topology: Topology { pod_network: Some(case.network), ..Topology::default() },
            service_tables,
            ..Experiment::default()
        };
        let finished = ringfence_lab::run(experiment, open, &mut |_, _, _| ())?;
        if finished.matrix.differences().next().is_some() || finished.trips.iter().any(Trip::differs) {
            let report = format!("{}\n{}", render::comparison(&finished.matrix), render::paths(&finished.trips));
            return Err(report.into());
        }
        Ok(Site(finished))
    }

    /// The namespace of a pod, a node or the host outside.
    fn of(&self, name: &str) -> Result<&NetNs, Failed> {
        let network = &self.0.network;
        if let Some(node) = network.node_named(name).and_then(|node| network.node(node)) {
            return Ok(node.namespace());
        }
        Ok(network.namespace(self.end(name)?).ok_or(name.to_owned())?)
    }

    fn end(&self, name: &str) -> Result<EndpointIndex, Failed> {
        let label = if name == "friend" { "203.0.113.10".to_owned() } else { format!("default/{name}") };
        let position = self.0.matrix.ends.iter().position(|end| end.label == label);
        Ok(EndpointIndex(position.ok_or(label)?))
    }

    /// The address of a pod or node of a family; of a node's tunnel end with `tunnel:` before its name.
    fn address(&self, name: &str, is_v4: bool) -> Result<IpAddr, Failed> {
        let network = &self.0.network;
        let (tunnel, name) = name.strip_prefix("tunnel:").map_or((false, name), |name| (true, name));
        let addresses = match network.node_named(name).and_then(|node| network.node(node)) {
            Some(node) if tunnel => node.tunnel_addresses(),
            Some(node) => node.addresses(),
            None => &self.0.matrix.ends[self.end(name)?.0].addresses,
        };
        let address = addresses.iter().find(|address| address.is_ipv4() == is_v4);
        Ok(*address.ok_or_else(|| format!("{name} has no such address"))?)
    }
}

/// One packet: who sends it, as whom, to which pod and port; `pod@node` is that node's address, whose port leads to the pod.
type Attempt = (&'static str, &'static str, &'static str, u16);

fn attack<B: Backend>(case: Case, tables: Tables, open: impl FnMut() -> Result<B, ApplyError>) -> Result<(), Failed> {
    let site = Site::build(case, tables, open)?;
    let mut wrong = Vec::new();
    let mut from_port = 4000;
    for is_v4 in [true, false] {
        for (attempt, passes) in attempts(case) {
            // No packet belongs to the connection of another.
            from_port += 1;
            let (sender, claimed, to, port) = attempt;
            let payload = format!("from {sender} as {claimed} to {to} {port} {is_v4}");
            let (pod, at) = to.split_once('@').unwrap_or((to, to));
            let ear = Ear::open(site.of(pod)?, is_v4)?;
            let destination = SocketAddr::new(site.address(at, is_v4)?, port);
            // A packet filter in the sender's own namespace tells it.
            let source = SocketAddr::new(site.address(claimed, is_v4)?, from_port);
            let sent = send(site.of(sender)?, source, destination, payload.as_bytes());
            if let Err(error) = sent
                && error.kind() != std::io::ErrorKind::PermissionDenied
            {
                return Err(format!("{payload}: {error}").into());
            }
            let patience = Duration::from_millis(if passes { 2000 } else { 60 });
            if ear.hears(payload.as_bytes(), patience)? != passes {
                wrong.push(format!("{payload}: {}", if passes { "lost" } else { "arrived" }));
            }
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}

/// What is tried, and whether it must arrive.
fn attempts(case: Case) -> Vec<(Attempt, bool)> {
    let believes = case.node_traffic == NodeTraffic::Own;
    let everywhere = case.at == EnforceAt::Everywhere;
    let refused = [
        // Pods of the destination's node and of a third one, under their own names and those of nodes.
        ("near", "near", "web", SERVED),
        ("near", "n1", "web", SERVED),
        ("near", "n2", "web", SERVED),
        ("near", "n2", "web", UNSERVED),
        ("near", "n2", "hidden", SERVED),
        ("far", "far", "web", SERVED),
        ("far", "n1", "web", SERVED),
        ("far", "n2", "web", SERVED),
        ("far", "n2", "web", UNSERVED),
        ("far", "n3", "web", SERVED),
        ("far", "far", "hidden", SERVED),
        ("far", "n1", "hidden", SERVED),
        ("far", "n2", "hidden", SERVED),
        ("far", "n3", "hidden", SERVED),
        // Processes and pods on the network of another node, at the port that the Service leads to and others. Raw sockets
        // can claim other names there, too.
        ("n2", "n2", "web", SERVED),
        ("n2", "n2", "web", UNSERVED),
        ("n2", "n2", "hidden", SERVED),
        ("daemon", "daemon", "web", SERVED),
        ("daemon", "daemon", "hidden", SERVED),
        // The pod's own node by its port, from where no other node judges: it leads the packet on, so it judges.
        ("n2", "n2", "web@n1", NODE_PORT),
        ("daemon", "daemon", "web@n1", NODE_PORT),
        ("near", "near", "web@n1", NODE_PORT),
        ("far", "far", "web@n1", NODE_PORT),
        ("far", "n2", "web@n1", NODE_PORT),
        ("friend", "n2", "web@n1", NODE_PORT),
    ];
    let mut attempts: Vec<(Attempt, bool)> = refused.map(|attempt| (attempt, false)).to_vec();
    // What is heard otherwise.
    attempts.push((("friend", "friend", "web", SERVED), true));
    attempts.push((("friend", "friend", "web", UNSERVED), true));
    attempts.push((("friend", "friend", "hidden", SERVED), true));
    attempts.push((("n1", "n1", "web", SERVED), true));
    attempts.push((("friend", "friend", "web@n1", NODE_PORT), true));
    // It arrives under the other node's address.
    attempts.push((("friend", "friend", "web@n2", NODE_PORT), believes));
    // By design: who can send from the network between nodes under a node's name is believed as that node is.
    attempts.push((("friend", "n2", "web", SERVED), believes));
    attempts.push((("friend", "n2", "web", UNSERVED), believes && everywhere));
    attempts.push((("friend", "n2", "hidden", SERVED), believes && everywhere));
    // The address of the own node proves nothing on the way in.
    attempts.push((("friend", "n1", "web", SERVED), false));
    if case.network == PodNetwork::Vxlan {
        // A tunnel's end is where the tunnel is.
        attempts.push((("friend", "tunnel:n2", "web", SERVED), false));
        attempts.push((("near", "tunnel:n2", "web", SERVED), false));
        attempts.push((("far", "tunnel:n2", "web", SERVED), false));
    }
    attempts
}
