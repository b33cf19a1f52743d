//! Single objects, and what else is asked of a server.

use hyper::Method;
use ringfence_fake_apiserver::{ApiServer, sample};
use serde_json::{Value, json};

use crate::{client, event, names, pod, pods, policies, policy};

pub(crate) fn requests_are_refused_with_reasons(server: &mut dyn ApiServer, namespace: &str) {
    let client = client(server);
    let (pods, policies) = (pods(namespace), policies(namespace));
    client.put(&policy(namespace, "one")).unwrap();
    let check = |method: &Method, path: &str, body: Option<&Value>, code: u16, reason: &str, message: &str| {
        let answer = match (method, body) {
            (method, Some(body)) => client.send(method, path, body).unwrap(),
            (&Method::DELETE, None) => client.delete(path).unwrap(),
            _ => client.get(path).unwrap(),
        };
        assert_eq!((answer.code, answer.reason()), (code, reason), "{path}: {}", answer.text);
        assert_eq!((&answer.json["kind"], &answer.json["status"]), (&json!("Status"), &json!("Failure")));
        let found = answer.json["message"].as_str().unwrap();
        assert!(found.contains(message), "{path}: {found}");
    };
    let none = "networkpolicies.networking.k8s.io \"none\" not found";
    check(&Method::GET, &format!("{policies}/none"), None, 404, "NotFound", none);
    check(&Method::DELETE, &format!("{policies}/none"), None, 404, "NotFound", none);
    check(&Method::GET, &format!("{pods}/none"), None, 404, "NotFound", "pods \"none\" not found");
    let unknown = "the server could not find the requested resource";
    check(&Method::GET, "/api/v1/strangethings", None, 404, "NotFound", unknown);
    check(&Method::GET, "/api/v1/pods/none", None, 404, "NotFound", unknown);
    let there = "networkpolicies.networking.k8s.io \"one\" already exists";
    check(&Method::POST, &policies, Some(&policy(namespace, "one")), 409, "AlreadyExists", there);
    let homeless = policy("nowhere", "one");
    let nowhere = "namespaces \"nowhere\" not found";
    check(&Method::POST, &crate::policies("nowhere"), Some(&homeless), 404, "NotFound", nowhere);
    let elsewhere = "the namespace of the provided object does not match the namespace sent on the request";
    check(&Method::POST, &policies, Some(&homeless), 400, "BadRequest", elsewhere);
    let mut nameless = policy(namespace, "one");
    nameless["metadata"] = json!({});
    check(&Method::POST, &policies, Some(&nameless), 422, "Invalid", "name or generateName is required");
    let mut old = policy(namespace, "one");
    old["metadata"]["resourceVersion"] = json!("1");
    let versioned = "resourceVersion should not be set on objects to be created";
    check(&Method::POST, &policies, Some(&old), 500, "", versioned);
    let stale = "Operation cannot be fulfilled on networkpolicies.networking.k8s.io \"one\": the object has been modified; \
                 please apply your changes to the latest version and try again";
    check(&Method::PUT, &format!("{policies}/one"), Some(&old), 409, "Conflict", stale);
    let other = "the name of the object";
    check(&Method::PUT, &format!("{policies}/one"), Some(&policy(namespace, "two")), 400, "BadRequest", other);
    check(&Method::POST, &pods, Some(&policy(namespace, "x")), 400, "BadRequest", "cannot be handled as a Pod");
}

