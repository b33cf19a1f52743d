//! Both compilers under big batches that use few names, addresses, keys and port names again and again: incremental against
//! from scratch after each batch, and against the oracle.
//!
//! `STRESS_CASES=50000 cargo test --release -p ringfence-compile --test stress`; `STRESS_SEED=n` for one case.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "which cases to run is said from outside")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ringfence_compile::acl::{Acl, AclCompiler, Members};
use ringfence_compile::{Cluster, Compiler, NodeCompiler, Program, Touched, UnknownPods};
use ringfence_model::{
    Action, ContainerPort, Family, Flow, IpBlock, Isolation, Labels, Namespace, NamespaceScope, Node, Object,
    ObjectKey, Operator, Peer, Peers, Phase, Pod, PodId, Policy, PolicyId, PortMatch, PortRange, Ports, Protocol,
    Requirement, Rule, Selector, Tier, Transport,
};
use ringfence_oracle::{State, judge};

const NAME: &str = "kubernetes.io/metadata.name";

/// `SplitMix64`.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// How large the pools are from which a case draws.
struct World {
    dice: Dice,
    namespaces: u64,
    nodes: u64,
    pods: u64,
    policies: u64,
    keys: u64,
    values: u64,
    addresses: u64,
    names: u64,
    numbers: u64,
    batch: u64,
    /// One in so many events is a deletion.
    deletions: u64,
    /// One in so many peers is a block, one in so many ports a name.
    blocks: u64,
    named: u64,
}

impl World {
    fn new(seed: u64) -> World {
        let mut dice = Dice(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0xabcd);
        World {
            namespaces: 1 + dice.below(3),
            nodes: 1 + dice.below(2),
            pods: 2 + dice.below(11),
            policies: 1 + dice.below(3),
            keys: 1 + dice.below(5),
            values: 1 + dice.below(3),
            addresses: 1 + dice.below(8),
            names: 1 + dice.below(3),
            numbers: 1 + dice.below(3),
            batch: 1 + dice.below(20),
            deletions: 2 + dice.below(4),
            blocks: 2 + dice.below(6),
            named: 1 + dice.below(4),
            dice,
        }
    }

    fn text(&mut self, prefix: &str, n: u64) -> Arc<str> {
        format!("{prefix}{}", self.dice.below(n)).into()
    }

    fn namespace_name(&mut self) -> Arc<str> {
        self.text("ns", self.namespaces)
    }

    fn node_name(&mut self) -> Arc<str> {
        self.text("node", self.nodes)
    }

    fn key(&mut self) -> Arc<str> {
        self.text("k", self.keys)
    }

    fn value(&mut self) -> Arc<str> {
        self.text("v", self.values)
    }

