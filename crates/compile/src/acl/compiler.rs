//! The compiler of one node's list: keeps an [`Acl`] true to a [`Cluster`] with work that follows the change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdSet;
use ipnet::IpNet;
use ringfence_model::{Direction, EnforceAt, Enforcement, Peer, Peers, Policy, Rule};

use super::described::{self, Described, Scope, Sources, Who, known};
use super::population::Population;
use super::{
    Acl, AclBelieved, AclEntry, AclGuard, AclNamespace, AclPeers, AclPolicy, AclPorts, AclReach, AclRule, AclSet,
    Members, SetId, SetRole,
};
use crate::cluster::{Cluster, Touched};
use crate::compiler::Compiler;
use crate::guard::{Guard, UnknownPods, Watch};
use crate::judged::Share;
use crate::matcher::Matcher;
use crate::node::own_addresses;
use crate::reach::{Believed, Reach, ReachWatch};
use crate::terms::{Namespaces, PodTerm, PortSpec};

/// Compiles the list of one node, again and again.
///
/// A change of remote pods costs a few look-ups per address. Of the namespaces of the node's own pods those are compiled
/// again in which a policy changed, or that get their first pod here or lose the last; beyond them it is looked at the pods
/// only that belong in other sets than before, and at those of namespaces with other labels.
pub struct AclCompiler {
    acl: Acl,
    homes: BTreeMap<Arc<str>, Home>,
    /// How many homes refer to each set. Never zero.
    holders: HashMap<SetId, usize>,
    /// The members of sets of pods that the node judges when somebody connects to them.
    judged: Population,
    /// The members of sets of pods that the node judges when they connect to somebody.
    own: Population,
    /// The members of sets of peers.
    cluster: Population,
    watch: Watch,
    reach: ReachWatch,
    fresh: bool,
}

/// What a namespace of the pods that the node judges refers to. Policies elsewhere cannot select any of them.
#[derive(Default)]
struct Home {
    pods: Pods,
    sets: BTreeSet<SetId>,
    judged: Sources,
    own: Sources,
    cluster: Sources,
}

/// Which pods there are in a namespace.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Pods {
    /// Pods of the node.
    own: bool,
    /// Pods that the node judges when somebody connects to them.
    judged: bool,
}

impl Pods {
    fn of(share: Share<'_>, cluster: &Cluster, namespace: &Arc<str>) -> Pods {
        Pods {
            own: cluster.local_pods(share.node, namespace).next().is_some(),
            judged: share.has_pods(cluster, namespace),
        }
    }

    fn has(self, direction: Direction) -> bool {
        match direction {
            Direction::Ingress => self.judged,
            Direction::Egress => self.own,
        }
    }
}

impl Compiler for AclCompiler {
    type Output = Acl;

    fn for_node(node: Arc<str>) -> AclCompiler {
        AclCompiler {
            acl: Acl::empty(node),
            homes: BTreeMap::new(),
            holders: HashMap::new(),
            judged: Population::default(),
            own: Population::default(),
            cluster: Population::default(),
            watch: Watch::default(),
            reach: ReachWatch::default(),
            fresh: true,
        }
    }

    fn with_unknown_pods(mut self, unknown: UnknownPods) -> AclCompiler {
        self.watch.unknown = unknown;
        self
    }

    fn with_enforcement(mut self, enforcement: Enforcement) -> AclCompiler {
        self.reach.enforcement = enforcement;
        self
    }

