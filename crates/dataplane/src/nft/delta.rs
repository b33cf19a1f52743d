//! From the difference between two programs to the transaction that makes the kernel follow it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ringfence_compile::{Believed, ClassId, GateId, Program, Reach, Side};
use ringfence_model::{Direction, Family};

use super::layout::{
    Layout, block_elements, differing_elements, every_packet, gate_sets, itself, known, member, subject_elements,
};
use super::name::{ChainName, SetName};
use super::reach;
use super::ruleset::Element;
use super::transaction::Op;
use crate::diff::{ProgramDiff, ReachDiff, SideDiff};

/// Elements to delete from and to add to one set.
#[derive(Debug, Default)]
struct SetChange {
    removed: Vec<Element>,
    added: Vec<Element>,
}

/// What changes in the sets.
#[derive(Debug, Default)]
struct Changes(BTreeMap<SetName, SetChange>);

/// Whether a packet that is judged while the change takes effect could pass although neither program allows it, because
/// it meets one part of the old program and another one of the new.
///
/// It reads each set once, that of known addresses once for each direction. So nothing can go wrong while rights are only
/// added or only taken away, nor if all that changes is one of these: who passes which gate in one direction, who is a node,
/// who is local, where others have judged. (Where all nodes are trusted, both ends are looked up among them. Either look-up
/// alone says yes.)
pub(super) fn needs_new_epoch(from: &Program, to: &Program, diff: &ProgramDiff) -> bool {
    let (mut adds, mut takes, mut other, mut directions) = (false, false, false, 0);
    for direction in Direction::ALL {
        let side = diff.side(direction);
        directions += usize::from(!side.is_empty());
        other |= !side.subjects.is_empty() || !side.gates.changed.is_empty();
        for (old, new, _) in changes_of_peers(from.side(direction), to.side(direction), side) {
            adds |= !new.is_subset(&old);
            takes |= !old.is_subset(&new);
        }
    }
    other |= !diff.ranges_added.is_empty() || !diff.ranges_removed.is_empty();
    adds |= !diff.known_added.is_empty();
    takes |= !diff.known_removed.is_empty();
    if !(diff.known_added.is_empty() && diff.known_removed.is_empty()) {
        // A known address can be either end.
        directions = Direction::ALL.len();
    }
    other |= diff.reach.judges_others.is_some() || diff.reach.believed.is_some();
    let decides = |reach: &Reach| reach.judges_others || reach.believed == Believed::LocalPods;
    let local = decides(&from.reach) || decides(&to.reach);
    let ReachDiff { nodes_added, nodes_removed, endpoints_added, endpoints_removed, .. } = &diff.reach;
    let parts = [
        (!nodes_added.is_empty(), !nodes_removed.is_empty()),
        (!endpoints_added.is_empty(), !endpoints_removed.is_empty()),
        (local && !diff.reach.local_added.is_empty(), local && !diff.reach.local_removed.is_empty()),
    ];
    for (more, less) in parts {
        adds |= more;
        takes |= less;
        directions += usize::from(more || less);
    }
    other || (adds && takes && directions > 1)
}

/// Whether chains other than those of gates may differ, within an epoch: which maps and ranges they ask. As things are, of
/// these only the networks towards which sources are kept bring no new epoch; for the others this guards against a change
/// of that.
fn differs_at_large(diff: &ProgramDiff) -> bool {
    let has_other_subjects = Direction::ALL.into_iter().any(|direction| !diff.side(direction).subjects.is_empty());
    let ReachDiff { judges_others, believed, kept_added, kept_removed, .. } = &diff.reach;
    has_other_subjects
        || !(diff.ranges_added.is_empty() && diff.ranges_removed.is_empty())
        || judges_others.is_some()
        || believed.is_some()
        || !(kept_added.is_empty() && kept_removed.is_empty())
}

