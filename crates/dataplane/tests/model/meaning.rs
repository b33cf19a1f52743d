//! What the rules mean is what the program says: a small interpreter of our rules, written after the kernel's, against
//! [`Program::eval`] for random programs and flows.

use std::net::IpAddr;

use proptest::prelude::*;
use proptest::sample::select;
use ringfence_compile::{Admission, Program};
use ringfence_dataplane::nft::{
    ChainName, Content, Element, Hook, NftOptions, Rule, Ruleset, SetName, Towards, ruleset,
};
use ringfence_model::{Direction, Family, Flow, Protocol, Transport};

use crate::random;

/// How a packet leaves a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Accept,
    Refuse,
    /// Back to the rule after the jump.
    Return,
}

struct Interpreter<'a> {
    rules: &'a Ruleset,
    flow: Flow,
    from_node: bool,
    /// The packet came from elsewhere than its source address says.
    forged: bool,
}

impl Interpreter<'_> {
    /// A packet that enters at a hook; the base chain's policy is to accept.
    fn passes(&self, hook: Hook) -> bool {
        self.chain(ChainName::Base(hook)) != Verdict::Refuse
    }

    fn chain(&self, name: ChainName) -> Verdict {
        let rules = self.rules.chains.iter().find(|(chain, _)| *chain == name).map(|(_, rules)| rules);
        for rule in rules.unwrap_or_else(|| panic!("a jump to chain {name}, which is not there")) {
            let (jump, goto) = match rule {
                Rule::AcceptOpen
                | Rule::AcceptOwnResets
                | Rule::AllowErrors(_)
                | Rule::DropIfOutdated(_)
                | Rule::DropInvalid
                | Rule::Count => continue,
                Rule::AcceptFromNode if self.from_node => return Verdict::Accept,
                Rule::AcceptFromNode => continue,
                Rule::AcceptNeighbourDiscovery if self.flow.transport.is_neighbour_discovery() => {
                    return Verdict::Accept;
                }
                Rule::AcceptNeighbourDiscovery => continue,
                Rule::RefuseUnknown(direction, range) => {
                    let own = match direction {
                        Direction::Ingress => self.flow.destination,
                        Direction::Egress => self.flow.source,
                    };
                    let known = SetName::of_known(Family::of(range.addr()));
                    let unknown = range.contains(&own) && !self.has_subject(&known, *direction);
                    (unknown.then_some(ChainName::Deny(*direction)), None)
                }
                Rule::Judge => (Some(ChainName::Judge), None),
                Rule::JudgeSent if self.from_node => (None, Some(ChainName::Sent)),
                Rule::JudgeSent => continue,
                Rule::AllowLocal(family) if self.holds(Content::Local, *family, self.flow.destination) => {
                    return Verdict::Return;
                }
                // The node is at one end only.
                Rule::AllowLocal(_) | Rule::AllowToItself => continue,
                Rule::TrustFromNodes(family, towards) => {
                    let Flow { source, destination, .. } = self.flow;
                    let covered = match towards {
                        Towards::Judged => self.holds_endpoint(*family),
                        Towards::Local => self.holds(Content::Local, *family, destination),
                        Towards::Anything => true,
                    };
                    let trusted = !self.forged && self.holds(Content::Nodes, *family, source) && covered;
                    (None, trusted.then_some(ChainName::Trust))
                }
                Rule::TrustToNodes(family) => {
                    let trusted = self.holds(Content::Nodes, *family, self.flow.destination);
                    (None, trusted.then_some(ChainName::Trust))
                }
                Rule::KeepSource(_) => panic!("a packet is judged where sources are translated"),
                Rule::Ask(direction, family) => {
                    let set =
                        |set: &SetName| set.to_string() == format!("{}_pods", ChainName::Side(*direction, *family));
                    (self.lookup(*family, set).then_some(ChainName::Side(*direction, *family)), None)
                }
                Rule::Admit { set, .. } => {
                    if self.lookup(set.family, |name| name == set) {
                        return Verdict::Return;
                    }
                    continue;
                }
                Rule::AcceptItself(set) => {
                    if !self.forged && self.lookup(set.family, |name| name == set) {
                        return Verdict::Accept;
                    }
                    continue;
                }
                Rule::Dispatch(map) => match self.element(map.family, |name| name == map) {
                    None => continue,
                    Some((
                        set,
                        Element::Port { admission, .. }
                        | Element::Range { admission, .. }
                        | Element::Rest { admission, .. },
                    )) => match admission {
                        Admission::Anyone => return Verdict::Return,
                        Admission::Gate(id) => (None, Some(ChainName::Gate(set.direction, *id))),
                    },
                    Some((_, element)) => panic!("{element} in map {map}"),
                },
                Rule::Deny(direction) => (None, Some(ChainName::Deny(*direction))),
                Rule::RejectTcp if !matches!(self.flow.transport, Transport::Port(Protocol::Tcp, _)) => continue,
                Rule::RejectTcp | Rule::Reject | Rule::Drop => return Verdict::Refuse,
            };
            if let Some(chain) = goto {
                return self.chain(chain);
            }
            match jump.map(|chain| self.chain(chain)) {
                None | Some(Verdict::Return) => {}
                Some(verdict) => return verdict,
            }
        }
        Verdict::Return
    }

    fn set(&self, content: Content, family: Family) -> &[Element] {
        let name = SetName { direction: Direction::Ingress, family, content };
        let (_, elements) = self.rules.sets.iter().find(|(set, _)| *set == name).expect("a rule asks a missing set");
        elements
    }

    /// Whether an address is in a set of addresses.
    fn holds(&self, content: Content, family: Family, wanted: IpAddr) -> bool {
        self.set(content, family).iter().any(|element| match element {
            Element::Local(address) | Element::Node(address) => *address == wanted,
            element => panic!("{element} in a set of addresses"),
        })
    }

    fn holds_endpoint(&self, family: Family) -> bool {
        let Flow { destination, transport, .. } = self.flow;
        self.set(Content::Judged, family).iter().any(|element| match element {
            Element::Judged { address, protocol, port } => {
                *address == destination && transport == Transport::Port(*protocol, *port)
            }
            element => panic!("{element} in a set of endpoints"),
        })
    }

    fn lookup(&self, family: Family, wanted: impl Fn(&SetName) -> bool) -> bool {
        self.element(family, wanted).is_some()
    }

    fn element(&self, family: Family, wanted: impl Fn(&SetName) -> bool) -> Option<(&SetName, &Element)> {
        if Family::of(self.flow.source) != family {
            return None;
        }
        let (set, elements) = self.rules.sets.iter().find(|(set, _)| wanted(set)).expect("a rule asks a missing set");
        elements.iter().find(|element| self.matches(set.direction, element)).map(|element| (set, element))
    }

    /// Whether the subject of a direction is in a set.
    fn has_subject(&self, set: &SetName, direction: Direction) -> bool {
        let (_, elements) = self.rules.sets.iter().find(|(name, _)| name == set).expect("a rule asks a missing set");
        elements.iter().any(|element| self.matches(direction, element))
    }

    fn matches(&self, direction: Direction, element: &Element) -> bool {
        let Flow { source, destination, transport } = self.flow;
        let (subject, peer) = match direction {
            Direction::Ingress => (destination, source),
            Direction::Egress => (source, destination),
        };
        match element {
            Element::Subject { address, .. } | Element::Rest { address, .. } | Element::Known(address) => {
                *address == subject
            }
            Element::Itself(address) => *address == source && *address == destination,
            Element::Port { address, protocol, port, .. } => {
                *address == subject && transport == Transport::Port(*protocol, *port)
            }
            Element::Range { address, protocol, ports, .. } => {
                let in_range = |port| ports.first <= port && port <= ports.last;
                *address == subject && matches!(transport, Transport::Port(p, port) if p == *protocol && in_range(port))
            }
            Element::Peer(address) => *address == peer,
            Element::Packets(_) => true,
            Element::Local(_) | Element::Node(_) | Element::Judged { .. } | Element::Kept(_) => {
                panic!("{element} in a set about subjects")
            }
            Element::Block(range) => range.first <= peer && peer <= range.last,
        }
    }
}

