//! Lists: consistent pages, versions of the past, and tokens that expire.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::object::Object;
use crate::request::{Request, Verb};
use crate::resource::Resource;
use crate::selector::Selection;
use crate::status::Refusal;
use crate::store::{Past, Store};

/// Where a list goes on.
struct Token {
    /// The version the first page was of; none continues with what there is now.
    version: Option<u64>,
    /// The last key of the page before.
    after: String,
}

impl Token {
    fn print(&self) -> String {
        let version = self.version.map_or(-1, |version| i64::try_from(version).unwrap_or(i64::MAX));
        URL_SAFE_NO_PAD.encode(json!({"v": "meta.k8s.io/v1", "rv": version, "start": self.after}).to_string())
    }

    fn parse(text: &str) -> Option<Token> {
        let token: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let version = token["rv"].as_i64()?;
        Some(Token { version: u64::try_from(version).ok(), after: token["start"].as_str()?.to_owned() })
    }
}

/// The version that a request names. None if it names none or `0`, which is any.
///
/// # Errors
///
/// What is not a number is refused.
pub(crate) fn version_asked(request: &Request) -> Result<Option<u64>, Refusal> {
    let text = request.parameter("resourceVersion");
    if text.is_empty() {
        return Ok(None);
    }
    let version = text.parse().map_err(|_| {
        let message = format!("resourceVersion: Invalid value: {text:?}: must be a number");
        if request.verb == Some(Verb::Watch) { Refusal::unforeseen(&message) } else { Refusal::new(400, &message) }
    })?;
    Ok(Some(version).filter(|version| *version != 0))
}

pub(crate) fn selection(resource: &'static Resource, request: &Request) -> Result<Selection, Refusal> {
    let (labels, fields) = (request.parameter("labelSelector"), request.parameter("fieldSelector"));
    Selection::parse(resource, &request.namespace, labels, fields).map_err(|problem| {
        let (group, version) = (resource.group, resource.version);
        let what = format!("{group}/{version}, Resource={}", resource.plural);
        let message = format!(
            "Unable to find {what:?} that match label selector {labels:?}, field selector {fields:?}: {problem}"
        );
        Refusal::new(400, &message)
    })
}

/// The text of a list.
///
/// # Errors
///
/// The refusal to send.
pub(crate) fn list(store: &Store, resource: &'static Resource, request: &Request) -> Result<String, Refusal> {
    validate(request)?;
    let selection = selection(resource, request)?;
    let asked = version_asked(request)?;
    let token = match request.parameter("continue") {
        "" => None,
        _ if !request.parameter("resourceVersion").is_empty() => {
            return Err(Refusal::new(400, "specifying resource version is not allowed when using continue"));
        }
        text => Some(Token::parse(text).ok_or_else(|| Refusal::new(400, "continue key is not valid"))?),
    };
    let limit: usize = match request.parameter("limit") {
        "" => 0,
        // The version 0 is answered from memory, and there a limit has no meaning.
        _ if request.parameter("resourceVersion") == "0" => 0,
        text => text.parse().map_err(|_| Refusal::new(400, &format!("limit: Invalid value: {text:?}")))?,
    };
    if let Some(version) = asked.filter(|version| *version > store.version()) {
        return Err(Refusal::from_the_future(version, store.version()));
    }
    let exact = match request.parameter("resourceVersionMatch") {
        "Exact" => asked,
        "" if limit > 0 => asked,
        _ => None,
    };
    let (version, objects) = match (&token, exact) {
        (Some(Token { version: Some(version), after }), _) => {
            let rest = || Token { version: None, after: after.clone() }.print();
            let objects = store.at(resource, *version).ok_or_else(|| Refusal::expired_list(Some(rest())))?;
            (*version, objects)
        }
        (None, Some(version)) => {
            let objects = store.at(resource, version).ok_or_else(|| Refusal::expired_list(None))?;
            (version, objects)
        }
        _ => (store.version(), store.now(resource)),
    };
    let after = token.map_or(String::new(), |token| token.after);
    Ok(page(resource, (version, version), &objects, &selection, &after, limit))
}

/// Half of a list, with a token that is refused.
///
/// # Errors
///
/// The refusal to send if the list as a whole would be refused.
pub(crate) fn half(store: &Store, resource: &'static Resource, request: &Request) -> Result<String, Refusal> {
    let selection = selection(resource, request)?;
    let count = store.objects(resource).values().filter(|object| selection.selects(object)).count();
    // The token names a version that was forgotten before the first object was written.
    Ok(page(resource, (store.version(), 1), &store.now(resource), &selection, "", (count / 2).max(1)))
}

/// Takes the version of the list and the one its token shall name.
fn page(
    resource: &Resource,
    (version, continued): (u64, u64),
    objects: &Past<'_>,
    selection: &Selection,
    after: &str,
    limit: usize,
) -> String {
    let mut chosen = objects.after(after).filter(|(_, object)| selection.selects(object));
    let limit = if limit == 0 { usize::MAX } else { limit };
    let items: Vec<(&str, &Arc<Object>)> = chosen.by_ref().take(limit).collect();
    let mut metadata = json!({"resourceVersion": version.to_string()});
    // How many remain is told only where that takes no selecting.
    let remaining = if selection.is_everything() { chosen.count() } else { usize::from(chosen.next().is_some()) };
    if remaining > 0 {
        let after = items.last().map_or("", |(key, _)| key).to_owned();
        metadata["continue"] = json!(Token { version: Some(continued), after }.print());
        if selection.is_everything() {
            metadata["remainingItemCount"] = json!(remaining);
        }
    }
    let size: usize = items.iter().map(|(_, object)| object.item().len() + 1).sum();
    let mut text = String::with_capacity(size + 256);
    let (kind, api) = (resource.kind, resource.api_version());
    text.push_str(&format!(r#"{{"kind":"{kind}List","apiVersion":"{api}","metadata":{metadata},"items":["#));
    for (at, (_, object)) in items.into_iter().enumerate() {
        if at > 0 {
            text.push(',');
        }
        text.push_str(object.item());
    }
    text.push_str("]}\n");
    text
}

fn validate(request: &Request) -> Result<(), Refusal> {
    let matching = request.parameter("resourceVersionMatch");
    let version = request.parameter("resourceVersion");
    let refuse = |field, problem| Err(Refusal::invalid_options(field, problem));
    if request.query.contains_key("sendInitialEvents") {
        return refuse("sendInitialEvents", "sendInitialEvents is forbidden for list");
    }
    match matching {
        "" => Ok(()),
        _ if version.is_empty() => {
            refuse("resourceVersionMatch", "resourceVersionMatch is forbidden unless resourceVersion is provided")
        }
        "Exact" if version == "0" => {
            refuse("resourceVersionMatch", "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"")
        }
        "Exact" | "NotOlderThan" => Ok(()),
        _ => refuse("resourceVersionMatch", "supported values: \"Exact\", \"NotOlderThan\""),
    }
}
