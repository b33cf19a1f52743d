//! Packets of pods that are not known, and while they become known, with any backend.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use ringfence_compile::{Cluster, Compiler, Touched, UnknownPods};
use ringfence_dataplane::{Backend, Demand, Outcome, Reconciler};
use ringfence_model::{
    Action, Isolation, Labels, NamespaceScope, Node, Object, Phase, Pod as PodObject, PodId, Policy, PolicyId,
    PortMatch, PortRange, Ports, Protocol, Rule, Selector, Tier,
};

use super::pods::Answer::{Open, Refused};
use super::pods::{Pod, connect, forward, listen};

const ONE: [&str; 2] = ["10.0.1.1", "fd00:1::1"];
const TWO: [&str; 2] = ["10.0.2.1", "fd00:2::1"];
/// Outside of the guarded ranges: another node's pod, or no pod.
const FAR: [&str; 2] = ["10.0.8.1", "fd00:8::1"];
/// Two of the node's own addresses, in the guarded ranges.
const NODE: [&str; 2] = ["10.0.1.254", "fd00:1::fe"];
/// They hold the pods 0 to 3.
const RANGES: [&str; 2] = ["10.0.0.0/22", "fd00::/30"];

/// A node whose packet filter follows its objects.
struct Host<B: Backend> {
    state: Cluster,
    compiler: <B::Demand as Demand>::Compiler,
    reconciler: Reconciler<B>,
}

impl<B: Backend> Host<B> {
    fn new(backend: B) -> Host<B> {
        let compiler = Compiler::for_node("node".into());
        Host {
            state: Cluster::new(),
            compiler: Compiler::with_unknown_pods(compiler, UnknownPods::Deny),
            reconciler: Reconciler::new(backend),
        }
    }

    /// The state is made of these, and no others. Written as a difference, but the first time.
    fn demand(&mut self, objects: &[Object]) {
        let mut touched = Touched::default();
        self.state.reset(objects.iter().cloned(), &mut touched).unwrap();
        let program = self.compiler.compile(&self.state, &touched);
        let first = self.reconciler.in_force().is_none();
        let outcome = self.reconciler.apply(&program).unwrap();
        assert!(first || !matches!(outcome, Outcome::Replaced { .. }), "{outcome:?}");
    }
}

fn node() -> Object {
    let pod_cidrs = RANGES.iter().map(|range| range.parse().unwrap()).collect();
    Object::Node(Node {
        name: "node".into(),
        addresses: Vec::new(),
        tunnel_addresses: Vec::new(),
        announced: None,
        pod_cidrs,
    })
}

/// The pod of an address of each family, with the label `app` for policies.
fn pod(app: &str, addresses: [&str; 2]) -> Object {
    Object::Pod(PodObject {
        id: PodId(app.into()),
        namespace: "default".into(),
        name: app.into(),
        labels: Labels::from([("app".into(), app.into())]),
        node: Some("node".into()),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        host_network: false,
        phase: Phase::Live,
        created: 0,
        ports: Vec::new(),
        static_uid: None,
    })
}

/// The pod `one` may call TCP 80, whoever has it, and nothing else.
fn policy() -> Object {
    let ports = Ports::OneOf(vec![PortMatch::Number(Protocol::Tcp, PortRange::single(80))]);
    Object::Policy(Policy {
        id: PolicyId { tier: Tier::Namespace, namespace: "default".into(), name: "one".into() },
        priority: 0,
        namespaces: NamespaceScope::Own,
        pods: Selector { match_labels: [("app".into(), "one".into())].into(), match_expressions: Vec::new() },
        isolates: Isolation { ingress: false, egress: true },
        ingress: Vec::new(),
        egress: vec![Rule { action: Action::Accept, peers: ringfence_model::Peers::Any, ports }],
    })
}

/// The pods 1, 2 and 8. Nothing is in force, and everybody reaches everybody.
fn network() -> [Pod; 3] {
    forward();
    let pods = [1, 2, 8].map(Pod::new);
    for pod in &pods {
        pod.inside(|| [80, 81].into_iter().for_each(listen));
    }
    [80, 81].into_iter().for_each(listen);
    let [one, two, far] = &pods;
    // The first packets over IPv6 wait for addresses to be settled.
    let settled = || {
        let from_one = [TWO, FAR, NODE].map(|to| one.connect(to, 80));
        let to_one = [two, far].map(|pod| pod.connect(ONE, 80));
        from_one.into_iter().chain(to_one).flatten().all(|answer| answer == Open)
    };
    assert!((0..10).any(|_| settled()), "the network does not work");
    pods
}

/// An open connection that gives back what it is given.
struct Call(TcpStream);

