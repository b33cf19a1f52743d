//! Objects of an API server mean what the same objects mean as manifests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use arbitrary::Unstructured;
use proptest::prelude::*;
use std::sync::Arc;

use ringfence_k8s::api::{Kind, PageError, Reader, Reading};
use ringfence_k8s::{Severity, Source, parse};
use ringfence_model::{
    Isolation, NamespaceScope, Object, ObjectKey, Operator, Peer, Peers, Phase, Policy, PortMatch, PortRange, Ports,
    Rule, Selector,
};
use ringfence_scenario::cluster;
use serde_json::{Value, json};

fn read(kind: Kind, object: &Value) -> Reading {
    Reader::new("https://api").read(kind, &object.to_string()).unwrap()
}

fn kind_of(object: &Object) -> Option<Kind> {
    match object {
        Object::Namespace(_) => Some(Kind::Namespace),
        Object::Node(_) => Some(Kind::Node),
        Object::Pod(_) => Some(Kind::Pod),
        Object::Policy(_) => Some(Kind::NetworkPolicy),
        // See services.rs.
        Object::Service(_) | Object::EndpointSlice(_) => None,
    }
}

/// The object as an API server would send it, with what policies do not need around it.
fn json_of(object: &Object) -> Value {
    let metadata = |name: &str, namespace: Option<&str>, labels: Value| {
        let mut metadata = json!({
            "name": name,
            "labels": labels,
            "resourceVersion": "17",
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{\"spec\":{\"hostNetwork\":true}}"},
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:spec": {"f:hostNetwork": {}, ".": {}}}}],
            "finalizers": ["x/y"],
        });
        if let Some(namespace) = namespace {
            metadata["namespace"] = json!(namespace);
        }
        metadata
    };
    match object {
        Object::Namespace(namespace) => json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": metadata(&namespace.name, None, json!(labels(&namespace.labels))),
            "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
        }),
        Object::Node(node) => json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": metadata(&node.name, None, json!({})),
            "spec": {"podCIDR": "10.0.0.7/24", "podCIDRs": ["10.0.0.7/24", "fd00::/64"], "taints": []},
            "status": {"images": [{"names": ["x"], "sizeBytes": 1.5e9}], "addresses": node.addresses.iter()
                .map(|address| json!({"type": "InternalIP", "address": address.to_string()}))
                .chain([json!({"type": "Hostname", "address": "node"})]).collect::<Vec<_>>()},
        }),
        Object::Pod(pod) => {
            let (sidecars, mains): (Vec<_>, Vec<_>) =
                pod.ports.iter().enumerate().partition(|(index, _)| index % 3 == 2);
            let ports = |ports: &[(usize, &ringfence_model::ContainerPort)]| -> Vec<Value> {
                let port = |port: &ringfence_model::ContainerPort| {
                    let mut value =
                        json!({"containerPort": port.port, "protocol": port.protocol.as_str(), "hostPort": 0});
                    if let Some(name) = &port.name {
                        value["name"] = json!(**name);
                    }
                    value
                };
                ports.iter().map(|(_, found)| port(found)).collect()
            };
            let mut metadata = metadata(&pod.name, Some(&pod.namespace), json!(labels(&pod.labels)));
            metadata["uid"] = json!(*pod.id.0);
            metadata["creationTimestamp"] = json!(format!("2026-01-31T12:00:0{}Z", pod.created));
            let mut spec = json!({
                "containers": [{"name": "main", "image": "x", "ports": ports(&mains), "resources": {"limits": {"cpu": "1"}}}],
                "initContainers": [
                    {"name": "once", "ports": [{"containerPort": 9, "name": "once"}]},
                    {"name": "sidecar", "restartPolicy": "Always", "ports": ports(&sidecars)},
                ],
                "volumes": [{"name": "v", "projected": {"sources": [{"x": null}]}}],
            });
            if let Some(node) = &pod.node {
                spec["nodeName"] = json!(**node);
            }
            if pod.host_network {
                spec["hostNetwork"] = json!(true);
            }
            let phase = if pod.phase == Phase::Finished { "Failed" } else { "Running" };
            let mut status = json!({"phase": phase, "conditions": [{"type": "Ready", "status": "True"}]});
            if let Some(first) = pod.addresses.first() {
                status["podIP"] = json!(first.to_string());
                status["podIPs"] =
                    pod.addresses.iter().map(|address| json!({"ip": address.to_string()})).collect::<Vec<_>>().into();
            }
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status})
        }
        Object::Policy(policy) => json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": metadata(&policy.id.name, Some(&policy.id.namespace), json!({})),
            "spec": spec_of(policy),
        }),
        Object::Service(_) | Object::EndpointSlice(_) => Value::Null,
    }
}

