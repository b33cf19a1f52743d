//! What the lines mean: layouts and plans, executed by a model of ipset and iptables.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use arbitrary::Unstructured;
use imbl::OrdMap;
use ringfence_compile::acl::{
    Acl, AclBelieved, AclEntry, AclNamespace, AclPeers, AclPolicy, AclPorts, AclReason, AclRule, AclSet, Members,
    SetId, SetRole,
};
use ringfence_model::{Family, Flow, Protocol, Transport};

use super::abilities::Abilities;
use super::layout::Layout;
use super::name::{Edition, Hook};
use super::plan::{self, Capacities, Step, Update, Work};
use super::{AclDiff, IptablesOptions, Mark};

mod kernel;
#[path = "../../tests/iptables_kernel/random.rs"]
mod random;
mod reach;

use kernel::{Fate, Kernel, Packet, State, rule};

/// How a packet gets to be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Routed; it comes from where its source is.
    Routed,
    /// Routed; it comes from elsewhere.
    Forged,
    /// The node sends it, under an address of its own.
    Own,
}

impl Way {
    const ALL: [Way; 3] = [Way::Routed, Way::Forged, Way::Own];

    fn packet(self, flow: Flow) -> Packet {
        let packet = Packet::routed(flow);
        match self {
            Way::Routed => packet,
            Way::Forged => Packet { traced: false, ..packet },
            Way::Own => Packet { hook: Hook::Output, local: true, translated: false, ..packet },
        }
    }

    /// Whether a list lets it pass. What the node sends is no pod's: neither a guard nor another direction asks.
    fn passes(self, acl: &Acl, flow: &Flow) -> bool {
        match self {
            Way::Routed => acl.eval(flow).allowed(),
            Way::Forged => without_node(acl, flow.source).eval(flow).allowed(),
            Way::Own => {
                let acl = without_node(acl, flow.source);
                let own = Acl { guard: None, egress: OrdMap::new(), node_addresses: [flow.source].into(), ..acl };
                own.eval(flow).allowed()
            }
        }
    }
}

/// Flows in all ways that differ: who claims the address of no node has nothing to forge.
fn ways<'a>(lists: &[&'a Acl], flows: &'a [Flow]) -> impl Iterator<Item = (Way, &'a Flow)> {
    let lists = lists.to_vec();
    let all = flows.iter().flat_map(|flow| Way::ALL.map(|way| (way, flow)));
    all.filter(move |(way, flow)| {
        let is_node = |list: &&Acl| reach::holds(list, list.reach.nodes, flow.source);
        *way != Way::Forged || lists.iter().any(is_node)
    })
}

/// The list with one node less to believe or to trust as a source.
fn without_node(acl: &Acl, source: IpAddr) -> Acl {
    let mut acl = acl.clone();
    if let Some(mut set) = acl.reach.nodes.and_then(|nodes| acl.sets.get(&nodes).cloned()) {
        let Members::Addresses(nodes) = &mut set.members else { panic!("nodes are addresses") };
        nodes.remove(&source);
        acl.sets.insert(acl.reach.nodes.unwrap(), set);
    }
    acl
}

/// The states that a plan goes through: each with the number of graces before it.
fn perform(kernel: &Kernel, steps: &[Step]) -> Vec<(usize, Kernel)> {
    let mut states = vec![(0, kernel.clone())];
    for step in steps {
        let (graces, mut kernel) = states.last().cloned().unwrap();
        match &step.work {
            // The packets that saw an earlier update are through by now, too.
            Work::Grace | Work::Owed => states.push((graces + 1, kernel)),
            Work::Rules(family, lines) => {
                kernel.commit(*family, lines);
                states.push((graces, kernel));
            }
            Work::Sets(lines) => {
                for line in lines {
                    kernel.set(line);
                    states.push((graces, kernel.clone()));
                }
            }
            Work::Destroy(names) => {
                for name in names {
                    kernel.set(&format!("destroy {name}"));
                }
                states.push((graces, kernel));
            }
        }
    }
    states
}

fn layout<'a>(acl: &'a Acl, options: &'a IptablesOptions, edition: Edition) -> Layout<'a> {
    Layout { acl, options, edition, can: Abilities::ALL }
}

fn replace(kernel: &Kernel, acl: &Acl, capacities: &mut Capacities) -> (Edition, Vec<Step>) {
    let options = IptablesOptions::default();
    let stock = kernel.stock();
    let edition = plan::free_edition(&stock);
    (edition, plan::replace(layout(acl, &options, edition), &Family::ALL, &stock, capacities))
}

