//! The network of the soak, and packets through it: our node with pods, another node with pods, and a host outside.
//!
//! Each pod of the network has several addresses. Which of them belong to which pod of the API server, if to any, changes all
//! the time; the network stays as it is.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::thread::sleep;
use std::time::{Duration, Instant};

use ringfence_lab::{EndpointIndex, EndpointSpec, NetNs, Network, NetworkSpec, NodeIndex, NodeSpec, Place};
use ringfence_model::{Flow, Protocol, Transport};
use socket2::{Domain, SockAddr, Socket, Type};

use super::Failure;
use crate::cluster::{NODE_ADDRESS, OUR_NODE};

/// The other node of the network.
pub(super) const LAB_NODE: &str = "lab-node";
/// Addresses of our node and of the other one.
pub(super) const NODE_ADDRESSES: [[IpAddr; 2]; 2] = [
    [NODE_ADDRESS, IpAddr::V6(Ipv6Addr::new(0xfd00, 0xffff, 0, 0, 0, 0, 0, 0x10))],
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 12)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0xffff, 0, 0, 0, 0, 0, 0x12))],
];
/// Pods of the network on our node, and on the other one.
const PODS: [u8; 2] = [4, 2];
/// Addresses of each, of each family.
const ADDRESSES: u8 = 3;
/// The host outside.
const OUTSIDE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9))];
/// What everybody listens on.
pub(super) const PORTS: [(Protocol, u16); 5] = [
    (Protocol::Udp, 4242),
    (Protocol::Udp, 4243),
    (Protocol::Tcp, 8000),
    (Protocol::Tcp, 8001),
    (Protocol::Tcp, 30_500),
];
/// How long after the last one of a round a packet may arrive, or an answer.
const LATE: Duration = Duration::from_millis(25);

/// One end of flows.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub(super) address: IpAddr,
    endpoint: usize,
    /// The node it is on, if it is on one: 0 is ours.
    pub(super) node: Option<usize>,
}

/// The network with its listeners.
pub(super) struct Field {
    network: Network,
    pub(super) ends: Vec<End>,
    inboxes: Vec<UdpSocket>,
    listeners: Vec<TcpListener>,
}

/// A packet or a connection under way.
enum Sent {
    /// Arrives at some inbox.
    Packet,
    /// Is established or refused.
    Connection(Socket),
}

impl Field {
    pub(super) fn new() -> Result<Field, Failure> {
        let mut endpoints = Vec::new();
        let mut ends = Vec::new();
        for (node, count) in PODS.into_iter().enumerate() {
            for _ in 0..count {
                let endpoint = endpoints.len();
                #[allow(clippy::cast_possible_truncation, reason = "a handful")]
                let number = endpoint as u8;
                let of = |last: u8| {
                    let v6 = Ipv6Addr::new(0xfd00, 0x255, 0, 0, 0, 0, u16::from(number), u16::from(last));
                    [IpAddr::V4(Ipv4Addr::new(10, 255, number, last)), IpAddr::V6(v6)]
                };
                let addresses: Vec<IpAddr> = (1..=ADDRESSES).flat_map(of).collect();
                ends.extend(addresses.iter().map(|&address| End { address, endpoint, node: Some(node) }));
                let (name, place) = (format!("pod-{number}"), Place::Pod { node: NodeIndex(node) });
                endpoints.push(EndpointSpec { name, place, addresses, listen: Vec::new() });
            }
        }
        ends.extend(OUTSIDE.map(|address| End { address, endpoint: endpoints.len(), node: None }));
        endpoints.push(EndpointSpec {
            name: "outside".to_owned(),
            place: Place::External,
            addresses: OUTSIDE.to_vec(),
            listen: Vec::new(),
        });
        let nodes = [OUR_NODE, LAB_NODE].into_iter().zip(NODE_ADDRESSES);
        let nodes = nodes.map(|(name, addresses)| NodeSpec {
            name: name.to_owned(),
            addresses: addresses.to_vec(),
            ..NodeSpec::default()
        });
        let count = endpoints.len();
        let spec = NetworkSpec { nodes: nodes.collect(), endpoints, ..NetworkSpec::default() };
        let network = Network::build_around(vec![NetNs::create()?], spec, &mut |_, _| ())?;
        let (mut inboxes, mut listeners) = (Vec::new(), Vec::new());
        for endpoint in 0..count {
            let namespace = network.namespace(EndpointIndex(endpoint)).ok_or("no such endpoint")?;
            for (protocol, port) in PORTS {
                for domain in [Domain::IPV4, Domain::IPV6] {
                    let socket = namespace.within(|| listen(domain, protocol, port))??;
                    match protocol {
                        Protocol::Udp => inboxes.push(socket.into()),
                        _ => listeners.push(socket.into()),
                    }
                }
            }
        }
        Ok(Field { network, ends, inboxes, listeners })
    }

    /// Our node's network namespace.
    pub(super) fn node(&self) -> Result<&NetNs, Failure> {
        Ok(self.network.node(NodeIndex(0)).ok_or("no node")?.namespace())
    }

