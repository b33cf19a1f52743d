use std::sync::Arc;

use ringfence_model::Enforcement;

use crate::cluster::{Cluster, Touched};
use crate::guard::UnknownPods;

/// Keeps what one node must enforce true to a [`Cluster`], with work that follows the change.
pub trait Compiler {
    /// What it makes.
    type Output;

    /// A compiler that has seen nothing yet. It allows unknown pods, and enforces at the destination.
    fn for_node(node: Arc<str>) -> Self;

    /// The same, with another choice about unknown pods. Not to be called between two programs.
    #[must_use]
    fn with_unknown_pods(self, unknown: UnknownPods) -> Self;

    /// The same, with another choice about where policies are enforced. Not to be called between two programs.
    #[must_use]
    fn with_enforcement(self, enforcement: Enforcement) -> Self;

    /// What the node must enforce in the state as it is now. `touched` must tell of every change since the last call.
    fn compile(&mut self, cluster: &Cluster, touched: &Touched) -> Self::Output;
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;

    use arbitrary::Unstructured;
    use ringfence_model::ObjectKey;
    use ringfence_scenario::Event;

    use super::*;

    /// What a compiler keeps follows from what there is: when all is gone, nothing is left. `check` is shown the compiler
    /// then, and what to say if something is.
    pub(crate) fn nothing_is_left_of_what_is_gone<C: Compiler>(check: impl Fn(&C, &str)) {
        for seed in 0..100 {
            let bytes = ringfence_scenario::bytes(seed, 20_000);
            let events = ringfence_scenario::events(&mut Unstructured::new(&bytes), 80).unwrap();
            let mut cluster = Cluster::new();
            let mut compiler = C::for_node("node-1".into());
            let mut keys: BTreeSet<ObjectKey> = BTreeSet::new();
            let mut step = |cluster: &mut Cluster, event: &Event| {
                let mut touched = Touched::default();
                match event {
                    Event::Apply(object) => cluster.apply(object.clone(), &mut touched).unwrap(),
                    Event::Delete(key) => cluster.delete(key, &mut touched),
                }
                compiler.compile(cluster, &touched);
            };
            for event in &events {
                step(&mut cluster, event);
                if let Event::Apply(object) = event {
                    keys.insert(object.key());
                }
            }
            // In an order that does not follow from the kind.
            let mut keys: Vec<ObjectKey> = keys.into_iter().collect();
            keys.sort_by_key(|key| format!("{key:?}").bytes().rev().collect::<Vec<u8>>());
            for key in keys {
                step(&mut cluster, &Event::Delete(key));
            }
            assert!(cluster.is_empty(), "seed {seed}");
            check(&compiler, &format!("seed {seed}"));
        }
    }
}
