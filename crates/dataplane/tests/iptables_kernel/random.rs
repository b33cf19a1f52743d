//! Random access control lists, in sequences: small worlds, so that the lists meet in every set.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use arbitrary::Unstructured;
use imbl::OrdMap;
use ipnet::IpNet;
use ringfence_compile::acl::{
    Acl, AclBelieved, AclCompiler, AclEntry, AclGuard, AclNamespace, AclPeers, AclPolicy, AclPorts, AclReach, AclRule,
    AclSet, Members, SetId, SetRole,
};
use ringfence_compile::{Cluster, Compiler as _, ProtocolRange, Touched, UnknownPods};
use ringfence_model::{
    Direction, Endpoint, EndpointSlice, EnforceAt, Enforcement, ExternalTraffic, Family, Flow, NodeTraffic, Object,
    PortRange, Protocol, Service, ServiceKind, Transport,
};
use ringfence_scenario::{Event, bytes, events, pod_ranges};

const LOCAL: [&str; 8] = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "fd00::1", "fd00::2", "fd00::3", "fd00::4"];
const PEERS: [&str; 10] = [
    "10.0.0.1",
    "10.0.0.3",
    "10.9.0.1",
    "10.9.0.2",
    "127.255.255.255",
    "128.0.0.0",
    "fd00::1",
    "fd00::3",
    "fd00:9::1",
    "fd00:9::2",
];
const BLOCKS: [(&[&str], &[&str]); 10] = [
    (&["0.0.0.0/0"], &[]),
    (&["0.0.0.0/0"], &["128.0.0.0/1"]),
    (&["0.0.0.0/0"], &["10.9.0.0/31", "10.9.0.1/32", "127.0.0.0/8"]),
    (&["::/0"], &[]),
    (&["::/0"], &["fd00:9::/64"]),
    (&["::/0"], &["8000::/1"]),
    (&["10.9.0.0/24", "10.9.0.2/32", "fd00:9::/127"], &[]),
    (&["10.0.0.0/8"], &["10.0.0.0/30", "10.9.0.1/32"]),
    (&["0.0.0.0/0", "::/0"], &[]),
    (&["128.0.0.0/1"], &["255.0.0.0/8"]),
];
/// Some of the addresses of the compiled worlds.
const COMPILED: [&str; 12] = [
    "10.0.0.0",
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.127",
    "10.0.0.255",
    "172.17.0.5",
    "fd00::",
    "fd00::1",
    "fd00::2",
    "2001:db8::7",
    "192.0.2.1",
    "2001:db8::1",
];
const PORTS: [u16; 4] = [1, 80, 81, 65535];
/// Ranges to guard.
const RANGES: [&[&str]; 4] = [&["10.0.0.0/24"], &["10.0.0.2/31", "fd00::/64"], &["fd00::/16"], &["0.0.0.0/0", "::/0"]];
/// Networks towards which sources are kept.
const KEPT: [&[&str]; 4] = [&[], &["10.9.0.0/24"], &["0.0.0.0/0", "fd00:9::/64"], &["fd00:9::1/128"]];
const NAMESPACES: [&str; 3] = ["a", "b", "c"];

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The lists that a compiler makes of random clusters, the node's own addresses left out: what the hooks say about them
/// does not depend on them.
pub(crate) fn compiled(seed: u64) -> Vec<Acl> {
    let bytes = bytes(seed, 12_000);
    let mut u = Unstructured::new(&bytes);
    let mut events = events(&mut u, 120).unwrap();
    let ranges = pod_ranges(&mut u).unwrap();
    for event in &mut events {
        if let Event::Apply(Object::Node(node)) = event {
            // Mostly as they were.
            node.pod_cidrs = if u.ratio(1, 8).unwrap() { pod_ranges(&mut u).unwrap() } else { ranges.clone() };
        }
    }
    let unknown = if u.ratio(2, 3).unwrap() { UnknownPods::Deny } else { UnknownPods::Allow };
    let enforcement = Enforcement {
        at: *u.choose(&[EnforceAt::Destination, EnforceAt::Entry, EnforceAt::Everywhere]).unwrap(),
        node_traffic: *u.choose(&[NodeTraffic::Own, NodeTraffic::All, NodeTraffic::Policy]).unwrap(),
    };
    for number in 0..4 {
        let [service, slice] = exposed(&mut u, number).unwrap();
        let place = u.int_in_range(0..=events.len()).unwrap();
        events.insert(place, Event::Apply(service));
        events.insert(u.int_in_range(place..=events.len()).unwrap(), Event::Apply(slice));
    }
    let batch = usize::try_from(seed % 25).unwrap() + 1;
    let mut cluster = Cluster::new();
    let mut compiler =
        AclCompiler::for_node(Arc::from("node-1")).with_unknown_pods(unknown).with_enforcement(enforcement);
    let mut lists = Vec::new();
    for batch in events.chunks(batch) {
        let mut touched = Touched::default();
        if u.ratio(1, 6).unwrap() {
            let networks: Vec<IpNet> = u.choose(&KEPT).unwrap().iter().map(|text| text.parse().unwrap()).collect();
            cluster.keep_sources_towards(&networks, &mut touched);
        }
        for event in batch {
            match event {
                Event::Apply(object) => cluster.apply(object.clone(), &mut touched).unwrap(),
                Event::Delete(key) => cluster.delete(key, &mut touched),
            }
        }
        lists.push(Acl { node_addresses: BTreeSet::new(), ..compiler.compile(&cluster, &touched) });
    }
    lists
}

