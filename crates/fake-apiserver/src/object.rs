//! An object as it is stored: text that is written once, and what selectors ask for.

use serde_json::{Map, Value, json};

use crate::client::version_of;
use crate::resource::Resource;

/// One version of one object.
#[derive(Debug)]
pub(crate) struct Object {
    /// JSON without `apiVersion` and `kind`: so it stands in lists.
    body: Box<str>,
    /// Whether the body is an object of Kubernetes and not something that a test put there.
    sound: bool,
    /// `metadata.resourceVersion`; 0 if there is none.
    version: u64,
    namespace: Box<str>,
    labels: Vec<(Box<str>, Box<str>)>,
    fields: Vec<(&'static str, Box<str>)>,
}

impl Object {
    /// Takes an object with its metadata complete.
    pub(crate) fn new(resource: &'static Resource, mut value: Map<String, Value>) -> Object {
        value.remove("apiVersion");
        value.remove("kind");
        let value = Value::Object(value);
        let labels = value["metadata"]["labels"].as_object().into_iter().flatten();
        let labels = labels.filter_map(|(key, value)| Some((key.as_str().into(), value.as_str()?.into()))).collect();
        let common = ["metadata.name", "metadata.namespace"];
        let fields = common.iter().chain(resource.fields).map(|field| (*field, text_at(&value, field))).collect();
        let namespace = value["metadata"]["namespace"].as_str().unwrap_or_default().into();
        let version = version_of(&value);
        Object { body: value.to_string().into(), sound: true, version, namespace, labels, fields }
    }

    /// Anything at all in the place of an object.
    pub(crate) fn unsound(namespace: &str, value: &Value) -> Object {
        Object {
            body: value.to_string().into(),
            sound: false,
            version: version_of(value),
            namespace: namespace.into(),
            labels: Vec::new(),
            fields: Vec::new(),
        }
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(known, _)| **known == *key).map(|(_, value)| &**value)
    }

    pub(crate) fn field(&self, path: &str) -> &str {
        self.fields.iter().find(|(known, _)| *known == path).map_or("", |(_, value)| value)
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn is_sound(&self) -> bool {
        self.sound
    }

    /// The object as one element of a list.
    pub(crate) fn item(&self) -> &str {
        &self.body
    }

    /// The object on its own, with `kind` and `apiVersion`, appended to `text`.
    pub(crate) fn write(&self, resource: &Resource, text: &mut String) {
        match self.body.strip_prefix('{') {
            Some(rest) if self.sound => {
                let comma = if rest == "}" { "" } else { "," };
                let (kind, version) = (resource.kind, resource.api_version());
                text.push_str(&format!(r#"{{"kind":"{kind}","apiVersion":"{version}"{comma}{rest}"#));
            }
            _ => text.push_str(&self.body),
        }
    }

    /// The object without `kind` and `apiVersion`.
    pub(crate) fn content(&self) -> Value {
        // The text was printed from a value.
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    pub(crate) fn value(&self, resource: &Resource) -> Value {
        let mut value = self.content();
        if let (true, Some(object)) = (self.sound, value.as_object_mut()) {
            object.insert("kind".to_owned(), json!(resource.kind));
            object.insert("apiVersion".to_owned(), json!(resource.api_version()));
        }
        value
    }

    /// The same object at another version, as the last word about one that is gone.
    pub(crate) fn at_version(&self, resource: &'static Resource, version: u64) -> Object {
        let mut value = match self.content() {
            Value::Object(value) if self.sound => value,
            other => return Object::unsound(&self.namespace, &other),
        };
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("resourceVersion".to_owned(), json!(version.to_string()));
        }
        Object::new(resource, value)
    }
}

/// The value at a path like `spec.nodeName` as field selectors see it. What is missing is empty, or false.
fn text_at(value: &Value, path: &str) -> Box<str> {
    let found = path.split('.').fold(value, |value, step| &value[step]);
    match found {
        Value::String(text) => text.as_str().into(),
        Value::Null if matches!(path, "spec.hostNetwork" | "spec.unschedulable") => "false".into(),
        Value::Null => "".into(),
        other => other.to_string().into(),
    }
}
