//! The names of our sets and chains in the kernel.
//!
//! Names are made of what the compiler says, never of text that users wrote: they are at most 60 characters of
//! `[a-z0-9_]`, and two different things never share one.

use std::fmt;

use ringfence_compile::GateId;
use ringfence_model::{Direction, Family};

/// The table, of family `inet`. Everything in it is ours; a table of that name in another family is not.
pub const TABLE: &str = "ringfence";

/// The hooks our base chains sit on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// Packets the node routes: between pods, and between pods and the world.
    Forward,
    /// Packets of the node's own processes.
    Output,
    /// Packets on their way out, when their source may be translated. Nothing is judged there.
    Postrouting,
}

impl Hook {
    /// All.
    pub const ALL: [Hook; 3] = [Hook::Forward, Hook::Output, Hook::Postrouting];
    /// Those where packets are judged. They have a chain whatever the program says.
    pub const JUDGING: [Hook; 2] = [Hook::Forward, Hook::Output];

    /// The name of the base chain, and of the hook in nft's language.
    pub fn as_str(self) -> &'static str {
        match self {
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        }
    }

    /// `enum nf_inet_hooks` of `linux/netfilter.h`.
    pub fn number(self) -> u32 {
        match self {
            Hook::Forward => 2,
            Hook::Output => 3,
            Hook::Postrouting => 4,
        }
    }

    /// The type of the base chain.
    pub fn chain_type(self) -> &'static str {
        match self {
            Hook::Forward | Hook::Output => "filter",
            Hook::Postrouting => "nat",
        }
    }

    /// Its priority. Among chains that translate sources the first one that does settles it, so ours comes before those
    /// of others: they use 100, `NF_IP_PRI_NAT_SRC` of `linux/netfilter_ipv4.h`.
    pub fn priority(self) -> i32 {
        match self {
            Hook::Forward | Hook::Output => 0,
            Hook::Postrouting => 99,
        }
    }

    /// The same in nft's language.
    pub(super) fn priority_name(self) -> &'static str {
        match self {
            Hook::Forward | Hook::Output => "filter",
            Hook::Postrouting => "srcnat - 1",
        }
    }
}

/// A chain of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChainName {
    /// A base chain: what is never judged leaves here.
    Base(Hook),
    /// Asks both directions, one after the other.
    Judge,
    /// The packet need not be judged here, because of another node's address. Ends with yes if both ends are known.
    Trust,
    /// The node sends this itself. Ends with yes if it is for its own pods, or the pod of another node admits it.
    Sent,
    /// The packet's subject is isolated in this direction: finds the gate of its port. Returns when anyone may pass.
    Side(Direction, Family),
    /// Who may pass a gate, in both families. Returns for those.
    Gate(Direction, GateId),
    /// Refuses.
    Deny(Direction),
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChainName::Base(hook) => f.write_str(hook.as_str()),
            ChainName::Judge => f.write_str("judge"),
            ChainName::Trust => f.write_str("trust"),
            ChainName::Sent => f.write_str("sent"),
            ChainName::Side(direction, family) => write!(f, "{}{}", short(*direction), digit(*family)),
            ChainName::Gate(direction, id) => write!(f, "{}_g_{id}", short(*direction)),
            ChainName::Deny(direction) => write!(f, "{}_deny", short(*direction)),
        }
    }
}

/// A set or map of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetName {
    /// The direction it is about.
    pub direction: Direction,
    /// The family of the addresses in it.
    pub family: Family,
    /// What it holds.
    pub content: Content,
}

/// What a set holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Content {
    /// Addresses of the isolated local pods.
    Subjects,
    /// Pairs of an isolated local pod's address with itself, of either direction.
    Itself,
    /// Whom the subjects admit: to a gate, or back for anyone.
    Ports(Shape),
    /// Who may pass a gate.
    Gate(GateId, Members),
    /// Every packet, while this epoch lasts.
    Epoch(Epoch),
    /// Addresses in guarded ranges that a known pod has.
    Known,
    /// Addresses of the node's own pods.
    Local,
    /// Addresses of other nodes.
    Nodes,
    /// Endpoints of the node's own pods: connections to them have been judged where they came from.
    Judged,
    /// Networks towards which the node's own pods keep their addresses.
    Kept,
}

/// One of two names that take turns, see [`Rule::DropIfOutdated`](super::Rule::DropIfOutdated).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Epoch {
    /// After everything was written anew.
    #[default]
    A,
    /// The other one.
    B,
}

impl Epoch {
    /// Both.
    pub const ALL: [Epoch; 2] = [Epoch::A, Epoch::B];

    /// The other one.
    pub fn next(self) -> Epoch {
        match self {
            Epoch::A => Epoch::B,
            Epoch::B => Epoch::A,
        }
    }
}

