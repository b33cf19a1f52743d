//! What of ours is in the kernel, read from `iptables-save` and `ipset`. Of everything else only what leads to our chains
//! is looked at.

use std::collections::{BTreeMap, BTreeSet};

use ringfence_model::Family;

use super::members::normal;
use super::name::{Edition, Hook, Table, edition_of_chain, edition_of_set, is_our_chain};

/// What of ours there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stock {
    pub(super) tables: BTreeMap<(Table, Family), Listing>,
    /// Names of our sets.
    pub(super) sets: Vec<String>,
}

/// What of ours is in a table of a family, and what leads there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Listing {
    table: Table,
    /// Our chains and their rules.
    pub(super) chains: BTreeMap<String, Vec<String>>,
    /// The rules of other chains that lead to ours: chain and rule.
    references: Vec<(String, String)>,
    /// The first rule of each other chain.
    first: BTreeMap<String, String>,
}

impl Stock {
    /// The editions that some chain without an edition leads to, ours or not, or whose sets such a chain of ours asks.
    pub(super) fn live(&self) -> BTreeSet<Edition> {
        self.tables.values().flat_map(Listing::live).collect()
    }

    /// The rules of `RF-ORIGIN` that the filter table of a family counts on, those that clear before those that mark.
    pub(super) fn origin(&self, family: Family) -> [Vec<String>; 2] {
        let listing = |table: Table| self.tables.get(&(table, family));
        let rules = listing(Table::Mangle).and_then(|listing| listing.chains.get(Hook::Arrival.chain()));
        let live = listing(Table::Filter).map(Listing::live).unwrap_or_default();
        let asks = |rule: &&String| words(rule).filter_map(edition_of_set).any(|edition| live.contains(&edition));
        let clears = |rule: &&String| rule.starts_with("-j MARK --set-xmark 0x0/");
        let rules = || rules.into_iter().flatten();
        [rules().filter(clears).cloned().collect(), rules().filter(asks).cloned().collect()]
    }

    /// The editions of which anything is there.
    pub(super) fn editions(&self) -> BTreeSet<Edition> {
        let chains = self.tables.values().flat_map(|listing| listing.chains.keys());
        let of_chains = chains.filter_map(|chain| edition_of_chain(chain));
        of_chains.chain(self.sets.iter().filter_map(|set| edition_of_set(set))).collect()
    }
}

impl Listing {
    /// Reads a table of `iptables-save`.
    pub(super) fn read(text: &str, table: Table) -> Listing {
        let mut listing = Listing { table, ..Listing::default() };
        let mut name = "";
        for line in rule_lines(text) {
            if let Some(next) = line.strip_prefix('*') {
                name = next;
            }
            if name != table.name() {
                continue;
            }
            if let Some(chain) = line.strip_prefix(':').and_then(|line| line.split(' ').next()) {
                if is_our_chain(table, chain) {
                    listing.chains.entry(chain.to_owned()).or_default();
                }
            } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|line| line.split_once(' ')) {
                listing.rule(chain, rule);
            }
        }
        listing
    }

    /// The editions that a chain without an edition leads to, ours or not, or whose sets such a chain of ours asks.
    fn live(&self) -> BTreeSet<Edition> {
        let ours = || Hook::ALL.into_iter().filter_map(|hook| self.chains.get(hook.chain())).flatten();
        let rules = ours().chain(self.references.iter().map(|(_, rule)| rule));
        let led_to = rules.filter_map(|rule| edition_of_chain(target(rule)?));
        led_to.chain(ours().flat_map(|rule| words(rule)).filter_map(edition_of_set)).collect()
    }

    fn rule(&mut self, chain: &str, rule: &str) {
        if let Some(rules) = self.chains.get_mut(chain) {
            rules.push(rule.to_owned());
            return;
        }
        self.first.entry(chain.to_owned()).or_insert_with(|| rule.to_owned());
        if target(rule).is_some_and(|target| is_our_chain(self.table, target)) {
            self.references.push((chain.to_owned(), rule.to_owned()));
        }
    }

    /// Which built-in chains lead to ours first of all, once. Nothing, when anything else does.
    pub(super) fn hooked(&self) -> Option<Vec<Hook>> {
        let hooks = Hook::ALL.into_iter().filter(|hook| hook.table() == self.table);
        let hooked: Vec<Hook> = hooks.filter(|hook| self.is_hooked(*hook)).collect();
        self.mend_jumps(&hooked).is_empty().then_some(hooked)
    }

    fn is_hooked(&self, hook: Hook) -> bool {
        self.jumps(hook) == 1 && self.first.get(hook.builtin()) == Some(&jump(hook))
    }

    fn jumps(&self, hook: Hook) -> usize {
        self.references.iter().filter(|(chain, rule)| chain == hook.builtin() && *rule == jump(hook)).count()
    }

    /// What it takes that `hooks` lead to ours first of all, once, and that nothing else does: nothing when it is so.
    pub(super) fn mend_jumps(&self, hooks: &[Hook]) -> Vec<String> {
        let mut lines = Vec::new();
        for hook in hooks.iter().filter(|hook| !self.is_hooked(**hook)) {
            let (builtin, jump) = (hook.builtin(), jump(*hook));
            lines.extend((0..self.jumps(*hook)).map(|_| format!("-D {builtin} {jump}")));
            lines.push(format!("-I {builtin} 1 {jump}"));
        }
        let strays = self
            .references
            .iter()
            .filter(|(chain, rule)| hooks.iter().all(|hook| chain != hook.builtin() || *rule != jump(*hook)));
        lines.extend(strays.map(|(chain, rule)| format!("-D {chain} {rule}")));
        lines
    }

    /// What it takes that no chain of others leads to ours.
    pub(super) fn unhook(&self) -> Vec<String> {
        self.references.iter().map(|(chain, rule)| format!("-D {chain} {rule}")).collect()
    }
}

