//! The agent as a process on a node of a cluster: between an API server that goes away and packets that never stop.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that cannot go on fails, and says what it measured"
)]

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};
use ringfence_control::{Request, Response, StatusReport, ask, socket_path};
use ringfence_fake_apiserver::{FakeApiServer, sample};
use ringfence_lab::{
    EndpointIndex, EndpointSpec, Isolation, NetNs, Network, NetworkSpec, NodeIndex, NodeSpec, Place, enter,
};
use serde_json::{Value, json};
use tempfile::TempDir;

const NODE_ADDRESS: &str = "192.0.2.10";
const CLIENT: &str = "10.244.0.2";
const SERVER: &str = "10.244.0.3";
const PORT: u16 = 4242;
/// The longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the API server is away. RINGFENCE_OUTAGE says otherwise, in seconds.
const OUTAGE: Duration = Duration::from_secs(8);

fn main() {
    enter(Isolation::Auto).unwrap();
    let trials = vec![
        Trial::test("judges_pods_of_other_nodes_where_connections_enter", || {
            judges_pods_of_other_nodes_where_connections_enter();
            Ok(())
        }),
        Trial::test("follows_an_api_server_and_outlives_it", || {
            follows_an_api_server_and_outlives_it();
            Ok(())
        }),
        Trial::test("an_invalid_policy_gets_an_event", || {
            an_invalid_policy_gets_an_event();
            Ok(())
        }),
    ];
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, trials).exit();
}

/// A node with two pods, an API server on its loopback, and an agent.
struct Site {
    network: Network,
    inbox: UdpSocket,
    server: FakeApiServer,
    agent: Child,
    directory: TempDir,
}

impl Site {
    /// The client has no right to call the server, and the agent enforces that.
    fn new() -> Site {
        Site::with(&[])
    }

    /// The same with more options.
    fn with(options: &[&str]) -> Site {
        let endpoint = |name: &str, address: &str| EndpointSpec {
            name: name.to_owned(),
            place: Place::Pod { node: NodeIndex(0) },
            addresses: vec![address.parse().unwrap()],
            listen: Vec::new(),
        };
        let spec = NetworkSpec {
            nodes: vec![NodeSpec {
                name: "node".to_owned(),
                addresses: vec![NODE_ADDRESS.parse().unwrap()],
                ..NodeSpec::default()
            }],
            endpoints: vec![endpoint("client", CLIENT), endpoint("server", SERVER)],
            ..NetworkSpec::default()
        };
        let network = Network::build_around(vec![NetNs::create().unwrap()], spec, &mut |_, _| ()).unwrap();
        let node = network.node(NodeIndex(0)).unwrap().namespace();
        let server = node.within(FakeApiServer::start).unwrap().unwrap();
        server.apply(&sample::namespace("shop", &[]));
        server.apply(&sample::node("node", NODE_ADDRESS, &["10.244.0.0/24"]));
        server.apply(&pod("client", "stranger", CLIENT));
        server.apply(&pod("server", "server", SERVER));
        server.apply(&policy("server", &json!([{"podSelector": {"matchLabels": {"app": "friend"}}}])));
        let inbox = network.namespace(EndpointIndex(1)).unwrap().within(|| UdpSocket::bind((SERVER, PORT))).unwrap();
        let inbox = inbox.unwrap();
        inbox.set_nonblocking(true).unwrap();

        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence"));
        command.args(["agent", "--node=node", "--health-listen=off", "--metrics-listen=off", "--kubeconfig"]);
        command.arg(server.kubeconfig()).arg("--run-dir").arg(directory.path().join("run")).args(options);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(std::fs::File::create(directory.path().join("log")).unwrap());
        let agent = node.within(|| command.spawn()).unwrap().unwrap();
        let site = Site { network, inbox, server, agent, directory };
        site.until("the policies are in force", || site.log().contains("the policies are in force"));
        site
    }