fn labels(labels: &ringfence_model::Labels) -> std::collections::BTreeMap<&str, &str> {
    texts(labels.iter())
}

fn texts<'a>(
    pairs: impl Iterator<Item = (&'a Arc<str>, &'a Arc<str>)>,
) -> std::collections::BTreeMap<&'a str, &'a str> {
    pairs.map(|(key, value)| (&**key, &**value)).collect()
}

fn spec_of(policy: &Policy) -> Value {
    let Isolation { ingress, egress } = policy.isolates;
    let mut types = Vec::new();
    types.extend(ingress.then_some("Ingress"));
    types.extend(egress.then_some("Egress"));
    json!({
        "podSelector": selector(&policy.pods),
        "policyTypes": types,
        "ingress": policy.ingress.iter().map(|rule| rule_of(rule, "from")).collect::<Vec<_>>(),
        "egress": policy.egress.iter().map(|rule| rule_of(rule, "to")).collect::<Vec<_>>(),
    })
}

fn rule_of(rule: &Rule, direction: &str) -> Value {
    let mut value = json!({});
    if let Peers::OneOf(peers) = &rule.peers {
        value[direction] = peers.iter().map(peer_of).collect::<Vec<_>>().into();
    }
    if let Ports::OneOf(ports) = &rule.ports {
        let port = |port: &PortMatch| match port {
            PortMatch::Named(protocol, name) => json!({"protocol": protocol.as_str(), "port": **name}),
            PortMatch::Number(protocol, PortRange::ALL) => json!({"protocol": protocol.as_str()}),
            PortMatch::Number(protocol, range) => {
                json!({"protocol": protocol.as_str(), "port": range.first, "endPort": range.last})
            }
        };
        value["ports"] = ports.iter().map(port).collect::<Vec<_>>().into();
    }
    value
}

fn peer_of(peer: &Peer) -> Value {
    match peer {
        Peer::Pods { namespaces: NamespaceScope::Own, pods } => json!({"podSelector": selector(pods)}),
        Peer::Pods { namespaces: NamespaceScope::Matching(namespaces), pods } => {
            json!({"namespaceSelector": selector(namespaces), "podSelector": selector(pods)})
        }
        Peer::Block(block) => {
            let except: Vec<String> = block.except.iter().map(ToString::to_string).collect();
            json!({"ipBlock": {"cidr": block.cidr.to_string(), "except": except}})
        }
    }
}

