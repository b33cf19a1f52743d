//! The lab's network with real packets. `main` leaves the host's namespaces before the first test starts a thread, so
//! these tests run as anybody and touch nothing outside. `nft` and iptables (both variants) must be installed.

// Clippy knows tests by their attribute, which these have not: their `main` is their own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and the labs that tests start report on standard output"
)]

use std::env;
use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::{Arguments, Trial};
use ringfence_lab::{
    EndpointIndex, EndpointSpec, EnterError, Isolation, NetNs, Network, NetworkSpec, NodeIndex, NodeSpec, Origin,
    Place, Probe, ProbeOutcome, Timeouts, enter,
};
use ringfence_model::Protocol;
use tokio::task::JoinSet;

mod cluster;
mod kept;
mod services;

/// What a process that a test starts shall do instead of running tests.
const ROLE: &str = "RINGFENCE_LAB_TEST_ROLE";

fn main() {
    match env::var(ROLE).as_deref() {
        Ok("keep") => kept::keep_a_lab(),
        Ok(place) => kept::run_in_the_lab(place),
        Err(_) => {}
    }
    let entered = enter(isolation()).expect("the tests need user namespaces or root");
    println!("entered: {entered:?}");
    let tests: [(&str, fn()); 24] = [
        ("every_pair_and_protocol_in_both_families", every_pair_and_protocol_in_both_families),
        ("the_source_address_is_the_one_asked_for", the_source_address_is_the_one_asked_for),
        ("only_what_the_packet_filter_accepts_gets_through", only_what_the_packet_filter_accepts_gets_through),
        ("every_way_to_reject_is_a_refusal", every_way_to_reject_is_a_refusal),
        ("the_nodes_own_packets_can_be_rejected", the_nodes_own_packets_can_be_rejected),
        ("refusals_are_told_apart_between_the_same_two_hosts", refusals_are_told_apart_between_the_same_two_hosts),
        ("a_hundred_endpoints_in_a_full_mesh", a_hundred_endpoints_in_a_full_mesh),
        ("everybody_reaches_everybody_from_where_they_are", cluster::everybody_reaches_everybody_from_where_they_are),
        ("refusals_come_back_across_nodes", cluster::refusals_come_back_across_nodes),
        ("bridged_packets_can_go_past_the_packet_filter", cluster::bridged_packets_can_go_past_the_packet_filter),
        ("the_overlay_carries_what_pods_send", cluster::the_overlay_carries_what_pods_send),
        ("masquerading_hides_what_it_should", cluster::masquerading_hides_what_it_should),
        ("connections_can_be_asked_for_and_forgotten", cluster::connections_can_be_asked_for_and_forgotten),
        ("a_family_that_nobody_speaks_is_left_out", cluster::a_family_that_nobody_speaks_is_left_out),
        ("large_networks_are_built_quickly", cluster::large_networks_are_built_quickly),
        ("every_way_through_a_service", services::every_way_through_a_service),
        ("every_way_through_a_service_of_ip_tables", services::every_way_through_a_service_of_ip_tables),
        ("masquerade_all_replaces_every_source", services::masquerade_all_replaces_every_source),
        ("connections_are_spread_over_backends", services::connections_are_spread_over_backends),
        ("a_thread_returns_home_after_a_panic", a_thread_returns_home_after_a_panic),
        ("threads_cannot_enter", threads_cannot_enter),
        ("nothing_is_left_of_a_killed_lab", kept::nothing_is_left_of_a_killed_lab),
        ("commands_run_in_a_kept_lab", kept::commands_run_in_a_kept_lab),
        ("stale_and_foreign_state_files_are_no_labs", kept::stale_and_foreign_state_files_are_no_labs),
    ];
    let trials = tests.into_iter().map(|(name, test)| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

/// How these tests and the labs they start leave the host: as `RINGFENCE_LAB_TEST_ISOLATION` says (`user`, `root`), or
/// as they can.
fn isolation() -> Isolation {
    match env::var("RINGFENCE_LAB_TEST_ISOLATION").as_deref() {
        Ok("user") => Isolation::UserNamespace,
        Ok("root") => Isolation::RootOnly,
        _ => Isolation::Auto,
    }
}

const TCP: Protocol = Protocol::Tcp;
const UDP: Protocol = Protocol::Udp;
const SCTP: Protocol = Protocol::Sctp;

/// Where every endpoint of [`small`] listens over every protocol, and where none does.
const OPEN: u16 = 7000;
const CLOSED: u16 = 7001;

/// Short, for tests that expect silence.
const IMPATIENT: Timeouts = Timeouts { attempt: Duration::from_millis(300), tcp_attempts: 1, datagram_attempts: 1 };
/// Long, for tests that expect anything else: a loaded machine must not fail them.
const PATIENT: Timeouts = Timeouts { attempt: Duration::from_secs(5), tcp_attempts: 4, datagram_attempts: 4 };

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The only node, or the first of several.
const FIRST: NodeIndex = NodeIndex(0);
const POD: Place = Place::Pod { node: FIRST };
const HOST_NETWORK: Place = Place::HostNetwork { node: FIRST };

fn endpoint(name: &str, addresses: &[&str], place: Place) -> EndpointSpec {
    let listen = Protocol::ALL.into_iter().flat_map(|protocol| [(protocol, OPEN), (protocol, OPEN)]).collect();
    EndpointSpec { name: name.to_owned(), place, addresses: addresses.iter().map(|text| ip(text)).collect(), listen }
}

const NODE: [&str; 2] = ["192.0.2.1", "2001:db8:ffff::1"];
const V4: usize = 0;
const V6: usize = 1;
const DUAL: usize = 2;
const HOST: usize = 4;

/// A pod of each family, one of both, an external host, and a pod in the host network.
fn small() -> NetworkSpec {
    NetworkSpec {
        nodes: one_node(),
        endpoints: vec![
            endpoint("default/four", &["10.0.0.1"], POD),
            endpoint("default/six", &["2001:db8::2"], POD),
            endpoint("default/dual", &["10.0.0.3", "2001:db8::3"], POD),
            endpoint("external", &["198.51.100.7", "2001:db8:e::7"], Place::External),
            endpoint("kube-system/proxy", &[], HOST_NETWORK),
        ],
        ..NetworkSpec::default()
    }
}

fn one_node() -> Vec<NodeSpec> {
    vec![NodeSpec { name: "node-1".to_owned(), addresses: NODE.map(ip).to_vec(), ..NodeSpec::default() }]
}

/// A network in namespaces of its own, its listeners up, and the runtime that drives it.
struct Lab {
    runtime: tokio::runtime::Runtime,
    network: Arc<Network>,
}

impl Lab {
    fn new(spec: NetworkSpec) -> Lab {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let network = Network::build_around(vec![NetNs::create().unwrap()], spec, &mut |_, _| {}).unwrap();
        runtime.block_on(network.listen()).unwrap();
        Lab { runtime, network: Arc::new(network) }
    }

    fn probe(&self, from: Origin, to: &str, protocol: Protocol, port: u16, timeouts: &Timeouts) -> String {
        let probe = Probe { from, source: None, destination: ip(to), protocol, port };
        self.runtime.block_on(async { said(self.network.probe(probe, timeouts).await) })
    }

    fn check(&self, from: Origin, to: &str, protocol: Protocol, port: u16, expected: &str) {
        let timeouts = if expected == "silence" { IMPATIENT } else { PATIENT };
        let measured = self.probe(from, to, protocol, port, &timeouts);
        assert_eq!(measured, expected, "{from:?} to {to} {protocol} {port}");
    }

    /// Runs all of them at once.
    fn probe_all(&self, probes: impl Iterator<Item = Probe>) -> Vec<(Probe, String)> {
        self.runtime.block_on(async {
            let mut running = JoinSet::new();
            for probe in probes {
                let network = Arc::clone(&self.network);
                running.spawn(async move { (probe, said(network.probe(probe, &PATIENT).await)) });
            }
            running.join_all().await
        })
    }

    /// Runs `nft` on the first node with a script.
    fn nft(&self, script: &str) -> String {
        self.nft_on(FIRST, script)
    }

    fn nft_on(&self, node: NodeIndex, script: &str) -> String {
        let output = self.network.node(node).unwrap().namespace().within(|| {
            let mut nft = Command::new("nft")
                .args(["-f", "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("nft must be installed (Debian: nftables)");
            nft.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
            nft.wait_with_output().unwrap()
        });
        let output = output.unwrap();
        assert!(output.status.success(), "nft failed on {script}");
        String::from_utf8(output.stdout).unwrap()
    }
}

fn said(outcome: ProbeOutcome) -> String {
    match outcome {
        ProbeOutcome::Answered { by, .. } => by,
        ProbeOutcome::Refused(how) => format!("{how:?}"),
        ProbeOutcome::TimedOut => "silence".to_owned(),
        ProbeOutcome::Failed(error) => format!("failed: {error}"),
    }
}

fn pod(position: usize) -> Origin {
    Origin::Endpoint(EndpointIndex(position))
}

/// Also every endpoint to itself, through its own `lo`.
fn every_pair_and_protocol_in_both_families() {
    let lab = Lab::new(small());
    let addresses = [
        ("10.0.0.1", "default/four"),
        ("2001:db8::2", "default/six"),
        ("10.0.0.3", "default/dual"),
        ("2001:db8::3", "default/dual"),
        ("198.51.100.7", "external"),
        ("2001:db8:e::7", "external"),
        (NODE[0], "kube-system/proxy"),
        (NODE[1], "kube-system/proxy"),
    ];
    let origins = [Origin::Node(FIRST)].into_iter().chain((0..=HOST).map(pod));
    for (origin, (to, name)) in origins.flat_map(|origin| addresses.map(|address| (origin, address))) {
        let foreign = if ip(to).is_ipv4() { pod(V6) } else { pod(V4) };
        for protocol in Protocol::ALL {
            let (open, closed) = if origin == foreign {
                let no_source = format!("failed: the probe's origin has no address of the family of {to}");
                (no_source.clone(), no_source)
            } else {
                (name.to_owned(), "Closed".to_owned())
            };
            lab.check(origin, to, protocol, OPEN, &open);
            lab.check(origin, to, protocol, CLOSED, &closed);
        }
    }
    assert!(lab.network.warnings().is_empty());
    assert_eq!(lab.network.interface(EndpointIndex(DUAL)).as_deref(), Some("rf2"));
    assert_eq!(lab.network.interface(EndpointIndex(HOST)), None);
}

fn the_source_address_is_the_one_asked_for() {
    let mut spec = small();
    spec.endpoints[DUAL].addresses.push(ip("10.0.0.33"));
    let lab = Lab::new(spec);
    lab.nft("table inet t { chain c { type filter hook forward priority 0; ip saddr 10.0.0.3 drop; }; }");
    for protocol in Protocol::ALL {
        for (source, expected) in
            [(None, "silence"), (Some("10.0.0.33"), "default/four"), (Some("10.0.0.3"), "silence")]
        {
            let source = source.map(ip);
            let probe = Probe { from: pod(DUAL), source, destination: ip("10.0.0.1"), protocol, port: OPEN };
            let timeouts = if expected == "silence" { IMPATIENT } else { PATIENT };
            let measured = lab.runtime.block_on(async { said(lab.network.probe(probe, &timeouts).await) });
            assert_eq!(measured, expected, "{protocol} from {source:?}");
        }
    }
}

/// The answers pass as "established" only: so connection tracking takes the lab's SCTP packets for sound ones.
fn only_what_the_packet_filter_accepts_gets_through() {
    let lab = Lab::new(small());
    lab.nft(
        "table inet t { chain c { type filter hook forward priority 0; policy drop;
            ct state invalid counter drop
            ct state established counter accept
            ct state related accept
            iifname rf2 ct state new accept
        }; }",
    );
    for protocol in Protocol::ALL {
        lab.check(pod(DUAL), "10.0.0.1", protocol, OPEN, "default/four");
        lab.check(pod(DUAL), "2001:db8::2", protocol, OPEN, "default/six");
        lab.check(pod(DUAL), "198.51.100.7", protocol, CLOSED, "Closed");
        lab.check(pod(V4), "10.0.0.3", protocol, OPEN, "silence");
        lab.check(pod(V6), "2001:db8::3", protocol, OPEN, "silence");
        // Neither the node's own packets nor a pod's to itself are forwarded.
        lab.check(Origin::Node(FIRST), "10.0.0.3", protocol, OPEN, "default/dual");
        lab.check(pod(V4), "10.0.0.1", protocol, OPEN, "default/four");
    }
    let rules = lab.nft("list ruleset");
    assert!(rules.contains("ct state invalid counter packets 0 bytes 0 drop"), "invalid packets: {rules}");
    assert!(!rules.contains("ct state established counter packets 0 "), "no established packets: {rules}");
}

fn every_way_to_reject_is_a_refusal() {
    for (how, v4, v6) in [
        ("icmpx port-unreachable", "Closed", "Closed"),
        ("icmpx host-unreachable", "Unreachable", "Unreachable"),
        ("icmpx no-route", "Unreachable", "Unreachable"),
        ("icmpx admin-prohibited", "Unreachable", "Prohibited"),
    ] {
        let lab = Lab::new(small());
        lab.nft(&format!(
            "table inet t {{ chain c {{ type filter hook forward priority 0; oifname rf2 reject with {how}; }}; }}"
        ));
        for protocol in Protocol::ALL {
            lab.check(pod(V4), "10.0.0.3", protocol, OPEN, v4);
            lab.check(pod(V6), "2001:db8::3", protocol, OPEN, v6);
        }
    }
    let lab = Lab::new(small());
    lab.nft(
        "table inet t { chain c { type filter hook forward priority 0; meta l4proto tcp oifname rf2 reject with tcp reset; }; }",
    );
    lab.check(pod(V4), "10.0.0.3", TCP, OPEN, "Closed");
    lab.check(pod(V6), "2001:db8::3", TCP, OPEN, "Closed");
    lab.check(pod(V4), "10.0.0.3", UDP, OPEN, "default/dual");
}

/// A packet filter on the way out also fails the system call that sends; that is the filter's answer, not a fault.
fn the_nodes_own_packets_can_be_rejected() {
    for verdict in ["reject with icmpx port-unreachable", "drop"] {
        let lab = Lab::new(small());
        lab.nft(&format!(
            "table inet t {{ chain c {{ type filter hook output priority 0; oifname rf2 {verdict}; }}; }}"
        ));
        for (protocol, to) in
            Protocol::ALL.into_iter().flat_map(|protocol| [(protocol, "10.0.0.3"), (protocol, "2001:db8::3")])
        {
            let measured = lab.probe(Origin::Node(FIRST), to, protocol, OPEN, &IMPATIENT);
            assert!(["Closed", "Prohibited", "silence"].contains(&measured.as_str()), "{protocol} {to}: {measured}");
            lab.check(Origin::Node(FIRST), "10.0.0.1", protocol, OPEN, "default/four");
        }
    }
}

/// Raw sockets get the ICMP errors about each other's packets; every SCTP probe must see through that.
fn refusals_are_told_apart_between_the_same_two_hosts() {
    let lab = Lab::new(small());
    lab.nft("table inet t { chain c { type filter hook forward priority 0; sctp dport 7001 reject with icmpx host-unreachable; }; }");
    let probe = |number: u16| {
        let port = OPEN + number % 3;
        Probe { from: pod(V4), source: None, destination: ip("10.0.0.3"), protocol: SCTP, port }
    };
    for (probe, outcome) in lab.probe_all((0..150_u16).map(probe)) {
        let expected = ["default/dual", "Unreachable", "Closed"][usize::from(probe.port - OPEN)];
        assert_eq!(outcome, expected, "port {}", probe.port);
    }
}

fn a_hundred_endpoints_in_a_full_mesh() {
    let lab = Lab::new(mesh(100));
    assert_eq!(lab.probe_mesh(100, "10.1.0.", TCP), 10_000);
}

/// Dual-stack endpoints, numbered from 1.
fn mesh(count: usize) -> NetworkSpec {
    let addresses = |number| [format!("10.1.0.{number}"), format!("2001:db8:1::{number}")];
    let endpoints = (1..=count).map(|number| {
        let [v4, v6] = addresses(number);
        endpoint(&format!("mesh/{number}"), &[&v4, &v6], POD)
    });
    NetworkSpec { nodes: one_node(), endpoints: endpoints.collect(), ..NetworkSpec::default() }
}

impl Lab {
    /// Probes between all pairs of a [`mesh`], all at once, and returns how many there were.
    fn probe_mesh(&self, count: usize, prefix: &str, protocol: Protocol) -> usize {
        let pairs = (1..=count).flat_map(|from| (1..=count).map(move |to| (from, to)));
        let probes = pairs.map(|(from, to)| {
            let destination = ip(&format!("{prefix}{to}"));
            Probe { from: pod(from - 1), source: None, destination, protocol, port: OPEN }
        });
        let outcomes = self.probe_all(probes);
        for (probe, outcome) in &outcomes {
            let number = probe.destination.to_string().split_off(prefix.len());
            assert_eq!(outcome, &format!("mesh/{number}"), "{probe:?}");
        }
        outcomes.len()
    }
}

/// The calling thread's network namespace, by name.
fn here() -> PathBuf {
    fs::read_link("/proc/thread-self/ns/net").unwrap()
}

fn a_thread_returns_home_after_a_panic() {
    let namespace = NetNs::create().unwrap();
    let home = here();
    let inside = namespace.within(here).unwrap();
    assert_ne!(inside, home);
    assert_eq!(here(), home);
    let panicked = std::panic::catch_unwind(|| namespace.within(|| panic!("in {:?}", here())));
    assert!(panicked.is_err());
    assert_eq!(here(), home);
    let nested = namespace.within(|| NetNs::create().unwrap().within(here).unwrap()).unwrap();
    assert!(nested != home && nested != inside);
    assert_eq!(here(), home);
}

fn threads_cannot_enter() {
    assert!(matches!(enter(Isolation::Auto), Err(EnterError::Threads(2..))));
}
