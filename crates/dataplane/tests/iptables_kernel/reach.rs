//! Packets of other nodes, of pods that pretend to be one, and of the node itself.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use ringfence_compile::acl::{
    Acl, AclBelieved, AclEntry, AclGuard, AclNamespace, AclPeers, AclPolicy, AclPorts, AclReach, AclRule, AclSet,
    Members, SetId, SetRole,
};
use ringfence_dataplane::iptables::Variant;
use ringfence_dataplane::{Backend as _, Reconciler};
use ringfence_model::Protocol;

use super::pods::Answer::{Open, Refused};
use super::pods::{Pod, connect, forward, listen};
use super::{OTHERS, PEERS, POD, SELECTED, everything, expected, iptables, new, ours, run, small};

/// A pod of the node, isolated in ingress.
const SERVER: [&str; 2] = ["10.0.1.1", "fd00:1::1"];
/// Another node.
const NODE: [&str; 2] = ["10.0.3.1", "fd00:3::1"];
/// A pod of another node, isolated in ingress.
const REMOTE: [&str; 2] = ["10.0.4.1", "fd00:4::1"];
/// What the node calls that pod from.
const SELF: [&str; 2] = ["10.0.4.254", "fd00:4::fe"];

const LOCAL: SetId = SetId(5 << 120);
const NODES: SetId = SetId(6 << 120);
const JUDGED: SetId = SetId(7 << 120);

fn addresses(pods: &[[&str; 2]]) -> Members {
    Members::Addresses(pods.iter().flatten().map(|text| text.parse::<IpAddr>().unwrap()).collect())
}

/// Both isolated pods let `peers` to their TCP port 80. The node judges for others. It is told that other nodes judge
/// what goes to UDP port 9 and TCP port 81 of its pod; who believes them is up to `believed`.
fn list(peers: &[[&str; 2]], believed: AclBelieved) -> Acl {
    let mut acl = small(&[], &[]);
    let isolated = addresses(&[SERVER, REMOTE]);
    let endpoints = SERVER.into_iter().flat_map(|address| {
        let address: IpAddr = address.parse().unwrap();
        [(address, Protocol::Udp, 9), (address, Protocol::Tcp, 81)]
    });
    for (id, role, members) in [
        (POD, SetRole::Isolated, isolated.clone()),
        (SELECTED, SetRole::Selected, isolated),
        (PEERS, SetRole::Peers, addresses(peers)),
        (LOCAL, SetRole::Local, addresses(&[SERVER, ["10.0.2.1", "fd00:2::1"]])),
        (NODES, SetRole::Nodes, addresses(&[NODE])),
        (JUDGED, SetRole::Believed, Members::Endpoints(endpoints.collect())),
    ] {
        acl.sets.insert(id, AclSet { role, members, origin: Arc::from("") });
    }
    acl.reach =
        AclReach { judges_others: true, local: Some(LOCAL), nodes: Some(NODES), believed, ..AclReach::default() };
    acl
}

/// The same, and the server may call nobody.
fn with_egress(mut acl: Acl) -> Acl {
    let nobody = SetId(8 << 120);
    let rules = vec![AclRule { entries: vec![AclEntry { peers: AclPeers::Set(OTHERS), ports: AclPorts::Any }] }];
    let policy = Arc::new(AclPolicy { name: Arc::from("quiet"), selected: nobody, rules });
    let namespace = AclNamespace { isolated: nobody, policies: vec![policy] };
    acl.egress.insert(Arc::from("default"), Arc::new(namespace));
    acl.sets.insert(nobody, AclSet { role: SetRole::Isolated, members: addresses(&[SERVER]), origin: Arc::from("") });
    acl
}

/// The same with the server's range guarded.
fn guarding(mut acl: Acl, known: &[[&str; 2]]) -> Acl {
    let id = SetId(9 << 120);
    acl.sets.insert(id, AclSet { role: SetRole::Known, members: addresses(known), origin: Arc::from("") });
    let ranges = ["10.0.1.0/24", "fd00:1::/64"].map(|range| range.parse().unwrap());
    acl.guard = Some(AclGuard { ranges: Arc::new(ranges), known: id });
    acl
}

