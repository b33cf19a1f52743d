//! Positions in descriptions, so that none is taken for another.

/// A node by its position in [`NetworkSpec::nodes`](crate::NetworkSpec::nodes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeIndex(pub usize);

/// An endpoint by its position in [`NetworkSpec::endpoints`](crate::NetworkSpec::endpoints).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointIndex(pub usize);
