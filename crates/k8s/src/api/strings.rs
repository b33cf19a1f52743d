//! Strings that many objects repeat: label keys and values, names of namespaces, nodes and ports.

use std::collections::HashSet;
use std::sync::Arc;

use ringfence_model::{Labels, Namespace, Node, Pod, Policy};

/// How many strings there are at least before unused ones are looked for.
const SWEEP: usize = 1024;

/// One copy of each string, as long as an object has it.
#[derive(Debug, Default)]
pub(super) struct Strings {
    known: HashSet<Arc<str>>,
    /// When it has grown to this, unused ones go.
    sweep_at: usize,
}

impl Strings {
    pub(super) fn namespace(&mut self, namespace: Namespace) -> Namespace {
        Namespace { name: self.shared(namespace.name), labels: self.labels(namespace.labels) }
    }

    pub(super) fn node(&mut self, node: Node) -> Node {
        Node { name: self.shared(node.name), ..node }
    }

    pub(super) fn pod(&mut self, mut pod: Pod) -> Pod {
        pod.namespace = self.shared(pod.namespace);
        pod.node = pod.node.map(|node| self.shared(node));
        pod.labels = self.labels(pod.labels);
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

    fn labels(&mut self, labels: Labels) -> Labels {
        labels.into_iter().map(|(key, value)| (self.shared(key), self.shared(value))).collect()
    }

    fn shared(&mut self, text: Arc<str>) -> Arc<str> {
        if let Some(known) = self.known.get(&text) {
            return known.clone();
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.sweep_at = SWEEP.max(self.known.len() * 2);
        }
        self.known.insert(text.clone());
        text
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
        assert!(strings.known.len() <= SWEEP, "{}", strings.known.len());
    }
}