    fn address(&mut self) -> IpAddr {
        let n = u16::try_from(self.dice.below(self.addresses)).unwrap();
        if self.dice.one_in(3) {
            Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n).into()
        } else {
            Ipv4Addr::new(10, 0, 0, u8::try_from(n).unwrap()).into()
        }
    }

    fn labels(&mut self) -> Labels {
        (0..self.dice.below(4)).map(|_| (self.key(), self.value())).collect()
    }

    fn protocol(&mut self) -> Protocol {
        if self.dice.one_in(4) { Protocol::Udp } else { Protocol::Tcp }
    }

    fn number(&mut self) -> u16 {
        80 + u16::try_from(self.dice.below(self.numbers)).unwrap()
    }

    fn namespace(&mut self) -> Object {
        let name = self.namespace_name();
        let labels = self.labels().with(NAME, name.clone());
        Object::Namespace(Namespace { name, labels })
    }

    fn node(&mut self) -> Object {
        let pod_cidrs = match self.dice.below(4) {
            0 => vec![],
            1 => vec!["10.0.0.0/30".parse().unwrap()],
            2 => vec!["10.0.0.0/29".parse().unwrap(), "fd00::/126".parse().unwrap()],
            _ => vec!["fd00::/64".parse().unwrap()],
        };
        let addresses = if self.dice.one_in(3) { vec![self.address()] } else { vec![] };
        Object::Node(Node {
            name: self.node_name(),
            addresses,
            tunnel_addresses: Vec::new(),
            announced: None,
            pod_cidrs,
        })
    }

    fn pod(&mut self) -> Object {
        let name = self.text("pod", self.pods);
        let ports = (0..self.dice.below(4))
            .map(|_| ContainerPort {
                name: if self.dice.one_in(6) { None } else { Some(self.text("p", self.names)) },
                protocol: self.protocol(),
                port: self.number(),
            })
            .collect();
        Object::Pod(Pod {
            id: PodId(name.clone()),
            static_uid: None,
            namespace: self.namespace_name(),
            name,
            labels: self.labels(),
            node: if self.dice.one_in(8) { None } else { Some(self.node_name()) },
            addresses: (0..self.dice.below(4)).map(|_| self.address()).collect(),
            host_network: self.dice.one_in(14),
            phase: if self.dice.one_in(10) { Phase::Finished } else { Phase::Live },
            created: i64::try_from(self.dice.below(3)).unwrap(),
            ports,
        })
    }

    fn selector(&mut self, namespaces: bool) -> Selector {
        let mut selector = Selector::default();
        // By its name a namespace is found before it is known.
        if namespaces && self.dice.one_in(3) {
            selector.match_labels.insert(NAME.into(), self.namespace_name());
            return selector;
        }
        let key = |world: &mut World| {
            if namespaces && world.dice.one_in(3) { NAME.into() } else { world.key() }
        };
        let value = |world: &mut World, key: &Arc<str>| {
            if **key == *NAME { world.namespace_name() } else { world.value() }
        };
        for _ in 0..self.dice.below(2) {
            let key = key(self);
            let value = value(self, &key);
            selector.match_labels.insert(key, value);
        }
        for _ in 0..self.dice.below(3) {
            let key = key(self);
            let most = if self.dice.one_in(8) { 1 } else { 4 };
            let values: BTreeSet<Arc<str>> = (0..self.dice.below(most)).map(|_| value(self, &key)).collect();
            let operator = match self.dice.below(6) {
                0..=2 => Operator::In(values),
                3 => Operator::NotIn(values),
                4 => Operator::Exists,
                _ => Operator::DoesNotExist,
            };
            selector.match_expressions.push(Requirement { key, operator });
        }
        selector
    }

    fn peer(&mut self) -> Peer {
        if self.dice.one_in(self.blocks) {
            let (cidr, except) = match self.dice.below(4) {
                0 => ("10.0.0.0/29", "10.0.0.2/31"),
                1 => ("10.0.0.0/31", "10.0.0.1/32"),
                2 => ("0.0.0.0/0", "10.0.0.0/30"),
                _ => ("fd00::/126", "fd00::2/127"),
            };
            let except = if self.dice.one_in(2) { vec![except.parse().unwrap()] } else { vec![] };
            return Peer::Block(IpBlock { cidr: cidr.parse().unwrap(), except });
        }
        let namespaces = match self.dice.below(4) {
            0 | 1 => NamespaceScope::Own,
            2 => NamespaceScope::Matching(self.selector(true)),
            _ => NamespaceScope::Matching(Selector::default()),
        };
        let pods = if self.dice.one_in(4) { Selector::default() } else { self.selector(false) };
        Peer::Pods { namespaces, pods }
    }

    fn rule(&mut self) -> Rule {
        let peers = if self.dice.one_in(8) {
            Peers::Any
        } else {
            Peers::OneOf((0..1 + self.dice.below(2)).map(|_| self.peer()).collect())
        };
        let ports = if self.dice.one_in(4) {
            Ports::Any
        } else {
            let port = |world: &mut World| {
                let protocol = world.protocol();
                if world.dice.one_in(world.named) {
                    PortMatch::Named(protocol, world.text("p", world.names))
                } else {
                    let first = world.number();
                    PortMatch::Number(protocol, PortRange { first, last: first + u16::from(world.dice.one_in(3)) * 20 })
                }
            };
            Ports::OneOf((0..1 + self.dice.below(2)).map(|_| port(self)).collect())
        };
        Rule { action: Action::Accept, peers, ports }
    }

    fn policy(&mut self) -> Object {
        let (ingress, egress) = match self.dice.below(4) {
            0 => (true, false),
            1 => (false, true),
            _ => (true, true),
        };
        Object::Policy(Policy {
            id: PolicyId {
                tier: Tier::Namespace,
                namespace: self.namespace_name(),
                name: self.text("policy", self.policies),
            },
            priority: 0,
            namespaces: NamespaceScope::Own,
            pods: if self.dice.one_in(2) { Selector::default() } else { self.selector(false) },
            isolates: Isolation { ingress, egress },
            ingress: (0..self.dice.below(3)).map(|_| self.rule()).collect(),
            egress: (0..self.dice.below(3)).map(|_| self.rule()).collect(),
        })
    }

    fn object(&mut self) -> Object {
        match self.dice.below(10) {
            0 | 1 => self.namespace(),
            2 => self.node(),
            3..=6 => self.pod(),
            _ => self.policy(),
        }
    }

    /// A change of one thing about a pod or a policy that is there: what is near is more dangerous than what is far.
    fn near(&mut self, objects: &BTreeMap<ObjectKey, Object>) -> Option<Object> {
        let at = usize::try_from(self.dice.below(u64::try_from(objects.len().max(1)).unwrap())).unwrap();
        let mut object = objects.values().nth(at)?.clone();
        match &mut object {
            Object::Pod(pod) => match self.dice.below(7) {
                0 => pod.namespace = self.namespace_name(),
                1 => pod.node = Some(self.node_name()),
                2 => pod.addresses = (0..self.dice.below(3)).map(|_| self.address()).collect(),
                3 => pod.labels = self.labels(),
                4 => pod.created = i64::try_from(self.dice.below(3)).unwrap(),
                5 => pod.ports.truncate(1),
                _ => pod.ports.push(ContainerPort {
                    name: Some(self.text("p", self.names)),
                    protocol: self.protocol(),
                    port: self.number(),
                }),
            },
            Object::Policy(policy) => match self.dice.below(5) {
                0 => policy.ingress.push(self.rule()),
                1 => policy.egress.push(self.rule()),
                2 => policy.egress.truncate(1),
                3 => policy.pods = self.selector(false),
                // The same policy in another namespace: gates and sets that are given up and taken.
                _ => policy.id.namespace = self.namespace_name(),
            },
            Object::Namespace(namespace) => {
                namespace.labels = self.labels().with(NAME, namespace.name.clone());
            }
            _ => {}
        }
        Some(object)
    }

    fn flow(&mut self) -> Flow {
        loop {
            let (source, destination) = (self.address(), self.address());
            if Family::of(source) == Family::of(destination) {
                let transport = Transport::Port(self.protocol(), self.number() + u16::from(self.dice.one_in(4)) * 10);
                return Flow { source, destination, transport };
            }
        }
    }
}

