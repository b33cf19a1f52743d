//! Pods that are not known: what programs and lists say of their addresses, against a literal reading and, where nobody is
//! unknown, against the oracle; incremental against from scratch.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::IpAddr;
use std::sync::Arc;

use arbitrary::Unstructured;
use proptest::prelude::*;
use ringfence_compile::acl::{Acl, AclCompiler, AclReason, Members};
use ringfence_compile::{Because, Cluster, Compiler, NodeCompiler, Program, Touched, UnknownPods};
use ringfence_model::{
    Flow, Isolation, Labels, NamespaceScope, Node, Object, ObjectKey, Phase, Pod, PodId, Policy, PolicyId, Selector,
    Tier, Transport,
};
use ringfence_oracle::{State, judge};
use ringfence_scenario::{Event, bytes, cluster, events, flows, pod_ranges};

/// What both shapes can be asked.
trait Demand: PartialEq + Debug + Clone {
    /// For the source and the destination: whether the flow may pass, and whether that is because nobody knows the end.
    fn verdicts(&self, flow: &Flow) -> [(bool, bool); 2];
    /// The addresses of the ranges that are known, in order.
    fn known(&self) -> Option<Vec<IpAddr>>;
    fn with_generation(self, generation: u64) -> Self;
}

impl Demand for Program {
    fn verdicts(&self, flow: &Flow) -> [(bool, bool); 2] {
        let judgement = self.eval(flow);
        [judgement.egress, judgement.ingress].map(|side| (side.allowed, side.because == Because::UnknownPod))
    }

    fn known(&self) -> Option<Vec<IpAddr>> {
        (!self.guard.ranges().is_empty()).then(|| self.guard.known().iter().copied().collect())
    }

    fn with_generation(self, generation: u64) -> Program {
        Program { generation, ..self }
    }
}

impl Demand for Acl {
    fn verdicts(&self, flow: &Flow) -> [(bool, bool); 2] {
        let judgement = self.eval(flow);
        [judgement.egress, judgement.ingress].map(|side| (side.allowed, side.because == AclReason::UnknownPod))
    }

    fn known(&self) -> Option<Vec<IpAddr>> {
        match &self.sets[&self.guard.as_ref()?.known].members {
            Members::Addresses(known) => Some(known.iter().copied().collect()),
            members => panic!("{members:?}"),
        }
    }

    fn with_generation(self, generation: u64) -> Acl {
        Acl { generation, ..self }
    }
}

fn with_ranges(mut objects: Vec<Object>, u: &mut Unstructured<'_>) -> Vec<Object> {
    for object in &mut objects {
        give_ranges(object, u);
    }
    objects
}

fn give_ranges(object: &mut Object, u: &mut Unstructured<'_>) {
    if let Object::Node(node) = object {
        node.pod_cidrs = pod_ranges(u).unwrap();
    }
}

fn compiled<C: Compiler>(objects: &[Object], unknown: UnknownPods) -> BTreeMap<Arc<str>, C::Output> {
    let mut state = Cluster::new();
    let mut touched = Touched::default();
    state.reset(objects.iter().cloned(), &mut touched).unwrap();
    let compile = |node: &Arc<str>| C::for_node(node.clone()).with_unknown_pods(unknown).compile(&state, &touched);
    state.node_names().iter().map(|node| (node.clone(), compile(node))).collect()
}

fn node<'a>(objects: &'a [Object], name: &str) -> Option<&'a Node> {
    objects.iter().find_map(|object| match object {
        Object::Node(node) if &*node.name == name => Some(node),
        _ => None,
    })
}

/// The reading: an address is unknown on a node whose ranges hold it, unless it is the node's, or the pod owns it that was
/// created last of those that run and have a network of their own, and that pod is on some node.
fn is_unknown(objects: &[Object], name: &str, address: IpAddr) -> bool {
    let Some(node) = node(objects, name) else { return false };
    let pods = objects.iter().filter_map(|object| if let Object::Pod(pod) = object { Some(pod) } else { None });
    let live = pods.filter(|pod| pod.phase == Phase::Live && !pod.host_network && pod.addresses.contains(&address));
    let owner = live.max_by_key(|pod| (pod.created, &pod.id));
    node.pod_cidrs.iter().any(|range| range.contains(&address))
        && !node.addresses.contains(&address)
        && owner.is_none_or(|pod| pod.node.is_none())
}

