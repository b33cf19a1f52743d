//! What the API server refuses in a NetworkPolicy, and what real write-ups get wrong: each with its place, each
//! failing closed.

mod check;

use check::{Expected, check, policies};
use ringfence_k8s::Severity::{Error, Note, Warning};
use ringfence_model::{Isolation, Selector};

const BOTH: Isolation = Isolation { ingress: true, egress: true };
const INGRESS: Isolation = Isolation { ingress: true, egress: false };
const EGRESS: Isolation = Isolation { ingress: false, egress: true };

/// A policy whose `spec` is `spec`, two columns in; its first line is line 5.
fn policy(spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: shop}}\nspec:\n{spec}\n"
    )
}

/// The errors of a spec. The policy must isolate as told and allow nothing.
#[track_caller]
fn refused(spec: &str, isolates: Isolation, expected: &[Expected<'_>]) {
    let manifests = check(&policy(spec), expected);
    let policies = policies(&manifests);
    assert_eq!(policies.len(), 1, "{spec}");
    let policy = policies[0];
    assert_eq!(policy.isolates, isolates, "{spec}");
    assert!(policy.ingress.is_empty() && policy.egress.is_empty(), "{spec}");
    assert_eq!(policy.id.to_string(), "shop/p");
    let closed = manifests
        .diagnostics
        .iter()
        .filter(|diagnostic| diagnostic.severity == Note && diagnostic.message.starts_with("fails closed"));
    assert_eq!(closed.count(), 1, "{spec}");
}

/// One error in an ingress rule. `rule` is the rest of the line after `  - `.
#[track_caller]
fn refused_rule(rule: &str, line: usize, field: &str, part: &str) {
    let spec = format!("  ingress:\n  - {rule}");
    refused(&spec, INGRESS, &[(Error, line, field, part)]);
}

#[test]
fn selectors() {
    let at = |selector: &str, field: &str, part: &str| {
        let field = format!("spec.podSelector{field}");
        refused(&format!("  podSelector: {selector}\n  ingress: [{{}}]"), INGRESS, &[(Error, 5, &field, part)]);
    };
    let first = ".matchExpressions[0]";
    at("{matchExpressions: [{key: a, operator: In}]}", &format!("{first}.values"), "operator In needs `values`");
    at("{matchExpressions: [{key: a, operator: NotIn, values: []}]}", &format!("{first}.values"), "NotIn needs");
    at(
        "{matchExpressions: [{key: a, operator: Exists, values: [x]}]}",
        &format!("{first}.values"),
        "must have no values",
    );
    at("{matchExpressions: [{key: a, operator: DoesNotExist, values: [x]}]}", &format!("{first}.values"), "no values");
    at(
        "{matchExpressions: [{key: a, operator: in, values: [x]}]}",
        &format!("{first}.operator"),
        "\"in\" is not an operator",
    );
    at("{matchExpressions: [{key: a}]}", &format!("{first}.operator"), "`operator` is missing");
    at("{matchExpressions: [{operator: Exists}]}", &format!("{first}.key"), "`key` is missing");
    at("{matchExpressions: [{key: a b, operator: Exists}]}", &format!("{first}.key"), "not a label key");
    at(
        "{matchExpressions: [{key: a, operator: In, values: [x y]}]}",
        &format!("{first}.values[0]"),
        "not a label value",
    );
    at(
        "{matchExpressions: [{key: a, operator: In, values: [true]}]}",
        &format!("{first}.values[0]"),
        "quote it: \"true\"",
    );
    at("{matchExpressions: [{key: a, operator: In, values: x}]}", &format!("{first}.values"), "put a dash");
    at("{matchExpressions: [null]}", first, "is empty");
    at("{matchExpressions: {key: a}}", ".matchExpressions", "put a dash");
    at("{matchLabels: {a b: x}}", ".matchLabels[a b]", "not a label key");
    at("{matchLabels: {a/b/c: x}}", ".matchLabels[a/b/c]", "not a label key");
    at("{matchLabels: {app: -x}}", ".matchLabels.app", "not a label value");
    at(
        "{matchLabels: {access: true}}",
        ".matchLabels.access",
        "label value is a boolean, not a string / quote it: \"true\"",
    );
    at("{matchLabels: {access: yes}}", ".matchLabels.access", "quote it: \"yes\"");
    at(
        "{matchLabels: {version: 1}}",
        ".matchLabels.version",
        "label value is a number, not a string / quote it: \"1\"",
    );
    at("{matchLabels: {version: 1.10}}", ".matchLabels.version", "quote it: \"1.10\"");
    at("{matchLabels: {version: 007}}", ".matchLabels.version", "a number with a leading zero");
    at("{matchLabels: {app: }}", ".matchLabels.app", "label value is empty");
    at("{matchLabels: {on: x}}", ".matchLabels.on", "label key is a boolean");
    at("{matchLabels: {app: [x]}}", ".matchLabels.app", "label value is a list");
    at("{matchLabels: {app: !!binary aGk=}}", ".matchLabels.app", "unknown tag");
    at("{matchLabels: [app]}", ".matchLabels", "take the dash away");
    at("{app: web}", ".app", "`matchLabels: {key:");
    at("{matchlabels: {app: web}}", ".matchlabels", "write `matchLabels`");
    at("[{matchLabels: {app: web}}]", "", "take the dash away");
    at("web", "", "is a string, not a mapping");
    refused(
        "  podSelector: {}\n  ingress:\n  - from:\n    - podSelector:\n        matchExpressions:\n        - {key: a, operator: In, value: [x]}",
        INGRESS,
        &[
            (Error, 10, "spec.ingress[0].from[0].podSelector.matchExpressions[0].value", "write `values`"),
            (Error, 10, "spec.ingress[0].from[0].podSelector.matchExpressions[0].values", "needs `values`"),
        ],
    );
}

#[test]
fn an_invalid_pod_selector_selects_every_pod_and_a_valid_one_is_kept() {
    let manifests = check(
        &policy("  podSelector: {matchLabels: {app: 1}}"),
        &[(Error, 5, "spec.podSelector.matchLabels.app", "number")],
    );
    assert_eq!(policies(&manifests)[0].pods, Selector::default());
    let manifests = check(
        &policy("  podSelector: {matchLabels: {app: web}}\n  ports: []"),
        &[(Error, 6, "spec.ports", "inside a rule")],
    );
    assert_eq!(policies(&manifests)[0].pods.match_labels.len(), 1);
}

#[test]
fn ports() {
    let one = |port: &str, field: &str, part: &str| {
        refused_rule(&format!("ports: [{port}]"), 6, &format!("spec.ingress[0].ports[0]{field}"), part);
    };
    one("{protocol: tcp}", ".protocol", "\"tcp\" is not a protocol / write TCP");
    one("{protocol: ICMP}", ".protocol", "TCP, UDP and SCTP");
    one("{protocol: \"\"}", ".protocol", "is not a protocol");
    one("{protocol: 6}", ".protocol", "quote it");
    one("{port: 0}", ".port", "0 is not a port");
    one("{port: 65536}", ".port", "65536 is not a port");
    one("{port: -1}", ".port", "-1 is not a port");
    one("{port: 99999999999999999999}", ".port", "integer");
    one("{port: 80.5}", ".port", "integer");
    one("{port: 080}", ".port", "leading zero");
    one("{port: \"80\"}", ".port", "remove the quotes: port: 80");
    one("{port: 8000-9000}", ".port", "`port` and `endPort`");
    one("{port: Http}", ".port", "not a port name");
    one("{port: a--b}", ".port", "not a port name");
    one("{port: abcdefghijklmnop}", ".port", "not a port name");
    one("{port: \"\"}", ".port", "not a port name");
    one("{port: true}", ".port", "a boolean, not a number");
    one("{port: [80]}", ".port", "a list, not a number");
    one("{endPort: 80}", ".endPort", "endPort needs `port`");
    one("{port: http, endPort: 80}", ".endPort", "that is a number");
    one("{port: 80, endPort: 79}", ".endPort", "79 is less than port 80");
    one("{port: 80, endPort: 65536}", ".endPort", "65536 is not a port");
    one("{port: 80, endPort: \"90\"}", ".endPort", "remove the quotes: 90");
    one("{port: 80, name: http}", ".name", "write `port`");
    one("{Port: 80}", ".Port", "write `port`");
    one("null", "", "write {} for every TCP port");
    one("80", "", "an entry of `ports` is a number");
    refused_rule("ports: 80", 6, "spec.ingress[0].ports", "`- port: 80`");
    refused_rule("ports: {port: 80}", 6, "spec.ingress[0].ports", "put a dash");
    refused_rule("port: 80", 6, "spec.ingress[0].port", "inside an entry of `ports`");
}

#[test]
fn peers() {
    let one = |peer: &str, field: &str, part: &str| {
        refused_rule(&format!("from: [{peer}]"), 6, &format!("spec.ingress[0].from[0]{field}"), part);
    };
    one("{}", "", "a peer needs");
    one("null", "", "a peer is left empty");
    one("{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}", ".ipBlock", "cannot stand beside");
    one("{ipBlock: {cidr: 10.0.0.0/8}, namespaceSelector: {}}", ".ipBlock", "cannot stand beside");
    one("{ipBlock: {}}", ".ipBlock.cidr", "`cidr` is missing");
    one("{ipBlock: {cidr: 10.0.0.1}}", ".ipBlock.cidr", "without a prefix length / write 10.0.0.1/32");
    one("{ipBlock: {cidr: xxxx/xx}}", ".ipBlock.cidr", "not a CIDR");
    one("{ipBlock: {cidr: \"::ffff:10.0.0.0/104\"}}", ".ipBlock.cidr", "IPv4 address written as IPv6");
    one("{ipBlock: {cidr: \"fe80::1%eth0/64\"}}", ".ipBlock.cidr", "zone");
    one("{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}", ".ipBlock.except[0]", "strict subset");
    one("{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}", ".ipBlock.except[0]", "strict subset");
    one("{ipBlock: {cidr: 10.0.0.0/8, except: [0.0.0.0/0]}}", ".ipBlock.except[0]", "strict subset");
    one("{ipBlock: {cidr: 10.0.0.0/8, except: [\"::/64\"]}}", ".ipBlock.except[0]", "strict subset");
    one("{ipBlock: {cidr: 10.0.0.0/8, except: 10.1.0.0/16}}", ".ipBlock.except", "put a dash: `- 10.1.0.0/16`");
    one("{ipBlock: {cidr: 10.0.0.0/8, excepts: []}}", ".ipBlock.excepts", "cidr, except");
    one("{ipBlock: 10.0.0.0/8}", ".ipBlock", "not a mapping");
    one("{cidr: 10.0.0.0/8, ipBlock: {cidr: 10.0.0.0/8}}", ".cidr", "inside `ipBlock`");
    one("{podSelector: {}, ports: []}", ".ports", "beside `from`");
    one("{podSelector: {}, matchLabels: {}}", ".matchLabels", "inside `podSelector`");
    one("{namespaceSelector: {name: foo}}", ".namespaceSelector.name", "`matchLabels: {key:");
    one("{namespaceSelector: {}, namespace: foo}", ".namespace", "kubernetes.io/metadata.name");
    refused_rule("from: {podSelector: {}}", 6, "spec.ingress[0].from", "put a dash");
    refused_rule("podSelector: {}", 6, "spec.ingress[0].podSelector", "inside an entry of `from`");
    refused_rule("to: []", 6, "spec.ingress[0].to", "a rule of `ingress` has `from`");
    refused_rule("null", 6, "spec.ingress[0]", "write {} for a rule that allows everything");
    refused_rule("", 6, "spec.ingress[0]", "left empty");
    refused_rule("[]", 6, "spec.ingress[0]", "take the dash away");
}

#[test]
fn the_spec_and_its_policy_types() {
    // The ACL design document writes `ports` beside `ingress`.
    refused(
        "  policyTypes:\n  - Ingress\n  ingress:\n  - from:\n    - ipBlock: {cidr: 10.0.0.0/8}\n  ports:\n  - {protocol: TCP, port: 80}",
        INGRESS,
        &[(Error, 10, "spec.ports", "`ports` belongs inside a rule of `ingress` or `egress`, not beside it")],
    );
    refused("  from: []", BOTH, &[(Error, 5, "spec.from", "inside a rule of `ingress`")]);
    refused("  to: []", BOTH, &[(Error, 5, "spec.to", "inside a rule of `egress`")]);
    refused("  ingress: {from: []}", INGRESS, &[(Error, 5, "spec.ingress", "put a dash")]);
    refused("  egress: {to: []}", BOTH, &[(Error, 5, "spec.egress", "put a dash")]);
    refused("  egres: [{}]", BOTH, &[(Error, 5, "spec.egres", "write `egress`")]);
    refused("  Egress: []", BOTH, &[(Error, 5, "spec.Egress", "case-sensitive: write `egress`")]);
    refused("  podselector: {}", BOTH, &[(Error, 5, "spec.podselector", "write `podSelector`")]);
    refused("  policyType: [Egress]", BOTH, &[(Error, 5, "spec.policyType", "write `policyTypes`")]);
    refused("  namespaceSelector: {}", BOTH, &[(Error, 5, "spec.namespaceSelector", "entry of `from`")]);
    refused("  policyTypes: [ingress]", BOTH, &[(Error, 5, "spec.policyTypes[0]", "write Ingress")]);
    refused("  policyTypes: [Ingress, Both]", BOTH, &[(Error, 5, "spec.policyTypes[1]", "not a policy type")]);
    refused("  policyTypes: [true]", BOTH, &[(Error, 5, "spec.policyTypes[0]", "a boolean")]);
    refused("  policyTypes: Ingress", BOTH, &[(Error, 5, "spec.policyTypes", "put a dash: `- Ingress`")]);
    refused("  policyTypes: [Egress]\n  ports: []", EGRESS, &[(Error, 6, "spec.ports", "unknown field")]);
    refused("  []", BOTH, &[(Error, 5, "spec", "take the dash away")]);
}

#[test]
fn all_errors_of_a_policy_are_found() {
    refused(
        "  podSelector: {}\n  ingress:\n  - ports:\n    - protocol: tcp\n      port: \"80\"\n  egress:\n  - to:\n    - {}",
        BOTH,
        &[
            (Error, 8, "spec.ingress[0].ports[0].protocol", "write TCP"),
            (Error, 9, "spec.ingress[0].ports[0].port", "remove the quotes"),
            (Error, 12, "spec.egress[0].to[0]", "a peer needs"),
        ],
    );
}

#[test]
fn a_policy_without_a_usable_name_is_enforced_under_another() {
    let text = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: Bad_Name, namespace: shop}
spec: {podSelector: {}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: invalid-0, namespace: shop}
spec: {podSelector: {}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: ok, namespace: 'no good'}
";
    let manifests = check(
        text,
        &[
            (Error, 4, "metadata.name", "no name"),
            (Warning, 2, "", "`spec` is missing"),
            (Error, 8, "metadata.name", "not a valid name"),
            (Error, 18, "metadata.namespace", "not a valid namespace name"),
            (Warning, 16, "", "`spec` is missing"),
        ],
    );
    let names: Vec<String> = policies(&manifests).iter().map(|policy| policy.id.to_string()).collect();
    assert_eq!(names, ["shop/invalid-1", "shop/invalid-2", "shop/invalid-0"]);
}

