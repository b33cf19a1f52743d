//! How an access control list is laid out in chains, rules and sets, for each family.
//!
//! ```text
//! FORWARD ─► RF-FORWARD ─┬─► NS-EG ─► POL-EG ─► RULE-EG …      egress: the pod is the source
//! OUTPUT  ─► RF-OUTPUT  ─┴─► NS-IN ─► POL-IN ─► RULE-IN …      ingress: the pod is the destination
//! ```
//!
//! What the node itself sends goes through `RFn-OWN`, when pods of other nodes are judged here. What other nodes have
//! judged is told by two chains: `RF-ORIGIN` in the mangle table marks packets that claim the address of another node and
//! come from where that is, which can only be asked before a route was sought for them; `RF-FORWARD` takes the mark for that,
//! lets what it believes go, and clears it. `RF-POSTROUTING` in the nat table is where pods keep their addresses.
//!
//! Yes is *return*, no is a terminal verdict. So one direction's yes never ends the other direction's check, and rules of
//! others still count after ours. A rule chain returns in any case, and says yes by one bit of the packet's mark:
//! matches of iptables are a conjunction, so "one of these entries" needs either a chain of its own or a verdict that
//! could not be taken back. Every namespace chain clears the bit first and last, so it is clear when a packet that was judged
//! leaves us; packets that are not judged are not touched.
//!
//! Where ranges are guarded, the first question is whether an end in one of them is known (`RFn-UNKNOWN-*`).
//!
//! A rule has one line for each combination of peers and ports. Who is selected, who the peers are and who serves a
//! named port is in sets: pods come and go without a rule being written.
//!
//! [`Acl::eval`] says yes to the node's own addresses, for pods of this node. Here the hook says it: what the node sends has a
//! local source in `OUTPUT`, and what it receives passes `INPUT`, where we do nothing. [`Acl::eval`] also says yes to a pod that reaches
//! its own address; here that takes a translated destination, as it has who comes through a Service.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use ringfence_compile::acl::{Acl, AclEntry, AclNamespace, AclPeers, AclPolicy, AclPorts, Members, SetId, SetRole};
use ringfence_model::{Direction, Family, PortRange};

use super::IptablesOptions;
use super::abilities::Abilities;
use super::members::{self, protocol_name};
use super::name::{Edition, Hook, Names, Table};
use super::reach;
use crate::nft::DenyAction;

/// iptables keeps so many bytes of a comment.
const COMMENT: usize = 255;

/// Lets packets of open connections pass.
pub(super) const OPEN: &str = "-m conntrack --ctstate ESTABLISHED -j RETURN";

/// Drops what connection tracking cannot place, before the refusal: a reset would end the open connection that a late or
/// damaged packet belongs to.
const INVALID: &str = "-m conntrack --ctstate INVALID -j DROP";

/// A chain and its rules, as iptables-save prints them: what is written can be compared with what is listed.
pub(super) type Chain = (String, Vec<String>);

/// A list, and how to write it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout<'a> {
    pub(super) acl: &'a Acl,
    pub(super) options: &'a IptablesOptions,
    pub(super) edition: Edition,
    /// What the kernel can do.
    pub(super) can: Abilities,
}

/// A set of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) name: String,
    pub(super) family: Family,
    pub(super) set_type: &'static str,
    pub(super) elements: Vec<String>,
}

impl Set {
    /// The line that creates it with room for `capacity` elements.
    pub(super) fn create(&self, capacity: usize) -> String {
        let Set { name, set_type, .. } = self;
        let family = match self.family {
            Family::V4 => "inet",
            Family::V6 => "inet6",
        };
        format!("create {name} {set_type} family {family} hashsize {} maxelem {capacity}", (capacity / 4).max(64))
    }

    /// The lines that add its elements.
    pub(super) fn fill(&self) -> impl Iterator<Item = String> {
        self.elements.iter().map(|element| format!("add {} {element}", self.name))
    }
}

