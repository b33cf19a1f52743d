//! What goes beyond the node's own pods: Services and their endpoints, and what a node tells of itself.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringfence_agent::kube::{Announcer, KubeSource};
use ringfence_agent::source::{CAPACITY, Event};
use ringfence_agent::status::Status;
use ringfence_agent::{Agent, SyncError};
use ringfence_compile::Believed;
use ringfence_dataplane::fake::FakeBackend;
use ringfence_fake_apiserver::{ALWAYS, FakeApiServer, Fault, On, Verb, sample};
use ringfence_model::{EnforceAt, Enforcement, NodeTraffic, Protocol};
use serde_json::{Value, json};
use tokio::sync::mpsc::{Receiver, channel};

use crate::bench::{FAST, pod, world};

const PATIENCE: Duration = Duration::from_secs(20);
const ENTRY: Enforcement = Enforcement { at: EnforceAt::Entry, node_traffic: NodeTraffic::Own };
/// A pod of node-2 that a policy isolates.
const REMOTE: &str = "10.244.1.3";
/// An isolated pod of node-1.
const LOCAL: &str = "10.244.0.3";

/// An agent on node-1 that enforces like this, and all that it has heard.
struct Follower {
    events: Receiver<Event>,
    agent: Agent<FakeBackend>,
    failures: Vec<String>,
}

impl Follower {
    fn new(server: &FakeApiServer, enforcement: Enforcement) -> Follower {
        let (sender, events) = channel(CAPACITY);
        let source = KubeSource::open(Some(&server.kubeconfig()), None).unwrap().with_timing(FAST);
        source.for_enforcing(enforcement.at).follow(sender, None).unwrap();
        let agent = Agent::new("node-1".into(), FakeBackend::default()).with_enforcement(enforcement);
        Follower { events, agent, failures: Vec::new() }
    }

