//! What differs between two access control lists.

use std::net::IpAddr;
use std::sync::Arc;

use ringfence_compile::acl::{Acl, AclCompiler, AclNamespace, AclSet, SetId};
use ringfence_model::Direction;

use crate::backend::Demand;
use crate::diff::MapDiff;

impl Demand for Acl {
    type Compiler = AclCompiler;
    type Difference = AclDiff;

    fn difference(&self, to: &Acl) -> Option<AclDiff> {
        Some(AclDiff::between(self, to)).filter(|diff| !diff.is_empty())
    }
}

/// What differs between two lists. The generation number does not count, nor does how a set is described.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AclDiff {
    /// Sets. One that both have differs in its members.
    pub sets: MapDiff<SetId, AclSet>,
    /// Namespaces of pods that connections are made to. One that both have differs in its policies.
    pub ingress: MapDiff<Arc<str>, Arc<AclNamespace>>,
    /// Namespaces of pods that make connections.
    pub egress: MapDiff<Arc<str>, Arc<AclNamespace>>,
    /// Addresses the node has gained.
    pub node_addresses_added: Vec<IpAddr>,
    /// Addresses the node has lost.
    pub node_addresses_removed: Vec<IpAddr>,
    /// Other ranges are guarded. Which addresses in them are known is in a set.
    pub guard_changed: bool,
    /// It judges or believes others, or keeps sources, in another way. Who they are is in sets.
    pub reach_changed: bool,
}

impl AclDiff {
    /// From `from` to `to`. Skips what they share.
    pub fn between(from: &Acl, to: &Acl) -> AclDiff {
        let mut sets = MapDiff::of_shared(&from.sets, &to.sets);
        sets.changed.retain(|(_, old, new)| old.role != new.role || old.members != new.members);
        AclDiff {
            sets,
            ingress: MapDiff::of_shared(&from.ingress, &to.ingress),
            egress: MapDiff::of_shared(&from.egress, &to.egress),
            node_addresses_added: to.node_addresses.difference(&from.node_addresses).copied().collect(),
            node_addresses_removed: from.node_addresses.difference(&to.node_addresses).copied().collect(),
            guard_changed: from.guard != to.guard,
            reach_changed: from.reach != to.reach,
        }
    }

    /// The part of a direction.
    pub fn side(&self, direction: Direction) -> &MapDiff<Arc<str>, Arc<AclNamespace>> {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    /// Whether both lists demand the same.
    pub fn is_empty(&self) -> bool {
        self.sets.is_empty()
            && self.ingress.is_empty()
            && self.egress.is_empty()
            && self.node_addresses_added.is_empty()
            && self.node_addresses_removed.is_empty()
            && !self.guard_changed
            && !self.reach_changed
    }
}
