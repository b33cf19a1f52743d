//! The members of a set as ipset writes them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use imbl::OrdSet;
use imbl::ordset::DiffItem;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use ringfence_compile::acl::Members;
use ringfence_model::{Family, Protocol};

/// Room in the smallest set.
const SMALLEST: usize = 256;

/// What changes in a set of one family, as elements.
#[derive(Debug, Default)]
pub(super) struct MemberDiff {
    pub(super) added: Vec<String>,
    pub(super) removed: Vec<String>,
}

/// ipset's name for a set of such members.
pub(super) fn set_type(members: &Members) -> &'static str {
    match members {
        Members::Addresses(_) => "hash:ip",
        Members::Endpoints(_) => "hash:ip,port",
        Members::Networks { .. } => "hash:net",
    }
}

/// Whether a family has such a set: a set of pods is there even without members, a set of blocks only for its family.
pub(super) fn exists(members: &Members, family: Family) -> bool {
    match members {
        Members::Addresses(_) | Members::Endpoints(_) => true,
        Members::Networks { cidrs, .. } => cidrs.iter().any(|cidr| Family::of(cidr.addr()) == family),
    }
}

/// The elements of a set.
pub(super) fn elements(members: &Members, family: Family) -> Vec<String> {
    match members {
        Members::Addresses(addresses) => addresses.iter().filter_map(|member| address(*member, family)).collect(),
        Members::Endpoints(endpoints) => endpoints.iter().filter_map(|member| endpoint(*member, family)).collect(),
        Members::Networks { cidrs, except } => networks(cidrs, except, family),
    }
}

/// How many elements a set has at most, in either family.
pub(super) fn count(members: &Members) -> usize {
    match members {
        Members::Addresses(addresses) => addresses.len(),
        Members::Endpoints(endpoints) => endpoints.len(),
        // One network may be written as two halves.
        Members::Networks { cidrs, except } => 2 * (cidrs.len() + except.len()),
    }
}

/// How many elements a set is made for that has `count` now: a power of two, with head room.
pub(super) fn capacity(count: usize) -> usize {
    (count + count / 2).max(SMALLEST).next_power_of_two()
}

/// What differs between two sets of pods; nothing for sets that cannot be changed from one to the other element by
/// element. Blocks are such: which they are is what names the set, so they never change.
pub(super) fn difference(from: &Members, to: &Members, family: Family) -> Option<MemberDiff> {
    match (from, to) {
        (Members::Addresses(from), Members::Addresses(to)) => {
            Some(of_shared(from, to, |member| address(*member, family)))
        }
        (Members::Endpoints(from), Members::Endpoints(to)) => {
            Some(of_shared(from, to, |member| endpoint(*member, family)))
        }
        _ => None,
    }
}

fn of_shared<T: Ord + Clone>(from: &OrdSet<T>, to: &OrdSet<T>, element: impl Fn(&T) -> Option<String>) -> MemberDiff {
    let mut diff = MemberDiff::default();
    for item in from.diff(to) {
        match item {
            DiffItem::Add(member) => diff.added.extend(element(member)),
            DiffItem::Remove(member) => diff.removed.extend(element(member)),
        }
    }
    diff
}

/// The unspecified address is left out: ipset does not take it, and no packet comes from there or goes there.
fn address(member: IpAddr, family: Family) -> Option<String> {
    (Family::of(member) == family && !member.is_unspecified()).then(|| member.to_string())
}

fn endpoint((member, protocol, port): (IpAddr, Protocol, u16), family: Family) -> Option<String> {
    Some(format!("{},{}:{port}", address(member, family)?, protocol_name(protocol)))
}

/// A protocol as iptables and ipset call it.
pub(super) fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

