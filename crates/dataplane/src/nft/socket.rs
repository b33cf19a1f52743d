//! One long-lived netlink socket to the packet filter.
//!
//! The kernel works a request off while it is being sent: when `send` returns, every answer is in the receive queue. So
//! nothing here ever waits, and an answer that is not there is lost.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{getsockopt, setsockopt, sockopt};

use super::attribute::attributes_of;
use super::netlink::{Batch, FAMILY_INET, GENERIC_HEADER, HEADER, finish_message, message_header};
use crate::backend::{Applied, ApplyError};

/// Longer than any datagram the kernel puts together for a dump or an error.
const RECEIVE_BYTES: usize = 64 * 1024;
/// Room for the errors of one transaction.
const RECEIVE_QUEUE_BYTES: usize = 4 * 1024 * 1024;
/// What the kernel keeps free in a send buffer (`netlink_sendmsg` in `net/netlink/af_netlink.c`).
const SEND_RESERVE_BYTES: usize = 32;
/// `NLM_F_DUMP_INTR` of `linux/netlink.h`: what was listed changed meanwhile.
const DUMP_INTERRUPTED: u16 = 0x10;
/// `NLMSGERR_ATTR_OFFS` of `linux/netlink.h`.
const ERROR_OFFSET: u16 = 2;

/// The socket. It belongs to the network namespace of the thread that opened it, for good.
pub(super) struct NftSocket {
    socket: Socket,
    sequence: u32,
    received: Vec<u8>,
}

/// The fate of a transaction that the kernel has answered.
pub(super) enum Sent {
    /// It is in force.
    Committed(Applied),
    /// It had no effect, because another transaction came in between.
    Outdated,
}

/// A message from the kernel.
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    flags: u16,
    sequence: u32,
    /// What follows the netlink header.
    pub(super) payload: &'a [u8],
}

/// What the kernel lists.
pub(super) struct Listing {
    /// The attributes of each object.
    pub(super) objects: Vec<Vec<u8>>,
    /// Somebody changed something meanwhile, ours or not: objects may be missing or doubled.
    pub(super) interrupted: bool,
}

/// What the kernel says about a message of ours.
struct Answer {
    /// The error number; 0 for success.
    errno: i32,
    /// Where in our message the fault is.
    offset: Option<usize>,
}

impl NftSocket {
    pub(super) fn open() -> Result<NftSocket, ApplyError> {
        let socket = open(RECEIVE_QUEUE_BYTES)?;
        // Errors come without a copy of the message, and with the place of the fault in it.
        socket.set_cap_ack(true).map_err(not_opened)?;
        socket.set_ext_ack(true).map_err(not_opened)?;
        Ok(NftSocket { socket, sequence: 1, received: Vec::with_capacity(RECEIVE_BYTES) })
    }

    /// The number of the next message.
    pub(super) fn sequence(&self) -> u32 {
        self.sequence
    }

    /// Sends a transaction, whole, and reads the kernel's answer.
    pub(super) fn transact(&mut self, batch: &Batch<'_>) -> Result<Sent, ApplyError> {
        self.sequence = batch.next_sequence();
        self.send(batch.bytes())?;
        let mut acknowledged = false;
        let mut outdated = false;
        let mut refused: Option<(u32, ApplyError)> = None;
        while self.receive()? {
            for message in messages(&self.received) {
                let message = message?;
                let sequence = message.sequence;
                let Some(answer) = message.answer() else {
                    continue;
                };
                let Some(operation) = batch.describe(sequence, answer.offset) else {
                    continue; // An answer to an earlier request.
                };
                match answer.errno {
                    0 => acknowledged |= batch.is_acknowledged(sequence),
                    libc::ERESTART => outdated = true,
                    libc::ENOBUFS => return Err(lost("writing", io::Error::from_raw_os_error(libc::ENOBUFS))),
                    number if refused.as_ref().is_none_or(|(first, _)| sequence < *first) => {
                        let source = io::Error::from_raw_os_error(number);
                        refused = Some((sequence, ApplyError::Refused { operation, source }));
                    }
                    _ => {} // Only what failed first is a cause.
                }
            }
        }
        if let Some((_, error)) = refused {
            return Err(error);
        }
        if outdated {
            return Ok(Sent::Outdated);
        }
        // Brackets around nothing are not acknowledged.
        if !acknowledged && !batch.is_empty() {
            return Err(lost("writing", io::Error::from(io::ErrorKind::UnexpectedEof)));
        }
        let (elements_added, elements_removed) = batch.elements();
        let (messages, bytes) = (batch.messages(), batch.bytes().len());
        Ok(Sent::Committed(Applied { elements_added, elements_removed, messages, bytes }))
    }

