//! The whole way: an object changes in the API server, the agent hears of it, the kernel lets a packet through or no more.
//!
//! The API server is a fake one in this process, on the node's loopback; the agent is the real program. Packets go from a
//! pod to a pod of the node, each of a new flow, until what happens to them changes. Around the two pods is a cluster of
//! [`Mix`](crate::mix::Mix), and the same changes are measured in clusters of different sizes.

mod change;
mod tables;

use std::error::Error;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Args;
use ringfence_fake_apiserver::{FakeApiServer, Verb};
use serde::Serialize;

use crate::compile::{Quantiles, Size};
use crate::filter::Filter;
use crate::process::{AgentProcess, Memory, Usage};
use crate::report::Report;
use crate::site::Site;
use change::{Change, Cluster};

pub(crate) use tables::tables;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two packets.
const PERIOD: Duration = Duration::from_micros(200);
/// How many packets in a row must agree.
const CERTAIN: usize = 3;
/// What the agent does after its start shall be over.
const SETTLED: Duration = Duration::from_secs(2);

/// The clusters in which the agent is measured.
#[derive(Args, Clone, Debug)]
#[group(skip)]
pub(crate) struct Options {
    /// Sizes for agent, the smallest first: PODS/POLICIES, or PODS/POLICIES/NAMESPACES.
    #[arg(long, value_delimiter = ',', default_values = ["1000/100", "100000/10000"])]
    agent_sizes: Vec<Size>,
    /// How often each kind of change is made.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    agent_changes: u32,
    /// For how many seconds pods come, change and go.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    agent_churn_seconds: u32,
    /// How many changes of pods that are in each second. A policy is edited once a second.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    agent_churn_rate: u32,
}

/// What was measured with one filter at one size. Times are in milliseconds.
#[derive(Serialize)]
pub(crate) struct Figures {
    filter: String,
    size: Size,
    /// From the last request for a list to the first packet refused.
    last_list_to_refusal: f64,
    /// From the start of the process to the same.
    start_to_refusal: f64,
    /// Processor time of the agent until then and two seconds longer.
    start_processor: f64,
    loaded: Memory,
    changes: Vec<Effect>,
    churn: Churn,
    after: Memory,
}

/// One kind of change in one direction.
#[derive(Serialize)]
struct Effect {
    change: String,
    /// Whether packets pass after it.
    allows: bool,
    /// From the change in the API server to the first packet that it concerns.
    effect: Quantiles,
    /// Processor time of the agent for each change, its tools included.
    processor: f64,
}

/// While pods come, change and go.
#[derive(Serialize)]
struct Churn {
    /// How many changes of pods there were in each second.
    rate: f64,
    /// Of one processor.
    processor_percent: f64,
    /// From a change of a pod to its effect, in between all the others.
    effect: Quantiles,
}

pub(crate) fn measure(options: &Options, filters: &[Filter], report: &mut Report) -> Result<(), Box<dyn Error>> {
    for &filter in filters {
        for &size in &options.agent_sizes {
            let figures = one(options, size, filter, report)?;
            report.agents.push(figures);
        }
    }
    Ok(())
}

fn one(options: &Options, size: Size, filter: Filter, report: &Report) -> Result<Figures, Box<dyn Error>> {
    let progress = |what: &str| report.progress(&format!("agent with {filter}, {size}: {what}"));
    progress("filling the API server");
    let site = Site::new("agent", || Ok(()))?;
    let server = site.node()?.within(FakeApiServer::start)??;
    let mix = size.mix();
    let cluster = Cluster::fill(&server, mix);

    progress("start");
    let started = Instant::now();
    let mut agent = AgentProcess::start(site.node()?, &server.kubeconfig(), filter)?;
    let enforced = until(&site, &mut agent, false)?;
    let listed =
        server.requests().iter().filter(|request| request.verb == Some(Verb::List)).map(|request| request.at).max();
    let listed = listed.ok_or("the agent has not asked for any list")?;
    sleep(SETTLED);
    let loaded = agent.usage()?;

    let mut changes = Vec::new();
    for change in Change::ALL {
        progress(&change.to_string());
        if cluster.prepare(change) {
            until(&site, &mut agent, false)?;
        }
        changes.extend(series(options, &site, &mut agent, &cluster, change)?);
    }

    progress("pods come, change and go");
    if cluster.prepare(Change::RemoteLabel) {
        until(&site, &mut agent, false)?;
    }
    let churn = churn(options, &site, &mut agent, &cluster)?;
    sleep(SETTLED);
    agent.check()?;
    Ok(Figures {
        filter: filter.to_string(),
        size,
        last_list_to_refusal: milliseconds(enforced.saturating_duration_since(listed)),
        start_to_refusal: milliseconds(enforced - started),
        start_processor: milliseconds(loaded.processor),
        loaded: loaded.memory,
        changes,
        churn,
        after: agent.usage()?.memory,
    })
}

