//! The compiler of one direction: keeps a [`Side`] true to a [`Cluster`] with work that follows the change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ringfence_model::{Direction, Family};

use crate::cluster::Cluster;
use crate::digest::{Digest, Digester};
use crate::gate::{Gate, GateId};
use crate::home::{Home, Leading, Led, Reread};
use crate::judged::Share;
use crate::pod_class::{PodClass, PodClassId};
use crate::program::{ClassId, Side};
use crate::regions::regions;
use crate::rules::Grants;
use crate::selection::{TermIndex, classes_of};
use crate::terms::{Term, TermId};

/// How many of its descriptions a gate tells people.
const TOLD: usize = 100;

/// Everything but `side` is what it takes to compile the next `side` from this one.
///
/// Work flows in one way: policies and pods of a namespace make a [`Home`]; where the gates that it leads to are news, the
/// terms of these gates are; where terms are, the pod classes that they select are; and where the gates are that a class
/// passes, the addresses of its members are placed anew.
pub(crate) struct SideCompiler {
    direction: Direction,
    pub(crate) side: Side,
    homes: BTreeMap<Arc<str>, Home>,
    /// The gates that some subject leads to.
    gates: HashMap<GateId, Led>,
    /// The terms of the policies that the homes have read.
    terms: HashMap<TermId, Opener>,
    index: TermIndex<TermId>,
    /// The terms that open other gates than before.
    changed: BTreeSet<TermId>,
    /// Terms of which a policy that was read before has no need any more.
    released: Vec<TermId>,
    /// A memo: pod class ids are never used twice.
    passes: HashMap<PodClassId, Passes>,
    /// How many entries of `side.peers` point at a class. Never zero.
    entries: HashMap<ClassId, usize>,
}

/// A term and the gates that it opens to subjects of each family.
struct Opener {
    term: Term,
    v4: BTreeSet<GateId>,
    v6: BTreeSet<GateId>,
    /// How many policies have it.
    holders: usize,
}

/// The peer classes of the pods of a pod class, by their addresses of each family.
#[derive(Clone, Default, PartialEq, Eq)]
struct Passes {
    v4: Option<PeerClass>,
    v6: Option<PeerClass>,
}

/// Gates that are passed, and the name for exactly these.
#[derive(Clone, PartialEq, Eq)]
struct PeerClass {
    id: ClassId,
    gates: Arc<BTreeSet<GateId>>,
}

impl PeerClass {
    /// Nothing for no gates.
    fn of(gates: BTreeSet<GateId>) -> Option<PeerClass> {
        if gates.is_empty() {
            return None;
        }
        let mut digester = Digester::new("peer class");
        digester.number(gates.len());
        for gate in &gates {
            digester.digest(Digest(gate.0));
        }
        Some(PeerClass { id: ClassId(digester.finish().0), gates: Arc::new(gates) })
    }
}

impl SideCompiler {
    pub(crate) fn new(direction: Direction) -> SideCompiler {
        SideCompiler {
            direction,
            side: Side::default(),
            homes: BTreeMap::new(),
            gates: HashMap::new(),
            terms: HashMap::new(),
            index: TermIndex::default(),
            changed: BTreeSet::new(),
            released: Vec::new(),
            passes: HashMap::new(),
            entries: HashMap::new(),
        }
    }

    /// The namespaces whose policies name ports that stand for other numbers by now.
    pub(crate) fn outdated(&self, cluster: &Cluster) -> Vec<Arc<str>> {
        let outdated = self.homes.iter().filter(|(_, home)| home.is_outdated(cluster));
        outdated.map(|(namespace, _)| namespace.clone()).collect()
    }

