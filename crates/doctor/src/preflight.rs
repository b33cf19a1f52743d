//! What keeps an agent from starting, or from being the only one.

use std::collections::BTreeMap;

use crate::checks::{Host, few, name};
use crate::facts::{Family, Lost, ModuleState, Reading, Variant};
use crate::{Finding, Severity};

pub(crate) fn nftables(host: &Host<'_>) -> Vec<Finding> {
    let modules = host.facts.nftables_modules.iter().filter(|module| module.state == ModuleState::Missing);
    let missing: Vec<&str> = modules.map(|module| module.name).collect();
    if missing.is_empty() {
        return Vec::new();
    }
    vec![Finding {
        id: "nftables",
        severity: Severity::Warning,
        what: format!("the kernel lacks {}", missing.join(", ")),
        why: "--backend nftables, the default, needs all of them".to_owned(),
        remedy: "install the modules package of the running kernel, or use --backend iptables".to_owned(),
        evidence: None,
    }]
}

pub(crate) fn trial(host: &Host<'_>) -> Vec<Finding> {
    let finding = |severity, what: String, why: &str, remedy: String, evidence: &str| {
        let (why, evidence) = (why.to_owned(), Some(evidence.to_owned()));
        vec![Finding { id: "trial", severity, what, why, remedy, evidence }]
    };
    match &host.facts.trial {
        Reading::Found(trial) => match &trial.refusal {
            None => Vec::new(),
            Some(refusal) => finding(
                Severity::Problem,
                format!("a small program for {} was refused", trial.backend),
                "what the agent writes to this packet filter will be refused, too",
                "see what the kernel or the tools say; --try asks about the other backend".to_owned(),
                refusal,
            ),
        },
        Reading::Unreadable(reason) => finding(
            Severity::Note,
            "the packet filter could not be tried".to_owned(),
            "trying needs a network namespace of its own",
            "ask as root on the node itself, not in a container".to_owned(),
            reason,
        ),
        Reading::Absent => Vec::new(),
    }
}

pub(crate) fn xtables_lock(host: &Host<'_>) -> Vec<Finding> {
    let Reading::Found(lock) = &host.facts.xtables_lock else { return Vec::new() };
    let path = lock.path.display();
    let finding = |what: String, why: &str, remedy: String| {
        let (why, evidence) = (why.to_owned(), Some(path.to_string()));
        vec![Finding { id: "xtables-lock", severity: Severity::Warning, what, why, remedy, evidence }]
    };
    match &lock.holder {
        _ if !lock.is_file => finding(
            format!("{path} is not a file"),
            "iptables-legacy cannot take its lock and refuses to work; some container runtime has mounted the path before \
             the file was there",
            format!("rmdir {path}, and mount it with hostPath type FileOrCreate"),
        ),
        Some(holder) => finding(
            format!("{holder} holds the lock of iptables-legacy, and does not let go"),
            "nobody can change rules of iptables-legacy meanwhile: not kubelet, not kube-proxy, not --backend iptables",
            "find out what that process waits for, and end it if it hangs".to_owned(),
        ),
        None => Vec::new(),
    }
}

/// How chains of agents that enforce policies begin, and whose they are.
const AGENTS: &[(&str, &str)] = &[
    ("ANTREA-", "Antrea"),
    ("AZURE-NPM", "Azure NPM"),
    ("CILIUM_", "Cilium"),
    ("KUBE-NWPLCY-", "kube-router (k3s has it built in)"),
    ("KUBE-POD-FW-", "kube-router (k3s has it built in)"),
    ("KUBE-ROUTER-", "kube-router (k3s has it built in)"),
    ("ROMANA-", "Romana"),
    ("WEAVE-NPC", "Weave Net"),
    ("cali-", "Calico"),
];

pub(crate) fn policy_agents(host: &Host<'_>) -> Vec<Finding> {
    // Chains by agent and by where they are.
    let mut seen: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (variant, family) in Variant::ALL.into_iter().flat_map(|variant| Family::ALL.map(|family| (variant, family))) {
        let mut chains: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for &(prefix, agent) in AGENTS {
            let found = host.chains(variant, family, |name| name.starts_with(prefix));
            if !found.is_empty() {
                chains.entry(agent).or_default().extend(found);
            }
        }
        for (agent, chains) in chains {
            seen.entry(agent).or_default().push(format!("{}: {}", name(variant, family), few(&chains)));
        }
    }
    let finding = |(agent, places): (&str, Vec<String>)| {
        Finding {
        id: "policy-agents",
        severity: Severity::Warning,
        what: format!("{agent} has chains here"),
        why: "of two agents for network policies, each can forbid what the other allows, and one whose rules come first and \
              accept decides alone; chains of an agent that is gone enforce its last policies for ever"
            .to_owned(),
        remedy: "let only one agent enforce policies (with k3s: --disable-network-policy); if that one is gone, remove its \
                 chains or restart the node"
            .to_owned(),
        evidence: Some(places.join("; ")),
    }
    };
    seen.into_iter().map(finding).collect()
}

pub(crate) fn rbac(host: &Host<'_>) -> Vec<Finding> {
    let finding = |severity, what: String, why: &str, remedy: &str, evidence: &str| Finding {
        id: "rbac",
        severity,
        what,
        why: why.to_owned(),
        remedy: remedy.to_owned(),
        evidence: Some(evidence.to_owned()).filter(|evidence| !evidence.is_empty()),
    };
    let denials = match &host.facts.denials {
        Reading::Found(denials) => denials,
        Reading::Unreadable(reason) => {
            return vec![finding(
                Severity::Warning,
                "the API server could not be asked".to_owned(),
                "the agent cannot, either: it keeps what is in force, and does not get to know what changes",
                "check the credentials, and whether this host reaches the API server",
                reason,
            )];
        }
        Reading::Absent => return Vec::new(),
    };
    let mut findings = Vec::new();
    for lost in [Lost::Enforcement, Lost::Events, Lost::Announcements] {
        let of_kind: Vec<_> = denials.iter().filter(|denial| denial.lost == lost).collect();
        let Some(first) = of_kind.first() else { continue };
        let names: Vec<&str> = of_kind.iter().map(|denial| denial.what.as_str()).collect();
        let (severity, why) = match lost {
            Lost::Enforcement => {
                (Severity::Problem, "without it the agent does not know the cluster's state, and enforces nothing new")
            }
            Lost::Events => (Severity::Warning, "errors in policies are told in the agent's log and metrics only"),
            Lost::Announcements => (
                Severity::Warning,
                "other nodes do not learn the addresses of this node's bridges and tunnels, and do not believe them; with the \
                 annotations written by hand, start the agents with --publish-addresses=false",
            ),
        };
        let remedy = "give the agent's account the ClusterRole in deploy/ringfence.yaml; for other values of --enforce-at and \
                      --node-traffic than the defaults, the one that the chart makes with the same values";
        findings.push(finding(
            severity,
            format!("the API server refuses: {}", few(&names)),
            why,
            remedy,
            &first.reason,
        ));
    }
    findings
}
