//! The cluster around the probed pods, and the changes after which packets pass between them or pass no more.
//!
//! The server is a pod of our node in the namespace `wide`, whose pods single policies select all together. The client is
//! a pod of another node, for the agent, in a namespace of its own with as many pods as others have.

use std::fmt;
use std::net::Ipv4Addr;

use ringfence_fake_apiserver::FakeApiServer;
use ringfence_model::{Isolation, Labels, Namespace, NamespaceScope, Object, Peer, Pod, Policy, Selector};
use serde_json::Value;

use crate::api;
use crate::cluster::{CLIENT, OTHER_NODE, OUR_NODE, PORT, SERVER, address, app, own, pod, policy, rule, selector};
use crate::mix::Mix;

/// The server's namespace.
const WIDE: &str = "wide";
/// The client's namespace.
const BENCH: &str = "bench";
/// Pods of the client's namespace.
const BENCH_PODS: u32 = 100;
/// How many pods are there because they came while pods come and go.
const COMING_AND_GOING: u32 = 50;

/// What is changed, back and forth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    RemoteLabel,
    RemotePod,
    LocalLabel,
    LocalPod,
    Policy,
    WidePolicy,
    NamespaceLabel,
}

impl Change {
    pub(super) const ALL: [Change; 7] = [
        Change::RemoteLabel,
        Change::RemotePod,
        Change::LocalLabel,
        Change::LocalPod,
        Change::Policy,
        Change::WidePolicy,
        Change::NamespaceLabel,
    ];
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Change::RemoteLabel => "label of a remote pod",
            Change::RemotePod => "remote pod comes, goes",
            Change::LocalLabel => "label of a local pod",
            Change::LocalPod => "local pod goes, comes",
            Change::Policy => "policy of one pod",
            Change::WidePolicy => "policy of 1,000 pods",
            Change::NamespaceLabel => "label of a namespace",
        })
    }
}

/// The cluster that an API server tells of.
pub(super) struct Cluster<'a> {
    server: &'a FakeApiServer,
    mix: Mix,
}

impl Cluster<'_> {
    /// Files everything. The client is refused.
    pub(super) fn fill(server: &FakeApiServer, mix: Mix) -> Cluster<'_> {
        let cluster = Cluster { server, mix };
        for object in mix.objects().chain(probed()).filter_map(|object| api::object(&object)) {
            server.apply(&object);
        }
        cluster
    }

    /// Brings the probed pods to where a series of changes begins. The client is refused there. Whether that is a change.
    pub(super) fn prepare(&self, change: Change) -> bool {
        match change {
            Change::RemotePod => self.server.delete("pods", BENCH, "client"),
            Change::RemoteLabel | Change::LocalLabel | Change::LocalPod => {
                let before = self.server.version();
                self.server.apply(&api::pod(&client("client"))) != before
            }
            Change::Policy | Change::WidePolicy | Change::NamespaceLabel => false,
        }
    }

    /// Gets a change ready, after which packets of the client pass or do not.
    pub(super) fn change(&self, change: Change, allow: bool) -> Box<dyn FnOnce() + '_> {
        let apply = |object: Value| -> Box<dyn FnOnce() + '_> {
            Box::new(move || {
                self.server.apply(&object);
            })
        };
        let delete = |resource: &'static str, namespace: &'static str, name: &'static str| -> Box<dyn FnOnce() + '_> {
            Box::new(move || {
                self.server.delete(resource, namespace, name);
            })
        };
        match (change, allow) {
            (Change::RemoteLabel, _) => apply(api::pod(&client(if allow { "allowed" } else { "client" }))),
            (Change::RemotePod, true) => apply(api::pod(&client("allowed"))),
            (Change::RemotePod, false) => delete("pods", BENCH, "client"),
            (Change::LocalLabel, _) => apply(api::pod(&server(allow))),
            // An address that no pod has is none of ours to refuse.
            (Change::LocalPod, true) => delete("pods", WIDE, "server"),
            (Change::LocalPod, false) => apply(api::pod(&server(false))),
            (Change::Policy, true) => {
                apply(api::policy(&allowing("wider", app("server"), [from_bench(app("client"))])))
            }
            (Change::Policy, false) => delete("networkpolicies", WIDE, "wider"),
            (Change::WidePolicy, true) => {
                let peers = [from_bench(Selector::default()), own(Selector::default())];
                apply(api::policy(&allowing("widest", Selector::default(), peers)))
            }
            (Change::WidePolicy, false) => delete("networkpolicies", WIDE, "widest"),
            (Change::NamespaceLabel, _) => apply(api::namespace(&bench_namespace(allow))),
        }
    }

    /// Files the pods that go first while pods come and go.
    pub(super) fn prepare_churn(&self) {
        for number in 0..COMING_AND_GOING {
            self.server.apply(&api::pod(&self.short_lived(number, 0)));
        }
    }

    /// One change of a pod that is neither the client nor the server: one comes, its label changes, an older one goes.
    pub(super) fn churn(&self, number: u32) {
        let (oldest, newest) = (number / 3, number / 3 + COMING_AND_GOING);
        if number % 3 < 2 {
            self.server.apply(&api::pod(&self.short_lived(newest, number % 3)));
        } else {
            let pod = self.short_lived(oldest, 0);
            self.server.delete("pods", &pod.namespace, &pod.name);
        }
    }

    /// The same pod before and after its label has changed, with which the mix would give it another name.
    fn short_lived(&self, number: u32, changes: u32) -> Pod {
        let number = self.mix.pods + number;
        Pod { name: self.mix.pod(number, 0).name, ..self.mix.pod(number, changes) }
    }

    /// An edit of a policy, in turn of a namespace with pods of our node and of any other.
    pub(super) fn edit_policy(&self, number: u32) {
        let Mix { namespaces, policies, .. } = self.mix;
        if policies > 0 {
            let place = if number.is_multiple_of(2) { number / 2 % self.mix.local_pods.max(1) } else { namespaces - 1 };
            let kinds = (policies / namespaces).max(1);
            let policy = place % namespaces + number / 2 % kinds * namespaces;
            self.server.apply(&api::policy(&self.mix.policy(policy % policies, 1 + number)));
        }
    }
}

