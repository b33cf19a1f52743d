//! Announced sandboxes: a pod of this node has their addresses, whatever its status tells.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use arbitrary::Unstructured;
use ringfence_agent::{Agent, Change, NotCovered};
use ringfence_compile::{Cluster, NodeCompiler, Touched};
use ringfence_control::Sandbox;
use ringfence_dataplane::fake::FakeBackend;
use ringfence_k8s::{Source, parse};
use ringfence_model::{Object, ObjectKey, Phase, Pod, PodId};
use ringfence_scenario::{Event, bytes, cluster, events};

const NODE: &str = "node-1";

fn objects(text: &str) -> Vec<Object> {
    parse(&[Source { name: "test", text: text.as_bytes() }]).objects
}

/// A pod with more `metadata` and `spec`, and its addresses.
fn pod(metadata: &str, spec: &str, addresses: &[&str]) -> String {
    let addresses: Vec<String> = addresses.iter().map(|address| format!("{{ip: {address}}}")).collect();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, {metadata}}}\nspec: {{nodeName: {NODE}, {spec}}}\n\
         status: {{podIPs: [{}]}}\n---\n",
        addresses.join(", ")
    )
}

const POLICY: &str =
    "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: all}\nspec: {podSelector: {}}\n";

fn sandbox(id: &str, uid: Option<&str>, addresses: &[&str]) -> Sandbox {
    Sandbox {
        id: id.to_owned(),
        namespace: "default".to_owned(),
        name: "web".to_owned(),
        uid: uid.map(str::to_owned),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
    }
}

/// An agent whose state are some pods and a policy that isolates all of them.
fn agent(pods: &str) -> Agent<FakeBackend> {
    let mut agent = Agent::new(NODE.into(), FakeBackend::default());
    agent.change(Change::Reset(objects(&format!("{pods}{POLICY}")))).unwrap();
    agent.sync().unwrap();
    agent
}

/// The addresses that are isolated in the packet filter.
fn isolated(agent: &mut Agent<FakeBackend>) -> Vec<String> {
    agent.sync().unwrap();
    agent.backend().enforced().unwrap().ingress.subjects.keys().map(ToString::to_string).collect()
}

#[test]
fn sandboxes_win_over_the_status_until_they_are_gone() {
    let mut agent = agent(&pod("uid: u1", "", &["10.0.0.1"]));
    assert_eq!(isolated(&mut agent), ["10.0.0.1"]);
    agent.announce(sandbox("a", Some("u1"), &["10.0.0.2", "fd00::2"]), 1);
    assert_eq!(isolated(&mut agent), ["10.0.0.2", "fd00::2"]);
    // The status that was on its way.
    agent.change(Change::Apply(objects(&pod("uid: u1, labels: {a: b}", "", &["10.0.0.1"])).remove(1))).unwrap();
    assert_eq!(isolated(&mut agent), ["10.0.0.2", "fd00::2"]);
    agent.announce(sandbox("b", Some("u1"), &["10.0.0.3"]), 2);
    assert_eq!(isolated(&mut agent), ["10.0.0.2", "10.0.0.3", "fd00::2"]);
    agent.withdraw("a");
    assert_eq!(isolated(&mut agent), ["10.0.0.3"]);
    agent.announce(sandbox("b", Some("u1"), &["10.0.0.4"]), 3);
    assert_eq!(isolated(&mut agent), ["10.0.0.4"]);
    agent.withdraw("b");
    agent.withdraw("never heard of");
    assert_eq!(isolated(&mut agent), ["10.0.0.1"]);
}

#[test]
fn who_a_sandbox_belongs_to() {
    let belongs = |pod: &str, sandbox: Sandbox| {
        let mut agent = agent(pod);
        agent.announce(sandbox, 1);
        isolated(&mut agent).contains(&"10.0.0.2".to_owned())
    };
    let with = |uid| sandbox("a", uid, &["10.0.0.2"]);
    assert!(belongs(&pod("uid: u1", "", &[]), with(Some("u1"))));
    assert!(belongs(&pod("uid: u1", "", &[]), with(None)));
    assert!(!belongs(&pod("uid: u1", "", &[]), with(Some("u2"))), "another life of that name");
    assert!(belongs(&pod("", "", &[]), with(Some("u1"))), "a pod of a file has no uid");
    assert!(!belongs(&pod("uid: u1, namespace: other", "", &[]), with(Some("u1"))), "another namespace");
    assert!(!belongs(&pod("uid: u1", "hostNetwork: true", &[]), with(Some("u1"))));
    let elsewhere = pod("uid: u1", "", &[]).replace(NODE, "node-2");
    assert!(!belongs(&elsewhere, with(Some("u1"))), "another node's pod");
    // A static pod: the kubelet's uid is in an annotation of the pod that the API server shows.
    let mirror = "uid: u1, annotations: {kubernetes.io/config.mirror: hash}";
    assert!(belongs(&pod(mirror, "", &[]), with(Some("hash"))));
    assert!(!belongs(&pod(&format!("{mirror}, namespace: other"), "", &[]), with(Some("hash"))), "forged");
}