fn fresh(acl: &Acl) -> Kernel {
    let kernel = Kernel::new();
    let (_, steps) = replace(&kernel, acl, &mut Capacities::new());
    perform(&kernel, &steps).pop().unwrap().1
}

/// No packet, judged at any moment or over any time that no grace cuts, passes unless one of the lists allows it; none
/// that both allow is told that it is refused.
fn check(states: &[(usize, Kernel)], from: &Acl, to: &Acl, flows: &[Flow], u: &mut Unstructured<'_>) {
    check_all(states, &[from, to], flows, u);
    for (way, flow) in ways(&[from, to], flows).filter(|(way, flow)| way.passes(from, flow) && way.passes(to, flow)) {
        for (at, (_, kernel)) in states.iter().enumerate() {
            let fate = kernel.judge(way.packet(*flow));
            assert!(fate != Fate::Rejected, "{flow} ({way:?}) is refused aloud at {at} of {}", states.len());
        }
    }
}

/// No packet, judged at any moment or over any time that no grace cuts, passes unless one of the lists allows it.
fn check_all(states: &[(usize, Kernel)], lists: &[&Acl], flows: &[Flow], u: &mut Unstructured<'_>) {
    for (way, flow) in ways(lists, flows).filter(|(way, flow)| lists.iter().all(|list| !way.passes(list, flow))) {
        let packet = way.packet(*flow);
        for (at, (_, kernel)) in states.iter().enumerate() {
            assert!(!kernel.judge(packet).passed(), "{flow} ({way:?}) passes at {at} of {}", states.len());
        }
        for _ in 0..4 {
            let start = u.choose_index(states.len()).unwrap_or_default();
            let graces = states[start].0;
            let last = states.iter().rposition(|state| state.0 == graces).unwrap();
            let mut now = start;
            let mut look = || {
                // Rarely, so that a packet gets far before something changes under it.
                if u.ratio(1, 8).unwrap_or_default() {
                    now = u.int_in_range(now..=last).unwrap_or(last);
                }
                &states[now].1
            };
            let fate = states[start].1.judge_while(packet, &mut look);
            assert!(!fate.passed(), "{flow} ({way:?}) passes from {start} of {}", states.len());
        }
    }
}

fn sequences(count: u64) -> impl Iterator<Item = (u64, Vec<Acl>)> {
    // Even seeds: see `random::flows`.
    (0..count).map(|seed| (seed, if seed.is_multiple_of(2) { random::arbitrary(seed) } else { random::compiled(seed) }))
}

#[test]
fn the_layout_means_what_the_list_says() {
    let mut seen = BTreeMap::new();
    for (seed, lists) in sequences(300) {
        for (number, acl) in lists.iter().enumerate() {
            let kernel = fresh(acl);
            for flow in random::flows(seed + 1000 * number as u64, 40) {
                let packet = Packet::routed(flow);
                let allowed = acl.eval(&flow).allowed();
                *seen
                    .entry((allowed, acl.eval(&flow).ingress.because == acl.eval(&flow).egress.because))
                    .or_insert(0) += 1;
                let wanted = if allowed { Fate::Passed(packet.mark) } else { Fate::Rejected };
                assert_eq!(kernel.judge(packet), wanted, "{flow}: {:?}", acl.eval(&flow));
                // A forged mark opens nothing, and is gone when the packet was judged.
                let marked = Packet { mark: Mark::default().bits() | 0x10, ..packet };
                let itself = flow.source == flow.destination;
                let unguarded = Acl { guard: None, ..acl.clone() };
                let judged = [unguarded.eval(&flow).egress, unguarded.eval(&flow).ingress];
                let asks_origin = acl.reach.believed != AclBelieved::Nothing;
                let untouched =
                    allowed && !asks_origin && judged.iter().all(|side| side.because == AclReason::NotIsolated);
                let wanted_of_marked = if untouched { Fate::Passed(marked.mark) } else { wanted };
                assert!(itself || kernel.judge(marked) == wanted_of_marked, "{flow}");
                let invalid = kernel.judge(Packet { state: State::Invalid, ..packet });
                assert_eq!(invalid, if allowed { wanted } else { Fate::Dropped }, "{flow}");
                assert!(kernel.judge(Packet { state: State::Established, ..packet }).passed());
                let related = kernel.judge(Packet { state: State::Related, ..packet });
                let error = matches!(flow.transport, Transport::Icmp(_) | Transport::Icmpv6(_));
                assert_eq!(related.passed(), allowed || error, "{flow}");
                let output = Packet { hook: Hook::Output, ..packet };
                let unbelieved = Way::Forged.passes(acl, &flow);
                let wanted_unbelieved = if unbelieved { Fate::Passed(packet.mark) } else { Fate::Rejected };
                assert_eq!(kernel.judge(Way::Forged.packet(flow)), wanted_unbelieved, "{flow}");
                assert_eq!(kernel.judge(output), wanted_unbelieved, "{flow}");
                assert_eq!(kernel.judge(Way::Own.packet(flow)).passed(), Way::Own.passes(acl, &flow), "{flow}");
                let tcp = matches!(flow.transport, Transport::Port(Protocol::Tcp, _));
                let reset = Packet { reset: true, state: State::Related, ..packet };
                assert_eq!(kernel.judge(reset).passed(), related.passed());
                let refusal = Packet { hook: Hook::Output, ..reset };
                assert_eq!(kernel.judge(refusal).passed(), unbelieved || error || tcp);
                assert_eq!(kernel.judge(Packet { reset: true, ..output }), wanted_unbelieved, "a reset out of nowhere");
                assert_eq!(kernel.judge(Packet { local: true, ..packet }), wanted, "the source is forged");
                if !itself {
                    // What the node itself leads there no other node has judged.
                    let led = match acl.reach.believed {
                        AclBelieved::Endpoints(_) | AclBelieved::LocalPods => wanted_unbelieved,
                        AclBelieved::Nothing | AclBelieved::Everything => wanted,
                    };
                    assert_eq!(kernel.judge(Packet { translated: true, ..packet }), led, "{flow}");
                }
            }
        }
    }
    assert!(seen.values().all(|count| *count > 500) && seen.len() == 4, "the flows test little: {seen:?}");
}

