//! What lists, watches and writes must do, asked of the fake and of a real API server by the same functions: what holds for
//! both is what programs may be tested with. The real one runs where KUBEBUILDER_ASSETS names a folder with `kube-apiserver`
//! and `etcd`.

#![allow(clippy::unwrap_used, reason = "a test")]

mod forgetting;
mod lists;
mod objects;
mod watches;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use libtest_mimic::{Arguments, Trial};
use ringfence_fake_apiserver::{ApiServer, Client, FakeApiServer, RealApiServer, SKIPPED};
use serde_json::{Value, json};

/// A check: it gets a server and a namespace of its own.
type Check = fn(&mut dyn ApiServer, &str);

const CHECKS: [(&str, Check); 20] = [
    ("lists-in-order", lists::lists_are_in_the_order_of_keys),
    ("list-form", lists::a_list_is_a_list_and_an_object_an_object),
    ("pages", lists::pages_show_one_moment),
    ("exact", lists::a_version_of_the_past_can_be_listed),
    ("list-selectors", lists::selectors_choose),
    ("list-refusals", lists::lists_are_refused),
    ("watch-order", watches::changes_come_in_order),
    ("watch-selection", watches::what_enters_a_selection_is_added_and_what_leaves_it_deleted),
    ("watch-initial", watches::a_watch_from_nowhere_begins_with_what_there_is),
    ("watch-list", watches::a_bookmark_ends_the_first_list),
    ("watch-bookmarks", watches::a_watch_ends_in_order_and_a_bookmark_comes_before),
    ("watch-refusals", watches::watches_are_refused),
    ("objects-refusals", objects::requests_are_refused_with_reasons),
    ("objects-writes", objects::objects_change_as_they_are_written),
    ("objects-pods", objects::a_pod_ends_with_grace_or_without),
    ("objects-beside", objects::what_else_is_asked_of_a_server),
    ("samples", objects::samples_are_taken_and_given_back),
    ("slices", objects::services_and_slices_are_kept),
    ("annotations", objects::annotations_of_a_node_are_merged),
    ("forgetting", forgetting::what_is_forgotten_has_expired),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for (name, check) in CHECKS {
        trials.push(Trial::test(format!("fake {name}"), move || {
            let mut server = FakeApiServer::start()?;
            let namespace = prepare(&server, name);
            check(&mut server, &namespace);
            Ok(())
        }));
    }
    // One real server serves all checks, one after the other.
    let real: Arc<Mutex<Option<RealApiServer>>> = Arc::default();
    let assets = RealApiServer::assets();
    for (name, check) in CHECKS {
        let (assets, real) = (assets.clone(), Arc::clone(&real));
        let title = if assets.is_some() { format!("real {name}") } else { format!("real {name} {SKIPPED}") };
        let trial = Trial::test(title, {
            let assets = assets.clone();
            move || {
                let assets = assets.ok_or(SKIPPED)?;
                let mut server = real.lock().unwrap_or_else(PoisonError::into_inner);
                if server.is_none() {
                    *server = Some(RealApiServer::start(&assets)?);
                }
                if let Some(server) = server.as_mut() {
                    let namespace = prepare(server, name);
                    check(server, &namespace);
                }
                Ok(())
            }
        });
        trials.push(trial.with_ignored_flag(assets.is_none()));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    // Its processes shall end with it.
    drop(real);
    conclusion.exit_code()
}

/// Makes the namespace of a check.
fn prepare(server: &dyn ApiServer, name: &str) -> String {
    let client = client(server);
    client.put(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})).unwrap();
    name.to_owned()
}

pub(crate) fn client(server: &dyn ApiServer) -> Client {
    Client::new(&server.kubeconfig()).unwrap()
}

/// The smallest pod that a server takes.
pub(crate) fn pod(namespace: &str, name: &str, app: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": app}},
        "spec": {"nodeName": "node-1", "containers": [{"name": "main", "image": "image"}]},
    })
}

/// The smallest policy that a server takes.
pub(crate) fn policy(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
    })
}

pub(crate) fn pods(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods")
}

pub(crate) fn policies(namespace: &str) -> String {
    format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies")
}

/// The names of a list, in its order.
pub(crate) fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

pub(crate) fn event(kind: &str, name: &str, version: u64) -> (String, String, u64) {
    (kind.to_owned(), name.to_owned(), version)
}
