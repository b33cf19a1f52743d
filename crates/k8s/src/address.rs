//! Addresses and CIDRs as Kubernetes stores them: decimal octets may have leading zeros, host bits may be set.
//! What Go calls sloppy parsing (`k8s.io/utils/net`, `ParseIPSloppy` and `ParseCIDRSloppy`), minus two things that
//! have no meaning for a packet filter: IPv4-mapped IPv6 addresses and zones.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// What was read from a CIDR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReadCidr {
    /// The block, host bits zero.
    pub(crate) block: IpNet,
    /// Whether host bits were set.
    pub(crate) had_host_bits: bool,
}

/// Reads an address, or says why it is none.
pub(crate) fn parse_ip(text: &str) -> Result<IpAddr, &'static str> {
    if !text.contains(':') {
        return parse_ipv4(text).map(IpAddr::V4).ok_or("not an IP address");
    }
    if text.contains('%') {
        return Err("an address with a zone");
    }
    let address: Ipv6Addr = text.parse().map_err(|_| "not an IP address")?;
    if address.to_ipv4_mapped().is_some() {
        return Err("an IPv4 address written as IPv6");
    }
    Ok(IpAddr::V6(address))
}

/// Four decimal numbers up to 255. A leading zero does not make a number octal.
fn parse_ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = parse_decimal(parts.next()?, 255)?.try_into().ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

fn parse_decimal(text: &str, max: u16) -> Option<u16> {
    if text.is_empty() || text.len() > 8 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse::<u32>().ok().and_then(|value| u16::try_from(value).ok()).filter(|value| *value <= max)
}

/// Why no packet that travels between nodes can come from an address, if so.
pub(crate) fn unusable(address: IpAddr) -> Option<&'static str> {
    let (local, broadcast) = match address {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.is_broadcast() || v4.octets()[0] == 0),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), false),
    };
    if address.is_unspecified() || broadcast {
        Some("not an address of anybody")
    } else if address.is_loopback() {
        Some("a loopback address")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else {
        local.then_some("a link-local address")
    }
}

/// Reads a CIDR, or says why it is none.
pub(crate) fn parse_cidr(text: &str) -> Result<ReadCidr, &'static str> {
    let Some((address, prefix)) = text.split_once('/') else {
        return Err(match parse_ip(text) {
            Ok(_) => "a CIDR without a prefix length",
            Err("not an IP address") => "not a CIDR",
            Err(reason) => reason,
        });
    };
    let address = parse_ip(address).map_err(|reason| match reason {
        "not an IP address" => "not a CIDR",
        reason => reason,
    })?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let prefix = parse_decimal(prefix, bits)
        .and_then(|prefix| u8::try_from(prefix).ok())
        .ok_or("a CIDR with a wrong prefix length")?;
    let written = IpNet::new(address, prefix).map_err(|_| "a CIDR with a wrong prefix length")?;
    let block = written.trunc();
    Ok(ReadCidr { block, had_host_bits: block != written })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<(&str, bool), &str>) {
        let found = parse_cidr(text).map(|read| (read.block.to_string(), read.had_host_bits));
        assert_eq!(found, expected.map(|(block, host)| (block.to_owned(), host)), "{text:?}");
    }

    #[test]
    fn cidrs_are_read_sloppily_and_garbage_is_refused() {
        check("10.0.0.0/8", Ok(("10.0.0.0/8", false)));
        check("10.0.0.5/24", Ok(("10.0.0.0/24", true)));
        check("010.000.010.8/029", Ok(("10.0.10.8/29", false)));
        check("0.0.0.0/0", Ok(("0.0.0.0/0", false)));
        check("1.2.3.4/0", Ok(("0.0.0.0/0", true)));
        check("1.2.3.4/32", Ok(("1.2.3.4/32", false)));
        check("::/0", Ok(("::/0", false)));
        check("2001:DB8::1/64", Ok(("2001:db8::/64", true)));
        check("64:ff9b::10.0.0.1/128", Ok(("64:ff9b::a00:1/128", false)));
        check("10.0.0.0", Err("a CIDR without a prefix length"));
        check("::1", Err("a CIDR without a prefix length"));
        check("10.0.0.0/", Err("a CIDR with a wrong prefix length"));
        check("10.0.0.0/33", Err("a CIDR with a wrong prefix length"));
        check("10.0.0.0/-1", Err("a CIDR with a wrong prefix length"));
        check("10.0.0.0/+8", Err("a CIDR with a wrong prefix length"));
        check("10.0.0.0/8/8", Err("a CIDR with a wrong prefix length"));
        check("::/129", Err("a CIDR with a wrong prefix length"));
        check("::ffff:10.0.0.0/104", Err("an IPv4 address written as IPv6"));
        check("fe80::1%eth0/64", Err("an address with a zone"));
        for garbage in
            ["", "/", "/8", "10.0.0/8", "10.0.0.0.0/8", "256.0.0.0/8", "a.b.c.d/8", " 10.0.0.0/8", "0x0a.0.0.0/8"]
        {
            check(garbage, Err("not a CIDR"));
        }
        check("xxxx/xx", Err("not a CIDR"));
    }
}
