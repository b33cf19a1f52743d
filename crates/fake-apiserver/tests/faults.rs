//! Every fault, as a client sees it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use hyper::Method;
use ringfence_fake_apiserver::{ALWAYS, Client, Events, FakeApiServer, Fault, On, Verb, sample};
use serde_json::{Value, json};

const PODS: &str = "/api/v1/pods";
/// How long silence is listened to.
const SILENCE: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(20);

/// A server with the pods `a` and `b`, and a client.
fn start() -> (FakeApiServer, Client) {
    let server = FakeApiServer::start().unwrap();
    pod(&server, "a");
    pod(&server, "b");
    let client = Client::new(&server.kubeconfig()).unwrap();
    (server, client)
}

fn pod(server: &FakeApiServer, name: &str) -> u64 {
    server.apply(&sample::pod("shop", name, &[("app", "web")], "node-1", &["10.244.0.7"]))
}

/// The path of a watch that begins now.
fn from_now(server: &FakeApiServer) -> String {
    format!("{PODS}?watch=true&allowWatchBookmarks=true&resourceVersion={}", server.version())
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

#[test]
fn codes_come_as_often_as_asked_and_say_when_to_come_back() {
    let (server, client) = start();
    server.inject(On::list("pods"), 2, Fault::retry_after(429, 3));
    server.inject(On::any(), 1, Fault::status(503));
    for (code, reason, wait) in
        [(429, "TooManyRequests", Some("3")), (429, "TooManyRequests", Some("3")), (503, "ServiceUnavailable", None)]
    {
        let answer = client.get(PODS).unwrap();
        assert_eq!((answer.code, answer.reason()), (code, reason));
        assert_eq!(answer.json["kind"], "Status");
        assert_eq!(answer.headers.get("retry-after").map(|value| value.to_str().unwrap()), wait);
    }
    assert_eq!(names(&client.get(PODS).unwrap().json), ["a", "b"]);
    assert_eq!(server.requests_of(Verb::List, "pods").len(), 4);
}

#[test]
fn a_fault_meets_only_what_it_was_meant_for() {
    let (server, client) = start();
    server.inject(On::watch("pods"), ALWAYS, Fault::status(500));
    server.inject(On::get("pods"), 1, Fault::status(500));
    server.inject(On::create("events.events.k8s.io"), 1, Fault::status(403));
    server.inject(On::verb(Verb::Delete).of("networkpolicies"), 1, Fault::status(401));
    assert_eq!(client.get(PODS).unwrap().code, 200);
    assert_eq!(client.get("/api/v1/nodes?watch=true&timeoutSeconds=1").unwrap().code, 200);
    for _ in 0..3 {
        assert_eq!(client.watch(&from_now(&server)).unwrap().code, 500);
    }
    let path = "/api/v1/namespaces/shop/pods/a";
    assert_eq!(client.get(path).unwrap().code, 500);
    assert_eq!(client.get(path).unwrap().code, 200);
    assert_eq!(server.faults_left(), ALWAYS);
    server.heal();
    assert_eq!(server.faults_left(), 0);
    assert_eq!(client.watch(&from_now(&server)).unwrap().code, 200);
}

#[test]
fn a_list_breaks_off_or_ends_in_the_middle() {
    let (server, client) = start();
    let whole = client.get(PODS).unwrap().text;
    server.inject(On::list("pods"), 1, Fault::Cut);
    assert_eq!(client.get(PODS).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    server.inject(On::list("pods"), 1, Fault::Truncate);
    let answer = client.get(PODS).unwrap();
    assert_eq!((answer.code, &answer.json), (200, &Value::Null));
    assert!(!answer.text.is_empty() && whole.starts_with(&answer.text), "{}", answer.text);
    assert_eq!(client.get(PODS).unwrap().text, whole);
}

#[test]
fn half_a_list_has_a_token_that_has_expired() {
    let (server, client) = start();
    pod(&server, "c");
    pod(&server, "d");
    server.inject(On::list("pods"), 1, Fault::HalfList);
    let half = client.get(PODS).unwrap();
    assert_eq!(names(&half.json), ["a", "b"]);
    assert_eq!(half.version(), server.version());
    let token = half.json["metadata"]["continue"].as_str().unwrap();
    let rest = client.get(&format!("{PODS}?continue={token}")).unwrap();
    assert_eq!((rest.code, rest.reason()), (410, "Expired"));
    // The pages of a list that is well are not touched by a fault for half of one, nor by one for pages that follow.
    server.inject(On::continued("pods"), 1, Fault::status(410));
    let first = client.get(&format!("{PODS}?limit=3")).unwrap();
    let token = first.json["metadata"]["continue"].as_str().unwrap().to_owned();
    let refused = client.get(&format!("{PODS}?limit=3&continue={token}")).unwrap();
    assert_eq!((refused.code, refused.reason()), (410, "Expired"));
    assert_eq!(names(&client.get(&format!("{PODS}?limit=3&continue={token}")).unwrap().json), ["d"]);
}

#[test]
fn answers_that_are_none_of_kubernetes() {
    let (server, client) = start();
    let page = "<html>Bad Gateway</html>".to_owned();
    server.inject(On::list("pods"), 1, Fault::Answer { code: 502, content_type: "text/html", body: page.clone() });
    let answer = client.get(PODS).unwrap();
    assert_eq!((answer.code, answer.text), (502, page));
}

#[test]
fn late_answers_are_right_and_hanging_ones_never_come() {
    let (server, client) = start();
    server.inject(On::list("pods"), 1, Fault::Delay(Duration::from_millis(300)));
    let before = Instant::now();
    assert_eq!(names(&client.get(PODS).unwrap().json), ["a", "b"]);
    assert!(before.elapsed() >= Duration::from_millis(300));

    server.inject(On::watch("pods"), 1, Fault::Hang);
    let path = from_now(&server);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| client.watch(&path).map(|watch| watch.code));
        assert!(server.wait_until(PATIENCE, |server| server.requests_of(Verb::Watch, "pods").len() == 1));
        std::thread::sleep(SILENCE);
        assert!(!waiting.is_finished());
        server.go_away();
        assert!(waiting.join().unwrap().is_err());
    });
}

