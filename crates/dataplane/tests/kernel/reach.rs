//! What a node lets through because another one has judged it, and what it judges for others, with packets.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use ringfence_dataplane::{NftBackend, Reconciler};

use crate::namespace::nft;
use crate::pods::Answer::{Open, Refused};
use crate::pods::{Pod, connect, forward, ip, listen};
use crate::{new, program};

/// Pods of this node.
const ONE: [&str; 2] = ["10.0.1.1", "fd00:1::1"];
const TWO: [&str; 2] = ["10.0.2.1", "fd00:2::1"];
/// Another node, and a pod of it.
const NODE: [&str; 2] = ["10.0.8.1", "fd00:8::1"];
const REMOTE: [&str; 2] = ["10.0.9.1", "fd00:9::1"];
/// This node's addresses towards the other one.
const SELF: [&str; 2] = ["10.0.8.254", "fd00:8::fe"];

/// One and the remote pod are isolated. This node's address towards the other one may call port 82 of the remote pod, and
/// so may pod 2 call port 82 of pod 1.
const POLICIES: &str = "
    ingress pod 10.0.1.1 default/one
    ingress pod fd00:1::1 default/one
    ingress pod 10.0.9.1 default/remote
    ingress pod fd00:9::1 default/remote
    ingress port 10.0.1.1 TCP/82 2
    ingress port fd00:1::1 TCP/82 2
    ingress port 10.0.9.1 TCP/82 1
    ingress port fd00:9::1 TCP/82 1
    ingress gate 1 v4,v6 blocks
    ingress block 1 10.0.8.254
    ingress block 1 fd00:8::fe
    ingress gate 2 v4,v6,pods default/two
    ingress class 2 2
    ingress peer 10.0.2.1 2
    ingress peer fd00:2::1 2";
const LOCAL: &str = "
    judges-others
    local 10.0.1.1
    local fd00:1::1
    local 10.0.2.1
    local fd00:2::1";
const NODES: &str = "
    other-node 10.0.8.1
    other-node fd00:8::1";
const ENDPOINTS: &str = "
    believes endpoints
    endpoint 10.0.1.1 TCP/80
    endpoint fd00:1::1 TCP/80
    endpoint 10.0.1.1 UDP/9
    endpoint fd00:1::1 UDP/9";
const GUARDED: &str = "
    guard 10.0.0.0/22
    guard fd00::/30
    known 10.0.2.1
    known fd00:2::1";

struct Network {
    one: Pod,
    /// Takes the datagrams to port 9 of pod 1.
    datagrams: UdpSocket,
    two: Pod,
    node: Pod,
    reconciler: Reconciler<NftBackend>,
}

impl Network {
    /// Nothing is in force, and everybody reaches everybody.
    fn new() -> Network {
        forward();
        // Its own refusals come to it this way.
        ip("link set lo up");
        let [one, two, node] = [1, 2, 8].map(Pod::new);
        // The other node is also where its pod is.
        node.inside(|| {
            ip("addr add 10.0.9.1/32 dev lo");
            ip("addr add fd00:9::1/128 dev lo");
        });
        ip("route add 10.0.9.0/24 via 10.0.8.1");
        ip("-6 route add fd00:9::/64 via fd00:8::1");
        // Pod 2 can forge, and the node does not look.
        for device in ["all", "pod2"] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{device}/rp_filter"), "0").unwrap();
        }
        two.inside(|| {
            ip("addr add 10.0.8.1/32 dev lo");
            ip("addr add fd00:8::1/128 dev lo nodad");
        });
        for pod in [&one, &two, &node] {
            pod.inside(|| [80, 81, 82].into_iter().for_each(listen));
        }
        let datagrams = one.inside(|| UdpSocket::bind(("::", 9)).unwrap());
        datagrams.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let network = Network { one, datagrams, two, node, reconciler: Reconciler::new(new()) };
        // The first packets over IPv6 wait for addresses to be settled.
        let settled = || {
            let answers =
                [network.node.connect(ONE, 80), network.one.connect(REMOTE, 80), network.two.connect(ONE, 80)];
            answers.into_iter().flatten().chain(connect(REMOTE, 80)).all(|answer| answer == Open)
        };
        assert!((0..10).any(|_| settled()), "the network does not work");
        network
    }

    fn enforce(&mut self, parts: &[&str]) {
        self.reconciler.apply(&program(&parts.concat())).unwrap();
    }

    /// Whether datagrams of a pod under these source addresses come to pod 1.
    fn arrives(&self, from: &Pod, sources: [&'static str; 2]) -> [bool; 2] {
        [0, 1].map(|family| {
            let (source, destination) = (sources[family], ONE[family]);
            // What is refused may be told, to whomever.
            from.inside(move || UdpSocket::bind((source, 0)).unwrap().send_to(b"datagram", (destination, 9)).unwrap());
            self.datagrams.recv(&mut [0; 8]).is_ok()
        })
    }

    /// What holds whatever is believed.
    fn check_judged(&self) {
        assert_eq!(self.two.connect(ONE, 81), [Refused; 2], "between local pods");
        assert_eq!(self.two.connect(ONE, 82), [Open; 2], "between local pods");
        assert_eq!(self.one.connect(REMOTE, 80), [Refused; 2], "to a pod of another node");
        assert_eq!(self.arrives(&self.two, NODE), [false; 2], "a forged source");
        assert_eq!(self.arrives(&self.node, REMOTE), [false; 2], "from a pod of another node");
    }
}

