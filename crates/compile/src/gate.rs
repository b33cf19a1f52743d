//! Gates: sets of peers, and who leads to them.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ringfence_model::{AddressRange, Family};

/// The name of a gate. It follows from how policies describe the peers that may pass, so it is the same after a restart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GateId(pub u128);

/// A set of peers: those that the same descriptions in policies admit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    /// Some subject with an IPv4 address leads to it.
    pub v4: bool,
    /// Some subject with an IPv6 address leads to it.
    pub v6: bool,
    /// Pods can pass, not only address blocks. Which ones do is in [`Side::peers`](crate::Side::peers).
    pub selects_pods: bool,
    /// The addresses that pass, whoever owns them: disjoint, not adjacent, in order, of families that the gate concerns.
    pub blocks: Vec<AddressRange>,
    /// Who may pass, for people: selectors and blocks, sorted, separated by `; `. May be long; it holds what users
    /// wrote.
    pub origin: Arc<str>,
}

/// Who may connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Admission {
    /// Every peer, in and off the cluster.
    Anyone,
    /// The peers that pass a gate.
    Gate(GateId),
}

impl fmt::Display for GateId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for GateId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Gate {
    /// Whether a subject with an address of this family leads to it.
    pub fn concerns(&self, family: Family) -> bool {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    /// Whether some block holds the address.
    pub fn admits_address(&self, address: IpAddr) -> bool {
        let after = self.blocks.partition_point(|range| range.first <= address);
        after.checked_sub(1).and_then(|before| self.blocks.get(before)).is_some_and(|range| address <= range.last)
    }
}
