//! Where packets lose the address of who sent them, before a policy sees it, and which options restore it.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use ringfence_model::{EnforceAt, Enforcement, NodeTraffic};

use crate::checks::{Host, name};
use crate::facts::{Family, Reading, Variant};
use crate::masquerade::{self, Hit, Search};
use crate::save::Rule;
use crate::{Finding, Severity};

/// How bad it is that nodes further on see another source, if the nodes before judge: nothing is lost.
fn restored(host: &Host<'_>, needed: EnforceAt) -> Option<Severity> {
    // Where no node is believed, the pod's own node judges once more, by the node's address.
    judges(host.facts.enforcement, needed).then_some(Severity::Note)
}

fn judges(enforcement: Enforcement, needed: EnforceAt) -> bool {
    enforcement.at >= needed && enforcement.node_traffic != NodeTraffic::Policy
}

/// What to do about a source that is lost: at the root, or by judging before.
fn or_enforce(host: &Host<'_>, remedy: &str, needed: EnforceAt) -> String {
    let Enforcement { at, node_traffic } = host.facts.enforcement;
    let is_judged = judges(host.facts.enforcement, needed);
    let needed = needed.as_str();
    match (is_judged, node_traffic) {
        (true, _) => format!("none is needed if all nodes run with --enforce-at {}: {JUDGED_BEFORE}", at.as_str()),
        (false, NodeTraffic::Policy) => {
            format!(
                "{remedy}; or --enforce-at {needed} with another --node-traffic than policy on all nodes: {JUDGED_BEFORE}"
            )
        }
        (false, _) => format!("{remedy}; or --enforce-at {needed} on all nodes: {JUDGED_BEFORE}"),
    }
}

const JUDGED_BEFORE: &str = "they judge such connections before the address is replaced";

/// Who wrote a rule that replaces addresses of pods.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Culprit {
    Flannel,
    Docker,
    Cni,
    Unknown,
}

impl Culprit {
    fn of(hit: &Hit<'_>) -> Culprit {
        let device = hit.rule.option("-o").filter(|device| device.negated).map_or("", |device| device.value());
        if hit.chain.starts_with("FLANNEL-") || hit.rule.comment.contains("flanneld") {
            Culprit::Flannel
        } else if hit.chain.starts_with("CNI-") {
            Culprit::Cni
        } else if device == "docker0" || device.starts_with("br-") {
            Culprit::Docker
        } else {
            Culprit::Unknown
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Culprit::Flannel => {
                "flannel spares the Network of its net-conf.json only: make it cover the pods of all nodes, or start \
                 flanneld without --ip-masq"
            }
            Culprit::Docker => {
                "start dockerd with --ip-masq=false (\"ip-masq\": false in /etc/docker/daemon.json), and let something \
                 that knows all pod ranges masquerade what leaves the cluster"
            }
            Culprit::Cni => {
                "set \"ipMasq\": false in the CNI configuration below /etc/cni/net.d (the plugin spares the node's own \
                 range only), start the pods anew, and let something that knows all pod ranges masquerade what leaves \
                 the cluster"
            }
            Culprit::Unknown => {
                "find out who writes this rule; it must not apply to packets whose destination is a pod, for example \
                 by a RETURN for all pod ranges before it"
            }
        }
    }
}

