//! What to do in which order, as a value.

use std::collections::{BTreeMap, BTreeSet};

use ringfence_compile::acl::SetRole;
use ringfence_model::{Direction, Family};

use super::diff::AclDiff;
use super::layout::{Chain, Layout, Set};
use super::listing::Stock;
use super::members;
use super::name::{Edition, Hook, TRIAL, edition_of_chain, edition_of_set};

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
fn commit(family: Family, title: &'static str, chains: &[Chain], jumps: Vec<String>, dead: &[String]) -> Step {
    let mut lines = vec!["*filter".to_owned()];
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
    for (family, listing) in &stock.families {
        let dead: Vec<String> =
            listing.chains.keys().filter(|chain| occupied(edition_of_chain(chain))).cloned().collect();
        if !dead.is_empty() {
            steps.push(commit(*family, "delete what an earlier attempt left", &[], Vec::new(), &dead));
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
    for family in families {
        let listing = stock.families.get(family).cloned().unwrap_or_default();
        let keeps = |chain: &str| Hook::ALL.into_iter().any(|hook| hook.chain() == chain);
        let is_dead = |chain: &&String| !keeps(chain) && !occupied(edition_of_chain(chain));
        let dead: Vec<String> = listing.chains.keys().filter(is_dead).cloned().collect();
        let title = match family {
            Family::V4 => "bring the IPv4 rules into force",
            Family::V6 => "bring the IPv6 rules into force",
        };
        steps.push(commit(*family, title, &layout.chains(*family), listing.mend_jumps(), &dead));
    }
    steps.extend(destroy("destroy the sets of before", old));
    steps
}

/// Removes everything of ours that is in `stock`.
pub(super) fn cleanup(stock: &Stock) -> Vec<Step> {
    let mut steps = Vec::new();
    for (family, listing) in &stock.families {
        let dead: Vec<String> = listing.chains.keys().cloned().collect();
        let jumps = listing.unhook();
        if !dead.is_empty() || !jumps.is_empty() {
            steps.push(commit(*family, "delete all chains", &[], jumps, &dead));
        }
    }
    steps.extend(destroy("destroy all sets", stock.sets.clone()));
    steps
}

/// The steps from one list to another, in the same edition. Nothing, when only [`replace`] can do it.
pub(super) fn update(
    from: Layout<'_>,
    to: Layout<'_>,
    diff: &AclDiff,
    families: &[Family],
    capacities: &mut Capacities,
) -> Option<Vec<Step>> {
    let mut new = Vec::new();
    let mut dead = Vec::new();
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
                dead.push(name);
            }
        }
        changes.gather(to, diff, *family, capacities)?;
    }
    let rules: Vec<Step> = families.iter().filter_map(|family| rules(from, to, diff, *family)).collect();
    let Changes { take, give } = changes;

    let mut steps = Vec::new();
    if rules.is_empty() && (take.is_empty() || give.is_empty()) {
        let title = if take.is_empty() { "give rights" } else { "take rights" };
        steps.extend(sets(title, [new, take, give].concat()));
    } else if take.is_empty() && give.is_empty() {
        steps.extend(sets("create new sets", new));
        steps.extend(rules);
    } else {
        let takes = !take.is_empty();
        let hold = families.iter().flat_map(|family| {
            let all = members::networks(&[members::everything(*family)], &[], *family);
            let set = to.names().hold(*family);
            all.into_iter().map(move |half| format!("add {set} {half}"))
        });
        steps.extend(sets("create new sets, refuse in silence, take rights", [new, hold.collect(), take].concat()));
        // Without a taking there is nothing that packets under judgement could have looked at before it.
        if takes {
            steps.push(grace());
        }
        if !rules.is_empty() {
            steps.extend(rules);
            steps.push(grace());
        }
        if !give.is_empty() {
            steps.extend(sets("give rights", give));
            steps.push(grace());
        }
        let release = families.iter().map(|family| format!("flush {}", to.names().hold(*family)));
        steps.extend(sets("refuse aloud", release.collect()));
    }
    steps.extend(destroy("destroy dead sets", dead));
    Some(steps)
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
                SetRole::Selected | SetRole::Peers | SetRole::Serving => (&mut self.take, &mut self.give),
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

/// The transaction that changes the rules of one family, if they do change.
fn rules(from: Layout<'_>, to: Layout<'_>, diff: &AclDiff, family: Family) -> Option<Step> {
    let mut chains: Vec<Chain> = Vec::new();
    let mut dead: Vec<String> = Vec::new();
    let mut touched = false;
    for direction in [Direction::Egress, Direction::Ingress] {
        let diff = diff.side(direction);
        let removed = diff.removed.iter().map(|(name, old)| (name, Some(old), None));
        let added = diff.added.iter().map(|(name, new)| (name, None, Some(new)));
        let changed = diff.changed.iter().map(|(name, old, new)| (name, Some(old), Some(new)));
        for (name, old, new) in removed.chain(added).chain(changed) {
            touched = true;
            let old = old.map_or_else(Vec::new, |old| from.namespace(direction, name, old, family));
            let new = new.map_or_else(Vec::new, |new| to.namespace(direction, name, new, family));
            let kept: BTreeSet<&str> = new.iter().map(|(chain, _)| chain.as_str()).collect();
            dead.extend(old.iter().map(|(chain, _)| chain).filter(|chain| !kept.contains(chain.as_str())).cloned());
            let old: BTreeMap<&str, &[String]> =
                old.iter().map(|(chain, rules)| (chain.as_str(), rules.as_slice())).collect();
            let differs = |(chain, rules): &Chain| old.get(chain.as_str()) != Some(&rules.as_slice());
            chains.extend(new.iter().filter(|chain| differs(chain)).cloned());
        }
    }
    if touched {
        for hook in Hook::ALL {
            let rules = to.hook(hook, family);
            if rules != from.hook(hook, family) {
                chains.push((hook.chain().to_owned(), rules));
            }
        }
    }
    let title = match family {
        Family::V4 => "change the IPv4 rules",
        Family::V6 => "change the IPv6 rules",
    };
    (!chains.is_empty() || !dead.is_empty()).then(|| commit(family, title, &chains, Vec::new(), &dead))
}

/// A transaction that puts rules into a chain that nothing leads to, and one that undoes it.
pub(super) fn trial(rules: &[String]) -> [String; 2] {
    let lines: String = rules.iter().map(|rule| format!("-A {TRIAL} {rule}\n")).collect();
    [format!("*filter\n:{TRIAL} - [0:0]\n{lines}COMMIT\n"), format!("*filter\n-F {TRIAL}\n-X {TRIAL}\nCOMMIT\n")]
}
