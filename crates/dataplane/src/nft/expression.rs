//! Rules as the expressions the kernel runs. Each rule is written exactly as nft 1.0.6 writes it, so that nft can print
//! it again.

use ipnet::IpNet;
use ringfence_model::{Family, Protocol};

use super::attribute::{
    Attributes, LIST_ELEMENT, bitwise, cmp, counter, ct, data, expression, fib, immediate, lookup, meta, nat, payload,
    reject, verdict,
};
use super::element::octets;
use super::name::{ChainName, Content, SetName};
use super::ruleset::{Field, Rule, Towards};
use super::text::{End, ends};

/// `NFT_REG_VERDICT`.
const VERDICT_REGISTER: u32 = 0;
/// `NFT_REG32_00`, the first of 16 registers of 4 bytes. A key of several fields lies in consecutive ones.
const FIRST: u32 = 8;

/// A register as the kernel lists it: where one of the 4 registers of 16 bytes starts, by the number of that one
/// (`nft_dump_register`). It means the same, and what we wrote can be recognised.
fn listed(register: u32) -> u32 {
    match register.checked_sub(FIRST) {
        Some(index) if index % 4 == 0 => 1 + index / 4,
        _ => register,
    }
}

/// `enum nft_verdicts` of `linux/netfilter/nf_tables.h`, with the negative ones in two's complement.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(super) enum Verdict {
    /// `NF_DROP`.
    Drop = 0,
    /// `NF_ACCEPT`.
    Accept = 1,
    /// `NFT_RETURN`, -5.
    Return = 0xffff_fffb,
    /// `NFT_GOTO`, -4.
    Goto = 0xffff_fffc,
    /// `NFT_JUMP`, -3.
    Jump = 0xffff_fffd,
}

/// `enum nft_meta_keys`.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
enum Meta {
    Nfproto = 15,
    L4proto = 16,
}

/// `enum nft_ct_keys`.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
enum Ct {
    State = 0,
    Status = 2,
}

/// `enum nft_payload_bases`.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
enum Base {
    Network = 1,
    Transport = 2,
}

/// `enum nft_cmp_ops`.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
enum Compare {
    Equal = 0,
    NotEqual = 1,
    AtMost = 3,
    AtLeast = 5,
}

/// Where a TCP header has its flags, and the one that resets.
const TCP_FLAGS: u32 = 13;
const TCP_RESET: u8 = 4;

/// `enum nft_reject_types`.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
enum Reject {
    TcpReset = 1,
    Icmpx = 2,
}

