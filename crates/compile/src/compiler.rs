use std::sync::Arc;

use crate::cluster::{Cluster, Touched};

/// Keeps what one node must enforce true to a [`Cluster`], with work that follows the change.
pub trait Compiler {
    /// What it makes.
    type Output;

    /// A compiler that has seen nothing yet.
    fn for_node(node: Arc<str>) -> Self;

    /// What the node must enforce in the state as it is now. `touched` must tell of every change since the last call.
    fn compile(&mut self, cluster: &Cluster, touched: &Touched) -> Self::Output;
}