/// A Service that can be called from outside, and who answers for it.
fn exposed(u: &mut Unstructured<'_>, number: usize) -> arbitrary::Result<[Object; 2]> {
    let (namespace, name): (Arc<str>, Arc<str>) = ("default".into(), format!("service-{number}").into());
    let service = Service {
        namespace: namespace.clone(),
        name: name.clone(),
        kind: ServiceKind::NodePort,
        selector: [].into(),
        cluster_addresses: Vec::new(),
        external_addresses: Vec::new(),
        external_traffic: ExternalTraffic::Cluster,
        ports: Vec::new(),
    };
    let mut endpoints = Vec::new();
    for _ in 0..u.int_in_range(1..=4)? {
        endpoints.push(Endpoint { address: address(u.choose(&COMPILED)?), serving: u.ratio(3, 4)? });
    }
    let ports = vec![(*u.choose(&Protocol::ALL)?, *u.choose(&[80, 443, 8080])?)];
    let slice = EndpointSlice { namespace, name: name.clone(), service: Some(name), endpoints, ports };
    Ok([Object::Service(service), Object::EndpointSlice(slice)])
}

/// Lists that no compiler need make: whatever the types allow. Each shares some parts with the one before.
pub(crate) fn arbitrary(seed: u64) -> Vec<Acl> {
    let bytes = bytes(seed, 30_000);
    let mut u = Unstructured::new(&bytes);
    let mut lists: Vec<Acl> = Vec::new();
    for _ in 0..4 {
        let list = list(&mut u, lists.last()).unwrap();
        lists.push(list);
    }
    lists
}

fn list(u: &mut Unstructured<'_>, before: Option<&Acl>) -> arbitrary::Result<Acl> {
    let mut acl = Acl::empty(Arc::from("node"));
    for (number, direction) in Direction::ALL.into_iter().enumerate() {
        let kept = before.filter(|_| u.ratio(1, 2).unwrap_or_default());
        let side = match kept {
            Some(before) => before.side(direction).clone(),
            None => side(u, number)?,
        };
        match direction {
            Direction::Ingress => acl.ingress = side,
            Direction::Egress => acl.egress = side,
        }
    }
    let mut used = BTreeSet::new();
    acl.guard = match before {
        Some(before) if u.ratio(4, 5)? => before.guard.clone(),
        _ => guard(u)?,
    };
    used.extend(acl.guard.as_ref().map(|guard| guard.known));
    acl.reach = match before {
        Some(before) if u.ratio(4, 5)? => before.reach.clone(),
        _ => reach(u)?,
    };
    let judged = if let AclBelieved::Endpoints(judged) = acl.reach.believed { Some(judged) } else { None };
    used.extend([acl.reach.local, acl.reach.nodes, judged].into_iter().flatten());
    for namespace in acl.ingress.values().chain(acl.egress.values()) {
        used.insert(namespace.isolated);
        for policy in &namespace.policies {
            used.insert(policy.selected);
            for entry in policy.rules.iter().flat_map(|rule| &rule.entries) {
                used.extend(if let AclPeers::Set(id) = entry.peers { Some(id) } else { None });
                used.extend(if let AclPorts::Serving(id) = entry.ports { Some(id) } else { None });
            }
        }
    }
    let keep_sets = u.ratio(1, 4)?;
    for id in used {
        let before = before.and_then(|before| before.sets.get(&id)).filter(|_| keep_sets);
        let set = match before {
            Some(set) => set.clone(),
            None => set(u, id)?,
        };
        acl.sets.insert(id, set);
    }
    // An address belongs to one pod.
    for direction in Direction::ALL {
        let mut taken: BTreeSet<IpAddr> = BTreeSet::new();
        for namespace in acl.side(direction).clone().values() {
            let set = acl.sets.get_mut(&namespace.isolated).unwrap();
            if let Members::Addresses(addresses) = &mut set.members {
                *addresses = addresses.iter().filter(|address| taken.insert(**address)).copied().collect();
            }
        }
    }
    // No pod has the address of a node.
    let isolated = acl.ingress.values().chain(acl.egress.values()).map(|namespace| namespace.isolated);
    let pods: Vec<Members> = isolated.map(|isolated| acl.sets[&isolated].members.clone()).collect();
    if let Some(AclSet { members: Members::Addresses(nodes), .. }) =
        acl.reach.nodes.and_then(|id| acl.sets.get_mut(&id))
    {
        let is_pod = |address: &IpAddr| {
            pods.iter().any(|pods| matches!(pods, Members::Addresses(pods) if pods.contains(address)))
        };
        *nodes = nodes.iter().filter(|address| !is_pod(address)).copied().collect();
    }
    Ok(acl)
}

