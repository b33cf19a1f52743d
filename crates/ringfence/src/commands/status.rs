use std::fmt::Write as _;
use std::io;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ringfence_control::{ControlError, Request, Response, StatusReport, ask, socket_path};

use super::exit_code;
use crate::args::{StatusFormat, StatusOptions};
use crate::output::{self, Failure};

/// How long the agent may take to answer, and so may one that is started to make its socket.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often to ask while waiting.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) fn run(options: &StatusOptions) -> Result<ExitCode, Failure> {
    let until = Instant::now() + Duration::from_secs(options.wait.unwrap_or_default().into());
    let report = loop {
        let report = report(options);
        let done = report.as_ref().is_ok_and(is_good);
        // An agent that is not there yet is waited for, too.
        if done || Instant::now() >= until {
            break report?;
        }
        std::thread::sleep(PAUSE);
    };
    let text = match options.output {
        StatusFormat::Text => text(&report),
        StatusFormat::Json => serde_json::to_string_pretty(&report).map_err(io::Error::from)? + "\n",
    };
    output::print(&text)?;
    Ok(exit_code(!is_good(&report)))
}

fn report(options: &StatusOptions) -> Result<StatusReport, Failure> {
    match ask(&socket_path(&options.run_dir), &Request::Status, PATIENCE) {
        Ok(Response::Status(report)) => Ok(*report),
        Ok(Response::Error { message }) => Err(Failure::NoReport(message)),
        Ok(other) => Err(Failure::NoReport(format!("{other:?}"))),
        Err(error @ ControlError::NoAgent { .. }) => Err(Failure::NoAgent(error)),
        Err(error) => Err(error.into()),
    }
}

/// What is known is enforced. That the source is away now does not change it.
fn is_good(report: &StatusReport) -> bool {
    report.ready && report.in_sync
}

fn text(report: &StatusReport) -> String {
    let StatusReport { counts, .. } = report;
    let state = match (report.ready, report.in_sync) {
        (false, _) => "not ready: nothing has been written since the start; what an earlier run left is in force",
        (true, true) => "in sync",
        (true, false) => "not in sync",
    };
    let mut lines = vec![("node", report.node.clone()), ("state", state.to_owned())];
    if !report.in_sync && report.lag_seconds > 0.0 {
        lines.push(("behind by", seconds(report.lag_seconds)));
    }
    let readable = if report.source_ok { "" } else { ", cannot be read now" };
    lines.push(("source", format!("{}{readable}", report.source)));
    lines.push(("packet filter", format!("{}, program {}", report.backend, report.generation)));
    if let Some(last) = &report.last_apply {
        let (age, took) = (seconds(last.age_seconds), seconds(last.duration_seconds));
        lines.push(("last written", format!("{age} ago, {} in {took}", last.mode)));
    }
    lines.extend(reach(report));
    lines.push((
        "pods",
        format!(
            "{} in the cluster, {} on this node, {} of them isolated",
            counts.pods, counts.local_pods, counts.isolated_pods
        ),
    ));
    lines.push(("sandboxes", format!("{} announced", counts.sandboxes)));
    lines.push((
        "policies",
        format!("{} in {} namespaces, {} invalid", counts.policies, counts.namespaces, counts.invalid_policies),
    ));
    lines.push(("drift", format!("mended {} times", report.drift_repairs)));
    lines.push((
        "failures",
        format!("{} of the packet filter, {} of the source", report.apply_errors, report.source_errors),
    ));
    lines.push(("agent", format!("{}, up {}", report.version, seconds(whole(report.uptime_seconds)))));
    let mut text = String::new();
    for (name, value) in lines {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<15}{value}");
    }
    for condition in &report.conditions {
        let when = if condition.now { "now" } else { "over" };
        let _ = writeln!(
            text,
            "{when:<6}{}: {} ({} ago)",
            condition.about,
            condition.message,
            seconds(condition.age_seconds)
        );
    }
    if report.nodes_apart.count > 0 {
        let _ = writeln!(text, "note  {}", apart(report));
    }
    for remark in &report.remarks {
        let _ = writeln!(text, "note  {remark}");
    }
    text
}