#[test]
fn a_pod_reaches_itself_only_when_translated() {
    let flow = |port| Flow {
        source: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.1".parse().unwrap(),
        transport: Transport::Port(Protocol::Tcp, port),
    };
    let lists = (0..400).step_by(2).flat_map(random::arbitrary);
    let refused = lists.map(|acl| Acl { guard: None, ..acl }).find(|acl| {
        let elsewhere = Flow { source: "10.0.0.77".parse().unwrap(), ..flow(9) };
        !acl.eval(&elsewhere).allowed()
            && fresh(acl).judge(Packet { translated: false, ..Packet::routed(flow(9)) }) == Fate::Rejected
    });
    let kernel = fresh(&refused.unwrap());
    assert!(kernel.judge(Packet::routed(flow(9))).passed());
}

#[test]
fn others_addresses_are_let_through() {
    let options = IptablesOptions { pod_ip_range: vec!["10.0.0.0/24".parse().unwrap()], ..IptablesOptions::default() };
    let mut outside = 0;
    for (seed, lists) in sequences(40) {
        let acl = lists.last().unwrap();
        let mut kernel = Kernel::new();
        let stock = kernel.stock();
        let layout = layout(acl, &options, Edition::default());
        let steps = plan::replace(layout, &Family::ALL, &stock, &mut Capacities::new());
        kernel = perform(&kernel, &steps).pop().unwrap().1;
        for flow in random::flows(seed, 60) {
            let inside = |address: IpAddr| address.is_ipv6() || options.pod_ip_range[0].contains(&address);
            let judged = acl.eval(&flow);
            let allowed = (judged.egress.allowed || !inside(flow.destination))
                && (judged.ingress.allowed || !inside(flow.source));
            assert_eq!(kernel.judge(Packet::routed(flow)).passed(), allowed, "{flow}");
            outside += usize::from(allowed && !judged.allowed());
        }
    }
    assert!(outside > 20, "{outside}");
}

