//! `metadata`: what every object has.

use std::sync::Arc;

use ringfence_model::Labels;

use crate::diagnostic::{shown, shown_name};
use crate::dom::{Node, Value};
use crate::names::is_uid;
use crate::read::{At, Fields, Report, boolean, for_each_string, labels, string};
use crate::scalar::ScalarType;

/// The namespace of a namespaced object that names none, as kubectl fills it in.
pub(crate) const DEFAULT_NAMESPACE: &str = "default";

/// The fields of `metadata` in the Kubernetes API.
pub(crate) const METADATA_FIELDS: [&str; 16] = [
    "name",
    "namespace",
    "labels",
    "annotations",
    "generateName",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "ownerReferences",
    "finalizers",
    "managedFields",
    "selfLink",
    "clusterName",
];

/// A name or namespace as far as it is usable.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// Nothing when it is missing or invalid, which is reported.
    pub(crate) name: Option<Arc<str>>,
    /// Nothing when it is invalid, which is reported.
    pub(crate) namespace: Option<Arc<str>>,
}

/// The workload that made an object and keeps it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Controller {
    pub(crate) kind: Arc<str>,
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
}

/// How diagnostics call an object: its kind, namespace and name as they are written.
pub(crate) fn describe(kind: &str, object: &Node, namespaced: bool) -> String {
    let text = |key: &str| {
        let node = object.get("metadata")?.get(key)?;
        match &node.value {
            Value::Scalar(_, ScalarType::Null) | Value::Sequence(_) | Value::Mapping(_) => None,
            Value::Scalar(text, _) => Some(shown_name(text)),
        }
    };
    let name = text("name").unwrap_or_else(|| "(no name)".to_owned());
    if namespaced {
        let namespace = text("namespace").unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
        format!("{} {namespace}/{name}", shown(kind))
    } else {
        format!("{} {name}", shown(kind))
    }
}

/// Hands over `metadata`. When it is missing or no mapping, [`identity`] reports that, and nobody else needs to.
fn with_metadata(report: &mut Report, object: Fields<'_>, run: impl FnOnce(&mut Report, Fields<'_>)) {
    let is_mapping = |at: &At<'_>| matches!(at.node.value, Value::Mapping(_));
    if object.get("metadata").as_ref().is_some_and(is_mapping) {
        object.mapping(report, "metadata", run);
    }
}

/// Reads `metadata.name` by the rule of its kind and, for a namespaced kind, `metadata.namespace`.
pub(crate) fn identity(
    report: &mut Report,
    object: Fields<'_>,
    is_valid: fn(&str) -> bool,
    is_valid_namespace: fn(&str) -> bool,
) -> Identity {
    let mut identity = Identity { name: None, namespace: Some(DEFAULT_NAMESPACE.into()) };
    let Some(_) = object.get("metadata") else {
        report.error(&object.at.missing("metadata"), "`metadata` with a `name` is missing");
        return identity;
    };
    object.mapping(report, "metadata", |report, metadata| {
        if let Some(at) = metadata.get("namespace") {
            identity.namespace = match string(report, &at, "namespace") {
                Some("") => Some(DEFAULT_NAMESPACE.into()),
                Some(text) if is_valid_namespace(text) => Some(text.into()),
                Some(text) => {
                    invalid_name(report, &at, text, "namespace name");
                    None
                }
                None => None,
            };
        }
        match metadata.get("name") {
            None => report.error(&metadata.at.missing("name"), "the object has no name"),
            Some(at) => {
                identity.name = match string(report, &at, "name") {
                    Some(text) if is_valid(text) => Some(text.into()),
                    Some(text) => {
                        invalid_name(report, &at, text, "name");
                        None
                    }
                    None => None,
                }
            }
        }
    });
    identity
}

fn invalid_name(report: &mut Report, at: &At<'_>, text: &str, what: &str) {
    report.error_hint(
        at,
        format!("\"{}\" is not a valid {what}", shown(text)),
        "lower case letters, digits and `-`, with a letter or a digit at both ends",
    );
}

