//! Who can reach whom, and how to show it.

mod matrix;
pub mod paths;
mod placement;
pub mod render;
mod slices;

pub use matrix::{Cell, End, EndKind, Matrix, Path, compile_nodes, ends};
pub use placement::{Placed, PlacementError, PlacementOptions, place};
pub use slices::add_endpoint_slices;