    fn compile(&mut self, cluster: &Cluster, touched: &Touched) -> Acl {
        let all = touched.everything || self.fresh;
        if all {
            let generation = self.acl.generation;
            let (watch, reach) = (std::mem::take(&mut self.watch), std::mem::take(&mut self.reach));
            *self = AclCompiler { fresh: false, watch, reach, ..AclCompiler::for_node(self.acl.node.clone()) };
            self.acl.generation = generation;
        }
        let node = self.acl.node.clone();
        let outdated = self.outdated(cluster, touched, all);
        let mut released = Vec::new();
        for (namespace, pods) in &outdated {
            released.extend(self.compile_home(cluster, namespace, *pods));
        }
        // Last: a set that one namespace gives up and another takes keeps its members.
        for id in released {
            self.release(id);
        }
        let sets = &mut self.acl.sets;
        self.cluster.settle_affected(cluster, all, &touched.namespaces, sets);
        self.judged.forget_affected(cluster);
        self.own.forget_affected(cluster);
        let share = Share { node: &node, at: self.reach.enforcement.at };
        let own = Share { at: EnforceAt::Destination, ..share };
        for address in &touched.addresses {
            self.cluster.settle(cluster, *address, sets);
            self.own.settle_if(own.judges(cluster, *address), cluster, *address, sets);
        }
        for address in touched.addresses.union(&touched.endpoints) {
            self.judged.settle_if(share.judges(cluster, *address), cluster, *address, sets);
        }
        for (namespace, _) in &outdated {
            let addresses =
                |direction| share.pods(cluster, namespace, direction).into_iter().flat_map(|(_, owned)| owned);
            for address in addresses(Direction::Ingress) {
                self.judged.settle(cluster, address, sets);
            }
            for address in addresses(Direction::Egress) {
                self.own.settle(cluster, address, sets);
            }
        }
        for population in [&mut self.cluster, &mut self.judged, &mut self.own] {
            population.forget_gone(cluster);
        }
        put_guard(&mut self.acl, self.watch.follow(cluster, touched, &node, all));
        put_reach(&mut self.acl, self.reach.follow(cluster, touched, &node, all));
        self.acl.generation += 1;
        self.acl.node_addresses = cluster.node(&node).into_iter().flat_map(own_addresses).collect();
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
    /// The namespaces that have to be compiled again.
    fn outdated(&self, cluster: &Cluster, touched: &Touched, all: bool) -> Vec<(Arc<str>, Pods)> {
        let share = Share { node: &self.acl.node, at: self.reach.enforcement.at };
        if all {
            let namespaces = share.namespaces(cluster).into_iter();
            return namespaces.map(|namespace| (namespace.clone(), Pods::of(share, cluster, &namespace))).collect();
        }
        let mut outdated = Vec::new();
        for namespace in &share.touched(touched) {
            let pods = Pods::of(share, cluster, namespace);
            if pods != self.homes.get(namespace).map(|home| home.pods).unwrap_or_default() {
                outdated.push((namespace.clone(), pods));
            }
        }
        for namespace in touched.policies.iter().filter(|namespace| self.homes.contains_key(*namespace)) {
            if !outdated.iter().any(|(known, _)| known == namespace) {
                outdated.push((namespace.clone(), Pods::of(share, cluster, namespace)));
            }
        }
        outdated
    }

    /// Reads the policies of one namespace. Returns the sets that it referred to before, to be released.
    fn compile_home(&mut self, cluster: &Cluster, namespace: &Arc<str>, pods: Pods) -> BTreeSet<SetId> {
        let mut described = Described::default();
        for direction in Direction::ALL {
            let before = self.acl.side(direction).get(namespace).cloned();
            let after = if pods.has(direction) {
                compile_namespace(cluster, namespace, direction, before.as_ref(), &mut described)
            } else {
                None
            };
            let namespaces = match direction {
                Direction::Ingress => &mut self.acl.ingress,
                Direction::Egress => &mut self.acl.egress,
            };
            match (before, after) {
                (Some(before), Some(after)) if Arc::ptr_eq(&before, &after) => {}
                (_, Some(after)) => {
                    namespaces.insert(namespace.clone(), after);
                }
                (Some(_), None) => {
                    namespaces.remove(namespace);
                }
                (None, None) => {}
            }
        }
        let before = self.homes.remove(namespace).unwrap_or_default();
        let Described { sets, judged, own, cluster } = described;
        let after = Home { pods, sets: sets.keys().copied().collect(), judged, own, cluster };
        for (id, set) in sets {
            let holders = self.holders.entry(id).or_default();
            if *holders == 0 {
                self.acl.sets.insert(id, set);
            }
            *holders += 1;
        }
        self.judged.describe(&after.judged, &before.judged);
        self.own.describe(&after.own, &before.own);
        self.cluster.describe(&after.cluster, &before.cluster);
        if pods != Pods::default() {
            self.homes.insert(namespace.clone(), after);
        }
        before.sets
    }

    fn release(&mut self, id: SetId) {
        let Some(holders) = self.holders.get_mut(&id) else { return };
        *holders -= 1;
        if *holders == 0 {
            self.holders.remove(&id);
            self.acl.sets.remove(&id);
        }
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

/// Writes a reach and its sets down.
fn put_reach(acl: &mut Acl, reach: &Reach) {
    let Reach { judges_others, local, nodes, believed, unmasqueraded } = reach;
    let wants_local = *judges_others || !unmasqueraded.is_empty();
    let next = AclReach {
        judges_others: *judges_others,
        local: wants_local.then(described::local),
        nodes: (*believed != Believed::Nothing).then(described::nodes),
        believed: match believed {
            Believed::Nothing => AclBelieved::Nothing,
            Believed::Endpoints(_) => AclBelieved::Endpoints(described::believed()),
            Believed::LocalPods => AclBelieved::LocalPods,
            Believed::Everything => AclBelieved::Everything,
        },
        unmasqueraded: unmasqueraded.clone(),
    };
    let endpoints = if let Believed::Endpoints(endpoints) = believed { Some(endpoints) } else { None };
    let addresses = |set: &OrdSet<IpAddr>| Members::Addresses(set.clone());
    for (id, role, members, origin) in [
        (described::local(), SetRole::Local, next.local.map(|_| addresses(local)), "pods of this node"),
        (described::nodes(), SetRole::Nodes, next.nodes.map(|_| addresses(nodes)), "addresses of other nodes"),
        (
            described::believed(),
            SetRole::Believed,
            endpoints.map(|endpoints| Members::Endpoints(endpoints.clone())),
            "endpoints that other nodes judge",
        ),
    ] {
        // To write what is as before, or to remove what is not there, would copy the map.
        match members {
            Some(members) => {
                let set = AclSet { role, members, origin: origin.into() };
                if acl.sets.get(&id) != Some(&set) {
                    acl.sets.insert(id, set);
                }
            }
            None if acl.sets.contains_key(&id) => {
                acl.sets.remove(&id);
            }
            None => {}
        }
    }
    acl.reach = next;
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
            selected: self.described.pods(Scope::Judged, &self.subjects, None),
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
            let serving = names.iter().map(|name| self.described.pods(Scope::Judged, &self.subjects, Some(name)));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compiler::tests;

    #[test]
    fn nothing_is_left_of_what_is_gone() {
        tests::nothing_is_left_of_what_is_gone(|compiler: &AclCompiler, said| {
            assert!(compiler.homes.is_empty() && compiler.holders.is_empty(), "{said}");
            assert!(compiler.judged.is_empty() && compiler.own.is_empty() && compiler.cluster.is_empty(), "{said}");
            assert!(compiler.acl.sets.is_empty(), "{said}");
        });
    }
}
