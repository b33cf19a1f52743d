//! The names of our chains and sets in the kernel.
//!
//! A name is a prefix that says it is ours, the edition, what it is for, and where there are many of a kind, 80 bits of
//! a digest. No text that users wrote is in it, and it tells without memory that it is ours. iptables takes 28
//! characters for a chain, ipset 31 for a set.

use ringfence_compile::acl::{SetId, SetRole};
use ringfence_model::{Direction, Family};
use sha2::{Digest as _, Sha256};

/// Characters of a digest in a name, 5 bits each.
const DIGEST: usize = 16;
const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// What sets with a digest in their name are for.
const SET_ROLES: [&str; 9] = ["iso", "sel", "peer", "serv", "known", "local", "nodes", "judged", "tmp"];

/// A chain for trying whether the kernel takes a rule.
pub(super) const TRIAL: &str = "RF-TRIAL";

/// Keeps a whole set of names apart from another one, so that both can be in the kernel at once: a digit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Edition(u8);

impl Edition {
    /// All of them.
    pub(super) fn all() -> impl Iterator<Item = Edition> {
        (0..10).map(Edition)
    }
}

/// A table of the kernel with chains of ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Table {
    /// Where packets are refused.
    #[default]
    Filter,
    /// Where packets are that no route was sought for yet.
    Mangle,
    /// Where addresses are replaced.
    Nat,
}

impl Table {
    pub(super) const ALL: [Table; 3] = [Table::Filter, Table::Mangle, Table::Nat];

    pub(super) fn name(self) -> &'static str {
        match self {
            Table::Filter => "filter",
            Table::Mangle => "mangle",
            Table::Nat => "nat",
        }
    }
}

/// A chain of the kernel that we hook into, and the chain of ours it leads to. Ours has no edition: it is where an
/// edition comes into force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hook {
    /// Routed packets.
    Forward,
    /// Packets that leave the node's own stack.
    Output,
    /// Packets that come in, with the address they were sent to.
    Arrival,
    /// The first packet of a connection that leaves the node, with the address it was sent from.
    Departure,
}

impl Hook {
    pub(super) const ALL: [Hook; 4] = [Hook::Forward, Hook::Output, Hook::Arrival, Hook::Departure];

    pub(super) fn table(self) -> Table {
        match self {
            Hook::Forward | Hook::Output => Table::Filter,
            Hook::Arrival => Table::Mangle,
            Hook::Departure => Table::Nat,
        }
    }

    /// The built-in chain.
    pub(super) fn builtin(self) -> &'static str {
        match self {
            Hook::Forward => "FORWARD",
            Hook::Output => "OUTPUT",
            Hook::Arrival => "PREROUTING",
            Hook::Departure => "POSTROUTING",
        }
    }

    /// Our chain.
    pub(super) fn chain(self) -> &'static str {
        match self {
            Hook::Forward => "RF-FORWARD",
            Hook::Output => "RF-OUTPUT",
            Hook::Arrival => "RF-ORIGIN",
            Hook::Departure => "RF-POSTROUTING",
        }
    }
}

/// The names of one edition.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names(pub(super) Edition);

impl Names {
    /// The chain for the isolated pods of a namespace.
    pub(super) fn namespace(self, direction: Direction, namespace: &str) -> String {
        self.chain("NS", direction, &[namespace])
    }

    /// The chain that goes through the policies of a namespace.
    pub(super) fn policies(self, direction: Direction, namespace: &str) -> String {
        self.chain("POL", direction, &[namespace])
    }

    /// The chain that marks what a rule of a policy admits.
    pub(super) fn rule(self, direction: Direction, namespace: &str, policy: &str, rule: usize) -> String {
        self.chain("RULE", direction, &[namespace, policy, &rule.to_string()])
    }

    /// The chain that refuses who is not known.
    pub(super) fn unknown(self, direction: Direction) -> String {
        format!("RF{}-UNKNOWN-{}", self.0.0, short(direction))
    }

    /// The chain for what the node itself sends.
    pub(super) fn own(self) -> String {
        format!("RF{}-OWN", self.0.0)
    }

