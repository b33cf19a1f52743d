//! Removing what of ours is in variants of iptables that are not in use.

use std::collections::BTreeSet;
use std::path::Path;

use super::name::{Edition, Table, edition_of_set};
use super::tools::{Missing, families, legacy_has};
use super::{IptablesBackend, IptablesOptions, Variant, plan};
use crate::backend::{Applied, ApplyError};

/// What [`clear_variants_but`] did.
#[derive(Debug, Default)]
pub(crate) struct ClearedVariants {
    /// Where chains of ours were.
    pub(crate) removed: Vec<Variant>,
    /// Where nobody could look because its tools are not installed.
    pub(crate) unseen: Vec<(Variant, ApplyError)>,
}

/// Removes our chains from all variants but the one `in_use`, and our sets that it does not use.
///
/// # Errors
/// The tools fail. What was removed until then is gone.
pub(crate) fn clear_variants_but(in_use: Option<Variant>) -> Result<ClearedVariants, ApplyError> {
    let mut cleared = ClearedVariants::default();
    let mut kept = BTreeSet::new();
    let mut any = None;
    for variant in Variant::ALL.into_iter().filter(|variant| may_have_chains(*variant)) {
        let mut backend = match IptablesBackend::open(IptablesOptions { variant: Some(variant), ..Default::default() })
        {
            Ok(backend) => backend,
            Err(error) if lacks_tools(&error) => {
                cleared.unseen.push((variant, error));
                continue;
            }
            Err(error) => return Err(error),
        };
        if in_use == Some(variant) {
            kept = backend.tools.chains()?.editions();
        } else if backend.delete_chains()? {
            cleared.removed.push(variant);
        }
        any = Some(backend);
    }
    // All variants share the sets. To ask a kernel that has none would load the module.
    if let Some(backend) = any
        && Path::new("/sys/module/ip_set").exists()
    {
        backend.destroy_sets_but(&kept)?;
    }
    Ok(cleared)
}

/// Whether the kernel has a table where chains of this variant would be. Of nftables that is not asked.
fn may_have_chains(variant: Variant) -> bool {
    let has = |table: Table| families().into_iter().any(|family| legacy_has(family, Some(table.name())));
    variant == Variant::Nft || Table::ALL.into_iter().any(has)
}

fn lacks_tools(error: &ApplyError) -> bool {
    matches!(error, ApplyError::Unsent { source, .. } if source.is::<Missing>())
}

impl IptablesBackend {
    /// Deletes our chains of this variant, and what leads to them. Whether there was anything.
    pub(super) fn delete_chains(&mut self) -> Result<bool, ApplyError> {
        let steps = plan::cleanup(&self.tools.chains()?);
        self.run(&steps).map_err(|stopped| stopped.error)?;
        Ok(!steps.is_empty())
    }

    fn destroy_sets_but(&self, kept: &BTreeSet<Edition>) -> Result<(), ApplyError> {
        let mut sets = self.tools.sets()?;
        sets.retain(|set| edition_of_set(set).is_some_and(|edition| !kept.contains(&edition)));
        if sets.is_empty() { Ok(()) } else { self.destroy(sets, &mut Applied::default()) }
    }
}