    /// Compiles the policies of one namespace for the pods there that the node judges. To be followed by [`SideCompiler::settle`].
    pub(crate) fn compile_home(&mut self, cluster: &Cluster, share: Share<'_>, namespace: &Arc<str>) {
        let mut before = self.homes.remove(namespace).unwrap_or_default();
        let (after, Reread { added, dropped }) = Home::compile(cluster, share, namespace, self.direction, &mut before);
        for (id, term) in added {
            self.hold(id, term);
        }
        for (address, subject) in &before.subjects {
            // It may be another namespace's by now.
            if !after.subjects.contains_key(address) && self.side.subjects.get(address) == Some(subject) {
                self.side.subjects.remove(address);
            }
        }
        for (address, subject) in &after.subjects {
            // What is as before keeps its place in memory, which makes differences cheap to find.
            if self.side.subjects.get(address) != Some(subject) {
                self.side.subjects.insert(*address, subject.clone());
            }
        }
        for (id, led) in &after.gates {
            let less = before.gates.get(id).map_or_else(Leading::default, |before| before.by);
            self.lead(*id, &led.terms, led.by, less);
        }
        for (id, led) in before.gates.iter().filter(|(id, _)| !after.gates.contains_key(*id)) {
            self.lead(*id, &led.terms, Leading::default(), led.by);
        }
        self.released.extend(dropped.iter().flat_map(|Grants { terms, .. }| terms.keys()));
        if !after.is_empty() {
            self.homes.insert(namespace.clone(), after);
        }
    }

    fn hold(&mut self, id: TermId, term: Term) {
        let opener = self.terms.entry(id).or_insert_with(|| {
            self.index.insert(id, &term);
            Opener { term, v4: BTreeSet::new(), v6: BTreeSet::new(), holders: 0 }
        });
        opener.holders += 1;
    }

    /// Takes note that some more and some less addresses lead to a gate.
    fn lead(&mut self, id: GateId, terms: &Arc<BTreeSet<TermId>>, more: Leading, less: Leading) {
        if more == less {
            return;
        }
        let led = self.gates.entry(id).or_insert_with(|| Led { terms: terms.clone(), by: Leading::default() });
        let before = led.by;
        led.by = Leading { v4: before.v4 + more.v4 - less.v4, v6: before.v6 + more.v6 - less.v6 };
        let Leading { v4, v6 } = led.by;
        let concerns = (v4 > 0, v6 > 0);
        if concerns == (before.v4 > 0, before.v6 > 0) {
            return;
        }
        for term in &*led.terms {
            let Some(opener) = self.terms.get_mut(term) else { continue };
            for (gates, concerned) in [(&mut opener.v4, concerns.0), (&mut opener.v6, concerns.1)] {
                let news = if concerned { gates.insert(id) } else { gates.remove(&id) };
                if news {
                    self.changed.insert(*term);
                }
            }
        }
        if concerns == (false, false) {
            self.gates.remove(&id);
            self.side.gates.remove(&id);
        } else {
            let gate = self.gate(terms, concerns);
            self.side.gates.insert(id, Arc::new(gate));
        }
    }

    fn gate(&self, terms: &BTreeSet<TermId>, (v4, v6): (bool, bool)) -> Gate {
        let terms: Vec<&Term> = terms.iter().filter_map(|id| self.terms.get(id)).map(|opener| &opener.term).collect();
        let blocks = terms.iter().filter_map(|term| match term {
            Term::Block(block) if block.cidr.addr().is_ipv4() && v4 => Some(block),
            Term::Block(block) if block.cidr.addr().is_ipv6() && v6 => Some(block),
            _ => None,
        });
        Gate {
            v4,
            v6,
            selects_pods: terms.iter().any(|term| matches!(term, Term::Pods(_) | Term::Serving(_))),
            blocks: regions(blocks),
            origin: told(&terms).into(),
        }
    }

