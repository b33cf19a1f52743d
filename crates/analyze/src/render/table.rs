use std::collections::{BTreeMap, BTreeSet};

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Color, Table};
use ringfence_model::Protocol;

use super::{expected, measured};
use crate::matrix::{Cell, Matrix};

/// Which half of a matrix to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// What policies say.
    Expected,
    /// What packets did.
    Measured,
}

/// How to show a table.
#[derive(Clone, Copy, Debug)]
pub struct TableStyle {
    /// With ANSI colours.
    pub color: bool,
    /// Columns of the terminal. A matrix that would be wider gets numbered columns and a legend.
    pub width: usize,
}

/// A column of the grid: one port of one destination.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Column {
    to: usize,
    protocol: Protocol,
    port: u16,
}

impl Column {
    pub(super) fn label(self, matrix: &Matrix, separator: &str) -> String {
        let to = matrix.ends.get(self.to).map_or("", |end| end.label.as_str());
        format!("{to}{separator}{}/{}", self.protocol, self.port)
    }
}

/// The cells of a matrix by row and column.
pub(super) struct Grid {
    pub(super) columns: BTreeSet<Column>,
    cells: BTreeMap<(usize, Column), usize>,
}

impl Grid {
    pub(super) fn new(matrix: &Matrix) -> Grid {
        let mut grid = Grid { columns: BTreeSet::new(), cells: BTreeMap::new() };
        for (position, cell) in matrix.cells.iter().enumerate() {
            let column = Column { to: cell.to, protocol: cell.protocol, port: cell.port };
            grid.columns.insert(column);
            grid.cells.insert((cell.from, column), position);
        }
        grid
    }

    pub(super) fn cell<'m>(&self, matrix: &'m Matrix, from: usize, column: &Column) -> Option<&'m Cell> {
        matrix.cells.get(*self.cells.get(&(from, *column))?)
    }
}

/// The matrix as a table: a row for each source, a column for each destination port. One that is too wide gets numbered
/// columns and a legend, and if need be several tables below each other.
pub fn table(matrix: &Matrix, view: View, style: TableStyle) -> String {
    let grid = Grid::new(matrix);
    let columns: Vec<(String, Column)> =
        grid.columns.iter().map(|c| (c.label(matrix, "\n").replacen('/', "/\n", 1), *c)).collect();
    let spelled = draw(matrix, &grid, view, style, &columns);
    if fits(&spelled, style) {
        return spelled;
    }
    let mut text = String::new();
    let mut columns = Vec::new();
    for (position, column) in grid.columns.iter().enumerate() {
        text.push_str(&format!("{:>4}  {}\n", position + 1, column.label(matrix, " ")));
        columns.push(((position + 1).to_string(), *column));
    }
    let mut rest = columns.as_slice();
    while !rest.is_empty() {
        // As many columns as fit, but never none. A table with more columns is never narrower.
        let counts: Vec<usize> = (1..=rest.len()).collect();
        let fitting = counts.partition_point(|count| {
            rest.get(..*count).is_some_and(|some| fits(&draw(matrix, &grid, view, style, some), style))
        });
        let (some, after) = rest.split_at(fitting.max(1));
        text.push_str(&draw(matrix, &grid, view, style, some));
        rest = after;
    }
    text
}

fn fits(table: &str, style: TableStyle) -> bool {
    table.lines().all(|line| visible_width(line) <= style.width)
}

fn draw(matrix: &Matrix, grid: &Grid, view: View, style: TableStyle, columns: &[(String, Column)]) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    table.force_no_tty();
    if style.color {
        table.enforce_styling();
    }
    table.set_header(std::iter::once("from \\ to").chain(columns.iter().map(|(header, _)| header.as_str())));
    for (from, end) in matrix.ends.iter().enumerate() {
        let mut row = vec![comfy_table::Cell::new(&end.label)];
        for (_, column) in columns {
            row.push(match grid.cell(matrix, from, column) {
                None => comfy_table::Cell::new(if column.to == from { "." } else { "" }),
                Some(cell) => shown(cell, view),
            });
        }
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Center);
    }
    format!("{table}\n")
}

fn shown(cell: &Cell, view: View) -> comfy_table::Cell {
    let (text, good) = match view {
        View::Expected => (expected(cell), cell.allowed()),
        View::Measured => (measured(cell), cell.measured() == Some(true)),
    };
    let color = match (cell.differs(), good) {
        (true, _) => Color::Yellow,
        (false, true) => Color::Green,
        (false, false) => Color::Red,
    };
    comfy_table::Cell::new(text).fg(color)
}

/// The columns a line takes on a terminal: ANSI sequences (ESC `[` … letter) take none.
fn visible_width(line: &str) -> usize {
    let mut width = 0;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            characters.by_ref().find(char::is_ascii_alphabetic);
        } else {
            width += 1;
        }
    }
    width
}
