//! A small model of ipset and iptables, written after the kernel's, that performs the very texts the tools get. It takes
//! nothing the kernel would refuse, and judges packets while a plan goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use ipnet::IpNet;
use ringfence_model::{Family, Flow, Protocol, Transport};

use super::super::listing::{Listing, Stock};
use super::super::name::{Hook, Table, edition_of_chain, edition_of_set};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct IpSet {
    kind: String,
    capacity: usize,
    elements: BTreeSet<String>,
}

/// A rule, and its words.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rule {
    text: String,
    words: Vec<String>,
}

/// Chains of a table.
pub(super) type Chains = BTreeMap<String, Vec<Arc<Rule>>>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Kernel {
    pub(super) sets: OrdMap<String, Arc<IpSet>>,
    pub(super) chains: BTreeMap<(Table, Family), Arc<Chains>>,
}

pub(super) fn rule(text: &str) -> Arc<Rule> {
    Arc::new(Rule { text: text.to_owned(), words: words_of(text) })
}

/// The rules of each chain.
pub(super) type NormalChains = BTreeMap<String, Vec<String>>;

/// Sets with their members, and the chains of each table.
pub(super) type Normal = (BTreeMap<String, BTreeSet<String>>, BTreeMap<(Table, Family), NormalChains>);

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// With this mark.
    Passed(u32),
    Rejected,
    Dropped,
    /// And no further rule of the table was asked.
    Accepted,
}

impl Fate {
    pub(super) fn passed(self) -> bool {
        matches!(self, Fate::Passed(_))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    New,
    Established,
    Related,
    Invalid,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Packet {
    pub(super) flow: Flow,
    pub(super) hook: Hook,
    pub(super) local: bool,
    /// It came in by the device that leads to its source.
    pub(super) traced: bool,
    pub(super) translated: bool,
    pub(super) reset: bool,
    pub(super) state: State,
    pub(super) mark: u32,
}

impl Packet {
    pub(super) fn routed(flow: Flow) -> Packet {
        // A connection to itself comes through a Service.
        let translated = flow.source == flow.destination;
        Packet {
            flow,
            hook: Hook::Forward,
            local: false,
            traced: true,
            translated,
            reset: false,
            state: State::New,
            mark: 0x10,
        }
    }
}

impl Kernel {
    pub(super) fn new() -> Kernel {
        let mut kernel = Kernel::default();
        for (hook, family) in Hook::ALL.into_iter().flat_map(|hook| Family::ALL.map(|family| (hook, family))) {
            let chains = kernel.chains.entry((hook.table(), family)).or_default();
            Arc::make_mut(chains).insert(hook.builtin().to_owned(), Vec::new());
        }
        kernel
    }

    pub(super) fn set_mut(&mut self, name: &str) -> &mut IpSet {
        Arc::make_mut(self.sets.get_mut(name).unwrap_or_else(|| panic!("there is no set {name}")))
    }

    /// One line of `ipset restore`.
    pub(super) fn set(&mut self, line: &str) {
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
    pub(super) fn commit(&mut self, family: Family, lines: &[String]) {
        let table = Table::ALL.into_iter().find(|table| lines[0] == format!("*{}", table.name())).unwrap();
        let chains = Arc::make_mut(self.chains.get_mut(&(table, family)).unwrap());
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
                    "-j" | "-g" if value.starts_with("RF") => assert!(chains.contains_key(value), "{rule:?}"),
                    "--match-set" => assert!(self.sets.contains_key(value), "{rule:?}"),
                    _ => {}
                }
            }
        }
    }

    /// What `iptables-save` and `ipset list` would say.
    pub(super) fn stock(&self) -> Stock {
        let listing = |table: Table, chains: &Chains| {
            let mut text = format!("*{}\n", table.name());
            text.extend(chains.keys().map(|chain| format!(":{chain} - [0:0]\n")));
            for (chain, rules) in chains {
                text.extend(rules.iter().map(|rule| format!("-A {chain} {}\n", rule.text)));
            }
            Listing::read(&text, table)
        };
        Stock {
            tables: self.chains.iter().map(|(place, chains)| (*place, listing(place.0, chains))).collect(),
            sets: self.sets.keys().filter(|name| edition_of_set(name).is_some()).cloned().collect(),
        }
    }

