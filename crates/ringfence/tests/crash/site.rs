//! Where the tests take place: a node with pods and a host outside, and the states that its agent is told.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use ringfence_lab::{EndpointIndex, EndpointSpec, NetNs, Network, NetworkSpec, NodeIndex, NodeSpec, Place};
use tempfile::TempDir;

const NODE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
const CLIENT: [&str; 2] = ["10.244.0.2", "fd00::2"];
pub(crate) const WEB: [&str; 2] = ["10.244.0.3", "fd00::3"];
const OUTSIDE: [&str; 2] = ["203.0.113.10", "2001:db8:1::10"];

/// No state lets the client reach this port of web: it is open to the label that the client does not have.
pub(crate) const BY_LABEL: u16 = 7000;
/// No state lets the client reach this port: either the client may not call it, or web may not be called on it.
pub(crate) const BY_DIRECTION: u16 = 7001;
/// No state lets the host outside reach this port: it is open to the host on pods of the phase that web is not in, and on web
/// to all addresses around the host's.
pub(crate) const BY_BLOCK: u16 = 7002;
/// Every state lets the client and the host outside reach this port of web, over TCP.
pub(crate) const OPEN: u16 = 7003;

/// The network, and the folder that the agent follows.
pub(crate) struct Site {
    network: Network,
    folder: TempDir,
}