fn reach(u: &mut Unstructured<'_>) -> arbitrary::Result<AclReach> {
    let judges_others = u.arbitrary()?;
    let believed = match u.int_in_range(0..=4)? {
        0 | 1 => AclBelieved::Nothing,
        2 => AclBelieved::Endpoints(id(8, 0)),
        3 => AclBelieved::LocalPods,
        _ => AclBelieved::Everything,
    };
    let unmasqueraded: Arc<[IpNet]> = u.choose(&KEPT)?.iter().map(|network| network.parse().unwrap()).collect();
    let wants_local = judges_others || believed == AclBelieved::LocalPods || !unmasqueraded.is_empty();
    Ok(AclReach {
        judges_others,
        local: wants_local.then(|| id(6, 0)),
        nodes: (believed != AclBelieved::Nothing).then(|| id(7, 0)),
        believed,
        unmasqueraded,
    })
}

fn guard(u: &mut Unstructured<'_>) -> arbitrary::Result<Option<AclGuard>> {
    if u.ratio(1, 3)? {
        return Ok(None);
    }
    let ranges = u.choose(&RANGES)?.iter().map(|range| range.parse().unwrap()).collect();
    Ok(Some(AclGuard { ranges, known: id(5, 0) }))
}

/// The digits of a set's number, in 8 bits each from the top: role, then which. So all of it is in the name.
fn id(role: u8, which: usize) -> SetId {
    SetId(u128::from(role) << 120 | (which as u128) << 112)
}

fn side(u: &mut Unstructured<'_>, number: usize) -> arbitrary::Result<OrdMap<Arc<str>, Arc<AclNamespace>>> {
    let mut side = OrdMap::new();
    for (place, name) in NAMESPACES.into_iter().enumerate() {
        if u.ratio(1, 3)? {
            continue;
        }
        let mut policies = Vec::new();
        for policy in ["p", "q"] {
            if u.ratio(1, 3)? {
                continue;
            }
            let mut rules = Vec::new();
            for _ in 0..u.int_in_range(0..=2)? {
                let mut entries = BTreeSet::new();
                for _ in 0..u.int_in_range(0..=2)? {
                    entries.insert(entry(u)?);
                }
                rules.push(AclRule { entries: entries.into_iter().collect() });
            }
            let selected = id(1, u.int_in_range(0..=2)?);
            policies.push(Arc::new(AclPolicy { name: Arc::from(policy), selected, rules }));
        }
        let namespace = AclNamespace { isolated: id(0, 8 * number + place), policies };
        side.insert(Arc::from(name), Arc::new(namespace));
    }
    Ok(side)
}

