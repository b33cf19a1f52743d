//! Random small programs: few addresses, few gates, so that sequences of them meet in every table.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use ringfence_compile::{
    Admission, Believed, ClassId, Gate, GateId, Guard, PortTable, Program, ProtocolRange, Reach, Side, Subject,
};
use ringfence_model::{AddressRange, Family, PortRange, Protocol};

const LOCAL: [&str; 5] = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2"];
/// Other nodes. Some of the addresses can be in guarded ranges.
const NODES: [&str; 4] = ["192.0.2.2", "10.9.0.3", "fd00:9::2", "2001:db8::2"];
/// Networks towards which sources are kept: disjoint, in order.
const KEPT: [&str; 5] = ["10.0.0.0/9", "10.128.0.0/10", "10.192.0.0/10", "fd00:8::/32", "fd00:9::/64"];
const PEERS: [&str; 7] = ["10.0.0.1", "10.9.0.1", "10.9.0.2", "10.9.0.3", "fd00::1", "fd00:9::1", "fd00:9::2"];
/// Where segments of ports may start. Each lasts until the next one starts.
const PORTS: [u16; 10] = [0, 15, 16, 53, 80, 81, 100, 300, 65534, 65535];
/// Where blocks may start. Each lasts until the next one starts.
const STARTS_V4: [&str; 7] =
    ["0.0.0.0", "10.0.0.0", "10.0.0.2", "10.9.0.2", "10.9.0.3", "224.0.0.0", "255.255.255.255"];
const STARTS_V6: [&str; 5] = ["::", "fd00::2", "fd00:9::", "fd00:9::2", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"];

/// Ranges to guard, on whole bytes and off them.
const RANGES: [&str; 6] = ["10.0.0.0/24", "10.0.0.2/31", "10.9.0.2/32", "0.0.0.0/0", "fd00::/64", "fd00:9::/61"];

pub(crate) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn addresses(from: &'static [&'static str]) -> impl Strategy<Value = BTreeSet<IpAddr>> {
    subsequence(from, 0..=from.len()).prop_map(|chosen| chosen.into_iter().map(address).collect())
}

fn admission() -> impl Strategy<Value = Option<Admission>> {
    prop_oneof![
        3 => Just(None),
        1 => Just(Some(Admission::Anyone)),
        4 => (1_u128..=3).prop_map(|id| Some(Admission::Gate(GateId(id)))),
    ]
}

fn table() -> impl Strategy<Value = PortTable> {
    let protocol = proptest::collection::vec(admission(), PORTS.len());
    (proptest::collection::vec(protocol, Protocol::ALL.len()), admission()).prop_map(|(protocols, rest)| {
        let mut segments = Vec::new();
        for (protocol, admissions) in Protocol::ALL.into_iter().zip(protocols) {
            for (index, admission) in admissions.into_iter().enumerate() {
                let last = PORTS.get(index + 1).map_or(u16::MAX, |next| next - 1);
                let ports = PortRange { first: PORTS[index], last };
                segments.extend(admission.map(|admission| (ProtocolRange { protocol, ports }, admission)));
            }
        }
        PortTable::of(segments, rest)
    })
}

fn blocks(starts: &'static [&'static str]) -> impl Strategy<Value = Vec<AddressRange>> {
    proptest::collection::vec(proptest::bool::ANY, starts.len()).prop_map(|chosen| {
        let starts: Vec<IpAddr> = starts.iter().map(|start| address(start)).collect();
        let mut ranges: Vec<AddressRange> = Vec::new();
        for (index, _) in chosen.iter().enumerate().filter(|(_, chosen)| **chosen) {
            let last = match starts.get(index + 1) {
                Some(IpAddr::V4(next)) => IpAddr::V4((next.to_bits() - 1).into()),
                Some(IpAddr::V6(next)) => IpAddr::V6((next.to_bits() - 1).into()),
                None => starts[index],
            };
            match ranges.last_mut() {
                Some(before) if index > 0 && chosen[index - 1] => before.last = last,
                _ => ranges.push(AddressRange { first: starts[index], last }),
            }
        }
        ranges
    })
}

/// The gate's flags follow from who leads to it, so they are drawn with its side.
fn gate() -> impl Strategy<Value = (bool, Vec<AddressRange>, Vec<AddressRange>, &'static str)> {
    (proptest::bool::ANY, blocks(&STARTS_V4), blocks(&STARTS_V6), select(&["default/[*]", "[*]/[app=a]"][..]))
}

