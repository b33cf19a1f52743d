//! What the lines mean: a small model of ipset and iptables, written after the kernel's, that performs the very texts
//! the tools get. It takes nothing the kernel would refuse, and judges packets while a plan goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use arbitrary::Unstructured;
use imbl::OrdMap;
use ipnet::IpNet;
use ringfence_compile::acl::{
    Acl, AclEntry, AclNamespace, AclPeers, AclPolicy, AclPorts, AclReason, AclRule, AclSet, Members, SetId, SetRole,
};
use ringfence_model::{Family, Flow, Protocol, Transport};

use super::layout::Layout;
use super::listing::{Listing, Stock};
use super::name::{Edition, Hook, edition_of_chain, edition_of_set};
use super::plan::{self, Capacities, Step, Update, Work};
use super::{AclDiff, IptablesOptions, Mark};

#[path = "../../tests/iptables_kernel/random.rs"]
mod random;

#[derive(Clone, Debug, PartialEq, Eq)]
struct IpSet {
    kind: String,
    capacity: usize,
    elements: BTreeSet<String>,
}

/// A rule, and its words.
#[derive(Debug, PartialEq, Eq)]
struct Rule {
    text: String,
    words: Vec<String>,
}

/// Chains of a family.
type Chains = BTreeMap<String, Vec<Arc<Rule>>>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Kernel {
    sets: OrdMap<String, Arc<IpSet>>,
    chains: BTreeMap<Family, Arc<Chains>>,
}

fn rule(text: &str) -> Arc<Rule> {
    Arc::new(Rule { text: text.to_owned(), words: words_of(text) })
}

/// Sets with their members, and the chains of each family.
type Normal = (BTreeMap<String, BTreeSet<String>>, BTreeMap<Family, BTreeMap<String, Vec<String>>>);

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// With this mark.
    Passed(u32),
    Rejected,
    Dropped,
}

impl Fate {
    fn passed(self) -> bool {
        matches!(self, Fate::Passed(_))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    New,
    Established,
    Related,
    Invalid,
}

#[derive(Clone, Copy, Debug)]
struct Packet {
    flow: Flow,
    hook: Hook,
    local: bool,
    translated: bool,
    reset: bool,
    state: State,
    mark: u32,
}

impl Packet {
    fn routed(flow: Flow) -> Packet {
        // A connection to itself comes through a Service.
        let translated = flow.source == flow.destination;
        Packet { flow, hook: Hook::Forward, local: false, translated, reset: false, state: State::New, mark: 0x10 }
    }
}

impl Kernel {
    fn new() -> Kernel {
        let builtin = || Chains::from([("FORWARD".into(), Vec::new()), ("OUTPUT".into(), Vec::new())]);
        Kernel { sets: OrdMap::new(), chains: Family::ALL.map(|family| (family, Arc::new(builtin()))).into() }
    }

    fn set_mut(&mut self, name: &str) -> &mut IpSet {
        Arc::make_mut(self.sets.get_mut(name).unwrap_or_else(|| panic!("there is no set {name}")))
    }

    /// One line of `ipset restore`.
    fn set(&mut self, line: &str) {
        let words: Vec<&str> = line.splitn(3, ' ').collect();
        match *words.as_slice() {
            ["create", name, parameters] => {
                let mut parameters: Vec<&str> = parameters.split(' ').collect();
                let capacity = parameters.pop().unwrap().parse().unwrap();
                assert_eq!(parameters.pop(), Some("maxelem"), "{line}");
                let set = IpSet { kind: parameters[..3].join(" "), capacity, elements: BTreeSet::new() };
                assert!(name.len() <= 31 && self.sets.insert(name.to_owned(), Arc::new(set)).is_none(), "{line}");
            }
            ["add", name, element] => {
                let set = self.set_mut(name);
                let bare = element.strip_suffix(" nomatch").unwrap_or(element);
                assert!(!set.elements.contains(&format!("{bare} nomatch")), "{line}");
                assert!(set.elements.insert(element.to_owned()), "there already: {line}");
                assert!(set.elements.len() <= set.capacity, "full: {line}");
            }
            ["del", name, element] => assert!(self.set_mut(name).elements.remove(element), "{line}"),
            ["flush", name] => self.set_mut(name).elements.clear(),
            ["swap", one, other] => {
                let (a, b) = (self.sets[one].clone(), self.sets[other].clone());
                assert_eq!(a.kind, b.kind, "{line}");
                self.sets.insert(one.to_owned(), b);
                self.sets.insert(other.to_owned(), a);
            }
            ["destroy", name] => {
                let asks = |rule: &Arc<Rule>| rule.words.iter().any(|word| word == name);
                let asked = self.chains.values().flat_map(|chains| chains.values().flatten()).any(asks);
                assert!(!asked && self.sets.remove(name).is_some(), "{line}");
            }
            _ => panic!("{line}"),
        }
    }

