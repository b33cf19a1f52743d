//! From one request to its answer.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::body::{Broken, Payload, first_half};
use crate::discovery;
use crate::fault::Fault;
use crate::list;
use crate::request::{Request, Verb};
use crate::resource::Resource;
use crate::shared::{Place, Shared, State};
use crate::status::Refusal;
use crate::watch::{self, Watch};
use crate::write::write;

const JSON: &str = "application/json";

pub(crate) type Answer = Response<Payload>;

/// Answers one request, or never.
pub(crate) async fn answer(shared: Arc<Shared>, incoming: hyper::Request<Incoming>) -> Answer {
    let uri = incoming.uri();
    let request = Request::read(incoming.method(), uri.path(), uri.query().unwrap_or_default(), incoming.headers());
    let content_type = incoming.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let content_type = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_owned();
    let fault = {
        let mut state = shared.lock();
        let fault = state.faults.take(&request);
        state.requests.push(request.clone());
        fault
    };
    let Ok(body) = incoming.into_body().collect().await.map(http_body_util::Collected::to_bytes) else {
        return refuse(&Refusal::new(400, "the body of the request broke off"));
    };
    let fault = match fault {
        Some(Fault::Status { code, retry_after }) => {
            let refusal = match (code, request.query.contains_key("continue")) {
                (410, true) => Refusal::expired_list(None),
                _ => Refusal::new(code, "a fault that was asked for"),
            };
            return refuse(&refusal.retry_after(retry_after));
        }
        Some(Fault::Answer { code, content_type, body }) => return respond(code, content_type, body),
        Some(Fault::Delay(time)) => {
            tokio::time::sleep(time).await;
            None
        }
        Some(Fault::Hang) => return std::future::pending().await,
        other => other,
    };
    let is_json = matches!(content_type.as_str(), "" | "*/*" | JSON) || content_type.ends_with("+json");
    if !body.is_empty() && !is_json {
        let message =
            format!("the body of the request was in an unknown format - accepted media types include: {JSON}");
        return refuse(&Refusal::new(415, &message));
    }
    let outcome = match request.resource {
        Some(resource) if request.verb == Some(Verb::Watch) => {
            return open_watch(&shared, resource, &request, fault).unwrap_or_else(|refusal| refuse(&refusal));
        }
        Some(resource) => about(&mut shared.lock(), resource, &request, &content_type, &body, fault.as_ref()),
        None => beside(&shared.lock(), &request, &body),
    };
    let answer = match outcome {
        Ok((code, text)) => (code, text),
        Err(refusal) => return refuse(&refusal),
    };
    spoil(answer, fault)
}

/// A request about a resource, but for watches.
fn about(
    state: &mut State,
    resource: &'static Resource,
    request: &Request,
    content_type: &str,
    body: &[u8],
    fault: Option<&Fault>,
) -> Result<(u16, String), Refusal> {
    match request.verb {
        Some(Verb::List) if fault == Some(&Fault::HalfList) => {
            list::half(&state.store, resource, request).map(|text| (200, text))
        }
        Some(Verb::List) => list::list(&state.store, resource, request).map(|text| (200, text)),
        Some(Verb::Get) => {
            let key = resource.key(&request.namespace, &request.name);
            let object = state.store.objects(resource).get(&key);
            let object = object.ok_or_else(|| Refusal::not_found(resource, &request.name))?;
            let mut text = String::new();
            object.write(resource, &mut text);
            Ok((200, text))
        }
        _ => state.change(|store| write(store, resource, request, content_type, body)),
    }
}

/// A request about the server itself.
fn beside(state: &State, request: &Request, body: &[u8]) -> Result<(u16, String), Refusal> {
    let not_found = || Refusal::new(404, "the server could not find the requested resource");
    let is_get = request.method == Method::GET.as_str();
    match request.path.as_str() {
        "/livez" | "/healthz" if is_get => Ok((200, "ok".to_owned())),
        "/readyz" if is_get && state.ready => Ok((200, "ok".to_owned())),
        "/readyz" if is_get => Err(Refusal::new(500, "readyz check failed")),
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews" if request.method == Method::POST.as_str() => {
            review(state, body)
        }
        path if is_get => discovery::document(path).map(|value| (200, value.to_string())).ok_or_else(not_found),
        _ => Err(not_found()),
    }
}

fn review(state: &State, body: &[u8]) -> Result<(u16, String), Refusal> {
    let mut review: Value =
        serde_json::from_slice(body).map_err(|error| Refusal::new(400, &format!("not a review: {error}")))?;
    let asked = &review["spec"]["resourceAttributes"];
    let (verb, resource) = (asked["verb"].as_str().unwrap_or_default(), asked["resource"].as_str().unwrap_or_default());
    let covers = |rule: &str, asked: &str| rule == "*" || rule == asked;
    let denied = state.denied.iter().any(|(verbs, resources)| covers(verbs, verb) && covers(resources, resource));
    let reason = if denied { "" } else { "RBAC: allowed" };
    review["status"] = json!({"allowed": !denied, "reason": reason});
    Ok((201, review.to_string()))
}

fn open_watch(
    shared: &Arc<Shared>,
    resource: &'static Resource,
    request: &Request,
    fault: Option<Fault>,
) -> Result<Answer, Refusal> {
    let (watch, place) = {
        let mut state = shared.lock();
        let watch = Watch::new(&state.store, state.watch_list, resource, request, fault)?;
        (watch, Place::take(shared, &mut state, resource))
    };
    let (writer, payload) = Payload::written();
    tokio::spawn(watch::run(watch, place, writer));
    Ok(with_type(200, JSON, payload))
}

/// The answer as a fault of its transport leaves it.
fn spoil((code, text): (u16, String), fault: Option<Fault>) -> Answer {
    match fault {
        Some(Fault::Truncate) => respond(code, JSON, first_half(&text).to_owned()),
        Some(fault @ (Fault::Cut | Fault::Stall)) => {
            let (writer, payload) = Payload::written();
            let half = first_half(&text).to_owned();
            tokio::spawn(async move {
                // Whoever does not read on has seen enough.
                let _ = writer.send(Ok(half.into())).await;
                if fault == Fault::Stall {
                    return writer.closed().await;
                }
                // The half shall arrive before the connection breaks.
                tokio::time::sleep(Duration::from_millis(20)).await;
                let _ = writer.send(Err(Broken)).await;
            });
            with_type(code, JSON, payload)
        }
        _ => respond(code, if text == "ok" { "text/plain; charset=utf-8" } else { JSON }, text),
    }
}

fn refuse(refusal: &Refusal) -> Answer {
    let mut answer = respond(refusal.code, JSON, refusal.status.to_string());
    if let Some(seconds) = refusal.retry_after {
        answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if refusal.code == 405 {
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, POST, PUT, PATCH, DELETE"));
    }
    answer
}

fn respond(code: u16, content_type: &'static str, text: String) -> Answer {
    with_type(code, content_type, Payload::whole(text))
}

fn with_type(code: u16, content_type: &'static str, payload: Payload) -> Answer {
    let mut answer = Response::new(payload);
    *answer.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    answer
}