/// Node ports of this node, for its own pod: what others call here, nobody has judged before.
fn node_ports() {
    let rules = "table inet proxy {
        chain prerouting {
            type nat hook prerouting priority dstnat;
            ip daddr 10.0.8.254 tcp dport 30080 dnat ip to 10.0.1.1:80
            ip6 daddr fd00:8::fe tcp dport 30080 dnat ip6 to [fd00:1::1]:80
            ip daddr 10.0.8.254 tcp dport 30082 dnat ip to 10.0.1.1:82
            ip6 daddr fd00:8::fe tcp dport 30082 dnat ip6 to [fd00:1::1]:82
        }
    }";
    nft(&["-f", "-"], rules).unwrap();
}

pub(crate) fn node_ports_of_the_pods_node() {
    let mut network = Network::new();
    node_ports();
    assert_eq!(network.node.connect(SELF, 30080), [Open; 2]);
    for believed in [ENDPOINTS, "\nbelieves local-pods"] {
        network.enforce(&[LOCAL, NODES, believed, POLICIES]);
        assert_eq!(network.node.connect(ONE, 80), [Open; 2], "{believed}: judged there");
        assert_eq!(network.node.connect(SELF, 30080), [Refused; 2], "{believed}: the other node cannot know the pod");
    }
    // It is judged here, by the address that it has.
    let allowed = "
        ingress block 2 10.0.8.1
        ingress block 2 fd00:8::1";
    network.enforce(&[LOCAL, NODES, ENDPOINTS, POLICIES, allowed]);
    assert_eq!(network.node.connect(SELF, 30080), [Refused; 2]);
    assert_eq!(network.node.connect(SELF, 30082), [Open; 2]);
    network.enforce(&[NODES, "\nbelieves everything", POLICIES]);
    assert_eq!(network.node.connect(SELF, 30080), [Open; 2], "all nodes are exempt");
}

pub(crate) fn endpoints() {
    let mut network = Network::new();
    assert_eq!(network.arrives(&network.two, NODE), [true; 2], "nothing but rules stops who forges");
    network.enforce(&[LOCAL, NODES, ENDPOINTS, POLICIES]);
    network.check_judged();
    assert_eq!(network.node.connect(ONE, 80), [Open; 2]);
    assert_eq!(network.node.connect(ONE, 81), [Refused; 2], "no endpoint");
    assert_eq!(network.arrives(&network.node, NODE), [true; 2]);
    // The node goes, and comes back.
    network.enforce(&[LOCAL, ENDPOINTS, POLICIES]);
    assert_eq!(network.node.connect(ONE, 80), [Refused; 2]);
    network.enforce(&[LOCAL, NODES, ENDPOINTS, POLICIES]);
    assert_eq!(network.node.connect(ONE, 80), [Open; 2]);
    // The endpoints go.
    network.enforce(&[LOCAL, NODES, "\nbelieves endpoints", POLICIES]);
    assert_eq!(network.node.connect(ONE, 80), [Refused; 2]);
    network.enforce(&[LOCAL, NODES, ENDPOINTS, POLICIES]);
    // A pod that is not known comes before belief.
    network.enforce(&[LOCAL, NODES, ENDPOINTS, GUARDED]);
    assert_eq!(network.node.connect(ONE, 80), [Refused; 2]);
    assert_eq!(connect(ONE, 80), [Open; 2], "from its own node");
}

pub(crate) fn local_pods() {
    let mut network = Network::new();
    network.enforce(&[LOCAL, NODES, "\nbelieves local-pods", POLICIES]);
    network.check_judged();
    assert_eq!(network.node.connect(ONE, 80), [Open; 2]);
    assert_eq!(network.node.connect(ONE, 81), [Open; 2]);
    network.enforce(&[LOCAL, NODES, POLICIES]);
    network.check_judged();
    assert_eq!(network.node.connect(ONE, 80), [Refused; 2], "nobody is believed");
}

