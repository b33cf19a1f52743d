//! Packets with any source, and ears that hear whatever arrives.

use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ringfence_lab::NetNs;
use socket2::{Domain, Protocol, Socket, Type};

/// Sends one UDP datagram from a namespace, with a source that need not be its own.
pub(crate) fn send(from: &NetNs, source: SocketAddr, to: SocketAddr, payload: &[u8]) -> io::Result<()> {
    // IPPROTO_RAW: what is sent is the whole packet, its source included.
    let raw = || Socket::new(Domain::for_address(to), Type::from(libc::SOCK_RAW), Some(Protocol::from(255)));
    let socket = from.within(raw)??;
    socket.send_to(&packet(source, to, payload), &SocketAddr::new(to.ip(), 0).into()).map(drop)
}

/// Hears every UDP packet that is delivered in a namespace, whoever is meant there.
pub(crate) struct Ear(Socket);

impl Ear {
    pub(crate) fn open(namespace: &NetNs, is_v4: bool) -> io::Result<Ear> {
        let domain = if is_v4 { Domain::IPV4 } else { Domain::IPV6 };
        let raw = || Socket::new(domain, Type::from(libc::SOCK_RAW), Some(Protocol::UDP));
        namespace.within(raw)?.map(Ear)
    }

    /// Whether a packet that ends with these bytes arrives within that time.
    pub(crate) fn hears(&self, payload: &[u8], within: Duration) -> io::Result<bool> {
        let end = Instant::now() + within;
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            self.0.set_read_timeout(Some(left))?;
            let mut buffer = [0; 512];
            match (&self.0).read(&mut buffer) {
                Ok(length) => {
                    if buffer[..length].ends_with(payload) {
                        return Ok(true);
                    }
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}

/// An IP packet with a UDP datagram.
fn packet(source: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap_or_default().to_be_bytes();
    let mut udp = [&source.port().to_be_bytes()[..], &to.port().to_be_bytes(), &length, &[0, 0], payload].concat();
    let (from, into) = (octets(source.ip()), octets(to.ip()));
    let pseudo = [&from[..], &into, &[0, 17], &length, &udp].concat();
    let sum = checksum(&pseudo);
    udp[6..8].copy_from_slice(&sum);
    if source.is_ipv4() {
        let total = u16::try_from(20 + udp.len()).unwrap_or_default().to_be_bytes();
        // The kernel fills in the checksum.
        let header = [&[0x45, 0][..], &total, &[0, 0, 0, 0, 64, 17, 0, 0], &from, &into].concat();
        [header, udp].concat()
    } else {
        [&[0x60, 0, 0, 0][..], &length, &[17, 64], &from, &into, &udp].concat()
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |byte| u32::from(*byte));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap_or_default()).to_be_bytes()
}
