//! What a server no longer knows.

use ringfence_fake_apiserver::ApiServer;
use serde_json::{Value, json};

use crate::{client, event, names, pod, pods};

pub(crate) fn what_is_forgotten_has_expired(server: &mut dyn ApiServer, namespace: &str) {
    let before = client(server);
    let path = pods(namespace);
    for name in ["a", "b", "c", "d"] {
        before.put(&pod(namespace, name, "web")).unwrap();
    }
    let old = before.get(&format!("{path}?limit=1")).unwrap();
    let token = old.json["metadata"]["continue"].as_str().unwrap().to_owned();
    before.remove("pods", namespace, "b").unwrap();
    let last = before.put(&pod(namespace, "e", "web")).unwrap();
    drop(before);
    server.forget().unwrap();
    let client = client(server);

    // A watch is not refused: it begins, and says in its first event that it cannot be.
    let mut watch = client.watch(&format!("{path}?watch=true&resourceVersion={}", old.version())).unwrap();
    assert_eq!(watch.code, 200);
    let error = watch.event().unwrap().unwrap();
    assert_eq!(error["type"], "ERROR");
    let status = &error["object"];
    assert_eq!(
        (&status["kind"], &status["code"], &status["reason"]),
        (&json!("Status"), &json!(410), &json!("Expired"))
    );
    let message = status["message"].as_str().unwrap();
    assert!(message.starts_with(&format!("too old resource version: {} (", old.version())), "{message}");
    assert_eq!(watch.event().unwrap(), None);

    for query in ["resourceVersionMatch=Exact", "limit=2"] {
        let list = client.get(&format!("{path}?resourceVersion={}&{query}", old.version())).unwrap();
        assert_eq!((list.code, list.reason()), (410, "Expired"), "{query}");
        assert_eq!(list.json["message"], "The resourceVersion for the provided list is too old.");
    }
    // A version that is too old is new enough for one that need not be exact.
    let list = client.get(&format!("{path}?resourceVersion={}", old.version())).unwrap();
    assert_eq!(names(&list.json), ["a", "c", "d", "e"]);
    assert!(list.version() >= last);

    let rest = client.get(&format!("{path}?limit=1&continue={token}")).unwrap();
    assert_eq!((rest.code, rest.reason()), (410, "Expired"));
    let message = rest.json["message"].as_str().unwrap();
    assert!(
        message.starts_with("The provided continue parameter is too old to display a consistent list result."),
        "{message}"
    );
    // It offers to go on with what there is now.
    let token = rest.json["metadata"]["continue"].as_str().unwrap();
    let rest = client.get(&format!("{path}?limit=10&continue={token}")).unwrap();
    assert_eq!((names(&rest.json), &rest.json["metadata"]["continue"]), (vec!["c", "d", "e"], &Value::Null));

    // What is listed now can be watched from.
    let mut watch = client.watch(&format!("{path}?watch=true&resourceVersion={}", list.version())).unwrap();
    let version = client.put(&pod(namespace, "f", "web")).unwrap();
    assert_eq!(watch.in_short().unwrap(), event("ADDED", "f", version));
}