/// Whether datagrams that a pod sends from some address come to UDP port 9 of another, and from which address they come.
fn seen(from: &Pod, source: [&'static str; 2], to: &Pod, destination: [&'static str; 2]) -> [Option<IpAddr>; 2] {
    [0, 1].map(|family| {
        let (source, destination): (IpAddr, IpAddr) =
            (source[family].parse().unwrap(), destination[family].parse().unwrap());
        let receiver = to.inside(move || UdpSocket::bind(SocketAddr::new(destination, 9)).unwrap());
        let sender = from.inside(move || {
            let socket = UdpSocket::bind(SocketAddr::new(source, 0)).unwrap();
            socket.send_to(b"call", (destination, 9)).unwrap();
            socket
        });
        receiver.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
        let mut datagram = [0; 8];
        let (_, peer) = receiver.recv_from(&mut datagram).ok()?;
        // The answer comes back to who has asked, unless the source is somebody else's.
        if from.has(source) {
            receiver.send_to(b"answer", peer).unwrap();
            sender.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            sender.recv_from(&mut datagram).unwrap();
        }
        Some(peer.ip())
    })
}

trait Owner {
    fn has(&self, address: IpAddr) -> bool;
}

impl Owner for Pod {
    /// Whether the address is the one that the pod was made with.
    fn has(&self, address: IpAddr) -> bool {
        let family = if address.is_ipv4() { "-4" } else { "-6" };
        let shown = self.inside(move || run("ip", &[family, "-o", "addr", "show", "dev", "eth0"], "").unwrap());
        shown.contains(&format!(" {address}/"))
    }
}

fn some(addresses: [&str; 2]) -> [Option<IpAddr>; 2] {
    addresses.map(|address| Some(address.parse().unwrap()))
}

/// The pods 1 to 4. Pod 2 has the address of pod 3, too.
fn network() -> [Pod; 4] {
    forward();
    run("ip", &["link", "set", "lo", "up"], "").unwrap();
    // Nothing but our rules looks where packets come from.
    for name in ["all", "default"] {
        std::fs::write(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), "0").unwrap();
    }
    let pods = [1, 2, 3, 4].map(Pod::new);
    for pod in &pods {
        pod.inside(|| [80, 81, 82].into_iter().for_each(listen));
    }
    pods[1].inside(|| {
        run("ip", &["addr", "add", &format!("{}/32", NODE[0]), "dev", "lo"], "").unwrap();
        run("ip", &["addr", "add", &format!("{}/128", NODE[1]), "dev", "lo", "nodad"], "").unwrap();
    });
    let settled = || pods[2].connect(SERVER, 80) == [Open; 2] && pods[3].connect(SERVER, 80) == [Open; 2];
    assert!((0..10).any(|_| settled()), "the network does not work");
    pods
}