/// One node's compilers: one that hears of each batch, one that hears of several batches at once.
struct Compilers {
    node: Arc<str>,
    program: [NodeCompiler; 2],
    acl: [AclCompiler; 2],
    before: Option<Acl>,
}

impl Compilers {
    fn new(node: Arc<str>, unknown: UnknownPods) -> Compilers {
        let program = || NodeCompiler::for_node(node.clone()).with_unknown_pods(unknown);
        let acl = || AclCompiler::for_node(node.clone()).with_unknown_pods(unknown);
        Compilers { program: [program(), program()], acl: [acl(), acl()], node, before: None }
    }
}

fn same_program(a: &Program, b: &Program, context: &str) {
    assert_eq!(a.node_addresses, b.node_addresses, "{context}");
    assert_eq!(a.ingress, b.ingress, "ingress {context}");
    assert_eq!(a.egress, b.egress, "egress {context}");
    assert_eq!(a.guard, b.guard, "{context}");
}

fn same_acl(a: &Acl, b: &Acl, context: &str) {
    assert_eq!(a, &Acl { generation: a.generation, ..b.clone() }, "{context}");
}

fn shares(before: &Acl, after: &Acl, context: &str) {
    for (id, set) in &after.sets {
        match (before.sets.get(id).map(|set| &set.members), &set.members) {
            (Some(Members::Addresses(older)), Members::Addresses(newer)) => {
                assert_eq!(older.ptr_eq(newer), older == newer, "{id} {} {context}", set.origin);
            }
            (Some(Members::Endpoints(older)), Members::Endpoints(newer)) => {
                assert_eq!(older.ptr_eq(newer), older == newer, "{id} {} {context}", set.origin);
            }
            _ => {}
        }
    }
}

