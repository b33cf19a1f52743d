//! The client that Rust programs use, against the fake: its lists, watches, resumptions and relists must work.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, Config, ResourceExt};
use ringfence_fake_apiserver::{FakeApiServer, Fault, On, Verb, WatchList, sample};
use serde_json::json;

/// How long an event may take that must come.
const PATIENCE: Duration = Duration::from_secs(20);

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

async fn client(server: &FakeApiServer) -> Client {
    let kubeconfig = Kubeconfig::read_from(server.kubeconfig()).unwrap();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    // What is refused shall be seen here and not be asked again.
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

fn pod(server: &FakeApiServer, name: &str) {
    server.apply(&sample::pod("shop", name, &[("app", "web")], "node-1", &["10.244.0.7"]));
}

/// A watcher and the names of the pods that it says there are.
struct Follower {
    events: Pin<Box<dyn Stream<Item = watcher::Result<Event<Pod>>>>>,
    pods: BTreeSet<String>,
    listing: BTreeSet<String>,
    lists: usize,
    errors: usize,
}

impl Follower {
    async fn start(server: &FakeApiServer, config: watcher::Config) -> Follower {
        let pods = Api::<Pod>::all(client(server).await);
        let events = Box::pin(watcher(pods, config));
        Follower { events, pods: BTreeSet::new(), listing: BTreeSet::new(), lists: 0, errors: 0 }
    }

    /// Follows until these are the pods.
    async fn until(&mut self, expected: &[&str]) {
        let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
        while self.lists == 0 || self.pods != expected {
            let event = tokio::time::timeout(PATIENCE, self.events.next()).await;
            let event = event.unwrap_or_else(|_| panic!("waits for {expected:?}, has {:?}", self.pods)).unwrap();
            match event {
                Ok(Event::Init) => self.listing.clear(),
                Ok(Event::InitApply(pod)) => {
                    self.listing.insert(pod.name_any());
                }
                Ok(Event::InitDone) => {
                    self.pods = std::mem::take(&mut self.listing);
                    self.lists += 1;
                }
                Ok(Event::Apply(pod)) => {
                    self.pods.insert(pod.name_any());
                }
                Ok(Event::Delete(pod)) => {
                    self.pods.remove(&pod.name_any());
                }
                Err(_) => self.errors += 1,
            }
        }
    }
}

#[test]
fn a_watcher_lists_in_pages_and_follows() {
    run(async {
        let server = FakeApiServer::start().unwrap();
        for name in ["a", "b", "c", "d", "e"] {
            pod(&server, name);
        }
        let mut follower = Follower::start(&server, watcher::Config::default().page_size(2)).await;
        follower.until(&["a", "b", "c", "d", "e"]).await;
        assert_eq!(server.requests_of(Verb::List, "pods").len(), 3);
        pod(&server, "f");
        server.delete("pods", "shop", "a");
        follower.until(&["b", "c", "d", "e", "f"]).await;
        assert_eq!((follower.lists, follower.errors), (1, 0));
    });
}

#[test]
fn a_watch_that_ends_is_resumed_where_a_bookmark_left_it() {
    run(async {
        let server = FakeApiServer::start().unwrap();
        let mut follower = Follower::start(&server, watcher::Config::default()).await;
        follower.until(&[]).await;
        pod(&server, "a");
        follower.until(&["a"]).await;
        assert_eq!(server.watchers("pods"), 1);
        // Versions that pods know nothing of, and a history that does not reach back to the last pod.
        server.apply(&sample::namespace("shop", &[]));
        server.compact();
        server.send_bookmarks("pods");
        server.end_watches("pods");
        pod(&server, "b");
        follower.until(&["a", "b"]).await;
        assert_eq!((follower.lists, follower.errors), (1, 0), "{:?}", server.requests());
        assert_eq!(server.requests_of(Verb::Watch, "pods").len(), 2);
    });
}

#[test]
fn a_version_that_is_forgotten_leads_to_a_new_list() {
    run(async {
        let server = FakeApiServer::start().unwrap();
        pod(&server, "a");
        let mut follower = Follower::start(&server, watcher::Config::default()).await;
        follower.until(&["a"]).await;
        pod(&server, "b");
        follower.until(&["a", "b"]).await;
        server.go_away();
        server.delete("pods", "shop", "a");
        pod(&server, "c");
        server.compact();
        server.come_back();
        follower.until(&["b", "c"]).await;
        assert_eq!(follower.lists, 2);
        assert!(follower.errors > 0);
    });
}

#[test]
fn a_stream_brings_the_first_list_where_the_server_knows_how() {
    run(async {
        let server = FakeApiServer::start().unwrap();
        pod(&server, "a");
        let mut follower = Follower::start(&server, watcher::Config::default().streaming_lists()).await;
        follower.until(&["a"]).await;
        pod(&server, "b");
        follower.until(&["a", "b"]).await;
        assert_eq!(server.requests_of(Verb::List, "pods").len(), 0);

        let server = FakeApiServer::start().unwrap();
        server.set_watch_list(WatchList::Disabled);
        let mut follower = Follower::start(&server, watcher::Config::default().streaming_lists()).await;
        let first = follower.events.next().await.unwrap();
        let Err(watcher::Error::WatchStartFailed(kube::Error::Api(status))) = first else { panic!("{first:?}") };
        assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"));
    });
}

#[test]
fn objects_are_written_over_http_as_clients_expect() {
    run(async {
        let server = FakeApiServer::start().unwrap();
        server.apply(&sample::namespace("shop", &[]));
        let policies = Api::<NetworkPolicy>::namespaced(client(&server).await, "shop");
        let spec = json!({"podSelector": {}, "policyTypes": ["Ingress"]});
        let policy: NetworkPolicy = serde_json::from_value(sample::network_policy("shop", "deny", &spec)).unwrap();
        let created = policies.create(&PostParams::default(), &policy).await.unwrap();
        assert_eq!(created.metadata.generation, Some(1));
        let Err(kube::Error::Api(status)) = policies.create(&PostParams::default(), &policy).await else { panic!() };
        assert_eq!((status.code, status.reason.as_str()), (409, "AlreadyExists"));

        let patch = json!({"metadata": {"labels": {"team": "a"}, "annotations": null}});
        let patched = policies.patch("deny", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
        assert_eq!(patched.labels()["team"], "a");
        assert!(patched.annotations().is_empty());
        assert_eq!(patched.metadata.generation, Some(1));
        let Err(kube::Error::Api(status)) = policies.replace("deny", &PostParams::default(), &created).await else {
            panic!("an old version was taken");
        };
        assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));

        assert_eq!(policies.list(&ListParams::default().labels("team=a")).await.unwrap().items.len(), 1);
        policies.delete("deny", &DeleteParams::default()).await.unwrap();
        assert_eq!(policies.get_opt("deny").await.unwrap(), None);
    });
}

#[test]
fn a_refusal_reaches_the_client_with_its_reason() {
    run(async {
        let server = FakeApiServer::start().unwrap();
        server.inject(On::list("pods"), 1, Fault::retry_after(429, 7));
        let pods = Api::<Pod>::all(client(&server).await);
        let Err(kube::Error::Api(status)) = pods.list(&ListParams::default()).await else { panic!() };
        assert_eq!((status.code, status.reason.as_str()), (429, "TooManyRequests"));
        assert_eq!(status.details.as_ref().map(|details| details.retry_after_seconds), Some(7));
        assert_eq!(pods.list(&ListParams::default()).await.unwrap().items.len(), 0);
        assert_eq!(server.faults_left(), 0);
    });
}