/// Makes one kind of change, back and forth.
fn series(
    options: &Options,
    site: &Site,
    agent: &mut AgentProcess,
    cluster: &Cluster<'_>,
    change: Change,
) -> Result<Vec<Effect>, Box<dyn Error>> {
    let mut samples = [Vec::new(), Vec::new()];
    let mut processor = [Duration::ZERO; 2];
    for round in 0..options.agent_changes {
        // Between changes it is quiet, and never in step with anything.
        let quiet = Duration::from_millis(u64::from(round % 7) * 3 + 120);
        for (direction, allow) in [(0, true), (1, false)] {
            let before = agent.usage()?;
            samples[direction].push(time(site, agent, cluster, change, allow)?);
            sleep(quiet);
            processor[direction] += agent.usage()?.since(before);
        }
    }
    let effects = samples.into_iter().zip(processor).zip([true, false]).map(|((samples, processor), allows)| Effect {
        change: change.to_string(),
        allows,
        effect: Quantiles::of(samples),
        processor: milliseconds(processor) / f64::from(options.agent_changes),
    });
    Ok(effects.collect())
}

/// Makes the change and waits for its effect. In milliseconds.
fn time(
    site: &Site,
    agent: &mut AgentProcess,
    cluster: &Cluster<'_>,
    change: Change,
    allow: bool,
) -> Result<f64, Box<dyn Error>> {
    // The object is made before the clock runs.
    let make = cluster.change(change, allow);
    let from = Instant::now();
    make();
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

/// Changes of pods at a steady rate, all of which policies can see, an edit of a policy each second, and twice a second a
/// change whose effect is waited for.
fn churn(
    options: &Options,
    site: &Site,
    agent: &mut AgentProcess,
    cluster: &Cluster<'_>,
) -> Result<Churn, Box<dyn Error>> {
    cluster.prepare_churn();
    sleep(SETTLED);
    let rate = options.agent_churn_rate;
    let length = Duration::from_secs(options.agent_churn_seconds.into());
    let (before, from) = (agent.usage()?, Instant::now());
    let mut samples = Vec::new();
    let made = std::thread::scope(|scope| {
        let busy = scope.spawn(|| {
            let mut number = 0;
            while from.elapsed() < length {
                cluster.churn(number);
                if number % rate == rate / 2 {
                    cluster.edit_policy(number / rate);
                }
                number += 1;
                let next = Duration::from_secs(1) * number / rate;
                sleep(next.saturating_sub(from.elapsed()));
            }
            number
        });
        let mut measure = || -> Result<(), Box<dyn Error>> {
            let mut allow = false;
            while from.elapsed() < length {
                sleep(Duration::from_millis(487));
                allow = !allow;
                samples.push(time(site, agent, cluster, Change::RemoteLabel, allow)?);
            }
            Ok(())
        };
        let result = measure();
        let made = busy.join().map_err(|_| "making changes failed")?;
        result.map(|()| made)
    })?;
    let used = agent.usage()?.since(before);
    let took = from.elapsed().as_secs_f64();
    Ok(Churn {
        rate: f64::from(made) / took,
        processor_percent: used.as_secs_f64() / took * 100.0,
        effect: Quantiles::of(samples),
    })
}

impl Usage {
    /// Processor time since an earlier look.
    fn since(self, before: Usage) -> Duration {
        self.processor.saturating_sub(before.processor)
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
