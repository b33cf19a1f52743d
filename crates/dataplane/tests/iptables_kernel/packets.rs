//! Real connections between three pods that a node routes, each pod a network namespace.

use std::net::IpAddr;
use std::sync::Arc;

use ringfence_compile::acl::{
    AclEntry, AclNamespace, AclPeers, AclPolicy, AclPorts, AclRule, AclSet, Members, SetRole,
};
use ringfence_dataplane::Reconciler;
use ringfence_dataplane::iptables::Variant;
use ringfence_model::{PortRange, Protocol};

use super::pods::Answer::{Open, Refused, Silence};
use super::pods::{Pod, connect, forward, listen};
use super::{Acl, OTHERS, PEERS, POD, ProtocolRange, SELECTED, ipset, new, run, tail};

const SERVER: [&str; 2] = ["10.0.1.1", "fd00:1::1"];
const ONE: [&str; 2] = ["10.0.2.1", "fd00:2::1"];
const OTHER: [&str; 2] = ["10.0.3.1", "fd00:3::1"];
/// A Service for the server's port 81.
const SERVICE: [&str; 2] = ["10.96.0.1", "fd00:96::1"];

/// The server is isolated both ways; peers reach its port 80, and it reaches others' port 80.
fn list(peers: &[[&str; 2]], others: &[[&str; 2]]) -> Acl {
    let addresses = |pods: &[[&str; 2]]| {
        Members::Addresses(pods.iter().flatten().map(|text| text.parse::<IpAddr>().unwrap()).collect())
    };
    let ports = AclPorts::Range(ProtocolRange { protocol: Protocol::Tcp, ports: PortRange::single(80) });
    let namespace = |isolated, peers| {
        let rules = vec![AclRule { entries: vec![AclEntry { peers: AclPeers::Set(peers), ports }] }];
        let policy = Arc::new(AclPolicy { name: Arc::from("server"), selected: SELECTED, rules });
        Arc::new(AclNamespace { isolated, policies: vec![policy] })
    };
    let mut acl = Acl::empty(Arc::from("node"));
    acl.ingress.insert(Arc::from("default"), namespace(POD, PEERS));
    acl.egress.insert(Arc::from("default"), namespace(POD, OTHERS));
    for (id, role, members) in [
        (POD, SetRole::Isolated, addresses(&[SERVER])),
        (SELECTED, SetRole::Selected, addresses(&[SERVER])),
        (PEERS, SetRole::Peers, addresses(peers)),
        (OTHERS, SetRole::Peers, addresses(others)),
    ] {
        acl.sets.insert(id, AclSet { role, members, origin: Arc::from("") });
    }
    acl
}

/// Connections are allowed and refused as the list says.
pub(super) fn connections(variant: Variant) {
    forward();
    let (server, one, other) = (Pod::new(1), Pod::new(2), Pod::new(3));
    for pod in [&server, &one, &other] {
        pod.inside(|| [80, 81].into_iter().for_each(listen));
    }
    for (base, [service, server]) in [("iptables", [SERVICE[0], SERVER[0]]), ("ip6tables", [SERVICE[1], SERVER[1]])] {
        let to = if base == "iptables" { format!("{server}:81") } else { format!("[{server}]:81") };
        let rules = format!(
            "*nat\n-A PREROUTING -d {service} -p tcp --dport 81 -j DNAT --to-destination {to}\n\
            -A POSTROUTING -s {server} -d {server} -j MASQUERADE\nCOMMIT\n"
        );
        run(&format!("{base}-{variant}-restore"), &["--noflush"], &rules).unwrap();
    }
    // Nothing is in force. The first packets over IPv6 wait for addresses to be settled.
    let settled = || one.connect(SERVER, 81) == [Open; 2] && other.connect(SERVER, 81) == [Open; 2];
    assert!((0..10).any(|_| settled()), "the network does not work");

    let mut reconciler = Reconciler::new(new(variant));
    reconciler.apply(&list(&[ONE], &[OTHER])).unwrap();
    assert_eq!(one.connect(SERVER, 80), [Open; 2]);
    assert_eq!(one.connect(SERVER, 81), [Refused; 2]);
    assert_eq!(other.connect(SERVER, 80), [Refused; 2]);
    assert_eq!(server.connect(OTHER, 80), [Open; 2]);
    assert_eq!(server.connect(OTHER, 81), [Refused; 2]);
    assert_eq!(server.connect(ONE, 80), [Refused; 2]);
    assert_eq!(one.connect(OTHER, 81), [Open; 2], "neither is isolated");
    assert_eq!(connect(SERVER, 81), [Open; 2], "from the node");
    assert_eq!(server.connect(SERVICE, 81), [Open; 2], "to itself");
    assert_eq!(one.connect(SERVICE, 81), [Refused; 2], "a translated destination alone opens nothing");

    reconciler.apply(&list(&[OTHER], &[ONE])).unwrap();
    assert_eq!(one.connect(SERVER, 80), [Refused; 2]);
    assert_eq!(other.connect(SERVER, 80), [Open; 2]);
    assert_eq!(server.connect(OTHER, 80), [Refused; 2]);
    assert_eq!(server.connect(ONE, 80), [Open; 2]);

    ipset("add rf0-hold4 0.0.0.0/1\nadd rf0-hold6 8000::/1\nadd rf0-hold6 ::/1\n");
    assert_eq!(one.connect(SERVER, 80), [Silence; 2]);
    assert_eq!(other.connect(SERVER, 80), [Open; 2]);
    ipset("flush rf0-hold4\nflush rf0-hold6\n");

    // A member that the sets of the kernel lack is refused, whatever else allows it.
    ipset(&format!("flush rf0-sel4-{}\nflush rf0-sel6-{}\n", tail(SELECTED), tail(SELECTED)));
    assert_eq!(other.connect(SERVER, 80), [Refused; 2]);

    reconciler.cleanup().unwrap();
    assert_eq!(one.connect(SERVER, 81), [Open; 2]);
}
