//! The agent as a process: the real binary against the real kernel, each test in a network namespace of its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that cannot go on fails, and says what it measured"
)]

#[path = "../../dataplane/tests/kernel/namespace.rs"]
mod namespace;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};
use namespace::{clean, listing, nft};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringfence_control::{Request, Response, Sandbox, StatusReport, announcements, ask, socket_path};
use tempfile::TempDir;

fn main() {
    namespace::enter();
    let tests: &[(&str, fn())] = &[
        ("follows_the_folder", follows_the_folder),
        ("keeps_what_it_has_when_a_file_is_broken", keeps_what_it_has_when_a_file_is_broken),
        ("programs_nothing_before_a_complete_state", programs_nothing_before_a_complete_state),
        ("keep_and_cleanup", keep_and_cleanup),
        ("killed_and_restarted", killed_and_restarted),
        ("health_and_metrics", health_and_metrics),
        ("drift_is_mended", drift_is_mended),
        ("drift_of_nftables_is_mended_at_once", drift_of_nftables_is_mended_at_once),
        ("unknown_node", unknown_node),
        ("unknown_pods", unknown_pods),
        ("json_log", json_log),
        ("bad_arguments", bad_arguments),
        ("status_tells_how_it_is", status_tells_how_it_is),
        ("sandboxes_are_in_force_when_it_says_so", sandboxes_are_in_force_when_it_says_so),
        ("the_socket_is_for_one_agent", the_socket_is_for_one_agent),
        ("not_permitted", not_permitted),
    ];
    let trials = tests.iter().map(|&(name, test)| {
        Trial::test(name, move || {
            clean(|| {
                let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
                assert!(up.success());
                test();
            });
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

/// The longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(20);

fn pod(name: &str, address: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec: {{nodeName: node}}\n\
         status: {{podIPs: [{{ip: {address}}}]}}\n"
    )
}

/// Isolates web and lets db in.
const POLICY: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {app: db}}}]}]
";

/// A folder with the pods web and db and a policy for web.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "pods.yaml", &format!("{}---\n{}", pod("web", "10.0.0.1"), pod("db", "10.0.0.2")));
    write(folder.path(), "policy.yaml", POLICY);
    folder
}

fn write(folder: &Path, name: &str, text: &str) {
    fs::write(folder.join(name), text).unwrap();
}

/// An agent and what it logs.
struct Agent {
    child: Child,
    log: tempfile::NamedTempFile,
    /// Where its socket is, for those that have one to themselves.
    run: Rc<TempDir>,
}

impl Agent {
    fn start(folder: &Path, options: &[&str]) -> Agent {
        Agent::start_in(tempfile::tempdir().unwrap().into(), folder, options)
    }

    fn start_in(run: Rc<TempDir>, folder: &Path, options: &[&str]) -> Agent {
        let log = tempfile::NamedTempFile::new().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_ringfence"))
            .args(["agent", "--node", "node", "--source"])
            .arg(format!("dir:{}", folder.display()))
            .args(["--run-dir".as_ref(), run.path().as_os_str()].iter().filter(|_| !options.contains(&"--run-dir")))
            .args(options)
            // In a user namespace the lock belongs to somebody else.
            .env("XTABLES_LOCKFILE", "/dev/null")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.reopen().unwrap())
            .spawn()
            .unwrap();
        Agent { child, log, run }
    }

    fn ask(&self, request: &Request) -> Response {
        ask(&socket_path(self.run.path()), request, PATIENCE).unwrap()
    }

    /// `ringfence status`: its exit code, what it prints and what it complains about.
    fn status(&self, options: &[&str]) -> (Option<i32>, String, String) {
        status(self.run.path(), options)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.log.path()).unwrap()
    }

    /// Waits until `done`, which the agent does not survive if it takes too long.
    #[track_caller]
    fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < PATIENCE, "{what} does not happen: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[track_caller]
    fn says(&self, text: &str) {
        self.until(text, || self.log().contains(text));
    }

    fn ends(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "it does not end: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn terminate(&mut self) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        assert!(self.ends().success(), "{}", self.log());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn status(run: &Path, options: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence"));
    let output = command.args(["status", "--run-dir"]).arg(run).args(options).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Our table, or nothing when there is none.