    /// A flow that passes our node: between addresses of one family, of two endpoints, one of them on our node.
    pub(super) fn flow(&self, random: &mut fastrand::Rng) -> Option<Flow> {
        loop {
            let outside = |end: &&End| end.node.is_none();
            let (mut from, mut to) = (random.choice(&self.ends)?, random.choice(&self.ends)?);
            match random.u8(..12) {
                0 => from = random.choice(self.ends.iter().filter(outside).collect::<Vec<_>>())?,
                1 => to = random.choice(self.ends.iter().filter(outside).collect::<Vec<_>>())?,
                _ => {}
            }
            let one_family = from.address.is_ipv4() == to.address.is_ipv4();
            let passes = from.node == Some(0) || to.node == Some(0);
            if from.endpoint == to.endpoint || !one_family || !passes {
                continue;
            }
            let (protocol, port) = *random.choice(&PORTS)?;
            let transport = Transport::Port(protocol, port);
            return Some(Flow { source: from.address, destination: to.address, transport });
        }
    }

    /// Sends the first packet of each flow. Whether it arrived, or led to a connection.
    pub(super) fn pass(&self, flows: &[Flow]) -> Result<Vec<bool>, Failure> {
        self.empty()?;
        let mut sent = Vec::with_capacity(flows.len());
        for (number, flow) in flows.iter().enumerate() {
            sent.push(self.send(number as u64, flow)?);
        }
        let mut passed = vec![false; flows.len()];
        let mut over = vec![false; flows.len()];
        let last = Instant::now();
        loop {
            for number in self.arrived()? {
                if let Some(passed) = usize::try_from(number).ok().and_then(|number| passed.get_mut(number)) {
                    *passed = true;
                }
            }
            for (number, sent) in sent.iter().enumerate() {
                if let Sent::Connection(socket) = sent
                    && !over[number]
                {
                    if socket.take_error()?.is_some() {
                        over[number] = true;
                    } else if socket.peer_addr().is_ok() {
                        (passed[number], over[number]) = (true, true);
                    }
                } else if passed[number] {
                    over[number] = true;
                }
            }
            if over.iter().all(|over| *over) || last.elapsed() > LATE {
                return Ok(passed);
            }
            sleep(Duration::from_millis(1));
        }
    }

    fn send(&self, number: u64, flow: &Flow) -> Result<Sent, Failure> {
        let end = self.ends.iter().find(|end| end.address == flow.source).ok_or("no such end")?;
        let namespace = self.network.namespace(EndpointIndex(end.endpoint)).ok_or("no such endpoint")?;
        let Transport::Port(protocol, port) = flow.transport else { return Err("not a port".into()) };
        let (from, to) = (SocketAddr::new(flow.source, 0), SocketAddr::new(flow.destination, port));
        Ok(namespace.within(|| begin(protocol, from, to, number))??)
    }

    /// The numbers of the packets that have arrived.
    fn arrived(&self) -> Result<Vec<u64>, Failure> {
        let mut numbers = Vec::new();
        let mut buffer = [0; 8];
        for inbox in &self.inboxes {
            while let Some(length) = unless_empty(inbox.recv(&mut buffer))? {
                if length == buffer.len() {
                    numbers.push(u64::from_be_bytes(buffer));
                }
            }
        }
        Ok(numbers)
    }

    /// Takes what has come since the last round and is of no interest any more.
    fn empty(&self) -> Result<(), Failure> {
        self.arrived()?;
        for listener in &self.listeners {
            while unless_empty(listener.accept())?.is_some() {}
        }
        Ok(())
    }
}

fn begin(protocol: Protocol, from: SocketAddr, to: SocketAddr, number: u64) -> io::Result<Sent> {
    let kind = if protocol == Protocol::Udp { Type::DGRAM } else { Type::STREAM };
    let socket = Socket::new(Domain::for_address(from), kind, None)?;
    socket.bind(&from.into())?;
    socket.set_nonblocking(true)?;
    if protocol == Protocol::Udp {
        socket.connect(&to.into())?;
        // What is refused at once is refused.
        let _ = socket.send(&number.to_be_bytes());
        return Ok(Sent::Packet);
    }
    // Nothing of the connection shall be left.
    socket.set_linger(Some(Duration::ZERO))?;
    // Under way, or refused at once: it will not have a peer then.
    let _ = socket.connect(&to.into());
    Ok(Sent::Connection(socket))
}

fn listen(domain: Domain, protocol: Protocol, port: u16) -> io::Result<Socket> {
    let (kind, any) = (
        if protocol == Protocol::Udp { Type::DGRAM } else { Type::STREAM },
        if domain == Domain::IPV4 { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) },
    );
    let socket = Socket::new(domain, kind, None)?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(true)?;
    }
    socket.bind(&SockAddr::from(SocketAddr::new(any, port)))?;
    if protocol != Protocol::Udp {
        socket.listen(128)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Nothing when there is nothing to take. A connection that was reset before it was accepted is nothing either.
fn unless_empty<T>(taken: io::Result<T>) -> io::Result<Option<T>> {
    match taken {
        Ok(taken) => Ok(Some(taken)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) => Ok(None),
        Err(error) => Err(error),
    }
}
