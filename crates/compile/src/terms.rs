//! Terms: the ways in which rules describe peers. A gate is a set of terms.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ringfence_model::{IpBlock, Labels, NamespaceScope, Pod, PortMatch, PortRange, Ports, Protocol, Selector};

use crate::digest::{Digest, Digester};
use crate::matcher::Matcher;
use crate::pod_class::PodTraits;
use crate::ports::{PortSet, ProtocolRange};

/// One description of peers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Term {
    /// Every peer, in and off the cluster.
    Anyone,
    /// Pods.
    Pods(PodTerm),
    /// Addresses, whoever owns them.
    Block(IpBlock),
}

/// A choice of pods, with the policy's own namespace written out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PodTerm {
    pub(crate) namespaces: Namespaces,
    pub(crate) pods: Matcher,
    /// Only pods with a container port of this protocol, name and number: what an egress rule with a port name means
    /// for one number.
    pub(crate) serving: Option<(Protocol, Arc<str>, u16)>,
}

/// The label that every namespace has: its name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

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
        PodTerm { namespaces, pods: Matcher::new(pods), serving: None }
    }

    /// Every pod of the cluster.
    pub(crate) fn everything() -> PodTerm {
        PodTerm { namespaces: Namespaces::Matching(Matcher::default()), pods: Matcher::default(), serving: None }
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

    /// Whether a pod of a namespace that it reaches matches.
    pub(crate) fn selects(&self, pod: &PodTraits) -> bool {
        self.pods.matches(&pod.labels) && self.serving.as_ref().is_none_or(|port| pod.named_ports.contains(port))
    }
}

impl Term {
    pub(crate) fn digest(&self) -> Digest {
        let mut digester = Digester::new("term");
        match self {
            Term::Anyone => digester.text("anyone"),
            Term::Pods(PodTerm { namespaces, pods, serving }) => {
                digester.text("pods");
                match namespaces {
                    Namespaces::One(name) => {
                        digester.text("one");
                        digester.text(name);
                    }
                    Namespaces::Matching(matcher) => {
                        digester.text("matching");
                        matcher.digest_into(&mut digester);
                    }
                }
                pods.digest_into(&mut digester);
                digester.number(usize::from(serving.is_some()));
                if let Some((protocol, name, number)) = serving {
                    digester.number(usize::from(protocol.number()));
                    digester.text(name);
                    digester.number(usize::from(*number));
                }
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
        digester.finish()
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Term::Anyone => f.write_str("anyone"),
            Term::Pods(PodTerm { namespaces, pods, serving }) => {
                match namespaces {
                    Namespaces::One(name) => write!(f, "{name}/[{pods}]")?,
                    Namespaces::Matching(matcher) => write!(f, "[{matcher}]/[{pods}]")?,
                }
                match serving {
                    Some((protocol, name, number)) => write!(f, " with {protocol} {name}={number}"),
                    None => Ok(()),
                }
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

/// A pod of this node, with the addresses it owns.
#[derive(Debug)]
pub(crate) struct LocalPod {
    pub(crate) pod: Arc<Pod>,
    pub(crate) addresses: Vec<IpAddr>,
}
