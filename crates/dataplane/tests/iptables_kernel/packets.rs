//! Real connections between three pods that a node routes, each pod a network namespace.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use ringfence_compile::acl::{
    AclEntry, AclNamespace, AclPeers, AclPolicy, AclPorts, AclRule, AclSet, Members, SetRole,
};
use ringfence_dataplane::Reconciler;
use ringfence_dataplane::iptables::Variant;
use ringfence_model::{PortRange, Protocol};

use super::{Acl, OTHERS, PEERS, POD, ProtocolRange, SELECTED, ipset, new, run, tail};

const SERVER: [&str; 2] = ["10.0.1.1", "fd00:1::1"];
const ONE: [&str; 2] = ["10.0.2.1", "fd00:2::1"];
const OTHER: [&str; 2] = ["10.0.3.1", "fd00:3::1"];
/// A Service for the server's port 81.
const SERVICE: [&str; 2] = ["10.96.0.1", "fd00:96::1"];

/// What became of an attempt to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Open,
    Refused,
    Silence,
}
use Answer::{Open, Refused, Silence};

/// A thread in a network namespace of its own.
struct Pod(Sender<Box<dyn FnOnce() + Send>>);

impl Pod {
    /// The `number`th pod of the node whose namespace the calling thread is in.
    fn new(number: u8) -> Pod {
        let (work, todo) = channel::<Box<dyn FnOnce() + Send>>();
        let (tell, told) = channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tell.send(format!("/proc/{}/task/{}/ns/net", std::process::id(), nix::unistd::gettid())).unwrap();
            todo.into_iter().for_each(|work| work());
        });
        let namespace = told.recv().unwrap();
        ip(&format!("link add pod{number} type veth peer name eth0 netns {namespace}"));
        ip(&format!("addr add 10.0.{number}.254/24 dev pod{number}"));
        ip(&format!("addr add fd00:{number}::fe/64 dev pod{number} nodad"));
        ip(&format!("link set pod{number} up"));
        let pod = Pod(work);
        pod.inside(move || {
            ip("link set lo up");
            ip(&format!("addr add 10.0.{number}.1/24 dev eth0"));
            ip(&format!("addr add fd00:{number}::1/64 dev eth0 nodad"));
            ip("link set eth0 up");
            ip(&format!("route add default via 10.0.{number}.254"));
            ip(&format!("-6 route add default via fd00:{number}::fe"));
        });
        pod
    }

    fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = channel();
        self.0.send(Box::new(move || tell.send(work()).unwrap())).unwrap();
        told.recv().unwrap()
    }

    /// The answers over IPv4 and IPv6.
    fn connect(&self, to: [&'static str; 2], port: u16) -> [Answer; 2] {
        self.inside(move || connect(to, port))
    }
}

fn connect(to: [&'static str; 2], port: u16) -> [Answer; 2] {
    to.map(|address| {
        let address = SocketAddr::new(address.parse::<IpAddr>().unwrap(), port);
        match TcpStream::connect_timeout(&address, Duration::from_millis(700)) {
            Ok(_) => Open,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Refused,
            Err(error) if error.kind() == ErrorKind::TimedOut => Silence,
            Err(error) => panic!("{address}: {error}"),
        }
    })
}

fn ip(command: &str) {
    let arguments: Vec<&str> = command.split(' ').collect();
    run("ip", &arguments, "").unwrap_or_else(|error| panic!("ip {command}: {error}"));
}

fn listen(port: u16) {
    let listener = TcpListener::bind(("::", port)).unwrap();
    thread::spawn(move || listener.incoming().for_each(drop));
}

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
    for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/net/{switch}"), "1").unwrap();
    }
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
