//! Lists.

use ringfence_fake_apiserver::{ApiServer, version_of};
use serde_json::{Value, json};

use crate::{client, names, pod, pods, policies, policy};

pub(crate) fn lists_are_in_the_order_of_keys(server: &mut dyn ApiServer, namespace: &str) {
    let client = client(server);
    // A minus comes before the slash that ends the name of a namespace.
    let longer = format!("{namespace}-b");
    client.put(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": longer}})).unwrap();
    for (namespace, name) in [(namespace, "b"), (namespace, "a"), (longer.as_str(), "c")] {
        client.put(&pod(namespace, name, "order")).unwrap();
    }
    let list = client.get("/api/v1/pods?labelSelector=app%3Dorder").unwrap();
    assert_eq!(names(&list.json), ["c", "a", "b"]);
    client.remove("namespaces", "", &longer).unwrap();
}

pub(crate) fn a_list_is_a_list_and_an_object_an_object(server: &mut dyn ApiServer, namespace: &str) {
    let client = client(server);
    let empty = client.get(&policies(namespace)).unwrap();
    assert_eq!(empty.json["items"], json!([]));
    let version = client.put(&policy(namespace, "one")).unwrap();
    assert!(version > empty.version());
    let list = client.get(&policies(namespace)).unwrap();
    assert_eq!(
        (&list.json["kind"], &list.json["apiVersion"]),
        (&json!("NetworkPolicyList"), &json!("networking.k8s.io/v1"))
    );
    assert!(list.version() >= version);
    assert!(list.headers["content-type"].to_str().unwrap().starts_with("application/json"));
    let item = &list.json["items"][0];
    // Items do not say what they are, the list does.
    assert_eq!((&item["kind"], &item["apiVersion"]), (&Value::Null, &Value::Null));
    assert_eq!(version_of(item), version);
    let one = client.get(&format!("{}/one", policies(namespace))).unwrap();
    assert_eq!((&one.json["kind"], &one.json["apiVersion"]), (&json!("NetworkPolicy"), &json!("networking.k8s.io/v1")));
    assert_eq!(one.json["metadata"], item["metadata"]);
    assert_eq!(one.json["spec"], item["spec"]);
    // Another resource's changes are in the versions of lists, too.
    let other = client.put(&pod(namespace, "other", "web")).unwrap();
    assert!(other > version);
    assert!(client.get(&policies(namespace)).unwrap().version() >= other);
}

pub(crate) fn pages_show_one_moment(server: &mut dyn ApiServer, namespace: &str) {
    let client = client(server);
    let path = pods(namespace);
    for name in ["a", "b", "c", "d", "e"] {
        client.put(&pod(namespace, name, "web")).unwrap();
    }
    let first = client.get(&format!("{path}?limit=2")).unwrap();
    assert_eq!(names(&first.json), ["a", "b"]);
    assert_eq!(first.json["metadata"]["remainingItemCount"], 3);
    // None of this is in the list that has begun.
    client.remove("pods", namespace, "c").unwrap();
    client.put(&pod(namespace, "d", "other")).unwrap();
    client.put(&pod(namespace, "bb", "web")).unwrap();
    let follow = |page: &Value| {
        let token = page["metadata"]["continue"].as_str().unwrap();
        client.get(&format!("{path}?limit=2&continue={token}")).unwrap()
    };
    let second = follow(&first.json);
    assert_eq!(names(&second.json), ["c", "d"]);
    assert_eq!(second.json["items"][1]["metadata"]["labels"]["app"], "web");
    let third = follow(&second.json);
    assert_eq!(names(&third.json), ["e"]);
    assert_eq!(third.json["metadata"]["continue"], Value::Null);
    assert_eq!((second.version(), third.version()), (first.version(), first.version()));
    // How many remain is not counted where a selector would have to be asked.
    let selected = client.get(&format!("{path}?limit=2&labelSelector=app")).unwrap();
    assert_eq!(selected.json["metadata"]["remainingItemCount"], Value::Null);
    assert!(selected.json["metadata"]["continue"].is_string());
    // A list that fits is whole, and one from memory knows no pages.
    let whole = client.get(&format!("{path}?limit=5")).unwrap();
    assert_eq!((names(&whole.json).len(), &whole.json["metadata"]["continue"]), (5, &Value::Null));
    let memory = client.get(&format!("{path}?limit=2&resourceVersion=0")).unwrap();
    assert_eq!(names(&memory.json).len(), 5);
}

pub(crate) fn a_version_of_the_past_can_be_listed(server: &mut dyn ApiServer, namespace: &str) {
    let client = client(server);
    let path = pods(namespace);
    client.put(&pod(namespace, "a", "web")).unwrap();
    let version = client.put(&pod(namespace, "b", "web")).unwrap();
    client.remove("pods", namespace, "a").unwrap();
    client.put(&pod(namespace, "b", "other")).unwrap();
    let newest = client.put(&pod(namespace, "c", "web")).unwrap();
    for query in ["resourceVersionMatch=Exact", "limit=10"] {
        let then = client.get(&format!("{path}?resourceVersion={version}&{query}")).unwrap();
        assert_eq!((names(&then.json), then.version()), (vec!["a", "b"], version), "{query}");
        assert_eq!(then.json["items"][1]["metadata"]["labels"]["app"], "web");
    }
    for query in ["", "&resourceVersionMatch=NotOlderThan"] {
        let now = client.get(&format!("{path}?resourceVersion={version}{query}")).unwrap();
        assert_eq!(names(&now.json), ["b", "c"], "{query}");
        assert!(now.version() >= newest);
    }
}

pub(crate) fn selectors_choose(server: &mut dyn ApiServer, namespace: &str) {
    let client = client(server);
    for (name, app, node) in [("a", "web", "node-1"), ("b", "api", "node-1"), ("c", "web", "node-2")] {
        let mut pod = pod(namespace, name, app);
        pod["spec"]["nodeName"] = json!(node);
        client.put(&pod).unwrap();
    }
    let choose = |query: &str| {
        let list = client.get(&format!("{}?{query}", pods(namespace))).unwrap();
        names(&list.json).join(" ")
    };
    assert_eq!(choose("labelSelector=app%3Dweb"), "a c");
    assert_eq!(choose("labelSelector=app%20in%20(api,none)"), "b");
    assert_eq!(choose("labelSelector=app!%3Dweb,!tier"), "b");
    assert_eq!(choose("fieldSelector=spec.nodeName%3Dnode-1"), "a b");
    assert_eq!(choose("fieldSelector=spec.nodeName!%3Dnode-1,metadata.name%3Dc"), "c");
    assert_eq!(choose("fieldSelector=metadata.name%3Db&labelSelector=app%3Dweb"), "");
    assert_eq!(choose("fieldSelector=status.phase%3DPending"), "a b c");
}

pub(crate) fn lists_are_refused(server: &mut dyn ApiServer, namespace: &str) {
    let client = client(server);
    let invalid =
        |problem: &str| format!("ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: {problem}");
    let check = |query: &str, code: u16, reason: &str, message: &str| {
        let answer = client.get(&format!("{}?{query}", pods(namespace))).unwrap();
        assert_eq!((answer.code, answer.reason()), (code, reason), "{query}");
        assert_eq!(answer.json["kind"], "Status");
        assert_eq!(answer.json["code"], code);
        assert!(answer.json["message"].as_str().unwrap().contains(message), "{}", answer.text);
        answer
    };
    check("fieldSelector=spec.color%3Dred", 400, "BadRequest", "field label not supported: spec.color");
    check("labelSelector=a%20in%20(b", 400, "BadRequest", "unable to parse requirement");
    check("resourceVersion=abc", 400, "BadRequest", "Invalid value: \"abc\"");
    check("continue=abc", 400, "BadRequest", "continue key is not valid");
    let message = invalid("resourceVersionMatch is forbidden unless resourceVersion is provided");
    check("resourceVersionMatch=Exact", 422, "Invalid", &message);
    let message = invalid("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
    check("resourceVersionMatch=Exact&resourceVersion=0", 422, "Invalid", &message);
    check("sendInitialEvents=true", 422, "Invalid", "sendInitialEvents is forbidden for list");
    let future = check("resourceVersion=999999999", 504, "Timeout", "Too large resource version: 999999999, current: ");
    assert_eq!(future.json["details"]["retryAfterSeconds"], 1);
    assert_eq!(future.json["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
}
