//! `make bench`: what filtering costs a new flow, and what programming costs, compared in one run.
//!
//! Absolute times depend on the machine and on what else it does; the ratios are what counts.

mod agent;
mod api;
mod cluster;
mod compile;
mod during;
mod entry;
mod filter;
mod growth;
mod hot;
mod latency;
mod mix;
mod node;
mod process;
mod programming;
mod report;
mod scale;
mod site;
mod soak;
mod throughput;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};

/// A question that can be asked alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Compiling from scratch and change by change, for clusters of different sizes.
    Compile,
    /// Writing a pod's allowed peers, and one more or less.
    Programming,
    /// Writing for one pod with very many policies.
    Hot,
    /// Writing a node's part of a large cluster, and the kernel's memory for it.
    Node,
    /// Writing single changes of a large cluster with each packet filter.
    Scale,
    /// The agent as a process: start, memory, processor time, and how long changes in the API server take.
    Agent,
    /// First packets, with many allowed peers.
    Latency,
    /// First and established packets through each packet filter, with many policies and namespaces.
    Growth,
    /// Bytes and packets of open connections.
    Throughput,
    /// First packets where entry nodes judge what comes for pods of other nodes.
    Entry,
    /// What packets meet while rules are written.
    During,
    /// A cluster that never rests, with checks all along; only when asked for.
    Soak,
}

/// All of them, in the order in which they are measured.
const PARTS: [&str; 11] =
    ["compile", "programming", "hot", "node", "scale", "agent", "during", "latency", "growth", "throughput", "entry"];

/// Measures packet filters in network namespaces of this process. Needs the nft command, for iptables its tools and ipset,
/// and root for the largest sizes.
#[derive(Debug, Parser)]
struct Args {
    /// What to measure.
    #[arg(long, value_delimiter = ',', default_values = PARTS)]
    parts: Vec<Part>,
    #[command(flatten)]
    compile: compile::Options,
    /// Packet filters to measure, all that are there if not given.
    #[arg(long, value_delimiter = ',', value_parser = ["nftables", "iptables-nft", "iptables-legacy"])]
    filters: Vec<String>,
    /// Sizes: allowed peers of the probed pod.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 1_000, 10_000, 100_000])]
    entries: Vec<u32>,
    /// Rounds; in each, every configuration is measured once, one after the other.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// New flows in each round and configuration; for growth a fourth of it, and as many packets of an open flow.
    #[arg(long, default_value_t = 2_000)]
    flows: usize,
    /// Sizes for hot: policies of the one pod. With iptables 10,000 take many minutes.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1_000])]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=20_000))]
    hot_policies: Vec<u16>,
    /// Sizes for node: PODS/POLICIES, or PODS/POLICIES/NAMESPACES.
    #[arg(long, value_delimiter = ',', default_values = ["1000/100", "10000/1000", "100000/10000"])]
    node_sizes: Vec<compile::Size>,
    /// How often each change is written.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    node_rounds: u32,
    /// The cluster while rules are written.
    #[arg(long, default_value = "10000/1000")]
    during_size: compile::Size,
    /// For how long to send packets, for each filter and each kind of change.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    during_seconds: u64,
    /// Size for entry: pods behind node ports.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(20..=50_000))]
    entry_backends: u32,
    /// Short rounds of throughput.
    #[arg(long, default_value_t = 100)]
    throughput_rounds: usize,
    #[command(flatten)]
    scale: scale::Scale,
    #[command(flatten)]
    agent: agent::Options,
    #[command(flatten)]
    soak: soak::Options,
    /// Sizes for growth: policies of the probed pod, in the only namespace.
    #[arg(long, value_delimiter = ',', default_values_t = [10, 1_000, 10_000])]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=20_000))]
    growth_policies: Vec<u16>,
    /// Sizes for growth: namespaces on the node, while the probed pod has 10 policies.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 100])]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=10_000))]
    growth_namespaces: Vec<u16>,
    /// Work in a user namespace, even for root: what tests do, as others than root do.
    #[arg(long, hide = true)]
    user_namespace: bool,
    /// Also write the figures as JSON to this file.
    #[arg(long)]
    json: Option<std::path::PathBuf>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::complain(&*error);
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    if args.compile.compile_here {
        return compile::measure_here(&args.compile);
    }
    // Real root keeps large socket buffers, which one transaction with 100,000 elements needs.
    let isolation = if report::is_root() && !args.user_namespace {
        ringfence_lab::Isolation::RootOnly
    } else {
        ringfence_lab::Isolation::Auto
    };
    ringfence_lab::enter(isolation)?;
    let mut report = report::Report::default();
    let asked = |part: Part| args.parts.contains(&part);
    let filters = if args.parts.iter().all(|part| matches!(part, Part::Compile | Part::Latency)) {
        Vec::new()
    } else {
        filter::Filter::available(&args.filters, &mut report)?
    };
    if asked(Part::Compile) {
        compile::measure(&args.compile, &mut report)?;
    }
    if asked(Part::Programming) {
        programming::measure(&args.entries, &filters, &mut report)?;
    }
    if asked(Part::Hot) {
        hot::measure(&args.hot_policies, &filters, &mut report)?;
    }
    if asked(Part::Node) {
        node::measure(&args.node_sizes, args.node_rounds, &filters, &mut report)?;
    }
    if asked(Part::Scale) {
        scale::measure(args.scale, &filters, &mut report)?;
    }
    if asked(Part::Agent) {
        agent::measure(&args.agent, &filters, &mut report)?;
    }
    if asked(Part::Soak) {
        soak::run(&args.soak, &mut report)?;
    }
    if asked(Part::During) {
        let each = Duration::from_secs(args.during_seconds);
        during::measure(args.during_size, each, &filters, &mut report)?;
    }
    let of_packets = [Part::Latency, Part::Growth, Part::Throughput, Part::Entry];
    let packets = of_packets.into_iter().any(asked);
    if packets && filter::has_nft(&mut report, "all packets") {
        site::stay_on_one_processor()?;
        if asked(Part::Latency) {
            latency::measure(&args.entries, args.rounds, args.flows, &mut report)?;
        }
        if asked(Part::Growth) {
            let sizes = (&args.growth_namespaces[..], &args.growth_policies[..]);
            growth::measure(sizes, &filters, args.rounds, args.flows / 4, &mut report)?;
        }
        if asked(Part::Throughput) {
            let policies = [10, 1_000];
            throughput::measure(&policies, &filters, args.throughput_rounds, &mut report)?;
        }
        if asked(Part::Entry) {
            entry::measure(args.entry_backends, &filters, args.rounds, args.flows, &mut report)?;
        }
    }
    report.print();
    if let Some(path) = &args.json {
        std::fs::write(path, report.json()?)?;
    }
    Ok(())
}