    /// Brings up to date who passes what: of all pods, or of those that may pass other gates than before because policies or
    /// the labels of these namespaces have changed.
    pub(crate) fn settle<'a>(
        &mut self,
        cluster: &Cluster,
        all: bool,
        namespaces: impl IntoIterator<Item = &'a Arc<str>>,
    ) {
        let changed = std::mem::take(&mut self.changed);
        let affected: BTreeSet<PodClassId> = if all {
            cluster.classes().iter().map(|(id, _)| id).collect()
        } else {
            let terms = changed.iter().filter_map(|id| self.terms.get(id));
            let selected = terms.flat_map(|opener| classes_of(cluster, &opener.term));
            let there = namespaces.into_iter().flat_map(|namespace| cluster.classes().in_namespace(namespace));
            selected.chain(there).collect()
        };
        // All are forgotten first: placing an address may ask for the class of its owner, which is another one.
        let before: Vec<_> = affected.into_iter().map(|id| (id, self.passes.remove(&id))).collect();
        for (id, before) in before {
            let Some(class) = cluster.classes().get(id) else { continue };
            if before.as_ref() != Some(&self.passes_of(cluster, id, class)) {
                for address in cluster.member_addresses(class) {
                    self.place(cluster, address);
                }
            }
        }
        for id in std::mem::take(&mut self.released) {
            let Some(opener) = self.terms.get_mut(&id) else { continue };
            opener.holders -= 1;
            if opener.holders == 0
                && let Some(opener) = self.terms.remove(&id)
            {
                self.index.remove(id, &opener.term);
            }
        }
    }

    /// Drops what it knows of classes that are gone, once they are as many as those that are there.
    pub(crate) fn forget_gone(&mut self, cluster: &Cluster) {
        if self.passes.len() > 2 * cluster.classes().len() {
            self.passes.retain(|id, _| cluster.classes().get(*id).is_some());
        }
    }

    /// Brings the entry of one address up to date, whoever owns it now.
    pub(crate) fn place(&mut self, cluster: &Cluster, address: IpAddr) {
        let passes = cluster.class_at(address).map(|(id, class)| self.passes_of(cluster, id, class));
        let class = passes.and_then(|passes| match Family::of(address) {
            Family::V4 => passes.v4,
            Family::V6 => passes.v6,
        });
        let before = self.side.peers.get(&address).copied();
        if before == class.as_ref().map(|class| class.id) {
            return;
        }
        match class {
            Some(class) => {
                self.acquire(&class);
                self.side.peers.insert(address, class.id);
            }
            None => {
                self.side.peers.remove(&address);
            }
        }
        if let Some(before) = before {
            self.release(before);
        }
    }

    /// Whether nothing is left of pods and policies that were there.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        let made = self.homes.is_empty() && self.gates.is_empty() && self.terms.is_empty() && self.index.is_empty();
        let noted = self.changed.is_empty() && self.released.is_empty();
        made && noted && self.passes.is_empty() && self.entries.is_empty() && self.side == Side::default()
    }

    fn passes_of(&mut self, cluster: &Cluster, id: PodClassId, class: &PodClass) -> Passes {
        if let Some(known) = self.passes.get(&id) {
            return known.clone();
        }
        let namespace = cluster.namespace_labels(&class.traits.namespace);
        let (mut v4, mut v6) = (BTreeSet::new(), BTreeSet::new());
        for id in self.index.candidates(&class.traits, namespace) {
            let Some(opener) = self.terms.get(&id) else { continue };
            if opener.opens_any() && opener.term.selects(&class.traits, namespace) {
                v4.extend(&opener.v4);
                v6.extend(&opener.v6);
            }
        }
        let passes = Passes { v4: PeerClass::of(v4), v6: PeerClass::of(v6) };
        self.passes.insert(id, passes.clone());
        passes
    }

    /// One more entry points at a class.
    fn acquire(&mut self, class: &PeerClass) {
        let entries = self.entries.entry(class.id).or_default();
        if *entries == 0 {
            self.side.classes.insert(class.id, class.gates.clone());
        }
        *entries += 1;
    }

    /// One entry less does; the last one takes the class with it.
    fn release(&mut self, id: ClassId) {
        let Some(entries) = self.entries.get_mut(&id) else { return };
        *entries -= 1;
        if *entries == 0 {
            self.entries.remove(&id);
            self.side.classes.remove(&id);
        }
    }
}

impl Opener {
    fn opens_any(&self) -> bool {
        !self.v4.is_empty() || !self.v6.is_empty()
    }
}

/// The descriptions of a gate for people, sorted; not all of very many.
fn told(terms: &[&Term]) -> String {
    let texts: BTreeSet<String> = terms.iter().map(ToString::to_string).collect();
    let mut told = texts.iter().take(TOLD).cloned().collect::<Vec<_>>().join("; ");
    if texts.len() > TOLD {
        told.push_str(&format!("; and {} more", texts.len() - TOLD));
    }
    told
}
