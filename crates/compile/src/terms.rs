//! Terms: the ways in which rules describe peers. A gate is a set of terms.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use ringfence_model::{IpBlock, Labels, NamespaceScope, Pod, PortMatch, PortRange, Ports, Protocol, Selector};

use crate::digest::{Digest, Digester};
use crate::matcher::Matcher;
use crate::pod_class::PodTraits;
use crate::ports::{PortSet, ProtocolRange};

/// The name of a term: it follows from what the term says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TermId(pub(crate) Digest);

/// One description of peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Term {
    /// Every peer, in and off the cluster.
    Anyone,
    /// Pods.
    Pods(PodTerm),
    /// Pods that give a port name a certain number.
    Serving(ServingTerm),
    /// Addresses, whoever owns them.
    Block(IpBlock),
}

/// A choice of pods, with the policy's own namespace written out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PodTerm {
    pub(crate) namespaces: Namespaces,
    pub(crate) pods: Matcher,
}

/// What the port names of an egress rule mean for one number: pods that match one of the rule's peers and have a container
/// port of that number under one of the names. What the rule says is shared by its terms, which may be many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServingTerm {
    pub(crate) peers: Arc<PeerNames>,
    pub(crate) protocol: Protocol,
    pub(crate) number: u16,
}

/// The peers of an egress rule, and its port names of one protocol.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PeerNames {
    digest: Digest,
    peers: Vec<PodTerm>,
    names: BTreeSet<Arc<str>>,
}

impl PeerNames {
    pub(crate) fn new(peers: &BTreeSet<PodTerm>, names: BTreeSet<Arc<str>>) -> PeerNames {
        let mut digester = Digester::new("peers with port names");
        digester.number(peers.len());
        for peer in peers {
            peer.digest_into(&mut digester);
        }
        digester.number(names.len());
        for name in &names {
            digester.text(name);
        }
        PeerNames { digest: digester.finish(), peers: peers.iter().cloned().collect(), names }
    }
}

impl ServingTerm {
    /// The names, any of which may have the number.
    pub(crate) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.peers.names.iter()
    }
}

/// The label that every namespace has: its name.
pub(crate) const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// How many of a rule's peers are told to people, where they are many.
const TOLD: usize = 4;

/// A choice of namespaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Namespaces {
    One(Arc<str>),
    Matching(Matcher),
}

impl PodTerm {
    /// What a peer of a policy in `namespace` says.
    pub(crate) fn of(namespace: &Arc<str>, namespaces: &NamespaceScope, pods: &Selector) -> PodTerm {
        let namespaces = match namespaces {
            NamespaceScope::Own => Namespaces::One(namespace.clone()),
            NamespaceScope::Matching(selector) => Namespaces::Matching(Matcher::new(selector)),
        };
        PodTerm { namespaces, pods: Matcher::new(pods) }
    }

    /// Every pod of the cluster.
    pub(crate) fn everything() -> PodTerm {
        PodTerm { namespaces: Namespaces::Matching(Matcher::default()), pods: Matcher::default() }
    }

    /// Whether pods of a namespace can match at all. While its labels are not known, only its name is, and no other
    /// requirement is taken for fulfilled, not even one that a label is absent.
    pub(crate) fn reaches(&self, namespace: &Arc<str>, labels: Option<&Labels>) -> bool {
        match (&self.namespaces, labels) {
            (Namespaces::One(name), _) => name == namespace,
            (Namespaces::Matching(matcher), Some(labels)) => matcher.matches(labels),
            (Namespaces::Matching(matcher), None) => {
                let name = Labels::from([(NAME_LABEL.into(), namespace.clone())]);
                matcher.keys().all(|key| **key == *NAME_LABEL) && matcher.matches(&name)
            }
        }
    }

    /// Whether it matches a pod, given the labels of the pod's namespace.
    pub(crate) fn selects(&self, pod: &PodTraits, namespace: Option<&Labels>) -> bool {
        self.reaches(&pod.namespace, namespace) && self.pods.matches(&pod.labels)
    }

    fn digest_into(&self, digester: &mut Digester) {
        match &self.namespaces {
            Namespaces::One(name) => {
                digester.text("one");
                digester.text(name);
            }
            Namespaces::Matching(matcher) => {
                digester.text("matching");
                matcher.digest_into(digester);
            }
        }
        self.pods.digest_into(digester);
    }
}

