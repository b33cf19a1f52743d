//! Where a connection is judged and whom a node believes, case by case.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use ringfence_k8s::{Source, parse};
use ringfence_model::{
    Endpoint, EndpointSlice, EnforceAt, Enforcement, Flow, NodeTraffic, Object, Protocol, Transport,
};
use ringfence_oracle::{Answer, Arrival, Reason, State, judge_at};

const CLUSTER: &str = "
apiVersion: v1
kind: Node
metadata: {name: n1}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec: {nodeName: n2, containers: [{name: c}]}
status: {podIPs: [{ip: 10.0.2.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: inner, labels: {app: inner}}
spec: {nodeName: n2, containers: [{name: c}]}
status: {podIPs: [{ip: 10.0.2.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: caller, labels: {app: caller}}
spec: {nodeName: n1, containers: [{name: c}]}
status: {podIPs: [{ip: 10.0.1.1}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: all}
spec:
  podSelector: {matchExpressions: [{key: app, operator: In, values: [web, inner]}]}
  ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24}}], ports: [{port: 8080}]}]
";

const OFFICE: &str = "203.0.113.7";
const STRANGER: &str = "198.51.100.7";
const NODE_1: &str = "192.0.2.1";
const NODE_2: &str = "192.0.2.2";
const TUNNEL_1: &str = "10.0.1.0";
const WEB: &str = "10.0.2.1";
const INNER: &str = "10.0.2.2";
const CALLER: &str = "10.0.1.1";

fn state(serving: bool) -> State {
    let mut objects = parse(&[Source { name: "cluster.yaml", text: CLUSTER.as_bytes() }]).objects;
    for object in &mut objects {
        if let Object::Node(node) = object
            && &*node.name == "n1"
        {
            node.tunnel_addresses.push(TUNNEL_1.parse().unwrap());
        }
    }
    objects.push(Object::EndpointSlice(EndpointSlice {
        namespace: "default".into(),
        name: "web-1".into(),
        service: Some("web".into()),
        endpoints: vec![Endpoint { address: WEB.parse().unwrap(), serving }],
        ports: vec![(Protocol::Tcp, 8080)],
    }));
    State::new(&objects).unwrap()
}

/// What a node says about the ingress of a TCP connection.
fn ingress(
    state: &State,
    at: EnforceAt,
    node_traffic: NodeTraffic,
    node: &str,
    [from, to]: [&str; 2],
    port: u16,
) -> Answer {
    let transport = Transport::Port(Protocol::Tcp, port);
    let flow = Flow { source: from.parse().unwrap(), destination: to.parse().unwrap(), transport };
    judge_at(state, Enforcement { at, node_traffic }, node, &flow, Arrival::AsItCame).ingress
}

fn says(at: EnforceAt, node_traffic: NodeTraffic, node: &str, ends: [&str; 2], port: u16) -> bool {
    ingress(&state(true), at, node_traffic, node, ends, port).allowed
}

use EnforceAt::{Destination, Entry, Everywhere};
use NodeTraffic::{All, Own, Policy};

#[test]
fn the_destination_alone_judges_unless_told_otherwise() {
    let nobody_else = ingress(&state(true), Destination, Own, "n1", [STRANGER, WEB], 8080);
    assert_eq!(nobody_else.reason, Reason::NotJudgedHere);
    assert!(says(Destination, Own, "n2", [OFFICE, WEB], 8080));
    assert!(!says(Destination, Own, "n2", [STRANGER, WEB], 8080));
    // What goes wrong behind a node port: whoever it was, it is the node now.
    for source in [NODE_1, TUNNEL_1] {
        assert!(!says(Destination, Own, "n2", [source, WEB], 8080));
    }
}

