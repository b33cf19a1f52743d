//! All pairs of ends, port by port.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ringfence_compile::{Cluster, NodeCompiler, Program, Touched, UnsupportedTier};
use ringfence_model::{
    ContainerPort, ExternalHost, Family, Flow, Object, PortMatch, PortRange, Ports, Protocol, Transport,
};

/// One who can open or accept connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// How it is called: `namespace/pod`, or the first address of an external host.
    pub label: String,
    /// A pod or not.
    pub kind: EndKind,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The ports to try on it: those it declares; if it declares none, those that policies name by number, and TCP 80.
    pub ports: BTreeSet<(Protocol, u16)>,
}

/// What an [`End`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndKind {
    /// A pod.
    Pod {
        /// Its namespace.
        namespace: Arc<str>,
        /// Its name.
        name: Arc<str>,
        /// The node it runs on.
        node: Arc<str>,
        /// It shares that node's network.
        host_network: bool,
    },
    /// A host outside the cluster.
    External {
        /// Its name.
        name: Arc<str>,
    },
}

impl End {
    /// The node that enforces policy for it, if any does.
    pub fn node(&self) -> Option<&Arc<str>> {
        match &self.kind {
            EndKind::Pod { node, .. } => Some(node),
            EndKind::External { .. } => None,
        }
    }
}

/// Who can reach whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// The ends, pods first, by name.
    pub ends: Vec<End>,
    /// One cell for each ordered pair of ends that share an address family, and each port of the second; by position of
    /// the ends. Not from an end to itself, nor between external hosts.
    pub cells: Vec<Cell>,
}

/// One pair of ends and one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Position of the source in [`Matrix::ends`].
    pub from: usize,
    /// Position of the destination.
    pub to: usize,
    /// The protocol.
    pub protocol: Protocol,
    /// The destination port.
    pub port: u16,
    /// One for each address family that both speak, in the order of the destination's addresses. Never empty.
    pub paths: Vec<Path>,
}

/// A cell over one address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// The source's policies allow it.
    pub egress: bool,
    /// The destination's policies allow it.
    pub ingress: bool,
    /// Whether a connection was made when it was tried; `None` when it was not tried.
    pub measured: Option<bool>,
    /// What the policies demand of the source that the destination's node sees, where the network replaces it.
    pub as_seen: Option<bool>,
}

impl Path {
    /// Both directions allow it.
    pub fn allowed(&self) -> bool {
        self.egress && self.ingress
    }

    /// It was tried, and the result is not what the policies demand of what the destination's node sees.
    pub fn differs(&self) -> bool {
        self.measured.is_some_and(|measured| measured != self.as_seen.unwrap_or(self.allowed()))
    }
}

impl Cell {
    /// The path that stands for the cell: the first allowed one, for who may connect over one family may connect; the
    /// first when none is.
    pub fn path(&self) -> Option<&Path> {
        self.paths.iter().find(|path| path.allowed()).or(self.paths.first())
    }

    /// Some path is allowed.
    pub fn allowed(&self) -> bool {
        self.paths.iter().any(Path::allowed)
    }

    /// Some path was connected; `None` when none was tried.
    pub fn measured(&self) -> Option<bool> {
        self.paths.iter().filter_map(|path| path.measured).reduce(|a, b| a || b)
    }

    /// Some path is not as expected.
    pub fn differs(&self) -> bool {
        self.paths.iter().any(Path::differs)
    }
}

impl Matrix {
    /// The matrix of `ends` by the verdicts of `judge`: source, destination, flow to (egress, ingress).
    pub fn new(ends: Vec<End>, judge: impl Fn(&End, &End, &Flow) -> (bool, bool)) -> Matrix {
        let mut cells = Vec::new();
        for (from, source) in ends.iter().enumerate() {
            for (to, destination) in ends.iter().enumerate() {
                if from == to || source.node().is_none() && destination.node().is_none() {
                    continue;
                }
                let pairs = address_pairs(source, destination);
                if pairs.is_empty() {
                    continue;
                }
                for (protocol, port) in &destination.ports {
                    let paths = pairs.iter().map(|(from_address, to_address)| {
                        let flow = Flow {
                            source: *from_address,
                            destination: *to_address,
                            transport: Transport::Port(*protocol, *port),
                        };
                        let (egress, ingress) = judge(source, destination, &flow);
                        Path {
                            source: *from_address,
                            destination: *to_address,
                            egress,
                            ingress,
                            measured: None,
                            as_seen: None,
                        }
                    });
                    let paths = paths.collect();
                    cells.push(Cell { from, to, protocol: *protocol, port: *port, paths });
                }
            }
        }
        Matrix { ends, cells }
    }

