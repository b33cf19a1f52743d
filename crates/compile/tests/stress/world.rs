//! Objects and flows from few names, addresses, keys and port names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use ringfence_model::{
    Action, ContainerPort, Endpoint, EndpointSlice, ExternalTraffic, Family, Flow, IpBlock, Isolation, Labels,
    Namespace, NamespaceScope, Node, Object, ObjectKey, Operator, Peer, Peers, Phase, Pod, PodId, Policy, PolicyId,
    PortMatch, PortRange, Ports, Protocol, Requirement, Rule, Selector, Service, ServiceKind, Tier, Transport,
};

pub(crate) const NAME: &str = "kubernetes.io/metadata.name";

/// `SplitMix64`.
pub(crate) struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// How large the pools are from which a case draws.
pub(crate) struct World {
    pub(crate) dice: Dice,
    namespaces: u64,
    pub(crate) nodes: u64,
    pods: u64,
    policies: u64,
    keys: u64,
    values: u64,
    addresses: u64,
    names: u64,
    numbers: u64,
    pub(crate) batch: u64,
    /// One in so many events is a deletion.
    pub(crate) deletions: u64,
    /// One in so many peers is a block, one in so many ports a name.
    blocks: u64,
    named: u64,
    services: u64,
    slices: u64,
    /// One in so many objects is a Service or a slice.
    exposed: u64,
}

impl World {
    pub(crate) fn new(seed: u64) -> World {
        let mut dice = Dice(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0xabcd);
        World {
            namespaces: 1 + dice.below(3),
            nodes: 1 + dice.below(3),
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
            services: 1 + dice.below(3),
            slices: 1 + dice.below(4),
            exposed: 2 + dice.below(4),
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
            // Both may collide with pods, and with other nodes.
            tunnel_addresses: (0..self.dice.below(3)).map(|_| self.address()).collect(),
            announced: None,
            pod_cidrs,
        })
    }

    pub(crate) fn pod(&mut self) -> Object {
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

    fn service(&mut self) -> Object {
        let kinds = [ServiceKind::ClusterIp, ServiceKind::Headless, ServiceKind::NodePort, ServiceKind::LoadBalancer];
        let kind = kinds[usize::try_from(self.dice.below(4)).unwrap()];
        Object::Service(Service {
            namespace: self.namespace_name(),
            name: self.text("service", self.services),
            kind,
            selector: BTreeMap::new(),
            cluster_addresses: Vec::new(),
            external_addresses: if self.dice.one_in(4) { vec![self.address()] } else { vec![] },
            external_traffic: ExternalTraffic::Cluster,
            ports: Vec::new(),
        })
    }

    fn slice(&mut self) -> Object {
        // An endpoint, and a port, may be there twice, serving and not.
        let endpoint = |world: &mut World| Endpoint { address: world.address(), serving: !world.dice.one_in(3) };
        Object::EndpointSlice(EndpointSlice {
            namespace: self.namespace_name(),
            name: self.text("slice", self.slices),
            service: if self.dice.one_in(8) { None } else { Some(self.text("service", self.services)) },
            endpoints: (0..self.dice.below(4)).map(|_| endpoint(self)).collect(),
            ports: (0..self.dice.below(4)).map(|_| (self.protocol(), self.number())).collect(),
        })
    }

    /// Networks of other clusters, which may overlap.
    pub(crate) fn networks(&mut self) -> Vec<IpNet> {
        let all = ["10.0.0.0/30", "10.0.0.0/29", "10.9.0.0/16", "fd00::/126"];
        let wanted = self.dice.below(8);
        all.iter().enumerate().filter(|(at, _)| wanted >> at & 1 == 1).map(|(_, text)| text.parse().unwrap()).collect()
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

    pub(crate) fn object(&mut self) -> Object {
        if self.dice.one_in(self.exposed) {
            return if self.dice.one_in(3) { self.service() } else { self.slice() };
        }
        match self.dice.below(10) {
            0 | 1 => self.namespace(),
            2 => self.node(),
            3..=6 => self.pod(),
            _ => self.policy(),
        }
    }

    /// A change of one thing about a pod or a policy that is there: what is near is more dangerous than what is far.
    pub(crate) fn near(&mut self, objects: &BTreeMap<ObjectKey, Object>) -> Option<Object> {
        let at = usize::try_from(self.dice.below(u64::try_from(objects.len().max(1)).unwrap())).unwrap();
        let mut object = objects.values().nth(at)?.clone();
        match &mut object {
            Object::Pod(pod) => match self.dice.below(9) {
                7 => pod.host_network = !pod.host_network,
                8 => pod.phase = if pod.phase == Phase::Live { Phase::Finished } else { Phase::Live },
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
            Object::Service(service) => {
                service.kind = match service.kind {
                    ServiceKind::NodePort => ServiceKind::ClusterIp,
                    _ => ServiceKind::NodePort,
                };
            }
            Object::EndpointSlice(slice) => match self.dice.below(4) {
                0 => slice.service = Some(self.text("service", self.services)),
                1 => slice.namespace = self.namespace_name(),
                2 => slice.ports = vec![(self.protocol(), self.number())],
                _ => slice.endpoints.iter_mut().for_each(|endpoint| endpoint.serving = !endpoint.serving),
            },
            Object::Node(node) => match self.dice.below(3) {
                0 => node.tunnel_addresses = vec![self.address()],
                1 => node.tunnel_addresses.clear(),
                _ => node.name = self.node_name(),
            },
        }
        Some(object)
    }

    pub(crate) fn flow(&mut self) -> Flow {
        loop {
            let (source, destination) = (self.address(), self.address());
            if Family::of(source) == Family::of(destination) {
                let transport = Transport::Port(self.protocol(), self.number() + u16::from(self.dice.one_in(4)) * 10);
                return Flow { source, destination, transport };
            }
        }
    }
}
