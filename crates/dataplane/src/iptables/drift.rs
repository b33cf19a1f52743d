//! What of ours there is, compared with what there should be.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use ringfence_compile::acl::Acl;
use ringfence_model::Family;

use super::abilities::Abilities;
use super::layout::Layout;
use super::listing::{set_kind, set_members};
use super::name::{self, Edition, Hook, Table};
use super::{IptablesBackend, invalid, narrow};
use crate::backend::{ApplyError, Drift};

/// Our objects in the kernel.
#[derive(Default, PartialEq, Eq)]
pub(super) struct Present {
    /// Which jumps to our chains are where they should be; nothing when there are others, too.
    hooked: BTreeMap<(Table, Family), Option<Vec<Hook>>>,
    /// The rules of each chain.
    chains: BTreeMap<(Table, Family), BTreeMap<String, Vec<String>>>,
    /// The members of each set, and its type.
    sets: BTreeMap<String, BTreeSet<String>>,
}

impl Present {
    /// Whether nothing but the words of rules differs.
    pub(super) fn is_shaped_as(&self, other: &Present) -> bool {
        let shape = |present: &Present| -> Vec<(String, usize)> {
            let chains = present.chains.values().flatten();
            chains.map(|(chain, rules)| (chain.clone(), rules.len())).collect()
        };
        self.hooked == other.hooked && self.sets == other.sets && shape(self) == shape(other)
    }

    /// A fingerprint of the rules, whatever edition they are of.
    pub(super) fn words(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (chain, rules) in self.chains.values().flatten() {
            name::without_edition(chain).hash(&mut hasher);
            rules.iter().for_each(|rule| name::without_edition(rule).hash(&mut hasher));
        }
        hasher.finish()
    }
}

impl IptablesBackend {
    /// What of ours there is, in some tables.
    fn found(&self, tables: &[Table]) -> Result<Present, ApplyError> {
        let mut present = Present::default();
        for place in self.places(tables) {
            let listing = self.tools.listing(place.0, place.1)?;
            present.hooked.insert(place, listing.hooked());
            present.chains.insert(place, listing.chains);
        }
        present.sets = set_members(&self.tools.saved_sets()?);
        Ok(present)
    }

    /// Tables of all families that the kernel has.
    fn places(&self, tables: &[Table]) -> impl Iterator<Item = (Table, Family)> {
        tables.iter().flat_map(|table| self.tools.families.iter().map(|family| (*table, *family)))
    }

    /// A layout as it would be found in some tables.
    fn present(&self, layout: Layout<'_>, tables: &[Table]) -> Present {
        let mut present = Present::default();
        for place in self.places(tables) {
            let (table, family) = place;
            present.hooked.insert(place, Some(layout.hooks(table, family)));
            present.chains.insert(place, layout.chains_in(table, family).into_iter().collect());
        }
        for family in &self.tools.families {
            for set in layout.sets(*family) {
                let line = set.create(0);
                let kind = line.splitn(3, ' ').nth(2).map(set_kind);
                present.sets.insert(set.name, set.elements.into_iter().chain(kind).collect());
            }
        }
        present
    }

    /// Where the kernel differs from what `program` says, whoever has written it; nothing if it does not. Looks, and changes
    /// nothing. Where this version of iptables lists rules in other words than it was given, only their number is compared.
    ///
    /// # Errors
    /// The tools cannot list what there is.
    pub fn difference(&self, program: &Acl) -> Result<Option<Drift>, ApplyError> {
        let found = self.found(&Table::ALL)?;
        let closed = invalid(program);
        let program = narrow(program, &closed);
        let mut names = found.chains.values().flat_map(BTreeMap::keys);
        // Leftovers of another edition are a difference, whichever of the two is taken for the one in force.
        let edition = names.find_map(|chain| name::edition_of_chain(chain)).unwrap_or_default();
        // What the kernel can do was tried by whoever wrote this.
        let as_expected = Abilities::possible(&program).any(|can| {
            let layout = Layout { acl: &program, options: &self.options, edition, can };
            let expected = self.present(layout, &Table::ALL);
            found == expected || found.is_shaped_as(&expected)
        });
        Ok((!as_expected).then(|| Drift("rules or sets of ringfence are not as expected".to_owned())))
    }

    /// What there is and what there should be, in the tables where something should be: what was in others is gone since the
    /// program is in force, and some of them are large.
    pub(super) fn found_and_expected(&self, program: &Acl, edition: Edition) -> Result<(Present, Present), ApplyError> {
        let layout = self.layout(program, edition);
        let tables = layout.tables();
        Ok((self.found(&tables)?, self.present(layout, &tables)))
    }
}
