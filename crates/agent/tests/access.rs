//! What the agent may, as a server answers that refuses some of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::authorization::v1::SelfSubjectAccessReview;
use ringfence_agent::access::{AskError, Lost, NEEDED, needed, refusals};
use ringfence_model::{EnforceAt, Enforcement, NodeTraffic};

type Asked = Arc<Mutex<Vec<String>>>;

/// A server that refuses what `refused` names as `verb resource.group`, and notes all it was asked.
async fn server(refused: &'static [&'static str]) -> (SocketAddr, Asked) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Asked::default();
    let log = asked.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let log = log.clone();
            let service = service_fn(move |request| answer(request, refused, log.clone()));
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    (address, asked)
}

async fn answer(request: Request<Incoming>, refused: &[&str], log: Asked) -> Result<Response<Full<Bytes>>, Infallible> {
    assert_eq!((request.method().as_str(), request.uri().path()), ("POST", REVIEWS));
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let review: SelfSubjectAccessReview = serde_json::from_slice(&body).unwrap();
    let wanted = review.spec.resource_attributes.as_ref().unwrap();
    assert_eq!(wanted.namespace, None, "in all namespaces");
    let [verb, resource, group] = [&wanted.verb, &wanted.resource, &wanted.group].map(|word| word.as_deref().unwrap());
    let question = format!("{verb} {resource}.{group}");
    let mut answer = serde_json::to_value(&review).unwrap();
    if !refused.contains(&"say nothing") {
        answer["status"] = serde_json::json!({
            "allowed": !refused.contains(&question.as_str()), "reason": "by the test",
        });
    }
    log.lock().unwrap().push(question);
    Ok(Response::new(Full::from(answer.to_string())))
}

const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

/// A kubeconfig for `server`, in a folder that goes with the test.
fn kubeconfig(folder: &tempfile::TempDir, server: &str) -> PathBuf {
    let path = folder.path().join("config");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: '{server}'}}}}]\n\
         users: [{{name: u, user: {{token: t}}}}]\n"
    );
    std::fs::write(&path, text).unwrap();
    path
}

async fn refused_by(rules: &'static [&'static str]) -> (Vec<String>, Vec<String>) {
    let (address, asked) = server(rules).await;
    let folder = tempfile::tempdir().unwrap();
    let refusals = refusals(Some(&kubeconfig(&folder, &format!("http://{address}"))), NEEDED).await.unwrap();
    let refused = refusals.iter().map(|refusal| {
        assert!(!refusal.access.verbs.is_empty());
        format!("{} {}.{}: {}", refusal.verb, refusal.access.resource, refusal.access.group, refusal.reason)
    });
    let asked = asked.lock().unwrap().clone();
    (refused.collect(), asked)
}

#[tokio::test]
async fn all_that_is_needed_is_asked_for() {
    let (refused, asked) = refused_by(&[]).await;
    assert!(refused.is_empty(), "{refused:?}");
    let needed = NEEDED
        .iter()
        .flat_map(|access| access.verbs.iter().map(move |verb| format!("{verb} {}.{}", access.resource, access.group)));
    assert_eq!(asked, needed.collect::<Vec<_>>());
    assert!(asked.contains(&"watch networkpolicies.networking.k8s.io".to_owned()));
}

#[tokio::test]
async fn what_is_refused_is_told_with_the_reason() {
    let (refused, _) = refused_by(&["watch pods.", "create events.events.k8s.io"]).await;
    assert_eq!(refused, ["watch pods.: by the test", "create events.events.k8s.io: by the test"]);
    assert!(NEEDED.iter().all(|access| (access.lost == Lost::Events) == (access.resource == "events")));
}

#[tokio::test]
async fn no_answer_is_no_permission() {
    let (refused, asked) = refused_by(&["say nothing"]).await;
    assert_eq!(refused.len(), asked.len());
}

#[tokio::test]
async fn who_cannot_be_asked_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("nowhere");
    let error = refusals(Some(&missing), NEEDED).await.unwrap_err();
    assert!(matches!(error, AskError::Kubeconfig { .. }), "{error}");
    assert!(error.to_string().contains("nowhere"), "{error}");
    // A port on which nobody listens any more.
    let address = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = refusals(Some(&kubeconfig(&folder, &format!("http://{address}"))), NEEDED).await.unwrap_err();
    assert!(matches!(error, AskError::Server(_)) && error.to_string().contains("refused"), "{error}");
}

#[test]
fn more_is_needed_only_where_more_is_done() {
    let more = |at, node_traffic, announces| {
        let needed = needed(Enforcement { at, node_traffic }, announces);
        assert_eq!(needed[..NEEDED.len()], *NEEDED);
        needed[NEEDED.len()..]
            .iter()
            .map(|access| format!("{:?} {}", access.verbs, access.resource))
            .collect::<Vec<_>>()
    };
    let read = ["[\"get\", \"list\", \"watch\"] services", "[\"get\", \"list\", \"watch\"] endpointslices"];
    let patch = "[\"patch\"] nodes";
    assert_eq!(more(EnforceAt::Destination, NodeTraffic::Own, true), [""; 0]);
    assert_eq!(more(EnforceAt::Destination, NodeTraffic::All, true), [patch]);
    assert_eq!(more(EnforceAt::Everywhere, NodeTraffic::Own, true), [patch]);
    assert_eq!(more(EnforceAt::Everywhere, NodeTraffic::Own, false), [""; 0]);
    assert_eq!(more(EnforceAt::Entry, NodeTraffic::Policy, true), [read[0], read[1], patch]);
    assert_eq!(more(EnforceAt::Entry, NodeTraffic::Own, false), read);
}