impl<'a> Layout<'a> {
    /// What chains and sets are for, by name, in the words of those who wrote the policies.
    pub(super) fn legend(self, family: Family) -> BTreeMap<String, String> {
        let mut legend = BTreeMap::from([
            (self.names().range(family), "peers that policies are about".to_owned()),
            (self.names().hold(family), "whose refusals are silent, while an update takes and gives rights".to_owned()),
        ]);
        for (chain, meaning) in [
            (self.names().own(), "what the node itself sends"),
            (self.names().believed(), "what other nodes have judged"),
            (Hook::Arrival.chain().to_owned(), "mark what claims another node's address and comes from where that is"),
            (Hook::Departure.chain().to_owned(), "let go with the addresses of pods"),
            (self.names().kept(family), "networks that see the addresses of pods"),
        ] {
            legend.insert(chain, meaning.to_owned());
        }
        for (id, set) in &self.acl.sets {
            let role = match set.role {
                SetRole::Isolated => "isolated pods",
                SetRole::Selected => "selected pods",
                SetRole::Peers => "peers",
                SetRole::Serving => "ports of a name",
                SetRole::Known => "guarded ranges",
                SetRole::Local => "from this node",
                SetRole::Nodes => "other nodes",
                SetRole::Believed => "judged by other nodes",
            };
            legend.insert(self.names().set(set.role, family, *id), format!("{role}: {}", set.origin));
        }
        for direction in Direction::ALL {
            legend.insert(self.names().unknown(direction), format!("guarded ranges, {direction}"));
            for (name, namespace) in self.acl.side(direction) {
                legend.insert(self.names().namespace(direction, name), format!("namespace {name}, {direction}"));
                legend.insert(self.names().policies(direction, name), format!("policies of {name}, {direction}"));
                for policy in &namespace.policies {
                    for rule in 0..policy.rules.len() {
                        let chain = self.names().rule(direction, name, &policy.name, rule);
                        legend.insert(chain, format!("{name}/{}, {direction} rule {}", policy.name, rule + 1));
                    }
                }
            }
        }
        legend
    }

    pub(super) fn names(self) -> Names {
        Names(self.edition)
    }

    /// All sets of a family.
    pub(super) fn sets(self, family: Family) -> Vec<Set> {
        let fixed = |name, elements| Set { name, family, set_type: "hash:net", elements };
        let mut sets =
            vec![fixed(self.names().range(family), self.range(family)), fixed(self.names().hold(family), Vec::new())];
        if self.hooks(Table::Nat, family) == [Hook::Departure] {
            sets.push(fixed(self.names().kept(family), members::networks(&self.acl.reach.unmasqueraded, &[], family)));
        }
        sets.extend(self.acl.sets.keys().filter_map(|id| self.set(*id, family)));
        sets
    }

    /// A set of the list, if the family has it.
    pub(super) fn set(self, id: SetId, family: Family) -> Option<Set> {
        let set = self.acl.sets.get(&id).filter(|set| members::exists(&set.members, family))?;
        Some(Set {
            name: self.names().set(set.role, family, id),
            family,
            set_type: members::set_type(&set.members),
            elements: members::elements(&set.members, family),
        })
    }

    fn range(self, family: Family) -> Vec<String> {
        let range = &self.options.pod_ip_range;
        if range.iter().any(|network| Family::of(network.addr()) == family) {
            members::networks(range, &[], family)
        } else {
            members::networks(&[members::everything(family)], &[], family)
        }
    }

    /// All chains of the filter table of a family, callers before those they call.
    pub(super) fn chains(self, family: Family) -> Vec<Chain> {
        let mut chains = self.entrances(family);
        for direction in [Direction::Egress, Direction::Ingress] {
            chains.extend(self.unknown(direction, family));
            for (name, namespace) in self.acl.side(direction) {
                chains.extend(self.namespace(direction, name, namespace, family));
            }
        }
        chains
    }

    /// The chains of the filter table that lead to namespaces, and what they lead to before.
    pub(super) fn entrances(self, family: Family) -> Vec<Chain> {
        let hooks = [Hook::Forward, Hook::Output];
        let hooks = hooks.into_iter().map(|hook| (hook.chain().to_owned(), self.hook(hook, family)));
        hooks.chain(self.own(family)).chain(self.believed_chain(family)).collect()
    }