#[test]
fn a_watch_breaks_in_the_middle_of_an_event() {
    let (server, client) = start();
    for (fault, in_order) in [(Fault::Cut, false), (Fault::Truncate, true)] {
        server.inject(On::watch("pods"), 1, fault);
        let mut watch = client.watch(&from_now(&server)).unwrap();
        pod(&server, "c");
        server.modify("pods", "shop", "c", |pod| pod["metadata"]["labels"]["n"] = json!(in_order.to_string()));
        let error = watch.event().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        assert_eq!(error.to_string() == "the watch ends within a line", in_order, "{error}");
        assert!(server.wait_until(PATIENCE, |server| server.watchers("pods") == 0));
    }
}

#[test]
fn a_watch_stalls_from_its_start_or_later() {
    let (server, client) = start();
    server.bookmark_every(Duration::from_millis(10));
    server.inject(On::watch("pods"), 1, Fault::Stall);
    let mut stalled = client.watch(&format!("{}&timeoutSeconds=1", from_now(&server))).unwrap();
    assert_eq!(stalled.code, 200);
    let mut well = client.watch(&from_now(&server)).unwrap();
    assert_eq!(well.in_short().unwrap().0, "BOOKMARK");
    server.stall_watches("pods");
    while well.event_within(SILENCE).is_ok_and(|event| event.is_some_and(|event| event["type"] == "BOOKMARK")) {}
    let mut later = client.watch(&from_now(&server)).unwrap();
    let version = pod(&server, "c");
    server.send_bookmarks("pods");
    while later.in_short().unwrap() != ("ADDED".to_owned(), "c".to_owned(), version) {}
    for watch in [&mut stalled, &mut well] {
        assert_eq!(watch.event_within(SILENCE).unwrap_err().kind(), ErrorKind::TimedOut);
    }
    assert_eq!(server.watchers("pods"), 3);
    drop((stalled, well, later));
    assert!(server.wait_until(PATIENCE, |server| server.watchers("pods") == 0));
}

