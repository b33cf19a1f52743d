//! Figures, as tables and as JSON.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this binary reports to people")]

use std::error::Error;

use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;
use serde::Serialize;

use crate::agent::{self, Figures};
use crate::compile::{self, Costs};
use crate::during::{self, During};
use crate::entry::{self, Entry};
use crate::filter::Sample;
use crate::growth;
use crate::hot::{self, Hot};
use crate::node::{self, NodeCosts};
use crate::programming::{self, Programming};
use crate::soak::{self, Soaked};
use crate::throughput::{self, Throughput};

/// What was measured.
#[derive(Default, Serialize)]
pub(crate) struct Report {
    pub(crate) compile: Vec<Costs>,
    pub(crate) programming: Vec<Programming>,
    pub(crate) nodes: Vec<NodeCosts>,
    pub(crate) hot: Vec<Hot>,
    pub(crate) throughput: Vec<Throughput>,
    pub(crate) entry: Vec<Entry>,
    pub(crate) during: Vec<During>,
    /// The cluster of `scale`, in words.
    scale_of: String,
    scale: Vec<Scale>,
    growth: Vec<Growth>,
    latency: Vec<Latency>,
    pub(crate) agents: Vec<Figures>,
    pub(crate) soak: Vec<Soaked>,
    skipped: Vec<String>,
}

#[derive(Serialize)]
struct Scale {
    change: String,
    filter: String,
    compile_and_diff_ms: f64,
    write_ms: f64,
    write_p99_ms: f64,
    write_ratio_to_nftables: f64,
    /// Netlink messages, or lines given to ipset and iptables-restore.
    messages: f64,
    bytes: f64,
    elements: f64,
}

#[derive(Serialize)]
struct Growth {
    filter: String,
    namespaces: Option<u16>,
    policies: Option<u16>,
    /// Whether each policy speaks of other peers.
    apart: bool,
    first_packet_us: f64,
    first_packet_ratio_to_conntrack_only: f64,
    established_us: f64,
    established_ratio_to_conntrack_only: f64,
}

#[derive(Serialize)]
struct Latency {
    filter: String,
    first_packet_us: f64,
    ratio_to_conntrack_only: f64,
}

impl Report {
    pub(crate) fn latency(&mut self, filter: &str, first_packet_us: f64, ratio_to_conntrack_only: f64) {
        self.latency.push(Latency { filter: filter.to_owned(), first_packet_us, ratio_to_conntrack_only });
    }

    pub(crate) fn scale_of(&mut self, cluster: &str) {
        cluster.clone_into(&mut self.scale_of);
    }

    /// One kind of change with one filter, and the same rounds with nftables.
    pub(crate) fn scale(&mut self, change: &str, filter: &str, samples: &[Sample], nftables: &[Sample]) {
        let all = |value: fn(&Sample) -> f64| samples.iter().map(value).collect::<Vec<_>>();
        let written = all(|sample| sample.write);
        let baseline: Vec<f64> = nftables.iter().map(|sample| sample.write).collect();
        self.scale.push(Scale {
            change: change.to_owned(),
            filter: filter.to_owned(),
            compile_and_diff_ms: median(all(|sample| sample.compile)),
            write_ms: median(written.clone()),
            write_p99_ms: percentile(written.clone(), 99),
            write_ratio_to_nftables: median(ratios(&written, &baseline)),
            messages: median(all(|sample| count(sample.applied.messages))),
            bytes: median(all(|sample| count(sample.applied.bytes))),
            elements: median(all(|sample| count(sample.applied.elements_added + sample.applied.elements_removed))),
        });
    }

    /// One filter at one size. Of both kinds of packets the time and the ratio to conntrack only.
    pub(crate) fn growth(
        &mut self,
        filter: &str,
        size: Option<growth::Size>,
        first_packet: (f64, f64),
        established: (f64, f64),
    ) {
        self.growth.push(Growth {
            filter: filter.to_owned(),
            namespaces: size.map(|size| size.namespaces),
            policies: size.map(|size| size.policies),
            apart: size.is_some_and(|size| size.apart),
            first_packet_us: first_packet.0,
            first_packet_ratio_to_conntrack_only: first_packet.1,
            established_us: established.0,
            established_ratio_to_conntrack_only: established.1,
        });
    }

    pub(crate) fn skipped(&mut self, what: &str) {
        self.skipped.push(what.to_owned());
    }

    /// Long work shows what it is doing.
    pub(crate) fn progress(&self, what: &str) {
        eprintln!("{what}");
    }

