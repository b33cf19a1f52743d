//! What the kernel side costs on the node of a large cluster with a realistic mix of policies: writing all of it, writing each
//! kind of change, and the kernel's memory for the tables.

use std::collections::BTreeMap;
use std::error::Error;
use std::thread::sleep;
use std::time::Duration;

use comfy_table::Table;
use ringfence_lab::NetNs;
use serde::Serialize;

use crate::compile::{Change, Event, Size, changes};
use crate::filter::{Enforced, Filter, Loaded, Sample};
use crate::report::{Report, chain, markdown, median, percentile};

/// How often everything is written next to what is there.
const RELOADS: usize = 5;
/// How often the memory is taken.
const WEIGHINGS: usize = 3;
/// How many tables are weighed at once: what else the machine does counts for less then.
const COPIES: usize = 8;
/// The same where writing takes long.
const COPIES_WITH_TOOLS: usize = 3;
/// By how much less often changes are made there.
const LESS_OFTEN: u32 = 3;
/// The kernel frees most of what was deleted a moment later.
const SETTLING: Duration = Duration::from_millis(400);

/// One size with one filter.
#[derive(Serialize)]
pub(crate) struct NodeCosts {
    filter: String,
    size: Size,
    first_load: Writing,
    reload: Writing,
    /// Kernel memory of the tables, in millions of bytes: the median, the least and the most of the weighings.
    kernel_mb: [f64; 3],
    changes: BTreeMap<Event, Writing>,
}

/// Writing, without compiling. Medians unless named otherwise.
#[derive(Serialize)]
struct Writing {
    wall_ms: f64,
    wall_p99_ms: f64,
    processor_ms: f64,
    /// Netlink messages, or lines given to ipset and iptables-restore.
    messages: f64,
    bytes: f64,
    elements: f64,
}

impl Writing {
    fn of(samples: &[Sample]) -> Writing {
        let all = |value: fn(&Sample) -> f64| samples.iter().map(value).collect::<Vec<_>>();
        Writing {
            wall_ms: median(all(|sample| sample.write)),
            wall_p99_ms: percentile(all(|sample| sample.write), 99),
            processor_ms: median(all(|sample| sample.processor)),
            messages: median(all(|sample| sample.applied.messages as f64)),
            bytes: median(all(|sample| sample.applied.bytes as f64)),
            elements: median(all(|sample| (sample.applied.elements_added + sample.applied.elements_removed) as f64)),
        }
    }
}

pub(crate) fn measure(
    sizes: &[Size],
    rounds: u32,
    filters: &[Filter],
    report: &mut Report,
) -> Result<(), Box<dyn Error>> {
    for size in sizes {
        for filter in filters {
            report.progress(&format!("node: {size} pods/policies/namespaces: {filter}"));
            match costs(*filter, *size, rounds) {
                Ok(costs) => report.nodes.push(costs),
                // Without root's rights not all sizes can be loaded.
                Err(error) => report.skipped(&format!("node of {size}: {filter}: {}", chain(&*error))),
            }
        }
    }
    Ok(())
}

fn costs(filter: Filter, size: Size, rounds: u32) -> Result<NodeCosts, Box<dyn Error>> {
    let mix = size.mix();
    let node = NetNs::create()?;
    let (mut enforced, first) = node.within(|| filter.enforce(mix.objects().collect()))??;
    let (copies, rounds) = match filter {
        Filter::Nftables => (COPIES, rounds),
        Filter::Iptables(_) => (COPIES_WITH_TOOLS, rounds.div_ceil(LESS_OFTEN)),
    };
    let kernel_mb = weigh(&*enforced, copies)?;
    let mut reloads = Vec::new();
    for _ in 0..RELOADS {
        reloads.push(node.within(|| enforced.reload())??);
    }
    let mut samples: BTreeMap<Event, Vec<Sample>> = BTreeMap::new();
    for round in 0..rounds {
        for (event, change) in changes(&mix, round) {
            let sample = node.within(|| match change {
                Change::Apply(object) => enforced.change(vec![object]),
                Change::Delete(key) => enforced.delete(&key),
            })??;
            // What does not concern the node is not written, and says nothing about writing.
            if sample.applied.messages > 0 {
                samples.entry(event).or_default().push(sample);
            }
        }
    }
    Ok(NodeCosts {
        filter: filter.to_string(),
        size,
        first_load: Writing::of(&[first]),
        reload: Writing::of(&reloads),
        kernel_mb,
        changes: samples.into_iter().map(|(event, samples)| (event, Writing::of(&samples))).collect(),
    })
}

