//! What we put into the packet filter, as a value: the sets, chains and rules this project needs, and nothing else of
//! nftables. `netlink` and `text` print it.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use ringfence_compile::Admission;
use ringfence_model::{AddressRange, Direction, Family, PortRange, Protocol};

use super::name::{ChainName, Content, Members, SetName, Shape};

/// Everything in our table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Sets with their elements.
    pub sets: Vec<(SetName, Vec<Element>)>,
    /// Chains with their rules.
    pub chains: Vec<(ChainName, Vec<Rule>)>,
}

/// An element of a set or map. Which variants a set holds follows from its [`Content`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// An isolated local pod.
    Subject {
        /// Its address.
        address: IpAddr,
        /// `namespace/name`, for the comment.
        pod: Arc<str>,
    },
    /// An isolated local pod, twice.
    Itself(IpAddr),
    /// Whom a local pod admits on one port.
    Port {
        /// The pod's address.
        address: IpAddr,
        /// The protocol.
        protocol: Protocol,
        /// The port, host byte order.
        port: u16,
        /// Whom.
        admission: Admission,
    },
    /// Whom a local pod admits on a range of ports.
    Range {
        /// The pod's address.
        address: IpAddr,
        /// The protocol.
        protocol: Protocol,
        /// The ports.
        ports: PortRange,
        /// Whom.
        admission: Admission,
    },
    /// Whom a local pod admits otherwise.
    Rest {
        /// The pod's address.
        address: IpAddr,
        /// Whom.
        admission: Admission,
    },
    /// A pod that passes a gate.
    Peer(IpAddr),
    /// A known pod.
    Known(IpAddr),
    /// Addresses that pass a gate.
    Block(AddressRange),
    /// Every packet of a family.
    Packets(Family),
    /// A pod of this node.
    Local(IpAddr),
    /// Another node.
    Node(IpAddr),
    /// Where a connection may lead that another node has judged.
    Judged {
        /// The pod's address.
        address: IpAddr,
        /// The protocol.
        protocol: Protocol,
        /// The port, host byte order.
        port: u16,
    },
    /// A network towards which sources are kept.
    Kept(IpNet),
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Packets of connections that were let through before.
    AcceptOpen,
    /// Packets from an address of this node: kubelet probes, host-network pods. Only ever for the output hook: in the
    /// forward hook the source address proves nothing.
    AcceptFromNode,
    /// TCP resets that this node makes for a connection it has refused. They carry the address of the connection's other
    /// end, so the node's own exemption does not cover them, and that end may be a pod that may send nothing. Only ever for
    /// the output hook, where nobody else sends resets.
    AcceptOwnResets,
    /// Judges the packet; goes on when it is allowed.
    Judge,
    /// Takes a packet from an address of this node to where the end decides. Only for the output hook, as
    /// [`Rule::AcceptFromNode`], in whose place it comes when the node judges for others.
    JudgeSent,
    /// Allows packets to pods of this node.
    AllowLocal(Family),
    /// Allows packets to addresses of this node, whoever claims to have them. Only for what the node sends itself.
    AllowToItself,
    /// Takes a packet from another node, which has judged it, to where the end decides. It must have come in by the device
    /// that leads to that node: an address proves nothing. Only for the forward hook, which knows that.
    TrustFromNodes(Family, Towards),
    /// The same for all packets to other nodes.
    TrustToNodes(Family),
    /// Binds the source of a connection to itself, so that no later chain translates it. To accept would not do that: it
    /// ends one chain.
    KeepSource(Family),
    /// ICMPv6 types 133 to 136 (RFC 4861).
    AcceptNeighbourDiscovery,
    /// Refuses a subject in the range that is not in the set of known addresses.
    RefuseUnknown(Direction, IpNet),
    /// Asks the direction when the packet's subject is in the set; goes on when that allows it.
    Ask(Direction, Family),
    /// Goes to the gate of the subject's port, or allows it, if the map knows the port.
    Dispatch(SetName),
    /// Allows the peers in the set.
    Admit {
        /// A set of a gate.
        set: SetName,
        /// How policies describe them, for people.
        origin: Arc<str>,
    },
    /// Discards a packet that both directions allow, or one refuses, if the program has changed since the packet came in. The kernel holds
    /// each packet to the rules that were in force when it came, but every look-up in a set is as of now: a packet could
    /// follow an old port to an old gate and pass as a new member, though neither program allows it. A change that could
    /// do that takes the elements of the old epoch's set away.
    DropIfOutdated(SetName),
    /// Refuses.
    Deny(Direction),
    /// A pod to its own address by way of a Service (else the packet would not have left the pod), if it came in where the
    /// pod's address is reached. Only for the forward hook, which knows that.
    AcceptItself(SetName),
    /// Allows ICMP or ICMPv6 errors about connections that were let through before. `related` says more than that of other
    /// protocols: the second connections that a tracking helper expects.
    AllowErrors(Family),
    /// Drops what connection tracking cannot place. A reset would end the open connection that a late or damaged packet
    /// belongs to.
    DropInvalid,
    /// Counts packets and bytes.
    Count,
    /// Refuses TCP with a reset.
    RejectTcp,
    /// Refuses with "administratively prohibited" (ICMP or ICMPv6).
    Reject,
    /// Discards.
    Drop,
}