    /// The tables of what was measured.
    pub(crate) fn print(&self) {
        if !self.compile.is_empty() {
            print_tables(compile::tables(&self.compile));
        }
        if !self.programming.is_empty() {
            print_tables(programming::tables(&self.programming));
        }
        if !self.hot.is_empty() {
            print_tables(hot::tables(&self.hot));
        }
        if !self.nodes.is_empty() {
            print_tables(node::tables(&self.nodes));
        }
        if !self.scale.is_empty() {
            self.print_scale();
        }
        if !self.latency.is_empty() {
            self.print_latency();
        }
        if !self.growth.is_empty() {
            self.print_growth();
        }
        if !self.throughput.is_empty() {
            print_tables(throughput::tables(&self.throughput));
        }
        if !self.entry.is_empty() {
            print_tables(entry::tables(&self.entry));
        }
        if !self.during.is_empty() {
            print_tables(during::tables(&self.during));
        }
        if !self.agents.is_empty() {
            print_tables(agent::tables(&self.agents));
        }
        for (title, table) in soak::tables(&self.soak) {
            println!("{title}\n\n{table}\n");
        }
        for skipped in &self.skipped {
            println!("skipped: {skipped}");
        }
    }

    fn print_scale(&self) {
        let mut table = markdown(&[
            "change",
            "packet filter",
            "compile and diff, ms",
            "write, ms",
            "write p99, ms",
            "write against nftables",
            "messages or lines",
            "set members",
            "bytes",
        ]);
        // A filter that had nothing to write has no ratio.
        let ratio = |value: f64| if value.is_finite() { format!("{value:.1}") } else { "-".to_owned() };
        for row in &self.scale {
            table.add_row([
                row.change.clone(),
                row.filter.clone(),
                format!("{:.2}", row.compile_and_diff_ms),
                format!("{:.2}", row.write_ms),
                format!("{:.2}", row.write_p99_ms),
                ratio(row.write_ratio_to_nftables),
                format!("{:.0}", row.messages),
                format!("{:.0}", row.elements),
                format!("{:.0}", row.bytes),
            ]);
        }
        println!("One change at a time: {} (medians unless p99)\n\n{table}\n", self.scale_of);
    }

    fn print_latency(&self) {
        let mut table = markdown(&["packet filter", "first packet of a new UDP flow, µs", "against conntrack only"]);
        for row in &self.latency {
            table.add_row([
                row.filter.clone(),
                format!("{:.2}", row.first_packet_us),
                format!("{:.3}", row.ratio_to_conntrack_only),
            ]);
        }
        println!("Round trip (median of the rounds' medians; ratios are medians of the rounds' ratios)\n\n{table}\n");
    }

    fn print_growth(&self) {
        let mut table = markdown(&[
            "packet filter",
            "namespaces on the node",
            "policies of the pod",
            "first packet, µs",
            "against conntrack only",
            "established, µs",
            "against conntrack only",
        ]);
        let size = |value: Option<u16>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
        for row in &self.growth {
            table.add_row([
                row.filter.clone(),
                size(row.namespaces),
                size(row.policies) + if row.apart { ", peers all different" } else { "" },
                format!("{:.2}", row.first_packet_us),
                format!("{:.3}", row.first_packet_ratio_to_conntrack_only),
                format!("{:.2}", row.established_us),
                format!("{:.3}", row.established_ratio_to_conntrack_only),
            ]);
        }
        println!("Round trip of a UDP packet, matching rule last (medians, as above)\n\n{table}\n");
    }

    pub(crate) fn json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self)
    }
}

fn print_tables(tables: Vec<(String, Table)>) {
    for (title, table) in tables {
        println!("{title}\n\n{table}\n");
    }
}

pub(crate) fn markdown(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(header.to_vec());
    table
}

pub(crate) fn median(values: Vec<f64>) -> f64 {
    percentile(values, 50)
}

/// The smallest value that `percent` per cent of the values do not exceed; 0 of none.
pub(crate) fn percentile(mut values: Vec<f64>, percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() * percent).div_ceil(100);
    values.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

/// One by one, as far as there are values of both.
pub(crate) fn ratios(values: &[f64], baseline: &[f64]) -> Vec<f64> {
    values.iter().zip(baseline).map(|(value, base)| value / base).collect()
}

/// No count here comes near the size where this is not exact.
#[allow(clippy::cast_precision_loss, reason = "for people")]
fn count(number: usize) -> f64 {
    number as f64
}

pub(crate) fn complain(error: &dyn Error) {
    eprintln!("bench: {}", chain(error));
}

/// An error and what caused it, one after the other.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

/// Whether the process has real root's rights, as far as its user says.
pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_few_values_are_among_them() {
        assert_eq!(percentile(vec![3.0, 1.0, 2.0], 99), 3.0);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(Vec::new()), 0.0);
        assert_eq!(percentile((1..=200).map(f64::from).collect(), 99), 198.0);
    }
}
