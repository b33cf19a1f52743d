//! The sets that policies speak of: their names, and which pods belong in them.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::OrdSet;
use ipnet::IpNet;
use ringfence_model::{Direction, Protocol};

use super::{AclPeers, AclSet, Members, SetId, SetRole};
use crate::digest::Digester;
use crate::terms::{PodTerm, Term};

/// A port name, with its protocol.
pub(super) type PortName = (Protocol, Arc<str>);

/// Pods to look for, and the sets they belong in: with their addresses, or with what a port name stands for on them.
pub(super) type Sources = BTreeMap<PodTerm, BTreeMap<SetId, Option<PortName>>>;

/// Which pods a set is about.
#[derive(Clone, Copy)]
pub(super) enum Scope {
    /// Those that the node judges.
    Judged,
    /// Those of the cluster.
    Cluster,
}

/// Who the other end is, according to one peer of a rule, or to all of its blocks of one family.
pub(super) enum Who {
    Anyone,
    Pods(PodTerm),
    Networks { cidrs: Vec<IpNet>, except: Vec<IpNet> },
}

/// The sets that something refers to.
#[derive(Default)]
pub(super) struct Described {
    /// Without the pods.
    pub(super) sets: BTreeMap<SetId, AclSet>,
    /// Who belongs in the sets of pods that the node judges when somebody connects to them.
    pub(super) judged: Sources,
    /// Who belongs in the sets of pods that the node judges when they connect to somebody: its own.
    pub(super) own: Sources,
    /// Who belongs in the sets of pods wherever they are.
    pub(super) cluster: Sources,
}

impl Described {
    /// The isolated pods of a namespace; `subjects` are some of them.
    pub(super) fn isolated(&mut self, namespace: &str, direction: Direction, subjects: &PodTerm) -> SetId {
        let mut name = Name::new("isolated");
        name.0.text(namespace);
        name.0.text(&direction.to_string());
        let id = name.finish();
        self.add(id, SetRole::Isolated, Members::Addresses(OrdSet::new()), || {
            format!("{namespace}, isolated for {direction}")
        });
        let sources = match direction {
            Direction::Ingress => &mut self.judged,
            Direction::Egress => &mut self.own,
        };
        sources.entry(subjects.clone()).or_default().insert(id, None);
        id
    }

    /// Pods, or the ports that a name stands for on them.
    pub(super) fn pods(&mut self, scope: Scope, pods: &PodTerm, port: Option<&PortName>) -> SetId {
        let (kind, role) = match (scope, port) {
            (Scope::Judged, None) => ("selected", SetRole::Selected),
            (Scope::Cluster, None) => ("peers", SetRole::Peers),
            (Scope::Judged, Some(_)) => ("serving here", SetRole::Serving),
            (Scope::Cluster, Some(_)) => ("serving", SetRole::Serving),
        };
        let term = Term::Pods(pods.clone());
        let mut name = Name::new(kind);
        name.0.digest(term.id().0);
        let members = match port {
            None => Members::Addresses(OrdSet::new()),
            Some((protocol, port)) => {
                name.0.text(protocol.as_str());
                name.0.text(port);
                Members::Endpoints(OrdSet::new())
            }
        };
        let id = name.finish();
        self.add(id, role, members, || match port {
            None => term.to_string(),
            Some((protocol, port)) => format!("{term} with {protocol} {port}"),
        });
        let sources = match scope {
            Scope::Judged => &mut self.judged,
            Scope::Cluster => &mut self.cluster,
        };
        sources.entry(pods.clone()).or_default().insert(id, port.cloned());
        id
    }

    /// The other end of a rule.
    pub(super) fn peers(&mut self, who: &Who) -> AclPeers {
        match who {
            Who::Anyone => AclPeers::Anyone,
            Who::Pods(pods) => AclPeers::Set(self.pods(Scope::Cluster, pods, None)),
            Who::Networks { cidrs, except } => AclPeers::Set(self.networks(cidrs, except)),
        }
    }

    fn networks(&mut self, cidrs: &[IpNet], except: &[IpNet]) -> SetId {
        let mut name = Name::new("networks");
        for networks in [cidrs, except] {
            name.0.number(networks.len());
            for network in networks {
                name.0.text(&network.to_string());
            }
        }
        let id = name.finish();
        let members = Members::Networks { cidrs: cidrs.to_vec(), except: except.to_vec() };
        self.add(id, SetRole::Peers, members, || match except {
            [] => joined(cidrs),
            except => format!("{} except {}", joined(cidrs), joined(except)),
        });
        id
    }

    fn add(&mut self, id: SetId, role: SetRole, members: Members, origin: impl FnOnce() -> String) {
        self.sets.entry(id).or_insert_with(|| AclSet { role, members, origin: origin().into() });
    }
}

/// The set of the node's own pods.
pub(super) fn local() -> SetId {
    Name::new("local pods").finish()
}

/// The set of other nodes' addresses.
pub(super) fn nodes() -> SetId {
    Name::new("other nodes").finish()
}

/// The set of the endpoints to which other nodes' judgement counts.
pub(super) fn believed() -> SetId {
    Name::new("believed").finish()
}

/// The set of the addresses that the guard lets pass.
pub(super) fn known() -> SetId {
    Name::new("known").finish()
}

/// Collects a description to a [`SetId`].
struct Name(Digester);

impl Name {
    /// `kind` keeps sets apart that describe the same pods for different ends.
    fn new(kind: &str) -> Name {
        let mut digester = Digester::new("acl set");
        digester.text(kind);
        Name(digester)
    }

    fn finish(self) -> SetId {
        SetId(self.0.finish().0)
    }
}

fn joined(networks: &[IpNet]) -> String {
    networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