    /// Whether the transaction numbered `last` is over and none came after it. A transaction takes its number before it takes
    /// effect; this waits for its end.
    pub(super) fn is_last(&mut self, last: u32) -> Result<bool, ApplyError> {
        // Without operations a transaction has no effect and gets no number, but the kernel compares and takes its turn.
        let sent = self.transact(&Batch::new(&[], Some(last), self.sequence))?;
        Ok(matches!(sent, Sent::Committed(_)))
    }

    /// Asks about one object.
    pub(super) fn get(&mut self, kind: i32) -> Result<Vec<Vec<u8>>, ApplyError> {
        Ok(self.ask(kind, 0, &[])?.objects)
    }

    /// Lists objects. Gives `None` when something changed meanwhile.
    pub(super) fn list(&mut self, kind: i32) -> Result<Option<Vec<Vec<u8>>>, ApplyError> {
        let listing = self.list_some(kind, &[])?;
        Ok((!listing.interrupted).then_some(listing.objects))
    }

    /// Lists those objects that `attributes` describes; none when what they would be in does not exist.
    pub(super) fn list_some(&mut self, kind: i32, attributes: &[u8]) -> Result<Listing, ApplyError> {
        self.ask(kind, libc::NLM_F_DUMP, attributes)
    }

    fn ask(&mut self, kind: i32, flags: i32, attributes: &[u8]) -> Result<Listing, ApplyError> {
        let sequence = self.sequence;
        self.sequence = sequence.wrapping_add(1);
        let mut request = Vec::new();
        message_header(&mut request, libc::NFNL_SUBSYS_NFTABLES << 8 | kind, flags, sequence, FAMILY_INET, 0);
        request.extend_from_slice(attributes);
        finish_message(&mut request, 0);
        self.send(&request)?;
        let mut listing = Listing { objects: Vec::new(), interrupted: false };
        let mut complete = flags == 0;
        while self.receive()? {
            for message in messages(&self.received) {
                let message = message?;
                if message.sequence != sequence {
                    continue;
                }
                listing.interrupted |= message.flags & DUMP_INTERRUPTED != 0;
                match message.answer().map(|answer| answer.errno) {
                    Some(libc::EINTR) => (listing.interrupted, complete) = (true, true),
                    Some(libc::ENOENT) => complete = true,
                    Some(0) => {}
                    Some(number) => {
                        return Err(ApplyError::Refused {
                            operation: "listing what is in our table".to_owned(),
                            source: io::Error::from_raw_os_error(number),
                        });
                    }
                    None if i32::from(message.kind) == libc::NLMSG_DONE => complete = true,
                    None => listing.objects.push(message.payload.get(GENERIC_HEADER..).unwrap_or_default().to_vec()),
                }
            }
        }
        if complete { Ok(listing) } else { Err(lost("listing", io::Error::from(io::ErrorKind::UnexpectedEof))) }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), ApplyError> {
        let failed =
            |source: io::Error| ApplyError::Unsent { operation: "sending to the packet filter", source: source.into() };
        let size = || getsockopt(&self.socket, sockopt::SndBuf).map_err(|error| failed(error.into()));
        if size()? < bytes.len() + SEND_RESERVE_BYTES {
            // The kernel doubles what it is told. Beyond net.core.wmem_max it obeys only the initial user namespace.
            if setsockopt(&self.socket, sockopt::SndBufForce, &bytes.len()).is_err() {
                setsockopt(&self.socket, sockopt::SndBuf, &bytes.len()).map_err(|error| failed(error.into()))?;
            }
            let limit = size()?.saturating_sub(SEND_RESERVE_BYTES);
            if limit < bytes.len() {
                return Err(ApplyError::TooLarge { bytes: bytes.len(), limit });
            }
        }
        match self.socket.send(bytes, 0) {
            Ok(sent) if sent == bytes.len() => Ok(()),
            Ok(_) => Err(lost("sending", io::Error::from(io::ErrorKind::WriteZero))),
            Err(error) => match error.raw_os_error() {
                Some(libc::EMSGSIZE | libc::ENOBUFS | libc::ENOMEM | libc::EPERM) => Err(failed(error)),
                _ => Err(lost("sending", error)),
            },
        }
    }

