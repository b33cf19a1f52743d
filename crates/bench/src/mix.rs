//! Clusters of any size with the mix of objects that large clusters have, and the changes that come to them.
//!
//! Nothing is random: the same numbers give the same cluster. Namespaces are alike, and a larger cluster has more of them;
//! what differs is in which proportions policies use what the API offers. Pods are dealt out to namespaces one by one.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ringfence_model::{
    Action, ContainerPort, IpBlock, Isolation, Labels, Namespace, NamespaceScope, Node, Object, Operator, Peer, Peers,
    Phase, Pod, PodId, Policy, PortMatch, PortRange, Ports, Protocol, Requirement, Rule, Selector,
};

use crate::cluster::{NODE_ADDRESS, OUR_NODE, address, own, policy, selector};

/// Pods with the same labels, but for those of stateful sets.
const REPLICAS: u32 = 10;
/// Values of the label `app` in one namespace.
const APPS: u32 = 10;
/// Values of the label `team` of namespaces.
const TEAMS: u32 = 50;
/// Pods of a node other than ours.
const PODS_PER_NODE: u32 = 110;
/// Pods of the namespace `wide`, which single policies select all together.
pub(crate) const WIDE_PODS: u32 = 1_000;

/// How much there is of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mix {
    /// Pods, without those of the namespaces `wide` and `hot`.
    pub(crate) pods: u32,
    /// Those of them on our node.
    pub(crate) local_pods: u32,
    pub(crate) namespaces: u32,
    /// Those of them, the first ones, that the pods of our node are in. The more there are, the more the node enforces.
    pub(crate) local_namespaces: u32,
    /// Policies, without those of the hot pod.
    pub(crate) policies: u32,
    /// Policies that select one pod of our node.
    pub(crate) hot_policies: u32,
}

impl Mix {
    /// With as many namespaces as give each 100 pods.
    pub(crate) fn new(pods: u32, policies: u32) -> Mix {
        let (local_pods, namespaces) = (110.min(pods), (pods / 100).max(1));
        Mix { pods, local_pods, namespaces, local_namespaces: local_pods.min(namespaces), policies, hot_policies: 100 }
    }

    /// All objects, namespaces and policies first.
    pub(crate) fn objects(&self) -> impl Iterator<Item = Object> {
        let mix = *self;
        let named = ["wide", "hot", "kube-system", "monitoring", "ingress-system"];
        let special = named.into_iter().map(|name| Object::Namespace(namespace(name, "platform")));
        let namespaces = (0..mix.namespaces).map(move |number| Object::Namespace(mix.namespace(number, number)));
        let nodes = (0..mix.pods.div_ceil(PODS_PER_NODE)).map(|number| {
            let addresses = vec![address(Ipv4Addr::new(198, 18, 0, 1), number)];
            Object::Node(Node {
                name: node(number).into(),
                addresses,
                tunnel_addresses: Vec::new(),
                announced: None,
                pod_cidrs: Vec::new(),
            })
        });
        let our_node = Node {
            name: OUR_NODE.into(),
            addresses: vec![NODE_ADDRESS],
            tunnel_addresses: Vec::new(),
            announced: None,
            pod_cidrs: Vec::new(),
        };
        let policies = (0..mix.policies).map(move |number| Object::Policy(mix.policy(number, 0)));
        let hot = (0..mix.hot_policies).map(move |number| Object::Policy(mix.hot_policy(number, 0)));
        let pods = (0..mix.pods).map(move |number| Object::Pod(mix.pod(number, 0)));
        let wide = (0..WIDE_PODS).map(move |number| Object::Pod(mix.wide_pod(number)));
        let mut shared = Shared::default();
        let all = special.chain(namespaces).chain(nodes).chain([Object::Node(our_node)]);
        all.chain(policies)
            .chain(hot)
            .chain(infrastructure())
            .chain([Object::Pod(mix.hot_pod())])
            .chain(pods)
            .chain(wide)
            .map(move |object| shared.object(object))
    }

    pub(crate) fn name_of(number: u32) -> String {
        format!("namespace-{number:05}")
    }

    /// A namespace as it is when it belongs to the `team`th team.
    pub(crate) fn namespace(&self, number: u32, team: u32) -> Namespace {
        namespace(&Mix::name_of(number), &team_name(team))
    }

    /// A pod as it is after its labels have changed so many times: it is one of another app then. `number` may be larger
    /// than there are pods, for pods that are to come. The first ones are our node's.
    pub(crate) fn pod(&self, number: u32, changes: u32) -> Pod {
        if number < self.local_pods {
            return self.local_pod(number, changes);
        }
        self.pod_on(&node(number / PODS_PER_NODE), number, self.namespaces, changes)
    }

    /// A pod of our node; `number` may be larger than there are, for pods that are to come.
    pub(crate) fn local_pod(&self, number: u32, changes: u32) -> Pod {
        self.pod_on(OUR_NODE, number, self.local_namespaces, changes)
    }