/// Appends the expressions of `rule` to the attribute that lists them.
pub(super) fn encode(rule: &Rule, list: &mut Attributes<'_>) {
    let mut list = Expressions(Attributes(list.0));
    match rule {
        Rule::AcceptOpen => list.connection_has(Ct::State, ESTABLISHED).verdict(Verdict::Accept, None),
        Rule::AcceptFromNode => list.is_local(End::Source).verdict(Verdict::Accept, None),
        Rule::AcceptOwnResets => list
            .connection_has(Ct::State, RELATED)
            .meta(Meta::L4proto, FIRST)
            .compare(Compare::Equal, &[Protocol::Tcp.number()])
            .payload(Base::Transport, TCP_FLAGS, 1, FIRST)
            .has_one_of(&[TCP_RESET])
            .verdict(Verdict::Accept, None),
        Rule::Judge => list.verdict(Verdict::Jump, Some(ChainName::Judge)),
        Rule::AllowToItself => list.is_local(End::Destination).verdict(Verdict::Return, None),
        Rule::JudgeSent => list.is_local(End::Source).verdict(Verdict::Goto, Some(ChainName::Sent)),
        Rule::AllowLocal(family) => {
            list.family(*family).member(*family, End::Destination, Content::Local).verdict(Verdict::Return, None)
        }
        Rule::TrustFromNodes(family, towards) => {
            list.family(*family).member(*family, End::Source, Content::Nodes);
            match towards {
                Towards::Judged => list
                    .endpoint(*family)
                    .lookup(&SetName::of_either(*family, Content::Judged), None)
                    .connection_lacks(Ct::Status, DESTINATION_TRANSLATED),
                Towards::Local => list
                    .member(*family, End::Destination, Content::Local)
                    .connection_lacks(Ct::Status, DESTINATION_TRANSLATED),
                Towards::Anything => &mut list,
            };
            list.came_from_its_source().verdict(Verdict::Goto, Some(ChainName::Trust))
        }
        Rule::TrustToNodes(family) => list
            .family(*family)
            .member(*family, End::Destination, Content::Nodes)
            .verdict(Verdict::Goto, Some(ChainName::Trust)),
        Rule::KeepSource(family) => list
            .family(*family)
            .member(*family, End::Source, Content::Local)
            .member(*family, End::Destination, Content::Kept)
            .address(*family, End::Source, FIRST)
            .bind_source(*family),
        Rule::AcceptNeighbourDiscovery => list.neighbour_discovery().verdict(Verdict::Accept, None),
        Rule::RefuseUnknown(direction, range) => {
            let (subject, _) = ends(*direction);
            let family = Family::of(range.addr());
            list.family(family)
                .address_in(range, subject)
                .address(family, subject, FIRST)
                .lookup_not(&SetName::of_known(family))
                .verdict(Verdict::Jump, Some(ChainName::Deny(*direction)))
        }
        Rule::Ask(direction, family) => {
            let (subject, _) = ends(*direction);
            let set = SetName { direction: *direction, family: *family, content: Content::Subjects };
            list.family(*family)
                .address(*family, subject, FIRST)
                .lookup(&set, None)
                .verdict(Verdict::Jump, Some(ChainName::Side(*direction, *family)))
        }
        Rule::Dispatch(map) => {
            let (subject, _) = ends(map.direction);
            list.family(map.family).address(map.family, subject, FIRST);
            if map.fields().contains(&Field::Port) {
                list.destination_port(map.family);
            }
            list.lookup(map, Some(VERDICT_REGISTER))
        }
        Rule::Admit { set, .. } => {
            let (_, peer) = ends(set.direction);
            list.family(set.family).address(set.family, peer, FIRST).lookup(set, None).verdict(Verdict::Return, None)
        }
        Rule::DropIfOutdated(set) => list.meta(Meta::Nfproto, FIRST).lookup_not(set).verdict(Verdict::Drop, None),
        Rule::Deny(direction) => list.verdict(Verdict::Goto, Some(ChainName::Deny(*direction))),
        Rule::AcceptItself(set) => list
            .connection_has(Ct::Status, DESTINATION_TRANSLATED)
            .family(set.family)
            .address(set.family, End::Source, FIRST)
            .address(set.family, End::Destination, FIRST + registers(set.family))
            .lookup(set, None)
            .came_from_its_source()
            .verdict(Verdict::Accept, None),
        Rule::AllowErrors(family) => list
            .connection_has(Ct::State, RELATED)
            .meta(Meta::L4proto, FIRST)
            .compare(Compare::Equal, &[icmp(*family)])
            .verdict(Verdict::Return, None),
        Rule::DropInvalid => list.connection_has(Ct::State, INVALID).verdict(Verdict::Drop, None),
        Rule::Count => list.counter(),
        Rule::RejectTcp => list
            .meta(Meta::L4proto, FIRST)
            .compare(Compare::Equal, &[Protocol::Tcp.number()])
            .reject(Reject::TcpReset, 0),
        // NFT_REJECT_ICMPX_ADMIN_PROHIBITED.
        Rule::Reject => list.reject(Reject::Icmpx, 3),
        Rule::Drop => list.verdict(Verdict::Drop, None),
    };
}

/// NF_CT_STATE_INVALID_BIT of linux/netfilter/nf_conntrack_common.h.
const INVALID: u32 = 1;
/// `NF_CT_STATE_BIT` of linux/netfilter/nf_conntrack_common.h for IP_CT_ESTABLISHED.
const ESTABLISHED: u32 = 1 << 1;
/// The same for IP_CT_RELATED.
const RELATED: u32 = 1 << 2;
/// IPS_DST_NAT of the same header.
const DESTINATION_TRANSLATED: u32 = 1 << 5;

/// NFPROTO_IPV4 and NFPROTO_IPV6 of linux/netfilter.h.
pub(super) fn nfproto(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// IPPROTO_ICMP and IPPROTO_ICMPV6.
fn icmp(family: Family) -> u8 {
    match family {
        Family::V4 => 1,
        Family::V6 => 58,
    }
}

/// How many registers an address takes.
fn registers(family: Family) -> u32 {
    match family {
        Family::V4 => 1,
        Family::V6 => 4,
    }
}

/// Appends a verdict, as data of a rule or of a map's element.
pub(super) fn verdict_data(attributes: &mut Attributes<'_>, code: Verdict, chain: Option<ChainName>) {
    attributes.nest(data::VERDICT, |attributes| {
        attributes.number(verdict::CODE, code as u32);
        if let Some(chain) = chain {
            attributes.text(verdict::CHAIN, &chain.to_string());
        }
    });
}

/// Where an address is in a packet, and how long it is, in bytes.
fn place(family: Family, end: End) -> (u32, u32) {
    match (family, end) {
        (Family::V4, End::Source) => (12, 4),
        (Family::V4, End::Destination) => (16, 4),
        (Family::V6, End::Source) => (8, 16),
        (Family::V6, End::Destination) => (24, 16),
    }
}

struct Expressions<'a>(Attributes<'a>);