fn table() -> Option<String> {
    nft(&["list", "table", "inet", "ringfence"], "").ok()
}

fn has(address: &str) -> bool {
    table().is_some_and(|table| table.contains(address))
}

fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The value of a metric, or nothing when it is not exposed.
fn metric(name: &str) -> Option<f64> {
    let answer = get(9441, "/metrics");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let line = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    Some(line.parse().unwrap())
}

fn follows_the_folder() {
    let folder = folder();
    let agent = Agent::start(folder.path(), &[]);
    agent.until("the first program", || has("10.0.0.1") && has("10.0.0.2"));
    // In place, by renaming, in a folder that is new, and a file that goes: the kernel follows each.
    write(folder.path(), "pods.yaml", &format!("{}---\n{}", pod("web", "10.0.0.1"), pod("db", "10.0.0.3")));
    agent.until("a change", || has("10.0.0.3") && !has("10.0.0.2"));
    write(folder.path(), "new", &format!("{}---\n{}", pod("web", "10.0.0.1"), pod("db", "10.0.0.4")));
    fs::rename(folder.path().join("new"), folder.path().join("pods.yaml")).unwrap();
    agent.until("a renamed file", || has("10.0.0.4") && !has("10.0.0.3"));
    let more = folder.path().join("more");
    fs::create_dir(&more).unwrap();
    write(&more, "other.yaml", &pod("other", "10.0.0.5").replace("app: other", "app: db"));
    agent.until("a file in a new folder", || has("10.0.0.5"));
    let start = Instant::now();
    fs::remove_file(more.join("other.yaml")).unwrap();
    agent.until("a file that is gone", || !has("10.0.0.5"));
    assert!(start.elapsed() < Duration::from_secs(3), "polled, not told: {:?}", start.elapsed());
    fs::remove_file(folder.path().join("policy.yaml")).unwrap();
    agent.until("a policy that is gone", || !has("10.0.0.1"));
    assert!(table().is_some());
}

fn keeps_what_it_has_when_a_file_is_broken() {
    let folder = folder();
    let agent = Agent::start(folder.path(), &["--metrics-listen", "127.0.0.1:9441"]);
    agent.until("the first program", || has("10.0.0.1"));
    let before = table();
    // Cut in the middle of a word: an unclosed bracket. Other changes wait as well: the state as a whole is not known.
    write(folder.path(), "policy.yaml", &POLICY[..POLICY.len() - 20]);
    write(folder.path(), "pods.yaml", &pod("web", "10.0.0.9"));
    agent.says("what was read last stays in force");
    agent.until("another attempt", || metric("ringfence_source_errors_total") >= Some(2.0));
    assert_eq!(table(), before);
    assert_eq!(agent.log().matches("what was read last stays in force").count(), 1, "{}", agent.log());
    assert_eq!(metric("ringfence_in_sync"), Some(1.0));
    fs::remove_dir_all(folder.path()).unwrap();
    agent.says("cannot read");
    assert_eq!(table(), before);
    fs::create_dir(folder.path()).unwrap();
    write(folder.path(), "policy.yaml", POLICY);
    write(folder.path(), "pods.yaml", &pod("web", "10.0.0.9"));
    agent.says("the source can be read again");
    agent.until("the new state", || has("10.0.0.9") && !has("10.0.0.1"));
    // A policy with an error is no broken file: it isolates and allows nothing.
    write(folder.path(), "policy.yaml", &POLICY.replace("from:", "form:"));
    agent.until("an invalid policy", || metric("ringfence_policy_errors{reason=\"invalid\"}") == Some(1.0));
    assert!(has("10.0.0.9"));
}

fn programs_nothing_before_a_complete_state() {
    let folder = folder();
    write(folder.path(), "broken.yaml", "kind: {");
    let agent = Agent::start(folder.path(), &[]);
    agent.says("what was read last stays in force");
    agent.until("health", || get(9440, "/livez").starts_with("HTTP/1.1 200 "));
    assert!(get(9440, "/readyz").starts_with("HTTP/1.1 503 "));
    assert_eq!(table(), None);
    fs::remove_file(folder.path().join("broken.yaml")).unwrap();
    agent.until("the first program", || has("10.0.0.1"));
    agent.until("readiness", || get(9440, "/readyz").starts_with("HTTP/1.1 200 "));
}