    /// An `iptables-restore --noflush`.
    fn commit(&mut self, family: Family, lines: &[String]) {
        let chains = Arc::make_mut(self.chains.get_mut(&family).unwrap());
        assert_eq!(lines.first().map(String::as_str), Some("*filter"));
        assert_eq!(lines.last().map(String::as_str), Some("COMMIT"));
        for line in &lines[1..lines.len() - 1] {
            let words: Vec<&str> = line.splitn(3, ' ').collect();
            match *words.as_slice() {
                [chain, "-", "[0:0]"] => {
                    let chain = chain.strip_prefix(':').unwrap();
                    assert!(chain.len() <= 28, "{line}");
                    chains.insert(chain.to_owned(), Vec::new());
                }
                ["-A", chain, text] => chains.get_mut(chain).unwrap().push(rule(text)),
                ["-I", chain, text] => {
                    chains.get_mut(chain).unwrap().insert(0, rule(text.strip_prefix("1 ").unwrap()));
                }
                ["-D", chain, text] => {
                    let rules = chains.get_mut(chain).unwrap();
                    let at = rules.iter().position(|rule| rule.text == text).unwrap_or_else(|| panic!("{line}"));
                    rules.remove(at);
                }
                ["-F", chain] => chains.get_mut(chain).unwrap().clear(),
                ["-X", chain] => assert_eq!(chains.remove(chain), Some(Vec::new()), "{line}"),
                _ => panic!("{line}"),
            }
        }
        for rule in chains.values().flatten() {
            for (option, value) in rule.words.iter().zip(&rule.words[1..]) {
                match option.as_str() {
                    "-j" if value.starts_with("RF") => assert!(chains.contains_key(value), "{rule:?}"),
                    "--match-set" => assert!(self.sets.contains_key(value), "{rule:?}"),
                    _ => {}
                }
            }
        }
    }

    /// What `iptables-save` and `ipset list` would say.
    fn stock(&self) -> Stock {
        let listing = |chains: &Chains| {
            let mut text = "*filter\n".to_owned();
            text.extend(chains.keys().map(|chain| format!(":{chain} - [0:0]\n")));
            for (chain, rules) in chains {
                text.extend(rules.iter().map(|rule| format!("-A {chain} {}\n", rule.text)));
            }
            Listing::read(&text)
        };
        Stock {
            families: self.chains.iter().map(|(family, chains)| (*family, listing(chains))).collect(),
            sets: self.sets.keys().filter(|name| edition_of_set(name).is_some()).cloned().collect(),
        }
    }

    /// Sets and chains in one spelling for all editions, and without what history leaves: the sizes of sets.
    fn normal(&self) -> Normal {
        let neutral = |name: &str| match (edition_of_chain(name), edition_of_set(name)) {
            (None, None) => name.to_owned(),
            _ => format!("{}x{}", &name[..2], &name[3..]),
        };
        let rule = |rule: &Arc<Rule>| rule.words.iter().map(|word| neutral(word)).collect::<Vec<_>>().join(" ");
        let sets = self
            .sets
            .iter()
            .map(|(name, set)| (neutral(name), set.elements.iter().cloned().chain([set.kind.clone()]).collect()));
        let chains = |chains: &Arc<Chains>| {
            chains.iter().map(|(name, rules)| (neutral(name), rules.iter().map(rule).collect())).collect()
        };
        let families = self.chains.iter().map(|(family, inner)| (*family, chains(inner)));
        (sets.collect(), families.collect())
    }

