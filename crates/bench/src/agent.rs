//! The whole way: an object changes in the API server, the agent hears of it, the kernel lets a packet through or no more.
//!
//! The API server is a fake one in this process, on the node's loopback; the agent is the real program. Packets go from a
//! pod to a pod of the node, each of a new flow, until what happens to them changes.

use std::error::Error;
use std::fmt;
use std::net::Ipv4Addr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Args;
use ringfence_fake_apiserver::{FakeApiServer, Verb, sample};
use serde_json::{Value, json};

use crate::cluster::{CLIENT, NODE_ADDRESS, OTHER_NODE, OUR_NODE, PORT, SERVER, address};
use crate::filter::Filter;
use crate::process::{AgentProcess, Usage};
use crate::report::Report;
use crate::site::Site;

/// The namespace of the pods that packets go between.
const BENCH: &str = "bench";
/// The address of a node outside the lab.
const OTHER_NODE_ADDRESS: &str = "192.0.2.11";
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two packets.
const PERIOD: Duration = Duration::from_micros(200);
/// How many packets in a row must agree.
const CERTAIN: usize = 3;
/// How many namespaces the pods are dealt out to.
const NAMESPACES: u32 = 100;

/// The cluster in which the agent is measured.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Pods of the agent's cluster.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(100..=200_000))]
    agent_pods: u32,
    /// Those of them on its node.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100))]
    agent_local_pods: u32,
    /// Policies of that cluster.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(100..=100_000))]
    agent_policies: u32,
    /// How often each kind of change is made.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    agent_changes: u32,
    /// For how many seconds 20 pods come and 20 go each second.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    agent_churn_seconds: u32,
}

/// What is changed, back and forth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Label,
    Policy,
    Pod,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Change::Label => "label of a pod",
            Change::Policy => "policy",
            Change::Pod => "pod",
        })
    }
}

/// What one filter was measured to do.
pub(crate) struct Figures {
    /// From the last request for a list to the first packet refused, in milliseconds.
    pub(crate) start: f64,
    /// From the start of the process to the same, in milliseconds.
    pub(crate) start_of_process: f64,
    pub(crate) loaded: Usage,
    /// For each change and direction: in milliseconds.
    pub(crate) changes: Vec<(String, Vec<f64>)>,
    /// Percent of one processor while pods come and go.
    pub(crate) churn_processor: f64,
    pub(crate) after: Usage,
}

pub(crate) fn measure(size: Size, filters: &[Filter], report: &mut Report) -> Result<(), Box<dyn Error>> {
    report.agent_of(&format!(
        "{} pods ({} on the node), {} policies, {NAMESPACES} namespaces",
        size.agent_pods, size.agent_local_pods, size.agent_policies
    ));
    for &filter in filters {
        report.progress(&format!("agent with {filter}"));
        let figures = one(size, filter, report)?;
        report.agent(&filter.to_string(), &figures);
    }
    Ok(())
}

fn one(size: Size, filter: Filter, report: &Report) -> Result<Figures, Box<dyn Error>> {
    let site = Site::new("agent", || Ok(()))?;
    let server = site.node()?.within(FakeApiServer::start)??;
    fill(&server, size);

    let started = Instant::now();
    let mut agent = AgentProcess::start(site.node()?, &server.kubeconfig(), filter)?;
    let enforced = until(&site, &mut agent, false)?;
    let listed =
        server.requests().iter().filter(|request| request.verb == Some(Verb::List)).map(|request| request.at).max();
    let listed = listed.ok_or("the agent has not asked for any list")?;
    // What it does after the start shall be over.
    sleep(Duration::from_secs(2));
    let loaded = agent.usage()?;

    let mut changes = Vec::new();
    for change in [Change::Label, Change::Policy, Change::Pod] {
        report.progress(&format!("agent with {filter}: {change}"));
        let (mut allowed, mut denied) = (Vec::new(), Vec::new());
        for round in 0..size.agent_changes {
            // Changes that follow at once are collected. Between these it is quiet, and never in step with anything.
            let quiet = Duration::from_millis(u64::from(round % 7) * 3 + 120);
            sleep(quiet);
            allowed.push(time(&site, &mut agent, &server, change, true)?);
            sleep(quiet);
            denied.push(time(&site, &mut agent, &server, change, false)?);
        }
        changes.push((format!("{change}: allowed after"), allowed));
        changes.push((format!("{change}: refused after"), denied));
    }

    report.progress(&format!("agent with {filter}: pods come and go"));
    let (before, from) = (agent.usage()?, Instant::now());
    churn(&server, size.agent_churn_seconds);
    let after = agent.usage()?;
    agent.check()?;
    let used = after.processor.saturating_sub(before.processor);
    Ok(Figures {
        start: milliseconds(enforced.saturating_duration_since(listed)),
        start_of_process: milliseconds(enforced - started),
        loaded,
        changes,
        churn_processor: used.as_secs_f64() / from.elapsed().as_secs_f64() * 100.0,
        after,
    })
}

