//! The cluster that is measured: one isolated pod on our node, and many remote pods that may call it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ringfence_compile::{Cluster, NodeCompiler, Program, Touched, UnsupportedTier};
use ringfence_model::{
    Action, Isolation, Labels, NamespaceScope, Node, Object, Peer, Peers, Phase, Pod, PodId, Policy, PolicyId,
    PortMatch, PortRange, Ports, Protocol, Rule, Selector, Tier,
};

pub(crate) const NODE_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10));
/// The pod whose ingress is isolated, on our node.
pub(crate) const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 255, 0, 2));
/// An allowed pod.
pub(crate) const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 255, 0, 3));
pub(crate) const PORT: u16 = 4242;

/// A cluster state with its compiler.
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    compiler: NodeCompiler,
    touched: Touched,
}

impl World {
    /// A world in which `entries` pods may call the server; the client is one of them.
    pub(crate) fn new(entries: u32) -> Result<World, UnsupportedTier> {
        let server = pod("server", SERVER, "server", "our-node");
        let client = pod("client", CLIENT, "client", "other-node");
        let node = Node { name: "our-node".into(), addresses: vec![NODE_ADDRESS], pod_cidrs: Vec::new() };
        let mut objects = vec![Object::Node(node), Object::Pod(server), Object::Pod(client), Object::Policy(policy())];
        objects.extend((1..entries).map(|number| Object::Pod(remote(number))));
        let mut world = World {
            cluster: Cluster::new(),
            compiler: NodeCompiler::new("our-node".into()),
            touched: Touched::default(),
        };
        world.cluster.reset(objects, &mut world.touched)?;
        Ok(world)
    }

    /// One more remote pod that may call the server.
    pub(crate) fn add_remote(&mut self, number: u32) -> Result<(), UnsupportedTier> {
        self.cluster.apply(Object::Pod(remote(number)), &mut self.touched)
    }

    pub(crate) fn compile(&mut self) -> Program {
        self.compiler.compile(&self.cluster, &std::mem::take(&mut self.touched))
    }
}

/// The `number`th remote pod, from 1.
fn remote(number: u32) -> Pod {
    let address = IpAddr::V4(Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + number));
    pod(&format!("client-{number}"), address, "client", "other-node")
}

fn pod(name: &str, address: IpAddr, app: &str, node: &str) -> Pod {
    Pod {
        id: PodId(name.into()),
        namespace: "bench".into(),
        name: name.into(),
        labels: Labels::from([("app".into(), app.into())]),
        node: Some(node.into()),
        addresses: vec![address],
        host_network: false,
        phase: Phase::Live,
        created: 0,
        ports: Vec::new(),
    }
}

fn policy() -> Policy {
    let selects = |app: &str| Selector {
        match_labels: [(Arc::from("app"), Arc::from(app))].into(),
        match_expressions: Vec::new(),
    };
    let clients = Peer::Pods { namespaces: NamespaceScope::Own, pods: selects("client") };
    let port = PortMatch::Number(Protocol::Udp, PortRange::single(PORT));
    Policy {
        id: PolicyId { tier: Tier::Namespace, namespace: "bench".into(), name: "server".into() },
        priority: 0,
        namespaces: NamespaceScope::Own,
        pods: selects("server"),
        isolates: Isolation { ingress: true, egress: false },
        ingress: vec![Rule {
            action: Action::Accept,
            peers: Peers::OneOf(vec![clients]),
            ports: Ports::OneOf(vec![port]),
        }],
        egress: Vec::new(),
    }
}
