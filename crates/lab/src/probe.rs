//! One question to the network: does a packet from here arrive there, and who answers?

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use ringfence_model::Protocol;
use socket2::{Domain, Socket, Type};
use thiserror::Error;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout, timeout_at};

use crate::index::{EndpointIndex, NodeIndex};
use crate::listen::CLOSED_PORT;
use crate::namespace::NetNs;
use crate::network::Network;
use crate::raw::{SctpSocket, open_sctp, receive, report_icmp_errors};
use crate::sctp::{Chunk, Packet};
use crate::spec::Place;

/// The longest answer a listener gives: an endpoint's name and an address, with room to spare.
const LONGEST_ANSWER: usize = 1024;

/// The first of the ports SCTP probes come from, and how many there are: Linux's own range of ephemeral ports.
const FIRST_PORT: u16 = 32_768;
const PORTS: u64 = 28_232;

/// How many ICMP errors about other probes one send may meet.
const MOST_FOREIGN_ERRORS: usize = 32;

/// Where a probe starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// A node itself, as a kubelet's probe.
    Node(NodeIndex),
    /// A pod or an external host.
    Endpoint(EndpointIndex),
}

/// A connection to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Probe {
    /// Who tries.
    pub from: Origin,
    /// Which of its addresses it comes from; `None` leaves that to the kernel's routes.
    pub source: Option<IpAddr>,
    /// Where it goes.
    pub destination: IpAddr,
    /// Over which protocol.
    pub protocol: Protocol,
    /// To which port.
    pub port: u16,
}

/// How long a probe waits for an answer. A refusal or an answer ends it at once, so only what is dropped silently
/// takes the full time: `attempt` times the number of attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For one attempt.
    pub attempt: Duration,
    /// Attempts over TCP; the kernel sends the second SYN after one second.
    pub tcp_attempts: u32,
    /// Attempts over UDP and SCTP, one packet each.
    pub datagram_attempts: u32,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts { attempt: Duration::from_secs(1), tcp_attempts: 2, datagram_attempts: 3 }
    }
}

/// What came of a probe.
#[derive(Debug)]
pub enum ProbeOutcome {
    /// The right kind of answer arrived.
    Answered {
        /// The name of the endpoint that gave it.
        by: String,
        /// Where the connection came from, as that endpoint saw it.
        seen: SocketAddr,
    },
    /// Somebody said no.
    Refused(Refusal),
    /// Nobody said anything.
    TimedOut,
    /// The question was not asked properly; this says nothing about the network.
    Failed(ProbeError),
}

/// How a probe was refused. A closed port and a policy can refuse alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// TCP reset or ICMP port unreachable (ECONNREFUSED), or an SCTP ABORT.
    Closed,
    /// A TCP connection was set up and then reset or closed before its answer.
    Reset,
    /// ICMP says that host, network or protocol cannot be reached; over IPv4 also that it is prohibited.
    Unreachable,
    /// ICMPv6 says that it is prohibited (EACCES), or a packet filter stopped the packet in the sender's own namespace
    /// (EPERM).
    Prohibited,
}

/// The lab's own fault.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// The origin is no endpoint of this network.
    #[error("there is no endpoint number {}", .0.0)]
    NoSuchEndpoint(EndpointIndex),
    /// The origin is no node of this network.
    #[error("there is no node number {}", .0.0)]
    NoSuchNode(NodeIndex),
    /// The origin has no address to send from.
    #[error("the probe's origin has no address of the family of {0}")]
    NoSource(IpAddr),
    /// A socket could not be made or used.
    #[error("cannot {what}: {source}")]
    Socket {
        /// What was tried.
        what: &'static str,
        /// What the kernel said; for EMFILE raise the limit of open files (ulimit -n).
        source: io::Error,
    },
    /// Something that is no listener of the lab answered.
    #[error("an unexpected answer came back: {0:?}")]
    Answer(String),
}

impl Network {
    /// Tries one connection. As many run at once as the limit of open files allows; the others wait their turn, which
    /// does not count as time of the probe.
    ///
    /// Needs a tokio runtime with I/O and time.
    pub async fn probe(&self, probe: Probe, timeouts: &Timeouts) -> ProbeOutcome {
        let namespace = match self.origin(&probe) {
            Ok(namespace) => namespace,
            Err(error) => return ProbeOutcome::Failed(error),
        };
        // The semaphore is never closed.
        let _turn = self.probes.acquire().await;
        let outcome = match probe.protocol {
            Protocol::Tcp => probe_tcp(namespace, &probe, timeouts).await,
            Protocol::Udp => probe_udp(namespace, &probe, timeouts).await,
            Protocol::Sctp => probe_sctp(namespace, &probe, timeouts).await,
        };
        outcome.unwrap_or_else(ProbeOutcome::Failed)
    }