pub(crate) fn pod_masquerade(host: &Host<'_>) -> Vec<Finding> {
    let Reading::Found(routes) = &host.facts.routes else { return Vec::new() };
    let mut findings = Vec::new();
    for (variant, family, table) in host.tables("nat") {
        let mut hits = Vec::new();
        let groups = host.pod_ranges(family);
        let untold = groups.is_empty() && host.facts.pod_cidrs.is_empty();
        let mut unknown = untold.then(|| "the pod ranges are unknown; --pod-cidr names them".to_owned());
        for group in &groups {
            match masquerade::search(table, group, routes) {
                Search::Done(found) => hits.extend(found),
                Search::NoPods => {
                    let range = group.iter().find(|range| range.certain).map(|range| range.net);
                    unknown = unknown.or(range.map(|range| format!("no route leads to a pod of this host in {range}")));
                }
            }
        }
        if let Some(reason) = unknown.filter(|_| masquerade::may_replace(table)) {
            findings.push(Finding {
                id: "pod-masquerade",
                severity: Severity::Note,
                what: format!("whether {} replaces addresses of pods cannot be told", name(variant, family)),
                why: reason,
                remedy: "ask again when pods run here, and with --pod-cidr".to_owned(),
                evidence: None,
            });
        }
        let mut by_culprit: BTreeMap<(Culprit, bool), Vec<Hit<'_>>> = BTreeMap::new();
        for hit in hits {
            by_culprit.entry((Culprit::of(&hit), !hit.certain)).or_default().push(hit);
        }
        for ((culprit, uncertain), hits) in by_culprit {
            let Some(hit) = hits.first() else { continue };
            let more = if hits.len() > 1 { format!(", and {} more such rules", hits.len() - 1) } else { String::new() };
            let guessed = if host.facts.pod_cidrs.is_empty() {
                "; the pod ranges are guessed from rules and routes, --pod-cidr names them"
            } else {
                ""
            };
            findings.push(Finding {
                id: "pod-masquerade",
                severity: restored(host, EnforceAt::Everywhere).unwrap_or(match uncertain {
                    true => Severity::Warning,
                    false => Severity::Problem,
                }),
                what: format!(
                    "packets from pods here to pods of other nodes {} this node's address as their source, for \
                     example from {} to {}{guessed}",
                    if uncertain { "may get" } else { "get" },
                    hit.source,
                    hit.destination
                ),
                why: "policies on the other node see the node instead of the pod: rules that allow the pod do not \
                      apply, and rules that allow the node let it in"
                    .to_owned(),
                remedy: or_enforce(host, culprit.remedy(), EnforceAt::Everywhere),
                evidence: Some(format!("{} (table nat of {}){more}", hit.rule.text, name(variant, family))),
            });
        }
    }
    findings
}

pub(crate) fn masquerade_all(host: &Host<'_>) -> Vec<Finding> {
    let everything = |rule: &&Rule| {
        let restricted = ["-s", "-i"].iter().any(|&option| rule.option(option).is_some_and(|source| source.negated));
        // In IPVS mode it is one rule for all; src,dst means Services only nodes call.
        let ipvs = rule.option("--match-set").is_some_and(|set| {
            matches!(set.value(), "KUBE-CLUSTER-IP" | "KUBE-6-CLUSTER-IP")
                && set.values.get(1).is_some_and(|fields| fields == "dst,dst")
        });
        let cluster_ip = rule.comment.ends_with("cluster IP") || ipvs;
        rule.target_name() == "KUBE-MARK-MASQ" && cluster_ip && !restricted
    };
    let mut findings = Vec::new();
    for (variant, family, table) in host.tables("nat") {
        let of_services = |chain: &str| chain == "KUBE-SERVICES" || chain.starts_with("KUBE-SVC-");
        let rules: Vec<&Rule> = table
            .iter()
            .filter(|(chain, _)| of_services(chain))
            .flat_map(|(_, rules)| rules)
            .filter(everything)
            .collect();
        let Some(first) = rules.first() else { continue };
        findings.push(Finding {
            id: "masquerade-all",
            severity: restored(host, EnforceAt::Everywhere).unwrap_or(Severity::Problem),
            what: "kube-proxy gives every call of a Service this node's address as its source".to_owned(),
            why:
                "a pod that calls a Service is taken for a node: rules that allow the pod do not apply, and rules that \
                  allow the node let it in"
                    .to_owned(),
            remedy: or_enforce(
                host,
                "start kube-proxy without --masquerade-all (iptables.masqueradeAll and ipvs.masqueradeAll in its \
                 configuration), with --cluster-cidr instead",
                EnforceAt::Everywhere,
            ),
            evidence: Some(of_many(first, rules.len(), variant, family)),
        });
    }
    findings
}

