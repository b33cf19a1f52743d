//! What is deployed fits what was built: the manifests in `deploy/`, the chart they come from, and the command.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it left out"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, PodSpec, Probe, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use ringfence_agent::access::{Access, NEEDED, needed};
use ringfence_model::{EnforceAt, Enforcement, NodeTraffic};
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All objects of `deploy/ringfence.yaml`.
fn objects() -> Vec<Value> {
    serde_saphyr::from_multiple(&read("deploy/ringfence.yaml")).unwrap()
}

/// The object as the API has it. A field that the API does not have would be lost on the way, so it is noticed.
fn strict<T: serde::de::DeserializeOwned + serde::Serialize>(object: &Value) -> T {
    let typed: T = serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{error}: {object}"));
    assert_eq!(&serde_json::to_value(&typed).unwrap(), object);
    typed
}

/// The only object of this kind.
fn only<T: serde::de::DeserializeOwned + serde::Serialize>(kind: &str) -> T {
    let objects: Vec<Value> = objects().into_iter().filter(|object| object["kind"] == kind).collect();
    let [object] = &objects[..] else { panic!("{} objects of kind {kind}", objects.len()) };
    strict(object)
}

fn pod() -> PodSpec {
    only::<DaemonSet>("DaemonSet").spec.unwrap().template.spec.unwrap()
}

fn agent(pod: &PodSpec) -> &Container {
    pod.containers.iter().find(|container| container.name == "agent").unwrap()
}

fn containers(pod: &PodSpec) -> impl Iterator<Item = &Container> {
    pod.init_containers.iter().flatten().chain(&pod.containers)
}

#[test]
fn every_object_is_as_the_api_has_it() {
    for object in objects() {
        match object["kind"].as_str() {
            Some("ServiceAccount") => drop(strict::<ServiceAccount>(&object)),
            Some("ClusterRole") => drop(strict::<ClusterRole>(&object)),
            Some("ClusterRoleBinding") => drop(strict::<ClusterRoleBinding>(&object)),
            Some("DaemonSet") => drop(strict::<DaemonSet>(&object)),
            kind => panic!("{kind:?} is new here; check it as well"),
        }
    }
}

#[test]
fn objects_name_each_other() {
    let account: ServiceAccount = only("ServiceAccount");
    let role: ClusterRole = only("ClusterRole");
    let binding: ClusterRoleBinding = only("ClusterRoleBinding");
    let daemons: DaemonSet = only("DaemonSet");
    assert_eq!((&*binding.role_ref.kind, Some(&binding.role_ref.name)), ("ClusterRole", role.metadata.name.as_ref()));
    let [subject] = &binding.subjects.unwrap()[..] else { panic!("one subject expected") };
    assert_eq!((&*subject.kind, Some(&subject.name)), ("ServiceAccount", account.metadata.name.as_ref()));
    assert_eq!(subject.namespace, account.metadata.namespace);
    assert_eq!(daemons.metadata.namespace, account.metadata.namespace);
    let spec = daemons.spec.unwrap();
    assert_eq!(spec.template.spec.unwrap().service_account_name, account.metadata.name);
    let labels = spec.template.metadata.unwrap().labels.unwrap();
    let selector = spec.selector.match_labels.unwrap();
    assert!(!selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value)), "{selector:?}");
}

/// No more, and no less.
#[test]
fn the_role_grants_what_the_agent_asks_for() {
    assert_grants(only("ClusterRole"), NEEDED);
}

/// The role grants this, no more and no less.
fn assert_grants(role: ClusterRole, needed: &[Access]) {
    let mut granted = BTreeSet::new();
    for rule in role.rules.unwrap() {
        assert_eq!((rule.non_resource_urls, rule.resource_names), (None, None));
        for group in rule.api_groups.unwrap() {
            for resource in rule.resources.iter().flatten() {
                granted.extend(rule.verbs.iter().map(|verb| (group.clone(), resource.clone(), verb.clone())));
            }
        }
    }
    let needed = needed.iter().flat_map(|access| {
        let of = move |verb: &&str| (access.group.to_owned(), access.resource.to_owned(), (*verb).to_owned());
        access.verbs.iter().map(of)
    });
    assert_eq!(granted, needed.collect::<BTreeSet<_>>());
}

#[test]
fn no_container_has_more_power_than_it_needs() {
    let pod = pod();
    assert_eq!((pod.host_network, pod.host_pid, pod.host_ipc), (Some(true), None, None));
    assert_eq!(pod.security_context.as_ref().unwrap().seccomp_profile.as_ref().unwrap().type_, "RuntimeDefault");
    for container in containers(&pod) {
        let context = container.security_context.as_ref().unwrap();
        assert_eq!(context.privileged, None, "{}", container.name);
        assert_eq!(context.allow_privilege_escalation, Some(false), "{}", container.name);
        assert_eq!(context.read_only_root_filesystem, Some(true), "{}", container.name);
        let capabilities = context.capabilities.as_ref().unwrap();
        assert_eq!(capabilities.drop.as_deref(), Some(&["ALL".to_owned()][..]), "{}", container.name);
        // With the default backend. iptables needs NET_RAW, too.
        let needed = (container.name == "agent").then(|| vec!["NET_ADMIN".to_owned()]);
        assert_eq!(capabilities.add, needed, "{}", container.name);
    }
}

