//! The agent as a process, and what it and others have put into the kernel.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringfence_dataplane::PacketFilter;
use ringfence_dataplane::iptables::Variant;

use crate::PATIENCE;
use crate::site::Site;

/// All packet filters that hold policies.
pub(crate) const FILTERS: [PacketFilter; 3] =
    [PacketFilter::Nftables, PacketFilter::Iptables(Variant::Nft), PacketFilter::Iptables(Variant::Legacy)];

fn ringfence() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence"));
    // The tests of a run take turns; so do the tools that an agent leaves behind when it is killed and those of the next one.
    command.env("XTABLES_LOCKFILE", concat!(env!("CARGO_TARGET_TMPDIR"), "/xtables.lock"));
    command
}

/// An agent and what it logs.
pub(crate) struct Agent {
    child: Child,
    log: tempfile::NamedTempFile,
}

impl Agent {
    pub(crate) fn start(site: &Site, filter: PacketFilter, options: &[&str]) -> Agent {
        let log = tempfile::NamedTempFile::new().unwrap();
        let backend = match filter {
            PacketFilter::Nftables => "--backend=nftables".to_owned(),
            PacketFilter::Iptables(variant) => format!("--backend=iptables,--iptables={variant}"),
        };
        let child = ringfence()
            .args(["agent", "--node=node", "--health-listen=off", "--metrics-listen=off", "--run-dir=off"])
            .arg(format!("--source=dir:{}", site.folder().display()))
            .args(backend.split(','))
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.reopen().unwrap())
            .spawn()
            .unwrap();
        Agent { child, log }
    }

    /// Starts it and waits until its first program is in force.
    pub(crate) fn running(site: &Site, filter: PacketFilter, options: &[&str]) -> Agent {
        let mut agent = Agent::start(site, filter, options);
        agent.says("the policies are in force");
        agent
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log.path()).unwrap()
    }

    /// Waits until `done`, while the agent must not end.
    #[track_caller]
    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none() && start.elapsed() < PATIENCE, "{what} does not happen: {ended:?} {}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[track_caller]
    pub(crate) fn says(&mut self, text: &str) {
        let log = self.log.path().to_owned();
        self.until(text, || fs::read_to_string(&log).unwrap().contains(text));
    }

    /// SIGKILL, without a chance to do anything.
    pub(crate) fn kill(&mut self) {
        let ended = self.child.try_wait().unwrap();
        assert!(ended.is_none(), "it has ended by itself: {ended:?} {}", self.log());
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM. Waits for the end.
    pub(crate) fn terminate(&mut self) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        let start = Instant::now();
        let status: ExitStatus = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < PATIENCE, "it does not end: {}", self.log());
            thread::sleep(Duration::from_millis(5));
        };
        assert!(status.success(), "{status}: {}", self.log());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `ringfence cleanup` of everything.
pub(crate) fn clean_up() {
    clean_up_with(&[]);
}

/// `ringfence cleanup --backend`.
pub(crate) fn clean_up_only(backend: &str) {
    clean_up_with(&["--backend", backend]);
}

fn clean_up_with(options: &[&str]) {
    let output = ringfence().arg("cleanup").args(options).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Runs a tool in the network namespace of the calling thread. Gives what it prints.
#[track_caller]
pub(crate) fn tool(name: &str, arguments: &[&str], input: &str) -> String {
    let mut child = Command::new(name)
        .args(arguments)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .env("XTABLES_LOCKFILE", "/dev/null")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{name} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn saved(variant: Variant, family: &str) -> String {
    tool(&format!("{family}-{variant}-save"), &[], "")
}

/// Whether our chains are in a filter, or our table is.
pub(crate) fn holds(filter: PacketFilter) -> bool {
    match filter {
        PacketFilter::Nftables => {
            tool("nft", &["list", "tables"], "").lines().any(|line| line == "table inet ringfence")
        }
        PacketFilter::Iptables(variant) => {
            ["iptables", "ip6tables"].iter().any(|family| saved(variant, family).contains("RF"))
        }
    }
}

/// Our sets of ipset.
pub(crate) fn sets() -> Vec<String> {
    tool("ipset", &["list", "-name"], "").lines().filter(|name| name.starts_with("rf")).map(str::to_owned).collect()
}

/// What of ours is in the kernel: chains, rules, sets and elements, without what follows from the history: editions, sizes, the
/// order of sets and elements.
pub(crate) fn listing(filter: PacketFilter) -> BTreeMap<String, Vec<String>> {
    let PacketFilter::Iptables(variant) = filter else {
        let objects = crate::namespace::listing().into_iter().map(|object| {
            let (head, lines) = object.split_once('\n').unwrap_or((&object, ""));
            (head.to_owned(), lines.lines().map(uncounted).collect())
        });
        return objects.collect();
    };
    let mut objects: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for family in ["iptables", "ip6tables"] {
        for line in saved(variant, family).lines().filter(|line| line.contains("RF")) {
            let line = plain(line);
            let (chain, rule) = match line.strip_prefix(':') {
                Some(chain) => (chain.split(' ').next().unwrap(), None),
                None => {
                    line.strip_prefix("-A ").unwrap().split_once(' ').map(|(chain, rule)| (chain, Some(rule))).unwrap()
                }
            };
            objects.entry(format!("{family} {chain}")).or_default().extend(rule.map(str::to_owned));
        }
    }
    for line in tool("ipset", &["save"], "").lines() {
        let line = plain(line);
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["create", set, kind, _, family, ..] if set.starts_with("rf") => {
                objects.entry(format!("{family} set {set}")).or_default().push(kind.to_owned());
            }
            ["add", set, ..] if set.starts_with("rf") => {
                let (_, members) = objects.iter_mut().find(|(name, _)| name.ends_with(&format!(" {set}"))).unwrap();
                members.push(words[2..].join(" "));
            }
            _ => {}
        }
    }
    for (_, members) in objects.iter_mut().filter(|(name, _)| name.contains(" set ")) {
        members.sort_unstable();
    }
    objects
}

/// Without what a counter has counted.
fn uncounted(line: &str) -> String {
    line.split(" packets ").next().unwrap_or(line).to_owned()
}

/// Without the digits of editions.
fn plain(line: &str) -> String {
    (0..10).fold(line.to_owned(), |line, digit| {
        line.replace(&format!("RF{digit}-"), "RF-").replace(&format!("rf{digit}-"), "rf-")
    })
}
