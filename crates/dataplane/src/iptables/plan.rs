//! What to do in which order, as a value.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ringfence_compile::ProtocolRange;
use ringfence_compile::acl::{Acl, AclEntry, AclNamespace, AclPeers, AclPolicy, AclPorts, AclRule, SetRole};
use ringfence_model::{Direction, Family, PortRange};

use super::diff::AclDiff;
use super::layout::{Chain, Layout, Set};
use super::listing::Stock;
use super::members;
use super::name::{Edition, TRIAL, Table, edition_of_chain, edition_of_set};

/// One step: one process, or a moment of waiting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// What it is for, for people.
    pub(super) title: &'static str,
    pub(super) work: Work,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// The lines of an `ipset restore`. They take effect one by one.
    Sets(Vec<String>),
    /// The lines of an `iptables-restore`. They take effect at once.
    Rules(Family, Vec<String>),
    /// Wait until the packets that are being judged now are through.
    Grace,
    /// Wait until the packets are through that were being judged when the last update had taken rights.
    Owed,
    /// Sets to destroy, as soon as the kernel has let go of the rules that asked them.
    Destroy(Vec<String>),
}

/// For how many elements each set of pods was made.
pub(super) type Capacities = BTreeMap<String, usize>;

fn sets(title: &'static str, lines: Vec<String>) -> Option<Step> {
    (!lines.is_empty()).then_some(Step { title, work: Work::Sets(lines) })
}

fn grace() -> Step {
    Step { title: "let packets that are being judged pass", work: Work::Grace }
}

fn destroy(title: &'static str, names: Vec<String>) -> Option<Step> {
    (!names.is_empty()).then_some(Step { title, work: Work::Destroy(names) })
}

/// A transaction that sets the rules of `chains` and deletes the chains `dead`.
fn commit(
    (table, family): (Table, Family),
    title: &'static str,
    chains: &[Chain],
    jumps: Vec<String>,
    dead: &[String],
) -> Step {
    let mut lines = vec![format!("*{}", table.name())];
    lines.extend(chains.iter().map(|(chain, _)| format!(":{chain} - [0:0]")));
    for (chain, rules) in chains {
        lines.extend(rules.iter().map(|rule| format!("-A {chain} {rule}")));
    }
    lines.extend(jumps);
    lines.extend(dead.iter().map(|chain| format!("-F {chain}")));
    lines.extend(dead.iter().map(|chain| format!("-X {chain}")));
    lines.push("COMMIT".to_owned());
    Step { title, work: Work::Rules(family, lines) }
}

/// A transaction that deletes chains, if there are any to delete. Packets that are on their way there must be through: they
/// would find the chains empty, and a chain that ends without a verdict lets them pass.
fn delete(family: Family, title: &'static str, dead: &[String]) -> Option<Step> {
    (!dead.is_empty()).then(|| commit((Table::Filter, family), title, &[], Vec::new(), dead))
}

/// The order in which tables come into force. Where packets come from is told before anybody believes it, so that none
/// is refused for want of it.
const ORDER: [Table; 3] = [Table::Mangle, Table::Filter, Table::Nat];

/// What it means that the rules of a table are there.
fn purpose(table: Table, family: Family) -> &'static str {
    match (table, family) {
        (Table::Filter, Family::V4) => "bring the IPv4 rules into force",
        (Table::Filter, Family::V6) => "bring the IPv6 rules into force",
        (Table::Mangle, Family::V4) => "mark what comes from other nodes over IPv4",
        (Table::Mangle, Family::V6) => "mark what comes from other nodes over IPv6",
        (Table::Nat, Family::V4) => "let pods keep their IPv4 addresses",
        (Table::Nat, Family::V6) => "let pods keep their IPv6 addresses",
    }
}

/// Creates and fills a set.
fn create(set: &Set, capacity: usize) -> impl Iterator<Item = String> {
    [set.create(capacity)].into_iter().chain(set.fill())
}

/// The edition a complete new program is written in, next to what is in the kernel: the first one without a trace, or else
/// one that nothing leads to.
pub(super) fn free_edition(stock: &Stock) -> Edition {
    let live = stock.live();
    let used = |edition: &Edition| stock.editions().contains(edition);
    Edition::all()
        .find(|edition| !used(edition))
        .or_else(|| Edition::all().find(|edition| !live.contains(edition)))
        .unwrap_or_default()
}

