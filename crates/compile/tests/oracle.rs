//! The compiled programs against the oracle, on random clusters and flows; incremental against from scratch.
//!
//! `PROPTEST_CASES=100000 cargo test --release -p ringfence-compile --test oracle` runs millions of flows.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;

use arbitrary::Unstructured;
use proptest::prelude::*;
use ringfence_compile::{Cluster, NodeCompiler, Program, Touched};
use ringfence_model::{Flow, Object, ObjectKey};
use ringfence_oracle::{Reason, State, judge};
use ringfence_scenario::{Event, cluster, events, flows};

const FLOWS_PER_CASE: usize = 300;

/// A program for every node of a cluster.
type Programs = BTreeMap<Arc<str>, Program>;

fn from_scratch(objects: impl IntoIterator<Item = Object>) -> Programs {
    let mut state = Cluster::new();
    let mut touched = Touched::default();
    state.reset(objects, &mut touched).unwrap();
    state
        .node_names()
        .into_iter()
        .map(|node| (node.clone(), NodeCompiler::new(node).compile(&state, &touched)))
        .collect()
}

/// What the cluster as a whole does with a flow: every node enforces its own pods and leaves the others alone.
fn check_flows(objects: &[Object], programs: &Programs, flows: &[Flow]) {
    let oracle = State::new(objects).unwrap();
    // A pod that is not on a node yet has no agent: nobody can enforce anything for it.
    let unscheduled: Vec<_> = objects
        .iter()
        .filter_map(|object| match object {
            Object::Pod(pod) if pod.node.is_none() => Some(pod),
            _ => None,
        })
        .flat_map(|pod| pod.addresses.iter().copied())
        .collect();
    for flow in flows {
        let verdict = judge(&oracle, flow);
        let judgements: Vec<_> = programs.values().map(|program| program.eval(flow)).collect();
        let egress = judgements.iter().all(|j| j.egress.allowed);
        let ingress = judgements.iter().all(|j| j.ingress.allowed);
        if !unscheduled.contains(&flow.source) {
            assert_eq!(egress, verdict.egress.allowed, "egress of {flow}: {:?}, {judgements:?}", verdict.egress);
        }
        if !unscheduled.contains(&flow.destination) {
            assert_eq!(ingress, verdict.ingress.allowed, "ingress of {flow}: {:?}, {judgements:?}", verdict.ingress);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn programs_agree_with_the_oracle(bytes in prop::collection::vec(any::<u8>(), 500..4000)) {
        let mut u = Unstructured::new(&bytes);
        let objects = cluster(&mut u).unwrap();
        let seed = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        let flow_bytes = ringfence_scenario::bytes(seed, FLOWS_PER_CASE * 40);
        let flows = flows(&mut Unstructured::new(&flow_bytes), &objects, FLOWS_PER_CASE).unwrap();
        prop_assert_eq!(flows.len(), FLOWS_PER_CASE);
        check_flows(&objects, &from_scratch(objects.clone()), &flows);
    }

    #[test]
    fn incremental_is_from_scratch(bytes in prop::collection::vec(any::<u8>(), 500..3000), batch in 1_usize..5) {
        let events = events(&mut Unstructured::new(&bytes), 40).unwrap();
        let mut objects: BTreeMap<ObjectKey, Object> = BTreeMap::new();
        let mut state = Cluster::new();
        let mut compilers: BTreeMap<Arc<str>, NodeCompiler> =
            ["node-1", "node-2"].map(|node| (node.into(), NodeCompiler::new(node.into()))).into();
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
            let scratch = from_scratch(objects.values().cloned());
            for (node, compiler) in &mut compilers {
                let incremental = compiler.compile(&state, &touched);
                let wanted = scratch.get(node).cloned().unwrap_or_else(|| Program::empty(node.clone()));
                prop_assert_eq!(&incremental.node_addresses, &wanted.node_addresses);
                prop_assert_eq!(&incremental.ingress, &wanted.ingress, "{:?}", batch);
                prop_assert_eq!(&incremental.egress, &wanted.egress, "{:?}", batch);
            }
        }
    }
}

/// Sources repeat themselves, after every list and for every change that no policy can see.
#[test]
fn what_is_known_already_is_no_change() {
    for seed in 0..300 {
        let bytes = ringfence_scenario::bytes(seed, 20_000);
        let objects = cluster(&mut Unstructured::new(&bytes)).unwrap();
        let mut state = Cluster::new();
        state.reset(objects.clone(), &mut Touched::default()).unwrap();
        let mut again = Touched::default();
        for object in objects {
            state.apply(object, &mut again).unwrap();
        }
        assert!(again.is_empty(), "seed {seed}: {again:?}");
    }
}

/// A generator that stopped meeting policies would make the tests above pass for nothing.
#[test]
fn random_flows_meet_every_reason() {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut total = 0;
    for seed in 0..200 {
        let bytes = ringfence_scenario::bytes(seed, 20_000);
        let mut u = Unstructured::new(&bytes);
        let objects = cluster(&mut u).unwrap();
        let oracle = State::new(&objects).unwrap();
        for flow in flows(&mut u, &objects, 200).unwrap() {
            let verdict = judge(&oracle, &flow);
            for answer in [verdict.egress, verdict.ingress] {
                total += 1;
                *seen.entry(name(&answer.reason)).or_default() += 1;
            }
        }
    }
    let share = |reason: &str| seen.get(reason).copied().unwrap_or_default() * 1000 / total;
    assert!(share("isolated") >= 100, "{seen:?} of {total}");
    assert!(share("allowed") >= 50, "{seen:?} of {total}");
    for rare in ["not a pod", "not isolated", "neighbour discovery", "same address", "own node"] {
        assert!(seen.contains_key(rare), "{rare} never met: {seen:?}");
    }
}

fn name(reason: &Reason) -> &'static str {
    match reason {
        Reason::NotAPod => "not a pod",
        Reason::NotIsolated => "not isolated",
        Reason::NeighbourDiscovery => "neighbour discovery",
        Reason::SameAddress => "same address",
        Reason::OwnNode => "own node",
        Reason::TrustedNode | Reason::JudgedBefore | Reason::NotJudgedHere => "about other nodes",
        Reason::AllowedBy(_) => "allowed",
        Reason::IsolatedBy(_) => "isolated",
    }
}
