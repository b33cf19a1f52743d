//! Every path, tried without any policy and under the policies: what passes, and whose address the rules see.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use ringfence_analyze::paths::{Attempt, Backend, Client, Trip};
use ringfence_analyze::{EndKind, Matrix};
use ringfence_model::Enforcement;

use crate::clusters::Clusters;
use crate::index::EndpointIndex;
use crate::network::Network;
use crate::probe::{Origin, Probe, ProbeOutcome, Timeouts};
use crate::probes::{Probes, answered_by, describe, in_host_network};
use crate::run::{RunError, known_node};
use crate::way::{passes, restored_by, way};

/// Which of several backends answers is up to chance, so an attempt is made again, once for each backend, until all have
/// answered that should. After so many rounds the chance that one was only passed over is below that of the machine failing.
const MOST_ROUNDS: usize = 40;

/// Who answered an attempt, by position among its backends, and the client's address and port as the listener saw them.
pub(crate) type Answers = BTreeMap<usize, SocketAddr>;

/// Makes the attempts for which `should` tells which backends should answer. With several backends each has its chance to
/// answer also when none should.
///
/// # Errors
/// A probe that says nothing about the network.
pub(crate) async fn attempt_all(
    attempts: &[Attempt],
    should: impl Fn(usize, &Attempt) -> Option<BTreeSet<usize>>,
    matrix: &Matrix,
    network: &Arc<Network>,
    timeouts: &Timeouts,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Answers>, RunError> {
    let mut answers = vec![Answers::new(); attempts.len()];
    let mut open: Vec<(usize, &Attempt, BTreeSet<usize>)> = Vec::new();
    for (position, attempt) in attempts.iter().enumerate() {
        open.extend(should(position, attempt).map(|should| (position, attempt, should)));
    }
    for round in 0..MOST_ROUNDS {
        let mut probes = Probes::default();
        for (position, attempt, _) in &open {
            let probe = probe(network, attempt)?;
            let tries = match attempt.backends.len() {
                1 => 1,
                several if round == 0 => 2 * several,
                several => several,
            };
            (0..tries).for_each(|_| probes.push(*position, probe));
        }
        let mut failed = None;
        probes
            .run(network, timeouts, |position, _, outcome, done, of| {
                progress(done, of);
                let (Some(attempt), Some(answers)) = (attempts.get(position), answers.get_mut(position)) else {
                    return;
                };
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
        failed.map_or(Ok(()), Err)?;
        let missing = |position: usize, should: &BTreeSet<usize>| {
            answers.get(position).is_some_and(|answers| should.iter().any(|backend| !answers.contains_key(backend)))
        };
        open.retain(|(position, attempt, should)| attempt.backends.len() > 1 && missing(*position, should));
        if open.is_empty() {
            break;
        }
    }
    Ok(answers)
}

fn probe(network: &Network, attempt: &Attempt) -> Result<Probe, RunError> {
    let from = match &attempt.from {
        Client::End(end) => Origin::Endpoint(EndpointIndex(*end)),
        Client::Node(name) => Origin::Node(known_node(network, name)?),
    };
    Ok(Probe {
        from,
        source: Some(attempt.source),
        destination: attempt.dial.ip(),
        protocol: attempt.protocol,
        port: attempt.dial.port(),
    })
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

/// The trips of each attempt, one for each backend: what policies say of them, and what passed without any policy (`free`).
/// What passes under the policies is filled in later, but for connections of the matrix, which has measured them.
pub(crate) fn trips(
    attempts: &[Attempt],
    matrix: &Matrix,
    network: &Network,
    clusters: &Clusters,
    enforcement: Enforcement,
    free: &[Answers],
) -> Result<Vec<Vec<Trip>>, RunError> {
    let mut all = Vec::with_capacity(attempts.len());
    for (attempt, free) in attempts.iter().zip(free) {
        let path = attempt.cell.and_then(|(cell, path)| matrix.cells.get(cell)?.paths.get(path));
        let mut trips = Vec::with_capacity(attempt.backends.len());
        for (position, backend) in attempt.backends.iter().enumerate() {
            let answer = free.get(&position).copied();
            let way = way(network, matrix, attempt, backend, answer)?;
            let end = matrix.ends.get(backend.end);
            let enforced = end.is_some_and(|end| matches!(end.kind, EndKind::Pod { host_network: false, .. }));
            let intended = clusters.intend(attempt, backend, matrix);
            let expected = passes(network, clusters, enforcement, attempt, &way);
            let restored_by = || restored_by(network, clusters, enforcement, attempt, &way, intended);
            trips.push(Trip {
                kind: backend.kind,
                from: client(matrix, attempt),
                to: end.map_or_else(String::new, |end| end.label.clone()),
                via: attempt.via.clone(),
                protocol: attempt.protocol,
                port: backend.address.port(),
                source: attempt.source,
                seen: way.last().filter(|_| enforced && answer.is_some()).map(|last| last.source),
                carried: answer.is_some(),
                intended,
                expected,
                restored_by: if intended == expected { None } else { restored_by() },
                measured: path.and_then(|path| path.measured).unwrap_or_default(),
            });
        }
        all.push(trips);
    }
    Ok(all)
}