fn run(seed: u64) {
    let mut world = World::new(seed);
    let unknown = if seed.is_multiple_of(2) { UnknownPods::Allow } else { UnknownPods::Deny };
    // A note cannot be copied to another state, so those who hear late have a state of their own.
    let (mut state, mut late_state) = (Cluster::new(), Cluster::new());
    let mut objects: BTreeMap<ObjectKey, Object> = BTreeMap::new();
    let nodes = (0..world.nodes).map(|n| format!("node{n}").into());
    let mut compilers: Vec<Compilers> = nodes.map(|node| Compilers::new(node, unknown)).collect();
    let mut late = Touched::default();
    for round in 0..25 {
        let mut touched = Touched::default();
        let mut batch = Vec::new();
        let is_reset = world.dice.one_in(40);
        if is_reset {
            state.reset(objects.values().cloned(), &mut touched).unwrap();
            late_state.reset(objects.values().cloned(), &mut late).unwrap();
        }
        for _ in 0..1 + world.dice.below(world.batch) {
            let event = if world.dice.one_in(world.deletions) && !objects.is_empty() {
                let at = usize::try_from(world.dice.below(u64::try_from(objects.len()).unwrap())).unwrap();
                Err(objects.keys().nth(at).unwrap().clone())
            } else if world.dice.one_in(2) {
                Ok(world.near(&objects).unwrap_or_else(|| world.pod()))
            } else {
                Ok(world.object())
            };
            batch.push(event);
        }
        for event in &batch {
            for (state, note) in [(&mut state, &mut touched), (&mut late_state, &mut late)] {
                match event {
                    Ok(object) => state.apply(object.clone(), note).unwrap(),
                    Err(key) => state.delete(key, note),
                }
            }
            match event {
                Ok(object) => drop(objects.insert(object.key(), object.clone())),
                Err(key) => drop(objects.remove(key)),
            }
        }
        let mut scratch = Cluster::new();
        let mut all = Touched::default();
        scratch.reset(objects.values().cloned(), &mut all).unwrap();
        let settles_late = world.dice.one_in(3);
        let context = format!("seed {seed} round {round}");
        let mut programs = Vec::new();
        for Compilers { node, program: [program, late_program], acl: [acl, late_acl], before } in &mut compilers {
            let wanted = NodeCompiler::for_node(node.clone()).with_unknown_pods(unknown).compile(&scratch, &all);
            let got = program.compile(&state, &touched);
            same_program(&got, &wanted, &format!("{context} {batch:#?}"));
            let wanted_acl = AclCompiler::for_node(node.clone()).with_unknown_pods(unknown).compile(&scratch, &all);
            let got_acl = acl.compile(&state, &touched);
            same_acl(&got_acl, &wanted_acl, &format!("{context} {batch:#?}"));
            if let Some(before) = before.as_ref().filter(|_| !is_reset) {
                shares(before, &got_acl, &context);
            }
            *before = Some(got_acl.clone());
            if settles_late {
                same_program(&late_program.compile(&late_state, &late), &wanted, &format!("late {context}"));
                same_acl(&late_acl.compile(&late_state, &late), &wanted_acl, &format!("late {context}"));
            }
            programs.push((got, got_acl));
        }
        if settles_late {
            late = Touched::default();
        }
        if round % 2 == 0 {
            check_flows(&mut world, &objects, &programs, &context);
        }
    }
}

fn check_flows(world: &mut World, objects: &BTreeMap<ObjectKey, Object>, programs: &[(Program, Acl)], context: &str) {
    let oracle = State::new(objects.values()).unwrap();
    let is_unscheduled = |address: IpAddr| {
        objects
            .values()
            .any(|object| matches!(object, Object::Pod(pod) if pod.node.is_none() && pod.addresses.contains(&address)))
    };
    for _ in 0..40 {
        let flow = world.flow();
        let verdict = judge(&oracle, &flow);
        let mut programmed = (true, true);
        let mut listed = (true, true);
        for (program, acl) in programs {
            // The guard is an addition of ours, of which the oracle knows nothing.
            let program = Program { guard: ringfence_compile::Guard::default(), ..program.clone() }.eval(&flow);
            let acl = Acl { guard: None, ..acl.clone() };
            let acl = acl.eval(&flow);
            programmed = (programmed.0 & program.egress.allowed, programmed.1 & program.ingress.allowed);
            listed = (listed.0 & acl.egress.allowed, listed.1 & acl.ingress.allowed);
        }
        assert_eq!(programmed, listed, "{flow} {context}");
        if !is_unscheduled(flow.source) {
            assert_eq!(programmed.0, verdict.egress.allowed, "egress {flow} {context}");
        }
        if !is_unscheduled(flow.destination) {
            assert_eq!(programmed.1, verdict.ingress.allowed, "ingress {flow} {context}");
        }
    }
}