/// Whom a node believes, and whom not.
pub(super) fn nodes(variant: Variant) {
    let [server, pod, node, remote] = network();
    let call = |from: &Pod| seen(from, NODE, &server, SERVER);
    assert_eq!(call(&node), some(NODE));
    assert_eq!(call(&pod), some(NODE), "the forged address works while nothing is in force");

    let mut reconciler = Reconciler::new(new(variant));
    reconciler.apply(&list(&[], AclBelieved::Endpoints(JUDGED))).unwrap();
    // What is believed has no mark any more: others may have given it a meaning.
    for base in ["iptables", "ip6tables"] {
        let rule = "*mangle\n-A POSTROUTING -m mark --mark 0x1000/0x1000 -j DROP\nCOMMIT\n";
        run(&format!("{base}-{variant}-restore"), &["--noflush"], rule).unwrap();
    }
    assert_eq!(call(&node), some(NODE), "it was judged there");
    assert_eq!(call(&pod), [None; 2], "it is forged");
    assert_eq!(seen(&remote, REMOTE, &server, SERVER), [None; 2], "nobody has judged it");
    assert_eq!(node.connect(SERVER, 81), [Open; 2]);
    assert_eq!(node.connect(SERVER, 82), [Refused; 2], "another port");
    assert_eq!(node.connect(REMOTE, 81), [Refused; 2], "another pod");
    assert_eq!(pod.connect(SERVER, 81), [Refused; 2]);

    // Who it is comes and goes.
    let mut without = list(&[], AclBelieved::Endpoints(JUDGED));
    without.sets.get_mut(&NODES).unwrap().members = addresses(&[]);
    reconciler.apply(&without).unwrap();
    assert_eq!(call(&node), [None; 2]);

    reconciler.apply(&guarding(list(&[], AclBelieved::Endpoints(JUDGED)), &[])).unwrap();
    assert_eq!(node.connect(SERVER, 81), [Refused; 2], "nobody knows the pod");
    reconciler.apply(&guarding(list(&[], AclBelieved::Endpoints(JUDGED)), &[SERVER])).unwrap();
    assert_eq!(node.connect(SERVER, 81), [Open; 2]);

    reconciler.apply(&list(&[], AclBelieved::LocalPods)).unwrap();
    assert_eq!(node.connect(SERVER, 82), [Open; 2]);
    assert_eq!(node.connect(REMOTE, 82), [Refused; 2], "of that pod its own node believes others");
    assert_eq!(call(&pod), [None; 2], "it is forged");

    reconciler.apply(&with_egress(list(&[], AclBelieved::Everything))).unwrap();
    assert_eq!(node.connect(SERVER, 82), [Open; 2]);
    assert_eq!(node.connect(REMOTE, 82), [Open; 2]);
    assert_eq!(call(&pod), [None; 2], "it is forged");
    assert_eq!(server.connect(NODE, 82), [Open; 2]);
    assert_eq!(server.connect(REMOTE, 80), [Refused; 2]);

    reconciler.apply(&with_egress(list(&[], AclBelieved::Nothing))).unwrap();
    assert_eq!(node.connect(SERVER, 81), [Refused; 2]);
    assert_eq!(server.connect(NODE, 82), [Refused; 2]);
    reconciler.cleanup().unwrap();
    assert_eq!(call(&pod), some(NODE));
}

/// Node ports of this node, for its own pod: what others call here, nobody has judged before.
pub(super) fn node_ports(variant: Variant) {
    const PORT: [&str; 2] = ["10.0.3.254", "fd00:3::fe"];
    let [_server, _pod, node, _remote] = network();
    for (base, port, server) in [("iptables", PORT[0], "10.0.1.1"), ("ip6tables", PORT[1], "[fd00:1::1]")] {
        let rules = [80, 81].map(|number| {
            format!("-A PREROUTING -d {port} -p tcp --dport 300{number} -j DNAT --to-destination {server}:{number}\n")
        });
        run(&format!("{base}-{variant}-restore"), &["--noflush"], &format!("*nat\n{}COMMIT\n", rules.concat()))
            .unwrap();
    }
    assert_eq!(node.connect(PORT, 30081), [Open; 2]);
    let mut reconciler = Reconciler::new(new(variant));
    for believed in [AclBelieved::Endpoints(JUDGED), AclBelieved::LocalPods] {
        reconciler.apply(&list(&[], believed)).unwrap();
        assert_eq!(node.connect(SERVER, 81), [Open; 2], "judged there");
        assert_eq!(node.connect(PORT, 30081), [Refused; 2], "{believed:?}: the other node cannot know the pod");
        reconciler.apply(&list(&[NODE], believed)).unwrap();
        assert_eq!(node.connect(PORT, 30080), [Open; 2], "judged here, by the address that it has");
        assert_eq!(node.connect(PORT, 30081), [Refused; 2]);
    }
    reconciler.apply(&list(&[], AclBelieved::Everything)).unwrap();
    assert_eq!(node.connect(PORT, 30081), [Open; 2], "all nodes are exempt");
}