#[test]
fn an_announcement_waits_for_its_pod_and_goes_with_it() {
    let mut agent = agent("");
    agent.announce(sandbox("a", Some("u1"), &["10.0.0.2"]), 1);
    agent.announce(sandbox("nameless", None, &["10.0.0.3"]), 1);
    assert!(isolated(&mut agent).is_empty());
    let one = objects(&pod("uid: u1", "", &[])).remove(1);
    let two = objects(&pod("uid: u2", "", &["10.0.0.4"])).remove(1);
    agent.change(Change::Apply(one.clone())).unwrap();
    assert_eq!(isolated(&mut agent), ["10.0.0.2", "10.0.0.3"]);
    // The next pod of that name comes before the first one is gone: by its uid a sandbox belongs to one of them.
    agent.change(Change::Apply(two.clone())).unwrap();
    assert_eq!(isolated(&mut agent), ["10.0.0.2", "10.0.0.3"]);
    assert!(agent.take_forgotten().is_empty());
    agent.change(Change::Delete(one.key())).unwrap();
    assert_eq!(isolated(&mut agent), ["10.0.0.3"]);
    assert_eq!(agent.take_forgotten(), ["a"]);
    agent.change(Change::Apply(one)).unwrap();
    assert_eq!(agent.counts(&BTreeSet::new()).sandboxes, 1);
    agent.change(Change::Apply(two)).unwrap();
    agent.announce(sandbox("b", Some("u2"), &["10.0.0.5"]), 1);
    agent.change(Change::Reset(Vec::new())).unwrap();
    assert_eq!(agent.take_forgotten(), ["b"]);
    assert!(agent.take_forgotten().is_empty());
}

#[test]
fn an_address_belongs_to_whom_it_was_given_last() {
    // The status of a pod that has ended long ago and still claims the address.
    let old =
        pod("uid: u1, creationTimestamp: 2026-01-01T00:00:10Z", "", &["10.0.0.1"]).replace("name: web", "name: old");
    let web = pod("uid: u2, creationTimestamp: 2026-01-01T00:00:00Z", "", &[]);
    let mut agent = agent(&(old + &web));
    let since = 1_767_225_600;
    let sandbox = sandbox("a", Some("u2"), &["10.0.0.1"]);
    agent.announce(sandbox.clone(), since + 5);
    agent.sync().unwrap();
    let owner = |agent: &Agent<FakeBackend>| {
        let address: std::net::IpAddr = "10.0.0.1".parse().unwrap();
        agent.backend().enforced().unwrap().ingress.subjects[&address].pod.to_string()
    };
    assert_eq!(owner(&agent), "default/old");
    assert_eq!(agent.covers(&sandbox), Err(NotCovered::AnotherAddress("10.0.0.1".parse().unwrap())));
    agent.announce(sandbox.clone(), since + 15);
    agent.sync().unwrap();
    assert_eq!((owner(&agent).as_str(), agent.covers(&sandbox)), ("default/web", Ok(())));
}

#[test]
fn covered_is_what_is_in_force() {
    let a = sandbox("a", Some("u1"), &["10.0.0.2"]);
    let mut agent = Agent::new(NODE.into(), FakeBackend::default());
    agent.announce(a.clone(), 1);
    assert_eq!(agent.covers(&a), Err(NotCovered::NoState));
    agent.change(Change::Reset(Vec::new())).unwrap();
    agent.sync().unwrap();
    assert!(matches!(agent.covers(&a), Err(NotCovered::UnknownPod { .. })));
    let all = objects(&format!("{}{POLICY}", pod("uid: u1", "", &[])));
    let (namespace, pod_and_policy) = all.split_first().unwrap();
    assert!(matches!(namespace, Object::Namespace(_)));
    for object in pod_and_policy {
        agent.change(Change::Apply(object.clone())).unwrap();
    }
    agent.sync().unwrap();
    assert_eq!(agent.covers(&a), Err(NotCovered::UnknownNamespace("default".to_owned())));
    agent.change(Change::Apply(namespace.clone())).unwrap();
    assert_eq!(agent.covers(&a), Err(NotCovered::NotInForce));
    agent.sync().unwrap();
    assert_eq!(agent.covers(&a), Ok(()));
    assert!(matches!(agent.covers(&sandbox("a", Some("u2"), &["10.0.0.2"])), Err(NotCovered::AnotherPod { .. })));
    let other = "10.0.0.9".parse().unwrap();
    assert_eq!(agent.covers(&sandbox("a", None, &["10.0.0.2", "10.0.0.9"])), Err(NotCovered::AnotherAddress(other)));
    // A failed write of everything, and the attempt after it.
    agent.announce(sandbox("a", Some("u1"), &["10.0.0.3"]), 2);
    agent.backend_mut().fail_next();
    agent.backend_mut().fail_next();
    assert!(agent.sync().is_err());
    let a = sandbox("a", Some("u1"), &["10.0.0.3"]);
    assert_eq!(agent.covers(&a), Err(NotCovered::NotInForce));
    agent.sync().unwrap();
    assert_eq!(agent.covers(&a), Ok(()));
}

