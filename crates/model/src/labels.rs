use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The labels of an object, key to value.
pub type Labels = BTreeMap<Arc<str>, Arc<str>>;

/// A label selector as it was written. It matches when every entry of both lists holds; an empty one matches all.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    /// `matchLabels`: the key is present with exactly this value.
    pub match_labels: BTreeMap<Arc<str>, Arc<str>>,
    /// `matchExpressions`, in the order written.
    pub match_expressions: Vec<Requirement>,
}

/// One entry of `matchExpressions`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    /// The label key it looks at.
    pub key: Arc<str>,
    /// What must hold for that key.
    pub operator: Operator,
}

/// The operator of a [`Requirement`]. `NotIn` and `DoesNotExist` hold when the key is absent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// The key is present with one of these values.
    In(BTreeSet<Arc<str>>),
    /// The key is absent, or its value is none of these.
    NotIn(BTreeSet<Arc<str>>),
    /// The key is present.
    Exists,
    /// The key is absent.
    DoesNotExist,
}