/// How many flows had an unknown end, and how many of them the policies would have let pass.
fn check<C: Compiler<Output: Demand>>(objects: &[Object], flows: &[Flow]) -> [usize; 2] {
    let denying = compiled::<C>(objects, UnknownPods::Deny);
    let allowing = compiled::<C>(objects, UnknownPods::Allow);
    let oracle = State::new(objects).unwrap();
    let unscheduled: Vec<IpAddr> = objects
        .iter()
        .filter_map(|object| if let Object::Pod(pod) = object { Some(pod) } else { None })
        .filter(|pod| pod.node.is_none())
        .flat_map(|pod| pod.addresses.iter().copied())
        .collect();
    let mut seen = [0; 2];
    for flow in flows {
        let ends = [(flow.source, flow.destination), (flow.destination, flow.source)];
        let verdict = judge(&oracle, flow);
        let wanted = [verdict.egress.allowed, verdict.ingress.allowed];
        for (side, (own, other)) in ends.into_iter().enumerate() {
            let mut anywhere = false;
            for (name, program) in &denying {
                let (allowed, because) = program.verdicts(flow)[side];
                let otherwise = allowing[name].verdicts(flow)[side];
                assert!(!otherwise.1);
                if is_unknown(objects, name, own) {
                    let from_node = node(objects, name).is_some_and(|node| node.addresses.contains(&other));
                    let exempt = flow.transport.is_neighbour_discovery() || from_node;
                    assert_eq!((allowed, because), (exempt, !exempt), "{name}: {flow}");
                    anywhere = true;
                    seen[0] += 1;
                    seen[1] += usize::from(verdict.allowed());
                } else {
                    assert_eq!((allowed, because), otherwise, "{name}: {flow}");
                }
            }
            if !anywhere && !unscheduled.contains(&own) {
                let allowed = denying.values().all(|program| program.verdicts(flow)[side].0);
                assert_eq!(allowed, wanted[side], "{flow}");
            }
        }
    }
    seen
}

#[test]
fn unknown_pods_are_refused_and_all_others_judged_as_ever() {
    let mut seen = [0; 2];
    for seed in 0..300 {
        let bytes = bytes(seed, 30_000);
        let mut u = Unstructured::new(&bytes);
        let objects = cluster(&mut u).unwrap();
        let objects = with_ranges(objects, &mut u);
        let flows = flows(&mut u, &objects, 200).unwrap();
        let programs = check::<NodeCompiler>(&objects, &flows);
        assert_eq!(programs, check::<AclCompiler>(&objects, &flows));
        seen = [seen[0] + programs[0], seen[1] + programs[1]];
    }
    assert!(seen[0] > 1000 && seen[1] > 300, "the flows test little: {seen:?}");
}