/// How a map goes by ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shape {
    /// Local address, protocol, port; a hash map.
    Ports,
    /// Local address, protocol, range of ports; a concatenated interval map, which the kernel looks up more slowly.
    Ranges,
    /// Local address: ports that the other two do not know, and traffic without ports.
    Rest,
}

impl Shape {
    /// All, in the order they are asked.
    pub const ALL: [Shape; 3] = [Shape::Ports, Shape::Ranges, Shape::Rest];
}

/// How a set knows peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Members {
    /// Addresses of pods; a hash set.
    Pods,
    /// Address ranges; an interval set.
    Blocks,
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // These are not about a direction.
        match self.content {
            Content::Itself => return write!(f, "self{}", digit(self.family)),
            Content::Epoch(Epoch::A) => return f.write_str("epoch_a"),
            Content::Epoch(Epoch::B) => return f.write_str("epoch_b"),
            Content::Known => return write!(f, "known{}", digit(self.family)),
            Content::Local => return write!(f, "local{}", digit(self.family)),
            Content::Nodes => return write!(f, "nodes{}", digit(self.family)),
            Content::Judged => return write!(f, "judged{}", digit(self.family)),
            Content::Kept => return write!(f, "kept{}", digit(self.family)),
            _ => {}
        }
        write!(f, "{}{}_", short(self.direction), digit(self.family))?;
        match self.content {
            Content::Subjects => f.write_str("pods"),
            Content::Itself | Content::Epoch(_) | Content::Known => Ok(()),
            Content::Local | Content::Nodes | Content::Judged | Content::Kept => Ok(()),
            Content::Ports(Shape::Ports) => f.write_str("ports"),
            Content::Ports(Shape::Ranges) => f.write_str("ranges"),
            Content::Ports(Shape::Rest) => f.write_str("rest"),
            Content::Gate(id, Members::Pods) => write!(f, "p_{id}"),
            Content::Gate(id, Members::Blocks) => write!(f, "b_{id}"),
        }
    }
}

impl SetName {
    /// The set of an epoch.
    pub fn of_epoch(epoch: Epoch) -> SetName {
        SetName { direction: Direction::Ingress, family: Family::V4, content: Content::Epoch(epoch) }
    }

    /// The set of known addresses.
    pub fn of_known(family: Family) -> SetName {
        SetName::of_either(family, Content::Known)
    }

    /// A set that is not about a direction.
    pub(super) fn of_either(family: Family, content: Content) -> SetName {
        SetName { direction: Direction::Ingress, family, content }
    }

    /// A comment for administrators: what the set holds.
    pub fn comment(&self) -> String {
        let direction = self.direction;
        let what = match self.content {
            Content::Subjects => "isolated pods",
            Content::Itself => return "isolated pods to themselves".to_owned(),
            Content::Epoch(_) => return "every packet, until the next change of rules".to_owned(),
            Content::Known => return "addresses of known pods in guarded ranges".to_owned(),
            Content::Local => return "pods of this node".to_owned(),
            Content::Nodes => return "other nodes".to_owned(),
            Content::Judged => return "ports of pods for which other nodes judge".to_owned(),
            Content::Kept => return "networks that see the addresses of pods".to_owned(),
            Content::Ports(Shape::Ports) => "gate of each open port",
            Content::Ports(Shape::Ranges) => "gate of each open port range",
            Content::Ports(Shape::Rest) => "gate of all other ports and protocols",
            Content::Gate(_, Members::Pods) => "pods that pass the gate",
            Content::Gate(_, Members::Blocks) => "addresses that pass the gate",
        };
        format!("{direction}: {what}")
    }
}

impl ChainName {
    /// A comment for administrators: what the chain decides.
    pub fn comment(&self) -> String {
        match self {
            ChainName::Base(Hook::Forward) => "routed packets".to_owned(),
            ChainName::Base(Hook::Output) => "packets of this node".to_owned(),
            ChainName::Base(Hook::Postrouting) => "packets whose source is not translated".to_owned(),
            ChainName::Trust => "returns what another node answers for".to_owned(),
            ChainName::Sent => "returns what this node may send".to_owned(),
            ChainName::Judge => "returns what both directions allow".to_owned(),
            ChainName::Side(direction, _) => format!("{direction} of isolated pods"),
            ChainName::Gate(direction, _) => format!("{direction}: a gate, returns for those who pass"),
            ChainName::Deny(direction) => format!("{direction}: refused"),
        }
    }
}

fn short(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "in",
        Direction::Egress => "eg",
    }
}

fn digit(family: Family) -> char {
    match family {
        Family::V4 => '4',
        Family::V6 => '6',
    }
}