/// What the node itself sends is judged like that of others, but to its own pods.
pub(super) fn own(variant: Variant) {
    let [_server, pod, node, _remote] = network();
    let mut reconciler = Reconciler::new(new(variant));
    reconciler.apply(&list(&[], AclBelieved::Endpoints(JUDGED))).unwrap();
    listen(80);
    assert_eq!(connect(SERVER, 82), [Open; 2], "its own pod");
    assert_eq!(connect(REMOTE, 80), [Refused; 2]);
    assert_eq!(connect(NODE, 82), [Open; 2]);
    assert_eq!(connect(SELF, 80), [Open; 2], "itself");
    assert_eq!(pod.connect(REMOTE, 80), [Refused; 2], "judged where it starts");
    assert_eq!(node.connect(REMOTE, 80), [Refused; 2], "judged where it comes by");
    reconciler.apply(&list(&[SELF, ["10.0.2.1", "fd00:2::1"]], AclBelieved::Endpoints(JUDGED))).unwrap();
    assert_eq!(connect(REMOTE, 80), [Open; 2], "a policy allows it");
    assert_eq!(connect(REMOTE, 81), [Refused; 2]);
    assert_eq!(pod.connect(REMOTE, 80), [Open; 2]);
    assert_eq!(node.connect(REMOTE, 80), [Refused; 2]);
    reconciler.apply(&list(&[], AclBelieved::Everything)).unwrap();
    assert_eq!(connect(REMOTE, 81), [Open; 2], "all nodes are exempt, and this is one of them");
    assert_eq!(pod.connect(REMOTE, 81), [Refused; 2]);
}

fn keeping(networks: &[&str]) -> Acl {
    let mut acl = list(&[], AclBelieved::Nothing);
    acl.reach = AclReach {
        local: Some(LOCAL),
        unmasqueraded: networks.iter().map(|network| network.parse::<IpNet>().unwrap()).collect(),
        ..AclReach::default()
    };
    acl
}

/// Pods keep their addresses towards some networks, whatever a CNI plugin does to them in the same table.
pub(super) fn sources(variant: Variant) {
    const POD_TWO: [&str; 2] = ["10.0.2.1", "fd00:2::1"];
    const TO_OTHER: [&str; 2] = ["10.0.3.254", "fd00:3::fe"];
    let [_server, pod, other, outside] = network();
    for (base, range) in [("iptables", "10.0.0.0/16"), ("ip6tables", "fd00::/16")] {
        let rules = format!(
            "*nat\n:CNI - [0:0]\n-A POSTROUTING -s {range} -m comment --comment \"cni\" -j CNI\n-A CNI -j MASQUERADE\nCOMMIT\n"
        );
        run(&format!("{base}-{variant}-restore"), &["--noflush"], &rules).unwrap();
    }
    let saved = || ["iptables", "ip6tables"].map(|base| saved(&format!("{base}-{variant}-save"), &["-t", "nat"]));
    let before = saved();
    let to_other = || {
        pod.inside(|| run("ip", &["addr", "flush", "dev", "lo", "scope", "global"], "").unwrap());
        seen(&pod, POD_TWO, &other, NODE)
    };
    let to_outside = || seen(&pod, POD_TWO, &outside, REMOTE);
    assert_eq!(to_other(), some(TO_OTHER));
    assert_eq!(to_outside(), some(SELF));

    let mut free = keeping(&["10.0.3.0/24", "fd00:3::/64"]);
    (free.ingress, free.egress) = (imbl::OrdMap::new(), imbl::OrdMap::new());
    let mut reconciler = Reconciler::new(new(variant));
    reconciler.apply(&free).unwrap();
    assert_eq!(to_other(), some(POD_TWO));
    assert_eq!(to_outside(), some(SELF));
    assert_eq!(seen(&outside, REMOTE, &other, NODE), some(TO_OTHER), "it is no pod of this node");

    // Somebody takes the first place.
    for base in ["iptables", "ip6tables"] {
        run(&format!("{base}-{variant}"), &["-t", "nat", "-I", "POSTROUTING", "-j", "CNI"], "").unwrap();
    }
    assert_eq!(to_other(), some(TO_OTHER));
    assert!(reconciler.repair().unwrap().is_some());
    assert_eq!(to_other(), some(POD_TWO));
    assert!(reconciler.repair().unwrap().is_none());
    for base in ["iptables", "ip6tables"] {
        run(&format!("{base}-{variant}"), &["-t", "nat", "-D", "POSTROUTING", "-j", "CNI"], "").unwrap();
    }

    // The networks are of one family, then there are none.
    let mut one = free.clone();
    one.reach.unmasqueraded = Arc::new(["10.0.3.0/24".parse().unwrap()]);
    reconciler.apply(&one).unwrap();
    assert_eq!(to_other(), [some(POD_TWO)[0], some(TO_OTHER)[1]]);
    assert_eq!(saved()[1], before[1]);
    one.reach.unmasqueraded = Arc::new([]);
    reconciler.apply(&one).unwrap();
    assert_eq!(to_other(), some(TO_OTHER));
    assert_eq!(saved(), before);
    reconciler.apply(&free).unwrap();
    assert_ne!(saved(), before);
    reconciler.cleanup().unwrap();
    assert_eq!(saved(), before);
}

