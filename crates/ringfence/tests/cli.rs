//! The command line as scripts see it: output, messages, exit codes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn ringfence(arguments: &[&str]) -> Output {
    with_input(arguments, b"")
}

fn with_input(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ringfence"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that refuses its arguments does not read.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn example(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name).to_str().unwrap().to_owned()
}

/// A folder of its own for one test, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("ringfence-cli-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str, text: &[u8]) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", errors(output)))
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec: {containers: [{name: c, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, labels: {app: db}}
spec: {containers: [{name: c, ports: [{containerPort: 5432}]}]}
";

#[test]
fn the_json_of_a_matrix_is_the_contract() {
    let output = ringfence(&["matrix", &example("three-layers"), "-o", "json"]);
    assert_eq!(code(&output), 0, "{}", errors(&output));
    let document = json(&output);
    assert_eq!(keys(&document), ["cells", "pods"]);
    assert_eq!(document["pods"].as_array().unwrap().len(), 6);
    for pod in document["pods"].as_array().unwrap() {
        assert_eq!(keys(pod), ["ips", "name", "namespace", "node"]);
        assert_eq!(pod["node"], "node-1");
    }
    assert_eq!(document["pods"][0]["name"], "busybox1-0");
    let cells = document["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 6 * 5);
    for cell in cells {
        assert_eq!(keys(cell), ["allowed", "egress", "from", "ingress", "measured", "port", "protocol", "to"]);
        assert_ne!(cell["from"], cell["to"]);
        assert!(cell["measured"].is_null());
        assert_eq!((&cell["protocol"], &cell["port"]), (&Value::from("TCP"), &Value::from(80)));
    }
}

#[test]
fn the_json_of_a_lab_is_the_same_with_measurements() {
    let output = ringfence(&["lab", "run", &example("three-layers"), "-o", "json"]);
    assert_eq!(code(&output), 0, "{}", errors(&output));
    let mut measured = json(&output);
    for cell in measured["cells"].as_array_mut().unwrap() {
        assert_eq!(cell["measured"], cell["allowed"]);
        cell["measured"] = Value::Null;
    }
    let paths = measured.as_object_mut().unwrap().remove("paths").unwrap();
    let first = paths.as_array().unwrap().first().unwrap();
    assert_eq!(
        keys(first),
        [
            "carried", "expected", "from", "intended", "measured", "path", "port", "protocol", "seen", "source",
            "through", "to"
        ]
    );
    let computed = ringfence(&["matrix", &example("three-layers"), "-o", "json"]);
    assert_eq!(measured, json(&computed));
}

#[test]
fn external_hosts_are_ends_by_their_address() {
    let document = json(&ringfence(&["matrix", &example("allow-external"), "-o", "json"]));
    assert_eq!(keys(&document), ["cells", "externals", "pods"]);
    assert_eq!(document["externals"], serde_json::json!([{"name": "internet", "ips": ["203.0.113.10"]}]));
    assert!(document["cells"].as_array().unwrap().iter().any(|cell| cell["from"] == "203.0.113.10"));
}

#[test]
fn standard_input_is_a_path() {
    let output = with_input(&["matrix", "-", "-o", "csv"], PODS.as_bytes());
    assert_eq!(code(&output), 0, "{}", errors(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("from,to,protocol,port,egress,ingress,allowed,measured\n"), "{text}");
    assert!(text.contains("default/db,default/web,TCP,80,true,true,true,\n"), "{text}");
}

#[test]
fn tables_have_colours_only_when_asked() {
    let plain = with_input(&["matrix", "-"], PODS.as_bytes());
    assert!(!plain.stdout.contains(&0x1b));
    let colored = with_input(&["matrix", "-", "--color", "always"], PODS.as_bytes());
    assert!(colored.stdout.contains(&0x1b));
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ringfence"))
        .args(["matrix", &example("three-layers"), "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((code(&output), errors(&output)), (0, String::new()));
}

#[test]
fn wrong_usage_is_2() {
    for arguments in [
        &["matrix"][..],
        &["nonsense"],
        &["matrix", "/nowhere/at/all.yaml"],
        &["matrix", &example("three-layers"), "-o", "nonsense"],
        &["render", &example("three-layers"), "--node", "no-such-node"],
        &["lab", "exec", "default/web", "--lab", "1", "--", "true"],
    ] {
        let output = ringfence(arguments);
        assert_eq!(code(&output), 2, "{arguments:?}");
        assert!(!errors(&output).is_empty(), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_folder_without_manifests_is_2() {
    let folder = Folder::new("empty");
    folder.file("README.md", b"nothing here");
    let output = ringfence(&["matrix", folder.0.to_str().unwrap()]);
    assert_eq!(code(&output), 2);
    assert!(errors(&output).contains("no .yaml, .yml or .json file in"), "{}", errors(&output));
}

#[test]
fn an_invalid_policy_fails_closed_and_weakens_no_other() {
    let policies = "
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: typo}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
    - ports: [{protocol: tcp, port: 80}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: sound}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
    - ports: [{port: 5432}]
";
    let folder = Folder::new("typo");
    let path = folder.file("all.yaml", format!("{PODS}{policies}").as_bytes());
    for command in [&["matrix"][..], &["lab", "run"]] {
        let output = ringfence(&[command, &[&path, "-o", "json"]].concat());
        assert_eq!(code(&output), 1, "{}", errors(&output));
        assert!(errors(&output).contains("all.yaml:19:"), "{}", errors(&output));
        assert!(errors(&output).contains("spec.ingress[0].ports[0].protocol"), "{}", errors(&output));
        let document = json(&output);
        let allowed = |to: &str| {
            let cells = document["cells"].as_array().unwrap();
            cells.iter().find(|cell| cell["to"] == to).unwrap()["allowed"].as_bool().unwrap()
        };
        assert!(!allowed("default/web"));
        assert!(allowed("default/db"));
    }
}

#[test]
fn what_cannot_be_read_has_no_answer() {
    let folder = Folder::new("junk");
    let pods = folder.file("pods.yaml", PODS.as_bytes());
    let bombs: Vec<String> =
        (1..30).map(|i| format!("a{i}: &a{i} [{}]\n", format!("*a{}, ", i - 1).repeat(9))).collect();
    for (name, junk) in [
        ("junk.yaml", b"\x00\x01\xff\xfe binary \x80".to_vec()),
        ("syntax.yaml", b"kind: Pod\n  metadata: [\n".to_vec()),
        ("deep.yaml", b"[".repeat(200_000)),
        ("bomb.yaml", format!("a0: &a0 [x]\n{}", bombs.concat()).into_bytes()),
        ("cut.json", b"{\"kind\": \"Pod\", \"metadata\": ".to_vec()),
    ] {
        let path = folder.file(name, &junk);
        let output = ringfence(&["matrix", &pods, &path]);
        assert_eq!(code(&output), 2, "{name}: {}", errors(&output));
        assert!(errors(&output).contains(name), "{name}: {}", errors(&output));
        assert!(output.stdout.is_empty(), "{name}");
    }
}

#[test]
fn a_file_larger_than_the_limit_is_refused_without_reading_it_all() {
    let folder = Folder::new("large");
    let path = folder.file("large.yaml", b"");
    // Sparse: 100 MB that take no disk.
    std::fs::File::options().write(true).open(&path).unwrap().set_len(100 << 20).unwrap();
    let output = ringfence(&["matrix", &path]);
    assert_eq!(code(&output), 2);
    assert!(errors(&output).contains("large.yaml"), "{}", errors(&output));
}

#[test]
fn other_kinds_are_skipped_with_a_note() {
    let text = format!("{PODS}---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: x}}\n");
    let output = with_input(&["matrix", "-"], text.as_bytes());
    assert_eq!(code(&output), 0);
    assert!(errors(&output).contains("ConfigMap"), "{}", errors(&output));
}

#[test]
fn rendered_programs_name_pods_and_classes() {
    let output = ringfence(&["render", &example("or-peers")]);
    assert_eq!(code(&output), 0, "{}", errors(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("table inet ringfence"), "{text}");
    assert!(text.contains("default/db"), "{text}");
}

/// The same as the agent would program, on request only.
#[test]
fn guarded_ranges_are_rendered_on_request() {
    const NODE: &str = "\
apiVersion: v1
kind: Node
metadata: {name: worker}
spec: {podCIDRs: [10.9.0.0/24, 'fd00:9::/64']}
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec: {nodeName: worker}
status: {podIPs: [{ip: 10.9.0.7}]}
";
    let render = |options: &[&str]| {
        let output = with_input(&[&["render", "-"], options].concat(), NODE.as_bytes());
        assert_eq!(code(&output), 0, "{}", errors(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let guarded = render(&["--unknown-pods", "deny"]);
    assert!(guarded.contains("ip saddr 10.9.0.0/24 ip saddr != @known4") && guarded.contains("10.9.0.7"), "{guarded}");
    assert_eq!(render(&["--unknown-pods", "allow"]), render(&[]));
    assert!(!render(&[]).contains("10.9.0"));
    let guarded = render(&["--unknown-pods", "deny", "--backend", "iptables"]);
    assert!(guarded.contains("-A RF-FORWARD -d fd00:9::/64 -j RF0-UNKNOWN-IN"), "{guarded}");
    assert!(!render(&["--backend", "iptables"]).contains("UNKNOWN"));
}

#[test]
fn a_lab_says_how_many_connections_it_tried() {
    let output = with_input(&["lab", "run", "-"], PODS.as_bytes());
    assert_eq!(code(&output), 0, "{}", errors(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("The two agree: 2 connections tried, 2 as expected."), "{text}");
}

/// A pod on the host network is its node, and a node always reaches its own pods: on one node there is another answer.
#[test]
fn a_lab_plays_the_nodes_of_the_input_or_as_many_as_asked_for() {
    let text = "
apiVersion: v1
kind: Pod
metadata: {name: daemon}
spec: {nodeName: w1, hostNetwork: true, containers: [{name: c, ports: [{containerPort: 9100}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec: {nodeName: w2, containers: [{name: c, ports: [{containerPort: 80}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec: {podSelector: {}, policyTypes: [Ingress]}
";
    let measured = |arguments: &[&str]| {
        let output = with_input(&[&["lab", "run", "-", "-o", "json"], arguments].concat(), text.as_bytes());
        assert_eq!(code(&output), 0, "{}", errors(&output));
        let cells = json(&output)["cells"].as_array().unwrap().clone();
        let cell = cells.iter().find(|cell| cell["to"] == "default/web").unwrap();
        (cell["measured"].clone(), errors(&output))
    };
    assert_eq!(measured(&[]).0, false);
    let (together, notes) = measured(&["--nodes", "1"]);
    assert_eq!(together, true);
    assert!(notes.contains("pods of 2 nodes run on 1"), "{notes}");
}

/// The network comes from an object of the input or of a file, and flags win.
#[test]
fn a_topology_can_be_written_down() {
    let folder = Folder::new("topology");
    let pods = folder.file("pods.yaml", PODS.as_bytes());
    let topology = |nodes: u8, network: &str| {
        format!(
            "{{apiVersion: lab.ringfence/v1alpha1, kind: Topology, metadata: {{name: t}}, \
             spec: {{nodes: {nodes}, network: {network}}}}}"
        )
    };
    let file = folder.file("topology.yml", topology(2, "vxlan").as_bytes());
    let nodes = |arguments: &[&str]| {
        let output = ringfence(&[&["lab", "run", "-o", "json"], arguments].concat());
        assert_eq!(code(&output), 0, "{}", errors(&output));
        let pods = json(&output)["pods"].as_array().unwrap().clone();
        let nodes: std::collections::BTreeSet<String> = pods.iter().map(|pod| pod["node"].to_string()).collect();
        nodes.len()
    };
    assert_eq!(nodes(&[&pods]), 1);
    assert_eq!(nodes(&[&pods, "--topology", &file]), 2);
    assert_eq!(nodes(&[&pods, &file]), 2);
    assert_eq!(nodes(&[&pods, &file, "--nodes", "1", "--topology", "bridge"]), 1);
    let wrong = ringfence(&["lab", "run", &pods, "--topology", &pods]);
    assert_eq!(code(&wrong), 2);
    assert!(errors(&wrong).contains("holds no Topology"), "{}", errors(&wrong));
    let unknown = ringfence(&["lab", "run", &pods, "--topology", "flannel"]);
    assert_eq!(code(&unknown), 2);
    assert!(errors(&unknown).contains("flannel"), "{}", errors(&unknown));
}

#[test]
fn options_of_the_other_backend_are_refused() {
    let example = example("or-peers");
    let output = ringfence(&["render", &example, "--mark", "0x4"]);
    assert_eq!(code(&output), 2);
    assert!(errors(&output).contains("--mark is an option of --backend iptables"), "{}", errors(&output));
    assert_eq!(code(&ringfence(&["render", &example, "--backend", "iptables", "--mark", "0x4000"])), 2);
    let output = ringfence(&["render", &example, "--backend", "iptables", "--mark", "0x4", "--deny-action", "drop"]);
    assert_eq!(code(&output), 0, "{}", errors(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("--set-xmark 0x4/0x4") && !text.contains("REJECT"), "{text}");
    assert!(text.contains("default/test-network-policy rule 1"), "{text}");
}

#[test]
fn the_doctor_looks_and_answers() {
    let output = ringfence(&["doctor", "-o", "json"]);
    assert!(matches!(code(&output), 0 | 1), "{}", errors(&output));
    assert!(serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap().is_array());
}

#[test]
fn a_file_is_read_once_and_files_without_objects_are_skipped() {
    let folder = Folder::new("chart");
    let pods = folder.file("pods.yaml", PODS.as_bytes());
    folder.file("values.yaml", b"image: nginx\nreplicas: 2\n");
    let output = ringfence(&["matrix", &pods, folder.0.to_str().unwrap(), "-o", "csv"]);
    assert_eq!(code(&output), 0, "{}", errors(&output));
    assert!(errors(&output).contains("values.yaml:1:1: note: skipped"), "{}", errors(&output));
}

#[test]
fn labels_that_cannot_be_read_open_nothing() {
    let folder = Folder::new("labels");
    let pods = folder.file("pods.yaml", PODS.replace("{app: db}", "{app: true}").as_bytes());
    let output = ringfence(&["matrix", &pods, "-o", "json"]);
    assert_eq!(code(&output), 1, "{}", errors(&output));
    assert!(errors(&output).contains("quote it"), "{}", errors(&output));
    assert_eq!(json(&output)["pods"].as_array().unwrap().len(), 1, "the pod is left out");
    let namespace =
        folder.file("ns.yaml", b"{apiVersion: v1, kind: Namespace, metadata: {name: x, labels: {a: true}}}");
    assert_eq!(code(&ringfence(&["matrix", &pods, &namespace])), 2);
}

/// Every command with its sub-commands, as the help lists them: `["lab", "run"]` and so on.
fn all_commands() -> Vec<Vec<String>> {
    let mut known = Vec::new();
    let mut open = vec![Vec::<String>::new()];
    while let Some(command) = open.pop() {
        let arguments: Vec<&str> = command.iter().map(String::as_str).chain(["--help"]).collect();
        let help = String::from_utf8(ringfence(&arguments).stdout).unwrap();
        let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
        // Descriptions that need a second line are indented further.
        let names = listed.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
        let names = names.map(|line| line.split_whitespace().next().unwrap()).filter(|name| *name != "help");
        open.extend(names.map(|name| [&command[..], &[name.to_owned()]].concat()));
        known.push(command);
    }
    known
}

#[test]
fn the_version_says_what_was_built() {
    let output = ringfence(&["version", "-o", "json"]);
    assert_eq!(code(&output), 0, "{}", errors(&output));
    let document = json(&output);
    assert_eq!(keys(&document), ["backends", "commit", "target", "version"]);
    assert_eq!(document["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(document["backends"], serde_json::json!(["nftables", "iptables"]));
    let target = document["target"].as_str().unwrap();
    assert!(target.starts_with(std::env::consts::ARCH) && target.contains("linux"), "{target}");
    // Null when it is not known, which is so outside of a checkout.
    if let Some(commit) = document["commit"].as_str() {
        assert!(!commit.is_empty() && commit.chars().all(char::is_alphanumeric), "{commit}");
    }
    let text = String::from_utf8(ringfence(&["version"]).stdout).unwrap();
    assert!(text.starts_with(concat!("ringfence ", env!("CARGO_PKG_VERSION"), "\n")), "{text}");
}

#[test]
fn shells_complete_commands_and_their_options() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = ringfence(&["completions", shell]);
        assert_eq!(code(&output), 0, "{}", errors(&output));
        let script = String::from_utf8(output.stdout).unwrap();
        for command in all_commands().iter().filter_map(|command| command.last()) {
            assert!(script.contains(command), "{shell}: {command}");
        }
    }
    assert_eq!(code(&ringfence(&["completions", "tcsh"])), 2);
}

/// What bash itself makes of the script.
#[test]
fn bash_completes_what_was_begun() {
    let folder = Folder::new("completions");
    let script = folder.file("ringfence.bash", &ringfence(&["completions", "bash"]).stdout);
    for (words, completed) in [("ringfence mat", "matrix"), ("ringfence matrix --pod", "--pod-cidr")] {
        let words: Vec<&str> = words.split(' ').collect();
        let last = words.len() - 1;
        let ask = format!(
            ". '{script}'; COMP_WORDS=({}); COMP_CWORD={last}; _ringfence ringfence {} {}; echo \"${{COMPREPLY[@]}}\"",
            words.join(" "),
            words[last],
            words[last - 1],
        );
        let output = Command::new("bash").args(["-c", &ask]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), completed, "{}", errors(&output));
    }
}

#[test]
fn every_command_has_a_manual_page() {
    let folder = Folder::new("man");
    // The folder is made.
    let pages = folder.0.join("share/man1");
    let output = ringfence(&["man", "--dir", pages.to_str().unwrap()]);
    assert_eq!((code(&output), errors(&output)), (0, String::new()));
    let commands = all_commands();
    assert!(commands.contains(&vec!["lab".to_owned(), "run".to_owned()]), "{commands:?}");
    let expected: std::collections::BTreeSet<String> =
        commands.iter().map(|command| [&["ringfence".to_owned()], &command[..]].concat().join("-") + ".1").collect();
    let written = std::fs::read_dir(&pages).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(written.collect::<std::collections::BTreeSet<String>>(), expected);
    for page in &expected {
        let text = std::fs::read_to_string(pages.join(page)).unwrap();
        assert!(text.contains(&format!(".TH {} 1", page.trim_end_matches(".1"))), "{text}");
    }
    let printed = ringfence(&["man"]).stdout;
    assert_eq!(String::from_utf8(printed).unwrap(), std::fs::read_to_string(pages.join("ringfence.1")).unwrap());
}

#[test]
fn manual_pages_that_cannot_be_written_are_2() {
    let folder = Folder::new("no-man");
    let file = folder.file("file", b"");
    let output = ringfence(&["man", "--dir", &file]);
    assert_eq!(code(&output), 2);
    assert!(errors(&output).contains(&file), "{}", errors(&output));
}

/// With iptables of the host's variant where it is installed; `make test` sees to that.
#[test]
fn the_doctor_tries_the_packet_filter_in_a_network_of_its_own() {
    let table = || Command::new("nft").args(["list", "table", "inet", "ringfence"]).output().unwrap().stdout;
    let before = table();
    for backend in ["nftables", "iptables"] {
        let output = ringfence(&["doctor", "-o", "json", "--try", backend]);
        assert!(matches!(code(&output), 0 | 1), "{}", errors(&output));
        let findings = json(&output);
        let trial: Vec<_> = findings.as_array().unwrap().iter().filter(|finding| finding["id"] == "trial").collect();
        assert!(trial.is_empty(), "{backend}: {trial:?}");
    }
    assert_eq!(table(), before);
}

#[test]
fn the_doctor_asks_the_api_server_for_whom_credentials_are_given() {
    let rbac = |arguments: &[&str]| {
        let mut doctor = Command::new(env!("CARGO_BIN_EXE_ringfence"));
        // Where the tests run in a pod, it would ask about that one's service account.
        doctor.args(["doctor", "-o", "json"]).args(arguments).env_remove("KUBERNETES_SERVICE_HOST");
        let document = json(&doctor.output().unwrap());
        document.as_array().unwrap().iter().find(|finding| finding["id"] == "rbac").cloned()
    };
    assert_eq!(rbac(&[]), None);
    let finding = rbac(&["--kubeconfig", "/nowhere/config"]).unwrap();
    assert_eq!(finding["severity"], "warning");
    assert!(finding["evidence"].as_str().unwrap().contains("/nowhere/config"), "{finding}");
}
