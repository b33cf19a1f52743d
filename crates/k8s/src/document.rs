//! From a source to the objects in it: which reader takes a document, and which kind is read at all.

use std::collections::BTreeSet;

use ringfence_model::{EndpointSlice, ExternalHost, Namespace, Node, Policy, Service, Topology};

use crate::Source;
use crate::cluster::{namespace, node};
use crate::diagnostic::{Diagnostic, Location, shown};
use crate::dom::{self, Position, Problem, Value};
use crate::lab::{self, external_host, topology};
use crate::metadata::describe;
use crate::pod::{ReadPod, pod};
use crate::policy::{self, network_policy};
use crate::read::{At, Fields, MAX_DIAGNOSTICS, Report, mapping, string};
use crate::service::{self, endpoint_slice, service};
use crate::workload::{Workload, WorkloadKind, workload};
use crate::{json, yaml};

/// How many bytes one source may have. Readers need not read more than one byte beyond it.
pub const MAX_BYTES: usize = 64 << 20;

/// An object and where it was written.
#[derive(Debug)]
pub(crate) struct Placed<T> {
    pub(crate) value: T,
    pub(crate) location: Location,
    /// Its kind, namespace and name for diagnostics.
    pub(crate) object: String,
}

/// All objects of the input, in the order written.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub(crate) namespaces: Vec<Placed<Namespace>>,
    pub(crate) nodes: Vec<Placed<Node>>,
    pub(crate) pods: Vec<Placed<ReadPod>>,
    pub(crate) workloads: Vec<Placed<Workload>>,
    pub(crate) services: Vec<Placed<Service>>,
    pub(crate) slices: Vec<Placed<EndpointSlice>>,
    pub(crate) policies: Vec<Placed<Policy>>,
    pub(crate) externals: Vec<Placed<ExternalHost>>,
    pub(crate) topologies: Vec<Placed<Topology>>,
}

#[derive(Clone, Copy)]
enum Kind {
    Namespace,
    Node,
    Pod,
    Service,
    EndpointSlice,
    Policy,
    External,
    Topology,
    Workload(WorkloadKind),
}

/// The kinds that are read, with the API version that is read.
const KINDS: [(&str, &str, Kind); 15] = [
    ("Namespace", "v1", Kind::Namespace),
    ("Node", "v1", Kind::Node),
    ("Pod", "v1", Kind::Pod),
    ("Service", "v1", Kind::Service),
    ("EndpointSlice", service::SLICE_API_VERSION, Kind::EndpointSlice),
    ("NetworkPolicy", policy::API_VERSION, Kind::Policy),
    ("ExternalHost", lab::API_VERSION, Kind::External),
    ("Topology", lab::API_VERSION, Kind::Topology),
    ("Deployment", "apps/v1", Kind::Workload(WorkloadKind::Deployment)),
    ("ReplicaSet", "apps/v1", Kind::Workload(WorkloadKind::ReplicaSet)),
    ("StatefulSet", "apps/v1", Kind::Workload(WorkloadKind::StatefulSet)),
    ("DaemonSet", "apps/v1", Kind::Workload(WorkloadKind::DaemonSet)),
    ("Job", "batch/v1", Kind::Workload(WorkloadKind::Job)),
    ("CronJob", "batch/v1", Kind::Workload(WorkloadKind::CronJob)),
    ("ReplicationController", "v1", Kind::Workload(WorkloadKind::ReplicationController)),
];

/// Reads one source into `collected` and returns what there is to say about it.
pub(crate) fn read(source: &Source<'_>, collected: &mut Collected) -> Vec<Diagnostic> {
    let mut reader = Reader { report: Report::new(source.name), collected, skipped: BTreeSet::new() };
    if let Err(problem) = reader.source(source.text) {
        reader.report.fatal(with_advice(problem, source.text));
    }
    if reader.report.overflowed() {
        let start = Position { line: 1, column: 1 };
        reader.report.fatal(
            Problem::new(start, format!("more than {MAX_DIAGNOSTICS} things are wrong in this source"))
                .with_hint("mend some of those named and try again"),
        );
    }
    reader.report.diagnostics
}

struct Reader<'a> {
    report: Report,
    collected: &'a mut Collected,
    /// The kinds and API versions that were passed over, each noted once.
    skipped: BTreeSet<(String, String)>,
}

