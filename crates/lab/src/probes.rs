//! Many probes at the same time.

use std::sync::Arc;

use tokio::task::JoinSet;

use ringfence_analyze::EndKind;

use crate::network::Network;
use crate::probe::{Probe, ProbeOutcome, Timeouts};

pub(crate) fn in_host_network(kind: &EndKind) -> bool {
    matches!(kind, EndKind::Pod { host_network: true, .. })
}

/// Pods on the node's network share its addresses, so any of them may hold a port that several declare.
pub(crate) fn answered_by(outcome: &ProbeOutcome, label: &str, shares_addresses: bool) -> bool {
    matches!(outcome, ProbeOutcome::Answered { by, .. } if shares_addresses || by == label)
}

pub(crate) fn describe(outcome: &ProbeOutcome) -> String {
    match outcome {
        ProbeOutcome::Answered { by, .. } => format!("{by} answered"),
        ProbeOutcome::Refused(refusal) => format!("refused: {refusal:?}"),
        ProbeOutcome::TimedOut => "no answer".to_owned(),
        ProbeOutcome::Failed(error) => error.to_string(),
    }
}

/// Probes to be made at the same time, each with the position its outcome belongs to.
#[derive(Default)]
pub(crate) struct Probes(Vec<(usize, Probe)>);

impl Probes {
    pub(crate) fn push(&mut self, position: usize, probe: Probe) {
        self.0.push((position, probe));
    }

    pub(crate) async fn run(
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