    /// Judges a packet.
    fn judge(&self, packet: Packet) -> Fate {
        self.judge_while(packet, &mut || self)
    }

    /// Judges a packet; `sets` says by which state each time a chain or a set is looked at. A chain that is gone by then is
    /// empty, and lets the packet pass; a set that rules in use ask does not go.
    fn judge_while<'a>(&'a self, mut packet: Packet, sets: &mut dyn FnMut() -> &'a Kernel) -> Fate {
        self.chain(packet.hook.builtin(), &mut packet, sets).unwrap_or(Fate::Passed(packet.mark))
    }

    fn chain<'a>(&'a self, chain: &str, packet: &mut Packet, sets: &mut dyn FnMut() -> &'a Kernel) -> Option<Fate> {
        let family = &Family::of(packet.flow.source);
        assert!(self.chains[family].contains_key(chain) || sets().chains[family].contains_key(chain), "{chain}");
        for rule in sets().chains[family].get(chain).into_iter().flatten() {
            let target = rule.words.iter().position(|word| word == "-j").unwrap();
            let (matches, target) = rule.words.split_at(target);
            if !self.matches(matches, packet, sets) {
                continue;
            }
            match target[1].as_str() {
                "RETURN" => return None,
                "DROP" => return Some(Fate::Dropped),
                "REJECT" => return Some(Fate::Rejected),
                "MARK" => {
                    assert_eq!(target[2], "--set-xmark");
                    let (value, mask) = hexes(&target[3]);
                    packet.mark = packet.mark & !mask ^ value;
                }
                chain => {
                    if let Some(fate) = self.chain(chain, packet, sets) {
                        return Some(fate);
                    }
                }
            }
        }
        None
    }

    fn matches<'a>(&'a self, words: &[String], packet: &Packet, sets: &mut dyn FnMut() -> &'a Kernel) -> bool {
        let Packet { flow, .. } = *packet;
        let mut words = words.iter().map(String::as_str);
        let mut all = true;
        while let Some(mut option) = words.next() {
            let negated = option == "!";
            if negated {
                option = words.next().unwrap();
            }
            let value = words.next().unwrap();
            let matches = match (option, value) {
                ("-m", _) | ("--comment", _) => true,
                ("-s", network) => network.parse::<IpNet>().unwrap().contains(&flow.source),
                ("-d", network) => network.parse::<IpNet>().unwrap().contains(&flow.destination),
                ("-p", "icmp") => matches!(flow.transport, Transport::Icmp(_)),
                ("-p", "ipv6-icmp") => matches!(flow.transport, Transport::Icmpv6(_)),
                ("-p", name) => matches!(flow.transport, Transport::Port(protocol, _) if protocol_of(name) == protocol),
                ("--dport", ports) => {
                    let (first, last) = ports.split_once(':').unwrap_or((ports, ports));
                    let range = first.parse().unwrap()..=last.parse().unwrap();
                    matches!(flow.transport, Transport::Port(_, port) if range.contains(&port))
                }
                ("--icmpv6-type", kind) => flow.transport == Transport::Icmpv6(kind.parse().unwrap()),
                ("--ctstate", "DNAT") => packet.translated,
                ("--ctstate", "ESTABLISHED") => packet.state == State::Established,
                ("--ctstate", "RELATED") => packet.state == State::Related,
                ("--ctstate", "INVALID") => packet.state == State::Invalid,
                ("--src-type", "LOCAL") => packet.local,
                ("--tcp-flags", "RST") => {
                    assert_eq!(words.next(), Some("RST"));
                    packet.reset
                }
                // The program has a test of its own.
                ("--bytecode", _) => flow.source == flow.destination,
                ("--mark", mark) => {
                    let (value, mask) = hexes(mark);
                    packet.mark & mask == value
                }
                ("--match-set", name) => {
                    let ends = words.next().unwrap();
                    // A set that is asked by a rule in use is not destroyed.
                    let set = sets().sets.get(name).unwrap_or_else(|| &self.sets[name]);
                    contains(set, ends, flow)
                }
                _ => panic!("{option} {value}"),
            };
            all &= matches != negated;
        }
        all
    }
}

