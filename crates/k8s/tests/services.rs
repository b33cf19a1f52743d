//! What tells where connections from outside end, and whose addresses are nodes': Services, EndpointSlices, annotations of
//! Nodes. From files and from an API server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod check;

use std::net::IpAddr;

use check::{Expected, check};
use ringfence_k8s::Severity::{Error, Warning};
use ringfence_k8s::api::{Kind, Reader};
use ringfence_model::{
    EndpointSlice, EnforceAt, Enforcement, Node, NodeTraffic, Object, ObjectKey, Protocol, Service, ServiceKind,
};
use serde_json::{Value, json};

/// The object that a text in JSON has, read as a file and as an answer of an API server, which must agree.
fn both(kind: Kind, text: &str, expected: &[Expected<'_>]) -> Option<Object> {
    let manifests = check(text, expected);
    let found = manifests.objects.into_iter().find(|object| !matches!(object, Object::Namespace(_)));
    let reading = Reader::new("https://api").read(kind, text).unwrap();
    assert_eq!(reading.diagnostics.len(), expected.len(), "{:?}", reading.diagnostics);
    if kind != Kind::Service {
        assert_eq!(reading.object, found, "{text}");
    }
    found
}

fn slice(fields: &Value, expected: &[Expected<'_>]) -> EndpointSlice {
    let mut object = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": "shop", "name": "web-x2", "labels": {"kubernetes.io/service-name": "web"}}});
    object.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    match both(Kind::EndpointSlice, &object.to_string(), expected) {
        Some(Object::EndpointSlice(slice)) => slice,
        other => panic!("{other:?}"),
    }
}

/// The addresses, with a `-` before those that Services do not lead to.
fn served(slice: &EndpointSlice) -> Vec<String> {
    let sign = |serving| if serving { "" } else { "-" };
    slice.endpoints.iter().map(|endpoint| format!("{}{}", sign(endpoint.serving), endpoint.address)).collect()
}

#[test]
fn a_slice_says_who_serves_on_which_ports() {
    let read = slice(
        &json!({
            "addressType": "IPv4",
            "endpoints": [
                {"addresses": ["10.0.0.1", "10.0.0.2"], "conditions": {"ready": true, "serving": true}, "nodeName": "n",
                    "zone": "z", "hints": {"forZones": [{"name": "z"}]}, "targetRef": {"kind": "Pod", "name": "p"}},
                {"addresses": ["10.0.0.3"]},
            ],
            "ports": [{"name": "", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP", "appProtocol": "x"}],
        }),
        &[],
    );
    assert_eq!((&*read.namespace, &*read.name, read.service.as_deref()), ("shop", "web-x2", Some("web")));
    assert_eq!(served(&read), ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    assert_eq!(read.ports, [(Protocol::Tcp, 80), (Protocol::Udp, 53)]);
}

#[test]
fn who_serves_follows_from_the_conditions() {
    let yes = json!(true);
    let no = json!(false);
    for (ready, serving, terminating, expected) in [
        (&Value::Null, &Value::Null, &Value::Null, true),
        (&yes, &Value::Null, &Value::Null, true),
        // Ready with publishNotReadyAddresses, whatever the pod is.
        (&yes, &no, &yes, true),
        (&no, &yes, &yes, true),
        (&no, &yes, &no, false),
        (&no, &yes, &Value::Null, false),
        (&no, &no, &yes, false),
        // Without `serving`, `ready` says it.
        (&no, &Value::Null, &yes, false),
    ] {
        let conditions = json!({"ready": ready, "serving": serving, "terminating": terminating});
        let endpoints = json!([{"addresses": ["fd00::1"], "conditions": conditions}]);
        let read = slice(&json!({"addressType": "IPv6", "endpoints": endpoints, "ports": [{"port": 80}]}), &[]);
        assert_eq!(served(&read) == ["fd00::1"], expected, "{conditions}");
        assert_eq!(read.endpoints.len(), 1);
    }
}

#[test]
fn what_a_slice_does_not_name_is_not_served() {
    let addresses = json!([{"addresses": ["10.0.0.1"]}]);
    // Without a number all ports are meant. Nobody vouches for all ports.
    let read = slice(&json!({"addressType": "IPv4", "endpoints": addresses, "ports": [{"name": "any"}]}), &[]);
    assert_eq!((served(&read).len(), read.ports.len()), (1, 0));
    let names = json!([{"addresses": ["db.example.org"]}]);
    assert_eq!(served(&slice(&json!({"addressType": "FQDN", "endpoints": names}), &[])).len(), 0);
    assert_eq!(served(&slice(&json!({"addressType": "IPv4"}), &[])).len(), 0);
    let text = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "x", "labels": {"kubernetes.io/service-name": ""}}});
    let read = both(Kind::EndpointSlice, &text.to_string(), &[]);
    assert!(matches!(read, Some(Object::EndpointSlice(slice)) if slice.service.is_none()));
}

#[test]
fn what_is_wrong_in_a_slice_serves_nothing_and_the_rest_counts() {
    let endpoints = |first: Value| json!([{"addresses": first}, {"addresses": ["10.0.0.9"]}]);
    let ports = json!([{"port": 80}]);
    let wrong = |first: Value, part: &str| {
        let read = slice(
            &json!({"addressType": "IPv4", "endpoints": endpoints(first), "ports": ports}),
            &[(Error, 1, "endpoints[0].addresses[0]", part)],
        );
        assert_eq!(served(&read), ["10.0.0.9"]);
    };
    wrong(json!(["nowhere"]), "not an IP");
    wrong(json!(["fd00::1"]), "no IPv4 address");
    wrong(json!(["::ffff:10.0.0.1"]), "written as IPv6");
    wrong(json!([7]), "not a string");
    let port = |port: Value, field: &str, part: &str| {
        let all = json!([port, {"port": 81}]);
        let read = slice(
            &json!({"addressType": "IPv4", "endpoints": endpoints(json!([])), "ports": all}),
            &[(Error, 1, field, part)],
        );
        assert_eq!(read.ports, [(Protocol::Tcp, 81)]);
    };
    port(json!({"port": 0}), "ports[0].port", "1 to 65535");
    port(json!({"port": 65_536}), "ports[0].port", "1 to 65535");
    port(json!({"port": "http"}), "ports[0].port", "not a number");
    port(json!({"port": 80, "protocol": "tcp"}), "ports[0].protocol", "write TCP");
    let endpoints = endpoints(json!(["10.0.0.1"]));
    for (kind, part) in [(json!("ipv4"), "one of IPv4"), (json!(4), "not a string"), (json!(""), "empty")] {
        let read = slice(&json!({"addressType": kind, "endpoints": endpoints}), &[(Error, 1, "addressType", part)]);
        assert_eq!(served(&read).len(), 0);
    }
    let read = slice(&json!({"endpoints": endpoints}), &[(Error, 1, "addressType", "missing")]);
    assert_eq!(served(&read).len(), 0);
    let conditions = json!([{"addresses": ["10.0.0.1"], "conditions": {"ready": "yes"}}]);
    let read = slice(
        &json!({"addressType": "IPv4", "endpoints": conditions}),
        &[(Error, 1, "endpoints[0].conditions.ready", "boolean")],
    );
    assert_eq!(served(&read), ["-10.0.0.1"]);
}

#[test]
fn a_slice_is_known_by_its_name_whatever_is_wrong_with_it() {
    let mut reader = Reader::new("https://api");
    let object = json!({"metadata": {"namespace": "shop", "name": "web-x2", "resourceVersion": "7"}, "endpoints": 7});
    let key = ObjectKey::EndpointSlice("shop".into(), "web-x2".into());
    assert_eq!(reader.key(Kind::EndpointSlice, &object.to_string()).unwrap(), (key.clone(), "7".to_owned()));
    assert_eq!(reader.read(Kind::EndpointSlice, &object.to_string()).unwrap().key, key);
    assert!(reader.read(Kind::EndpointSlice, r#"{"metadata": {"namespace": "shop"}}"#).is_err());
    let twice = "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a}, addressType: IPv4}\n---\n\
                 {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a}, addressType: IPv6}";
    check(twice, &[(Error, 3, "", "defined twice")]);
    let old = "{apiVersion: discovery.k8s.io/v1beta1, kind: EndpointSlice, metadata: {name: a}}";
    check(old, &[(Warning, 1, "", "write discovery.k8s.io/v1")]);
}

fn service(spec: &Value, status: &Value, expected: &[Expected<'_>]) -> Service {
    let text = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "web"},
        "spec": spec, "status": status})
    .to_string();
    let Some(Object::Service(from_file)) = both(Kind::Service, &text, expected) else { panic!("no Service") };
    let reading = Reader::new("https://api").read(Kind::Service, &text).unwrap();
    let Some(Object::Service(from_server)) = reading.object else { panic!("no Service") };
    assert_eq!((from_server.ports.len(), from_server.selector.len()), (0, 0), "nobody asks for them");
    assert_eq!(
        (&from_server.kind, &from_server.external_addresses, &from_server.namespace, &from_server.name),
        (&from_file.kind, &from_file.external_addresses, &from_file.namespace, &from_file.name)
    );
    from_file
}

#[test]
fn a_service_has_external_addresses() {
    let addresses =
        |service: &Service| -> Vec<String> { service.external_addresses.iter().map(ToString::to_string).collect() };
    let plain = service(&json!({"selector": {"app": "web"}, "ports": [{"port": 80}]}), &json!({}), &[]);
    assert_eq!((plain.kind, addresses(&plain)), (ServiceKind::ClusterIp, Vec::new()));
    let read = service(
        &json!({"type": "LoadBalancer", "externalIPs": ["192.0.2.80", "2001:db8::80"]}),
        &json!({"loadBalancer": {"ingress": [
            {"ip": "192.0.2.90", "ipMode": "VIP", "ports": []}, {"hostname": "lb.example.org"}, {"ip": "192.0.2.80"},
            {"ip": "192.0.2.91", "ipMode": "Proxy"},
        ]}}),
        &[],
    );
    assert_eq!(addresses(&read), ["192.0.2.80", "2001:db8::80", "192.0.2.90"]);
    let read = service(
        &json!({"externalIPs": ["nowhere", "192.0.2.80"]}),
        &json!({"loadBalancer": {"ingress": [7]}}),
        &[
            (Error, 1, "spec.externalIPs[0]", "not an IP"),
            (Error, 1, "status.loadBalancer.ingress[0]", "not a mapping"),
        ],
    );
    assert_eq!(addresses(&read), ["192.0.2.80"]);
}

fn node(annotations: &Value, expected: &[Expected<'_>]) -> Node {
    let text = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "annotations": annotations},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}})
    .to_string();
    match both(Kind::Node, &text, expected) {
        Some(Object::Node(node)) => node,
        other => panic!("{other:?}"),
    }
}