fn entry(u: &mut Unstructured<'_>) -> arbitrary::Result<AclEntry> {
    let peers = match u.int_in_range(0..=4)? {
        0 => AclPeers::Anyone,
        1 | 2 => AclPeers::Set(id(2, u.int_in_range(0..=2)?)),
        _ => AclPeers::Set(id(3, u.choose_index(BLOCKS.len())?)),
    };
    let protocol = *u.choose(&Protocol::ALL)?;
    let ports = match u.int_in_range(0..=4)? {
        0 => AclPorts::Any,
        1 => AclPorts::Range(ProtocolRange { protocol, ports: PortRange::ALL }),
        2 => AclPorts::Serving(id(4, u.int_in_range(0..=1)?)),
        _ => {
            let (a, b) = (*u.choose(&PORTS)?, *u.choose(&PORTS)?);
            AclPorts::Range(ProtocolRange { protocol, ports: PortRange { first: a.min(b), last: a.max(b) } })
        }
    };
    Ok(AclEntry { peers, ports })
}

fn set(u: &mut Unstructured<'_>, id: SetId) -> arbitrary::Result<AclSet> {
    let mut some = |pool: &[&str], most: u8| -> arbitrary::Result<Vec<IpAddr>> {
        let mut chosen = Vec::new();
        for text in pool {
            if u.ratio(most, 4)? {
                chosen.push(address(text));
            }
        }
        Ok(chosen)
    };
    let which = usize::try_from(id.0 >> 112 & 255).unwrap();
    let (role, members) = match id.0 >> 120 {
        0 => (SetRole::Isolated, Members::Addresses(some(&LOCAL, 3)?.into_iter().collect())),
        1 => (SetRole::Selected, Members::Addresses(some(&LOCAL, 3)?.into_iter().collect())),
        2 => (SetRole::Peers, Members::Addresses(some(&PEERS, 2)?.into_iter().collect())),
        3 => {
            let networks = |texts: &[&str]| texts.iter().map(|text| text.parse::<IpNet>().unwrap()).collect();
            let (cidrs, except) = BLOCKS[which];
            (SetRole::Peers, Members::Networks { cidrs: networks(cidrs), except: networks(except) })
        }
        5 => {
            let known = [some(&LOCAL, 3)?, some(&PEERS, 3)?].concat();
            (SetRole::Known, Members::Addresses(known.into_iter().collect()))
        }
        6 => (SetRole::Local, Members::Addresses(some(&LOCAL, 3)?.into_iter().collect())),
        7 => (SetRole::Nodes, Members::Addresses(some(&PEERS, 3)?.into_iter().collect())),
        role => {
            let addresses = some(&LOCAL, 3)?;
            let mut endpoints = BTreeSet::new();
            for address in addresses {
                endpoints.insert((address, *u.choose(&Protocol::ALL)?, *u.choose(&PORTS)?));
            }
            let role = if role == 8 { SetRole::Believed } else { SetRole::Serving };
            (role, Members::Endpoints(endpoints.into_iter().collect()))
        }
    };
    Ok(AclSet { role, members, origin: Arc::from("") })
}

/// Flows between the addresses of these worlds, and of those of the compiled ones.
#[allow(dead_code, reason = "the kernel's tests ask for no flows")]
pub(crate) fn flows(seed: u64, count: usize) -> Vec<Flow> {
    let bytes = bytes(seed, count * 64);
    let mut u = Unstructured::new(&bytes);
    let mut flows = Vec::new();
    while flows.len() < count && !u.is_empty() {
        let pool: &[&str] = if seed.is_multiple_of(2) { &LOCAL } else { &COMPILED };
        let others: &[&str] = if seed.is_multiple_of(2) { &PEERS } else { &COMPILED };
        let (one, other) = (address(u.choose(pool).unwrap()), address(u.choose(others).unwrap()));
        let (source, destination) = if u.arbitrary().unwrap() { (one, other) } else { (other, one) };
        if Family::of(source) != Family::of(destination) {
            continue;
        }
        let port = |port: u16| Transport::Port(Protocol::Tcp, port);
        let transport = match u.int_in_range(0..=9).unwrap() {
            0 => Transport::Other(47),
            1 if source.is_ipv4() => Transport::Icmp(8),
            1 => Transport::Icmpv6(u.int_in_range(128..=137).unwrap()),
            2 => port(443),
            3 => Transport::Port(Protocol::Udp, 53),
            4 => port(8080),
            _ => Transport::Port(*u.choose(&Protocol::ALL).unwrap(), *u.choose(&[0, 1, 2, 80, 81, 82, 65535]).unwrap()),
        };
        flows.push(Flow { source, destination, transport });
    }
    flows
}
