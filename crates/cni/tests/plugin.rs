//! The plugin as a runtime calls it: environment and standard input in, standard output and exit code out, with an agent
//! that is played.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ringfence_cni::{VERSIONS, run};
use ringfence_control::{Request, Response, Sandbox, StatusReport, announcements, socket_path};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A node: a run directory and, once there is one, an agent.
struct Node {
    run_dir: TempDir,
    asked: Arc<Mutex<Vec<Request>>>,
}

/// What the runtime gets.
#[derive(Debug)]
struct Answer {
    code: u8,
    output: String,
    log: String,
}

impl Answer {
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.output).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Checks that it is an error object of the specification.
    #[track_caller]
    fn fails(&self, code: u64, says: &str) {
        assert_eq!(self.code, 1, "{self:?}");
        let object = self.json();
        let keys: Vec<&String> = object.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["cniVersion", "code", "details", "msg"]);
        assert!(VERSIONS.contains(&object["cniVersion"].as_str().unwrap()), "{self:?}");
        assert_eq!(object["code"], code, "{self:?}");
        assert!(!object["msg"].as_str().unwrap().is_empty());
        assert!(object["details"].as_str().unwrap().contains(says), "{self:?} does not say {says}");
    }

    #[track_caller]
    fn succeeds(&self) {
        assert_eq!(self.code, 0, "{self:?}");
    }
}

/// The environment of a call.
type Variables = BTreeMap<&'static str, String>;

fn variables(command: &str) -> Variables {
    [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "c0ffee"),
        ("CNI_NETNS", "/run/netns/web"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c0ffee;K8S_POD_UID=u-1"),
        ("CNI_PATH", "/opt/cni/bin"),
    ]
    .map(|(name, value)| (name, value.to_owned()))
    .into()
}

fn with(command: &str, name: &'static str, value: &str) -> Variables {
    let mut variables = variables(command);
    variables.insert(name, value.to_owned());
    variables
}

fn call(variables: &Variables, input: &[u8]) -> Answer {
    let (mut output, mut log) = (Vec::new(), Vec::new());
    let code = run(|name| variables.get(name).map(Into::into), input, &mut output, &mut log);
    Answer { code, output: String::from_utf8(output).unwrap(), log: String::from_utf8(log).unwrap() }
}

fn result(version: &str) -> Value {
    json!({
        "cniVersion": version,
        "interfaces": [{"name": "cni0", "mac": "be:0b:e4:00:00:01"}, {"name": "veth1"},
                       {"name": "eth0", "sandbox": "/run/netns/web"}],
        "ips": [{"version": "4", "interface": 2, "address": "10.244.0.7/24", "gateway": "10.244.0.1"},
                {"version": "6", "interface": 2, "address": "fd00::7/64"}],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dns": {"nameservers": ["10.96.0.10"]},
        "unknown": {"of": ["another", 1.5e300, 18446744073709551615u64]}
    })
}

fn sandbox() -> Sandbox {
    Sandbox {
        id: "c0ffee".to_owned(),
        namespace: "shop".to_owned(),
        name: "web-0".to_owned(),
        uid: Some("u-1".to_owned()),
        addresses: vec!["10.244.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
    }
}

impl Node {
    fn new() -> Node {
        Node { run_dir: tempfile::tempdir().unwrap(), asked: Arc::default() }
    }

    /// A node with an agent that answers so to everything. Without an answer it hangs up.
    fn with_agent(answer: impl Fn(&Request) -> Option<Response> + Send + 'static) -> Node {
        let node = Node::new();
        node.start_agent(answer);
        node
    }

    fn start_agent(&self, answer: impl Fn(&Request) -> Option<Response> + Send + 'static) {
        let listener = UnixListener::bind(socket_path(self.path())).unwrap();
        let asked = Arc::clone(&self.asked);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).unwrap();
                let request: Request = serde_json::from_str(&line).unwrap();
                let answer = answer(&request);
                asked.lock().unwrap().push(request);
                if let Some(answer) = answer {
                    let _ = stream.write_all(&serde_json::to_vec(&answer).unwrap());
                }
            }
        });
    }

    fn path(&self) -> &Path {
        self.run_dir.path()
    }

    fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }

    fn announced(&self) -> Vec<Sandbox> {
        let announced = announcements::read_all(self.path()).unwrap();
        assert!(announced.unreadable.is_empty(), "{announced:?}");
        announced.sandboxes
    }

    /// The configuration as libcni derives it from the list.
    fn configuration(&self, version: &str) -> Value {
        json!({
            "cniVersion": version, "name": "cbr0", "type": "ringfence-cni",
            "runDir": self.path(), "timeoutSeconds": 20, "onTimeout": "fail",
            "prevResult": result(version)
        })
    }

    fn call(&self, command: &str) -> Answer {
        self.call_with(&variables(command), |_| {})
    }

    fn call_with(&self, variables: &Variables, change: impl FnOnce(&mut Value)) -> Answer {
        let mut configuration = self.configuration("1.1.0");
        change(&mut configuration);
        call(variables, configuration.to_string().as_bytes())
    }
}