/// The networks of one family that are in `cidrs` and not in `except`, for a set in which the most specific one decides.
pub(super) fn networks(cidrs: &[IpNet], except: &[IpNet], family: Family) -> Vec<String> {
    let of_family = |networks: &[IpNet]| -> BTreeSet<IpNet> {
        networks
            .iter()
            .filter(|network| Family::of(network.addr()) == family)
            .flat_map(|network| halves(*network))
            .collect()
    };
    let (mut cidrs, except) = (of_family(cidrs), of_family(except));
    cidrs.retain(|cidr| !except.iter().any(|except| except.contains(cidr)));
    let exceptions = except.iter().filter(|except| cidrs.iter().any(|cidr| cidr.contains(*except)));
    let exceptions = exceptions.map(|network| format!("{} nomatch", network_name(*network)));
    cidrs.iter().map(|network| network_name(*network)).chain(exceptions).collect()
}

/// ipset has no network of all addresses.
fn halves(network: IpNet) -> Vec<IpNet> {
    if network.prefix_len() > 0 {
        return vec![network.trunc()];
    }
    match network {
        IpNet::V4(all) => all.subnets(1).into_iter().flatten().map(IpNet::V4).collect(),
        IpNet::V6(all) => all.subnets(1).into_iter().flatten().map(IpNet::V6).collect(),
    }
}

/// All addresses of a family.
pub(super) fn everything(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::V4(Ipv4Net::default()),
        Family::V6 => IpNet::V6(Ipv6Net::default()),
    }
}

/// As ipset lists it: a network of one address is written as the address.
fn network_name(network: IpNet) -> String {
    if network.prefix_len() == network.max_prefix_len() { network.addr().to_string() } else { network.to_string() }
}

/// The same element in one spelling: C libraries write some IPv6 addresses in other ways.
pub(super) fn normal(element: &str) -> String {
    let end = element.find([',', '/', ' ']).unwrap_or(element.len());
    let (address, rest) = element.split_at(end);
    address.parse::<IpAddr>().map_or_else(|_| element.to_owned(), |address| format!("{address}{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(cidrs: &[&str], except: &[&str]) -> Vec<String> {
        let parse = |texts: &[&str]| -> Vec<IpNet> { texts.iter().map(|text| text.parse().unwrap()).collect() };
        networks(&parse(cidrs), &parse(except), Family::V4)
    }

    #[test]
    fn everything_is_two_halves() {
        assert_eq!(written(&["0.0.0.0/0"], &[]), ["0.0.0.0/1", "128.0.0.0/1"]);
        assert_eq!(written(&["0.0.0.0/0", "::/0"], &["128.0.0.0/1"]), ["0.0.0.0/1"]);
        assert_eq!(written(&["0.0.0.0/0"], &["10.0.0.0/8"]), ["0.0.0.0/1", "128.0.0.0/1", "10.0.0.0/8 nomatch"]);
        assert!(written(&["0.0.0.0/0"], &["0.0.0.0/1", "128.0.0.0/1"]).is_empty());
        assert!(written(&["0.0.0.0/0"], &["0.0.0.0/0"]).is_empty());
        assert!(written(&["::/0"], &[]).is_empty());
    }

    #[test]
    fn exceptions_within_exceptions() {
        assert_eq!(
            written(&["10.0.0.0/8"], &["10.0.0.0/16", "10.0.0.1/32"]),
            ["10.0.0.0/8", "10.0.0.0/16 nomatch", "10.0.0.1 nomatch"]
        );
        // A block inside an exception of another would be more specific than it.
        assert_eq!(written(&["10.0.0.0/8", "10.0.1.0/24"], &["10.0.0.0/16"]), ["10.0.0.0/8", "10.0.0.0/16 nomatch"]);
    }

    #[test]
    fn sets_are_made_with_head_room() {
        assert_eq!(capacity(0), 256);
        assert_eq!(capacity(171), 256);
        assert_eq!(capacity(172), 512);
        assert_eq!(capacity(65_536), 131_072);
    }

    #[test]
    fn addresses_have_one_spelling() {
        assert_eq!(normal("::1.2.3.4"), "::102:304");
        assert_eq!(normal("10.0.0.1,tcp:80"), "10.0.0.1,tcp:80");
        assert_eq!(normal("fd00:0::/64 nomatch"), "fd00::/64 nomatch");
    }
}
