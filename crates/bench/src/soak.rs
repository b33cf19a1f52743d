//! `make soak`: a cluster that never rests, and checks all along.
//!
//! The agent is the real program, between a fake API server and the kernel. Pods come and go, policies are edited, the server
//! fails. About once a second it is quiet for a moment, and then: the kernel's tables must be what compiling from scratch
//! says, packets and the program must do what the oracle says, the agent must have had nothing to mend. In the end its
//! memory must be what it was after the warm-up.
//!
//! Which change comes after which follows from the seed alone. Times, uids and what the agent makes one batch do not.

mod cast;
mod checks;
mod crowd;
mod faults;
mod field;
mod judge;
mod present;
mod vitals;

use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use comfy_table::Table;
use ringfence_dataplane::iptables::Variant;
use ringfence_fake_apiserver::FakeApiServer;
use ringfence_lab::NetNs;
use ringfence_model::{Action, Isolation, Peers, Policy, Ports, Rule};
use serde::Serialize;

use crate::cluster::OUR_NODE;
use crate::filter::Filter;
use crate::mix::Mix;
use crate::process::AgentProcess;
use crate::report::{Report, markdown};
use cast::Cast;
use checks::{Asked, Inspector};
use crowd::Crowd;
use faults::Faults;
use field::Field;
use present::Present;
use vitals::{Memory, Sample};

/// Why a soak ends before its time.
type Failure = Box<dyn std::error::Error>;

/// How far changes may fall behind their time before that is given up: checks take time, and are caught up with.
const BACKLOG: Duration = Duration::from_secs(5);
/// Of so many changes of pods one is followed by a change of a policy.
const POLICY_EVERY: u64 = 12;
/// The same for labels of a namespace.
const NAMESPACE_EVERY: u64 = 50;
/// So many seconds' worth of changes are between two faults of the API server.
const FAULT_EVERY: u64 = 9;
/// How many changes of each resource the API server remembers.
const REMEMBERED: usize = 2_000;
/// So many checks are between two times that the harness tidies up behind itself.
const TIDY_EVERY: usize = 20;
/// How many lines of the agent's log an error has.
const LOG_LINES: usize = 20;

/// What is soaked, and for how long.
#[derive(Args, Clone, Debug)]
#[group(skip)]
pub(crate) struct Options {
    /// Seconds of churn.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    soak_seconds: u64,
    /// Changes of pods in a second. Policies and namespaces change besides.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    soak_rate: u64,
    /// Which changes come, in which order.
    #[arg(long, default_value_t = 1)]
    soak_seed: u64,
    /// Pods of the cluster, about.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(100..=200_000))]
    soak_pods: u32,
    /// Policies of the cluster, about.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(10..=100_000))]
    soak_policies: u32,
    /// The packet filter: nftables, iptables-nft or iptables-legacy.
    #[arg(long, default_value = "nftables", value_parser = parse_filter)]
    soak_filter: Filter,
    /// Seconds that the agent may take to catch up. It waits up to half a minute between attempts when a server fails
    /// again and again.
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    soak_patience: u64,
    /// Do something wrong, which the soak has to find. For its tests.
    #[arg(long, hide = true)]
    soak_sabotage: Option<Sabotage>,
}

/// What can be wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sabotage {
    /// The agent works for another node.
    WrongNode,
    /// A policy is expected to have changed, and the agent never hears of that.
    WithheldChange,
    /// Somebody adds a chain to the agent's table.
    ForeignChain,
    /// Somebody drops what should pass.
    LostPackets,
    /// Somebody gives packets another source, before policies are asked.
    Disguised,
}

/// What one soak has found.
#[derive(Serialize)]
pub(crate) struct Soaked {
    of: String,
    seed: u64,
    filter: String,
    seconds: f64,
    pod_changes: u64,
    policy_changes: u64,
    namespace_changes: u64,
    faults: u64,
    checks: usize,
    packets_passed: usize,
    packets_refused: usize,
    packets_sent_again: usize,
    flows_allowed: usize,
    flows_refused: usize,
    catching_up_ms: f64,
    catching_up_longest_ms: f64,
    agent_processor_percent: f64,
    peak_mb: f64,
    /// Resident memory after the warm-up and in the end; nothing when the run was too short.
    memory: Option<Memory>,
    samples: Vec<Sample>,
}

