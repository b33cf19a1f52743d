//! A pod that must not send, sends at once: with the agent, the plugin and packets, each test in network namespaces of its
//! own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

#[path = "../../dataplane/tests/kernel/namespace.rs"]
#[allow(dead_code, reason = "these tests do not list tables")]
mod namespace;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};
use namespace::clean;
use nix::sched::{CloneFlags, unshare};
use serde_json::json;
use tempfile::TempDir;

fn main() {
    namespace::enter();
    let tests: &[(&str, fn())] = &[
        ("not_one_packet", not_one_packet),
        ("not_one_packet_of_a_pod_not_heard_of", not_one_packet_of_a_pod_not_heard_of),
    ];
    let trials = tests.iter().map(|&(name, test)| {
        Trial::test(name, move || {
            clean(test);
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

/// The longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many packets a pod sends as soon as it can.
const FLOOD: usize = 1000;
/// Where they are counted.
const PEER: &str = "10.9.1.2:9000";

/// Web may not send. Its status does not tell its address.
const WEB: &str = "apiVersion: v1
kind: Pod
metadata: {name: web, uid: u-1, labels: {app: web}}
spec: {nodeName: node}
";
const OTHERS: &str = "apiVersion: v1
kind: Pod
metadata: {name: peer, labels: {app: peer}}
spec: {nodeName: node}
status: {podIPs: [{ip: 10.9.1.2}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]}
";

/// A network namespace behind the calling thread's, and what runs in it.
struct Pod {
    work: mpsc::Sender<Box<dyn FnOnce() + Send>>,
}

impl Pod {
    /// A pod with the address 10.9.`subnet`.2.
    fn new(subnet: u8) -> Pod {
        let (work, jobs) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (sender, thread) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            sender.send(nix::unistd::gettid()).unwrap();
            jobs.iter().for_each(|job| job());
        });
        let namespace = thread.recv().unwrap();
        ip(&format!("link add veth{subnet} type veth peer name eth0 netns {namespace}"));
        ip(&format!("address add 10.9.{subnet}.1/24 dev veth{subnet}"));
        ip(&format!("link set veth{subnet} up"));
        let pod = Pod { work };
        pod.run(move || {
            ip(&format!("address add 10.9.{subnet}.2/24 dev eth0"));
            ip("link set eth0 up");
            ip(&format!("route add default via 10.9.{subnet}.1"));
        });
        pod
    }

    /// Runs something inside; gives what it gives.
    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, result) = mpsc::channel();
        self.work.send(Box::new(move || drop(sender.send(job())))).unwrap();
        result.recv().unwrap()
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A node with a pod that listens, an agent, and a pod to be.
struct Node {
    folder: TempDir,
    web: Pod,
    /// What has arrived at the peer, by its text.
    arrived: mpsc::Receiver<BTreeMap<String, usize>>,
    agent: Child,
}

impl Node {
    fn new() -> Node {
        ip("link set lo up");
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let (web, peer) = (Pod::new(0), Pod::new(1));
        let socket = peer.run(|| UdpSocket::bind(PEER).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let (sender, arrived) = mpsc::channel();
        thread::spawn(move || {
            // The pod lives as long as somebody listens in it.
            let _peer = peer;
            let mut count = BTreeMap::new();
            let mut buffer = [0; 100];
            while let Ok(length) = socket.recv(&mut buffer) {
                let text = String::from_utf8(buffer[..length].to_vec()).unwrap();
                if text == "end" {
                    if sender.send(std::mem::take(&mut count)).is_err() {
                        return;
                    }
                } else {
                    *count.entry(text).or_default() += 1;
                }
            }
        });

        let folder = tempfile::tempdir().unwrap();
        for directory in ["manifests", "run"] {
            fs::create_dir(folder.path().join(directory)).unwrap();
        }
        fs::write(folder.path().join("manifests/others.yaml"), OTHERS).unwrap();
        let agent = Command::new(env!("CARGO_BIN_EXE_ringfence"))
            .args(["agent", "--node", "node", "--unknown-pods", "allow", "--source"])
            .arg(format!("dir:{}", folder.path().join("manifests").display()))
            .arg("--run-dir")
            .arg(folder.path().join("run"))
            .stdin(Stdio::null())
            .stderr(fs::File::create(folder.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let node = Node { folder, web, arrived, agent };
        let start = Instant::now();
        while !node.status() {
            assert!(start.elapsed() < PATIENCE, "the agent does not enforce anything: {}", node.log());
            thread::sleep(Duration::from_millis(20));
        }
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }

    /// The source reports the pod.
    fn report_web(path: &Path) {
        fs::write(path.join("new"), WEB).unwrap();
        fs::rename(path.join("new"), path.join("web.yaml")).unwrap();
    }

    /// Lets the pod send and tells how much of that arrived.
    fn flood(&self, text: &'static str) -> usize {
        self.web.run(move || {
            let socket = UdpSocket::bind("10.9.0.2:0").unwrap();
            for number in 0..FLOOD {
                // Refused packets are told to the sender.
                let _ = socket.send_to(text.as_bytes(), PEER);
                // What the receiver's buffer cannot hold until it gets a processor is lost.
                if number % 50 == 0 {
                    thread::sleep(Duration::from_millis(1));
                }
            }
        });
        // The node may always send. What the pod has sent is in front of it: all links are queues.
        UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"end", PEER).unwrap();
        let arrived = self.arrived.recv_timeout(PATIENCE).unwrap();
        arrived.get(text).copied().unwrap_or_default()
    }

    fn plugin(&self, command: &str) -> Output {
        let configuration = json!({
            "cniVersion": "1.1.0", "name": "net", "type": "ringfence-cni", "runDir": self.path("run"), "timeoutSeconds": 30,
            "prevResult": {
                "cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": "/run/netns/web"}],
                "ips": [{"address": "10.9.0.2/24", "interface": 0}]
            }
        });
        let mut child = Command::new(env!("CARGO_BIN_EXE_ringfence"))
            .arg("cni")
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", "c0ffee")
            .env("CNI_NETNS", "/run/netns/web")
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=u-1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(configuration.to_string().as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    #[track_caller]
    fn succeeds(&self, command: &str) {
        let output = self.plugin(command);
        assert!(output.status.success(), "{command}: {output:?}\n{}", self.log());
    }

    /// Whether the agent is ready, as the runtime is told.
    fn status(&self) -> bool {
        self.plugin("STATUS").status.success()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

/// The pod is known and its address is not. Without the plugin all its packets pass, with it none.
fn not_one_packet() {
    let node = Node::new();
    Node::report_web(&node.path("manifests"));
    let without = node.flood("without");
    assert!(without > FLOOD / 10, "the network carries {without} packets only");
    node.succeeds("ADD");
    assert_eq!(node.flood("with"), 0, "{}", node.log());
    node.succeeds("CHECK");
    node.succeeds("DEL");
    assert_eq!(fs::read_dir(node.path("run/sandboxes")).unwrap().count(), 0);
}

/// The runtime starts the pod before the agent has heard of it: the plugin waits for that.
fn not_one_packet_of_a_pod_not_heard_of() {
    let node = Node::new();
    thread::scope(|scope| {
        let manifests = node.path("manifests");
        scope.spawn(move || {
            thread::sleep(Duration::from_millis(500));
            Node::report_web(&manifests);
        });
        let start = Instant::now();
        node.succeeds("ADD");
        assert!(start.elapsed() >= Duration::from_millis(500), "it did not wait");
        assert_eq!(node.flood("with"), 0, "{}", node.log());
    });
}
