//! The judgement.

use std::collections::{BTreeMap, BTreeSet};

use crate::facts::{Facts, Family, ModuleState, Reading, Variant};
use crate::masquerade::{self, PodRange};
use crate::preflight::{nftables, policy_agents, rbac, trial, xtables_lock};
use crate::save::{self, Rule, Table, Tables};
use crate::sources::{masquerade_all, nodeport_snat, other_clusters, pod_masquerade};
use crate::{Finding, Severity};

/// What would make policies fail on a host of which `facts` are known, check by check in the order of
/// [`CHECKS`](crate::CHECKS).
pub fn examine(facts: &Facts) -> Vec<Finding> {
    let host = Host::new(facts);
    let checks: [fn(&Host<'_>) -> Vec<Finding>; 17] = [
        bridge_netfilter,
        pod_masquerade,
        masquerade_all,
        nodeport_snat,
        other_clusters,
        ip_forward,
        iptables_variants,
        tools,
        nftables,
        trial,
        xtables_lock,
        policy_agents,
        leftovers,
        jump_position,
        conntrack,
        rbac,
        unreadable,
    ];
    checks.iter().flat_map(|check| check(&host)).collect()
}

/// The facts, with the rules read.
pub(crate) struct Host<'a> {
    pub(crate) facts: &'a Facts,
    rulesets: BTreeMap<(Variant, Family), Tables>,
}