    /// The namespace a probe starts in, if it can.
    fn origin(&self, probe: &Probe) -> Result<&NetNs, ProbeError> {
        let (namespace, addresses, more) = match probe.from {
            Origin::Node(index) => {
                let node = self.node(index).ok_or(ProbeError::NoSuchNode(index))?;
                (node.namespace(), node.addresses(), node.tunnel_addresses())
            }
            Origin::Endpoint(index) => {
                let missing = || ProbeError::NoSuchEndpoint(index);
                let endpoint = self.endpoints.get(index.0).ok_or_else(missing)?;
                let host = match endpoint.place {
                    Place::HostNetwork { node } => self.node(node),
                    Place::Pod { .. } | Place::External => None,
                };
                let tunnels = host.map_or(&[][..], |node| node.tunnel_addresses());
                (self.namespace(index).ok_or_else(missing)?, endpoint.addresses.as_slice(), tunnels)
            }
        };
        let fits = |address: &IpAddr| {
            address.is_ipv4() == probe.destination.is_ipv4() && probe.source.is_none_or(|source| source == *address)
        };
        addresses.iter().chain(more).any(fits).then_some(namespace).ok_or(ProbeError::NoSource(probe.destination))
    }
}

async fn probe_tcp(namespace: &NetNs, probe: &Probe, timeouts: &Timeouts) -> Result<ProbeOutcome, ProbeError> {
    let socket = open(namespace, probe, Type::STREAM)?;
    // A reset at the end frees the port and the connection tracking entry at once.
    socket.set_linger(Some(Duration::ZERO)).map_err(failed("set up a socket"))?;
    let deadline = Instant::now() + timeouts.attempt * timeouts.tcp_attempts;
    let mut stream = match timeout_at(deadline, connect(socket, probe)).await {
        Err(_) => return Ok(ProbeOutcome::TimedOut),
        Ok(Err(error)) => return refusal(error, "connect"),
        Ok(Ok(stream)) => stream,
    };
    let mut answer = Vec::new();
    let mut chunk = [0; LONGEST_ANSWER];
    while answer.last() != Some(&b'\n') {
        match timeout_at(deadline, stream.read(&mut chunk)).await {
            Err(_) => return Ok(ProbeOutcome::TimedOut),
            Ok(Ok(0)) if answer.is_empty() => return Ok(ProbeOutcome::Refused(Refusal::Reset)),
            Ok(Ok(length)) if length > 0 && answer.len() < LONGEST_ANSWER => {
                answer.extend(chunk.iter().take(length));
            }
            Ok(Ok(_)) => return Err(ProbeError::Answer(String::from_utf8_lossy(&answer).into_owned())),
            Ok(Err(error)) => return refusal(error, "read the answer"),
        }
    }
    answer.pop();
    answered(&answer)
}

/// Reads what a listener says: its name, a space and whom it saw.
fn answered(answer: &[u8]) -> Result<ProbeOutcome, ProbeError> {
    let text = String::from_utf8_lossy(answer);
    let parts = text.rsplit_once(' ').and_then(|(name, seen)| Some((name, seen.parse().ok()?)));
    match parts {
        Some((name, seen)) => Ok(ProbeOutcome::Answered { by: name.to_owned(), seen }),
        None => Err(ProbeError::Answer(text.into_owned())),
    }
}

/// Sets up the connection of a non-blocking TCP socket.
async fn connect(socket: Socket, probe: &Probe) -> io::Result<TcpStream> {
    let connected = socket.connect(&SocketAddr::new(probe.destination, probe.port).into());
    if let Err(error) = connected
        && error.raw_os_error() != Some(libc::EINPROGRESS)
    {
        return Err(error);
    }
    // Between namespaces of one kernel an ICMP error can be back before the call that sends the SYN returns. It finds
    // the socket busy and is kept as a soft error, which nothing announces, and which ends the connection only when
    // the next SYN meets the same fate a second later. Reading SO_ERROR brings it out.
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    let stream = TcpStream::from_std(socket.into())?;
    stream.writable().await?;
    stream.take_error()?.map_or(Ok(stream), Err)
}

async fn probe_udp(namespace: &NetNs, probe: &Probe, timeouts: &Timeouts) -> Result<ProbeOutcome, ProbeError> {
    let socket = open(namespace, probe, Type::DGRAM)?;
    report_icmp_errors(&socket, probe.destination).map_err(failed("set up a socket"))?;
    let destination = SocketAddr::new(probe.destination, probe.port);
    if let Err(error) = socket.connect(&destination.into()) {
        return refusal(error, "connect");
    }
    let socket = UdpSocket::from_std(socket.into()).map_err(failed("watch a socket"))?;
    let nonce = format!("{:016x} ", next_number());
    for _ in 0..timeouts.datagram_attempts {
        // The listener adds the space itself.
        if let Err(error) = socket.send(nonce.trim_end().as_bytes()).await {
            return refusal(error, "send a datagram");
        }
        let mut buffer = [0; LONGEST_ANSWER];
        match timeout(timeouts.attempt, receive(&socket, &mut buffer)).await {
            Err(_) => continue,
            Ok(Err(error)) => return refusal(error, "receive a datagram"),
            Ok(Ok((length, _))) => {
                let answer = buffer.get(..length).unwrap_or_default();
                return match answer.strip_prefix(nonce.as_bytes()) {
                    Some(answer) => answered(answer),
                    None => Err(ProbeError::Answer(String::from_utf8_lossy(answer).into_owned())),
                };
            }
        }
    }
    Ok(ProbeOutcome::TimedOut)
}

