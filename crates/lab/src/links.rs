//! Devices, addresses, neighbours and routes, over a route netlink socket.
//!
//! Requests are values; [`RouteSocket::apply`] sends a list of them in one write and reads one answer for each. The
//! interface indexes are chosen by us, so a list can go on about a device that it creates itself.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
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

/// How many requests are sent in one write: should all fail, their answers have to fit into the
/// socket's receive buffer.
const MOST_AT_ONCE: usize = 128;

/// The number of the only VXLAN there is, and IANA's port for it.
const VXLAN_ID: u32 = 1;
const VXLAN_PORT: u16 = 4789;

/// An Ethernet address.
pub(crate) type Mac = [u8; 6];

/// A device to be made: a bridge, a VXLAN or one end of a veth pair.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) index: u32,
    pub(crate) mac: Mac,
}

/// A route to be added.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route {
    pub(crate) to: IpNet,
    pub(crate) device: u32,
    /// The next hop, which need not be in any network of the device. `None`: the destination is the next hop.
    pub(crate) gateway: Option<IpAddr>,
    /// Where the router's own packets come from. `None` leaves that to the kernel.
    pub(crate) source: Option<IpAddr>,
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

    /// Asks for all of `requests`, in order. The first error counts; the kernel may have tried some after it.
    pub(crate) fn apply(&mut self, requests: Vec<Request>) -> Result<(), LinkError> {
        let mut requests = requests.into_iter();
        while requests.len() > 0 {
            self.apply_at_once(requests.by_ref().take(MOST_AT_ONCE).collect())?;
        }
        Ok(())
    }

    fn apply_at_once(&mut self, requests: Vec<Request>) -> Result<(), LinkError> {
        let count = requests.len();
        let first_sequence = self.next_sequence;
        let mut names = Vec::with_capacity(count);
        let mut batch = Vec::new();
        for (position, request) in requests.into_iter().enumerate() {
            let mut header = NetlinkHeader::default();
            // Errors are always answered. That the last one is done says that all are.
            let acknowledge = if position + 1 == count { NLM_F_ACK } else { 0 };
            header.flags = NLM_F_REQUEST | acknowledge | request.flags;
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
        let failed = |position: usize, source| {
            let what = names.get(position).cloned().unwrap_or_else(|| "configure the network".to_owned());
            LinkError { what, source }
        };
        self.socket.send(&batch, 0).map_err(|source| failed(0, source))?;
        let mut outcome = Ok(());
        loop {
            let (datagram, _) = self.socket.recv_from_full().map_err(|source| failed(0, source))?;
            for (sequence, error) in answers(&datagram).map_err(|source| failed(0, source))? {
                let position = sequence.wrapping_sub(first_sequence) as usize;
                if let (Some(source), Ok(())) = (error, &outcome) {
                    outcome = Err(failed(position, source));
                }
                if position + 1 == count {
                    return outcome;
                }
            }
        }
    }
}

/// The answers in one datagram: which request each is about, and what went wrong.
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
pub(crate) fn create_veth(near: &Device, far: &Device, far_namespace: &NetNs, mtu: u32) -> Request {
    let mut peer = device(far, mtu);
    peer.attributes.push(LinkAttribute::NetNsFd(far_namespace.descriptor()));
    create_device(near, mtu, InfoKind::Veth, Some(InfoData::Veth(InfoVeth::Peer(peer))))
}

/// Creates a bridge, up.
pub(crate) fn create_bridge(bridge: &Device, mtu: u32) -> Request {
    create_device(bridge, mtu, InfoKind::Bridge, None)
}

/// Creates a VXLAN device, up, that sends from `local` to where [`add_tunnel`] says and learns nothing.
pub(crate) fn create_vxlan(vxlan: &Device, mtu: u32, local: IpAddr) -> Request {
    let local = match local {
        IpAddr::V4(v4) => InfoVxlan::Local(v4),
        IpAddr::V6(v6) => InfoVxlan::Local6(v6),
    };
    let settings = vec![InfoVxlan::Id(VXLAN_ID), local, InfoVxlan::Port(VXLAN_PORT), InfoVxlan::Learning(false)];
    create_device(vxlan, mtu, InfoKind::Vxlan, Some(InfoData::Vxlan(settings)))
}

