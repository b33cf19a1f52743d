//! The pods that packets go between, and the policies around them: few of each, so that every change counts.
//!
//! Pods get addresses of the network's, on the node where these are: now and then one that another pod still has, or that
//! one had just before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ringfence_k8s::api::Kind;
use ringfence_model::{
    Action, ContainerPort, IpBlock, Isolation, Labels, Namespace, NamespaceScope, Node, Object, Operator, Peer, Peers,
    Phase, Pod, PodId, Policy, PolicyId, PortMatch, PortRange, Ports, Protocol, Requirement, Rule, Selector, Tier,
};
use serde_json::{Value, json};

use super::Failure;
use super::field::{End, LAB_NODE, NODE_ADDRESSES};
use super::present::Present;
use crate::api;
use crate::cluster::OUR_NODE;

pub(super) const NAMESPACES: [&str; 3] = ["lab-a", "lab-b", "lab-c"];
/// Policies of each namespace at most.
const POLICIES: usize = 6;
/// How many pods there are, at least and at most.
const PODS: (usize, usize) = (8, 14);
/// Blocks that policies speak of: of the pods of the network, of all other pods, of the world; `except` must be inside.
const BLOCKS: [(&str, &[&str]); 9] = [
    ("0.0.0.0/0", &["10.0.0.0/8", "203.0.113.9/32"]),
    ("::/0", &["fd00:255::/64", "2001:db8::/32"]),
    ("10.0.0.0/8", &["10.255.0.0/16", "10.255.1.0/24"]),
    ("10.255.0.0/16", &["10.255.1.0/24", "10.255.2.1/32", "10.255.4.0/23"]),
    ("10.255.0.0/23", &["10.255.0.2/31"]),
    ("10.255.4.1/32", &[]),
    ("203.0.113.0/24", &["203.0.113.0/29"]),
    ("fd00:255::/64", &["fd00:255::1:0/112", "fd00:255::2:1/128"]),
    ("2001:db8::9/128", &[]),
];

/// What is there of it now.
pub(super) struct Cast {
    ends: Vec<End>,
    pods: Vec<Pod>,
    policies: BTreeSet<(usize, usize)>,
    /// Of each namespace, whether it is there.
    namespaces: [bool; NAMESPACES.len()],
    next: u32,
}

impl Cast {
    pub(super) fn new(ends: &[End]) -> Cast {
        let ends = ends.iter().filter(|end| end.node.is_some()).copied().collect();
        Cast { ends, pods: Vec::new(), policies: BTreeSet::new(), namespaces: [false; NAMESPACES.len()], next: 0 }
    }

    /// Nodes, namespaces, some policies and pods.
    pub(super) fn enter(&mut self, present: &mut Present<'_>, random: &mut fastrand::Rng) -> Result<(), Failure> {
        for (name, addresses) in [OUR_NODE, LAB_NODE].into_iter().zip(NODE_ADDRESSES) {
            let node = Node {
                name: name.into(),
                addresses: addresses.to_vec(),
                tunnel_addresses: Vec::new(),
                announced: None,
                pod_cidrs: Vec::new(),
            };
            present.apply(&Object::Node(node))?;
        }
        for _ in 0..NAMESPACES.len() * 4 {
            self.change_namespace(present, random)?;
            self.change_policy(present, random)?;
        }
        while self.pods.len() < PODS.1 {
            self.change_pod(present, random)?;
        }
        Ok(())
    }

    /// A pod comes, goes, ends, or has other labels or addresses.
    pub(super) fn change_pod(&mut self, present: &mut Present<'_>, random: &mut fastrand::Rng) -> Result<(), Failure> {
        let chosen = random.usize(..self.pods.len().max(1));
        let kind = if self.pods.len() <= PODS.0 { 0 } else { random.u8(..10) };
        match kind {
            0 | 1 if self.pods.len() < PODS.1 => {
                let pod = self.new_pod(random);
                present.apply(&Object::Pod(pod.clone()))?;
                self.pods.push(pod);
                return Ok(());
            }
            0..=2 => {
                let pod = self.pods.swap_remove(chosen);
                present.delete(Kind::Pod, &pod.namespace, &pod.name);
                return Ok(());
            }
            3..=6 => self.pods[chosen].labels = labels(random),
            // It moves to another address of its node, as after its sandbox was made anew.
            7 | 8 => {
                let ours = self.pods[chosen].node.as_deref() == Some(OUR_NODE);
                self.pods[chosen].addresses = self.addresses(ours, random);
            }
            _ => self.pods[chosen].phase = Phase::Finished,
        }
        present.apply(&Object::Pod(self.pods[chosen].clone()))
    }