    /// The chain for what another node has judged.
    pub(super) fn believed(self) -> String {
        format!("RF{}-BELIEVED", self.0.0)
    }

    /// A set of the program.
    pub(super) fn set(self, role: SetRole, family: Family, id: SetId) -> String {
        let role = match role {
            SetRole::Isolated => "iso",
            SetRole::Selected => "sel",
            SetRole::Peers => "peer",
            SetRole::Serving => "serv",
            SetRole::Known => "known",
            SetRole::Local => "local",
            SetRole::Nodes => "nodes",
            SetRole::Believed => "judged",
        };
        format!("{}-{}", self.fixed_set(role, family), base32(id.0))
    }

    /// What a set is called while it is made anew, until it is swapped with the one there is.
    pub(super) fn temporary(self, family: Family, id: SetId) -> String {
        format!("{}-{}", self.fixed_set("tmp", family), base32(id.0))
    }

    /// The set that turns every refusal into silence while it is filled.
    pub(super) fn hold(self, family: Family) -> String {
        self.fixed_set("hold", family)
    }

    /// The set of addresses that policies are about.
    pub(super) fn range(self, family: Family) -> String {
        self.fixed_set("range", family)
    }

    /// The set of networks towards which pods keep their addresses.
    pub(super) fn kept(self, family: Family) -> String {
        self.fixed_set("kept", family)
    }

    fn fixed_set(self, what: &str, family: Family) -> String {
        format!("rf{}-{what}{}", self.0.0, digit(family))
    }

    fn chain(self, what: &str, direction: Direction, of: &[&str]) -> String {
        let direction = short(direction);
        let mut digest = Sha256::new();
        for text in of {
            digest.update((text.len() as u64).to_be_bytes());
            digest.update(text.as_bytes());
        }
        let mut first = [0; 16];
        first.copy_from_slice(&digest.finalize()[..16]);
        format!("RF{}-{what}-{direction}-{}", self.0.0, base32(u128::from_be_bytes(first)))
    }
}

/// Whether a chain of a table is ours, of whatever edition.
pub(super) fn is_our_chain(table: Table, name: &str) -> bool {
    let is_hooked = Hook::ALL.into_iter().any(|hook| hook.table() == table && hook.chain() == name);
    name == TRIAL || is_hooked || table == Table::Filter && edition_of_chain(name).is_some()
}

/// The edition of a chain, if it is one of ours that has one.
pub(super) fn edition_of_chain(name: &str) -> Option<Edition> {
    let (edition, rest) = edition(name, "RF")?;
    if matches!(rest, "OWN" | "BELIEVED") {
        return Some(edition);
    }
    let mut parts = rest.split('-');
    let (what, direction) = (parts.next()?, parts.next()?);
    let is_named = match parts.next() {
        Some(digest) => matches!(what, "NS" | "POL" | "RULE") && is_digest(digest),
        None => what == "UNKNOWN",
    };
    let ours = is_named && matches!(direction, "IN" | "EG") && parts.next().is_none();
    ours.then_some(edition)
}

/// The edition of a set, if it is one of ours.
pub(super) fn edition_of_set(name: &str) -> Option<Edition> {
    let (edition, rest) = edition(name, "rf")?;
    let (what, digest) = rest.split_once('-').map_or((rest, None), |(what, digest)| (what, Some(digest)));
    let what = what.strip_suffix(['4', '6'])?;
    let ours = match digest {
        None => matches!(what, "hold" | "range" | "kept"),
        Some(digest) => SET_ROLES.contains(&what) && is_digest(digest),
    };
    ours.then_some(edition)
}

fn edition<'a>(name: &'a str, prefix: &str) -> Option<(Edition, &'a str)> {
    let (digit, rest) = name.strip_prefix(prefix)?.split_once('-')?;
    match digit.as_bytes() {
        [digit @ b'0'..=b'9'] => Some((Edition(digit - b'0'), rest)),
        _ => None,
    }
}

