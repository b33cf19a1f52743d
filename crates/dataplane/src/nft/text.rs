//! Prints a ruleset in nft's language: for people, for tests, and as a script that `nft -f` loads.

use std::fmt::{self, Write as _};

use ringfence_compile::Admission;
use ringfence_model::{Direction, Family, Protocol};

use super::name::{ChainName, Content, SetName, TABLE};
use super::ruleset::{Element, Field, Rule, Ruleset, Towards};

/// The comment on our table.
pub(super) const TABLE_COMMENT: &str = "ringfence: Kubernetes NetworkPolicy, do not edit";

/// The script. Loads into a kernel that has no table of ours.
impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {TABLE} {{")?;
        writeln!(f, "\tcomment \"{TABLE_COMMENT}\"")?;
        for (set, elements) in &self.sets {
            writeln!(f)?;
            set_text(f, set, elements)?;
        }
        for (chain, rules) in &self.chains {
            writeln!(f)?;
            chain_text(f, *chain, rules)?;
        }
        writeln!(f, "}}")
    }
}

fn set_text(f: &mut fmt::Formatter<'_>, set: &SetName, elements: &[Element]) -> fmt::Result {
    writeln!(f, "\t{} {set} {{", if set.is_map() { "map" } else { "set" })?;
    let mut key = String::new();
    for field in set.fields() {
        let separator = if key.is_empty() { "" } else { " . " };
        write!(key, "{separator}{}", field.type_name())?;
    }
    writeln!(f, "\t\ttype {key}{}", if set.is_map() { " : verdict" } else { "" })?;
    if set.is_interval() {
        writeln!(f, "\t\tflags interval")?;
    }
    writeln!(f, "\t\tcomment \"{}\"", set.comment())?;
    if !elements.is_empty() {
        write!(f, "\t\telements = {{")?;
        for (index, element) in elements.iter().enumerate() {
            let separator = if index == 0 { "" } else { "," };
            write!(f, "{separator}\n\t\t\t{element}")?;
            if let Some(comment) = element.comment() {
                write!(f, " comment \"{comment}\"")?;
            }
            match element.admission() {
                Some(Admission::Anyone) => f.write_str(" : return")?,
                Some(Admission::Gate(id)) => write!(f, " : goto {}", ChainName::Gate(set.direction, id))?,
                None => {}
            }
        }
        writeln!(f, "\n\t\t}}")?;
    }
    writeln!(f, "\t}}")
}

fn chain_text(f: &mut fmt::Formatter<'_>, chain: ChainName, rules: &[Rule]) -> fmt::Result {
    writeln!(f, "\tchain {chain} {{")?;
    writeln!(f, "\t\tcomment \"{}\"", chain.comment())?;
    if let ChainName::Base(hook) = chain {
        let (kind, hook, priority) = (hook.chain_type(), hook.as_str(), hook.priority_name());
        writeln!(f, "\t\ttype {kind} hook {hook} priority {priority}; policy accept;")?;
    }
    for rule in rules {
        write!(f, "\t\t{rule}")?;
        if let Some(comment) = rule.comment() {
            write!(f, " comment \"{comment}\"")?;
        }
        writeln!(f)?;
    }
    writeln!(f, "\t}}")
}

impl Element {
    /// What a map's element says.
    pub(super) fn admission(&self) -> Option<Admission> {
        match self {
            Element::Port { admission, .. } | Element::Range { admission, .. } | Element::Rest { admission, .. } => {
                Some(*admission)
            }
            Element::Subject { .. }
            | Element::Itself(_)
            | Element::Peer(_)
            | Element::Known(_)
            | Element::Block(_)
            | Element::Packets(_)
            | Element::Local(_)
            | Element::Node(_)
            | Element::Judged { .. }
            | Element::Kept(_) => None,
        }
    }
}

/// The key, without comment and data.
impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Element::Subject { address, .. }
            | Element::Rest { address, .. }
            | Element::Peer(address)
            | Element::Known(address)
            | Element::Local(address)
            | Element::Node(address) => write!(f, "{address}"),
            Element::Itself(address) => write!(f, "{address} . {address}"),
            Element::Port { address, protocol, port, .. } | Element::Judged { address, protocol, port } => {
                write!(f, "{address} . {} . {port}", protocol_name(*protocol))
            }
            Element::Range { address, protocol, ports, .. } => {
                write!(f, "{address} . {} . {ports}", protocol_name(*protocol))
            }
            Element::Block(range) => write!(f, "{range}"),
            Element::Kept(network) => write!(f, "{network}"),
            Element::Packets(Family::V4) => f.write_str("ipv4"),
            Element::Packets(Family::V6) => f.write_str("ipv6"),
        }
    }
}

