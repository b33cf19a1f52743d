//! The clusters that are measured: what they have in common, and the two around the probed pod.

use std::iter::once;
use std::net::{IpAddr, Ipv4Addr};

use ringfence_compile::{Cluster, Compiler, Touched, UnsupportedTier};
use ringfence_model::{
    Action, Isolation, Labels, NamespaceScope, Node, Object, ObjectKey, Peer, Peers, Phase, Pod, PodId, Policy,
    PolicyId, PortMatch, PortRange, Ports, Protocol, Rule, Selector, Tier,
};

pub(crate) const NODE_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10));
/// The pod whose ingress is isolated, on our node.
pub(crate) const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 255, 0, 2));
/// An allowed pod.
pub(crate) const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 255, 0, 3));
/// The port on which it is allowed.
pub(crate) const PORT: u16 = 4242;

/// The node that programs are compiled for.
pub(crate) const OUR_NODE: &str = "our-node";
/// Where all other pods are.
pub(crate) const OTHER_NODE: &str = "other-node";
/// The namespace of the server and the client. In order of names it comes after those of [`crowd`].
const BENCH: &str = "bench";
/// Policies of each namespace of [`crowd`] that has nothing to do with the server.
const POLICIES_ELSEWHERE: u16 = 10;
/// The first port of policies that do not concern the client.
const FIRST_PORT: u16 = 10_000;

/// A cluster state with the compiler of our node.
pub(crate) struct World<C> {
    cluster: Cluster,
    compiler: C,
    touched: Touched,
}

impl<C: Compiler> World<C> {
    pub(crate) fn new(objects: impl IntoIterator<Item = Object>) -> Result<World<C>, UnsupportedTier> {
        let mut world =
            World { cluster: Cluster::new(), compiler: C::for_node(OUR_NODE.into()), touched: Touched::default() };
        world.cluster.reset(objects, &mut world.touched)?;
        Ok(world)
    }

    pub(crate) fn apply(&mut self, object: Object) -> Result<(), UnsupportedTier> {
        self.cluster.apply(object, &mut self.touched)
    }

    pub(crate) fn delete(&mut self, key: &ObjectKey) {
        self.cluster.delete(key, &mut self.touched);
    }

    pub(crate) fn compile(&mut self) -> C::Output {
        self.compiler.compile(&self.cluster, &std::mem::take(&mut self.touched))
    }
}

/// One policy, and `entries` pods that may call the server; the client is one of them.
pub(crate) fn allowed(entries: u32) -> Vec<Object> {
    let mut objects = probed();
    objects.push(Object::Policy(policy(BENCH, "server", app("server"), vec![rule(own(app("client")), PORT)], vec![])));
    objects.extend((1..entries).map(remote));
    objects
}

/// The `number`th remote pod that may call the server, from 1.
pub(crate) fn remote(number: u32) -> Object {
    let address = address(Ipv4Addr::new(10, 0, 0, 0), number);
    Object::Pod(pod(BENCH, &format!("client-{number}"), address, "client", OTHER_NODE))
}

/// Pods of `namespaces` namespaces on the node, and `policies` policies of one rule each that select the server. The
/// policy that allows what the client asks for is the last one, in the last namespace: a filter that tries one after the
/// other comes to it at last. All of them speak of the client, so that the port alone tells them apart.
pub(crate) fn crowd(namespaces: u16, policies: u16) -> Vec<Object> {
    let mut objects = probed();
    objects.extend((1..policies).map(crowd_policy));
    objects.push(server_policy(policies, "client", PORT));
    for number in 1..namespaces {
        let namespace = format!("before-{number:05}");
        let address = address(Ipv4Addr::new(10, 254, 0, 0), number.into());
        objects.push(Object::Pod(pod(&namespace, &format!("server-{number}"), address, "server", OUR_NODE)));
        objects.extend((1..=POLICIES_ELSEWHERE).map(|number| {
            let name = format!("policy-{number:05}");
            let rules = vec![rule(own(app("client")), FIRST_PORT + number)];
            Object::Policy(policy(&namespace, &name, app("server"), rules, vec![]))
        }));
    }
    objects
}

/// The `number`th policy of [`crowd`] that selects the server, from 1.
pub(crate) fn crowd_policy(number: u16) -> Object {
    // Ports side by side that are open to the same peers would become one range.
    server_policy(number, "client", FIRST_PORT + 2 * number)
}

/// As [`crowd`] in one namespace, but every policy speaks of another app. Some of these have a pod.
pub(crate) fn apart(policies: u16) -> Vec<Object> {
    /// More would cost the compiler's time, which is not measured with these.
    const WITH_PODS: u16 = 100;
    let mut objects = probed();
    objects.extend((1..policies).map(apart_policy));
    objects.extend((1..policies.min(WITH_PODS)).map(|number| apart_pod(number, number)));
    objects.push(server_policy(policies, "client", PORT));
    objects
}

/// The `number`th policy of [`apart`], from 1.
pub(crate) fn apart_policy(number: u16) -> Object {
    server_policy(number, &format!("client-{number}"), FIRST_PORT + number)
}

