//! Several nodes: who reaches whom, over each kind of pod network, and from where it seems to come.

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ringfence_lab::{EndpointIndex, NetNs, NetworkSpec, Node, NodeIndex, NodeSpec, Origin, Place, Probe, ProbeOutcome};
use ringfence_model::{Masquerade, PodNetwork, Protocol};

use crate::{CLOSED, Lab, OPEN, PATIENT, endpoint, ip, pod, said};

pub(crate) const ONE: NodeIndex = NodeIndex(0);
pub(crate) const TWO: NodeIndex = NodeIndex(1);
pub(crate) const THREE: NodeIndex = NodeIndex(2);

pub(crate) const A1: usize = 0;
pub(crate) const B1: usize = 1;
pub(crate) const A2: usize = 2;
pub(crate) const HOST_B: usize = 3;
pub(crate) const OFFICE: usize = 4;

pub(crate) const NETWORKS: [PodNetwork; 3] = [PodNetwork::Routed, PodNetwork::Bridge, PodNetwork::Vxlan];

/// Three nodes, the last without pods; `a1` and `a2` on the first, `b1` and, in the host network, `host-b` on the second;
/// and a host outside. Addresses do not tell on which node a pod is.
pub(crate) fn cluster(pod_network: PodNetwork) -> NetworkSpec {
    let node = |number: usize| NodeSpec {
        name: format!("node-{number}"),
        addresses: vec![ip(&format!("192.0.2.{number}")), ip(&format!("2001:db8:ffff::{number}"))],
        ..NodeSpec::default()
    };
    let on = |node| Place::Pod { node };
    NetworkSpec {
        nodes: (1..=3).map(node).collect(),
        pod_network,
        endpoints: vec![
            endpoint("default/a1", &["10.0.0.1", "2001:db8::1"], on(ONE)),
            endpoint("default/b1", &["10.0.0.2", "2001:db8::2"], on(TWO)),
            endpoint("default/a2", &["10.0.0.3", "2001:db8::3"], on(ONE)),
            endpoint("default/host-b", &[], Place::HostNetwork { node: TWO }),
            endpoint("office", &["198.51.100.7", "2001:db8:e::7"], Place::External),
        ],
        ..NetworkSpec::default()
    }
}

/// Who answered, and from where the connection seemed to come to the listener.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) by: String,
    pub(crate) seen: SocketAddr,
}

impl Lab {
    /// The address of a family that an origin's packets come from.
    pub(crate) fn address(&self, of: Origin, is_v4: bool) -> IpAddr {
        let spec = cluster(PodNetwork::Routed);
        let addresses = match of {
            Origin::Node(NodeIndex(number)) => &spec.nodes[number].addresses,
            Origin::Endpoint(EndpointIndex(HOST_B)) => &spec.nodes[TWO.0].addresses,
            Origin::Endpoint(EndpointIndex(number)) => &spec.endpoints[number].addresses,
        };
        *addresses.iter().find(|address| address.is_ipv4() == is_v4).unwrap()
    }

    pub(crate) fn ask(&self, from: Origin, to: IpAddr, protocol: Protocol, port: u16) -> Answer {
        let probe = Probe { from, source: None, destination: to, protocol, port };
        match self.runtime.block_on(self.network.probe(probe, &PATIENT)) {
            ProbeOutcome::Answered { by, seen } => Answer { by, seen },
            other => panic!("{from:?} to {to} {protocol} {port}: {}", said(other)),
        }
    }

    /// Switches connection tracking on, on all nodes.
    pub(crate) fn track(&self) {
        for number in 0..self.network.nodes().len() {
            let script =
                "table inet track { chain forward { type filter hook forward priority 0; ct state new accept; }; }";
            self.nft_on(NodeIndex(number), script);
        }
    }

    pub(crate) fn fabric_nft(&self, script: &str) {
        run(self.network.fabric(), "nft", &["-f", "-"], script);
    }
}

fn run(namespace: &NetNs, program: &str, arguments: &[&str], input: &str) {
    let spawn = || {
        let path = "/usr/sbin:/sbin:/usr/bin:/bin";
        let mut command = Command::new(program);
        command.args(arguments).env("PATH", path).env("XTABLES_LOCKFILE", "/proc/self/ns/net");
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait().unwrap()
    };
    assert!(namespace.within(spawn).unwrap().success(), "{program} {arguments:?} failed on {input}");
}