#[test]
fn it_runs_on_every_node_and_is_replaced_one_by_one() {
    let daemons: DaemonSet = only("DaemonSet");
    let strategy = serde_json::to_value(daemons.spec.unwrap().update_strategy).unwrap();
    assert_eq!(strategy, serde_json::json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}));
    let pod = pod();
    assert_eq!(pod.priority_class_name.as_deref(), Some("system-node-critical"));
    assert_eq!(serde_json::to_value(pod.tolerations).unwrap(), serde_json::json!([{"operator": "Exists"}]));
    assert_eq!(pod.node_selector, Some(BTreeMap::from([("kubernetes.io/os".to_owned(), "linux".to_owned())])));
}

/// The command's own parser knows the arguments of every container, up to what only a cluster can tell.
fn assert_known_arguments(pod: &PodSpec) {
    for container in containers(pod) {
        assert_eq!(container.command, None, "the image's own");
        let arguments = container.args.clone().unwrap();
        // --help ends the parsing with success, if everything before it is understood.
        let output = Command::new(env!("CARGO_BIN_EXE_ringfence")).args(&arguments).arg("--help").output().unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {arguments:?}: {complaint}", container.name);
        // What $(NAME) stands for is given to it.
        let environment: Vec<&str> = container.env.iter().flatten().map(|variable| &*variable.name).collect();
        for used in arguments.iter().filter_map(|argument| argument.split_once("$(")?.1.split_once(')')) {
            assert!(environment.contains(&used.0), "{}: {}", container.name, used.0);
        }
    }
}

#[test]
fn the_command_knows_its_arguments() {
    assert_known_arguments(&pod());
    let wrong = ["agent", "--node=$(NODE_NAME)", "--no-such-option", "--help"];
    assert!(!Command::new(env!("CARGO_BIN_EXE_ringfence")).args(wrong).output().unwrap().status.success());
}