    /// The chain that a built-in chain of the filter table leads to.
    fn hook(self, hook: Hook, family: Family) -> Vec<String> {
        // Also in the chain of policies, where the decision belongs. Here it spares open connections the question in which
        // namespace they are, asked set by set.
        let mut rules = vec![OPEN.to_owned()];
        if hook == Hook::Output {
            rules.extend(self.own_or_not(family));
            // The reset of a refusal is sent in the name of the other end, and belongs to no open connection.
            let reset = "-p tcp -m conntrack --ctstate RELATED -m tcp --tcp-flags RST RST -j RETURN";
            rules.push(reset.to_owned());
        }
        for direction in [Direction::Egress, Direction::Ingress] {
            let chain = self.names().unknown(direction);
            rules.extend(self.guarded(family).map(|range| format!("{}-j {chain}", within(direction, range))));
        }
        rules.extend(self.trust(hook, family));
        if self.can.compare() {
            rules.push(reaches_itself(family));
        }
        for direction in [Direction::Egress, Direction::Ingress] {
            rules.extend(self.namespaces(direction, family));
        }
        rules
    }

    /// What leads to the namespaces of a direction.
    pub(super) fn namespaces(self, direction: Direction, family: Family) -> impl Iterator<Item = String> + use<'a> {
        self.acl.side(direction).iter().filter_map(move |(name, namespace)| {
            let isolated = self.address_set(namespace.isolated, family)?;
            let chain = self.names().namespace(direction, name);
            let comment = comment(&format!("{name} {direction}"));
            let end = subject(direction);
            Some(format!("-m set --match-set {isolated} {end} -m comment --comment {comment} -j {chain}"))
        })
    }

    /// The chain for the addresses of guarded ranges, if there are any in this family.
    fn unknown(self, direction: Direction, family: Family) -> Option<Chain> {
        self.guarded(family).next()?;
        let names = self.names();
        let known = self.address_set(self.acl.guard.as_ref()?.known, family)?;
        let mut rules = vec![
            format!("-m set --match-set {known} {} -j RETURN", subject(direction)),
            format!("-m set ! --match-set {} {} -j RETURN", names.range(family), peer(direction)),
        ];
        rules.extend(open(family));
        rules.extend(self.refuse(direction, family));
        Some((names.unknown(direction), rules))
    }

    /// The guarded ranges of a family.
    fn guarded(self, family: Family) -> impl Iterator<Item = IpNet> {
        let ranges = self.acl.guard.iter().flat_map(|guard| guard.ranges.iter().copied());
        ranges.filter(move |range| Family::of(range.addr()) == family)
    }

    /// The chains of a namespace in one direction.
    pub(super) fn namespace(
        self,
        direction: Direction,
        name: &str,
        namespace: &AclNamespace,
        family: Family,
    ) -> Vec<Chain> {
        let (names, peer) = (self.names(), peer(direction));
        let policies = names.policies(direction, name);
        let in_range = format!("-m set --match-set {} {peer} -j {policies}", names.range(family));
        let mut chains = vec![(names.namespace(direction, name), vec![self.clear(), in_range, self.clear()])];
        let mut rules = open(family);
        let mut rule_chains = Vec::new();
        for policy in &namespace.policies {
            for (chain, lines) in self.policy(direction, name, policy, family) {
                rules.push(format!("-j {chain}"));
                rules.push(format!("-m mark --mark {0:#x}/{0:#x} -j RETURN", self.options.mark.bits()));
                rule_chains.push((chain, lines));
            }
        }
        rules.extend(self.refuse(direction, family));
        chains.push((policies, rules));
        chains.extend(rule_chains);
        chains
    }

    /// The chains of a policy, one for each of its rules.
    pub(super) fn policy(
        self,
        direction: Direction,
        namespace: &str,
        policy: &AclPolicy,
        family: Family,
    ) -> Vec<Chain> {
        let rules = policy.rules.iter().enumerate().map(|(index, rule)| {
            let comment = comment(&format!("{namespace}/{} rule {}", policy.name, index + 1));
            let lines = rule.entries.iter().filter_map(|entry| self.entry(direction, policy, entry, &comment, family));
            (self.names().rule(direction, namespace, &policy.name, index), lines.collect())
        });
        rules.collect()
    }

    /// Marks what an entry admits. Nothing, when the entry cannot match in this family.
    fn entry(
        self,
        direction: Direction,
        policy: &AclPolicy,
        entry: &AclEntry,
        comment: &str,
        family: Family,
    ) -> Option<String> {
        let selected = self.address_set(policy.selected, family)?;
        let mut rule = String::new();
        if let AclPorts::Range(range) = entry.ports {
            rule.push_str(&format!("-p {} ", protocol_name(range.protocol)));
        }
        rule.push_str(&format!("-m set --match-set {selected} {} ", subject(direction)));
        if let AclPeers::Set(id) = entry.peers {
            rule.push_str(&format!("-m set --match-set {} {} ", self.address_set(id, family)?, peer(direction)));
        }
        match entry.ports {
            AclPorts::Range(range) if range.ports != PortRange::ALL => {
                let PortRange { first, last } = range.ports;
                let ports = if first == last { first.to_string() } else { format!("{first}:{last}") };
                rule.push_str(&format!("-m {} --dport {ports} ", protocol_name(range.protocol)));
            }
            AclPorts::Serving(id) => {
                rule.push_str(&format!("-m set --match-set {} dst,dst ", self.endpoint_set(id, family)?));
            }
            AclPorts::Any | AclPorts::Range(_) => {}
        }
        rule.push_str(&format!(
            "-m comment --comment {comment} -j MARK --set-xmark {0:#x}/{0:#x}",
            self.options.mark.bits()
        ));
        Some(rule)
    }

    pub(super) fn address_set(self, id: SetId, family: Family) -> Option<String> {
        let set = self.acl.sets.get(&id).filter(|set| members::exists(&set.members, family))?;
        (!matches!(set.members, Members::Endpoints(_))).then(|| self.names().set(set.role, family, id))
    }

    pub(super) fn endpoint_set(self, id: SetId, family: Family) -> Option<String> {
        let set = self.acl.sets.get(&id)?;
        matches!(set.members, Members::Endpoints(_)).then(|| self.names().set(set.role, family, id))
    }

    pub(super) fn clear(self) -> String {
        format!("-j MARK --set-xmark 0x0/{:#x}", self.options.mark.bits())
    }

    /// Refuses, aloud or not. A packet does not come back from these rules.
    fn refuse(self, direction: Direction, family: Family) -> Vec<String> {
        let hold = format!("-m set --match-set {} {} -j DROP", self.names().hold(family), peer(direction));
        let mut rules = vec![INVALID.to_owned(), hold];
        let answers: &[&str] = match (self.options.deny, family) {
            (DenyAction::Drop, _) => &["-j DROP"],
            (DenyAction::Reject, Family::V4) => {
                &["-p tcp -j REJECT --reject-with tcp-reset", "-j REJECT --reject-with icmp-admin-prohibited"]
            }
            (DenyAction::Reject, Family::V6) => {
                &["-p tcp -j REJECT --reject-with tcp-reset", "-j REJECT --reject-with icmp6-adm-prohibited"]
            }
        };
        rules.extend(answers.iter().map(|rule| (*rule).to_owned()));
        rules
    }
}

