//! `make bench`: what filtering costs a new flow, and what programming costs, compared in one run.
//!
//! Absolute times depend on the machine and on what else it does; the ratios are what counts.

mod cluster;
mod latency;
mod programming;
mod report;

use std::process::ExitCode;

use clap::Parser;

/// Measures the packet filter in network namespaces of this process. Needs the nft command, and root for the largest sizes.
#[derive(Debug, Parser)]
struct Args {
    /// Sizes: allowed peers of the probed pod.
    #[arg(long, value_delimiter = ',', default_values_t = [10, 1_000, 10_000, 100_000])]
    entries: Vec<u32>,
    /// Rounds; in each, every configuration is measured once, one after the other.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// New flows in each round and configuration.
    #[arg(long, default_value_t = 2_000)]
    flows: usize,
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
    // Real root keeps large socket buffers, which one transaction with 100,000 elements needs.
    let isolation = if report::is_root() { ringfence_lab::Isolation::RootOnly } else { ringfence_lab::Isolation::Auto };
    ringfence_lab::enter(isolation)?;
    let mut report = report::Report::default();
    programming::measure(&args.entries, &mut report)?;
    latency::measure(&args.entries, args.rounds, args.flows, &mut report)?;
    report.print();
    if let Some(path) = &args.json {
        std::fs::write(path, report.json()?)?;
    }
    Ok(())
}
