//! Who is in the sets of pods, kept true with work that follows the change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use ringfence_model::Protocol;

use super::described::{PortName, Sources};
use super::{AclSet, Members, SetId};
use crate::cluster::Cluster;
use crate::pod_class::{PodClass, PodClassId};
use crate::selection::{TermIndex, classes_of};
use crate::terms::{Term, TermId};

/// The sets of a list.
pub(super) type Sets = OrdMap<SetId, AclSet>;

/// Pod classes, and where they belonged as far as that is known.
pub(super) type Affected = BTreeMap<PodClassId, Option<Arc<Places>>>;

/// The members of some of the sets of a list. A set belongs to one population only.
#[derive(Default)]
pub(super) struct Population {
    sources: HashMap<TermId, Source>,
    index: TermIndex<TermId>,
    /// The sources whose pods belong in other sets than before.
    changed: BTreeSet<TermId>,
    /// A memo: pod class ids are never used twice.
    by_class: HashMap<PodClassId, Arc<Places>>,
    /// Where addresses are now. Never empty.
    by_address: HashMap<IpAddr, Arc<Places>>,
}

/// Pods, and the sets they belong in.
struct Source {
    term: Term,
    sets: BTreeMap<SetId, Belonging>,
}

/// How pods belong in a set, and how many homes say so.
struct Belonging {
    port: Option<PortName>,
    holders: usize,
}

/// The places of one address in sets.
pub(super) type Places = BTreeSet<Place>;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    Address(SetId),
    Endpoint(SetId, Protocol, u16),
}

impl Population {
    /// Takes note of who belongs where according to one home, in place of what the same home said before.
    pub(super) fn describe(&mut self, after: &Sources, before: &Sources) {
        for (pods, sets) in after {
            let term = Term::Pods(pods.clone());
            let id = term.id();
            let source = self.sources.entry(id).or_insert_with(|| {
                self.index.insert(id, &term);
                Source { term, sets: BTreeMap::new() }
            });
            for (set, port) in sets {
                let belonging = source.sets.entry(*set).or_insert_with(|| Belonging { port: port.clone(), holders: 0 });
                if belonging.holders == 0 {
                    self.changed.insert(id);
                }
                belonging.holders += 1;
            }
        }
        for (pods, sets) in before {
            let id = Term::Pods(pods.clone()).id();
            let Some(source) = self.sources.get_mut(&id) else { continue };
            for set in sets.keys() {
                let Some(belonging) = source.sets.get_mut(set) else { continue };
                belonging.holders -= 1;
                if belonging.holders == 0 {
                    source.sets.remove(set);
                    self.changed.insert(id);
                }
            }
        }
    }

    /// Forgets where the classes belong that some source has changed for. Returns them, with where they belonged. Sources
    /// that say nothing any more go.
    pub(super) fn forget_affected(&mut self, cluster: &Cluster) -> Affected {
        let mut affected = BTreeSet::new();
        for id in std::mem::take(&mut self.changed) {
            let Some(source) = self.sources.get(&id) else { continue };
            affected.extend(classes_of(cluster, &source.term));
            if source.sets.is_empty()
                && let Some(source) = self.sources.remove(&id)
            {
                self.index.remove(id, &source.term);
            }
        }
        affected.into_iter().map(|id| (id, self.by_class.remove(&id))).collect()
    }