/// Everything anew, next to what is there; then all else of ours goes.
pub(super) fn replace(
    layout: Layout<'_>,
    families: &[Family],
    stock: &Stock,
    capacities: &mut Capacities,
) -> Vec<Step> {
    // Without a free edition, the one to use must first be made free.
    let occupied = |edition: Option<Edition>| edition == Some(layout.edition);
    let mut steps = Vec::new();
    for (table, listing) in &stock.tables {
        let dead: Vec<String> =
            listing.chains.keys().filter(|chain| occupied(edition_of_chain(chain))).cloned().collect();
        if !dead.is_empty() {
            steps.push(commit(*table, "delete what an earlier attempt left", &[], Vec::new(), &dead));
        }
    }
    let (left, old): (Vec<String>, Vec<String>) =
        stock.sets.iter().cloned().partition(|set| occupied(edition_of_set(set)));
    steps.extend(destroy("destroy what an earlier attempt left", left));

    capacities.clear();
    let mut lines = Vec::new();
    for family in families {
        for set in layout.sets(*family) {
            let capacity = members::capacity(set.elements.len());
            lines.extend(create(&set, capacity));
            capacities.insert(set.name, capacity);
        }
    }
    steps.extend(sets("create and fill all sets", lines));
    let mut deletions = Vec::new();
    for (table, family) in ORDER.into_iter().flat_map(|table| families.iter().map(move |family| (table, *family))) {
        let listing = stock.tables.get(&(table, family)).cloned().unwrap_or_default();
        let hooks = layout.hooks(table, family);
        let keeps = |chain: &str| hooks.iter().any(|hook| hook.chain() == chain);
        let is_dead = |chain: &&String| !keeps(chain) && !occupied(edition_of_chain(chain));
        let dead: Vec<String> = listing.chains.keys().filter(is_dead).cloned().collect();
        let mut jumps = listing.mend_jumps(&hooks);
        if !hooks.is_empty() {
            let mut chains = layout.chains_in(table, family);
            if let (Table::Mangle, [(chain, rules)]) = (table, chains.as_mut_slice()) {
                let both = mark_for_both(rules, stock.origin(family));
                let alone = std::mem::replace(rules, both);
                if alone != *rules {
                    let chain = [(chain.clone(), alone)];
                    deletions.push(commit(
                        (table, family),
                        "mark no more what was marked before",
                        &chain,
                        Vec::new(),
                        &[],
                    ));
                }
            }
            steps.push(commit((table, family), purpose(table, family), &chains, std::mem::take(&mut jumps), &[]));
        }
        if !(dead.is_empty() && jumps.is_empty()) {
            deletions.push(commit((table, family), "delete the chains of before", &[], jumps, &dead));
        }
    }
    if !deletions.is_empty() {
        steps.push(grace());
        steps.extend(deletions);
    }
    steps.extend(destroy("destroy the sets of before", old));
    steps
}

/// The rules of `RF-ORIGIN` while the filter table goes over from an edition to the next: what either believes is marked.
fn mark_for_both(new: &[String], [clears, marks]: [Vec<String>; 2]) -> Vec<String> {
    let is_old = |rule: &String| !new.contains(rule);
    let clears = clears.into_iter().filter(is_old);
    let marks = marks.into_iter().filter(is_old);
    clears.chain(new.iter().cloned()).chain(marks).collect()
}

/// Removes everything of ours that is in `stock`.
pub(super) fn cleanup(stock: &Stock) -> Vec<Step> {
    let mut steps = Vec::new();
    for (table, listing) in &stock.tables {
        let dead: Vec<String> = listing.chains.keys().cloned().collect();
        let jumps = listing.unhook();
        if !dead.is_empty() || !jumps.is_empty() {
            steps.push(commit(*table, "delete all chains", &[], jumps, &dead));
        }
    }
    steps.extend(destroy("destroy all sets", stock.sets.clone()));
    steps
}

/// How an update is done.
#[derive(Debug)]
pub(super) struct Update {
    pub(super) steps: Vec<Step>,
    /// Packets may be under judgement that have seen what the update took. They must be through before rights are given.
    pub(super) owes_grace: bool,
}

