//! Address blocks that overlap in every way, to disjoint ranges.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use ringfence_model::{AddressRange, IpBlock};

/// The addresses that some block holds: disjoint ranges in order, not adjacent.
///
/// A block is not a prefix but a prefix with holes, and another block may fill them. Prefixes nest or are disjoint,
/// never anything else; so walking all of them in address order, outer before inner, with a stack of the open ones,
/// visits every border once.
pub(crate) fn regions<'a>(blocks: impl IntoIterator<Item = &'a IpBlock>) -> Vec<AddressRange> {
    let mut prefixes: BTreeMap<(IpAddr, u8), Borders> = BTreeMap::new();
    for (index, block) in blocks.into_iter().enumerate() {
        prefixes.entry(outer_first(&block.cidr)).or_default().opens.push(index);
        for except in &block.except {
            prefixes.entry(outer_first(except)).or_default().closes.push(index);
        }
    }
    let mut sweep = Sweep::default();
    for ((first, prefix_len), borders) in prefixes {
        sweep.enter(first, prefix_len, borders);
    }
    sweep.finish()
}

/// What happens at one prefix: blocks (by index) that begin to hold, blocks that except it.
#[derive(Default)]
struct Borders {
    opens: Vec<usize>,
    closes: Vec<usize>,
}

#[derive(Default)]
struct Sweep {
    ranges: Vec<AddressRange>,
    open: Vec<Open>,
}

/// A prefix that the sweep is inside of.
struct Open {
    last: IpAddr,
    /// The blocks that hold here.
    blocks: imbl::OrdSet<usize>,
    /// The first address of it not yet written out; `None` when all is.
    next: Option<IpAddr>,
}

impl Sweep {
    fn enter(&mut self, first: IpAddr, prefix_len: u8, borders: Borders) {
        let last = last_of(first, prefix_len);
        // The IPv4 prefixes end before the first IPv6 one.
        while let Some(open) = self.open.pop_if(|open| open.last < first) {
            self.close(&open);
        }
        let mut blocks = imbl::OrdSet::new();
        if let Some(outer) = self.open.last_mut() {
            let before = outer.next.filter(|next| *next < first).zip(predecessor(first));
            outer.next = successor(last).filter(|next| *next <= outer.last);
            blocks = outer.blocks.clone();
            if let Some((next, end)) = before
                && !blocks.is_empty()
            {
                self.push(next, end);
            }
        }
        blocks.extend(borders.opens);
        for closed in borders.closes {
            blocks.remove(&closed);
        }
        self.open.push(Open { last, blocks, next: Some(first) });
    }

    fn finish(mut self) -> Vec<AddressRange> {
        while let Some(open) = self.open.pop() {
            self.close(&open);
        }
        self.ranges
    }

    fn close(&mut self, open: &Open) {
        if let Some(next) = open.next
            && !open.blocks.is_empty()
        {
            self.push(next, open.last);
        }
    }

    fn push(&mut self, first: IpAddr, last: IpAddr) {
        match self.ranges.last_mut() {
            Some(before) if successor(before.last) == Some(first) => before.last = last,
            _ => self.ranges.push(AddressRange { first, last }),
        }
    }
}

/// Sorts by address, then outer prefixes before inner ones.
fn outer_first(net: &IpNet) -> (IpAddr, u8) {
    (net.network(), net.prefix_len())
}

fn last_of(first: IpAddr, prefix_len: u8) -> IpAddr {
    match first {
        IpAddr::V4(first) => {
            let host_bits = u32::MAX.checked_shr(u32::from(prefix_len)).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from(u32::from(first) | host_bits))
        }
        IpAddr::V6(first) => {
            let host_bits = u128::MAX.checked_shr(u32::from(prefix_len)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(first) | host_bits))
        }
    }
}

fn successor(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(a) => u32::from(a).checked_add(1).map(|a| Ipv4Addr::from(a).into()),
        IpAddr::V6(a) => u128::from(a).checked_add(1).map(|a| Ipv6Addr::from(a).into()),
    }
}

fn predecessor(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(a) => u32::from(a).checked_sub(1).map(|a| Ipv4Addr::from(a).into()),
        IpAddr::V6(a) => u128::from(a).checked_sub(1).map(|a| Ipv6Addr::from(a).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(blocks: &[(&str, &[&str])], expected: &[&str]) {
        let block = |(cidr, except): &(&str, &[&str])| IpBlock {
            cidr: cidr.parse().unwrap(),
            except: except.iter().map(|except| except.parse().unwrap()).collect(),
        };
        let blocks: Vec<IpBlock> = blocks.iter().map(block).collect();
        assert_eq!(regions(&blocks).iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn except_is_a_hole_of_its_own_block_only() {
        check(
            &[("10.0.0.0/8", &["10.1.0.0/16"]), ("10.1.2.0/24", &[])],
            &["10.0.0.0-10.0.255.255", "10.1.2.0-10.1.2.255", "10.2.0.0-10.255.255.255"],
        );
    }

    #[test]
    fn the_whole_space_and_its_last_address() {
        check(
            &[("0.0.0.0/0", &["255.255.255.255/32"]), ("::/0", &["::/1"])],
            &["0.0.0.0-255.255.255.254", "8000::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"],
        );
    }

    #[test]
    fn an_except_at_the_end_of_its_block() {
        check(&[("10.0.0.0/8", &["10.128.0.0/9"])], &["10.0.0.0-10.127.255.255"]);
        check(&[("10.0.0.0/8", &[]), ("10.128.0.0/9", &[])], &["10.0.0.0-10.255.255.255"]);
    }

    #[test]
    fn overlapping_excepts_and_duplicates() {
        check(
            &[("10.0.0.0/24", &["10.0.0.0/25", "10.0.0.0/26"]), ("10.0.0.0/26", &[]), ("10.0.0.0/26", &[])],
            &["10.0.0.0-10.0.0.63", "10.0.0.128-10.0.0.255"],
        );
    }

    #[test]
    fn neighbours_become_one() {
        check(&[("10.0.0.128/25", &[]), ("10.0.0.0/25", &[]), ("10.0.1.0/32", &[])], &["10.0.0.0-10.0.1.0"]);
    }
}
