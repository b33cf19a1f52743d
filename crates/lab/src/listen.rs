//! What answers: every listener says whose it is and whom it sees.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use ringfence_model::Protocol;
use socket2::{Domain, Socket, Type};
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, UdpSocket};

use crate::index::EndpointIndex;
use crate::namespace::NetNs;
use crate::network::Network;
use crate::raw::{SctpSocket, open_sctp};
use crate::sctp::{Chunk, Packet};

/// What an ABORT of the lab carries, so that it is not taken for one that a kernel with SCTP of its own sends for every
/// INIT that no socket of *its* waits for.
pub(crate) const CLOSED_PORT: &[u8] = b"ringfence-lab: closed port";

/// Connections that wait to be accepted: more than there are probes at once.
const BACKLOG: i32 = 4096;

/// How long a listener pauses when the process has run out of files, before it tries again.
const PAUSE: Duration = Duration::from_millis(10);

/// A listener could not be opened.
#[derive(Debug, Error)]
#[error(
    "cannot listen on {protocol} {address} for {endpoint}: {source}; if it is EMFILE, raise the limit of open files (ulimit -n)"
)]
pub struct ListenError {
    endpoint: String,
    protocol: Protocol,
    address: SocketAddr,
    source: io::Error,
}

impl Network {
    /// Opens every listener. When this returns, all of them answer; they go on for as long as the network lives.
    ///
    /// What they say is the endpoint's name, a space, and the address and port that the packet came from. TCP: sends that
    /// as one line and closes. UDP: answers every datagram with itself, a space and that. SCTP: answers an INIT with an
    /// INIT ACK whose cookie is that, and at ports that are not listened on with an ABORT. Must be called once, within a
    /// tokio runtime that has I/O and time.
    pub async fn listen(&self) -> Result<(), ListenError> {
        for (&(address, protocol, port), &index) in &self.open_ports {
            // The planner lists no endpoint that there is not.
            let Some((namespace, name)) = self.resident(index) else { continue };
            let socket_address = SocketAddr::new(address, port);
            let failed = |source| ListenError { endpoint: name.to_string(), protocol, address: socket_address, source };
            match protocol {
                Protocol::Tcp => {
                    let listener = tcp_listener(namespace, socket_address).map_err(failed)?;
                    self.spawn(answer_tcp(listener, name));
                }
                Protocol::Udp => {
                    let socket = udp_listener(namespace, socket_address).map_err(failed)?;
                    self.spawn(answer_udp(socket, name));
                }
                // One raw socket sees all ports of an address.
                Protocol::Sctp => {}
            }
            // Listeners that are up already answer meanwhile.
            tokio::task::yield_now().await;
        }
        self.listen_sctp()
    }

    /// Every address has an SCTP responder, also where nothing listens. Without one it would depend on who probes at
    /// that moment whether the kernel sees a socket for SCTP and keeps silent, or sees none and sends an ICMP error.
    fn listen_sctp(&self) -> Result<(), ListenError> {
        let mut responders: BTreeMap<IpAddr, (&NetNs, String)> = BTreeMap::new();
        for (position, endpoint) in self.endpoints.iter().enumerate() {
            let Some(namespace) = self.namespace(EndpointIndex(position)) else { continue };
            for &address in &endpoint.addresses {
                responders.insert(address, (namespace, endpoint.name.clone()));
            }
        }
        for node in self.nodes() {
            for &address in node.addresses() {
                responders.insert(address, (node.namespace(), node.name().to_owned()));
            }
        }
        for (address, (namespace, endpoint)) in responders {
            let ports: BTreeMap<u16, Arc<str>> = self
                .open_ports
                .range((address, Protocol::Sctp, 0)..=(address, Protocol::Sctp, u16::MAX))
                .filter_map(|(&(_, _, port), &index)| Some((port, self.resident(index)?.1)))
                .collect();
            let responder = sctp_responder(namespace, address).map_err(|source| ListenError {
                endpoint,
                protocol: Protocol::Sctp,
                address: SocketAddr::new(address, 0),
                source,
            })?;
            self.spawn(answer_sctp(responder, ports));
        }
        Ok(())
    }

    fn spawn(&self, listener: impl Future<Output = ()> + Send + 'static) {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).spawn(listener);
    }

    /// Where an endpoint's sockets are made, and its name.
    fn resident(&self, index: EndpointIndex) -> Option<(&NetNs, Arc<str>)> {
        let endpoint = self.endpoints.get(index.0)?;
        Some((self.namespace(index)?, Arc::from(endpoint.name.as_str())))
    }
}

fn tcp_listener(namespace: &NetNs, address: SocketAddr) -> io::Result<TcpListener> {
    let socket = namespace.within(|| Socket::new(Domain::for_address(address), Type::STREAM, None))??;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn udp_listener(namespace: &NetNs, address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = namespace.within(|| Socket::new(Domain::for_address(address), Type::DGRAM, None))??;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

fn sctp_responder(namespace: &NetNs, address: IpAddr) -> io::Result<SctpSocket> {
    let socket = namespace.within(|| open_sctp(address))??;
    socket.bind(&SocketAddr::new(address, 0).into())?;
    SctpSocket::new(socket)
}

async fn answer_tcp(listener: TcpListener, name: Arc<str>) {
    loop {
        let Ok((mut stream, peer)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let line = format!("{name} {peer}\n");
        tokio::spawn(async move {
            // A prober that has gone away has its outcome already; there is nobody to tell.
            if stream.write_all(line.as_bytes()).await.is_ok() {
                let _ = stream.shutdown().await;
            }
        });
    }
}

async fn answer_udp(socket: UdpSocket, name: Arc<str>) {
    let mut buffer = [0; 64];
    loop {
        let Ok((length, sender)) = socket.recv_from(&mut buffer).await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let answer = format!(" {name} {sender}");
        let answer = [buffer.get(..length).unwrap_or_default(), answer.as_bytes()].concat();
        // The packet filter may refuse an answer; the prober sees that as silence and asks again.
        let _ = socket.send_to(&answer, sender).await;
    }
}

async fn answer_sctp(socket: SctpSocket, ports: BTreeMap<u16, Arc<str>>) {
    loop {
        let (packet, sender) = match socket.receive().await {
            Ok(Some(received)) => received,
            Ok(None) => continue,
            Err(_) => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // All else is an answer to a probe that this endpoint makes.
        let Chunk::Init { tag } = packet.chunk else { continue };
        let chunk = match ports.get(&packet.destination_port) {
            // The initiator's tag serves as ours too: no association ever uses it.
            Some(name) => {
                let peer = SocketAddr::new(sender, packet.source_port);
                Chunk::InitAck { tag, cookie: format!("{name} {peer}").into_bytes() }
            }
            None => Chunk::Abort { reason: CLOSED_PORT.to_vec() },
        };
        let answer = Packet { source_port: packet.destination_port, destination_port: packet.source_port, tag, chunk };
        let _ = socket.send_to(&answer, sender).await;
    }
}
