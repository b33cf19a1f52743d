//! How a program is laid out in sets, chains and rules.
//!
//! ```text
//! forward, output ─► judge ─► eg4 eg6 ─► gate chain ─► eg_deny      egress: the subject is the source
//!                         └─► in4 in6 ─► gate chain ─► in_deny      ingress: the subject is the destination
//!
//! forward ─► trust ─► eg_deny, in_deny                              another node has judged: are both ends known?
//! output ─► sent ─► in4 in6 ─► ...                                  the node itself, to pods of others: ingress alone
//! postrouting                                                       sources that are kept; judges nothing
//! ```
//!
//! `judge` *jumps* to a direction, all other steps are *goto*: so wherever a chain below returns, the packet is back in
//! `judge`, which asks the other direction. Returning is the only way to allow; reaching the end of `judge` accepts, by
//! the policy of the base chain. So one direction's yes never ends the other direction's check.
//!
//! A direction's maps go by the *subject's* address and port, and point at gates; a gate's sets hold the peers. The other
//! way round, a map from each peer to a chain, would need fewer elements, but whenever an element that points at a chain
//! is added, the kernel checks the whole table for loops, element by element: 15 ms with 100,000 peers. Adding a peer
//! to a plain set is checked by nobody and takes microseconds.
//!
//! A map or a set of subjects exists if and only if it has elements, the sets of a gate if and only if the gate can have
//! such members, that of known addresses if and only if a range of its family is guarded; and a rule that asks a set exists
//! if and only if the set does.
//!
//! `judge` asks first whether both ends are known, where there is a range to guard: one comparison for each end, and for
//! those inside one look-up.
//!
//! [`Program::eval`] says yes to a pod that reaches its own address, as it does through a Service. Here that takes a
//! packet that came from where the pod is: a forged source proves nothing. Only `forward` can ask for that.
//!
//! [`Program::eval`] says yes to the node's own addresses. Here the hook says it: packets of this node pass `output`,
//! and packets to it pass `input`, where we do nothing. A *routed* packet with the node's address as its source is
//! forged, and is judged like any other.
//!
//! The second part of the drawing is there when the node judges for others, believes them, or keeps sources: `reach.rs`
//! tells about that.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ringfence_compile::{Admission, Gate, GateId, Program, ProtocolRange, Side, Subject};
use ringfence_model::{Direction, Family};

use super::name::{ChainName, Content, Epoch, Hook, Members, SetName, Shape};
use super::reach;
use super::ruleset::{DenyAction, Element, Rule, Ruleset};
use super::shapes::{Shapes, is_written_out};

/// A program, and what to do with packets it refuses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout<'a> {
    pub(super) program: &'a Program,
    pub(super) deny: DenyAction,
    pub(super) epoch: Epoch,
    /// Of the program.
    pub(super) shapes: Shapes,
}