/// All nodes and endpoints to all endpoints, over all protocols and both families, without any translation.
pub(crate) fn everybody_reaches_everybody_from_where_they_are() {
    for pod_network in NETWORKS {
        let lab = Lab::new(cluster(pod_network));
        assert_eq!(lab.network.warnings(), []);
        let names = ["default/a1", "default/b1", "default/a2", "default/host-b", "office"];
        let nodes = [ONE, TWO, THREE].map(Origin::Node);
        for from in nodes.into_iter().chain((A1..=OFFICE).map(pod)) {
            for (to, is_v4) in (A1..=OFFICE).flat_map(|to| [(to, true), (to, false)]) {
                for protocol in Protocol::ALL {
                    let destination = lab.address(pod(to), is_v4);
                    let Answer { by, seen } = lab.ask(from, destination, protocol, OPEN);
                    let way = format!("{pod_network:?}, {protocol}: {from:?} to {destination}");
                    assert_eq!((by.as_str(), seen.ip()), (names[to], lab.address(from, is_v4)), "{way}");
                }
            }
        }
        for (from, to) in [(A1, A2), (A1, B1), (A1, HOST_B), (A1, OFFICE), (OFFICE, B1), (OFFICE, HOST_B)] {
            for (is_v4, protocol) in
                Protocol::ALL.into_iter().flat_map(|protocol| [(true, protocol), (false, protocol)])
            {
                let destination = lab.address(pod(to), is_v4).to_string();
                lab.check(pod(from), &destination, protocol, CLOSED, "Closed");
            }
        }
    }
}

/// ICMP errors come from the fabric, which knows that nobody has an address, and from the node of a pod.
pub(crate) fn refusals_come_back_across_nodes() {
    for pod_network in NETWORKS {
        let lab = Lab::new(cluster(pod_network));
        for from in [pod(A1), pod(B1), pod(OFFICE), Origin::Node(ONE), Origin::Node(THREE)] {
            for (nobody, protocol) in
                Protocol::ALL.into_iter().flat_map(|protocol| [("203.0.113.9", protocol), ("2001:db8:9::9", protocol)])
            {
                lab.check(from, nobody, protocol, OPEN, "Unreachable");
            }
        }
        lab.nft_on(
            ONE,
            "table inet t { chain c { type filter hook forward priority 0;
                ip daddr 10.0.0.3 reject with icmpx admin-prohibited; ip6 daddr 2001:db8::3 reject with icmpx admin-prohibited; }; }",
        );
        for from in [pod(A1), pod(B1), pod(OFFICE), Origin::Node(TWO)] {
            for protocol in Protocol::ALL {
                lab.check(from, "10.0.0.3", protocol, OPEN, "Unreachable");
                lab.check(from, "2001:db8::3", protocol, OPEN, "Prohibited");
            }
        }
    }
}

/// Packets between pods on one bridge meet the packet filter, nftables or ip_tables, only if the kernel is told so.
pub(crate) fn bridged_packets_can_go_past_the_packet_filter() {
    const NFT: &str = "table inet t { chain c { type filter hook forward priority 0; policy drop; }; }";
    const XTABLES: &str = "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n";
    let filters = [
        ("nft", "nft", ["-f", "-"], NFT),
        ("iptables-nft-restore", "ip6tables-nft-restore", ["--noflush", "--counters"], XTABLES),
        ("iptables-legacy-restore", "ip6tables-legacy-restore", ["--noflush", "--counters"], XTABLES),
    ];
    for pod_network in NETWORKS {
        for ((v4, v6, arguments, rules), bypass) in
            filters.into_iter().flat_map(|filter| [(filter, false), (filter, true)])
        {
            let lab = Lab::new(NetworkSpec { bypass_bridge_filter: bypass, ..cluster(pod_network) });
            let node = lab.network.node(ONE).unwrap().namespace();
            run(node, v4, &arguments, rules);
            if v6 != "nft" && v6 != v4 {
                run(node, v6, &arguments, rules);
            }
            let bypassed = bypass && pod_network != PodNetwork::Routed;
            let same_node = if bypassed { "default/a2" } else { "silence" };
            println!("{pod_network:?} {v4}, bypass: {bypass}");
            let sources = [(pod(A1), same_node), (pod(B1), "silence"), (Origin::Node(ONE), "default/a2")];
            let lab = &lab;
            thread::scope(|scope| {
                for ((from, expected), to) in
                    sources.into_iter().flat_map(|from| [(from, "10.0.0.3"), (from, "2001:db8::3")])
                {
                    scope.spawn(move || lab.check(from, to, Protocol::Udp, OPEN, expected));
                }
            });
        }
    }
}