fn selector(selector: &Selector) -> Value {
    let expressions = selector.match_expressions.iter().map(|requirement| {
        let (operator, values) = match &requirement.operator {
            Operator::In(values) => ("In", Some(values)),
            Operator::NotIn(values) => ("NotIn", Some(values)),
            Operator::Exists => ("Exists", None),
            Operator::DoesNotExist => ("DoesNotExist", None),
        };
        let mut value = json!({"key": *requirement.key, "operator": operator});
        if let Some(values) = values {
            value["values"] = values.iter().map(|value| json!(**value)).collect::<Vec<_>>().into();
        }
        value
    });
    json!({"matchLabels": texts(selector.match_labels.iter()), "matchExpressions": expressions.collect::<Vec<_>>()})
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_object_means_the_same_as_its_manifest(data in prop::collection::vec(any::<u8>(), 3000..4000)) {
        let mut reader = Reader::new("https://api");
        for object in cluster(&mut Unstructured::new(&data)).unwrap() {
            let Some(kind) = kind_of(&object) else { continue };
            let json = json_of(&object).to_string();
            let manifests = parse(&[Source { name: "f", text: json.as_bytes() }]);
            let errors: Vec<_> = manifests.diagnostics.iter().filter(|d| d.severity > Severity::Warning).collect();
            prop_assert!(errors.is_empty(), "{errors:?} {json}");
            let expected = manifests.objects.iter().find(|found| found.key() == object.key());
            let reading = reader.read(kind, &json).unwrap();
            prop_assert_eq!(reading.object.as_ref(), expected);
            prop_assert_eq!((reading.key, reading.version), (object.key(), "17".to_owned()));
            prop_assert_eq!(reader.key(kind, &json).unwrap(), (object.key(), "17".to_owned()));
            if let (Object::Policy(read), Object::Policy(policy)) = (expected.unwrap(), &object)
                && (policy.isolates.ingress || policy.isolates.egress)
            {
                // The manifest really says what was generated.
                prop_assert_eq!(read.rules(ringfence_model::Direction::Ingress), &policy.ingress);
            }
        }
    }

    /// What is wrong is refused by both, for the same reason.
    #[test]
    fn what_is_wrong_is_wrong_in_both(data in prop::collection::vec(any::<u8>(), 3000..4000), at: u16, with in 0..6_usize) {
        let junk = [json!(null), json!(7), json!("-"), json!([]), json!({}), json!([[{"a": 1.5}]])];
        for object in cluster(&mut Unstructured::new(&data)).unwrap() {
            let Some(kind) = kind_of(&object) else { continue };
            let mut value = json_of(&object);
            // Only what policies read: manifests are stricter about the rest.
            value["metadata"]["annotations"] = json!({});
            value["metadata"]["managedFields"] = json!([]);
            let paths = read_paths(&value);
            let path = &paths[usize::from(at) % paths.len()];
            *value.pointer_mut(path).unwrap() = junk[with].clone();
            let text = value.to_string();
            let manifests = parse(&[Source { name: "f", text: text.as_bytes() }]);
            let Ok(reading) = Reader::new("https://api").read(kind, &text) else {
                prop_assert!(path == "/metadata/name" || path == "/metadata/namespace", "{path}: {text}");
                continue;
            };
            let expected = manifests.objects.iter().find(|found| found.key() == reading.key);
            prop_assert_eq!(reading.object.as_ref(), expected.filter(|_| has_no_fatal(&manifests)), "{} {}", path, text);
            let worst = |diagnostics: &[ringfence_k8s::Diagnostic]| {
                let of = |d: &&ringfence_k8s::Diagnostic| d.severity >= Severity::Warning && d.severity != Severity::Fatal;
                diagnostics.iter().filter(of).map(|d| (d.severity, d.field.clone(), d.message.clone())).collect::<Vec<_>>()
            };
            prop_assert_eq!(worst(&reading.diagnostics), worst(&manifests.diagnostics), "{} {}", path, text);
        }
    }
}

fn has_no_fatal(manifests: &ringfence_k8s::Manifests) -> bool {
    manifests.diagnostics.iter().all(|d| d.severity != Severity::Fatal)
}

/// The places of all values that a reader looks at.
fn read_paths(value: &Value) -> Vec<String> {
    fn walk(value: &Value, path: &str, paths: &mut Vec<String>) {
        let skipped =
            ["apiVersion", "kind", "volumes", "images", "conditions", "taints", "finalizers", "resourceVersion"];
        match value {
            Value::Object(map) => {
                for (key, value) in map.iter().filter(|(key, _)| !skipped.contains(&key.as_str())) {
                    let path = format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"));
                    paths.push(path.clone());
                    walk(value, &path, paths);
                }
            }
            Value::Array(items) => {
                for (index, value) in items.iter().enumerate() {
                    paths.push(format!("{path}/{index}"));
                    walk(value, &format!("{path}/{index}"), paths);
                }
            }
            _ => {}
        }
    }
    let mut paths = Vec::new();
    walk(value, "", &mut paths);
    // An annotation or owner that is junk is reported in manifests only.
    paths.retain(|path| !["/metadata/annotations", "/metadata/managedFields", "/metadata"].contains(&path.as_str()));
    paths
}