#[test]
fn no_step_lets_pass_what_neither_list_allows() {
    let options = IptablesOptions::default();
    let (mut held, mut swapped, mut only_sets, mut differ, mut known, mut renewed) = (0, 0, 0, 0, 0, 0);
    for (seed, lists) in sequences(120) {
        let bytes = ringfence_scenario::bytes(seed, 60_000);
        let mut u = Unstructured::new(&bytes);
        let mut capacities = Capacities::new();
        let empty = Kernel::new();
        let (mut edition, steps) = replace(&empty, &lists[0], &mut capacities);
        let mut kernel = perform(&empty, &steps).pop().unwrap().1;
        let mut owes_grace = false;
        // What packets may have seen that are still judged: states, and the lists they belong to.
        let mut lately: Vec<(usize, Kernel)> = Vec::new();
        let mut lists_lately: Vec<&Acl> = Vec::new();
        for (from, to) in lists.iter().zip(&lists[1..]) {
            if u.ratio(1, 3).unwrap_or_default() {
                // As if the sets were made for fewer.
                capacities.values_mut().for_each(|capacity| *capacity = 0);
            }
            let diff = AclDiff::between(from, to);
            let (old, new) = (layout(from, &options, edition), layout(to, &options, edition));
            let update = plan::update(old, new, &diff, &Family::ALL, &mut capacities, owes_grace);
            assert_eq!(update.is_some(), from.guard == to.guard && from.reach == to.reach);
            known += diff.sets.changed.iter().filter(|(_, _, set)| set.role == SetRole::Known).count();
            let steps = match update {
                Some(update) => {
                    owes_grace = update.owes_grace;
                    update.steps
                }
                None => {
                    let (next, steps) = replace(&kernel, to, &mut capacities);
                    (edition, owes_grace) = (next, false);
                    renewed += 1;
                    steps
                }
            };
            held += usize::from(steps.iter().any(|step| step.work == Work::Grace));
            only_sets += usize::from(steps.iter().all(|step| !matches!(step.work, Work::Rules(..))));
            let swap = |step: &Step| matches!(&step.work, Work::Sets(lines) if lines.iter().any(|line| line.starts_with("swap")));
            swapped += usize::from(steps.iter().any(swap));
            let states = perform(&kernel, &steps);
            let flows = random::flows(seed, 24);
            // Packets that were there before this update, or before the ones before it.
            let graces = lately.last().map_or(0, |state| state.0);
            lately.extend(states.iter().map(|(more, kernel)| (graces + more, kernel.clone())));
            lists_lately.extend([from, to]);
            check_all(&lately, &lists_lately, &flows, &mut u);
            if states.last().is_some_and(|state| state.0 > 0) {
                let last = graces + states.last().map_or(0, |state| state.0);
                lately.retain(|state| state.0 == last);
                lists_lately = vec![from, to];
            }
            differ += flows.iter().filter(|flow| from.eval(flow).allowed() != to.eval(flow).allowed()).count();
            check(&states, from, to, &flows, &mut u);
            // Whatever step it dies at: a new edition mends it.
            let (_, died) = &states[u.choose_index(states.len()).unwrap_or_default()];
            let (next, steps) = replace(died, to, &mut Capacities::new());
            let mended = perform(died, &steps);
            check(&mended, from, to, &flows, &mut u);
            let mended = &mended.last().unwrap().1;
            assert_eq!(mended.normal(), fresh(to).normal());
            assert!(mended.stock().editions().into_iter().eq([next]));
            kernel = states.last().unwrap().1.clone();
            assert_eq!(kernel.normal(), fresh(to).normal(), "seed {seed}: {steps:#?}");
        }
    }
    assert!(held > 100 && swapped > 50 && only_sets > 50, "{held} {swapped} {only_sets}");
    assert!(differ > 500 && known > 100 && renewed > 20, "{differ} {known} {renewed}");
}