/// What a tool lists, without the time and how many packets have passed.
fn saved(tool: &str, arguments: &[&str]) -> Vec<String> {
    let text = run(tool, arguments, "").unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let plain =
        |line: &str| if line.starts_with(':') { line.split(" [").next().unwrap().to_owned() } else { line.to_owned() };
    lines.map(plain).collect()
}

/// All that a list can have of ours in all tables.
fn complete() -> Acl {
    let mut acl = list(&[SELF], AclBelieved::Endpoints(JUDGED));
    acl.reach.unmasqueraded = ["10.0.3.0/24", "fd00:3::/64"].map(|network| network.parse().unwrap()).into();
    acl
}

/// Harm in any table is seen and mended.
pub(super) fn tampering(variant: Variant) {
    let acl = complete();
    let wanted = expected(&acl, variant);
    let mut backend = new(variant);
    backend.replace(&acl).unwrap();
    assert!(backend.repair(&acl).unwrap().is_none());
    for (number, harm) in [
        "-t mangle -D PREROUTING -j RF-ORIGIN",
        "-t mangle -I PREROUTING -j ACCEPT",
        "-t mangle -F RF-ORIGIN",
        "-t mangle -A RF-ORIGIN -j MARK --set-xmark 0x1000/0x1000",
        "-t mangle -A PREROUTING -p tcp -j RF-ORIGIN",
        "-t nat -D POSTROUTING -j RF-POSTROUTING",
        "-t nat -I POSTROUTING -j ACCEPT",
        "-t nat -F RF-POSTROUTING",
        "-t nat -A POSTROUTING -j RF-POSTROUTING",
        "-t nat -N RF-TRIAL",
        "-F RF0-OWN",
        "-F RF0-BELIEVED",
    ]
    .into_iter()
    .enumerate()
    {
        iptables(variant, &harm.replace("RF0-", &edition(variant)));
        assert!(new(variant).difference(&acl).unwrap().is_some(), "{number}");
        assert!(backend.repair(&acl).unwrap().is_some(), "{number}");
        assert!(backend.repair(&acl).unwrap().is_none(), "{number}");
        assert!(new(variant).difference(&acl).unwrap().is_none(), "{number}");
        assert_eq!(ours(variant), wanted, "{number}");
    }
}