fn done(_: &Request) -> Option<Response> {
    Some(Response::Done)
}

fn not_yet(_: &Request) -> Option<Response> {
    Some(Response::NotYet { reason: "the pod is not known yet".to_owned() })
}

#[test]
fn add_announces_waits_and_passes_on() {
    for version in VERSIONS {
        let run_dir = Arc::new(Mutex::new(PathBuf::new()));
        let seen = Arc::clone(&run_dir);
        // The file is there before the agent is asked.
        let node = Node::with_agent(move |request| {
            let announced = announcements::read_all(&seen.lock().unwrap()).unwrap().sandboxes;
            assert_eq!(announced, [sandbox()]);
            assert!(matches!(request, Request::AddSandbox { .. }));
            thread::sleep(Duration::from_millis(50));
            Some(Response::Done)
        });
        node.path().clone_into(&mut run_dir.lock().unwrap());
        let start = Instant::now();
        let answer = node.call_with(&variables("ADD"), |conf| *conf = node.configuration(version));
        assert!(start.elapsed() >= Duration::from_millis(50), "it did not wait for the answer");
        answer.succeeds();
        assert_eq!(answer.json(), result(version));
        assert_eq!(answer.log, "");
        let asked = node.asked();
        let [Request::AddSandbox { sandbox: asked, patience_ms }] = &asked[..] else { panic!("{asked:?}") };
        assert_eq!(asked, &sandbox());
        assert!((19_000..=20_000).contains(patience_ms), "{patience_ms}");
        assert_eq!(node.announced(), [sandbox()]);
    }
}

#[test]
fn results_without_a_version_get_the_one_asked_for() {
    let node = Node::with_agent(done);
    let answer = node.call_with(&variables("ADD"), |conf| {
        *conf = node.configuration("0.4.0");
        conf["prevResult"].as_object_mut().unwrap().remove("cniVersion");
    });
    answer.succeeds();
    assert_eq!(answer.json(), result("0.4.0"));
}

#[test]
fn a_pod_whose_policies_are_not_in_force_does_not_start() {
    let node = Node::with_agent(|request| match request {
        Request::DeleteSandbox { .. } => Some(Response::Done),
        _ => not_yet(request),
    });
    let start = Instant::now();
    let answer = node.call_with(&variables("ADD"), |conf| conf["timeoutSeconds"] = 1.into());
    let took = start.elapsed();
    answer.fails(11, "the pod is not known yet");
    // Not sooner than it was told, as what is not yet may be soon; and not for ever.
    assert!(took > Duration::from_millis(800) && took < Duration::from_secs(10), "{took:?}");
    assert_eq!(node.announced(), []);
    assert_eq!(node.asked().last().unwrap(), &Request::DeleteSandbox { id: "c0ffee".to_owned() });
}

#[test]
fn it_starts_if_users_want_that() {
    let node = Node::with_agent(not_yet);
    for (key, value) in [("onTimeout", json!("continue")), ("continueFor", json!(["kube-system", "shop"]))] {
        let answer = node.call_with(&variables("ADD"), |conf| {
            conf["timeoutSeconds"] = 1.into();
            conf[key] = value;
        });
        answer.succeeds();
        assert_eq!(answer.json(), result("1.1.0"));
        assert!(answer.log.contains("shop/web-0") && answer.log.contains("the pod is not known yet"), "{answer:?}");
        // The agent will find it.
        assert_eq!(node.announced(), [sandbox()]);
    }
    node.call_with(&variables("ADD"), |conf| {
        conf["timeoutSeconds"] = 1.into();
        conf["continueFor"] = json!(["kube-system"]);
    })
    .fails(11, "the pod is not known yet");
}

#[test]
fn an_agent_that_is_away_is_waited_for() {
    let node = Node::new();
    thread::scope(|scope| {
        let call = scope.spawn(|| node.call("ADD"));
        thread::sleep(Duration::from_millis(200));
        // First it hangs up, as one that ends does.
        node.start_agent({
            let first = Mutex::new(true);
            move |_| if std::mem::take(&mut *first.lock().unwrap()) { None } else { Some(Response::Done) }
        });
        call.join().unwrap().succeeds();
    });
    assert_eq!(node.asked().len(), 2);
}