/// In a VXLAN the fabric carries no packet between pods, knows one node for all of them, and large packets fit.
pub(crate) fn the_overlay_carries_what_pods_send() {
    let lab = Lab::new(cluster(PodNetwork::Vxlan));
    lab.fabric_nft(
        "table inet t { chain c { type filter hook forward priority 0;
            ip saddr 10.0.0.0/24 ip daddr 10.0.0.0/24 drop
            ip6 saddr 2001:db8::/120 ip6 daddr 2001:db8::/120 drop
            oifname != node0 ip daddr 10.0.0.0/24 drop
            oifname != node0 ip6 daddr 2001:db8::/120 drop
        }; }",
    );
    for (from, to) in [(A1, "10.0.0.2"), (A1, "2001:db8::2"), (OFFICE, "10.0.0.2"), (OFFICE, "2001:db8::2")] {
        lab.check(pod(from), to, Protocol::Tcp, OPEN, "default/b1");
    }
    let inside = |index| lab.network.namespace(EndpointIndex(index)).unwrap();
    for (from, to) in [("10.0.0.1:0", "10.0.0.2:9"), ("[2001:db8::1]:0", "[2001:db8::2]:9")] {
        let receiver = inside(B1).within(|| UdpSocket::bind(to)).unwrap().unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let sender = inside(A1).within(|| UdpSocket::bind(from)).unwrap().unwrap();
        sender.send_to(&[7; 4000], to).unwrap();
        assert_eq!(receiver.recv(&mut [0; 5000]).unwrap(), 4000, "{to}");
    }
    let routed = Lab::new(cluster(PodNetwork::Bridge));
    routed.fabric_nft("table inet t { chain c { type filter hook forward priority 0; ip daddr 10.0.0.0/24 drop; }; }");
    routed.check(pod(A1), "10.0.0.2", Protocol::Tcp, OPEN, "silence");
    routed.check(pod(A1), "10.0.0.3", Protocol::Tcp, OPEN, "default/a2");
}

pub(crate) fn masquerading_hides_what_it_should() {
    for pod_network in NETWORKS {
        for masquerade in [Masquerade::None, Masquerade::Outside, Masquerade::PodsToo] {
            let lab = Lab::new(NetworkSpec { masquerade, ..cluster(pod_network) });
            lab.track();
            for (is_v4, protocol) in
                Protocol::ALL.into_iter().flat_map(|protocol| [(true, protocol), (false, protocol)])
            {
                let (pod_address, node_address) = (lab.address(pod(A1), is_v4), lab.address(Origin::Node(ONE), is_v4));
                let hides_outside = masquerade != Masquerade::None;
                let hides_pods = masquerade == Masquerade::PodsToo;
                for (to, hidden) in [(A2, false), (B1, hides_pods), (HOST_B, hides_pods), (OFFICE, hides_outside)] {
                    let destination = lab.address(pod(to), is_v4);
                    let Answer { seen, .. } = lab.ask(pod(A1), destination, protocol, OPEN);
                    let way = format!("{pod_network:?} {masquerade:?} {protocol} to {destination}");
                    let expected = if hidden { node_address } else { pod_address };
                    assert_eq!(seen.ip(), expected, "{way}");
                    let backend = SocketAddr::new(destination, OPEN);
                    let seen_on = |node| {
                        let seen = lab.network.source_seen_by_rules(node, protocol, backend, seen).unwrap();
                        seen.map(|source| source.ip())
                    };
                    // Rules on the way out see the pod. What is masqueraded there cannot be undone on the other node.
                    assert_eq!(seen_on(ONE), Some(pod_address), "{way}");
                    let arrives_on_two = to == B1 || to == HOST_B;
                    assert_eq!(seen_on(TWO), arrives_on_two.then_some(expected), "{way}");
                }
                let Answer { seen, .. } = lab.ask(pod(OFFICE), pod_address, protocol, OPEN);
                assert_eq!(seen.ip(), lab.address(pod(OFFICE), is_v4));
            }
        }
    }
}

