//! An agent with a fake packet filter, fed by the source from a fake API server, and held against what that server holds.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringfence_agent::kube::Publisher;
use ringfence_agent::kube::{KubeSource, Timing};
use ringfence_agent::source::{CAPACITY, Event};
use ringfence_agent::{Agent, Change, SyncError};
use ringfence_compile::{Cluster, NodeCompiler, Program, Touched};
use ringfence_dataplane::fake::FakeBackend;
use ringfence_fake_apiserver::{FakeApiServer, sample};
use ringfence_k8s::{Severity, Source, parse};
use ringfence_model::{Flow, Object, Protocol, Transport};
use serde_json::{Value, json};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::mpsc::{Receiver, channel};

/// How long things may take that must happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// So fast that a test can wait for every one of them.
pub(crate) const FAST: Timing = Timing {
    answer: Duration::from_millis(700),
    watch: Duration::from_secs(60),
    silence: Duration::from_millis(700),
    first_pause: Duration::from_millis(5),
    longest_pause: Duration::from_millis(50),
    longest_wish: Duration::from_secs(2),
};

pub(crate) struct Bench {
    pub(crate) server: FakeApiServer,
    events: Receiver<Event>,
    agent: Agent<FakeBackend>,
    /// What the server has held since the agent was last seen to be up to date.
    truths: Vec<Program>,
    /// What failed, in the words of the source.
    pub(crate) failures: Vec<String>,
    /// Whether the last thing heard says that all of the source can be read.
    pub(crate) is_well: bool,
    /// The diagnostics of the last update.
    pub(crate) diagnostics: Vec<String>,
    pub(crate) updates: usize,
    pub(crate) resets: usize,
}

impl Bench {
    /// A server with a small world, and nobody who follows it yet but the agent.
    pub(crate) fn start(prepare: impl FnOnce(&FakeApiServer)) -> Bench {
        let server = FakeApiServer::start().unwrap();
        world(&server);
        prepare(&server);
        let events = follow(&server, None);
        let mut bench = Bench {
            server,
            events,
            agent: Agent::new("node-1".into(), FakeBackend::default()),
            truths: Vec::new(),
            failures: Vec::new(),
            is_well: false,
            diagnostics: Vec::new(),
            updates: 0,
            resets: 0,
        };
        bench.note_truth();
        bench
    }

    /// One that has caught up, and watches all kinds.
    pub(crate) fn following() -> Bench {
        let mut bench = Bench::start(|_| ());
        bench.catch_up();
        for resource in ["pods", "namespaces", "nodes", "networkpolicies"] {
            assert!(bench.server.wait_until(PATIENCE, |server| server.watchers(resource) > 0), "{resource}");
        }
        bench
    }

    /// Changes what the server holds.
    pub(crate) fn change(&mut self, change: impl FnOnce(&FakeApiServer)) {
        change(&self.server);
        self.note_truth();
    }

    fn note_truth(&mut self) {
        self.truths.push(program(&truth(&self.server)));
    }

    /// Takes what has arrived. Every program must allow nothing but what the server has allowed at some time since the agent
    /// was last up to date.
    pub(crate) fn pump(&mut self) {
        loop {
            match self.events.try_recv() {
                Ok(event) => self.take(event),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => panic!("the source has ended"),
            }
        }
    }

    fn take(&mut self, event: Event) {
        self.is_well = matches!(event, Event::Update(_));
        match event {
            Event::Failed(error) => self.failures.push(error.to_string()),
            Event::Begun(changes) => {
                for change in changes {
                    self.agent.change(change).unwrap();
                }
                // Half a state is none: some policies without the others would allow what they forbid.
                assert!(matches!(self.agent.sync(), Err(SyncError::NotReady)) && self.enforced().is_none());
            }
            Event::Update(update) | Event::Partial(update) => {
                self.updates += 1;
                if let Some(diagnostics) = &update.diagnostics {
                    self.diagnostics = diagnostics.iter().map(ToString::to_string).collect();
                }
                for change in update.changes {
                    self.resets += usize::from(matches!(change, Change::Complete));
                    self.agent.change(change).unwrap();
                }
                self.agent.sync().unwrap();
                self.check_not_weakened();
            }
        }
    }

    fn check_not_weakened(&self) {
        let enforced = self.agent.backend().enforced().unwrap();
        for flow in flows() {
            let allowed = enforced.eval(&flow).allowed();
            let ever = || self.truths.iter().any(|truth| truth.eval(&flow).allowed());
            assert!(!allowed || ever(), "{flow} passes and was never allowed");
        }
    }

    /// Waits until the agent enforces what the server holds.
    pub(crate) fn catch_up(&mut self) {
        let wanted = program(&truth(&self.server));
        self.wait_for("the agent enforces what the server holds", |bench| bench.enforces(&wanted));
        self.truths = vec![wanted];
    }

