//! Access control lists: against the oracle and the compiled programs on random clusters and flows, incremental against
//! from scratch, and what exactly is in their sets.
//!
//! `PROPTEST_CASES=100000 cargo test --release -p ringfence-compile --test acl` runs millions of flows.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use arbitrary::Unstructured;
use ipnet::IpNet;
use proptest::prelude::*;
use ringfence_compile::acl::{
    Acl, AclCompiler, AclEntry, AclNamespace, AclPeers, AclPolicy, AclPorts, AclReason, AclSet, Members, SetId, SetRole,
};
use ringfence_compile::{Cluster, Compiler, NodeCompiler, ProtocolRange, Touched};
use ringfence_model::{
    Action, ContainerPort, Direction, Flow, IpBlock, Isolation, Labels, Namespace, NamespaceScope, Node, Object,
    ObjectKey, Operator, Peer, Peers, Phase, Pod, PodId, Policy, PolicyId, PortMatch, PortRange, Ports, Protocol,
    Requirement, Rule, Selector, Tier, Transport,
};
use ringfence_oracle::{Answer, Reason, State, judge};
use ringfence_scenario::{Event, cluster, events, flows};

const FLOWS_PER_CASE: usize = 300;

/// What every node of a cluster must enforce, in one of its forms.
fn from_scratch<C: Compiler>(objects: impl IntoIterator<Item = Object>) -> BTreeMap<Arc<str>, C::Output> {
    let mut state = Cluster::new();
    let mut touched = Touched::default();
    state.reset(objects, &mut touched).unwrap();
    let nodes = state.node_names().into_iter();
    nodes.map(|node| (node.clone(), C::for_node(node).compile(&state, &touched))).collect()
}

/// The rule that a list and the oracle must name: the first of the first policy.
fn first_rule(answer: &Answer) -> Option<(&str, &str, usize)> {
    match &answer.reason {
        Reason::AllowedBy(rules) => rules.first().map(|rule| (&*rule.policy.namespace, &*rule.policy.name, rule.rule)),
        _ => None,
    }
}

fn named_rule(reason: AclReason<'_>) -> Option<(&str, &str, usize)> {
    match reason {
        AclReason::Rule { namespace, policy, rule } => Some((namespace, policy, rule)),
        _ => None,
    }
}

/// What the cluster as a whole does with a flow: every node enforces its own pods and leaves the others alone.
fn check_flows(objects: &[Object], flows: &[Flow]) {
    let acls = from_scratch::<AclCompiler>(objects.iter().cloned());
    let programs = from_scratch::<NodeCompiler>(objects.iter().cloned());
    acls.values().for_each(check_sets);
    let oracle = State::new(objects).unwrap();
    // A pod that is not on a node yet has no agent: nobody can enforce anything for it.
    let unscheduled: Vec<_> = objects
        .iter()
        .filter_map(|object| match object {
            Object::Pod(pod) if pod.node.is_none() => Some(pod),
            _ => None,
        })
        .flat_map(|pod| pod.addresses.iter().copied())
        .collect();
    for flow in flows {
        let verdict = judge(&oracle, flow);
        let judgements: Vec<_> = acls.values().map(|acl| acl.eval(flow)).collect();
        let egress: Vec<_> = judgements.iter().map(|judgement| judgement.egress).collect();
        let ingress: Vec<_> = judgements.iter().map(|judgement| judgement.ingress).collect();
        for (side, answer, subject) in
            [(egress, &verdict.egress, flow.source), (ingress, &verdict.ingress, flow.destination)]
        {
            if !unscheduled.contains(&subject) {
                let allowed = side.iter().all(|verdict| verdict.allowed);
                assert_eq!(allowed, answer.allowed, "{flow}, {subject}: {answer:?}, {side:?}");
                let named = side.iter().find_map(|verdict| named_rule(verdict.because));
                assert_eq!(named, first_rule(answer), "{flow}, {subject}: {answer:?}, {side:?}");
            }
        }
        for (acl, program) in acls.values().zip(programs.values()) {
            let (acl, program) = (acl.eval(flow), program.eval(flow));
            assert_eq!(acl.egress.allowed, program.egress.allowed, "egress of {flow}: {acl:?}, {program:?}");
            assert_eq!(acl.ingress.allowed, program.ingress.allowed, "ingress of {flow}: {acl:?}, {program:?}");
        }
    }
}