fn contains(set: &IpSet, ends: &str, flow: Flow) -> bool {
    let address = match ends {
        "src" => flow.source,
        "dst" | "dst,dst" => flow.destination,
        _ => panic!("{ends}"),
    };
    let kind = set.kind.split(' ').next().unwrap();
    assert_eq!(kind == "hash:ip,port", ends == "dst,dst");
    match kind {
        "hash:ip" => set.elements.contains(&address.to_string()),
        "hash:ip,port" => match flow.transport {
            Transport::Port(protocol, port) => set.elements.iter().any(|element| {
                let (ip, rest) = element.split_once(',').unwrap();
                let (name, number) = rest.split_once(':').unwrap();
                (ip.parse::<IpAddr>().unwrap(), protocol_of(name), number) == (address, protocol, &port.to_string())
            }),
            _ => false,
        },
        _ => {
            let networks = set.elements.iter().filter_map(|element| {
                let (network, no) = element.split_once(' ').unwrap_or((element, ""));
                let network = network.parse::<IpNet>().unwrap_or_else(|_| network.parse::<IpAddr>().unwrap().into());
                assert!(network.prefix_len() > 0);
                network.contains(&address).then_some((network.prefix_len(), no != "nomatch"))
            });
            networks.max().is_some_and(|(_, yes)| yes)
        }
    }
}

fn protocol_of(name: &str) -> Protocol {
    match name {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => panic!("{name}"),
    }
}

fn hexes(text: &str) -> (u32, u32) {
    let hex = |text: &str| u32::from_str_radix(text.strip_prefix("0x").unwrap(), 16).unwrap();
    let (value, mask) = text.split_once('/').unwrap();
    (hex(value), hex(mask))
}

/// The words of a rule; what is in quotes is one word.
fn words_of(rule: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let (mut quoted, mut escaped) = (false, false);
    for character in rule.chars() {
        match character {
            _ if escaped => escaped = false,
            '\\' => {
                escaped = true;
                continue;
            }
            '"' => {
                quoted = !quoted;
                continue;
            }
            ' ' if !quoted => {
                words.push(String::new());
                continue;
            }
            _ => {}
        }
        words.last_mut().unwrap().push(character);
    }
    words
}

/// The states that a plan goes through: each with the number of graces before it.
fn perform(kernel: &Kernel, steps: &[Step]) -> Vec<(usize, Kernel)> {
    let mut states = vec![(0, kernel.clone())];
    for step in steps {
        let (graces, mut kernel) = states.last().cloned().unwrap();
        match &step.work {
            // The packets that saw an earlier update are through by now, too.
            Work::Grace | Work::Owed => states.push((graces + 1, kernel)),
            Work::Rules(family, lines) => {
                kernel.commit(*family, lines);
                states.push((graces, kernel));
            }
            Work::Sets(lines) => {
                for line in lines {
                    kernel.set(line);
                    states.push((graces, kernel.clone()));
                }
            }
            Work::Destroy(names) => {
                for name in names {
                    kernel.set(&format!("destroy {name}"));
                }
                states.push((graces, kernel));
            }
        }
    }
    states
}

fn layout<'a>(acl: &'a Acl, options: &'a IptablesOptions, edition: Edition) -> Layout<'a> {
    Layout { acl, options, edition, compares: true }
}

fn replace(kernel: &Kernel, acl: &Acl, capacities: &mut Capacities) -> (Edition, Vec<Step>) {
    let options = IptablesOptions::default();
    let stock = kernel.stock();
    let edition = plan::free_edition(&stock);
    (edition, plan::replace(layout(acl, &options, edition), &Family::ALL, &stock, capacities))
}

fn fresh(acl: &Acl) -> Kernel {
    let kernel = Kernel::new();
    let (_, steps) = replace(&kernel, acl, &mut Capacities::new());
    perform(&kernel, &steps).pop().unwrap().1
}

