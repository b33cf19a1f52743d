//! The compiler of one node's list: keeps an [`Acl`] true to a [`Cluster`] with work that follows the change.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use ringfence_model::{Direction, Peer, Peers, Policy, Rule};

use super::described::{Described, Scope, Who, known};
use super::population::Population;
use super::{Acl, AclEntry, AclGuard, AclNamespace, AclPeers, AclPolicy, AclPorts, AclRule, AclSet, Members, SetRole};
use crate::cluster::{Cluster, Touched};
use crate::compiler::Compiler;
use crate::guard::{Guard, UnknownPods, Watch};
use crate::matcher::Matcher;
use crate::terms::{Namespaces, PodTerm, PortSpec};

/// Compiles the list of one node, again and again.
///
/// A change of remote pods costs a few look-ups per address; one of the node's own pods, some for each of them. Policies
/// are read again only when one changes in a namespace of the node's pods, or when the node gets or loses such a namespace.
/// Only where that leads to other sets, or labels of namespaces change, every pod class is asked again, and members are
/// looked at only where the class belongs in other sets than before.
pub struct AclCompiler {
    acl: Acl,
    /// Namespaces of the node's pods: policies elsewhere cannot select any of them.
    namespaces: BTreeSet<Arc<str>>,
    /// What the node's pods own.
    addresses: BTreeSet<IpAddr>,
    /// The members of sets of local pods.
    local: Population,
    /// The members of sets of peers.
    cluster: Population,
    watch: Watch,
    fresh: bool,
}

impl Compiler for AclCompiler {
    type Output = Acl;

    fn for_node(node: Arc<str>) -> AclCompiler {
        AclCompiler {
            acl: Acl::empty(node),
            namespaces: BTreeSet::new(),
            addresses: BTreeSet::new(),
            local: Population::default(),
            cluster: Population::default(),
            watch: Watch::default(),
            fresh: true,
        }
    }

    fn with_unknown_pods(mut self, unknown: UnknownPods) -> AclCompiler {
        self.watch.unknown = unknown;
        self
    }

    fn compile(&mut self, cluster: &Cluster, touched: &Touched) -> Acl {
        let all = touched.everything || self.fresh;
        if all {
            let generation = self.acl.generation;
            let watch = std::mem::take(&mut self.watch);
            *self = AclCompiler { fresh: false, watch, ..AclCompiler::for_node(self.acl.node.clone()) };
            self.acl.generation = generation;
        }
        let mut rules_differ = touched.policies.iter().any(|namespace| self.namespaces.contains(namespace));
        let pods_differ = all || touched.nodes.contains_key(&self.acl.node);
        if pods_differ {
            rules_differ |= self.take_stock(cluster);
        }
        let peers_differ = rules_differ && self.compile_rules(cluster);
        if peers_differ || !touched.namespaces.is_empty() {
            self.cluster.settle_all(cluster, &mut self.acl.sets);
        }
        for address in &touched.addresses {
            self.cluster.settle(cluster, *address, &mut self.acl.sets);
        }
        if pods_differ || rules_differ {
            self.local.settle_only(cluster, &self.addresses, &mut self.acl.sets);
            self.cluster.forget_gone(cluster);
        }
        let node = self.acl.node.clone();
        put_guard(&mut self.acl, self.watch.follow(cluster, touched, &node, all));
        self.acl.generation += 1;
        self.acl.node_addresses =
            cluster.node(&node).into_iter().flat_map(|node| node.addresses.iter().copied()).collect();
        self.acl.clone()
    }
}

impl AclNamespace {
    fn policy(&self, name: &str) -> Option<&Arc<AclPolicy>> {
        let position = self.policies.binary_search_by(|policy| (*policy.name).cmp(name)).ok()?;
        self.policies.get(position)
    }
}

impl AclCompiler {
    /// Looks who the node's pods are. Returns whether they are of other namespaces than before.
    fn take_stock(&mut self, cluster: &Cluster) -> bool {
        let namespaces = cluster.local_namespaces(&self.acl.node);
        let pods = namespaces.iter().flat_map(|namespace| cluster.local_pods(&self.acl.node, namespace));
        self.addresses = pods.flat_map(|(_, addresses)| addresses).collect();
        let differ = self.namespaces != namespaces;
        self.namespaces = namespaces;
        differ
    }

    /// Reads the policies. Returns whether they speak of other peers than before.
    fn compile_rules(&mut self, cluster: &Cluster) -> bool {
        let mut described = Described::default();
        for direction in Direction::ALL {
            let namespaces = self.namespaces.iter().filter_map(|name| {
                let before = self.acl.side(direction).get(name);
                Some((name.clone(), compile_namespace(cluster, name, direction, before, &mut described)?))
            });
            let namespaces = namespaces.collect();
            match direction {
                Direction::Ingress => self.acl.ingress = namespaces,
                Direction::Egress => self.acl.egress = namespaces,
            }
        }
        let sets = &mut self.acl.sets;
        let gone = sets.iter().filter(|(id, set)| !described.sets.contains_key(id) && set.role != SetRole::Known);
        let gone: Vec<_> = gone.map(|(id, _)| *id).collect();
        for id in gone {
            sets.remove(&id);
        }
        for (id, set) in described.sets {
            if !sets.contains_key(&id) {
                sets.insert(id, set);
            }
        }
        self.local.describe(described.local);
        self.cluster.describe(described.cluster)
    }
}

