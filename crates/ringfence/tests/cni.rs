//! The CNI plugin as a program: installed by the command line, called by its name as a container runtime does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ringfence_control::{Request, socket_path};
use serde_json::{Value, json};
use tempfile::TempDir;

const LIST: &str = r#"{"cniVersion": "1.0.0", "name": "cbr0", "plugins": [{"type": "flannel"}, {"type": "portmap"}]}"#;

/// The directories of a node.
struct Node(TempDir);

impl Node {
    fn new() -> Node {
        let node = Node(tempfile::tempdir().unwrap());
        fs::create_dir(node.path("net.d")).unwrap();
        fs::create_dir(node.path("run")).unwrap();
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn list(&self) -> PathBuf {
        self.path("net.d/10-flannel.conflist")
    }

    fn command(&self, command: &str, options: &[&str]) -> Command {
        let mut process = Command::new(env!("CARGO_BIN_EXE_ringfence"));
        process.args(["cni", command]);
        for (option, directory) in [("--bin-dir", "bin"), ("--conf-dir", "net.d"), ("--run-dir", "run")] {
            process.arg(option).arg(self.path(directory));
        }
        process.args(options).stdin(Stdio::null());
        process
    }

    fn ringfence(&self, command: &str, options: &[&str]) -> Output {
        self.command(command, options).output().unwrap()
    }

    /// The last entry of the list, as libcni gives it to the plugin.
    fn configuration(&self) -> Value {
        let list: Value = serde_json::from_slice(&fs::read(self.list()).unwrap()).unwrap();
        let mut entry = list["plugins"].as_array().unwrap().last().unwrap().clone();
        assert_eq!(entry["type"], "ringfence-cni");
        entry["cniVersion"] = list["cniVersion"].clone();
        entry["name"] = list["name"].clone();
        entry["prevResult"] = result();
        entry
    }
}

fn result() -> Value {
    json!({"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/run/netns/web"}],
           "ips": [{"address": "10.244.0.7/24", "interface": 0}]})
}

fn called_by_runtime(mut process: Command, command: &str, configuration: &Value) -> Output {
    process
        .env_clear()
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", "c0ffee")
        .env("CNI_NETNS", "/run/netns/web")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/opt/cni/bin")
        .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u-1");
    let mut child = process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(configuration.to_string().as_bytes());
    child.wait_with_output().unwrap()
}

/// Answers each request that it can be done; gives the requests.
fn agent(run_dir: &Path) -> std::sync::mpsc::Receiver<Request> {
    let listener = UnixListener::bind(socket_path(run_dir)).unwrap();
    let (sender, requests) = std::sync::mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            let _ = sender.send(serde_json::from_str(&line).unwrap());
            stream.write_all(b"{\"response\":\"done\"}\n").unwrap();
        }
    });
    requests
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn installed_called_uninstalled() {
    let node = Node::new();
    fs::write(node.list(), LIST).unwrap();
    let output = node.ringfence("install", &["--cni-timeout", "7", "--on-timeout", "fail", "--continue-for", "x"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("10-flannel.conflist"));
    let again = node.ringfence("install", &["--cni-timeout", "7", "--continue-for", "x"]);
    assert_eq!(text(&again.stdout), "nothing to change\n");
    let configuration = node.configuration();
    assert_eq!(configuration["timeoutSeconds"], 7);
    assert_eq!(configuration["continueFor"], json!(["x"]));

    let requests = agent(&node.path("run"));
    // By its name, and as a subcommand.
    for subcommand in [false, true] {
        let program = || {
            let mut program = Command::new(if subcommand {
                PathBuf::from(env!("CARGO_BIN_EXE_ringfence"))
            } else {
                node.path("bin/ringfence-cni")
            });
            program.args(subcommand.then_some("cni"));
            program
        };
        let output = called_by_runtime(program(), "ADD", &configuration);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), result());
        let Request::AddSandbox { sandbox, .. } = requests.recv().unwrap() else { panic!() };
        assert_eq!((sandbox.namespace.as_str(), sandbox.name.as_str()), ("shop", "web"));
        let output = node.ringfence("uninstall", &[]);
        assert!(text(&output.stderr).contains("--force"), "{output:?}");
        let output = called_by_runtime(program(), "DEL", &configuration);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0), "{output:?}");
        assert!(matches!(requests.recv().unwrap(), Request::DeleteSandbox { .. }));
        let output = called_by_runtime(program(), "NEVER", &configuration);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap()["code"], 4);
    }

    let output = node.ringfence("uninstall", &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(fs::read_to_string(node.list()).unwrap(), LIST);
    assert!(!node.path("bin/ringfence-cni").exists());
    assert_eq!(text(&node.ringfence("uninstall", &[]).stdout), "nothing to change\n");
}

#[test]
fn called_by_people() {
    // Its arguments are those of the command line, unless a runtime calls.
    let output = Command::new(env!("CARGO_BIN_EXE_ringfence")).arg("cni").env_remove("CNI_COMMAND").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("install"), "{output:?}");
    let output = Command::new(env!("CARGO_BIN_EXE_ringfence"))
        .args(["cni", "install", "--help"])
        .env("CNI_COMMAND", "ADD")
        .output()
        .unwrap();
    assert!(text(&output.stdout).contains("--conf-dir"), "{output:?}");
    let node = Node::new();
    fs::write(node.list(), LIST).unwrap();
    node.ringfence("install", &[]);
    let output = Command::new(node.path("bin/ringfence-cni")).env_remove("CNI_COMMAND").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("CNI plugin"), "{output:?}");
}

#[test]
fn failures_have_exit_code_2_and_say_why() {
    let node = Node::new();
    let failure = |options: &[&str]| {
        let output = node.ringfence("install", options);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        text(&output.stderr)
    };
    assert!(failure(&[]).contains("install a network plugin first"));
    fs::write(node.list(), "junk").unwrap();
    assert!(failure(&[]).contains("10-flannel.conflist: it is not JSON"));
    assert_eq!(fs::read_to_string(node.list()).unwrap(), "junk");
    assert!(failure(&["--conf", "other.conflist"]).contains("other.conflist"));
    for wrong in [["--cni-timeout", "0"], ["--on-timeout", "hope"], ["--wait", "-1"]] {
        failure(&wrong);
    }
    let mut relative = Command::new(env!("CARGO_BIN_EXE_ringfence"));
    relative.args(["cni", "install", "--run-dir", "run", "--conf-dir"]).arg(node.path("net.d"));
    let output = relative.arg("--bin-dir").arg(node.path("bin")).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("not an absolute path"), "{output:?}");
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what} does not happen");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn waits_for_a_network_and_stays_in_it() {
    let chained = |node: &Node| fs::read_to_string(node.list()).is_ok_and(|list| list.contains("ringfence-cni"));
    let node = Node::new();
    let mut waits = Killed(node.command("install", &["--wait", "60"]).stdout(Stdio::null()).spawn().unwrap());
    until("the program", || node.path("bin/ringfence-cni").exists());
    fs::write(node.list(), LIST).unwrap();
    until("the end", || waits.0.try_wait().unwrap().is_some());
    assert!(chained(&node));

    let keeps = Killed(node.command("install", &["--keep"]).stderr(Stdio::null()).spawn().unwrap());
    for _ in 0..3 {
        fs::write(node.list(), LIST).unwrap();
        until("the entry", || chained(&node));
    }
    drop(keeps);
    // It does not take anything with it.
    assert!(chained(&node));
}