#[test]
fn entry_nodes_judge_the_true_source_of_what_services_expose() {
    for at in [Entry, Everywhere] {
        assert!(says(at, Own, "n1", [OFFICE, WEB], 8080));
        assert!(!says(at, Own, "n1", [STRANGER, WEB], 8080));
        assert!(!says(at, Own, "n1", [OFFICE, WEB], 22), "the policy allows one port");
        for source in [NODE_1, TUNNEL_1] {
            let believed = ingress(&state(true), at, Own, "n2", [source, WEB], 8080);
            assert_eq!(believed.reason, Reason::JudgedBefore);
            // A node's own processes are judged before they leave it.
            assert!(!says(at, Own, "n1", [source, WEB], 8080));
        }
    }
    // Pods are judged on their own node, too, and under their own address on the node they call.
    assert!(!says(Entry, Own, "n1", [CALLER, WEB], 8080));
    assert!(!says(Entry, Own, "n2", [CALLER, WEB], 8080));
}

#[test]
fn entry_believes_nothing_wider_than_endpoints() {
    assert!(!says(Entry, Own, "n2", [NODE_1, WEB], 22), "no Service leads to this port");
    assert!(!says(Entry, Own, "n2", [NODE_1, INNER], 8080), "no Service leads to this pod");
    assert_eq!(ingress(&state(true), Entry, Own, "n1", [STRANGER, INNER], 8080).reason, Reason::NotJudgedHere);
    // Everywhere, other nodes have judged that, too.
    assert!(says(Everywhere, Own, "n2", [NODE_1, INNER], 22));
    assert!(!says(Everywhere, Own, "n1", [STRANGER, INNER], 8080));
}

#[test]
fn endpoints_are_judged_before_they_are_believed() {
    let starting = state(false);
    assert!(!ingress(&starting, Entry, Own, "n1", [STRANGER, WEB], 8080).allowed);
    assert!(!ingress(&starting, Entry, Own, "n2", [NODE_1, WEB], 8080).allowed);
}

#[test]
fn only_its_own_node_is_exempt_and_only_at_home() {
    for at in [Destination, Entry, Everywhere] {
        for traffic in [Own, Policy] {
            assert_eq!(ingress(&state(true), at, traffic, "n2", [NODE_2, INNER], 22).reason, Reason::OwnNode);
        }
    }
    // Anybody could claim that on another node.
    assert!(!says(Everywhere, Own, "n1", [NODE_2, INNER], 22));
}

#[test]
fn trusting_all_nodes_and_trusting_none() {
    for at in [Destination, Entry, Everywhere] {
        assert_eq!(ingress(&state(true), at, All, "n2", [NODE_1, INNER], 22).reason, Reason::TrustedNode);
        // A trusted node's own calls are exempt where they start, too.
        assert!(says(at, All, "n1", [NODE_1, INNER], 22));
        // The caller's own node has nothing to say about that, either.
        assert!(says(at, All, "n1", [NODE_1, WEB], 8080) && says(at, All, "n1", [TUNNEL_1, WEB], 8080));
        assert!(at == Destination || !says(at, All, "n1", [STRANGER, WEB], 8080));
        assert!(!says(at, Policy, "n2", [NODE_1, WEB], 8080));
        assert!(!says(at, Policy, "n2", [TUNNEL_1, WEB], 8080));
    }
}

/// Who calls a node port of the pod's own node from another node was there a caller of a node: nobody has judged that.
#[test]
fn what_a_node_has_translated_itself_nobody_has_judged() {
    let transport = Transport::Port(Protocol::Tcp, 8080);
    for (at, node_traffic, allowed) in [
        (Entry, Own, false),
        (Everywhere, Own, false),
        (Entry, Policy, false),
        (Entry, All, true),
        (Destination, All, true),
    ] {
        for source in [NODE_1, TUNNEL_1] {
            let flow = Flow { source: source.parse().unwrap(), destination: WEB.parse().unwrap(), transport };
            let enforcement = Enforcement { at, node_traffic };
            let translated = Arrival::TranslatedHere;
            let verdict = judge_at(&state(true), enforcement, "n2", &flow, translated);
            assert_eq!(verdict.ingress.allowed, allowed, "{enforcement:?} {source}");
        }
    }
    let flow = Flow { source: OFFICE.parse().unwrap(), destination: WEB.parse().unwrap(), transport };
    let entry = Enforcement { at: Entry, node_traffic: Own };
    let translated = Arrival::TranslatedHere;
    assert!(judge_at(&state(true), entry, "n2", &flow, translated).ingress.allowed, "its true source may");
}