/// What every list promises: each reference leads to a set of the kind it needs, no set is left over, everything is in
/// normal form.
fn check_sets(acl: &Acl) {
    let mut used: BTreeMap<SetId, SetRole> = BTreeMap::new();
    let mut refer = |id: SetId, role: SetRole| assert_eq!(*used.entry(id).or_insert(role), role, "{id}");
    for direction in Direction::ALL {
        for namespace in acl.side(direction).values() {
            refer(namespace.isolated, SetRole::Isolated);
            assert!(!namespace.policies.is_empty());
            assert!(namespace.policies.is_sorted_by(|a, b| a.name < b.name));
            for policy in &namespace.policies {
                refer(policy.selected, SetRole::Selected);
                for rule in &policy.rules {
                    let distinct: BTreeSet<&AclEntry> = rule.entries.iter().collect();
                    assert_eq!(distinct.len(), rule.entries.len(), "{rule:?}");
                    for entry in &rule.entries {
                        if let AclPeers::Set(id) = entry.peers {
                            refer(id, SetRole::Peers);
                        }
                        if let AclPorts::Serving(id) = entry.ports {
                            refer(id, SetRole::Serving);
                        }
                    }
                }
            }
        }
    }
    if let Some(guard) = &acl.guard {
        assert!(!guard.ranges.is_empty());
        refer(guard.known, SetRole::Known);
    }
    let found: BTreeMap<SetId, SetRole> = acl.sets.iter().map(|(id, set)| (*id, set.role)).collect();
    assert_eq!(found, used);
    for set in acl.sets.values() {
        assert!(!set.origin.is_empty());
        match &set.members {
            Members::Addresses(_) => assert_ne!(set.role, SetRole::Serving),
            Members::Endpoints(_) => assert_eq!(set.role, SetRole::Serving),
            Members::Networks { cidrs, except } => {
                assert_eq!(set.role, SetRole::Peers);
                assert!(!cidrs.is_empty() && (except.is_empty() || cidrs.len() == 1), "{cidrs:?} {except:?}");
                for networks in [cidrs, except] {
                    assert!(networks.is_sorted_by(|a, b| a < b), "{networks:?}");
                    assert!(networks.iter().all(|network| *network == network.trunc()), "{networks:?}");
                }
                assert!(cidrs.iter().all(|cidr| cidr.addr().is_ipv4() == cidrs[0].addr().is_ipv4()), "{cidrs:?}");
                assert!(except.iter().all(|except| cidrs[0].contains(except) && cidrs[0] != *except), "{except:?}");
            }
        }
    }
}

/// What is equal in two lists that follow each other is the same memory: finding the difference looks at nothing else.
fn check_sharing(before: &Acl, after: &Acl) {
    for direction in Direction::ALL {
        for (name, namespace) in after.side(direction) {
            let Some(older) = before.side(direction).get(name) else { continue };
            assert_eq!(Arc::ptr_eq(older, namespace), older == namespace, "{name}");
            for policy in &namespace.policies {
                let older = older.policies.iter().find(|older| older == &policy);
                assert!(older.is_none_or(|older| Arc::ptr_eq(older, policy)), "{name}/{}", policy.name);
            }
        }
    }
    for (id, set) in &after.sets {
        match (before.sets.get(id).map(|set| &set.members), &set.members) {
            (Some(Members::Addresses(older)), Members::Addresses(newer)) => {
                assert_eq!(older.ptr_eq(newer), older == newer, "{id} {}", set.origin);
            }
            (Some(Members::Endpoints(older)), Members::Endpoints(newer)) => {
                assert_eq!(older.ptr_eq(newer), older == newer, "{id} {}", set.origin);
            }
            _ => {}
        }
    }
}

