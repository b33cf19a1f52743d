//! One namespace of a node's pods: what the policies there grant on these pods, in one direction.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ringfence_model::{Direction, Family, Pod};

use crate::cluster::Cluster;
use crate::digest::Digester;
use crate::gate::{Admission, GateId};
use crate::judged::Share;
use crate::port_table::PortTable;
use crate::ports::PortSet;
use crate::program::Subject;
use crate::rules::Grants;
use crate::terms::{PodTerm, Term, TermId};

/// What the policies of one namespace come to on the node's pods there.
#[derive(Default)]
pub(crate) struct Home {
    /// By name. They need not select any of the pods.
    policies: BTreeMap<Arc<str>, Grants>,
    /// The isolated pods, by the addresses they own.
    pub(crate) subjects: BTreeMap<IpAddr, Subject>,
    /// The gates that they lead to.
    pub(crate) gates: BTreeMap<GateId, Led>,
}

/// A gate, and who leads to it.
pub(crate) struct Led {
    /// What the gate stands for.
    pub(crate) terms: Arc<BTreeSet<TermId>>,
    pub(crate) by: Leading,
}

/// How many addresses of each family lead to a gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leading {
    pub(crate) v4: usize,
    pub(crate) v6: usize,
}

/// What became of a namespace's policies.
#[derive(Default)]
pub(crate) struct Reread {
    pub(crate) added: Vec<(TermId, Term)>,
    pub(crate) dropped: Vec<Grants>,
}

impl Home {
    /// Compiles a namespace anew. Policies that `before` has read and that are the same are not read again.
    pub(crate) fn compile(
        cluster: &Cluster,
        share: Share<'_>,
        namespace: &Arc<str>,
        direction: Direction,
        before: &mut Home,
    ) -> (Home, Reread) {
        let pods = share.pods(cluster, namespace, direction);
        let mut home = Home::default();
        // Without pods no policy is read.
        let in_force = cluster.policies_in(namespace).filter(|_| !pods.is_empty());
        let mut reread = Reread::default();
        let mut known = std::mem::take(&mut before.policies);
        for policy in in_force.filter(|policy| policy.isolates.covers(direction)) {
            let (name, grants) = match known.remove_entry(&policy.id.name) {
                Some((name, grants)) if grants.is_current(policy, cluster) => (name, grants),
                other => {
                    reread.dropped.extend(other.map(|(_, grants)| grants));
                    let grants = Grants::of(policy, direction, cluster);
                    reread.added.extend(grants.terms.iter().map(|(id, term)| (*id, term.clone())));
                    (policy.id.name.clone(), grants)
                }
            };
            home.policies.insert(name, grants);
        }
        reread.dropped.extend(known.into_values());
        home.lead(&pods);
        (home, reread)
    }

    /// Whether no policy has been read for it.
    pub(crate) fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// Whether port names stand for other numbers than when the policies were read.
    pub(crate) fn is_outdated(&self, cluster: &Cluster) -> bool {
        !self.policies.values().all(|grants| grants.has_current_numbers(cluster))
    }

    fn lead(&mut self, pods: &[(&Arc<Pod>, Vec<IpAddr>)]) {
        let naming = Naming::new(&self.policies);
        // Pods of one workload have the same table.
        let mut tables: HashMap<Vec<(PortSet, TermId)>, Arc<PortTable>> = HashMap::new();
        let mut found: HashMap<GateId, Arc<BTreeSet<TermId>>> = HashMap::new();
        for (pod, addresses) in pods.iter().filter(|(_, addresses)| !addresses.is_empty()) {
            let selecting: Vec<&Grants> = self.policies.values().filter(|grants| grants.select(pod)).collect();
            if selecting.is_empty() {
                continue;
            }
            let grants: Vec<(PortSet, TermId)> = selecting.iter().flat_map(|grants| grants.on(pod)).collect();
            let table = tables.entry(grants).or_insert_with_key(|grants| {
                Arc::new(PortTable::new(grants, |terms| naming.admission(terms, &mut found)))
            });
            let subject = Subject { pod: pod.to_string().into(), ports: table.clone() };
            let leads_to: BTreeSet<GateId> = table
                .admissions()
                .filter_map(|admission| match admission {
                    Admission::Gate(id) => Some(id),
                    Admission::Anyone => None,
                })
                .collect();
            for address in addresses {
                for id in &leads_to {
                    let Some(terms) = found.get(id) else { continue };
                    let led =
                        self.gates.entry(*id).or_insert_with(|| Led { terms: terms.clone(), by: Leading::default() });
                    match Family::of(*address) {
                        Family::V4 => led.by.v4 += 1,
                        Family::V6 => led.by.v6 += 1,
                    }
                }
                self.subjects.insert(*address, subject.clone());
            }
        }
    }
}

/// Finds the gate of a set of terms.
struct Naming<'a> {
    policies: &'a BTreeMap<Arc<str>, Grants>,
    anyone: TermId,
    every_pod: TermId,
    /// The terms that are not about pods. Rarely asked for.
    blocks: OnceCell<BTreeSet<TermId>>,
}

impl<'a> Naming<'a> {
    fn new(policies: &'a BTreeMap<Arc<str>, Grants>) -> Naming<'a> {
        Naming {
            policies,
            anyone: Term::Anyone.id(),
            every_pod: Term::Pods(PodTerm::everything()).id(),
            blocks: OnceCell::new(),
        }
    }

    /// What a set of terms, never empty, comes to. A gate is noted in `found`, with what it stands for.
    fn admission(&self, terms: &BTreeSet<TermId>, found: &mut HashMap<GateId, Arc<BTreeSet<TermId>>>) -> Admission {
        if terms.contains(&self.anyone) {
            return Admission::Anyone;
        }
        // Beside the term of all pods, others about pods say nothing.
        let needed = match terms.contains(&self.every_pod) {
            true => terms.intersection(self.blocks()).copied().chain([self.every_pod]).collect(),
            false => terms.clone(),
        };
        let mut digester = Digester::new("gate");
        digester.number(needed.len());
        for TermId(digest) in &needed {
            digester.digest(*digest);
        }
        let id = GateId(digester.finish().0);
        found.entry(id).or_insert_with(|| Arc::new(needed));
        Admission::Gate(id)
    }

    fn blocks(&self) -> &BTreeSet<TermId> {
        self.blocks.get_or_init(|| {
            let terms = self.policies.values().flat_map(|grants| &grants.terms);
            terms.filter(|(_, term)| matches!(term, Term::Block(_))).map(|(id, _)| *id).collect()
        })
    }
}
