use std::collections::{BTreeMap, BTreeSet};
use std::ops::Index;
use std::sync::Arc;

/// The labels of an object, key to value, in the order of the keys.
///
/// They never change: an object with other labels has other `Labels`. Cloning shares them, which is why 100 pods of one
/// Deployment can have theirs in one place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels(Arc<[(Arc<str>, Arc<str>)]>);

impl Labels {
    /// No labels.
    pub fn new() -> Labels {
        Labels::from_iter([])
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Arc<str>> {
        let position = self.0.binary_search_by(|(known, _)| (**known).cmp(key)).ok()?;
        self.0.get(position).map(|(_, value)| value)
    }

    /// The same labels and one more, which replaces one with the same key.
    #[must_use]
    pub fn with(&self, key: impl Into<Arc<str>>, value: impl Into<Arc<str>>) -> Labels {
        self.0.iter().cloned().chain([(key.into(), value.into())]).collect()
    }

    /// Whether there is a label with this key.
    pub fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Keys and values, in the order of the keys.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&Arc<str>, &Arc<str>)> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    /// The keys, in order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &Arc<str>> {
        self.iter().map(|(key, _)| key)
    }

    /// Whether there are clones of it, which share its memory.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Default for Labels {
    fn default() -> Labels {
        Labels::new()
    }
}

/// Of two labels with the same key the later one counts.
impl FromIterator<(Arc<str>, Arc<str>)> for Labels {
    fn from_iter<T: IntoIterator<Item = (Arc<str>, Arc<str>)>>(labels: T) -> Labels {
        let sorted: BTreeMap<_, _> = labels.into_iter().collect();
        Labels(sorted.into_iter().collect())
    }
}

impl<const N: usize> From<[(Arc<str>, Arc<str>); N]> for Labels {
    fn from(labels: [(Arc<str>, Arc<str>); N]) -> Labels {
        labels.into_iter().collect()
    }
}

impl Index<&str> for Labels {
    type Output = Arc<str>;

    /// # Panics
    /// When there is no such label.
    #[allow(clippy::expect_used, reason = "what indexing is known to do")]
    fn index(&self, key: &str) -> &Arc<str> {
        self.get(key).expect("no such label")
    }
}

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