    /// How the agent says it is.
    fn report(&self) -> StatusReport {
        match ask(&socket_path(&self.directory.path().join("run")), &Request::Status, PATIENCE) {
            Ok(Response::Status(report)) => *report,
            other => panic!("{other:?}"),
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    #[track_caller]
    fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}: {}", self.log());
            sleep(Duration::from_millis(5));
        }
    }

    /// Sends the first packet of a new flow. Whether one has arrived since this was asked last.
    fn passes(&self) -> bool {
        let client: IpAddr = CLIENT.parse().unwrap();
        let socket = self.network.namespace(EndpointIndex(0)).unwrap().within(|| UdpSocket::bind((client, 0)));
        let socket = socket.unwrap().unwrap();
        socket.send_to(b"ping", SocketAddr::new(SERVER.parse().unwrap(), PORT)).unwrap();
        sleep(Duration::from_micros(200));
        let mut arrived = false;
        loop {
            match self.inbox.recv(&mut [0; 8]) {
                Ok(_) => arrived = true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return arrived,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

fn pod(name: &str, app: &str, address: &str) -> Value {
    sample::pod("shop", name, &[("app", app)], "node", &[address])
}

/// Lets these peers call the pods of this app by one port.
fn policy(app: &str, peers: &Value) -> Value {
    let spec = json!({
        "podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": peers, "ports": [{"protocol": "UDP", "port": PORT}]}],
    });
    sample::network_policy("shop", app, &spec)
}

fn follows_an_api_server_and_outlives_it() {
    let site = Site::new();
    assert!(!site.passes());
    site.server.apply(&pod("client", "friend", CLIENT));
    site.until("a friend may call", || site.passes());
    site.server.apply(&pod("client", "stranger", CLIENT));
    site.until("a stranger may not", || !site.passes());

    let outage = std::env::var("RINGFENCE_OUTAGE").ok().and_then(|text| text.parse().ok());
    let outage = outage.map_or(OUTAGE, Duration::from_secs);
    site.server.go_away();
    let (start, mut sent, mut through) = (Instant::now(), 0, 0);
    while start.elapsed() < outage {
        sent += 1;
        through += u32::from(site.passes());
        // Pods come and go, and nobody hears of it.
        let name = format!("short-{}", sent % 50);
        match sent % 2 {
            0 => drop(site.server.apply(&sample::pod("shop", &name, &[("app", "friend")], "other", &["10.244.1.9"]))),
            _ => drop(site.server.delete("pods", "shop", &name)),
        }
    }
    println!("API server away for {} s: {sent} forbidden packets sent, {through} through", outage.as_secs());
    assert!(sent > 100 && through == 0, "{}", site.log());

    site.server.apply(&pod("client", "friend", CLIENT));
    site.server.come_back();
    site.until("the agent catches up", || site.passes());
}

fn an_invalid_policy_gets_an_event() {
    let site = Site::new();
    // The API server of today refuses it; older ones have stored such.
    site.server.apply(&policy("broken", &json!([{"ipBlock": {"cidr": "not a network"}}])));
    site.until("an Event", || !site.server.objects("events.events.k8s.io").is_empty());
    let events = site.server.objects("events.events.k8s.io");
    assert_eq!(events[0]["regarding"]["name"], "broken", "{events:?}");
    assert_eq!((&events[0]["reason"], &events[0]["type"]), (&json!("InvalidPolicy"), &json!("Warning")), "{events:?}");
    assert!(!site.passes(), "all others go on");
}

/// The program has pods of other nodes while they back a Service that can be called from outside; the node tells others of
/// itself; networks of other clusters are followed.
fn judges_pods_of_other_nodes_where_connections_enter() {
    const REMOTE: &str = "10.244.1.9";
    let networks = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(networks.path(), "10.245.0.0/16\n").unwrap();
    let file = format!("--no-masquerade-file={}", networks.path().display());
    let site = Site::with(&["--enforce-at=entry", "--no-masquerade-cidr=10.97.0.0/16", &file, "--resync=1"]);
    site.server.apply(&sample::node("other", "192.0.2.11", &["10.244.1.0/24"]));
    site.server.apply(&sample::pod("shop", "far", &[("app", "server")], "other", &[REMOTE]));
    site.until("the pod is known", || site.report().counts.pods == 3);
    let report = site.report();
    assert_eq!((report.enforce_at.as_str(), report.node_traffic.as_str()), ("entry", "own"));
    assert_eq!((report.counts.remote_pods, report.counts.isolated_pods), (0, 1));
    assert_eq!(report.nodes_apart.first, ["other"]);
    assert_eq!(report.unmasqueraded, ["10.97.0.0/16", "10.245.0.0/16"]);

    site.server.apply(&sample::service("shop", "server", "NodePort", "server"));
    site.server.apply(&sample::endpoint_slice("shop", "server-1", "server", &[SERVER, REMOTE], PORT));
    site.until("the slice counts", || site.report().counts.remote_pods == 1);
    let report = site.report();
    assert_eq!((report.counts.believed_addresses, report.counts.believed_endpoints), (1, 1), "{report:?}");
    site.server.delete("endpointslices", "shop", "server-1");
    site.until("the slice is gone", || site.report().counts.remote_pods == 0);
    assert_eq!(site.report().counts.isolated_pods, 1);

    let said = |name: &str| site.server.get("nodes", "", "node").unwrap()["metadata"]["annotations"][name].clone();
    site.until("the node says what it enforces", || said("ringfence.io/enforcement") == "entry/own");
    let far = site.server.modify("nodes", "", "other", |node| {
        node["metadata"]["annotations"]["ringfence.io/enforcement"] = json!("entry/own");
        node["metadata"]["annotations"]["ringfence.io/node-addresses"] = json!("10.244.1.0,10.244.1.1");
    });
    assert!(far > 0);
    site.until("the other node says so, too", || site.report().nodes_apart.count == 0);
    site.until("its tunnel is known", || site.report().counts.believed_addresses == 3);

    std::fs::write(networks.path(), "nonsense\n").unwrap();
    let told = || site.report().conditions.iter().any(|condition| condition.now && condition.about == "networks");
    site.until("what is wrong is told", told);
    assert_eq!(site.report().unmasqueraded.len(), 2, "and changes nothing");
    std::fs::write(networks.path(), "# none any more\n").unwrap();
    site.until("the file is followed", || site.report().unmasqueraded == ["10.97.0.0/16"]);
    assert!(!site.passes(), "{}", site.log());
}