pub(crate) fn objects_change_as_they_are_written(server: &mut dyn ApiServer, namespace: &str) {
    let client = client(server);
    let path = format!("{}/one", policies(namespace));
    let created = client.send(&Method::POST, &policies(namespace), &policy(namespace, "one")).unwrap();
    assert_eq!((created.code, &created.json["metadata"]["generation"]), (201, &json!(1)));
    let uid = &created.json["metadata"]["uid"];
    assert!(uid.is_string() && created.json["metadata"]["creationTimestamp"].is_string());
    // Metadata is no new generation, what is wanted is.
    let labels = json!({"metadata": {"labels": {"a": "1", "b": "2"}}});
    assert_eq!(client.send(&Method::PATCH, &path, &labels).unwrap().json["metadata"]["generation"], 1);
    let answer = client.send(&Method::PATCH, &path, &json!({"metadata": {"labels": {"a": null}}})).unwrap();
    assert_eq!(answer.json["metadata"]["labels"], json!({"b": "2"}));
    let mut wider = policy(namespace, "one");
    wider["spec"]["policyTypes"] = json!(["Ingress", "Egress"]);
    let replaced = client.send(&Method::PUT, &path, &wider).unwrap();
    assert_eq!((replaced.code, &replaced.json["metadata"]["generation"]), (200, &json!(2)));
    assert_eq!((&replaced.json["metadata"]["uid"], &replaced.json["metadata"]["labels"]), (uid, &Value::Null));
    assert!(replaced.version() > answer.version());
    let deleted = client.delete(&path).unwrap();
    assert_eq!(
        (deleted.code, &deleted.json["kind"], &deleted.json["status"]),
        (200, &json!("Status"), &json!("Success"))
    );
    assert_eq!(client.get(&path).unwrap().code, 404);

    let mut generated = policy(namespace, "one");
    generated["metadata"] = json!({"generateName": "many-"});
    let answers = [0, 1].map(|_| client.send(&Method::POST, &policies(namespace), &generated).unwrap());
    let [first, second] = answers.map(|answer| answer.json["metadata"]["name"].as_str().unwrap().to_owned());
    assert!(first.starts_with("many-") && second.starts_with("many-") && first != second, "{first} {second}");

    let name = client.get(&format!("/api/v1/namespaces/{namespace}")).unwrap();
    assert_eq!(name.json["metadata"]["labels"]["kubernetes.io/metadata.name"], namespace);
    assert_eq!(
        (&name.json["spec"]["finalizers"][0], &name.json["status"]["phase"]),
        (&json!("kubernetes"), &json!("Active"))
    );

    // A pod's state is written by itself, and nothing else is written with it.
    let running = json!({"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]});
    let mut claims = pod(namespace, "p", "web");
    claims["status"] = running.clone();
    let path = format!("{}/p", pods(namespace));
    let created = client.send(&Method::POST, &pods(namespace), &claims).unwrap();
    assert_eq!((&created.json["status"]["phase"], &created.json["status"]["podIP"]), (&json!("Pending"), &Value::Null));
    let both = json!({"status": running, "metadata": {"labels": {"app": "api"}}});
    let status = client.send(&Method::PATCH, &format!("{path}/status"), &both).unwrap();
    assert_eq!(status.json["status"]["podIP"], "10.0.0.1");
    assert_eq!(status.json["metadata"]["generation"], 1);
    let spec = json!({"status": {"podIP": "10.0.0.2"}, "metadata": {"labels": {"app": "db"}}});
    let spec = client.send(&Method::PATCH, &path, &spec).unwrap();
    assert_eq!(
        (&spec.json["status"]["podIP"], &spec.json["metadata"]["labels"]["app"]),
        (&json!("10.0.0.1"), &json!("db"))
    );
}

pub(crate) fn a_pod_ends_with_grace_or_without(server: &mut dyn ApiServer, namespace: &str) {
    let client = client(server);
    let path = pods(namespace);
    client.put(&pod(namespace, "slow", "web")).unwrap();
    client.put(&pod(namespace, "quick", "web")).unwrap();
    let mut waits = pod(namespace, "waits", "web");
    waits["spec"]["nodeName"] = json!("");
    let start = client.put(&waits).unwrap();
    let mut watch = client.watch(&format!("{path}?watch=true&resourceVersion={start}")).unwrap();
    // The type, the name, the period of grace and the generation of the next event.
    let mut next = || {
        let event = watch.event().unwrap().unwrap();
        let metadata = &event["object"]["metadata"];
        if event["type"] == "MODIFIED" {
            assert!(metadata["deletionTimestamp"].as_str().unwrap() >= metadata["creationTimestamp"].as_str().unwrap());
        }
        let (grace, generation) = (&metadata["deletionGracePeriodSeconds"], &metadata["generation"]);
        format!("{} {} {grace} {generation}", event["type"].as_str().unwrap(), metadata["name"].as_str().unwrap())
    };
    let end = |name: &str, query: &str| client.delete(&format!("{path}/{name}{query}")).unwrap();

    let ending = end("slow", "");
    assert_eq!((ending.code, &ending.json["kind"]), (200, &json!("Pod")));
    // Once more makes no difference, and neither does a longer period.
    assert_eq!(end("slow", "").version(), ending.version());
    assert_eq!(end("slow", "?gracePeriodSeconds=60").version(), ending.version());
    end("slow", "?gracePeriodSeconds=5");
    end("slow", "?gracePeriodSeconds=0");
    // One that no node runs has nothing to end.
    end("waits", "");
    end("quick", "?gracePeriodSeconds=0");
    let expected = [
        "MODIFIED slow 30 2",
        "MODIFIED slow 5 2",
        "MODIFIED slow 0 2",
        "DELETED slow 0 2",
        "MODIFIED waits 0 2",
        "DELETED waits 0 2",
        "MODIFIED quick 0 2",
        "DELETED quick 0 2",
    ];
    for expected in expected {
        assert_eq!(next(), expected);
    }
    assert_eq!(names(&client.get(&path).unwrap().json).len(), 0);
}

pub(crate) fn what_else_is_asked_of_a_server(server: &mut dyn ApiServer, namespace: &str) {
    let client = client(server);
    assert_eq!(client.get("/readyz").unwrap().text, "ok");
    let version = client.get("/version").unwrap().json;
    assert!(version["gitVersion"].as_str().unwrap().starts_with("v1."), "{version}");
    let groups = client.get("/apis").unwrap().json;
    let groups: Vec<&str> =
        groups["groups"].as_array().unwrap().iter().map(|group| group["name"].as_str().unwrap()).collect();
    assert!(groups.contains(&"networking.k8s.io"), "{groups:?}");
    let resources = client.get("/apis/networking.k8s.io/v1").unwrap().json;
    let resource =
        resources["resources"].as_array().unwrap().iter().find(|resource| resource["name"] == "networkpolicies");
    assert_eq!(resource.unwrap()["kind"], "NetworkPolicy");

    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": "watch", "group": "networking.k8s.io", "resource": "networkpolicies"}}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let answer = client.send(&Method::POST, path, &review).unwrap();
    assert_eq!((answer.code, &answer.json["status"]["allowed"]), (201, &json!(true)));

    let path = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
    let start = client.get(&path).unwrap().version();
    let report = json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"namespace": namespace, "name": "one.1"},
        "eventTime": "2026-01-01T00:00:00.000000Z", "type": "Warning", "reason": "Invalid", "action": "Read", "note": "why",
        "reportingController": "example.com/agent", "reportingInstance": "node-1",
        "regarding": {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "name": "one", "namespace": namespace},
    });
    let created = client.send(&Method::POST, &path, &report).unwrap();
    assert_eq!(created.code, 201, "{}", created.text);
    let mut watch = client.watch(&format!("{path}?watch=true&resourceVersion={start}")).unwrap();
    assert_eq!(watch.in_short().unwrap(), event("ADDED", "one.1", created.version()));
    let series = json!({"series": {"count": 2, "lastObservedTime": "2026-01-01T00:01:00.000000Z"}});
    let patched = client.send(&Method::PATCH, &format!("{path}/one.1"), &series).unwrap();
    assert_eq!((patched.code, &patched.json["series"]["count"]), (200, &json!(2)));
    let list = client.get(&format!("{path}?fieldSelector=regarding.name%3Done")).unwrap();
    // Some servers know the fields of events by their old names only.
    assert!(list.code == 400 || names(&list.json) == ["one.1"], "{}", list.text);
}

