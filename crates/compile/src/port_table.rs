//! Whom one pod admits, port by port.

use std::collections::{BTreeMap, BTreeSet};

use ringfence_model::{PortRange, Protocol, Transport};

use crate::gate::Admission;
use crate::ports::{PortSet, ProtocolRange};

/// Whom a pod admits, by protocol and destination port. In normal form: equal tables are equal values.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortTable {
    /// Sorted and disjoint; neighbours differ, and each differs from `rest`.
    segments: Vec<(ProtocolRange, Admission)>,
    rest: Option<Admission>,
}

impl PortTable {
    /// The table of a list of grants: ports, and a term that describes peers. `admission` turns the set of all terms that
    /// hold for some ports, never empty, into one admission.
    pub(crate) fn new<T: Ord + Copy>(
        grants: &[(PortSet, T)],
        mut admission: impl FnMut(&BTreeSet<T>) -> Admission,
    ) -> PortTable {
        let everywhere: BTreeSet<T> =
            grants.iter().filter(|(ports, _)| ports.is_everything()).map(|(_, term)| *term).collect();
        let rest = (!everywhere.is_empty()).then(|| admission(&everywhere));
        // At each border, the terms that begin and those that end just before it. Ports reach one past the last here.
        let mut borders: BTreeMap<(Protocol, u32), (Vec<T>, Vec<T>)> = BTreeMap::new();
        for (ports, term) in grants {
            for ProtocolRange { protocol, ports } in ports.ranges() {
                borders.entry((*protocol, u32::from(ports.first))).or_default().0.push(*term);
                borders.entry((*protocol, u32::from(ports.last) + 1)).or_default().1.push(*term);
            }
        }
        let mut table = PortTable { segments: Vec::new(), rest };
        let mut open: BTreeMap<T, usize> = BTreeMap::new();
        let mut borders = borders.into_iter().peekable();
        while let Some(((protocol, first), (begins, ends))) = borders.next() {
            for term in begins {
                *open.entry(term).or_default() += 1;
            }
            for term in ends {
                if let Some(count) = open.get_mut(&term) {
                    *count -= 1;
                    if *count == 0 {
                        open.remove(&term);
                    }
                }
            }
            let Some(((_, next), _)) = borders.peek() else { break };
            if open.is_empty() {
                continue;
            }
            let terms: BTreeSet<T> = open.keys().chain(&everywhere).copied().collect();
            if let (Ok(first), Ok(last)) = (u16::try_from(first), u16::try_from(*next - 1)) {
                table.push(ProtocolRange { protocol, ports: PortRange { first, last } }, admission(&terms));
            }
        }
        table
    }

    /// The table with these segments, which must be disjoint, and this rest.
    pub fn of(segments: impl IntoIterator<Item = (ProtocolRange, Admission)>, rest: Option<Admission>) -> PortTable {
        let mut sorted: Vec<_> = segments.into_iter().collect();
        sorted.sort_unstable();
        let mut table = PortTable { segments: Vec::new(), rest };
        for (range, admission) in sorted {
            table.push(range, admission);
        }
        table
    }

    /// The ports that are not as the rest: sorted, disjoint, neighbours differ.
    pub fn segments(&self) -> &[(ProtocolRange, Admission)] {
        &self.segments
    }

    /// Whom it admits on all ports that are in no segment, and for traffic without ports; nobody if `None`.
    pub fn rest(&self) -> Option<Admission> {
        self.rest
    }

    /// Whom it admits for this kind of traffic; nobody if `None`.
    pub fn admission(&self, transport: Transport) -> Option<Admission> {
        let Transport::Port(protocol, port) = transport else { return self.rest };
        let after = self.segments.partition_point(|(range, _)| (range.protocol, range.ports.first) <= (protocol, port));
        let segment = after.checked_sub(1).and_then(|before| self.segments.get(before));
        match segment {
            Some((range, admission)) if range.protocol == protocol && port <= range.ports.last => Some(*admission),
            _ => self.rest,
        }
    }

    /// Every admission it can come to.
    pub fn admissions(&self) -> impl Iterator<Item = Admission> {
        self.segments.iter().map(|(_, admission)| *admission).chain(self.rest)
    }

    /// Appends a segment after all others.
    fn push(&mut self, range: ProtocolRange, admission: Admission) {
        if self.rest == Some(admission) {
            return;
        }
        if let Some((last, before)) = self.segments.last_mut()
            && *before == admission
            && last.protocol == range.protocol
            && u32::from(last.ports.last) + 1 == u32::from(range.ports.first)
        {
            last.ports.last = range.ports.last;
            return;
        }
        self.segments.push((range, admission));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::GateId;

    fn tcp(first: u16, last: u16) -> ProtocolRange {
        ProtocolRange { protocol: Protocol::Tcp, ports: PortRange { first, last } }
    }

    /// Terms are numbers; an admission is the gate whose name has their bits.
    fn table(grants: &[(PortSet, u32)]) -> Vec<String> {
        let table = PortTable::new(grants, |terms| Admission::Gate(GateId(terms.iter().map(|term| 1 << term).sum())));
        let shown = |admission: &Admission| match admission {
            Admission::Gate(gate) => format!("{:b}", gate.0),
            Admission::Anyone => "anyone".to_owned(),
        };
        let segments = table.segments().iter().map(|(range, admission)| format!("{range} {}", shown(admission)));
        segments.chain(table.rest().iter().map(|admission| format!("rest {}", shown(admission)))).collect()
    }

    #[test]
    fn overlapping_grants_split_into_segments() {
        let grants =
            [(PortSet::of([tcp(10, 20)]), 0), (PortSet::of([tcp(15, 30)]), 1), (PortSet::of([tcp(15, 15)]), 2)];
        assert_eq!(table(&grants), ["TCP/10-14 1", "TCP/15 111", "TCP/16-20 11", "TCP/21-30 10"]);
    }

    #[test]
    fn segments_include_what_holds_everywhere_and_vanish_in_it() {
        let grants = [(PortSet::everything(), 0), (PortSet::of([tcp(80, 80)]), 1), (PortSet::of([tcp(81, 81)]), 0)];
        assert_eq!(table(&grants), ["TCP/80 11", "rest 1"]);
    }

    #[test]
    fn the_last_port_and_the_next_protocol_are_apart() {
        let udp = ProtocolRange { protocol: Protocol::Udp, ports: PortRange { first: 0, last: 5 } };
        let grants = [(PortSet::of([tcp(65000, 65535)]), 0), (PortSet::of([udp]), 0)];
        assert_eq!(table(&grants), ["TCP/65000-65535 1", "UDP/0-5 1"]);
    }
}
