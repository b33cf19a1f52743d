//! Services: where connections end, and from where they seem to come to the listener and to rules.

use std::net::{IpAddr, SocketAddr};

use ringfence_lab::{Backend, NetworkSpec, NodeIndex, Origin, ServicePortSpec, ServiceSpec, Services, Tables};
use ringfence_model::{ExternalTraffic, PodNetwork, Protocol};

use crate::cluster::{A1, A2, Answer, B1, NETWORKS, OFFICE, ONE, THREE, TWO, cluster};
use crate::{IMPATIENT, Lab, OPEN, ip, pod};

const PORT: u16 = 80;

/// The position of each Service; its addresses end with it, its node port is [`NODE_PORT`] and it.
const HERE: u16 = 1;
const THERE: u16 = 2;
const LOCAL: u16 = 3;
const SELF: u16 = 4;
const NOBODY: u16 = 5;
const NODE_PORT: u16 = 30_000;

/// Services of one pod on the first node, of one on the second, of the latter with policy Local, of the pod that asks,
/// and of nobody; each at one port of all protocols.
fn services(masquerade_all: bool, tables: Tables) -> Services {
    let service = |number: u16, backend: Option<(usize, NodeIndex)>, external_traffic_policy| {
        let backends = |(pod, node): (usize, NodeIndex)| {
            let addresses = &cluster(PodNetwork::Routed).endpoints[pod].addresses;
            addresses.iter().map(move |&address| Backend { address, port: OPEN, node }).collect::<Vec<_>>()
        };
        let ports = Protocol::ALL.into_iter().map(|protocol| ServicePortSpec {
            name: Some(protocol.to_string().to_lowercase()),
            protocol,
            port: PORT,
            node_port: Some(NODE_PORT + number),
            backends: backend.map(backends).unwrap_or_default(),
        });
        ServiceSpec {
            name: format!("default/service-{number}"),
            cluster_ips: [true, false].map(|is_v4| cluster_ip(number, is_v4)).to_vec(),
            ports: ports.collect(),
            external_traffic_policy,
            ..ServiceSpec::default()
        }
    };
    let list = vec![
        service(HERE, Some((A2, ONE)), ExternalTraffic::Cluster),
        service(THERE, Some((B1, TWO)), ExternalTraffic::Cluster),
        service(LOCAL, Some((B1, TWO)), ExternalTraffic::Local),
        service(SELF, Some((A1, ONE)), ExternalTraffic::Cluster),
        service(NOBODY, None, ExternalTraffic::Cluster),
    ];
    Services { masquerade_all, tables, list }
}

fn cluster_ip(service: u16, is_v4: bool) -> IpAddr {
    ip(&if is_v4 { format!("10.96.0.{service}") } else { format!("2001:db8:96::{service}") })
}

/// How a connection to a Service begins.
#[derive(Clone, Copy, Debug)]
enum Entry {
    ClusterIp,
    NodePort(NodeIndex),
}

/// A connection and what comes of it: the source that the listener sees, and the one that rules on a node see.
struct Path {
    from: Origin,
    to: (u16, Entry),
    ends_at: usize,
    seen: Origin,
    by_rules: (NodeIndex, Origin),
}

impl Lab {
    fn target(&self, (service, entry): (u16, Entry), is_v4: bool) -> (IpAddr, u16) {
        match entry {
            Entry::ClusterIp => (cluster_ip(service, is_v4), PORT),
            Entry::NodePort(node) => (self.address(Origin::Node(node), is_v4), NODE_PORT + service),
        }
    }

    fn follow(&self, path: &Path, is_v4: bool, protocol: Protocol) {
        let (to, port) = self.target(path.to, is_v4);
        let way = format!("{:?} to {:?} over {protocol} {to}", path.from, path.to);
        let Answer { by, seen } = self.ask(path.from, to, protocol, port);
        assert_eq!(by, ["default/a1", "default/b1", "default/a2"][path.ends_at], "{way}");
        assert_eq!(seen.ip(), self.address(path.seen, is_v4), "the listener's view of {way}");
        let backend = SocketAddr::new(self.address(pod(path.ends_at), is_v4), OPEN);
        let (node, expected) = path.by_rules;
        let source = self.network.source_seen_by_rules(node, protocol, backend, seen).unwrap();
        assert_eq!(source.map(|source| source.ip()), Some(self.address(expected, is_v4)), "the rules' view of {way}");
    }
}

fn each_family_and_protocol() -> impl Iterator<Item = (bool, Protocol)> {
    Protocol::ALL.into_iter().flat_map(|protocol| [(true, protocol), (false, protocol)])
}

fn lab(pod_network: PodNetwork, services: Services) -> Lab {
    let lab = Lab::new(NetworkSpec { services, ..cluster(pod_network) });
    assert_eq!(lab.network.warnings(), []);
    lab.track();
    lab
}

pub(crate) fn every_way_through_a_service() {
    for pod_network in NETWORKS {
        every_way(&lab(pod_network, services(false, Tables::Nft)));
    }
}

pub(crate) fn every_way_through_a_service_of_ip_tables() {
    for pod_network in [PodNetwork::Routed, PodNetwork::Bridge] {
        every_way(&lab(pod_network, services(false, Tables::Legacy)));
    }
}

