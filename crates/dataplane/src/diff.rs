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
use ringfence_compile::{ClassId, Gate, GateId, NodeCompiler, Program, Side, Subject};
use ringfence_model::Direction;

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

impl ProgramDiff {
    /// From `from` to `to`.
    pub fn between(from: &Program, to: &Program) -> ProgramDiff {
        let without = |some: &[IpNet], others: &[IpNet]| -> Vec<IpNet> {
            some.iter().filter(|range| !others.contains(range)).copied().collect()
        };
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
        if self.is_empty() { f.write_str("no difference") } else { Ok(()) }
    }
}
