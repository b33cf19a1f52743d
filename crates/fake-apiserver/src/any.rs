//! What tests ask of an API server, whichever it is.

use std::io;
use std::path::PathBuf;

use hyper::Method;
use serde_json::{Value, json};

use crate::client::{Answer, Client};
use crate::real::RealApiServer;
use crate::resource::Resource;
use crate::server::FakeApiServer;

/// An API server, fake or real. It is written to through HTTP: [`Client::put`] and [`Client::remove`].
pub trait ApiServer {
    /// A kubeconfig file that leads to it, with all rights.
    fn kubeconfig(&self) -> PathBuf;

    /// Forgets all versions before now. Watches that are open may end.
    ///
    /// # Errors
    ///
    /// A server does not come back from it.
    fn forget(&mut self) -> io::Result<()>;
}

impl ApiServer for FakeApiServer {
    fn kubeconfig(&self) -> PathBuf {
        FakeApiServer::kubeconfig(self)
    }

    fn forget(&mut self) -> io::Result<()> {
        self.compact();
        Ok(())
    }
}

impl ApiServer for RealApiServer {
    fn kubeconfig(&self) -> PathBuf {
        RealApiServer::kubeconfig(self)
    }

    fn forget(&mut self) -> io::Result<()> {
        RealApiServer::forget(self)
    }
}

impl Client {
    /// Creates or replaces an object, and then its status if it has one. Gives its `resourceVersion`.
    ///
    /// # Errors
    ///
    /// There is no answer, the server refuses it, or the object is of no resource that [`crate`] knows.
    pub fn put(&self, object: &Value) -> io::Result<u64> {
        let resource =
            Resource::of(object).ok_or_else(|| io::Error::other(format!("unknown kind or version: {object}")))?;
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
        let (namespace, name) = (text("namespace"), text("name"));
        let collection = resource.path(namespace, "");
        let path = resource.path(namespace, name);
        let mut answer = self.send(&Method::POST, &collection, object)?;
        if answer.code == 409 {
            answer = self.send(&Method::PUT, &path, object)?;
        }
        accepted(&path, &answer)?;
        if resource.status && !object["status"].is_null() {
            let status = json!({"status": object["status"]});
            answer = self.send(&Method::PATCH, &format!("{path}/status"), &status)?;
            accepted(&path, &answer)?;
        }
        Ok(answer.version())
    }

    /// Removes an object without a period of grace, and a namespace without waiting for what is in it. The namespace of what
    /// has none is empty.
    ///
    /// # Errors
    ///
    /// There is no answer, or the server refuses it.
    pub fn remove(&self, resource: &str, namespace: &str, name: &str) -> io::Result<()> {
        let resource = Resource::named(resource).ok_or_else(|| io::Error::other(format!("{resource} is not known")))?;
        let path = resource.path(namespace, name);
        accepted(&path, &self.delete(&format!("{path}?gracePeriodSeconds=0"))?)?;
        if resource.kind == "Namespace" {
            // A controller would do this once it has emptied the namespace; where there is nothing to wait for, it is gone.
            let end = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}, "spec": {"finalizers": []}});
            let answer = self.send(&Method::PUT, &format!("{path}/finalize"), &end)?;
            if answer.code != 404 {
                accepted(&path, &answer)?;
            }
        }
        Ok(())
    }
}

fn accepted(path: &str, answer: &Answer) -> io::Result<()> {
    match answer.code {
        200..300 => Ok(()),
        code => Err(io::Error::other(format!("{path}: {code}: {}", answer.text))),
    }
}
