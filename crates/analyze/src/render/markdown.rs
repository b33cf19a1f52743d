use std::fmt::Write as _;

use super::table::Grid;
use super::{View, expected, measured};
use crate::matrix::Matrix;

/// The matrix as a Markdown table: a row for each source, a column for each destination port.
pub fn markdown(matrix: &Matrix, view: View) -> String {
    let grid = Grid::new(matrix);
    let mut text = String::from("| from \\ to |");
    for column in &grid.columns {
        let _ = write!(text, " {} |", column.label(matrix, " "));
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(grid.columns.len()));
    text.push('\n');
    for (from, end) in matrix.ends.iter().enumerate() {
        let _ = write!(text, "| {} |", end.label);
        for column in &grid.columns {
            let shown = grid.cell(matrix, from, column).map(|cell| match view {
                View::Expected => expected(cell),
                View::Measured => measured(cell),
            });
            let _ = write!(text, " {} |", shown.unwrap_or_default());
        }
        text.push('\n');
    }
    text
}
