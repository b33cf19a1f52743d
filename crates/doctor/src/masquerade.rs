//! Which rules replace the source address of a packet from a pod of this host to a pod of another one.
//!
//! The chain POSTROUTING of table nat is followed for packets that stand for all others: the addresses that rules and
//! routes mention cut the pod ranges into pieces whose addresses no rule and no route tells apart, and one address of
//! each piece is tried. What a rule asks and we cannot know (a port, an IP set) may be so or not: then both ways are
//! followed, and what is found on them is not certain.
//!
//! Pods of the same host do not matter here: both are judged before the address is replaced. Nor do packets that come
//! from another host, for the same reason.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::facts::{Family, Place, Route};
use crate::save::{Match, Rule, Table, Target};

/// A range of pod addresses, and whether it is certain that it is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PodRange {
    pub(crate) net: IpNet,
    pub(crate) certain: bool,
}

/// A rule that replaces the address of a pod.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hit<'a> {
    /// The chain the rule is in.
    pub(crate) chain: &'a str,
    pub(crate) rule: &'a Rule,
    /// A packet whose source is replaced.
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Nothing on the way to the rule had to be guessed.
    pub(crate) certain: bool,
}

/// The pod ranges of one family that can be told from rules and routes. Pods reach each other within one of the groups.
pub(crate) fn guess(tables: &[&Table], routes: &[Route], family: Family) -> Vec<Vec<PodRange>> {
    let mut nets: BTreeMap<IpNet, bool> = BTreeMap::new();
    let mut add = |net: Option<IpNet>, certain: bool| {
        if let Some(net) = net.filter(|net| Family::of(net) == family && may_hold_pods(net)) {
            *nets.entry(net).or_default() |= certain;
        }
    };
    for table in tables {
        for rule in table.iter().filter(|(chain, _)| chain.starts_with("KUBE-SVC-")).flat_map(|(_, rules)| rules) {
            // kube-proxy marks what does not come from the pods it was told of (--cluster-cidr).
            let told = rule.option("-s").filter(|source| source.negated && rule.target_name() == "KUBE-MARK-MASQ");
            add(told.and_then(network), true);
        }
        for (chain, rules) in reachable(table) {
            for rule in rules {
                add(rule.option("-s").and_then(network), false);
                let spared = chain.starts_with("CNI-") && rule.target_name() == "ACCEPT";
                add(rule.option("-d").filter(|_| spared).and_then(network), false);
            }
        }
    }
    for route in routes.iter().filter(|route| route.place == Place::Here) {
        add(Some(route.destination), false);
    }
    let outermost: Vec<(IpNet, bool)> = nets
        .iter()
        .filter(|(net, _)| !nets.keys().any(|other| other != *net && other.contains(*net)))
        .map(|(&net, &certain)| (net, certain))
        .collect();
    let group = |(net, certain): (IpNet, bool)| {
        let own = PodRange { net, certain };
        // A node's own range: those of other nodes are cut from the same larger one and are routed to.
        let larger = IpNet::new(net.addr(), net.prefix_len().saturating_sub(8)).ok().map(|larger| larger.trunc());
        let siblings = routes.iter().filter(|route| {
            route.place == Place::Elsewhere
                && route.destination.prefix_len() == net.prefix_len()
                && route.destination != net
                && larger.is_some_and(|larger| larger.contains(&route.destination))
        });
        let siblings = siblings.map(|route| PodRange { net: route.destination, certain: false });
        std::iter::once(own).chain(siblings).collect()
    };
    outermost.into_iter().map(group).collect()
}

/// Not a single address, not everything, not an address that never leaves the host or its network.
fn may_hold_pods(net: &IpNet) -> bool {
    let first = net.network();
    let special = match first {
        IpAddr::V4(first) => first.is_loopback() || first.is_link_local() || first.is_multicast(),
        IpAddr::V6(first) => first.is_loopback() || first.is_unicast_link_local() || first.is_multicast(),
    };
    (1..net.max_prefix_len()).contains(&net.prefix_len()) && !special
}

/// What could be found out about the packets pods of this host send to pods of other hosts.
#[derive(Debug)]
pub(crate) enum Search<'a> {
    /// The rules that replace a source address, each once.
    Done(Vec<Hit<'a>>),
    /// No pod of this host has a route, so it is unknown which packets would come from here.
    NoPods,
}

/// Looks for rules of `table` that replace the source of packets between pods of `group`, whose ranges are
/// all of the table's family.
pub(crate) fn search<'a>(table: &'a Table, group: &[PodRange], routes: &[Route]) -> Search<'a> {
    between(table, group, group, routes)
}

/// The same for packets from pods of `group` to a network beyond the cluster.
pub(crate) fn search_towards<'a>(table: &'a Table, group: &[PodRange], net: IpNet, routes: &[Route]) -> Search<'a> {
    between(table, group, &[PodRange { net, certain: true }], routes)
}