#[test]
fn no_agent() {
    let node = Node::new();
    let answer = node.call_with(&variables("ADD"), |conf| conf["timeoutSeconds"] = 1.into());
    answer.fails(11, "no agent answers at");
    assert_eq!(node.announced(), []);
    node.call("CHECK").fails(11, "no agent answers at");
    node.call_with(&variables("STATUS"), |conf| conf["timeoutSeconds"] = 1.into()).fails(50, "no agent answers at");
    node.call("DEL").succeeds();
    node.call_with(&variables("GC"), |conf| conf["cni.dev/valid-attachments"] = json!([])).succeeds();
    let continues = |command| {
        node.call_with(&variables(command), |conf| {
            conf["timeoutSeconds"] = 1.into();
            conf["onTimeout"] = "continue".into();
        })
    };
    continues("STATUS").succeeds();
    continues("CHECK").succeeds();
    continues("ADD").succeeds();
}

#[test]
fn an_agent_that_hangs_is_not_waited_for_for_ever() {
    let node = Node::new();
    // Nobody accepts.
    let listener = UnixListener::bind(socket_path(node.path())).unwrap();
    let start = Instant::now();
    node.call_with(&variables("ADD"), |conf| conf["timeoutSeconds"] = 1.into()).fails(11, "");
    node.call("STATUS").fails(50, "");
    node.call("DEL").succeeds();
    assert!(start.elapsed() < Duration::from_secs(15));
    drop(listener);
}

#[test]
fn an_agent_that_refuses_is_not_asked_again() {
    let node = Node::with_agent(|_| Some(Response::Error { message: "what is that?".to_owned() }));
    node.call("ADD").fails(11, "what is that?");
    assert!(matches!(node.asked()[..], [Request::AddSandbox { .. }, Request::DeleteSandbox { .. }]));
}

#[test]
fn del_undoes_add_and_nothing_else() {
    let node = Node::with_agent(done);
    node.call("ADD").succeeds();
    node.call_with(&with("ADD", "CNI_CONTAINERID", "beef"), |_| {}).succeeds();
    let answer = node.call("DEL");
    answer.succeeds();
    assert_eq!(answer.output, "");
    assert_eq!(node.announced().len(), 1);
    assert_eq!(node.asked().last().unwrap(), &Request::DeleteSandbox { id: "c0ffee".to_owned() });
    // Again, without a result, without a network namespace, without anything that is not needed.
    let mut bare = variables("DEL");
    bare.retain(|name, _| matches!(*name, "CNI_COMMAND" | "CNI_CONTAINERID" | "CNI_IFNAME"));
    let run_dir = node.path();
    for conf in [json!({"runDir": run_dir}), json!({"runDir": run_dir, "cniVersion": "0.1.0", "onTimeout": 7})] {
        call(&bare, conf.to_string().as_bytes()).succeeds();
    }
    assert_eq!(node.announced().len(), 1);
}

#[test]
fn del_says_when_it_could_not() {
    let node = Node::with_agent(done);
    fs::create_dir_all(node.path().join("sandboxes/c0ffee.json")).unwrap();
    node.call("DEL").fails(5, "c0ffee");
}

#[test]
fn other_interfaces_are_left_alone() {
    let node = Node::with_agent(done);
    node.call("ADD").succeeds();
    let asked = node.asked().len();
    for command in ["ADD", "CHECK", "DEL"] {
        let answer = node.call_with(&with(command, "CNI_IFNAME", "net1"), |conf| {
            conf["prevResult"]["ips"] = json!([{"address": "192.168.9.9/24"}]);
        });
        answer.succeeds();
        if command == "ADD" {
            assert_eq!(answer.json()["ips"], json!([{"address": "192.168.9.9/24"}]));
            assert!(answer.log.contains("net1"));
        }
    }
    assert_eq!(node.announced(), [sandbox()]);
    assert_eq!(node.asked().len(), asked);
}

#[test]
fn containers_that_are_no_pods_are_left_alone() {
    let node = Node::new();
    for arguments in ["", "IgnoreUnknown=1", "FOO=BAR"] {
        let answer = node.call_with(&with("ADD", "CNI_ARGS", arguments), |_| {});
        answer.succeeds();
        assert_eq!(answer.json(), result("1.1.0"));
        node.call_with(&with("CHECK", "CNI_ARGS", arguments), |_| {}).succeeds();
    }
    assert_eq!(node.announced(), []);
}