fn parse_filter(text: &str) -> Result<Filter, String> {
    let filters = [Filter::Nftables].into_iter().chain(Variant::ALL.map(Filter::Iptables));
    let mut names = Vec::new();
    for filter in filters {
        if filter.to_string() == text {
            return Ok(filter);
        }
        names.push(filter.to_string());
    }
    Err(format!("one of {}", names.join(", ")))
}

/// How often what has happened.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    pods: u64,
    policies: u64,
    namespaces: u64,
    faults: u64,
}

/// Everything that changes, in an order that follows from the seed.
struct Churn<'a> {
    present: Present<'a>,
    crowd: Crowd,
    cast: Cast,
    faults: Faults,
    random: fastrand::Rng,
    counts: Counts,
}

impl Churn<'_> {
    /// The next change of a pod, and what comes with it.
    fn step(&mut self, rate: u64) -> Result<Option<faults::Struck>, Failure> {
        let Churn { present, crowd, cast, random, counts, .. } = self;
        if random.u8(..5) == 0 {
            cast.change_pod(present, random)?;
        } else {
            crowd.change_pod(present, random)?;
        }
        counts.pods += 1;
        if counts.pods.is_multiple_of(POLICY_EVERY) {
            counts.policies += 1;
            if random.u8(..4) == 0 {
                crowd.change_policy(present, random)?;
            } else {
                cast.change_policy(present, random)?;
            }
        }
        if counts.pods.is_multiple_of(NAMESPACE_EVERY) {
            counts.namespaces += 1;
            if random.bool() {
                crowd.change_namespace(present, random)?;
            } else {
                cast.change_namespace(present, random)?;
            }
        }
        // In the middle between two checks.
        if counts.pods % (rate * FAULT_EVERY) == rate / 2 {
            counts.faults += 1;
            return Ok(Some(self.faults.strike(present.server, random)));
        }
        Ok(None)
    }
}

/// Soaks one agent.
pub(crate) fn run(options: &Options, report: &mut Report) -> Result<(), Failure> {
    let field = Field::new()?;
    let server = field.node()?.within(FakeApiServer::start)??;
    server.remember(REMEMBERED);
    let mix = Mix::new(options.soak_pods, options.soak_policies);
    let of = format!("{} pods ({} on the node), {} policies", mix.pods, mix.local_pods, mix.policies);
    report.progress(&format!("soak with {}: {of}, seed {}", options.soak_filter, options.soak_seed));
    let mut churn = Churn {
        present: Present::new(&server),
        crowd: Crowd::new(mix),
        cast: Cast::new(&field.ends),
        faults: Faults::default(),
        random: fastrand::Rng::with_seed(options.soak_seed),
        counts: Counts::default(),
    };
    churn.crowd.enter(&mut churn.present, &mut churn.random)?;
    churn.cast.enter(&mut churn.present, &mut churn.random)?;
    let name = if options.soak_sabotage == Some(Sabotage::WrongNode) { field::LAB_NODE } else { OUR_NODE };
    let mut agent = AgentProcess::start_as(name, field.node()?, &server.kubeconfig(), options.soak_filter)?;
    let mut last_fault = "none".to_owned();
    let soaked = soak(options, &field, &mut churn, &mut agent, &mut last_fault, report);
    let soaked = soaked.map_err(|error| {
        let log = agent.log();
        let lines: Vec<&str> = log.lines().collect();
        let end = lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default().join("\n");
        let (seed, step) = (options.soak_seed, churn.counts.pods);
        format!("seed {seed}, after change {step} (last fault: {last_fault}): {error}\nthe agent's log ends:\n{end}")
    })?;
    report.soak.push(Soaked { of, ..soaked });
    Ok(())
}

