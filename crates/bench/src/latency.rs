//! The round trip of the first packet of a new UDP flow, through a node that filters for many allowed peers.

use std::error::Error;

use ringfence_compile::NodeCompiler;
use ringfence_dataplane::{NftBackend, NftOptions, Reconciler};

use crate::cluster::{World, allowed, remote};
use crate::report::{Report, median, ratios};
use crate::site::{Site, conntrack_only};

pub(crate) fn measure(entries: &[u32], rounds: usize, flows: usize, report: &mut Report) -> Result<(), Box<dyn Error>> {
    let mut sites = vec![Site::new("no packet filter", || Ok(()))?, Site::new("conntrack only", conntrack_only)?];
    for &count in entries {
        report.progress(&format!("loading {count} entries"));
        sites.push(Site::new(&format!("ringfence, {count} allowed"), || enforce(count))?);
    }
    // Medians, one for each round, in microseconds.
    let mut samples = vec![Vec::new(); sites.len()];
    for round in 0..=rounds {
        report.progress(&format!("latency, round {round} of {rounds}"));
        for (site, samples) in sites.iter().zip(&mut samples) {
            let sample = site.first_packets(flows)?;
            // The first round warms caches and is not counted.
            if round > 0 {
                samples.push(sample);
            }
        }
    }
    for (site, series) in sites.iter().zip(&samples) {
        report.latency(site.name(), median(series.clone()), median(ratios(series, &samples[1])));
    }
    Ok(())
}

/// Grows the program step by step, so that it also loads where only small transactions are possible.
fn enforce(entries: u32) -> Result<(), Box<dyn Error>> {
    let mut reconciler = Reconciler::new(NftBackend::new(NftOptions::default())?);
    let mut world: World<NodeCompiler> = World::new(allowed(1))?;
    reconciler.apply(&world.compile())?;
    for number in 1..entries {
        world.apply(remote(number))?;
        if number % 2_000 == 0 {
            reconciler.apply(&world.compile())?;
        }
    }
    reconciler.apply(&world.compile())?;
    Ok(())
}
