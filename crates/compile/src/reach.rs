//! What a node has to do with connections beyond those of its own pods: whom it judges for others, and whom it believes.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdSet;
use ipnet::IpNet;
use ringfence_model::{EnforceAt, Enforcement, NodeTraffic, Protocol};

use crate::cluster::{Cluster, Touched};

/// What goes beyond judging the connections of the node's own pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Whether the subjects of ingress may be pods of other nodes. The node's own traffic to these is judged, too, unless all
    /// nodes are trusted.
    pub judges_others: bool,
    /// The addresses of the node's own pods, isolated or not. Empty when nothing here asks for them.
    pub local: OrdSet<IpAddr>,
    /// The addresses of all other nodes, except those that some pod owns. Empty when nothing here asks for them.
    pub nodes: OrdSet<IpAddr>,
    /// Which connections from `nodes` pass without being judged here. An address proves nothing by itself: packets that
    /// come from it must come from where it is.
    pub believed: Believed,
    /// The networks towards which the pods of `local` keep their addresses, whatever else masquerades: disjoint, in order,
    /// without host bits.
    pub unmasqueraded: Arc<[IpNet]>,
}

/// Which connections from other nodes' addresses a node lets through unjudged. Except with [`Believed::Everything`], those
/// only that came for their destination: what this node has translated itself no other has judged, which backends ask of
/// connection tracking and `eval` is not told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Believed {
    /// None.
    #[default]
    Nothing,
    /// Those to these endpoints of local pods (address, protocol and port in host byte order).
    Endpoints(OrdSet<(IpAddr, Protocol, u16)>),
    /// Those to local pods.
    LocalPods,
    /// All, and also all connections *to* other nodes' addresses, and the node's own to pods of others.
    Everything,
}

impl Reach {
    /// Whether connections to a subject of ingress are exempt when they come from the node itself. A node's own traffic to
    /// pods of others is judged.
    pub(crate) fn is_local(&self, subject: IpAddr) -> bool {
        !self.judges_others || self.local.contains(&subject)
    }

    /// Whether all nodes are exempt, this one included, wherever the pod runs.
    pub fn trusts_all(&self) -> bool {
        self.believed == Believed::Everything
    }

    /// Whether connections to or from an address of another node are exempt in both directions.
    pub(crate) fn exempts(&self, address: IpAddr) -> bool {
        self.trusts_all() && self.nodes.contains(&address)
    }

    /// Whether a connection from an address has been judged by another node.
    pub(crate) fn believes(&self, source: IpAddr, destination: IpAddr, port: Option<(Protocol, u16)>) -> bool {
        let covered = match &self.believed {
            Believed::Nothing => false,
            Believed::Endpoints(endpoints) => {
                port.is_some_and(|(protocol, port)| endpoints.contains(&(destination, protocol, port)))
            }
            Believed::LocalPods => self.local.contains(&destination),
            Believed::Everything => true,
        };
        covered && self.nodes.contains(&source)
    }
}

/// Keeps a [`Reach`] true to a [`Cluster`].
#[derive(Default)]
pub(crate) struct ReachWatch {
    pub(crate) enforcement: Enforcement,
    reach: Reach,
    /// Addresses of other nodes, whoever owns them.
    others: BTreeSet<IpAddr>,
    tracks_local: bool,
}

impl ReachWatch {
    /// The reach as it must be now. Looks at the addresses that `touched` names, and at all nodes when one has changed.
    pub(crate) fn follow(&mut self, cluster: &Cluster, touched: &Touched, node: &str, all: bool) -> &Reach {
        let Enforcement { at, node_traffic } = self.enforcement;
        self.reach.judges_others = at != EnforceAt::Destination;
        if all || touched.unmasqueraded {
            self.reach.unmasqueraded = cluster.unmasqueraded().clone();
        }
        self.follow_local(cluster, touched, node, all);
        match (node_traffic, at) {
            (NodeTraffic::All, _) => self.reach.believed = Believed::Everything,
            (NodeTraffic::Own, EnforceAt::Everywhere) => self.reach.believed = Believed::LocalPods,
            (NodeTraffic::Own, EnforceAt::Entry) => self.follow_endpoints(cluster, touched, node, all),
            (NodeTraffic::Own, EnforceAt::Destination) | (NodeTraffic::Policy, _) => {}
        }
        if self.reach.believed != Believed::Nothing {
            self.follow_nodes(cluster, touched, node, all);
        }
        &self.reach
    }

