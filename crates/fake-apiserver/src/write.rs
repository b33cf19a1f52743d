//! Objects written over HTTP, as far as an API server without controllers and admission goes.

use serde_json::{Map, Value, json};

use crate::request::{Request, Verb};
use crate::resource::Resource;
use crate::status::Refusal;
use crate::store::{Store, seconds_from_now};

/// Answers a request that writes: the code and the text.
///
/// # Errors
///
/// The refusal to send.
pub(crate) fn write(
    store: &mut Store,
    resource: &'static Resource,
    request: &Request,
    content_type: &str,
    body: &[u8],
) -> Result<(u16, String), Refusal> {
    match request.verb {
        Some(Verb::Create) => create(store, resource, request, object(body)?),
        Some(Verb::Update) => update(store, resource, request, object(body)?),
        Some(Verb::Patch) if is_merge(content_type) => {
            let patch = serde_json::from_slice(body).map_err(|error| unreadable(&error))?;
            let mut value = current(store, resource, request)?;
            merge(&mut value, patch);
            let Value::Object(value) = value else { return Err(Refusal::new(400, "not an object")) };
            update(store, resource, request, value)
        }
        Some(Verb::Patch) => Err(Refusal::new(415, "the body of the request was in an unknown format")),
        Some(Verb::Delete) => delete(store, resource, request, body),
        _ => Err(Refusal::new(405, "the server does not allow this method on the requested resource")),
    }
}

/// Strategic merge patches are taken for plain ones: their lists replace what there is.
fn is_merge(content_type: &str) -> bool {
    matches!(content_type, "application/merge-patch+json" | "application/strategic-merge-patch+json")
}

fn unreadable(error: &serde_json::Error) -> Refusal {
    Refusal::new(400, &format!("the object provided is unrecognized: {error}"))
}

fn object(body: &[u8]) -> Result<Map<String, Value>, Refusal> {
    serde_json::from_slice(body).map_err(|error| unreadable(&error))
}

fn current(store: &Store, resource: &'static Resource, request: &Request) -> Result<Value, Refusal> {
    let key = resource.key(&request.namespace, &request.name);
    let object = store.objects(resource).get(&key);
    Ok(object.ok_or_else(|| Refusal::not_found(resource, &request.name))?.value(resource))
}

fn check_type(resource: &Resource, value: &Map<String, Value>) -> Result<(), Refusal> {
    let (kind, api) = (value.get("kind"), value.get("apiVersion"));
    let expected = (Some(json!(resource.kind)), Some(json!(resource.api_version())));
    if (kind.cloned(), api.cloned()) == expected {
        return Ok(());
    }
    let message = format!(
        "{} in version {:?} cannot be handled as a {}",
        kind.unwrap_or(&Value::Null),
        api.and_then(Value::as_str).unwrap_or_default(),
        resource.kind
    );
    Err(Refusal::new(400, &message))
}

fn create(
    store: &mut Store,
    resource: &'static Resource,
    request: &Request,
    mut value: Map<String, Value>,
) -> Result<(u16, String), Refusal> {
    check_type(resource, &value)?;
    let metadata = value.get("metadata").cloned().unwrap_or_default();
    let name = match (metadata["name"].as_str(), metadata["generateName"].as_str()) {
        (Some(name), _) => name.to_owned(),
        (None, Some(prefix)) => format!("{prefix}{:05}", store.version() % 100_000),
        (None, None) => {
            let kind = resource.qualified_kind();
            let message =
                format!("{kind} \"\" is invalid: metadata.name: Required value: name or generateName is required");
            return Err(Refusal::new(422, &message));
        }
    };
    if metadata["resourceVersion"].as_str().is_some_and(|version| !version.is_empty()) {
        return Err(Refusal::unforeseen("resourceVersion should not be set on objects to be created"));
    }
    check_namespace(resource, request, &metadata)?;
    let namespaces = Resource::named("namespaces");
    if resource.namespaced
        && let Some(namespaces) = namespaces
        && !store.objects(namespaces).contains_key(&request.namespace)
    {
        return Err(Refusal::not_found(namespaces, &request.namespace));
    }
    if store.objects(resource).contains_key(&resource.key(&request.namespace, &name)) {
        return Err(Refusal::already_exists(resource, &name));
    }
    match resource.kind {
        "Pod" => {
            value.insert("status".to_owned(), json!({"phase": "Pending"}));
        }
        "Namespace" => {
            value.insert("spec".to_owned(), json!({"finalizers": ["kubernetes"]}));
            value.insert("status".to_owned(), json!({"phase": "Active"}));
        }
        _ => {}
    }
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in ["uid", "creationTimestamp", "deletionTimestamp", "generation"] {
            metadata.remove(field);
        }
    }
    let object = store.put(resource, &request.namespace, &name, value);
    Ok((201, object.value(resource).to_string()))
}