async fn probe_sctp(namespace: &NetNs, probe: &Probe, timeouts: &Timeouts) -> Result<ProbeOutcome, ProbeError> {
    let socket = namespace
        .within(|| open_sctp(probe.destination))
        .and_then(|opened| opened)
        .map_err(failed("open a raw socket"))?;
    report_icmp_errors(&socket, probe.destination).map_err(failed("set up a raw socket"))?;
    if let Some(source) = probe.source {
        socket.bind(&SocketAddr::new(source, 0).into()).map_err(failed("bind a raw socket"))?;
    }
    if let Err(error) = socket.connect(&SocketAddr::new(probe.destination, 0).into()) {
        return refusal(error, "connect");
    }
    let socket = SctpSocket::new(socket).map_err(failed("watch a raw socket"))?;
    let (source_port, tag) = sctp_identity();
    let init = Packet { source_port, destination_port: probe.port, tag: 0, chunk: Chunk::Init { tag } };
    // Kernels with SCTP send an ABORT of their own before the lab's listener can answer.
    let mut foreign_abort = false;
    for _ in 0..timeouts.datagram_attempts {
        let deadline = Instant::now() + timeouts.attempt;
        if let Err(error) = send_init(&socket, &init).await {
            return refusal(error, "send an INIT");
        }
        while let Ok(received) = timeout_at(deadline, socket.receive()).await {
            let packet = match received {
                Ok(Some((packet, _))) => packet,
                Ok(None) => continue,
                Err(_) => match socket.icmp_error(source_port, probe.port) {
                    Some(error) => return refusal(error, "receive an answer"),
                    None => continue,
                },
            };
            if (packet.source_port, packet.destination_port, packet.tag) != (probe.port, source_port, tag) {
                continue;
            }
            match packet.chunk {
                Chunk::InitAck { cookie, .. } => return answered(&cookie),
                Chunk::Abort { reason } if reason == CLOSED_PORT => return Ok(ProbeOutcome::Refused(Refusal::Closed)),
                Chunk::Abort { .. } => foreign_abort = true,
                Chunk::Init { .. } | Chunk::Other => {}
            }
        }
    }
    Ok(if foreign_abort { ProbeOutcome::Refused(Refusal::Closed) } else { ProbeOutcome::TimedOut })
}

/// Sends an INIT. An ICMP error that waits to be read makes a send fail in its place, and a raw socket gets those about
/// every probe between the same two addresses; so only an error that is about this probe, or that stays, is one.
async fn send_init(socket: &SctpSocket, init: &Packet) -> io::Result<()> {
    let mut sent = socket.send(init).await;
    for _ in 0..MOST_FOREIGN_ERRORS {
        if sent.is_ok() {
            break;
        }
        if let Some(own) = socket.icmp_error(init.source_port, init.destination_port) {
            return Err(own);
        }
        sent = socket.send(init).await;
    }
    sent
}

/// A non-blocking TCP or UDP socket in the origin's namespace, bound to the source address if there is one.
fn open(namespace: &NetNs, probe: &Probe, kind: Type) -> Result<Socket, ProbeError> {
    let domain = Domain::for_address(SocketAddr::new(probe.destination, 0));
    let socket = namespace
        .within(|| Socket::new(domain, kind, None))
        .and_then(|opened| opened)
        .map_err(failed("open a socket"))?;
    socket.set_nonblocking(true).map_err(failed("set up a socket"))?;
    if let Some(source) = probe.source {
        // The port is chosen when the destination is known, so that each destination has all ports to itself.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)
            .map_err(|errno| failed("set up a socket")(errno.into()))?;
        socket.bind(&SocketAddr::new(source, 0).into()).map_err(failed("bind a socket"))?;
    }
    Ok(socket)
}

/// What an error of a socket says about the network, if it does.
fn refusal(error: io::Error, what: &'static str) -> Result<ProbeOutcome, ProbeError> {
    let refusal = match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => Refusal::Closed,
        Some(libc::ECONNRESET | libc::EPIPE) => Refusal::Reset,
        // ENOPROTOOPT and EPROTO are how IPv4 and IPv6 say that the host does not know the protocol.
        Some(libc::EHOSTUNREACH | libc::ENETUNREACH | libc::ENOPROTOOPT | libc::EPROTO) => Refusal::Unreachable,
        Some(libc::EACCES | libc::EPERM) => Refusal::Prohibited,
        _ => return Err(ProbeError::Socket { what, source: error }),
    };
    Ok(ProbeOutcome::Refused(refusal))
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> ProbeError {
    move |source| ProbeError::Socket { what, source }
}

/// A number no other probe of this process has.
fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The source port and tag of an SCTP probe. No two probes that run at the same time share the pair.
fn sctp_identity() -> (u16, u32) {
    let number = next_number();
    let port = FIRST_PORT + u16::try_from(number % PORTS).unwrap_or_default();
    // Zero is not a tag.
    let tag = u32::try_from(number & u64::from(u32::MAX)).unwrap_or_default().max(1);
    (port, tag)
}
