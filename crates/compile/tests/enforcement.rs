//! Where policies are enforced and which nodes are believed: programs and lists of every node against the oracle, in every
//! mode; incremental against from scratch.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::{IpAddr, Ipv4Addr};

use arbitrary::Unstructured;
use proptest::prelude::*;
use ringfence_compile::acl::{Acl, AclCompiler, AclReason};
use ringfence_compile::{Because, Believed, Cluster, Compiler, NodeCompiler, Program, Touched};
use ringfence_model::{
    Endpoint, EndpointSlice, EnforceAt, Enforcement, ExternalTraffic, Flow, Isolation, Labels, NamespaceScope,
    NodeTraffic, Object, ObjectKey, Phase, Pod, PodId, Policy, PolicyId, Protocol, Selector, Service, ServiceKind,
    Tier, Transport,
};
use ringfence_oracle::{Arrival, Reason, State, Verdict, judge, judge_at};
use ringfence_scenario::{Event, bytes, cluster, events_with_services, flows, with_services};

const NODES: [&str; 2] = ["node-1", "node-2"];

fn modes() -> impl Iterator<Item = Enforcement> {
    let places = [EnforceAt::Destination, EnforceAt::Entry, EnforceAt::Everywhere];
    let traffics = [NodeTraffic::Own, NodeTraffic::All, NodeTraffic::Policy];
    places.into_iter().flat_map(move |at| traffics.map(|node_traffic| Enforcement { at, node_traffic }))
}

/// Whom both shapes name as the reason, as far as it is about nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Exempt {
    OwnNode,
    TrustedNode,
    JudgedBefore,
    No,
}

/// What both shapes can be asked.
trait Demand: PartialEq + Debug + Clone {
    /// For the source and the destination.
    fn verdicts(&self, flow: &Flow) -> [(bool, Exempt); 2];
    fn with_generation(self, generation: u64) -> Self;
}

impl Demand for Program {
    fn verdicts(&self, flow: &Flow) -> [(bool, Exempt); 2] {
        let judgement = self.eval(flow);
        [judgement.egress, judgement.ingress].map(|side| {
            let exempt = match side.because {
                Because::OwnNode => Exempt::OwnNode,
                Because::TrustedNode => Exempt::TrustedNode,
                Because::JudgedBefore => Exempt::JudgedBefore,
                _ => Exempt::No,
            };
            (side.allowed, exempt)
        })
    }

    fn with_generation(self, generation: u64) -> Program {
        Program { generation, ..self }
    }
}

impl Demand for Acl {
    fn verdicts(&self, flow: &Flow) -> [(bool, Exempt); 2] {
        let judgement = self.eval(flow);
        [judgement.egress, judgement.ingress].map(|side| {
            let exempt = match side.because {
                AclReason::OwnNode => Exempt::OwnNode,
                AclReason::TrustedNode => Exempt::TrustedNode,
                AclReason::JudgedBefore => Exempt::JudgedBefore,
                _ => Exempt::No,
            };
            (side.allowed, exempt)
        })
    }

    fn with_generation(self, generation: u64) -> Acl {
        Acl { generation, ..self }
    }
}

fn compiler<C: Compiler>(node: &str, enforcement: Enforcement) -> C {
    C::for_node(node.into()).with_enforcement(enforcement)
}

fn wanted(verdict: &Verdict) -> [(bool, Exempt); 2] {
    [&verdict.egress, &verdict.ingress].map(|answer| {
        let exempt = match answer.reason {
            Reason::OwnNode => Exempt::OwnNode,
            Reason::TrustedNode => Exempt::TrustedNode,
            Reason::JudgedBefore => Exempt::JudgedBefore,
            _ => Exempt::No,
        };
        (answer.allowed, exempt)
    })
}

/// A pod that isolates in one direction only is exempt in the other without having to be: shapes may say either.
fn agrees(found: (bool, Exempt), wanted: (bool, Exempt)) -> bool {
    found.0 == wanted.0 && (found.1 == wanted.1 || found.1 == Exempt::No && found.0)
}