#[test]
fn an_invalid_policy_fails_closed_with_a_place() {
    let reading = read(
        Kind::NetworkPolicy,
        &json!({"metadata": {"name": "db", "namespace": "shop", "resourceVersion": "3"},
                "spec": {"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"ports": [{"port": 70000}]}]}}),
    );
    let Some(Object::Policy(policy)) = &reading.object else { panic!("{reading:?}") };
    assert_eq!((policy.ingress.len(), policy.isolates.ingress, policy.pods.match_labels.len()), (0, true, 1));
    assert_eq!(
        reading.diagnostics[0].to_string(),
        "https://api: error: NetworkPolicy shop/db: spec.ingress[0].ports[0].port: 70000 is not a port: ports are 1 to 65535"
    );
}

#[test]
fn a_policy_that_is_too_deep_fails_closed() {
    let deep = format!("{}1{}", "[".repeat(5000), "]".repeat(5000));
    let text = format!(
        r#"{{"metadata": {{"name": "p", "namespace": "n"}}, "spec": {{"podSelector": {{}}, "ingress": [{{"from": {deep}}}]}}}}"#
    );
    let reading = Reader::new("s").read(Kind::NetworkPolicy, &text).unwrap();
    let Some(Object::Policy(policy)) = reading.object else { panic!("no policy") };
    assert!(policy.ingress.is_empty() && policy.isolates.ingress, "{policy:?}");
    // In a field that nobody reads it does not matter.
    let text = format!(
        r#"{{"metadata": {{"name": "p", "namespace": "n", "managedFields": {deep}}}, "status": {{"x": {deep}}}}}"#
    );
    assert!(Reader::new("s").read(Kind::Pod, &text).unwrap().object.is_some());
}

#[test]
fn pods_and_namespaces_with_errors_are_not_guessed() {
    let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"app": 7}}});
    let reading = read(Kind::Pod, &pod);
    assert_eq!((reading.object, reading.key), (None, ObjectKey::Pod(ringfence_model::PodId("u".into()))));
    let namespace = json!({"metadata": {"name": "n", "labels": {"team": ["a"]}}});
    let reading = read(Kind::Namespace, &namespace);
    assert_eq!((reading.object, reading.diagnostics[0].severity), (None, Severity::Error));
}