/// The steps from one list to another, in the same edition. `owes_grace` is what the update before left. Nothing, when only
/// [`replace`] can do it.
pub(super) fn update(
    from: Layout<'_>,
    to: Layout<'_>,
    diff: &AclDiff,
    families: &[Family],
    capacities: &mut Capacities,
    owes_grace: bool,
) -> Option<Update> {
    // Which ranges are guarded says the Node, and whom it judges and believes the administrator, hardly ever twice. What is
    // right for that need not be quick.
    if diff.guard_changed || diff.reach_changed {
        return None;
    }
    let mut new = Vec::new();
    let mut dead_sets = Vec::new();
    let mut changes = Changes::default();
    for family in families {
        for (id, _) in &diff.sets.added {
            if let Some(set) = to.set(*id, *family) {
                let capacity = members::capacity(set.elements.len());
                new.extend(create(&set, capacity));
                capacities.insert(set.name, capacity);
            }
        }
        for (id, old) in &diff.sets.removed {
            if members::exists(&old.members, *family) {
                let name = from.names().set(old.role, *family, *id);
                capacities.remove(&name);
                dead_sets.push(name);
            }
        }
        changes.gather(to, diff, *family, capacities)?;
    }
    let Changes { take, give } = changes;

    let common = common(from.acl, to.acl, diff);
    let middle = Layout { acl: &common, ..to };
    let (mut take_rules, mut give_rules, mut deletions) = (Vec::new(), Vec::new(), Vec::new());
    for family in families {
        take_rules.extend(rules("take rights by rules", from, middle, diff, *family));
        give_rules.extend(rules("give rights by rules", middle, to, diff, *family));
        deletions.extend(delete(*family, "delete dead chains", &dead_chains(from, to, diff, *family)));
    }

    let takes = !(take.is_empty() && take_rules.is_empty());
    let gives = !(give.is_empty() && give_rules.is_empty());
    let mut steps = Vec::new();
    let mut owes_grace = owes_grace;
    if takes && gives {
        let hold = families.iter().flat_map(|family| {
            let all = members::networks(&[members::everything(*family)], &[], *family);
            let set = to.names().hold(*family);
            all.into_iter().map(move |half| format!("add {set} {half}"))
        });
        steps.extend(sets("create new sets, refuse in silence, take rights", [new, hold.collect(), take].concat()));
        steps.extend(take_rules);
        steps.push(grace());
        steps.extend(give_rules);
        steps.extend(sets("give rights", give));
        steps.push(grace());
        let release = families.iter().map(|family| format!("flush {}", to.names().hold(*family)));
        steps.extend(sets("refuse aloud", release.collect()));
        owes_grace = false;
    } else {
        if gives && owes_grace {
            steps.push(Step { title: "let packets pass that saw the last update", work: Work::Owed });
            owes_grace = false;
        }
        steps.extend(sets(if gives { "give rights" } else { "take rights" }, [new, take].concat()));
        steps.extend(take_rules);
        steps.extend(give_rules);
        steps.extend(sets("give rights", give));
        owes_grace |= takes;
        if !deletions.is_empty() {
            steps.push(grace());
            owes_grace = false;
        }
    }
    steps.extend(deletions);
    steps.extend(destroy("destroy dead sets", dead_sets));
    Some(Update { steps, owes_grace })
}

/// What both lists allow by their rules: the namespaces of both, and of those that differ what both versions admit in the
/// same place.
fn common(from: &Acl, to: &Acl, diff: &AclDiff) -> Acl {
    let mut common = to.clone();
    for (id, set) in &from.sets {
        if !common.sets.contains_key(id) {
            common.sets.insert(*id, set.clone());
        }
    }
    for direction in Direction::ALL {
        let side = match direction {
            Direction::Ingress => &mut common.ingress,
            Direction::Egress => &mut common.egress,
        };
        for (name, old) in &diff.side(direction).removed {
            side.insert(name.clone(), old.clone());
        }
        for (name, old, new) in &diff.side(direction).changed {
            side.insert(name.clone(), Arc::new(common_namespace(old, new)));
        }
    }
    common
}

fn common_namespace(old: &AclNamespace, new: &AclNamespace) -> AclNamespace {
    let policies = new.policies.iter().filter_map(|new| {
        let old = old.policies.iter().find(|old| old.name == new.name)?;
        if Arc::ptr_eq(old, new) || old == new {
            return Some(new.clone());
        }
        let same_pods = old.selected == new.selected;
        let rules = old.rules.iter().zip(&new.rules).map(|(old, new)| {
            let pairs = old.entries.iter().flat_map(|old| new.entries.iter().map(move |new| (old, new)));
            let entries: BTreeSet<AclEntry> =
                pairs.filter(|_| same_pods).filter_map(|(a, b)| overlap(*a, *b)).collect();
            AclRule { entries: entries.into_iter().collect() }
        });
        Some(Arc::new(AclPolicy { name: new.name.clone(), selected: new.selected, rules: rules.collect() }))
    });
    AclNamespace { isolated: new.isolated, policies: policies.collect() }
}

/// What two entries both admit, as far as one entry can say it.
fn overlap(a: AclEntry, b: AclEntry) -> Option<AclEntry> {
    let peers = match (a.peers, b.peers) {
        (AclPeers::Anyone, peers) | (peers, AclPeers::Anyone) => peers,
        (one, other) => (one == other).then_some(one)?,
    };
    let ports = match (a.ports, b.ports) {
        (AclPorts::Any, ports) | (ports, AclPorts::Any) => ports,
        (AclPorts::Range(a), AclPorts::Range(b)) if a.protocol == b.protocol => {
            let ports = PortRange { first: a.ports.first.max(b.ports.first), last: a.ports.last.min(b.ports.last) };
            (ports.first <= ports.last).then_some(AclPorts::Range(ProtocolRange { ports, ..a }))?
        }
        (one, other) => (one == other).then_some(one)?,
    };
    Some(AclEntry { peers, ports })
}

