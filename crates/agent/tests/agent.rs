//! The loop, with a fake packet filter.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use arbitrary::Unstructured;
use ringfence_agent::{Agent, Change, SyncError};
use ringfence_compile::{Cluster, Compiler as _, NodeCompiler, Touched, UnknownPods};
use ringfence_dataplane::Outcome;
use ringfence_dataplane::fake::FakeBackend;
use ringfence_model::{Node, Object};
use ringfence_scenario::{Event, bytes, cluster, events};

#[test]
fn nothing_is_programmed_before_the_first_complete_state() {
    let mut agent = Agent::new("node-1".into(), FakeBackend::default());
    let node = Node {
        name: "node-1".into(),
        addresses: Vec::new(),
        tunnel_addresses: Vec::new(),
        announced: None,
        pod_cidrs: Vec::new(),
    };
    agent.change(Change::Apply(Object::Node(node))).unwrap();
    assert!(matches!(agent.sync(), Err(SyncError::NotReady)));
    agent.change(Change::Reset(Vec::new())).unwrap();
    assert!(matches!(agent.sync(), Ok(Outcome::Replaced { .. })));
    assert!(matches!(agent.sync(), Ok(Outcome::Unchanged)));
}

/// After any history, with faults on the way, the packet filter holds what the state demands.
#[test]
fn the_packet_filter_follows_the_state() {
    let mut guarded = 0;
    for seed in 0..60 {
        let data = bytes(seed, 20_000);
        let mut u = Unstructured::new(&data);
        let mut agent = Agent::new("node-1".into(), FakeBackend::default()).with_unknown_pods(UnknownPods::Deny);
        let mut state = Cluster::new();
        let mut objects = cluster(&mut u).unwrap();
        objects.iter_mut().for_each(give_ranges);
        state.reset(objects.clone(), &mut Touched::default()).unwrap();
        agent.change(Change::Reset(objects)).unwrap();
        agent.sync().unwrap();
        for (step, event) in events(&mut u, 40).unwrap().into_iter().enumerate() {
            match event {
                Event::Apply(mut object) => {
                    give_ranges(&mut object);
                    state.apply(object.clone(), &mut Touched::default()).unwrap();
                    agent.change(Change::Apply(object)).unwrap();
                }
                Event::Delete(key) => {
                    state.delete(&key, &mut Touched::default());
                    agent.change(Change::Delete(key)).unwrap();
                }
            }
            match step % 5 {
                3 => agent.backend_mut().fail_next(),
                4 => agent.backend_mut().fail_after_applying(),
                _ => {}
            }
            // A fault in the update is mended by writing everything; one there by the next attempt. Faults wait for a
            // transaction, and a change that demands nothing new has none, so there can be several.
            let attempts = (0..40).position(|_| agent.sync().is_ok());
            assert!(attempts.is_some(), "seed {seed}, step {step}");
            let compiler = NodeCompiler::for_node("node-1".into()).with_unknown_pods(UnknownPods::Deny);
            let wanted = { compiler }.compile(&state, &Touched::everything());
            let enforced = agent.backend().enforced().unwrap();
            assert_eq!(enforced.ingress, wanted.ingress, "seed {seed}, step {step}");
            assert_eq!(enforced.egress, wanted.egress, "seed {seed}, step {step}");
            assert_eq!(enforced.guard, wanted.guard, "seed {seed}, step {step}");
            guarded += usize::from(!enforced.guard.known().is_empty());
        }
    }
    assert!(guarded > 200, "{guarded}");
}

fn give_ranges(object: &mut Object) {
    if let Object::Node(node) = object {
        node.pod_cidrs = vec!["10.0.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()];
    }
}

#[test]
fn which_ranges_are_guarded_can_be_asked() {
    let mut agent = Agent::new("node-1".into(), FakeBackend::default());
    let mut node = Object::Node(Node {
        name: "node-1".into(),
        addresses: Vec::new(),
        tunnel_addresses: Vec::new(),
        announced: None,
        pod_cidrs: Vec::new(),
    });
    agent.change(Change::Reset(vec![node.clone()])).unwrap();
    assert_eq!(agent.guarded(), None);
    let mut agent = agent.with_unknown_pods(UnknownPods::Deny);
    assert_eq!(agent.guarded(), Some(Vec::new()));
    give_ranges(&mut node);
    agent.change(Change::Apply(node)).unwrap();
    assert_eq!(agent.guarded().map(|ranges| ranges.len()), Some(2));
}