fn side() -> impl Strategy<Value = Side> {
    let subjects = proptest::collection::btree_map(select(&LOCAL[..]).prop_map(address), table(), 0..4);
    let peer = (select(&PEERS[..]).prop_map(address), subsequence(vec![1_u128, 2, 3], 1..=3));
    let peers = proptest::collection::vec(peer, 0..5);
    (subjects, proptest::collection::vec(gate(), 3), peers).prop_map(|(subjects, drawn, peers)| {
        let leads = |id: GateId, family: Family| {
            subjects.iter().any(|(address, table)| {
                Family::of(*address) == family && table.admissions().any(|a| a == Admission::Gate(id))
            })
        };
        let mut side = Side::default();
        for (id, (selects_pods, v4_blocks, v6_blocks, origin)) in (1..).map(GateId).zip(drawn) {
            let (v4, v6) = (leads(id, Family::V4), leads(id, Family::V6));
            let blocks = v4_blocks.into_iter().filter(|_| v4).chain(v6_blocks.into_iter().filter(|_| v6));
            if v4 || v6 {
                let gate = Gate { v4, v6, selects_pods, blocks: blocks.collect(), origin: Arc::from(origin) };
                side.gates.insert(id, Arc::new(gate));
            }
        }
        for (address, gates) in peers.into_iter().collect::<BTreeMap<_, _>>() {
            let gates: BTreeSet<GateId> = gates
                .into_iter()
                .map(GateId)
                .filter(|id| {
                    let gate = side.gates.get(id);
                    gate.is_some_and(|gate| gate.selects_pods && gate.concerns(Family::of(address)))
                })
                .collect();
            if !gates.is_empty() {
                // A class is named by its gates.
                let class = ClassId(gates.iter().map(|gate| 1 << gate.0).sum());
                side.classes.insert(class, Arc::new(gates));
                side.peers.insert(address, class);
            }
        }
        side.subjects = subjects
            .into_iter()
            .map(|(address, table)| {
                (address, Subject { pod: Arc::from(format!("default/pod-{address}")), ports: Arc::new(table) })
            })
            .collect();
        side
    })
}

pub(crate) fn program() -> impl Strategy<Value = Program> {
    let node_addresses = addresses(&["192.0.2.1", "2001:db8::1"]);
    (side(), side(), node_addresses, guard(), reach()).prop_map(|(ingress, egress, node_addresses, guard, reach)| {
        let node = Arc::from("node");
        knowing_its_own(Program { generation: 0, node, node_addresses, ingress, egress, guard, reach })
    })
}

fn reach() -> impl Strategy<Value = Reach> {
    let endpoint = (select(&LOCAL[..]).prop_map(address), select(&Protocol::ALL[..]), select(&PORTS[..]));
    let believed = prop_oneof![
        Just(Believed::Nothing),
        proptest::collection::vec(endpoint, 0..9)
            .prop_map(|endpoints| Believed::Endpoints(endpoints.into_iter().collect())),
        Just(Believed::LocalPods),
        Just(Believed::Everything),
    ];
    let kept = prop_oneof![Just(Vec::new()), subsequence(KEPT.to_vec(), 1..3), Just(vec!["0.0.0.0/0", "::/0"])];
    // As a rule nothing reaches beyond, or all of it is drawn, whether it makes sense together or not.
    let drawn = (proptest::bool::ANY, addresses(&LOCAL), addresses(&NODES), believed, kept);
    let drawn = drawn.prop_map(|(judges_others, local, nodes, believed, kept)| Reach {
        judges_others,
        local: local.into_iter().collect(),
        nodes: nodes.into_iter().collect(),
        believed,
        unmasqueraded: kept.into_iter().map(|network| network.parse().unwrap()).collect(),
    });
    prop_oneof![1 => Just(Reach::default()), 3 => drawn]
}

fn guard() -> impl Strategy<Value = Guard> {
    // Mostly one or two, often none.
    let ranges = prop_oneof![Just(Vec::new()), subsequence(RANGES.to_vec(), 1..3)];
    (ranges, addresses(&LOCAL), addresses(&PEERS)).prop_map(|(ranges, local, peers)| {
        let ranges: Vec<_> = ranges.into_iter().map(|range| range.parse().unwrap()).collect();
        Guard::new(&ranges, local.into_iter().chain(peers))
    })
}

/// Isolated pods are known ones.
fn knowing_its_own(program: Program) -> Program {
    let subjects = program.ingress.subjects.keys().chain(program.egress.subjects.keys());
    let known = program.guard.known().iter().chain(subjects).copied();
    Program { guard: Guard::new(program.guard.ranges(), known), ..program }
}

/// Like [`program`], and sometimes with one side the same, the same map nodes even, as in the program before.
pub(crate) fn programs() -> impl Strategy<Value = Vec<Program>> {
    proptest::collection::vec((program(), 0..3, 0..4), 2..5).prop_map(|drawn| {
        let mut programs: Vec<Program> = Vec::new();
        for (mut program, keep, keep_reach) in drawn {
            if let Some(before) = programs.last() {
                match keep_reach {
                    0 => program.reach = before.reach.clone(),
                    // What the node has to do stays, who there is changes.
                    1 => {
                        program.reach.judges_others = before.reach.judges_others;
                        match (&before.reach.believed, &program.reach.believed) {
                            (Believed::Endpoints(_), Believed::Endpoints(_)) => {}
                            (believed, _) => program.reach.believed = believed.clone(),
                        }
                    }
                    _ => {}
                }
                match keep {
                    0 => program.ingress = before.ingress.clone(),
                    1 => program.egress = before.egress.clone(),
                    _ => {}
                }
                if keep > 0 {
                    let known = program.guard.known().iter().chain(before.guard.known());
                    program.guard = Guard::new(before.guard.ranges(), known.copied());
                }
            }
            programs.push(knowing_its_own(program));
        }
        programs
    })
}