    /// Settles all pods, or those that may belong somewhere else than before because sources or the labels of these
    /// namespaces have changed. Looks at the members of those classes only that do.
    pub(super) fn settle_affected<'a>(
        &mut self,
        cluster: &Cluster,
        all: bool,
        namespaces: impl IntoIterator<Item = &'a Arc<str>>,
        sets: &mut Sets,
    ) {
        let mut affected = self.forget_affected(cluster);
        let others: Vec<PodClassId> = if all {
            cluster.classes().iter().map(|(id, _)| id).collect()
        } else {
            namespaces.into_iter().flat_map(|namespace| cluster.classes().in_namespace(namespace)).collect()
        };
        for id in others {
            affected.entry(id).or_insert_with(|| self.by_class.remove(&id));
        }
        for (id, before) in affected {
            let Some(class) = cluster.classes().get(id) else { continue };
            let places = self.places_of(cluster, id, class);
            match before {
                // Members that stay where they are and those to come share memory.
                Some(same) if same == places => {
                    self.by_class.insert(id, same);
                }
                _ => cluster.member_addresses(class).for_each(|address| self.settle(cluster, address, sets)),
            }
        }
    }

    /// Puts an address where its owner belongs, whoever that is now.
    pub(super) fn settle(&mut self, cluster: &Cluster, address: IpAddr, sets: &mut Sets) {
        let places = cluster.class_at(address).map(|(id, class)| self.places_of(cluster, id, class));
        self.place(address, &places.unwrap_or_default(), sets);
    }

    /// The same, if it belongs anywhere.
    pub(super) fn settle_if(&mut self, belongs: bool, cluster: &Cluster, address: IpAddr, sets: &mut Sets) {
        if belongs {
            self.settle(cluster, address, sets);
        } else {
            self.place(address, &Arc::default(), sets);
        }
    }

    /// Drops what it knows of classes that are gone, once they are as many as those that are there.
    pub(super) fn forget_gone(&mut self, cluster: &Cluster) {
        if self.by_class.len() > 2 * cluster.classes().len() {
            self.by_class.retain(|id, _| cluster.classes().get(*id).is_some());
        }
    }

    /// Whether nothing is left of pods and sources that were there.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let sources = self.sources.is_empty() && self.index.is_empty() && self.changed.is_empty();
        sources && self.by_class.is_empty() && self.by_address.is_empty()
    }

    fn place(&mut self, address: IpAddr, after: &Arc<Places>, sets: &mut Sets) {
        let before = if after.is_empty() {
            self.by_address.remove(&address)
        } else {
            self.by_address.insert(address, after.clone())
        };
        let before = before.unwrap_or_default();
        for place in before.difference(after) {
            place.update(address, false, sets);
        }
        for place in after.difference(&before) {
            place.update(address, true, sets);
        }
    }

    fn places_of(&mut self, cluster: &Cluster, id: PodClassId, class: &PodClass) -> Arc<Places> {
        if let Some(known) = self.by_class.get(&id) {
            return known.clone();
        }
        let namespace = cluster.namespace_labels(&class.traits.namespace);
        let mut places = Places::new();
        for id in self.index.candidates(&class.traits, namespace) {
            let Some(source) = self.sources.get(&id) else { continue };
            if !source.term.selects(&class.traits, namespace) {
                continue;
            }
            for (set, Belonging { port, .. }) in &source.sets {
                match port {
                    None => {
                        places.insert(Place::Address(*set));
                    }
                    Some(port) => {
                        let numbers = class.traits.numbers(port);
                        places.extend(numbers.map(|number| Place::Endpoint(*set, port.0, number)));
                    }
                }
            }
        }
        let places = Arc::new(places);
        self.by_class.insert(id, places.clone());
        places
    }
}

impl Place {
    /// Makes an address a member, or no member.
    fn update(self, address: IpAddr, member: bool, sets: &mut Sets) {
        let (Place::Address(id) | Place::Endpoint(id, ..)) = self;
        // A set that is not in use any more goes before its members do.
        let Some(set) = sets.get_mut(&id) else { return };
        match (self, &mut set.members) {
            (Place::Address(_), Members::Addresses(addresses)) => put(addresses, address, member),
            (Place::Endpoint(_, protocol, port), Members::Endpoints(endpoints)) => {
                put(endpoints, (address, protocol, port), member);
            }
            // A description asks for addresses or for a port name, never for both.
            (Place::Address(_) | Place::Endpoint(..), _) => {}
        }
    }
}

fn put<T: Ord + Clone>(set: &mut OrdSet<T>, item: T, member: bool) {
    if member {
        set.insert(item);
    } else {
        set.remove(&item);
    }
}