fn keep_and_cleanup() {
    let folder = folder();
    let mut agent = Agent::start(folder.path(), &[]);
    agent.until("the first program", || has("10.0.0.1"));
    agent.terminate();
    assert!(has("10.0.0.1"));
    let mut agent = Agent::start(folder.path(), &["--on-exit", "cleanup"]);
    agent.says("in force");
    assert!(has("10.0.0.1"));
    agent.terminate();
    assert_eq!(table(), None);
}

fn killed_and_restarted() {
    let folder = folder();
    let first = Agent::start(folder.path(), &[]);
    first.until("the first program", || has("10.0.0.1"));
    drop(first);
    for round in 0..20_u64 {
        // Half of them at any time while they start, half of them shortly after they have written everything anew.
        let mut agent = Agent::start(folder.path(), &[]);
        let enforced = || has("10.0.0.1") && has("10.0.0.2");
        if round % 2 == 0 {
            agent.until("the new program", || {
                assert!(enforced(), "round {round}: {}", agent.log());
                agent.log().contains("in force")
            });
        }
        let end = Instant::now() + Duration::from_millis((round * 37) % 250);
        while Instant::now() < end {
            assert!(enforced(), "round {round}: {}", agent.log());
        }
        agent.child.kill().unwrap();
        agent.ends();
        assert!(enforced(), "round {round}: {}", agent.log());
    }
}