#[test]
fn a_watch_says_things_twice_or_again() {
    let (server, client) = start();
    server.inject(On::watch("pods"), 1, Fault::Duplicate);
    let mut twice = client.watch(&from_now(&server)).unwrap();
    server.inject(On::watch("pods"), 1, Fault::Replay);
    let mut again = client.watch(&from_now(&server)).unwrap();
    let (first, second) = (pod(&server, "c"), pod(&server, "d"));
    let versions =
        |watch: &mut Events<'_>, count| -> Vec<u64> { (0..count).map(|_| watch.in_short().unwrap().2).collect() };
    assert_eq!(versions(&mut twice, 4), [first, first, second, second]);
    assert_eq!(versions(&mut again, 3), [first, second, first]);

    let mut well = client.watch(&from_now(&server)).unwrap();
    server.delete("pods", "shop", "c");
    let gone = well.event().unwrap().unwrap();
    server.replay("pods", 3);
    let types: Vec<_> = (0..3).map(|_| well.in_short().unwrap()).collect();
    let event = |kind: &str, name: &str, version| (kind.to_owned(), name.to_owned(), version);
    assert_eq!(
        types,
        [event("ADDED", "c", first), event("ADDED", "d", second), event("DELETED", "c", server.version())]
    );
    assert_eq!(gone["type"], "DELETED");
}

#[test]
fn a_watch_fails_with_an_event_or_ends_when_told() {
    let (server, client) = start();
    server.inject(On::watch("pods"), 1, Fault::ErrorEvent(410));
    let mut watch = client.watch(&from_now(&server)).unwrap();
    assert_eq!(watch.code, 200);
    let event = watch.event().unwrap().unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["code"], &event["object"]["reason"]),
        (&json!("ERROR"), &json!(410), &json!("Expired"))
    );
    assert_eq!(watch.event().unwrap(), None);

    server.inject(On::watch("pods"), 1, Fault::EndAfter(1));
    let mut watch = client.watch(&from_now(&server)).unwrap();
    let version = pod(&server, "c");
    pod(&server, "d");
    assert_eq!(watch.in_short().unwrap().2, version);
    assert_eq!(watch.event().unwrap(), None);

    let mut watch = client.watch(&from_now(&server)).unwrap();
    server.fail_watches("pods", 500);
    assert_eq!(watch.event().unwrap().unwrap()["object"]["reason"], "InternalError");
    assert_eq!(watch.event().unwrap(), None);

    let mut watch = client.watch(&from_now(&server)).unwrap();
    let version = pod(&server, "e");
    server.end_watches("pods");
    assert_eq!(watch.in_short().unwrap().2, version);
    assert_eq!(watch.event().unwrap(), None);

    let mut watch = client.watch(&from_now(&server)).unwrap();
    server.cut_watches("pods");
    assert_eq!(watch.event().unwrap_err().kind(), ErrorKind::UnexpectedEof);
}

