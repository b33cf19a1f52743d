//! What the specification says, case by case, for flows that a matrix of pods and ports does not show: ICMP, other
//! protocols, nodes, owners of addresses, reasons. The rest of it is in the corpus.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use ringfence_k8s::{Source, parse};
use ringfence_model::{Flow, Object, PodId, Protocol, Transport};
use ringfence_oracle::{Answer, Reason, State, Verdict, judge};

const CLUSTER: &str = "
apiVersion: v1
kind: Node
metadata: {name: n1}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: InternalIP, address: '2001:db8::1'}]}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: closed, labels: {app: closed}}
spec: {nodeName: n1, containers: [{name: c}]}
status: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: all-ports, labels: {app: all-ports}}
spec: {nodeName: n1, containers: [{name: c}]}
status: {podIPs: [{ip: 10.0.0.2}, {ip: 'fd00::2'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: all-tcp, labels: {app: all-tcp}}
spec: {nodeName: n1, containers: [{name: c}]}
status: {podIPs: [{ip: 10.0.0.3}]}
---
apiVersion: v1
kind: Pod
metadata: {name: open}
spec: {nodeName: n2, containers: [{name: c}]}
status: {podIPs: [{ip: 10.0.0.9}, {ip: 'fd00::9'}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec: {podSelector: {matchLabels: {app: closed}}, policyTypes: [Ingress, Egress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: all-ports}
spec: {podSelector: {matchLabels: {app: all-ports}}, ingress: [{from: [{podSelector: {}}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: all-tcp}
spec: {podSelector: {matchLabels: {app: all-tcp}}, ingress: [{ports: [{protocol: TCP}]}, {ports: [{port: 80}]}]}
";

fn objects() -> Vec<Object> {
    parse(&[Source { name: "cluster.yaml", text: CLUSTER.as_bytes() }]).objects
}

fn verdict(objects: &[Object], from: &str, to: &str, transport: Transport) -> Verdict {
    let flow = Flow { source: from.parse().unwrap(), destination: to.parse().unwrap(), transport };
    judge(&State::new(objects).unwrap(), &flow)
}

/// (egress, ingress) of one flow.
fn check(from: &str, to: &str, transport: Transport, egress: bool, ingress: bool) {
    let verdict = verdict(&objects(), from, to, transport);
    assert_eq!((verdict.egress.allowed, verdict.ingress.allowed), (egress, ingress), "{from} -> {to}: {verdict:?}");
}

const TCP_80: Transport = Transport::Port(Protocol::Tcp, 80);

#[test]
fn icmp_is_part_of_isolation_and_of_rules_without_ports() {
    check("10.0.0.9", "10.0.0.1", Transport::Icmp(8), true, false);
    check("10.0.0.1", "10.0.0.9", Transport::Icmp(8), false, true);
    check("10.0.0.9", "10.0.0.2", Transport::Icmp(8), true, true);
    check("10.0.0.9", "10.0.0.3", Transport::Icmp(8), true, false);
    check("fd00::9", "fd00::2", Transport::Icmpv6(128), true, true);
    check("fd00::9", "fd00::1", Transport::Icmpv6(128), true, false);
}

#[test]
fn neighbour_discovery_and_nothing_else_of_icmpv6_always_passes() {
    for (kind, passes) in [(132, false), (133, true), (134, true), (135, true), (136, true), (137, false)] {
        check("fd00::9", "fd00::1", Transport::Icmpv6(kind), true, passes);
        check("fd00::1", "fd00::9", Transport::Icmpv6(kind), passes, true);
    }
    check("10.0.0.9", "10.0.0.1", Transport::Icmp(135), true, false);
}

#[test]
fn other_protocols_need_a_rule_without_ports() {
    check("10.0.0.9", "10.0.0.2", Transport::Other(47), true, true);
    check("10.0.0.9", "10.0.0.3", Transport::Other(47), true, false);
    check("10.0.0.9", "10.0.0.3", Transport::Port(Protocol::Sctp, 80), true, false);
}

#[test]
fn a_pod_and_its_own_node_always_reach_each_other() {
    check("192.0.2.1", "10.0.0.1", TCP_80, true, true);
    check("2001:db8::1", "fd00::1", TCP_80, true, true);
    check("10.0.0.1", "192.0.2.1", TCP_80, true, true);
    check("192.0.2.2", "10.0.0.1", TCP_80, true, false);
    check("10.0.0.1", "192.0.2.2", TCP_80, false, true);
}

#[test]
fn a_pod_reaches_its_own_address_and_not_its_other_self_by_accident() {
    check("10.0.0.1", "10.0.0.1", TCP_80, true, true);
    check("10.0.0.1", "10.0.0.2", TCP_80, false, true);
}

#[test]
fn an_address_belongs_to_the_live_pod_created_last() {
    let mut objects = objects();
    let pod = |id: &str, label: &str, created: i64| {
        let mut pod = match &the_open_pod() {
            Object::Pod(pod) => pod.clone(),
            _ => unreachable!("a pod"),
        };
        pod.id = PodId(id.into());
        pod.name = id.into();
        pod.labels = [("app".into(), label.into())].into();
        pod.created = created;
        Object::Pod(pod)
    };
    // `open` has the address and no policy; a younger pod with a policy takes it over, an older one does not.
    objects.push(pod("older", "closed", -5));
    assert!(verdict(&objects, "10.0.0.2", "10.0.0.9", TCP_80).ingress.allowed);
    objects.push(pod("younger", "closed", 5));
    assert!(!verdict(&objects, "10.0.0.2", "10.0.0.9", TCP_80).ingress.allowed);
    // Of two created in the same second, the greater id.
    objects.push(pod("younger-2", "open", 5));
    assert!(verdict(&objects, "10.0.0.2", "10.0.0.9", TCP_80).ingress.allowed);
}

/// The pod `open` of the cluster.
fn the_open_pod() -> Object {
    let is_open = |object: &Object| matches!(object, Object::Pod(pod) if &*pod.name == "open");
    objects().into_iter().find(is_open).unwrap()
}

#[test]
fn reasons_name_the_policies_and_the_rules() {
    let Answer { reason, .. } = verdict(&objects(), "10.0.0.9", "10.0.0.3", TCP_80).ingress;
    let Reason::AllowedBy(rules) = reason else { panic!("{reason:?}") };
    assert_eq!(
        rules.iter().map(|rule| (&*rule.policy.name, rule.rule)).collect::<Vec<_>>(),
        [("all-tcp", 0), ("all-tcp", 1)]
    );
    let Answer { reason, .. } = verdict(&objects(), "10.0.0.9", "10.0.0.1", TCP_80).ingress;
    let Reason::IsolatedBy(policies) = reason else { panic!("{reason:?}") };
    assert_eq!(policies.iter().map(ToString::to_string).collect::<Vec<_>>(), ["default/closed"]);
    assert_eq!(verdict(&objects(), "203.0.113.1", "10.0.0.9", TCP_80).egress.reason, Reason::NotAPod);
    assert_eq!(verdict(&objects(), "203.0.113.1", "10.0.0.9", TCP_80).ingress.reason, Reason::NotIsolated);
}

/// A source may report a pod before its namespace: what its labels are is not known, and nothing is assumed.
#[test]
fn a_namespace_that_is_not_known_matches_by_name_only() {
    for (selector, allowed) in [
        ("{}", true),
        ("{matchLabels: {kubernetes.io/metadata.name: late}}", true),
        ("{matchLabels: {kubernetes.io/metadata.name: other}}", false),
        ("{matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: [other]}]}", true),
        ("{matchLabels: {team: a}}", false),
        ("{matchExpressions: [{key: untrusted, operator: DoesNotExist}]}", false),
        ("{matchExpressions: [{key: team, operator: NotIn, values: [b]}]}", false),
    ] {
        let text = format!(
            "
apiVersion: v1
kind: Pod
metadata: {{name: server}}
spec: {{nodeName: n1, containers: [{{name: c}}]}}
status: {{podIPs: [{{ip: 10.0.0.1}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: client, namespace: late}}
spec: {{nodeName: n2, containers: [{{name: c}}]}}
status: {{podIPs: [{{ip: 10.0.0.2}}]}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: server}}
spec: {{podSelector: {{}}, ingress: [{{from: [{{namespaceSelector: {selector}}}]}}]}}
"
        );
        let mut objects = parse(&[Source { name: "late.yaml", text: text.as_bytes() }]).objects;
        objects.retain(|object| !matches!(object, Object::Namespace(namespace) if &*namespace.name == "late"));
        assert_eq!(verdict(&objects, "10.0.0.2", "10.0.0.1", TCP_80).ingress.allowed, allowed, "{selector}");
    }
}