/// The runtime gives an address again though it has not told that the sandbox before is gone, which gets another one later.
#[test]
fn an_old_sandbox_does_not_take_the_address_of_a_new_pod() {
    let two = pod("uid: u2", "", &[]).replace("name: web", "name: db");
    let all = objects(&format!("{}---\n{two}{POLICY}", pod("uid: u1", "", &[])));
    let mut agent = Agent::new(NODE.into(), FakeBackend::default());
    agent.change(Change::Reset(all)).unwrap();
    let of_db = |id: &str, addresses: &[&str]| Sandbox { name: "db".to_owned(), ..sandbox(id, Some("u2"), addresses) };
    agent.announce(sandbox("a1", Some("u1"), &["10.0.0.7"]), 1);
    agent.announce(of_db("b1", &["10.0.0.7"]), 2);
    agent.announce(sandbox("a2", Some("u1"), &["10.0.0.8"]), 3);
    agent.sync().unwrap();
    assert_eq!(agent.covers(&of_db("b1", &["10.0.0.7"])), Ok(()));
    assert_eq!(agent.covers(&sandbox("a2", Some("u1"), &["10.0.0.8"])), Ok(()));
    assert!(matches!(agent.covers(&sandbox("a1", Some("u1"), &["10.0.0.7"])), Err(NotCovered::AnotherAddress(_))));
    agent.withdraw("b1");
    agent.sync().unwrap();
    assert_eq!(agent.covers(&sandbox("a1", Some("u1"), &["10.0.0.7"])), Ok(()));
}

/// Namespace, name and uid of pods.
type Lives = BTreeSet<(String, String, String)>;

/// The state and the announcements, and what they mean together, said as plainly as possible.
#[derive(Default)]
struct Model {
    objects: BTreeMap<ObjectKey, Object>,
    sandboxes: BTreeMap<String, (Sandbox, i64)>,
}

impl Model {
    fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.objects.values().filter_map(|object| if let Object::Pod(pod) = object { Some(pod) } else { None })
    }

    fn names(sandbox: &Sandbox, pod: &Pod) -> bool {
        pod.node.as_deref() == Some(NODE)
            && *pod.namespace == *sandbox.namespace
            && *pod.name == *sandbox.name
            && sandbox.uid.as_deref().is_none_or(|uid| *pod.id.0 == *uid)
    }

    fn pod_of(&self, sandbox: &Sandbox) -> Option<PodId> {
        let pods = self.pods().filter(|pod| Model::names(sandbox, pod));
        let pods = pods.filter(|pod| !pod.host_network && pod.phase == Phase::Live);
        pods.max_by_key(|pod| (pod.created, pod.id.clone())).map(|pod| pod.id.clone())
    }

    /// The sandbox that was announced last with an address.
    fn last_with(&self, address: IpAddr) -> Option<&String> {
        let with = self.sandboxes.values().filter(|(sandbox, _)| sandbox.addresses.contains(&address));
        with.max_by_key(|(sandbox, since)| (*since, &sandbox.id)).map(|(sandbox, _)| &sandbox.id)
    }

    fn state(&self) -> Cluster {
        let mut state = Cluster::new();
        for object in self.objects.values() {
            let mut object = object.clone();
            if let Object::Pod(pod) = &mut object {
                let its = |(sandbox, _): &&(Sandbox, i64)| self.pod_of(sandbox).as_ref() == Some(&pod.id);
                let its: Vec<&(Sandbox, i64)> = self.sandboxes.values().filter(its).collect();
                if !its.is_empty() {
                    let addresses_of = |(sandbox, _): &&(Sandbox, i64)| {
                        let has = |address: &IpAddr| self.last_with(*address) == Some(&sandbox.id);
                        sandbox.addresses.iter().copied().filter(has).collect::<Vec<_>>()
                    };
                    pod.addresses = its.iter().flat_map(addresses_of).collect();
                    pod.created = its.iter().map(|(_, since)| *since).fold(pod.created, i64::max);
                }
            }
            state.apply(object, &mut Touched::default()).unwrap();
        }
        state
    }

    /// The sandboxes that name the uid of a pod that is in `before` and not here any more.
    fn forget(&mut self, before: &Lives) -> Vec<String> {
        let now = self.own_pods();
        let is_gone = |Sandbox { namespace, name, uid, .. }: &Sandbox| {
            let life = uid.clone().map(|uid| (namespace.clone(), name.clone(), uid));
            life.is_some_and(|life| before.contains(&life) && !now.contains(&life))
        };
        let gone = self.sandboxes.values().filter(|(sandbox, _)| is_gone(sandbox));
        let gone: Vec<String> = gone.map(|(sandbox, _)| sandbox.id.clone()).collect();
        gone.iter().for_each(|id| drop(self.sandboxes.remove(id)));
        gone
    }

    fn own_pods(&self) -> Lives {
        let own = self.pods().filter(|pod| pod.node.as_deref() == Some(NODE));
        own.map(|pod| (pod.namespace.to_string(), pod.name.to_string(), pod.id.0.to_string())).collect()
    }
}