fn soak(
    options: &Options,
    field: &Field,
    churn: &mut Churn<'_>,
    agent: &mut AgentProcess,
    last_fault: &mut String,
    report: &Report,
) -> Result<Soaked, Failure> {
    let (duration, rate) = (Duration::from_secs(options.soak_seconds), options.soak_rate);
    let socket = agent.socket();
    let patience = Duration::from_secs(options.soak_patience);
    let mut inspector = Inspector::new(field, options.soak_filter, &socket, patience);
    let mut look = |churn: &mut Churn<'_>, agent: &mut AgentProcess| {
        churn.faults.end(churn.present.server);
        // Of its own, so that the changes to come do not depend on what was asked.
        let mut random = fastrand::Rng::with_seed(options.soak_seed ^ (churn.counts.pods << 32));
        inspector.check(&churn.present, &mut random, || agent.check())?;
        Ok::<_, Failure>((inspector.asked, inspector.waits))
    };
    look(churn, agent)?;
    let (before, started) = (agent.usage()?, Instant::now());
    let (mut due, mut samples) = (started, Vec::new());
    let mut told = started;
    let (asked, waits) = loop {
        for _ in 0..rate {
            sleep(due.saturating_duration_since(Instant::now()));
            if let Some(struck) = churn.step(rate)? {
                *last_fault = format!("{struck}, at change {}", churn.counts.pods);
            }
            due = (due + Duration::from_secs(1) / u32::try_from(rate)?).max(Instant::now() - BACKLOG);
        }
        if churn.counts.pods == 2 * rate {
            sabotage(options.soak_sabotage, field.node()?, churn)?;
        }
        let (asked, waits) = look(churn, agent)?;
        let resident = agent.usage()?.memory.resident;
        samples.push(Sample { at: started.elapsed().as_secs_f64(), resident, elements: asked.elements });
        if told.elapsed() > Duration::from_secs(60) {
            told = Instant::now();
            report.progress(&format!("{:?}: {asked:?}, {resident:.1} MB resident", started.elapsed()));
        }
        if asked.checks.is_multiple_of(TIDY_EVERY) {
            Faults::tidy(churn.present.server);
        }
        if started.elapsed() >= duration {
            break (asked, waits);
        }
    };
    let (after, elapsed) = (agent.usage()?, started.elapsed());
    churn.present.verify()?;
    if [asked.packets_passed, asked.packets_refused, asked.flows_allowed, asked.flows_refused].contains(&0) {
        return Err(format!("nothing was shown: {asked:?}").into());
    }
    let memory = Memory::of(&samples);
    memory.map_or(Ok(()), Memory::check)?;
    let Counts { pods, policies, namespaces, faults } = churn.counts;
    let Asked { checks, packets_passed, packets_refused, packets_lost, flows_allowed, flows_refused, .. } = asked;
    #[allow(clippy::cast_precision_loss, reason = "for people")]
    let checked = checks as f64;
    let used = after.processor.saturating_sub(before.processor);
    Ok(Soaked {
        of: String::new(),
        seed: options.soak_seed,
        filter: options.soak_filter.to_string(),
        seconds: elapsed.as_secs_f64(),
        pod_changes: pods,
        policy_changes: policies,
        namespace_changes: namespaces,
        faults,
        checks,
        packets_passed,
        packets_refused,
        packets_sent_again: packets_lost,
        flows_allowed,
        flows_refused,
        catching_up_ms: waits.sum.as_secs_f64() * 1e3 / checked,
        catching_up_longest_ms: waits.longest.as_secs_f64() * 1e3,
        agent_processor_percent: used.as_secs_f64() / elapsed.as_secs_f64() * 100.0,
        peak_mb: after.memory.peak,
        memory,
        samples,
    })
}