fn health_and_metrics() {
    let folder = folder();
    let agent = Agent::start(folder.path(), &["--health-listen", "127.0.0.1:9000"]);
    agent.says("in force");
    for (port, path, code) in [(9000, "/livez", 200), (9000, "/readyz", 200), (9000, "/metrics", 404), (9441, "/", 404)]
    {
        let answer = get(port, path);
        assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{path}: {answer}");
    }
    assert_eq!(metric("ringfence_apply_duration_seconds_count{mode=\"replace\"}"), Some(1.0));
    for (name, value) in [
        ("ringfence_in_sync", 1.0),
        ("ringfence_program_generation", 1.0),
        ("ringfence_pods", 2.0),
        ("ringfence_local_pods", 2.0),
        ("ringfence_isolated_pods", 1.0),
        ("ringfence_policies", 1.0),
        ("ringfence_announced_sandboxes", 0.0),
        ("ringfence_peer_classes{direction=\"ingress\"}", 1.0),
        ("ringfence_peer_classes{direction=\"egress\"}", 0.0),
        ("ringfence_policy_programming_duration_seconds_count", 1.0),
        ("ringfence_policy_errors{reason=\"invalid\"}", 0.0),
        ("ringfence_policy_errors{reason=\"not_programmed\"}", 0.0),
        (concat!("ringfence_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), 1.0),
        ("ringfence_apply_errors_total", 0.0),
        ("ringfence_drift_repairs_total", 0.0),
        ("ringfence_source_errors_total", 0.0),
    ] {
        assert_eq!(metric(name), Some(value), "{name}");
    }
    write(folder.path(), "more.yaml", &pod("more", "10.0.0.7").replace("app: more", "app: db"));
    agent.until("an update", || metric("ringfence_apply_duration_seconds_count{mode=\"update\"}") == Some(1.0));
    assert_eq!(metric("ringfence_program_generation"), Some(2.0));
    agent.until("that all are counted", || metric("ringfence_pods") == Some(3.0));
    drop(agent);
    let agent = Agent::start(folder.path(), &["--health-listen", "off", "--metrics-listen", "off"]);
    agent.says("in force");
    assert!(TcpStream::connect("127.0.0.1:9440").is_err() && TcpStream::connect("127.0.0.1:9441").is_err());
}

fn iptables(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("iptables-nft")
        .args(arguments)
        .env("XTABLES_LOCKFILE", "/dev/null")
        .output()
        .expect("iptables-nft");
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

fn drift_is_mended() {
    let folder = folder();
    let options = ["--backend", "iptables", "--iptables", "nft", "--resync", "1"];
    let agent = Agent::start(folder.path(), &options);
    agent.says("in force");
    let jumps = || iptables(&["-S", "FORWARD"]).unwrap().contains("-j RF-FORWARD");
    assert!(jumps());
    let jump = iptables(&["-S", "FORWARD"]).unwrap();
    let jump = jump.lines().find(|line| line.contains("RF-FORWARD")).unwrap();
    assert_eq!(metric("ringfence_drift_repairs_total"), Some(0.0));
    iptables(&["-F", "FORWARD"]).unwrap();
    assert!(!jumps(), "{jump}");
    agent.until("the jump", jumps);
    agent.until("the metric", || metric("ringfence_drift_repairs_total") == Some(1.0));
    iptables(&["-F"]).unwrap();
    agent.until("the rules", || iptables(&["-S", "RF-FORWARD"]).is_ok_and(|rules| rules.contains("-A RF-FORWARD")));
    assert!(agent.log().contains("mended"), "{}", agent.log());
}

/// Long before the next look, which would come in an hour.
fn drift_of_nftables_is_mended_at_once() {
    let folder = folder();
    let agent = Agent::start(folder.path(), &["--resync", "3600"]);
    agent.says("in force");
    let before = listing().join("\n");
    let set = before.split_whitespace().find(|word| word.starts_with("in4_p_")).unwrap().to_owned();
    let harms = [
        "delete table inet ringfence".to_owned(),
        "flush chain inet ringfence judge".to_owned(),
        format!("delete element inet ringfence {set} {{ 10.0.0.2 }}"),
        "insert rule inet ringfence forward accept".to_owned(),
    ];
    for (number, harm) in harms.iter().enumerate() {
        let start = Instant::now();
        nft(&["-f", "-"], harm).unwrap();
        agent.until(harm, || metric("ringfence_drift_repairs_total") > Some(number as f64));
        println!("{harm}: mended after at most {:?}", start.elapsed());
        assert_eq!(listing().join("\n"), before, "{harm}");
        assert_eq!(agent.log().matches(": mended").count(), number + 1, "{}", agent.log());
    }
    assert!(agent.log().contains("deleted all in table inet ringfence, and more: mended"), "{}", agent.log());
    // Others in their own tables.
    nft(&["-f", "-"], "add table ip other; add chain ip other busy; add rule ip other busy accept").unwrap();
    write(folder.path(), "more.yaml", &pod("more", "10.0.0.7").replace("app: more", "app: db"));
    agent.until("an update", || has("10.0.0.7"));
    assert_eq!(metric("ringfence_drift_repairs_total"), Some(4.0));
    assert_eq!(metric("ringfence_apply_errors_total"), Some(0.0));
}

/// A node's name that is mistyped isolates nobody, which must not go unnoticed.
fn unknown_node() {
    let folder = folder();
    let pods = fs::read_to_string(folder.path().join("pods.yaml")).unwrap();
    write(folder.path(), "pods.yaml", &pods.replace("nodeName: node", "nodeName: nodes"));
    let agent = Agent::start(folder.path(), &[]);
    agent.says("WARN no Node is called node, and no pod is on node");
    agent.says("in force");
}

/// Addresses of the node's ranges are refused until their pods are known, unless the user wants otherwise.
fn unknown_pods() {
    const NODE: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: node}\nspec: {podCIDRs: [10.0.0.0/24]}\n";
    let folder = folder();
    let mut agent = Agent::start(folder.path(), &[]);
    agent.says("WARN no Node node with spec.podCIDRs is known");
    assert!(!table().unwrap().contains("known"));
    write(folder.path(), "node.yaml", NODE);
    agent.says("INFO addresses in 10.0.0.0/24 are refused until their pods are known");
    let is_known = |address: &str| {
        let set = nft(&["list", "set", "inet", "ringfence", "known4"], "").unwrap();
        set.contains(address)
    };
    assert!(is_known("10.0.0.1") && is_known("10.0.0.2") && !is_known("10.0.0.5"));
    write(folder.path(), "more.yaml", &pod("more", "10.0.0.5"));
    agent.until("another pod", || is_known("10.0.0.5"));
    fs::remove_file(folder.path().join("more.yaml")).unwrap();
    agent.until("a pod that is gone", || !is_known("10.0.0.5"));
    // Said when it changes, and not each time that anything does.
    assert_eq!(agent.log().matches("until their pods are known").count(), 1, "{}", agent.log());
    agent.terminate();
    assert!(has("10.0.0.0/24"));
    let agent = Agent::start(folder.path(), &["--unknown-pods", "allow"]);
    agent.says("in force");
    assert!(!has("10.0.0.0/24") && has("10.0.0.1"));
    assert!(!agent.log().contains("known"), "{}", agent.log());
}

fn json_log() {
    let folder = folder();
    let agent = Agent::start(folder.path(), &["--log-format", "json"]);
    agent.says("in force");
    let log = agent.log();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["message"], &lines[0]["backend"]), (&"started".into(), &"nftables".into()), "{log}");
}

