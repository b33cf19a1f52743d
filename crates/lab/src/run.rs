//! The whole experiment: enforce the policies with a real agent on every node, build the cluster, probe every pair and every
//! path, compare with the oracle.

use std::collections::BTreeMap;
use std::sync::Arc;

use ringfence_agent::{Agent, Change, SyncError};
use ringfence_analyze::paths::{self, Trip, attempts};
use ringfence_analyze::{EndKind, Matrix, ends};
use ringfence_compile::UnsupportedTier;
use ringfence_dataplane::{ApplyError, Backend};
use ringfence_model::{ExternalHost, Node, Object, Protocol, Topology};
use ringfence_oracle::State;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::build_error::BuildError;
use crate::enter::EnterError;
use crate::exec::{self, PublishError};
use crate::index::{EndpointIndex, NodeIndex};
use crate::listen::ListenError;
use crate::namespace::NetNs;
use crate::network::Network;
use crate::probe::{Origin, Probe, ProbeOutcome, Timeouts};
use crate::probes::{Probes, answered_by, describe, in_host_network};
use crate::services::{Backend as Endpoint, ServicePortSpec, ServiceSpec, Services, Tables};
use crate::spec::{EndpointSpec, NetworkSpec, NodeSpec, Place};
use crate::trips::{Answers, attempt_all, trips};

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No namespaces.
    #[error(transparent)]
    Enter(#[from] EnterError),
    /// A policy that neither the oracle nor the compiler reads.
    #[error(transparent)]
    Unsupported(#[from] UnsupportedTier),
    /// The objects were not placed: a pod is on a node that is not among them.
    #[error("there is no node {0}")]
    NoSuchNode(String),
    /// The namespace of a node.
    #[error("cannot make or enter the network namespace of a node: {0}")]
    Namespace(#[source] std::io::Error),
    /// The connection tracking of a node.
    #[error("cannot ask a node's connection tracking: {0}")]
    Tracking(#[source] std::io::Error),
    /// The backend could not be opened.
    #[error("cannot open the packet filter: {0}")]
    Backend(#[from] ApplyError),
    /// The policies could not be enforced.
    #[error("cannot enforce the policies: {0}")]
    Sync(#[from] SyncError),
    /// The network could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A listener could not be started.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The lab could not be made known to other processes.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The runtime for probes and listeners.
    #[error("cannot start the runtime for probes: {0}")]
    Runtime(#[from] std::io::Error),
    /// Before anything is measured, its node asks every listener, which no policy forbids.
    #[error(
        "{end} does not answer its own node on {protocol}/{port} ({outcome}): the lab is broken, nothing was measured"
    )]
    Mute {
        /// Whose listener.
        end: String,
        /// On which protocol.
        protocol: Protocol,
        /// On which port.
        port: u16,
        /// What happened instead.
        outcome: String,
    },
    /// A probe that says nothing about the policies.
    #[error("the probe from {from} to {to} on {protocol}/{port} went wrong: {reason}")]
    Probe {
        /// Source.
        from: String,
        /// Destination.
        to: String,
        /// Protocol.
        protocol: Protocol,
        /// Destination port.
        port: u16,
        /// What happened.
        reason: String,
    },
}

/// What a run is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Namespaces and links.
    Building,
    /// Its node asks every listener.
    Checking,
    /// All pairs.
    Probing,
    /// All paths, without policies.
    Tracing,
    /// The paths through Services and from nodes, under the policies.
    Paths,
}

/// What to try.
#[derive(Clone, Debug)]
pub struct Experiment {
    /// The cluster, placed.
    pub objects: Vec<Object>,
    /// The hosts outside.
    pub externals: Vec<ExternalHost>,
    /// The network. The number of nodes is that of the objects.
    pub topology: Topology,
    /// Which iptables plays the Services.
    pub service_tables: Tables,
    /// How long probes wait.
    pub timeouts: Timeouts,
}

/// A lab after its run, still up. It ends when this is dropped, or with the process.
#[derive(Debug)]
pub struct Finished {
    /// Expected by the oracle, measured with packets.
    pub matrix: Matrix,
    /// What came of every path.
    pub trips: Vec<Trip>,
    /// What packet filters had to say, with the node they are on.
    pub remarks: Vec<String>,
    /// The network, for those who want to go on.
    pub network: Arc<Network>,
    /// Listeners and probes live in it.
    runtime: Runtime,
}

impl Finished {
    /// Makes the lab known, so that commands can be run in it, until it is interrupted or told to terminate.
    ///
    /// # Errors
    /// The lab cannot be made known, or signals cannot be awaited.
    pub fn keep(&self, ready: impl FnOnce()) -> Result<(), RunError> {
        let published = exec::publish(&self.network)?;
        self.runtime.block_on(async {
            let mut interrupt = signal(SignalKind::interrupt())?;
            let mut terminate = signal(SignalKind::terminate())?;
            ready();
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            Ok::<(), std::io::Error>(())
        })?;
        drop(published);
        Ok(())
    }
}

/// Runs an experiment in the namespaces the process is in (see [`enter`](fn@crate::enter)).
///
/// `open` opens the backend of one node; it is called in the network namespace of each. `progress` hears of each stage: done,
/// of how many.
///
/// # Errors
/// See [`RunError`]. A cell that differs is a result, not an error.
pub fn run<B: Backend>(
    experiment: Experiment,
    open: impl FnMut() -> Result<B, ApplyError>,
    progress: &mut dyn FnMut(Stage, usize, usize),
) -> Result<Finished, RunError> {
    let Experiment { objects, externals, topology, service_tables, timeouts } = experiment;
    let oracle = State::new(&objects).map_err(|error| UnsupportedTier(error.0))?;
    let mut matrix = Matrix::new(ends(&objects, &externals), |_, _, flow| {
        let verdict = ringfence_oracle::judge(&oracle, flow);
        (verdict.egress.allowed, verdict.ingress.allowed)
    });
    let attempts = attempts(&objects, &matrix);
    let spec = network_spec(&objects, &matrix, topology, service_tables)?;

    // The policies are in force before the first pod exists: a pod is isolated from its very first packet.
    let mut nodes = Nodes::make(&spec.nodes, open)?;
    nodes.enforce(&objects)?;
    let network =
        Network::build_around(nodes.namespaces()?, spec, &mut |done, of| progress(Stage::Building, done, of))?;
    let network = Arc::new(network);

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let trips = runtime.block_on(async {
        network.listen().await?;
        check_listeners(&matrix, &network, &timeouts, progress).await?;
        measure(&mut matrix, &network, &timeouts, progress).await?;

        // Without policies the same rules let everything pass, so what arrives shows what the network does by itself.
        let open: Vec<Object> = objects.iter().filter(|object| !matches!(object, Object::Policy(_))).cloned().collect();
        nodes.enforce(&open)?;
        let everybody = |_, attempt: &paths::Attempt| Some((0..attempt.backends.len()).collect());
        let mut tracing = |done, of| progress(Stage::Tracing, done, of);
        let free = attempt_all(&attempts, everybody, &matrix, &network, &timeouts, &mut tracing).await?;
        let mut trips = trips(&attempts, &matrix, &network, &oracle, &free)?;

        nodes.enforce(&objects)?;
        // No connection from before may pass for one that the policies allow.
        for node in 0..network.nodes().len() {
            network.forget_connections(NodeIndex(node)).map_err(RunError::Tracking)?;
        }
        // What the matrix has measured need not be tried twice under the policies.
        let expected = |position: usize, attempt: &paths::Attempt| {
            let trips = trips.get(position).filter(|_| attempt.cell.is_none())?;
            Some((0..trips.len()).filter(|backend| trips.get(*backend).is_some_and(|trip| trip.expected)).collect())
        };
        let mut probing = |done, of| progress(Stage::Paths, done, of);
        let policed = attempt_all(&attempts, expected, &matrix, &network, &timeouts, &mut probing).await?;
        fill_in(&attempts, &policed, &mut trips, &mut matrix);
        let trips: Vec<Trip> = trips.into_iter().flatten().collect();
        Ok::<_, RunError>(trips)
    })?;
    Ok(Finished { matrix, trips, remarks: nodes.remarks()?, network, runtime })
}

/// What passed under the policies goes into the trips, and what the network does to sources into the matrix.
fn fill_in(attempts: &[paths::Attempt], policed: &[Answers], trips: &mut [Vec<Trip>], matrix: &mut Matrix) {
    for ((attempt, policed), trips) in attempts.iter().zip(policed).zip(trips) {
        for (position, trip) in trips.iter_mut().enumerate() {
            match attempt.cell {
                None => trip.measured = policed.contains_key(&position),
                Some((cell, path)) if trip.replaced() => {
                    let path = matrix.cells.get_mut(cell).and_then(|cell| cell.paths.get_mut(path));
                    if let Some(path) = path {
                        path.as_seen = Some(trip.expected);
                    }
                }
                Some(_) => {}
            }
        }
    }
}

/// The nodes' namespaces, each with its agent.
struct Nodes<B: Backend>(Vec<(NetNs, Agent<B>)>);

impl<B: Backend> Nodes<B> {
    /// The first node is the namespace this is called in.
    fn make(specs: &[NodeSpec], mut open: impl FnMut() -> Result<B, ApplyError>) -> Result<Nodes<B>, RunError> {
        let mut nodes = Vec::with_capacity(specs.len());
        for spec in specs {
            let namespace = if nodes.is_empty() { NetNs::current() } else { NetNs::create() };
            let namespace = namespace.map_err(RunError::Namespace)?;
            let backend = namespace.within(&mut open).map_err(RunError::Namespace)??;
            nodes.push((namespace, Agent::new(spec.name.as_str().into(), backend)));
        }
        Ok(Nodes(nodes))
    }

    fn namespaces(&self) -> Result<Vec<NetNs>, RunError> {
        self.0.iter().map(|(namespace, _)| namespace.share().map_err(RunError::Namespace)).collect()
    }

    fn remarks(&self) -> Result<Vec<String>, RunError> {
        let mut remarks = Vec::new();
        for (namespace, agent) in &self.0 {
            let of_node = namespace.within(|| agent.backend().remarks()).map_err(RunError::Namespace)?;
            remarks.extend(of_node.iter().map(|remark| format!("{}: {remark}", agent.node())));
        }
        Ok(remarks)
    }

    /// Every node's agent takes `objects` for the whole state and enforces it.
    fn enforce(&mut self, objects: &[Object]) -> Result<(), RunError> {
        for (namespace, agent) in &mut self.0 {
            agent.change(Change::Reset(objects.to_vec()))?;
            namespace.within(|| agent.sync()).map_err(RunError::Namespace)??;
        }
        Ok(())
    }
}

fn network_spec(
    objects: &[Object],
    matrix: &Matrix,
    topology: Topology,
    tables: Tables,
) -> Result<NetworkSpec, RunError> {
    let nodes: Vec<&Node> =
        objects.iter().filter_map(|object| if let Object::Node(node) = object { Some(node) } else { None }).collect();
    let index = |name: &str| {
        let position = nodes.iter().position(|node| *node.name == *name);
        position.map(NodeIndex).ok_or_else(|| RunError::NoSuchNode(name.to_owned()))
    };
    let mut endpoints = Vec::with_capacity(matrix.ends.len());
    for end in &matrix.ends {
        let place = match &end.kind {
            EndKind::Pod { node, host_network: true, .. } => Place::HostNetwork { node: index(node)? },
            EndKind::Pod { node, .. } => Place::Pod { node: index(node)? },
            EndKind::External { .. } => Place::External,
        };
        let (name, addresses) = (end.label.clone(), end.addresses.clone());
        endpoints.push(EndpointSpec { name, addresses, listen: end.ports.iter().copied().collect(), place });
    }
    let mut services: BTreeMap<String, ServiceSpec> = BTreeMap::new();
    for (_, frontend) in paths::frontends(objects, &matrix.ends) {
        let name = format!("{}/{}", frontend.service.namespace, frontend.service.name);
        let spec = services.entry(name.clone()).or_insert_with(|| ServiceSpec {
            name,
            cluster_ips: frontend.service.cluster_addresses.clone(),
            ports: Vec::new(),
            external_traffic_policy: frontend.service.external_traffic,
        });
        let mut backends = Vec::with_capacity(frontend.backends.len());
        for (end, address) in frontend.backends {
            // Kubernetes lets a Service lead to ports that no container declares.
            if let Some(endpoint) = endpoints.get_mut(end) {
                endpoint.listen.push((frontend.port.protocol, address.port()));
            }
            if let Some(node) = matrix.ends.get(end).and_then(|end| end.node()) {
                backends.push(Endpoint { address: address.ip(), port: address.port(), node: index(node)? });
            }
        }
        let port = frontend.port;
        let known = spec.ports.iter_mut().find(|known| (known.protocol, known.port) == (port.protocol, port.port));
        match known {
            Some(known) => known.backends.extend(backends),
            None => spec.ports.push(ServicePortSpec {
                name: port.name.as_ref().map(ToString::to_string),
                protocol: port.protocol,
                port: port.port,
                node_port: port.node_port,
                backends,
            }),
        }
    }
    Ok(NetworkSpec {
        nodes: nodes
            .iter()
            .map(|node| NodeSpec { name: node.name.to_string(), addresses: node.addresses.clone() })
            .collect(),
        pod_network: topology.pod_network.unwrap_or_default(),
        bypass_bridge_filter: false,
        masquerade: topology.masquerade.unwrap_or_default(),
        services: Services {
            masquerade_all: topology.masquerade_all.unwrap_or_default(),
            tables,
            list: services.into_values().collect(),
        },
        endpoints,
    })
}

/// Without this a listener that never came up would look like a policy that holds.
async fn check_listeners(
    matrix: &Matrix,
    network: &Arc<Network>,
    timeouts: &Timeouts,
    progress: &mut dyn FnMut(Stage, usize, usize),
) -> Result<(), RunError> {
    let mut probes = Probes::default();
    for (position, end) in matrix.ends.iter().enumerate() {
        let from = match end.node() {
            Some(node) => Origin::Node(known_node(network, node)?),
            // Nobody enforces anything on what nodes send out.
            None => Origin::Node(NodeIndex(0)),
        };
        for (protocol, port) in &end.ports {
            for address in &end.addresses {
                let probe = Probe { from, source: None, destination: *address, protocol: *protocol, port: *port };
                probes.push(position, probe);
            }
        }
    }
    let mut failed = None;
    probes
        .run(network, timeouts, |position, probe, outcome, done, of| {
            progress(Stage::Checking, done, of);
            if let Some(end) = matrix.ends.get(position)
                && !answered_by(&outcome, &end.label, in_host_network(&end.kind))
            {
                failed.get_or_insert(RunError::Mute {
                    end: end.label.clone(),
                    protocol: probe.protocol,
                    port: probe.port,
                    outcome: describe(&outcome),
                });
            }
        })
        .await;
    failed.map_or(Ok(()), Err)
}

async fn measure(
    matrix: &mut Matrix,
    network: &Arc<Network>,
    timeouts: &Timeouts,
    progress: &mut dyn FnMut(Stage, usize, usize),
) -> Result<(), RunError> {
    let mut probes = Probes::default();
    let mut places = Vec::new();
    for (cell_position, cell) in matrix.cells.iter().enumerate() {
        for (path_position, path) in cell.paths.iter().enumerate() {
            let probe = Probe {
                from: Origin::Endpoint(EndpointIndex(cell.from)),
                source: Some(path.source),
                destination: path.destination,
                protocol: cell.protocol,
                port: cell.port,
            };
            probes.push(places.len(), probe);
            places.push((cell_position, path_position));
        }
    }
    let mut failed = None;
    probes
        .run(network, timeouts, |place, probe, outcome, done, of| {
            progress(Stage::Probing, done, of);
            let Some((cell, path)) = places.get(place) else { return };
            let Some(cell) = matrix.cells.get_mut(*cell) else { return };
            let (Some(from), Some(to)) = (matrix.ends.get(cell.from), matrix.ends.get(cell.to)) else { return };
            let connected = match &outcome {
                ProbeOutcome::Refused(_) | ProbeOutcome::TimedOut => Some(false),
                _ if answered_by(&outcome, &to.label, in_host_network(&to.kind)) => Some(true),
                _ => None,
            };
            if connected.is_none() {
                failed.get_or_insert_with(|| RunError::Probe {
                    from: from.label.clone(),
                    to: to.label.clone(),
                    protocol: probe.protocol,
                    port: probe.port,
                    reason: describe(&outcome),
                });
            }
            if let Some(path) = cell.paths.get_mut(*path) {
                path.measured = connected;
            }
        })
        .await;
    failed.map_or(Ok(()), Err)
}

/// The node of that name. Placement gives pods no other nodes than those of the network.
pub(crate) fn known_node(network: &Network, name: &str) -> Result<NodeIndex, RunError> {
    network.node_named(name).ok_or_else(|| RunError::NoSuchNode(name.to_owned()))
}
