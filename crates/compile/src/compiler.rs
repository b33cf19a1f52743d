use std::sync::Arc;

use crate::cluster::{Cluster, Touched};
use crate::guard::UnknownPods;

/// Keeps what one node must enforce true to a [`Cluster`], with work that follows the change.
pub trait Compiler {
    /// What it makes.
    type Output;

    /// A compiler that has seen nothing yet. It allows unknown pods.
    fn for_node(node: Arc<str>) -> Self;

    /// The same, with another choice about unknown pods. Not to be called between two programs.
    #[must_use]
    fn with_unknown_pods(self, unknown: UnknownPods) -> Self;

    /// What the node must enforce in the state as it is now. `touched` must tell of every change since the last call.
    fn compile(&mut self, cluster: &Cluster, touched: &Touched) -> Self::Output;
}
