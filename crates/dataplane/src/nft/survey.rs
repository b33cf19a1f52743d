//! Reads back all that is in our table, and compares it by meaning with what should be there.
//!
//! Handles, counters and comments are no meaning. Rules are compared expression by expression with what we would write:
//! an attribute that is zero and one that is missing mean the same (so what a newer kernel adds does not count, unless it
//! is used).

use std::collections::{BTreeMap, BTreeSet};

use super::attribute::{
    Attributes, LIST_ELEMENT, attributes_of, chain, data, element, elements, expression as expression_attribute,
    lookup, marked_attributes_of, rule, set, table, verdict,
};
use super::element::encode as encode_element;
use super::expression::{Verdict, encode as encode_rule};
use super::inventory::{is_anonymous, is_good_base_chain, is_text, number, text, value};
use super::name::{ChainName, SetName, TABLE};
use super::netlink::declare_set;
use super::ruleset::{Element, Rule, Ruleset, comment};
use super::socket::NftSocket;
use crate::backend::ApplyError;

/// What the kernel lists of our table, as attributes.
pub(super) struct Survey {
    table: Option<Vec<u8>>,
    chains: BTreeMap<String, Vec<u8>>,
    /// Rules by chain, in order.
    rules: BTreeMap<String, Vec<Vec<u8>>>,
    sets: BTreeMap<String, Vec<u8>>,
    /// Lists of elements by set.
    elements: BTreeMap<String, Vec<Vec<u8>>>,
}

/// Reads. It is for the caller to know whether anything changed meanwhile.
pub(super) fn read(socket: &mut NftSocket) -> Result<Survey, ApplyError> {
    let of_table = |attribute| {
        let mut attributes = Vec::new();
        Attributes(&mut attributes).text(attribute, TABLE);
        attributes
    };
    let ours = |object: &Vec<u8>, attribute| is_text(object, attribute, TABLE);
    let tables = socket.list_some(libc::NFT_MSG_GETTABLE, &[])?.objects;
    let chains = socket.list_some(libc::NFT_MSG_GETCHAIN, &[])?.objects;
    let all_rules = socket.list_some(libc::NFT_MSG_GETRULE, &of_table(rule::TABLE))?.objects;
    let sets = socket.list_some(libc::NFT_MSG_GETSET, &of_table(set::TABLE))?.objects;
    let mut survey = Survey {
        table: tables.into_iter().find(|object| ours(object, table::NAME)),
        chains: named(chains.into_iter().filter(|object| ours(object, chain::TABLE)), chain::NAME),
        rules: BTreeMap::new(),
        sets: named(sets.into_iter().filter(|set| ours(set, set::TABLE) && !is_anonymous(set)), set::NAME),
        elements: BTreeMap::new(),
    };
    for object in all_rules.into_iter().filter(|object| ours(object, rule::TABLE)) {
        survey.rules.entry(text(&object, rule::CHAIN).unwrap_or_default()).or_default().push(object);
    }
    for name in survey.sets.keys() {
        let mut of_set = of_table(elements::TABLE);
        Attributes(&mut of_set).text(elements::SET, name);
        let lists = socket.list_some(libc::NFT_MSG_GETSETELEM, &of_set)?.objects;
        survey.elements.insert(name.clone(), lists);
    }
    Ok(survey)
}

fn named(objects: impl Iterator<Item = Vec<u8>>, attribute: u16) -> BTreeMap<String, Vec<u8>> {
    objects.map(|object| (text(&object, attribute).unwrap_or_default(), object)).collect()
}

impl Survey {
    /// The first difference from what should be there, for people. Nothing if there is none.
    pub(super) fn difference(&self, expected: &Ruleset) -> Option<String> {
        match self.table.as_ref().map(|table| number(table, table::FLAGS).unwrap_or_default()) {
            None => return Some("it is gone".to_owned()),
            Some(0) => {}
            Some(_) => return Some("it has flags".to_owned()),
        }
        let chains = expected.chains.iter().map(|(name, _)| name.to_string());
        let sets = expected.sets.iter().map(|(name, _)| name.to_string());
        differing_names("chain", &self.chains, chains)
            .or_else(|| differing_names("set", &self.sets, sets))
            .or_else(|| {
                let differs = |(name, rules): &&(ChainName, Vec<Rule>)| !self.has_chain(*name, rules);
                expected.chains.iter().find(differs).map(|(name, _)| format!("chain {name} differs"))
            })
            .or_else(|| {
                let differs = |(name, elements): &&(SetName, Vec<Element>)| !self.has_set(name, elements);
                expected.sets.iter().find(differs).map(|(name, _)| format!("set {name} differs"))
            })
    }

