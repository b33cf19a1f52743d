//! What open connections carry through each packet filter: bytes by TCP, packets by UDP.
//!
//! One thread on one processor plays both ends, as in `site.rs`: it writes as much as the kernel takes, then reads what is
//! there. So a figure says what a byte or a packet costs the processor, and nothing about waking anybody up. Each round is
//! short and the filters take turns. A second site without a filter shows how well this tells one site from another.

use std::error::Error;
use std::time::{Duration, Instant};

use comfy_table::Table;
use serde::Serialize;

use crate::cluster::streams;
use crate::filter::Filter;
use crate::report::{Report, chain, markdown, median, percentile, ratios};
use crate::site::{Packets, Site, Stream, conntrack_only};

/// How long one site carries in one round, for each protocol.
const ROUND: Duration = Duration::from_millis(20);

/// One site.
#[derive(Serialize)]
pub(crate) struct Throughput {
    filter: String,
    policies: Option<u16>,
    tcp_gigabits_per_second: f64,
    tcp: Ratio,
    udp_packets_per_second: f64,
    udp: Ratio,
}

/// Of the rounds, to the same rounds with connection tracking only.
#[derive(Serialize)]
struct Ratio {
    median: f64,
    lower_quartile: f64,
    upper_quartile: f64,
}

impl Ratio {
    fn of(series: &[f64], baseline: &[f64]) -> Ratio {
        let all = ratios(series, baseline);
        let [lower_quartile, median, upper_quartile] = [25, 50, 75].map(|rank| percentile(all.clone(), rank));
        Ratio { median, lower_quartile, upper_quartile }
    }
}

/// A site with its open connections, and what each round carried in a second.
struct Series {
    policies: Option<u16>,
    site: Site,
    stream: Stream,
    packets: Packets,
    bits: Vec<f64>,
    datagrams: Vec<f64>,
}

impl Series {
    fn new(policies: Option<u16>, site: Site) -> Result<Series, Box<dyn Error>> {
        let (stream, packets) = (site.stream()?, site.packets()?);
        Ok(Series { policies, site, stream, packets, bits: Vec::new(), datagrams: Vec::new() })
    }
}

pub(crate) fn measure(
    policies: &[u16],
    filters: &[Filter],
    rounds: usize,
    report: &mut Report,
) -> Result<(), Box<dyn Error>> {
    let bare = |name| Series::new(None, Site::new(name, conntrack_only)?);
    let mut all = vec![bare("conntrack only")?, bare("conntrack only, again")?];
    for filter in filters {
        report.progress(&format!("loading {filter}, {} sizes", policies.len()));
        for &policies in policies {
            match Site::new(&filter.to_string(), || filter.enforce(streams(policies)).map(|_| ())) {
                Ok(site) => {
                    site.check_refusal()?;
                    all.push(Series::new(Some(policies), site)?);
                }
                // Without root's rights iptables-nft cannot send many rules at once.
                Err(error) => {
                    report.skipped(&format!("throughput, {policies} policies: {filter}: {}", chain(&*error)));
                }
            }
        }
    }
    report.progress(&format!("throughput, {rounds} rounds"));
    let count = all.len();
    for round in 0..=rounds {
        // Each is the first one in turn: who follows whom must not matter.
        for place in 0..count {
            let Series { stream, packets, bits, datagrams, .. } = &mut all[(round + place) % count];
            let sample = (per_second(|| stream.carry())? * 8.0, per_second(|| packets.carry())?);
            // The first round warms caches and lets windows grow, and is not counted.
            if round > 0 {
                bits.push(sample.0);
                datagrams.push(sample.1);
            }
        }
    }
    for Series { policies, site, bits, datagrams, .. } in &all {
        report.throughput.push(Throughput {
            filter: site.name().to_owned(),
            policies: *policies,
            tcp_gigabits_per_second: median(bits.clone()) / 1e9,
            tcp: Ratio::of(bits, &all[0].bits),
            udp_packets_per_second: median(datagrams.clone()),
            udp: Ratio::of(datagrams, &all[0].datagrams),
        });
    }
    Ok(())
}

fn per_second(mut carry: impl FnMut() -> Result<usize, Box<dyn Error>>) -> Result<f64, Box<dyn Error>> {
    let start = Instant::now();
    let mut carried = 0;
    while start.elapsed() < ROUND {
        carried += carry()?;
    }
    Ok(carried as f64 / start.elapsed().as_secs_f64())
}

/// What was measured.
pub(crate) fn tables(all: &[Throughput]) -> Vec<(String, Table)> {
    let mut table = markdown(&[
        "packet filter",
        "policies of the pod",
        "TCP, Gbit/s",
        "against conntrack only (quartiles)",
        "UDP, packets/s",
        "against conntrack only (quartiles)",
    ]);
    let ratio = |ratio: &Ratio| {
        let Ratio { median, lower_quartile, upper_quartile } = ratio;
        format!("{median:.3} ({lower_quartile:.3} to {upper_quartile:.3})")
    };
    for row in all {
        table.add_row([
            row.filter.clone(),
            row.policies.map_or_else(|| "-".to_owned(), |policies| policies.to_string()),
            format!("{:.1}", row.tcp_gigabits_per_second),
            ratio(&row.tcp),
            format!("{:.0}", row.udp_packets_per_second),
            ratio(&row.udp),
        ]);
    }
    vec![(
        "Open connections, one processor for both ends (medians of the rounds, and of their ratios)".to_owned(),
        table,
    )]
}
