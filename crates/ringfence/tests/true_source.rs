//! The examples about lost sources, played with packets: what goes wrong where only the pod's own node judges, and that it
//! does not where others judge before. With both kinds of packet filter, over IPv4 and IPv6.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

/// The other cluster's pods and Services.
const OTHER_CLUSTER: &str = "10.2.0.0/16,10.102.0.0/16,fd00:2::/32,fd00:102::/64";

/// The arguments that choose a packet filter.
type FilterArguments = &'static [&'static str];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let filters: [(&str, FilterArguments); 2] =
        [("nftables", &["--backend", "nftables"]), ("iptables", &["--backend", "iptables", "--iptables", "nft"])];
    let mut trials = Vec::new();
    for (name, filter) in filters {
        let trial = |what: &str, test: fn(FilterArguments) -> Result<(), Failed>| {
            Trial::test(format!("{name} {what}"), move || test(filter))
        };
        trials.push(trial("nodeport_ipblock", nodeport_ipblock));
        trials.push(trial("trusted_nodes_hide_strangers", trusted_nodes_hide_strangers));
        trials.push(trial("masquerade_all", masquerade_all));
        trials.push(trial("two_clusters", two_clusters));
    }
    trials.push(Trial::test("doctor explains nodeport_ipblock", doctor_explains));
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// What came of one connection.
struct Trip(Value);

impl Trip {
    fn text(&self, field: &str) -> &str {
        self.0[field].as_str().unwrap_or_default()
    }

    fn is(&self, field: &str) -> bool {
        self.0[field] == true
    }

    fn replaced(&self) -> bool {
        !self.0["seen"].is_null() && self.0["seen"] != self.0["source"]
    }
}

/// The connections of one kind of path, from somebody to somebody; names can begin alike.
struct Trips(Vec<Trip>);

impl Trips {
    /// Plays an example. Whatever was measured must be what the oracle expects of the nodes on the way.
    fn of(example: &str, filter: FilterArguments, more: &[&str]) -> Result<Trips, Failed> {
        let path = folder(example);
        let output = Command::new(env!("CARGO_BIN_EXE_ringfence"))
            .args(["lab", "run", "-o", "json"])
            .arg(path)
            .args(filter)
            .args(more)
            .output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        let document: Value = serde_json::from_slice(&output.stdout).map_err(|error| format!("{error}: {errors}"))?;
        let trips: Vec<Trip> = document["paths"].as_array().into_iter().flatten().cloned().map(Trip).collect();
        let wrong = trips.iter().filter(|trip| !trip.is("carried") || trip.is("measured") != trip.is("expected"));
        let wrong: Vec<String> = wrong.map(|trip| trip.0.to_string()).collect();
        if !wrong.is_empty() || output.status.code() != Some(0) {
            return Err(format!("{}: {}\n{errors}", output.status, wrong.join("\n")).into());
        }
        Ok(Trips(trips))
    }

    /// Those of a kind between these ends. There must be so many of them, of both families.
    fn between(&self, kind: &str, from: &str, to: &str, count: usize) -> Result<Vec<&Trip>, Failed> {
        let wanted = |trip: &&Trip| {
            trip.text("path").starts_with(kind)
                && trip.text("from").starts_with(from)
                && trip.text("to").starts_with(to)
        };
        let found: Vec<&Trip> = self.0.iter().filter(wanted).collect();
        let v4 = found.iter().filter(|trip| trip.text("source").contains('.')).count();
        if found.len() != count || v4 * 2 != count {
            return Err(format!("{kind}: {} connections of {from} to {to}, {v4} over IPv4", found.len()).into());
        }
        Ok(found)
    }

    /// All of those pass, or none.
    fn pass(&self, kind: &str, from: &str, to: &str, count: usize, expected: bool) -> Result<(), Failed> {
        let found = self.between(kind, from, to, count)?;
        match found.iter().find(|trip| trip.is("measured") != expected) {
            None => Ok(()),
            Some(trip) => Err(format!("expected {expected}: {}", trip.0).into()),
        }
    }

    /// Every connection of a kind gets the answer of its true ends, though some sources are lost.
    fn all_as_intended(&self, kind: &str) -> Result<(), Failed> {
        let of_kind: Vec<&Trip> = self.0.iter().filter(|trip| trip.text("path").starts_with(kind)).collect();
        if !of_kind.iter().any(|trip| trip.replaced()) {
            return Err(format!("no source is replaced on {kind}").into());
        }
        match of_kind.iter().find(|trip| trip.is("measured") != trip.is("intended")) {
            None => Ok(()),
            Some(trip) => Err(trip.0.to_string().into()),
        }
    }
}

fn folder(example: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(example)
}

const OFFICE: &str = "203.0.113.10";
const STRANGER: &str = "198.51.100.20";