    fn has_chain(&self, name: ChainName, expected: &[Rule]) -> bool {
        let Some(found) = self.chains.get(&name.to_string()) else {
            return false;
        };
        let as_declared = match name {
            ChainName::Base(_) => {
                is_good_base_chain(found) && number(found, chain::POLICY) == Some(Verdict::Accept as u32)
            }
            _ => value(found, chain::HOOK).is_none(),
        };
        let rules = self.rules.get(&name.to_string()).map_or(&[][..], Vec::as_slice);
        as_declared
            && rules.len() == expected.len()
            && rules.iter().zip(expected).all(|(found, expected)| {
                let mut wanted = Vec::new();
                encode_rule(expected, &mut Attributes(&mut wanted));
                same_expressions(value(found, rule::EXPRESSIONS).unwrap_or_default(), &wanted)
            })
    }

    fn has_set(&self, name: &SetName, expected: &[Element]) -> bool {
        let mut declaration = Vec::new();
        declare_set(&mut Attributes(&mut declaration), name);
        let as_declared = self.sets.get(&name.to_string()).is_some_and(|found| {
            attributes_of(&declaration).all(|(kind, wanted)| same_value(value(found, kind), Some(wanted)))
        });
        if !as_declared {
            return false;
        }
        let mut wanted = Vec::new();
        for element in expected {
            encode_element(&mut Attributes(&mut wanted), name, element, true);
        }
        let lists = self.elements.get(&name.to_string()).into_iter().flatten();
        let lists = lists.filter_map(|list| value(list, elements::ELEMENTS));
        meanings(lists) == meanings([wanted.as_slice()].into_iter())
    }
}

fn differing_names(
    kind: &str,
    found: &BTreeMap<String, Vec<u8>>,
    expected: impl Iterator<Item = String>,
) -> Option<String> {
    let expected: BTreeSet<String> = expected.collect();
    let missing = expected.iter().find(|name| !found.contains_key(*name)).map(|name| format!("{kind} {name} is gone"));
    let foreign = || found.keys().find(|name| !expected.contains(*name));
    missing.or_else(|| foreign().map(|name| format!("{kind} {} is not ours", comment(name))))
}

/// What an element says, apart from its comment: flags, first and last key, verdict and chain; and what we would never
/// write, such as a time-out or a limit.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Meaning<'a> {
    flags: u32,
    first: Option<&'a [u8]>,
    last: Option<&'a [u8]>,
    verdict: Option<(&'a [u8], Option<&'a [u8]>)>,
    strange: bool,
}

fn meanings<'a>(lists: impl Iterator<Item = &'a [u8]>) -> Vec<Meaning<'a>> {
    let mut all: Vec<Meaning<'a>> = lists.flat_map(attributes_of).map(|(_, element)| meaning(element)).collect();
    all.sort_unstable();
    all
}

fn meaning(content: &[u8]) -> Meaning<'_> {
    let mut meaning = Meaning { flags: 0, first: None, last: None, verdict: None, strange: false };
    for (kind, content) in attributes_of(content) {
        match kind {
            element::KEY => meaning.first = value(content, data::VALUE),
            element::KEY_END => meaning.last = value(content, data::VALUE),
            element::FLAGS => meaning.flags = content.try_into().map_or(u32::MAX, u32::from_be_bytes),
            element::USERDATA => {}
            element::DATA => {
                let decision = value(content, data::VERDICT).unwrap_or_default();
                meaning.verdict = value(decision, verdict::CODE).map(|code| (code, value(decision, verdict::CHAIN)));
                meaning.strange |= meaning.verdict.is_none();
            }
            _ => meaning.strange |= !is_zero(content),
        }
    }
    meaning
}

fn same_expressions(found: &[u8], wanted: &[u8]) -> bool {
    let list = |list| attributes_of(list).filter(|(kind, _)| *kind == LIST_ELEMENT).map(|(_, content)| content);
    list(found).count() == list(wanted).count()
        && list(found).zip(list(wanted)).all(|(found, wanted)| same_expression(found, wanted))
}

fn same_expression(found: &[u8], wanted: &[u8]) -> bool {
    let part = |kind| (value(found, kind), value(wanted, kind));
    let (name, wanted_name) = part(expression_attribute::NAME);
    let (Some(found), Some(wanted)) = part(expression_attribute::DATA) else {
        return false;
    };
    if name != wanted_name {
        return false;
    }
    match name {
        // It has counted since.
        Some(b"counter\0") => true,
        // Zero is the register of the verdict here: a look-up that obeys what it finds.
        Some(b"lookup\0") if value(found, lookup::DREG).is_some() != value(wanted, lookup::DREG).is_some() => false,
        _ => same_attributes(found, wanted),
    }
}

/// Only ours say which attributes hold attributes.
fn same_attributes(found: &[u8], wanted: &[u8]) -> bool {
    marked_attributes_of(wanted).all(|(kind, nested, wanted)| match value(found, kind) {
        Some(found) if nested => same_attributes(found, wanted),
        found => same_value(found, Some(wanted)),
    }) && attributes_of(found).all(|(kind, found)| value(wanted, kind).is_some() || is_zero(found))
}

fn same_value(found: Option<&[u8]>, wanted: Option<&[u8]>) -> bool {
    found == wanted || (is_zero(found.unwrap_or_default()) && is_zero(wanted.unwrap_or_default()))
}

fn is_zero(value: &[u8]) -> bool {
    value.iter().all(|byte| *byte == 0)
}