impl Layout<'_> {
    /// Everything.
    pub(super) fn ruleset(self) -> Ruleset {
        let mut sets: BTreeMap<SetName, Vec<Element>> = BTreeMap::new();
        for direction in Direction::ALL {
            let side = self.program.side(direction);
            for (address, subject) in &side.subjects {
                for (set, element) in subject_elements(direction, *address, subject) {
                    sets.entry(set).or_default().push(element);
                }
                if direction == Direction::Ingress || !self.program.ingress.subjects.contains_key(address) {
                    let (set, element) = itself(*address);
                    sets.entry(set).or_default().push(element);
                }
            }
            for (id, gate) in &side.gates {
                for set in gate_sets(direction, *id, gate) {
                    sets.entry(set).or_default();
                }
                for (set, element) in block_elements(direction, *id, gate) {
                    sets.entry(set).or_default().push(element);
                }
            }
            for (address, class) in &side.peers {
                for id in side.classes.get(class).into_iter().flat_map(|gates| gates.iter()) {
                    let (set, element) = member(direction, *id, *address);
                    sets.entry(set).or_default().push(element);
                }
            }
        }
        for family in Family::ALL.into_iter().filter(|family| self.has(SetName::of_known(*family))) {
            sets.entry(SetName::of_known(family)).or_default();
        }
        for address in self.program.guard.known() {
            let (set, element) = known(*address);
            sets.entry(set).or_default().push(element);
        }
        for set in reach::sets().filter(|set| self.has(*set)) {
            sets.entry(set).or_default().extend(reach::elements(&self.program.reach, set).unwrap_or_default());
        }
        sets.insert(SetName::of_epoch(self.epoch), every_packet());
        let mut chains = Vec::new();
        for chain in self.fixed_chains() {
            chains.push((chain, self.rules(chain)));
        }
        for direction in Direction::ALL {
            for id in self.program.side(direction).gates.keys() {
                let chain = ChainName::Gate(direction, *id);
                chains.push((chain, self.rules(chain)));
            }
        }
        Ruleset { sets: sets.into_iter().collect(), chains }
    }

    /// The chains that are there whatever policies say.
    pub(super) fn fixed_chains(self) -> Vec<ChainName> {
        let mut chains: Vec<ChainName> = Hook::JUDGING.into_iter().map(ChainName::Base).collect();
        chains.push(ChainName::Judge);
        chains.extend(self.chains_of_reach());
        for direction in [Direction::Egress, Direction::Ingress] {
            chains.extend(Family::ALL.into_iter().map(|family| ChainName::Side(direction, family)));
            chains.push(ChainName::Deny(direction));
        }
        chains
    }

    /// The rules of a chain.
    pub(super) fn rules(self, chain: ChainName) -> Vec<Rule> {
        match chain {
            ChainName::Base(Hook::Forward) => self.forward(),
            ChainName::Base(Hook::Output) => self.output(),
            ChainName::Base(Hook::Postrouting) => self.postrouting(),
            ChainName::Judge => self.judge(),
            ChainName::Trust => self.trust(),
            ChainName::Sent => self.sent(),
            ChainName::Side(direction, family) => self.direction(direction, family),
            ChainName::Gate(direction, id) => self.gate(direction, id),
            ChainName::Deny(_) => self.refuse(),
        }
    }

    fn forward(self) -> Vec<Rule> {
        let mut rules = vec![Rule::AcceptOpen];
        for family in Family::ALL {
            let set = SetName { direction: Direction::Ingress, family, content: Content::Itself };
            if self.has(set) {
                rules.push(Rule::AcceptItself(set));
            }
        }
        rules.extend(self.trust_from_nodes().chain(self.trust_to_nodes()));
        rules.push(Rule::Judge);
        rules
    }

    fn output(self) -> Vec<Rule> {
        let mut rules = vec![Rule::AcceptOpen, self.rule_of_own(), Rule::AcceptOwnResets];
        rules.extend(self.trust_to_nodes());
        rules.push(Rule::Judge);
        rules
    }

    fn judge(self) -> Vec<Rule> {
        let mut rules = self.unknown_ends();
        rules.extend([Direction::Egress, Direction::Ingress].into_iter().flat_map(|direction| self.ask(direction)));
        rules.push(self.epoch_rule());
        rules
    }

    /// Refuses what comes from or goes to a pod that is not known.
    pub(super) fn unknown_ends(self) -> Vec<Rule> {
        let mut rules = vec![Rule::AcceptNeighbourDiscovery];
        for direction in [Direction::Egress, Direction::Ingress] {
            let ranges = self.program.guard.ranges().iter();
            rules.extend(ranges.map(|range| Rule::RefuseUnknown(direction, *range)));
        }
        rules
    }

    /// Asks a direction.
    pub(super) fn ask(self, direction: Direction) -> impl Iterator<Item = Rule> {
        let has_subjects =
            move |family: &Family| self.has(SetName { direction, family: *family, content: Content::Subjects });
        Family::ALL.into_iter().filter(has_subjects).map(move |family| Rule::Ask(direction, family))
    }

    /// What ends every way to yes that takes several look-ups.
    pub(super) fn epoch_rule(self) -> Rule {
        Rule::DropIfOutdated(SetName::of_epoch(self.epoch))
    }

    fn direction(self, direction: Direction, family: Family) -> Vec<Rule> {
        let mut rules = Vec::new();
        // The rest comes last: it is about the ports that no other map knows.
        for shape in Shape::ALL {
            let map = SetName { direction, family, content: Content::Ports(shape) };
            if self.has(map) {
                rules.push(Rule::Dispatch(map));
            }
        }
        rules.push(Rule::Deny(direction));
        rules
    }

    fn gate(self, direction: Direction, id: GateId) -> Vec<Rule> {
        let Some(gate) = self.program.side(direction).gates.get(&id) else {
            return Vec::new();
        };
        let admit = |set| Rule::Admit { set, origin: Arc::clone(&gate.origin) };
        let mut rules: Vec<Rule> = gate_sets(direction, id, gate).map(admit).collect();
        rules.push(Rule::Deny(direction));
        rules
    }

    fn refuse(self) -> Vec<Rule> {
        let mut rules: Vec<Rule> = Family::ALL.into_iter().map(Rule::AllowErrors).collect();
        // Who is refused only because it meets old rules and new elements must not be told so.
        rules.extend([Rule::DropInvalid, self.epoch_rule(), Rule::Count]);
        match self.deny {
            DenyAction::Reject => rules.extend([Rule::RejectTcp, Rule::Reject]),
            DenyAction::Drop => rules.push(Rule::Drop),
        }
        rules
    }

    /// Whether a set exists. Takes no longer with more pods.
    pub(super) fn has(self, set: SetName) -> bool {
        let SetName { direction, family, content } = set;
        let side = self.program.side(direction);
        match content {
            Content::Epoch(epoch) => epoch == self.epoch,
            Content::Known => self.program.guard.ranges_of(family).next().is_some(),
            Content::Subjects => has_subject(side, family),
            Content::Itself => Direction::ALL.into_iter().any(|d| has_subject(self.program.side(d), family)),
            Content::Ports(shape) => self.shapes.has(direction, family, shape),
            Content::Local | Content::Nodes | Content::Judged | Content::Kept => {
                reach::has(&self.program.reach, set).unwrap_or_default()
            }
            Content::Gate(id, _) => {
                side.gates.get(&id).is_some_and(|gate| gate_sets(direction, id, gate).any(|existing| existing == set))
            }
        }
    }
}