impl<'a> Host<'a> {
    fn new(facts: &'a Facts) -> Host<'a> {
        let found = facts.rulesets.iter().filter_map(|ruleset| Some((ruleset, ruleset.saved.found()?)));
        let rulesets = found.map(|(ruleset, saved)| ((ruleset.variant, ruleset.family), save::parse(saved)));
        Host { facts, rulesets: rulesets.collect() }
    }

    /// The tables called `name`, each with whose it is.
    pub(crate) fn tables(&self, name: &str) -> impl Iterator<Item = (Variant, Family, &Table)> {
        let tables = self.rulesets.iter().map(move |(key, tables)| (key, tables.get(name)));
        tables.filter_map(|(&(variant, family), table)| Some((variant, family, table?)))
    }

    /// The chains of all tables that `wanted` applies to.
    pub(crate) fn chains(&self, variant: Variant, family: Family, wanted: impl Fn(&str) -> bool) -> Vec<&str> {
        let tables = self.rulesets.get(&(variant, family)).into_iter().flat_map(BTreeMap::values);
        let names: BTreeSet<&str> = tables.flat_map(BTreeMap::keys).map(String::as_str).collect();
        names.into_iter().filter(|name| wanted(name)).collect()
    }

    /// The ranges pods are known or guessed to have addresses from, in groups whose members talk to each other.
    pub(crate) fn pod_ranges(&self, family: Family) -> Vec<Vec<PodRange>> {
        if self.facts.pod_cidrs.is_empty() {
            let tables: Vec<&Table> =
                self.tables("nat").filter(|(_, of, _)| *of == family).map(|(_, _, table)| table).collect();
            return masquerade::guess(&tables, self.facts.routes.found().map_or(&[], Vec::as_slice), family);
        }
        let given = self.facts.pod_cidrs.iter().filter(|net| Family::of(net) == family);
        let group: Vec<PodRange> = given.map(|&net| PodRange { net, certain: true }).collect();
        if group.is_empty() { Vec::new() } else { vec![group] }
    }

    /// Pods certainly have addresses of this family.
    fn has_pods(&self, family: Family) -> bool {
        self.pod_ranges(family).iter().flatten().any(|range| range.certain)
    }
}

fn bridge_netfilter(host: &Host<'_>) -> Vec<Finding> {
    let bridges = host.facts.bridges.found().map_or(&[][..], Vec::as_slice);
    let mut findings = Vec::new();
    for family in Family::ALL {
        let (setting, value, protocol, certain) = match family {
            Family::V4 => ("bridge-nf-call-iptables", &host.facts.bridge_nf_call_iptables, "IPv4", true),
            Family::V6 => {
                let certain = host.has_pods(Family::V6);
                ("bridge-nf-call-ip6tables", &host.facts.bridge_nf_call_ip6tables, "IPv6", certain)
            }
        };
        let state = match value {
            Reading::Found(0) => format!("net.bridge.{setting} is 0"),
            Reading::Absent => format!("net.bridge.{setting} does not exist: the module br_netfilter is not loaded"),
            Reading::Found(_) | Reading::Unreadable(_) => continue,
        };
        let open: Vec<String> = bridges
            .iter()
            .filter(|bridge| !bridge.ports.is_empty())
            .filter(|bridge| {
                let of_its_own = if family == Family::V4 { bridge.filters_ipv4 } else { bridge.filters_ipv6 };
                // Without the module a bridge filters nothing.
                *value == Reading::Absent || !of_its_own
            })
            .map(|bridge| format!("{} ({})", bridge.name, few(&bridge.ports)))
            .collect();
        if open.is_empty() {
            continue;
        }
        findings.push(Finding {
            id: "bridge-netfilter",
            severity: if certain { Severity::Problem } else { Severity::Warning },
            what: format!("{protocol} packets between ports of a bridge bypass the packet filter: {}", open.join(", ")),
            why: "policies between pods that are attached to the same bridge are not enforced".to_owned(),
            remedy: format!(
                "modprobe br_netfilter && sysctl -w net.bridge.{setting}=1; to keep it after a reboot, write \
                 br_netfilter into /etc/modules-load.d/ringfence.conf and net.bridge.{setting}=1 into \
                 /etc/sysctl.d/99-ringfence.conf"
            ),
            evidence: Some(state),
        });
    }
    findings
}

fn ip_forward(host: &Host<'_>) -> Vec<Finding> {
    let off = |setting: &str, family: &str| Finding {
        id: "ip-forward",
        severity: Severity::Problem,
        what: format!("this host does not forward {family} packets"),
        why: "its pods reach nobody but each other, whatever policies say".to_owned(),
        remedy: format!(
            "sysctl -w {setting}=1; to keep it after a reboot, write {setting}=1 into /etc/sysctl.d/99-ringfence.conf"
        ),
        evidence: Some(format!("{setting} is 0")),
    };
    let mut findings = Vec::new();
    if host.facts.ip_forward == Reading::Found(0) {
        findings.push(off("net.ipv4.ip_forward", "IPv4"));
    }
    if host.facts.ip6_forwarding == Reading::Found(0) && host.has_pods(Family::V6) {
        findings.push(off("net.ipv6.conf.all.forwarding", "IPv6"));
    }
    findings
}

fn iptables_variants(host: &Host<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for family in Family::ALL {
        let rules = |variant| {
            let tables = host.rulesets.get(&(variant, family)).into_iter().flat_map(BTreeMap::values);
            tables.flat_map(BTreeMap::values).map(Vec::len).sum::<usize>()
        };
        let kube = |variant: Variant| host.chains(variant, family, |name| name.starts_with("KUBE-"));
        let mut found = |severity, what: String, why: &str, remedy: String, evidence: String| {
            let (why, evidence) = (why.to_owned(), Some(evidence));
            findings.push(Finding { id: "iptables-variants", severity, what, why, remedy, evidence });
        };
        if Variant::ALL.iter().all(|&variant| !host.chains(variant, family, is_our_chain).is_empty()) {
            found(
                Severity::Problem,
                format!("rules of ringfence are in both {}", both(family)),
                "the kernel asks both, and the rules of one of them are not kept up to date any more",
                "ringfence cleanup --backend iptables removes them from both; start ringfence again after it"
                    .to_owned(),
                format!("{}, {}", few(&host.chains(Variant::Nft, family, is_our_chain)), both(family)),
            );
        }
        let used: Vec<Variant> = Variant::ALL.into_iter().filter(|&variant| !kube(variant).is_empty()).collect();
        if let [Variant::Nft, Variant::Legacy] = used[..] {
            found(
                Severity::Warning,
                format!("Kubernetes has chains in both {}", both(family)),
                "rules of one of them may be left from before, and still rewrite and accept packets",
                "let kubelet and kube-proxy use the same variant, and reboot the node or flush the other one"
                    .to_owned(),
                Variant::ALL.map(|variant| format!("{}: {}", name(variant, family), few(&kube(variant)))).join("; "),
            );
        }
        let [variant] = used[..] else { continue };
        let hints = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY", "KUBE-PROXY-CANARY"];
        let mut seen: Vec<&str> = kube(variant).into_iter().filter(|chain| hints.contains(chain)).collect();
        if seen.is_empty() {
            seen = kube(variant);
        }
        let ours = host.chains(variant.other(), family, is_our_chain);
        if !ours.is_empty() && host.chains(variant, family, is_our_chain).is_empty() {
            found(
                Severity::Warning,
                format!(
                    "kubelet and kube-proxy use {}, the rules of ringfence are in {}",
                    name(variant, family),
                    name(variant.other(), family)
                ),
                "the kernel asks both, but nobody who looks at one sees the other; rules of an earlier run may be left",
                "ringfence cleanup --backend iptables removes them from both; started again after it, ringfence uses what \
                 kubelet uses"
                    .to_owned(),
                format!("{}: {}; {}: {}", name(variant, family), few(&seen), name(variant.other(), family), few(&ours)),
            );
        } else if rules(variant.other()) > 0 {
            found(
                Severity::Warning,
                format!(
                    "kubelet and kube-proxy use {}, but {} has rules too",
                    name(variant, family),
                    name(variant.other(), family)
                ),
                "the kernel asks both: a packet that one of them accepts may be dropped or rewritten by the other",
                format!("find out who writes to {} and let it use the same variant", name(variant.other(), family)),
                format!("{}: {}; {} rules in the other", name(variant, family), few(&seen), rules(variant.other())),
            );
        }
        if family == Family::V4 && host.facts.iptables_variant == Reading::Found(variant.other()) {
            found(
                Severity::Note,
                format!(
                    "kubelet and kube-proxy use {}, the command iptables is {}",
                    name(variant, family),
                    name(variant.other(), family)
                ),
                "ringfence follows Kubernetes; other programs that call iptables do not, and the kernel asks both",
                format!("update-alternatives --set iptables /usr/sbin/{}", name(variant, family)),
                format!("{}: {}", name(variant, family), few(&seen)),
            );
        }
    }
    findings
}

fn tools(host: &Host<'_>) -> Vec<Finding> {
    let programs = host.facts.tools.iter().filter(|tool| tool.path.is_none()).map(|tool| tool.name);
    let modules = host.facts.modules.iter().filter(|module| module.state == ModuleState::Missing);
    let missing: Vec<String> = programs
        .map(|program| format!("the command {program}"))
        .chain(modules.map(|module| format!("the kernel module {}", module.name)))
        .collect();
    if missing.is_empty() {
        return Vec::new();
    }
    vec![Finding {
        id: "tools",
        severity: Severity::Note,
        what: format!("missing: {}", missing.join(", ")),
        why: "--backend iptables needs all of them; --backend nftables needs none".to_owned(),
        remedy: "install the packages iptables and ipset, and the modules package of the running kernel".to_owned(),
        evidence: None,
    }]
}

fn leftovers(host: &Host<'_>) -> Vec<Finding> {
    let chains: BTreeSet<&str> = Variant::ALL
        .into_iter()
        .flat_map(|variant| Family::ALL.map(|family| (variant, family)))
        .flat_map(|(variant, family)| host.chains(variant, family, is_our_chain))
        .collect();
    let chains: Vec<&str> = chains.into_iter().collect();
    let sets = host.facts.ipsets.found().into_iter().flatten();
    let sets: Vec<&str> = sets.map(String::as_str).filter(|name| is_our_set(name)).collect();
    let table = host.facts.nftables_table == Reading::Found(());
    let finding = |what: &str, why: &str, remedy: &str, evidence: Vec<&str>| {
        vec![Finding {
            id: "leftovers",
            severity: Severity::Warning,
            what: what.to_owned(),
            why: why.to_owned(),
            remedy: remedy.to_owned(),
            evidence: Some(few(&evidence)),
        }]
    };
    match (table, !chains.is_empty(), !sets.is_empty()) {
        (true, true, _) | (true, _, true) => finding(
            "objects of both the nftables and the iptables backend are there",
            "the kernel asks both; those of the backend that does not run are not kept up to date and forbid what \
             policies allow now",
            "ringfence cleanup --backend iptables if nftables is the one in use, ringfence cleanup --backend nftables if \
             iptables is",
            [&["table inet ringfence"][..], &chains, &sets].concat(),
        ),
        (false, false, true) => finding(
            "IP sets of ringfence are there, but no rules that use them",
            "they take memory and do nothing",
            "ringfence cleanup --backend iptables",
            sets,
        ),
        (_, _, false) | (false, true, true) => Vec::new(),
    }
}

fn jump_position(host: &Host<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (variant, family, table) in host.tables("filter") {
        for (chain, ours) in [("FORWARD", "RF-FORWARD"), ("OUTPUT", "RF-OUTPUT")] {
            if !table.contains_key(ours) {
                continue;
            }
            let rules = table.get(chain).map_or(&[][..], Vec::as_slice);
            let position = rules.iter().position(|rule| rule.target_name() == ours);
            let before = rules.get(..position.unwrap_or(rules.len())).unwrap_or_default();
            let accepting = before.iter().find(|rule| may_accept(table, rule));
            let place = format!("chain {chain} of {}", name(variant, family));
            let (severity, what) = match (position, accepting) {
                (Some(0), _) => continue,
                (None, _) => (Severity::Problem, format!("{place} does not lead to {ours}")),
                (_, Some(_)) => (Severity::Problem, format!("rules of {place} accept packets before {ours} is asked")),
                (_, None) => (Severity::Note, format!("rules of {place} come before {ours}, none of them accepts")),
            };
            findings.push(Finding {
                id: "jump-position",
                severity,
                what,
                why: match position {
                    Some(_) => "what another rule accepts, no policy can forbid".to_owned(),
                    None => "no policy is enforced there".to_owned(),
                },
                remedy: "ringfence puts its jump first when it starts; whoever inserts rules before it later must not \
                         do so, or start before ringfence does"
                    .to_owned(),
                evidence: accepting.or(before.first()).map(|rule| rule.text.clone()),
            });
        }
    }
    findings
}

/// The rule is for packets of connections that have passed all rules before. Ours lets them pass as well.
fn of_open_connections(rule: &Rule) -> bool {
    let states = rule.option("--ctstate").or(rule.option("--state")).filter(|states| !states.negated);
    states.is_some_and(|states| states.value().split(',').all(|state| matches!(state, "RELATED" | "ESTABLISHED")))
}

/// The rule accepts new connections, or leads to one that does.
fn may_accept(table: &Table, rule: &Rule) -> bool {
    let mut seen = BTreeSet::new();
    let mut open = vec![rule];
    while let Some(rule) = open.pop() {
        let target = rule.target_name();
        if target == "ACCEPT" && !of_open_connections(rule) {
            return true;
        }
        // Our own chain accepts what policies allow.
        if !is_our_chain(target) && seen.insert(target) {
            open.extend(table.get(target).into_iter().flatten());
        }
    }
    false
}

fn conntrack(host: &Host<'_>) -> Vec<Finding> {
    let (Reading::Found(count), Reading::Found(max)) = (&host.facts.conntrack_count, &host.facts.conntrack_max) else {
        return Vec::new();
    };
    // No limit is written as 0.
    if *max == 0 || u128::from(*count) * 10 <= u128::from(*max) * 9 {
        return Vec::new();
    }
    vec![Finding {
        id: "conntrack",
        severity: Severity::Warning,
        what: format!("the connection table is nearly full: {count} of {max}"),
        why: "when it is full, new connections are dropped, whatever policies say".to_owned(),
        remedy: "raise net.netfilter.nf_conntrack_max (kube-proxy: --conntrack-max-per-core)".to_owned(),
        evidence: Some(format!("net.netfilter.nf_conntrack_count is {count}")),
    }]
}

fn unreadable(host: &Host<'_>) -> Vec<Finding> {
    let facts = host.facts;
    fn reason<'a, T>(what: &str, reading: &'a Reading<T>) -> Option<(String, &'a str)> {
        match reading {
            Reading::Unreadable(reason) => Some((what.to_owned(), reason)),
            Reading::Found(_) | Reading::Absent => None,
        }
    }
    let rulesets = facts.rulesets.iter().filter_map(|ruleset| {
        reason(&format!("the rules of {}", name(ruleset.variant, ruleset.family)), &ruleset.saved)
    });
    // Tables that iptables shares with rules it cannot print, which nft wrote.
    let tables = facts.rulesets.iter().flat_map(|ruleset| {
        let lines = ruleset.saved.found().into_iter().flat_map(|saved| saved.lines());
        let complaints = lines.filter(|line| line.starts_with("# Table") && line.contains("incompatible"));
        complaints.map(|line| (format!("a table of {}", name(ruleset.variant, ruleset.family)), line))
    });
    [
        reason("net.bridge.bridge-nf-call-iptables", &facts.bridge_nf_call_iptables),
        reason("net.bridge.bridge-nf-call-ip6tables", &facts.bridge_nf_call_ip6tables),
        reason("net.ipv4.ip_forward", &facts.ip_forward),
        reason("net.ipv6.conf.all.forwarding", &facts.ip6_forwarding),
        reason("net.netfilter.nf_conntrack_count", &facts.conntrack_count),
        reason("net.netfilter.nf_conntrack_max", &facts.conntrack_max),
        reason("the bridges", &facts.bridges),
        reason("the routes", &facts.routes),
        reason("the variant of the command iptables", &facts.iptables_variant),
        reason("the IP sets", &facts.ipsets),
        reason("the table inet ringfence", &facts.nftables_table),
        reason("the lock of iptables-legacy", &facts.xtables_lock),
    ]
    .into_iter()
    .flatten()
    .chain(rulesets)
    .chain(tables)
    .map(|(what, reason)| Finding {
        id: "unreadable",
        severity: Severity::Note,
        what: format!("{what} could not be read"),
        why: "nothing is known about what the checks look for there".to_owned(),
        remedy: "ask as root, in the network namespace of the host, and with the programs that are missing".to_owned(),
        evidence: Some(reason.to_owned()),
    })
    .collect()
}

