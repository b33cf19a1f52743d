//! Which nodes a packet passes on its way, what each of them is shown of it, and what they must say.

use std::net::{IpAddr, SocketAddr};

use ringfence_analyze::paths::{Attempt, Backend, Client, Led};
use ringfence_analyze::{EndKind, Matrix};
use ringfence_model::{EnforceAt, Enforcement, Flow, NodeTraffic, PodNetwork, Transport};
use ringfence_oracle::{Arrival, judge_at};

use crate::clusters::Clusters;
use crate::index::NodeIndex;
use crate::network::Network;
use crate::run::{RunError, known_node};

/// A node on the way of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stop {
    node: NodeIndex,
    /// Where the connection goes when the node's rules judge it, which is after the node has translated it.
    destination: SocketAddr,
    /// Where it comes from then.
    pub(crate) source: IpAddr,
    /// The node itself has led it there: nobody has judged it before.
    led_here: bool,
}

/// The nodes that a connection to one of the backends passes, in order; none of them twice. As far as `answer` does not tell
/// otherwise, which is whom the one who answered saw, all see the client's own address.
///
/// # Errors
/// A node that there is not, or whose connection tracking cannot be asked.
pub(crate) fn way(
    network: &Network,
    matrix: &Matrix,
    attempt: &Attempt,
    backend: &Backend,
    answer: Option<SocketAddr>,
) -> Result<Vec<Stop>, RunError> {
    let client = match &attempt.from {
        Client::End(end) => node_of(network, matrix, *end)?,
        Client::Node(name) => Some(known_node(network, name)?),
    };
    let end = node_of(network, matrix, backend.end)?;
    let leads = match &attempt.led {
        Led::Nowhere => None,
        Led::AtClient => client,
        Led::At(name) => Some(known_node(network, name)?),
    };
    let mut stops: Vec<Stop> = Vec::new();
    let mut stop = |node: NodeIndex, destination| {
        if stops.last().is_none_or(|last| last.node != node) {
            stops.push(Stop { node, destination, source: attempt.source, led_here: leads == Some(node) });
        }
    };
    if let Some(client) = client {
        let translated = attempt.led == Led::Nowhere || leads == Some(client);
        stop(client, if translated { backend.address } else { attempt.dial });
    }
    if let Some(leads) = leads {
        stop(leads, backend.address);
    } else if let Some(gate) = gate(network, matrix, client, end, backend) {
        stop(gate, backend.address);
    }
    if let Some(end) = end {
        stop(end, backend.address);
        if let Some(seen) = answer {
            trace(network, attempt, client.is_some(), seen, &mut stops)?;
        }
    }
    Ok(stops)
}

fn node_of(network: &Network, matrix: &Matrix, end: usize) -> Result<Option<NodeIndex>, RunError> {
    let node = matrix.ends.get(end).and_then(|end| end.node());
    node.map(|node| known_node(network, node)).transpose()
}

/// Pods behind tunnels are reached from outside through one node of their cluster.
fn gate(
    network: &Network,
    matrix: &Matrix,
    client: Option<NodeIndex>,
    end: Option<NodeIndex>,
    backend: &Backend,
) -> Option<NodeIndex> {
    let cluster = |node: NodeIndex| network.node(node).map(crate::network::Node::cluster);
    let of_end = cluster(end?)?;
    let pod = matrix.ends.get(backend.end)?;
    let behind_tunnels =
        network.pod_network() == PodNetwork::Vxlan && matches!(pod.kind, EndKind::Pod { host_network: false, .. });
    (behind_tunnels && client.and_then(cluster) != Some(of_end)).then(|| network.gate(of_end))
}

/// Asks the nodes whose address they were shown, from the last one back: each knows what it made of it. What a client's own
/// node is shown is the client's address.
fn trace(
    network: &Network,
    attempt: &Attempt,
    known_first: bool,
    answer: SocketAddr,
    stops: &mut [Stop],
) -> Result<(), RunError> {
    let mut seen = answer;
    for stop in stops.iter_mut().skip(usize::from(known_first)).rev() {
        let source = network.source_seen_by_rules(stop.node, attempt.protocol, stop.destination, seen);
        seen = source.map_err(RunError::Tracking)?.unwrap_or(seen);
        stop.source = seen.ip();
    }
    Ok(())
}

/// Whether every node on the way must let a connection pass.
pub(crate) fn passes(
    network: &Network,
    clusters: &Clusters,
    enforcement: Enforcement,
    attempt: &Attempt,
    stops: &[Stop],
) -> bool {
    stops.iter().all(|stop| {
        let Some(node) = network.node(stop.node) else { return false };
        let flow = Flow {
            source: stop.source,
            destination: stop.destination.ip(),
            transport: Transport::Port(attempt.protocol, stop.destination.port()),
        };
        let arrival = if stop.led_here { Arrival::TranslatedHere } else { Arrival::AsItCame };
        let state = clusters.state(node.cluster());
        state.is_some_and(|state| judge_at(state, enforcement, node.name(), &flow, arrival).allowed())
    })
}

/// The least that has to be enforced more for a connection to get the answer that its true ends should get.
pub(crate) fn restored_by(
    network: &Network,
    clusters: &Clusters,
    now: Enforcement,
    attempt: &Attempt,
    stops: &[Stop],
    intended: bool,
) -> Option<EnforceAt> {
    // Who believes nobody gains nothing from what others judge.
    let node_traffic = if now.node_traffic == NodeTraffic::Policy { NodeTraffic::Own } else { now.node_traffic };
    let more = [EnforceAt::Entry, EnforceAt::Everywhere].into_iter();
    more.filter(|at| *at > now.at || node_traffic != now.node_traffic)
        .find(|at| passes(network, clusters, Enforcement { at: *at, node_traffic }, attempt, stops) == intended)
}
