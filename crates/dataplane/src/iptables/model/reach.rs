//! What lists say about other nodes, in packets.

use std::net::IpAddr;

use ringfence_compile::acl::{Acl, AclReason, Members, SetId};
use ringfence_model::Family;

use super::super::abilities::Abilities;
use super::super::listing::Stock;
use super::super::name::{Hook, Table};
use super::super::plan::Capacities;
use super::kernel::{Fate, Kernel, rule};
use super::{Way, fresh, perform, random, replace, sequences};

/// Whether a set of the list holds an address.
pub(super) fn holds(acl: &Acl, set: Option<SetId>, address: IpAddr) -> bool {
    let set = set.and_then(|set| acl.sets.get(&set));
    matches!(set, Some(set) if matches!(&set.members, Members::Addresses(addresses) if addresses.contains(&address)))
}

/// What the random worlds must have in them, or the other tests of the model say little about reach.
#[test]
fn worlds_have_nodes_that_are_believed() {
    let (mut judged_before, mut trusted, mut forged, mut own) = (0, 0, 0, 0);
    for (seed, lists) in sequences(120) {
        for acl in &lists {
            let kernel = fresh(acl);
            for flow in random::flows(seed, 60) {
                let because = acl.eval(&flow).ingress.because;
                judged_before += usize::from(because == AclReason::JudgedBefore);
                trusted += usize::from(because == AclReason::TrustedNode);
                let (routed, elsewhere) = (Way::Routed.packet(flow), Way::Forged.packet(flow));
                forged += usize::from(kernel.judge(routed).passed() && !kernel.judge(elsewhere).passed());
                own += usize::from(!kernel.judge(Way::Own.packet(flow)).passed());
            }
        }
    }
    let seen = [judged_before, trusted, forged, own];
    assert!(seen.iter().all(|seen| *seen > 50), "{seen:?}");
}

/// The mark says where a packet comes from, and no more: what is marked before it comes to us is not believed, and what was
/// believed has no mark.
#[test]
fn a_mark_of_others_is_not_believed() {
    let mut refused = 0;
    for (seed, lists) in sequences(60) {
        for acl in &lists {
            let kernel = fresh(acl);
            for flow in random::flows(seed, 40) {
                let packet = Way::Forged.packet(flow);
                let marked = super::Packet { mark: packet.mark | 0x1000, ..packet };
                let fate = kernel.judge(packet);
                // A pod that reaches itself is not judged.
                assert!(flow.source == flow.destination || kernel.judge(marked).passed() == fate.passed(), "{flow}");
                refused += usize::from(!fate.passed());
                if let Fate::Passed(mark) = kernel.judge(Way::Routed.packet(flow)) {
                    assert_eq!(mark, 0x10, "{flow}");
                }
            }
        }
    }
    assert!(refused > 100, "{refused}");
}

/// Where packets cannot be traced nobody is believed, and no table but the filter table has anything of ours.
#[test]
fn who_cannot_be_traced_is_not_believed() {
    let options = super::IptablesOptions::default();
    let mut refused = 0;
    for (seed, lists) in sequences(60) {
        for acl in &lists {
            let layout =
                super::Layout { can: Abilities::default(), ..super::layout(acl, &options, super::Edition::default()) };
            let steps = super::plan::replace(layout, &Family::ALL, &Stock::default(), &mut Capacities::new());
            let kernel = perform(&Kernel::new(), &steps).pop().unwrap().1;
            assert_eq!(layout.tables(), [Table::Filter]);
            assert!(kernel.chains.iter().all(|((table, _), chains)| *table == Table::Filter || chains.len() == 1));
            for flow in random::flows(seed, 40).into_iter().filter(|flow| flow.source != flow.destination) {
                let packet = Way::Routed.packet(flow);
                let passed = kernel.judge(super::Packet { mark: 0x1010, ..packet }).passed();
                assert_eq!(passed, Way::Forged.passes(acl, &flow), "{flow}");
                refused += usize::from(!passed && Way::Routed.passes(acl, &flow));
            }
        }
    }
    assert!(refused > 30, "{refused}");
}

/// From pods of this node to networks of the list, and nothing else.
#[test]
fn sources_are_kept() {
    let (mut kept, mut replaced) = (0, 0);
    for (seed, lists) in sequences(120) {
        for acl in &lists {
            let kernel = fresh(acl);
            for flow in random::flows(seed, 40) {
                let wanted = holds(acl, acl.reach.local, flow.source)
                    && acl.reach.unmasqueraded.iter().any(|network| network.contains(&flow.destination));
                assert_eq!(kernel.keeps_source(flow), wanted, "{flow}");
                kept += usize::from(wanted);
                replaced += usize::from(!wanted);
            }
            let has_chain = kernel
                .chains
                .iter()
                .any(|((table, _), chains)| *table == Table::Nat && chains.contains_key(Hook::Departure.chain()));
            assert_eq!(has_chain, !acl.reach.unmasqueraded.is_empty());
        }
    }
    assert!(kept > 50 && replaced > 50, "{kept} {replaced}");
}

/// In the tables of others, too, whatever they have there, and when they had put themselves before us.
#[test]
fn hooks_come_first_and_go() {
    let others = rule("-j OTHERS");
    for (_, lists) in sequences(30) {
        let mut kernel = Kernel::new();
        for chains in kernel.chains.values_mut().map(std::sync::Arc::make_mut) {
            chains.values_mut().for_each(|rules| rules.push(others.clone()));
            chains.insert("OTHERS".to_owned(), Vec::new());
        }
        let before = kernel.clone();
        for acl in &lists {
            let (_, steps) = replace(&kernel, acl, &mut Capacities::new());
            kernel = perform(&kernel, &steps).pop().unwrap().1;
            for ((table, family), listing) in kernel.stock().tables {
                let options = super::IptablesOptions::default();
                let layout = super::layout(acl, &options, super::Edition::default());
                assert_eq!(listing.hooked(), Some(layout.hooks(table, family)));
            }
            for chains in kernel.chains.values_mut().map(std::sync::Arc::make_mut) {
                for hook in Hook::ALL {
                    chains.get_mut(hook.builtin()).into_iter().for_each(|rules| rules.insert(0, others.clone()));
                }
            }
        }
        let steps = super::plan::cleanup(&kernel.stock());
        kernel = perform(&kernel, &steps).pop().unwrap().1;
        for (place, chains) in &kernel.chains {
            assert!(chains.keys().eq(before.chains[place].keys()), "{place:?}");
            assert!(chains.values().flatten().all(|rule| *rule == others));
        }
    }
}