/// `RF-FORWARD` and the like, or with the digit of an edition `RF0-POL-IN-…`.
fn is_our_chain(name: &str) -> bool {
    is_ours(name, "RF")
}

/// `rf0-iso4-…`.
fn is_our_set(name: &str) -> bool {
    is_ours(name, "rf")
}

fn is_ours(name: &str, prefix: &str) -> bool {
    let rest = name.strip_prefix(prefix).map(|rest| rest.trim_start_matches(|digit: char| digit.is_ascii_digit()));
    rest.is_some_and(|rest| rest.starts_with('-'))
}

/// `iptables-nft` and the like.
pub(crate) fn name(variant: Variant, family: Family) -> String {
    format!("{}-{}", family.command(), variant.suffix())
}

fn both(family: Family) -> String {
    format!("{} and {}", name(Variant::Nft, family), name(Variant::Legacy, family))
}

/// Names, the first few of them if there are many.
pub(crate) fn few(names: &[impl AsRef<str>]) -> String {
    const FEW: usize = 8;
    let listed: Vec<&str> = names.iter().take(FEW).map(AsRef::as_ref).collect();
    let more = if names.len() > FEW { format!(" and {} more", names.len() - FEW) } else { String::new() };
    format!("{}{more}", listed.join(", "))
}