const ADDRESSES: &str = "ringfence.io/node-addresses";
const FIELD: &str = "metadata.annotations[ringfence.io/node-addresses]";

#[test]
fn a_node_has_more_addresses_than_its_status_tells() {
    let read = node(&json!({ADDRESSES: " 10.244.1.0, 10.244.1.1,fd00:244::1,, 192.0.2.1, 10.244.1.1"}), &[]);
    let expected: Vec<IpAddr> = ["10.244.1.0", "10.244.1.1", "fd00:244::1"].map(|text| text.parse().unwrap()).into();
    assert_eq!(read.tunnel_addresses, expected);
    assert_eq!(node(&json!({"other": "10.244.1.1"}), &[]).tunnel_addresses, Vec::<IpAddr>::new());
    assert_eq!(node(&json!({ADDRESSES: ""}), &[]).tunnel_addresses, Vec::<IpAddr>::new());
}

#[test]
fn addresses_that_no_node_can_have_are_left_out() {
    for (wrong, reason) in [
        ("nowhere", "not an IP"),
        ("10.0.0.0/8", "not an IP"),
        ("0.0.0.0", "not an address of anybody"),
        ("0.1.2.3", "not an address of anybody"),
        ("255.255.255.255", "not an address of anybody"),
        ("::", "not an address of anybody"),
        ("127.0.0.2", "a loopback"),
        ("::1", "a loopback"),
        ("224.0.0.1", "a multicast"),
        ("ff02::1", "a multicast"),
        ("169.254.1.1", "a link-local"),
        ("fe80::1", "a link-local"),
        ("fe80::1%eth0", "a zone"),
        ("::ffff:10.0.0.1", "written as IPv6"),
    ] {
        let read = node(&json!({ADDRESSES: format!("10.244.1.1,{wrong}")}), &[(Warning, 1, FIELD, reason)]);
        assert_eq!(read.tunnel_addresses, ["10.244.1.1".parse::<IpAddr>().unwrap()], "{wrong}");
    }
    let many: Vec<String> = (1..=70).map(|last| format!("10.244.1.{last}")).collect();
    let read = node(&json!({ADDRESSES: many.join(",")}), &[(Warning, 1, FIELD, "more than 64")]);
    assert_eq!(read.tunnel_addresses.len(), 64);
    let text = "{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 127.0.0.1}]}}";
    let manifests = check(text, &[(Warning, 1, "status.addresses[0].address", "a loopback")]);
    assert!(
        manifests.objects.iter().any(|object| matches!(object, Object::Node(node) if node.addresses.is_empty())),
        "who forges it would be trusted"
    );
}

#[test]
fn a_node_announces_what_its_agent_does() {
    for at in EnforceAt::ALL {
        for node_traffic in NodeTraffic::ALL {
            let said = Enforcement { at, node_traffic };
            assert_eq!(node(&json!({"ringfence.io/enforcement": said.to_string()}), &[]).announced, Some(said));
        }
    }
    // What a newer agent may say is as good as nothing.
    for text in ["entry", "entry/", "entry/own/x", "Entry/own", "somewhere/own"] {
        assert_eq!(node(&json!({"ringfence.io/enforcement": text}), &[]).announced, None, "{text}");
    }
}

#[test]
fn services_are_needed_only_where_connections_enter() {
    let needed = |at| Kind::needed(at).map(Kind::resource).collect::<Vec<_>>();
    assert_eq!(needed(EnforceAt::Destination), ["namespaces", "nodes", "networkpolicies", "pods"]);
    assert_eq!(needed(EnforceAt::Everywhere), needed(EnforceAt::Destination));
    assert_eq!(
        needed(EnforceAt::Entry),
        ["namespaces", "nodes", "services", "endpointslices", "networkpolicies", "pods"]
    );
}
