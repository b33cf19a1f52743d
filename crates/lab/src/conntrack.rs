//! Questions to the connection tracking of the calling thread's network namespace (ctnetlink).

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr as NetlinkAddr};
use ringfence_model::Protocol;

// linux/netlink.h
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE_MASK: u16 = !(3 << 14);

// linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h: the subsystem is the upper byte of a message's type.
const CTNETLINK: u16 = 1 << 8;
const CT_NEW: u16 = CTNETLINK;
const CT_GET: u16 = CTNETLINK | 1;
const CT_DELETE: u16 = CTNETLINK | 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

const NETLINK_HEADER: usize = 16;
const NETFILTER_HEADER: usize = 4;
const ATTRIBUTE_HEADER: usize = 4;

/// The packets of one direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tuple {
    protocol: u8,
    source: SocketAddr,
    destination: SocketAddr,
}

/// Who began the connection whose answers go from `answerer` to `receiver`, as its first packet said. `None`: no such
/// connection.
pub(crate) fn original_source(
    protocol: Protocol,
    answerer: SocketAddr,
    receiver: SocketAddr,
) -> io::Result<Option<SocketAddr>> {
    let reply = Tuple { protocol: protocol.number(), source: answerer, destination: receiver };
    let mut body = Vec::new();
    attribute(&mut body, CTA_TUPLE_REPLY | NLA_F_NESTED, |body| reply.encode(body));
    let family = if answerer.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let answer = match ask(&message(CT_GET, NLM_F_REQUEST, family, &body)) {
        Ok(answer) => answer,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let tuple = |kind| find(&answer, kind).and_then(Tuple::decode);
    // The kernel looks for the tuple in both directions: a connection that the answerer began matches as well.
    if tuple(CTA_TUPLE_REPLY) != Some(reply) {
        return Ok(None);
    }
    let original = tuple(CTA_TUPLE_ORIG).ok_or_else(|| broken("a connection without an original direction"))?;
    Ok(Some(original.source))
}

/// Forgets all connections.
pub(crate) fn flush() -> io::Result<()> {
    ask(&message(CT_DELETE, NLM_F_REQUEST | NLM_F_ACK, libc::AF_UNSPEC, &[])).map(drop)
}

/// Sends one message and returns the attributes of the answer; those of an acknowledgement are none.
fn ask(message: &[u8]) -> io::Result<Vec<u8>> {
    let socket = Socket::new(NETLINK_NETFILTER)?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    socket.send(message, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    match u16_at(&answer, 4) {
        Some(NLMSG_ERROR) => {
            let code = answer.get(NETLINK_HEADER..NETLINK_HEADER + 4).and_then(|bytes| bytes.try_into().ok());
            match i32::from_ne_bytes(code.ok_or_else(|| broken("an error without a number"))?) {
                0 => Ok(Vec::new()),
                error => Err(io::Error::from_raw_os_error(error.wrapping_neg())),
            }
        }
        Some(CT_NEW) => Ok(answer.get(NETLINK_HEADER + NETFILTER_HEADER..).unwrap_or_default().to_vec()),
        _ => Err(broken("an answer to something else")),
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("connection tracking gave {what}"))
}

impl Tuple {
    fn encode(&self, bytes: &mut Vec<u8>) {
        attribute(bytes, CTA_TUPLE_IP | NLA_F_NESTED, |bytes| {
            let kinds =
                if self.source.is_ipv4() { [CTA_IP_V4_SRC, CTA_IP_V4_DST] } else { [CTA_IP_V6_SRC, CTA_IP_V6_DST] };
            for (kind, end) in kinds.into_iter().zip([self.source, self.destination]) {
                attribute(bytes, kind, |bytes| match end.ip() {
                    IpAddr::V4(v4) => bytes.extend(v4.octets()),
                    IpAddr::V6(v6) => bytes.extend(v6.octets()),
                });
            }
        });
        attribute(bytes, CTA_TUPLE_PROTO | NLA_F_NESTED, |bytes| {
            attribute(bytes, CTA_PROTO_NUM, |bytes| bytes.push(self.protocol));
            attribute(bytes, CTA_PROTO_SRC_PORT, |bytes| bytes.extend(self.source.port().to_be_bytes()));
            attribute(bytes, CTA_PROTO_DST_PORT, |bytes| bytes.extend(self.destination.port().to_be_bytes()));
        });
    }

    fn decode(bytes: &[u8]) -> Option<Tuple> {
        let (ip, proto) = (find(bytes, CTA_TUPLE_IP)?, find(bytes, CTA_TUPLE_PROTO)?);
        let address = |v4, v6| match find(ip, v4) {
            Some(octets) => Some(IpAddr::from(<[u8; 4]>::try_from(octets).ok()?)),
            None => Some(IpAddr::from(<[u8; 16]>::try_from(find(ip, v6)?).ok()?)),
        };
        let port = |kind| Some(u16::from_be_bytes(find(proto, kind)?.try_into().ok()?));
        Some(Tuple {
            protocol: *find(proto, CTA_PROTO_NUM)?.first()?,
            source: SocketAddr::new(address(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?, port(CTA_PROTO_SRC_PORT)?),
            destination: SocketAddr::new(address(CTA_IP_V4_DST, CTA_IP_V6_DST)?, port(CTA_PROTO_DST_PORT)?),
        })
    }
}

/// A netlink message, ready to be sent. Families are small numbers.
fn message(kind: u16, flags: u16, family: i32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(NETLINK_HEADER + NETFILTER_HEADER + body.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(NETLINK_HEADER + NETFILTER_HEADER + body.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence and port number: there is one message on the socket.
    bytes.extend([0; 8]);
    bytes.extend([u8::try_from(family).unwrap_or_default(), 0, 0, 0]);
    bytes.extend(body);
    bytes
}

/// Appends an attribute whose value `value` appends, padded to four bytes. Values here are far shorter than 64 KiB.
fn attribute(bytes: &mut Vec<u8>, kind: u16, value: impl FnOnce(&mut Vec<u8>)) {
    let mut own = Vec::new();
    value(&mut own);
    bytes.extend(u16::try_from(ATTRIBUTE_HEADER + own.len()).unwrap_or(u16::MAX).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(own);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// The value of the first attribute of a kind.
fn find(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16_at(bytes, 0)?);
        if u16_at(bytes, 2)? & NLA_TYPE_MASK == wanted {
            return bytes.get(ATTRIBUTE_HEADER..length);
        }
        // A length below that of the header would never end.
        bytes = bytes.get(length.max(ATTRIBUTE_HEADER).next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(source: &str, destination: &str) -> Tuple {
        Tuple { protocol: 6, source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    #[test]
    fn tuples_read_back() {
        for tuple in [tuple("10.0.0.1:80", "192.0.2.1:40000"), tuple("[2001:db8::1]:80", "[2001:db8::2]:40000")] {
            let mut bytes = Vec::new();
            tuple.encode(&mut bytes);
            assert_eq!(Tuple::decode(&bytes), Some(tuple));
            for length in 0..bytes.len() - 2 {
                assert_eq!(Tuple::decode(&bytes[..length]), None, "the first {length} bytes");
            }
        }
    }

    #[test]
    fn what_is_no_attribute_is_not_found() {
        assert_eq!(find(&[], 1), None);
        assert_eq!(find(&[0, 0, 9, 0, 0, 0, 9, 0], 1), None);
        assert_eq!(find(&[200, 0, 1, 0, 7], 1), None);
        assert_eq!(find(&[3, 0, 1, 0], 1), None);
    }
}
