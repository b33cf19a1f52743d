//! Every path, tried under the policies and then without any: what passes, and whose address the rules see.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use ringfence_analyze::paths::{Attempt, Backend, Client, Trip};
use ringfence_analyze::{EndKind, Matrix};
use ringfence_model::{Flow, Protocol};
use ringfence_oracle::State;

use crate::index::EndpointIndex;
use crate::network::Network;
use crate::probe::{Origin, Probe, ProbeOutcome, Timeouts};
use crate::probes::{Probes, answered_by, describe, in_host_network};
use crate::run::{RunError, known_node};

/// Which of several backends answers is up to chance. After this many tries for each of them, one that can answer has done
/// so, but for one case in 100,000.
const TRIES_PER_BACKEND: usize = 12;

/// Who answered an attempt, by position among its backends, and the client's address and port as the listener saw them.
pub(crate) type Answers = BTreeMap<usize, SocketAddr>;

/// Tries the attempts that `wanted` picks, each so often that every backend has its chance.
///
/// # Errors
/// A probe that says nothing about the network.
pub(crate) async fn attempt_all(
    attempts: &[Attempt],
    wanted: impl Fn(&Attempt) -> bool,
    matrix: &Matrix,
    network: &Arc<Network>,
    timeouts: &Timeouts,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Answers>, RunError> {
    let mut probes = Probes::default();
    for (position, attempt) in attempts.iter().enumerate().filter(|(_, attempt)| wanted(attempt)) {
        let from = match &attempt.from {
            Client::End(end) => Origin::Endpoint(EndpointIndex(*end)),
            Client::Node(name) => Origin::Node(known_node(network, name)?),
        };
        let probe = Probe {
            from,
            source: Some(attempt.source),
            destination: attempt.dial.ip(),
            protocol: attempt.protocol,
            port: attempt.dial.port(),
        };
        let tries = if attempt.backends.len() == 1 { 1 } else { TRIES_PER_BACKEND * attempt.backends.len() };
        (0..tries).for_each(|_| probes.push(position, probe));
    }
    let mut answers = vec![Answers::new(); attempts.len()];
    let mut failed = None;
    probes
        .run(network, timeouts, |position, _, outcome, done, of| {
            progress(done, of);
            let (Some(attempt), Some(answers)) = (attempts.get(position), answers.get_mut(position)) else { return };
            let by = attempt.backends.iter().position(|backend| answered_for(matrix, backend, &outcome));
            match (&outcome, by) {
                (ProbeOutcome::Refused(_) | ProbeOutcome::TimedOut, _) => {}
                (ProbeOutcome::Answered { seen, .. }, Some(backend)) => {
                    answers.entry(backend).or_insert(*seen);
                }
                _ => {
                    failed.get_or_insert_with(|| RunError::Probe {
                        from: client(matrix, attempt),
                        to: attempt.via.clone().unwrap_or_else(|| attempt.dial.to_string()),
                        protocol: attempt.protocol,
                        port: attempt.dial.port(),
                        reason: describe(&outcome),
                    });
                }
            }
        })
        .await;
    failed.map_or(Ok(answers), Err)
}

fn answered_for(matrix: &Matrix, backend: &Backend, outcome: &ProbeOutcome) -> bool {
    let end = matrix.ends.get(backend.end);
    end.is_some_and(|end| answered_by(outcome, &end.label, in_host_network(&end.kind)))
}

fn client(matrix: &Matrix, attempt: &Attempt) -> String {
    match &attempt.from {
        Client::End(end) => matrix.ends.get(*end).map_or_else(String::new, |end| end.label.clone()),
        Client::Node(name) => format!("node {name}"),
    }
}

/// Puts together what policies say (`oracle`), what passed under them (`policed`), and what passed without any (`free`).
pub(crate) fn trips(
    attempts: &[Attempt],
    matrix: &Matrix,
    network: &Network,
    oracle: &State,
    policed: &[Answers],
    free: &[Answers],
) -> Result<Vec<Trip>, RunError> {
    let mut trips = Vec::new();
    for ((attempt, policed), free) in attempts.iter().zip(policed).zip(free) {
        let of_cell = attempt.cell.and_then(|(cell, path)| matrix.cells.get(cell)?.paths.get(path)?.measured);
        for (position, backend) in attempt.backends.iter().enumerate() {
            let answer = free.get(&position);
            let seen = answer
                .map(|seen| source_at_destination(matrix, network, attempt.protocol, backend, *seen))
                .transpose()?;
            let seen = seen.flatten();
            let flow = attempt.flow(backend);
            let verdict = ringfence_oracle::judge(oracle, &flow);
            let at_destination = Flow { source: seen.unwrap_or(flow.source), ..flow };
            let admitted = ringfence_oracle::judge(oracle, &at_destination).ingress.allowed;
            trips.push(Trip {
                kind: backend.kind,
                from: client(matrix, attempt),
                to: matrix.ends.get(backend.end).map_or_else(String::new, |end| end.label.clone()),
                via: attempt.via.clone(),
                protocol: attempt.protocol,
                port: backend.address.port(),
                source: attempt.source,
                seen,
                carried: answer.is_some(),
                intended: verdict.egress.allowed && verdict.ingress.allowed,
                expected: verdict.egress.allowed && admitted,
                measured: of_cell.unwrap_or_else(|| policed.contains_key(&position)),
            });
        }
    }
    Ok(trips)
}

/// The source as the rules of the destination's node see it, where there are any.
fn source_at_destination(
    matrix: &Matrix,
    network: &Network,
    protocol: Protocol,
    backend: &Backend,
    seen: SocketAddr,
) -> Result<Option<std::net::IpAddr>, RunError> {
    let Some(EndKind::Pod { host_network: false, node, .. }) = matrix.ends.get(backend.end).map(|end| &end.kind) else {
        return Ok(None);
    };
    let node = known_node(network, node)?;
    let source = network.source_seen_by_rules(node, protocol, backend.address, seen).map_err(RunError::Tracking)?;
    Ok(source.map(|source| source.ip()))
}