/// With what the names of chains begin at the moment.
fn edition(variant: Variant) -> String {
    let saved = run(&format!("iptables-{variant}-save"), &["-t", "filter"], "").unwrap();
    let own = saved.lines().find_map(|line| line.strip_prefix(':')?.split_once("-OWN ")).unwrap();
    format!("{}-", own.0)
}

/// Dies after each number of steps of going from one reach to another; a new process makes it right, and cleaning up leaves
/// nothing.
pub(super) fn crashes(variant: Variant) {
    let lists = [small(&["10.9.0.1"], &[]), complete(), list(&[], AclBelieved::Everything)];
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        let (from, to) = (&lists[from], &lists[to]);
        let wanted = expected(to, variant);
        let mut whole = false;
        for steps in 0..24 {
            new(variant).replace(from).unwrap();
            let mut backend = new(variant);
            backend.stop_after(steps);
            whole = backend.replace(to).is_ok();
            new(variant).replace(to).unwrap();
            assert_eq!(ours(variant), wanted, "{steps}");
            new(variant).cleanup().unwrap();
            assert_eq!(leftovers(variant), [""; 0], "{steps}");
            if whole {
                break;
            }
        }
        assert!(whole, "it does not end");
    }
}

fn leftovers(variant: Variant) -> Vec<String> {
    let mut lines = everything(variant);
    lines.retain(|line| line.contains("RF") || line.contains("rf"));
    lines
}

/// Where the kernel cannot tell where packets come from, that is said, and nobody is believed.
pub(super) fn untraceable(variant: Variant) {
    let acl = complete();
    let mut backend = new(variant);
    backend.replace(&acl).unwrap();
    let remarks: Vec<String> = backend.remarks().iter().map(ToString::to_string).collect();
    assert!(remarks.iter().any(|remark| remark.contains("no xt_rpfilter")), "{remarks:?}");
    let lines = everything(variant);
    assert!(!lines.iter().any(|line| line.contains("RF-ORIGIN") || line.contains("-BELIEVED")), "{lines:#?}");
    assert!(lines.iter().any(|line| line.contains("RF-POSTROUTING")) && lines.iter().any(|line| line.contains("-OWN")));
    assert!(backend.repair(&acl).unwrap().is_none());
    assert!(new(variant).difference(&acl).unwrap().is_none());
    backend.cleanup().unwrap();
    assert_eq!(leftovers(variant), [""; 0]);
}

/// Others' rules in all tables stay as they are, in any order of ours.
pub(super) fn others(variant: Variant) {
    let foreign = "*mangle\n:PREROUTING ACCEPT [0:0]\n:RF-FORWARD - [0:0]\n-A PREROUTING -j RF-FORWARD\nCOMMIT\n*nat\n\
        :RF-ORIGIN - [0:0]\n-A POSTROUTING -m comment --comment \"see -j RF-POSTROUTING \\\" here\" -j RF-ORIGIN\n\
        -A RF-ORIGIN -j MASQUERADE\nCOMMIT\n*filter\n-A FORWARD -j ACCEPT\n-A OUTPUT -j ACCEPT\nCOMMIT\n";
    for base in ["iptables", "ip6tables"] {
        run(&format!("{base}-{variant}-restore"), &["--noflush"], foreign).unwrap();
    }
    let all = || ["iptables", "ip6tables"].map(|base| saved(&format!("{base}-{variant}-save"), &[]));
    let before = all();
    let mut reconciler = Reconciler::new(new(variant));
    for acl in [complete(), small(&[], &[]), complete(), list(&[], AclBelieved::Everything)] {
        reconciler.apply(&acl).unwrap();
        assert!(reconciler.repair().unwrap().is_none());
    }
    reconciler.cleanup().unwrap();
    assert_eq!(all(), before);
    // And what a process leaves that is not there any more is cleared with the rest.
    new(variant).replace(&complete()).unwrap();
    ringfence_dataplane::clear_all_but(None).unwrap();
    assert_eq!(all(), before);
}
