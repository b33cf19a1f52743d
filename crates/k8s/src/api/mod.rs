//! Objects as an API server sends them, one by one.
//!
//! A Pod of a real cluster is many kilobytes of which policies need a few hundred bytes. [`Reader`] takes only the fields
//! that matter out of the JSON (`tree`) and hands them to the readers of manifests, so that there is one reading of what they
//! mean. Strings that many objects repeat are shared (`strings`). Lists are read page by page (`page`).

mod page;
mod strings;
mod tree;

use std::sync::Arc;

use ringfence_model::{EnforceAt, Object, ObjectKey, PodId, PolicyId, Tier};

use crate::cluster::{namespace, node};
use crate::diagnostic::{Diagnostic, Location, Severity};
use crate::dom;
use crate::metadata::{self, describe};
use crate::names::{is_dns_label, is_dns_subdomain};
use crate::pod::{file_id, pod};
use crate::policy::{API_VERSION, network_policy};
use crate::read::{At, Fields, Report, mapping};
use crate::service::{endpoint_slice, service};
use page::Page;
use strings::Strings;
use tree::Shape;

pub use page::{ListMeta, PageError};

/// The kinds that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Namespaces.
    Namespace,
    /// Nodes.
    Node,
    /// Pods.
    Pod,
    /// `networking.k8s.io/v1`.
    NetworkPolicy,
    /// Services, as far as they tell whether they can be called from outside: without ports and selectors.
    Service,
    /// `discovery.k8s.io/v1`.
    EndpointSlice,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 6] =
        [Kind::Namespace, Kind::Node, Kind::Service, Kind::EndpointSlice, Kind::NetworkPolicy, Kind::Pod];

    /// Those that have to be known in order to enforce at `at`.
    pub fn needed(at: EnforceAt) -> impl Iterator<Item = Kind> {
        let is_needed = move |kind: &Kind| match kind {
            Kind::Service | Kind::EndpointSlice => at == EnforceAt::Entry,
            Kind::Namespace | Kind::Node | Kind::Pod | Kind::NetworkPolicy => true,
        };
        Kind::ALL.into_iter().filter(is_needed)
    }

    /// As in the field `kind`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Namespace => "Namespace",
            Kind::Node => "Node",
            Kind::Pod => "Pod",
            Kind::NetworkPolicy => "NetworkPolicy",
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
        }
    }

    /// As in RBAC rules and paths.
    pub fn resource(self) -> &'static str {
        match self {
            Kind::Namespace => "namespaces",
            Kind::Node => "nodes",
            Kind::Pod => "pods",
            Kind::NetworkPolicy => "networkpolicies",
            Kind::Service => "services",
            Kind::EndpointSlice => "endpointslices",
        }
    }

    /// The API group, empty for the core group.
    pub fn group(self) -> &'static str {
        match self {
            Kind::Namespace | Kind::Node | Kind::Pod | Kind::Service => "",
            Kind::NetworkPolicy => "networking.k8s.io",
            Kind::EndpointSlice => "discovery.k8s.io",
        }
    }

    /// The path under which an API server has all objects of the kind.
    pub fn path(self) -> &'static str {
        match self {
            Kind::Namespace => "/api/v1/namespaces",
            Kind::Node => "/api/v1/nodes",
            Kind::Pod => "/api/v1/pods",
            Kind::NetworkPolicy => "/apis/networking.k8s.io/v1/networkpolicies",
            Kind::Service => "/api/v1/services",
            Kind::EndpointSlice => "/apis/discovery.k8s.io/v1/endpointslices",
        }
    }

    fn is_namespaced(self) -> bool {
        !matches!(self, Kind::Namespace | Kind::Node)
    }
}

/// One object that was read.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Which object it is. Always known, be the rest as wrong as it may.
    pub key: ObjectKey,
    /// `metadata.resourceVersion`, empty if there is none.
    pub version: String,
    /// What it is. Nothing for a Pod or Namespace with an error: taken for another than it is meant to be, it could pass where
    /// it must not. A NetworkPolicy with an error is here, isolates whom it selects, and allows nothing.
    pub object: Option<Object>,
    /// What there is to say about it.
    pub diagnostics: Vec<Diagnostic>,
}

/// Reads the objects of one API server.
#[derive(Debug)]
pub struct Reader {
    server: Arc<str>,
    strings: Strings,
}

impl Reader {
    /// A reader for the objects of `server`, which diagnostics name as the place.
    pub fn new(server: &str) -> Reader {
        Reader { server: server.into(), strings: Strings::default() }
    }

    /// Reads one object. `json` is all of it; fields that policies do not need are passed over, whatever is in them.
    ///
    /// # Errors
    /// It is not JSON, or has no usable name: then nobody knows which object it is.
    pub fn read(&mut self, kind: Kind, json: &str) -> Result<Reading, Box<Diagnostic>> {
        let root = self.tree(json, tree::shape(kind))?;
        self.read_tree(kind, &root)
    }