/// Does what was asked for.
fn sabotage(sabotage: Option<Sabotage>, node: &NetNs, churn: &mut Churn<'_>) -> Result<(), Failure> {
    let nft = |script: &str| -> Result<(), Failure> {
        let mut command = Command::new("nft");
        command.arg(format!("{script}\n")).stdin(Stdio::null());
        if node.within(|| command.status())??.success() { Ok(()) } else { Err(format!("nft refused: {script}").into()) }
    };
    match sabotage {
        None | Some(Sabotage::WrongNode) => Ok(()),
        Some(Sabotage::WithheldChange) => {
            let anything = Rule { action: Action::Accept, peers: Peers::Any, ports: Ports::Any };
            let isolates = Isolation { ingress: true, egress: false };
            // It selects pods of our node, and lets nobody in so far.
            let policy = churn.crowd.policy(0);
            churn.present.pretend(Policy { isolates, ingress: vec![anything], ..policy });
            Ok(())
        }
        Some(Sabotage::ForeignChain) => nft("add chain inet ringfence stray"),
        Some(Sabotage::LostPackets) => nft("table inet other {
            chain lost { type filter hook forward priority 10; meta l4proto udp drop; }
        }"),
        Some(Sabotage::Disguised) => nft("table inet other {
                chain disguised {
                    type filter hook prerouting priority -300;
                    meta l4proto udp ip daddr 203.0.113.9 ip saddr set 203.0.113.77;
                    meta l4proto udp ip6 daddr 2001:db8::9 ip6 saddr set 2001:db8::77;
                }
            }"),
    }
}

/// What was found, for people.
pub(crate) fn tables(all: &[Soaked]) -> Vec<(String, Table)> {
    all.iter()
        .flat_map(|soaked| [("Soak".to_owned(), summary(soaked)), ("Memory over time".to_owned(), over_time(soaked))])
        .collect()
}

fn summary(soaked: &Soaked) -> Table {
    let mut table = markdown(&["what", "how much"]);
    #[allow(clippy::cast_precision_loss, reason = "for people")]
    let rate = soaked.pod_changes as f64 / soaked.seconds;
    let rows = [
        ("packet filter", soaked.filter.clone()),
        ("cluster", soaked.of.clone()),
        ("seed", soaked.seed.to_string()),
        ("seconds", format!("{:.0}", soaked.seconds)),
        ("pod changes (a second)", format!("{} ({rate:.0})", soaked.pod_changes)),
        ("policy changes", soaked.policy_changes.to_string()),
        ("namespace changes", soaked.namespace_changes.to_string()),
        ("faults of the API server", soaked.faults.to_string()),
        ("checks", soaked.checks.to_string()),
        ("packets that passed, as they should", soaked.packets_passed.to_string()),
        ("packets that were refused, as they should", soaked.packets_refused.to_string()),
        ("packets sent again", soaked.packets_sent_again.to_string()),
        ("flows asked of the program: allowed", soaked.flows_allowed.to_string()),
        ("flows asked of the program: refused", soaked.flows_refused.to_string()),
        ("catching up after the last change, ms, mean", format!("{:.0}", soaked.catching_up_ms)),
        ("longest, with faults, ms", format!("{:.0}", soaked.catching_up_longest_ms)),
        ("agent: % of a core", format!("{:.1}", soaked.agent_processor_percent)),
        ("agent: peak resident, MB", format!("{:.1}", soaked.peak_mb)),
    ];
    for (what, how_much) in rows {
        table.add_row([what.to_owned(), how_much]);
    }
    if let Some(memory) = soaked.memory {
        table.add_row(["agent: resident after the warm-up, MB".to_owned(), format!("{:.1}", memory.first)]);
        table.add_row(["agent: resident in the end, MB".to_owned(), format!("{:.1}", memory.last)]);
    }
    table
}

fn over_time(soaked: &Soaked) -> Table {
    const ROWS: usize = 12;
    let mut table = markdown(&["after, s", "resident, MB", "elements in the kernel"]);
    let every = soaked.samples.len().div_ceil(ROWS).max(1);
    for sample in soaked.samples.iter().rev().step_by(every).collect::<Vec<_>>().into_iter().rev() {
        let elements = sample.elements.map_or_else(|| "-".to_owned(), |elements| elements.to_string());
        table.add_row([format!("{:.0}", sample.at), format!("{:.1}", sample.resident), elements]);
    }
    table
}
