//! From terms to the pod classes they select and back, without looking at all of either.
//!
//! A term demands something that few pods have: a label, a port's number, a namespace. It is filed under that demand, its
//! *handle*; a class looks under everything that it has. Whether a term that was found selects the class is asked in full.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use ringfence_model::{Labels, Protocol};

use crate::cluster::Cluster;
use crate::matcher::Matcher;
use crate::pod_class::{PodClassId, PodTraits, take};
use crate::terms::{NAME_LABEL, Namespaces, PodTerm, Term};

/// Something that all pods have that a term selects.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Handle {
    /// A namespace, and a label.
    Labelled(Arc<str>, Arc<str>, Arc<str>),
    /// A namespace.
    Namespace(Arc<str>),
    /// A label, in whatever namespace.
    Label(Arc<str>, Arc<str>),
    /// A label of the namespace.
    NamespaceLabel(Arc<str>, Arc<str>),
    /// A port's protocol, name and number.
    Port(Protocol, Arc<str>, u16),
    /// Nothing in particular.
    Nothing,
}

/// Terms by what they demand, each under a name of the caller's.
pub(crate) struct TermIndex<I> {
    by_handle: HashMap<Handle, BTreeSet<I>>,
}

impl<I> Default for TermIndex<I> {
    fn default() -> TermIndex<I> {
        TermIndex { by_handle: HashMap::new() }
    }
}

impl<I: Ord + Copy> TermIndex<I> {
    pub(crate) fn insert(&mut self, id: I, term: &Term) {
        for handle in handles(term) {
            self.by_handle.entry(handle).or_default().insert(id);
        }
    }

    pub(crate) fn remove(&mut self, id: I, term: &Term) {
        for handle in handles(term) {
            take(&mut self.by_handle, &handle, &id);
        }
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.by_handle.is_empty()
    }

    /// Terms among which are all that select pods with these traits. A term can come more than once.
    pub(crate) fn candidates(&self, pod: &PodTraits, namespace: Option<&Labels>) -> Vec<I> {
        let mut found = Vec::new();
        let mut look = |handle: Handle| found.extend(self.by_handle.get(&handle).into_iter().flatten());
        for (key, value) in pod.labels.iter() {
            look(Handle::Labelled(pod.namespace.clone(), key.clone(), value.clone()));
            look(Handle::Label(key.clone(), value.clone()));
        }
        for (protocol, name, number) in &pod.named_ports {
            look(Handle::Port(*protocol, name.clone(), *number));
        }
        look(Handle::Namespace(pod.namespace.clone()));
        match namespace {
            Some(labels) => {
                labels.iter().for_each(|(key, value)| look(Handle::NamespaceLabel(key.clone(), value.clone())));
            }
            // Of a namespace that is not known its name is.
            None => look(Handle::NamespaceLabel(NAME_LABEL.into(), pod.namespace.clone())),
        }
        look(Handle::Nothing);
        found
    }
}

fn handles(term: &Term) -> Vec<Handle> {
    match term {
        Term::Anyone | Term::Block(_) => Vec::new(),
        Term::Pods(PodTerm { namespaces, pods }) => match (namespaces, pods.demand()) {
            (Namespaces::One(name), Some((key, values))) => {
                values.iter().map(|value| Handle::Labelled(name.clone(), key.clone(), value.clone())).collect()
            }
            (Namespaces::One(name), None) => vec![Handle::Namespace(name.clone())],
            (Namespaces::Matching(_), Some((key, values))) => {
                values.iter().map(|value| Handle::Label(key.clone(), value.clone())).collect()
            }
            (Namespaces::Matching(namespaces), None) => match namespaces.demand() {
                Some((key, values)) => {
                    values.iter().map(|value| Handle::NamespaceLabel(key.clone(), value.clone())).collect()
                }
                None => vec![Handle::Nothing],
            },
        },
        Term::Serving(term) => {
            term.names().map(|name| Handle::Port(term.protocol, name.clone(), term.number)).collect()
        }
    }
}

/// The classes of pods that a term selects.
pub(crate) fn classes_of(cluster: &Cluster, term: &Term) -> BTreeSet<PodClassId> {
    let mut found = match term {
        Term::Anyone | Term::Block(_) => BTreeSet::new(),
        Term::Pods(term) => candidates(cluster, term),
        Term::Serving(term) => {
            let with = |name| cluster.classes().with_port(term.protocol, name, term.number);
            term.names().flat_map(with).collect()
        }
    };
    found.retain(|id| {
        let class = cluster.classes().get(*id);
        class.is_some_and(|class| term.selects(&class.traits, cluster.namespace_labels(&class.traits.namespace)))
    });
    found
}

/// Classes among which are all that a term selects.
fn candidates(cluster: &Cluster, PodTerm { namespaces, pods }: &PodTerm) -> BTreeSet<PodClassId> {
    let classes = cluster.classes();
    // The classes with the label that is demanded, by namespace; one entry for each value.
    let labelled: Option<Vec<_>> =
        pods.demand().map(|(key, values)| values.iter().filter_map(|value| classes.with_label(key, value)).collect());
    let places = match namespaces {
        Namespaces::One(name) => Some(BTreeSet::from([name.clone()])),
        Namespaces::Matching(matcher) => named_by(cluster, matcher),
    };
    match (places, labelled) {
        (None, None) => classes.iter().map(|(id, _)| id).collect(),
        (None, Some(labelled)) => labelled.into_iter().flat_map(HashMap::values).flatten().copied().collect(),
        (Some(places), None) => places.iter().flat_map(|name| classes.in_namespace(name)).collect(),
        (Some(places), Some(labelled)) => {
            let mut found = BTreeSet::new();
            for by_namespace in labelled {
                if by_namespace.len() < places.len() {
                    let here = by_namespace.iter().filter(|(name, _)| places.contains(*name));
                    found.extend(here.flat_map(|(_, classes)| classes));
                } else {
                    found.extend(places.iter().filter_map(|name| by_namespace.get(name)).flatten());
                }
            }
            found
        }
    }
}

/// Namespaces among which are all that a selector matches; nothing when it demands no label.
fn named_by(cluster: &Cluster, matcher: &Matcher) -> Option<BTreeSet<Arc<str>>> {
    let (key, values) = matcher.demand()?;
    let known = values.iter().filter_map(|value| cluster.namespaces_with(key, value)).flatten();
    // Of a namespace that is not known its name is.
    let unknown = values.iter().filter(|_| **key == *NAME_LABEL);
    Some(known.chain(unknown).cloned().collect())
}
