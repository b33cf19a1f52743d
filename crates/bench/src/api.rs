//! Objects of the model as an API server has them, with the weight of what policies do not look at.

use ringfence_fake_apiserver::sample;
use ringfence_model::{
    ContainerPort, Labels, Namespace, NamespaceScope, Node, Object, Operator, Peer, Peers, Phase, Pod, Policy,
    PortMatch, Ports, Protocol, Rule, Selector,
};
use serde_json::{Map, Value, json};

/// An object as the API server tells it. Nothing for Services and their endpoints, which no agent asks for that enforces at
/// the destination.
pub(super) fn object(object: &Object) -> Option<Value> {
    match object {
        Object::Namespace(namespace) => Some(self::namespace(namespace)),
        Object::Node(node) => Some(self::node(node)),
        Object::Pod(pod) => Some(self::pod(pod)),
        Object::Policy(policy) => Some(self::policy(policy)),
        Object::Service(_) | Object::EndpointSlice(_) => None,
    }
}

pub(super) fn namespace(namespace: &Namespace) -> Value {
    sample::namespace(&namespace.name, &pairs(&namespace.labels))
}

fn node(node: &Node) -> Value {
    let address = node.addresses.first().map(ToString::to_string).unwrap_or_default();
    let ranges: Vec<String> = node.pod_cidrs.iter().map(ToString::to_string).collect();
    let mut object = sample::node(&node.name, &address, &ranges.iter().map(String::as_str).collect::<Vec<_>>());
    let addresses = node.addresses.iter().map(|address| json!({"type": "InternalIP", "address": address.to_string()}));
    object["status"]["addresses"] = addresses.collect();
    object
}

/// The server gives it a uid.
pub(super) fn pod(pod: &Pod) -> Value {
    let addresses: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let node = pod.node.as_deref().unwrap_or_default();
    let mut object = sample::pod(&pod.namespace, &pod.name, &pairs(&pod.labels), node, &addresses);
    let ports: Vec<Value> = pod.ports.iter().map(port).collect();
    object["spec"]["containers"][0]["ports"] = json!(ports);
    if pod.host_network {
        object["spec"]["hostNetwork"] = json!(true);
    }
    if pod.phase == Phase::Finished {
        object["status"]["phase"] = json!("Succeeded");
    }
    object
}

pub(super) fn policy(policy: &Policy) -> Value {
    let mut spec = json!({"podSelector": selector(&policy.pods)});
    let mut types = Vec::new();
    if policy.isolates.ingress {
        types.push("Ingress");
        spec["ingress"] = policy.ingress.iter().map(|allowed| rule("from", allowed)).collect();
    }
    if policy.isolates.egress {
        types.push("Egress");
        spec["egress"] = policy.egress.iter().map(|allowed| rule("to", allowed)).collect();
    }
    spec["policyTypes"] = json!(types);
    sample::network_policy(&policy.id.namespace, &policy.id.name, &spec)
}

fn pairs(labels: &Labels) -> Vec<(&str, &str)> {
    labels.iter().map(|(key, value)| (&**key, &**value)).collect()
}

fn port(port: &ContainerPort) -> Value {
    let mut object = json!({"containerPort": port.port, "protocol": protocol(port.protocol)});
    if let Some(name) = &port.name {
        object["name"] = json!(&**name);
    }
    object
}

fn protocol(protocol: Protocol) -> String {
    protocol.to_string()
}

/// No entries at all mean anyone or anything, and are left out: the model has no list that is empty.
fn rule(ends: &str, rule: &Rule) -> Value {
    let mut object = Map::new();
    if let Peers::OneOf(peers) = &rule.peers {
        object.insert(ends.to_owned(), peers.iter().map(peer).collect());
    }
    if let Ports::OneOf(ports) = &rule.ports {
        object.insert("ports".to_owned(), ports.iter().map(port_match).collect());
    }
    Value::Object(object)
}

fn peer(peer: &Peer) -> Value {
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

fn port_match(port: &PortMatch) -> Value {
    match port {
        PortMatch::Number(of, range) if range.first == range.last => {
            json!({"protocol": protocol(*of), "port": range.first})
        }
        PortMatch::Number(of, range) => {
            json!({"protocol": protocol(*of), "port": range.first, "endPort": range.last})
        }
        PortMatch::Named(of, name) => json!({"protocol": protocol(*of), "port": &**name}),
    }
}

fn selector(selector: &Selector) -> Value {
    let mut object = Map::new();
    if !selector.match_labels.is_empty() {
        let labels = selector.match_labels.iter().map(|(key, value)| (key.to_string(), json!(&**value)));
        object.insert("matchLabels".to_owned(), labels.collect());
    }
    if !selector.match_expressions.is_empty() {
        let requirements = selector.match_expressions.iter().map(|requirement| {
            let (operator, values) = match &requirement.operator {
                Operator::In(values) => ("In", Some(values)),
                Operator::NotIn(values) => ("NotIn", Some(values)),
                Operator::Exists => ("Exists", None),
                Operator::DoesNotExist => ("DoesNotExist", None),
            };
            let mut object = json!({"key": &*requirement.key, "operator": operator});
            if let Some(values) = values {
                object["values"] = values.iter().map(|value| json!(&**value)).collect();
            }
            object
        });
        object.insert("matchExpressions".to_owned(), requirements.collect());
    }
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ringfence_k8s::api::{Kind, Reader};
    use ringfence_model::PodId;

    use super::*;
    use crate::mix::Mix;

    /// What is measured is what the mix says: read back, every object is the one that was written.
    #[test]
    fn what_is_written_is_read_back() {
        let mix = Mix { hot_policies: 5, ..Mix::new(100, 40) };
        let mut reader = Reader::new("server");
        let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
        for object in mix.objects() {
            let kind = match &object {
                Object::Namespace(_) => Kind::Namespace,
                Object::Node(_) => Kind::Node,
                Object::Pod(_) => Kind::Pod,
                Object::Policy(_) | Object::Service(_) | Object::EndpointSlice(_) => Kind::NetworkPolicy,
            };
            *seen.entry(kind.name()).or_default() += 1;
            let text = super::object(&object).unwrap().to_string();
            let reading = reader.read(kind, &text).unwrap();
            assert!(reading.diagnostics.is_empty(), "{:?}", reading.diagnostics);
            let read = match (reading.object.unwrap(), &object) {
                // Made from the name: the server gives pods their uid.
                (Object::Pod(pod), Object::Pod(wanted)) => Object::Pod(Pod { id: PodId(wanted.id.0.clone()), ..pod }),
                (read, _) => read,
            };
            assert_eq!(read, object);
        }
        assert!(seen.values().all(|count| *count >= 2) && seen.len() == 4, "{seen:?}");
    }
}
