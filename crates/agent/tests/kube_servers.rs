//! The source against API servers: the fake one, and a real one where KUBEBUILDER_ASSETS names a folder with kube-apiserver and
//! etcd.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use ringfence_agent::Change;
use ringfence_agent::kube::{KubeSource, Timing};
use ringfence_agent::source::{CAPACITY, Event};
use ringfence_fake_apiserver::{ApiServer, Client, FakeApiServer, RealApiServer, SKIPPED, sample};
use ringfence_k8s::{Source, parse};
use ringfence_model::{Object, ObjectKey};
use serde_json::json;
use tokio::sync::mpsc::{Receiver, channel};

/// A real server takes seconds to start anew.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() {
    let fake = Trial::test("fake", || check(&mut FakeApiServer::start()?));
    let real = match RealApiServer::assets() {
        Some(assets) => Trial::test("kube-apiserver", move || check(&mut RealApiServer::start(&assets)?)),
        None => Trial::test(format!("kube-apiserver ({SKIPPED})"), || Ok(())).with_ignored_flag(true),
    };
    libtest_mimic::run(&Arguments::from_args(), vec![fake, real]).exit();
}

/// What the source has told so far.
struct Told {
    events: Receiver<Event>,
    objects: BTreeMap<ObjectKey, Object>,
    failures: Vec<String>,
}

impl Told {
    fn hear(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            match event {
                Event::Failed(error) => self.failures.push(error.to_string()),
                Event::Begun(changes) => changes.into_iter().for_each(|change| self.apply(change)),
                Event::Update(update) | Event::Partial(update) => {
                    for change in update.changes {
                        self.apply(change);
                    }
                }
            }
        }
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Reset(objects) => {
                self.objects = objects.into_iter().map(|object| (object.key(), object)).collect();
            }
            Change::Complete => {}
            Change::Apply(object) => {
                self.objects.insert(object.key(), object);
            }
            Change::Delete(key) => {
                self.objects.remove(&key);
            }
        }
    }

    /// Waits until what was told is what the server answers.
    fn catch_up(&mut self, client: &Client) {
        let start = Instant::now();
        loop {
            self.hear();
            let held = held(client);
            if self.objects == held {
                return;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "the server holds {held:#?}\nand the source told {:#?}\nfailures: {:#?}",
                self.objects,
                self.failures
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// What the server answers, by the reader of manifests.
fn held(client: &Client) -> BTreeMap<ObjectKey, Object> {
    let kinds = [
        ("/api/v1/namespaces", "v1", "Namespace"),
        ("/api/v1/nodes", "v1", "Node"),
        ("/api/v1/pods", "v1", "Pod"),
        ("/apis/networking.k8s.io/v1/networkpolicies", "networking.k8s.io/v1", "NetworkPolicy"),
    ];
    let mut held = BTreeMap::new();
    for (path, version, name) in kinds {
        let answer = client.get(path).unwrap();
        for item in answer.json["items"].as_array().into_iter().flatten() {
            let mut item = item.clone();
            item["apiVersion"] = json!(version);
            item["kind"] = json!(name);
            let objects = parse(&[Source { name: "held", text: item.to_string().as_bytes() }]).objects;
            // The namespaces of pods and policies are implied; those that exist are asked for themselves.
            let asked =
                objects.into_iter().filter(|object| name == "Namespace" || !matches!(object, Object::Namespace(_)));
            held.extend(asked.map(|object| (object.key(), object)));
        }
    }
    held
}

fn check(server: &mut impl ApiServer) -> Result<(), Failed> {
    let client = Client::new(&server.kubeconfig())?;
    let pod = |name: &str, app: &str, address: &str| sample::pod("shop", name, &[("app", app)], "node-1", &[address]);
    let policy = |name: &str, spec: &serde_json::Value| sample::network_policy("shop", name, spec);
    client.put(&sample::namespace("shop", &[("team", "a")]))?;
    client.put(&sample::node("node-1", "192.0.2.1", &["10.244.0.0/24"]))?;
    client.put(&pod("web", "web", "10.244.0.2"))?;
    client.put(&policy("all", &json!({"podSelector": {}, "policyTypes": ["Ingress"]})))?;

    let (sender, events) = channel(CAPACITY);
    let timing = Timing {
        first_pause: Duration::from_millis(20),
        longest_pause: Duration::from_millis(500),
        ..Timing::default()
    };
    KubeSource::open(Some(&server.kubeconfig()), None)?.with_timing(timing).follow(sender, None)?;
    let mut told = Told { events, objects: BTreeMap::new(), failures: Vec::new() };
    told.catch_up(&client);
    if !told.failures.is_empty() {
        return Err(format!("{:?}", told.failures).into());
    }

    for round in 0..3 {
        client.put(&pod("db", "db", &format!("10.244.0.{}", 10 + round)))?;
        client.put(&sample::namespace("shop", &[("team", ["b", "c", "d"][round])]))?;
        client.put(&policy(
            "web",
            &json!({"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": 80 + round}]}],
                "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}]}]}),
        ))?;
        told.catch_up(&client);
        client.remove("pods", "shop", "db")?;
        client.remove("networkpolicies", "shop", "web")?;
        told.catch_up(&client);
        // The place of every watch is gone, and a real server is away for a while.
        client.put(&pod("late", "web", &format!("10.244.0.{}", 20 + round)))?;
        server.forget()?;
        client.remove("pods", "shop", "late")?;
        told.catch_up(&client);
    }
    Ok(())
}