/// What passes whatever the policies say: open connections, errors about them, and for IPv6 neighbour discovery.
///
/// What a helper expects is related to an open connection too, and nobody allowed it. Hence errors only.
fn open(family: Family) -> Vec<String> {
    let mut rules = vec![OPEN.to_owned()];
    match family {
        Family::V4 => rules.push("-p icmp -m conntrack --ctstate RELATED -j RETURN".to_owned()),
        Family::V6 => {
            rules.push("-p ipv6-icmp -m conntrack --ctstate RELATED -j RETURN".to_owned());
            rules.extend((133..=136).map(|kind| format!("-p ipv6-icmp -m icmp6 --icmpv6-type {kind} -j RETURN")));
        }
    }
    rules
}

/// Whether the pod's address is in a network, as iptables says it: not at all, when every address is.
fn within(direction: Direction, network: IpNet) -> String {
    let option = match direction {
        Direction::Ingress => "-d",
        Direction::Egress => "-s",
    };
    if network.prefix_len() == 0 { String::new() } else { format!("{option} {network} ") }
}

/// Where the pod is in a packet, as `-m set` says it.
fn subject(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "dst",
        Direction::Egress => "src",
    }
}

/// Where the other end is.
fn peer(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "src",
        Direction::Egress => "dst",
    }
}

/// Lets a pod reach its own address through a Service.
pub(super) fn reaches_itself(family: Family) -> String {
    format!("-m conntrack --ctstate DNAT -m bpf --bytecode \"{}\" -j RETURN", same_address(family))
}