fn between<'a>(table: &'a Table, group: &[PodRange], others: &[PodRange], routes: &[Route]) -> Search<'a> {
    let chains = reachable(table);
    let mentioned = |option| {
        let rules = chains.iter().flat_map(|(_, rules)| rules.iter());
        let conditions = rules.flat_map(|rule| &rule.matches).filter(move |condition| condition.option == option);
        conditions.filter_map(network).collect::<BTreeSet<IpNet>>()
    };
    let sources = representatives(group, routes, &mentioned("-s"));
    let sources: Vec<&Representative<'_>> = sources.iter().filter(|source| source.place() == Place::Here).collect();
    if sources.is_empty() {
        return Search::NoPods;
    }
    let destinations = representatives(others, routes, &mentioned("-d"));
    let away = |place| matches!(place, Place::Elsewhere | Place::Unknown);
    let mut hits: BTreeMap<(&str, &str), Hit<'a>> = BTreeMap::new();
    for source in sources {
        for destination in destinations.iter().filter(|destination| away(destination.place())) {
            for protocol in PROTOCOLS {
                let device = destination.route.and_then(|route| route.device.as_deref());
                let packet = Packet { source: source.address, destination: destination.address, device, protocol };
                for (chain, rule, certain) in follow(table, &packet) {
                    let certain = certain && source.certain && destination.certain;
                    let hit = Hit { chain, rule, source: packet.source, destination: packet.destination, certain };
                    let known = hits.entry((chain, rule.text.as_str())).or_insert(hit);
                    if certain && !known.certain {
                        *known = hit;
                    }
                }
            }
        }
    }
    Search::Done(hits.into_values().collect())
}

/// The chains a packet can get to from POSTROUTING, with their rules.
fn reachable(table: &Table) -> Vec<(&str, &[Rule])> {
    let mut found: BTreeMap<&str, &[Rule]> = BTreeMap::new();
    let mut open = vec!["POSTROUTING"];
    while let Some(name) = open.pop() {
        let Some((name, rules)) = table.get_key_value(name) else { continue };
        if found.insert(name, rules).is_none() {
            open.extend(rules.iter().map(Rule::target_name));
        }
    }
    found.into_iter().collect()
}

/// Some rule of `table` replaces source addresses, other than kube-proxy's for packets it marked.
pub(crate) fn may_replace(table: &Table) -> bool {
    let chains = reachable(table).into_iter().filter(|(chain, _)| *chain != "KUBE-POSTROUTING");
    chains.flat_map(|(_, rules)| rules).any(|rule| replaces_source(rule.target_name()))
}

fn replaces_source(target: &str) -> bool {
    matches!(target, "MASQUERADE" | "SNAT" | "NETMAP" | "SAME")
}

/// An address that stands for all that no rule and no route tells apart from it.
struct Representative<'a> {
    address: IpAddr,
    route: Option<&'a Route>,
    /// The range it is from is certain to hold pods.
    certain: bool,
}

impl Representative<'_> {
    fn place(&self) -> Place {
        self.route.map_or(Place::Unknown, |route| route.place)
    }
}

fn representatives<'a>(group: &[PodRange], routes: &'a [Route], rules: &BTreeSet<IpNet>) -> Vec<Representative<'a>> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for range in group {
        let cuts = routes.iter().map(|route| &route.destination).chain(rules);
        let cuts = cuts.flat_map(|net| [Some(net.network()), after(net.broadcast())]).flatten();
        let within = cuts.filter(|address| range.net.contains(address));
        let pieces: BTreeSet<IpAddr> = std::iter::once(range.net.network()).chain(within).collect();
        for address in pieces {
            let by_length = routes.iter().filter(|route| route.destination.contains(&address));
            let route = by_length.max_by_key(|route| route.destination.prefix_len());
            let matched: Vec<bool> = rules.iter().map(|net| net.contains(&address)).collect();
            let like = (matched, route.map(|route| (route.place, route.device.as_deref())), range.certain);
            if seen.insert(like) {
                found.push(Representative { address, route, certain: range.certain });
            }
        }
    }
    found
}

/// The address after this one.
fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => address.to_bits().checked_add(1).map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(address) => address.to_bits().checked_add(1).map(|bits| IpAddr::V6(bits.into())),
    }
}

/// Names and numbers of the protocols Services and policies know.
type Protocol = [&'static str; 2];
const PROTOCOLS: [Protocol; 3] = [["tcp", "6"], ["udp", "17"], ["sctp", "132"]];

/// The first packet of a connection from pod to pod, as it is about to leave the host.
struct Packet<'a> {
    source: IpAddr,
    destination: IpAddr,
    device: Option<&'a str>,
    protocol: Protocol,
}

/// Whether a condition holds. A rule holds as its weakest condition does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Answer {
    No,
    Unknown,
    Yes,
}

impl From<bool> for Answer {
    fn from(holds: bool) -> Answer {
        if holds { Answer::Yes } else { Answer::No }
    }
}

/// Where a packet has got to: the chains it is in and the next rule of each, innermost last, and the mark it carries.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Position<'a> {
    stack: Vec<(&'a str, usize)>,
    mark: u32,
    certain: bool,
}

