//! The three SCTP packets the lab speaks (RFC 9260): INIT, INIT ACK and ABORT.
//!
//! The kernel need not know SCTP; what is judged is whether an INIT arrives and its answer comes back. That takes
//! packets that connection tracking accepts, so tags and checksums are real. All numbers are in network byte order,
//! except for the checksum, which is the CRC32c in little-endian order.

const COMMON_HEADER: usize = 12;
const INIT_CHUNK: usize = 20;

const CHUNK_INIT: u8 = 1;
const CHUNK_INIT_ACK: u8 = 2;
const CHUNK_ABORT: u8 = 6;

const PARAMETER_STATE_COOKIE: u16 = 7;
const CAUSE_USER_INITIATED_ABORT: u16 = 12;

/// The receive window an endpoint announces; 1500 is the least allowed.
const RECEIVE_WINDOW: u32 = 65_535;

/// An SCTP packet with one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    /// The verification tag: the receiver's own tag; 0 in an INIT.
    pub(crate) tag: u32,
    pub(crate) chunk: Chunk,
}

/// The first chunk of a packet, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Chunk {
    /// Asks for an association; `tag` must come back in every answer.
    Init { tag: u32 },
    /// Grants it. The cookie says who answers.
    InitAck { tag: u32, cookie: Vec<u8> },
    /// Refuses it. `reason` is what an ABORT of the lab carries; that of a kernel carries none.
    Abort { reason: Vec<u8> },
    /// Any other.
    Other,
}

impl Packet {
    /// The packet as bytes, checksum included, without an IP header.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(COMMON_HEADER + INIT_CHUNK + 64);
        bytes.extend(self.source_port.to_be_bytes());
        bytes.extend(self.destination_port.to_be_bytes());
        bytes.extend(self.tag.to_be_bytes());
        bytes.extend([0; 4]);
        match &self.chunk {
            Chunk::Init { tag } => chunk(&mut bytes, CHUNK_INIT, &initiation(*tag)),
            Chunk::InitAck { tag, cookie } => {
                let mut body = initiation(*tag);
                parameter(&mut body, PARAMETER_STATE_COOKIE, cookie);
                chunk(&mut bytes, CHUNK_INIT_ACK, &body);
            }
            Chunk::Abort { reason } => {
                let mut body = Vec::new();
                parameter(&mut body, CAUSE_USER_INITIATED_ABORT, reason);
                chunk(&mut bytes, CHUNK_ABORT, &body);
            }
            Chunk::Other => {}
        }
        let checksum = crc32c::crc32c(&bytes).to_le_bytes();
        bytes[8..COMMON_HEADER].copy_from_slice(&checksum);
        bytes
    }

    /// Reads a packet without its IP header. `None`: too short, a wrong checksum, or no chunk.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Packet> {
        let (source_port, destination_port) = ports(bytes)?;
        let tag = u32_at(bytes, 4)?;
        let checksum: [u8; 4] = bytes.get(8..COMMON_HEADER)?.try_into().ok()?;
        let sum = crc32c::crc32c(bytes.get(..8)?);
        let sum = crc32c::crc32c_append(sum, &[0; 4]);
        let sum = crc32c::crc32c_append(sum, bytes.get(COMMON_HEADER..)?);
        if sum.to_le_bytes() != checksum {
            return None;
        }
        let kind = *bytes.get(COMMON_HEADER)?;
        let length = usize::from(u16_at(bytes, COMMON_HEADER + 2)?);
        let body = bytes.get(COMMON_HEADER + 4..COMMON_HEADER + length)?;
        let chunk = match kind {
            CHUNK_INIT => Chunk::Init { tag: u32_at(body, 0)? },
            CHUNK_INIT_ACK => {
                let cookie = find_parameter(body.get(INIT_CHUNK - 4..)?, PARAMETER_STATE_COOKIE)?.to_vec();
                Chunk::InitAck { tag: u32_at(body, 0)?, cookie }
            }
            CHUNK_ABORT => {
                let reason = find_parameter(body, CAUSE_USER_INITIATED_ABORT).unwrap_or_default().to_vec();
                Chunk::Abort { reason }
            }
            _ => Chunk::Other,
        };
        Some(Packet { source_port, destination_port, tag, chunk })
    }
}

/// Source and destination port of the beginning of a packet, such as an ICMP error quotes.
pub(crate) fn ports(bytes: &[u8]) -> Option<(u16, u16)> {
    Some((u16_at(bytes, 0)?, u16_at(bytes, 2)?))
}

/// What INIT and INIT ACK have in common: tag, window, one stream either way, first sequence number.
fn initiation(tag: u32) -> Vec<u8> {
    let mut body = Vec::with_capacity(INIT_CHUNK - 4);
    body.extend(tag.to_be_bytes());
    body.extend(RECEIVE_WINDOW.to_be_bytes());
    body.extend(1u16.to_be_bytes());
    body.extend(1u16.to_be_bytes());
    body.extend(tag.to_be_bytes());
    body
}

fn chunk(bytes: &mut Vec<u8>, kind: u8, body: &[u8]) {
    bytes.extend([kind, 0]);
    bytes.extend(length_of(body).to_be_bytes());
    bytes.extend(body);
}

/// Appends a parameter or error cause; both look alike, and both are padded to four bytes.
fn parameter(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    bytes.extend(kind.to_be_bytes());
    bytes.extend(length_of(value).to_be_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// The length field of a chunk or parameter: with its own four bytes of header. Names are far shorter than 64 KiB.
fn length_of(value: &[u8]) -> u16 {
    u16::try_from(value.len() + 4).unwrap_or(u16::MAX)
}

fn find_parameter(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let kind = u16_at(bytes, 0)?;
        let length = usize::from(u16_at(bytes, 2)?);
        if kind == wanted {
            return bytes.get(4..length);
        }
        // A length below that of the header would never end.
        bytes = bytes.get(length.max(4).next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(chunk: Chunk) -> Packet {
        Packet { source_port: 40_000, destination_port: 7777, tag: 0x0102_0304, chunk }
    }

    #[test]
    fn every_packet_reads_back() {
        for name in ["", "a", "ab", "abc", "ns/pod"] {
            let name = name.as_bytes().to_vec();
            for chunk in [
                Chunk::Init { tag: 0xdead_beef },
                Chunk::InitAck { tag: 1, cookie: name.clone() },
                Chunk::Abort { reason: name },
            ] {
                let packet = packet(chunk);
                assert_eq!(Packet::decode(&packet.encode()), Some(packet));
            }
        }
    }

    #[test]
    fn the_checksum_is_crc32c_in_little_endian_order() {
        // From RFC 3720, appendix B.4: 32 bytes of zeros have the CRC32c aa 36 91 8a as sent.
        assert_eq!(crc32c::crc32c(&[0; 32]).to_le_bytes(), [0xaa, 0x36, 0x91, 0x8a]);
        let bytes = packet(Chunk::Init { tag: 5 }).encode();
        assert_eq!(bytes.len(), COMMON_HEADER + INIT_CHUNK);
        let mut zeroed = bytes.clone();
        zeroed[8..12].fill(0);
        assert_eq!(crc32c::crc32c(&zeroed).to_le_bytes(), bytes[8..12]);
    }

    #[test]
    fn broken_packets_are_nothing() {
        let bytes = packet(Chunk::InitAck { tag: 1, cookie: b"ns/pod".to_vec() }).encode();
        for length in 0..bytes.len() {
            assert_eq!(Packet::decode(&bytes[..length]), None, "the first {length} bytes");
        }
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert_eq!(Packet::decode(&flipped), None, "bit in byte {at}");
        }
    }
}