fn check_incremental<C: Compiler<Output: Demand>>(events: &[Event], batch: usize) {
    let mut objects: BTreeMap<ObjectKey, Object> = BTreeMap::new();
    let mut state = Cluster::new();
    let mut compilers =
        ["node-1", "node-2"].map(|node| (node, C::for_node(node.into()).with_unknown_pods(UnknownPods::Deny)));
    for batch in events.chunks(batch) {
        let mut touched = Touched::default();
        for event in batch {
            match event {
                Event::Apply(object) => {
                    state.apply(object.clone(), &mut touched).unwrap();
                    objects.insert(object.key(), object.clone());
                }
                Event::Delete(key) => {
                    state.delete(key, &mut touched);
                    objects.remove(key);
                }
            }
        }
        let all: Vec<Object> = objects.values().cloned().collect();
        let mut scratch = compiled::<C>(&all, UnknownPods::Deny);
        for (node, compiler) in &mut compilers {
            let incremental = compiler.compile(&state, &touched).with_generation(1);
            if let Some(scratch) = scratch.remove(*node) {
                assert_eq!(incremental, scratch, "{batch:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn incremental_is_from_scratch(bytes in prop::collection::vec(any::<u8>(), 500..3000), batch in 1_usize..5) {
        let mut u = Unstructured::new(&bytes);
        let mut events = events(&mut u, 40).unwrap();
        for event in &mut events {
            if let Event::Apply(object) = event {
                give_ranges(object, &mut u);
            }
        }
        check_incremental::<NodeCompiler>(&events, batch);
        check_incremental::<AclCompiler>(&events, batch);
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn our_node(ranges: &[&str]) -> Object {
    let pod_cidrs = ranges.iter().map(|range| range.parse().unwrap()).collect();
    Object::Node(Node {
        name: "node-1".into(),
        addresses: vec![address("192.0.2.1")],
        tunnel_addresses: Vec::new(),
        announced: None,
        pod_cidrs,
    })
}

fn pod(name: &str, node: Option<&str>, addresses: &[&str]) -> Pod {
    Pod {
        id: PodId(name.into()),
        namespace: "shop".into(),
        name: name.into(),
        labels: Labels::new(),
        node: node.map(Into::into),
        addresses: addresses.iter().map(|text| address(text)).collect(),
        host_network: false,
        phase: Phase::Live,
        created: 0,
        ports: Vec::new(),
        static_uid: None,
    }
}

/// What is known on `node-1`, step by step.
fn check_known<C: Compiler<Output: Demand>>() {
    let mut state = Cluster::new();
    let mut compiler = C::for_node("node-1".into()).with_unknown_pods(UnknownPods::Deny);
    let mut known = |event: Event| {
        let mut touched = Touched::default();
        match event {
            Event::Apply(object) => state.apply(object, &mut touched).unwrap(),
            Event::Delete(key) => state.delete(&key, &mut touched),
        }
        let known = compiler.compile(&state, &touched).known();
        known.map(|known| known.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    };
    let mut apply = |object: Object| known(Event::Apply(object));
    let is = |text: &str| Some(text.to_owned());
    let db = pod("db", Some("node-1"), &["10.0.1.1", "fd00:1::1"]);
    assert_eq!(apply(Object::Pod(db.clone())), None, "no Node, no ranges");
    assert_eq!(apply(our_node(&[])), None);
    assert_eq!(apply(our_node(&["10.0.1.0/24"])), is("10.0.1.1"));
    assert_eq!(apply(our_node(&["10.0.1.0/24", "fd00:1::/64"])), is("10.0.1.1 fd00:1::1"));
    let without_addresses = Pod { addresses: Vec::new(), ..db.clone() };
    assert_eq!(apply(Object::Pod(without_addresses)), is(""));
    assert_eq!(apply(Object::Pod(Pod { host_network: true, ..db.clone() })), is(""));
    assert_eq!(apply(Object::Pod(Pod { node: None, ..db.clone() })), is(""), "nobody enforces its policies");
    assert_eq!(apply(Object::Pod(Pod { node: Some("node-2".into()), ..db.clone() })), is("10.0.1.1 fd00:1::1"));
    assert_eq!(apply(Object::Pod(db.clone())), is("10.0.1.1 fd00:1::1"));
    assert_eq!(apply(Object::Pod(pod("far", Some("node-2"), &["10.0.2.1"]))), is("10.0.1.1 fd00:1::1"));
    assert_eq!(apply(Object::Pod(Pod { phase: Phase::Finished, ..db.clone() })), is(""));
    let next = pod("next", Some("node-1"), &["10.0.1.1"]);
    assert_eq!(apply(Object::Pod(next.clone())), is("10.0.1.1"));
    assert_eq!(known(Event::Delete(Object::Pod(db).key())), is("10.0.1.1"));
    assert_eq!(known(Event::Delete(Object::Pod(next).key())), is(""));
    assert_eq!(known(Event::Delete(our_node(&[]).key())), None);
}

#[test]
fn who_is_known() {
    check_known::<NodeCompiler>();
    check_known::<AclCompiler>();
}

/// Who asks for nothing gets what there was before.
#[test]
fn without_being_asked_nothing_is_guarded() {
    let objects = [our_node(&["10.0.1.0/24"]), Object::Pod(pod("db", Some("node-1"), &["10.0.1.1"]))];
    let mut state = Cluster::new();
    let mut touched = Touched::default();
    state.reset(objects, &mut touched).unwrap();
    let program = NodeCompiler::for_node("node-1".into()).compile(&state, &touched);
    let acl = AclCompiler::for_node("node-1".into()).compile(&state, &touched);
    assert_eq!((program.known(), acl.known(), acl.sets.len()), (None, None, 0));
    let flow = Flow { source: address("10.0.1.2"), destination: address("10.0.1.1"), transport: Transport::Other(47) };
    assert!(program.eval(&flow).allowed() && acl.eval(&flow).allowed());
}

/// A change that is none keeps its memory: to find that out costs nothing.
#[test]
fn a_new_state_shares_what_is_the_same() {
    let objects = [our_node(&["10.0.1.0/24"]), Object::Pod(pod("db", Some("node-1"), &["10.0.1.1"]))];
    let mut state = Cluster::new();
    let mut touched = Touched::default();
    state.reset(objects.clone(), &mut touched).unwrap();
    let mut compiler = NodeCompiler::for_node("node-1".into()).with_unknown_pods(UnknownPods::Deny);
    let before = compiler.compile(&state, &touched);
    state.reset(objects, &mut touched).unwrap();
    let after = compiler.compile(&state, &touched);
    assert!(before.guard.known().ptr_eq(after.guard.known()) && after.guard.known().len() == 1);
}

/// Policies are read again without touching what is known.
#[test]
fn a_policy_that_says_the_same_leaves_the_sets_alone() {
    let policy = Object::Policy(Policy {
        id: PolicyId { tier: Tier::Namespace, namespace: "shop".into(), name: "closed".into() },
        priority: 0,
        namespaces: NamespaceScope::Own,
        pods: Selector::default(),
        isolates: Isolation { ingress: true, egress: false },
        ingress: Vec::new(),
        egress: Vec::new(),
    });
    let db = Object::Pod(pod("db", Some("node-1"), &["10.0.1.1"]));
    let mut state = Cluster::new();
    let mut touched = Touched::default();
    state.reset([our_node(&["10.0.1.0/24"]), db, policy.clone()], &mut touched).unwrap();
    let mut compiler = AclCompiler::for_node("node-1".into()).with_unknown_pods(UnknownPods::Deny);
    let before = compiler.compile(&state, &touched);
    let mut touched = Touched::default();
    state.apply(policy, &mut touched).unwrap();
    let after = compiler.compile(&state, &touched);
    assert!(after.known().is_some() && before.sets.ptr_eq(&after.sets));
}