#[test]
fn objects_that_are_none_are_served_as_they_are() {
    let (server, client) = start();
    let mut watch = client.watch(&from_now(&server)).unwrap();
    let unsound =
        [json!(42), json!({"metadata": 7}), json!({"kind": "Pod", "spec": {"containers": "none"}}), json!(null)];
    for (at, value) in unsound.iter().enumerate() {
        server.apply_unsound("pods", "shop", &format!("c{at}"), value);
        assert_eq!(&watch.event().unwrap().unwrap()["object"], value);
    }
    let list = client.get(PODS).unwrap().json;
    assert_eq!(list["items"].as_array().unwrap()[2..], unsound);
    // What is sound again is told as a change, and what is removed is told with what there was.
    pod(&server, "c0");
    assert_eq!(watch.in_short().unwrap(), ("MODIFIED".to_owned(), "c0".to_owned(), server.version()));
    server.delete("pods", "shop", "c1");
    assert_eq!(watch.event().unwrap().unwrap(), json!({"type": "DELETED", "object": {"metadata": 7}}));
    server.send_line("pods", r#"{"type":"UNHEARD","object":{}}"#);
    assert_eq!(watch.event().unwrap().unwrap()["type"], "UNHEARD");
    server.send_line("pods", "no JSON");
    assert_eq!(watch.event().unwrap_err().kind(), ErrorKind::InvalidData);
}

#[test]
fn bookmarks_come_when_asked_for_and_never_before_what_they_stand_for() {
    let (server, client) = start();
    let mut without = client.watch(&from_now(&server).replace("allowWatchBookmarks=true&", "")).unwrap();
    let mut with = client.watch(&from_now(&server)).unwrap();
    for _ in 0..50 {
        let pod = pod(&server, "c");
        server.apply(&sample::node("node-1", "192.0.2.1", &[]));
        server.send_bookmarks("pods");
        let version = server.version();
        server.delete("pods", "shop", "c");
        let gone = server.version();
        for watch in [&mut with, &mut without] {
            assert_eq!(watch.in_short().unwrap(), ("ADDED".to_owned(), "c".to_owned(), pod));
        }
        assert_eq!(with.in_short().unwrap(), ("BOOKMARK".to_owned(), String::new(), version));
        for watch in [&mut with, &mut without] {
            assert_eq!(watch.in_short().unwrap(), ("DELETED".to_owned(), "c".to_owned(), gone));
        }
    }
    server.bookmark_every(Duration::from_millis(10));
    let mut periodic = client.watch(&from_now(&server)).unwrap();
    for _ in 0..3 {
        assert_eq!(periodic.in_short().unwrap(), ("BOOKMARK".to_owned(), String::new(), server.version()));
    }
}

#[test]
fn an_outage_cuts_everything_and_ends_at_the_same_address() {
    let (server, client) = start();
    let mut watch = client.watch(&from_now(&server)).unwrap();
    for _ in 0..3 {
        server.go_away();
        assert!(watch.event().is_err());
        assert!(client.get(PODS).is_err());
        assert!(server.wait_until(PATIENCE, |server| server.watchers("pods") == 0));
        let version = pod(&server, "c");
        server.delete("pods", "shop", "c");
        server.come_back();
        watch = client.watch(&format!("{PODS}?watch=true&resourceVersion={}", version - 1)).unwrap();
        assert_eq!(watch.in_short().unwrap(), ("ADDED".to_owned(), "c".to_owned(), version));
        assert_eq!(watch.in_short().unwrap().0, "DELETED");
    }
}

#[test]
fn history_is_forgotten_on_request_and_by_itself() {
    let (server, client) = start();
    let old = from_now(&server);
    pod(&server, "c");
    let mut open = client.watch(&old).unwrap();
    server.compact();
    let version = pod(&server, "d");
    // A watch that is open misses nothing.
    assert_eq!(open.in_short().unwrap().1, "c");
    assert_eq!(open.in_short().unwrap().2, version);
    let event = client.watch(&old).unwrap().event().unwrap().unwrap();
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)));

    server.remember(5);
    let versions: Vec<u64> = (0..6)
        .map(|n| server.modify("pods", "shop", "d", |pod| pod["metadata"]["labels"]["n"] = json!(n.to_string())))
        .collect();
    let from = |version: u64| client.watch(&format!("{PODS}?watch=true&resourceVersion={version}")).unwrap().event();
    assert_eq!(from(versions[0]).unwrap().unwrap()["type"], "MODIFIED");
    assert_eq!(from(versions[0] - 1).unwrap().unwrap()["type"], "ERROR");
}

#[test]
fn access_is_denied_where_a_test_says_so() {
    let (server, client) = start();
    server.deny("create", "events");
    let review = |verb: &str, resource: &str| {
        let attributes = json!({"verb": verb, "resource": resource});
        let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes}});
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        client.send(&Method::POST, path, &review).unwrap().json["status"]["allowed"].clone()
    };
    assert_eq!(review("create", "events"), false);
    assert_eq!(review("list", "pods"), true);
    server.deny("*", "*");
    assert_eq!(review("list", "pods"), false);
    assert_eq!(server.requests()[0].bearer.as_deref(), Some("fake-token"));
    server.set_ready(false);
    assert_eq!(client.get("/readyz").unwrap().code, 500);
    assert_eq!(client.get("/livez").unwrap().text, "ok");
}

#[test]
fn thousands_of_objects_and_events_arrive_whole_and_in_order() {
    let server = FakeApiServer::start().unwrap();
    for n in 0..1000 {
        pod(&server, &format!("p{n:05}"));
    }
    let client = Client::new(&server.kubeconfig()).unwrap();
    let list = client.get(PODS).unwrap();
    assert_eq!(list.json["items"].as_array().unwrap().len(), 1000);
    let mut watch = client.watch(&from_now(&server)).unwrap();
    let versions: Vec<u64> = (0..1000)
        .map(|n| {
            let name = format!("p{n:05}");
            server.modify("pods", "shop", &name, |pod| pod["metadata"]["labels"]["v"] = json!("2"))
        })
        .collect();
    for version in versions {
        assert_eq!(watch.in_short().unwrap().2, version);
    }
}