/// The kernel's memory for the tables, in millions of bytes: how much less there is in use without several copies of them,
/// each in a network namespace of its own that was there before, divided by their number.
///
/// Counted is what the kernel cannot give back (`SUnreclaim` of `/proc/meminfo`, which has large allocations, too), what it
/// has mapped (`VmallocUsed`: large hash tables) and what it has for each processor (`Percpu`). These are of the whole
/// machine, so all that others do meanwhile is in it.
fn weigh(enforced: &dyn Enforced, copies: usize) -> Result<[f64; 3], Box<dyn Error>> {
    let nodes: Vec<NetNs> = (0..copies).map(|_| NetNs::create()).collect::<Result<_, _>>()?;
    let mut differences = Vec::new();
    for weighing in 0..=WEIGHINGS {
        let mut loaded: Vec<Box<dyn Loaded>> = Vec::new();
        for node in &nodes {
            loaded.push(node.within(|| enforced.copy())??);
        }
        sleep(SETTLING);
        let with = kernel_memory()?;
        for (node, tables) in nodes.iter().zip(&mut loaded) {
            node.within(|| tables.clear())??;
        }
        sleep(SETTLING);
        // The first time makes what stays: modules, and the tables of iptables without rules.
        if weighing > 0 {
            differences.push((with - kernel_memory()?) / copies as f64 / 1e6);
        }
        drop(loaded);
    }
    Ok([50, 1, 100].map(|rank| percentile(differences.clone(), rank)))
}

/// In bytes.
fn kernel_memory() -> Result<f64, Box<dyn Error>> {
    let info = std::fs::read_to_string("/proc/meminfo")?;
    let mut total = 0.0;
    for name in ["SUnreclaim:", "VmallocUsed:", "Percpu:"] {
        let line = info.lines().find_map(|line| line.strip_prefix(name)).ok_or("a line of /proc/meminfo is missing")?;
        total += line.trim().trim_end_matches(" kB").parse::<f64>()? * 1024.0;
    }
    Ok(total)
}

/// What was measured: loads at each size, and each change.
pub(crate) fn tables(all: &[NodeCosts]) -> Vec<(String, Table)> {
    let mut loads = markdown(&[
        "pods/policies/namespaces",
        "packet filter",
        "full load, nothing there, ms",
        "full load next to the old one, ms",
        "processor, ms",
        "messages or lines",
        "set members",
        "bytes",
        "kernel memory, MB (least, most)",
    ]);
    for costs in all {
        let [middle, least, most] = costs.kernel_mb;
        loads.add_row([
            costs.size.to_string(),
            costs.filter.clone(),
            format!("{:.1}", costs.first_load.wall_ms),
            format!("{:.1}", costs.reload.wall_ms),
            format!("{:.1}", costs.reload.processor_ms),
            format!("{:.0}", costs.reload.messages),
            format!("{:.0}", costs.reload.elements),
            format!("{:.0}", costs.reload.bytes),
            format!("{middle:.2} ({least:.2}, {most:.2})"),
        ]);
    }
    let mut tables = vec![("Writing all of a node's program (medians but for the first load)".to_owned(), loads)];
    let mut filters: Vec<&String> = all.iter().map(|costs| &costs.filter).collect();
    filters.sort();
    filters.dedup();
    for filter in filters {
        let of: Vec<&NodeCosts> = all.iter().filter(|costs| costs.filter == *filter).collect();
        let (Some(smallest), Some(largest)) = (of.first(), of.last()) else {
            continue;
        };
        let mut header = vec!["change".to_owned()];
        header.extend(of.iter().map(|costs| format!("{}, ms", costs.size)));
        header.extend(["growth of the median", "messages or lines", "set members"].map(str::to_owned));
        let mut table = markdown(&header.iter().map(String::as_str).collect::<Vec<_>>());
        for (event, writing) in &largest.changes {
            let mut row = vec![event.to_string()];
            row.extend(of.iter().map(|costs| {
                let writing = costs.changes.get(event);
                writing.map_or_else(String::new, |w| format!("{:.3} / {:.3}", w.wall_ms, w.wall_p99_ms))
            }));
            let before = smallest.changes.get(event).map_or(f64::NAN, |writing| writing.wall_ms);
            row.push(format!("{:.1}", writing.wall_ms / before));
            row.push(format!("{:.0}", writing.messages));
            row.push(format!("{:.0}", writing.elements));
            table.add_row(row);
        }
        tables.push((format!("Writing one change, {filter} (median / p99)"), table));
    }
    tables
}
