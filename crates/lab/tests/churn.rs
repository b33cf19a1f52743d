//! A thousand changes of policies and labels under load: no packet passes that neither the state before nor the one after
//! allows, and none is refused that both allow.
//!
//! RINGFENCE_CHURN says how many changes are made at least with each packet filter, if not a thousand.
#![allow(clippy::print_stdout, reason = "how much was sent is of interest also when all is well")]

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use nix::sched::{CloneFlags, unshare};
use ringfence_agent::{Agent, Change};
use ringfence_dataplane::iptables::{IptablesBackend, IptablesOptions, Variant};
use ringfence_dataplane::{ApplyError, Backend, NftBackend, NftOptions};
use ringfence_k8s::{Source, parse};
use ringfence_lab::{EndpointIndex, EndpointSpec, Isolation, NetNs, Network, NetworkSpec, NodeIndex, NodeSpec, Place};
use ringfence_model::Object;

const NODE: &str = "2001:db8::1";
const CLIENT: &str = "fd00::2";
const WEB: &str = "fd00::3";

/// Neither state lets the client reach this port of web: in each, it is open to the label that the client has in the other.
const BY_LABEL: u16 = 7000;
/// Neither state lets the client reach this port: in one the client may not call it, in the other web may not be called on it.
const BY_DIRECTION: u16 = 7001;
/// Both states let the client reach this port.
const OPEN: u16 = 7002;

/// How many forbidden packets are sent at least, on average over the changes asked for.
const PACKETS_PER_CHANGE: usize = 20;

/// One of the two states.
fn state(client_label: &str, admitted: &str, web_ports: &str, client_ports: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Node
metadata: {{name: node}}
status: {{addresses: [{{type: InternalIP, address: '{NODE}'}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: client, labels: {{app: client, side: {client_label}}}}}
spec: {{nodeName: node, containers: [{{name: c, image: c}}]}}
status: {{podIP: '{CLIENT}'}}
---
apiVersion: v1
kind: Pod
metadata: {{name: web, labels: {{app: web}}}}
spec: {{nodeName: node, containers: [{{name: c, image: c}}]}}
status: {{podIP: '{WEB}'}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: web}}
spec:
  podSelector: {{matchLabels: {{app: web}}}}
  ingress:
  - {{from: [{{podSelector: {{matchLabels: {{side: {admitted}}}}}}}], ports: [{{protocol: UDP, port: {BY_LABEL}}}]}}
  - {{from: [{{podSelector: {{matchLabels: {{app: client}}}}}}], ports: [{web_ports}]}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: client}}
spec:
  podSelector: {{matchLabels: {{app: client}}}}
  policyTypes: [Egress]
  egress:
  - {{ports: [{client_ports}, {{protocol: UDP, port: {BY_LABEL}}}]}}
"
    )
}