pub(crate) fn nodeport_snat(host: &Host<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (variant, family, table) in host.tables("nat") {
        // Up to Kubernetes 1.23 the mark was set in KUBE-FW-* and KUBE-NODEPORTS.
        let external =
            |chain: &str| chain == "KUBE-NODEPORTS" || chain.starts_with("KUBE-EXT-") || chain.starts_with("KUBE-FW-");
        let of_anyone = |rule: &&Rule| {
            rule.target_name() == "KUBE-MARK-MASQ"
                && rule.option("-s").is_none()
                && rule.option("--src-type").is_none()
                && !rule.comment.contains("LOCAL traffic")
        };
        let rules: Vec<&Rule> =
            table.iter().filter(|(chain, _)| external(chain)).flat_map(|(_, rules)| rules).filter(of_anyone).collect();
        let Some(first) = rules.first() else { continue };
        let services: BTreeSet<&str> = rules.iter().filter_map(|rule| service(rule)).collect();
        let services: Vec<&str> = services.into_iter().collect();
        findings.push(Finding {
            id: "nodeport-snat",
            severity: restored(host, EnforceAt::Entry).unwrap_or(Severity::Warning),
            what: format!(
                "callers from outside the cluster arrive with a node's address at these Services: {}",
                services.join(", ")
            ),
            why: "ipBlock rules on pods of other nodes than the one the call came in at see that node, not the caller"
                .to_owned(),
            remedy: or_enforce(
                host,
                "externalTrafficPolicy: Local for those Services whose pods have rules for addresses outside",
                EnforceAt::Entry,
            ),
            evidence: Some(of_many(first, rules.len(), variant, family)),
        });
    }
    findings
}

/// The Service in a comment of kube-proxy, `namespace/name` or `namespace/name:port`.
fn service(rule: &Rule) -> Option<&str> {
    rule.comment.split_whitespace().find(|word| word.contains('/'))
}

/// Networks that stand for everything outside: nobody has these addresses.
fn outside(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::new_assert([198, 51, 100, 0].into(), 24),
        Family::V6 => IpNet::new_assert([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0].into(), 32),
    }
}

/// Whether pods keep their addresses towards other clusters: the networks that were named, or, when none was, in general.
pub(crate) fn other_clusters(host: &Host<'_>) -> Vec<Finding> {
    let Reading::Found(routes) = &host.facts.routes else { return Vec::new() };
    let mut findings = Vec::new();
    for (variant, family, table) in host.tables("nat") {
        let named = host.facts.other_clusters.iter().copied().filter(|net| Family::of(net) == family);
        let networks: Vec<IpNet> = match host.facts.other_clusters.is_empty() {
            true => vec![outside(family)],
            false => named.filter(|net| !is_kept(host, net)).collect(),
        };
        if host.facts.other_clusters.is_empty() && !host.facts.unmasqueraded.is_empty() {
            continue;
        }
        for network in networks {
            let groups = host.pod_ranges(family);
            let hits =
                groups.iter().find_map(|group| match masquerade::search_towards(table, group, network, routes) {
                    Search::Done(hits) => hits.into_iter().next(),
                    Search::NoPods => None,
                });
            findings.extend(hits.map(|hit| lost_towards(host, network, &hit, variant, family)));
        }
    }
    findings
}

/// The agent here sees to it that nobody masquerades towards a network.
fn is_kept(host: &Host<'_>, network: &IpNet) -> bool {
    host.facts.unmasqueraded.iter().any(|kept| kept.contains(network))
}

fn lost_towards(host: &Host<'_>, network: IpNet, hit: &Hit<'_>, variant: Variant, family: Family) -> Finding {
    let (severity, what, remedy) = match host.facts.other_clusters.is_empty() {
        false => (
            Severity::Warning,
            format!("packets from pods here to {network} get this node's address as their source"),
            format!(
                "start the agents here with --no-masquerade-cidr {network}, or name it in their --no-masquerade-file; the \
                 other cluster needs a route to the pods here"
            ),
        ),
        true => (
            Severity::Note,
            "packets from pods here to addresses outside the cluster get this node's address as their source".to_owned(),
            "nothing, unless pods here call other clusters whose policies shall tell them apart: then --no-masquerade-cidr \
             with the pod and Service ranges of these, which keeps the pods' addresses"
                .to_owned(),
        ),
    };
    Finding {
        id: "other-clusters",
        severity,
        what,
        why: "policies of another cluster see the node instead of the pod: an ipBlock of the pod's address does not apply there"
            .to_owned(),
        remedy,
        evidence: Some(format!("{} (table nat of {})", hit.rule.text, name(variant, family))),
    }
}

/// The first of several rules that say the same.
fn of_many(first: &Rule, count: usize, variant: Variant, family: Family) -> String {
    let more = if count > 1 { format!(", and {} more such rules", count - 1) } else { String::new() };
    format!("{} (table nat of {}){more}", first.text, name(variant, family))
}