    fn pod_on(&self, node: &str, number: u32, namespaces: u32, changes: u32) -> Pod {
        let (home, replica) = (number % namespaces, number / namespaces);
        let workload = replica / REPLICAS;
        let app = (workload + changes) % APPS;
        let name = format!("app-{app}-{replica}-x{number:06}");
        let mut labels = vec![
            ("app", format!("app-{app}")),
            ("app.kubernetes.io/part-of", format!("product-{}", home % 20)),
            ("tier", ["web", "api", "db"][app as usize % 3].to_owned()),
        ];
        // One workload in ten is a stateful set, whose pods all differ.
        if workload % 10 == 9 {
            labels.push(("statefulset.kubernetes.io/pod-name", name.clone()));
            labels.push(("apps.kubernetes.io/pod-index", replica.to_string()));
        } else {
            labels.push(("pod-template-hash", format!("{home:x}{workload:04x}")));
        }
        let port = |name: &str, port| ContainerPort { name: Some(name.into()), protocol: Protocol::Tcp, port };
        Pod {
            ports: vec![port("http", 8_000 + (app % 8) as u16), port("metrics", 9_090 + (app % 2) as u16)],
            ..pod(&Mix::name_of(home), &name, node, address(Ipv4Addr::new(10, 0, 0, 1), number), labels)
        }
    }

    /// A pod of the namespace `wide`; the first one is our node's.
    pub(crate) fn wide_pod(&self, number: u32) -> Pod {
        let node = if number == 0 { OUR_NODE.to_owned() } else { node(number / PODS_PER_NODE) };
        let labels = vec![("app", format!("wide-{}", number % 10))];
        pod("wide", &format!("wide-{number}"), &node, address(Ipv4Addr::new(10, 240, 0, 1), number), labels)
    }

    /// Lets all pods of the namespace `wide` in to all of them, by this port.
    pub(crate) fn wide_policy(&self, port: u16) -> Policy {
        let ports = [tcp(port)];
        policy("wide", "wide", Selector::default(), vec![rule([own(Selector::default())], ports)], vec![])
    }

    /// The pod that many policies select.
    pub(crate) fn hot_pod(&self) -> Pod {
        pod("hot", "hot", OUR_NODE, IpAddr::V4(Ipv4Addr::new(10, 250, 0, 1)), vec![("app", "hot".to_owned())])
    }

    /// Lets one app of one team in to the hot pod, by one port, which is another one after each change.
    pub(crate) fn hot_policy(&self, number: u32, changes: u32) -> Policy {
        let peers = [elsewhere("team", &team_name(number), selector("app", &format!("app-{}", number / TEAMS % APPS)))];
        let first = (number % 40_000) as u16;
        let ports = [tcp(if changes == 0 { 10_000 + first } else { 50_000 + (changes % 15_000) as u16 })];
        policy("hot", &format!("hot-{number:05}"), selector("app", "hot"), vec![rule(peers, ports)], vec![])
    }

    /// A policy as it is after it has changed so many times: it lets one more app in then, by a port of its own.
    pub(crate) fn policy(&self, number: u32, changes: u32) -> Policy {
        let mut policy = self.first_policy(number);
        if changes > 0 {
            let peer = own(selector("app", &format!("app-{}", changes % APPS)));
            policy.ingress.push(rule([peer], [tcp(40_000 + (changes % 20_000) as u16)]));
            policy.isolates.ingress = true;
        }
        policy
    }

    fn first_policy(&self, number: u32) -> Policy {
        let home = number % self.namespaces;
        let kind = number / self.namespaces;
        // After the ten kinds they come again, for other apps.
        let round = kind / 10;
        let app = |offset: u32| selector("app", &format!("app-{}", (round + offset) % APPS));
        let port = tcp(8_000 + (round % 8) as u16);
        let (namespace, name) = (Mix::name_of(home), format!("policy-{kind:05}"));
        let make = |pods, ingress, egress| policy(&namespace, &name, pods, ingress, egress);
        let any = Selector::default;
        match kind % 10 {
            // Nothing is allowed but what others allow.
            0 => Policy { isolates: Isolation { ingress: true, egress: true }, ..make(any(), vec![], vec![]) },
            // To the cluster's DNS.
            1 => {
                let peer = elsewhere("kubernetes.io/metadata.name", "kube-system", selector("k8s-app", "kube-dns"));
                let udp = PortMatch::Number(Protocol::Udp, PortRange::single(53));
                make(any(), vec![], vec![rule([peer], [udp, tcp(53)])])
            }
            // From the ingress controllers, by a port's name.
            2 => {
                let peer = elsewhere("kubernetes.io/metadata.name", "ingress-system", any());
                make(app(0), vec![rule([peer], [named("http")])], vec![])
            }
            // Between apps of the namespace.
            3 => make(app(0), vec![rule([own(app(1)), own(app(2))], [port])], vec![]),
            4 => make(app(1), vec![], vec![rule([own(app(0))], [port])]),
            // From monitoring, by a port's name, to whatever listens.
            5 => {
                let peer = elsewhere("kubernetes.io/metadata.name", "monitoring", selector("app", "prometheus"));
                make(any(), vec![rule([peer], [named("metrics")])], vec![])
            }
            // From an app of another team.
            6 => make(app(2), vec![rule([elsewhere("team", &team_name(home + 1), app(3))], [port])], vec![]),
            // To the world, but not to private networks.
            7 => {
                let except = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"].map(network).to_vec();
                let world = Peer::Block(IpBlock { cidr: network("0.0.0.0/0"), except });
                make(app(3), vec![], vec![rule([world], [tcp(443)])])
            }
            // A range of ports, between tiers.
            8 => {
                let tiers = ["api", "web"].map(Arc::from);
                let tiers = Requirement { key: "tier".into(), operator: Operator::In(BTreeSet::from(tiers)) };
                let peer = own(Selector { match_labels: BTreeMap::new(), match_expressions: vec![tiers] });
                let range = PortRange { first: 30_000, last: 32_767 };
                make(selector("tier", "db"), vec![rule([peer], [PortMatch::Number(Protocol::Tcp, range)])], vec![])
            }
            // To the team's own pods, by a port's name.
            _ => make(app(4), vec![], vec![rule([elsewhere("team", &team_name(home), app(5))], [named("http")])]),
        }
    }
}