fn bad_arguments() {
    let folder = folder();
    let nowhere = folder.path().join("nowhere");
    let mut agent = Agent::start(&nowhere, &[]);
    assert_eq!(agent.ends().code(), Some(2));
    assert!(agent.log().contains("nowhere: No such file or directory"), "{}", agent.log());
    let mut agent = Agent::start(&folder.path().join("pods.yaml"), &[]);
    assert_eq!(agent.ends().code(), Some(2));
    assert!(agent.log().contains("pods.yaml is not a folder"), "{}", agent.log());
    let taken = std::net::TcpListener::bind("127.0.0.1:9441").unwrap();
    let mut agent = Agent::start(folder.path(), &[]);
    assert_eq!(agent.ends().code(), Some(2));
    assert!(agent.log().contains("cannot listen on 127.0.0.1:9441: Address already in use"), "{}", agent.log());
    drop(taken);
    assert_eq!(table(), None);
    let refused: [(&[&str], &str); 4] = [
        (&["--source", "etcd:x", "--node", "n"], "not a source; there is dir:PATH"),
        (&["--source", "dir:/"], "--node <NODE>"),
        (&["--source", "dir:/", "--node", "n", "--health-listen", "nine"], "neither an address with a port nor off"),
        (&["--source", "dir:/", "--node", "n", "--mark", "0x1"], "--mark is an option of --backend iptables"),
    ];
    for (arguments, reason) in refused {
        let output = Command::new(env!("CARGO_BIN_EXE_ringfence"))
            .arg("agent")
            .args(arguments)
            .env_remove("NODE_NAME")
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(reason), "{said}");
    }
}

fn status_tells_how_it_is() {
    let folder = folder();
    let nowhere = tempfile::tempdir().unwrap();
    let (code, printed, said) = status(nowhere.path(), &[]);
    assert_eq!((code, printed.as_str()), (Some(2), ""));
    assert!(said.contains("no agent answers at ") && said.contains("--run-dir"), "{said}");
    // What cannot be read is not enforced, and not waited for.
    write(folder.path(), "broken.yaml", "kind: {");
    let agent = Agent::start(folder.path(), &[]);
    agent.says("what was read last stays in force");
    let (code, printed, said) = agent.status(&["--wait", "1"]);
    assert_eq!((code, said.as_str()), (Some(1), ""), "{printed}");
    assert!(printed.contains("not ready") && printed.contains("broken.yaml"), "{printed}");
    fs::remove_file(folder.path().join("broken.yaml")).unwrap();
    let (code, printed, said) = agent.status(&["--wait"]);
    assert_eq!((code, said.as_str()), (Some(0), ""), "{printed}");
    for expected in
        ["state          in sync", "2 in the cluster, 2 on this node, 1 of them isolated", "1 in 1 namespaces"]
    {
        assert!(printed.contains(expected), "{printed}");
    }
    let (code, printed, _) = agent.status(&["-o", "json"]);
    let report: StatusReport = serde_json::from_str(&printed).unwrap();
    assert_eq!(code, Some(0));
    let told = (report.node.as_str(), report.backend.as_str(), report.ready, report.in_sync, report.source_ok);
    assert_eq!(told, ("node", "nftables", true, true, true));
    assert_eq!(report.last_apply.unwrap().mode, "replace");
    assert!(report.conditions.iter().all(|condition| !condition.now), "{:?}", report.conditions);
    write(folder.path(), "policy.yaml", &POLICY.replace("from:", "form:"));
    agent.until("an invalid policy", || {
        agent.status(&[]).1.contains("now   policy: default/web: spec.ingress[0].form: ")
    });
    let run = agent.run.path().to_owned();
    drop(agent);
    assert_eq!(status(&run, &[]).0, Some(2));
}

