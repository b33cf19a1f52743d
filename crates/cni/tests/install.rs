//! The plugin in and out of directories as network plugins and their users leave them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ringfence_cni::{Installation, OnTimeout, Options, Settings, install, installed, keep, uninstall};
use ringfence_control::{Sandbox, announcements};
use serde_json::{Value, json};
use tempfile::TempDir;

/// As flannel's init container copies it.
const FLANNEL: &str = r#"{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "plugins": [
    {
      "type": "flannel",
      "delegate": {
        "hairpinMode": true,
        "isDefaultGateway": true
      }
    },
    {
      "type": "portmap",
      "capabilities": {
        "portMappings": true
      }
    }
  ]
}
"#;

/// As Calico writes it.
const CALICO: &str = r#"{
  "name": "k8s-pod-network",
  "cniVersion": "0.3.1",
  "plugins": [{"container_settings":{"allow_ip_forwarding":false},"datastore_type":"kubernetes","ipam":{"assign_ipv4":"true","type":"calico-ipam"},"type":"calico"},{"capabilities":{"bandwidth":true},"type":"bandwidth"},{"capabilities":{"portMappings":true},"snat":true,"type":"portmap"}]
}"#;

/// As Cilium writes it: one plugin.
const CILIUM: &str = "
{
  \"cniVersion\": \"0.3.1\",
  \"name\": \"cilium\",
  \"plugins\": [
    {
       \"type\": \"cilium-cni\",
       \"enable-debug\": false,
       \"log-file\": \"/var/run/cilium/cilium-cni.log\"
    }
  ]
}
";

/// As containerd's own script writes it.
const CONTAINERD: &str = "{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"containerd-net\",\n  \"plugins\": [\n    {\n      \
                          \"type\": \"bridge\",\n      \"bridge\": \"cni0\",\n      \"ipam\": {\"type\": \"host-local\", \
                          \"big\": 123456789012345678901234567890}\n    },\n    {\"type\": \"portmap\"}\n  ]\n}\n";

/// On one line, with everything that may be odd.
const ODD: &str = "\t{\"disableCheck\":\"true\",\"plugins\":[ {\"x\":\"]}\\\"ringfence-cni\",\"type\":\"br\\u0069dge\"} ],\
                   \"cniVersions\":[\"1.1.0\",\"0.4.0\"],\"name\":\"\u{e9}\"}\r\n\r\n";

/// A single plugin.
const BRIDGE: &str = r#"{"cniVersion":"0.4.0","name":"bridge","type":"bridge","bridge":"cni0",
 "ipam":{"type":"host-local"}}"#;

/// The directories of a node.
struct Node {
    root: TempDir,
    settings: Settings,
}

impl Node {
    fn new(files: &[(&str, &str)]) -> Node {
        let root = tempfile::tempdir().unwrap();
        let settings = Settings { run_dir: root.path().join("run"), ..Settings::default() };
        let node = Node { root, settings };
        fs::create_dir_all(node.conf_dir()).unwrap();
        fs::write(node.program(), "the program").unwrap();
        for (name, text) in files {
            fs::write(node.conf_dir().join(name), text).unwrap();
        }
        node
    }

    fn conf_dir(&self) -> PathBuf {
        self.root.path().join("net.d")
    }

    fn bin_dir(&self) -> PathBuf {
        self.root.path().join("bin")
    }

    fn program(&self) -> PathBuf {
        self.root.path().join("ringfence")
    }

    fn plugin(&self) -> PathBuf {
        self.bin_dir().join("ringfence-cni")
    }

    fn options(&self) -> Options {
        Options {
            bin_dir: self.bin_dir(),
            conf_dir: self.conf_dir(),
            conf: None,
            program: self.program(),
            settings: self.settings.clone(),
        }
    }

    #[track_caller]
    fn install(&self) {
        install(&self.options()).unwrap();
    }