/// Reads `metadata.labels`.
pub(crate) fn object_labels(report: &mut Report, object: Fields<'_>) -> Labels {
    let mut found = Labels::new();
    with_metadata(report, object, |report, metadata| {
        if let Some(at) = metadata.get("labels") {
            found = labels(report, &at).into_iter().collect();
        }
    });
    found
}

/// Reports what the API server would refuse in `metadata`, beside name, namespace and labels.
pub(crate) fn check_strictly(report: &mut Report, object: Fields<'_>) {
    with_metadata(report, object, |report, metadata| {
        metadata.only(report, &METADATA_FIELDS, |name| match name {
            "matchLabels" | "podSelector" => Some("it belongs inside `spec`"),
            "label" => Some("write `labels`"),
            "spec" => Some("`spec` stands beside `metadata`: check the indentation"),
            _ => None,
        });
        if let Some(at) = metadata.get("annotations") {
            for_each_string(report, &at, "annotation", |_, _, _, _, _| {});
        }
    });
}

/// Reads `metadata.uid`.
pub(crate) fn uid(report: &mut Report, object: Fields<'_>) -> Option<Arc<str>> {
    let mut uid = None;
    with_metadata(report, object, |report, metadata| {
        if let Some(text) = metadata.text(report, "uid") {
            if is_uid(text) {
                uid = Some(text.into());
            } else if let Some(at) = metadata.get("uid") {
                report.error(&at, format!("\"{}\" is not a uid", shown(text)));
            }
        }
    });
    uid
}

/// One entry of `metadata.annotations`, if it is a text. Policy does not depend on annotations, so nothing is reported.
pub(crate) fn annotation(object: Fields<'_>, key: &str) -> Option<Arc<str>> {
    let metadata = object.get("metadata")?;
    match &metadata.node.get("annotations")?.get(key)?.value {
        Value::Scalar(text, ScalarType::String) if !text.is_empty() => Some(text.as_ref().into()),
        Value::Scalar(..) | Value::Sequence(_) | Value::Mapping(_) => None,
    }
}

/// Hands over one entry of `metadata.annotations`, if it is a text, with its place.
pub(crate) fn with_annotation(
    report: &mut Report,
    object: Fields<'_>,
    key: &str,
    mut run: impl FnMut(&mut Report, &At<'_>, &str),
) {
    let is_mapping = |at: &At<'_>| matches!(at.node.value, Value::Mapping(_));
    with_metadata(report, object, |report, metadata| {
        if let Some(at) = metadata.get("annotations").filter(is_mapping) {
            for_each_string(report, &at, "annotation", |report, _, at, found, text| {
                if found == key {
                    run(report, at, text);
                }
            });
        }
    });
}

/// Reads `metadata.creationTimestamp` (RFC 3339) as seconds since the epoch; 0 when it is absent or wrong.
pub(crate) fn created(report: &mut Report, object: Fields<'_>) -> i64 {
    let mut seconds = 0;
    with_metadata(report, object, |report, metadata| {
        let Some(at) = metadata.get("creationTimestamp") else { return };
        match at.node.text().parse::<jiff::Timestamp>() {
            Ok(timestamp) => seconds = timestamp.as_second(),
            Err(_) => report.warning(
                &at,
                format!("\"{}\" is not a time", shown(at.node.text())),
                "write it as in 2026-01-31T12:00:00Z; until then the object counts as the oldest",
            ),
        }
    });
    seconds
}

/// Reads which object of `metadata.ownerReferences` is the controller.
pub(crate) fn controller(report: &mut Report, object: Fields<'_>, namespace: &Arc<str>) -> Option<Controller> {
    let mut controller = None;
    with_metadata(report, object, |report, metadata| {
        metadata.each(report, "ownerReferences", |report, at| {
            let Some(owner) = crate::read::mapping(report, at) else { return };
            let controls = owner.get("controller").and_then(|at| boolean(report, &at, "controller"));
            if controls == Some(true)
                && let Some(kind) = owner.text(report, "kind")
                && let Some(name) = owner.text(report, "name")
            {
                controller = Some(Controller { kind: kind.into(), namespace: namespace.clone(), name: name.into() });
            }
        });
    });
    controller
}