#[test]
fn check_asks() {
    let node = Node::with_agent(done);
    let answer = node.call("CHECK");
    answer.succeeds();
    assert_eq!(answer.output, "");
    assert_eq!(node.asked(), [Request::CheckSandbox { sandbox: sandbox() }]);
    assert_eq!(node.announced(), []);
    node.call_with(&variables("CHECK"), |conf| *conf = node.configuration("0.4.0")).succeeds();
    node.call_with(&variables("CHECK"), |conf| *conf = node.configuration("0.3.1")).fails(1, "0.3.1");

    let node = Node::with_agent(not_yet);
    let answer = node.call_with(&variables("CHECK"), |conf| conf["timeoutSeconds"] = 1.into());
    answer.fails(11, "the pod is not known yet");
    assert!(node.asked().len() > 1);
}

#[test]
fn status_asks() {
    let status = |ready| {
        Node::with_agent(move |request| {
            assert_eq!(request, &Request::Status);
            Some(Response::Status(Box::new(StatusReport { ready, ..StatusReport::default() })))
        })
    };
    // There is no container in the environment.
    let mut bare = variables("STATUS");
    bare.retain(|name, _| *name == "CNI_COMMAND");
    let answer = status(true).call_with(&bare, |_| {});
    answer.succeeds();
    assert_eq!(answer.output, "");
    let answer = status(false).call_with(&bare, |conf| conf["timeoutSeconds"] = 1.into());
    answer.fails(50, "not enforced anything");
    status(true).call_with(&bare, |conf| conf["cniVersion"] = "1.0.0".into()).fails(1, "1.0.0");
}

#[test]
fn gc_collects_what_is_gone_from_this_network() {
    let node = Node::with_agent(done);
    for id in ["a", "b", "c"] {
        node.call_with(&with("ADD", "CNI_CONTAINERID", id), |_| {}).succeeds();
    }
    node.call_with(&with("ADD", "CNI_CONTAINERID", "other"), |conf| conf["name"] = "storage".into()).succeeds();
    fs::write(node.path().join("sandboxes/junk.json"), "junk").unwrap();
    let mut bare = variables("GC");
    bare.retain(|name, _| *name == "CNI_COMMAND");
    let left = || {
        let sandboxes = announcements::read_all(node.path()).unwrap().sandboxes;
        sandboxes.into_iter().map(|sandbox| sandbox.id).collect::<Vec<_>>()
    };
    // Not knowing is not nothing.
    node.call_with(&bare, |_| {}).fails(7, "cni.dev/valid-attachments");
    node.call_with(&bare, |conf| {
        conf["cniVersion"] = "1.0.0".into();
        conf["cni.dev/valid-attachments"] = json!([]);
    })
    .fails(1, "1.0.0");
    assert_eq!(left().len(), 4);
    node.call_with(&bare, |conf| {
        conf["cni.dev/valid-attachments"] =
            json!([{"containerID": "b", "ifname": "eth0"}, {"containerID": "never-seen", "ifname": "eth0"}]);
    })
    .succeeds();
    assert_eq!(left(), ["b", "other"]);
    let deleted = |id: &str| node.asked().contains(&Request::DeleteSandbox { id: id.to_owned() });
    assert!(deleted("a") && deleted("c") && !deleted("b") && !deleted("other"));
    // As Go writes an empty list.
    node.call_with(&bare, |conf| conf["cni.dev/valid-attachments"] = Value::Null).succeeds();
    assert_eq!(left(), ["other"]);
}

