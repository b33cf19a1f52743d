//! What is known of the objects of one kind: which news are news. No I/O.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher as _, RandomState};

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
    newest: Option<u64>,
    /// Keyed by chance: nobody can make two objects that are taken for one.
    hasher: RandomState,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    version: Option<u64>,
    /// Of what policies can see. Nothing when that could not be read, ever.
    fingerprint: Option<u64>,
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

impl Book {
    /// Takes an item of a list.
    pub(super) fn collect(&self, list: &mut List, reading: Reading) {
        let Reading { key, version, object, diagnostics } = reading;
        let version = number(&version);
        let before = self.known.get(&key).and_then(|known| known.fingerprint);
        let fingerprint = match object {
            Some(object) => {
                let fingerprint = Some(self.hasher.hash_one(&object));
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
        list.known.insert(key, Known { version, fingerprint });
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

    /// Takes an object that is new or has changed. Nothing if policies cannot see the change, or if it is old.
    ///
    /// # Errors
    /// It is older than what was reported before, and may have been deleted since.
    pub(super) fn apply(&mut self, reading: Reading) -> Result<Option<Change>, Disorder> {
        let Reading { key, version, object, diagnostics } = reading;
        let version = number(&version);
        let before = self.known.get(&key).copied();
        match before {
            Some(before) if is_old(version, before.version) => return Ok(None),
            None if is_old(version, self.newest) => return Err(Disorder),
            Some(_) | None => {}
        }
        self.newest = self.newest.max(version);
        self.say(&key, diagnostics);
        let before = before.and_then(|before| before.fingerprint);
        let (fingerprint, change) = match object {
            Some(object) => {
                let fingerprint = Some(self.hasher.hash_one(&object));
                (fingerprint, (fingerprint != before).then_some(Change::Apply(object)))
            }
            None if stays(&key) => (before, None),
            None => (None, before.map(|_| Change::Delete(key.clone()))),
        };
        self.known.insert(key, Known { version, fingerprint });
        Ok(change)
    }

    /// Takes note that an object is gone; `version` is that of its deletion.
    pub(super) fn delete(&mut self, key: ObjectKey, version: &str) -> Option<Change> {
        let version = number(version);
        let before = self.known.get(&key)?;
        // The version it had is not older than its deletion, only the one of a later life of the same name is.
        if let (Some(version), Some(before)) = (version, before.version)
            && version < before
        {
            return None;
        }
        self.newest = self.newest.max(version);
        self.say(&key, Vec::new());
        let known = self.known.remove(&key)?;
        known.fingerprint.map(|_| Change::Delete(key))
    }

    /// All there is to say about the objects, if that has changed since it was asked last.
    pub(super) fn new_diagnostics(&mut self) -> Option<Diagnostics> {
        std::mem::take(&mut self.has_news).then(|| self.diagnostics.clone())
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

/// Versions are decimal numbers that grow (Kubernetes 1.35 promises it, all before kept it). Others are not compared.
fn number(version: &str) -> Option<u64> {
    version.parse().ok()
}

fn is_old(version: Option<u64>, known: Option<u64>) -> bool {
    matches!((version, known), (Some(version), Some(known)) if version <= known)
}