/// For each peer that changes, the gates it passed, those it passes now, and its address.
fn changes_of_peers<'a>(
    from: &'a Side,
    to: &'a Side,
    diff: &'a SideDiff,
) -> impl Iterator<Item = (BTreeSet<GateId>, BTreeSet<GateId>, IpAddr)> + 'a {
    let gates_of = |side: &Side, class: Option<&ClassId>| -> BTreeSet<GateId> {
        let gates = class.and_then(|class| side.classes.get(class));
        gates.into_iter().flat_map(|gates| gates.iter().copied()).collect()
    };
    let peers = diff.peers.removed.iter().map(|(peer, old)| (peer, Some(old), None));
    let peers = peers.chain(diff.peers.changed.iter().map(|(peer, old, new)| (peer, Some(old), Some(new))));
    let peers = peers.chain(diff.peers.added.iter().map(|(peer, new)| (peer, None, Some(new))));
    peers.map(move |(peer, old, new)| (gates_of(from, old), gates_of(to, new), *peer))
}

/// The transaction from one layout to the other.
///
/// First comes what is new and what will be pointed at, then elements and rules, then what nothing points at any more.
/// The work follows the difference, not the size of the programs.
///
/// With `renew_rules`, all chains are written whether they change or not: where somebody has cleared one, pods are open,
/// and nothing else in an update would notice.
pub(super) fn update(from: Layout<'_>, to: Layout<'_>, diff: &ProgramDiff, renew_rules: bool) -> Vec<Op> {
    let mut changes = Changes::default();
    let mut chains: BTreeSet<ChainName> = BTreeSet::new();
    if renew_rules || from.epoch != to.epoch || differs_at_large(diff) {
        chains.extend(to.fixed_chains());
    } else {
        debug_assert!(to.fixed_chains().into_iter().all(|chain| from.rules(chain) == to.rules(chain)));
    }
    let (before, after) = (from.fixed_chains(), to.fixed_chains());
    let mut ops: Vec<Op> =
        after.iter().filter(|chain| !before.contains(chain)).map(|chain| Op::new_chain(*chain)).collect();
    let mut dead_chains = before;
    dead_chains.retain(|chain| !after.contains(chain));
    for direction in Direction::ALL {
        let side = diff.side(direction);
        changes.side(direction, side, from.program.side(direction), to.program.side(direction));
        for (id, _) in &side.gates.added {
            ops.push(Op::AddChain(ChainName::Gate(direction, *id)));
            chains.insert(ChainName::Gate(direction, *id));
        }
        chains.extend(side.gates.changed.iter().map(|(id, _, _)| ChainName::Gate(direction, *id)));
        dead_chains.extend(side.gates.removed.iter().map(|(id, _)| ChainName::Gate(direction, *id)));
    }

    changes.themselves(diff, from.program, to.program);
    changes.known(diff);
    changes.reach(&diff.reach);
    if renew_rules {
        for direction in Direction::ALL {
            let gates = to.program.side(direction).gates.keys();
            chains.extend(gates.map(|id| ChainName::Gate(direction, *id)));
        }
    }

    let mut dead_sets = Vec::new();
    if from.epoch != to.epoch {
        let (old, new) = (SetName::of_epoch(from.epoch), SetName::of_epoch(to.epoch));
        ops.extend([Op::AddSet(new), Op::AddElements(new, every_packet())]);
        // Deleting the set alone would leave it as it is to packets that came in before.
        ops.push(Op::DeleteElements(old, every_packet()));
        dead_sets.push(old);
    }
    for (set, change) in changes.0 {
        match (from.has(set), to.has(set)) {
            (false, false) => {}
            (true, false) => dead_sets.push(set),
            (false, true) => {
                ops.push(Op::AddSet(set));
                // What is asked for only now may be known for longer.
                let elements = reach::elements(&to.program.reach, set).unwrap_or(change.added);
                if !elements.is_empty() {
                    ops.push(Op::AddElements(set, elements));
                }
            }
            (true, true) => {
                // What is new may overlap what goes, so that goes first.
                if !change.removed.is_empty() {
                    ops.push(Op::DeleteElements(set, change.removed));
                }
                if !change.added.is_empty() {
                    ops.push(Op::AddElements(set, change.added));
                }
            }
        }
    }
    for chain in chains {
        let (before, after) = (from.rules(chain), to.rules(chain));
        if before != after || renew_rules {
            if !before.is_empty() {
                ops.push(Op::FlushChain(chain));
            }
            ops.extend(after.into_iter().map(|rule| Op::AddRule(chain, rule)));
        }
    }
    ops.extend(dead_chains.iter().map(|chain| Op::FlushChain(*chain)));
    ops.extend(dead_sets.into_iter().map(|set| Op::DeleteSet(set.to_string())));
    ops.extend(dead_chains.into_iter().map(|chain| Op::DeleteChain(chain.to_string())));
    ops
}