/// No packet, judged at any moment or over any time that no grace cuts, passes unless one of the lists allows it; none
/// that both allow is told that it is refused.
fn check(states: &[(usize, Kernel)], from: &Acl, to: &Acl, flows: &[Flow], u: &mut Unstructured<'_>) {
    check_all(states, &[from, to], flows, u);
    for flow in flows.iter().filter(|flow| from.eval(flow).allowed() || to.eval(flow).allowed()) {
        let both = from.eval(flow).allowed() && to.eval(flow).allowed();
        for (at, (_, kernel)) in states.iter().enumerate() {
            let fate = kernel.judge(Packet::routed(*flow));
            assert!(!both || fate != Fate::Rejected, "{flow} is refused aloud at {at} of {}", states.len());
        }
    }
}

/// No packet, judged at any moment or over any time that no grace cuts, passes unless one of the lists allows it.
fn check_all(states: &[(usize, Kernel)], lists: &[&Acl], flows: &[Flow], u: &mut Unstructured<'_>) {
    for flow in flows.iter().filter(|flow| lists.iter().all(|list| !list.eval(flow).allowed())) {
        let packet = Packet::routed(*flow);
        for (at, (_, kernel)) in states.iter().enumerate() {
            assert!(!kernel.judge(packet).passed(), "{flow} passes at {at} of {}", states.len());
        }
        for _ in 0..4 {
            let start = u.choose_index(states.len()).unwrap_or_default();
            let graces = states[start].0;
            let last = states.iter().rposition(|state| state.0 == graces).unwrap();
            let mut now = start;
            let mut look = || {
                // Rarely, so that a packet gets far before something changes under it.
                if u.ratio(1, 8).unwrap_or_default() {
                    now = u.int_in_range(now..=last).unwrap_or(last);
                }
                &states[now].1
            };
            let fate = states[start].1.judge_while(packet, &mut look);
            assert!(!fate.passed(), "{flow} passes from {start} of {}", states.len());
        }
    }
}

fn sequences(count: u64) -> impl Iterator<Item = (u64, Vec<Acl>)> {
    // Even seeds: see `random::flows`.
    (0..count).map(|seed| (seed, if seed.is_multiple_of(2) { random::arbitrary(seed) } else { random::compiled(seed) }))
}

#[test]
fn the_layout_means_what_the_list_says() {
    let mut seen = BTreeMap::new();
    for (seed, lists) in sequences(300) {
        for (number, acl) in lists.iter().enumerate() {
            let kernel = fresh(acl);
            for flow in random::flows(seed + 1000 * number as u64, 40) {
                let packet = Packet::routed(flow);
                let allowed = acl.eval(&flow).allowed();
                *seen
                    .entry((allowed, acl.eval(&flow).ingress.because == acl.eval(&flow).egress.because))
                    .or_insert(0) += 1;
                let wanted = if allowed { Fate::Passed(packet.mark) } else { Fate::Rejected };
                assert_eq!(kernel.judge(packet), wanted, "{flow}: {:?}", acl.eval(&flow));
                // A forged mark opens nothing, and is gone when the packet was judged.
                let marked = Packet { mark: Mark::default().bits() | 0x10, ..packet };
                let itself = flow.source == flow.destination;
                let unguarded = Acl { guard: None, ..acl.clone() };
                let judged = [unguarded.eval(&flow).egress, unguarded.eval(&flow).ingress];
                let untouched = allowed && judged.iter().all(|side| side.because == AclReason::NotIsolated);
                let wanted_of_marked = if untouched { Fate::Passed(marked.mark) } else { wanted };
                assert!(itself || kernel.judge(marked) == wanted_of_marked, "{flow}");
                let invalid = kernel.judge(Packet { state: State::Invalid, ..packet });
                assert_eq!(invalid, if allowed { wanted } else { Fate::Dropped }, "{flow}");
                assert!(kernel.judge(Packet { state: State::Established, ..packet }).passed());
                let related = kernel.judge(Packet { state: State::Related, ..packet });
                let error = matches!(flow.transport, Transport::Icmp(_) | Transport::Icmpv6(_));
                assert_eq!(related.passed(), allowed || error, "{flow}");
                let output = Packet { hook: Hook::Output, ..packet };
                assert_eq!(kernel.judge(output), wanted, "{flow}");
                assert!(kernel.judge(Packet { local: true, ..output }).passed());
                let tcp = matches!(flow.transport, Transport::Port(Protocol::Tcp, _));
                let reset = Packet { reset: true, state: State::Related, ..packet };
                assert_eq!(kernel.judge(reset).passed(), related.passed());
                assert_eq!(kernel.judge(Packet { hook: Hook::Output, ..reset }).passed(), related.passed() || tcp);
                assert_eq!(kernel.judge(Packet { reset: true, ..output }), wanted, "a reset out of nowhere");
                assert_eq!(kernel.judge(Packet { local: true, ..packet }), wanted, "the source is forged");
                if !itself {
                    assert_eq!(kernel.judge(Packet { translated: true, ..packet }), wanted, "{flow}");
                }
            }
        }
    }
    assert!(seen.values().all(|count| *count > 500) && seen.len() == 4, "the flows test little: {seen:?}");
}

