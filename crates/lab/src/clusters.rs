//! The clusters of an experiment, and what their policies mean for connections between true ends.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ringfence_analyze::paths::{Attempt, Backend, Client, Led, Side};
use ringfence_analyze::{End, EndKind, Matrix, ends};
use ringfence_compile::UnsupportedTier;
use ringfence_model::{Enforcement, ExternalHost, Flow, Node, NodeTraffic, Object, PodNetwork};
use ringfence_oracle::State;

use crate::run::RunError;

/// All clusters of an experiment, the one it is about first.
pub(crate) struct Clusters {
    list: Vec<Cluster>,
    trusts_nodes: bool,
}

/// One of them.
pub(crate) struct Cluster {
    /// Placed.
    pub(crate) objects: Vec<Object>,
    state: State,
    node_addresses: BTreeSet<IpAddr>,
}

impl Clusters {
    pub(crate) fn new(objects: Vec<Vec<Object>>, enforcement: Enforcement) -> Result<Clusters, UnsupportedTier> {
        let cluster = |objects: Vec<Object>| {
            let state = State::new(&objects).map_err(|error| UnsupportedTier(error.0))?;
            let node_addresses = nodes(&objects).flat_map(|node| node.addresses.iter().chain(&node.tunnel_addresses));
            let node_addresses = node_addresses.copied().collect();
            Ok(Cluster { objects, state, node_addresses })
        };
        let list = objects.into_iter().map(cluster).collect::<Result<_, _>>()?;
        Ok(Clusters { list, trusts_nodes: enforcement.node_traffic == NodeTraffic::All })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Cluster> {
        self.list.iter()
    }

    /// The state of one of them, as the oracle reads it.
    pub(crate) fn state(&self, cluster: usize) -> Option<&State> {
        self.list.get(cluster).map(|cluster| &cluster.state)
    }

    /// The pods of all of them, then the hosts outside.
    ///
    /// # Errors
    /// Two pods of one name: nobody could tell which of them a report means.
    pub(crate) fn ends(&self, externals: &[ExternalHost]) -> Result<Vec<End>, RunError> {
        let mut all: Vec<End> = self.list.iter().flat_map(|cluster| ends(&cluster.objects, &[])).collect();
        let mut names = BTreeSet::new();
        if let Some(twice) = all.iter().find(|end| !names.insert(&end.label)) {
            return Err(RunError::Namesakes(twice.label.clone()));
        }
        let of_policies: Vec<Object> = self.list.iter().flat_map(Cluster::policies).cloned().collect();
        all.extend(ends(&of_policies, externals));
        Ok(all)
    }

    /// Every pair of ends, by what the policies of their clusters say. Where tunnels lead to a pod, what its cluster's nodes
    /// send comes from their ends.
    pub(crate) fn matrix(&self, ends: Vec<End>, network: PodNetwork) -> Matrix {
        let mut matrix = Matrix::new(ends, |_, _, flow| self.judge(flow));
        if network == PodNetwork::Vxlan {
            for cell in &mut matrix.cells {
                let (Some(from), Some(to)) = (matrix.ends.get(cell.from), matrix.ends.get(cell.to)) else { continue };
                for path in &mut cell.paths {
                    let Some(source) = self.tunnel_between(from, to, path.destination) else { continue };
                    path.source = source;
                    let transport = ringfence_model::Transport::Port(cell.protocol, cell.port);
                    let flow = Flow { source, destination: path.destination, transport };
                    (path.egress, path.ingress) = self.judge(&flow);
                }
            }
        }
        matrix
    }

    fn tunnel_between(&self, from: &End, to: &End, destination: IpAddr) -> Option<IpAddr> {
        let EndKind::Pod { node: from, host_network: true, .. } = &from.kind else { return None };
        let EndKind::Pod { node: to, host_network: false, .. } = &to.kind else { return None };
        let cluster = self.list.iter().find(|cluster| nodes(&cluster.objects).any(|node| node.name == *from))?;
        let mut nodes = nodes(&cluster.objects).filter(|node| node.name == *from || node.name == *to);
        let (first, second) = (nodes.next()?, nodes.next()?);
        let own = if first.name == *from { first } else { second };
        own.tunnel_addresses.iter().copied().find(|address| address.is_ipv4() == destination.is_ipv4())
    }

    /// What all policies say of a flow between its true ends: of the source's cluster, of the destination's.
    pub(crate) fn judge(&self, flow: &Flow) -> (bool, bool) {
        let mut both = (true, true);
        for cluster in &self.list {
            let node = |address| cluster.node_addresses.contains(address);
            if self.trusts_nodes && (node(&flow.source) || node(&flow.destination)) {
                continue;
            }
            let verdict = ringfence_oracle::judge(&cluster.state, flow);
            both.0 &= verdict.egress.allowed;
            both.1 &= verdict.ingress.allowed;
        }
        both
    }

    /// Whether a connection between its true ends should be. Whom a pod's egress means is whom it calls, where that is led
    /// on beyond the pod's node.
    pub(crate) fn intend(&self, attempt: &Attempt, backend: &Backend, matrix: &Matrix) -> bool {
        let led_here = match (&attempt.led, &attempt.from) {
            (Led::Nowhere | Led::AtClient, _) => true,
            (Led::At(node), Client::Node(name)) => node == name,
            (Led::At(node), Client::End(end)) => matrix.ends.get(*end).and_then(End::node) == Some(node),
        };
        let called = attempt.flow(backend);
        let (egress, _) = self.judge(&if led_here { called } else { attempt.dialled() });
        let (_, ingress) = self.judge(&called);
        egress && ingress
    }

    /// For each of them, what there is to call.
    pub(crate) fn sides(&self) -> Vec<Side<'_>> {
        let several = self.list.len() > 1;
        self.list
            .iter()
            .map(|cluster| Side {
                objects: &cluster.objects,
                gate: cluster.nodes().next().map(|node| &node.name).filter(|_| several),
            })
            .collect()
    }
}

impl Cluster {
    fn policies(&self) -> impl Iterator<Item = &Object> {
        self.objects.iter().filter(|object| matches!(object, Object::Policy(_)))
    }

    /// Its nodes.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Node> {
        nodes(&self.objects)
    }

    /// The same without policies.
    pub(crate) fn open(&self) -> Vec<Object> {
        self.objects.iter().filter(|object| !matches!(object, Object::Policy(_))).cloned().collect()
    }
}

fn nodes(objects: &[Object]) -> impl Iterator<Item = &Node> {
    objects.iter().filter_map(|object| if let Object::Node(node) = object { Some(node) } else { None })
}
