//! Objects, one counter of versions, and for each resource a log of changes.
//!
//! A version of the past is not kept: it is the present with the log undone. So what can be listed and watched is exactly
//! what the log reaches back to, and forgetting the log is all there is to compaction.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::object::Object;
use crate::resource::{RESOURCES, Resource};
use crate::status::Refusal;

/// How many changes of a resource are remembered unless tests say otherwise.
const WINDOW: usize = 10_000;

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChangeKind {
    Added,
    Modified,
    Deleted,
}

/// One entry of the log.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) version: u64,
    pub(crate) kind: ChangeKind,
    key: String,
    /// The object after the change; of a deletion its last state, at the version of the deletion.
    pub(crate) object: Arc<Object>,
    /// The object before the change.
    pub(crate) before: Option<Arc<Object>>,
}

/// Objects by their keys, in the order of lists.
pub(crate) type Objects = BTreeMap<String, Arc<Object>>;

#[derive(Debug, Default)]
struct Table {
    objects: Objects,
    log: VecDeque<Arc<Change>>,
    /// Versions before this one are forgotten.
    oldest: u64,
}

/// The objects of a resource at one version. It costs what has changed since, not what there is.
#[derive(Debug)]
pub(crate) struct Past<'a> {
    now: &'a Objects,
    /// The objects that have changed since: as they were, or that they were not there.
    undone: BTreeMap<&'a str, Option<&'a Arc<Object>>>,
}

impl<'a> Past<'a> {
    /// The objects whose keys come after this one, in the order of lists. No key comes before the empty one.
    pub(crate) fn after<'p>(&'p self, key: &'p str) -> impl Iterator<Item = (&'a str, &'a Arc<Object>)> + 'p {
        let range = (Bound::Excluded(key), Bound::Unbounded);
        let now = self.now.range::<str, _>(range).map(|(key, object)| (key.as_str(), object));
        let mut now = now.filter(|(key, _)| !self.undone.contains_key(key)).peekable();
        let undone = self.undone.range::<str, _>(range);
        let mut undone = undone.filter_map(|(key, before)| Some((*key, (*before)?))).peekable();
        std::iter::from_fn(move || match (now.peek(), undone.peek()) {
            (Some((key, _)), Some((before, _))) if before < key => undone.next(),
            (None, Some(_)) => undone.next(),
            _ => now.next(),
        })
    }
}

/// Everything the server holds.
#[derive(Debug)]
pub(crate) struct Store {
    version: u64,
    tables: Vec<Table>,
    pub(crate) window: usize,
}