#[test]
fn metadata_and_top_level() {
    let head = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n";
    let one = |rest: &str, line: usize, field: &str, part: &str| {
        let manifests = check(&format!("{head}{rest}\n"), &[(Error, line, field, part)]);
        assert_eq!(policies(&manifests).len(), 1, "{rest}");
    };
    one("metadata: {name: p}\nspec: {podSelector: {}}\npolicyTypes: []", 5, "policyTypes", "inside `spec`");
    one("metadata: {name: p}\nspec: {podSelector: {}}\nfoo: 1", 5, "foo", "unknown field");
    one("metadata: {name: p, label: {}}\nspec: {podSelector: {}}", 3, "metadata.label", "write `labels`");
    one("metadata: {name: p, labels: {a: 1}}\nspec: {podSelector: {}}", 3, "metadata.labels.a", "quote it");
    one(
        "metadata: {name: p, annotations: {a: true}}\nspec: {podSelector: {}}",
        3,
        "metadata.annotations.a",
        "annotation value",
    );
    one("metadata: {name: 5}\nspec: {podSelector: {}}", 3, "metadata.name", "name is a number");
    one("spec: {podSelector: {}}", 1, "metadata", "missing");
    one("metadata: []\nspec: {podSelector: {}}", 3, "metadata", "take the dash away");
}