/// Writes a guard and its set down.
fn put_guard(acl: &mut Acl, guard: &Guard) {
    let known = known();
    if guard.ranges().is_empty() {
        // To remove what is not there would copy the map.
        if acl.guard.take().is_some() {
            acl.sets.remove(&known);
        }
        return;
    }
    if acl.guard.as_ref().is_none_or(|before| *before.ranges != *guard.ranges()) {
        acl.guard = Some(AclGuard { ranges: guard.ranges().into(), known });
    }
    let set = AclSet {
        role: SetRole::Known,
        members: Members::Addresses(guard.known().clone()),
        origin: "addresses of known pods".into(),
    };
    if acl.sets.get(&known) != Some(&set) {
        acl.sets.insert(known, set);
    }
}

/// `None` when no policy of the namespace isolates in this direction. What is as before keeps its place in memory, which
/// makes differences cheap to find.
fn compile_namespace(
    cluster: &Cluster,
    name: &Arc<str>,
    direction: Direction,
    before: Option<&Arc<AclNamespace>>,
    described: &mut Described,
) -> Option<Arc<AclNamespace>> {
    let mut isolated = None;
    let mut policies = Vec::new();
    for policy in cluster.policies_in(name).filter(|policy| policy.isolates.covers(direction)) {
        let subjects = PodTerm { namespaces: Namespaces::One(name.clone()), pods: Matcher::new(&policy.pods) };
        isolated = Some(described.isolated(name, direction, &subjects));
        let policy = PolicyCompiler { policy, direction, subjects, described }.compile();
        let same = before.and_then(|before| before.policy(&policy.name)).filter(|before| ***before == policy);
        policies.push(same.cloned().unwrap_or_else(|| Arc::new(policy)));
    }
    let namespace = AclNamespace { isolated: isolated?, policies };
    Some(before.filter(|before| ***before == namespace).cloned().unwrap_or_else(|| Arc::new(namespace)))
}

struct PolicyCompiler<'a> {
    policy: &'a Policy,
    direction: Direction,
    /// The pods that the policy selects.
    subjects: PodTerm,
    described: &'a mut Described,
}

impl PolicyCompiler<'_> {
    fn compile(mut self) -> AclPolicy {
        let policy = self.policy;
        AclPolicy {
            name: policy.id.name.clone(),
            selected: self.described.pods(Scope::Local, &self.subjects, None),
            rules: policy.rules(self.direction).iter().map(|rule| self.compile_rule(rule)).collect(),
        }
    }

    fn compile_rule(&mut self, rule: &Rule) -> AclRule {
        let PortSpec { numbers, names } = PortSpec::of(&rule.ports);
        let mut ports: Vec<AclPorts> = if numbers.is_everything() {
            vec![AclPorts::Any]
        } else {
            numbers.ranges().iter().copied().map(AclPorts::Range).collect()
        };
        if self.direction == Direction::Ingress {
            // The destination is the subject, whichever peer asks.
            let serving = names.iter().map(|name| self.described.pods(Scope::Local, &self.subjects, Some(name)));
            ports.extend(serving.map(AclPorts::Serving));
        }
        let mut entries = Vec::new();
        for who in self.peers(&rule.peers) {
            if !ports.is_empty() {
                let peers = self.described.peers(&who);
                entries.extend(ports.iter().map(|ports| AclEntry { peers, ports: *ports }));
            }
            if self.direction == Direction::Egress {
                // The destination is the peer. A name has a meaning on pods only.
                let pods = match who {
                    Who::Anyone => PodTerm::everything(),
                    Who::Pods(pods) => pods,
                    Who::Networks { .. } => continue,
                };
                let serving = names.iter().map(|name| self.described.pods(Scope::Cluster, &pods, Some(name)));
                entries.extend(serving.map(|set| AclEntry { peers: AclPeers::Anyone, ports: AclPorts::Serving(set) }));
            }
        }
        let mut seen = BTreeSet::new();
        entries.retain(|entry| seen.insert(*entry));
        AclRule { entries }
    }

    fn peers(&self, peers: &Peers) -> Vec<Who> {
        let Peers::OneOf(peers) = peers else {
            return vec![Who::Anyone];
        };
        let mut whos = Vec::new();
        let mut plain: BTreeSet<IpNet> = BTreeSet::new();
        for peer in peers {
            match peer {
                Peer::Pods { namespaces, pods } => {
                    whos.push(Who::Pods(PodTerm::of(&self.policy.id.namespace, namespaces, pods)));
                }
                Peer::Block(block) if block.except.is_empty() => {
                    plain.insert(block.cidr);
                }
                // An exception is one of its own block only.
                Peer::Block(block) => {
                    let except: BTreeSet<IpNet> = block.except.iter().copied().collect();
                    whos.push(Who::Networks { cidrs: vec![block.cidr], except: except.into_iter().collect() });
                }
            }
        }
        let (v4, v6): (Vec<IpNet>, Vec<IpNet>) = plain.into_iter().partition(|cidr| cidr.addr().is_ipv4());
        let families = [v4, v6].into_iter().filter(|cidrs| !cidrs.is_empty());
        whos.extend(families.map(|cidrs| Who::Networks { cidrs, except: Vec::new() }));
        whos
    }
}
