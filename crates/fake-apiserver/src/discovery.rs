//! What tells clients like kubectl which resources there are.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::resource::{RESOURCES, Resource};

/// The version that the server claims to be.
const VERSION: (&str, &str) = ("1", "36");

/// The answer to a path that is about the server and not about objects.
pub(crate) fn document(path: &str) -> Option<Value> {
    let (major, minor) = VERSION;
    match path.trim_end_matches('/').split('/').collect::<Vec<_>>().as_slice() {
        ["", "version"] => Some(json!({
            "major": major, "minor": minor, "gitVersion": format!("v{major}.{minor}.0"), "gitCommit": "",
            "gitTreeState": "clean", "buildDate": "2026-01-01T00:00:00Z", "goVersion": "", "compiler": "",
            "platform": "linux/amd64",
        })),
        ["", "api"] => Some(json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})),
        ["", "apis"] => {
            let groups: BTreeSet<&str> = RESOURCES.iter().map(|resource| resource.group).collect();
            let groups: Vec<Value> = groups.into_iter().filter(|group| !group.is_empty()).map(group).collect();
            Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["", "api", "v1"] => resources("", "v1"),
        ["", "apis", name] => has_group(name).then(|| group(name)),
        ["", "apis", name, version] => resources(name, version),
        _ => None,
    }
}

fn has_group(name: &str) -> bool {
    RESOURCES.iter().any(|resource| resource.group == name)
}

fn group(name: &str) -> Value {
    let version = json!({"groupVersion": format!("{name}/v1"), "version": "v1"});
    json!({"name": name, "versions": [version], "preferredVersion": version})
}

fn resources(group: &str, version: &str) -> Option<Value> {
    let of_group: Vec<&Resource> =
        RESOURCES.iter().filter(|resource| resource.group == group && resource.version == version).collect();
    let first = of_group.first()?;
    let describe = |resource: &&Resource| {
        let verbs = ["create", "delete", "get", "list", "patch", "update", "watch"];
        json!({
            "name": resource.plural, "singularName": resource.kind.to_lowercase(), "shortNames": [resource.short],
            "namespaced": resource.namespaced, "kind": resource.kind, "verbs": verbs,
        })
    };
    let list: Vec<Value> = of_group.iter().map(describe).collect();
    let api = first.api_version();
    Some(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api, "resources": list}))
}
