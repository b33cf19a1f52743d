//! A transaction, as a value: the operations the kernel performs all or not at all.

use std::fmt;

use super::name::{ChainName, Epoch, SetName, TABLE};
use super::ruleset::{Element, Rule, Ruleset};

/// One operation. The order in a transaction matters only for references: what is pointed at must exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// Adds our table, unless it exists.
    EnsureTable,
    /// Deletes our table with all that is in it. It must exist.
    DeleteTable,
    /// Deletes every rule of our table.
    FlushTable,
    /// Adds a base chain, unless it exists; then it must be on the same hook.
    EnsureBaseChain(ChainName),
    /// Adds a chain that must not exist.
    AddChain(ChainName),
    /// Deletes every rule of a chain.
    FlushChain(ChainName),
    /// Deletes a chain without rules that nothing points at.
    DeleteChain(String),
    /// Appends a rule.
    AddRule(ChainName, Rule),
    /// Adds a set that must not exist.
    AddSet(SetName),
    /// Deletes the elements of a set, whatever they are.
    FlushSet(String),
    /// Deletes a set that no rule asks. Packets that came in before go on to find its elements, but not those of a map of
    /// verdicts.
    DeleteSet(String),
    /// Adds elements, none of which must exist.
    AddElements(SetName, Vec<Element>),
    /// Deletes elements, all of which must exist.
    DeleteElements(SetName, Vec<Element>),
}

/// What our table holds in the kernel, whoever put it there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Inventory {
    /// The table itself.
    pub(super) table: TableState,
    /// Names of base chains that are as we make them.
    pub(super) base_chains: Vec<String>,
    /// Names of all other chains.
    pub(super) chains: Vec<String>,
    /// Names of sets and maps.
    pub(super) sets: Vec<String>,
}

/// Our table in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum TableState {
    /// There is none.
    #[default]
    Absent,
    /// As we make it.
    Good,
    /// With flags: somebody has put it to sleep (`dormant`), or made it go away with a process (`owner`).
    Flagged,
}

/// The transaction after which our table holds `ruleset` and nothing else.
///
/// Good base chains stay: taking a hook away and putting it back is the one thing here that is slow in the kernel.
pub(super) fn replace(ruleset: Ruleset, present: Inventory) -> Vec<Op> {
    let mut ops = Vec::new();
    if present.table == TableState::Flagged {
        // The kernel does not wake a table and take new base chains for it in one transaction.
        ops.extend([Op::DeleteTable, Op::EnsureTable]);
    } else {
        ops.extend([Op::EnsureTable, Op::FlushTable]);
        // To packets on their way through the old rules, the maps are empty: they must learn that the rules are old.
        let epochs = Epoch::ALL.map(|epoch| SetName::of_epoch(epoch).to_string());
        ops.extend(epochs.into_iter().filter(|epoch| present.sets.contains(epoch)).map(Op::FlushSet));
        // Maps point at chains, so they go first.
        ops.extend(present.sets.into_iter().map(Op::DeleteSet));
        ops.extend(present.chains.into_iter().map(Op::DeleteChain));
        let wanted: Vec<String> = ruleset.chains.iter().map(|(chain, _)| chain.to_string()).collect();
        let unwanted = present.base_chains.into_iter().filter(|chain| !wanted.contains(chain));
        ops.extend(unwanted.map(Op::DeleteChain));
    }
    ops.extend(ruleset.chains.iter().map(|(chain, _)| Op::new_chain(*chain)));
    for (set, elements) in ruleset.sets {
        ops.push(Op::AddSet(set));
        if !elements.is_empty() {
            ops.push(Op::AddElements(set, elements));
        }
    }
    for (chain, rules) in ruleset.chains {
        ops.extend(rules.into_iter().map(|rule| Op::AddRule(chain, rule)));
    }
    ops
}

/// For errors: `adding 10.1.2.3 to in4_peer`.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::EnsureTable => write!(f, "adding table inet {TABLE}"),
            Op::DeleteTable => write!(f, "deleting table inet {TABLE}"),
            Op::FlushTable => write!(f, "deleting the rules of table inet {TABLE}"),
            Op::EnsureBaseChain(chain) | Op::AddChain(chain) => write!(f, "adding chain {chain}"),
            Op::FlushChain(chain) => write!(f, "deleting the rules of chain {chain}"),
            Op::DeleteChain(chain) => write!(f, "deleting chain {chain}"),
            Op::AddRule(chain, rule) => write!(f, "adding rule '{rule}' to chain {chain}"),
            Op::AddSet(set) => write!(f, "adding set {set}"),
            Op::FlushSet(set) => write!(f, "deleting the elements of {set}"),
            Op::DeleteSet(set) => write!(f, "deleting set {set}"),
            Op::AddElements(set, elements) => write!(f, "adding {} elements to {set}", elements.len()),
            Op::DeleteElements(set, elements) => write!(f, "deleting {} elements from {set}", elements.len()),
        }
    }
}

impl Op {
    /// Adds a chain that is not there, or is a base chain as it should be.
    pub(super) fn new_chain(chain: ChainName) -> Op {
        match chain {
            ChainName::Base(_) => Op::EnsureBaseChain(chain),
            _ => Op::AddChain(chain),
        }
    }

    /// The same about one element.
    pub(super) fn describe_element(&self, index: usize) -> String {
        match self {
            Op::AddElements(set, elements) if index < elements.len() => {
                format!("adding {} to {set}", elements[index])
            }
            Op::DeleteElements(set, elements) if index < elements.len() => {
                format!("deleting {} from {set}", elements[index])
            }
            _ => self.to_string(),
        }
    }
}