/// A client inside the allowed block reaches the pods through either node's port, one outside through neither.
fn nodeport_ipblock(filter: FilterArguments) -> Result<(), Failed> {
    let destination = Trips::of("nodeport-ipblock", filter, &[])?;
    destination.pass("node-port-same-node", OFFICE, "shop/shop-", 8, true)?;
    destination.pass("node-port-other-node", OFFICE, "shop/shop-", 4, false)?;
    destination.pass("node-port-", STRANGER, "shop/shop-", 12, false)?;
    for at in ["entry", "everywhere"] {
        let trips = Trips::of("nodeport-ipblock", filter, &["--enforce-at", at])?;
        trips.pass("node-port-", OFFICE, "shop/shop-", 12, true)?;
        trips.pass("node-port-", STRANGER, "shop/shop-", 12, false)?;
        trips.all_as_intended("node-port-")?;
        trips.pass("node-to-other-pod", "node ", "shop/", 6, false)?;
        // A node's own processes are judged on that node, or where they enter through another one's port.
        trips.pass("node-to-node-port", "node node-1", "shop/shop-2", 8, false)?;
        trips.pass("node-to-node-port", "node node-2", "shop/shop-1", 8, false)?;
    }
    // Pods that come to another node's port under their node's address.
    let hidden = Trips::of("nodeport-ipblock", filter, &["--enforce-at", "entry", "--masquerade", "pods"])?;
    hidden.pass("pod-to-node-port", "shop/stock", "shop/shop-1", 8, false)?;
    // On a network without tunnels, where masquerading shows the node's own address.
    let routed = ["--enforce-at", "entry", "--topology", "routed"];
    Trips::of("nodeport-ipblock", filter, &routed)?.all_as_intended("node-port-")?;
    let unbelieving = ["--enforce-at", "entry", "--node-traffic", "policy"];
    let unbelieving = Trips::of("nodeport-ipblock", filter, &unbelieving)?;
    unbelieving.pass("node-port-other-node", OFFICE, "shop/shop-", 4, false)
}

/// Who trusts all nodes' addresses lets in whoever comes under one of them, unless the entry node has judged.
fn trusted_nodes_hide_strangers(filter: FilterArguments) -> Result<(), Failed> {
    let trusting = Trips::of("nodeport-ipblock", filter, &["--node-traffic", "all"])?;
    trusting.pass("node-port-other-node", STRANGER, "shop/shop-", 4, true)?;
    trusting.pass("node-to-other-pod", "node ", "shop/", 6, true)?;
    let both = Trips::of("nodeport-ipblock", filter, &["--node-traffic", "all", "--enforce-at", "entry"])?;
    both.pass("node-port-other-node", STRANGER, "shop/shop-", 4, false)?;
    both.pass("node-port-other-node", OFFICE, "shop/shop-", 4, true)
}

/// Rules about pods hold through a Service whose calls all come from nodes' addresses.
fn masquerade_all(filter: FilterArguments) -> Result<(), Failed> {
    let destination = Trips::of("masquerade-all", filter, &[])?;
    destination.pass("other-node-service", "shop/web", "shop/api-2", 2, false)?;
    let everywhere = Trips::of("masquerade-all", filter, &["--enforce-at", "everywhere"])?;
    everywhere.pass("other-node-service", "shop/web", "shop/api-2", 2, true)?;
    everywhere.pass("other-node-service", "shop/api-", "shop/api-", 4, true)?;
    everywhere.pass("other-node-service", "shop/batch", "shop/api-2", 2, false)?;
    everywhere.pass("same-node-service", "shop/batch", "shop/api-1", 2, false)?;
    everywhere.all_as_intended("other-node-service")
}

/// A pod is known in another cluster by its address if its own cluster keeps it.
fn two_clusters(filter: FilterArguments) -> Result<(), Failed> {
    let other = folder("two-clusters/cluster-2");
    let other = other.to_str().ok_or("the path is no text")?;
    let play =
        |more: &[&str]| Trips::of("two-clusters/cluster-1", filter, &[&["--other-cluster", other], more].concat());
    let masqueraded = play(&[])?;
    for trip in masqueraded.between("other-cluster", "east/a", "west/db-", 8)? {
        if !trip.replaced() || trip.is("measured") {
            return Err(trip.0.to_string().into());
        }
    }
    let kept = play(&["--no-masquerade-cidr", OTHER_CLUSTER])?;
    kept.pass("other-cluster", "east/a", "west/db-1", 4, true)?;
    kept.pass("other-cluster", "east/b", "west/db-", 8, false)?;
    // Services of the other cluster lead on to another node under the address of the first there.
    kept.pass("other-cluster-service", "east/a", "west/db-2", 2, false)?;
    let everywhere = play(&["--no-masquerade-cidr", OTHER_CLUSTER, "--enforce-at", "everywhere"])?;
    everywhere.pass("other-cluster", "east/a", "west/db-", 8, true)?;
    everywhere.pass("other-cluster", "east/b", "west/db-", 8, false)?;
    everywhere.pass("to-external", "east/", STRANGER, 4, true)
}

/// In the example's network, `doctor` names the rule that loses the source and the option that restores it.
fn doctor_explains() -> Result<(), Failed> {
    let directory = tempfile::tempdir()?;
    let ringfence = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence"));
        command.env("XDG_RUNTIME_DIR", directory.path()).stdin(Stdio::null());
        command
    };
    let lab = ringfence()
        .args(["lab", "run", "--keep"])
        .arg(folder("nodeport-ipblock"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut lab = Killed(lab);
    let errors = lab.0.stderr.take().ok_or("the lab has no standard error")?;
    let is_up = BufReader::new(errors).lines().any(|line| line.is_ok_and(|line| line.contains("the lab is up")));
    if !is_up {
        return Err("the lab ended".into());
    }
    for (options, restored) in [(&[][..], false), (&["--enforce-at", "entry"], true)] {
        let output = ringfence()
            .args(["lab", "exec", "node-1", "--", env!("CARGO_BIN_EXE_ringfence"), "doctor"])
            .args(["--pod-cidr", "10.244.0.0/16", "--pod-cidr", "fd00:10:244::/48"])
            .args(options)
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        let remedy =
            if restored { "none is needed if all nodes run with" } else { "or --enforce-at entry on all nodes" };
        if !said.contains("nodeport-snat") || !said.contains(remedy) {
            return Err(format!("{options:?}: {said}{}", String::from_utf8_lossy(&output.stderr)).into());
        }
    }
    Ok(())
}

/// A process that does not outlive the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