#[test]
fn other_api_versions_fail_closed() {
    for (version, isolates) in [
        ("apiVersion: extensions/v1beta1\n", INGRESS),
        ("apiVersion: networking.k8s.io/v1beta1\n", BOTH),
        ("apiVersion: v1\n", BOTH),
    ] {
        let text = format!(
            "{version}kind: NetworkPolicy\nmetadata: {{name: p}}\nspec: {{podSelector: {{}}, egress: [{{}}], ingress: [{{}}]}}\n"
        );
        let manifests = check(&text, &[(Error, 1, "apiVersion", "not supported / write networking.k8s.io/v1")]);
        let policies = policies(&manifests);
        assert_eq!(policies[0].isolates, isolates, "{version}");
        assert!(policies[0].ingress.is_empty() && policies[0].egress.is_empty());
    }
    let missing = "kind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {}, ingress: [{}]}\n";
    let manifests = check(missing, &[(Error, 1, "apiVersion", "write apiVersion: networking.k8s.io/v1")]);
    assert!(policies(&manifests)[0].ingress.is_empty());
    let lower = "apiVersion: networking.k8s.io/v1\nkind: networkpolicy\nmetadata: {name: p}\nspec: {podSelector: {}, ingress: [{}]}\n";
    let manifests = check(lower, &[(Error, 2, "kind", "write NetworkPolicy")]);
    assert!(policies(&manifests)[0].ingress.is_empty());
    let calico = "apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {name: p}\n";
    assert!(policies(&check(calico, &[(Warning, 1, "", "not enforced")])).is_empty());
    let admin = "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {name: p}\n";
    check(admin, &[(Warning, 1, "", "not enforced")]);
}