    fn new_pod(&mut self, random: &mut fastrand::Rng) -> Pod {
        self.next += 1;
        let name = format!("actor-{}", self.next);
        let ours = random.u8(..4) > 0;
        let host_network = random.u8(..16) == 0;
        let addresses = match (host_network, random.u8(..8)) {
            (true, _) => NODE_ADDRESSES[usize::from(!ours)].to_vec(),
            // Not yet.
            (false, 0) => Vec::new(),
            (false, _) => self.addresses(ours, random),
        };
        let port = |name: &str, protocol, port| ContainerPort { name: Some(name.into()), protocol, port };
        Pod {
            // The server gives it another one.
            id: PodId(name.as_str().into()),
            static_uid: None,
            namespace: NAMESPACES[random.usize(..NAMESPACES.len())].into(),
            name: name.into(),
            labels: labels(random),
            node: Some(if ours { OUR_NODE } else { LAB_NODE }.into()),
            addresses,
            host_network,
            phase: Phase::Live,
            created: 0,
            ports: vec![
                port("http", Protocol::Tcp, 8_000 + u16::from(random.bool())),
                port("dns", Protocol::Udp, 4_242 + u16::from(random.bool())),
            ],
        }
    }

    /// An address of each family, or of one of them. Mostly some that no pod has.
    fn addresses(&self, ours: bool, random: &mut fastrand::Rng) -> Vec<std::net::IpAddr> {
        let node = usize::from(!ours);
        let claimed = |end: &End| self.pods.iter().any(|pod| pod.addresses.contains(&end.address));
        let any = random.u8(..6) == 0;
        let mut chosen = Vec::new();
        for v4 in [true, false] {
            let of_family = self.ends.iter().filter(|end| end.node == Some(node) && end.address.is_ipv4() == v4);
            let free: Vec<&End> = of_family.filter(|end| any || !claimed(end)).collect();
            if random.u8(..8) > 0 {
                chosen.extend(random.choice(free).map(|end| end.address));
            }
        }
        chosen
    }

    /// A policy comes, goes, changes, or becomes invalid.
    pub(super) fn change_policy(
        &mut self,
        present: &mut Present<'_>,
        random: &mut fastrand::Rng,
    ) -> Result<(), Failure> {
        let place = (random.usize(..NAMESPACES.len()), random.usize(..POLICIES));
        let (namespace, name) = (NAMESPACES[place.0], format!("policy-{}", place.1));
        if self.policies.contains(&place) && random.u8(..3) == 0 {
            self.policies.remove(&place);
            present.delete(Kind::NetworkPolicy, namespace, &name);
            return Ok(());
        }
        self.policies.insert(place);
        let mut value = api::policy(&policy(namespace, &name, random));
        if random.u8(..10) == 0 {
            spoil(&mut value, random);
        }
        present.apply_value(&value)
    }

    /// A namespace comes, goes, or changes its team.
    pub(super) fn change_namespace(
        &mut self,
        present: &mut Present<'_>,
        random: &mut fastrand::Rng,
    ) -> Result<(), Failure> {
        let chosen = random.usize(..NAMESPACES.len());
        let name = NAMESPACES[chosen];
        if self.namespaces[chosen] && random.u8(..5) == 0 {
            self.namespaces[chosen] = false;
            present.delete(Kind::Namespace, "", name);
            return Ok(());
        }
        self.namespaces[chosen] = true;
        present.apply(&Object::Namespace(namespace(name, &format!("team-{}", random.u8(..4)))))
    }
}

fn namespace(name: &str, team: &str) -> Namespace {
    let labels = [("kubernetes.io/metadata.name", name), ("team", team)];
    Namespace { name: name.into(), labels: labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect() }
}

fn labels(random: &mut fastrand::Rng) -> Labels {
    let mut labels: Vec<(Arc<str>, Arc<str>)> = vec![("app".into(), format!("app-{}", random.u8(..4)).into())];
    if random.bool() {
        labels.push(("tier".into(), ["web", "api", "db"][random.usize(..3)].into()));
    }
    if random.bool() {
        labels.push(("role".into(), ["leader", "follower"][random.usize(..2)].into()));
    }
    labels.into_iter().collect()
}