/// More rules than any packet meets. The kernel refuses loops, but the text might be cut or forged.
const MAX_STEPS: usize = 100_000;

/// The rules that replace the source of `packet`: their chain, and whether it is certain that the packet gets there.
fn follow<'a>(table: &'a Table, packet: &Packet<'_>) -> Vec<(&'a str, &'a Rule, bool)> {
    let start = Position { stack: vec![("POSTROUTING", 0)], mark: 0, certain: true };
    let mut open = vec![start];
    let mut seen = BTreeSet::new();
    let mut hits = Vec::new();
    for _ in 0..MAX_STEPS {
        let Some(mut position) = open.pop() else { break };
        let Some((chain, next)) = position.stack.pop() else { continue };
        let Some((chain, rule)) = table.get_key_value(chain).and_then(|(name, rules)| Some((name, rules.get(next)?)))
        else {
            // The end of a chain is a return.
            open.push(position);
            continue;
        };
        let answer = rule.matches.iter().map(|condition| holds(condition, packet, position.mark)).min();
        let answer = answer.unwrap_or(Answer::Yes);
        let passed = |mut position: Position<'a>| {
            position.stack.push((chain, next + 1));
            position
        };
        if answer == Answer::No {
            open.push(passed(position));
            continue;
        }
        let mut after = Vec::new();
        if answer == Answer::Unknown {
            position.certain = false;
            after.push(passed(position.clone()));
        }
        match &rule.target {
            Target::Jump(name, _) if replaces_source(name) => {
                hits.push((chain.as_str(), rule, position.certain));
            }
            Target::Jump(name, _) if matches!(name.as_str(), "ACCEPT" | "DROP") => {}
            Target::Jump(name, _) if name == "RETURN" => after.push(position),
            Target::Jump(name, options) if name == "MARK" => {
                match marked(position.mark, options) {
                    Some(mark) => position.mark = mark,
                    None => position.certain = false,
                }
                after.push(passed(position));
            }
            Target::Jump(name, _) if table.contains_key(name) => {
                let mut position = passed(position);
                position.stack.push((name, 0));
                after.push(position);
            }
            Target::Goto(name) => {
                position.stack.push((name, 0));
                after.push(position);
            }
            // It logs or counts, or something of the kind: in POSTROUTING nothing else can decide.
            Target::Jump(..) | Target::None => after.push(passed(position)),
        }
        // Ways that part come together again, mostly: follow them once.
        let parted = after.len() > 1;
        open.extend(after.into_iter().filter(|position| !parted || seen.insert(position.clone())));
    }
    hits
}

/// The mark after a MARK target with these options.
fn marked(mark: u32, options: &[String]) -> Option<u32> {
    let [option, value] = options else { return None };
    let (value, mask) = number_and_mask(value)?;
    match option.as_str() {
        "--set-xmark" => Some((mark & !mask) ^ value),
        "--set-mark" => Some((mark & !mask) | value),
        _ => None,
    }
}

/// `value` or `value/mask`.
fn number_and_mask(text: &str) -> Option<(u32, u32)> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    match text.split_once('/') {
        Some((value, mask)) => Some((number(value)?, number(mask)?)),
        None => Some((number(text)?, u32::MAX)),
    }
}

/// The network a condition on an address names.
fn network(condition: &Match) -> Option<IpNet> {
    let text = condition.value();
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn holds(condition: &Match, packet: &Packet<'_>, mark: u32) -> Answer {
    let value = condition.value();
    let within = |address: IpAddr| network(condition).map(|net| net.contains(&address));
    let holds: Option<bool> = match (condition.module.as_str(), condition.option.as_str()) {
        (_, "-s") => within(packet.source),
        (_, "-d") => within(packet.destination),
        (_, "-o") => packet.device.map(|device| match value.strip_suffix('+') {
            Some(prefix) => device.starts_with(prefix),
            None => device == value,
        }),
        (_, "-p") => Some(value == "all" || packet.protocol.contains(&value)),
        ("mark", "--mark") => number_and_mask(value).map(|(value, mask)| mark & mask == value),
        // Pods have addresses of their own, which are no other type from a host's point of view.
        ("addrtype", "--src-type" | "--dst-type") => Some(value.split(',').any(|kind| kind == "UNICAST")),
        // Table nat sees the first packet of a connection, and nobody has translated ours.
        ("conntrack", "--ctstate") | ("state", "--state") => Some(value.split(',').any(|state| state == "NEW")),
        // Calico's set of all pod ranges, and kube-proxy's set of pods that call themselves.
        ("set", "--match-set") if value.starts_with("cali") && value.ends_with("all-ipam-pools") => Some(true),
        ("set", "--match-set") if matches!(value, "KUBE-LOOP-BACK" | "KUBE-6-LOOP-BACK") => Some(false),
        _ => None,
    };
    holds.map_or(Answer::Unknown, |holds| Answer::from(holds != condition.negated))
}