    /// The matrix by compiled programs: each node judges for its own pods, as it will in the cluster.
    pub fn compiled(ends: Vec<End>, programs: &BTreeMap<Arc<str>, Program>) -> Matrix {
        let program = |end: &End| end.node().and_then(|node| programs.get(node));
        Matrix::new(ends, |source, destination, flow| {
            let egress = program(source).is_none_or(|program| program.eval(flow).egress.allowed);
            let ingress = program(destination).is_none_or(|program| program.eval(flow).ingress.allowed);
            (egress, ingress)
        })
    }

    /// Cells whose measurement differs from what was expected.
    pub fn differences(&self) -> impl Iterator<Item = &Cell> {
        self.cells.iter().filter(|cell| cell.differs())
    }
}

/// One program for each node of a state.
///
/// # Errors
/// A policy of a tier that is not supported.
pub fn compile_nodes(
    objects: impl IntoIterator<Item = Object>,
) -> Result<BTreeMap<Arc<str>, Program>, UnsupportedTier> {
    let mut cluster = Cluster::new();
    let mut touched = Touched::default();
    cluster.reset(objects, &mut touched)?;
    let nodes = cluster.node_names().into_iter();
    Ok(nodes.map(|node| (node.clone(), NodeCompiler::new(node).compile(&cluster, &touched))).collect())
}

/// The ends of a placed state: its pods by namespace and name, then the external hosts.
pub fn ends(objects: &[Object], externals: &[ExternalHost]) -> Vec<End> {
    let fallback = ports_named_by_policies(objects);
    let ports_or_fallback = |declared: &[ContainerPort]| {
        let ports: BTreeSet<_> = declared.iter().map(|port| (port.protocol, port.port)).collect();
        if ports.is_empty() { fallback.clone() } else { ports }
    };
    let mut ends = Vec::new();
    for object in objects {
        if let Object::Pod(pod) = object
            && let Some(node) = &pod.node
        {
            ends.push(End {
                label: pod.to_string(),
                kind: EndKind::Pod {
                    namespace: pod.namespace.clone(),
                    name: pod.name.clone(),
                    node: node.clone(),
                    host_network: pod.host_network,
                },
                addresses: pod.addresses.clone(),
                ports: ports_or_fallback(&pod.ports),
            });
        }
    }
    ends.sort_by(|a, b| a.label.cmp(&b.label));
    ends.extend(externals.iter().map(|external| End {
        label: external.addresses.first().map_or_else(|| external.name.to_string(), ToString::to_string),
        kind: EndKind::External { name: external.name.clone() },
        addresses: external.addresses.clone(),
        ports: ports_or_fallback(&external.ports),
    }));
    ends
}

/// The numbers that policies name, ends of ranges included, and TCP 80.
fn ports_named_by_policies(objects: &[Object]) -> BTreeSet<(Protocol, u16)> {
    let mut ports = BTreeSet::from([(Protocol::Tcp, 80)]);
    let policies = objects.iter().filter_map(|object| match object {
        Object::Policy(policy) => Some(policy),
        _ => None,
    });
    for rule in policies.flat_map(|policy| policy.ingress.iter().chain(&policy.egress)) {
        let Ports::OneOf(entries) = &rule.ports else { continue };
        for entry in entries {
            match entry {
                // An entry without a port names no number.
                PortMatch::Number(_, PortRange::ALL) | PortMatch::Named(..) => {}
                PortMatch::Number(protocol, range) => {
                    ports.insert((*protocol, range.first));
                    ports.insert((*protocol, range.last));
                }
            }
        }
    }
    ports
}

/// Source and destination address for each family that both have, in the order of the destination's addresses.
fn address_pairs(source: &End, destination: &End) -> Vec<(IpAddr, IpAddr)> {
    let mut pairs: Vec<(IpAddr, IpAddr)> = Vec::new();
    for to in &destination.addresses {
        let family = Family::of(*to);
        if pairs.iter().any(|(_, other)| Family::of(*other) == family) {
            continue;
        }
        if let Some(from) = source.addresses.iter().find(|from| Family::of(**from) == family) {
            pairs.push((*from, *to));
        }
    }
    pairs
}