/// A pod of the app that the `number`th policy of [`apart`] speaks of, which has the `place`th address.
pub(crate) fn apart_pod(number: u16, place: u16) -> Object {
    let address = address(Ipv4Addr::new(10, 0, 0, 0), place.into());
    Object::Pod(pod(BENCH, &format!("client-{place}"), address, &format!("client-{number}"), OTHER_NODE))
}

/// Lets an app in to the server.
fn server_policy(number: u16, peer: &str, port: u16) -> Object {
    let rules = vec![rule(own(app(peer)), port)];
    Object::Policy(policy(BENCH, &format!("policy-{number:05}"), app("server"), rules, vec![]))
}

/// As [`crowd`] in one namespace, and the client may open TCP connections to the server's port, too.
pub(crate) fn streams(policies: u16) -> Vec<Object> {
    let mut objects = crowd(1, policies);
    let ports = Ports::OneOf(vec![PortMatch::Number(Protocol::Tcp, PortRange::single(PORT))]);
    let ingress = vec![Rule { ports, ..rule(own(app("client")), PORT) }];
    objects.push(Object::Policy(policy(BENCH, "streams", app("server"), ingress, vec![])));
    objects
}

/// One of two states of the client and the server, both on our node, that a cluster can have beside other pods. Both let the
/// client call [`PORT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    First,
    Second,
}

impl State {
    /// Ports of the server that the client may call in neither state. The first one is, in each state, open to the label that
    /// the client has in the other; the second one the client may not call, or the server not be called on.
    pub(crate) const FORBIDDEN_PORTS: [u16; 2] = [PORT + 10, PORT + 11];

    pub(crate) fn objects(self) -> [Object; 4] {
        let [by_label, by_direction] = State::FORBIDDEN_PORTS;
        let (side, admitted) = match self {
            State::First => ("a", "b"),
            State::Second => ("b", "a"),
        };
        let mut ingress = vec![rule(own(selector("side", admitted)), by_label), rule(own(app("client")), PORT)];
        let mut egress = vec![rule(own(app("server")), by_label), rule(own(app("server")), PORT)];
        match self {
            State::First => ingress.push(rule(own(app("client")), by_direction)),
            State::Second => egress.push(rule(own(app("server")), by_direction)),
        }
        let mut client = pod(BENCH, "client", CLIENT, "client", OUR_NODE);
        client.labels = [("app", "client"), ("side", side)].map(|(key, value)| (key.into(), value.into())).into();
        [
            Object::Pod(pod(BENCH, "server", SERVER, "server", OUR_NODE)),
            Object::Pod(client),
            Object::Policy(policy(BENCH, "server", app("server"), ingress, vec![])),
            Object::Policy(policy(BENCH, "client", app("client"), vec![], egress)),
        ]
    }
}

/// What there is in any case: the node, the server and the client.
fn probed() -> Vec<Object> {
    let server = pod(BENCH, "server", SERVER, "server", OUR_NODE);
    let client = pod(BENCH, "client", CLIENT, "client", OTHER_NODE);
    vec![our_node(), Object::Pod(server), Object::Pod(client)]
}

pub(crate) fn our_node() -> Object {
    Object::Node(Node {
        name: OUR_NODE.into(),
        addresses: vec![NODE_ADDRESS],
        tunnel_addresses: Vec::new(),
        announced: None,
        pod_cidrs: Vec::new(),
    })
}

/// A live pod; no two have the same name.
pub(crate) fn pod(namespace: &str, name: &str, address: IpAddr, app: &str, node: &str) -> Pod {
    Pod {
        id: PodId(name.into()),
        static_uid: None,
        namespace: namespace.into(),
        name: name.into(),
        labels: labels("app", app),
        node: Some(node.into()),
        addresses: vec![address],
        host_network: false,
        phase: Phase::Live,
        created: 0,
        ports: Vec::new(),
    }
}

/// A policy that isolates in the directions in which it has rules.
pub(crate) fn policy(namespace: &str, name: &str, pods: Selector, ingress: Vec<Rule>, egress: Vec<Rule>) -> Policy {
    Policy {
        id: PolicyId { tier: Tier::Namespace, namespace: namespace.into(), name: name.into() },
        priority: 0,
        namespaces: NamespaceScope::Own,
        pods,
        isolates: Isolation { ingress: !ingress.is_empty(), egress: !egress.is_empty() },
        ingress,
        egress,
    }
}

/// Allows one UDP port.
pub(crate) fn rule(peer: Peer, port: u16) -> Rule {
    Rule {
        action: Action::Accept,
        peers: Peers::OneOf(vec![peer]),
        ports: Ports::OneOf(vec![PortMatch::Number(Protocol::Udp, PortRange::single(port))]),
    }
}

/// Pods of the policy's own namespace.
pub(crate) fn own(pods: Selector) -> Peer {
    Peer::Pods { namespaces: NamespaceScope::Own, pods }
}

pub(crate) fn app(name: &str) -> Selector {
    selector("app", name)
}

pub(crate) fn selector(key: &str, value: &str) -> Selector {
    Selector { match_labels: once((key.into(), value.into())).collect(), match_expressions: Vec::new() }
}

pub(crate) fn labels(key: &str, value: &str) -> Labels {
    once((key.into(), value.into())).collect()
}

/// The address `number` places after `first`.
pub(crate) fn address(first: Ipv4Addr, number: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(u32::from(first) + number))
}