fn has_subject(side: &Side, family: Family) -> bool {
    // IPv4 sorts before IPv6.
    let end = match family {
        Family::V4 => side.subjects.get_min(),
        Family::V6 => side.subjects.get_max(),
    };
    end.is_some_and(|(address, _)| Family::of(*address) == family)
}

/// The sets that a gate has.
pub(super) fn gate_sets(direction: Direction, id: GateId, gate: &Gate) -> impl Iterator<Item = SetName> {
    Family::ALL.into_iter().flat_map(move |family| {
        let set = |members| SetName { direction, family, content: Content::Gate(id, members) };
        let pods = (gate.concerns(family) && gate.selects_pods).then(|| set(Members::Pods));
        let blocks = gate.blocks.iter().any(|range| Family::of(range.first) == family).then(|| set(Members::Blocks));
        pods.into_iter().chain(blocks)
    })
}

/// The elements that hold a gate's blocks.
pub(super) fn block_elements(
    direction: Direction,
    id: GateId,
    gate: &Gate,
) -> impl Iterator<Item = (SetName, Element)> {
    gate.blocks.iter().map(move |range| {
        let content = Content::Gate(id, Members::Blocks);
        (SetName { direction, family: Family::of(range.first), content }, Element::Block(*range))
    })
}

/// The element that lets a pod pass a gate.
pub(super) fn member(direction: Direction, id: GateId, peer: IpAddr) -> (SetName, Element) {
    let content = Content::Gate(id, Members::Pods);
    (SetName { direction, family: Family::of(peer), content }, Element::Peer(peer))
}

/// The elements of an epoch that lasts.
pub(super) fn every_packet() -> Vec<Element> {
    Family::ALL.into_iter().map(Element::Packets).collect()
}

/// The element that makes an address known.
pub(super) fn known(address: IpAddr) -> (SetName, Element) {
    (SetName::of_known(Family::of(address)), Element::Known(address))
}

/// The element that lets a subject reach itself. There is one for both directions: what it allows is allowed in both.
pub(super) fn itself(address: IpAddr) -> (SetName, Element) {
    let set = SetName { direction: Direction::Ingress, family: Family::of(address), content: Content::Itself };
    (set, Element::Itself(address))
}

/// The elements that are about one subject.
pub(super) fn subject_elements(direction: Direction, address: IpAddr, subject: &Subject) -> Vec<(SetName, Element)> {
    let mut elements = vec![name_element(direction, address, subject)];
    for segment in subject.ports.segments() {
        elements.extend(segment_elements(direction, address, segment));
    }
    elements.extend(rest_element(direction, address, subject));
    elements
}