#[test]
fn without_a_name_nobody_knows_what_it_is() {
    for (kind, text) in [
        (Kind::Pod, "7"),
        (Kind::Pod, "null"),
        (Kind::Pod, "{"),
        (Kind::Pod, r#"{"metadata": {}}"#),
        (Kind::Pod, r#"{"metadata": {"name": "p", "namespace": "-"}}"#),
        (Kind::Namespace, r#"{"metadata": {"name": "a.b"}}"#),
        (Kind::Node, r#"{"metadata": {"name": 7}}"#),
        (Kind::NetworkPolicy, r#"{"metadata": "x"}"#),
    ] {
        let error = Reader::new("https://api").read(kind, text).unwrap_err();
        assert_eq!((error.severity, &*error.location.file), (Severity::Fatal, "https://api"), "{text}: {error}");
        assert!(Reader::new("https://api").key(kind, text).is_err(), "{text}");
    }
}

#[test]
fn unusual_objects() {
    // The longest name, three addresses, ten thousand labels.
    let name = "a".repeat(253);
    let labels: serde_json::Map<String, Value> = (0..10_000).map(|number| (format!("k{number}"), json!("v"))).collect();
    let pod = json!({"metadata": {"name": name, "namespace": "n", "uid": "u", "labels": labels},
        "status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}, {"ip": "10.0.0.2"}]}});
    let Some(Object::Pod(pod)) = read(Kind::Pod, &pod).object else { panic!("no pod") };
    assert_eq!((pod.name.len(), pod.labels.len(), pod.addresses.len()), (253, 10_000, 3));
    // A node that has no range yet.
    let node = read(Kind::Node, &json!({"metadata": {"name": "n"}, "spec": {}, "status": {}}));
    let Some(Object::Node(node)) = node.object else { panic!("no node") };
    assert!(node.pod_cidrs.is_empty() && node.addresses.is_empty());
    // Everything of a family, and the longest name of a policy.
    let policy = json!({"metadata": {"name": name, "namespace": "n"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"ipBlock": {"cidr": "::/0"}}]}]}});
    let reading = read(Kind::NetworkPolicy, &policy);
    let Some(Object::Policy(policy)) = reading.object else { panic!("no policy") };
    let Peers::OneOf(peers) = &policy.ingress[0].peers else { panic!("{policy:?}") };
    assert!(matches!(&peers[0], Peer::Block(block) if block.cidr.to_string() == "::/0"));
    assert!(reading.diagnostics.is_empty());
}

/// Equal strings of many objects are one.
#[test]
fn strings_are_shared() {
    let mut reader = Reader::new("s");
    let pods: Vec<_> = ["a", "b"]
        .into_iter()
        .map(|name| {
            let pod = json!({"metadata": {"name": name, "namespace": "shop", "labels": {"app": "web"}},
                "spec": {"nodeName": "node-1", "containers": [{"ports": [{"name": "http", "containerPort": 80}]}]}});
            let Some(Object::Pod(pod)) = reader.read(Kind::Pod, &pod.to_string()).unwrap().object else { panic!() };
            pod
        })
        .collect();
    let parts = |pod: &ringfence_model::Pod| {
        let (key, value) = pod.labels.iter().next().unwrap();
        [&pod.namespace, pod.node.as_ref().unwrap(), key, value, pod.ports[0].name.as_ref().unwrap()]
            .map(|s| s.as_ptr())
    };
    assert_eq!(parts(&pods[0]), parts(&pods[1]));
}

/// The kubelet knows a static pod by another uid than the API server; the mirror of it tells.
#[test]
fn a_static_pod_tells_its_other_uid() {
    let pod = json!({
        "metadata": {"namespace": "kube-system", "name": "proxy-node-1", "uid": "u1", "resourceVersion": "3",
            "annotations": {"kubernetes.io/config.mirror": "5f4f4d9c", "other": "x"}},
        "spec": {"nodeName": "node-1"}, "status": {"phase": "Pending"},
    });
    let Some(Object::Pod(read)) = read(Kind::Pod, &pod).object else { panic!("no pod") };
    assert_eq!(read.static_uid.as_deref(), Some("5f4f4d9c"));
}

/// A page says of its objects what each of them says alone.
#[test]
fn a_page_of_a_list() {
    let pod =
        |name: &str| json!({"metadata": {"namespace": "shop", "name": name, "uid": name, "resourceVersion": "7"}});
    let read = |page: &str| {
        let (metadata, readings) = Reader::new("https://api").page(Kind::Pod, page.as_bytes())?;
        let names: Vec<String> =
            readings.iter().map(|reading| format!("{:?} {}", reading.key, reading.version)).collect();
        Ok::<_, PageError>((metadata.resource_version, metadata.continue_token, names))
    };
    let alone = |name: &str| {
        let Reading { key, version, .. } = self::read(Kind::Pod, &pod(name));
        format!("{key:?} {version}")
    };
    let both = vec![alone("a"), alone("b")];
    let items = json!([pod("a"), pod("b")]);
    let metadata = json!({"resourceVersion": "9", "continue": "token", "remainingItemCount": 5});
    let (version, token) = ("9".to_owned(), Some("token".to_owned()));
    // In whatever order, with whatever else.
    for page in [
        format!(r#"{{"kind": "PodList", "metadata": {metadata}, "items": {items}}}"#),
        format!(r#"{{"items": {items}, "other": [{{"items": [7]}}], "metadata": {metadata}}}"#),
    ] {
        assert_eq!(read(&page).unwrap(), (version.clone(), token.clone(), both.clone()), "{page}");
    }
    assert_eq!(read(r#"{"metadata": {}, "items": null}"#).unwrap(), (String::new(), None, Vec::new()));
    for malformed in [
        "",
        // No list, which is not the same as a list of nothing.
        "{}",
        r#"{"metadata": {"resourceVersion": "9"}}"#,
        "[]",
        "7",
        r#"{"items": {}}"#,
        r#"{"items": [], "items": []}"#,
        r#"{"metadata": {}, "metadata": {}}"#,
        r#"{"metadata": 7}"#,
        r#"{"items": []} x"#,
        &format!(r#"{{"items": [{}, {{"metadata": "#, pod("a")),
    ] {
        assert!(matches!(read(malformed), Err(PageError::Malformed(_))), "{malformed}");
    }
    let nameless = format!(r#"{{"items": [{}, {{"metadata": {{"namespace": "shop"}}}}, {}]}}"#, pod("a"), pod("b"));
    let Err(PageError::Object(diagnostic)) = read(&nameless) else { panic!("taken") };
    assert_eq!((diagnostic.severity, &*diagnostic.location.file), (Severity::Fatal, "https://api"));
}