    #[track_caller]
    fn until(&mut self, what: &str, done: impl Fn(&Follower) -> bool) {
        let start = std::time::Instant::now();
        while !done(self) {
            assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}: {:?}", self.failures);
            while let Ok(event) = self.events.try_recv() {
                match event {
                    Event::Failed(error) => self.failures.push(error.to_string()),
                    Event::Begun(changes) => changes.into_iter().for_each(|change| self.agent.change(change).unwrap()),
                    Event::Update(update) | Event::Partial(update) => {
                        update.changes.into_iter().for_each(|change| self.agent.change(change).unwrap());
                        assert!(!matches!(self.agent.sync(), Err(SyncError::Apply(_))));
                    }
                }
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn judges(&self, address: &str) -> bool {
        let address: IpAddr = address.parse().unwrap();
        self.agent.program().is_some_and(|program| program.ingress.subjects.contains_key(&address))
    }

    /// The endpoints of local pods about which other nodes are believed.
    fn believed(&self) -> Vec<String> {
        match self.agent.program().map(|program| &program.reach.believed) {
            Some(Believed::Endpoints(endpoints)) => {
                endpoints.iter().map(|(address, protocol, port)| format!("{address} {protocol} {port}")).collect()
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A server whose `shop/db` runs on both nodes.
fn server() -> FakeApiServer {
    let server = FakeApiServer::start().unwrap();
    world(&server);
    server.apply(&pod("shop", "db-2", "db", REMOTE));
    server
}

#[test]
fn pods_behind_services_are_judged_where_connections_enter() {
    let server = server();
    let mut follower = Follower::new(&server, ENTRY);
    follower.until("the first state", |follower| follower.judges(LOCAL));
    assert!(!follower.judges(REMOTE) && follower.believed().is_empty());
    server.apply(&sample::service("shop", "db", "NodePort", "db"));
    server.apply(&sample::endpoint_slice("shop", "db-1", "db", &[LOCAL, REMOTE], 5432));
    follower.until("the slice counts", |follower| follower.judges(REMOTE));
    assert_eq!(follower.believed(), [format!("{LOCAL} {} 5432", Protocol::Tcp)]);
    let nodes: Vec<String> = follower.agent.program().unwrap().reach.nodes.iter().map(ToString::to_string).collect();
    assert_eq!(nodes, ["192.0.2.2"]);
    // One that is not ready is judged, and believed no more.
    server.modify("endpointslices", "shop", "db-1", |slice| {
        slice["endpoints"][0]["conditions"] = json!({"ready": false, "serving": false, "terminating": true});
    });
    follower.until("it is not ready", |follower| follower.believed().is_empty());
    assert!(follower.judges(REMOTE));
    // Whose turn a change of an annotation is, nobody asks.
    let generation = follower.agent.program().unwrap().generation;
    server.modify("endpointslices", "shop", "db-1", |slice| slice["metadata"]["annotations"] = json!({"a": "b"}));
    server.modify("services", "shop", "db", |service| service["spec"]["type"] = json!("ClusterIP"));
    follower.until("the Service is not exposed", |follower| !follower.judges(REMOTE));
    assert_eq!(follower.agent.program().unwrap().generation, generation + 1, "the annotation is no change");
    server.modify("services", "shop", "db", |service| service["spec"]["externalIPs"] = json!(["192.0.2.80"]));
    follower.until("an external address exposes it", |follower| follower.judges(REMOTE));
    server.delete("endpointslices", "shop", "db-1");
    follower.until("the slice is gone", |follower| !follower.judges(REMOTE));
    assert!(follower.judges(LOCAL), "its own pods are judged whatever there is");
    assert_eq!(follower.failures, Vec::<String>::new());
}

#[test]
fn services_are_asked_for_only_where_connections_enter() {
    let server = server();
    server.apply(&sample::service("shop", "db", "NodePort", "db"));
    server.apply(&sample::endpoint_slice("shop", "db-1", "db", &[LOCAL, REMOTE], 5432));
    let everywhere = Enforcement { at: EnforceAt::Everywhere, ..Enforcement::default() };
    for (enforcement, judges_remote) in [(Enforcement::default(), false), (everywhere, true)] {
        let mut follower = Follower::new(&server, enforcement);
        follower.until("the first state", |follower| follower.judges(LOCAL));
        assert_eq!(follower.judges(REMOTE), judges_remote);
    }
    for resource in ["services", "endpointslices"] {
        assert_eq!(server.requests_of(Verb::List, resource).len(), 0, "{resource}");
    }
}

/// Without slices nobody knows where connections enter: nothing is enforced anew, and what is missing is told.
#[test]
fn slices_that_cannot_be_read_are_waited_for() {
    let server = server();
    server.inject(On::list("endpointslices"), ALWAYS, Fault::status(403));
    let mut follower = Follower::new(&server, ENTRY);
    follower.until("it is told", |follower| !follower.failures.is_empty());
    let rule = "apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [get, list, watch]";
    assert!(follower.failures[0].contains(rule), "{:?}", follower.failures);
    assert!(follower.agent.program().is_none());
    server.heal();
    follower.until("the first state", |follower| follower.judges(LOCAL));
}

const NAMES: [&str; 2] = ["ringfence.io/enforcement", "ringfence.io/node-addresses"];

/// Addresses that a test changes.
type Addresses = Arc<Mutex<Vec<IpAddr>>>;

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// Announces node-1. It ends with the receiver.
fn announce(
    server: &FakeApiServer,
    enforcement: Enforcement,
    has: &Addresses,
    fails: &Arc<AtomicBool>,
) -> (Receiver<Event>, Arc<Status>) {
    let (status, has, fails) = (Arc::new(Status::default()), has.clone(), fails.clone());
    let read = move || match fails.load(Ordering::Relaxed) {
        true => Err(std::io::Error::other("no netlink")),
        false => Ok(has.lock().unwrap().clone()),
    };
    let every = Duration::from_millis(20);
    let announcer = Announcer::new("node-1".into(), enforcement, Box::new(read), every, status.clone());
    let (sender, events) = channel(CAPACITY);
    let source = KubeSource::open(Some(&server.kubeconfig()), None).unwrap().with_timing(FAST);
    source.for_enforcing(enforcement.at).announcing(announcer).follow(sender, None).unwrap();
    (events, status)
}

/// The annotations of node-1 that agents write.
fn annotations(server: &FakeApiServer) -> [Value; 2] {
    let node = server.get("nodes", "", "node-1").unwrap();
    assert_eq!(node["metadata"]["annotations"]["node.alpha.kubernetes.io/ttl"], "0", "others' stay");
    NAMES.map(|name| node["metadata"]["annotations"][name].clone())
}

#[track_caller]
fn until(server: &FakeApiServer, expected: &[Value; 2]) {
    let done = server.wait_until(PATIENCE, |server| annotations(server) == *expected);
    assert!(done, "{:?}, expected {expected:?}", annotations(server));
}

#[test]
fn a_node_tells_its_addresses_and_follows_them() {
    let server = server();
    let has: Addresses = Arc::new(Mutex::new(addresses(&["fd00::1", "10.244.0.1", "192.0.2.1", "10.244.0.0"])));
    let fails = Arc::new(AtomicBool::new(false));
    let (_events, status) = announce(&server, ENTRY, &has, &fails);
    until(&server, &[json!("entry/own"), json!("10.244.0.0,10.244.0.1,fd00::1")]);
    // What it says is looked at now and then, and written when it is different.
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(server.requests_of(Verb::Patch, "nodes").len(), 1);
    assert_eq!(server.requests_of(Verb::Get, "nodes").len(), 1);
    *has.lock().unwrap() = addresses(&["10.244.0.1"]);
    until(&server, &[json!("entry/own"), json!("10.244.0.1")]);
    // What cannot be read is no reason to say that there is nothing.
    fails.store(true, Ordering::Relaxed);
    assert!(server.wait_until(PATIENCE, |_| told(&status).contains("no netlink")));
    until(&server, &[json!("entry/own"), json!("10.244.0.1")]);
    fails.store(false, Ordering::Relaxed);
    has.lock().unwrap().clear();
    until(&server, &[json!("entry/own"), Value::Null]);
    assert!(server.wait_until(PATIENCE, |_| told(&status).is_empty()));
}

/// What is wrong now.
fn told(status: &Status) -> String {
    let conditions = status.report().conditions.into_iter().filter(|condition| condition.now);
    conditions.map(|condition| format!("{}: {}\n", condition.about, condition.message)).collect()
}

#[test]
fn who_may_not_tell_says_so_once_and_how_to_do_it_by_hand() {
    let server = server();
    server.inject(On::verb(Verb::Patch).of("nodes"), ALWAYS, Fault::status(403));
    let has: Addresses = Arc::new(Mutex::new(addresses(&["10.244.0.1"])));
    let (_events, status) = announce(&server, ENTRY, &has, &Arc::default());
    assert!(
        server.wait_until(PATIENCE, |server| server.requests_of(Verb::Patch, "nodes").len() > 2),
        "it goes on trying"
    );
    let said = told(&status);
    for part in [
        "announcement: ",
        "apiGroups: [\"\"], resources: [nodes], verbs: [patch]",
        "kubectl annotate --overwrite node node-1 ringfence.io/enforcement=entry/own \
         ringfence.io/node-addresses=10.244.0.1",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(said.lines().count(), 1, "{said}");
    server.heal();
    until(&server, &[json!("entry/own"), json!("10.244.0.1")]);
    assert!(server.wait_until(PATIENCE, |_| told(&status).is_empty()));
}

/// An agent that enforces by default takes back what an earlier one has said, and writes nothing else.
#[test]
fn who_enforces_by_default_says_nothing() {
    let server = server();
    let has: Addresses = Arc::new(Mutex::new(addresses(&["10.244.0.1"])));
    let (_events, _) = announce(&server, Enforcement::default(), &has, &Arc::default());
    assert!(server.wait_until(PATIENCE, |server| !server.requests_of(Verb::Get, "nodes").is_empty()));
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(server.requests_of(Verb::Patch, "nodes").len(), 0);

    server.modify("nodes", "", "node-1", |node| {
        node["metadata"]["annotations"][NAMES[0]] = json!("entry/own");
        node["metadata"]["annotations"][NAMES[1]] = json!("10.9.9.9");
    });
    let (_more, _) = announce(&server, Enforcement::default(), &has, &Arc::default());
    until(&server, &[Value::Null, json!("10.9.9.9")]);
}

#[test]
fn nodes_that_enforce_otherwise_are_named() {
    let server = server();
    for number in 3..=15 {
        server.apply(&sample::node(&format!("node-{number}"), &format!("192.0.2.{number}"), &[]));
    }
    let say = |node: &str, text: &str| {
        server.modify("nodes", "", node, |object| object["metadata"]["annotations"][NAMES[0]] = json!(text));
    };
    say("node-3", "entry/own");
    say("node-4", "everywhere/own");
    let mut follower = Follower::new(&server, ENTRY);
    follower.until("the first state", |follower| follower.judges(LOCAL));
    let apart = follower.agent.nodes_apart();
    // All but itself and node-3, the first ten by name.
    assert_eq!((apart.count, apart.first.len()), (13, 10));
    assert!(apart.first.contains(&"node-4".to_owned()) && !apart.first.contains(&"node-3".to_owned()), "{apart:?}");
    say("node-2", "entry/own");
    follower.until("one more says it", |follower| follower.agent.nodes_apart().count == 12);

    let mut default = Follower::new(&server, Enforcement::default());
    default.until("the first state", |follower| follower.judges(LOCAL));
    assert_eq!(default.agent.nodes_apart().first, ["node-2", "node-3", "node-4"]);
}