    pub(crate) fn wait_for(&mut self, what: &str, condition: impl Fn(&Bench) -> bool) {
        let start = Instant::now();
        loop {
            self.pump();
            if condition(self) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}; failures: {:#?}", self.failures);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until the source says that all is well.
    pub(crate) fn recover(&mut self) {
        self.wait_for("all is well", |bench| bench.is_well);
    }

    pub(crate) fn enforced(&self) -> Option<Program> {
        self.agent.backend().enforced()
    }

    pub(crate) fn enforces(&self, wanted: &Program) -> bool {
        self.enforced().is_some_and(|enforced| enforced.ingress == wanted.ingress && enforced.egress == wanted.egress)
    }

    pub(crate) fn failed_with(&self, text: &str) -> bool {
        self.failures.iter().any(|failure| failure.contains(text))
    }
}

/// Follows a server.
pub(crate) fn follow(server: &FakeApiServer, publisher: Option<Publisher>) -> Receiver<Event> {
    let (sender, events) = channel(CAPACITY);
    let source = KubeSource::open(Some(&server.kubeconfig()), None).unwrap().with_timing(FAST);
    source.follow(sender, publisher).unwrap();
    events
}

/// What a server holds, by the reader of manifests.
pub(crate) fn truth(server: &FakeApiServer) -> Vec<Object> {
    let mut objects = Vec::new();
    for resource in ["namespaces", "nodes", "pods", "networkpolicies"] {
        for object in server.objects(resource) {
            let text = object.to_string();
            let manifests = parse(&[Source { name: "truth", text: text.as_bytes() }]);
            if manifests.diagnostics.iter().all(|diagnostic| diagnostic.severity != Severity::Fatal) {
                // The namespaces of pods and policies are implied; those that exist are asked for themselves.
                let implied = |object: &Object| resource != "namespaces" && matches!(object, Object::Namespace(_));
                objects.extend(manifests.objects.into_iter().filter(|object| !implied(object)));
            }
        }
    }
    objects
}

pub(crate) fn program(objects: &[Object]) -> Program {
    let mut cluster = Cluster::new();
    cluster.reset(objects.to_vec(), &mut Touched::default()).unwrap();
    NodeCompiler::new(Arc::from("node-1")).compile(&cluster, &Touched::everything())
}

/// Every address that a test uses, to every other, on the ports that matter.
fn flows() -> impl Iterator<Item = Flow> {
    let addresses: Vec<IpAddr> = (2..=6)
        .flat_map(|last| [format!("10.244.0.{last}"), format!("10.244.1.{last}")])
        .chain(["192.0.2.9".to_owned()])
        .map(|text| text.parse().unwrap())
        .collect();
    let transports = [8080, 5432].map(|port| Transport::Port(Protocol::Tcp, port));
    let pairs: Vec<(IpAddr, IpAddr)> =
        addresses.iter().flat_map(|source| addresses.iter().map(|destination| (*source, *destination))).collect();
    pairs.into_iter().flat_map(move |(source, destination)| {
        transports.into_iter().map(move |transport| Flow { source, destination, transport })
    })
}

/// Two namespaces, two nodes, three pods and two policies.
pub(crate) fn world(server: &FakeApiServer) {
    server.apply(&sample::namespace("shop", &[("team", "a")]));
    server.apply(&sample::namespace("other", &[]));
    server.apply(&sample::node("node-1", "192.0.2.1", &["10.244.0.0/24"]));
    server.apply(&sample::node("node-2", "192.0.2.2", &["10.244.1.0/24"]));
    server.apply(&pod("shop", "web", "web", "10.244.0.2"));
    server.apply(&pod("shop", "db", "db", "10.244.0.3"));
    server.apply(&pod("other", "web", "web", "10.244.1.2"));
    server.apply(&db_from(&json!([{"podSelector": {"matchLabels": {"app": "web"}}}])));
    server.apply(&sample::network_policy(
        "shop",
        "web",
        &json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "a"}}}], "ports": [{"port": "http"}]}],
            "egress": [{"to": [{"namespaceSelector": {}}]}]}),
    ));
}

/// A pod with the label `app`, on node-1 if its address is there.
pub(crate) fn pod(namespace: &str, name: &str, app: &str, address: &str) -> Value {
    let node = if address.starts_with("10.244.0.") { "node-1" } else { "node-2" };
    sample::pod(namespace, name, &[("app", app)], node, &[address])
}

/// The policy shop/db, with these peers.
pub(crate) fn db_from(peers: &Value) -> Value {
    let spec = json!({"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": peers, "ports": [{"port": 5432}, {"port": 8080}]}]});
    sample::network_policy("shop", "db", &spec)
}
