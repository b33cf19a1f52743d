//! Watches.

use hyper::Method;
use ringfence_fake_apiserver::{ApiServer, Client, version_of};
use serde_json::{Value, json};

use crate::{client, event, pod, pods};

fn patch(client: &Client, path: &str, change: &Value) -> u64 {
    let answer = client.send(&Method::PATCH, path, change).unwrap();
    assert_eq!(answer.code, 200, "{}", answer.text);
    answer.version()
}

pub(crate) fn changes_come_in_order(server: &mut dyn ApiServer, namespace: &str) {
    let client = client(server);
    let path = pods(namespace);
    let start = client.get(&path).unwrap().version();
    let mut open = client.watch(&format!("{path}?watch=true&resourceVersion={start}")).unwrap();
    assert_eq!(open.code, 200);

    let mut expected = vec![event("ADDED", "a", client.put(&pod(namespace, "a", "web")).unwrap())];
    let labels = json!({"metadata": {"labels": {"app": "api"}}});
    let changed = patch(&client, &format!("{path}/a"), &labels);
    expected.push(event("MODIFIED", "a", changed));
    // What changes nothing is no change.
    assert_eq!(patch(&client, &format!("{path}/a"), &labels), changed);
    let status = json!({"status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]}});
    expected.push(event("MODIFIED", "a", patch(&client, &format!("{path}/a/status"), &status)));
    expected.push(event("ADDED", "b", client.put(&pod(namespace, "b", "web")).unwrap()));
    client.put(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": namespace}})).unwrap();
    client.remove("nodes", "", namespace).unwrap();
    client.remove("pods", namespace, "a").unwrap();
    let again = client.put(&pod(namespace, "a", "again")).unwrap();

    let mut late = client.watch(&format!("{path}?watch=true&resourceVersion={start}")).unwrap();
    for watch in [&mut open, &mut late] {
        let mut last = start;
        for expected in &expected {
            let event = watch.in_short().unwrap();
            assert_eq!(event, *expected);
            assert!(event.2 > last);
            last = event.2;
        }
        // A pod is told to end before it is gone, even where nothing is waited for.
        let (kind, name, ending) = watch.in_short().unwrap();
        assert_eq!((kind.as_str(), name.as_str()), ("MODIFIED", "a"));
        assert!(ending > last);
        let gone = watch.event().unwrap().unwrap();
        assert_eq!((&gone["type"], &gone["object"]["metadata"]["name"]), (&json!("DELETED"), &json!("a")));
        // It is told as it was, with the version of its end.
        assert_eq!(gone["object"]["status"]["podIP"], "10.0.0.1");
        assert_eq!(gone["object"]["metadata"]["labels"]["app"], "api");
        assert_eq!((&gone["object"]["kind"], &gone["object"]["apiVersion"]), (&json!("Pod"), &json!("v1")));
        let end = version_of(&gone["object"]);
        assert!(end > ending && end < again);
        let reborn = watch.event().unwrap().unwrap();
        assert_eq!((&reborn["type"], version_of(&reborn["object"])), (&json!("ADDED"), again));
        assert_ne!(reborn["object"]["metadata"]["uid"], gone["object"]["metadata"]["uid"]);
    }
    // From a version in the middle, what comes after it.
    let mut middle = client.watch(&format!("{path}?watch=1&resourceVersion={changed}")).unwrap();
    assert_eq!(middle.in_short().unwrap(), expected[2]);
}

pub(crate) fn what_enters_a_selection_is_added_and_what_leaves_it_deleted(server: &mut dyn ApiServer, namespace: &str) {
    let client = client(server);
    let path = pods(namespace);
    let start = client.put(&pod(namespace, "a", "web")).unwrap();
    let watch = |query: &str| client.watch(&format!("{path}?watch=true&resourceVersion={start}&{query}")).unwrap();
    let mut web = watch("labelSelector=app%3Dweb");
    let mut running = watch("fieldSelector=status.phase%3DRunning,spec.nodeName%3Dnode-1");

    let left = patch(&client, &format!("{path}/a"), &json!({"metadata": {"labels": {"app": "api"}}}));
    let gone = web.event().unwrap().unwrap();
    assert_eq!((&gone["type"], version_of(&gone["object"])), (&json!("DELETED"), left));
    // As it was while it was selected.
    assert_eq!(gone["object"]["metadata"]["labels"]["app"], "web");
    client.put(&pod(namespace, "b", "api")).unwrap();
    let back = patch(&client, &format!("{path}/a"), &json!({"metadata": {"labels": {"app": "web"}}}));
    assert_eq!(web.in_short().unwrap(), event("ADDED", "a", back));

    let ran = patch(&client, &format!("{path}/a/status"), &json!({"status": {"phase": "Running"}}));
    assert_eq!(running.in_short().unwrap(), event("ADDED", "a", ran));
    assert_eq!(web.in_short().unwrap(), event("MODIFIED", "a", ran));
    let ended = patch(&client, &format!("{path}/a/status"), &json!({"status": {"phase": "Succeeded"}}));
    assert_eq!(running.in_short().unwrap(), event("DELETED", "a", ended));
    // The end of what is not selected is not told.
    client.remove("pods", namespace, "b").unwrap();
    let last = patch(&client, &format!("{path}/a/status"), &json!({"status": {"phase": "Running"}}));
    assert_eq!(running.in_short().unwrap(), event("ADDED", "a", last));
}

pub(crate) fn a_watch_from_nowhere_begins_with_what_there_is(server: &mut dyn ApiServer, namespace: &str) {
    let client = client(server);
    let path = pods(namespace);
    client.put(&pod(namespace, "b", "web")).unwrap();
    let a = client.put(&pod(namespace, "a", "web")).unwrap();
    let b = patch(&client, &format!("{path}/b"), &json!({"metadata": {"labels": {"app": "api"}}}));
    let mut open: Vec<_> = ["", "&resourceVersion=0"]
        .iter()
        .map(|query| client.watch(&format!("{path}?watch=true{query}")).unwrap())
        .collect();
    let c = client.put(&pod(namespace, "c", "web")).unwrap();
    for watch in &mut open {
        let mut first = [watch.in_short().unwrap(), watch.in_short().unwrap()];
        // In no order that is promised.
        first.sort();
        assert_eq!(first, [event("ADDED", "a", a), event("ADDED", "b", b)]);
        assert_eq!(watch.in_short().unwrap(), event("ADDED", "c", c));
    }
}

pub(crate) fn a_bookmark_ends_the_first_list(server: &mut dyn ApiServer, namespace: &str) {
    let client = client(server);
    let path = pods(namespace);
    let a = client.put(&pod(namespace, "a", "web")).unwrap();
    let b = client.put(&pod(namespace, "b", "web")).unwrap();
    let query = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    for version in ["", "&resourceVersion=0", &format!("&resourceVersion={b}")] {
        let mut watch = client.watch(&format!("{path}?{query}{version}")).unwrap();
        assert_eq!(watch.in_short().unwrap(), event("ADDED", "a", a));
        assert_eq!(watch.in_short().unwrap(), event("ADDED", "b", b));
        let end = watch.event().unwrap().unwrap();
        assert_eq!(end["type"], "BOOKMARK");
        assert_eq!(end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
        assert!(version_of(&end["object"]) >= b);
    }
    // Without initial events there is neither a list nor its end.
    let query = query.replace("sendInitialEvents=true", "sendInitialEvents=false");
    let mut watch = client.watch(&format!("{path}?{query}&resourceVersion={a}")).unwrap();
    assert_eq!(watch.in_short().unwrap(), event("ADDED", "b", b));
}

pub(crate) fn a_watch_ends_in_order_and_a_bookmark_comes_before(server: &mut dyn ApiServer, namespace: &str) {
    let client = client(server);
    let path = pods(namespace);
    let start = client.put(&pod(namespace, "a", "web")).unwrap();
    let watch = |query: &str| client.watch(&format!("{path}?watch=true&timeoutSeconds=5&{query}")).unwrap();
    let mut with = watch(&format!("resourceVersion={start}&allowWatchBookmarks=true"));
    let mut without = watch(&format!("resourceVersion={start}"));
    let b = client.put(&pod(namespace, "b", "web")).unwrap();
    for watch in [&mut with, &mut without] {
        assert_eq!(watch.in_short().unwrap(), event("ADDED", "b", b));
    }
    let bookmark = with.event().unwrap().unwrap();
    assert_eq!((&bookmark["type"], &bookmark["object"]["kind"]), (&json!("BOOKMARK"), &json!("Pod")));
    let metadata = bookmark["object"]["metadata"].as_object().unwrap();
    assert!(version_of(&bookmark["object"]) >= b);
    assert!(!metadata.contains_key("name") && !metadata.contains_key("annotations"), "{metadata:?}");
    while let Some(more) = with.event().unwrap() {
        assert_eq!(more["type"], "BOOKMARK");
    }
    assert_eq!(without.event().unwrap(), None);
}

pub(crate) fn watches_are_refused(server: &mut dyn ApiServer, namespace: &str) {
    let client = client(server);
    let check = |query: &str, code: u16, message: &str| {
        let answer = client.get(&format!("{}?watch=true&{query}", pods(namespace))).unwrap();
        assert_eq!(answer.code, code, "{query}");
        assert!(answer.json["message"].as_str().unwrap().contains(message), "{}", answer.text);
    };
    check("resourceVersion=abc", 500, "Invalid value: \"abc\"");
    check("fieldSelector=spec.color%3Dred", 400, "field label not supported: spec.color");
    let problem = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
    check("sendInitialEvents=true&allowWatchBookmarks=true", 422, problem);
    let problem = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
    check("resourceVersionMatch=NotOlderThan&resourceVersion=0", 422, problem);
}