/// Nothing that has to do with policies or with the existence of a namespace on the node is another one.
fn same_rules(before: &Acl, after: &Acl) -> bool {
    Direction::ALL.into_iter().all(|direction| {
        let (before, after) = (before.side(direction), after.side(direction));
        before.len() == after.len()
            && before.iter().zip(after).all(|((_, before), (_, after))| Arc::ptr_eq(before, after))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn lists_agree_with_the_oracle_and_with_programs(bytes in prop::collection::vec(any::<u8>(), 500..4000)) {
        let mut u = Unstructured::new(&bytes);
        let objects = cluster(&mut u).unwrap();
        let seed = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        let flow_bytes = ringfence_scenario::bytes(seed, FLOWS_PER_CASE * 40);
        let flows = flows(&mut Unstructured::new(&flow_bytes), &objects, FLOWS_PER_CASE).unwrap();
        prop_assert_eq!(flows.len(), FLOWS_PER_CASE);
        check_flows(&objects, &flows);
    }

    #[test]
    fn incremental_is_from_scratch(bytes in prop::collection::vec(any::<u8>(), 500..3000), batch in 1_usize..5) {
        let events = events(&mut Unstructured::new(&bytes), 40).unwrap();
        let mut objects: BTreeMap<ObjectKey, Object> = BTreeMap::new();
        let mut state = Cluster::new();
        let mut compilers: BTreeMap<Arc<str>, (AclCompiler, Acl)> = ["node-1", "node-2"]
            .map(|node| (node.into(), (AclCompiler::for_node(node.into()), Acl::empty(node.into()))))
            .into();
        for batch in events.chunks(batch) {
            let mut touched = Touched::default();
            for event in batch {
                match event {
                    Event::Apply(object) => {
                        state.apply(object.clone(), &mut touched).unwrap();
                        objects.insert(object.key(), object.clone());
                    }
                    Event::Delete(key) => {
                        state.delete(key, &mut touched);
                        objects.remove(key);
                    }
                }
            }
            let policies = batch.iter().any(|event| {
                matches!(event, Event::Apply(Object::Policy(_)) | Event::Delete(ObjectKey::Policy(_)))
            });
            let scratch = from_scratch::<AclCompiler>(objects.values().cloned());
            for (node, (compiler, before)) in &mut compilers {
                let incremental = compiler.compile(&state, &touched);
                prop_assert_eq!(incremental.generation, before.generation + 1);
                let wanted = scratch.get(node).cloned().unwrap_or_else(|| Acl::empty(node.clone()));
                let wanted = Acl { generation: incremental.generation, ..wanted };
                prop_assert_eq!(&incremental, &wanted, "{:?}", batch);
                check_sets(&incremental);
                check_sharing(before, &incremental);
                let namespaces = |acl: &Acl| -> Vec<Vec<Arc<str>>> {
                    Direction::ALL.map(|direction| acl.side(direction).keys().cloned().collect()).into()
                };
                if !policies && namespaces(before) == namespaces(&incremental) {
                    prop_assert!(same_rules(before, &incremental), "{:?}", batch);
                }
                *before = incremental;
            }
        }
    }
}

/// A cluster, and the list of `node-1` as it follows.
struct World {
    state: Cluster,
    compiler: AclCompiler,
    objects: BTreeMap<ObjectKey, Object>,
}

impl World {
    fn new() -> World {
        World { state: Cluster::new(), compiler: AclCompiler::for_node("node-1".into()), objects: BTreeMap::new() }
    }

    fn apply(&mut self, objects: impl IntoIterator<Item = Object>) -> Acl {
        let mut touched = Touched::default();
        for object in objects {
            self.objects.insert(object.key(), object.clone());
            self.state.apply(object, &mut touched).unwrap();
        }
        self.compile(&touched)
    }

    fn delete(&mut self, object: &Object) -> Acl {
        let mut touched = Touched::default();
        self.objects.remove(&object.key());
        self.state.delete(&object.key(), &mut touched);
        self.compile(&touched)
    }

    fn compile(&mut self, touched: &Touched) -> Acl {
        let acl = self.compiler.compile(&self.state, touched);
        check_sets(&acl);
        let scratch = from_scratch::<AclCompiler>(self.objects.values().cloned());
        let scratch = scratch.get("node-1").cloned().unwrap_or_else(|| Acl::empty("node-1".into()));
        assert_eq!(acl, Acl { generation: acl.generation, ..scratch });
        acl
    }
}

fn labels<T: FromIterator<(Arc<str>, Arc<str>)>>(labels: &[(&str, &str)]) -> T {
    labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
}

fn namespace(name: &str, more: &[(&str, &str)]) -> Object {
    let labels = labels::<Labels>(more).with("kubernetes.io/metadata.name", name);
    Object::Namespace(Namespace { name: name.into(), labels })
}

/// A pod of namespace `shop` with the label `app`.
fn pod(name: &str, node: &str, app: &str, address: &str) -> Pod {
    Pod {
        id: PodId(name.into()),
        static_uid: None,
        namespace: "shop".into(),
        name: name.into(),
        labels: labels(&[("app", app)]),
        node: Some(node.into()),
        addresses: vec![address.parse().unwrap()],
        host_network: false,
        phase: Phase::Live,
        created: 0,
        ports: Vec::new(),
    }
}

fn serving(pod: Pod, ports: &[(&str, Protocol, u16)]) -> Pod {
    let port = |(name, protocol, port): &(&str, Protocol, u16)| ContainerPort {
        name: Some((*name).into()),
        protocol: *protocol,
        port: *port,
    };
    Pod { ports: ports.iter().map(port).collect(), ..pod }
}

fn app(app: &str) -> Selector {
    Selector { match_labels: labels(&[("app", app)]), match_expressions: Vec::new() }
}

fn pods(selector: Selector) -> Peer {
    Peer::Pods { namespaces: NamespaceScope::Own, pods: selector }
}

fn block(cidr: &str, except: &[&str]) -> Peer {
    let except = except.iter().map(|except| except.parse().unwrap()).collect();
    Peer::Block(IpBlock { cidr: cidr.parse().unwrap(), except })
}

fn rule(peers: &[Peer], ports: &[PortMatch]) -> Rule {
    Rule {
        action: Action::Accept,
        peers: if peers.is_empty() { Peers::Any } else { Peers::OneOf(peers.to_vec()) },
        ports: if ports.is_empty() { Ports::Any } else { Ports::OneOf(ports.to_vec()) },
    }
}

fn named(name: &str) -> PortMatch {
    PortMatch::Named(Protocol::Tcp, name.into())
}

fn tcp(first: u16, last: u16) -> PortMatch {
    PortMatch::Number(Protocol::Tcp, PortRange { first, last })
}

/// A policy of namespace `shop`.
fn policy(name: &str, selects: Selector, direction: Direction, rules: Vec<Rule>) -> Policy {
    let is = |other| direction == other;
    let (ingress, egress) = if is(Direction::Ingress) { (rules, Vec::new()) } else { (Vec::new(), rules) };
    Policy {
        id: PolicyId { tier: Tier::Namespace, namespace: "shop".into(), name: name.into() },
        priority: 0,
        namespaces: NamespaceScope::Own,
        pods: selects,
        isolates: Isolation { ingress: is(Direction::Ingress), egress: is(Direction::Egress) },
        ingress,
        egress,
    }
}

fn shop(acl: &Acl, direction: Direction) -> &Arc<AclNamespace> {
    acl.side(direction).get("shop").unwrap()
}

fn only_policy(acl: &Acl, direction: Direction) -> &AclPolicy {
    assert_eq!(shop(acl, direction).policies.len(), 1);
    &shop(acl, direction).policies[0]
}

fn addresses(acl: &Acl, set: SetId) -> Vec<String> {
    match &acl.sets[&set].members {
        Members::Addresses(addresses) => addresses.iter().map(ToString::to_string).collect(),
        other => panic!("{other:?}"),
    }
}

fn endpoints(acl: &Acl, ports: AclPorts) -> Vec<String> {
    let AclPorts::Serving(set) = ports else { panic!("{ports:?}") };
    match &acl.sets[&set].members {
        Members::Endpoints(endpoints) => {
            endpoints.iter().map(|(address, protocol, port)| format!("{address} {protocol}/{port}")).collect()
        }
        other => panic!("{other:?}"),
    }
}

fn peers(acl: &Acl, entry: AclEntry) -> &AclSet {
    let AclPeers::Set(set) = entry.peers else { panic!("{entry:?}") };
    &acl.sets[&set]
}

fn networks(acl: &Acl, entry: AclEntry) -> (Vec<String>, Vec<String>) {
    let text = |networks: &[IpNet]| networks.iter().map(ToString::to_string).collect();
    match &peers(acl, entry).members {
        Members::Networks { cidrs, except } => (text(cidrs), text(except)),
        other => panic!("{other:?}"),
    }
}

/// The sets in which two lists differ, by origin.
fn changed(before: &Acl, after: &Acl) -> BTreeSet<String> {
    let differing = before.sets.diff(&after.sets).map(|item| match item {
        imbl::ordmap::DiffItem::Add(_, set) | imbl::ordmap::DiffItem::Remove(_, set) => set,
        imbl::ordmap::DiffItem::Update { new: (_, set), .. } => set,
    });
    differing.map(|set| format!("{:?} {}", set.role, set.origin)).collect()
}

fn set_of<const N: usize>(texts: [&str; N]) -> BTreeSet<String> {
    texts.map(String::from).into()
}

#[test]
fn pods_change_sets_and_no_rules() {
    let mut world = World::new();
    let db = pod("db", "node-1", "db", "10.0.0.1");
    let rules = vec![rule(&[pods(app("api"))], &[tcp(5432, 5432)]), rule(&[pods(app("api"))], &[named("metrics")])];
    let start = world.apply([
        Object::Pod(db.clone()),
        Object::Policy(policy("db", app("db"), Direction::Ingress, rules.clone())),
        Object::Policy(policy("out", app("db"), Direction::Egress, rules)),
    ]);
    let selected = shop(&start, Direction::Ingress).policies[0].selected;
    assert_eq!(addresses(&start, selected), ["10.0.0.1"]);

    // A remote peer.
    let api = serving(pod("api", "node-2", "api", "10.0.1.1"), &[("metrics", Protocol::Tcp, 9000)]);
    let more = world.apply([Object::Pod(api.clone())]);
    assert!(same_rules(&start, &more));
    check_sharing(&start, &more);
    assert_eq!(
        changed(&start, &more),
        set_of(["Peers shop/[app=api]", "Serving shop/[app=api] with TCP metrics"]),
        "and not the set of the same name's ports on db"
    );

    // The same pod with another number: one element, no rule.
    let moved = world.apply([Object::Pod(serving(api.clone(), &[("metrics", Protocol::Tcp, 9001)]))]);
    assert!(same_rules(&more, &moved));
    assert_eq!(changed(&more, &moved), set_of(["Serving shop/[app=api] with TCP metrics"]));

    // A remote pod that nothing speaks of.
    let other = world.apply([Object::Pod(pod("web", "node-2", "web", "10.0.1.2"))]);
    assert!(same_rules(&moved, &other) && moved.sets.ptr_eq(&other.sets));

    // A local pod comes, is relabelled, goes.
    let second = pod("db-2", "node-1", "db", "10.0.0.2");
    let two = world.apply([Object::Pod(second.clone())]);
    assert!(same_rules(&other, &two));
    let all_local =
        set_of(["Isolated shop, isolated for ingress", "Isolated shop, isolated for egress", "Selected shop/[app=db]"]);
    assert_eq!(changed(&other, &two), all_local);
    assert_eq!(addresses(&two, selected), ["10.0.0.1", "10.0.0.2"]);
    let relabelled = world.apply([Object::Pod(Pod { labels: labels(&[("app", "api")]), ..second.clone() })]);
    assert!(same_rules(&two, &relabelled));
    let mut and_peers = all_local;
    and_peers.insert("Peers shop/[app=api]".into());
    assert_eq!(changed(&two, &relabelled), and_peers);
    assert_eq!(addresses(&relabelled, selected), ["10.0.0.1"]);
    let gone = world.delete(&Object::Pod(second));
    assert!(same_rules(&relabelled, &gone));
    assert_eq!(changed(&relabelled, &gone), set_of(["Peers shop/[app=api]"]));

    // The last local pod takes the namespace with it, and the first brings it back.
    let empty = world.delete(&Object::Pod(db.clone()));
    assert!(empty.ingress.is_empty() && empty.egress.is_empty() && empty.sets.is_empty());
    let back = world.apply([Object::Pod(db)]);
    assert_eq!((&back.ingress, &back.egress, &back.sets), (&gone.ingress, &gone.egress, &gone.sets));
}

#[test]
fn policies_change_only_what_they_say() {
    let mut world = World::new();
    let to_api = |name: &str| {
        let rules = vec![rule(&[pods(app("api"))], &[tcp(80, 80)])];
        Object::Policy(policy(name, app("db"), Direction::Ingress, rules))
    };
    let start = world.apply([
        Object::Pod(pod("db", "node-1", "db", "10.0.0.1")),
        Object::Pod(pod("api", "node-2", "api", "10.0.1.1")),
        to_api("a"),
    ]);
    // Another policy that says the same needs no other set.
    let same = world.apply([to_api("b")]);
    assert!(start.sets.ptr_eq(&same.sets));
    let (before, after) = (shop(&start, Direction::Ingress), shop(&same, Direction::Ingress));
    assert!(after.policies.len() == 2 && Arc::ptr_eq(&before.policies[0], &after.policies[0]));
    // A policy that mentions a new label regroups pods; nobody's place in the sets that are there is another one.
    let split = Selector { match_labels: labels(&[("app", "api"), ("tier", "x")]), match_expressions: Vec::new() };
    let third = policy("c", app("db"), Direction::Ingress, vec![rule(&[pods(split)], &[])]);
    let three = world.apply([Object::Policy(third.clone())]);
    check_sharing(&same, &three);
    assert_eq!(changed(&same, &three), set_of(["Peers shop/[app=api,tier=x]"]));
    // While a set is not in use, pods come and go unseen by it.
    world.delete(&Object::Policy(third.clone()));
    let tiered = Pod { labels: labels(&[("app", "api"), ("tier", "x")]), ..pod("api-2", "node-2", "api", "10.0.1.2") };
    world.apply([Object::Pod(tiered)]);
    let again = world.apply([Object::Policy(third)]);
    let entry = shop(&again, Direction::Ingress).policies[2].rules[0].entries[0];
    let AclPeers::Set(set) = entry.peers else { panic!("{entry:?}") };
    assert_eq!(addresses(&again, set), ["10.0.1.2"]);
    // A policy of a namespace without local pods concerns nobody here.
    let mut elsewhere = policy("a", Selector::default(), Direction::Ingress, Vec::new());
    elsewhere.id.namespace = "web".into();
    let same = world.apply([Object::Policy(elsewhere)]);
    assert!(same_rules(&again, &same) && again.sets.ptr_eq(&same.sets));
}

#[test]
fn a_rule_that_can_match_nothing_keeps_its_place() {
    let mut world = World::new();
    let rules = vec![
        rule(&[block("10.0.0.0/8", &[]), block("fd00::/8", &["fd00::/16"])], &[named("http")]),
        rule(&[], &[tcp(80, 80)]),
    ];
    let acl = world.apply([
        Object::Pod(pod("db", "node-1", "db", "10.0.0.1")),
        Object::Policy(policy("out", app("db"), Direction::Egress, rules)),
    ]);
    let policy = only_policy(&acl, Direction::Egress);
    assert_eq!(policy.rules.len(), 2);
    assert_eq!(policy.rules[0].entries, []);
    let flow = Flow {
        source: "10.0.0.1".parse().unwrap(),
        destination: "10.9.9.9".parse().unwrap(),
        transport: Transport::Port(Protocol::Tcp, 80),
    };
    assert_eq!(acl.eval(&flow).egress.because, AclReason::Rule { namespace: "shop", policy: "out", rule: 1 });
    // The networks that no entry names are not there.
    assert_eq!(acl.sets.len(), 2);
}

#[test]
fn a_policy_without_rules_isolates() {
    let mut world = World::new();
    let acl = world.apply([
        Object::Pod(pod("db", "node-1", "db", "10.0.0.1")),
        Object::Pod(pod("api", "node-1", "api", "10.0.0.2")),
        Object::Policy(policy("deny", app("db"), Direction::Ingress, Vec::new())),
        Object::Policy(policy("nobody", app("none"), Direction::Ingress, Vec::new())),
    ]);
    assert!(acl.egress.is_empty());
    let shop = shop(&acl, Direction::Ingress);
    assert_eq!(addresses(&acl, shop.isolated), ["10.0.0.1"]);
    let policies: Vec<_> =
        shop.policies.iter().map(|p| (&*p.name, addresses(&acl, p.selected), p.rules.len())).collect();
    assert_eq!(policies, [("deny", vec!["10.0.0.1".to_owned()], 0), ("nobody", vec![], 0)]);
}

#[test]
fn a_port_name_is_looked_up_on_the_destination() {
    let mut world = World::new();
    let http = |number| [("http", Protocol::Tcp, number), ("http", Protocol::Udp, 53), ("other", Protocol::Tcp, 1)];
    let both = [named("http"), tcp(80, 80)];
    let named_only = [named("http")];
    let rules = || {
        vec![
            rule(&[pods(app("api")), block("10.0.0.0/8", &[])], &both),
            rule(&[pods(app("api"))], &named_only),
            rule(&[], &named_only),
            rule(&[pods(app("db"))], &named_only),
        ]
    };
    let acl = world.apply([
        Object::Pod(serving(pod("db", "node-1", "db", "10.0.0.1"), &http(8080))),
        Object::Pod(serving(pod("db-2", "node-2", "db", "10.0.0.2"), &http(8081))),
        Object::Pod(serving(pod("api", "node-2", "api", "10.0.0.3"), &http(8082))),
        Object::Pod(pod("none", "node-1", "none", "10.0.0.4")),
        Object::Policy(policy("in", app("db"), Direction::Ingress, rules())),
        Object::Policy(policy("out", app("db"), Direction::Egress, rules())),
    ]);
    let range = AclPorts::Range(ProtocolRange { protocol: Protocol::Tcp, ports: PortRange::single(80) });

    // Ingress: the local pods that the policy selects, combined with whoever asks, blocks too.
    let ingress = only_policy(&acl, Direction::Ingress);
    let [by_number, by_name, block_by_number, block_by_name] = ingress.rules[0].entries[..] else { panic!() };
    assert_eq!((by_number.ports, block_by_number.ports), (range, range));
    assert_eq!(endpoints(&acl, by_name.ports), ["10.0.0.1 TCP/8080"]);
    assert_eq!(block_by_name.ports, by_name.ports);
    assert_eq!((by_name.peers, block_by_name.peers), (by_number.peers, block_by_number.peers));
    assert_eq!(ingress.rules[1].entries, [by_name]);
    assert_eq!(ingress.rules[2].entries, [AclEntry { peers: AclPeers::Anyone, ports: by_name.ports }]);

    // Egress: the peers, wherever they are, each with its own number; nothing for blocks.
    let egress = only_policy(&acl, Direction::Egress);
    let [by_number, by_name, block_by_number] = egress.rules[0].entries[..] else { panic!() };
    assert_eq!((by_number.ports, block_by_number.ports), (range, range));
    assert_eq!(by_name.peers, AclPeers::Anyone);
    assert_eq!(endpoints(&acl, by_name.ports), ["10.0.0.3 TCP/8082"]);
    assert_eq!(egress.rules[1].entries, [by_name]);
    let [anyone] = egress.rules[2].entries[..] else { panic!() };
    assert_eq!(anyone.peers, AclPeers::Anyone);
    assert_eq!(endpoints(&acl, anyone.ports), ["10.0.0.1 TCP/8080", "10.0.0.2 TCP/8081", "10.0.0.3 TCP/8082"]);
    // The same pods as subjects and as destinations: local ones and all of them are two sets.
    let [own] = egress.rules[3].entries[..] else { panic!() };
    assert_eq!(endpoints(&acl, own.ports), ["10.0.0.1 TCP/8080", "10.0.0.2 TCP/8081"]);
}

#[test]
fn blocks_of_one_rule_are_one_set_unless_they_have_exceptions() {
    let mut world = World::new();
    let blocks = [
        block("10.0.0.0/16", &[]),
        block("::/0", &["fd00::/8", "fc00::/7", "fd00::/8"]),
        block("0.0.0.0/0", &[]),
        block("10.0.0.0/16", &[]),
        block("10.0.0.0/8", &["10.0.0.0/16"]),
        block("fd00::/64", &[]),
    ];
    let acl = world.apply([
        Object::Pod(pod("db", "node-1", "db", "10.0.0.1")),
        Object::Policy(policy("in", app("db"), Direction::Ingress, vec![rule(&blocks, &[])])),
    ]);
    let entries = &only_policy(&acl, Direction::Ingress).rules[0].entries;
    assert!(entries.iter().all(|entry| entry.ports == AclPorts::Any));
    let found: Vec<_> = entries.iter().map(|entry| networks(&acl, *entry)).collect();
    let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        found,
        [
            (texts(&["::/0"]), texts(&["fc00::/7", "fd00::/8"])),
            (texts(&["10.0.0.0/8"]), texts(&["10.0.0.0/16"])),
            (texts(&["0.0.0.0/0", "10.0.0.0/16"]), texts(&[])),
            (texts(&["fd00::/64"]), texts(&[])),
        ]
    );
    assert_eq!(&*peers(&acl, entries[0]).origin, "::/0 except fc00::/7,fd00::/8");
}

#[test]
fn one_description_is_one_set() {
    let mut world = World::new();
    let expression = |key: &str| Requirement { key: key.into(), operator: Operator::In(BTreeSet::from(["db".into()])) };
    let written_otherwise =
        Selector { match_labels: BTreeMap::new(), match_expressions: vec![expression("app"), expression("app")] };
    let twice = vec![rule(&[pods(app("api")), pods(app("api"))], &[tcp(1, 9), tcp(10, 20), tcp(5, 5)])];
    let acl = world.apply([
        Object::Pod(pod("db", "node-1", "db", "10.0.0.1")),
        Object::Policy(policy("a", app("db"), Direction::Ingress, twice)),
        Object::Policy(policy("b", written_otherwise, Direction::Egress, Vec::new())),
    ]);
    let (ingress, egress) = (only_policy(&acl, Direction::Ingress), only_policy(&acl, Direction::Egress));
    assert_eq!(ingress.selected, egress.selected);
    assert_ne!(shop(&acl, Direction::Ingress).isolated, shop(&acl, Direction::Egress).isolated);
    let [entry] = ingress.rules[0].entries[..] else { panic!() };
    let ports = PortRange { first: 1, last: 20 };
    assert_eq!(entry.ports, AclPorts::Range(ProtocolRange { protocol: Protocol::Tcp, ports }));
    // The same selector as subjects and as peers: local pods and all pods are two sets.
    let own = policy("a", app("db"), Direction::Ingress, vec![rule(&[pods(app("db"))], &[])]);
    let acl = world.apply([Object::Policy(own), Object::Pod(pod("db-2", "node-2", "db", "10.0.1.1"))]);
    let policy = only_policy(&acl, Direction::Ingress);
    let AclPeers::Set(peers) = policy.rules[0].entries[0].peers else { panic!() };
    assert_eq!(addresses(&acl, policy.selected), ["10.0.0.1"]);
    assert_eq!(addresses(&acl, peers), ["10.0.0.1", "10.0.1.1"]);
}

/// A set stands for what it says, not for who says it.
#[test]
fn a_set_that_one_namespace_gives_up_and_another_takes_keeps_its_members() {
    let mut world = World::new();
    let everywhere = Peer::Pods { namespaces: NamespaceScope::Matching(Selector::default()), pods: app("api") };
    let policy_of = |namespace: &str| {
        let policy = policy("in", app("db"), Direction::Ingress, vec![rule(std::slice::from_ref(&everywhere), &[])]);
        Object::Policy(Policy { id: PolicyId { namespace: namespace.into(), ..policy.id }, ..policy })
    };
    let local = |namespace: &str, address| {
        Object::Pod(Pod { namespace: namespace.into(), ..pod(&format!("db-of-{namespace}"), "node-1", "db", address) })
    };
    // In either order of names: namespaces are compiled one after the other.
    for (from, to) in [("shop", "web"), ("web", "shop")] {
        world.apply([
            namespace("shop", &[]),
            namespace("web", &[]),
            Object::Pod(pod("api", "node-2", "api", "10.0.1.1")),
            local("shop", "10.0.0.1"),
            local("web", "10.0.0.2"),
            policy_of(from),
        ]);
        let mut touched = Touched::default();
        world.objects.remove(&policy_of(from).key());
        world.objects.insert(policy_of(to).key(), policy_of(to));
        world.state.delete(&policy_of(from).key(), &mut touched);
        world.state.apply(policy_of(to), &mut touched).unwrap();
        let acl = world.compile(&touched);
        let namespace = acl.side(Direction::Ingress).get(to).unwrap();
        let AclPeers::Set(peers) = namespace.policies[0].rules[0].entries[0].peers else { panic!() };
        assert_eq!(addresses(&acl, peers), ["10.0.1.1"]);
        world.delete(&policy_of(to));
    }
}

#[test]
fn the_last_owner_of_an_address_counts() {
    let mut world = World::new();
    let rules = vec![rule(&[pods(app("api"))], &[])];
    let old = pod("old", "node-1", "db", "10.0.0.1");
    let start = world.apply([
        Object::Pod(old.clone()),
        Object::Pod(pod("db", "node-1", "db", "10.0.0.2")),
        Object::Policy(policy("in", app("db"), Direction::Ingress, rules)),
    ]);
    let selected = only_policy(&start, Direction::Ingress).selected;
    let AclPeers::Set(peers) = only_policy(&start, Direction::Ingress).rules[0].entries[0].peers else { panic!() };
    let is = |acl: &Acl, local: &[&str], remote: &[&str]| {
        assert!(same_rules(&start, acl));
        assert_eq!(addresses(acl, selected), local);
        assert_eq!(addresses(acl, shop(acl, Direction::Ingress).isolated), local);
        assert_eq!(addresses(acl, peers), remote);
    };
    is(&start, &["10.0.0.1", "10.0.0.2"], &[]);
    // A younger pod on another node takes the address over, and gives it back.
    let young = Pod { created: 1, ..pod("young", "node-2", "api", "10.0.0.1") };
    is(&world.apply([Object::Pod(young.clone())]), &["10.0.0.2"], &["10.0.0.1"]);
    let finished = Pod { phase: Phase::Finished, ..young.clone() };
    is(&world.apply([Object::Pod(finished)]), &["10.0.0.1", "10.0.0.2"], &[]);
    // A pod on its node's network owns nothing.
    is(&world.apply([Object::Pod(Pod { host_network: true, ..young })]), &["10.0.0.1", "10.0.0.2"], &[]);
    is(&world.delete(&Object::Pod(old)), &["10.0.0.2"], &[]);
}

#[test]
fn labels_of_namespaces_choose_peers() {
    let mut world = World::new();
    let from = |key: &str| Peer::Pods {
        namespaces: NamespaceScope::Matching(Selector {
            match_labels: labels(&[(key, "yes")]),
            match_expressions: Vec::new(),
        }),
        pods: Selector::default(),
    };
    let web = Pod { namespace: "web".into(), ..pod("web", "node-2", "web", "10.0.1.1") };
    let start = world.apply([
        Object::Pod(pod("db", "node-1", "db", "10.0.0.1")),
        Object::Pod(web),
        Object::Policy(policy("in", app("db"), Direction::Ingress, vec![rule(&[from("trusted")], &[])])),
    ]);
    let AclPeers::Set(peers) = only_policy(&start, Direction::Ingress).rules[0].entries[0].peers else { panic!() };
    assert!(addresses(&start, peers).is_empty());
    let trusted = world.apply([namespace("web", &[("trusted", "yes")])]);
    assert!(same_rules(&start, &trusted));
    assert_eq!(addresses(&trusted, peers), ["10.0.1.1"]);
    let gone = world.delete(&namespace("web", &[]));
    assert!(same_rules(&trusted, &gone));
    assert!(addresses(&gone, peers).is_empty());
}

#[test]
fn a_node_that_moves_keeps_its_sets() {
    let mut world = World::new();
    let node = |address: &str| Node {
        name: "node-1".into(),
        addresses: vec![address.parse().unwrap()],
        tunnel_addresses: Vec::new(),
        announced: None,
        pod_cidrs: Vec::new(),
    };
    let start = world.apply([
        Object::Node(node("192.0.2.1")),
        Object::Pod(pod("db", "node-1", "db", "10.0.0.1")),
        Object::Policy(policy("in", app("db"), Direction::Ingress, Vec::new())),
    ]);
    let moved = world.apply([Object::Node(node("192.0.2.2"))]);
    assert_eq!(moved.node_addresses, BTreeSet::from(["192.0.2.2".parse::<IpAddr>().unwrap()]));
    assert!(same_rules(&start, &moved) && start.sets.ptr_eq(&moved.sets));
}

#[test]
fn a_new_state_replaces_everything() {
    let mut world = World::new();
    let db = Object::Pod(pod("db", "node-1", "db", "10.0.0.1"));
    let isolate = Object::Policy(policy("in", app("db"), Direction::Ingress, Vec::new()));
    let start = world.apply([db.clone(), isolate]);
    assert_eq!((start.generation, start.sets.len()), (1, 2));
    let mut touched = Touched::default();
    world.objects = BTreeMap::from([(db.key(), db)]);
    world.state.reset(world.objects.values().cloned(), &mut touched).unwrap();
    let reset = world.compile(&touched);
    assert_eq!((reset.generation, reset.sets.len(), reset.ingress.len()), (2, 0, 0));
}

/// A generator that stopped meeting rules would make the random tests pass for nothing.
#[test]
fn random_lists_use_every_kind_of_entry() {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in 0..200 {
        let bytes = ringfence_scenario::bytes(seed, 20_000);
        let objects = cluster(&mut Unstructured::new(&bytes)).unwrap();
        for acl in from_scratch::<AclCompiler>(objects).values() {
            for set in acl.sets.values() {
                let kind = match (&set.members, set.role) {
                    (Members::Addresses(members), _) if members.is_empty() => "empty",
                    (Members::Addresses(_), SetRole::Isolated) => "isolated",
                    (Members::Addresses(_), SetRole::Selected) => "selected",
                    (Members::Addresses(_), _) => "peers",
                    (Members::Endpoints(members), _) if members.is_empty() => "no port of that name",
                    (Members::Endpoints(_), _) => "serving",
                    (Members::Networks { except, .. }, _) if except.is_empty() => "networks",
                    (Members::Networks { .. }, _) => "networks with exceptions",
                };
                *seen.entry(kind).or_default() += 1;
            }
            let policies = Direction::ALL.into_iter().flat_map(|direction| acl.side(direction).values());
            let rules = policies.flat_map(|namespace| &namespace.policies).flat_map(|policy| &policy.rules);
            *seen.entry("rule without entries").or_default() += rules.filter(|rule| rule.entries.is_empty()).count();
        }
    }
    assert!(seen.len() == 9 && seen.values().all(|count| *count >= 10), "{seen:?}");
}