impl Site {
    /// Built around the network namespace of the calling thread, which is the node.
    pub(crate) fn build() -> Site {
        let addresses = |of: [&str; 2]| of.map(|address| address.parse::<IpAddr>().unwrap()).to_vec();
        let endpoint = |name: &str, of, place| EndpointSpec {
            name: name.into(),
            addresses: addresses(of),
            listen: Vec::new(),
            place,
        };
        let pod = Place::Pod { node: NodeIndex(0) };
        let spec = NetworkSpec {
            nodes: vec![NodeSpec { name: "node".into(), addresses: addresses(NODE), ..NodeSpec::default() }],
            endpoints: vec![
                endpoint("client", CLIENT, pod),
                endpoint("web", WEB, pod),
                endpoint("outside", OUTSIDE, Place::External),
            ],
            ..NetworkSpec::default()
        };
        let network = Network::build(spec, &mut |_, _| ()).unwrap();
        Site { network, folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn client(&self) -> &NetNs {
        self.network.namespace(EndpointIndex(0)).unwrap()
    }

    pub(crate) fn web(&self) -> &NetNs {
        self.network.namespace(EndpointIndex(1)).unwrap()
    }

    pub(crate) fn outside(&self) -> &NetNs {
        self.network.namespace(EndpointIndex(2)).unwrap()
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Puts a state in place of the one before, at once.
    pub(crate) fn tell(&self, state: &str) {
        let new = self.folder().join("new");
        fs::write(&new, state).unwrap();
        fs::rename(new, self.folder().join("state.yaml")).unwrap();
    }
}

fn pick<T>(side: bool, one: T, other: T) -> (T, T) {
    if side { (one, other) } else { (other, one) }
}

/// What is different from state to state.
#[derive(Debug)]
pub(crate) struct States {
    random: fastrand::Rng,
    count: u8,
    /// Of labels, directions, phases: which way it is now.
    sides: [bool; 3],
}

impl States {
    pub(crate) fn new(seed: u64) -> States {
        States { random: fastrand::Rng::with_seed(seed), count: 0, sides: [false; 3] }
    }

    /// The next state, and a peer's address that only this one has (and one 250 states away).
    pub(crate) fn next(&mut self) -> (String, String) {
        self.count = self.count % 250 + 1;
        // Some change in any case.
        let turned = self.random.u8(1..8);
        for (bit, side) in self.sides.iter_mut().enumerate() {
            *side ^= turned & (1 << bit) != 0;
        }
        let mark = format!("10.244.9.{}", self.count);
        (self.state(&mark), mark)
    }

    fn state(&mut self, mark: &str) -> String {
        let (label, other_label) = pick(self.sides[0], "a", "b");
        let (phase, other_phase) = pick(self.sides[2], "one", "two");
        let ports = |ports: &[u16]| {
            let both = |port| format!("{{protocol: UDP, port: {port}}}, {{protocol: TCP, port: {port}}}");
            ports.iter().map(both).collect::<Vec<_>>().join(", ")
        };
        let (web_ports, client_ports) = pick(self.sides[1], ports(&[OPEN, BY_DIRECTION]), ports(&[OPEN]));
        let client_ports = format!("{client_ports}, {}", ports(&[BY_LABEL]));
        let [client4, client6] = CLIENT;
        let [web4, web6] = WEB;
        let [outside4, outside6] = OUTSIDE;
        let (by_label, by_block, open) = (ports(&[BY_LABEL]), ports(&[BY_BLOCK]), ports(&[OPEN]));
        let mut state = format!(
            "
apiVersion: v1
kind: Node
metadata: {{name: node}}
status: {{addresses: [{{type: InternalIP, address: '{}'}}, {{type: InternalIP, address: '{}'}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: client, labels: {{app: client, side: {label}}}}}
spec: {{nodeName: node, containers: [{{name: c, image: c}}]}}
status: {{podIPs: [{{ip: {client4}}}, {{ip: '{client6}'}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: web, labels: {{app: web, phase: {phase}}}}}
spec: {{nodeName: node, containers: [{{name: c, image: c}}]}}
status: {{podIPs: [{{ip: {web4}}}, {{ip: '{web6}'}}]}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: web}}
spec:
  podSelector: {{matchLabels: {{app: web}}}}
  policyTypes: [Ingress, Egress]
  ingress:
  - {{from: [{{podSelector: {{matchLabels: {{side: {other_label}}}}}}}], ports: [{by_label}]}}
  - {{from: [{{podSelector: {{matchLabels: {{app: client}}}}}}], ports: [{web_ports}]}}
  - {{from: [{{ipBlock: {{cidr: {outside4}/32}}}}, {{ipBlock: {{cidr: '{outside6}/128'}}}}], ports: [{open}]}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: other-phase}}
spec:
  podSelector: {{matchLabels: {{phase: {other_phase}}}}}
  ingress:
  - {{from: [{{ipBlock: {{cidr: {outside4}/32}}}}, {{ipBlock: {{cidr: '{outside6}/128'}}}}], ports: [{by_block}]}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: this-phase}}
spec:
  podSelector: {{matchLabels: {{phase: {phase}}}}}
  ingress:
  - ports: [{by_block}]
    from:
    - {{ipBlock: {{cidr: 0.0.0.0/0, except: [{outside4}/32]}}}}
    - {{ipBlock: {{cidr: '::/0', except: ['{outside6}/128']}}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: client}}
spec:
  podSelector: {{matchLabels: {{app: client}}}}
  policyTypes: [Ingress, Egress]
  egress:
  - {{ports: [{client_ports}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: mark, labels: {{app: client}}}}
spec: {{nodeName: elsewhere, containers: [{{name: c, image: c}}]}}
status: {{podIPs: [{{ip: {mark}}}]}}
",
            NODE[0], NODE[1]
        );
        for number in 0..self.random.u8(0..20) {
            let _ = write!(
                state,
                "---
apiVersion: v1
kind: Pod
metadata: {{name: peer-{number}, labels: {{app: client, side: {}}}}}
spec: {{nodeName: elsewhere, containers: [{{name: c, image: c}}]}}
status: {{podIPs: [{{ip: 10.244.8.{number}}}, {{ip: 'fd00:8::{number:x}'}}]}}
",
                if self.random.bool() { "a" } else { "b" }
            );
        }
        // Pods of other namespaces come to the node and go, with their policies.
        for number in 0..self.random.u8(0..3) {
            let _ = write!(
                state,
                "---
apiVersion: v1
kind: Pod
metadata: {{name: local, namespace: space-{number}}}
spec: {{nodeName: node, containers: [{{name: c, image: c}}]}}
status: {{podIPs: [{{ip: 10.244.7.{number}}}, {{ip: 'fd00:7::{number:x}'}}]}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: closed, namespace: space-{number}}}
spec: {{podSelector: {{}}, policyTypes: [Ingress, Egress]}}
"
            );
        }
        state
    }
}
