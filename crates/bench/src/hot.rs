//! What it costs to write for one pod that very many policies select.
//!
//! With nftables each set of peers that is told apart is a gate: a chain and a set. Policies that speak of the same peers
//! share them; those of which each speaks of somebody else do not, and that is the worst case.

use std::error::Error;
use std::fmt;

use comfy_table::Table;
use ringfence_lab::NetNs;
use ringfence_model::Object;
use serde::Serialize;

use crate::cluster::{apart, apart_pod, apart_policy, crowd, crowd_policy, remote};
use crate::filter::{Enforced, Filter, Sample};
use crate::report::{Report, chain, markdown, median, percentile};

/// How often each change is made.
const TIMES: u16 = 50;
/// The same with a filter whose tools are started each time.
const TIMES_WITH_TOOLS: u16 = 5;

/// Whom the policies speak of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Peers {
    /// All of the same.
    Same,
    /// Each of somebody else.
    Different,
}

impl Peers {
    fn objects(self, policies: u16) -> Vec<Object> {
        match self {
            Peers::Same => crowd(1, policies),
            Peers::Different => apart(policies),
        }
    }

    fn policy(self, number: u16) -> Object {
        match self {
            Peers::Same => crowd_policy(number),
            Peers::Different => apart_policy(number),
        }
    }

    /// A pod that one policy at least speaks of.
    fn pod(self, number: u16) -> Object {
        match self {
            Peers::Same => remote(number.into()),
            Peers::Different => apart_pod(1, number),
        }
    }
}

impl fmt::Display for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Peers::Same => "the same",
            Peers::Different => "each another",
        })
    }
}

/// One number of policies with one filter.
#[derive(Serialize)]
pub(crate) struct Hot {
    filter: String,
    peers: Peers,
    policies: u16,
    full_load_ms: f64,
    messages: usize,
    bytes: usize,
    policy_added: Times,
    policy_deleted: Times,
    pod_added: Times,
    pod_deleted: Times,
}

/// Writing, in milliseconds.
#[derive(Serialize)]
struct Times {
    median_ms: f64,
    p99_ms: f64,
}

impl Times {
    fn of(samples: &[Sample]) -> Times {
        let all: Vec<f64> = samples.iter().map(|sample| sample.write).collect();
        Times { median_ms: median(all.clone()), p99_ms: percentile(all, 99) }
    }
}

pub(crate) fn measure(policies: &[u16], filters: &[Filter], report: &mut Report) -> Result<(), Box<dyn Error>> {
    for filter in filters {
        for peers in [Peers::Same, Peers::Different] {
            for &policies in policies {
                report.progress(&format!("hot pod, {policies} policies, peers: {peers}: {filter}"));
                let node = NetNs::create()?;
                let loaded = node.within(|| filter.enforce(peers.objects(policies)))?;
                let figures = loaded.and_then(|(mut enforced, load)| {
                    node.within(|| changes(*filter, peers, policies, &mut *enforced, load))?
                });
                match figures {
                    Ok(figures) => report.hot.push(figures),
                    // Without root's rights not all sizes can be loaded.
                    Err(error) => {
                        report.skipped(&format!("hot pod, {policies} policies, {peers}: {filter}: {}", chain(&*error)));
                    }
                }
            }
        }
    }
    Ok(())
}

fn changes(
    filter: Filter,
    peers: Peers,
    policies: u16,
    enforced: &mut dyn Enforced,
    load: Sample,
) -> Result<Hot, Box<dyn Error>> {
    let times = if filter == Filter::Nftables { TIMES } else { TIMES_WITH_TOOLS };
    let mut samples = [const { Vec::new() }; 4];
    for number in policies + 1..=policies + times {
        let [policy, pod] = [peers.policy(number), peers.pod(number)];
        samples[0].push(enforced.change(vec![policy.clone()])?);
        samples[1].push(enforced.delete(&policy.key())?);
        samples[2].push(enforced.change(vec![pod.clone()])?);
        samples[3].push(enforced.delete(&pod.key())?);
    }
    let [policy_added, policy_deleted, pod_added, pod_deleted] = samples.map(|samples| Times::of(&samples));
    Ok(Hot {
        filter: filter.to_string(),
        peers,
        policies,
        full_load_ms: load.write,
        messages: load.applied.messages,
        bytes: load.applied.bytes,
        policy_added,
        policy_deleted,
        pod_added,
        pod_deleted,
    })
}

/// What was measured.
pub(crate) fn tables(all: &[Hot]) -> Vec<(String, Table)> {
    let mut table = markdown(&[
        "packet filter",
        "policies of the pod",
        "peers of each",
        "full load, ms",
        "messages or lines",
        "policy added, ms",
        "policy deleted, ms",
        "remote pod added, ms",
        "remote pod deleted, ms",
    ]);
    let times = |times: &Times| format!("{:.3} / {:.3}", times.median_ms, times.p99_ms);
    for row in all {
        table.add_row([
            row.filter.clone(),
            row.policies.to_string(),
            row.peers.to_string(),
            format!("{:.1}", row.full_load_ms),
            row.messages.to_string(),
            times(&row.policy_added),
            times(&row.policy_deleted),
            times(&row.pod_added),
            times(&row.pod_deleted),
        ]);
    }
    vec![("Writing for one pod that many policies select (median / p99 of the changes)".to_owned(), table)]
}