pub(crate) fn connections_can_be_asked_for_and_forgotten() {
    for is_v4 in [true, false] {
        let lab = Lab::new(cluster(PodNetwork::Routed));
        let to = lab.address(pod(B1), is_v4);
        let backend = SocketAddr::new(to, OPEN);
        let asked = |seen| lab.network.source_seen_by_rules(TWO, Protocol::Udp, backend, seen).unwrap();
        let untracked = lab.ask(pod(A1), to, Protocol::Udp, OPEN);
        assert_eq!(asked(untracked.seen), None);
        lab.track();
        let tracked = lab.ask(pod(A1), to, Protocol::Udp, OPEN);
        assert_eq!(asked(tracked.seen), Some(tracked.seen));
        // Asked the wrong way round, the connection is somebody else's.
        let reversed = lab.network.source_seen_by_rules(TWO, Protocol::Udp, tracked.seen, backend).unwrap();
        assert_eq!(reversed, None);
        lab.network.forget_connections(ONE).unwrap();
        assert_eq!(asked(tracked.seen), Some(tracked.seen));
        lab.network.forget_connections(TWO).unwrap();
        assert_eq!(asked(tracked.seen), None);
        assert!(lab.network.forget_connections(NodeIndex(3)).is_err());
    }
}

/// Hundreds of dual-stack pods are there in a moment, also on one bridge, where each knows all others.
pub(crate) fn large_networks_are_built_quickly() {
    for pod_network in NETWORKS {
        let mut spec = cluster(pod_network);
        for number in 0..300_usize {
            let (high, low) = (number / 100, number % 100);
            let addresses = [format!("10.{high}.1.{low}"), format!("2001:db8:1:{high}::{low}")];
            let place = Place::Pod { node: NodeIndex(number % 3) };
            let mut pod = endpoint(&format!("many/{number}"), &addresses.each_ref().map(String::as_str), place);
            pod.listen.truncate(1);
            spec.endpoints.push(pod);
        }
        let begin = Instant::now();
        let lab = Lab::new(spec);
        println!("{pod_network:?}: {:?}", begin.elapsed());
        assert!(begin.elapsed() < Duration::from_secs(20), "{pod_network:?} took {:?}", begin.elapsed());
        lab.check(pod(OFFICE + 1), "10.0.1.3", Protocol::Tcp, OPEN, "many/3");
        lab.check(pod(OFFICE + 1), "2001:db8:1:2::98", Protocol::Tcp, OPEN, "many/298");
    }
}

/// A kernel may lack a family, so nobody is given an address of one that nobody speaks.
pub(crate) fn a_family_that_nobody_speaks_is_left_out() {
    for pod_network in NETWORKS {
        let mut spec = cluster(pod_network);
        let nodes = spec.nodes.iter_mut().map(|node| &mut node.addresses);
        for addresses in nodes.chain(spec.endpoints.iter_mut().map(|endpoint| &mut endpoint.addresses)) {
            addresses.retain(IpAddr::is_ipv4);
        }
        let lab = Lab::new(spec);
        lab.check(pod(A1), "10.0.0.2", Protocol::Tcp, OPEN, "default/b1");
        for namespace in lab.network.nodes().iter().map(Node::namespace).chain([lab.network.fabric()]) {
            let addresses = namespace.within(|| fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap()).unwrap();
            let others: Vec<&str> = addresses.lines().filter(|line| !line.ends_with(" lo")).collect();
            assert_eq!(others, [""; 0], "{pod_network:?}");
            assert!(addresses.lines().count() <= 1, "{addresses}");
        }
    }
}
