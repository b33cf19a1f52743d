//! What many objects repeat: names of namespaces, nodes and ports, and whole sets of labels.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use ringfence_model::{EndpointSlice, Labels, Namespace, Node, Pod, Policy};

/// How many values a pool has at least before unused ones are looked for.
const SWEEP: usize = 1024;

/// One copy of each string and of each set of labels, as long as an object has it.
#[derive(Debug, Default)]
pub(super) struct Strings {
    texts: Pool<Arc<str>>,
    labels: Pool<Labels>,
}

#[derive(Debug)]
struct Pool<T> {
    known: HashSet<T>,
    /// When it has grown to this, unused ones go.
    sweep_at: usize,
}

/// A value whose clones are one in memory.
trait Shared: Clone + Eq + Hash {
    fn is_shared(&self) -> bool;
}

impl Shared for Arc<str> {
    fn is_shared(&self) -> bool {
        Arc::strong_count(self) > 1
    }
}

impl Shared for Labels {
    fn is_shared(&self) -> bool {
        Labels::is_shared(self)
    }
}

impl Strings {
    pub(super) fn namespace(&mut self, namespace: Namespace) -> Namespace {
        Namespace { name: self.shared(namespace.name), labels: self.labels(&namespace.labels) }
    }

    pub(super) fn node(&mut self, node: Node) -> Node {
        Node { name: self.shared(node.name), ..node }
    }

    pub(super) fn pod(&mut self, mut pod: Pod) -> Pod {
        pod.namespace = self.shared(pod.namespace);
        pod.node = pod.node.map(|node| self.shared(node));
        pod.labels = self.labels(&pod.labels);
        for port in &mut pod.ports {
            port.name = port.name.take().map(|name| self.shared(name));
        }
        // They were filled one by one, and there may be 100,000 pods.
        pod.ports.shrink_to_fit();
        pod.addresses.shrink_to_fit();
        pod
    }

    pub(super) fn policy(&mut self, mut policy: Policy) -> Policy {
        policy.id.namespace = self.shared(policy.id.namespace);
        policy
    }

    pub(super) fn slice(&mut self, mut slice: EndpointSlice) -> EndpointSlice {
        slice.namespace = self.shared(slice.namespace);
        slice.service = slice.service.map(|service| self.shared(service));
        slice.endpoints.shrink_to_fit();
        slice.ports.shrink_to_fit();
        slice
    }

    fn labels(&mut self, labels: &Labels) -> Labels {
        if let Some(known) = self.labels.get(labels) {
            return known;
        }
        let texts = labels.iter().map(|(key, value)| (self.shared(key.clone()), self.shared(value.clone())));
        let labels = texts.collect();
        self.labels.shared(labels)
    }

    fn shared(&mut self, text: Arc<str>) -> Arc<str> {
        self.texts.shared(text)
    }
}

impl<T> Default for Pool<T> {
    fn default() -> Pool<T> {
        Pool { known: HashSet::new(), sweep_at: SWEEP }
    }
}

impl<T: Shared> Pool<T> {
    fn get(&self, value: &T) -> Option<T> {
        self.known.get(value).cloned()
    }

    /// The copy that all share: the first one.
    fn shared(&mut self, value: T) -> T {
        if let Some(known) = self.get(&value) {
            return known;
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(T::is_shared);
            self.sweep_at = SWEEP.max(self.known.len() * 2);
        }
        self.known.insert(value.clone());
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_strings_are_one_and_unused_ones_go() {
        let mut strings = Strings::default();
        let kept = strings.shared("kept".into());
        for number in 0..10 * SWEEP {
            strings.shared(number.to_string().into());
        }
        assert!(Arc::ptr_eq(&kept, &strings.shared("kept".into())));
        assert!(strings.texts.known.len() <= SWEEP, "{}", strings.texts.known.len());
    }

    #[test]
    fn equal_labels_are_one_and_share_texts_with_others() {
        let labels = |app: &str| Labels::from([("app".into(), app.into())]);
        let mut strings = Strings::default();
        let (web, again, db) =
            (strings.labels(&labels("web")), strings.labels(&labels("web")), strings.labels(&labels("db")));
        assert!(std::ptr::eq(&web["app"], &again["app"]));
        assert!(Arc::ptr_eq(web.keys().next().unwrap(), db.keys().next().unwrap()));
        drop((web, again));
        for number in 0..10 * SWEEP {
            strings.labels(&labels(&number.to_string()));
        }
        assert!(strings.labels.known.contains(&db));
        assert!(strings.labels.known.len() <= SWEEP && strings.texts.known.len() <= 2 * SWEEP);
    }
}