/// What a server makes of the samples is what they are: it adds nothing that a reader would miss and drops nothing.
pub(crate) fn samples_are_taken_and_given_back(server: &mut dyn ApiServer, namespace: &str) {
    let client = client(server);
    let spec = json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {}}], "ports": [{"protocol": "TCP", "port": 80}]}]});
    let other = format!("{namespace}-ns");
    let samples = [
        (
            pods(namespace) + "/web-1",
            sample::pod(namespace, "web-1", &[("app", "web")], "node-1", &["10.0.0.1", "fd00::1"]),
        ),
        (pods(namespace) + "/web-2", sample::pod(namespace, "web-2", &[("app", "web")], "", &[])),
        (policies(namespace) + "/web", sample::network_policy(namespace, "web", &spec)),
        (format!("/api/v1/namespaces/{other}"), sample::namespace(&other, &[("team", "a")])),
        (format!("/api/v1/nodes/{other}"), sample::node(&other, "192.0.2.1", &["10.0.0.0/24", "fd00::/64"])),
    ];
    for (path, sample) in samples {
        client.put(&sample).unwrap();
        let stored = client.get(&path).unwrap();
        for part in ["spec", "status"] {
            contains(&stored.json[part], &sample[part], &format!("{path} {part}"));
        }
        contains(&stored.json["metadata"]["labels"], &sample["metadata"]["labels"], &path);
        let ratio = 100 * stored.text.len() / sample.to_string().len();
        assert!(
            (60..160).contains(&ratio),
            "{path}: the sample is {} bytes, stored are {}",
            sample.to_string().len(),
            stored.text.len()
        );
    }
    client.remove("nodes", "", &other).unwrap();
    client.remove("namespaces", "", &other).unwrap();
}