/// Classic BPF that is true of packets whose two addresses are the same, word by word: load a word of the source, keep
/// it, load that of the destination, go on if they are equal. No match of iptables compares addresses with each other.
fn same_address(family: Family) -> String {
    let (source, destination, words) = match family {
        Family::V4 => (12, 16, 1),
        Family::V6 => (8, 24, 4),
    };
    let mut program = vec![format!("{}", 4 * words + 2)];
    for word in 0..words {
        // To the last instruction, which says no.
        let no = 4 * (words - word - 1) + 1;
        program.push(format!("32 0 0 {}", source + 4 * word));
        program.push("7 0 0 0".to_owned());
        program.push(format!("32 0 0 {}", destination + 4 * word));
        program.push(format!("29 0 {no} 0"));
    }
    program.extend(["6 0 0 1".to_owned(), "6 0 0 0".to_owned()]);
    program.join(",")
}

/// A quoted comment. Names in Kubernetes need neither the replacing nor the escapes; nothing here relies on that.
fn comment(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars().take(COMMENT) {
        match character {
            '"' | '\\' | '\'' => quoted.extend(['\\', character]),
            ' '..='~' => quoted.push(character),
            _ => quoted.push('?'),
        }
    }
    quoted.push('"');
    quoted
}

/// The list with some policies allowing nothing: whom they select stays isolated. Sets that nothing else refers to are
/// left out.
pub(super) fn without(acl: &Acl, closed: impl Fn(&str, &str) -> bool) -> Acl {
    let mut acl = acl.clone();
    let mut used: BTreeSet<SetId> = acl.guard.iter().map(|guard| guard.known).collect();
    used.extend(reach::sets(&acl.reach));
    for side in [&mut acl.ingress, &mut acl.egress] {
        for (name, mut shared) in side.clone() {
            let namespace = Arc::make_mut(&mut shared);
            used.insert(namespace.isolated);
            for policy in &mut namespace.policies {
                if closed(&name, &policy.name) {
                    Arc::make_mut(policy).rules.clear();
                } else {
                    used.extend(policy_sets(policy));
                }
            }
            side.insert(name, shared);
        }
    }
    acl.sets = acl.sets.into_iter().filter(|(id, _)| used.contains(id)).collect();
    acl
}

/// The sets that a policy refers to, again and again if it does.
pub(super) fn policy_sets(policy: &AclPolicy) -> impl Iterator<Item = SetId> {
    let entries = policy.rules.iter().flat_map(|rule| &rule.entries);
    let of_entries = entries.flat_map(|entry| {
        let peers = if let AclPeers::Set(id) = entry.peers { Some(id) } else { None };
        let ports = if let AclPorts::Serving(id) = entry.ports { Some(id) } else { None };
        peers.into_iter().chain(ports)
    });
    of_entries.chain([policy.selected])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_quoted_and_cut() {
        assert_eq!(comment("a/b rule 1"), "\"a/b rule 1\"");
        assert_eq!(comment("\"\\\n\u{e9}"), "\"\\\"\\\\??\"");
        assert_eq!(comment(&"a".repeat(300)).len(), COMMENT + 2);
    }

    /// Runs the program as the kernel would.
    fn runs(program: &str, header: &[u8]) -> bool {
        let instructions: Vec<Vec<usize>> =
            program.split(',').skip(1).map(|one| one.split(' ').map(|n| n.parse().unwrap()).collect()).collect();
        assert_eq!(program.split(',').next().unwrap(), instructions.len().to_string());
        let (mut a, mut x, mut at) = (0, 0, 0);
        loop {
            let &[code, yes, no, k] = instructions[at].as_slice() else { panic!("{program}") };
            at += 1;
            match code {
                32 => a = u32::from_be_bytes(header[k..k + 4].try_into().unwrap()),
                7 => x = a,
                29 => at += if a == x { yes } else { no },
                6 => return k > 0,
                _ => panic!("{program}"),
            }
        }
    }

    #[test]
    fn the_same_address_in_every_word() {
        for (family, source, length) in [(Family::V4, 12, 4), (Family::V6, 8, 16)] {
            let program = same_address(family);
            let mut header = [0_u8; 40];
            header[..8].fill(9);
            for byte in 0..length {
                header[source + byte] = 1;
                assert!(!runs(&program, &header), "{family:?} {byte}");
                header[source + length + byte] = 1;
                assert!(runs(&program, &header), "{family:?} {byte}");
            }
        }
    }
}