#[test]
fn version() {
    let mut bare = variables("VERSION");
    bare.retain(|name, _| *name == "CNI_COMMAND");
    for (input, version) in [(r#"{"cniVersion":"1.0.0"}"#, "1.0.0"), ("", "1.1.0"), ("junk", "1.1.0")] {
        let answer = call(&bare, input.as_bytes());
        answer.succeeds();
        assert_eq!(answer.json(), json!({"cniVersion": version, "supportedVersions": VERSIONS}));
    }
}

#[test]
fn hostile_environments() {
    let node = Node::with_agent(done);
    let cases = [
        ("CNI_COMMAND", ""),
        ("CNI_COMMAND", "add"),
        ("CNI_COMMAND", "UPDATE"),
        ("CNI_CONTAINERID", ""),
        ("CNI_CONTAINERID", "../../etc/passwd"),
        ("CNI_CONTAINERID", ".hidden"),
        ("CNI_CONTAINERID", "a b"),
        ("CNI_CONTAINERID", "a\nb"),
        ("CNI_IFNAME", ""),
        ("CNI_IFNAME", "a/b"),
        ("CNI_IFNAME", ".."),
        ("CNI_IFNAME", "sixteen-letters!"),
        ("CNI_NETNS", ""),
        ("CNI_ARGS", "K8S_POD_NAMESPACE=shop"),
        ("CNI_ARGS", "K8S_POD_NAMESPACE=sh/op;K8S_POD_NAME=web"),
        ("CNI_ARGS", "K8S_POD_NAMESPACE"),
    ];
    for (name, value) in cases {
        node.call_with(&with("ADD", name, value), |_| {}).fails(4, name);
    }
    let long = "a".repeat(100_000);
    node.call_with(&with("ADD", "CNI_CONTAINERID", &long), |_| {}).fails(4, "CNI_CONTAINERID");
    node.call_with(&with("DEL", "CNI_CONTAINERID", "../x"), |_| {}).fails(4, "CNI_CONTAINERID");
    assert_eq!(node.announced(), []);
    assert_eq!(node.asked(), []);
}

#[test]
fn hostile_input() {
    let node = Node::with_agent(done);
    let add = variables("ADD");
    for text in ["", "{", "null", "[]", "\"cbr0\"", "{}{}", "{\"cniVersion\":\"1.1.0\",\"cniVersion\":\"1.1.0\"}"] {
        let answer = call(&add, text.as_bytes());
        assert_eq!(answer.code, 1, "{text}: {answer:?}");
        let code = answer.json()["code"].as_u64().unwrap();
        assert!(matches!(code, 6 | 7), "{text}: {answer:?}");
    }
    call(&add, b"{\"name\":\"\xff\"}").fails(6, "standard input");
    call(&add, format!("{{\"x\":{}", "[".repeat(100_000)).as_bytes()).fails(6, "");
    let long = format!("{{\"name\":\"{}\"}}", "a".repeat(17 << 20));
    call(&add, long.as_bytes()).fails(6, "longer");

    let cases: &[(&str, Value, u64, &str)] = &[
        ("cniVersion", Value::Null, 7, ""),
        ("cniVersion", "".into(), 1, ""),
        ("cniVersion", "0.2.0".into(), 1, "0.2.0"),
        ("cniVersion", "1.2.0".into(), 1, "1.2.0"),
        ("name", "".into(), 7, "name"),
        ("runDir", "run".into(), 7, "runDir"),
        ("runDir", 7.into(), 7, ""),
        ("timeoutSeconds", 0.into(), 7, "timeoutSeconds"),
        ("timeoutSeconds", "soon".into(), 7, ""),
        ("onTimeout", "hope".into(), 7, "hope"),
        ("prevResult", Value::Null, 7, "prevResult"),
        ("prevResult", json!([]), 7, "prevResult"),
        ("prevResult", json!({"cniVersion": "1.1.0"}), 7, "no address"),
        ("prevResult", json!({"ips": [{"address": "10.0.0.256/24"}]}), 7, "10.0.0.256"),
        ("prevResult", json!({"ips": [{"address": "10.0.0.1/24", "interface": 3}]}), 7, "interface 3"),
    ];
    for (key, value, code, says) in cases {
        let answer = node.call_with(&add, |conf| conf[*key] = value.clone());
        answer.fails(*code, says);
    }
    node.call_with(&add, |conf| {
        conf.as_object_mut().unwrap().remove("prevResult");
    })
    .fails(7, "prevResult");
    assert_eq!(node.announced(), []);
    assert_eq!(node.asked(), []);
}

#[test]
fn what_cannot_be_announced_does_not_start() {
    let node = Node::with_agent(done);
    fs::write(node.path().join("sandboxes"), "a file").unwrap();
    let answer = node.call("ADD");
    assert_eq!(answer.code, 1);
    assert_eq!(answer.json()["code"], 5, "{answer:?}");
    // If users want it to start all the same, the agent is asked at least.
    let answer = node.call_with(&variables("ADD"), |conf| conf["onTimeout"] = "continue".into());
    answer.succeeds();
    assert!(matches!(node.asked()[..], [.., Request::AddSandbox { .. }]));
}

#[test]
fn many_at_once() {
    let node = Node::with_agent(done);
    thread::scope(|scope| {
        for number in 0..50 {
            let node = &node;
            scope.spawn(move || {
                let variables = with("ADD", "CNI_CONTAINERID", &format!("c{number}"));
                node.call_with(&variables, |_| {}).succeeds();
            });
        }
    });
    assert_eq!(node.announced().len(), 50);
}
