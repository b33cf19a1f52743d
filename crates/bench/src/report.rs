//! Figures, as tables and as JSON.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this binary reports to people")]

use std::error::Error;

use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;
use serde::Serialize;

/// What was measured.
#[derive(Default, Serialize)]
pub(crate) struct Report {
    programming: Vec<Programming>,
    latency: Vec<Latency>,
    skipped: Vec<String>,
}

#[derive(Serialize)]
struct Programming {
    entries: u32,
    compile_from_scratch_ms: f64,
    full_load_ms: f64,
    add_one_compile_and_diff_us: f64,
    add_one_kernel_us: f64,
    add_one_kernel_p99_us: f64,
}

#[derive(Serialize)]
struct Latency {
    filter: String,
    first_packet_us: f64,
    ratio_to_conntrack_only: f64,
}

impl Report {
    pub(crate) fn programming(&mut self, entries: u32, compile: f64, load: f64, add: f64, kernel: f64, p99: f64) {
        self.programming.push(Programming {
            entries,
            compile_from_scratch_ms: compile,
            full_load_ms: load,
            add_one_compile_and_diff_us: add,
            add_one_kernel_us: kernel,
            add_one_kernel_p99_us: p99,
        });
    }

    pub(crate) fn latency(&mut self, filter: &str, first_packet_us: f64, ratio_to_conntrack_only: f64) {
        self.latency.push(Latency { filter: filter.to_owned(), first_packet_us, ratio_to_conntrack_only });
    }

    pub(crate) fn skipped(&mut self, what: &str) {
        self.skipped.push(what.to_owned());
    }

    /// Long work shows what it is doing.
    pub(crate) fn progress(&self, what: &str) {
        eprintln!("{what}");
    }

    pub(crate) fn print(&self) {
        let mut table = markdown(&[
            "allowed entries",
            "compile from scratch, ms",
            "full load, ms",
            "add one: compile and diff, µs",
            "add one: kernel call, µs",
            "add one: kernel call p99, µs",
        ]);
        for row in &self.programming {
            table.add_row([
                row.entries.to_string(),
                format!("{:.1}", row.compile_from_scratch_ms),
                format!("{:.1}", row.full_load_ms),
                format!("{:.1}", row.add_one_compile_and_diff_us),
                format!("{:.1}", row.add_one_kernel_us),
                format!("{:.1}", row.add_one_kernel_p99_us),
            ]);
        }
        println!("Programming the kernel (medians unless p99)\n\n{table}\n");
        let mut table = markdown(&["packet filter", "first packet of a new UDP flow, µs", "against conntrack only"]);
        for row in &self.latency {
            table.add_row([
                row.filter.clone(),
                format!("{:.2}", row.first_packet_us),
                format!("{:.3}", row.ratio_to_conntrack_only),
            ]);
        }
        println!("Round trip (median of the rounds' medians; ratios are medians of the rounds' ratios)\n\n{table}");
        for skipped in &self.skipped {
            println!("\nskipped: {skipped}");
        }
    }

    pub(crate) fn json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self)
    }
}

fn markdown(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(header.to_vec());
    table
}

pub(crate) fn median(values: Vec<f64>) -> f64 {
    percentile(values, 50)
}

/// The value that `percent` per cent of the values do not exceed; 0 of none.
pub(crate) fn percentile(mut values: Vec<f64>, percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values.get(last * percent / 100).copied().unwrap_or(0.0)
}

pub(crate) fn complain(error: &dyn Error) {
    eprintln!("bench: {error}");
}

/// Whether the process has real root's rights, as far as its user says.
pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}
