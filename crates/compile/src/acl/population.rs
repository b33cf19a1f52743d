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
use crate::terms::PodTerm;

/// The sets of a list.
pub(super) type Sets = OrdMap<SetId, AclSet>;

/// The members of some of the sets of a list. A set belongs to one population only.
#[derive(Default)]
pub(super) struct Population {
    sources: Vec<Source>,
    /// The positions in `sources` whose term reaches a namespace.
    reaching: HashMap<Arc<str>, Arc<[usize]>>,
    /// A memo: pod class ids are never used twice.
    by_class: HashMap<PodClassId, Arc<Places>>,
    /// Where addresses are now. Never empty.
    by_address: HashMap<IpAddr, Arc<Places>>,
}

#[derive(PartialEq, Eq)]
struct Source {
    pods: PodTerm,
    sets: BTreeMap<SetId, Option<PortName>>,
}

/// The places of one address in sets.
type Places = BTreeSet<Place>;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Address(SetId),
    Endpoint(SetId, Protocol, u16),
}

impl Population {
    /// Sets who belongs where, to be followed by settling everybody. Returns whether it is news.
    pub(super) fn describe(&mut self, sources: Sources) -> bool {
        let sources: Vec<Source> = sources.into_iter().map(|(pods, sets)| Source { pods, sets }).collect();
        let news = sources != self.sources;
        self.sources = sources;
        news
    }

    /// Settles all pods of the cluster after other descriptions or other labels of namespaces. Looks at the members of
    /// those classes only that belong somewhere else than before.
    pub(super) fn settle_all(&mut self, cluster: &Cluster, sets: &mut Sets) {
        self.reaching.clear();
        let before = std::mem::take(&mut self.by_class);
        for (id, class) in cluster.classes().iter() {
            let places = self.places_of(cluster, id, class);
            match before.get(&id) {
                // Members that stay where they are and those to come share memory.
                Some(same) if *same == places => {
                    self.by_class.insert(id, same.clone());
                }
                _ => cluster.member_addresses(class).for_each(|address| self.settle(cluster, address, sets)),
            }
        }
    }

    /// Settles the pods with these addresses, and nobody else.
    pub(super) fn settle_only(&mut self, cluster: &Cluster, addresses: &BTreeSet<IpAddr>, sets: &mut Sets) {
        self.reaching.clear();
        self.by_class.clear();
        let gone: Vec<IpAddr> =
            self.by_address.keys().filter(|address| !addresses.contains(address)).copied().collect();
        for address in gone {
            self.place(address, &Arc::default(), sets);
        }
        for address in addresses {
            self.settle(cluster, *address, sets);
        }
    }

    /// Puts an address where its owner belongs, whoever that is now.
    pub(super) fn settle(&mut self, cluster: &Cluster, address: IpAddr, sets: &mut Sets) {
        let places = cluster.class_at(address).map(|(id, class)| self.places_of(cluster, id, class));
        self.place(address, &places.unwrap_or_default(), sets);
    }

    /// Drops what it knows of classes that are gone.
    pub(super) fn forget_gone(&mut self, cluster: &Cluster) {
        self.by_class.retain(|id, _| cluster.classes().get(*id).is_some());
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
        let namespace = &class.traits.namespace;
        let reaching = self.reaching.entry(namespace.clone()).or_insert_with(|| {
            let labels = cluster.namespace_labels(namespace);
            let reaching = self.sources.iter().enumerate().filter(|(_, s)| s.pods.reaches(namespace, labels));
            reaching.map(|(position, _)| position).collect()
        });
        let mut places = Places::new();
        for Source { pods, sets } in reaching.iter().filter_map(|position| self.sources.get(*position)) {
            if !pods.pods.matches(&class.traits.labels) {
                continue;
            }
            for (set, port) in sets {
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