#[test]
fn a_pod_reaches_itself_only_when_translated() {
    let flow = |port| Flow {
        source: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.1".parse().unwrap(),
        transport: Transport::Port(Protocol::Tcp, port),
    };
    let lists = (0..400).step_by(2).flat_map(random::arbitrary);
    let refused = lists.map(|acl| Acl { guard: None, ..acl }).find(|acl| {
        let elsewhere = Flow { source: "10.0.0.77".parse().unwrap(), ..flow(9) };
        !acl.eval(&elsewhere).allowed()
            && fresh(acl).judge(Packet { translated: false, ..Packet::routed(flow(9)) }) == Fate::Rejected
    });
    let kernel = fresh(&refused.unwrap());
    assert!(kernel.judge(Packet::routed(flow(9))).passed());
}

#[test]
fn others_addresses_are_let_through() {
    let options = IptablesOptions { pod_ip_range: vec!["10.0.0.0/24".parse().unwrap()], ..IptablesOptions::default() };
    let mut outside = 0;
    for (seed, lists) in sequences(40) {
        let acl = lists.last().unwrap();
        let mut kernel = Kernel::new();
        let stock = kernel.stock();
        let layout = layout(acl, &options, Edition::default());
        let steps = plan::replace(layout, &Family::ALL, &stock, &mut Capacities::new());
        kernel = perform(&kernel, &steps).pop().unwrap().1;
        for flow in random::flows(seed, 60) {
            let inside = |address: IpAddr| address.is_ipv6() || options.pod_ip_range[0].contains(&address);
            let judged = acl.eval(&flow);
            let allowed = (judged.egress.allowed || !inside(flow.destination))
                && (judged.ingress.allowed || !inside(flow.source));
            assert_eq!(kernel.judge(Packet::routed(flow)).passed(), allowed, "{flow}");
            outside += usize::from(allowed && !judged.allowed());
        }
    }
    assert!(outside > 20, "{outside}");
}

