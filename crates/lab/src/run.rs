//! The whole experiment: enforce the policies with the real agent, build the cluster, probe every pair, compare with the
//! oracle.

use std::sync::Arc;

use ringfence_agent::{Agent, Change, SyncError};
use ringfence_analyze::{EndKind, Matrix, ends};
use ringfence_compile::UnsupportedTier;
use ringfence_dataplane::{ApplyError, Backend};
use ringfence_model::{ExternalHost, Object, Protocol};
use ringfence_oracle::State;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::enter::EnterError;
use crate::exec::{self, PublishError};
use crate::listen::ListenError;
use crate::network::{BuildError, EndpointIndex, Network};
use crate::probe::{Origin, Probe, ProbeOutcome, Timeouts};
use crate::spec::{EndpointSpec, NetworkSpec};

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No namespaces.
    #[error(transparent)]
    Enter(#[from] EnterError),
    /// A policy that neither the oracle nor the compiler reads.
    #[error(transparent)]
    Unsupported(#[from] UnsupportedTier),
    /// The objects were not placed on exactly one node.
    #[error("the lab plays one node, but the pods are on {0}")]
    Nodes(usize),
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
    /// Before anything is measured, the node asks every listener, which no policy forbids.
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
    /// The node asks every listener.
    Checking,
    /// All pairs.
    Probing,
}

/// A lab after its run, still up. It ends when this is dropped, or with the process.
#[derive(Debug)]
pub struct Finished {
    /// Expected by the oracle, measured with packets.
    pub matrix: Matrix,
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

/// Runs a placed cluster, all on one node, in the namespaces the process is in (see [`enter`](fn@crate::enter)).
///
/// `open` opens the backend; it is called in the node's network namespace. `progress` hears of each stage: done, of how
/// many.
///
/// # Errors
/// See [`RunError`]. A cell that differs is a result, not an error.
pub fn run<B: Backend>(
    objects: Vec<Object>,
    externals: &[ExternalHost],
    timeouts: &Timeouts,
    open: impl FnOnce() -> Result<B, ApplyError>,
    progress: &mut dyn FnMut(Stage, usize, usize),
) -> Result<Finished, RunError> {
    let oracle = State::new(&objects).map_err(|error| UnsupportedTier(error.0))?;
    let mut matrix = Matrix::new(ends(&objects, externals), |_, _, flow| {
        let verdict = ringfence_oracle::judge(&oracle, flow);
        (verdict.egress.allowed, verdict.ingress.allowed)
    });
    let nodes: Vec<_> = objects
        .iter()
        .filter_map(|object| if let Object::Node(node) = object { Some(node.clone()) } else { None })
        .collect();
    let [node] = nodes.as_slice() else { return Err(RunError::Nodes(nodes.len())) };

    // The policies are in force before the first pod exists: a pod is isolated from its very first packet.
    let mut agent = Agent::new(node.name.clone(), open()?);
    agent.change(Change::Reset(objects))?;
    agent.sync()?;

    let spec = network_spec(&matrix, node.addresses.clone());
    let network = Arc::new(Network::build(spec, &mut |done, of| progress(Stage::Building, done, of))?);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        network.listen().await?;
        check_listeners(&matrix, &network, timeouts, progress).await?;
        measure(&mut matrix, &network, timeouts, progress).await
    })?;
    Ok(Finished { matrix, network, runtime })
}

fn network_spec(matrix: &Matrix, node_addresses: Vec<std::net::IpAddr>) -> NetworkSpec {
    let endpoints = matrix.ends.iter().map(|end| EndpointSpec {
        name: end.label.clone(),
        addresses: end.addresses.clone(),
        listen: end.ports.iter().copied().collect(),
        host_network: in_host_network(&end.kind),
    });
    NetworkSpec { node_addresses, endpoints: endpoints.collect() }
}

fn in_host_network(kind: &EndKind) -> bool {
    matches!(kind, EndKind::Pod { host_network: true, .. })
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
        for (protocol, port) in &end.ports {
            for address in &end.addresses {
                let probe =
                    Probe { from: Origin::Node, source: None, destination: *address, protocol: *protocol, port: *port };
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

/// Pods on the node's network share its addresses, so any of them may hold a port that several declare.
fn answered_by(outcome: &ProbeOutcome, label: &str, shares_addresses: bool) -> bool {
    matches!(outcome, ProbeOutcome::Answered { by } if shares_addresses || by == label)
}

fn describe(outcome: &ProbeOutcome) -> String {
    match outcome {
        ProbeOutcome::Answered { by } => format!("{by} answered"),
        ProbeOutcome::Refused(refusal) => format!("refused: {refusal:?}"),
        ProbeOutcome::TimedOut => "no answer".to_owned(),
        ProbeOutcome::Failed(error) => error.to_string(),
    }
}

/// Probes to be made at the same time, each with the position its outcome belongs to.
#[derive(Default)]
struct Probes(Vec<(usize, Probe)>);

impl Probes {
    fn push(&mut self, position: usize, probe: Probe) {
        self.0.push((position, probe));
    }

    async fn run(
        self,
        network: &Arc<Network>,
        timeouts: &Timeouts,
        mut each: impl FnMut(usize, &Probe, ProbeOutcome, usize, usize),
    ) {
        let of = self.0.len();
        let mut running = JoinSet::new();
        for (position, probe) in self.0 {
            let (network, timeouts) = (network.clone(), *timeouts);
            running.spawn(async move { (position, probe, network.probe(probe, &timeouts).await) });
        }
        let mut done = 0;
        while let Some(joined) = running.join_next().await {
            done += 1;
            match joined {
                Ok((position, probe, outcome)) => each(position, &probe, outcome, done, of),
                // A probe that panicked must not pass for one that was refused.
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
    }
}
