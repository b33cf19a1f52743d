//! How a node's reach beyond the connections of its own pods is laid out: the sets of [`Reach`], and the rules that ask
//! them.
//!
//! ```text
//! forward ─► trust        comes from another node, from where that is, and leads to where it has judged
//! output  ─► sent         the node's own: to its own pods, or as the ingress side says
//! postrouting             the sources that are kept
//! ```
//!
//! `trust` and `sent` are gone to from base chains, so where they end or return, the packet has passed. `trust` asks what
//! comes before trust, whether both ends are known, and what comes last, the epoch: that there is an old address of a node
//! and a new endpoint proves nothing. What does not go there is judged like everything else. So an address of another node
//! that a pod forges is the address of a peer, which no policy admits unless one names it.
//!
//! `sent` does not ask about the source, which is the node itself: bridge addresses lie in guarded ranges, and are no pods.
//! Nor does it ask whether the destination is known: what is in a guarded range is a pod of this node, known or not. A
//! node reaches itself, whatever addresses pods of others claim. The errors by which it refuses what such pods send are
//! related to that, so `in_deny` lets them through.
//!
//! Which sets and chains there are follows from what the node has to do, not from who there is: other nodes and pods come
//! and go as elements, and no rule changes.

use std::net::IpAddr;

use ringfence_compile::{Believed, Reach};
use ringfence_model::{Direction, Family, Protocol};

use super::layout::Layout;
use super::name::{ChainName, Content, Hook, SetName};
use super::ruleset::{Element, Rule, Towards};

/// What the sets hold.
const CONTENTS: [Content; 4] = [Content::Local, Content::Nodes, Content::Judged, Content::Kept];

/// All sets that there may be.
pub(super) fn sets() -> impl Iterator<Item = SetName> {
    CONTENTS.into_iter().flat_map(|content| Family::ALL.map(|family| SetName::of_either(family, content)))
}

/// Whether a set exists; nothing if it is not one of these.
pub(super) fn has(reach: &Reach, set: SetName) -> Option<bool> {
    Some(match set.content {
        Content::Local => {
            reach.judges_others || reach.believed == Believed::LocalPods || !reach.unmasqueraded.is_empty()
        }
        Content::Nodes => reach.believed != Believed::Nothing,
        Content::Judged => matches!(reach.believed, Believed::Endpoints(_)),
        Content::Kept => reach.unmasqueraded.iter().any(|network| Family::of(network.addr()) == set.family),
        _ => return None,
    })
}

/// All elements of a set; nothing if it is not one of these.
pub(super) fn elements(reach: &Reach, set: SetName) -> Option<Vec<Element>> {
    let elements: Vec<(SetName, Element)> = match (set.content, &reach.believed) {
        (Content::Local, _) => reach.local.iter().map(|address| local(*address)).collect(),
        (Content::Nodes, _) => reach.nodes.iter().map(|address| node(*address)).collect(),
        (Content::Judged, Believed::Endpoints(endpoints)) => endpoints.iter().map(judged).collect(),
        (Content::Judged, _) => Vec::new(),
        (Content::Kept, _) => reach.unmasqueraded.iter().map(kept).collect(),
        _ => return None,
    };
    Some(elements.into_iter().filter(|(of, _)| *of == set).map(|(_, element)| element).collect())
}

/// The element that makes an address one of the node's own pods.
pub(super) fn local(address: IpAddr) -> (SetName, Element) {
    (SetName::of_either(Family::of(address), Content::Local), Element::Local(address))
}

/// The element that makes an address one of another node.
pub(super) fn node(address: IpAddr) -> (SetName, Element) {
    (SetName::of_either(Family::of(address), Content::Nodes), Element::Node(address))
}

/// The element that makes other nodes answer for connections to an endpoint.
pub(super) fn judged(&(address, protocol, port): &(IpAddr, Protocol, u16)) -> (SetName, Element) {
    let set = SetName::of_either(Family::of(address), Content::Judged);
    (set, Element::Judged { address, protocol, port })
}

/// The element that keeps sources towards a network.
pub(super) fn kept(network: &ipnet::IpNet) -> (SetName, Element) {
    (SetName::of_either(Family::of(network.addr()), Content::Kept), Element::Kept(*network))
}

impl Layout<'_> {
    fn reach(&self) -> &Reach {
        &self.program.reach
    }

    /// The chains that are there because of the reach.
    pub(super) fn chains_of_reach(self) -> impl Iterator<Item = ChainName> {
        let trust = (self.reach().believed != Believed::Nothing).then_some(ChainName::Trust);
        let sent = self.judges_sent().then_some(ChainName::Sent);
        let keeps = !self.reach().unmasqueraded.is_empty();
        let postrouting = keeps.then_some(ChainName::Base(Hook::Postrouting));
        [trust, sent, postrouting].into_iter().flatten()
    }

    /// What takes packets of other nodes to where they pass, in `forward`.
    pub(super) fn trust_from_nodes(self) -> impl Iterator<Item = Rule> {
        let towards = match self.reach().believed {
            Believed::Nothing => None,
            Believed::Endpoints(_) => Some(Towards::Judged),
            Believed::LocalPods => Some(Towards::Local),
            Believed::Everything => Some(Towards::Anything),
        };
        let rules = towards.map(|towards| Family::ALL.map(|family| Rule::TrustFromNodes(family, towards)));
        rules.into_iter().flatten()
    }

    /// What takes packets to other nodes there, in `forward` and in `output`.
    pub(super) fn trust_to_nodes(self) -> impl Iterator<Item = Rule> {
        let trusted = self.reach().believed == Believed::Everything;
        trusted.then_some(Family::ALL.map(Rule::TrustToNodes)).into_iter().flatten()
    }

    /// What becomes of the node's own packets.
    pub(super) fn rule_of_own(self) -> Rule {
        if self.judges_sent() { Rule::JudgeSent } else { Rule::AcceptFromNode }
    }

    /// Whether the node's own packets to pods of others are judged. Trusted nodes' are not.
    fn judges_sent(self) -> bool {
        self.reach().judges_others && !self.reach().trusts_all()
    }

    /// The rules of `trust`.
    pub(super) fn trust(self) -> Vec<Rule> {
        let mut rules = self.unknown_ends();
        rules.push(self.epoch_rule());
        rules
    }

    /// The rules of `sent`.
    pub(super) fn sent(self) -> Vec<Rule> {
        let mut rules = vec![Rule::AcceptNeighbourDiscovery];
        rules.extend(Family::ALL.map(Rule::AllowLocal));
        rules.push(Rule::AllowToItself);
        rules.extend(self.ask(Direction::Ingress));
        rules.push(self.epoch_rule());
        rules
    }

    /// The rules of `postrouting`.
    pub(super) fn postrouting(self) -> Vec<Rule> {
        let kept = |family: &Family| self.has(SetName::of_either(*family, Content::Kept));
        Family::ALL.into_iter().filter(kept).map(Rule::KeepSource).collect()
    }
}