/// The pods of the platform's namespaces.
fn infrastructure() -> impl Iterator<Item = Object> {
    let kinds = [
        (0, "kube-system", "k8s-app", "kube-dns", 10),
        (256, "monitoring", "app", "prometheus", 2),
        (512, "ingress-system", "app", "ingress", 20),
    ];
    let pods = kinds.into_iter().flat_map(|(first, namespace, key, value, count)| {
        (first..first + count).map(move |number| (number, namespace, key, value))
    });
    pods.map(|(number, namespace, key, value)| {
        let address = address(Ipv4Addr::new(10, 251, 0, 1), number);
        Object::Pod(pod(namespace, &format!("{value}-{number}"), &node(number), address, vec![(key, value.to_owned())]))
    })
}

/// One copy of what many objects repeat, as the source of a real agent keeps it.
#[derive(Default)]
struct Shared {
    texts: HashSet<Arc<str>>,
    labels: HashSet<Labels>,
}

impl Shared {
    fn object(&mut self, mut object: Object) -> Object {
        if let Object::Pod(pod) = &mut object {
            let Shared { texts, labels } = self;
            pod.namespace = one(texts, pod.namespace.clone());
            pod.node = pod.node.take().map(|node| one(texts, node));
            for port in &mut pod.ports {
                port.name = port.name.take().map(|name| one(texts, name));
            }
            if !labels.contains(&pod.labels) {
                let texts = pod.labels.iter().map(|(key, value)| (one(texts, key.clone()), one(texts, value.clone())));
                labels.insert(texts.collect());
            }
            pod.labels = one(labels, pod.labels.clone());
        }
        object
    }
}

fn one<T: Eq + Hash + Clone>(known: &mut HashSet<T>, value: T) -> T {
    if let Some(known) = known.get(&value) {
        return known.clone();
    }
    known.insert(value.clone());
    value
}

fn namespace(name: &str, team: &str) -> Namespace {
    let labels = [("kubernetes.io/metadata.name", name), ("team", team)];
    Namespace { name: name.into(), labels: labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect() }
}

fn node(number: u32) -> String {
    format!("node-{number:04}")
}

fn team_name(number: u32) -> String {
    format!("team-{}", number % TEAMS)
}

fn pod(namespace: &str, name: &str, node: &str, address: IpAddr, labels: Vec<(&'static str, String)>) -> Pod {
    Pod {
        // As long as those of real pods.
        id: PodId(format!("{namespace}-{name:->36}")[..].into()),
        static_uid: None,
        namespace: namespace.into(),
        name: name.into(),
        labels: labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect::<Labels>(),
        node: Some(node.into()),
        addresses: vec![address],
        host_network: false,
        phase: Phase::Live,
        created: 0,
        ports: Vec::new(),
    }
}

fn rule(peers: impl IntoIterator<Item = Peer>, ports: impl IntoIterator<Item = PortMatch>) -> Rule {
    Rule {
        action: Action::Accept,
        peers: Peers::OneOf(peers.into_iter().collect()),
        ports: Ports::OneOf(ports.into_iter().collect()),
    }
}

fn elsewhere(key: &str, value: &str, pods: Selector) -> Peer {
    Peer::Pods { namespaces: NamespaceScope::Matching(selector(key, value)), pods }
}

fn tcp(port: u16) -> PortMatch {
    PortMatch::Number(Protocol::Tcp, PortRange::single(port))
}

fn named(name: &str) -> PortMatch {
    PortMatch::Named(Protocol::Tcp, name.into())
}

#[allow(clippy::unwrap_used, reason = "literals")]
fn network(text: &str) -> ipnet::IpNet {
    text.parse().unwrap()
}
