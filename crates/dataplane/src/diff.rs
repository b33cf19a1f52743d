//! What differs between two programs, as a value and without a word about packet filters.
//!
//! Programs share what did not change, and the comparison skips what is shared: a peer that comes or goes among 100,000
//! costs microseconds.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::ordmap::DiffItem;
use imbl::{OrdMap, OrdSet, ordset};
use ipnet::IpNet;
use ringfence_compile::{Believed, ClassId, Gate, GateId, NodeCompiler, Program, Reach, Side, Subject};
use ringfence_model::{Direction, Protocol};

use crate::backend::Demand;

impl Demand for Program {
    type Compiler = NodeCompiler;
    type Difference = ProgramDiff;

    fn difference(&self, to: &Program) -> Option<ProgramDiff> {
        Some(ProgramDiff::between(self, to)).filter(|diff| !diff.is_empty())
    }
}

/// What differs between two maps, in the order of the keys. No key is in two of the lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapDiff<K, V> {
    /// In the new map only.
    pub added: Vec<(K, V)>,
    /// In the old map only, with the old value.
    pub removed: Vec<(K, V)>,
    /// In both, with the old value and the new one, which differ.
    pub changed: Vec<(K, V, V)>,
}

/// What differs between two programs in one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SideDiff {
    /// Isolated local pods, and whom they admit.
    pub subjects: MapDiff<IpAddr, Subject>,
    /// Gates. A gate that both have differs in the families it concerns and so in its blocks; never in who may pass.
    pub gates: MapDiff<GateId, Arc<Gate>>,
    /// The gates that peer classes pass. A class that both have is the same in both.
    pub classes: MapDiff<ClassId, Arc<BTreeSet<GateId>>>,
    /// Classes of peers.
    pub peers: MapDiff<IpAddr, ClassId>,
}

/// What differs between two programs in what they have to do with connections beyond those of the node's own pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReachDiff {
    /// Whether pods of other nodes are judged, if that is another answer now.
    pub judges_others: Option<bool>,
    /// Whom the node believes, without endpoints, if that is another choice now.
    pub believed: Option<Believed>,
    /// Addresses of the node's own pods that are new.
    pub local_added: Vec<IpAddr>,
    /// Those that are not there any more.
    pub local_removed: Vec<IpAddr>,
    /// Addresses that other nodes have gained.
    pub nodes_added: Vec<IpAddr>,
    /// Those that they have lost.
    pub nodes_removed: Vec<IpAddr>,
    /// Endpoints to which other nodes are believed now.
    pub endpoints_added: Vec<(IpAddr, Protocol, u16)>,
    /// Those to which they are not any more.
    pub endpoints_removed: Vec<(IpAddr, Protocol, u16)>,
    /// Networks towards which sources are kept now.
    pub kept_added: Vec<IpNet>,
    /// Those towards which they are not any more.
    pub kept_removed: Vec<IpNet>,
}

/// What differs between two programs. The generation number does not count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgramDiff {
    /// Connections to local pods.
    pub ingress: SideDiff,
    /// Connections from local pods.
    pub egress: SideDiff,
    /// Addresses the node has gained.
    pub node_addresses_added: Vec<IpAddr>,
    /// Addresses the node has lost.
    pub node_addresses_removed: Vec<IpAddr>,
    /// Ranges that are guarded now.
    pub ranges_added: Vec<IpNet>,
    /// Ranges that are not guarded any more.
    pub ranges_removed: Vec<IpNet>,
    /// Addresses in guarded ranges that are known now.
    pub known_added: Vec<IpAddr>,
    /// Addresses in guarded ranges that are not known any more, or whose range is not guarded.
    pub known_removed: Vec<IpAddr>,
    /// What it has to do with connections beyond those of its own pods.
    pub reach: ReachDiff,
}

impl<K, V> Default for MapDiff<K, V> {
    fn default() -> Self {
        MapDiff { added: Vec::new(), removed: Vec::new(), changed: Vec::new() }
    }
}

impl<K, V> MapDiff<K, V> {
    /// Whether the maps are equal.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many keys differ.
    pub fn len(&self) -> usize {
        self.added.len() + self.removed.len() + self.changed.len()
    }

    fn counts(&self) -> (usize, usize, usize) {
        (self.added.len(), self.changed.len(), self.removed.len())
    }
}

impl<K: Ord + Clone, V: PartialEq + Clone> MapDiff<K, V> {
    /// Skips the parts that the maps share.
    pub(crate) fn of_shared(from: &OrdMap<K, V>, to: &OrdMap<K, V>) -> Self {
        let mut diff = MapDiff::default();
        for item in from.diff(to) {
            match item {
                DiffItem::Add(key, value) => diff.added.push((key.clone(), value.clone())),
                DiffItem::Remove(key, value) => diff.removed.push((key.clone(), value.clone())),
                DiffItem::Update { old: (key, old), new: (_, new) } => {
                    diff.changed.push((key.clone(), old.clone(), new.clone()));
                }
            }
        }
        diff
    }
}

impl SideDiff {
    /// From `from` to `to`.
    pub fn between(from: &Side, to: &Side) -> SideDiff {
        SideDiff {
            subjects: MapDiff::of_shared(&from.subjects, &to.subjects),
            gates: MapDiff::of_shared(&from.gates, &to.gates),
            classes: MapDiff::of_shared(&from.classes, &to.classes),
            peers: MapDiff::of_shared(&from.peers, &to.peers),
        }
    }

    /// Whether the sides are equal.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many entries differ.
    pub fn len(&self) -> usize {
        self.subjects.len() + self.gates.len() + self.classes.len() + self.peers.len()
    }
}

