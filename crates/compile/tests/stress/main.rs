//! Both compilers under big batches that use few names, addresses, keys and port names again and again: incremental against
//! from scratch after each batch, and against the oracle.
//!
//! `STRESS_CASES=50000 cargo test --release -p ringfence-compile --test stress`; `STRESS_SEED=n` for one case.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "which cases to run is said from outside")]

use std::collections::BTreeMap;
use std::sync::Arc;

use ringfence_compile::acl::{Acl, AclCompiler, Members};
use ringfence_compile::{Cluster, Compiler, NodeCompiler, Program, Touched, UnknownPods};
use ringfence_model::{
    Action, EnforceAt, Enforcement, Flow, Isolation, Labels, Namespace, NamespaceScope, NodeTraffic, Object, ObjectKey,
    Operator, Peer, Peers, Phase, Pod, PodId, Policy, PolicyId, Ports, Protocol, Requirement, Rule, Selector, Tier,
    Transport,
};
use ringfence_oracle::{Arrival, State, judge_at};

mod world;

use world::{NAME, World};

/// What compilers are told once and for all.
#[derive(Clone, Copy, Debug)]
struct Mode {
    unknown: UnknownPods,
    enforcement: Enforcement,
}

impl Mode {
    /// Seeds that follow each other have all modes.
    fn of(seed: u64) -> Mode {
        let unknown = if seed.is_multiple_of(2) { UnknownPods::Allow } else { UnknownPods::Deny };
        let at = [EnforceAt::Destination, EnforceAt::Entry, EnforceAt::Everywhere];
        let node_traffic = [NodeTraffic::Own, NodeTraffic::All, NodeTraffic::Policy];
        let (at, node_traffic) = (at[third(seed)], node_traffic[third(seed / 3)]);
        Mode { unknown, enforcement: Enforcement { at, node_traffic } }
    }

    fn compiler<C: Compiler>(self, node: &Arc<str>) -> C {
        C::for_node(node.clone()).with_unknown_pods(self.unknown).with_enforcement(self.enforcement)
    }
}

fn third(seed: u64) -> usize {
    usize::try_from(seed % 3).unwrap()
}

/// One node's compilers: one that hears of each batch, one that hears of several batches at once.
struct Compilers {
    node: Arc<str>,
    program: [NodeCompiler; 2],
    acl: [AclCompiler; 2],
    before: Option<Acl>,
}

impl Compilers {
    fn new(node: Arc<str>, mode: Mode) -> Compilers {
        let program = || mode.compiler(&node);
        let acl = || mode.compiler(&node);
        Compilers { program: [program(), program()], acl: [acl(), acl()], node, before: None }
    }
}

fn same_program(a: &Program, b: &Program, context: &str) {
    assert_eq!(a.node_addresses, b.node_addresses, "{context}");
    assert_eq!(a.ingress, b.ingress, "ingress {context}");
    assert_eq!(a.egress, b.egress, "egress {context}");
    assert_eq!(a.guard, b.guard, "{context}");
    assert_eq!(a.reach, b.reach, "{context}");
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
    let mode = Mode::of(seed);
    // A note cannot be copied to another state, so those who hear late have a state of their own.
    let (mut state, mut late_state) = (Cluster::new(), Cluster::new());
    let mut objects: BTreeMap<ObjectKey, Object> = BTreeMap::new();
    let nodes = (0..world.nodes).map(|n| format!("node{n}").into());
    let mut compilers: Vec<Compilers> = nodes.map(|node| Compilers::new(node, mode)).collect();
    let mut late = Touched::default();
    let mut networks = Vec::new();
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
        if world.dice.one_in(5) {
            networks = world.networks();
            state.keep_sources_towards(&networks, &mut touched);
            late_state.keep_sources_towards(&networks, &mut late);
        }
        let mut scratch = Cluster::new();
        let mut all = Touched::default();
        scratch.keep_sources_towards(&networks, &mut all);
        scratch.reset(objects.values().cloned(), &mut all).unwrap();
        let settles_late = world.dice.one_in(3);
        let context = format!("seed {seed} round {round}");
        let mut programs = Vec::new();
        for Compilers { node, program: [program, late_program], acl: [acl, late_acl], before } in &mut compilers {
            let wanted = mode.compiler::<NodeCompiler>(node).compile(&scratch, &all);
            let got = program.compile(&state, &touched);
            same_program(&got, &wanted, &format!("{context} {batch:#?}"));
            let wanted_acl = mode.compiler::<AclCompiler>(node).compile(&scratch, &all);
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
            check_flows(&mut world, &objects, &programs, mode.enforcement, &context);
        }
    }
}

fn check_flows(
    world: &mut World,
    objects: &BTreeMap<ObjectKey, Object>,
    programs: &[(Program, Acl)],
    enforcement: Enforcement,
    context: &str,
) {
    let oracle = State::new(objects.values()).unwrap();
    for _ in 0..40 {
        let flow = world.flow();
        for (program, acl) in programs {
            let verdict = judge_at(&oracle, enforcement, &program.node, &flow, Arrival::AsItCame);
            let wanted = (verdict.egress.allowed, verdict.ingress.allowed);
            // The guard is an addition of ours, of which the oracle knows nothing.
            let program = Program { guard: ringfence_compile::Guard::default(), ..program.clone() };
            let acl = Acl { guard: None, ..acl.clone() };
            let (programmed, listed) = (program.eval(&flow), acl.eval(&flow));
            let said = format!("{} {flow} {enforcement:?} {context}", program.node);
            assert_eq!((programmed.egress.allowed, programmed.ingress.allowed), wanted, "program: {said}");
            assert_eq!((listed.egress.allowed, listed.ingress.allowed), wanted, "list: {said}");
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