/// What a node that masquerades sends on, and its neighbours.
fn from_nodes_to_endpoints(objects: &[Object]) -> Vec<Flow> {
    let nodes: BTreeSet<IpAddr> = objects
        .iter()
        .filter_map(|object| if let Object::Node(node) = object { Some(node) } else { None })
        .flat_map(|node| node.addresses.iter().chain(&node.tunnel_addresses).copied())
        .collect();
    let mut flows = Vec::new();
    for object in objects {
        let Object::EndpointSlice(slice) = object else { continue };
        for endpoint in &slice.endpoints {
            for (protocol, port) in &slice.ports {
                for source in nodes.iter().filter(|node| node.is_ipv4() == endpoint.address.is_ipv4()) {
                    for port in [*port, port.wrapping_add(1)] {
                        let transport = Transport::Port(*protocol, port);
                        flows.push(Flow { source: *source, destination: endpoint.address, transport });
                    }
                }
            }
        }
    }
    flows
}

type Counts = BTreeMap<(EnforceAt, NodeTraffic, Exempt, bool), usize>;

fn check<C: Compiler<Output: Demand>>(objects: &[Object], flows: &[Flow], seen: &mut Counts) {
    let mut state = Cluster::new();
    let mut touched = Touched::default();
    state.reset(objects.iter().cloned(), &mut touched).unwrap();
    let oracle = State::new(objects).unwrap();
    for enforcement in modes() {
        for node in NODES {
            let demand = compiler::<C>(node, enforcement).compile(&state, &touched);
            for flow in flows {
                let found = demand.verdicts(flow);
                let wanted = wanted(&judge_at(&oracle, enforcement, node, flow, Arrival::AsItCame));
                for (found, wanted) in found.into_iter().zip(wanted) {
                    assert!(
                        agrees(found, wanted),
                        "{node} {enforcement:?} {flow}: found {found:?}, wanted {wanted:?} in {objects:#?}"
                    );
                    *seen.entry((enforcement.at, enforcement.node_traffic, wanted.1, wanted.0)).or_default() += 1;
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn every_node_says_what_the_oracle_says(seed in any::<u64>()) {
        let bytes = bytes(seed, 20_000);
        let mut u = Unstructured::new(&bytes);
        let objects = cluster(&mut u).unwrap();
        let objects = with_services(&mut u, objects).unwrap();
        let mut flows = flows(&mut u, &objects, 100).unwrap();
        flows.extend(from_nodes_to_endpoints(&objects));
        let mut seen = Counts::new();
        check::<NodeCompiler>(&objects, &flows, &mut seen);
        check::<AclCompiler>(&objects, &flows, &mut seen);
    }

    #[test]
    fn incremental_equals_from_scratch(seed in any::<u64>()) {
        let bytes = bytes(seed, 20_000);
        let events = events_with_services(&mut Unstructured::new(&bytes), 40).unwrap();
        for enforcement in modes() {
            follow::<NodeCompiler>(&events, enforcement);
            follow::<AclCompiler>(&events, enforcement);
        }
    }
}

fn follow<C: Compiler<Output: Demand>>(events: &[Event], enforcement: Enforcement) {
    let mut state = Cluster::new();
    let mut compilers = NODES.map(|node| compiler::<C>(node, enforcement));
    let networks = ["10.9.0.0/16".parse().unwrap()];
    let mut touched = Touched::default();
    for (position, event) in events.iter().enumerate() {
        match event {
            Event::Apply(object) => state.apply(object.clone(), &mut touched).unwrap(),
            Event::Delete(key) => state.delete(key, &mut touched),
        }
        if position % 7 == 3 {
            let networks = if position % 2 == 0 { &networks[..] } else { &[] };
            state.keep_sources_towards(networks, &mut touched);
        }
        // Sometimes several changes come together.
        if position % 5 == 4 {
            continue;
        }
        for (node, compiler) in NODES.iter().zip(&mut compilers) {
            let followed = compiler.compile(&state, &touched).with_generation(0);
            let scratch = self::compiler::<C>(node, enforcement).compile(&state, &Touched::everything());
            assert_eq!(followed, scratch.with_generation(0), "{node} {enforcement:?} after {:?}", &events[..=position]);
        }
        touched = Touched::default();
    }
}

/// What the tests above meet: without it they could agree about nothing.
#[test]
fn every_mode_is_met() {
    let mut seen = Counts::new();
    for seed in 0..300 {
        let bytes = bytes(seed, 20_000);
        let mut u = Unstructured::new(&bytes);
        let objects = cluster(&mut u).unwrap();
        let objects = with_services(&mut u, objects).unwrap();
        let mut flows = flows(&mut u, &objects, 100).unwrap();
        flows.extend(from_nodes_to_endpoints(&objects));
        check::<NodeCompiler>(&objects, &flows, &mut seen);
    }
    for (at, traffic, exempt) in [
        (EnforceAt::Destination, NodeTraffic::All, Exempt::TrustedNode),
        (EnforceAt::Entry, NodeTraffic::Own, Exempt::JudgedBefore),
        (EnforceAt::Entry, NodeTraffic::All, Exempt::TrustedNode),
        (EnforceAt::Entry, NodeTraffic::Policy, Exempt::OwnNode),
        (EnforceAt::Everywhere, NodeTraffic::Own, Exempt::JudgedBefore),
    ] {
        assert!(
            seen.get(&(at, traffic, exempt, true)).is_some_and(|met| *met > 10),
            "{at:?} {traffic:?} {exempt:?}: {seen:?}"
        );
    }
}

/// Where every node judges, a connection that the node before the pod's has masqueraded passes only if its true source may.
#[test]
fn a_masqueraded_connection_is_judged_by_its_true_source() {
    let mut met = [0, 0];
    for seed in 0..400 {
        let bytes = bytes(seed, 20_000);
        let mut u = Unstructured::new(&bytes);
        let objects = cluster(&mut u).unwrap();
        let objects = with_services(&mut u, objects).unwrap();
        let state = State::new(&objects).unwrap();
        let node_address = objects.iter().find_map(|object| match object {
            Object::Node(node) if &*node.name == "node-1" => node.addresses.first().copied(),
            _ => None,
        });
        let Some(node_address) = node_address else { continue };
        let runs_on = |address, node: &str| {
            objects.iter().any(|object| {
                matches!(object, Object::Pod(pod)
                if pod.addresses.contains(&address) && pod.node.as_deref() == Some(node))
            })
        };
        let everywhere = Enforcement { at: EnforceAt::Everywhere, node_traffic: NodeTraffic::Own };
        for flow in flows(&mut u, &objects, 200).unwrap() {
            if flow.source.is_ipv4() != node_address.is_ipv4() || !runs_on(flow.destination, "node-2") {
                continue;
            }
            // From a pod of node-1 or from outside, through node-1, which puts its own address in place of the source.
            let masqueraded = Flow { source: node_address, ..flow };
            let entry = judge_at(&state, everywhere, "node-1", &flow, Arrival::TranslatedHere);
            let arrival = judge_at(&state, everywhere, "node-2", &masqueraded, Arrival::AsItCame);
            let truth = judge(&state, &flow);
            if entry.ingress.allowed
                && arrival.ingress.allowed
                && !matches!(entry.ingress.reason, Reason::NotJudgedHere)
            {
                let is_exempt = matches!(truth.ingress.reason, Reason::IsolatedBy(_));
                assert!(!is_exempt, "seed {seed}: {flow} passes");
            }
            met[usize::from(truth.ingress.allowed)] += 1;
        }
    }
    assert!(met.iter().all(|count| *count > 100), "{met:?}");
}

const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

/// A pod with that address; of two the one with the greater number owns it.
fn pod(namespace: &str, node: &str, number: i64) -> Pod {
    Pod {
        id: PodId(format!("{namespace}-{number}").into()),
        static_uid: None,
        namespace: namespace.into(),
        name: format!("web-{number}").into(),
        labels: Labels::new(),
        node: Some(node.into()),
        addresses: vec![ADDRESS],
        host_network: false,
        phase: Phase::Live,
        created: number,
        ports: Vec::new(),
    }
}

/// A Service with a node port that leads to that address.
fn exposed() -> [Object; 2] {
    let service = Object::Service(Service {
        namespace: "shop".into(),
        name: "web".into(),
        kind: ServiceKind::NodePort,
        selector: BTreeMap::new(),
        cluster_addresses: Vec::new(),
        external_addresses: Vec::new(),
        external_traffic: ExternalTraffic::Cluster,
        ports: Vec::new(),
    });
    let slice = Object::EndpointSlice(EndpointSlice {
        namespace: "shop".into(),
        name: "web-1".into(),
        service: Some("web".into()),
        endpoints: vec![Endpoint { address: ADDRESS, serving: true }],
        ports: vec![(Protocol::Tcp, 80)],
    });
    [service, slice]
}

const ENTRY: Enforcement = Enforcement { at: EnforceAt::Entry, node_traffic: NodeTraffic::Own };

/// A node believes others about endpoints of its own pods only, wherever these go while a slice names them.
#[test]
fn who_has_an_endpoints_address_decides_whether_it_is_believed() {
    let mut state = Cluster::new();
    let mut compiler = compiler::<NodeCompiler>("node-1", ENTRY);
    let mut believes = |object: Object| {
        let mut touched = Touched::default();
        state.apply(object, &mut touched).unwrap();
        match compiler.compile(&state, &touched).reach.believed {
            Believed::Endpoints(endpoints) => !endpoints.is_empty(),
            other => panic!("{other:?}"),
        }
    };
    let web = |node, host_network| Object::Pod(Pod { host_network, ..pod("shop", node, 1) });
    for object in exposed() {
        assert!(!believes(object), "nobody has the address");
    }
    assert!(believes(web("node-1", false)));
    assert!(!believes(web("node-2", false)));
    assert!(believes(web("node-1", false)));
    assert!(!believes(web("node-1", true)));
}

/// An endpoint's address goes from one pod of another node to one in another namespace and back: its policies are those of
/// its owner.
#[test]
fn who_has_an_endpoints_address_decides_by_which_policies_it_is_judged() {
    fn follow<C: Compiler<Output: Demand>>() {
        let mut state = Cluster::new();
        let mut compiler = compiler::<C>("node-1", ENTRY);
        let mut judges = |change: Result<Object, ObjectKey>| {
            let mut touched = Touched::default();
            match change {
                Ok(object) => state.apply(object, &mut touched).unwrap(),
                Err(key) => state.delete(&key, &mut touched),
            }
            let followed = compiler.compile(&state, &touched).with_generation(0);
            let scratch = self::compiler::<C>("node-1", ENTRY).compile(&state, &Touched::everything());
            assert_eq!(followed, scratch.with_generation(0));
            let source = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));
            let flow = Flow { source, destination: ADDRESS, transport: Transport::Port(Protocol::Tcp, 80) };
            !followed.verdicts(&flow)[1].0
        };
        let id = PolicyId { tier: Tier::Namespace, namespace: "shop".into(), name: "closed".into() };
        let closed = Policy {
            id,
            priority: 0,
            namespaces: NamespaceScope::Own,
            pods: Selector::default(),
            isolates: Isolation { ingress: true, egress: false },
            ingress: Vec::new(),
            egress: Vec::new(),
        };
        for object in exposed().into_iter().chain([Object::Policy(closed)]) {
            assert!(!judges(Ok(object)));
        }
        let [shop, other] = [pod("shop", "node-2", 1), pod("other", "node-2", 2)];
        let gone = ObjectKey::Pod(other.id.clone());
        assert!(judges(Ok(Object::Pod(shop))), "the policy closes it");
        assert!(!judges(Ok(Object::Pod(other))), "no policy is about the new owner");
        assert!(judges(Err(gone)), "the first one has it again");
    }
    follow::<NodeCompiler>();
    follow::<AclCompiler>();
}