    fn follow_local(&mut self, cluster: &Cluster, touched: &Touched, node: &str, all: bool) {
        let wanted = self.reach.judges_others || !self.reach.unmasqueraded.is_empty();
        if !wanted {
            self.tracks_local = false;
            // To empty what is empty would copy it.
            if !self.reach.local.is_empty() {
                self.reach.local = OrdSet::new();
            }
        } else if all || !self.tracks_local {
            self.tracks_local = true;
            let namespaces = cluster.local_namespaces(node);
            let pods = namespaces.iter().flat_map(|namespace| cluster.local_pods(node, namespace));
            let local: OrdSet<IpAddr> = pods.flat_map(|(_, addresses)| addresses).collect();
            // What is as before keeps its place in memory, which makes differences cheap to find.
            if self.reach.local != local {
                self.reach.local = local;
            }
        } else {
            for address in &touched.addresses {
                put(&mut self.reach.local, *address, is_on(cluster, node, *address));
            }
        }
    }

    fn follow_endpoints(&mut self, cluster: &Cluster, touched: &Touched, node: &str, all: bool) {
        if !matches!(self.reach.believed, Believed::Endpoints(_)) {
            self.reach.believed = Believed::Endpoints(OrdSet::new());
        }
        let Believed::Endpoints(known) = &mut self.reach.believed else { return };
        if all {
            let served = cluster.served().addresses().filter(|address| is_on(cluster, node, *address));
            let endpoints: OrdSet<_> = served.flat_map(|address| endpoints(cluster, address)).collect();
            if *known != endpoints {
                *known = endpoints;
            }
            return;
        }
        for address in touched.addresses.union(&touched.endpoints) {
            let wanted: BTreeSet<_> = match is_on(cluster, node, *address) {
                true => endpoints(cluster, *address).collect(),
                false => BTreeSet::new(),
            };
            let range = (*address, Protocol::Tcp, 0)..=(*address, Protocol::Sctp, u16::MAX);
            let present: BTreeSet<_> = known.range(range).copied().collect();
            for gone in present.difference(&wanted) {
                known.remove(gone);
            }
            for new in wanted.difference(&present) {
                known.insert(*new);
            }
        }
    }

    fn follow_nodes(&mut self, cluster: &Cluster, touched: &Touched, node: &str, all: bool) {
        if all || touched.node_objects {
            let addresses = |own: bool| {
                let nodes = cluster.nodes().filter(move |other| (*other.name == *node) == own);
                nodes.flat_map(|node| node.addresses.iter().chain(&node.tunnel_addresses).copied())
            };
            self.others = addresses(false).collect();
            for own in addresses(true) {
                self.others.remove(&own);
            }
            let nodes = self.others.iter().copied().filter(|address| cluster.owner(*address).is_none()).collect();
            if self.reach.nodes != nodes {
                self.reach.nodes = nodes;
            }
            return;
        }
        for address in touched.addresses.intersection(&self.others) {
            put(&mut self.reach.nodes, *address, cluster.owner(*address).is_none());
        }
    }
}

fn is_on(cluster: &Cluster, node: &str, address: IpAddr) -> bool {
    cluster.home_of(address).is_some_and(|(_, on)| on.is_some_and(|on| **on == *node))
}

fn endpoints(cluster: &Cluster, address: IpAddr) -> impl Iterator<Item = (IpAddr, Protocol, u16)> {
    cluster.served().serving(address).map(move |(protocol, port)| (address, protocol, port))
}

fn put(set: &mut OrdSet<IpAddr>, address: IpAddr, member: bool) {
    if member != set.contains(&address) {
        if member {
            set.insert(address);
        } else {
            set.remove(&address);
        }
    }
}
