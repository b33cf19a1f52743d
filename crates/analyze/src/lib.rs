//! Who can reach whom, and how to show it.

mod matrix;
pub mod paths;
mod placement;
pub mod render;

pub use matrix::{Cell, End, EndKind, Matrix, Path, compile_nodes, ends};
pub use placement::{Placed, PlacementError, PlacementOptions, place};