impl Store {
    pub(crate) fn new() -> Store {
        // A real server has written objects of its own before anyone asks.
        let version = 200;
        let table = || Table { oldest: version, ..Table::default() };
        Store { version, tables: RESOURCES.iter().map(|_| table()).collect(), window: WINDOW }
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    fn index(resource: &'static Resource) -> usize {
        RESOURCES.iter().position(|known| known == resource).unwrap_or_default()
    }

    fn table(&self, resource: &'static Resource) -> &Table {
        &self.tables[Store::index(resource)]
    }

    pub(crate) fn objects(&self, resource: &'static Resource) -> &Objects {
        &self.table(resource).objects
    }

    /// All objects as they are.
    pub(crate) fn now(&self, resource: &'static Resource) -> Past<'_> {
        Past { now: self.objects(resource), undone: BTreeMap::new() }
    }

    /// All objects as they were at a version of the past; none if that is forgotten.
    pub(crate) fn at(&self, resource: &'static Resource, version: u64) -> Option<Past<'_>> {
        let table = self.table(resource);
        if version < table.oldest {
            return None;
        }
        let later = table.log.iter().rev().take_while(|change| change.version > version);
        // Of several changes of an object the first one knows what was before all of them.
        let undone = later.map(|change| (change.key.as_str(), change.before.as_ref())).collect();
        Some(Past { now: &table.objects, undone })
    }

    /// The changes after a version, oldest first.
    ///
    /// # Errors
    ///
    /// The refusal that watches get when the changes are forgotten.
    pub(crate) fn changes_after(&self, resource: &'static Resource, version: u64) -> Result<Vec<Arc<Change>>, Refusal> {
        let table = self.table(resource);
        if version < table.oldest {
            return Err(Refusal::expired_watch(version, table.oldest));
        }
        let start = table.log.partition_point(|change| change.version <= version);
        Ok(table.log.range(start..).map(Arc::clone).collect())
    }

    /// The last changes of a resource that are remembered, oldest first.
    pub(crate) fn last(&self, resource: &'static Resource, count: usize) -> Vec<Arc<Change>> {
        let log = &self.table(resource).log;
        log.iter().skip(log.len().saturating_sub(count)).map(Arc::clone).collect()
    }

    /// The newest change of a resource.
    pub(crate) fn newest(&self, resource: &'static Resource) -> Option<&Arc<Change>> {
        self.table(resource).log.back()
    }

    /// Forgets all changes so far.
    pub(crate) fn compact(&mut self) {
        for table in &mut self.tables {
            table.log.clear();
            table.oldest = self.version;
        }
    }

    /// Files an object. Gives what is stored now; the version stays the same if nothing changed.
    pub(crate) fn put(
        &mut self,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
        mut value: Map<String, Value>,
    ) -> Arc<Object> {
        let key = resource.key(namespace, name);
        let before = self.objects(resource).get(&key).cloned();
        let known = before.as_ref().map_or(Value::Null, |before| before.content());
        value.remove("apiVersion");
        value.remove("kind");
        let generation = match known["metadata"]["generation"].as_u64() {
            Some(generation) if is_as_wanted(&value, &known) => generation,
            Some(generation) => generation + 1,
            None => 1,
        };
        let version = self.version + 1;
        let metadata = value.entry("metadata").or_insert_with(|| json!({}));
        if let Some(metadata) = metadata.as_object_mut() {
            metadata.insert("name".to_owned(), json!(name));
            if resource.namespaced {
                metadata.insert("namespace".to_owned(), json!(namespace));
            }
            if resource.generation {
                metadata.insert("generation".to_owned(), json!(generation));
            }
            for (field, new) in [("uid", uid(version)), ("creationTimestamp", seconds_from_now(0))] {
                if known["metadata"][field].is_string() {
                    metadata.insert(field.to_owned(), known["metadata"][field].clone());
                } else {
                    metadata.entry(field).or_insert_with(|| json!(new));
                }
            }
            if resource.kind == "Namespace" {
                let labels = metadata.entry("labels").or_insert_with(|| json!({}));
                if let Some(labels) = labels.as_object_mut() {
                    labels.insert("kubernetes.io/metadata.name".to_owned(), json!(name));
                }
            }
            let same_version = known["metadata"]["resourceVersion"].clone();
            metadata.insert("resourceVersion".to_owned(), same_version);
        }
        if let Some(before) = before.filter(|before| before.is_sound() && known.as_object() == Some(&value)) {
            return before;
        }
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("resourceVersion".to_owned(), json!(version.to_string()));
        }
        self.file(resource, key, Some(Object::new(resource, value)))
    }

    /// Files anything at all in the place of an object.
    pub(crate) fn put_unsound(&mut self, resource: &'static Resource, namespace: &str, name: &str, value: &Value) {
        self.file(resource, resource.key(namespace, name), Some(Object::unsound(namespace, value)));
    }

    /// Removes an object and gives its last state, if there was one.
    pub(crate) fn remove(&mut self, resource: &'static Resource, namespace: &str, name: &str) -> Option<Arc<Object>> {
        let key = resource.key(namespace, name);
        self.objects(resource).get(&key)?;
        Some(self.file(resource, key, None))
    }

    fn file(&mut self, resource: &'static Resource, key: String, object: Option<Object>) -> Arc<Object> {
        self.version += 1;
        let version = self.version;
        let window = self.window;
        let table = &mut self.tables[Store::index(resource)];
        let (kind, object, before) = match object {
            Some(object) => {
                let object = Arc::new(object);
                let before = table.objects.insert(key.clone(), Arc::clone(&object));
                let kind = if before.is_some() { ChangeKind::Modified } else { ChangeKind::Added };
                (kind, object, before)
            }
            None => {
                let before = table.objects.remove(&key);
                let last = before.as_ref().map(|before| Arc::new(before.at_version(resource, version)));
                let last = last.unwrap_or_else(|| Arc::new(Object::unsound("", &Value::Null)));
                (ChangeKind::Deleted, last, before)
            }
        };
        table.log.push_back(Arc::new(Change { version, kind, key, object: Arc::clone(&object), before }));
        while table.log.len() > window {
            table.oldest = table.log.pop_front().map_or(table.oldest, |forgotten| forgotten.version);
        }
        object
    }
}

/// Whether what is wanted of an object is what was wanted before: its generation counts these changes.
fn is_as_wanted(value: &Map<String, Value>, known: &Value) -> bool {
    let part = |name: &str| value.get(name).unwrap_or(&Value::Null);
    let ends = |metadata: &Value| metadata["deletionTimestamp"].is_string();
    part("spec") == &known["spec"] && ends(part("metadata")) == ends(&known["metadata"])
}

/// Unique on this server, and the same in every run.
fn uid(version: u64) -> String {
    format!("00000000-0000-4000-8000-{version:012x}")
}

/// A moment as objects tell it.
pub(crate) fn seconds_from_now(seconds: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let seconds = i64::try_from(now.saturating_add(seconds)).unwrap_or_default();
    jiff::Timestamp::from_second(seconds).unwrap_or_default().to_string()
}