/// The rule that leads from a built-in chain to ours.
fn jump(hook: Hook) -> String {
    format!("-j {}", hook.chain())
}

/// The lines of an `iptables-save`. What others have put into quotes may go over several.
fn rule_lines(text: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |character: char| {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = quoted,
            '"' => quoted = !quoted,
            _ => {}
        }
        !quoted && character == '\n'
    })
}

/// The words of a rule. Text in quotes is what users wrote, and one word.
fn words(rule: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    rule.split(move |character: char| {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            _ => {}
        }
        !quoted && character == ' '
    })
}

/// The chain or target that a rule leads to.
fn target(rule: &str) -> Option<&str> {
    let mut words = words(rule);
    words.find(|word| matches!(*word, "-j" | "-g"))?;
    words.next()
}

/// Our sets in the output of `ipset list -name`.
pub(super) fn set_names(text: &str) -> Vec<String> {
    text.lines().filter(|name| edition_of_set(name).is_some()).map(str::to_owned).collect()
}

/// The members of our sets in the output of `ipset save`, each with the type of the set.
pub(super) fn set_members(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut sets: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.splitn(3, ' ');
        let (Some(command), Some(name), Some(rest)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        if edition_of_set(name).is_none() {
            continue;
        }
        let member = match command {
            "create" => set_kind(rest),
            _ => normal(rest),
        };
        sets.entry(name.to_owned()).or_default().insert(member);
    }
    sets
}

/// The type and the family of a set, in what follows its name in the line that creates it.
pub(super) fn set_kind(parameters: &str) -> String {
    parameters.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// How many rules of others all tables of an `iptables-save` have.
pub(super) fn rules_of_others(text: &str) -> usize {
    let chains = text.lines().filter_map(|line| line.strip_prefix("-A ")?.split(' ').next());
    chains.filter(|chain| Table::ALL.into_iter().all(|table| !is_our_chain(table, chain))).count()
}

/// Whether an `iptables-save` has a chain of that name.
pub(super) fn has_chain(text: &str, chain: &str) -> bool {
    text.lines().any(|line| line.strip_prefix(':').and_then(|line| line.split(' ').next()) == Some(chain))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILTER: [Hook; 2] = [Hook::Forward, Hook::Output];

    const SAVED: &str = "*nat\n:RF-FORWARD - [0:0]\n-A FORWARD -j RF-FORWARD\nCOMMIT\n*filter\n:FORWARD ACCEPT [0:0]\n\
        :DOCKER - [0:0]\n:RF-FORWARD - [0:0]\n:RF3-NS-IN-AAAAAAAAAAAAAAAA - [0:0]\n\
        -A FORWARD -m comment --comment \"see \\\" -j RF-FORWARD \" -j DOCKER\n-A FORWARD -j RF-FORWARD\n\
        -A FORWARD -j RF-FORWARD\n-A DOCKER -g RF-OUTPUT\n\
        -A RF-FORWARD -m set --match-set rf3-iso4-AAAAAAAAAAAAAAAA dst -j RF3-NS-IN-AAAAAAAAAAAAAAAA\nCOMMIT\n";

    #[test]
    fn jumps_are_mended() {
        let listing = Listing::read(SAVED, Table::Filter);
        assert_eq!(listing.chains.len(), 2);
        assert_eq!(
            listing.mend_jumps(&FILTER),
            [
                "-D FORWARD -j RF-FORWARD",
                "-D FORWARD -j RF-FORWARD",
                "-I FORWARD 1 -j RF-FORWARD",
                "-I OUTPUT 1 -j RF-OUTPUT",
                "-D DOCKER -g RF-OUTPUT",
            ]
        );
        let good = Listing::read(
            "*filter\n-A FORWARD -j RF-FORWARD\n-A FORWARD -j X\n-A OUTPUT -j RF-OUTPUT\n",
            Table::Filter,
        );
        assert_eq!(good.hooked(), Some(FILTER.to_vec()));
        assert_eq!(good.mend_jumps(&[Hook::Forward]), ["-D OUTPUT -j RF-OUTPUT"]);
    }

    #[test]
    fn a_comment_of_others_is_no_rule_however_long() {
        let comment = "-A INPUT -m comment --comment \"x\n-A FORWARD -j RF-FORWARD\n-A \\\" y\" -j ACCEPT\n";
        let listing =
            Listing::read(&format!("*filter\n:RF-FORWARD - [0:0]\n{comment}-A OUTPUT -j RF-OUTPUT\n"), Table::Filter);
        assert_eq!(listing.mend_jumps(&FILTER), ["-I FORWARD 1 -j RF-FORWARD"]);
        assert_eq!(listing.unhook(), ["-D OUTPUT -j RF-OUTPUT"]);
    }

    #[test]
    fn the_edition_in_force_is_found() {
        let stock = Stock {
            tables: [((Table::Filter, Family::V4), Listing::read(SAVED, Table::Filter))].into(),
            sets: vec!["rf0-hold4".to_owned()],
        };
        let editions: Vec<Edition> = Edition::all().collect();
        assert_eq!(stock.live(), [editions[3]].into());
        assert_eq!(stock.editions(), [editions[0], editions[3]].into());
    }
}