fn states() -> [Vec<Object>; 2] {
    let open = format!("{{protocol: UDP, port: {OPEN}}}");
    let both = format!("{open}, {{protocol: UDP, port: {BY_DIRECTION}}}");
    [state("a", "b", &both, &open), state("b", "a", &open, &both)]
        .map(|text| parse(&[Source { name: "state.yaml", text: text.as_bytes() }]).objects)
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Side by side, the floods would take each other's processors.
    arguments.test_threads = Some(1);
    if let Err(error) = ringfence_lab::enter(Isolation::Auto) {
        let trial = Trial::test("enter", move || Err(error.into()));
        return libtest_mimic::run(&arguments, vec![trial]).exit_code();
    }
    let iptables =
        |variant| move || IptablesBackend::open(IptablesOptions { variant: Some(variant), ..Default::default() });
    let trials = vec![
        Trial::test("nftables", || churn(|| NftBackend::new(NftOptions::default()))),
        Trial::test("iptables_nft", move || churn(iptables(Variant::Nft))),
        Trial::test("iptables_legacy", move || churn(iptables(Variant::Legacy))),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn churn<B: Backend>(open: impl FnOnce() -> Result<B, ApplyError>) -> Result<(), Failed> {
    let changes = std::env::var("RINGFENCE_CHURN").ok().and_then(|changes| changes.parse().ok()).unwrap_or(1000);
    // Each trial has a thread, and each thread a node of its own.
    unshare(CloneFlags::CLONE_NEWNET)?;
    let endpoint = |name: &str, address: &str| {
        let place = Place::Pod { node: NodeIndex(0) };
        Ok::<_, Failed>(EndpointSpec {
            name: name.into(),
            addresses: vec![address.parse()?],
            listen: Vec::new(),
            place,
        })
    };
    let spec = NetworkSpec {
        nodes: vec![NodeSpec { name: "node".into(), addresses: vec![NODE.parse()?], ..NodeSpec::default() }],
        endpoints: vec![endpoint("client", CLIENT)?, endpoint("web", WEB)?],
        ..NetworkSpec::default()
    };
    let states = states();
    let mut agent = Agent::new("node".into(), open()?);
    agent.change(Change::Reset(states[0].clone()))?;
    agent.sync()?;
    let network = Network::build(spec, &mut |_, _| ())?;
    let namespace = |index| network.namespace(EndpointIndex(index)).ok_or("no such endpoint");
    let (client, web) = (namespace(0)?, namespace(1)?);
    let received = |port| -> Result<UdpSocket, Failed> {
        let socket = web.within(|| UdpSocket::bind((WEB, port)))??;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    let (by_label, by_direction, open) = (received(BY_LABEL)?, received(BY_DIRECTION)?, received(OPEN)?);

    let done = AtomicBool::new(false);
    let (sent, arrived) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (forbidden, allowed, changes) = std::thread::scope(|scope| {
        let forbidden = scope.spawn(|| {
            flood(client, &done, &mut |sockets| {
                sent.fetch_add(2, Ordering::Relaxed);
                sockets.send(BY_LABEL)?;
                sockets.send(BY_DIRECTION)
            })
        });
        let allowed = scope.spawn(|| flood(client, &done, &mut |sockets| sockets.send(OPEN)));
        scope.spawn(|| count(&open, &done, &arrived));
        // A change that no packet meets shows nothing.
        let mut change = 0;
        let mut next = || -> Result<bool, Failed> {
            change += 1;
            for object in &states[change % 2] {
                agent.change(Change::Apply(object.clone()))?;
            }
            agent.sync()?;
            Ok(change < changes || sent.load(Ordering::Relaxed) < PACKETS_PER_CHANGE * changes)
        };
        let changed = loop {
            match next() {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        done.store(true, Ordering::Relaxed);
        let join = |flood: std::thread::ScopedJoinHandle<'_, Result<Flood, Failed>>| {
            flood.join().map_err(|_| Failed::from("a flood has failed"))?
        };
        let (forbidden, allowed) = (join(forbidden)?, join(allowed)?);
        changed?;
        Ok::<_, Failed>((forbidden, allowed, change))
    })?;

    let slipped =
        [&by_label, &by_direction].map(|socket| std::iter::from_fn(|| socket.recv(&mut [0; 16]).ok()).count());
    let arrived = arrived.load(Ordering::Relaxed);
    println!(
        "{changes} changes: {} forbidden packets sent, {slipped:?} arrived; {} allowed ones sent, {arrived} arrived, {} refused",
        forbidden.sent, allowed.sent, allowed.refused
    );
    if slipped != [0, 0] {
        return Err(format!("{slipped:?} of {} forbidden packets have passed", forbidden.sent).into());
    }
    if allowed.refused > 0 {
        return Err(format!("{} of {} allowed packets were refused", allowed.refused, allowed.sent).into());
    }
    if forbidden.refused == 0 || arrived < allowed.sent / 2 {
        return Err("nothing was enforced, or the network lost too much".into());
    }
    Ok(())
}

#[derive(Default)]
struct Flood {
    sent: usize,
    refused: usize,
}

/// Sockets that have sent a packet and may hear that it was refused.
struct Sockets {
    recent: VecDeque<UdpSocket>,
    flood: Flood,
}

impl Sockets {
    /// A first packet of a new connection: from a port that was not used just now.
    fn send(&mut self, port: u16) -> Result<(), Failed> {
        let client: IpAddr = CLIENT.parse()?;
        let socket = UdpSocket::bind((client, 0))?;
        socket.connect(SocketAddr::from((WEB.parse::<Ipv6Addr>()?, port)))?;
        // A refusal that is here already is told by the next call that uses the socket.
        self.flood.sent += 1;
        socket.send(b"x")?;
        self.recent.push_back(socket);
        if self.recent.len() > 64 {
            self.hear();
        }
        Ok(())
    }

    fn hear(&mut self) {
        if let Some(socket) = self.recent.pop_front() {
            self.flood.refused += usize::from(!matches!(socket.take_error(), Ok(None)));
        }
    }
}

fn flood(
    client: &NetNs,
    done: &AtomicBool,
    each: &mut dyn FnMut(&mut Sockets) -> Result<(), Failed>,
) -> Result<Flood, Failed> {
    client.within(|| {
        let mut sockets = Sockets { recent: VecDeque::new(), flood: Flood::default() };
        while !done.load(Ordering::Relaxed) {
            each(&mut sockets)?;
        }
        std::thread::sleep(Duration::from_millis(100));
        while !sockets.recent.is_empty() {
            sockets.hear();
        }
        Ok(sockets.flood)
    })?
}

fn count(open: &UdpSocket, done: &AtomicBool, arrived: &AtomicUsize) {
    let mut rest = 100;
    while rest > 0 {
        if done.load(Ordering::Relaxed) {
            rest -= 1;
            std::thread::sleep(Duration::from_millis(1));
        }
        while open.recv(&mut [0; 16]).is_ok() {
            arrived.fetch_add(1, Ordering::Relaxed);
        }
    }
}
