//! The whole experiment: enforce the policies with a real agent on every node, build the cluster, probe every pair and every
//! path, compare with the oracle.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use ringfence_agent::{Agent, Change, SyncError};
use ringfence_analyze::paths::{self, Trip, attempts};
use ringfence_analyze::{EndKind, Matrix};
use ringfence_compile::UnsupportedTier;
use ringfence_dataplane::{ApplyError, Backend};
use ringfence_model::{Enforcement, ExternalHost, Node, Object, PodNetwork, Protocol, ServicePort, Topology};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::build_error::BuildError;
use crate::clusters::{Cluster, Clusters};
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
    /// Two pods that nobody could tell apart.
    #[error("two clusters have a pod {0}: give one of them another name")]
    Namesakes(String),
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
#[derive(Clone, Debug, Default)]
pub struct Experiment {
    /// The cluster, placed.
    pub objects: Vec<Object>,
    /// Other clusters that the network connects it with, each placed, with names and addresses of their own. The same agent
    /// runs there.
    pub others: Vec<Vec<Object>>,
    /// Where policies are enforced, in all clusters.
    pub enforcement: Enforcement,
    /// Networks towards which the pods of the first cluster keep their addresses, whatever masquerades.
    pub unmasqueraded: Vec<IpNet>,
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
    let Experiment { objects, others, enforcement, unmasqueraded, externals, topology, service_tables, timeouts } =
        experiment;
    let clusters = Clusters::new([objects].into_iter().chain(others).collect(), enforcement)?;
    let mut matrix = clusters.matrix(clusters.ends(&externals)?, topology.pod_network.unwrap_or_default());
    let attempts = attempts(&clusters.sides(), &matrix);
    let spec = network_spec(&clusters, &matrix, topology, service_tables)?;

    // The policies are in force before the first pod exists: a pod is isolated from its very first packet.
    let mut nodes = Nodes::make(&spec.nodes, enforcement, &unmasqueraded, open)?;
    nodes.enforce(&clusters, |cluster| cluster.objects.clone())?;
    let network =
        Network::build_around(nodes.namespaces()?, spec, &mut |done, of| progress(Stage::Building, done, of))?;
    let network = Arc::new(network);

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let trips = runtime.block_on(async {
        network.listen().await?;
        check_listeners(&matrix, &network, &timeouts, progress).await?;
        measure(&mut matrix, &network, &timeouts, progress).await?;

        // Without policies the same rules let everything pass, so what arrives shows what the network does by itself.
        nodes.enforce(&clusters, Cluster::open)?;
        let everybody = |_, attempt: &paths::Attempt| Some((0..attempt.backends.len()).collect());
        let mut tracing = |done, of| progress(Stage::Tracing, done, of);
        let free = attempt_all(&attempts, everybody, &matrix, &network, &timeouts, &mut tracing).await?;
        let mut trips = trips(&attempts, &matrix, &network, &clusters, enforcement, &free)?;

        nodes.enforce(&clusters, |cluster| cluster.objects.clone())?;
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
                Some((cell, path)) => {
                    let path = matrix.cells.get_mut(cell).and_then(|cell| cell.paths.get_mut(path));
                    if let Some(path) = path.filter(|path| trip.replaced() || path.allowed() != trip.expected) {
                        path.as_seen = Some(trip.expected);
                    }
                }
            }
        }
    }
}

/// The nodes' namespaces, each with its agent and the position of its cluster.
struct Nodes<B: Backend>(Vec<(NetNs, Agent<B>, usize)>);

impl<B: Backend> Nodes<B> {
    /// The first node is the namespace this is called in.
    fn make(
        specs: &[NodeSpec],
        enforcement: Enforcement,
        unmasqueraded: &[IpNet],
        mut open: impl FnMut() -> Result<B, ApplyError>,
    ) -> Result<Nodes<B>, RunError> {
        let mut nodes = Vec::with_capacity(specs.len());
        for spec in specs {
            let namespace = if nodes.is_empty() { NetNs::current() } else { NetNs::create() };
            let namespace = namespace.map_err(RunError::Namespace)?;
            let backend = namespace.within(&mut open).map_err(RunError::Namespace)??;
            let mut agent = Agent::new(spec.name.as_str().into(), backend).with_enforcement(enforcement);
            if spec.cluster == 0 {
                agent.keep_sources_towards(unmasqueraded);
            }
            nodes.push((namespace, agent, spec.cluster));
        }
        Ok(Nodes(nodes))
    }

    fn namespaces(&self) -> Result<Vec<NetNs>, RunError> {
        self.0.iter().map(|(namespace, ..)| namespace.share().map_err(RunError::Namespace)).collect()
    }

    fn remarks(&self) -> Result<Vec<String>, RunError> {
        let mut remarks = Vec::new();
        for (namespace, agent, _) in &self.0 {
            let of_node = namespace.within(|| agent.backend().remarks()).map_err(RunError::Namespace)?;
            remarks.extend(of_node.iter().map(|remark| format!("{}: {remark}", agent.node())));
        }
        Ok(remarks)
    }

    /// Every node's agent takes what `objects` makes of its cluster for the whole state and enforces it.
    fn enforce(&mut self, clusters: &Clusters, objects: impl Fn(&Cluster) -> Vec<Object>) -> Result<(), RunError> {
        for (namespace, agent, number) in &mut self.0 {
            let objects = clusters.iter().nth(*number).map(&objects).unwrap_or_default();
            agent.change(Change::Reset(objects))?;
            namespace.within(|| agent.sync()).map_err(RunError::Namespace)??;
        }
        Ok(())
    }
}

fn network_spec(
    clusters: &Clusters,
    matrix: &Matrix,
    topology: Topology,
    tables: Tables,
) -> Result<NetworkSpec, RunError> {
    let all = clusters.iter().enumerate().flat_map(|(number, cluster)| cluster.nodes().map(move |node| (number, node)));
    let nodes: Vec<NodeSpec> = all.map(|(number, node)| node_spec(number, node, topology)).collect();
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
    let mut services: BTreeMap<(usize, String), ServiceSpec> = BTreeMap::new();
    let frontends = clusters.iter().enumerate().flat_map(|(number, cluster)| {
        let frontends = paths::frontends(&cluster.objects, &matrix.ends).into_iter();
        frontends.map(move |(_, frontend)| (number, frontend))
    });
    for (cluster, frontend) in frontends {
        let name = format!("{}/{}", frontend.service.namespace, frontend.service.name);
        let spec = services.entry((cluster, name.clone())).or_insert_with(|| ServiceSpec {
            name,
            cluster_ips: frontend.service.cluster_addresses.clone(),
            ports: Vec::new(),
            external_traffic_policy: frontend.service.external_traffic,
            cluster,
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
        add_port(spec, frontend.port, backends);
    }
    Ok(NetworkSpec {
        nodes,
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

fn node_spec(cluster: usize, node: &Node, topology: Topology) -> NodeSpec {
    let tunnels = topology.pod_network == Some(PodNetwork::Vxlan);
    NodeSpec {
        name: node.name.to_string(),
        addresses: node.addresses.clone(),
        tunnel_addresses: if tunnels { node.tunnel_addresses.clone() } else { Vec::new() },
        cluster,
    }
}

/// Adds backends, which may be of another family than those of the port that are there already.
fn add_port(spec: &mut ServiceSpec, port: &ServicePort, backends: Vec<Endpoint>) {
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