/// Changes of sets that both lists have.
#[derive(Default)]
struct Changes {
    take: Vec<String>,
    give: Vec<String>,
}

impl Changes {
    fn gather(&mut self, to: Layout<'_>, diff: &AclDiff, family: Family, capacities: &mut Capacities) -> Option<()> {
        for (id, old, new) in &diff.sets.changed {
            if old.role != new.role {
                return None;
            }
            let change = members::difference(&old.members, &new.members, family)?;
            let name = to.names().set(new.role, family, *id);
            let remove = change.removed.iter().map(|element| format!("del {name} {element}"));
            let (removals, additions) = match new.role {
                SetRole::Isolated => (&mut self.give, &mut self.take),
                SetRole::Selected
                | SetRole::Peers
                | SetRole::Serving
                | SetRole::Known
                | SetRole::Local
                | SetRole::Nodes
                | SetRole::Believed => (&mut self.take, &mut self.give),
            };
            removals.extend(remove);
            if change.added.is_empty() {
                continue;
            }
            // Members are added to a set of isolated pods before others are removed.
            let isolated = new.role == SetRole::Isolated;
            let most = members::count(&new.members) + if isolated { change.removed.len() } else { 0 };
            if capacities.get(&name).is_some_and(|capacity| most <= *capacity) {
                additions.extend(change.added.iter().map(|element| format!("add {name} {element}")));
                continue;
            }
            let mut set = to.set(*id, family)?;
            if isolated {
                set.elements.extend(change.removed);
            }
            set.name = to.names().temporary(family, *id);
            let capacity = members::capacity(most);
            additions.extend(create(&set, capacity));
            additions.extend([format!("swap {} {name}", set.name), format!("destroy {}", set.name)]);
            capacities.insert(name, capacity);
        }
        Some(())
    }
}

/// The transaction that changes the rules of one family, if they do change. Deletes nothing.
fn rules(title: &'static str, from: Layout<'_>, to: Layout<'_>, diff: &AclDiff, family: Family) -> Option<Step> {
    let mut chains: Vec<Chain> = Vec::new();
    for (direction, name) in touched(diff) {
        let old: BTreeMap<String, Vec<String>> = chains_of(from, direction, name, family).into_iter().collect();
        let new = chains_of(to, direction, name, family);
        chains.extend(new.into_iter().filter(|(chain, rules)| old.get(chain) != Some(rules)));
    }
    if touched(diff).next().is_some() {
        let old: BTreeMap<String, Vec<String>> = from.entrances(family).into_iter().collect();
        chains.extend(to.entrances(family).into_iter().filter(|(chain, rules)| old.get(chain) != Some(rules)));
    }
    (!chains.is_empty()).then(|| commit((Table::Filter, family), title, &chains, Vec::new(), &[]))
}

/// The chains of one family that the new list has not any more.
fn dead_chains(from: Layout<'_>, to: Layout<'_>, diff: &AclDiff, family: Family) -> Vec<String> {
    let mut dead = Vec::new();
    for (direction, name) in touched(diff) {
        let kept: BTreeSet<String> =
            chains_of(to, direction, name, family).into_iter().map(|(chain, _)| chain).collect();
        let old = chains_of(from, direction, name, family).into_iter().map(|(chain, _)| chain);
        dead.extend(old.filter(|chain| !kept.contains(chain)));
    }
    dead
}

/// The namespaces that differ.
fn touched(diff: &AclDiff) -> impl Iterator<Item = (Direction, &Arc<str>)> {
    [Direction::Egress, Direction::Ingress].into_iter().flat_map(|direction| {
        let side = diff.side(direction);
        let removed = side.removed.iter().map(|(name, _)| name);
        let added = side.added.iter().map(|(name, _)| name);
        let changed = side.changed.iter().map(|(name, ..)| name);
        removed.chain(added).chain(changed).map(move |name| (direction, name))
    })
}

/// The chains of a namespace, none if the list does not have it.
fn chains_of(layout: Layout<'_>, direction: Direction, name: &str, family: Family) -> Vec<Chain> {
    let namespace = layout.acl.side(direction).get(name);
    namespace.map_or_else(Vec::new, |namespace| layout.namespace(direction, name, namespace, family))
}

/// A transaction that puts rules into a chain that nothing leads to, and one that undoes it.
pub(super) fn trial(table: Table, rules: &[String]) -> [String; 2] {
    let lines: String = rules.iter().map(|rule| format!("-A {TRIAL} {rule}\n")).collect();
    let table = table.name();
    [format!("*{table}\n:{TRIAL} - [0:0]\n{lines}COMMIT\n"), format!("*{table}\n-F {TRIAL}\n-X {TRIAL}\nCOMMIT\n")]
}