#[test]
fn probes_ask_where_the_agent_answers() {
    let pod = pod();
    let agent = agent(&pod);
    let place = |probe: &Option<Probe>, path: &str| {
        let get = probe.as_ref().unwrap().http_get.as_ref().unwrap();
        assert_eq!(get.path.as_deref(), Some(path));
        format!("{}:{}", get.host.as_ref().unwrap(), serde_json::to_value(&get.port).unwrap())
    };
    let asked = place(&agent.liveness_probe, "/livez");
    assert_eq!(place(&agent.readiness_probe, "/readyz"), asked);
    assert!(agent.args.iter().flatten().any(|argument| *argument == format!("--health-listen={asked}")), "{asked}");
    // Manifests, chart and command have the same defaults.
    let help = Command::new(env!("CARGO_BIN_EXE_ringfence")).args(["agent", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let values = yaml("deploy/helm/ringfence/values.yaml");
    for (option, value) in [("--health-listen", &values["health"]), ("--metrics-listen", &values["metrics"])] {
        let default = format!("{}:{}", value["address"].as_str().unwrap(), value["port"]);
        let (_, told) = help.split_once(option).unwrap();
        let (_, told) = told.split_once("[default: ").unwrap();
        assert_eq!(told.split(']').next(), Some(&*default), "{option}");
    }
}

#[test]
fn what_is_mounted_is_there() {
    let pod = pod();
    let volumes: BTreeSet<&str> = pod.volumes.iter().flatten().map(|volume| &*volume.name).collect();
    let mounts = containers(&pod).flat_map(|container| container.volume_mounts.iter().flatten());
    assert_eq!(mounts.map(|mount| &*mount.name).collect::<BTreeSet<_>>(), volumes);
    for volume in pod.volumes.iter().flatten() {
        // A path that does not exist yet must not become a folder where a file is meant.
        let host = volume.host_path.as_ref().unwrap();
        assert!(host.type_.as_deref().is_some_and(|kind| kind.ends_with("OrCreate")), "{host:?}");
    }
}

#[test]
fn versions_are_the_same() {
    let chart = yaml("deploy/helm/ringfence/Chart.yaml");
    assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    for container in containers(&pod()) {
        let (_, tag) = container.image.as_ref().unwrap().rsplit_once(':').unwrap();
        assert_eq!(tag, env!("CARGO_PKG_VERSION"));
    }
}

/// With helm, rendered and compared; without, by the digest that the script leaves in the manifests.
#[test]
fn the_manifests_are_what_the_chart_gives() {
    let output = Command::new(root().join("scripts/manifests")).arg("--check").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    println!("{}", String::from_utf8_lossy(&output.stdout));
}

/// What else the chart can give, where helm is installed (or HELM names it).
#[test]
fn the_chart_gives_what_values_ask_for() {
    let values = "
agent: {backend: iptables, onExit: cleanup, enforceAt: entry, nodeTraffic: policy, noMasqueradeCidrs: [10.245.0.0/16],
  extraArgs: [--resync=10]}
iptables: {variant: legacy, mark: '0x40', podIpRanges: [10.0.0.0/8, 'fd00::/8']}
apiServer: {host: api.example, port: 443}
health: {address: '::1', port: 1}
metrics: {address: '::', port: 2}
podMonitor: {enabled: true}
";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), values).unwrap();
    let helm = std::env::var_os("HELM").unwrap_or_else(|| "helm".into());
    let chart = root().join("deploy/helm/ringfence");
    let rendered = Command::new(helm).args(["template", "other"]).arg(chart).arg("-f").arg(file.path()).output();
    let output = match rendered {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return println!("skipped: helm is not installed");
        }
        Err(error) => panic!("{error}"),
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let objects: Vec<Value> = serde_saphyr::from_multiple(&String::from_utf8(output.stdout).unwrap()).unwrap();
    assert!(objects.iter().any(|object| object["kind"] == "PodMonitor"));
    let role = objects.iter().find(|object| object["kind"] == "ClusterRole").unwrap();
    let entry = Enforcement { at: EnforceAt::Entry, node_traffic: NodeTraffic::Policy };
    assert_grants(strict(role), &needed(entry, true));
    let daemons: DaemonSet = strict(objects.iter().find(|object| object["kind"] == "DaemonSet").unwrap());
    let pod = daemons.spec.unwrap().template.spec.unwrap();
    assert_known_arguments(&pod);
    let agent = agent(&pod);
    let arguments = agent.args.as_ref().unwrap();
    for expected in [
        "--backend=iptables",
        "--iptables=legacy",
        "--mark=0x40",
        "--pod-ip-range=10.0.0.0/8",
        "--pod-ip-range=fd00::/8",
        "--health-listen=[::1]:1",
        "--metrics-listen=[::]:2",
        "--on-exit=cleanup",
        "--enforce-at=entry",
        "--node-traffic=policy",
        "--no-masquerade-cidr=10.245.0.0/16",
        "--resync=10",
    ] {
        assert!(arguments.iter().any(|argument| argument == expected), "{expected}: {arguments:?}");
    }
    let capabilities = agent.security_context.as_ref().unwrap().capabilities.as_ref().unwrap();
    assert_eq!(capabilities.add.as_deref(), Some(&["NET_ADMIN".to_owned(), "NET_RAW".to_owned()][..]));
    // A probe has no brackets around an IPv6 address.
    let probe = agent.liveness_probe.as_ref().unwrap().http_get.as_ref().unwrap();
    assert_eq!(probe.host.as_deref(), Some("::1"));
    assert!(agent.volume_mounts.iter().flatten().any(|mount| mount.mount_path == "/run/xtables.lock"));
    let server: Vec<_> = agent.env.iter().flatten().filter_map(|variable| variable.value.as_deref()).collect();
    assert_eq!(server, ["api.example", "443"]);
}

/// The paths of all values, without what is inside of values that are handed on as they are.
fn paths(schema: &Value, before: &str, paths: &mut BTreeSet<String>) {
    for (name, of) in schema["properties"].as_object().unwrap() {
        let path = format!("{before}{name}");
        match of.get("properties") {
            Some(_) => self::paths(of, &format!("{path}."), paths),
            None => drop(paths.insert(path)),
        }
    }
}

#[test]
fn every_value_has_a_default_is_used_and_is_documented() {
    let values = yaml("deploy/helm/ringfence/values.yaml");
    let schema: Value = serde_json::from_str(&read("deploy/helm/ringfence/values.schema.json")).unwrap();
    let mut known = BTreeSet::new();
    paths(&schema, "", &mut known);
    // Helm's own, for charts within charts.
    known.remove("global");

    let mut given = BTreeSet::new();
    for path in &known {
        let value = path.split('.').fold(&values, |value, name| &value[name]);
        assert!(!value.is_null(), "{path} has no default");
        given.insert(path.clone());
    }
    let mut defaults = BTreeSet::new();
    for (name, value) in values.as_object().unwrap() {
        match (schema["properties"][name].get("properties"), value.as_object()) {
            (Some(_), Some(fields)) => defaults.extend(fields.keys().map(|field| format!("{name}.{field}"))),
            _ => drop(defaults.insert(name.clone())),
        }
    }
    assert_eq!(given, defaults, "values.yaml and values.schema.json");

    let readme = read("deploy/helm/ringfence/README.md");
    let rows = readme.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    assert_eq!(rows.map(str::to_owned).collect::<BTreeSet<_>>(), known, "values.yaml and README.md");

    let templates = std::fs::read_dir(root().join("deploy/helm/ringfence/templates")).unwrap();
    let templates: String = templates.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap()).collect();
    let used: BTreeSet<&str> = templates
        .split(".Values.")
        .skip(1)
        .map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '.').next().unwrap())
        .collect();
    // Used itself, or handed on as a whole.
    let is_used = |path: &str| used.contains(path) || path.split_once('.').is_some_and(|(of, _)| used.contains(of));
    for path in &known {
        assert!(is_used(path), "{path} is used by no template");
    }
    for path in used {
        assert!(
            known.iter().any(|value| value == path || value.starts_with(&format!("{path}."))),
            "{path} is no value"
        );
    }
}
