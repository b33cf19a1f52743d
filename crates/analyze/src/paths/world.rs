//! One cluster as callers meet it: its nodes, and what its Services lead to.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ringfence_model::{ExternalTraffic, Family, Node, Object};

use super::{Attempt, Backend, Client, Frontend, Led, PathKind, Side, frontends};
use crate::matrix::{End, EndKind, Matrix};

pub(super) struct World<'a> {
    ends: &'a [End],
    nodes: Vec<&'a Node>,
    frontends: Vec<(Family, Frontend<'a>)>,
    gate: Option<&'a Arc<str>>,
}

/// A call of one port of a Service.
struct Call<'a> {
    from: Client,
    source: IpAddr,
    dial: SocketAddr,
    /// What to call the place, after the Service's name.
    at: String,
    led: Led,
    frontend: &'a Frontend<'a>,
}

impl<'a> World<'a> {
    pub(super) fn new(side: Side<'a>, matrix: &'a Matrix) -> World<'a> {
        let nodes = side.objects.iter().filter_map(|object| match object {
            Object::Node(node) => Some(node),
            _ => None,
        });
        let frontends = frontends(side.objects, &matrix.ends);
        World { ends: &matrix.ends, nodes: nodes.collect(), frontends, gate: side.gate }
    }

    /// Whether an end is a pod of this cluster.
    pub(super) fn has(&self, end: &End) -> bool {
        end.node().is_some_and(|name| self.nodes.iter().any(|node| node.name == *name))
    }

    /// Every node calls every pod.
    pub(super) fn node_calls(&self, attempts: &mut Vec<Attempt>) {
        for node in &self.nodes {
            for (position, end) in self.ends.iter().enumerate().filter(|(_, end)| self.has(end)) {
                let EndKind::Pod { node: own, host_network: false, .. } = &end.kind else { continue };
                let is_own = *own == node.name;
                let kind = if is_own { PathKind::NodeToOwnPod } else { PathKind::NodeToOtherPod };
                for address in &end.addresses {
                    let Some(source) = towards_pods(node, is_own, Family::of(*address)) else { continue };
                    for (protocol, port) in &end.ports {
                        let dial = SocketAddr::new(*address, *port);
                        attempts.push(Attempt {
                            from: Client::Node(node.name.clone()),
                            source,
                            dial,
                            protocol: *protocol,
                            via: None,
                            led: Led::Nowhere,
                            cell: None,
                            backends: vec![Backend { end: position, address: dial, kind }],
                        });
                    }
                }
            }
        }
    }

    /// Pods and nodes call Services and node ports, external hosts call node ports, pods of other clusters call Services.
    pub(super) fn service_calls(&self, attempts: &mut Vec<Attempt>) {
        for (family, frontend) in self.frontends.iter().filter(|(_, frontend)| !frontend.backends.is_empty()) {
            for (position, end) in self.ends.iter().enumerate() {
                let Some(source) = address_of(&end.addresses, *family) else { continue };
                let from = || Client::End(position);
                match &end.kind {
                    EndKind::Pod { host_network: false, node, .. } if self.has(end) => {
                        let kind = |backend: usize| match self.node_of(backend) {
                            _ if backend == position => PathKind::Hairpin,
                            Some(other) if other == node => PathKind::SameNodeService,
                            _ => PathKind::OtherNodeService,
                        };
                        self.cluster_address(from(), source, *family, frontend, Led::AtClient, kind, attempts);
                        let kind = |_: &Node, _| PathKind::PodToNodePort;
                        self.node_ports(&from(), source, Some(node), *family, frontend, kind, attempts);
                    }
                    EndKind::Pod { host_network: false, .. } => {
                        let Some(gate) = self.gate else { continue };
                        let kind = |_| PathKind::OtherClusterService;
                        self.cluster_address(from(), source, *family, frontend, Led::At(gate.clone()), kind, attempts);
                    }
                    // Its packets are those of its node.
                    EndKind::Pod { .. } => {}
                    EndKind::External { .. } => {
                        let kind = |node: &Node, backend| match self.node_of(backend) {
                            Some(own) if *own == node.name => PathKind::NodePortSameNode,
                            _ => PathKind::NodePortOtherNode,
                        };
                        self.node_ports(&from(), source, None, *family, frontend, kind, attempts);
                    }
                }
            }
            for node in &self.nodes {
                let Some(source) = address_of(&node.addresses, *family) else { continue };
                let from = || Client::Node(node.name.clone());
                let kind = |_| PathKind::NodeService;
                self.cluster_address(from(), source, *family, frontend, Led::AtClient, kind, attempts);
                let kind = |_: &Node, _| PathKind::NodeToNodePort;
                self.node_ports(&from(), source, Some(&node.name), *family, frontend, kind, attempts);
            }
        }
    }

    #[allow(clippy::too_many_arguments, reason = "they are the call")]
    fn cluster_address(
        &self,
        from: Client,
        source: IpAddr,
        family: Family,
        frontend: &Frontend<'_>,
        led: Led,
        kind: impl Fn(usize) -> PathKind,
        attempts: &mut Vec<Attempt>,
    ) {
        let Some(address) = address_of(&frontend.service.cluster_addresses, family) else { return };
        let dial = SocketAddr::new(address, frontend.port.port);
        let call = Call { from, source, dial, at: dial.to_string(), led, frontend };
        attempts.extend(call.attempt(frontend.backends.iter(), kind));
    }

    /// Calls of the port on every node, by somebody on the node `on` or outside the cluster.
    #[allow(clippy::too_many_arguments, reason = "they are the call")]
    fn node_ports(
        &self,
        from: &Client,
        source: IpAddr,
        on: Option<&Arc<str>>,
        family: Family,
        frontend: &Frontend<'_>,
        kind: impl Fn(&Node, usize) -> PathKind,
        attempts: &mut Vec<Attempt>,
    ) {
        let Some(node_port) = frontend.port.node_port else { return };
        for node in &self.nodes {
            let Some(address) = address_of(&node.addresses, family) else { continue };
            let own = on.is_some_and(|on| *on == node.name);
            // Through tunnels the packet would come back another way than it went: a pod that calls itself there is unheard of.
            if !own && matches!(from, Client::End(end) if frontend.backends.iter().any(|(backend, _)| backend == end)) {
                continue;
            }
            // What a node's pods and the node itself ask their own node for is not traffic from outside.
            let local_only = frontend.service.external_traffic == ExternalTraffic::Local && !own;
            let reached = frontend
                .backends
                .iter()
                .filter(|(end, _)| !local_only || self.node_of(*end).is_some_and(|own| *own == node.name));
            let dial = SocketAddr::new(address, node_port);
            let call = Call {
                from: from.clone(),
                source,
                dial,
                at: format!("{dial}, node {}", node.name),
                led: Led::At(node.name.clone()),
                frontend,
            };
            attempts.extend(call.attempt(reached, |backend| kind(node, backend)));
        }
    }

    fn node_of(&self, end: usize) -> Option<&Arc<str>> {
        self.ends.get(end).and_then(End::node)
    }
}

impl Call<'_> {
    fn attempt<'b>(
        self,
        reached: impl Iterator<Item = &'b (usize, SocketAddr)>,
        kind: impl Fn(usize) -> PathKind,
    ) -> Option<Attempt> {
        let backends: Vec<Backend> =
            reached.map(|(end, address)| Backend { end: *end, address: *address, kind: kind(*end) }).collect();
        let service = self.frontend.service;
        (!backends.is_empty()).then(|| Attempt {
            from: self.from,
            source: self.source,
            dial: self.dial,
            protocol: self.frontend.port.protocol,
            via: Some(format!("{}/{} at {}", service.namespace, service.name, self.at)),
            led: self.led,
            cell: None,
            backends,
        })
    }
}

/// What a node's own packets to pods come from: the address of its end of the tunnel, where one leads there.
fn towards_pods(node: &Node, own: bool, family: Family) -> Option<IpAddr> {
    let tunnel = address_of(&node.tunnel_addresses, family).filter(|_| !own);
    tunnel.or_else(|| address_of(&node.addresses, family))
}

fn address_of(addresses: &[IpAddr], family: Family) -> Option<IpAddr> {
    addresses.iter().copied().find(|address| Family::of(*address) == family)
}