fn addresses() -> impl Strategy<Value = (IpAddr, IpAddr)> {
    const V4: [&str; 11] = [
        "192.0.2.2",
        "10.9.0.3",
        "10.0.0.1",
        "10.0.0.2",
        "10.0.0.3",
        "10.9.0.1",
        "10.9.0.2",
        "0.0.0.1",
        "10.9.0.9",
        "223.0.0.1",
        "255.255.255.255",
    ];
    const V6: [&str; 7] = ["2001:db8::2", "fd00::1", "fd00::2", "fd00:9::1", "fd00:9::2", "::1", "fe80::1"];
    let pair = |from: &'static [&'static str]| {
        (select(from).prop_map(random::address), select(from).prop_map(random::address))
    };
    prop_oneof![pair(&V4), pair(&V6)]
}

fn flow() -> impl Strategy<Value = Flow> {
    let port = select(&[0, 15, 16, 53, 80, 99, 100, 200, 300, 65534, 65535][..]);
    let kind = select(&[1_u8, 8, 128, 132, 133, 136, 137][..]);
    (addresses(), select(&Protocol::ALL[..]), port, kind, 0..4).prop_map(
        |((source, destination), protocol, port, kind, choice)| {
            let transport = match (choice, source.is_ipv4()) {
                (0 | 1, _) => Transport::Port(protocol, port),
                (2, _) => Transport::Other(47),
                (_, true) => Transport::Icmp(kind),
                (_, false) => Transport::Icmpv6(kind),
            };
            Flow { source, destination, transport }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn routed_packets_meet_the_programs_verdict(
        program in random::program(),
        flows in proptest::collection::vec(flow(), 20),
    ) {
        // Packets to and from the node itself are not routed, so in the forward hook the node has no addresses.
        let program = Program { node_addresses: Default::default(), ..program };
        let rules = ruleset(&program, NftOptions::default());
        for flow in flows {
            let allowed = program.eval(&flow).allowed();
            let packet = Interpreter { rules: &rules, flow, from_node: false, forged: false };
            prop_assert_eq!(packet.passes(Hook::Forward), allowed, "{}", flow);
            // Output cannot tell where a packet came from, so nothing reaches itself there, and no node is believed.
            let itself = flow.source == flow.destination;
            let mut unbelieving = program.clone();
            unbelieving.reach.nodes.remove(&flow.source);
            let allowed = unbelieving.eval(&flow).allowed();
            prop_assert!(itself || packet.passes(Hook::Output) == allowed);
            let packet = Interpreter { forged: true, ..packet };
            prop_assert_eq!(packet.passes(Hook::Forward), packet.passes(Hook::Output), "the source is forged");
            let packet = Interpreter { from_node: true, ..packet };
            prop_assert!(itself || packet.passes(Hook::Forward) == allowed, "the source is forged");
            // What the node sends is asked about at its other end only.
            let own = Program { node_addresses: [flow.source].into(), ..unbelieving };
            let sends = own.eval(&flow).ingress.allowed;
            prop_assert!(itself || packet.passes(Hook::Output) == sends, "from the node: {}", flow);
        }
    }
}
