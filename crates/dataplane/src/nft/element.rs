//! Elements of sets and maps as attributes.

use std::net::IpAddr;

use ringfence_compile::Admission;
use ringfence_model::Family;

use super::attribute::{Attributes, LIST_ELEMENT, data, element};
use super::expression::{Verdict, nfproto, verdict_data};
use super::name::{ChainName, SetName};
use super::ruleset::{Element, Field};
use super::userdata;

/// Where a key ends, for elements that are ranges.
enum KeyEnd {
    /// The element is no range.
    None,
    /// Ranges of several fields say their last key, in the same element.
    Last(Vec<u8>),
    /// Ranges of one field say the first key after them, as an element of its own,
    Next(Vec<u8>),
    /// unless there is none.
    Open,
}

fn key_of(element: &Element) -> (Vec<u8>, KeyEnd) {
    match element {
        Element::Subject { address, .. }
        | Element::Rest { address, .. }
        | Element::Peer(address)
        | Element::Known(address)
        | Element::Local(address)
        | Element::Node(address) => (octets(*address), KeyEnd::None),
        Element::Packets(family) => (vec![nfproto(*family)], KeyEnd::None),
        Element::Itself(address) => ([octets(*address), octets(*address)].concat(), KeyEnd::None),
        Element::Port { address, protocol, port, .. } => (service(*address, protocol.number(), *port), KeyEnd::None),
        Element::Judged { address, protocol, port } => (service(*address, protocol.number(), *port), KeyEnd::None),
        Element::Range { address, protocol, ports, .. } => (
            service(*address, protocol.number(), ports.first),
            KeyEnd::Last(service(*address, protocol.number(), ports.last)),
        ),
        Element::Block(range) => (octets(range.first), end_after(range.last)),
        Element::Kept(network) => (octets(network.network()), end_after(network.broadcast())),
    }
}

fn end_after(last: IpAddr) -> KeyEnd {
    let next = match last {
        IpAddr::V4(last) => last.to_bits().checked_add(1).map(|next| next.to_be_bytes().to_vec()),
        IpAddr::V6(last) => last.to_bits().checked_add(1).map(|next| next.to_be_bytes().to_vec()),
    };
    next.map_or(KeyEnd::Open, KeyEnd::Next)
}

pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Each field starts at a multiple of four bytes.
fn service(address: IpAddr, protocol: u8, port: u16) -> Vec<u8> {
    let mut key = octets(address);
    key.extend([protocol, 0, 0, 0]);
    key.extend(port.to_be_bytes());
    key.extend([0, 0]);
    key
}

/// Appends an element, and for some ranges another one that ends it.
pub(super) fn encode(list: &mut Attributes<'_>, name: &SetName, content: &Element, with_data: bool) {
    /// `NFT_SET_ELEM_INTERVAL_END`.
    const INTERVAL_END: u32 = 1;
    let (first, end) = key_of(content);
    list.nest(LIST_ELEMENT, |attributes| {
        attributes.nest(element::KEY, |key| {
            key.bytes(data::VALUE, &first);
        });
        if let KeyEnd::Last(last) = &end {
            attributes.nest(element::KEY_END, |key| {
                key.bytes(data::VALUE, last);
            });
        }
        if with_data {
            element_data(attributes, name, content, &end);
        }
    });
    if let KeyEnd::Next(next) = &end {
        list.nest(LIST_ELEMENT, |attributes| {
            attributes.number(element::FLAGS, INTERVAL_END).nest(element::KEY, |key| {
                key.bytes(data::VALUE, next);
            });
        });
    }
}

/// What belongs to an element besides its key.
fn element_data(attributes: &mut Attributes<'_>, name: &SetName, content: &Element, end: &KeyEnd) {
    if let Some(admission) = content.admission() {
        attributes.nest(element::DATA, |attributes| match admission {
            Admission::Anyone => verdict_data(attributes, Verdict::Return, None),
            Admission::Gate(id) => {
                verdict_data(attributes, Verdict::Goto, Some(ChainName::Gate(name.direction, id)));
            }
        });
    }
    if let Some(comment) = content.comment() {
        attributes.bytes(element::USERDATA, &userdata::comment(userdata::ELEMENT_COMMENT, &comment));
    }
    if matches!(end, KeyEnd::Open) {
        let flags = userdata::INTERVAL_OPEN.to_ne_bytes();
        attributes.bytes(element::USERDATA, &userdata::entry(userdata::ELEMENT_FLAGS, &flags));
    }
}

impl Field {
    /// The number nft gives the type (`enum datatypes` of its `include/datatype.h`).
    pub(super) fn type_number(self) -> u32 {
        match self {
            Field::Address(Family::V4) => 7,
            Field::Address(Family::V6) => 8,
            Field::Protocol => 12,
            Field::Port => 13,
            Field::Family => 2,
        }
    }

    /// Its size in bytes.
    pub(super) fn length(self) -> u32 {
        match self {
            Field::Address(Family::V4) => 4,
            Field::Address(Family::V6) => 16,
            Field::Protocol | Field::Family => 1,
            Field::Port => 2,
        }
    }

    /// Its size in a key.
    pub(super) fn padded(self) -> u32 {
        self.length().next_multiple_of(4)
    }
}