impl Changes {
    fn side(&mut self, direction: Direction, diff: &SideDiff, from: &Side, to: &Side) {
        let subjects = &diff.subjects;
        for (address, old) in &subjects.removed {
            self.replace(subject_elements(direction, *address, old), Vec::new());
        }
        for (address, old, new) in &subjects.changed {
            let [old, new] = differing_elements(direction, *address, old, new);
            self.replace(old, new);
        }
        for (address, new) in &subjects.added {
            self.replace(Vec::new(), subject_elements(direction, *address, new));
        }
        let gates = diff.gates.removed.iter().map(|(id, old)| (id, Some(old), None));
        let gates = gates.chain(diff.gates.changed.iter().map(|(id, old, new)| (id, Some(old), Some(new))));
        let gates = gates.chain(diff.gates.added.iter().map(|(id, new)| (id, None, Some(new))));
        for (id, old, new) in gates {
            // A gate's sets come and go with it, whether they have elements or not.
            for set in old.into_iter().chain(new).flat_map(|gate| gate_sets(direction, *id, gate)) {
                self.set(set);
            }
            let blocks = |gate| block_elements(direction, *id, gate).collect();
            self.replace(
                old.map_or_else(Vec::new, |gate| blocks(gate)),
                new.map_or_else(Vec::new, |gate| blocks(gate)),
            );
        }
        for (old, new, peer) in changes_of_peers(from, to, diff) {
            for gate in old.difference(&new) {
                let (set, element) = member(direction, *gate, peer);
                self.set(set).removed.push(element);
            }
            for gate in new.difference(&old) {
                let (set, element) = member(direction, *gate, peer);
                self.set(set).added.push(element);
            }
        }
    }

    /// Subjects of whichever direction that come or go.
    fn themselves(&mut self, diff: &ProgramDiff, from: &Program, to: &Program) {
        let is_subject = |program: &Program, address: &IpAddr| {
            Direction::ALL.into_iter().any(|direction| program.side(direction).subjects.contains_key(address))
        };
        let subjects = Direction::ALL.map(|direction| &diff.side(direction).subjects);
        let addresses = subjects.into_iter().flat_map(|subjects| subjects.removed.iter().chain(&subjects.added));
        // Both directions can tell of the same address.
        let addresses: BTreeSet<&IpAddr> = addresses.map(|(address, _)| address).collect();
        for address in addresses {
            let (set, element) = itself(*address);
            let change = self.set(set);
            match (is_subject(from, address), is_subject(to, address)) {
                (true, false) => change.removed.push(element),
                (false, true) => change.added.push(element),
                _ => {}
            }
        }
    }

    /// Whom the node judges for, whom it believes, and which sources are kept.
    fn reach(&mut self, diff: &ReachDiff) {
        for set in reach::sets() {
            // They come and go with what the node has to do, whether they have elements or not.
            self.set(set);
        }
        let local = [(&diff.local_removed, false), (&diff.local_added, true)];
        let nodes = [(&diff.nodes_removed, false), (&diff.nodes_added, true)];
        let endpoints = [(&diff.endpoints_removed, false), (&diff.endpoints_added, true)];
        let kept = [(&diff.kept_removed, false), (&diff.kept_added, true)];
        for (addresses, added) in local {
            self.put(addresses.iter().map(|address| reach::local(*address)), added);
        }
        for (addresses, added) in nodes {
            self.put(addresses.iter().map(|address| reach::node(*address)), added);
        }
        for (endpoints, added) in endpoints {
            self.put(endpoints.iter().map(reach::judged), added);
        }
        for (networks, added) in kept {
            self.put(networks.iter().map(reach::kept), added);
        }
    }

