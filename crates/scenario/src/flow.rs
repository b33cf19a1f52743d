use std::net::IpAddr;

use arbitrary::{Result, Unstructured};
use ringfence_model::{Family, Flow, Object, Transport};

use crate::cluster::{ADDRESSES, NODE_ADDRESSES, PORTS, address, protocol};

/// Addresses that no pod and no node has: just inside, at and just outside of the blocks that policies use.
const ELSEWHERE: [&str; 14] = [
    "0.0.0.0",
    "9.255.255.255",
    "10.0.0.3",
    "10.0.2.1",
    "10.255.255.255",
    "11.0.0.0",
    "127.255.255.255",
    "128.0.0.0",
    "172.17.2.9",
    "255.255.255.254",
    "::",
    "fd00::3",
    "fd00::1:0:0:0",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
];

/// `count` flows, most of them between addresses of `objects`, to ports policies like to name and to their neighbours.
///
/// # Errors
/// When the bytes do not suffice, which `arbitrary` treats as the end of input.
pub fn flows(u: &mut Unstructured<'_>, objects: &[Object], count: usize) -> Result<Vec<Flow>> {
    let pods: Vec<IpAddr> = objects
        .iter()
        .filter_map(|object| if let Object::Pod(pod) = object { Some(&pod.addresses) } else { None })
        .flatten()
        .copied()
        .collect();
    let mut flows = Vec::with_capacity(count);
    while flows.len() < count {
        let source = end(u, &pods)?;
        let destination = end(u, &pods)?;
        if Family::of(source) == Family::of(destination) {
            flows.push(Flow { source, destination, transport: transport(u, Family::of(source))? });
        } else if u.is_empty() {
            break;
        }
    }
    Ok(flows)
}

fn end(u: &mut Unstructured<'_>, pods: &[IpAddr]) -> Result<IpAddr> {
    match u.int_in_range(0..=15)? {
        0 => address(u, &ELSEWHERE),
        1 => address(u, &NODE_ADDRESSES),
        2 => address(u, &ADDRESSES),
        _ if pods.is_empty() => address(u, &ADDRESSES),
        _ => u.choose(pods).copied(),
    }
}

fn transport(u: &mut Unstructured<'_>, family: Family) -> Result<Transport> {
    Ok(match (u.int_in_range(0..=15)?, family) {
        (0, Family::V4) => Transport::Icmp(8),
        (0, Family::V6) => Transport::Icmpv6(u.int_in_range(127..=137)?),
        (1, _) => Transport::Other(47),
        _ => {
            let port = *u.choose(&PORTS)?;
            let port = match u.int_in_range(0..=3)? {
                0 => port.wrapping_add(1),
                1 => port.wrapping_sub(1),
                _ => port,
            };
            Transport::Port(protocol(u)?, port)
        }
    })
}
