//! Sockets that report ICMP errors, and raw sockets for SCTP.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvfrom, recvmsg, setsockopt, sockopt};
use ringfence_model::Protocol;
use socket2::{Domain, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::sctp::{self, Packet};

/// Makes every ICMP error about what the socket sends an error of its next receive.
pub(crate) fn report_icmp_errors(socket: impl AsFd, address: IpAddr) -> io::Result<()> {
    match address {
        IpAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?,
        IpAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?,
    }
    Ok(())
}

/// Waits for a datagram *or an error* and returns the datagram's length and sender. Tokio's own receive waits for data
/// only, but an ICMP error is the answer to many a probe.
pub(crate) async fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, Option<IpAddr>)> {
    let attempt = || {
        let (length, sender) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), buffer)?;
        Ok((length, sender.as_ref().and_then(address)))
    };
    socket.async_io(Interest::READABLE | Interest::ERROR, attempt).await
}

/// A non-blocking raw socket in the calling thread's network namespace, for the family of `address`.
pub(crate) fn open_sctp(address: IpAddr) -> io::Result<Socket> {
    let domain = Domain::for_address(SocketAddr::new(address, 0));
    let protocol = socket2::Protocol::from(i32::from(Protocol::Sctp.number()));
    // Neither family's raw sockets touch our checksum: IPv6 ones compute one only if IPV6_CHECKSUM asks for it.
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A raw SCTP socket: sees every SCTP packet to the address it is bound to, whatever the port, and sends packets that
/// are complete but for the IP header.
///
/// Tokio knows no raw sockets, but to it they are like UDP ones: datagrams with an address, in and out.
pub(crate) struct SctpSocket {
    socket: UdpSocket,
    is_v4: bool,
}

impl SctpSocket {
    /// Takes a socket from [`open_sctp`]. Needs a tokio runtime with I/O.
    pub(crate) fn new(socket: Socket) -> io::Result<SctpSocket> {
        let is_v4 = socket.domain()? == Domain::IPV4;
        Ok(SctpSocket { socket: UdpSocket::from_std(socket.into())?, is_v4 })
    }

    /// Sends to the address the socket is connected to. An ICMP error that waits to be read fails this in its place.
    pub(crate) async fn send(&self, packet: &Packet) -> io::Result<()> {
        self.socket.send(&packet.encode()).await.map(drop)
    }

    pub(crate) async fn send_to(&self, packet: &Packet, address: IpAddr) -> io::Result<()> {
        self.socket.send_to(&packet.encode(), SocketAddr::new(address, 0)).await.map(drop)
    }

    /// The next packet and who sent it. `Ok(None)` is one that is no sound SCTP packet.
    pub(crate) async fn receive(&self) -> io::Result<Option<(Packet, IpAddr)>> {
        let mut buffer = [0; 2048];
        let (length, sender) = receive(&self.socket, &mut buffer).await?;
        let packet = buffer.get(..length).and_then(|bytes| self.decode(bytes));
        Ok(packet.zip(sender))
    }

    /// Takes ICMP errors off the error queue until one is about a packet with these ports, and returns what it says.
    /// An ICMP error goes to every raw socket between the two addresses, so it may well be about another probe.
    pub(crate) fn icmp_error(&self, source_port: u16, destination_port: u16) -> Option<io::Error> {
        loop {
            let mut quoted = [0; 512];
            let mut slices = [IoSliceMut::new(&mut quoted)];
            let mut control = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
            let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
            let message =
                recvmsg::<SockaddrStorage>(self.socket.as_raw_fd(), &mut slices, Some(&mut control), flags).ok()?;
            let number = message.cmsgs().ok()?.find_map(|part| match part {
                ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _) => {
                    i32::try_from(error.ee_errno).ok()
                }
                _ => None,
            });
            let length = message.bytes;
            let about = quoted.get(..length).and_then(sctp::ports);
            if let (Some(number), Some(ports)) = (number, about)
                && ports == (source_port, destination_port)
            {
                return Some(io::Error::from_raw_os_error(number));
            }
        }
    }

    /// IPv4 raw sockets deliver the IP header too, IPv6 ones do not.
    fn decode(&self, bytes: &[u8]) -> Option<Packet> {
        let header = if self.is_v4 { usize::from(*bytes.first()? & 0x0f) * 4 } else { 0 };
        Packet::decode(bytes.get(header..)?)
    }
}

fn address(storage: &SockaddrStorage) -> Option<IpAddr> {
    if let Some(v4) = storage.as_sockaddr_in() {
        return Some(IpAddr::V4(v4.ip()));
    }
    storage.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()))
}
