//! What is known of the objects of one kind: which news are news. No I/O.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher as _, RandomState};
use std::num::NonZeroU64;

use ringfence_k8s::Diagnostic;
use ringfence_k8s::api::Reading;
use ringfence_model::{Object, ObjectKey};

use crate::Change;

/// Diagnostics of the objects that have some.
pub(super) type Diagnostics = BTreeMap<ObjectKey, Vec<Diagnostic>>;

/// The objects of one kind, as fingerprints: the objects themselves are the cluster's.
#[derive(Debug, Default)]
pub(super) struct Book {
    known: HashMap<ObjectKey, Known>,
    diagnostics: Diagnostics,
    /// The diagnostics are not those that were handed out last.
    has_news: bool,
    /// The version up to which events were taken, where versions can be compared.
    newest: Option<NonZeroU64>,
    /// Keyed by chance: nobody can make two objects that are taken for one.
    hasher: RandomState,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    version: Option<NonZeroU64>,
    /// Of what policies can see. Nothing when that could not be read, ever.
    fingerprint: Option<NonZeroU64>,
}

/// The API server reports changes of a kind in order. What came now can only be placed by a new list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Disorder;

/// What a complete list brings.
#[derive(Debug, Default)]
pub(super) struct Listed {
    /// Objects that are new or different.
    pub(super) objects: Vec<Object>,
    /// Objects that are gone.
    pub(super) gone: Vec<ObjectKey>,
}

/// A list on its way. The book stays as it is until it is complete.
#[derive(Debug, Default)]
pub(super) struct List {
    known: HashMap<ObjectKey, Known>,
    diagnostics: Diagnostics,
    objects: Vec<Object>,
}

impl List {
    /// The objects collected so far that are new or different, each once, to be told before the list is complete. That is
    /// for those who do nothing before they know all; see [`Book::abandon`].
    pub(super) fn begun(&mut self) -> Vec<Object> {
        std::mem::take(&mut self.objects)
    }
}

impl Book {
    /// Takes an item of a list.
    pub(super) fn collect(&self, list: &mut List, reading: Reading) {
        let Reading { key, version, object, diagnostics } = reading;
        let version = number(&version);
        let known = self.known.get_key_value(&key);
        let before = known.and_then(|(_, known)| known.fingerprint);
        let fingerprint = match object {
            Some(object) => {
                let fingerprint = self.fingerprint(&object);
                if fingerprint != before {
                    list.objects.push(object);
                }
                fingerprint
            }
            None if stays(&key) => before,
            None => None,
        };
        if !diagnostics.is_empty() {
            list.diagnostics.insert(key.clone(), diagnostics);
        }
        // The key of an object that has not changed is the one that shares its text with the object.
        let key = known.filter(|_| fingerprint == before).map_or(key, |(key, _)| key.clone());
        list.known.insert(key, Known { version, fingerprint });
    }

    /// The list is not completed, but its objects were told. They count as told until the next one says what there is.
    pub(super) fn abandon(&mut self, list: List) {
        // What was told before and could not be read this time is still told.
        self.known.extend(list.known.into_iter().filter(|(_, known)| known.fingerprint.is_some()));
    }

    /// The list is complete and was made at `version`. It replaces all that was known, whatever the versions say: a cluster
    /// that was restored from a backup goes back in time.
    pub(super) fn complete(&mut self, list: List, version: &str) -> Listed {
        let List { known, diagnostics, objects } = list;
        let before = std::mem::replace(&mut self.known, known);
        self.has_news |= self.diagnostics != diagnostics;
        self.diagnostics = diagnostics;
        self.newest = number(version);
        let had = before.into_iter().filter(|(_, before)| before.fingerprint.is_some());
        let still = |key: &ObjectKey| self.known.get(key).is_some_and(|known| known.fingerprint.is_some());
        Listed { objects, gone: had.map(|(key, _)| key).filter(|key| !still(key)).collect() }
    }