/// One update takes the source's right, the next gives the destination's: a packet that met the first half before both and
/// the second half after both has met two rights that were never there together.
#[test]
fn two_updates_in_a_row_do_not_add_up() {
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let (source, destination) = (address("10.0.0.1"), address("10.0.0.2"));
    let list = |callee: &[IpAddr], caller: &[IpAddr]| {
        let mut acl = Acl::empty("node".into());
        for (number, subject, peers) in [(0, source, callee), (10, destination, caller)] {
            // Names have the first bits of an id.
            let id = |which: u128| SetId((number + which) << 100);
            let set = |role, members: &[IpAddr]| AclSet {
                role,
                members: Members::Addresses(members.iter().copied().collect()),
                origin: "".into(),
            };
            acl.sets.insert(id(0), set(SetRole::Isolated, &[subject]));
            acl.sets.insert(id(1), set(SetRole::Selected, &[subject]));
            acl.sets.insert(id(2), set(SetRole::Peers, peers));
            let entry = AclEntry { peers: AclPeers::Set(id(2)), ports: AclPorts::Any };
            let rules = vec![AclRule { entries: vec![entry] }];
            let policies = vec![Arc::new(AclPolicy { name: "p".into(), selected: id(1), rules })];
            let namespace = Arc::new(AclNamespace { isolated: id(0), policies });
            let side = if number == 0 { &mut acl.egress } else { &mut acl.ingress };
            side.insert("ns".into(), namespace);
        }
        acl
    };
    let lists = [list(&[destination], &[]), list(&[], &[]), list(&[], &[source])];
    let options = IptablesOptions::default();
    let mut capacities = Capacities::new();
    let (edition, steps) = replace(&Kernel::new(), &lists[0], &mut capacities);
    let mut states = vec![(0, perform(&Kernel::new(), &steps).pop().unwrap().1)];
    let mut owes_grace = false;
    for (from, to) in lists.iter().zip(&lists[1..]) {
        let (old, new) = (layout(from, &options, edition), layout(to, &options, edition));
        let diff = AclDiff::between(from, to);
        let update = plan::update(old, new, &diff, &Family::ALL, &mut capacities, owes_grace).unwrap();
        owes_grace = update.owes_grace;
        let (graces, kernel) = states.last().cloned().unwrap();
        states.extend(perform(&kernel, &update.steps).into_iter().map(|(more, kernel)| (graces + more, kernel)));
    }
    let bytes = ringfence_scenario::bytes(1, 100_000);
    let mut u = Unstructured::new(&bytes);
    let flow = Flow { source, destination, transport: Transport::Port(Protocol::Tcp, 80) };
    for _ in 0..200 {
        check_all(&states, &lists.iter().collect::<Vec<_>>(), &[flow], &mut u);
    }
}

/// A pod that comes or goes is sets only, unless it is the first or the last of its namespace.
#[test]
fn members_touch_no_rule() {
    let options = IptablesOptions::default();
    for (_, lists) in sequences(100) {
        for (from, to) in lists.iter().zip(&lists[1..]) {
            let mut moved = to.clone();
            (moved.ingress, moved.egress) = (from.ingress.clone(), from.egress.clone());
            (moved.guard, moved.reach) = (from.guard.clone(), from.reach.clone());
            if !moved.sets.keys().eq(from.sets.keys()) {
                continue;
            }
            let diff = AclDiff::between(from, &moved);
            let (old, new) = (layout(from, &options, Edition::default()), layout(&moved, &options, Edition::default()));
            let Update { steps, .. } =
                plan::update(old, new, &diff, &Family::ALL, &mut Capacities::new(), false).unwrap();
            assert!(steps.iter().all(|step| matches!(step.work, Work::Sets(_) | Work::Grace)), "{steps:?}");
        }
    }
}

#[test]
fn cleanup_leaves_the_rest() {
    for (_, lists) in sequences(40) {
        let mut kernel = Kernel::new();
        let forward = vec![rule("-j DOCKER"), rule("-m comment --comment \"-j RF-FORWARD\" -j DOCKER")];
        for chains in kernel.chains.values_mut().map(Arc::make_mut) {
            chains.insert("FORWARD".to_owned(), forward.clone());
            chains.insert("DOCKER".to_owned(), Vec::new());
        }
        let before = kernel.clone();
        for acl in &lists {
            let (_, steps) = replace(&kernel, acl, &mut Capacities::new());
            kernel = perform(&kernel, &steps).pop().unwrap().1;
        }
        let (_, half_made) = replace(&kernel, &lists[0], &mut Capacities::new());
        kernel = perform(&kernel, &half_made[..1]).pop().unwrap().1;
        let cleaned = perform(&kernel, &plan::cleanup(&kernel.stock())).pop().unwrap().1;
        assert_eq!(cleaned, before);
    }
}

/// Ten attempts in a row that died half-way leave no free digit.
#[test]
fn editions_do_not_run_out() {
    let acl = &random::arbitrary(2)[1];
    let mut kernel = fresh(acl);
    for _ in 0..12 {
        let (_, steps) = replace(&kernel, acl, &mut Capacities::new());
        let made =
            steps.iter().position(|step| matches!(step.work, Work::Rules(..)) && step.title.contains("IPv6")).unwrap();
        kernel = perform(&kernel, &steps[..made - 1]).pop().unwrap().1;
        assert_eq!(
            kernel.judge(Packet::routed(random::flows(0, 1)[0])),
            fresh(acl).judge(Packet::routed(random::flows(0, 1)[0]))
        );
    }
    let (_, steps) = replace(&kernel, acl, &mut Capacities::new());
    assert_eq!(perform(&kernel, &steps).pop().unwrap().1.normal(), fresh(acl).normal());
}