/// What another node has judged, of that which comes from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Towards {
    /// What goes to the endpoints in the set.
    Judged,
    /// What goes to pods of this node.
    Local,
    /// Everything.
    Anything,
}

/// What to do with packets that are refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DenyAction {
    /// Tell the sender: TCP reset, otherwise ICMP "administratively prohibited".
    #[default]
    Reject,
    /// Discard silently.
    Drop,
}

/// A field of a set's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// An address.
    Address(Family),
    /// An IP protocol number.
    Protocol,
    /// A port.
    Port,
    /// The family of a packet.
    Family,
}

impl SetName {
    /// The fields of its key.
    pub fn fields(&self) -> &'static [Field] {
        use Family::{V4, V6};
        use Field::{Address, Port, Protocol};
        match (self.content, self.family) {
            (Content::Epoch(_), _) => &[Field::Family],
            (Content::Itself, V4) => &[Address(V4), Address(V4)],
            (Content::Itself, V6) => &[Address(V6), Address(V6)],
            (Content::Ports(Shape::Ports | Shape::Ranges) | Content::Judged, V4) => &[Address(V4), Protocol, Port],
            (Content::Ports(Shape::Ports | Shape::Ranges) | Content::Judged, V6) => &[Address(V6), Protocol, Port],
            (_, V4) => &[Address(V4)],
            (_, V6) => &[Address(V6)],
        }
    }

    /// Whether its elements are ranges.
    pub fn is_interval(&self) -> bool {
        matches!(self.content, Content::Gate(_, Members::Blocks) | Content::Ports(Shape::Ranges) | Content::Kept)
    }

    /// Whether its elements are ranges in each of several fields.
    pub(super) fn has_ranges_of_several_fields(&self) -> bool {
        self.is_interval() && self.fields().len() > 1
    }

    /// Whether its elements carry verdicts.
    pub fn is_map(&self) -> bool {
        matches!(self.content, Content::Ports(_))
    }
}

impl Element {
    /// A comment for administrators. Peers have none: there may be 100,000 of them.
    pub fn comment(&self) -> Option<String> {
        match self {
            Element::Subject { pod, .. } => Some(comment(pod)),
            _ => None,
        }
    }
}

impl Rule {
    /// A comment for administrators.
    pub fn comment(&self) -> Option<String> {
        match self {
            Rule::AcceptOpen => Some("open connections".to_owned()),
            Rule::AcceptFromNode => Some("this node to its pods".to_owned()),
            Rule::AcceptOwnResets => Some("our refusals".to_owned()),
            Rule::AcceptNeighbourDiscovery => Some("neighbour discovery".to_owned()),
            Rule::RefuseUnknown(..) => Some("of no known pod".to_owned()),
            Rule::Admit { origin, .. } => Some(comment(origin)),
            Rule::AcceptItself(_) => Some("a pod to itself".to_owned()),
            Rule::JudgeSent => Some("this node".to_owned()),
            Rule::AllowToItself => Some("this node to itself".to_owned()),
            Rule::AllowLocal(_) => Some("this node to its pods".to_owned()),
            Rule::TrustFromNodes(_, Towards::Anything) => Some("from other nodes".to_owned()),
            Rule::TrustFromNodes(..) => Some("judged by other nodes".to_owned()),
            Rule::TrustToNodes(_) => Some("to other nodes".to_owned()),
            Rule::KeepSource(_) => Some("not to be masqueraded".to_owned()),
            Rule::DropIfOutdated(_) => Some("came in before the last change".to_owned()),
            Rule::AllowErrors(_) => Some("errors of open connections".to_owned()),
            Rule::DropInvalid => Some("of no connection".to_owned()),
            _ => None,
        }
    }
}

/// Text of users made fit for a comment, in the kernel and in nft's language: printable ASCII, no quotes, no backslash
/// (nft has no way to escape them), at most 100 bytes (the kernel takes 255, nft 128).
pub fn comment(text: &str) -> String {
    const LONGEST: usize = 100;
    let clean = |c: char| if (' '..='~').contains(&c) && !matches!(c, '"' | '\'' | '\\') { c } else { '?' };
    let mut comment: String = text.chars().map(clean).take(LONGEST + 1).collect();
    if comment.len() > LONGEST {
        comment.truncate(LONGEST - 3);
        comment.push_str("...");
    }
    comment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_short_printable_and_unquoted() {
        assert_eq!(comment("default/web"), "default/web");
        assert_eq!(comment("a\"b\\c\n\u{e9}'"), "a?b?c???");
        assert_eq!(comment(&"x".repeat(100)).len(), 100);
        let cut = comment(&"\u{fc}".repeat(1000));
        assert_eq!(cut.len(), 100);
        assert!(cut.ends_with("?..."));
    }
}