impl fmt::Display for PodTerm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespaces {
            Namespaces::One(name) => write!(f, "{name}/[{}]", self.pods),
            Namespaces::Matching(matcher) => write!(f, "[{matcher}]/[{}]", self.pods),
        }
    }
}

impl Term {
    /// Whether it matches a pod as a pod, given the labels of the pod's namespace.
    pub(crate) fn selects(&self, pod: &PodTraits, namespace: Option<&Labels>) -> bool {
        match self {
            Term::Anyone | Term::Block(_) => false,
            Term::Pods(term) => term.selects(pod, namespace),
            Term::Serving(ServingTerm { peers, protocol, number }) => {
                let mut ports = pod.named_ports.iter();
                ports.any(|(p, name, n)| p == protocol && n == number && peers.names.contains(name))
                    && peers.peers.iter().any(|peer| peer.selects(pod, namespace))
            }
        }
    }

    pub(crate) fn id(&self) -> TermId {
        let mut digester = Digester::new("term");
        match self {
            Term::Anyone => digester.text("anyone"),
            Term::Pods(pods) => {
                digester.text("pods");
                pods.digest_into(&mut digester);
            }
            Term::Serving(ServingTerm { peers, protocol, number }) => {
                digester.text("serving");
                digester.digest(peers.digest);
                digester.number(usize::from(protocol.number()));
                digester.number(usize::from(*number));
            }
            Term::Block(IpBlock { cidr, except }) => {
                digester.text("block");
                digester.text(&cidr.to_string());
                digester.number(except.len());
                for except in except {
                    digester.text(&except.to_string());
                }
            }
        }
        TermId(digester.finish())
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Term::Anyone => f.write_str("anyone"),
            Term::Pods(pods) => pods.fmt(f),
            Term::Serving(ServingTerm { peers, protocol, number }) => {
                for (i, peer) in peers.peers.iter().take(TOLD).enumerate() {
                    write!(f, "{}{peer}", if i == 0 { "" } else { " or " })?;
                }
                if peers.peers.len() > TOLD {
                    write!(f, " or {} more", peers.peers.len() - TOLD)?;
                }
                for (i, name) in peers.names.iter().enumerate() {
                    write!(f, "{}{name}", if i == 0 { format!(" with {protocol} ") } else { "|".to_owned() })?;
                }
                write!(f, "={number}")
            }
            Term::Block(IpBlock { cidr, except }) => {
                write!(f, "{cidr}")?;
                for (i, except) in except.iter().enumerate() {
                    write!(f, "{}{except}", if i == 0 { " except " } else { "," })?;
                }
                Ok(())
            }
        }
    }
}

/// Ports as a rule writes them, names not yet resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortSpec {
    pub(crate) numbers: PortSet,
    pub(crate) names: BTreeSet<(Protocol, Arc<str>)>,
}

impl PortSpec {
    pub(crate) fn of(ports: &Ports) -> PortSpec {
        let entries = match ports {
            Ports::Any => return PortSpec { numbers: PortSet::everything(), names: BTreeSet::new() },
            Ports::OneOf(entries) => entries,
        };
        let mut names = BTreeSet::new();
        let mut ranges = Vec::new();
        for entry in entries {
            match entry {
                PortMatch::Number(protocol, ports) => ranges.push(ProtocolRange { protocol: *protocol, ports: *ports }),
                PortMatch::Named(protocol, name) => {
                    names.insert((*protocol, name.clone()));
                }
            }
        }
        PortSpec { numbers: PortSet::of(ranges), names }
    }

    /// The numbers, with each name replaced by the container ports of `pod` that carry it.
    pub(crate) fn resolve(&self, pod: &Pod) -> PortSet {
        let mut resolved = self.numbers.clone();
        let named = pod
            .ports
            .iter()
            .filter(|port| port.name.as_ref().is_some_and(|name| self.names.contains(&(port.protocol, name.clone()))));
        let named = PortSet::of(named.map(|port| single(port.protocol, port.port)));
        resolved.union_with(&named);
        resolved
    }
}

/// One port.
pub(crate) fn single(protocol: Protocol, port: u16) -> ProtocolRange {
    ProtocolRange { protocol, ports: PortRange::single(port) }
}