#[test]
fn incremental_is_from_scratch_in_big_batches() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("STRESS_SEED") {
        return run(seed);
    }
    let first = number("STRESS_FIRST").unwrap_or_default();
    for seed in first..first + number("STRESS_CASES").unwrap_or(300) {
        run(seed);
    }
}

/// `10.0.0.1` in `shop`, on `node0`, which lets in who is in a namespace that `selector` matches; `10.0.0.2` in `other`.
struct Peering {
    state: Cluster,
    program: NodeCompiler,
    acl: AclCompiler,
}

impl Peering {
    fn new() -> Peering {
        let mut peering = Peering {
            state: Cluster::new(),
            program: NodeCompiler::new("node0".into()),
            acl: AclCompiler::for_node("node0".into()),
        };
        peering.allows(&[Peering::namespace("shop", &[]), Peering::pod("shop", "10.0.0.1", "node0")]);
        peering
    }

    fn namespace(name: &str, labels: &[(&str, &str)]) -> Object {
        let labels: Labels = labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        Object::Namespace(Namespace { name: name.into(), labels: labels.with(NAME, name) })
    }

    fn pod(namespace: &str, address: &str, node: &str) -> Object {
        Object::Pod(Pod {
            id: PodId(address.into()),
            static_uid: None,
            namespace: namespace.into(),
            name: address.into(),
            labels: Labels::new(),
            node: Some(node.into()),
            addresses: vec![address.parse().unwrap()],
            host_network: false,
            phase: Phase::Live,
            created: 0,
            ports: Vec::new(),
        })
    }

    fn policy(key: &str, values: &[&str]) -> Object {
        let operator = Operator::In(values.iter().map(|value| (*value).into()).collect());
        let requirement = Requirement { key: key.into(), operator };
        let namespaces =
            NamespaceScope::Matching(Selector { match_expressions: vec![requirement], ..Selector::default() });
        let peers = Peers::OneOf(vec![Peer::Pods { namespaces, pods: Selector::default() }]);
        Object::Policy(Policy {
            id: PolicyId { tier: Tier::Namespace, namespace: "shop".into(), name: "policy".into() },
            priority: 0,
            namespaces: NamespaceScope::Own,
            pods: Selector::default(),
            isolates: Isolation { ingress: true, egress: false },
            ingress: vec![Rule { action: Action::Accept, peers, ports: Ports::Any }],
            egress: Vec::new(),
        })
    }

    /// Whether `10.0.0.2` may connect after one more batch.
    fn allows(&mut self, batch: &[Object]) -> bool {
        let mut touched = Touched::default();
        for object in batch {
            self.state.apply(object.clone(), &mut touched).unwrap();
        }
        let [source, destination] = ["10.0.0.2", "10.0.0.1"].map(|address| address.parse().unwrap());
        let flow = Flow { source, destination, transport: Transport::Port(Protocol::Tcp, 80) };
        let program = self.program.compile(&self.state, &touched).eval(&flow).allowed();
        assert_eq!(self.acl.compile(&self.state, &touched).eval(&flow).allowed(), program);
        program
    }
}

#[test]
fn a_namespace_that_is_not_known_is_found_by_its_name() {
    let peer = || Peering::pod("other", "10.0.0.2", "node1");
    for values in [&["other"][..], &["another", "other", "shop"]] {
        let mut policy_first = Peering::new();
        assert!(!policy_first.allows(&[Peering::policy(NAME, values)]));
        assert!(policy_first.allows(&[peer()]));
        let mut peer_first = Peering::new();
        assert!(peer_first.allows(&[peer()]));
        assert!(!peer_first.allows(&[Peering::policy("team", &["a"])]));
        assert!(peer_first.allows(&[Peering::policy(NAME, values)]));
        assert!(peer_first.allows(&[Peering::namespace("other", &[])]));
    }
}

#[test]
fn a_label_that_a_namespace_keeps_still_finds_it() {
    let mut peering = Peering::new();
    peering.allows(&[Peering::namespace("other", &[("team", "a")]), Peering::pod("other", "10.0.0.2", "node1")]);
    peering.allows(&[Peering::namespace("other", &[("team", "a"), ("tier", "b")])]);
    assert!(peering.allows(&[Peering::policy("team", &["a", "b"])]));
    assert!(!peering.allows(&[Peering::namespace("other", &[("team", "c"), ("tier", "b")])]));
    assert!(peering.allows(&[Peering::policy("tier", &["b"])]));
}