#[test]
fn what_is_only_suspicious_is_enforced_as_the_api_server_would() {
    let warned = |spec: &str, line: usize, field: &str, part: &str| {
        let manifests = check(&policy(spec), &[(Warning, line, field, part)]);
        policies(&manifests)[0].clone()
    };
    let policy = warned(
        "  podSelector:\n    matchLabels:\n  ingress: [{}]",
        6,
        "spec.podSelector.matchLabels",
        "selects everything",
    );
    assert_eq!(policy.pods, Selector::default());
    assert_eq!(policy.ingress.len(), 1);
    warned("  podSelector:", 5, "spec.podSelector", "every pod");
    warned("  ingress:\n  - from:", 6, "spec.ingress[0].from", "allows every peer");
    warned("  ingress:\n  - ports: null", 6, "spec.ingress[0].ports", "allows every port");
    warned(
        "  ingress:\n  - from: [{podSelector: null, namespaceSelector: {}}]",
        6,
        "spec.ingress[0].from[0].podSelector",
        "counts as not written",
    );
    warned(
        "  ingress:\n  - from: [{ipBlock: {cidr: 10.0.0.5/24}}]",
        6,
        "spec.ingress[0].from[0].ipBlock.cidr",
        "\"10.0.0.5/24\" has host bits set: read as 10.0.0.0/24",
    );
}
