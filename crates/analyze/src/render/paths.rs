use std::collections::{BTreeMap, BTreeSet};

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};

use crate::paths::{PathKind, Trip};
use ringfence_model::EnforceAt;

/// How many trips of one sort are listed one by one.
const MOST_LISTED: usize = 20;

/// What came of each kind of path, with the sources that rules saw; then the trips that are not as expected, and those on
/// which the policies would have said something else had the source not been replaced.
pub fn paths(trips: &[Trip]) -> String {
    let mut kinds: BTreeMap<PathKind, Vec<&Trip>> = BTreeMap::new();
    for trip in trips {
        kinds.entry(trip.kind).or_default().push(trip);
    }
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    table.force_no_tty();
    table.set_header(["path", "tried", "passed", "as expected", "source that rules see"]);
    for (kind, trips) in &kinds {
        let count = |which: fn(&Trip) -> bool| trips.iter().filter(|trip| which(trip)).count().to_string();
        table.add_row([
            kind.name().to_owned(),
            trips.len().to_string(),
            count(|trip| trip.measured),
            count(|trip| !trip.differs()),
            sources(trips),
        ]);
    }
    for column in 1..=3 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = format!("Paths:\n{table}\n");
    let differing: Vec<&Trip> = trips.iter().filter(|trip| trip.differs()).collect();
    list(&mut text, "Not as expected", &differing, |trip| {
        if !trip.carried {
            return "the network does not carry it, even without policies".to_owned();
        }
        format!("expected {}, measured {}", word(trip.expected), word(trip.measured))
    });
    let lost: Vec<&Trip> = trips.iter().filter(|trip| trip.intended != trip.expected).collect();
    list(&mut text, "The source is lost, and with it what the policies mean", &lost, |trip| {
        let seen = trip.seen.map_or_else(String::new, |seen| seen.to_string());
        format!("{} is seen as {seen}: {} instead of {}", trip.source, word(trip.expected), word(trip.intended))
    });
    if !lost.is_empty() {
        text.push_str(&remedies(&lost));
        text.push_str("`ringfence doctor --pod-cidr CIDR` on a node names what replaces sources there.\n");
    }
    let harmless = trips.iter().filter(|trip| trip.replaced() && trip.intended == trip.expected).count();
    if harmless > 0 {
        text.push_str(&format!(
            "On {harmless} more, the destination's node sees another source than the client's, and the answer is that of \
             the true ends.\n"
        ));
    }
    text
}

/// What would give the policies their meaning back, and for how many.
fn remedies(lost: &[&Trip]) -> String {
    let mut text = String::new();
    for (at, option) in [(EnforceAt::Entry, "--enforce-at entry"), (EnforceAt::Everywhere, "--enforce-at everywhere")] {
        let count = lost.iter().filter(|trip| trip.restored_by.is_some_and(|least| least <= at)).count();
        if count > 0 {
            text.push_str(&format!("{option} restores {count} of these {}.\n", lost.len()));
        }
    }
    text
}

fn sources(trips: &[&Trip]) -> String {
    if trips.iter().all(|trip| trip.seen.is_none()) {
        return "-".to_owned();
    }
    let replaced: BTreeSet<_> = trips.iter().filter(|trip| trip.replaced()).filter_map(|trip| trip.seen).collect();
    if replaced.is_empty() {
        return "the client's".to_owned();
    }
    let shown: Vec<String> = replaced.iter().take(3).map(ToString::to_string).collect();
    let more = if replaced.len() > 3 { ", ..." } else { "" };
    let some = if trips.iter().all(|trip| trip.replaced()) { "" } else { "partly " };
    format!("{some}replaced by {}{more}", shown.join(", "))
}

fn list(text: &mut String, title: &str, trips: &[&Trip], what: impl Fn(&Trip) -> String) {
    if trips.is_empty() {
        return;
    }
    text.push_str(&format!("{title} ({}):\n", trips.len()));
    for trip in trips.iter().take(MOST_LISTED) {
        let via = trip.via.as_ref().map_or_else(String::new, |via| format!(" through {via}"));
        let Trip { from, to, protocol, port, .. } = trip;
        text.push_str(&format!("  {from} -> {to} {protocol}/{port}{via}: {}\n", what(trip)));
    }
    if trips.len() > MOST_LISTED {
        text.push_str(&format!("  and {} more (-o json has them all)\n", trips.len() - MOST_LISTED));
    }
}

fn word(allowed: bool) -> &'static str {
    if allowed { "allowed" } else { "denied" }
}