fn policy(namespace: &str, name: &str, random: &mut fastrand::Rng) -> Policy {
    let isolates = match random.u8(..4) {
        0 => Isolation { ingress: true, egress: true },
        1 => Isolation { ingress: false, egress: true },
        _ => Isolation { ingress: true, egress: false },
    };
    let mut rules =
        |isolated: bool| if isolated { (0..random.u8(..4)).map(|_| rule(random)).collect() } else { vec![] };
    let (ingress, egress) = (rules(isolates.ingress), rules(isolates.egress));
    Policy {
        id: PolicyId { tier: Tier::Namespace, namespace: namespace.into(), name: name.into() },
        priority: 0,
        namespaces: NamespaceScope::Own,
        pods: selector(random),
        isolates,
        ingress,
        egress,
    }
}

fn rule(random: &mut fastrand::Rng) -> Rule {
    let peers = match random.u8(..6) {
        0 => Peers::Any,
        _ => Peers::OneOf((0..random.u8(1..4)).map(|_| peer(random)).collect()),
    };
    let ports = match random.u8(..3) {
        0 => Ports::Any,
        _ => Ports::OneOf((0..random.u8(1..4)).map(|_| port(random)).collect()),
    };
    Rule { action: Action::Accept, peers, ports }
}

fn peer(random: &mut fastrand::Rng) -> Peer {
    match random.u8(..6) {
        0 | 1 => Peer::Pods { namespaces: NamespaceScope::Own, pods: selector(random) },
        2 => {
            let name = NAMESPACES[random.usize(..NAMESPACES.len())];
            let namespaces = by_label("kubernetes.io/metadata.name", name);
            Peer::Pods { namespaces: NamespaceScope::Matching(namespaces), pods: selector(random) }
        }
        // Those of the crowd, too.
        3 => {
            let namespaces = by_label("team", &format!("team-{}", random.u8(..4)));
            Peer::Pods { namespaces: NamespaceScope::Matching(namespaces), pods: selector(random) }
        }
        _ => {
            let (cidr, except) = BLOCKS[random.usize(..BLOCKS.len())];
            let except = except.iter().filter(|_| random.bool()).map(|except| network(except)).collect();
            Peer::Block(IpBlock { cidr: network(cidr), except })
        }
    }
}

fn port(random: &mut fastrand::Rng) -> PortMatch {
    let number = |protocol, first, last| PortMatch::Number(protocol, PortRange { first, last });
    match random.u8(..7) {
        0 => PortMatch::Named(Protocol::Tcp, "http".into()),
        1 => PortMatch::Named(Protocol::Udp, "dns".into()),
        2 => number(Protocol::Tcp, 30_000, 32_767),
        3 => number(Protocol::Udp, 4_000, 4_242),
        4 => number(Protocol::Tcp, 8_000, 8_000),
        5 => number(Protocol::Tcp, 8_000, 8_001),
        _ => number(Protocol::Udp, 4_243, 4_243),
    }
}

fn selector(random: &mut fastrand::Rng) -> Selector {
    let app = |random: &mut fastrand::Rng| Arc::from(format!("app-{}", random.u8(..4)));
    let by = |key: &str, operator| Selector {
        match_labels: BTreeMap::new(),
        match_expressions: vec![Requirement { key: key.into(), operator }],
    };
    match random.u8(..8) {
        0 | 1 => Selector::default(),
        2 | 3 => Selector { match_labels: BTreeMap::from([("app".into(), app(random))]), match_expressions: vec![] },
        4 => by("tier", Operator::In(BTreeSet::from(["web".into(), "api".into()]))),
        5 => by("app", Operator::NotIn(BTreeSet::from([app(random), app(random)]))),
        6 => by("role", Operator::Exists),
        _ => by("role", Operator::DoesNotExist),
    }
}

fn by_label(key: &str, value: &str) -> Selector {
    Selector { match_labels: BTreeMap::from([(key.into(), value.into())]), match_expressions: vec![] }
}

/// Makes a policy invalid, in a way that older API servers have let through.
fn spoil(policy: &mut Value, random: &mut fastrand::Rng) {
    let rule = match random.u8(..4) {
        0 => json!({"from": [{"ipBlock": {"cidr": "not a network"}}]}),
        1 => json!({"from": [{"ipBlock": {"cidr": "10.255.0.0/16", "except": ["10.254.0.0/16"]}}]}),
        2 => json!({"ports": [{"protocol": "TCP", "port": 8000, "endPort": 7000}]}),
        _ => json!({"from": [{"podSelector": {"matchExpressions": [{"key": "app", "operator": "Like"}]}}]}),
    };
    policy["spec"]["policyTypes"] = json!(["Ingress", "Egress"]);
    policy["spec"]["ingress"] = json!([{}, rule]);
}

#[allow(clippy::unwrap_used, reason = "literals")]
fn network(text: &str) -> ipnet::IpNet {
    text.parse().unwrap()
}