    fn put(&mut self, elements: impl Iterator<Item = (SetName, Element)>, added: bool) {
        for (set, element) in elements {
            let change = self.set(set);
            let list = if added { &mut change.added } else { &mut change.removed };
            list.push(element);
        }
    }

    /// Addresses that are known, or known no more.
    fn known(&mut self, diff: &ProgramDiff) {
        for family in Family::ALL {
            // It comes and goes with the ranges, whether it has elements or not.
            self.set(SetName::of_known(family));
        }
        for address in &diff.known_removed {
            let (set, element) = known(*address);
            self.set(set).removed.push(element);
        }
        for address in &diff.known_added {
            let (set, element) = known(*address);
            self.set(set).added.push(element);
        }
    }

    /// Elements of one thing that takes the place of another; what both have stays.
    fn replace(&mut self, old: Vec<(SetName, Element)>, new: Vec<(SetName, Element)>) {
        let (old, new): (BTreeSet<_>, BTreeSet<_>) = (old.into_iter().collect(), new.into_iter().collect());
        for (set, element) in old.difference(&new) {
            self.set(*set).removed.push(element.clone());
        }
        for (set, element) in new.difference(&old) {
            self.set(*set).added.push(element.clone());
        }
    }

    fn set(&mut self, set: SetName) -> &mut SetChange {
        self.0.entry(set).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notation::parse;

    fn needs(from: &str, to: &str) -> bool {
        let [from, to] = [from, to].map(|text| parse("node", text).expect("a program"));
        needs_new_epoch(&from, &to, &ProgramDiff::between(&from, &to))
    }

    #[test]
    fn only_mixtures_of_rights_need_an_epoch() {
        let both = "believes endpoints\nother-node 192.0.2.2\nendpoint 10.0.0.1 TCP/80\n";
        let others = "believes endpoints\nother-node 192.0.2.3\nendpoint 10.0.0.1 TCP/80\n";
        let elsewhere = "believes endpoints\nother-node 192.0.2.2\nendpoint 10.0.0.1 TCP/81\n";
        let all_other = "believes endpoints\nother-node 192.0.2.3\nendpoint 10.0.0.1 TCP/81\n";
        let node_alone = "believes endpoints\nother-node 192.0.2.2\n";
        let endpoint_alone = "believes endpoints\nendpoint 10.0.0.1 TCP/80\n";
        let nothing = "believes endpoints\n";
        let alone = [(both, others), (both, elsewhere), (both, node_alone), (both, endpoint_alone), (both, nothing)];
        for (from, to) in alone {
            assert!(!needs(from, to) && !needs(to, from), "{from} {to}");
        }
        for (from, to) in [(node_alone, endpoint_alone), (both, all_other), (others, elsewhere)] {
            assert!(needs(from, to) && needs(to, from), "{from} {to}");
        }
    }

    #[test]
    fn rights_of_different_kinds_are_mixed_too() {
        let known = "believes local-pods\nguard 10.0.0.0/24\nknown 10.0.0.1\nlocal 10.0.0.1\n";
        let node = "believes local-pods\nguard 10.0.0.0/24\nlocal 10.0.0.1\nother-node 192.0.2.2\n";
        assert!(needs(known, node) && needs(node, known));
        let local = "believes local-pods\nlocal 10.0.0.1\n";
        let node = "believes local-pods\nother-node 192.0.2.2\n";
        assert!(needs(local, node) && needs(node, local));
    }

    #[test]
    fn other_tasks_need_an_epoch_and_other_networks_do_not() {
        for task in ["judges-others", "believes endpoints", "believes local-pods", "believes everything"] {
            assert!(needs("", task) && needs(task, ""), "{task}");
        }
        let kept = "local 10.0.0.1\nunmasqueraded 10.128.0.0/9\nguard 10.0.0.0/24\nknown 10.0.0.9";
        let other = "local 10.0.0.2\nunmasqueraded fd00::/9\nguard 10.0.0.0/24\nknown 10.0.0.9";
        assert!(!needs(kept, other));
    }
}
