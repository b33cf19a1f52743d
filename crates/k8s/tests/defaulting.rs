//! What a valid policy becomes: the API server's defaults, and every form of peer and port.

mod check;

use check::{check, policies};
use ringfence_model::{
    Action, IpBlock, Isolation, NamespaceScope, Operator, Peer, Peers, PortMatch, PortRange, Ports, Protocol, Selector,
    Tier,
};

fn policy(spec: &str) -> ringfence_model::Policy {
    let text =
        format!("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p}}\nspec:\n  {spec}\n");
    policies(&check(&text, &[]))[0].clone()
}

#[test]
fn policy_types() {
    let types = |spec: &str, ingress: bool, egress: bool| {
        assert_eq!(policy(spec).isolates, Isolation { ingress, egress }, "{spec}");
    };
    types("podSelector: {}", true, false);
    types("{}", true, false);
    types("egress: []", true, false);
    types("egress: null", true, false);
    types("egress: [{}]", true, true);
    types("policyTypes: []\n  egress: [{}]", true, true);
    types("policyTypes: null", true, false);
    types("policyTypes: [Egress]", false, true);
    types("policyTypes: [Egress, Egress]", false, true);
    types("policyTypes: [Ingress]\n  egress: [{}]", true, false);
    types("policyTypes: [Ingress, Egress]", true, true);
}

#[test]
fn identity_and_absent_parts() {
    let found = policy("podSelector: {}");
    assert_eq!(found.id.to_string(), "default/p");
    assert_eq!((found.id.tier, found.priority), (Tier::Namespace, 0));
    assert_eq!(found.namespaces, NamespaceScope::Own);
    assert_eq!(found.pods, Selector::default());
    for spec in ["ingress: null", "ingress: []", "policyTypes: [Ingress]"] {
        assert!(policy(spec).ingress.is_empty(), "{spec}");
    }
    for spec in ["ingress: [{}]", "ingress: [{from: [], ports: []}]", "ingress: [{from: []}]"] {
        let rules = policy(spec).ingress;
        assert_eq!(rules.len(), 1, "{spec}");
        assert_eq!(rules[0].action, Action::Accept);
        assert_eq!((&rules[0].peers, &rules[0].ports), (&Peers::Any, &Ports::Any), "{spec}");
    }
}

#[test]
fn ports() {
    let range = |first, last| PortRange { first, last };
    let port = |entry: &str, expected: PortMatch| {
        let rules = policy(&format!("ingress: [{{ports: [{entry}]}}]")).ingress;
        assert_eq!(rules[0].ports, Ports::OneOf(vec![expected]), "{entry}");
    };
    port("{}", PortMatch::Number(Protocol::Tcp, PortRange::ALL));
    port("{protocol: SCTP}", PortMatch::Number(Protocol::Sctp, PortRange::ALL));
    port("{protocol: null, port: null}", PortMatch::Number(Protocol::Tcp, PortRange::ALL));
    port("{port: 80}", PortMatch::Number(Protocol::Tcp, range(80, 80)));
    port("{port: 0x50}", PortMatch::Number(Protocol::Tcp, range(80, 80)));
    port("{port: 1, endPort: 65535}", PortMatch::Number(Protocol::Tcp, range(1, 65535)));
    port("{port: 80, endPort: 80, protocol: UDP}", PortMatch::Number(Protocol::Udp, range(80, 80)));
    port("{port: http}", PortMatch::Named(Protocol::Tcp, "http".into()));
    port("{port: \"http\", protocol: UDP}", PortMatch::Named(Protocol::Udp, "http".into()));
}

#[test]
fn peers() {
    let labels = |key: &str, value: &str| Selector {
        match_labels: [(key.into(), value.into())].into(),
        match_expressions: Vec::new(),
    };
    let peer = |entry: &str, expected: Peer| {
        let rules = policy(&format!("egress: [{{to: [{entry}]}}]")).egress;
        assert_eq!(rules[0].peers, Peers::OneOf(vec![expected]), "{entry}");
    };
    peer(
        "{podSelector: {matchLabels: {app: web}}}",
        Peer::Pods { namespaces: NamespaceScope::Own, pods: labels("app", "web") },
    );
    peer(
        "{namespaceSelector: {}}",
        Peer::Pods { namespaces: NamespaceScope::Matching(Selector::default()), pods: Selector::default() },
    );
    peer(
        "{namespaceSelector: {matchLabels: {team: \"1\"}}, podSelector: {matchLabels: {k: \"\"}}}",
        Peer::Pods { namespaces: NamespaceScope::Matching(labels("team", "1")), pods: labels("k", "") },
    );
    peer(
        "{ipBlock: {cidr: 010.0.0.0/08, except: [10.0.0.0/16, 10.0.128.0/17]}}",
        Peer::Block(IpBlock {
            cidr: "10.0.0.0/8".parse().unwrap(),
            except: vec!["10.0.0.0/16".parse().unwrap(), "10.0.128.0/17".parse().unwrap()],
        }),
    );
    peer(
        "{ipBlock: {cidr: \"::/0\", except: null}}",
        Peer::Block(IpBlock { cidr: "::/0".parse().unwrap(), except: Vec::new() }),
    );
}

#[test]
fn expressions() {
    let found = policy(
        "podSelector: {matchExpressions: [{key: a, operator: In, values: [x, x, z]}, {key: b, operator: NotIn, values: [\"\"]}, {key: c, operator: Exists}, {key: d, operator: DoesNotExist, values: []}]}",
    );
    let operators: Vec<Operator> = found.pods.match_expressions.into_iter().map(|entry| entry.operator).collect();
    assert_eq!(
        operators,
        [
            Operator::In(["x".into(), "z".into()].into()),
            Operator::NotIn(["".into()].into()),
            Operator::Exists,
            Operator::DoesNotExist,
        ]
    );
}

#[test]
fn yaml_and_json_say_the_same() {
    let yaml = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: p
  labels: &labels {app: web}
spec:
  podSelector:
    matchLabels: *labels
  ingress:
  - from:
    - podSelector: {matchLabels: {<<: *labels, tier: a}}
    ports: [{port: 80}]
";
    let json = "{\"apiVersion\":\"networking.k8s.io\\/v1\",\"kind\":\"NetworkPolicy\",\n\t\"metadata\":{\"name\":\"p\",\"annotations\":{\"x\":\"\\ud83d\\ude00\"}},\"spec\":{\"podSelector\":{\"matchLabels\":{\"app\":\"web\"}},\"ingress\":[{\"from\":[{\"podSelector\":{\"matchLabels\":{\"app\":\"web\",\"tier\":\"a\"}}}],\"ports\":[{\"port\":80}]}]}}";
    let flow = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p}, spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: web, tier: a}}}], ports: [{port: 80}]}]}}";
    let yaml = check(yaml, &[]);
    assert_eq!(policies(&yaml), policies(&check(json, &[])));
    assert_eq!(policies(&yaml), policies(&check(flow, &[])));
}