/// The probed pods, what is around them, and the policies that stay.
fn probed() -> impl Iterator<Item = Object> {
    let bystanders = (1..BENCH_PODS).map(|number| {
        let place = address(Ipv4Addr::new(10, 252, 0, 1), number);
        Object::Pod(pod(BENCH, &format!("bystander-{number}"), place, "bystander", OTHER_NODE))
    });
    let from_team =
        Peer::Pods { namespaces: NamespaceScope::Matching(selector("access", "granted")), pods: Selector::default() };
    let policies = [
        allowing("server", app("server"), [from_bench(app("allowed"))]),
        allowing("team", app("server"), [from_team]),
        allowing("exposed", selector("exposed", "yes"), [from_bench(Selector::default())]),
    ];
    [Object::Namespace(bench_namespace(false)), Object::Pod(server(false)), Object::Pod(client("client"))]
        .into_iter()
        .chain(policies.map(Object::Policy))
        .chain(bystanders)
}

fn bench_namespace(granted: bool) -> Namespace {
    let labels = [("kubernetes.io/metadata.name", BENCH), ("access", if granted { "granted" } else { "refused" })];
    Namespace { name: BENCH.into(), labels: labels.map(|(key, value)| (key.into(), value.into())).into() }
}

fn server(exposed: bool) -> Pod {
    let labels = [("app", "server"), ("exposed", if exposed { "yes" } else { "no" })];
    let labels = labels.map(|(key, value)| (key.into(), value.into()));
    Pod { labels: Labels::from(labels), ..pod(WIDE, "server", SERVER, "server", OUR_NODE) }
}

fn client(app: &str) -> Pod {
    pod(BENCH, "client", CLIENT, app, OTHER_NODE)
}

/// Pods of the client's namespace.
fn from_bench(pods: Selector) -> Peer {
    Peer::Pods { namespaces: NamespaceScope::Matching(selector("kubernetes.io/metadata.name", BENCH)), pods }
}

/// A policy of the server's namespace that lets peers in by the port that packets go to.
fn allowing<const N: usize>(name: &str, pods: Selector, peers: [Peer; N]) -> Policy {
    let rules = peers.into_iter().map(|peer| rule(peer, PORT)).collect();
    Policy { isolates: Isolation { ingress: true, egress: false }, ..policy(WIDE, name, pods, rules, vec![]) }
}