impl Expressions<'_> {
    /// One of the bits is set.
    fn connection_has(&mut self, key: Ct, bits: u32) -> &mut Self {
        self.add("ct", |ct| {
            ct.number(ct::KEY, key as u32).number(ct::DREG, listed(FIRST));
        });
        self.has_one_of(&bits.to_ne_bytes())
    }

    /// None of the bits is set.
    fn connection_lacks(&mut self, key: Ct, bits: u32) -> &mut Self {
        self.add("ct", |ct| {
            ct.number(ct::KEY, key as u32).number(ct::DREG, listed(FIRST));
        });
        self.masked(&bits.to_ne_bytes()).compare(Compare::Equal, &[0; 4])
    }

    /// One of these bits is set in what was loaded last, as long as `bits`.
    fn has_one_of<const LENGTH: usize>(&mut self, bits: &[u8; LENGTH]) -> &mut Self {
        self.masked(bits).compare(Compare::NotEqual, &[0; LENGTH])
    }

    /// Keeps these bits of what was loaded last, as long as `bits`, and clears the others.
    fn masked(&mut self, bits: &[u8]) -> &mut Self {
        let zero = vec![0; bits.len()];
        self.add("bitwise", |bitwise| {
            bitwise
                .number(bitwise::SREG, listed(FIRST))
                .number(bitwise::DREG, listed(FIRST))
                .number(bitwise::LEN, u32::try_from(bits.len()).unwrap_or(u32::MAX))
                .nest(bitwise::MASK, |mask| {
                    mask.bytes(data::VALUE, bits);
                })
                .nest(bitwise::XOR, |xor| {
                    xor.bytes(data::VALUE, &zero);
                });
        })
    }

    /// The address is one of this node's.
    fn is_local(&mut self, end: End) -> &mut Self {
        // NFT_FIB_RESULT_ADDRTYPE, and RTN_LOCAL of linux/rtnetlink.h.
        const ADDRESS_TYPE: u32 = 3;
        const LOCAL: u32 = 2;
        // NFTA_FIB_F_SADDR and NFTA_FIB_F_DADDR.
        let whose = match end {
            End::Source => 1,
            End::Destination => 2,
        };
        self.add("fib", |fib| {
            fib.number(fib::FLAGS, whose).number(fib::RESULT, ADDRESS_TYPE).number(fib::DREG, listed(FIRST));
        });
        self.compare(Compare::Equal, &LOCAL.to_ne_bytes())
    }

    /// The packet came in by the device that leads to its source address.
    fn came_from_its_source(&mut self) -> &mut Self {
        // NFTA_FIB_F_SADDR, NFTA_FIB_F_IIF and NFTA_FIB_F_PRESENT; NFT_FIB_RESULT_OIF.
        const BY_SOURCE_AND_DEVICE: u32 = 1 | 8 | 32;
        const DEVICE: u32 = 1;
        self.add("fib", |fib| {
            fib.number(fib::FLAGS, BY_SOURCE_AND_DEVICE).number(fib::RESULT, DEVICE).number(fib::DREG, listed(FIRST));
        });
        // A byte that the kernel stores at the start of a register (`nft_reg_store8`).
        self.compare(Compare::Equal, &[1, 0, 0, 0])
    }

    fn neighbour_discovery(&mut self) -> &mut Self {
        self.family(Family::V6)
            .meta(Meta::L4proto, FIRST)
            .compare(Compare::Equal, &[icmp(Family::V6)])
            .payload(Base::Transport, 0, 1, FIRST)
            .compare(Compare::AtLeast, &[133])
            .compare(Compare::AtMost, &[136])
    }

    /// An address of the packet is in a set.
    fn member(&mut self, family: Family, end: End, content: Content) -> &mut Self {
        self.address(family, end, FIRST).lookup(&SetName::of_either(family, content), None)
    }

    /// The destination, and its protocol and port.
    fn endpoint(&mut self, family: Family) -> &mut Self {
        self.address(family, End::Destination, FIRST).destination_port(family)
    }

    /// Protocol and destination port, after an address.
    fn destination_port(&mut self, family: Family) -> &mut Self {
        let next = FIRST + registers(family);
        self.meta(Meta::L4proto, next).payload(Base::Transport, 2, 2, next + 1)
    }

    /// Binds the connection's source to the address that was loaded last.
    fn bind_source(&mut self, family: Family) -> &mut Self {
        // NFT_NAT_SNAT, and NF_NAT_RANGE_MAP_IPS, which the kernel would add.
        const SOURCE: u32 = 0;
        const ADDRESSES: u32 = 1;
        self.add("nat", |nat| {
            nat.number(nat::TYPE, SOURCE)
                .number(nat::FAMILY, u32::from(nfproto(family)))
                .number(nat::REG_ADDR_MIN, listed(FIRST))
                .number(nat::REG_ADDR_MAX, listed(FIRST))
                .number(nat::FLAGS, ADDRESSES);
        })
    }

    fn family(&mut self, family: Family) -> &mut Self {
        self.meta(Meta::Nfproto, FIRST).compare(Compare::Equal, &[nfproto(family)])
    }

    fn address(&mut self, family: Family, end: End, register: u32) -> &mut Self {
        let (offset, length) = place(family, end);
        self.payload(Base::Network, offset, length, register)
    }

    /// Goes on if the address is in the network, which has no host bits.
    fn address_in(&mut self, network: &IpNet, end: End) -> &mut Self {
        let (offset, length) = place(Family::of(network.addr()), end);
        let address = octets(network.addr());
        let (bytes, bits) = (usize::from(network.prefix_len() / 8), network.prefix_len() % 8);
        if bytes > 0 && bits == 0 {
            // As nft writes whole bytes.
            let length = u32::from(network.prefix_len() / 8);
            return self.payload(Base::Network, offset, length, FIRST).compare(Compare::Equal, &address[..bytes]);
        }
        let mask = octets(network.netmask());
        self.payload(Base::Network, offset, length, FIRST).masked(&mask).compare(Compare::Equal, &address)
    }

    fn meta(&mut self, key: Meta, register: u32) -> &mut Self {
        self.add("meta", |meta| {
            meta.number(meta::KEY, key as u32).number(meta::DREG, listed(register));
        })
    }

    fn payload(&mut self, base: Base, offset: u32, length: u32, register: u32) -> &mut Self {
        self.add("payload", |payload| {
            payload
                .number(payload::DREG, listed(register))
                .number(payload::BASE, base as u32)
                .number(payload::OFFSET, offset)
                .number(payload::LEN, length);
        })
    }

    fn compare(&mut self, operator: Compare, value: &[u8]) -> &mut Self {
        self.add("cmp", |cmp| {
            cmp.number(cmp::SREG, listed(FIRST)).number(cmp::OP, operator as u32).nest(cmp::DATA, |operand| {
                operand.bytes(data::VALUE, value);
            });
        })
    }

    fn lookup(&mut self, set: &SetName, destination: Option<u32>) -> &mut Self {
        self.add("lookup", |lookup| {
            lookup.text(lookup::SET, &set.to_string()).number(lookup::SREG, listed(FIRST));
            if let Some(register) = destination {
                lookup.number(lookup::DREG, listed(register));
            }
        })
    }

    /// Goes on if the key is not in the set.
    fn lookup_not(&mut self, set: &SetName) -> &mut Self {
        // NFT_LOOKUP_F_INV.
        const INVERTED: u32 = 1;
        self.add("lookup", |lookup| {
            lookup
                .text(lookup::SET, &set.to_string())
                .number(lookup::SREG, listed(FIRST))
                .number(lookup::FLAGS, INVERTED);
        })
    }

    fn counter(&mut self) -> &mut Self {
        let zero = 0_u64.to_be_bytes();
        self.add("counter", |counter| {
            counter.bytes(counter::BYTES, &zero).bytes(counter::PACKETS, &zero);
        })
    }

    fn reject(&mut self, kind: Reject, code: u8) -> &mut Self {
        self.add("reject", |reject| {
            reject.number(reject::TYPE, kind as u32).bytes(reject::ICMP_CODE, &[code]);
        })
    }

    fn verdict(&mut self, code: Verdict, chain: Option<ChainName>) -> &mut Self {
        self.add("immediate", |immediate| {
            immediate
                .number(immediate::DREG, VERDICT_REGISTER)
                .nest(immediate::DATA, |operand| verdict_data(operand, code, chain));
        })
    }

    fn add(&mut self, name: &str, content: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        self.0.nest(LIST_ELEMENT, |element| {
            element.text(expression::NAME, name).nest(expression::DATA, content);
        });
        self
    }
}
