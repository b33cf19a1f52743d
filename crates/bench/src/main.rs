//! `make bench`: what filtering costs a new flow, and what programming costs, compared in one run.
//!
//! Absolute times depend on the machine and on what else it does; the ratios are what counts.

mod agent;
mod cluster;
mod compile;
mod filter;
mod growth;
mod latency;
mod mix;
mod process;
mod programming;
mod report;
mod scale;
mod site;

use std::process::ExitCode;

use clap::{Parser, ValueEnum};

/// A question that can be asked alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Compiling from scratch and change by change, for clusters of different sizes.
    Compile,
    /// Writing a pod's allowed peers with nftables.
    Programming,
    /// Writing single changes of a large cluster with each packet filter.
    Scale,
    /// The agent as a process: start, memory, processor time, and how long changes in the API server take.
    Agent,
    /// First packets, with many allowed peers.
    Latency,
    /// First and established packets through each packet filter, with many policies and namespaces.
    Growth,
}

/// Measures packet filters in network namespaces of this process. Needs the nft command, for iptables its tools and ipset,
/// and root for the largest sizes.
#[derive(Debug, Parser)]
struct Args {
    /// What to measure.
    #[arg(long, value_delimiter = ',', default_values = ["compile", "programming", "scale", "agent", "latency", "growth"])]
    parts: Vec<Part>,
    #[command(flatten)]
    compile: compile::Options,
    /// Sizes: allowed peers of the probed pod.
    #[arg(long, value_delimiter = ',', default_values_t = [10, 1_000, 10_000, 100_000])]
    entries: Vec<u32>,
    /// Rounds; in each, every configuration is measured once, one after the other.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// New flows in each round and configuration; for growth a fourth of it, and as many packets of an open flow.
    #[arg(long, default_value_t = 2_000)]
    flows: usize,
    #[command(flatten)]
    scale: scale::Scale,
    #[command(flatten)]
    agent: agent::Options,
    /// Sizes for growth: policies of the probed pod, in the only namespace.
    #[arg(long, value_delimiter = ',', default_values_t = [10, 100, 1_000])]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=50_000))]
    growth_policies: Vec<u16>,
    /// Sizes for growth: namespaces on the node, while the probed pod has 10 policies.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 100])]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=10_000))]
    growth_namespaces: Vec<u16>,
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
    let isolation = if report::is_root() { ringfence_lab::Isolation::RootOnly } else { ringfence_lab::Isolation::Auto };
    ringfence_lab::enter(isolation)?;
    let mut report = report::Report::default();
    let asked = |part: Part| args.parts.contains(&part);
    let filters = if asked(Part::Scale) || asked(Part::Growth) || asked(Part::Agent) {
        filter::Filter::available(&mut report)?
    } else {
        Vec::new()
    };
    if asked(Part::Compile) {
        compile::measure(&args.compile, &mut report)?;
    }
    if asked(Part::Programming) {
        programming::measure(&args.entries, &mut report)?;
    }
    if asked(Part::Scale) {
        scale::measure(args.scale, &filters, &mut report)?;
    }
    if asked(Part::Agent) {
        agent::measure(&args.agent, &filters, &mut report)?;
    }
    let packets = asked(Part::Latency) || asked(Part::Growth);
    if packets && filter::has_nft(&mut report, "all packets") {
        site::stay_on_one_processor()?;
        if asked(Part::Latency) {
            latency::measure(&args.entries, args.rounds, args.flows, &mut report)?;
        }
        if asked(Part::Growth) {
            let sizes = (&args.growth_namespaces[..], &args.growth_policies[..]);
            growth::measure(sizes, &filters, args.rounds, args.flows / 4, &mut report)?;
        }
    }
    report.print();
    if let Some(path) = &args.json {
        std::fs::write(path, report.json()?)?;
    }
    Ok(())
}