impl Call {
    fn new(from: &Pod, to: &Pod, address: &'static str) -> Call {
        to.inside(|| {
            let listener = TcpListener::bind(("::", 90)).unwrap();
            thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() {
                    stream.write_all(&byte).unwrap();
                }
            });
        });
        Call(from.inside(move || TcpStream::connect((address, 90)).unwrap()))
    }

    fn assert_open(&mut self) {
        self.0.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut byte = [0];
        self.0.write_all(&[7]).unwrap();
        self.0.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [7]);
    }
}

/// What a pod can do before it is known, while it is, and afterwards.
pub(crate) fn packets(backend: impl Backend) {
    let [one, two, far] = network();
    let mut host = Host::new(backend);
    // Connections are tracked from here on.
    host.demand(&[]);
    let mut call = Call::new(&one, &two, TWO[0]);

    let unknown = [node(), pod("two", TWO), policy()];
    let check_unknown = || {
        assert_eq!(one.connect(TWO, 80), [Refused; 2]);
        assert_eq!(one.connect(FAR, 80), [Refused; 2]);
        assert_eq!(two.connect(ONE, 80), [Refused; 2], "from a known pod");
        assert_eq!(far.connect(ONE, 80), [Refused; 2], "from another node");
        assert_eq!(connect(ONE, 80), [Open; 2], "from its node");
        assert_eq!(one.connect(NODE, 80), [Open; 2], "to its node");
        assert_eq!(two.connect(FAR, 81), [Open; 2], "neither is concerned");
        assert_eq!(far.connect(TWO, 81), [Open; 2], "neither is concerned");
        assert_eq!(connect(TWO, 80), [Open; 2]);
    };
    host.demand(&unknown);
    check_unknown();
    call.assert_open();

    host.demand(&[node(), pod("two", TWO), policy(), pod("one", ONE)]);
    assert_eq!(one.connect(TWO, 80), [Open; 2]);
    assert_eq!(one.connect(FAR, 80), [Open; 2]);
    assert_eq!(one.connect(TWO, 81), [Refused; 2]);
    assert_eq!(one.connect(FAR, 81), [Refused; 2]);
    assert_eq!(two.connect(ONE, 81), [Open; 2]);
    assert_eq!(far.connect(ONE, 81), [Open; 2]);
    call.assert_open();

    host.demand(&unknown);
    check_unknown();
    call.assert_open();

    // Without ranges there is nothing to guard, and with them again there is.
    host.demand(&[pod("two", TWO), policy()]);
    assert_eq!(one.connect(FAR, 81), [Open; 2]);
    host.demand(&unknown);
    check_unknown();

    host.reconciler.cleanup().unwrap();
    assert_eq!(one.connect(FAR, 81), [Open; 2]);
    call.assert_open();
}

/// Datagrams from the first pod to the second, as many as go, while the state changes: none may arrive, for in no state both
/// are known and the first is free.
pub(crate) fn flood(backend: impl Backend, changes: usize) {
    let [one, two, _far] = network();
    let (arrived, end) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let counter = arrived.clone();
    two.inside(move || {
        let socket = UdpSocket::bind(("::", 9)).unwrap();
        thread::spawn(move || {
            let mut datagram = [0; 8];
            while socket.recv_from(&mut datagram).is_ok() {
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
    });
    let mut host = Host::new(backend);
    let unisolated = [node(), pod("one", ONE)];
    let isolated = [node(), pod("one", ONE), pod("two", TWO), policy()];
    let unknown = [node(), pod("two", TWO), policy()];
    let free = [node(), pod("two", TWO)];
    host.demand(&isolated);
    let stop = end.clone();
    let flood = one.inside(move || {
        let [v4, v6] = ["0.0.0.0", "::"].map(|any| UdpSocket::bind((any, 0)).unwrap());
        thread::spawn(move || {
            let mut sent = 0_usize;
            while !stop.load(Ordering::Relaxed) {
                // A refusal may be told to the next one.
                sent += usize::from(v4.send_to(b"v4", (TWO[0], 9)).is_ok());
                sent += usize::from(v6.send_to(b"v6", (TWO[1], 9)).is_ok());
            }
            sent
        })
    });
    let states: [&[Object]; 6] = [&unknown, &isolated, &unisolated, &unknown, &unisolated, &free];
    for state in states.iter().cycle().take(changes) {
        host.demand(state);
    }
    assert_eq!(arrived.load(Ordering::Relaxed), 0);
    // The same datagrams arrive as soon as they may.
    host.demand(&[node(), pod("one", ONE), pod("two", TWO)]);
    let arrives = || {
        thread::sleep(Duration::from_millis(20));
        arrived.load(Ordering::Relaxed) > 0
    };
    assert!((0..500).any(|_| arrives()), "nothing arrives at all");
    end.store(true, Ordering::Relaxed);
    assert!(flood.join().unwrap() > 1000);
}