impl Reader<'_> {
    fn source(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        let text = decode(bytes)?;
        if !json::is_likely(text) {
            return yaml::read(text, &mut |document| self.document(document));
        }
        // What begins like JSON may still be YAML in flow style. JSON documents are held back until all is read, so
        // that none is read twice.
        let mut documents = Vec::new();
        let Err(json_problem) = json::read(text, &mut |document| documents.push(document)) else {
            documents.into_iter().for_each(|document| self.document(document));
            return Ok(());
        };
        documents.clear();
        let mut reread = Vec::new();
        let result = yaml::read(text, &mut |document| reread.push(document));
        // When it is neither, the complaint of the reader it was meant for helps, or of the one that came further.
        let place = |problem: &Problem| (problem.position.line, problem.position.column);
        if let Err(yaml_problem) = &result
            && (json::has_quoted_key(text) || place(&json_problem) > place(yaml_problem))
        {
            return Err(json_problem);
        }
        reread.into_iter().for_each(|document| self.document(document));
        result
    }

    fn document(&mut self, document: Result<Option<dom::Node>, Vec<Problem>>) {
        match document {
            Ok(None) => {}
            Ok(Some(root)) if root.is_null() => {}
            Ok(Some(root)) if matches!(root.value, Value::Mapping(_)) => {
                self.object(&At::root(&root), None);
            }
            Ok(Some(root)) => self.report.fatal(
                Problem::new(root.position, "this document is not a Kubernetes object")
                    .with_hint("an object is a mapping with `apiVersion`, `kind` and `metadata`"),
            ),
            Err(problems) => problems.into_iter().for_each(|problem| self.report.fatal(problem)),
        }
    }

    /// Reads an object, or the objects of a list. Items of a typed list may leave out kind and API version, which
    /// they then have `inherited`.
    fn object(&mut self, at: &At<'_>, inherited: Option<(&str, &str)>) {
        self.report.begin(None);
        let Some(fields) = mapping(&mut self.report, at) else { return };
        let kind_at = fields.get("kind");
        let version_at = fields.get("apiVersion");
        let kind = match &kind_at {
            Some(at) => string(&mut self.report, at, "kind"),
            None => inherited.map(|(kind, _)| kind),
        };
        let Some(kind) = kind.filter(|kind| !kind.is_empty()) else {
            let names: Vec<&str> = fields.names().collect();
            let object_like = ["apiVersion", "kind", "metadata", "spec"].iter().any(|name| names.contains(name));
            if self.report.errors() == 0 && object_like {
                let hint =
                    "write kind and apiVersion, such as kind: NetworkPolicy and apiVersion: networking.k8s.io/v1";
                self.report.error_hint(&at.missing("kind"), "the object has no `kind`", hint);
            } else if self.report.errors() == 0 {
                // Values of a chart, a kustomization and the like lie beside manifests.
                self.report.note(at, "skipped: not a Kubernetes object (no apiVersion, kind, metadata or spec)");
            }
            return;
        };
        let version = match &version_at {
            Some(at) => string(&mut self.report, at, "apiVersion"),
            None => inherited.map(|(_, version)| version),
        };
        if let Some(element) = kind.strip_suffix("List")
            && (element.is_empty() || fields.written("items").is_some())
        {
            return self.list(fields, element, version.unwrap_or_default());
        }
        let Some((name, api_version, reader)) = self.known_kind(at, kind, version) else { return };
        if version.is_none_or(str::is_empty) && self.report.errors() == 0 {
            self.report.error_hint(
                &at.missing("apiVersion"),
                "the object has no `apiVersion`",
                format!("write apiVersion: {api_version}"),
            );
        }
        if name != kind {
            let at = kind_at.unwrap_or(*at);
            self.report.error_hint(&at, format!("unknown kind \"{}\"", shown(kind)), format!("write {name}"));
        }
        self.read_as(reader, fields, version.filter(|version| !version.is_empty()).unwrap_or(api_version));
    }

    fn list(&mut self, fields: Fields<'_>, element: &str, version: &str) {
        let inherited = (!element.is_empty()).then_some((element, version));
        let Some(at) = fields.get("items") else { return };
        let items = crate::read::items(&mut self.report, &at).unwrap_or_default();
        for item in &items {
            self.object(item, inherited);
        }
    }

    /// Finds who reads a kind, and its right name and API version. Says why when nobody does.
    fn known_kind(
        &mut self,
        at: &At<'_>,
        kind: &str,
        version: Option<&str>,
    ) -> Option<(&'static str, &'static str, Kind)> {
        let version = version.unwrap_or_default();
        let shown_version = if version.is_empty() { "none".to_owned() } else { shown(version) };
        let found = KINDS.into_iter().find(|(name, ..)| name.eq_ignore_ascii_case(kind));
        let object = describe(found.map_or(kind, |(name, ..)| name), at.node, true);
        match found {
            Some((name, expected, Kind::Policy)) if !is_foreign(version) => {
                self.report.about(object);
                Some((name, expected, Kind::Policy))
            }
            Some((name, expected, reader)) if version == expected || version.is_empty() => {
                let namespaced = !matches!(reader, Kind::Namespace | Kind::Node | Kind::External | Kind::Topology);
                self.report.about(describe(name, at.node, namespaced));
                Some((name, expected, reader))
            }
            Some((name, expected, _)) if !is_foreign(version) => {
                self.report.about(object);
                self.report.warning(
                    at,
                    format!("{name} of apiVersion {shown_version} is not read: it is missing from the result"),
                    format!("write {expected}"),
                );
                None
            }
            _ if kind.ends_with("NetworkPolicy") || kind.ends_with("NetworkPolicies") => {
                self.report.about(object);
                self.report.warning(
                    at,
                    format!("kind {} (apiVersion {shown_version}) is not supported: it is not enforced", shown(kind)),
                    format!("write NetworkPolicy, apiVersion {}", policy::API_VERSION),
                );
                None
            }
            _ => {
                if self.skipped.insert((kind.to_owned(), version.to_owned())) {
                    let message = format!(
                        "skipped: kind {} (apiVersion {shown_version}) says nothing about network policy",
                        shown(kind)
                    );
                    self.report.note(at, message);
                }
                None
            }
        }
    }

    fn read_as(&mut self, kind: Kind, fields: Fields<'_>, version: &str) {
        let location = self.report.location(fields.at.node.position);
        let before = self.report.errors();
        let object = self.report.object().unwrap_or_default().to_owned();
        let report = &mut self.report;
        macro_rules! collect {
            ($value:expr, $list:ident) => {
                if let Some(value) = $value {
                    self.collected.$list.push(Placed { value, location, object });
                }
            };
        }
        match kind {
            Kind::Namespace => {
                let read = namespace(report, fields);
                if report.errors() > before {
                    // Without its labels, selectors that name what it must *not* have would admit it.
                    let problem = Problem::new(fields.at.node.position, format!("{object} cannot be read"));
                    report.fatal(
                        problem.with_hint("its labels decide who is admitted, so there is no answer without it"),
                    );
                }
                collect!(read, namespaces);
            }
            Kind::Node => collect!(node(report, fields), nodes),
            Kind::Pod => {
                let read = pod(report, fields);
                collect!(self::sound(report, fields, read, before), pods);
            }
            Kind::Service => collect!(service(report, fields), services),
            Kind::EndpointSlice => collect!(endpoint_slice(report, fields), slices),
            Kind::Policy => collect!(network_policy(report, fields, version), policies),
            Kind::External => collect!(external_host(report, fields), externals),
            Kind::Topology => collect!(topology(report, fields), topologies),
            Kind::Workload(kind) => {
                let read = workload(report, fields, kind);
                collect!(self::sound(report, fields, read, before), workloads);
            }
        }
    }
}