#[test]
fn no_step_lets_pass_what_neither_list_allows() {
    let options = IptablesOptions::default();
    let (mut held, mut swapped, mut only_sets, mut differ, mut known, mut renewed) = (0, 0, 0, 0, 0, 0);
    for (seed, lists) in sequences(120) {
        let bytes = ringfence_scenario::bytes(seed, 60_000);
        let mut u = Unstructured::new(&bytes);
        let mut capacities = Capacities::new();
        let empty = Kernel::new();
        let (mut edition, steps) = replace(&empty, &lists[0], &mut capacities);
        let mut kernel = perform(&empty, &steps).pop().unwrap().1;
        let mut owes_grace = false;
        // What packets may have seen that are still judged: states, and the lists they belong to.
        let mut lately: Vec<(usize, Kernel)> = Vec::new();
        let mut lists_lately: Vec<&Acl> = Vec::new();
        for (from, to) in lists.iter().zip(&lists[1..]) {
            if u.ratio(1, 3).unwrap_or_default() {
                // As if the sets were made for fewer.
                capacities.values_mut().for_each(|capacity| *capacity = 0);
            }
            let diff = AclDiff::between(from, to);
            let (old, new) = (layout(from, &options, edition), layout(to, &options, edition));
            let update = plan::update(old, new, &diff, &Family::ALL, &mut capacities, owes_grace);
            assert_eq!(update.is_some(), from.guard == to.guard);
            known += diff.sets.changed.iter().filter(|(_, _, set)| set.role == SetRole::Known).count();
            let steps = match update {
                Some(update) => {
                    owes_grace = update.owes_grace;
                    update.steps
                }
                None => {
                    let (next, steps) = replace(&kernel, to, &mut capacities);
                    (edition, owes_grace) = (next, false);
                    renewed += 1;
                    steps
                }
            };
            held += usize::from(steps.iter().any(|step| step.work == Work::Grace));
            only_sets += usize::from(steps.iter().all(|step| !matches!(step.work, Work::Rules(..))));
            let swap = |step: &Step| matches!(&step.work, Work::Sets(lines) if lines.iter().any(|line| line.starts_with("swap")));
            swapped += usize::from(steps.iter().any(swap));
            let states = perform(&kernel, &steps);
            let flows = random::flows(seed, 24);
            // Packets that were there before this update, or before the ones before it.
            let graces = lately.last().map_or(0, |state| state.0);
            lately.extend(states.iter().map(|(more, kernel)| (graces + more, kernel.clone())));
            lists_lately.extend([from, to]);
            check_all(&lately, &lists_lately, &flows, &mut u);
            if states.last().is_some_and(|state| state.0 > 0) {
                let last = graces + states.last().map_or(0, |state| state.0);
                lately.retain(|state| state.0 == last);
                lists_lately = vec![from, to];
            }
            differ += flows.iter().filter(|flow| from.eval(flow).allowed() != to.eval(flow).allowed()).count();
            check(&states, from, to, &flows, &mut u);
            // Whatever step it dies at: a new edition mends it.
            let (_, died) = &states[u.choose_index(states.len()).unwrap_or_default()];
            let (next, steps) = replace(died, to, &mut Capacities::new());
            let mended = perform(died, &steps);
            check(&mended, from, to, &flows, &mut u);
            let mended = &mended.last().unwrap().1;
            assert_eq!(mended.normal(), fresh(to).normal());
            assert!(mended.stock().editions().into_iter().eq([next]));
            kernel = states.last().unwrap().1.clone();
            assert_eq!(kernel.normal(), fresh(to).normal(), "seed {seed}: {steps:#?}");
        }
    }
    assert!(held > 100 && swapped > 50 && only_sets > 50, "{held} {swapped} {only_sets}");
    assert!(differ > 500 && known > 100 && renewed > 20, "{differ} {known} {renewed}");
}

/// One update takes the source's right, the next gives the destination's: a packet that met the first half before both and
/// the second half after both has met two rights that were never there together.
#[test]
fn two_updates_in_a_row_do_not_add_up() {
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let (source, destination) = (address("10.0.0.1"), address("10.0.0.2"));
    let list = |callee: &[IpAddr], caller: &[IpAddr]| {
        let mut acl = Acl::empty("node".into());
        for (number, subject, peers) in [(0, source, callee), (10, destination, caller)] {
            // Names have the first bits of an id.
            let id = |which: u128| SetId((number + which) << 100);
            let set = |role, members: &[IpAddr]| AclSet {
                role,
                members: Members::Addresses(members.iter().copied().collect()),
                origin: "".into(),
            };
            acl.sets.insert(id(0), set(SetRole::Isolated, &[subject]));
            acl.sets.insert(id(1), set(SetRole::Selected, &[subject]));
            acl.sets.insert(id(2), set(SetRole::Peers, peers));
            let entry = AclEntry { peers: AclPeers::Set(id(2)), ports: AclPorts::Any };
            let rules = vec![AclRule { entries: vec![entry] }];
            let policies = vec![Arc::new(AclPolicy { name: "p".into(), selected: id(1), rules })];
            let namespace = Arc::new(AclNamespace { isolated: id(0), policies });
            let side = if number == 0 { &mut acl.egress } else { &mut acl.ingress };
            side.insert("ns".into(), namespace);
        }
        acl
    };
    let lists = [list(&[destination], &[]), list(&[], &[]), list(&[], &[source])];
    let options = IptablesOptions::default();
    let mut capacities = Capacities::new();
    let (edition, steps) = replace(&Kernel::new(), &lists[0], &mut capacities);
    let mut states = vec![(0, perform(&Kernel::new(), &steps).pop().unwrap().1)];
    let mut owes_grace = false;
    for (from, to) in lists.iter().zip(&lists[1..]) {
        let (old, new) = (layout(from, &options, edition), layout(to, &options, edition));
        let diff = AclDiff::between(from, to);
        let update = plan::update(old, new, &diff, &Family::ALL, &mut capacities, owes_grace).unwrap();
        owes_grace = update.owes_grace;
        let (graces, kernel) = states.last().cloned().unwrap();
        states.extend(perform(&kernel, &update.steps).into_iter().map(|(more, kernel)| (graces + more, kernel)));
    }
    let bytes = ringfence_scenario::bytes(1, 100_000);
    let mut u = Unstructured::new(&bytes);
    let flow = Flow { source, destination, transport: Transport::Port(Protocol::Tcp, 80) };
    for _ in 0..200 {
        check_all(&states, &lists.iter().collect::<Vec<_>>(), &[flow], &mut u);
    }
}

