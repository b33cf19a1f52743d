//! Addresses of a node's own range that belong to no pod it knows.

use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdSet;
use ipnet::IpNet;
use ringfence_model::Family;

use crate::cluster::{Cluster, Touched};

/// What becomes of a local pod address that no known pod owns.
///
/// A pod may send packets before anybody has told the cluster's state its address. NetworkPolicy is about pods, so of such
/// an address it says nothing; refusing it is an addition of ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownPods {
    /// It may do everything.
    #[default]
    Allow,
    /// It may make no connection and gets none, except with its own node. Established ones stay, and neighbour discovery
    /// works.
    Deny,
}

/// The ranges that a node guards against pods it does not know. Without ranges nothing is refused.
///
/// Known is an address while a live pod with a node and a network of its own owns it. That may be another node's pod: not
/// every network gives out addresses by `spec.podCIDRs`. The node's own addresses are nobody's, but what the node sends
/// and receives itself is not routed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// Disjoint, in order, without host bits.
    ranges: Arc<[IpNet]>,
    /// In one of the ranges.
    known: OrdSet<IpAddr>,
}

impl Default for Guard {
    fn default() -> Guard {
        Guard { ranges: Arc::from([]), known: OrdSet::new() }
    }
}

impl Guard {
    /// Guards `ranges`, which may overlap. Known addresses outside of them are left out.
    pub fn new(ranges: &[IpNet], known: impl IntoIterator<Item = IpAddr>) -> Guard {
        let ranges = disjoint(ranges);
        let known = known.into_iter().filter(|address| contain(&ranges, *address)).collect();
        Guard { ranges: ranges.into(), known }
    }

    /// The ranges: disjoint, in order, without host bits.
    pub fn ranges(&self) -> &[IpNet] {
        &self.ranges
    }

    /// The ranges of one family.
    pub fn ranges_of(&self, family: Family) -> impl Iterator<Item = IpNet> {
        self.ranges.iter().copied().filter(move |range| Family::of(range.addr()) == family)
    }

    /// The addresses in the ranges that a pod owns.
    pub fn known(&self) -> &OrdSet<IpAddr> {
        &self.known
    }

    /// Whether an address is in a range and no pod's.
    pub fn refuses(&self, address: IpAddr) -> bool {
        contain(&self.ranges, address) && !self.known.contains(&address)
    }
}

/// Keeps a [`Guard`] true to a [`Cluster`].
#[derive(Default)]
pub(crate) struct Watch {
    pub(crate) unknown: UnknownPods,
    guard: Guard,
}

impl Watch {
    /// The guard as it must be now. Looks at the addresses that `touched` names; at all, only when the ranges are others.
    pub(crate) fn follow(&mut self, cluster: &Cluster, touched: &Touched, node: &str, all: bool) -> &Guard {
        if self.unknown == UnknownPods::Allow {
            return &self.guard;
        }
        if all || touched.nodes.contains_key(node) {
            let ranges = cluster.pod_ranges(node);
            if all || *self.guard.ranges != *ranges {
                let next = Guard::new(&ranges, cluster.known_addresses());
                // What is as before keeps its place in memory, which makes differences cheap to find.
                if next != self.guard {
                    self.guard = next;
                }
                return &self.guard;
            }
        }
        for address in touched.addresses.iter().filter(|address| contain(&self.guard.ranges, **address)) {
            if cluster.knows(*address) {
                self.guard.known.insert(*address);
            } else {
                self.guard.known.remove(address);
            }
        }
        &self.guard
    }
}

/// The same addresses in the fewest networks, in order.
pub(crate) fn disjoint(ranges: &[IpNet]) -> Vec<IpNet> {
    IpNet::aggregate(&ranges.iter().map(IpNet::trunc).collect())
}

fn contain(ranges: &[IpNet], address: IpAddr) -> bool {
    ranges.iter().any(|range| range.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn ranges_are_disjoint_and_hold_what_is_known() {
        let ranges = networks(&["fd00::5/64", "10.0.1.0/24", "10.0.0.7/24", "10.0.0.128/25", "10.0.0.0/24"]);
        let known = ["10.0.0.1", "10.0.2.1", "fd00::1", "fd01::1"].map(|text| text.parse::<IpAddr>().unwrap());
        let guard = Guard::new(&ranges, known);
        assert_eq!(guard.ranges(), networks(&["10.0.0.0/23", "fd00::/64"]));
        assert_eq!(guard.ranges_of(Family::V6).collect::<Vec<_>>(), networks(&["fd00::/64"]));
        assert_eq!(guard.known().iter().copied().collect::<Vec<_>>(), [known[0], known[2]]);
        for (address, refused) in
            [("10.0.0.1", false), ("10.0.1.255", true), ("10.0.2.0", false), ("fd00::1", false), ("fd00::2", true)]
        {
            assert_eq!(guard.refuses(address.parse().unwrap()), refused, "{address}");
        }
        assert!(!Guard::default().refuses(known[0]));
    }
}