    fn uninstall(&self, force: bool) -> ringfence_cni::Outcome {
        uninstall(&self.bin_dir(), &self.conf_dir(), &self.settings.run_dir, force).unwrap()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.conf_dir().join(name)).unwrap()
    }

    /// All files of the directory of configurations.
    fn files(&self) -> BTreeMap<String, String> {
        let entries = fs::read_dir(self.conf_dir()).unwrap();
        entries
            .map(|entry| {
                let name = entry.unwrap().file_name().into_string().unwrap();
                let text = self.read(&name);
                (name, text)
            })
            .collect()
    }

    /// What containerd and CRI-O make of the directory: the first file's plugins, those of a list or a single one.
    fn runtime(&self) -> Vec<Value> {
        let files = self.files();
        let known = |name: &str| [".conf", ".conflist", ".json"].iter().any(|ending| name.ends_with(ending));
        let (name, text) = files.iter().find(|(name, _)| known(name)).unwrap();
        let mut conf: Value = serde_json::from_str(text).unwrap();
        if name.ends_with(".conflist") { conf["plugins"].take().as_array().unwrap().clone() } else { vec![conf] }
    }

    fn types(&self) -> Vec<String> {
        self.runtime().iter().map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
    }
}

fn types_of(text: &str) -> Vec<String> {
    let conf: Value = serde_json::from_str(text).unwrap();
    let plugins = conf["plugins"].as_array().cloned().unwrap_or_else(|| vec![conf]);
    plugins.iter().map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn in_and_out_of_every_list() {
    for text in [FLANNEL, CALICO, CILIUM, CONTAINERD, ODD] {
        let node = Node::new(&[("10-net.conflist", text), ("20-other.conflist", CALICO)]);
        node.install();
        let installed = node.read("10-net.conflist");
        // Valid, at the end, and the others as they were.
        let before: Value = serde_json::from_str(text).unwrap();
        let mut after: Value = serde_json::from_str(&installed).unwrap();
        let entry = after["plugins"].as_array_mut().unwrap().pop().unwrap();
        assert_eq!(
            entry,
            json!({"type": "ringfence-cni", "runDir": node.settings.run_dir, "timeoutSeconds": 10, "onTimeout": "fail"})
        );
        assert_eq!(after, before);
        // All bytes of the others are there, in their places.
        let (start, end) = common(text, &installed);
        assert!(start + end >= text.len(), "{installed}");
        assert_eq!(node.read("20-other.conflist"), CALICO);
        assert_eq!(fs::read(node.plugin()).unwrap(), b"the program");
        assert_eq!(fs::metadata(node.plugin()).unwrap().permissions().mode() & 0o777, 0o755);

        // Again: nothing.
        let inode = fs::metadata(node.conf_dir().join("10-net.conflist")).unwrap().ino();
        assert_eq!(install(&node.options()).unwrap().changes, []);
        assert_eq!(fs::metadata(node.conf_dir().join("10-net.conflist")).unwrap().ino(), inode);
        assert_eq!(node.read("10-net.conflist"), installed);

        // With other options: only they change.
        let other = Settings {
            timeout_seconds: 3,
            on_timeout: OnTimeout::Continue,
            continue_for: vec!["kube-system".to_owned()],
            ..node.settings.clone()
        };
        install(&Options { settings: other.clone(), ..node.options() }).unwrap();
        assert_eq!(
            crate::installed(&node.conf_dir(), None).unwrap(),
            Installation::Present(node.conf_dir().join("10-net.conflist"), other)
        );
        node.install();
        assert_eq!(node.read("10-net.conflist"), installed);

        node.uninstall(false);
        assert_eq!(node.read("10-net.conflist"), text);
        assert!(!node.plugin().exists());
        assert_eq!(node.uninstall(false), ringfence_cni::Outcome::default());
        assert_eq!(node.files().len(), 2);
    }
}

/// How much is the same at the start and at the end.
fn common(a: &str, b: &str) -> (usize, usize) {
    let start = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    let end = a.bytes().rev().zip(b.bytes().rev()).take_while(|(a, b)| a == b).count();
    (start, end)
}

#[test]
fn edits_by_others_stay() {
    let node = Node::new(&[("10-net.conflist", CILIUM)]);
    node.install();
    // Another plugin is chained behind ours, and something before it changes.
    let mut conf: Value = serde_json::from_str(&node.read("10-net.conflist")).unwrap();
    conf["plugins"].as_array_mut().unwrap().push(json!({"type": "istio-cni"}));
    conf["plugins"][0]["enable-debug"] = true.into();
    let edited = serde_json::to_string_pretty(&conf).unwrap();
    fs::write(node.conf_dir().join("10-net.conflist"), &edited).unwrap();
    assert_eq!(install(&node.options()).unwrap().changes, []);
    assert_eq!(node.read("10-net.conflist"), edited);
    node.uninstall(false);
    let mut expected = conf;
    expected["plugins"].as_array_mut().unwrap().remove(1);
    assert_eq!(serde_json::from_str::<Value>(&node.read("10-net.conflist")).unwrap(), expected);
    assert_eq!(node.types(), ["cilium-cni", "istio-cni"]);
}

#[test]
fn entries_in_wrong_places_are_put_right() {
    let ours = r#"{"type":"ringfence-cni"}"#;
    for plugins in [
        format!(r#"{ours},{{"type":"a"}},{{"type":"b"}}"#),
        format!(r#"{{"type":"a"}},{ours},{{"type":"b"}},{ours}"#),
        format!(r#"{ours}, {ours}, {{"type":"a"}}, {{"type":"b"}}"#),
        r#"{"type":"a"},{"type":"b"},{"type":"ringfence-cni","timeoutSeconds":"x"}"#.to_owned(),
    ] {
        let text = format!(r#"{{"cniVersion":"1.0.0","name":"n","plugins":[{plugins}]}}"#);
        let node = Node::new(&[("a.conflist", &text)]);
        node.install();
        assert_eq!(node.types(), ["a", "b", "ringfence-cni"], "{text}");
        node.uninstall(false);
        assert_eq!(node.types(), ["a", "b"], "{text}");
    }
}

#[test]
fn a_single_plugin_becomes_a_list_beside() {
    for name in ["10-bridge.conf", "10-bridge.json"] {
        let node = Node::new(&[(name, BRIDGE), ("20-flannel.conflist", FLANNEL), ("99-loopback.conf", BRIDGE)]);
        node.install();
        assert_eq!(node.types(), ["bridge", "ringfence-cni"]);
        // What is before ours is the plugin, whole.
        assert_eq!(node.runtime()[0], serde_json::from_str::<Value>(BRIDGE).unwrap());
        let list: Value = serde_json::from_str(&node.read("10-bridge-ringfence.conflist")).unwrap();
        assert_eq!((&list["name"], &list["cniVersion"]), (&json!("bridge"), &json!("0.4.0")));
        assert_eq!(node.read(name), BRIDGE);
        let files = node.files();
        assert_eq!(install(&node.options()).unwrap().changes, []);
        assert_eq!(node.files(), files);
        let Installation::Present(path, settings) = installed(&node.conf_dir(), None).unwrap() else { panic!() };
        assert!(path.ends_with("10-bridge-ringfence.conflist"));
        assert_eq!(settings, node.settings);

        // The original changes: so does the list.
        fs::write(node.conf_dir().join(name), BRIDGE.replace("cni0", "br7")).unwrap();
        node.install();
        assert_eq!(node.runtime()[0]["bridge"], "br7");
        // Named by either name, it is the same.
        for conf in [name, "10-bridge-ringfence.conflist"] {
            let options = Options { conf: Some(conf.to_owned()), ..node.options() };
            assert_eq!(install(&options).unwrap().changes, [], "{conf}");
        }
        node.uninstall(false);
        assert_eq!(node.files().len(), 3);
        assert_eq!(node.types(), ["bridge"]);
    }
}

#[test]
fn a_list_that_was_made_does_not_outlive_what_it_was_made_of() {
    let node = Node::new(&[("10-bridge.conf", BRIDGE)]);
    node.install();
    // The network is replaced by another.
    fs::remove_file(node.conf_dir().join("10-bridge.conf")).unwrap();
    fs::write(node.conf_dir().join("20-flannel.conflist"), FLANNEL).unwrap();
    node.install();
    assert_eq!(node.types(), ["flannel", "portmap", "ringfence-cni"]);
    assert_eq!(node.files().len(), 1);

    let node = Node::new(&[("10-bridge.conf", BRIDGE)]);
    node.install();
    fs::remove_file(node.conf_dir().join("10-bridge.conf")).unwrap();
    let said = install(&node.options()).unwrap_err().to_string();
    assert!(said.contains("no network configuration in"), "{said}");
    assert_eq!(node.files(), BTreeMap::new());
}

#[test]
fn the_first_is_used_or_the_one_that_is_named() {
    let node = Node::new(&[("20-b.conflist", CALICO), ("10-a.conflist", FLANNEL), (".10.swp", "junk"), ("05", "junk")]);
    fs::create_dir(node.conf_dir().join("00-calico.conf")).unwrap();
    let options = |conf: &str| Options { conf: Some(conf.to_owned()), ..node.options() };
    node.install();
    assert!(node.read("10-a.conflist").contains("ringfence-cni"));
    assert_eq!(node.read("20-b.conflist"), CALICO);
    install(&options("20-b.conflist")).unwrap();
    assert!(node.read("20-b.conflist").contains("ringfence-cni"));
    assert!(install(&options("30-c.conflist")).unwrap_err().to_string().contains("30-c.conflist"));
    node.uninstall(false);
    assert_eq!((node.read("10-a.conflist"), node.read("20-b.conflist")), (FLANNEL.to_owned(), CALICO.to_owned()));
}

impl Node {
    /// Checks that the directory is refused for a reason and left as it is.
    #[track_caller]
    fn refuses(&self, reason: &str) {
        let files = self.files();
        let said = install(&self.options()).unwrap_err().to_string();
        assert!(said.contains(reason), "{said:?} does not say {reason:?}");
        assert_eq!(self.files(), files);
        self.uninstall(false);
        assert_eq!(self.files(), files);
    }
}

#[test]
fn what_cannot_be_chained_is_left_alone() {
    let cases = [
        ("a.conflist", "", "not JSON"),
        ("a.conflist", "{\"name\":", "not JSON"),
        ("a.conflist", "name: cbr0", "not JSON"),
        ("a.conflist", "{\"type\": \"ringfence-cni\"", "not JSON"),
        ("a.conflist", r#"{"name":"n","cniVersion":"1.0.0"}"#, "no plugins"),
        ("a.conflist", r#"{"name":"n","cniVersion":"1.0.0","plugins":[]}"#, "no plugins"),
        ("a.conflist", r#"{"name":"n","cniVersion":"1.0.0","plugins":{}}"#, "not JSON as"),
        ("a.conflist", r#"{"cniVersion":"1.0.0","plugins":[{"type":"a"}]}"#, "no name"),
        ("a.conflist", r#"{"name":"n","plugins":[{"type":"a"}]}"#, "from 0.3.0 on"),
        ("a.conflist", r#"{"name":"n","cniVersion":"0.2.0","plugins":[{"type":"a"}]}"#, "0.2.0"),
        ("a.conflist", r#"{"name":"n","cniVersion":"2.0.0","plugins":[{"type":"a"}]}"#, "2.0.0"),
        (
            "a.conflist",
            r#"{"name":"n","cniVersion":"1.0.0","cniVersions":["1.2.0"],"plugins":[{"type":"a"}]}"#,
            "1.2.0",
        ),
        ("a.conf", r#"{"cniVersion":"0.2.0","name":"n","type":"a"}"#, "0.2.0"),
        ("a.conf", r#"{"cniVersion":"0.4.0","type":"a"}"#, "no name"),
        ("a.conf", r#"{"cniVersion":"0.4.0","name":"n"}"#, "without a type"),
        ("a.conf", FLANNEL, "without a type"),
    ];
    for (name, text, reason) in cases {
        let node = Node::new(&[(name, text)]);
        node.refuses(reason);
    }
    let node = Node::new(&[]);
    node.refuses("no network configuration in");
    assert_eq!(installed(&node.conf_dir(), None).unwrap(), Installation::NoNetwork);
    fs::write(node.conf_dir().join("a.conflist"), b"{\"name\":\"\xff\"}").unwrap();
    assert!(install(&node.options()).is_err());
    node.uninstall(false);
    fs::remove_dir_all(node.conf_dir()).unwrap();
    assert!(install(&node.options()).unwrap_err().to_string().contains("no network configuration in"));
    assert_eq!(installed(&node.conf_dir(), None).unwrap(), Installation::NoNetwork);
    node.uninstall(false);
}

#[test]
fn uninstall_tells_what_it_cannot_read() {
    let node = Node::new(&[("a.conflist", r#"{"plugins":[{"type":"ringfence-cni"},"#), ("b.conflist", "junk")]);
    let outcome = node.uninstall(false);
    assert_eq!(outcome.remarks.len(), 1);
    assert!(outcome.remarks[0].contains("a.conflist"), "{outcome:?}");
}

#[test]
fn a_list_of_ours_alone_can_be_taken_back() {
    let node =
        Node::new(&[("a.conflist", r#"{"name":"n","cniVersion":"1.0.0","plugins":[ {"type":"ringfence-cni"} ]}"#)]);
    assert!(install(&node.options()).unwrap_err().to_string().contains("no plugins"));
    node.uninstall(false);
    assert_eq!(node.read("a.conflist"), r#"{"name":"n","cniVersion":"1.0.0","plugins":[  ]}"#);
}

#[test]
fn mode_owner_and_links_stay() {
    let node = Node::new(&[]);
    let real = node.root.path().join("real.json");
    fs::write(&real, FLANNEL).unwrap();
    fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
    // Only root may give files away.
    let given = std::os::unix::fs::chown(&real, Some(12), Some(34)).is_ok();
    let before = fs::metadata(&real).unwrap();
    let link = node.conf_dir().join("10-net.conflist");
    symlink("../real.json", &link).unwrap();
    node.install();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    let after = fs::metadata(&real).unwrap();
    assert_eq!(types_of(&fs::read_to_string(&real).unwrap()), ["flannel", "portmap", "ringfence-cni"]);
    assert_eq!((after.mode(), after.uid(), after.gid()), (before.mode(), before.uid(), before.gid()));
    assert!(!given || after.uid() == 12);
    node.uninstall(false);
    assert_eq!(fs::read_to_string(&real).unwrap(), FLANNEL);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());

    // A list that is made is like the original.
    let node = Node::new(&[("a.conf", BRIDGE)]);
    fs::set_permissions(node.conf_dir().join("a.conf"), fs::Permissions::from_mode(0o600)).unwrap();
    node.install();
    assert_eq!(fs::metadata(node.conf_dir().join("a-ringfence.conflist")).unwrap().mode() & 0o777, 0o600);

    // A link to nowhere.
    let node = Node::new(&[]);
    symlink("nowhere", node.conf_dir().join("a.conflist")).unwrap();
    assert!(install(&node.options()).unwrap_err().to_string().contains("a.conflist"));
}

#[test]
fn the_program_is_replaced_only_when_it_differs() {
    let node = Node::new(&[("a.conflist", FLANNEL)]);
    node.install();
    let inode = || fs::metadata(node.plugin()).unwrap().ino();
    let first = inode();
    node.install();
    assert_eq!(inode(), first);
    fs::set_permissions(node.plugin(), fs::Permissions::from_mode(0o644)).unwrap();
    node.install();
    assert_eq!(fs::metadata(node.plugin()).unwrap().mode() & 0o777, 0o755);
    fs::write(node.program(), "the prograM").unwrap();
    node.install();
    assert_eq!(fs::read(node.plugin()).unwrap(), b"the prograM");
    // A running program cannot be written to, but replaced; a link is replaced, not followed.
    fs::remove_file(node.plugin()).unwrap();
    symlink(node.program(), node.plugin()).unwrap();
    node.install();
    assert!(fs::symlink_metadata(node.plugin()).unwrap().is_file());
    assert_eq!(fs::read_dir(node.bin_dir()).unwrap().count(), 1);
}

#[test]
fn the_program_stays_while_pods_may_need_it() {
    let node = Node::new(&[("a.conflist", FLANNEL)]);
    node.install();
    let sandbox = Sandbox {
        id: "c0ffee".to_owned(),
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
        uid: None,
        addresses: vec!["10.0.0.1".parse().unwrap()],
    };
    announcements::write(&node.settings.run_dir, &sandbox).unwrap();
    let outcome = node.uninstall(false);
    assert_eq!(node.read("a.conflist"), FLANNEL);
    assert!(node.plugin().exists());
    assert!(outcome.remarks[0].contains("1 pods were started with it"), "{outcome:?}");
    node.uninstall(true);
    assert!(!node.plugin().exists());
}

#[test]
fn concurrently() {
    let node = Node::new(&[("a.conf", BRIDGE), ("b.conflist", FLANNEL)]);
    let conf = |name: &str| Options { conf: Some(name.to_owned()), ..node.options() };
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..20).for_each(|_| drop(install(&conf("b.conflist")).unwrap())));
            scope.spawn(|| (0..20).for_each(|_| drop(install(&node.options()).unwrap())));
            scope.spawn(|| (0..20).for_each(|_| drop(node.uninstall(true))));
        }
        for _ in 0..500 {
            // Whoever reads sees whole files.
            let types = types_of(&node.read("b.conflist"));
            assert_eq!(types[..2], ["flannel", "portmap"]);
            assert!(types.len() <= 3, "{types:?}");
        }
    });
    node.uninstall(true);
    assert_eq!(node.files().len(), 2);
    assert_eq!((node.read("a.conf"), node.read("b.conflist")), (BRIDGE.to_owned(), FLANNEL.to_owned()));
    assert!(!node.plugin().exists());
}

#[test]
fn kept_while_network_plugins_write() {
    let node = Node::new(&[]);
    fs::remove_dir(node.conf_dir()).unwrap();
    let options = node.options();
    let (sender, reports) = mpsc::channel();
    // It never ends: the thread stays until the test's process does.
    thread::spawn(move || keep(&options, |report| drop(sender.send(report.map_err(|error| error.to_string())))));
    let next = || reports.recv_timeout(Duration::from_secs(60)).expect("nothing is reported");
    assert!(next().unwrap_err().contains("no network configuration in"));
    fs::create_dir(node.conf_dir()).unwrap();
    let path = node.conf_dir().join("10-flannel.conflist");
    let wait_for = |types: &[&str]| {
        let start = Instant::now();
        while fs::read_to_string(&path).ok().filter(|text| !text.is_empty()).is_none_or(|text| types_of(&text) != types)
        {
            assert!(start.elapsed() < Duration::from_secs(60), "the plugin does not come");
            thread::sleep(Duration::from_millis(10));
        }
    };
    fs::write(&path, FLANNEL).unwrap();
    let all = ["flannel", "portmap", "ringfence-cni"];
    wait_for(&all);
    // In place, and by renaming.
    fs::write(&path, FLANNEL).unwrap();
    wait_for(&all);
    fs::write(node.conf_dir().join("new"), CILIUM).unwrap();
    fs::rename(node.conf_dir().join("new"), &path).unwrap();
    wait_for(&["cilium-cni", "ringfence-cni"]);
    // Another network, which is used from now on.
    fs::write(node.conf_dir().join("05-bridge.conf"), BRIDGE).unwrap();
    let start = Instant::now();
    while node.types() != ["bridge", "ringfence-cni"] {
        assert!(start.elapsed() < Duration::from_secs(60), "the list does not come");
        thread::sleep(Duration::from_millis(10));
    }
    assert!(Path::new(&node.plugin()).exists());
}