/// A pod that comes or goes is sets only, unless it is the first or the last of its namespace.
#[test]
fn members_touch_no_rule() {
    let options = IptablesOptions::default();
    for (_, lists) in sequences(100) {
        for (from, to) in lists.iter().zip(&lists[1..]) {
            let mut moved = to.clone();
            (moved.ingress, moved.egress) = (from.ingress.clone(), from.egress.clone());
            moved.guard = from.guard.clone();
            if !moved.sets.keys().eq(from.sets.keys()) {
                continue;
            }
            let diff = AclDiff::between(from, &moved);
            let (old, new) = (layout(from, &options, Edition::default()), layout(&moved, &options, Edition::default()));
            let Update { steps, .. } =
                plan::update(old, new, &diff, &Family::ALL, &mut Capacities::new(), false).unwrap();
            assert!(steps.iter().all(|step| matches!(step.work, Work::Sets(_) | Work::Grace)), "{steps:?}");
        }
    }
}

#[test]
fn cleanup_leaves_the_rest() {
    for (_, lists) in sequences(40) {
        let mut kernel = Kernel::new();
        let forward = vec![rule("-j DOCKER"), rule("-m comment --comment \"-j RF-FORWARD\" -j DOCKER")];
        for chains in kernel.chains.values_mut().map(Arc::make_mut) {
            chains.insert("FORWARD".to_owned(), forward.clone());
            chains.insert("DOCKER".to_owned(), Vec::new());
        }
        let before = kernel.clone();
        for acl in &lists {
            let (_, steps) = replace(&kernel, acl, &mut Capacities::new());
            kernel = perform(&kernel, &steps).pop().unwrap().1;
        }
        let (_, half_made) = replace(&kernel, &lists[0], &mut Capacities::new());
        kernel = perform(&kernel, &half_made[..1]).pop().unwrap().1;
        let cleaned = perform(&kernel, &plan::cleanup(&kernel.stock())).pop().unwrap().1;
        assert_eq!(cleaned, before);
    }
}

/// Ten attempts in a row that died half-way leave no free digit.
#[test]
fn editions_do_not_run_out() {
    let acl = &random::arbitrary(2)[1];
    let mut kernel = fresh(acl);
    for _ in 0..12 {
        let (_, steps) = replace(&kernel, acl, &mut Capacities::new());
        let made =
            steps.iter().position(|step| matches!(step.work, Work::Rules(..)) && step.title.contains("IPv6")).unwrap();
        kernel = perform(&kernel, &steps[..made - 1]).pop().unwrap().1;
        assert_eq!(
            kernel.judge(Packet::routed(random::flows(0, 1)[0])),
            fresh(acl).judge(Packet::routed(random::flows(0, 1)[0]))
        );
    }
    let (_, steps) = replace(&kernel, acl, &mut Capacities::new());
    assert_eq!(perform(&kernel, &steps).pop().unwrap().1.normal(), fresh(acl).normal());
}