fn random_sandbox(u: &mut Unstructured<'_>) -> arbitrary::Result<Sandbox> {
    let name = format!("pod-{}", u.int_in_range(0..=15)?);
    let addresses = ["10.0.0.1", "10.0.0.2", "10.0.0.128", "172.17.0.5", "10.9.9.9", "fd00::1", "fd00::9"];
    let mut chosen = BTreeSet::new();
    for _ in 0..u.int_in_range(1..=2)? {
        chosen.insert(*u.choose(&addresses)?);
    }
    Ok(Sandbox {
        id: format!("s{}", u.int_in_range(0..=9)?),
        namespace: (*u.choose(&["default", "shop", "web"])?).to_owned(),
        uid: if u.ratio(1, 3)? { None } else { Some(name.clone()) },
        name,
        addresses: chosen.into_iter().map(|address| address.parse().unwrap()).collect(),
    })
}

/// One step: a change of the state, or one of the announcements.
fn step(u: &mut Unstructured<'_>, agent: &mut Agent<FakeBackend>, model: &mut Model) -> arbitrary::Result<()> {
    let before = model.own_pods();
    match u.int_in_range(0..=9)? {
        0..=2 => {
            let (sandbox, since) = (random_sandbox(u)?, u.int_in_range(0..=3)?);
            agent.announce(sandbox.clone(), since);
            model.sandboxes.insert(sandbox.id.clone(), (sandbox, since));
        }
        3 => {
            let id = format!("s{}", u.int_in_range(0..=9)?);
            agent.withdraw(&id);
            model.sandboxes.remove(&id);
        }
        4 => {
            let all = cluster(u)?;
            model.objects = all.iter().map(|object| (object.key(), object.clone())).collect();
            agent.change(Change::Reset(all)).unwrap();
        }
        _ => {
            for event in events(u, 3)? {
                // What goes and what comes are two steps for announcements, too.
                let before = model.own_pods();
                match event {
                    Event::Apply(object) => {
                        model.objects.insert(object.key(), object.clone());
                        agent.change(Change::Apply(object)).unwrap();
                    }
                    Event::Delete(key) => {
                        model.objects.remove(&key);
                        agent.change(Change::Delete(key)).unwrap();
                    }
                }
                assert_eq!(agent.take_forgotten(), model.forget(&before));
            }
            return Ok(());
        }
    }
    let (forgotten, expected) = (agent.take_forgotten(), model.forget(&before));
    assert_eq!(forgotten.into_iter().collect::<BTreeSet<_>>(), expected.into_iter().collect::<BTreeSet<_>>());
    Ok(())
}

/// After any history what is enforced, and what is covered, follows from the state and the announcements there are.
#[test]
fn any_order_leads_to_the_same() {
    for seed in 0..150 {
        let data = bytes(seed, 60_000);
        let mut u = Unstructured::new(&data);
        let (mut agent, mut model) = (Agent::new(NODE.into(), FakeBackend::default()), Model::default());
        agent.change(Change::Reset(Vec::new())).unwrap();
        for number in 0..40 {
            if step(&mut u, &mut agent, &mut model).is_err() {
                break;
            }
            agent.sync().unwrap();
            let state = model.state();
            let wanted = NodeCompiler::new(NODE.into()).compile(&state, &Touched::everything());
            let enforced = agent.backend().enforced().unwrap();
            assert_eq!(enforced.ingress, wanted.ingress, "seed {seed}, step {number}");
            assert_eq!(enforced.egress, wanted.egress, "seed {seed}, step {number}");
            for (sandbox, _) in model.sandboxes.values() {
                let pod = model.pod_of(sandbox);
                let owned = sandbox.addresses.iter().all(|address| state.owner(*address) == pod.as_ref());
                let expected = pod.is_some() && owned && state.has_namespace(&sandbox.namespace);
                assert_eq!(agent.covers(sandbox).is_ok(), expected, "seed {seed}, step {number}: {sandbox:?}");
            }
        }
    }
}
