use std::fmt;
use std::net::IpAddr;

use crate::Protocol;

/// The first packet of a connection as a policy sees it: after destination NAT, before source NAT.
/// Replies belong to the connection and are not flows of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// What is above IP.
    pub transport: Transport,
}

/// The transport header of a [`Flow`], as far as policies can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP, UDP or SCTP to a destination port (host byte order).
    Port(Protocol, u16),
    /// ICMP (IPv4) with its message type.
    Icmp(u8),
    /// ICMPv6 with its message type.
    Icmpv6(u8),
    /// Any other IP protocol, by its number.
    Other(u8),
}

impl Transport {
    /// Neighbour discovery: ICMPv6 router solicitation and advertisement, neighbour solicitation and advertisement
    /// (types 133 to 136, RFC 4861). Without it IPv6 does not work at all, so no policy ever stops it.
    pub fn is_neighbour_discovery(self) -> bool {
        matches!(self, Transport::Icmpv6(133..=136))
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Transport::Port(protocol, port) => write!(f, "{protocol}/{port}"),
            Transport::Icmp(kind) => write!(f, "ICMP/type {kind}"),
            Transport::Icmpv6(kind) => write!(f, "ICMPv6/type {kind}"),
            Transport::Other(number) => write!(f, "IP protocol {number}"),
        }
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {} {}", self.source, self.destination, self.transport)
    }
}