    /// Reads a page of a list of one kind, all objects on it or none. `json` is the whole answer, and is read once.
    ///
    /// # Errors
    /// It is not a list in JSON, or one of the objects has no usable name.
    pub fn page(&mut self, kind: Kind, json: &[u8]) -> Result<(ListMeta, Vec<Reading>), PageError> {
        let mut objects = Vec::new();
        let mut unreadable = None;
        let page = Page::new(tree::shape(kind), |root| match self.read_tree(kind, &root) {
            Ok(reading) => {
                objects.push(reading);
                true
            }
            Err(error) => {
                unreadable = Some(error);
                false
            }
        });
        let result = page.read(json);
        match unreadable {
            Some(error) => Err(PageError::Object(error)),
            None => Ok((result.map_err(PageError::Malformed)?, objects)),
        }
    }

    fn read_tree(&mut self, kind: Kind, root: &dom::Node) -> Result<Reading, Box<Diagnostic>> {
        let at = At::root(root);
        let (key, version) = self.identity(kind, &at)?;
        let mut report = Report::new(self.server.clone());
        let mut object = None;
        if let Some(fields) = mapping(&mut report, &at) {
            object = self.object(kind, &mut report, fields);
        }
        let mut diagnostics = report.diagnostics;
        for diagnostic in &mut diagnostics {
            diagnostic.object = Some(describe(kind.name(), root, kind.is_namespaced()));
        }
        Ok(Reading { key: object.as_ref().map_or(key, Object::key), version, object, diagnostics })
    }

    /// Reads only which object it is, and its `metadata.resourceVersion`.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub fn key(&self, kind: Kind, json: &str) -> Result<(ObjectKey, String), Box<Diagnostic>> {
        let root = self.tree(json, &tree::IDENTITY)?;
        self.identity(kind, &At::root(&root))
    }

    fn object(&mut self, kind: Kind, report: &mut Report, fields: Fields<'_>) -> Option<Object> {
        let strings = &mut self.strings;
        match kind {
            Kind::Namespace => {
                let read = namespace(report, fields).filter(|_| report.errors() == 0);
                if read.is_none() {
                    report.note(fields.at, "its labels are unknown: rules admit it by its name only");
                }
                Some(Object::Namespace(strings.namespace(read?)))
            }
            Kind::Node => Some(Object::Node(strings.node(node(report, fields)?))),
            Kind::Pod => {
                let read = pod(report, fields).filter(|_| report.errors() == 0);
                if read.is_none() {
                    report.note(fields.at, "left out: it counts as it was last read, or not at all");
                }
                Some(Object::Pod(strings.pod(read?.pod)))
            }
            Kind::NetworkPolicy => Some(Object::Policy(strings.policy(network_policy(report, fields, API_VERSION)?))),
            Kind::Service => Some(Object::Service(service(report, fields)?)),
            Kind::EndpointSlice => Some(Object::EndpointSlice(strings.slice(endpoint_slice(report, fields)?))),
        }
    }

    fn tree(&self, json: &str, shape: &'static Shape) -> Result<dom::Node, Box<Diagnostic>> {
        tree::read(json, shape).map_err(|error| self.unreadable(None, "", format!("not JSON: {error}")))
    }

    fn identity(&self, kind: Kind, at: &At<'_>) -> Result<(ObjectKey, String), Box<Diagnostic>> {
        let mut report = Report::new(self.server.clone());
        let found = mapping(&mut report, at).and_then(|fields| {
            let is_name = if matches!(kind, Kind::Namespace | Kind::Service) { is_dns_label } else { is_dns_subdomain };
            let identity = metadata::identity(&mut report, fields, is_name, is_dns_label);
            let (namespace, name) = (identity.namespace?, identity.name?);
            Some(match kind {
                Kind::Namespace => ObjectKey::Namespace(name),
                Kind::Node => ObjectKey::Node(name),
                Kind::Pod => {
                    let uid = metadata::uid(&mut report, fields);
                    ObjectKey::Pod(uid.map_or_else(|| file_id(&namespace, &name), PodId))
                }
                Kind::NetworkPolicy => ObjectKey::Policy(PolicyId { tier: Tier::Namespace, namespace, name }),
                Kind::Service => ObjectKey::Service(namespace, name),
                Kind::EndpointSlice => ObjectKey::EndpointSlice(namespace, name),
            })
        });
        let Some(key) = found else {
            let first = report.diagnostics.into_iter().next();
            let (field, message) = first.map_or_else(Default::default, |first| (first.field, first.message));
            let object = describe(kind.name(), at.node, kind.is_namespaced());
            return Err(self.unreadable(Some(object), &field, message));
        };
        let version = at.node.get("metadata").and_then(|metadata| metadata.get("resourceVersion"));
        Ok((key, version.map(|version| version.text().to_owned()).unwrap_or_default()))
    }

    fn unreadable(&self, object: Option<String>, field: &str, message: String) -> Box<Diagnostic> {
        Box::new(Diagnostic {
            severity: Severity::Fatal,
            location: Location { file: self.server.clone(), line: 0, column: 0 },
            object,
            field: field.to_owned(),
            message,
            hint: None,
        })
    }
}
