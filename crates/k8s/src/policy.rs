//! NetworkPolicy, `networking.k8s.io/v1`: defaulted, validated, and failing closed.
//!
//! Validation follows the API server (`pkg/apis/networking/validation`), which runs before defaulting matters here:
//! what it would refuse is an error. A policy with an error anywhere still isolates the pods it selects, as far as
//! that can be read, and allows nothing: half of a policy is never enforced.

use std::sync::Arc;

use ringfence_model::{Action, Isolation, NamespaceScope, Peers, Policy, PolicyId, Ports, Rule, Selector, Tier};

use crate::diagnostic::shown;
use crate::metadata::{self, check_strictly};
use crate::names::{is_dns_label, is_dns_subdomain};
use crate::peer::peer;
use crate::ports::port_match;
use crate::read::{At, Fields, Report, items, mapping, string};
use crate::selector::selector;

/// The API version that is read in full.
pub(crate) const API_VERSION: &str = "networking.k8s.io/v1";

/// Reads a NetworkPolicy. Errors reported since [`Report::begin`] count as its own, so the caller may have found some
/// already. Its name is empty when it has no usable one; without a usable namespace there is nothing to isolate.
pub(crate) fn network_policy(report: &mut Report, object: Fields<'_>, api_version: &str) -> Option<Policy> {
    if api_version != API_VERSION {
        report.error_hint(
            &object.get("apiVersion").unwrap_or(*object.at),
            format!("NetworkPolicy of apiVersion \"{}\" is not supported", shown(api_version)),
            format!("write {API_VERSION}"),
        );
    }
    object.only(report, &["apiVersion", "kind", "metadata", "spec", "status"], |name| match name {
        "podSelector" | "policyTypes" | "ingress" | "egress" => Some("it belongs inside `spec`: check the indentation"),
        "name" | "namespace" | "labels" => Some("it belongs inside `metadata`: check the indentation"),
        _ => None,
    });
    let identity = metadata::identity(report, object, is_dns_subdomain, is_dns_label);
    check_strictly(report, object);
    metadata::object_labels(report, object);
    let mut spec = spec(report, object);
    if api_version.starts_with("extensions/") {
        // That API knew no egress.
        spec.isolates = Isolation { ingress: true, egress: false };
    }
    let namespace = identity.namespace?;
    if report.errors() > 0 {
        spec.ingress.clear();
        spec.egress.clear();
        report.note(object.at, "fails closed: it isolates the pods it selects and allows nothing until it is mended");
    }
    Some(Policy {
        id: PolicyId { tier: Tier::Namespace, namespace, name: identity.name.unwrap_or_else(|| Arc::from("")) },
        priority: 0,
        namespaces: NamespaceScope::Own,
        pods: spec.pods,
        isolates: spec.isolates,
        ingress: spec.ingress,
        egress: spec.egress,
    })
}

struct Spec {
    pods: Selector,
    isolates: Isolation,
    ingress: Vec<Rule>,
    egress: Vec<Rule>,
}

const SPEC_FIELDS: [&str; 4] = ["podSelector", "policyTypes", "ingress", "egress"];

const BOTH: Isolation = Isolation { ingress: true, egress: true };

fn spec(report: &mut Report, object: Fields<'_>) -> Spec {
    let mut spec = Spec { pods: Selector::default(), isolates: BOTH, ingress: Vec::new(), egress: Vec::new() };
    let Some(at) = object.get("spec") else {
        report.warning(
            &object.left_empty("spec").unwrap_or(*object.at),
            "`spec` is missing, so the policy isolates every pod of its namespace for ingress",
            "write `spec` with a `podSelector`",
        );
        spec.isolates.egress = false;
        return spec;
    };
    let Some(fields) = mapping(report, &at) else { return spec };
    fields.only(report, &SPEC_FIELDS, |name| match name {
        "ports" => Some("`ports` belongs inside a rule of `ingress` or `egress`, not beside it"),
        "from" => Some("`from` belongs inside a rule of `ingress`, not beside it"),
        "to" => Some("`to` belongs inside a rule of `egress`, not beside it"),
        "namespaceSelector" | "ipBlock" => Some("it belongs inside an entry of `from` or `to`"),
        "matchLabels" | "matchExpressions" => Some("it belongs inside `podSelector`"),
        "selector" => Some("write `podSelector`"),
        "egres" => Some("write `egress`"),
        "ingres" => Some("write `ingress`"),
        "policyType" | "types" => Some("write `policyTypes`, a list"),
        _ => None,
    });
    spec.pods = pod_selector(report, fields);
    spec.isolates = policy_types(report, fields);
    spec.ingress = rules(report, fields, "ingress", "from");
    spec.egress = rules(report, fields, "egress", "to");
    spec
}

