//! The resources that are served.

use serde_json::Value;

/// One resource: where it is served and what selectors may ask of it.
#[derive(Debug)]
pub(crate) struct Resource {
    /// Empty for the core group.
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) kind: &'static str,
    /// What people type for it.
    pub(crate) short: &'static str,
    pub(crate) namespaced: bool,
    /// Whether `status` is written through a path of its own.
    pub(crate) status: bool,
    /// Whether `metadata.generation` counts the changes of `spec`.
    pub(crate) generation: bool,
    /// What field selectors may name beside `metadata.name` and `metadata.namespace`.
    pub(crate) fields: &'static [&'static str],
}

pub(crate) static RESOURCES: [Resource; 8] = [
    Resource {
        group: "",
        version: "v1",
        plural: "pods",
        kind: "Pod",
        short: "po",
        namespaced: true,
        status: true,
        generation: true,
        fields: &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
    },
    Resource {
        group: "",
        version: "v1",
        plural: "namespaces",
        kind: "Namespace",
        short: "ns",
        namespaced: false,
        status: true,
        generation: false,
        fields: &["status.phase"],
    },
    Resource {
        group: "",
        version: "v1",
        plural: "nodes",
        kind: "Node",
        short: "no",
        namespaced: false,
        status: true,
        generation: false,
        fields: &["spec.unschedulable"],
    },
    Resource {
        group: "",
        version: "v1",
        plural: "services",
        kind: "Service",
        short: "svc",
        namespaced: true,
        status: true,
        generation: false,
        fields: &["spec.clusterIP", "spec.type"],
    },
    Resource {
        group: "discovery.k8s.io",
        version: "v1",
        plural: "endpointslices",
        kind: "EndpointSlice",
        short: "",
        namespaced: true,
        status: false,
        generation: true,
        fields: &[],
    },
    Resource {
        group: "networking.k8s.io",
        version: "v1",
        plural: "networkpolicies",
        kind: "NetworkPolicy",
        short: "netpol",
        namespaced: true,
        status: false,
        generation: true,
        fields: &[],
    },
    Resource {
        group: "",
        version: "v1",
        plural: "events",
        kind: "Event",
        short: "ev",
        namespaced: true,
        status: false,
        generation: false,
        fields: &["involvedObject.name", "involvedObject.namespace", "involvedObject.uid", "reason", "type"],
    },
    Resource {
        group: "events.k8s.io",
        version: "v1",
        plural: "events",
        kind: "Event",
        short: "ev",
        namespaced: true,
        status: false,
        generation: false,
        fields: &["regarding.name", "regarding.namespace", "regarding.uid", "reason", "type"],
    },
];

impl Resource {
    /// By the name that tests and kubectl use: `pods`, or with its group `events.events.k8s.io`. A name without a group
    /// means the first resource of that name.
    pub(crate) fn named(name: &str) -> Option<&'static Resource> {
        let (plural, group) = name.split_once('.').map_or((name, None), |(plural, group)| (plural, Some(group)));
        RESOURCES.iter().find(|resource| resource.plural == plural && group.is_none_or(|group| resource.group == group))
    }

    pub(crate) fn served(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
        RESOURCES
            .iter()
            .find(|resource| resource.group == group && resource.version == version && resource.plural == plural)
    }

    /// The resource of an object, by its `apiVersion` and `kind`.
    pub(crate) fn of(object: &Value) -> Option<&'static Resource> {
        let (version, kind) = (object["apiVersion"].as_str()?, object["kind"].as_str()?);
        RESOURCES.iter().find(|resource| resource.kind == kind && resource.api_version() == version)
    }

    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// As messages of the API server name it: `networkpolicies.networking.k8s.io`.
    pub(crate) fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// As messages of the API server name its objects: `NetworkPolicy.networking.k8s.io`.
    pub(crate) fn qualified_kind(&self) -> String {
        if self.group.is_empty() { self.kind.to_owned() } else { format!("{}.{}", self.kind, self.group) }
    }

    /// Where it is served: an object, or all of them if there is no name.
    pub(crate) fn path(&self, namespace: &str, name: &str) -> String {
        let mut path =
            if self.group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{}", self.api_version()) };
        if self.namespaced && !namespace.is_empty() {
            path.push_str(&format!("/namespaces/{namespace}"));
        }
        path.push_str(&format!("/{}", self.plural));
        if !name.is_empty() {
            path.push_str(&format!("/{name}"));
        }
        path
    }

    /// Where the store keeps an object: `namespace/name`, or `name`. Lists are in the order of these, byte by byte, as
    /// etcd's are; so the objects of a namespace `a-b` come before those of `a`.
    pub(crate) fn key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced { format!("{namespace}/{name}") } else { name.to_owned() }
    }
}

impl PartialEq for Resource {
    fn eq(&self, other: &Resource) -> bool {
        self.group == other.group && self.plural == other.plural
    }
}