fn create_device(new: &Device, mtu: u32, kind: InfoKind, data: Option<InfoData>) -> Request {
    let mut link = device(new, mtu);
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    let info = [LinkInfo::Kind(kind)].into_iter().chain(data.map(LinkInfo::Data)).collect();
    link.attributes.push(LinkAttribute::LinkInfo(info));
    create(format!("create the link {}", new.name), RouteNetlinkMessage::NewLink(link))
}

fn device(new: &Device, mtu: u32) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = new.index;
    link.attributes = vec![
        LinkAttribute::IfName(new.name.clone()),
        LinkAttribute::Address(new.mac.to_vec()),
        LinkAttribute::Mtu(mtu),
    ];
    link
}

/// Makes a device a port of a bridge, where what it sent may also return to it (hairpin mode): two requests, since the
/// kernel takes settings of ports only of what is one.
pub(crate) fn make_port(index: u32, bridge: u32) -> [Request; 2] {
    let request = |what: &str, attribute| {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes = vec![attribute];
        Request { what: format!("{what} link {index}"), flags: 0, message: RouteNetlinkMessage::NewLink(link) }
    };
    let hairpin = LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
    ]);
    [
        request("make a port of the bridge from", LinkAttribute::Controller(bridge)),
        request("switch on the hairpin mode of", hairpin),
    ]
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
    add_scoped_address(index, address, AddressScope::Universe)
}

/// Adds an address that is answered for, but that nothing is sent from to anywhere further than the device leads.
pub(crate) fn add_link_address(index: u32, address: IpAddr) -> Request {
    add_scoped_address(index, address, AddressScope::Link)
}

fn add_scoped_address(index: u32, address: IpAddr, scope: AddressScope) -> Request {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = IpNet::from(address).prefix_len();
    message.header.scope = scope;
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
    let message = neighbour(index, family(address), NeighbourFlags::empty(), mac, Some(address));
    create(format!("add the neighbour {address}"), RouteNetlinkMessage::NewNeighbour(message))
}

/// Tells a bridge which of its ports an Ethernet address is behind.
pub(crate) fn add_station(port: u32, mac: Mac) -> Request {
    let message = neighbour(port, AddressFamily::Bridge, NeighbourFlags::Controller, mac, None);
    create(format!("tell the bridge who is behind link {port}"), RouteNetlinkMessage::NewNeighbour(message))
}

/// Tells a VXLAN device behind which tunnel end an Ethernet address is.
pub(crate) fn add_tunnel(vxlan: u32, mac: Mac, end: IpAddr) -> Request {
    let message = neighbour(vxlan, AddressFamily::Bridge, NeighbourFlags::Own, mac, Some(end));
    create(format!("add the tunnel to {end}"), RouteNetlinkMessage::NewNeighbour(message))
}

fn neighbour(
    index: u32,
    family: AddressFamily,
    flags: NeighbourFlags,
    mac: Mac,
    destination: Option<IpAddr>,
) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    message.header.ifindex = index;
    // To a bridge, permanent is what its own addresses are; those of others, that do not age, it calls so.
    let is_station = flags == NeighbourFlags::Controller;
    message.header.state = if is_station { NeighbourState::Noarp } else { NeighbourState::Permanent };
    message.header.flags = flags;
    message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.to_vec())];
    message
        .attributes
        .extend(destination.map(|address| NeighbourAttribute::Destination(NeighbourAddress::from(address))));
    message
}

/// Adds a route.
pub(crate) fn add_route(route: Route) -> Request {
    let to = route.to;
    let mut message = RouteMessage::default();
    message.header.address_family = family(to.addr());
    message.header.destination_prefix_length = to.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unicast;
    let is_link = to.addr().is_ipv4() && route.gateway.is_none();
    message.header.scope = if is_link { RouteScope::Link } else { RouteScope::Universe };
    message.attributes = vec![RouteAttribute::Oif(route.device)];
    if to.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(to.addr().into()));
    }
    if let Some(gateway) = route.gateway {
        message.header.flags = RouteFlags::Onlink;
        message.attributes.push(RouteAttribute::Gateway(gateway.into()));
    }
    message.attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(source.into())));
    create(format!("add the route to {to}"), RouteNetlinkMessage::NewRoute(message))
}

fn create(what: String, message: RouteNetlinkMessage) -> Request {
    Request { what, flags: NLM_F_CREATE | NLM_F_EXCL, message }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
