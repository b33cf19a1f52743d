//! What can only be decided when everything is read: duplicates, who owns whom, and namespaces nobody defined.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ringfence_model::{Object, Pod};

use crate::Manifests;
use crate::cluster::bare_namespace;
use crate::diagnostic::{Diagnostic, Location, Severity};
use crate::document::{Collected, Placed};
use crate::metadata::{Controller, DEFAULT_NAMESPACE};
use crate::pod::ReadPod;
use crate::workload::{Workload, WorkloadKind};

/// How many pods all workloads together may have.
const MAX_PODS: usize = 200_000;

/// Puts the objects together. Diagnostics found while reading come first.
pub(crate) fn assemble(collected: Collected, diagnostics: Vec<Diagnostic>) -> Manifests {
    let mut out = Manifests { diagnostics, ..Manifests::default() };
    let lives_in = namespaces_lived_in(&collected);
    let Collected { namespaces, nodes, pods, workloads, services, slices, policies, externals, topologies } = collected;

    let mut namespaces = out.distinct(namespaces, Severity::Error, |namespace| namespace.name.clone());
    out.add_missing_namespaces(&mut namespaces, lives_in);
    let nodes = out.distinct(nodes, Severity::Error, |node| node.name.clone());
    let services = out.distinct(services, Severity::Error, |service| (service.namespace.clone(), service.name.clone()));
    let slices = out.distinct(slices, Severity::Error, |slice| (slice.namespace.clone(), slice.name.clone()));
    let workloads = out.distinct(workloads, Severity::Error, |workload| {
        (workload.kind, workload.namespace.clone(), workload.name.clone())
    });
    let externals = out.distinct(externals, Severity::Error, |external| external.name.clone());
    let topologies = out.distinct(topologies, Severity::Error, |_| ());
    let mut policies = policies;
    name_the_nameless(&mut policies);
    let policies = out.distinct(policies, Severity::Warning, |policy| policy.id.clone());

    let mut node_names: Vec<Arc<str>> = nodes.iter().map(|node| node.value.name.clone()).collect();
    node_names.sort();
    let mut all_pods = out.expand(workloads, &pods, &node_names);
    all_pods.extend(pods.into_iter().map(|placed| placed.map(|read| read.pod)));
    // A name in use twice, then a uid in use twice: either way only one of them can be.
    let pods = out.distinct(all_pods, Severity::Error, |pod| (pod.namespace.clone(), pod.name.clone()));
    let pods = out.distinct(pods, Severity::Error, |pod| pod.id.clone());

    out.extend(namespaces, Object::Namespace);
    out.extend(nodes, Object::Node);
    out.extend(pods, Object::Pod);
    out.extend(services, Object::Service);
    out.extend(slices, Object::EndpointSlice);
    out.extend(policies, Object::Policy);
    out.topology = topologies.into_iter().map(|placed| placed.value).next();
    out.externals = externals.into_iter().map(|placed| placed.value).collect();
    out
}

impl<T> Placed<T> {
    fn map<U>(self, f: impl FnOnce(T) -> U) -> Placed<U> {
        Placed { value: f(self.value), location: self.location, object: self.object }
    }
}

impl Manifests {
    fn say(&mut self, severity: Severity, location: Location, object: &str, message: String, hint: Option<&str>) {
        self.diagnostics.push(Diagnostic {
            severity,
            location,
            object: (!object.is_empty()).then(|| object.to_owned()),
            field: String::new(),
            message,
            hint: hint.map(str::to_owned),
        });
    }

    fn extend<T>(&mut self, items: Vec<Placed<T>>, wrap: fn(T) -> Object) {
        for Placed { value, location, .. } in items {
            let object = wrap(value);
            // Namespaces nobody wrote have no place.
            if location.line > 0 {
                self.origins.insert(object.key(), location);
            }
            self.objects.push(object);
        }
    }

    /// Keeps the last object of each key, in the place of the first, and reports the others.
    fn distinct<T, K: Ord>(
        &mut self,
        items: Vec<Placed<T>>,
        severity: Severity,
        key: impl Fn(&T) -> K,
    ) -> Vec<Placed<T>> {
        let mut index: BTreeMap<K, usize> = BTreeMap::new();
        let mut kept: Vec<Placed<T>> = Vec::with_capacity(items.len());
        for item in items {
            let next = kept.len();
            let slot = *index.entry(key(&item.value)).or_insert(next);
            let Some(earlier) = kept.get_mut(slot) else {
                kept.push(item);
                continue;
            };
            let who = if earlier.object == item.object { "it".to_owned() } else { earlier.object.clone() };
            let message = format!("defined twice: {who} is also in {}; this one counts", earlier.location);
            let (location, object) = (item.location.clone(), item.object.clone());
            *earlier = item;
            self.say(severity, location, &object, message, Some("remove one of them"));
        }
        kept
    }