/// The cluster: the probed pods, and pods and policies around them.
fn fill(server: &FakeApiServer, size: Size) {
    server.apply(&sample::namespace(BENCH, &[]));
    server.apply(&sample::node(OUR_NODE, &NODE_ADDRESS.to_string(), &[]));
    server.apply(&sample::node(OTHER_NODE, OTHER_NODE_ADDRESS, &[]));
    server.apply(&sample::pod(BENCH, "server", &[("app", "server")], OUR_NODE, &[&SERVER.to_string()]));
    server.apply(&client(false));
    server.apply(&policy(BENCH, "server", "server", "allowed"));
    for number in 0..NAMESPACES {
        server.apply(&sample::namespace(&elsewhere(number), &[("team", &format!("team-{}", number % 10))]));
    }
    for number in 0..size.agent_policies {
        let (app, peer) = (format!("app-{}", number / NAMESPACES % 5), format!("app-{}", number / NAMESPACES % 3));
        server.apply(&policy(&elsewhere(number), &format!("policy-{number}"), &app, &peer));
    }
    for number in 0..size.agent_pods {
        let node = if number < size.agent_local_pods { OUR_NODE } else { OTHER_NODE };
        server.apply(&bystander(number, node));
    }
}

fn elsewhere(number: u32) -> String {
    format!("namespace-{:03}", number % NAMESPACES)
}

fn bystander(number: u32, node: &str) -> Value {
    let address = address(Ipv4Addr::new(10, 0, 0, 0), number + 1).to_string();
    let app = format!("app-{}", number / NAMESPACES % 5);
    let labels = [("app", app.as_str()), ("pod-template-hash", "7d4b9c6f5d"), ("team", "red"), ("version", "v1")];
    sample::pod(&elsewhere(number), &format!("pod-{number}"), &labels, node, &[&address])
}

/// Isolates `app` and lets `peer` in by one port.
fn policy(namespace: &str, name: &str, app: &str, peer: &str) -> Value {
    let spec = json!({
        "podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Ingress"],
        "ingress": [{
            "from": [{"podSelector": {"matchLabels": {"app": peer}}}], "ports": [{"protocol": "UDP", "port": PORT}],
        }],
    });
    sample::network_policy(namespace, name, &spec)
}

fn client(allowed: bool) -> Value {
    let app = if allowed { "allowed" } else { "client" };
    sample::pod(BENCH, "client", &[("app", app)], OTHER_NODE, &[&CLIENT.to_string()])
}

/// Makes the change and waits for its effect. In milliseconds.
fn time(
    site: &Site,
    agent: &mut AgentProcess,
    server: &FakeApiServer,
    change: Change,
    allow: bool,
) -> Result<f64, Box<dyn Error>> {
    // The objects are made before the clock runs.
    let (client, wider) = (client(allow || change == Change::Pod), policy(BENCH, "wider", "server", "client"));
    let from = Instant::now();
    match (change, allow) {
        (Change::Label, _) | (Change::Pod, true) => {
            server.apply(&client);
        }
        (Change::Policy, true) => {
            server.apply(&wider);
        }
        (Change::Policy, false) => {
            server.delete("networkpolicies", BENCH, "wider");
        }
        (Change::Pod, false) => {
            server.delete("pods", BENCH, "client");
        }
    }
    let took = until(site, agent, allow)? - from;
    Ok(milliseconds(took))
}

/// When packets began to pass, or to pass no more: the first of some that agree.
fn until(site: &Site, agent: &mut AgentProcess, pass: bool) -> Result<Instant, Box<dyn Error>> {
    let start = Instant::now();
    let mut since: Option<(Instant, usize)> = None;
    loop {
        let sent = Instant::now();
        if site.passes()? == pass {
            let (first, count) = since.map_or((sent, 1), |(first, count)| (first, count + 1));
            if count >= CERTAIN {
                return Ok(first);
            }
            since = Some((first, count));
        } else {
            since = None;
        }
        if start.elapsed() > PATIENCE {
            agent.check()?;
            return Err(format!("nothing changed within {PATIENCE:?}: {}", agent.log()).into());
        }
        sleep(PERIOD);
    }
}

/// 20 pods come and 20 go each second, on other nodes; each twice: without and with an address, as pods do.
fn churn(server: &FakeApiServer, seconds: u32) {
    let start = Instant::now();
    for number in 0..seconds * 20 {
        let name = format!("short-{number}");
        let address = address(Ipv4Addr::new(10, 128, 0, 0), number + 1).to_string();
        let labels = [("app", "app-1"), ("team", "red")];
        server.apply(&sample::pod(&elsewhere(number), &name, &labels, OTHER_NODE, &[]));
        server.apply(&sample::pod(&elsewhere(number), &name, &labels, OTHER_NODE, &[&address]));
        if let Some(old) = number.checked_sub(20) {
            server.delete("pods", &elsewhere(old), &format!("short-{old}"));
        }
        let next = Duration::from_millis(u64::from(number + 1) * 50);
        sleep(next.saturating_sub(start.elapsed()));
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