    /// Takes an object that is new or has changed. Nothing if policies cannot see the change, or if it is repeated.
    ///
    /// # Errors
    /// It is older than what was reported before: it may have been deleted since, or the server goes back in time.
    pub(super) fn apply(&mut self, reading: Reading) -> Result<Option<Change>, Disorder> {
        let Reading { key, version, object, diagnostics } = reading;
        let version = number(&version);
        let before = self.known.get(&key).copied();
        match before {
            Some(before) if version.is_some() && version == before.version => return Ok(None),
            Some(before) if is_old(version, before.version) => return Err(Disorder),
            None if is_old(version, self.newest) => return Err(Disorder),
            Some(_) | None => {}
        }
        self.newest = self.newest.max(version);
        self.say(&key, diagnostics);
        let before = before.and_then(|before| before.fingerprint);
        let (fingerprint, change) = match object {
            Some(object) => {
                let fingerprint = self.fingerprint(&object);
                (fingerprint, (fingerprint != before).then_some(Change::Apply(object)))
            }
            None if stays(&key) => (before, None),
            None => (None, before.map(|_| Change::Delete(key.clone()))),
        };
        self.known.insert(key, Known { version, fingerprint });
        Ok(change)
    }

    /// Takes note that an object is gone; `version` is that of its deletion.
    ///
    /// # Errors
    /// It is older than what was reported before: it may be there again, or the server goes back in time.
    pub(super) fn delete(&mut self, key: ObjectKey, version: &str) -> Result<Option<Change>, Disorder> {
        let version = number(version);
        let Some(before) = self.known.get(&key).copied() else { return Ok(None) };
        if let (Some(version), Some(before)) = (version, before.version)
            && version < before
        {
            return Err(Disorder);
        }
        self.newest = self.newest.max(version);
        self.say(&key, Vec::new());
        self.known.remove(&key);
        Ok(before.fingerprint.map(|_| Change::Delete(key)))
    }

    /// All there is to say about the objects, if that has changed since it was asked last.
    pub(super) fn new_diagnostics(&mut self) -> Option<Diagnostics> {
        std::mem::take(&mut self.has_news).then(|| self.diagnostics.clone())
    }

    fn fingerprint(&self, object: &Object) -> Option<NonZeroU64> {
        NonZeroU64::new(self.hasher.hash_one(object).max(1))
    }

    fn say(&mut self, key: &ObjectKey, diagnostics: Vec<Diagnostic>) {
        if self.diagnostics.get(key).map_or(&[][..], Vec::as_slice) == diagnostics.as_slice() {
            return;
        }
        self.has_news = true;
        if diagnostics.is_empty() {
            self.diagnostics.remove(key);
        } else {
            self.diagnostics.insert(key.clone(), diagnostics);
        }
    }
}

/// Whether an object that cannot be read any more counts as it was. A Pod does: without it, its isolation would end. A
/// Namespace does not: its labels admit others, and without them only rules that name it do.
fn stays(key: &ObjectKey) -> bool {
    matches!(key, ObjectKey::Pod(_))
}

/// Versions are decimal numbers from 1 that grow (Kubernetes 1.35 promises it, all before kept it). Others are not compared.
fn number(version: &str) -> Option<NonZeroU64> {
    version.parse().ok()
}

fn is_old(version: Option<NonZeroU64>, known: Option<NonZeroU64>) -> bool {
    matches!((version, known), (Some(version), Some(known)) if version <= known)
}

#[cfg(test)]
mod tests {
    use ringfence_k8s::api::{Kind, Reader};
    use serde_json::{Value, json};

    use super::*;

    fn reading(kind: Kind, name: &str, version: u64, labels: &Value) -> Reading {
        let object = json!({"metadata": {"namespace": "shop", "name": name, "uid": format!("uid-{name}"),
            "resourceVersion": version.to_string(), "labels": labels}});
        Reader::new("s").read(kind, &object.to_string()).unwrap()
    }

    fn pod(name: &str, version: u64, app: &str) -> Reading {
        reading(Kind::Pod, name, version, &json!({"app": app}))
    }