/// Reads `spec.podSelector`; every pod when it is absent, and also when it is wrong.
fn pod_selector(report: &mut Report, spec: Fields<'_>) -> Selector {
    if let Some(at) = spec.left_empty("podSelector") {
        report.warning(
            &at,
            "`podSelector` is left empty, so the policy selects every pod of its namespace",
            "name the labels, or write {} if every pod is what you mean",
        );
    }
    let Some(at) = spec.get("podSelector") else {
        return Selector::default();
    };
    let errors = report.errors();
    let selector = selector(report, &at);
    if report.errors() > errors {
        return Selector::default();
    }
    selector
}

/// Reads `spec.policyTypes`. When it is absent or empty, ingress is isolated, and egress if there is an egress rule.
/// When it is wrong, or absent beside a field that is none (it may have been meant as `egress`), both are.
fn policy_types(report: &mut Report, spec: Fields<'_>) -> Isolation {
    let unreadable = spec.names().any(|name| !SPEC_FIELDS.contains(&name));
    let has_egress_rule = spec.get("egress").is_some_and(|at| at.list_length() != Some(0));
    let defaulted = Isolation { ingress: true, egress: has_egress_rule || unreadable };
    let Some(at) = spec.get("policyTypes") else { return defaulted };
    let Some(items) = items(report, &at) else { return BOTH };
    if items.is_empty() {
        return defaulted;
    }
    let mut isolates = Isolation::default();
    let mut readable = true;
    for item in &items {
        match string(report, item, "policy type") {
            Some("Ingress") => isolates.ingress = true,
            Some("Egress") => isolates.egress = true,
            Some(other) => {
                readable = false;
                let hint = match other {
                    _ if other.eq_ignore_ascii_case("ingress") => "write Ingress",
                    _ if other.eq_ignore_ascii_case("egress") => "write Egress",
                    _ => "the policy types are Ingress and Egress",
                };
                report.error_hint(item, format!("\"{}\" is not a policy type", shown(other)), hint);
            }
            None => readable = false,
        }
    }
    if readable { isolates } else { BOTH }
}

fn rules(report: &mut Report, spec: Fields<'_>, direction: &'static str, peers: &'static str) -> Vec<Rule> {
    let mut rules = Vec::new();
    spec.each(report, direction, |report, at| {
        if let Some(rule) = rule(report, at, direction, peers) {
            rules.push(rule);
        }
    });
    rules
}

/// Reads one rule. An absent or empty list of peers or ports is every peer or every port.
fn rule(report: &mut Report, at: &At<'_>, direction: &str, peers_name: &'static str) -> Option<Rule> {
    if at.node.is_null() {
        report.error_hint(
            at,
            format!("a rule of `{direction}` is left empty"),
            "write {} for a rule that allows everything, or remove the dash",
        );
        return None;
    }
    let fields = mapping(report, at)?;
    fields.only(report, &[peers_name, "ports"], |name| match name {
        "from" => Some("a rule of `egress` has `to`"),
        "to" => Some("a rule of `ingress` has `from`"),
        "podSelector" | "namespaceSelector" | "ipBlock" => Some("it belongs inside an entry of `from` or `to`"),
        "port" | "protocol" | "endPort" => Some("it belongs inside an entry of `ports`"),
        _ => None,
    });
    for name in [peers_name, "ports"] {
        if let Some(at) = fields.left_empty(name) {
            let what = if name == "ports" { "port" } else { "peer" };
            report.warning(
                &at,
                format!("`{name}` is left empty, so the rule allows every {what}"),
                format!("fill it in, or remove it if every {what} is what you mean"),
            );
        }
    }
    let mut peers = Vec::new();
    fields.each(report, peers_name, |report, at| peers.extend(peer(report, at)));
    let mut ports = Vec::new();
    fields.each(report, "ports", |report, at| {
        if at.node.is_null() {
            report.error_hint(at, "an entry of `ports` is left empty", "write {} for every TCP port");
        } else {
            ports.extend(port_match(report, at));
        }
    });
    // Invalid entries are missing from these lists. That cannot widen the rule: their error drops all rules.
    Some(Rule {
        action: Action::Accept,
        peers: if peers.is_empty() { Peers::Any } else { Peers::OneOf(peers) },
        ports: if ports.is_empty() { Ports::Any } else { Ports::OneOf(ports) },
    })
}