/// A pod has got its network, and its manifest tells no address: when the agent says that it is done, it is.
fn sandboxes_are_in_force_when_it_says_so() {
    let folder = folder();
    let new = pod("web", "10.0.0.1").replace("name: web", "name: new") + "---\n" + &pod("db", "10.0.0.2");
    let addressless = new.replacen("{ip: 10.0.0.1}", "", 1);
    let agent = Agent::start(folder.path(), &[]);
    agent.says("in force");
    let sandbox = |address: &str| Sandbox {
        id: "c0ffee".to_owned(),
        namespace: "default".to_owned(),
        name: "new".to_owned(),
        uid: Some("5ca1ab1e".to_owned()),
        addresses: vec![address.parse().unwrap()],
    };
    let add =
        |agent: &Agent, patience_ms| agent.ask(&Request::AddSandbox { sandbox: sandbox("10.0.0.9"), patience_ms });
    let Response::NotYet { reason } = add(&agent, 10) else { panic!("the pod is not known") };
    assert!(reason.contains("no pod default/new on this node"), "{reason}");
    assert!(!has("10.0.0.9"));
    announcements::write(agent.run.path(), &sandbox("10.0.0.9")).unwrap();
    write(folder.path(), "pods.yaml", &addressless);
    assert_eq!(add(&agent, 20_000), Response::Done);
    assert!(has("10.0.0.9"));
    assert_eq!(agent.ask(&Request::CheckSandbox { sandbox: sandbox("10.0.0.9") }), Response::Done);
    assert!(matches!(agent.ask(&Request::CheckSandbox { sandbox: sandbox("10.0.0.8") }), Response::NotYet { .. }));
    agent.until("that it is counted", || metric("ringfence_announced_sandboxes") == Some(1.0));
    // Killed and started again: the address is known from the beginning.
    let run = agent.run.clone();
    drop(agent);
    let agent = Agent::start_in(run, folder.path(), &[]);
    agent.until("the restart", || {
        assert!(has("10.0.0.9"), "{}", agent.log());
        agent.log().contains("in force")
    });
    assert!(has("10.0.0.9"));
    // The status follows; the sandbox goes.
    write(folder.path(), "pods.yaml", &new);
    assert_eq!(agent.ask(&Request::DeleteSandbox { id: "c0ffee".to_owned() }), Response::Done);
    agent.until("the status to count", || has("10.0.0.1") && !has("10.0.0.9"));
    assert!(announcements::read_all(agent.run.path()).unwrap().sandboxes.is_empty());
}

fn the_socket_is_for_one_agent() {
    let folder = folder();
    let agent = Agent::start(folder.path(), &[]);
    agent.says("in force");
    let second = |run: &Path| {
        let options = ["--health-listen", "off", "--metrics-listen", "off", "--run-dir"];
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence"));
        command.args(["agent", "--node", "node", "--source"]).arg(format!("dir:{}", folder.path().display()));
        let output = command.args(options).arg(run).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = second(agent.run.path());
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("another agent answers in "), "{said}");
    assert_eq!(agent.status(&[]).0, Some(0));
    let other = tempfile::tempdir().unwrap();
    write(other.path(), "agent.sock", "mine");
    let (code, said) = second(other.path());
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("agent.sock exists and is not a socket"), "{said}");
    assert_eq!(fs::read_to_string(other.path().join("agent.sock")).unwrap(), "mine");
    drop(agent);
    let agent = Agent::start(folder.path(), &["--run-dir", "off"]);
    agent.says("in force");
    assert_eq!(fs::read_dir(agent.run.path()).unwrap().count(), 0);
}

/// Without the capability it ends and says which one; it has not tried for ever.
fn not_permitted() {
    let folder = folder();
    let run = tempfile::tempdir().unwrap();
    for backend in ["nftables", "iptables"] {
        let output = Command::new("setpriv")
            .args([
                "--bounding-set",
                "-net_admin",
                "--inh-caps",
                "-net_admin",
                env!("CARGO_BIN_EXE_ringfence"),
                "agent",
            ])
            .args(["--node", "node", "--backend", backend, "--source"])
            .arg(format!("dir:{}", folder.path().display()))
            .arg("--run-dir")
            .arg(run.path())
            .env("XTABLES_LOCKFILE", "/dev/null")
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("CAP_NET_ADMIN"), "{backend}: {said}");
    }
}