fn check_namespace(resource: &Resource, request: &Request, metadata: &Value) -> Result<(), Refusal> {
    match metadata["namespace"].as_str() {
        Some(namespace) if resource.namespaced && namespace != request.namespace => {
            let message = "the namespace of the provided object does not match the namespace sent on the request";
            Err(Refusal::new(400, message))
        }
        _ => Ok(()),
    }
}

fn update(
    store: &mut Store,
    resource: &'static Resource,
    request: &Request,
    mut value: Map<String, Value>,
) -> Result<(u16, String), Refusal> {
    check_type(resource, &value)?;
    let mut known = current(store, resource, request)?;
    let metadata = value.get("metadata").cloned().unwrap_or_default();
    check_namespace(resource, request, &metadata)?;
    if metadata["name"].as_str() != Some(&request.name) {
        return Err(Refusal::new(400, "the name of the object does not match the name on the URL"));
    }
    let version = metadata["resourceVersion"].as_str().unwrap_or_default();
    if !version.is_empty() && known["metadata"]["resourceVersion"] != *version {
        return Err(Refusal::conflict(resource, &request.name));
    }
    match (request.subresource.as_str(), resource.status) {
        ("", true) => {
            let status = known["status"].take();
            if status.is_null() {
                value.remove("status")
            } else {
                value.insert("status".to_owned(), status)
            };
        }
        ("", false) => {}
        ("status", true) => {
            let status = value.remove("status").unwrap_or_default();
            let Value::Object(mut kept) = known else { return Err(Refusal::not_found(resource, &request.name)) };
            kept.insert("status".to_owned(), status);
            value = kept;
        }
        _ => return Err(Refusal::new(404, "the server could not find the requested resource")),
    }
    let object = store.put(resource, &request.namespace, &request.name, value);
    Ok((200, object.value(resource).to_string()))
}

/// A pod is told to end first. One that a node runs is gone only when it is deleted once more without a period of grace, which
/// is what its kubelet does. Everything else is gone at once, as if no controller had to be waited for.
fn delete(
    store: &mut Store,
    resource: &'static Resource,
    request: &Request,
    body: &[u8],
) -> Result<(u16, String), Refusal> {
    let known = current(store, resource, request)?;
    let options: Value =
        if body.is_empty() { Value::Null } else { serde_json::from_slice(body).map_err(|error| unreadable(&error))? };
    let uid = known["metadata"]["uid"].clone();
    if let Some(expected) = options["preconditions"]["uid"].as_str()
        && uid != *expected
    {
        return Err(Refusal::conflict(resource, &request.name));
    }
    if resource.kind == "Pod" {
        let asked = request.query.get("gracePeriodSeconds").and_then(|text| text.parse().ok());
        let asked = asked.or_else(|| options["gracePeriodSeconds"].as_u64());
        if end_pod(store, resource, request, known, asked) > 0 {
            return Ok((200, current(store, resource, request)?.to_string()));
        }
    }
    let last = store.remove(resource, &request.namespace, &request.name);
    let answer = match last {
        Some(last) if resource.kind == "Pod" => last.value(resource),
        _ => json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
            "details": {"name": request.name, "group": resource.group, "kind": resource.plural, "uid": uid},
        }),
    };
    Ok((200, answer.to_string()))
}

/// Tells a pod to end within so many seconds, or within its own period of grace; a period that runs can only be shortened.
/// Gives the seconds that it has.
fn end_pod(
    store: &mut Store,
    resource: &'static Resource,
    request: &Request,
    mut pod: Value,
    asked: Option<u64>,
) -> u64 {
    let placed = pod["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty());
    let ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let wanted = asked.or_else(|| pod["spec"]["terminationGracePeriodSeconds"].as_u64()).unwrap_or(30);
    let grace = if placed && !ended { wanted } else { 0 };
    let metadata = &mut pod["metadata"];
    let running = metadata["deletionGracePeriodSeconds"].as_u64();
    if let Some(running) = running.filter(|running| *running <= grace && metadata["deletionTimestamp"].is_string()) {
        return running;
    }
    // The moment when it shall have ended.
    metadata["deletionTimestamp"] = json!(seconds_from_now(grace));
    metadata["deletionGracePeriodSeconds"] = json!(grace);
    if let Value::Object(pod) = pod {
        store.put(resource, &request.namespace, &request.name, pod);
    }
    grace
}

/// RFC 7386.
fn merge(value: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *value = patch;
        return;
    };
    if !value.is_object() {
        *value = json!({});
    }
    for (key, change) in patch {
        if change.is_null() {
            if let Some(value) = value.as_object_mut() {
                value.remove(&key);
            }
        } else {
            merge(&mut value[key], change);
        }
    }
}