/// A text with the digits of editions left out.
pub(super) fn without_edition(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("RF").into_iter().chain(rest.find("rf")).min() {
        let (before, name) = rest.split_at(at + 2);
        plain.push_str(before);
        rest = name.strip_prefix(|character: char| character.is_ascii_digit()).unwrap_or(name);
    }
    plain + rest
}

fn is_digest(text: &str) -> bool {
    text.len() == DIGEST && text.bytes().all(|byte| ALPHABET.contains(&byte))
}

/// The first 80 bits.
fn base32(number: u128) -> String {
    let digit = |place: usize| {
        let value = (number >> (123 - 5 * place)) & 31;
        char::from(ALPHABET[usize::try_from(value).unwrap_or_default()])
    };
    (0..DIGEST).map(digit).collect()
}

/// A direction in the name of a chain.
fn short(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "IN",
        Direction::Egress => "EG",
    }
}

/// A family in the name of a set.
fn digit(family: Family) -> char {
    match family {
        Family::V4 => '4',
        Family::V6 => '6',
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_are_recognised() {
        for edition in Edition::all() {
            let names = Names(edition);
            for direction in Direction::ALL {
                let long = "n".repeat(300);
                let chains = [
                    names.namespace(direction, &long),
                    names.policies(direction, &long),
                    names.rule(direction, &long, &long, usize::MAX),
                    names.unknown(direction),
                    names.own(),
                    names.believed(),
                ];
                for chain in chains {
                    assert!(chain.len() <= 28, "{chain}");
                    assert_eq!(edition_of_chain(&chain), Some(edition), "{chain}");
                }
            }
            for family in Family::ALL {
                let id = SetId(u128::MAX);
                let roles = [
                    SetRole::Isolated,
                    SetRole::Selected,
                    SetRole::Peers,
                    SetRole::Serving,
                    SetRole::Known,
                    SetRole::Local,
                    SetRole::Nodes,
                    SetRole::Believed,
                ];
                let mut sets = roles.map(|role| names.set(role, family, id)).to_vec();
                sets.extend([names.temporary(family, id), names.hold(family)]);
                sets.extend([names.range(family), names.kept(family)]);
                for set in sets {
                    assert!(set.len() <= 31, "{set}");
                    assert_eq!(edition_of_set(&set), Some(edition), "{set}");
                }
            }
        }
    }

    #[test]
    fn what_only_looks_like_ours_is_not() {
        for name in [
            "RF-INPUT",
            "RF0",
            "RF0-OWNER",
            "RF0-OWN-IN",
            "RF0-UNKNOWN-FW",
            "RF0-UNKNOWN-IN-AAAAAAAAAAAAAAAA",
            "RF0-NS-IN",
            "RF10-NS-IN-AAAAAAAAAAAAAAAA",
            "RF0-NS-IN-AAAAAAAAAAAAAAA1",
            "",
        ] {
            assert!(Table::ALL.into_iter().all(|table| !is_our_chain(table, name)), "{name}");
        }
        for (table, name) in [(Table::Nat, "RF-FORWARD"), (Table::Filter, "RF-ORIGIN"), (Table::Mangle, "RF0-OWN")] {
            assert!(!is_our_chain(table, name), "{name} is of another table");
        }
        for name in [
            "rf",
            "rf0-hold",
            "rf0-local4",
            "rf0-kept4-AAAAAAAAAAAAAAAA",
            "rf0-hold4-AAAAAAAAAAAAAAAA",
            "rf0-iso4",
            "rf0-iso5-AAAAAAAAAAAAAAAA",
            "rfx-hold4",
        ] {
            assert_eq!(edition_of_set(name), None, "{name}");
        }
    }

    #[test]
    fn lengths_keep_texts_apart() {
        let names = Names(Edition::default());
        assert_ne!(names.rule(Direction::Ingress, "a", "bc", 0), names.rule(Direction::Ingress, "ab", "c", 0));
        assert_ne!(names.rule(Direction::Ingress, "a", "b", 0), names.rule(Direction::Ingress, "a", "b", 1));
    }
}