    /// Sets and chains in one spelling for all editions, and without what history leaves: the sizes of sets.
    pub(super) fn normal(&self) -> Normal {
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
        let tables = self.chains.iter().map(|(place, inner)| (*place, chains(inner)));
        (sets.collect(), tables.collect())
    }

    /// Judges a packet.
    pub(super) fn judge(&self, packet: Packet) -> Fate {
        self.judge_while(packet, &mut || self)
    }

    /// Judges a packet; `sets` says by which state each time a chain or a set is looked at. A chain that is gone by then is
    /// empty, and lets the packet pass; a set that rules in use ask does not go.
    pub(super) fn judge_while<'a>(&'a self, mut packet: Packet, sets: &mut dyn FnMut() -> &'a Kernel) -> Fate {
        let hooks: &[Hook] = match packet.hook {
            Hook::Forward => &[Hook::Arrival, Hook::Forward],
            Hook::Output => &[Hook::Output],
            Hook::Arrival | Hook::Departure => panic!("not judged there"),
        };
        let fate = hooks.iter().find_map(|hook| self.chain(hook.table(), hook.builtin(), &mut packet, sets));
        fate.unwrap_or(Fate::Passed(packet.mark))
    }

    /// Whether the first packet of a connection is spared what others do to its source.
    pub(super) fn keeps_source(&self, flow: Flow) -> bool {
        let fate = self.chain(Table::Nat, "POSTROUTING", &mut Packet::routed(flow), &mut || self);
        fate == Some(Fate::Accepted)
    }

    pub(super) fn chain<'a>(
        &'a self,
        table: Table,
        chain: &str,
        packet: &mut Packet,
        sets: &mut dyn FnMut() -> &'a Kernel,
    ) -> Option<Fate> {
        let place = &(table, Family::of(packet.flow.source));
        assert!(self.chains[place].contains_key(chain) || sets().chains[place].contains_key(chain), "{chain}");
        for rule in sets().chains[place].get(chain).into_iter().flatten() {
            let target = rule.words.iter().position(|word| matches!(word.as_str(), "-j" | "-g")).unwrap();
            let (matches, target) = rule.words.split_at(target);
            if !self.matches(matches, packet, sets) {
                continue;
            }
            match target[1].as_str() {
                "RETURN" => return None,
                "DROP" => return Some(Fate::Dropped),
                "REJECT" => return Some(Fate::Rejected),
                "ACCEPT" => return Some(Fate::Accepted),
                "MARK" => {
                    assert_eq!(target[2], "--set-xmark");
                    let (value, mask) = hexes(&target[3]);
                    packet.mark = packet.mark & !mask ^ value;
                }
                chain => {
                    let fate = self.chain(table, chain, packet, sets);
                    // Who goes there does not come back.
                    if fate.is_some() || target[0] == "-g" {
                        return fate;
                    }
                }
            }
        }
        None
    }

    pub(super) fn matches<'a>(
        &'a self,
        words: &[String],
        packet: &Packet,
        sets: &mut dyn FnMut() -> &'a Kernel,
    ) -> bool {
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
                ("-m", "rpfilter") => packet.traced,
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
                ("--dst-type", "LOCAL") => packet.local && flow.source == flow.destination,
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

pub(super) fn contains(set: &IpSet, ends: &str, flow: Flow) -> bool {
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

pub(super) fn protocol_of(name: &str) -> Protocol {
    match name {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => panic!("{name}"),
    }
}

pub(super) fn hexes(text: &str) -> (u32, u32) {
    let hex = |text: &str| u32::from_str_radix(text.strip_prefix("0x").unwrap(), 16).unwrap();
    let (value, mask) = text.split_once('/').unwrap();
    (hex(value), hex(mask))
}

/// The words of a rule; what is in quotes is one word.
pub(super) fn words_of(rule: &str) -> Vec<String> {
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