/// What tells where connections from outside end.
pub(crate) fn services_and_slices_are_kept(server: &mut dyn ApiServer, namespace: &str) {
    let client = client(server);
    let slices = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices");
    let start = client.get(&slices).unwrap().version();
    let service = sample::service(namespace, "web", "NodePort", "web");
    let slice = sample::endpoint_slice(namespace, "web-1", "web", &["10.0.0.1", "10.0.0.2"], 8080);
    client.put(&service).unwrap();
    client.put(&slice).unwrap();
    let stored = client.get(&format!("/api/v1/namespaces/{namespace}/services/web")).unwrap();
    contains(&stored.json["spec"], &service["spec"], "service");
    let stored = client.get(&format!("{slices}/web-1")).unwrap();
    for part in ["addressType", "endpoints", "ports"] {
        contains(&stored.json[part], &slice[part], part);
    }
    assert_eq!(stored.json["metadata"]["labels"]["kubernetes.io/service-name"], "web");
    let all = client.get("/apis/discovery.k8s.io/v1/endpointslices").unwrap();
    assert_eq!((all.code, &all.json["kind"]), (200, &json!("EndpointSliceList")));
    let path = format!("{slices}?watch=true&resourceVersion={start}");
    assert_eq!(client.watch(&path).unwrap().in_short().unwrap(), event("ADDED", "web-1", stored.version()));
    client.remove("services", namespace, "web").unwrap();
    client.remove("endpointslices.discovery.k8s.io", namespace, "web-1").unwrap();
}

/// A merge patch writes annotations, takes away those that are null, and touches no others.
pub(crate) fn annotations_of_a_node_are_merged(server: &mut dyn ApiServer, namespace: &str) {
    let client = client(server);
    let name = format!("{namespace}-node");
    let node = sample::node(&name, "192.0.2.7", &["10.0.7.0/24"]);
    client.put(&node).unwrap();
    let path = format!("/api/v1/nodes/{name}");
    let patch = |annotations: Value| {
        let answer = client.send(&Method::PATCH, &path, &json!({"metadata": {"annotations": annotations}})).unwrap();
        assert_eq!(answer.code, 200, "{}", answer.text);
        answer.json
    };
    patch(json!({"example.com/a": "1", "example.com/b": "2"}));
    let stored = patch(json!({"example.com/a": null, "example.com/c": "3"}));
    let mut expected = node["metadata"]["annotations"].clone();
    expected["example.com/b"] = json!("2");
    expected["example.com/c"] = json!("3");
    assert_eq!(stored["metadata"]["annotations"], expected);
    contains(&stored["status"]["addresses"], &node["status"]["addresses"], "status");
    client.remove("nodes", "", &name).unwrap();
}

/// Whether all of `part` is in `whole`, which may hold more fields.
fn contains(whole: &Value, part: &Value, place: &str) {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            for (key, value) in part {
                contains(whole.get(key).unwrap_or(&Value::Null), value, &format!("{place}.{key}"));
            }
        }
        (Value::Array(whole), Value::Array(part)) => {
            assert_eq!(whole.len(), part.len(), "{place}");
            for (at, (whole, part)) in whole.iter().zip(part).enumerate() {
                contains(whole, part, &format!("{place}.{at}"));
            }
        }
        _ => assert_eq!(whole, part, "{place}"),
    }
}
