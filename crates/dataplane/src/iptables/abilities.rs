//! What the kernel can do that not every kernel can.

use ringfence_compile::acl::{Acl, AclBelieved};

use super::name::Table;
use super::{IptablesBackend, layout, reach};
use crate::backend::ApplyError;

/// What rules can do; nothing about what was not tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Abilities {
    /// Compare a packet's two addresses (`xt_bpf`).
    compare: Option<bool>,
    /// Tell whether a packet came in by the device that leads to its source (`xt_rpfilter` in the mangle table).
    trace: Option<bool>,
    /// Decide about the replacing of addresses (the nat table).
    translate: Option<bool>,
}

impl Abilities {
    /// All of it.
    pub(super) const ALL: Abilities = Abilities { compare: Some(true), trace: Some(true), translate: Some(true) };

    pub(super) fn compare(self) -> bool {
        self.compare == Some(true)
    }

    pub(super) fn trace(self) -> bool {
        self.trace == Some(true)
    }

    pub(super) fn translate(self) -> bool {
        self.translate == Some(true)
    }

    /// What a kernel may be able to do that has rules of ours for a list, the most likely first.
    pub(super) fn possible(acl: &Acl) -> impl Iterator<Item = Abilities> {
        let of = |matters: bool| if matters { [true, false].as_slice() } else { [true].as_slice() }.iter().copied();
        let (believes, keeps) = (believes(acl), keeps(acl));
        of(true).flat_map(move |compare| {
            of(believes).flat_map(move |trace| {
                of(keeps).map(move |translate| Abilities {
                    compare: Some(compare),
                    trace: Some(trace),
                    translate: Some(translate),
                })
            })
        })
    }
}

fn believes(acl: &Acl) -> bool {
    acl.reach.believed != AclBelieved::Nothing
}

fn keeps(acl: &Acl) -> bool {
    !acl.reach.unmasqueraded.is_empty()
}

impl IptablesBackend {
    /// Tries what a list needs, each once: what is not needed might load parts of the kernel that nobody else uses.
    pub(super) fn probe(&mut self, acl: &Acl) -> Result<(), ApplyError> {
        if self.can.compare.is_none() {
            self.can.compare = Some(self.takes_all(Table::Filter, |family| vec![layout::reaches_itself(family)])?);
            if !self.can.compare() {
                self.note("the kernel has no xt_bpf: an isolated pod reaches itself through a Service only if policies allow it");
            }
        }
        if self.can.trace.is_none() && believes(acl) {
            let rule = format!("{} -j RETURN", reach::COMES_FROM_THERE);
            self.can.trace = Some(self.takes_all(Table::Mangle, |_| vec![rule.clone()])?);
            if !self.can.trace() {
                self.note(
                    "the kernel has no xt_rpfilter: what comes from another node's address may be forged, so no connection from \
                     there passes because another node has judged it or is trusted, unless policies allow that address",
                );
            }
        }
        if self.can.translate.is_none() && keeps(acl) {
            self.can.translate = Some(self.takes_all(Table::Nat, |_| vec!["-j ACCEPT".to_owned()])?);
            if !self.can.translate() {
                self.note("the kernel has no nat table of iptables: whether pods keep their addresses is not up to this node's rules");
            }
        }
        Ok(())
    }

    fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }

    /// Whether the kernel takes some rules in all its families.
    fn takes_all(
        &self,
        table: Table,
        rules: impl Fn(ringfence_model::Family) -> Vec<String>,
    ) -> Result<bool, ApplyError> {
        for family in &self.tools.families {
            if !self.takes(table, *family, &rules(*family))? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