/// Without comment.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rule::AcceptOpen => f.write_str("ct state established accept"),
            Rule::AcceptFromNode => f.write_str("fib saddr type local accept"),
            Rule::Judge => write!(f, "jump {}", ChainName::Judge),
            Rule::JudgeSent => write!(f, "fib saddr type local goto {}", ChainName::Sent),
            Rule::AllowToItself => f.write_str("fib daddr type local return"),
            Rule::AllowLocal(family) => {
                write!(f, "{} daddr @{} return", ip(*family), SetName::of_either(*family, Content::Local))
            }
            Rule::TrustFromNodes(family, towards) => {
                let (ip, set) = (ip(*family), |content| SetName::of_either(*family, content));
                write!(f, "{ip} saddr @{} ", set(Content::Nodes))?;
                match towards {
                    Towards::Judged => {
                        write!(f, "{ip} daddr . meta l4proto . th dport @{} ct status ! dnat ", set(Content::Judged))?;
                    }
                    Towards::Local => write!(f, "{ip} daddr @{} ct status ! dnat ", set(Content::Local))?,
                    Towards::Anything => {}
                }
                write!(f, "fib saddr . iif oif exists goto {}", ChainName::Trust)
            }
            Rule::TrustToNodes(family) => {
                let nodes = SetName::of_either(*family, Content::Nodes);
                write!(f, "{} daddr @{nodes} goto {}", ip(*family), ChainName::Trust)
            }
            Rule::KeepSource(family) => {
                let (ip, set) = (ip(*family), |content| SetName::of_either(*family, content));
                write!(f, "{ip} saddr @{} {ip} daddr @{} ", set(Content::Local), set(Content::Kept))?;
                write!(f, "snat {ip} to {ip} saddr")
            }
            Rule::AcceptNeighbourDiscovery => f.write_str("icmpv6 type 133-136 accept"),
            Rule::RefuseUnknown(direction, range) => {
                let (subject, _) = ends(*direction);
                let family = Family::of(range.addr());
                let own = format!("{} {}", ip(family), subject.as_str());
                let (known, chain) = (SetName::of_known(family), ChainName::Deny(*direction));
                write!(f, "{own} {range} {own} != @{known} jump {chain}")
            }
            Rule::Ask(direction, family) => {
                let (subject, _) = ends(*direction);
                let set = SetName { direction: *direction, family: *family, content: Content::Subjects };
                let chain = ChainName::Side(*direction, *family);
                write!(f, "{} {} @{set} jump {chain}", ip(*family), subject.as_str())
            }
            Rule::Dispatch(map) => {
                let (subject, _) = ends(map.direction);
                write!(f, "{} {}", ip(map.family), subject.as_str())?;
                if map.fields().len() > 1 {
                    f.write_str(" . meta l4proto . th dport")?;
                }
                write!(f, " vmap @{map}")
            }
            Rule::Admit { set, .. } => {
                let (_, peer) = ends(set.direction);
                write!(f, "{} {} @{set} return", ip(set.family), peer.as_str())
            }
            Rule::DropIfOutdated(set) => write!(f, "meta nfproto != @{set} drop"),
            Rule::Deny(direction) => write!(f, "goto {}", ChainName::Deny(*direction)),
            Rule::AcceptItself(set) => {
                let ip = ip(set.family);
                write!(f, "ct status dnat {ip} saddr . {ip} daddr @{set} fib saddr . iif oif exists accept")
            }
            Rule::AllowErrors(Family::V4) => f.write_str("ct state related meta l4proto icmp return"),
            Rule::AllowErrors(Family::V6) => f.write_str("ct state related meta l4proto ipv6-icmp return"),
            Rule::AcceptOwnResets => f.write_str("ct state related tcp flags rst accept"),
            Rule::DropInvalid => f.write_str("ct state invalid drop"),
            Rule::Count => f.write_str("counter"),
            Rule::RejectTcp => f.write_str("meta l4proto tcp reject with tcp reset"),
            Rule::Reject => f.write_str("reject with icmpx admin-prohibited"),
            Rule::Drop => f.write_str("drop"),
        }
    }
}

/// An address of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Source,
    Destination,
}

impl End {
    fn as_str(self) -> &'static str {
        match self {
            End::Source => "saddr",
            End::Destination => "daddr",
        }
    }
}

/// Where the subject and the peer of a direction are in a packet.
pub(super) fn ends(direction: Direction) -> (End, End) {
    match direction {
        Direction::Ingress => (End::Destination, End::Source),
        Direction::Egress => (End::Source, End::Destination),
    }
}

fn ip(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

impl Field {
    fn type_name(self) -> &'static str {
        match self {
            Field::Address(Family::V4) => "ipv4_addr",
            Field::Address(Family::V6) => "ipv6_addr",
            Field::Protocol => "inet_proto",
            Field::Port => "inet_service",
            Field::Family => "nf_proto",
        }
    }
}