/// The elements about one subject before a change and after it, without those of segments of ports that are in both tables:
/// a pod can have very many of them, and a change is about few. Segments of one table do not overlap, so what is left out
/// on one side cannot be among the rest of the other.
pub(super) fn differing_elements(
    direction: Direction,
    address: IpAddr,
    old: &Subject,
    new: &Subject,
) -> [Vec<(SetName, Element)>; 2] {
    let elements = |subject: &Subject, others: &Subject| {
        let mut elements = vec![name_element(direction, address, subject)];
        let mut others = others.ports.segments().iter().peekable();
        for segment in subject.ports.segments() {
            while others.next_if(|other| *other < segment).is_some() {}
            if others.peek() != Some(&segment) {
                elements.extend(segment_elements(direction, address, segment));
            }
        }
        elements.extend(rest_element(direction, address, subject));
        elements
    };
    [elements(old, new), elements(new, old)]
}

fn name_element(direction: Direction, address: IpAddr, subject: &Subject) -> (SetName, Element) {
    let set = SetName { direction, family: Family::of(address), content: Content::Subjects };
    (set, Element::Subject { address, pod: subject.pod.clone() })
}

fn segment_elements(
    direction: Direction,
    address: IpAddr,
    segment: &(ProtocolRange, Admission),
) -> impl Iterator<Item = (SetName, Element)> + use<> {
    let (range, admission) = *segment;
    let ProtocolRange { protocol, ports } = range;
    let set = |shape| SetName { direction, family: Family::of(address), content: Content::Ports(shape) };
    let (single, whole) = if is_written_out(&range) {
        (Some((set(Shape::Ports), ports.first..=ports.last)), None)
    } else {
        (None, Some((set(Shape::Ranges), Element::Range { address, protocol, ports, admission })))
    };
    let single = single.into_iter().flat_map(move |(set, ports)| {
        ports.map(move |port| (set, Element::Port { address, protocol, port, admission }))
    });
    single.chain(whole)
}

fn rest_element(direction: Direction, address: IpAddr, subject: &Subject) -> Option<(SetName, Element)> {
    let set = SetName { direction, family: Family::of(address), content: Content::Ports(Shape::Rest) };
    subject.ports.rest().map(|admission| (set, Element::Rest { address, admission }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ringfence_compile::PortTable;
    use ringfence_model::{PortRange, Protocol};

    use super::*;

    /// Subjects with all tables of up to three segments at a few places, short and long, and with and without a rest.
    fn subjects() -> Vec<Subject> {
        let admissions = [None, Some(Admission::Anyone), Some(Admission::Gate(GateId(1)))];
        let ports = |first, last| ProtocolRange { protocol: Protocol::Tcp, ports: PortRange { first, last } };
        let mut subjects = Vec::new();
        for first in [ports(1, 3), ports(1, 90), ports(2, 2)] {
            for choice in 0..3_usize.pow(4) {
                let chosen = |place: u32| admissions[choice / 3_usize.pow(place) % 3];
                let places = [first, ports(100, 100), ports(101, 200)];
                let segments = places.into_iter().zip(0..).filter_map(|(range, place)| Some((range, chosen(place)?)));
                let ports = Arc::new(PortTable::of(segments, chosen(3)));
                subjects.push(Subject { pod: "namespace/pod".into(), ports });
            }
        }
        subjects.push(Subject { pod: "namespace/other".into(), ports: Arc::default() });
        subjects
    }

    #[test]
    fn what_is_left_out_does_not_differ() {
        let address = IpAddr::V4([10, 0, 0, 1].into());
        let set = |elements: Vec<_>| elements.into_iter().collect::<BTreeSet<_>>();
        let subjects = subjects();
        let mut left_out = 0;
        for old in &subjects {
            for new in &subjects {
                let all = [old, new].map(|subject| set(subject_elements(Direction::Ingress, address, subject)));
                let [before, after] = differing_elements(Direction::Ingress, address, old, new);
                let some = [set(before), set(after)];
                assert!(all[0].difference(&all[1]).eq(some[0].difference(&some[1])), "{old:?} {new:?}");
                assert!(all[1].difference(&all[0]).eq(some[1].difference(&some[0])), "{old:?} {new:?}");
                left_out += all[0].len() - some[0].len();
            }
        }
        assert!(left_out > 0);
    }
}