/// What goes beyond the connections of the node's own pods.
fn reach(report: &StatusReport) -> Vec<(&'static str, String)> {
    let StatusReport { counts, enforce_at, node_traffic, .. } = report;
    let mut lines = Vec::new();
    if enforce_at != "destination" || node_traffic != "own" {
        let same = format!("all nodes must run with --enforce-at {enforce_at} --node-traffic {node_traffic}");
        lines.push(("enforcement", format!("at {enforce_at}, node traffic {node_traffic}; {same}")));
    }
    if enforce_at != "destination" {
        lines
            .push(("for others", format!("judges connections to {} isolated pods of other nodes", counts.remote_pods)));
    }
    if counts.believed_addresses > 0 {
        let what = match (enforce_at.as_str(), node_traffic.as_str()) {
            (_, "all") => "everything, from and to them".to_owned(),
            ("entry", _) => format!("connections to {} endpoints here", counts.believed_endpoints),
            _ => "connections to all pods here".to_owned(),
        };
        lines.push(("believed", format!("{} addresses of other nodes: {what}", counts.believed_addresses)));
    }
    if !report.unmasqueraded.is_empty() {
        lines.push(("sources kept", format!("towards {}", report.unmasqueraded.join(", "))));
    }
    lines
}

/// Which nodes may enforce otherwise.
fn apart(report: &StatusReport) -> String {
    let StatusReport { nodes_apart, enforce_at, node_traffic, .. } = report;
    let more = nodes_apart.count.saturating_sub(nodes_apart.first.len() as u64);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!(
        "{} nodes do not announce {enforce_at}/{node_traffic}: {}{more}; an agent that runs otherwise, or none, leaves gaps",
        nodes_apart.count,
        nodes_apart.first.join(", ")
    )
}

#[allow(clippy::cast_precision_loss, reason = "to be read by people")]
fn whole(seconds: u64) -> f64 {
    seconds as f64
}

/// A duration for people.
fn seconds(seconds: f64) -> String {
    match seconds {
        0.0 => "0 s".to_owned(),
        s if s < 1.0 => format!("{:.1} ms", s * 1000.0),
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} d", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_beyond_the_nodes_own_pods_is_told() {
        let mut report = StatusReport {
            enforce_at: "destination".to_owned(),
            node_traffic: "own".to_owned(),
            ..StatusReport::default()
        };
        assert_eq!(reach(&report), []);
        report.enforce_at = "entry".to_owned();
        (report.counts.remote_pods, report.counts.believed_addresses) = (3, 4);
        report.counts.believed_endpoints = 5;
        report.unmasqueraded = vec!["10.1.0.0/16".to_owned()];
        report.nodes_apart = ringfence_control::NodesApart { count: 12, first: vec!["a".to_owned(), "b".to_owned()] };
        let told = text(&report);
        for part in [
            "enforcement    at entry, node traffic own; all nodes must run with --enforce-at entry --node-traffic own",
            "judges connections to 3 isolated pods of other nodes",
            "4 addresses of other nodes: connections to 5 endpoints here",
            "sources kept   towards 10.1.0.0/16",
            "note  12 nodes do not announce entry/own: a, b and 10 more; ",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
        report.node_traffic = "all".to_owned();
        assert!(text(&report).contains("4 addresses of other nodes: everything"));
    }

    #[test]
    fn durations_are_short() {
        let spans = [0.0, 0.0123, 1.0, 119.0, 120.0, 7199.0, 7200.0, 200_000.0];
        let texts = ["0 s", "12.3 ms", "1.0 s", "119.0 s", "2 min", "120 min", "2.0 h", "2.3 d"];
        assert_eq!(spans.map(seconds), texts);
    }
}
