//! Kubernetes manifests, and objects of an API server, to the ringfence model.
//!
//! [`parse`] takes the text of files, YAML or JSON, and gives model objects and [`Diagnostic`]s with file, line and
//! field. It never panics, whatever the text, and does no I/O.
//!
//! Architecture invariants:
//! - Half of a policy is never enforced. A NetworkPolicy with any error isolates the pods it selects, as far as that
//!   can be read, and allows nothing; the others go on.
//! - A document that cannot be read is [`Severity::Fatal`], never skipped: it may have held the policy that mattered.
//! - Names and labels in the model follow the syntax of Kubernetes, so no text of the input can carry control
//!   characters further than this crate; diagnostics escape what they quote.
//!
//! The way of the data: `yaml` and `json` turn text into the small tree of `dom`, within its limits; `document` finds
//! the reader for each kind; the readers (`policy`, `pod`, `workload`, `cluster`, `service`, `lab`) use the typed access of `read`;
//! `assemble` decides what only the whole input can tell. Objects of an API server come one by one: [`api`] puts the fields
//! that matter into the same tree, for the same readers.

pub mod api;

mod address;
mod assemble;
mod cluster;
mod diagnostic;
mod document;
mod dom;
mod json;
mod lab;
mod metadata;
mod names;
mod peer;
mod pod;
mod policy;
mod ports;
mod read;
mod scalar;
mod selector;
mod service;
mod workload;
mod yaml;

use std::collections::BTreeMap;

use ringfence_model::{ExternalHost, Object, ObjectKey, Topology};

pub use cluster::{ADDRESSES_ANNOTATION, ENFORCEMENT_ANNOTATION, MOST_TUNNEL_ADDRESSES};
pub use diagnostic::{Diagnostic, Location, Severity};
pub use document::MAX_BYTES;
pub use pod::is_uid_of_pod;

/// The text of one file, already read.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The file's name, or `<stdin>`, for diagnostics.
    pub name: &'a str,
    /// What is in it: YAML or JSON in UTF-8, with any number of documents.
    pub text: &'a [u8],
}

/// What [`parse`] found.
#[derive(Clone, Debug, Default)]
pub struct Manifests {
    /// Namespaces, nodes, pods, Services, EndpointSlices and policies, in this order and each in the order written. Their keys are
    /// distinct, workloads are expanded to pods, and every namespace an object lives in is there.
    pub objects: Vec<Object>,
    /// The hosts outside the cluster.
    pub externals: Vec<ExternalHost>,
    /// The network that the lab shall play, if the input says.
    pub topology: Option<Topology>,
    /// What there is to say: first by source, then what concerns the input as a whole.
    pub diagnostics: Vec<Diagnostic>,
    /// Where the objects were written; a pod of a workload has the workload's place, an implied namespace none.
    pub origins: BTreeMap<ObjectKey, Location>,
}

/// Reads manifests. The API server's defaults are applied and its validation is done.
pub fn parse(sources: &[Source<'_>]) -> Manifests {
    let mut collected = document::Collected::default();
    let mut diagnostics = Vec::new();
    for source in sources {
        diagnostics.extend(document::read(source, &mut collected));
    }
    assemble::assemble(collected, diagnostics)
}