    /// A namespace that objects live in exists, defined or not.
    fn add_missing_namespaces(
        &mut self,
        namespaces: &mut Vec<Placed<ringfence_model::Namespace>>,
        lives_in: BTreeMap<Arc<str>, Location>,
    ) {
        let defined: BTreeSet<Arc<str>> = namespaces.iter().map(|placed| placed.value.name.clone()).collect();
        for (name, location) in lives_in {
            if defined.contains(&name) {
                continue;
            }
            if !matches!(&*name, DEFAULT_NAMESPACE | "kube-system") {
                let message = format!("namespace {name} is not in the input: assumed to have no other labels");
                let hint = "add the Namespace if selectors look at its labels";
                self.say(Severity::Note, location.clone(), "", message, Some(hint));
            }
            namespaces.push(Placed {
                value: bare_namespace(&name),
                location: Location { line: 0, column: 0, ..location },
                object: format!("Namespace {name}"),
            });
        }
    }

    /// Expands the workloads nobody in the input is owned by: the pods of the others are in the input themselves.
    fn expand(
        &mut self,
        workloads: Vec<Placed<Workload>>,
        pods: &[Placed<ReadPod>],
        nodes: &[Arc<str>],
    ) -> Vec<Placed<Pod>> {
        let owners = owners(&workloads, pods);
        let mut expanded = Vec::new();
        for Placed { value: workload, location, object } in workloads {
            if owners.contains(&identity(&workload)) {
                continue;
            }
            let count = match workload.kind {
                WorkloadKind::DaemonSet => nodes.len().max(1),
                _ => workload.replicas,
            };
            if expanded.len() + count > MAX_PODS {
                let message = format!("left out: all workloads together have more than {MAX_PODS} pods");
                self.say(Severity::Error, location, &object, message, None);
                continue;
            }
            expanded.extend(workload.pods(nodes).into_iter().map(|pod| Placed {
                value: pod,
                location: location.clone(),
                object: object.clone(),
            }));
        }
        expanded
    }
}

fn identity(workload: &Workload) -> Controller {
    Controller {
        kind: workload.kind.as_str().into(),
        namespace: workload.namespace.clone(),
        name: workload.name.clone(),
    }
}

/// Everyone who owns something in the input. When the link between a pod and its workload is missing (a Deployment
/// and its pods were dumped, but not the ReplicaSet), its name tells who owned it.
fn owners(workloads: &[Placed<Workload>], pods: &[Placed<ReadPod>]) -> BTreeSet<Controller> {
    let present: BTreeSet<Controller> = workloads.iter().map(|placed| identity(&placed.value)).collect();
    let mut owners: BTreeSet<Controller> =
        workloads.iter().filter_map(|placed| placed.value.controller.clone()).collect();
    for ReadPod { pod, controller } in pods.iter().map(|placed| &placed.value) {
        let Some(controller) = controller else { continue };
        if !present.contains(controller)
            && let Some((name, suffix)) = controller.name.rsplit_once('-')
        {
            let owner_kind = match &*controller.kind {
                "ReplicaSet" if pod.labels.get("pod-template-hash").is_some_and(|hash| **hash == *suffix) => {
                    Some(WorkloadKind::Deployment)
                }
                "Job" if suffix.bytes().all(|byte| byte.is_ascii_digit()) => Some(WorkloadKind::CronJob),
                _ => None,
            };
            owners.extend(owner_kind.map(|kind| Controller {
                kind: kind.as_str().into(),
                namespace: controller.namespace.clone(),
                name: name.into(),
            }));
        }
        owners.insert(controller.clone());
    }
    owners
}

/// Names the policies that have no usable name of their own, so that each of them is enforced.
fn name_the_nameless(policies: &mut [Placed<ringfence_model::Policy>]) {
    let taken: BTreeSet<Arc<str>> = policies.iter().map(|placed| placed.value.id.name.clone()).collect();
    let mut free =
        (0_usize..).map(|number| Arc::from(format!("invalid-{number}"))).filter(|name| !taken.contains(name));
    for placed in policies {
        if placed.value.id.name.is_empty()
            && let Some(name) = free.next()
        {
            placed.value.id.name = name;
        }
    }
}

/// The namespaces that namespaced objects are in, each with the place of one of them.
fn namespaces_lived_in(collected: &Collected) -> BTreeMap<Arc<str>, Location> {
    let mut found = BTreeMap::new();
    let mut add = |namespace: &Arc<str>, location: &Location| {
        found.entry(namespace.clone()).or_insert_with(|| location.clone());
    };
    for Placed { value, location, .. } in &collected.pods {
        add(&value.pod.namespace, location);
    }
    for Placed { value, location, .. } in &collected.workloads {
        add(&value.namespace, location);
    }
    for Placed { value, location, .. } in &collected.services {
        add(&value.namespace, location);
    }
    for Placed { value, location, .. } in &collected.slices {
        add(&value.namespace, location);
    }
    for Placed { value, location, .. } in &collected.policies {
        add(&value.id.namespace, location);
    }
    found
}
