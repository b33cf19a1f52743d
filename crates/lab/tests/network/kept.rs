//! Labs that another process keeps: commands in them, and what is left when they end.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio, exit};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use ringfence_lab::exec::{self, Place};
use ringfence_lab::{NetNs, Network, NodeSpec, enter};

use crate::{ROLE, ip, isolation, small};

/// A directory for state files, removed at the end.
struct StateDirectory(PathBuf);

impl StateDirectory {
    fn new(name: &str) -> StateDirectory {
        let path = env::temp_dir().join(format!("ringfence-lab-test-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        StateDirectory(path)
    }

    fn files(&self) -> usize {
        fs::read_dir(&self.0).unwrap().count()
    }

    /// Starts this program again in another role.
    fn start(&self, role: &str) -> Command {
        let mut command = Command::new(env::current_exe().unwrap());
        command.env(ROLE, role).env("XDG_RUNTIME_DIR", &self.0).stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    }

    /// Starts a process that keeps a lab, and returns once the lab is published.
    fn keep(&self) -> Child {
        let mut lab = self.start("keep").spawn().unwrap();
        let mut line = String::new();
        BufReader::new(lab.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        lab
    }
}

impl Drop for StateDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The role of a process that keeps a lab until its standard input ends.
pub(crate) fn keep_a_lab() -> ! {
    enter(isolation()).unwrap();
    let mut spec = small();
    spec.nodes.push(NodeSpec { name: "node-2".to_owned(), addresses: vec![ip("192.0.2.2")], ..NodeSpec::default() });
    let network = Network::build(spec, &mut |_, _| {}).unwrap();
    let published = exec::publish(&network).unwrap();
    println!("ready");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    drop((published, network));
    exit(0);
}

/// The role of a process that runs the shell command `SCRIPT` at a place of the only lab there is.
pub(crate) fn run_in_the_lab(place: &str) -> ! {
    let labs = exec::find();
    let [lab] = labs.as_slice() else {
        println!("{} labs", labs.len());
        exit(100);
    };
    let place = lab.place(place).unwrap_or_else(|| Place::Endpoint(place.to_owned()));
    let mut command = Command::new("sh");
    command.args(["-c", &env::var("SCRIPT").unwrap_or_default()]);
    match exec::run_in(lab, &place, &mut command) {
        Ok(status) => exit(status.code().unwrap_or(101)),
        Err(error) => {
            println!("{error}");
            exit(102);
        }
    }
}

/// The names of the devices in a namespace.
fn devices(namespace: &NetNs) -> Vec<String> {
    let text = namespace.within(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap()).unwrap();
    text.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
}

/// A veth dies with the namespace of either end. So when the node's ends vanish from the node's namespace, which this
/// test keeps open, the pods' namespaces are gone.
pub(crate) fn nothing_is_left_of_a_killed_lab() {
    let directory = StateDirectory::new("killed");
    let before = devices(&NetNs::current().unwrap());
    let mut lab = directory.keep();
    let node = NetNs::open(&PathBuf::from(format!("/proc/{}/ns/net", lab.id()))).unwrap();
    let has_pods = || devices(&node).iter().any(|device| device.starts_with("rf"));
    assert!(has_pods());
    assert!(children(std::process::id()).iter().any(|stat| stat.starts_with(&lab.id().to_string())));
    assert_eq!(children(lab.id()), [""; 0], "the lab starts processes");
    lab.kill().unwrap();
    lab.wait().unwrap();
    // The kernel takes namespaces down in the background.
    let patience = Instant::now() + Duration::from_secs(30);
    while has_pods() && Instant::now() < patience {
        thread::sleep(Duration::from_millis(20));
    }
    assert!(!has_pods(), "left over: {:?}", devices(&node));
    assert_eq!(devices(&NetNs::current().unwrap()), before);
    assert_eq!(directory.files(), 1, "the state file of a killed lab stays until somebody looks");
    let look = directory.start("node").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&look.stdout), "0 labs\n");
    assert_eq!(directory.files(), 0);
}

/// The processes a process has started. In /proc/PID/stat, the parent is the second field after the name.
fn children(of: u32) -> Vec<String> {
    let stats =
        fs::read_dir("/proc").unwrap().filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("stat")).ok());
    let parent = |stat: &String| stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok();
    stats.filter(|stat| parent(stat) == Some(of)).collect()
}

pub(crate) fn commands_run_in_a_kept_lab() {
    let directory = StateDirectory::new("exec");
    let mut lab = directory.keep();
    let run = |place: &str, script: &str| {
        let output = directory.start(place).env("SCRIPT", script).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (status, routes) = run("default/dual", "cat /proc/net/dev; cat /proc/net/if_inet6; exit 7");
    assert_eq!(status, Some(7));
    assert!(routes.contains("eth0:") && !routes.contains("rf0:"), "{routes}");
    assert!(routes.contains("20010db8000000000000000000000003"), "{routes}");
    let (_, devices) = run("node", "cat /proc/net/dev; id -u");
    assert!(devices.contains("rf0:") && devices.ends_with("\n0\n"), "{devices}");
    assert!(run("node-1", "cat /proc/net/dev").1.contains("rf0:"));
    let (_, devices) = run("node-2", "cat /proc/net/dev");
    assert!(devices.contains("eth0:") && !devices.contains("rf0:"), "{devices}");
    let (status, error) = run("default/nobody", "");
    assert_eq!(status, Some(102));
    assert!(error.contains("no endpoint \"default/nobody\""), "{error}");

    // A command does not outlive the lab.
    let mut command = directory.start("default/four");
    let mut waiting = command.env("SCRIPT", "echo started; exec sleep 1000").spawn().unwrap();
    let mut output = BufReader::new(waiting.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "started\n");
    drop(lab.stdin.take());
    assert!(lab.wait().unwrap().success());
    let mut error = String::new();
    output.read_line(&mut error).unwrap();
    assert!(error.contains("the command was killed"), "{error}");
    assert_eq!(waiting.wait().unwrap().code(), Some(102));
    assert_eq!(directory.files(), 0);
}

pub(crate) fn stale_and_foreign_state_files_are_no_labs() {
    let directory = StateDirectory::new("stale");
    let own = std::process::id();
    for (name, text) in [
        ("ringfence-lab-1-1.json", format!("{{\"pid\":{own},\"started\":1,\"nodes\":[],\"endpoints\":[]}}")),
        ("ringfence-lab-2-1.json", "{\"pid\":4194305,\"started\":1,\"nodes\":[],\"endpoints\":[]}".to_owned()),
        ("ringfence-lab-3-1.json", "not json".to_owned()),
        ("other.json", "{}".to_owned()),
    ] {
        let path = directory.0.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    }
    let look = directory.start("node").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&look.stdout), "0 labs\n");
    // What is stale beyond doubt is gone; what was not understood is left alone.
    assert_eq!(directory.files(), 2);
}