pub(crate) fn exempt() {
    let mut network = Network::new();
    let closed = "
        egress pod 10.0.1.1 default/one
        egress pod fd00:1::1 default/one";
    network.enforce(&[NODES, "\nbelieves everything", POLICIES, closed]);
    network.check_judged();
    assert_eq!(network.node.connect(ONE, 81), [Open; 2]);
    assert_eq!(network.one.connect(NODE, 81), [Open; 2]);
    assert_eq!(network.one.connect(TWO, 81), [Refused; 2]);
    assert_eq!(connect(REMOTE, 80), [Open; 2], "only pods of this node are judged here");
    network.enforce(&[LOCAL, NODES, "\nbelieves everything", POLICIES]);
    network.check_judged();
    assert_eq!(connect(REMOTE, 80), [Open; 2], "this node is exempt, too");
    network.enforce(&[NODES, "\nbelieves everything", POLICIES, closed, GUARDED]);
    assert_eq!(network.node.connect(ONE, 81), [Refused; 2], "it is not known");
    assert_eq!(network.one.connect(NODE, 81), [Refused; 2], "it is not known");
    network.enforce(&[NODES, POLICIES, closed]);
    assert_eq!(network.one.connect(NODE, 81), [Refused; 2]);
}

pub(crate) fn sent() {
    let mut network = Network::new();
    network.enforce(&[LOCAL, POLICIES]);
    assert_eq!(connect(ONE, 80), [Open; 2], "its own pod");
    assert_eq!(connect(REMOTE, 80), [Refused; 2]);
    assert_eq!(connect(REMOTE, 82), [Open; 2], "a policy allows it");
    assert_eq!(connect(NODE, 80), [Open; 2]);
    // Somebody claims to be this node.
    network.enforce(&[LOCAL, POLICIES, "\ningress pod 10.0.8.254 default/liar\ningress pod fd00:8::fe default/liar"]);
    listen(80);
    assert_eq!(connect(SELF, 80), [Open; 2]);
    // The node's address is in a guarded range, and no pod's.
    network.enforce(&[
        LOCAL,
        POLICIES,
        GUARDED,
        "\nguard 10.0.8.0/24\nguard fd00:8::/64\nknown 10.0.1.1\nknown fd00:1::1",
    ]);
    assert_eq!(connect(REMOTE, 82), [Open; 2]);
    assert_eq!(connect(ONE, 80), [Open; 2]);
    network.enforce(&[POLICIES]);
    assert_eq!(connect(REMOTE, 80), [Open; 2], "pods of others are theirs");
}

/// A pod of another node is told that its datagrams are refused, although it admits nothing itself.
pub(crate) fn errors() {
    let mut network = Network::new();
    network.enforce(&[LOCAL, NODES, ENDPOINTS, POLICIES]);
    for family in [0, 1] {
        let told = network.node.inside(move || {
            let socket = UdpSocket::bind((REMOTE[family], 0)).unwrap();
            socket.connect((ONE[family], 10)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            socket.send(b"datagram").unwrap();
            socket.recv(&mut [0; 8]).unwrap_err().kind()
        });
        assert_ne!(told, ErrorKind::WouldBlock, "{}", REMOTE[family]);
    }
}

/// Datagrams from the other node to an endpoint, while there is either the node or the endpoint: none may arrive.
pub(crate) fn flood() {
    let mut network = Network::new();
    let node_alone = [LOCAL, NODES, "\nbelieves endpoints", POLICIES];
    let endpoints_alone = [LOCAL, ENDPOINTS, POLICIES];
    network.enforce(&node_alone);
    let end = Arc::new(AtomicBool::new(false));
    let stop = end.clone();
    let flood = network.node.inside(move || {
        let [v4, v6] = NODE.map(|source| UdpSocket::bind((source, 0)).unwrap());
        thread::spawn(move || {
            let mut sent = 0_usize;
            while !stop.load(Ordering::Relaxed) {
                // A refusal may be told to the next one.
                sent += usize::from(v4.send_to(b"v4", (ONE[0], 9)).is_ok());
                sent += usize::from(v6.send_to(b"v6", (ONE[1], 9)).is_ok());
            }
            sent
        })
    });
    for _ in 0..1000 {
        network.enforce(&endpoints_alone);
        network.enforce(&node_alone);
    }
    assert!(network.datagrams.recv(&mut [0; 8]).is_err(), "neither state lets it through");
    // The same datagrams arrive as soon as they may.
    network.enforce(&[LOCAL, NODES, ENDPOINTS, POLICIES]);
    assert!((0..50).any(|_| network.datagrams.recv(&mut [0; 8]).is_ok()), "nothing arrives at all");
    end.store(true, Ordering::Relaxed);
    assert!(flood.join().unwrap() > 1000);
}