impl ReachDiff {
    /// From `from` to `to`.
    pub fn between(from: &Reach, to: &Reach) -> ReachDiff {
        let none = OrdSet::new();
        let (old_choice, old_endpoints) = choice(&from.believed, &none);
        let (new_choice, new_endpoints) = choice(&to.believed, &none);
        let (local_added, local_removed) = of_shared_sets(&from.local, &to.local);
        let (nodes_added, nodes_removed) = of_shared_sets(&from.nodes, &to.nodes);
        let (endpoints_added, endpoints_removed) = of_shared_sets(old_endpoints, new_endpoints);
        ReachDiff {
            judges_others: (from.judges_others != to.judges_others).then_some(to.judges_others),
            believed: (old_choice != new_choice).then_some(new_choice),
            local_added,
            local_removed,
            nodes_added,
            nodes_removed,
            endpoints_added,
            endpoints_removed,
            kept_added: without(&to.unmasqueraded, &from.unmasqueraded),
            kept_removed: without(&from.unmasqueraded, &to.unmasqueraded),
        }
    }

    /// Whether both are the same.
    pub fn is_empty(&self) -> bool {
        self.judges_others.is_none()
            && self.believed.is_none()
            && self.counts().into_iter().all(|(_, added, removed)| added + removed == 0)
    }

    fn counts(&self) -> [(&'static str, usize, usize); 4] {
        [
            ("local pods", self.local_added.len(), self.local_removed.len()),
            ("other nodes", self.nodes_added.len(), self.nodes_removed.len()),
            ("endpoints", self.endpoints_added.len(), self.endpoints_removed.len()),
            ("kept networks", self.kept_added.len(), self.kept_removed.len()),
        ]
    }
}

/// A set of endpoints.
type Endpoints = OrdSet<(IpAddr, Protocol, u16)>;

/// What is believed, without endpoints, and these.
fn choice<'a>(believed: &'a Believed, none: &'a Endpoints) -> (Believed, &'a Endpoints) {
    match believed {
        Believed::Endpoints(endpoints) => (Believed::Endpoints(OrdSet::new()), endpoints),
        other => (other.clone(), none),
    }
}

fn without(some: &[IpNet], others: &[IpNet]) -> Vec<IpNet> {
    some.iter().filter(|range| !others.contains(range)).copied().collect()
}

impl ProgramDiff {
    /// From `from` to `to`.
    pub fn between(from: &Program, to: &Program) -> ProgramDiff {
        let (old, new) = (from.guard.ranges(), to.guard.ranges());
        let (known_added, known_removed) = of_shared_sets(from.guard.known(), to.guard.known());
        ProgramDiff {
            ingress: SideDiff::between(&from.ingress, &to.ingress),
            egress: SideDiff::between(&from.egress, &to.egress),
            node_addresses_added: to.node_addresses.difference(&from.node_addresses).copied().collect(),
            node_addresses_removed: from.node_addresses.difference(&to.node_addresses).copied().collect(),
            ranges_added: without(new, old),
            ranges_removed: without(old, new),
            known_added,
            known_removed,
            reach: ReachDiff::between(&from.reach, &to.reach),
        }
    }

    /// The part of a direction.
    pub fn side(&self, direction: Direction) -> &SideDiff {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    /// Whether both programs demand the same.
    pub fn is_empty(&self) -> bool {
        self.ingress.is_empty()
            && self.egress.is_empty()
            && self.node_addresses_added.is_empty()
            && self.node_addresses_removed.is_empty()
            && self.ranges_added.is_empty()
            && self.ranges_removed.is_empty()
            && self.known_added.is_empty()
            && self.known_removed.is_empty()
            && self.reach.is_empty()
    }
}

/// What the second set has more, and what it has not. Skips the parts that they share.
fn of_shared_sets<T: Ord + Clone>(from: &OrdSet<T>, to: &OrdSet<T>) -> (Vec<T>, Vec<T>) {
    let (mut added, mut removed) = (Vec::new(), Vec::new());
    for item in from.diff(to) {
        match item {
            ordset::DiffItem::Add(item) => added.push(item.clone()),
            ordset::DiffItem::Remove(item) => removed.push(item.clone()),
        }
    }
    (added, removed)
}

/// Counts, for logs: `ingress +1 ~0 -0 peers`; what did not change is left out.
impl fmt::Display for ProgramDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        let mut count = |f: &mut fmt::Formatter<'_>, what: &str, added: usize, changed: usize, removed: usize| {
            if added + changed + removed == 0 {
                return Ok(());
            }
            write!(f, "{separator}{what} +{added} ~{changed} -{removed}")?;
            separator = ", ";
            Ok(())
        };
        for direction in Direction::ALL {
            let side = self.side(direction);
            let maps = [
                ("pods", side.subjects.counts()),
                ("gates", side.gates.counts()),
                ("classes", side.classes.counts()),
                ("peers", side.peers.counts()),
            ];
            for (what, (added, changed, removed)) in maps {
                count(f, &format!("{direction} {what}"), added, changed, removed)?;
            }
        }
        count(f, "node addresses", self.node_addresses_added.len(), 0, self.node_addresses_removed.len())?;
        count(f, "guarded ranges", self.ranges_added.len(), 0, self.ranges_removed.len())?;
        count(f, "known addresses", self.known_added.len(), 0, self.known_removed.len())?;
        let reach = &self.reach;
        count(
            f,
            "whom to judge or believe",
            0,
            usize::from(reach.judges_others.is_some() || reach.believed.is_some()),
            0,
        )?;
        for (what, added, removed) in reach.counts() {
            count(f, what, added, 0, removed)?;
        }
        if self.is_empty() { f.write_str("no difference") } else { Ok(()) }
    }
}
