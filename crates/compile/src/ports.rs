//! Sets of (protocol, destination port).

use std::fmt;

use ringfence_model::{PortRange, Protocol};

/// Ports of one protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProtocolRange {
    /// The protocol.
    pub protocol: Protocol,
    /// Its ports.
    pub ports: PortRange,
}

impl fmt::Display for ProtocolRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ports == PortRange::ALL {
            write!(f, "{}/*", self.protocol)
        } else {
            write!(f, "{}/{}", self.protocol, self.ports)
        }
    }
}

/// A set of (protocol, destination port), in normal form: two equal sets are equal values.
///
/// The set of everything also holds traffic without ports (ICMP, other IP protocols); no other set does.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortSet {
    everything: bool,
    /// Sorted, disjoint and not adjacent; empty when `everything`.
    ranges: Vec<ProtocolRange>,
}

impl PortSet {
    /// The empty set.
    pub fn nothing() -> PortSet {
        PortSet::default()
    }

    /// Every port of every protocol, and traffic without ports.
    pub fn everything() -> PortSet {
        PortSet { everything: true, ranges: Vec::new() }
    }

    /// The union of ranges in any order.
    pub fn of(ranges: impl IntoIterator<Item = ProtocolRange>) -> PortSet {
        let mut set = PortSet { everything: false, ranges: ranges.into_iter().collect() };
        set.normalise();
        set
    }

    /// Adds all of `other`.
    pub fn union_with(&mut self, other: &PortSet) {
        if self.everything || other.is_empty() {
            return;
        }
        if other.everything {
            *self = PortSet::everything();
            return;
        }
        self.ranges.extend_from_slice(&other.ranges);
        self.normalise();
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        !self.everything && self.ranges.is_empty()
    }

    /// Whether it holds everything, traffic without ports too.
    pub fn is_everything(&self) -> bool {
        self.everything
    }

    /// The ranges of a set that is not everything: sorted, disjoint, not adjacent.
    pub fn ranges(&self) -> &[ProtocolRange] {
        &self.ranges
    }

    fn normalise(&mut self) {
        self.ranges.sort_unstable();
        let mut merged: Vec<ProtocolRange> = Vec::with_capacity(self.ranges.len());
        for range in self.ranges.drain(..) {
            match merged.last_mut() {
                Some(last)
                    if last.protocol == range.protocol
                        && u32::from(range.ports.first) <= u32::from(last.ports.last) + 1 =>
                {
                    last.ports.last = last.ports.last.max(range.ports.last);
                }
                _ => merged.push(range),
            }
        }
        self.ranges = merged;
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.everything {
            return f.write_str("everything");
        }
        for (i, range) in self.ranges.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{range}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(first: u16, last: u16) -> ProtocolRange {
        ProtocolRange { protocol: Protocol::Tcp, ports: PortRange { first, last } }
    }

    #[test]
    fn touching_ranges_become_one() {
        let set = PortSet::of([tcp(20, 30), tcp(10, 19), tcp(25, 40), tcp(42, 42)]);
        assert_eq!(set.ranges(), [tcp(10, 40), tcp(42, 42)]);
    }

    #[test]
    fn the_last_port_does_not_overflow() {
        let set = PortSet::of([tcp(65535, 65535), tcp(0, 65535)]);
        assert_eq!(set.ranges(), [tcp(0, 65535)]);
    }
}
