//! What the API server holds now, as the model has it: what everything else is compared with.
//!
//! Each object is read back from the server after it was written, so that uid and creation are the server's.

use std::collections::{BTreeMap, BTreeSet};

use ringfence_fake_apiserver::FakeApiServer;
use ringfence_k8s::Severity;
use ringfence_k8s::api::{Kind, Reader};
use ringfence_model::{Object, ObjectKey, Phase, Policy};
use serde_json::Value;

use super::Failure;
use crate::api;

/// The API server, and what is in it.
pub(super) struct Present<'a> {
    pub(super) server: &'a FakeApiServer,
    reader: Reader,
    objects: BTreeMap<ObjectKey, Object>,
    /// Kind, namespace and name, by which the server knows an object.
    keys: BTreeMap<(Kind, String, String), ObjectKey>,
    /// Policies with an error.
    invalid: BTreeSet<ObjectKey>,
}

/// How many there are of what.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) pods: u64,
    /// Those of one node that policies can select.
    pub(super) local_pods: u64,
    pub(super) policies: u64,
    pub(super) invalid_policies: u64,
    pub(super) namespaces: u64,
}

impl<'a> Present<'a> {
    pub(super) fn new(server: &'a FakeApiServer) -> Present<'a> {
        Present {
            server,
            reader: Reader::new("soak"),
            objects: BTreeMap::new(),
            keys: BTreeMap::new(),
            invalid: BTreeSet::new(),
        }
    }

    /// Creates or replaces an object.
    pub(super) fn apply(&mut self, object: &Object) -> Result<(), Failure> {
        let value = api::object(object).ok_or("an object that no agent asks for")?;
        self.apply_value(&value)
    }

    /// The same, for objects that the model cannot say because they are not valid.
    pub(super) fn apply_value(&mut self, value: &Value) -> Result<(), Failure> {
        let kind =
            Kind::ALL.into_iter().find(|kind| value["kind"] == kind.name()).ok_or("an object of another kind")?;
        let text = |field: &str| value["metadata"][field].as_str().unwrap_or_default().to_owned();
        let (namespace, name) = (text("namespace"), text("name"));
        self.server.apply(value);
        let stored = self.server.get(kind.resource(), &namespace, &name).ok_or("an object that was not stored")?;
        let (key, object, valid) = read(&mut self.reader, kind, &stored)?;
        if valid {
            self.invalid.remove(&key);
        } else {
            self.invalid.insert(key.clone());
        }
        self.keys.insert((kind, namespace, name), key.clone());
        self.objects.insert(key, object);
        Ok(())
    }

    /// Removes an object, if it is there.
    pub(super) fn delete(&mut self, kind: Kind, namespace: &str, name: &str) {
        self.server.delete(kind.resource(), namespace, name);
        if let Some(key) = self.keys.remove(&(kind, namespace.to_owned(), name.to_owned())) {
            self.objects.remove(&key);
            self.invalid.remove(&key);
        }
    }

    /// Takes a policy for present that the server never hears of. For tests of the soak itself.
    pub(super) fn pretend(&mut self, policy: Policy) {
        let object = Object::Policy(policy);
        self.objects.insert(object.key(), object);
    }

    pub(super) fn objects(&self) -> impl Iterator<Item = &Object> {
        self.objects.values()
    }

    pub(super) fn totals(&self, node: &str) -> Totals {
        let mut totals = Totals { invalid_policies: self.invalid.len() as u64, ..Totals::default() };
        for object in self.objects() {
            match object {
                Object::Pod(pod) => {
                    totals.pods += 1;
                    let selectable = pod.phase == Phase::Live && !pod.host_network;
                    totals.local_pods += u64::from(selectable && pod.node.as_deref() == Some(node));
                }
                Object::Policy(_) => totals.policies += 1,
                Object::Namespace(_) => totals.namespaces += 1,
                Object::Node(_) | Object::Service(_) | Object::EndpointSlice(_) => {}
            }
        }
        totals
    }

    /// Reads everything the server holds, and compares.
    pub(super) fn verify(&self) -> Result<(), Failure> {
        let mut reader = Reader::new("soak");
        let mut held = BTreeMap::new();
        for kind in Kind::ALL {
            for value in self.server.objects(kind.resource()) {
                let (key, object, _) = read(&mut reader, kind, &value)?;
                held.insert(key, object);
            }
        }
        if held == self.objects {
            return Ok(());
        }
        let differs = |key: &&ObjectKey| held.get(*key) != self.objects.get(*key);
        let key = held.keys().chain(self.objects.keys()).find(differs);
        Err(format!("the API server does not hold what the soak has written: {key:?}").into())
    }
}

/// Which object it is, what it says, and whether that is valid.
fn read(reader: &mut Reader, kind: Kind, value: &Value) -> Result<(ObjectKey, Object, bool), Failure> {
    let reading = reader.read(kind, &value.to_string()).map_err(|diagnostic| diagnostic.message.clone())?;
    let valid = reading.diagnostics.iter().all(|diagnostic| diagnostic.severity < Severity::Error);
    let object = reading.object.ok_or_else(|| format!("an object that cannot be read: {:?}", reading.diagnostics))?;
    Ok((reading.key, object, valid))
}
