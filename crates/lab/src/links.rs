//! Devices, addresses, neighbours and routes, over a route netlink socket.
//!
//! Requests are values; [`RouteSocket::apply`] sends a list of them in one write and reads one answer for each. The
//! interface indexes are chosen by us, so a list can go on about a device that it creates itself.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use thiserror::Error;

use crate::namespace::NetNs;

/// The index of `lo`, which the kernel gives it in every network namespace.
pub(crate) const LO: u32 = 1;

/// The longest alias the kernel takes: IFALIASZ is 256, and both the message and the kernel add a closing zero.
const ALIAS_LENGTH: usize = 254;

/// An Ethernet address.
pub(crate) type Mac = [u8; 6];

/// One end of a veth pair.
#[derive(Clone, Debug)]
pub(crate) struct VethEnd {
    pub(crate) name: String,
    pub(crate) index: u32,
    pub(crate) mac: Mac,
}

/// The kernel refused a request, or could not be asked.
#[derive(Debug, Error)]
#[error("cannot {what}: {source}")]
pub struct LinkError {
    /// What was asked for.
    what: String,
    /// The kernel's answer.
    source: io::Error,
}

/// Something to ask of the kernel.
#[derive(Debug)]
pub(crate) struct Request {
    what: String,
    flags: u16,
    message: RouteNetlinkMessage,
}

/// A route netlink socket of the namespace it was opened in.
pub(crate) struct RouteSocket {
    socket: Socket,
    next_sequence: u32,
}

impl RouteSocket {
    /// Opens a socket in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<RouteSocket> {
        let socket = Socket::new(NETLINK_ROUTE)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(RouteSocket { socket, next_sequence: 1 })
    }

    /// Asks for all of `requests`, in order. After an error the kernel has still tried the rest; the first error counts.
    pub(crate) fn apply(&mut self, requests: Vec<Request>) -> Result<(), LinkError> {
        let first_sequence = self.next_sequence;
        let mut names = Vec::with_capacity(requests.len());
        let mut batch = Vec::new();
        for request in requests {
            let mut header = NetlinkHeader::default();
            header.flags = NLM_F_REQUEST | NLM_F_ACK | request.flags;
            header.sequence_number = self.next_sequence;
            self.next_sequence = self.next_sequence.wrapping_add(1);
            let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request.message));
            message.finalize();
            let start = batch.len();
            // Netlink messages are aligned to four bytes within a batch.
            batch.resize(start + message.buffer_len().next_multiple_of(4), 0);
            message.serialize(&mut batch[start..]);
            names.push(request.what);
        }
        let what = |position: usize| names.get(position).cloned().unwrap_or_else(|| "configure the network".to_owned());
        if names.is_empty() {
            return Ok(());
        }
        let failed = |source| LinkError { what: what(0), source };
        self.socket.send(&batch, 0).map_err(failed)?;
        let mut answered = 0;
        let mut outcome = Ok(());
        while answered < names.len() {
            let (datagram, _) = self.socket.recv_from_full().map_err(failed)?;
            for (sequence, error) in answers(&datagram).map_err(failed)? {
                let position = sequence.wrapping_sub(first_sequence) as usize;
                if position >= names.len() {
                    continue;
                }
                answered += 1;
                if let (Some(source), Ok(())) = (error, &outcome) {
                    outcome = Err(LinkError { what: what(position), source });
                }
            }
        }
        outcome
    }
}

/// The acknowledgements in one datagram: which request each is about, and what went wrong.
fn answers(datagram: &[u8]) -> io::Result<Vec<(u32, Option<io::Error>)>> {
    let broken = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let mut found = Vec::new();
    let mut rest = datagram;
    while !rest.is_empty() {
        let length = NetlinkBuffer::new_checked(rest).map_err(broken)?.length() as usize;
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(broken)?;
        if let NetlinkPayload::Error(error) = message.payload {
            found.push((message.header.sequence_number, error.code.map(|_| error.to_io())));
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(found)
}

/// Creates a veth pair: `near`, up, in the socket's own namespace and `far` in the namespace `far_namespace`.
pub(crate) fn create_veth(near: &VethEnd, far: &VethEnd, far_namespace: &NetNs) -> Request {
    let mut peer = LinkMessage::default();
    peer.header.index = far.index;
    peer.attributes = vec![
        LinkAttribute::IfName(far.name.clone()),
        LinkAttribute::Address(far.mac.to_vec()),
        LinkAttribute::NetNsFd(far_namespace.descriptor()),
    ];
    let mut link = LinkMessage::default();
    link.header.index = near.index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    link.attributes = vec![
        LinkAttribute::IfName(near.name.clone()),
        LinkAttribute::Address(near.mac.to_vec()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    create(format!("create the link {}", near.name), RouteNetlinkMessage::NewLink(link))
}

/// Gives a device a description that `ip link` shows; too long ones are cut.
pub(crate) fn set_alias(index: u32, alias: &str) -> Request {
    let mut end = alias.len().min(ALIAS_LENGTH);
    while !alias.is_char_boundary(end) {
        end -= 1;
    }
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes = vec![LinkAttribute::IfAlias(alias[..end].to_owned())];
    Request { what: format!("name link {index} {alias}"), flags: 0, message: RouteNetlinkMessage::SetLink(link) }
}

/// Switches a device on.
pub(crate) fn set_up(index: u32) -> Request {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    Request { what: format!("switch link {index} on"), flags: 0, message: RouteNetlinkMessage::SetLink(link) }
}

/// Adds a single address (/32 or /128), usable at once: without duplicate address detection.
pub(crate) fn add_address(index: u32, address: IpAddr) -> Request {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = full_length(address);
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    if address.is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    create(format!("add the address {address}"), RouteNetlinkMessage::NewAddress(message))
}

/// Adds a permanent neighbour: no ARP, no neighbour discovery, and no place taken in the kernel's limited tables.
pub(crate) fn add_neighbour(index: u32, address: IpAddr, mac: Mac) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes =
        vec![NeighbourAttribute::Destination(address.into()), NeighbourAttribute::LinkLayerAddress(mac.to_vec())];
    create(format!("add the neighbour {address}"), RouteNetlinkMessage::NewNeighbour(message))
}

/// Routes one address to a device; the node's own packets to it come from `source`.
pub(crate) fn add_host_route(index: u32, address: IpAddr, source: IpAddr) -> Request {
    let mut message = route(index, address);
    message.header.destination_prefix_length = full_length(address);
    message.header.scope = if address.is_ipv4() { RouteScope::Link } else { RouteScope::Universe };
    message.attributes.push(RouteAttribute::Destination(address.into()));
    message.attributes.push(RouteAttribute::PrefSource(source.into()));
    create(format!("add the route to {address}"), RouteNetlinkMessage::NewRoute(message))
}

/// Routes everything of the gateway's family to `gateway`, which need not be in any network of the device.
pub(crate) fn add_default_route(index: u32, gateway: IpAddr) -> Request {
    let mut message = route(index, gateway);
    message.header.flags = RouteFlags::Onlink;
    message.attributes.push(RouteAttribute::Gateway(gateway.into()));
    create(format!("add the default route via {gateway}"), RouteNetlinkMessage::NewRoute(message))
}

fn route(index: u32, of_family: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(of_family);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Oif(index)];
    message
}

fn create(what: String, message: RouteNetlinkMessage) -> Request {
    Request { what, flags: NLM_F_CREATE | NLM_F_EXCL, message }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn full_length(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}