fn every_way(lab: &Lab) {
    use Entry::{ClusterIp, NodePort};
    let (a1, a2, b1, office) = (pod(A1), pod(A2), pod(B1), pod(OFFICE));
    let (one, two, three) = (Origin::Node(ONE), Origin::Node(TWO), Origin::Node(THREE));
    let paths = [
        // Cluster IPs keep the source, but a node's own packets are the node's in any case.
        Path { from: a1, to: (HERE, ClusterIp), ends_at: A2, seen: a1, by_rules: (ONE, a1) },
        Path { from: a1, to: (THERE, ClusterIp), ends_at: B1, seen: a1, by_rules: (TWO, a1) },
        Path { from: b1, to: (HERE, ClusterIp), ends_at: A2, seen: b1, by_rules: (ONE, b1) },
        Path { from: one, to: (HERE, ClusterIp), ends_at: A2, seen: one, by_rules: (ONE, one) },
        Path { from: one, to: (THERE, ClusterIp), ends_at: B1, seen: one, by_rules: (TWO, one) },
        // Through a Service to oneself.
        Path { from: a1, to: (SELF, ClusterIp), ends_at: A1, seen: one, by_rules: (ONE, a1) },
        // Node ports with policy Cluster: the entry node takes the place of the source, on its way out.
        Path { from: office, to: (THERE, NodePort(THREE)), ends_at: B1, seen: three, by_rules: (TWO, three) },
        Path { from: office, to: (THERE, NodePort(THREE)), ends_at: B1, seen: three, by_rules: (THREE, office) },
        Path { from: office, to: (THERE, NodePort(TWO)), ends_at: B1, seen: two, by_rules: (TWO, office) },
        Path { from: a1, to: (THERE, NodePort(THREE)), ends_at: B1, seen: three, by_rules: (TWO, three) },
        Path { from: a1, to: (HERE, NodePort(ONE)), ends_at: A2, seen: one, by_rules: (ONE, a1) },
        Path { from: one, to: (HERE, NodePort(ONE)), ends_at: A2, seen: one, by_rules: (ONE, one) },
        Path { from: one, to: (THERE, NodePort(ONE)), ends_at: B1, seen: one, by_rules: (TWO, one) },
        Path { from: one, to: (THERE, NodePort(THREE)), ends_at: B1, seen: three, by_rules: (TWO, three) },
        // With policy Local it stays; pods of the entry node and the node itself reach all backends.
        Path { from: office, to: (LOCAL, NodePort(TWO)), ends_at: B1, seen: office, by_rules: (TWO, office) },
        Path { from: a2, to: (LOCAL, NodePort(TWO)), ends_at: B1, seen: a2, by_rules: (TWO, a2) },
        Path { from: a1, to: (LOCAL, NodePort(ONE)), ends_at: B1, seen: a1, by_rules: (TWO, a1) },
        Path { from: one, to: (LOCAL, NodePort(ONE)), ends_at: B1, seen: one, by_rules: (TWO, one) },
    ];
    for (is_v4, protocol) in each_family_and_protocol() {
        for path in &paths {
            lab.follow(path, is_v4, protocol);
        }
        for (from, to, expected) in [
            (a1, (NOBODY, ClusterIp), "Closed"),
            (office, (NOBODY, NodePort(ONE)), "Closed"),
            (office, (LOCAL, NodePort(THREE)), "silence"),
        ] {
            let (address, port) = lab.target(to, is_v4);
            lab.check(from, &address.to_string(), protocol, port, expected);
        }
        // A packet filter on the way out may fail the system call that sends.
        let measured = lab.probe(one, &cluster_ip(NOBODY, is_v4).to_string(), protocol, PORT, &IMPATIENT);
        assert!(["Closed", "Prohibited"].contains(&measured.as_str()), "{protocol}: {measured}");
    }
}

pub(crate) fn masquerade_all_replaces_every_source() {
    use Entry::{ClusterIp, NodePort};
    let (a1, one, office) = (pod(A1), Origin::Node(ONE), pod(OFFICE));
    for (pod_network, tables) in
        [(PodNetwork::Routed, Tables::Legacy), (PodNetwork::Bridge, Tables::Nft), (PodNetwork::Vxlan, Tables::Nft)]
    {
        let lab = lab(pod_network, services(true, tables));
        for (is_v4, protocol) in each_family_and_protocol() {
            for path in [
                Path { from: a1, to: (HERE, ClusterIp), ends_at: A2, seen: one, by_rules: (ONE, a1) },
                Path { from: a1, to: (THERE, ClusterIp), ends_at: B1, seen: one, by_rules: (TWO, one) },
                Path { from: a1, to: (SELF, ClusterIp), ends_at: A1, seen: one, by_rules: (ONE, a1) },
                Path { from: office, to: (LOCAL, NodePort(TWO)), ends_at: B1, seen: office, by_rules: (TWO, office) },
            ] {
                lab.follow(&path, is_v4, protocol);
            }
        }
    }
}

/// Each backend of several gets its share.
pub(crate) fn connections_are_spread_over_backends() {
    let mut services = services(false, Tables::Nft);
    let [here, there, ..] = services.list.as_mut_slice() else { panic!("five Services") };
    for (port, others) in here.ports.iter_mut().zip(&there.ports) {
        port.backends.extend(&others.backends);
    }
    let lab = lab(PodNetwork::Bridge, services);
    for (is_v4, protocol) in each_family_and_protocol() {
        let ask = |_| lab.ask(pod(A1), cluster_ip(HERE, is_v4), protocol, PORT).by;
        let answers: Vec<String> = (0..60).map(ask).collect();
        let of_b1 = answers.iter().filter(|by| *by == "default/b1").count();
        // Fewer than 5 or more than 55 of 60 happen once in 10^10 times.
        assert!((5..=55).contains(&of_b1), "{protocol}: {of_b1} of 60 went to b1");
        assert!(answers.iter().all(|by| by == "default/b1" || by == "default/a2"));
    }
}