    fn unreadable(name: &str, version: u64) -> Reading {
        reading(Kind::Pod, name, version, &json!({"app": 7}))
    }

    fn list(book: &mut Book, readings: Vec<Reading>, version: &str) -> (Vec<String>, Vec<String>) {
        let mut list = List::default();
        for reading in readings {
            book.collect(&mut list, reading);
        }
        let Listed { objects, gone } = book.complete(list, version);
        (objects.iter().map(|object| name(&object.key())).collect(), gone.iter().map(name).collect())
    }

    fn name(key: &ObjectKey) -> String {
        match key {
            ObjectKey::Pod(id) => id.0.trim_start_matches("uid-").to_owned(),
            ObjectKey::Namespace(name) => name.to_string(),
            other => format!("{other:?}"),
        }
    }

    /// A change in short: `+a`, `-a` or nothing.
    fn short(change: Option<Change>) -> String {
        match change {
            Some(Change::Apply(object)) => format!("+{}", name(&object.key())),
            Some(Change::Delete(key)) => format!("-{}", name(&key)),
            Some(other) => format!("{other:?}"),
            None => String::new(),
        }
    }

    fn apply(book: &mut Book, reading: Reading) -> Result<String, Disorder> {
        book.apply(reading).map(short)
    }

    fn delete(book: &mut Book, of: &Reading, version: &str) -> Result<String, Disorder> {
        book.delete(of.key.clone(), version).map(short)
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn a_list_brings_what_differs() {
        let mut book = Book::default();
        let listed = list(&mut book, vec![pod("a", 1, "x"), pod("b", 2, "x")], "5");
        assert_eq!(listed, (names(&["a", "b"]), names(&[])));
        // One is the same but for its version, one differs, one is new.
        let listed = list(&mut book, vec![pod("a", 6, "x"), pod("b", 7, "y"), pod("c", 8, "x")], "9");
        assert_eq!(listed, (names(&["b", "c"]), names(&[])));
        assert_eq!(list(&mut book, vec![pod("c", 8, "x")], "10").1.len(), 2);
        // A cluster restored from a backup goes back in time.
        assert_eq!(list(&mut book, vec![pod("c", 2, "old")], "3"), (names(&["c"]), names(&[])));
        assert_eq!(apply(&mut book, pod("d", 4, "x")), Ok("+d".to_owned()));
    }

    #[test]
    fn a_list_that_is_not_complete_changes_nothing() {
        let mut book = Book::default();
        list(&mut book, vec![pod("a", 1, "x")], "5");
        let mut half = List::default();
        book.collect(&mut half, pod("b", 2, "x"));
        drop(half);
        assert_eq!(list(&mut book, vec![pod("a", 1, "x")], "6"), (names(&[]), names(&[])));
    }

    /// What is told before a list is complete is taken back when a later list does not have it.
    #[test]
    fn a_list_that_is_told_while_it_comes() {
        let mut book = Book::default();
        let namespace = |name, version, labels: Value| reading(Kind::Namespace, name, version, &labels);
        let attempts = [
            (vec![namespace("a", 1, json!({})), namespace("b", 2, json!({}))], vec!["a", "b"]),
            // One is as before, one cannot be read now, one has changed, one is new.
            (vec![namespace("a", 1, json!({})), namespace("b", 3, json!({"x": 7}))], vec![]),
            (vec![namespace("a", 4, json!({"x": "y"})), namespace("c", 5, json!({}))], vec!["a", "c"]),
        ];
        for (readings, told) in attempts {
            let mut list = List::default();
            readings.into_iter().for_each(|reading| book.collect(&mut list, reading));
            let begun: Vec<String> = list.begun().iter().map(|object| name(&object.key())).collect();
            assert_eq!((begun, list.begun().len()), (names(&told), 0));
            book.abandon(list);
        }
        // Each of them was told, and only one is there.
        let (objects, mut gone) = list(&mut book, vec![namespace("c", 5, json!({}))], "9");
        gone.sort();
        assert_eq!((objects, gone), (names(&[]), names(&["a", "b"])));
    }

    #[test]
    fn old_news_are_no_news() {
        let mut book = Book::default();
        list(&mut book, vec![pod("a", 3, "x")], "5");
        for (reading, expected) in [
            (pod("a", 3, "y"), ""),
            (pod("a", 6, "x"), ""),
            (pod("a", 8, "y"), "+a"),
            (pod("a", 8, "y"), ""),
            (pod("b", 9, "x"), "+b"),
        ] {
            let text = format!("{reading:?}");
            assert_eq!(apply(&mut book, reading), Ok(expected.to_owned()), "{text}");
        }
        // The server goes back in time, or somebody in between mixes things up: only a list can tell.
        assert_eq!(apply(&mut book, pod("a", 7, "x")), Err(Disorder));
        assert_eq!(delete(&mut book, &pod("a", 0, ""), "7"), Err(Disorder));
        assert_eq!(delete(&mut book, &pod("a", 0, ""), "10"), Ok("-a".to_owned()));
        assert_eq!(delete(&mut book, &pod("a", 0, ""), "10"), Ok(String::new()));
        // It may be a pod that is gone, or one that nobody has told of: only a list can tell.
        assert_eq!(apply(&mut book, pod("a", 9, "x")), Err(Disorder));
        assert_eq!(apply(&mut book, pod("c", 10, "x")), Err(Disorder));
        assert_eq!(apply(&mut book, pod("a", 11, "x")), Ok("+a".to_owned()));
    }

    #[test]
    fn versions_that_are_no_numbers_are_not_compared() {
        let mut book = Book::default();
        let strange = |version: &str, app: &str| Reading { version: version.to_owned(), ..pod("a", 0, app) };
        list(&mut book, vec![strange("x9", "x")], "x9");
        assert_eq!(apply(&mut book, strange("x8", "y")), Ok("+a".to_owned()));
        assert_eq!(delete(&mut book, &pod("a", 0, ""), "x1"), Ok("-a".to_owned()));
    }

    #[test]
    fn a_pod_that_cannot_be_read_any_more_counts_as_it_was() {
        let mut book = Book::default();
        list(&mut book, vec![pod("a", 1, "x"), unreadable("b", 2)], "5");
        assert_eq!(book.new_diagnostics().map(|all| all.len()), Some(1));
        assert_eq!(apply(&mut book, unreadable("a", 6)), Ok(String::new()));
        assert_eq!(book.new_diagnostics().map(|all| all.len()), Some(2));
        assert_eq!(list(&mut book, vec![unreadable("a", 6), unreadable("b", 2)], "7"), (names(&[]), names(&[])));
        assert!(book.new_diagnostics().is_none());
        // One that never could be read was nothing, and its end is nothing.
        assert_eq!(delete(&mut book, &pod("b", 0, ""), "8"), Ok(String::new()));
        assert_eq!(delete(&mut book, &pod("a", 0, ""), "9"), Ok("-a".to_owned()));
        assert_eq!(book.new_diagnostics().map(|all| all.len()), Some(0));
    }

    #[test]
    fn a_namespace_that_cannot_be_read_is_gone() {
        let namespace = |version, labels: Value| reading(Kind::Namespace, "shop", version, &labels);
        let mut book = Book::default();
        assert_eq!(list(&mut book, vec![namespace(1, json!({}))], "1").0, names(&["shop"]));
        assert_eq!(apply(&mut book, namespace(2, json!({"team": 7}))), Ok("-shop".to_owned()));
        assert_eq!(apply(&mut book, namespace(3, json!({"team": 8}))), Ok(String::new()));
        assert_eq!(apply(&mut book, namespace(4, json!({}))), Ok("+shop".to_owned()));
        assert_eq!(list(&mut book, vec![namespace(5, json!([]))], "5"), (names(&[]), names(&["shop"])));
    }
}
