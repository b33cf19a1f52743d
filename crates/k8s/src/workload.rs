//! Workloads: what a controller would make pods of.

use std::sync::Arc;

use ringfence_model::{Labels, Phase, Pod};

use crate::metadata::{self, Controller};
use crate::names::{is_dns_label, is_dns_subdomain, is_label_value};
use crate::pod::{PodSpec, file_id, pod_spec};
use crate::read::{Fields, Report, integer, labels};

/// How many pods one workload may have.
pub(crate) const MAX_REPLICAS: usize = 10_000;

/// The kinds of workloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum WorkloadKind {
    Deployment,
    ReplicaSet,
    ReplicationController,
    StatefulSet,
    DaemonSet,
    Job,
    CronJob,
}

impl WorkloadKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            WorkloadKind::Deployment => "Deployment",
            WorkloadKind::ReplicaSet => "ReplicaSet",
            WorkloadKind::ReplicationController => "ReplicationController",
            WorkloadKind::StatefulSet => "StatefulSet",
            WorkloadKind::DaemonSet => "DaemonSet",
            WorkloadKind::Job => "Job",
            WorkloadKind::CronJob => "CronJob",
        }
    }
}

/// A workload with the template of its pods.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    pub(crate) kind: WorkloadKind,
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
    /// Without meaning for a DaemonSet.
    pub(crate) replicas: usize,
    pub(crate) controller: Option<Controller>,
    labels: Labels,
    spec: PodSpec,
}

/// Reads a workload; nothing without a usable name and namespace.
pub(crate) fn workload(report: &mut Report, object: Fields<'_>, kind: WorkloadKind) -> Option<Workload> {
    let identity = metadata::identity(report, object, is_dns_subdomain, is_dns_label);
    let mut found = Template::default();
    let mut replicas = 1;
    match object.get("spec") {
        None => report.error(&object.at.missing("spec"), "`spec` is missing"),
        Some(_) => object.mapping(report, "spec", |report, spec| match kind {
            WorkloadKind::CronJob => spec.mapping(report, "jobTemplate", |report, job| {
                job.mapping(report, "spec", |report, spec| {
                    replicas = job_pods(report, spec);
                    found = template(report, spec);
                });
            }),
            WorkloadKind::Job => {
                replicas = job_pods(report, spec);
                found = template(report, spec);
            }
            _ => {
                replicas = count(report, spec, "replicas").unwrap_or(1);
                found = template(report, spec);
            }
        }),
    }
    let (namespace, name) = (identity.namespace?, identity.name?);
    Some(Workload {
        kind,
        controller: metadata::controller(report, object, &namespace),
        namespace,
        name,
        replicas,
        labels: found.labels,
        spec: found.spec,
    })
}

#[derive(Default)]
struct Template {
    labels: Labels,
    spec: PodSpec,
}

fn template(report: &mut Report, spec: Fields<'_>) -> Template {
    let mut found = Template::default();
    if spec.get("template").is_none() {
        report.error(&spec.at.missing("template"), "the pod `template` is missing");
    }
    spec.mapping(report, "template", |report, template| {
        template.mapping(report, "metadata", |report, metadata| {
            if let Some(at) = metadata.get("labels") {
                found.labels = labels(report, &at).into_iter().collect();
            }
        });
        template.mapping(report, "spec", |report, fields| found.spec = pod_spec(report, fields));
    });
    found
}

/// A Job runs `parallelism` pods at a time, but never more than are left to complete.
fn job_pods(report: &mut Report, spec: Fields<'_>) -> usize {
    let parallelism = count(report, spec, "parallelism").unwrap_or(1);
    match count(report, spec, "completions") {
        Some(completions) => parallelism.min(completions),
        None => parallelism,
    }
}

/// Reads a number of pods; nothing when it is absent, 0 when it is wrong, because a number nobody meant would only
/// drown the error.
fn count(report: &mut Report, spec: Fields<'_>, name: &'static str) -> Option<usize> {
    let at = spec.get(name)?;
    let Some(number) = integer(report, &at, name) else { return Some(0) };
    match usize::try_from(number) {
        Ok(count) if count <= MAX_REPLICAS => Some(count),
        Ok(_) => {
            report.error(&at, format!("{number} pods are more than the {MAX_REPLICAS} a workload may have here"));
            Some(0)
        }
        Err(_) => {
            report.error(&at, format!("{number} is negative"));
            Some(0)
        }
    }
}

impl Workload {
    /// Its pods as a controller would make them, named `<workload>-<index>`. `nodes` are the sorted names of all
    /// nodes: a DaemonSet has a pod on each of them, or a single one when none is known.
    pub(crate) fn pods(&self, nodes: &[Arc<str>]) -> Vec<Pod> {
        match self.kind {
            WorkloadKind::DaemonSet if nodes.is_empty() => vec![self.pod(0, None)],
            WorkloadKind::DaemonSet => {
                nodes.iter().enumerate().map(|(index, node)| self.pod(index, Some(node.clone()))).collect()
            }
            _ => (0..self.replicas).map(|index| self.pod(index, None)).collect(),
        }
    }

    fn pod(&self, index: usize, node: Option<Arc<str>>) -> Pod {
        let name: Arc<str> = format!("{}-{index}", self.name).into();
        Pod {
            id: file_id(&self.namespace, &name),
            static_uid: None,
            namespace: self.namespace.clone(),
            labels: self.labels_of(index, &name),
            name,
            node: node.or_else(|| self.spec.node.clone()),
            addresses: Vec::new(),
            host_network: self.spec.host_network,
            phase: Phase::Live,
            created: 0,
            ports: self.spec.ports.clone(),
        }
    }

    /// The template's labels and those the controller adds that can be known beforehand.
    fn labels_of(&self, index: usize, pod_name: &Arc<str>) -> Labels {
        let mut labels = self.labels.clone();
        let mut add = |key: &str, value: Arc<str>| {
            // A cluster could not create a pod with a longer value; the label is left out rather than cut.
            if is_label_value(&value) {
                labels = labels.with(key, value);
            }
        };
        match self.kind {
            WorkloadKind::StatefulSet => {
                add("statefulset.kubernetes.io/pod-name", pod_name.clone());
                add("apps.kubernetes.io/pod-index", index.to_string().into());
            }
            WorkloadKind::Job => {
                add("job-name", self.name.clone());
                add("batch.kubernetes.io/job-name", self.name.clone());
            }
            WorkloadKind::Deployment
            | WorkloadKind::ReplicaSet
            | WorkloadKind::ReplicationController
            | WorkloadKind::DaemonSet
            | WorkloadKind::CronJob => {}
        }
        labels
    }
}
