//! What on one host would make policies fail: a setting that lets packets pass the packet filter by, a rule that hides
//! a pod's address before a policy sees it, rules that decide before ringfence is asked.
//!
//! [`Facts::gather`] looks at the host, [`examine`] judges, [`render::text`] prints. Nothing is ever changed. Only what
//! iptables wrote is read: tables that others keep in nftables under names of their own are none of our business, so
//! what their rules do is not known here. Rules that nft wrote into a table of iptables are known as far as iptables-save
//! can print them.

mod checks;
mod facts;
mod host;
mod masquerade;
mod preflight;
pub mod render;
mod rtnetlink;
mod save;
mod sources;

use serde::Serialize;

pub use checks::examine;
pub use facts::{
    Bridge, Denial, Facts, Family, KernelModule, LockFile, Lost, ModuleState, Options, Place, Reading, Route, Ruleset,
    Tool, Trial, Variant,
};
pub use rtnetlink::host_addresses;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Policies are not enforced, or decide about the wrong address.
    Problem,
    /// Policies may fail for some traffic, or it could not be told whether they do.
    Warning,
    /// Good to know.
    Note,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check that found it, one of [`CHECKS`].
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What is the case.
    pub what: String,
    /// What follows from it.
    pub why: String,
    /// What to do about it.
    pub remedy: String,
    /// The rule or setting it was read from.
    pub evidence: Option<String>,
}

/// One check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Its name in findings.
    pub id: &'static str,
    /// What it looks for.
    pub looks_for: &'static str,
}

/// All checks, in the order in which [`examine`] makes them.
pub const CHECKS: &[Check] = &[
    Check { id: "bridge-netfilter", looks_for: "bridges whose ports reach each other past the packet filter" },
    Check { id: "pod-masquerade", looks_for: "rules that replace a pod's address on its way to a pod of another node" },
    Check { id: "masquerade-all", looks_for: "kube-proxy replacing the address of pods that call a Service" },
    Check { id: "nodeport-snat", looks_for: "Services whose callers from outside arrive with a node's address" },
    Check { id: "other-clusters", looks_for: "rules that replace a pod's address on its way to other clusters" },
    Check { id: "ip-forward", looks_for: "forwarding that is switched off" },
    Check { id: "iptables-variants", looks_for: "rules spread over iptables-nft and iptables-legacy" },
    Check { id: "tools", looks_for: "programs and kernel modules that --backend iptables lacks" },
    Check { id: "nftables", looks_for: "kernel modules that --backend nftables lacks" },
    Check { id: "trial", looks_for: "what the kernel refuses of a small program (only with --try)" },
    Check { id: "xtables-lock", looks_for: "a lock that keeps iptables-legacy from changing rules" },
    Check { id: "policy-agents", looks_for: "rules of another agent that enforces network policies" },
    Check { id: "leftovers", looks_for: "objects of a ringfence backend that is no longer used" },
    Check { id: "jump-position", looks_for: "rules that decide before those of ringfence" },
    Check { id: "conntrack", looks_for: "a connection table that is nearly full" },
    Check { id: "rbac", looks_for: "what the API server does not let the agent do (only with credentials)" },
    Check { id: "unreadable", looks_for: "what could not be looked at" },
];
