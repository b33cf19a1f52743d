//! How long it takes to write programs for many allowed peers into the kernel, and one more or one less of them.

use std::error::Error;
use std::thread::sleep;
use std::time::Duration;

use comfy_table::Table;
use ringfence_lab::NetNs;
use serde::Serialize;

use crate::cluster::{allowed, remote};
use crate::filter::{Enforced, Filter, Sample};
use crate::report::{Report, chain, markdown, median, percentile};

/// How often a pod comes and goes, in each size, with nftables.
const TIMES: u32 = 1_000;
/// The same with a filter whose tools are started each time.
const TIMES_WITH_TOOLS: u32 = 100;
/// Between two changes there. With iptables, one that gives rights waits until packets are through that may have seen the one
/// before; without a pause that wait is most of what is measured.
const PAUSE: Duration = Duration::from_millis(30);
/// Growth is told from this size on, if it was measured; below, there is little but fixed costs.
const GROWTH_FROM: u32 = 1_000;

/// One filter with one number of allowed peers.
#[derive(Serialize)]
pub(crate) struct Programming {
    filter: String,
    entries: u32,
    compile_from_scratch_ms: f64,
    full_load_ms: f64,
    compile_and_diff_us: f64,
    added: Times,
    removed: Times,
}

/// Writing one change until the kernel enforces it, in microseconds.
#[derive(Serialize)]
struct Times {
    median_us: f64,
    p99_us: f64,
    slowest_us: f64,
}

impl Times {
    fn of(samples: &[Sample]) -> Times {
        let all: Vec<f64> = samples.iter().map(|sample| sample.write * 1e3).collect();
        let [median_us, p99_us, slowest_us] = [50, 99, 100].map(|rank| percentile(all.clone(), rank));
        Times { median_us, p99_us, slowest_us }
    }
}

pub(crate) fn measure(entries: &[u32], filters: &[Filter], report: &mut Report) -> Result<(), Box<dyn Error>> {
    for filter in filters {
        for &count in entries {
            report.progress(&format!("programming {count} entries: {filter}"));
            let node = NetNs::create()?;
            match node.within(|| filter.enforce(allowed(count)))? {
                Ok((enforced, load)) => {
                    let figures = node.within(|| come_and_go(*filter, count, enforced, load))??;
                    report.programming.push(figures);
                }
                // Without root's rights not all sizes can be loaded.
                Err(error) => report.skipped(&format!("full load of {count}: {filter}: {}", chain(&*error))),
            }
        }
    }
    Ok(())
}

fn come_and_go(
    filter: Filter,
    entries: u32,
    mut enforced: Box<dyn Enforced>,
    load: Sample,
) -> Result<Programming, Box<dyn Error>> {
    let (times, pause) = match filter {
        Filter::Nftables => (TIMES, Duration::ZERO),
        Filter::Iptables(_) => (TIMES_WITH_TOOLS, PAUSE),
    };
    let (mut added, mut removed) = (Vec::new(), Vec::new());
    for number in entries..entries + times {
        let pod = remote(number);
        sleep(pause);
        added.push(enforced.change(vec![pod.clone()])?);
        sleep(pause);
        removed.push(enforced.delete(&pod.key())?);
    }
    let compile = added.iter().chain(&removed).map(|sample| sample.compile * 1e3).collect();
    Ok(Programming {
        filter: filter.to_string(),
        entries,
        compile_from_scratch_ms: load.compile,
        full_load_ms: load.write,
        compile_and_diff_us: median(compile),
        added: Times::of(&added),
        removed: Times::of(&removed),
    })
}

/// What was measured, and how it grows.
pub(crate) fn tables(all: &[Programming]) -> Vec<(String, Table)> {
    let mut table = markdown(&[
        "packet filter",
        "allowed entries",
        "compile from scratch, ms",
        "full load, ms",
        "one change: compile and diff, µs",
        "one added: kernel, µs",
        "p99",
        "slowest",
        "growth",
        "one removed: kernel, µs",
        "p99",
        "slowest",
        "growth",
    ]);
    for row in all {
        let base = all.iter().find(|base| base.filter == row.filter && base.entries >= GROWTH_FROM);
        let base = base.filter(|base| base.entries < row.entries);
        let growth = |of: fn(&Programming) -> f64| {
            base.map_or_else(|| "-".to_owned(), |base| format!("{:.2}", of(row) / of(base)))
        };
        let times = |times: &Times| [times.median_us, times.p99_us, times.slowest_us].map(|time| format!("{time:.1}"));
        let mut cells = vec![
            row.filter.clone(),
            row.entries.to_string(),
            format!("{:.1}", row.compile_from_scratch_ms),
            format!("{:.1}", row.full_load_ms),
            format!("{:.1}", row.compile_and_diff_us),
        ];
        cells.extend(times(&row.added));
        cells.push(growth(|row| row.added.median_us));
        cells.extend(times(&row.removed));
        cells.push(growth(|row| row.removed.median_us));
        table.add_row(cells);
    }
    vec![("Programming the kernel for one pod's allowed peers (medians unless p99)".to_owned(), table)]
}
