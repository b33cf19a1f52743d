//! A [`Matrix`] and what came of paths, as text.

mod csv;
mod json;
mod markdown;
mod paths;
mod table;

pub use csv::csv;
pub use json::{json, json_with_paths};
pub use markdown::markdown;
pub use paths::paths;
pub use table::{TableStyle, View, table};

use crate::matrix::{Cell, Matrix};

/// What the words in a table mean.
pub const LEGEND: &str =
    "yes: may connect; no (E): the source's egress refuses; no (I): the destination's ingress refuses";

/// Whether what was measured is what was expected: one sentence, then a line for each path that differs.
pub fn comparison(matrix: &Matrix) -> String {
    let mut differing = String::new();
    let (mut probes, mut differences, mut replaced) = (0, 0, 0);
    for cell in &matrix.cells {
        for path in &cell.paths {
            probes += usize::from(path.measured.is_some());
            replaced += usize::from(path.as_seen.is_some_and(|as_seen| as_seen != path.allowed()));
            if path.differs() {
                differences += 1;
                let label = |end: usize| matrix.ends.get(end).map_or("?", |end| end.label.as_str());
                let word = |yes: bool| if yes { "allowed" } else { "denied" };
                differing.push_str(&format!(
                    "  {} -> {} {}/{} ({} -> {}): expected {}, measured {}\n",
                    label(cell.from),
                    label(cell.to),
                    cell.protocol,
                    cell.port,
                    path.source,
                    path.destination,
                    word(path.allowed()),
                    word(path.measured == Some(true)),
                ));
            }
        }
    }
    if differences == 0 && replaced > 0 {
        return format!(
            "{probes} connections tried, {replaced} not as expected because the network replaces the source (see the paths).\n"
        );
    }
    if differences == 0 {
        return format!("The two agree: {probes} connections tried, {probes} as expected.\n");
    }
    format!("They differ: {differences} of {probes} connections are not as expected.\n{differing}")
}

/// What one cell says, in a word or two.
fn expected(cell: &Cell) -> String {
    let Some(path) = cell.path() else { return String::new() };
    match (path.egress, path.ingress) {
        (true, true) => "yes".to_owned(),
        (false, true) => "no (E)".to_owned(),
        (true, false) => "no (I)".to_owned(),
        (false, false) => "no (E,I)".to_owned(),
    }
}

fn measured(cell: &Cell) -> String {
    let word = match cell.measured() {
        None => "-",
        Some(true) => "yes",
        Some(false) => "no",
    };
    if cell.differs() { format!("{word} !") } else { word.to_owned() }
}