/// What was read, unless it has an error: the API server would refuse it, so there are no such pods; and a pod that is
/// taken for another than it is meant to be could pass where it must not.
fn sound<T>(report: &mut Report, fields: Fields<'_>, read: Option<T>, errors_before: usize) -> Option<T> {
    if report.errors() > errors_before {
        report.note(fields.at, "left out: the API server would refuse it");
        return None;
    }
    read
}

/// Whether an API version belongs to somebody else's API, whose kinds only share a name with those read here. The
/// groups of Kubernetes itself have no dot, or end in `.k8s.io`.
fn is_foreign(version: &str) -> bool {
    let Some((group, _)) = version.split_once('/') else { return false };
    group.contains('.') && !group.ends_with(".k8s.io") && group != "lab.ringfence"
}

/// The text of a source, if it is text.
fn decode(bytes: &[u8]) -> Result<&str, Problem> {
    let start = Position { line: 1, column: 1 };
    if bytes.len() > MAX_BYTES {
        let message = format!("the source is larger than {} MiB", MAX_BYTES >> 20);
        return Err(Problem::new(start, message).with_hint("split it"));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let problem = Problem::new(position_after(valid), "the source is not UTF-8 text");
        if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
            problem.with_hint("it looks like UTF-16: save it as UTF-8")
        } else {
            problem
        }
    })?;
    // YAML and JSON both forbid them, and a NUL would end the text for the YAML parser.
    let control = text.bytes().position(|byte| byte < b' ' && !matches!(byte, b'\t' | b'\n' | b'\r'));
    match control {
        Some(index) => Err(Problem::new(
            position_after(bytes.get(..index).unwrap_or_default()),
            "the source has a control character",
        )),
        None => Ok(text),
    }
}

/// Adds what usually is behind a syntax error, when the text shows it.
fn with_advice(problem: Problem, text: &[u8]) -> Problem {
    let line = text.split(|byte| *byte == b'\n').nth(problem.position.line.saturating_sub(1)).unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    if problem.hint.is_some() {
        problem
    } else if line.contains("{{") {
        problem.with_hint("this looks like a template: render it first, as with `helm template`")
    } else if line.trim_start_matches(' ').starts_with('\t') {
        problem.with_hint("indent with spaces")
    } else {
        problem.with_hint("compare the indentation of this line with the lines above")
    }
}

/// The position after `bytes`, which are UTF-8.
fn position_after(bytes: &[u8]) -> Position {
    let line_start = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let line = bytes.get(line_start..).unwrap_or_default();
    Position {
        line: bytes.iter().filter(|byte| **byte == b'\n').count() + 1,
        // Every byte that does not continue a character begins one.
        column: line.iter().filter(|byte| **byte & 0xc0 != 0x80).count() + 1,
    }
}