    /// Reads one datagram; `false` when there is none.
    fn receive(&mut self) -> Result<bool, ApplyError> {
        self.received.clear();
        match self.socket.recv(&mut self.received, libc::MSG_DONTWAIT | libc::MSG_TRUNC) {
            Ok(length) if length > self.received.len() => {
                Err(lost("receiving", io::Error::from(io::ErrorKind::InvalidData)))
            }
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            // ENOBUFS among others: the queue was too short, and answers are missing.
            Err(error) => Err(lost("receiving", error)),
        }
    }
}

/// A netlink socket to the packet filter that holds at least so many bytes for us to read, if the kernel lets it.
pub(super) fn open(queue_bytes: usize) -> Result<Socket, ApplyError> {
    let mut socket = Socket::new(NETLINK_NETFILTER).map_err(not_opened)?;
    socket.bind_auto().map_err(not_opened)?;
    // Nobody but the kernel can send to it then.
    socket.connect(&SocketAddr::new(0, 0)).map_err(not_opened)?;
    if setsockopt(&socket, sockopt::RcvBufForce, &queue_bytes).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &queue_bytes).map_err(|error| not_opened(error.into()))?;
    }
    Ok(socket)
}

pub(super) fn not_opened(source: io::Error) -> ApplyError {
    ApplyError::Unsent { operation: "opening a netlink socket", source: source.into() }
}

pub(super) fn lost(operation: &'static str, source: io::Error) -> ApplyError {
    ApplyError::Lost { operation, source: source.into() }
}

impl Message<'_> {
    /// If it is an acknowledgement: what it says.
    fn answer(&self) -> Option<Answer> {
        /// Fields of `struct nlmsgerr`: the error and the header of the message that it answers.
        const ERROR: usize = 4;
        if i32::from(self.kind) != libc::NLMSG_ERROR {
            return None;
        }
        let error = i32::from_ne_bytes(self.payload.get(..ERROR)?.try_into().ok()?);
        let attributes = self.payload.get(ERROR + HEADER..).unwrap_or_default();
        let offset = attributes_of(attributes)
            .find(|(kind, _)| *kind == ERROR_OFFSET)
            .and_then(|(_, value)| usize::try_from(u32::from_ne_bytes(value.try_into().ok()?)).ok());
        Some(Answer { errno: error.saturating_neg(), offset })
    }
}

/// The messages in a datagram.
pub(super) fn messages(datagram: &[u8]) -> impl Iterator<Item = Result<Message<'_>, ApplyError>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let message = split_message(rest);
        rest = message.as_ref().map_or(&[], |(_, after)| *after);
        Some(message.map(|(message, _)| message).ok_or_else(|| lost("reading", io::ErrorKind::InvalidData.into())))
    })
}

fn split_message(bytes: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let number = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let short = |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let length = usize::try_from(number(0)?).ok()?;
    let payload = bytes.get(HEADER..length)?;
    let message = Message { kind: short(4)?, flags: short(6)?, sequence: number(8)?, payload };
    Some((message, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}
