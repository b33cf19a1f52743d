//! What was measured, for people: each filter and size, and how much more the largest cluster costs than the smallest.

use comfy_table::Table;

use super::{Effect, Figures};
use crate::report::markdown;

/// The tables with their titles; none when nothing was measured.
pub(crate) fn tables(all: &[Figures]) -> Vec<(String, Table)> {
    if all.is_empty() {
        return Vec::new();
    }
    vec![
        ("The agent as a process".to_owned(), processes(all)),
        ("While pods come, change and go, and a policy is edited each second".to_owned(), churn(all)),
        ("From the change in the API server to the first packet that it concerns".to_owned(), effects(all)),
    ]
}

fn processes(all: &[Figures]) -> Table {
    let mut table = markdown(&[
        "packet filter",
        "pods/policies/namespaces",
        "last list asked for to first refusal, ms",
        "process start to first refusal, ms",
        "processor time of that, ms",
        "resident, MB",
        "most resident, MB",
        "resident after all changes, MB",
        "most resident, MB",
    ]);
    for figures in all {
        table.add_row([
            figures.filter.clone(),
            figures.size.to_string(),
            format!("{:.0}", figures.last_list_to_refusal),
            format!("{:.0}", figures.start_to_refusal),
            format!("{:.0}", figures.start_processor),
            format!("{:.1}", figures.loaded.resident),
            format!("{:.1}", figures.loaded.peak),
            format!("{:.1}", figures.after.resident),
            format!("{:.1}", figures.after.peak),
        ]);
    }
    table
}

fn churn(all: &[Figures]) -> Table {
    let mut table = markdown(&[
        "packet filter",
        "pods/policies/namespaces",
        "changes of pods per second",
        "% of a core",
        "effect of one of them: median, ms",
        "p99, ms",
        "slowest, ms",
        "% of a core against the smallest",
    ]);
    for figures in all {
        let churn = &figures.churn;
        let growth = smallest(all, figures).map(|smallest| churn.processor_percent / smallest.churn.processor_percent);
        table.add_row([
            figures.filter.clone(),
            figures.size.to_string(),
            format!("{:.0}", churn.rate),
            format!("{:.2}", churn.processor_percent),
            format!("{:.2}", churn.effect.median),
            format!("{:.2}", churn.effect.p99),
            format!("{:.2}", churn.effect.slowest),
            ratio(growth),
        ]);
    }
    table
}

fn effects(all: &[Figures]) -> Table {
    let mut table = markdown(&[
        "packet filter",
        "change in the API server",
        "packets then",
        "pods/policies/namespaces",
        "median, ms",
        "p99, ms",
        "slowest, ms",
        "median against the smallest",
        "processor time, ms",
        "against the smallest",
    ]);
    // One kind of change after the other, so that sizes stand below each other.
    let mut filters: Vec<&String> = all.iter().map(|figures| &figures.filter).collect();
    filters.dedup();
    for filter in filters {
        let of: Vec<&Figures> = all.iter().filter(|figures| figures.filter == *filter).collect();
        let kinds = of.first().map_or(0, |figures| figures.changes.len());
        for kind in 0..kinds {
            for figures in &of {
                let Some(effect) = figures.changes.get(kind) else { continue };
                let before = smallest(all, figures).and_then(|smallest| smallest.changes.get(kind));
                let growth = |value: fn(&Effect) -> f64| before.map(|before| value(effect) / value(before));
                table.add_row([
                    filter.clone(),
                    effect.change.clone(),
                    if effect.allows { "pass" } else { "are refused" }.to_owned(),
                    figures.size.to_string(),
                    format!("{:.2}", effect.effect.median),
                    format!("{:.2}", effect.effect.p99),
                    format!("{:.2}", effect.effect.slowest),
                    ratio(growth(|effect| effect.effect.median)),
                    format!("{:.2}", effect.processor),
                    ratio(growth(|effect| effect.processor)),
                ]);
            }
        }
    }
    table
}

/// The first figures of the same filter, unless these are the ones.
fn smallest<'a>(all: &'a [Figures], of: &Figures) -> Option<&'a Figures> {
    let first = all.iter().find(|figures| figures.filter == of.filter)?;
    (first.size != of.size).then_some(first)
}

fn ratio(growth: Option<f64>) -> String {
    growth.map_or_else(|| "-".to_owned(), |growth| format!("{growth:.1}"))
}
