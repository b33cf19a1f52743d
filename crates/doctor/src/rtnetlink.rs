//! Bridges, routes and addresses, asked of the kernel: what is mounted at /sys may belong to another network namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{InfoBridge, InfoData, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::facts::{Bridge, Place, Route};

/// The bridges of the calling thread's network namespace.
pub(crate) fn bridges() -> io::Result<Vec<Bridge>> {
    Ok(links()?.into_values().filter_map(|link| link.bridge).collect())
}

/// The routes of its main table.
pub(crate) fn routes() -> io::Result<Vec<Route>> {
    let links = links()?;
    let mut own = BTreeSet::new();
    let mut messages = Vec::new();
    for answer in dump(RouteNetlinkMessage::GetRoute(RouteMessage::default()))? {
        let RouteNetlinkMessage::NewRoute(message) = answer else { continue };
        if message.header.kind == RouteType::Local {
            own.extend(destination(&message).map(|net| net.addr()));
        } else if table(&message) == u32::from(RouteHeader::RT_TABLE_MAIN) {
            messages.push(message);
        }
    }
    Ok(messages.iter().filter_map(|message| route(message, &links, &own)).collect())
}

/// The addresses that packets of this host itself can come from when they travel between hosts, in the calling thread's network
/// namespace: those that mean one host everywhere, on devices that are up and of the host itself. Not those of loopback and dummy
/// devices, which many hosts may have, nor those on devices of single pods.
///
/// # Errors
/// The kernel does not answer.
pub fn host_addresses() -> io::Result<Vec<IpAddr>> {
    let links = links()?;
    let mut found = BTreeSet::new();
    for answer in dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))? {
        let RouteNetlinkMessage::NewAddress(message) = answer else { continue };
        let link = links.get(&message.header.index);
        if message.header.scope == AddressScope::Universe && link.is_some_and(Link::is_of_host) {
            found.extend(own_address(&message));
        }
    }
    Ok(found.into_iter().collect())
}

/// The host's end of an address: on a link from point to point the other attribute is the far end.
fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let any = || {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    };
    local.or_else(any)
}

/// A device, as far as it matters.
#[derive(Default)]
struct Link {
    name: String,
    kind: Option<InfoKind>,
    bridge: Option<Bridge>,
    /// A port of this bridge may lead to another host.
    has_uplink: bool,
    is_up: bool,
    is_loopback: bool,
}

impl Link {
    /// The host itself uses it to reach others, its own pods included.
    fn is_of_host(&self) -> bool {
        let of_others = [InfoKind::Dummy, InfoKind::Veth, InfoKind::Netkit];
        self.is_up && !self.is_loopback && !self.kind.as_ref().is_some_and(|kind| of_others.contains(kind))
    }

    /// It was made to attach pods or containers of this host.
    fn is_for_pods(&self) -> bool {
        let made_for_pods =
            [InfoKind::Bridge, InfoKind::Veth, InfoKind::Netkit, InfoKind::IpVlan, InfoKind::MacVlan, InfoKind::Dummy];
        !self.has_uplink && self.kind.as_ref().is_some_and(|kind| made_for_pods.contains(kind))
    }

    fn is_tunnel(&self) -> bool {
        let tunnels = [
            InfoKind::Vxlan,
            InfoKind::Geneve,
            InfoKind::IpIp,
            InfoKind::SitTun,
            InfoKind::Ip6Tnl,
            InfoKind::GreTun,
            InfoKind::GreTap,
            InfoKind::Wireguard,
        ];
        self.kind.as_ref().is_some_and(|kind| tunnels.contains(kind))
    }
}

/// The devices by number.
fn links() -> io::Result<BTreeMap<u32, Link>> {
    let mut links: BTreeMap<u32, Link> = BTreeMap::new();
    let mut ports = Vec::new();
    for answer in dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))? {
        let RouteNetlinkMessage::NewLink(message) = answer else { continue };
        let index = message.header.index;
        let link = links.entry(index).or_default();
        link.is_up = message.header.flags.contains(LinkFlags::Up);
        link.is_loopback = message.header.flags.contains(LinkFlags::Loopback);
        let mut options = Vec::new();
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Controller(controller) => ports.push((controller, index)),
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        match info {
                            LinkInfo::Kind(kind) => link.kind = Some(kind),
                            LinkInfo::Data(InfoData::Bridge(data)) => options = data,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        if link.kind == Some(InfoKind::Bridge) {
            link.bridge = Some(Bridge {
                name: link.name.clone(),
                ports: Vec::new(),
                filters_ipv4: options.contains(&InfoBridge::NfCallIpTables(true)),
                filters_ipv6: options.contains(&InfoBridge::NfCallIp6Tables(true)),
            });
        }
    }
    for (bridge, port) in ports {
        let Some(port) = links.get(&port) else { continue };
        let uplink = !port.is_for_pods() && port.kind != Some(InfoKind::Tun);
        let name = port.name.clone();
        let Some(link) = links.get_mut(&bridge) else { continue };
        link.has_uplink |= uplink;
        link.bridge.iter_mut().for_each(|bridge| bridge.ports.push(name.clone()));
    }
    Ok(links)
}

fn table(message: &RouteMessage) -> u32 {
    let attribute = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    attribute.unwrap_or(u32::from(message.header.table))
}

fn destination(message: &RouteMessage) -> Option<IpNet> {
    let attribute = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => ip(address),
        _ => None,
    });
    let unspecified: IpAddr = match message.header.address_family {
        AddressFamily::Inet => [0; 4].into(),
        AddressFamily::Inet6 => [0_u8; 16].into(),
        _ => return None,
    };
    IpNet::new(attribute.unwrap_or(unspecified), message.header.destination_prefix_length).ok()
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn route(message: &RouteMessage, links: &BTreeMap<u32, Link>, own: &BTreeSet<IpAddr>) -> Option<Route> {
    let destination = destination(message)?;
    let mut gateway = None;
    let mut relayed = false;
    let mut link = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Gateway(address) => (gateway, relayed) = (ip(address), true),
            RouteAttribute::Via(_) | RouteAttribute::MultiPath(_) => relayed = true,
            RouteAttribute::Oif(index) => link = links.get(index),
            _ => {}
        }
    }
    let place = if message.header.kind != RouteType::Unicast {
        Place::Nowhere
    } else if gateway.is_some_and(|gateway| own.contains(&gateway)) {
        // Cilium routes to its own pods through an address of the host.
        Place::Here
    } else if destination.prefix_len() == 0 {
        Place::Unknown
    } else if relayed || link.is_some_and(Link::is_tunnel) {
        Place::Elsewhere
    } else if link.is_some_and(Link::is_for_pods) {
        Place::Here
    } else {
        Place::Unknown
    };
    Some(Route { destination, device: link.map(|link| link.name.clone()), place })
}

/// Asks for all objects of a kind.
fn dump(request: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
    let broken = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut answers = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let length = NetlinkBuffer::new_checked(rest).map_err(broken)?.length() as usize;
            match NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(broken)?.payload {
                NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                NetlinkPayload::Done(_) => return Ok(answers),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}
