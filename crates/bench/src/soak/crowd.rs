//! The rest of the cluster, as large clusters are mixed, and what happens to its pods and policies.
//!
//! As many pods come as go, on our node and elsewhere, and labels and policies begin as mixed as changes leave them, so that
//! the cluster keeps its size: of pods, of different labels, of rules.

use std::net::IpAddr;

use ringfence_k8s::api::Kind;
use ringfence_model::{Labels, Object, Phase, Pod, Policy};

use super::Failure;
use super::present::Present;
use crate::cluster::address;
use crate::mix::Mix;

/// How many addresses are remembered that pods have left, to be given again.
const LEFT: usize = 64;

pub(super) struct Crowd {
    mix: Mix,
    /// Pods of our node, and all others.
    sides: [Side; 2],
    /// Addresses that pods have left.
    left: Vec<IpAddr>,
    /// Policies that are away.
    away: Vec<u32>,
}

struct Side {
    /// How many there are when all have come.
    full: usize,
    pods: Vec<(u32, Pod)>,
    /// Numbers of pods that are not there.
    spare: Vec<u32>,
    /// Pods that have no address yet.
    pending: Vec<(u32, Pod)>,
}

impl Crowd {
    pub(super) fn new(mix: Mix) -> Crowd {
        let side = |spare: std::ops::Range<u32>, full: u32| Side {
            full: full as usize,
            pods: Vec::new(),
            spare: spare.collect(),
            pending: Vec::new(),
        };
        let (pods, local) = (mix.pods, mix.local_pods);
        let spares = pods..pods + local.max(16);
        let others = spares.end..spares.end + (pods / 20).max(64);
        Crowd { mix, sides: [side(spares, local), side(others, pods - local)], left: Vec::new(), away: Vec::new() }
    }

    pub(super) fn enter(&mut self, present: &mut Present<'_>, random: &mut fastrand::Rng) -> Result<(), Failure> {
        for object in self.mix.objects() {
            // The pods of the mix proper are written below, under their numbers.
            let is_numbered = matches!(&object, Object::Pod(pod) if pod.namespace.starts_with("namespace-"));
            if !is_numbered {
                present.apply(&object)?;
            }
        }
        for number in 0..self.mix.policies {
            present.apply(&Object::Policy(self.changed_policy(number, random)))?;
        }
        for number in 0..self.mix.pods {
            let mut pod = self.mix.pod(number, random.u32(..10));
            // So many of the pods that are there have had their labels changed since they came.
            if random.u8(..100) < 55 {
                pod.labels = self.changed_labels(number, random);
            }
            present.apply(&Object::Pod(pod.clone()))?;
            self.sides[usize::from(number >= self.mix.local_pods)].pods.push((number, pod));
        }
        Ok(())
    }

    /// A pod comes, gets its address, goes, ends, or has other labels or another address.
    pub(super) fn change_pod(&mut self, present: &mut Present<'_>, random: &mut fastrand::Rng) -> Result<(), Failure> {
        let ours = random.u8(..8) == 0;
        let side = &mut self.sides[usize::from(!ours)];
        let chosen = random.usize(..side.pods.len().max(1));
        let pod = match random.u8(..100) {
            _ if side.pods.is_empty() => side.come(self.mix, ours, random),
            0..50 => {
                if let Some((number, pod)) = (random.u8(..3) > 0).then(|| side.pending.pop()).flatten() {
                    side.pods.push((number, pod));
                    side.pods.last().map(|(_, pod)| pod.clone())
                } else if side.pods.len() + side.pending.len() < side.full {
                    side.come(self.mix, ours, random)
                } else {
                    let (number, pod) = side.pods.swap_remove(chosen);
                    side.spare.push(number);
                    present.delete(Kind::Pod, &pod.namespace, &pod.name);
                    self.left.extend(pod.addresses);
                    None
                }
            }
            50..80 => {
                let number = side.pods[chosen].0;
                let labels = self.changed_labels(number, random);
                let pod = &mut self.sides[usize::from(!ours)].pods[chosen].1;
                pod.labels = labels;
                Some(pod.clone())
            }
            80..95 => {
                let pod = &mut side.pods[chosen].1;
                if let Some(address) =
                    (!self.left.is_empty()).then(|| self.left.swap_remove(random.usize(..self.left.len())))
                {
                    self.left.append(&mut pod.addresses);
                    pod.addresses = vec![address];
                }
                Some(pod.clone())
            }
            95..98 => {
                let pod = &mut side.pods[chosen].1;
                pod.phase = Phase::Finished;
                self.left.extend(&pod.addresses);
                Some(pod.clone())
            }
            // An address that another pod has: who was created last owns it.
            _ => {
                let other = random.usize(..side.pods.len());
                let addresses = side.pods[other].1.addresses.clone();
                side.pods[chosen].1.addresses = addresses;
                Some(side.pods[chosen].1.clone())
            }
        };
        let over = self.left.len().saturating_sub(LEFT);
        self.left.drain(..over);
        pod.map_or(Ok(()), |pod| present.apply(&Object::Pod(pod)))
    }

    /// A policy of the crowd goes, comes again, or speaks of other ports.
    pub(super) fn change_policy(
        &mut self,
        present: &mut Present<'_>,
        random: &mut fastrand::Rng,
    ) -> Result<(), Failure> {
        let number = random.u32(..self.mix.policies.max(1));
        if self.away.len() < 20 && random.u8(..3) == 0 && !self.away.contains(&number) {
            let id = self.mix.policy(number, 0).id;
            present.delete(Kind::NetworkPolicy, &id.namespace, &id.name);
            self.away.push(number);
            return Ok(());
        }
        let back = (!self.away.is_empty() && random.bool()).then(|| self.away.swap_remove(0));
        let number = back.unwrap_or(number);
        self.away.retain(|away| *away != number);
        present.apply(&Object::Policy(self.changed_policy(number, random)))
    }

    /// What a pod's labels change to.
    fn changed_labels(&self, number: u32, random: &mut fastrand::Rng) -> Labels {
        self.mix.pod(number, random.u32(..10)).labels
    }

    /// What a policy changes to.
    fn changed_policy(&self, number: u32, random: &mut fastrand::Rng) -> Policy {
        self.mix.policy(number, random.u32(..5))
    }

    /// A policy as it was in the beginning.
    pub(super) fn policy(&self, number: u32) -> Policy {
        self.mix.policy(number, 0)
    }

    /// A namespace goes to another team.
    pub(super) fn change_namespace(
        &mut self,
        present: &mut Present<'_>,
        random: &mut fastrand::Rng,
    ) -> Result<(), Failure> {
        let number = random.u32(..self.mix.namespaces);
        present.apply(&Object::Namespace(self.mix.namespace(number, random.u32(..50))))
    }
}

impl Side {
    /// A new pod, mostly without an address.
    fn come(&mut self, mix: Mix, ours: bool, random: &mut fastrand::Rng) -> Option<Pod> {
        let number = (!self.spare.is_empty()).then(|| self.spare.swap_remove(random.usize(..self.spare.len())))?;
        let changes = random.u32(..10);
        let mut pod = if ours { mix.local_pod(number, changes) } else { mix.pod(number, changes) };
        pod.addresses = vec![address(std::net::Ipv4Addr::new(10, 0, 0, 1), number)];
        if random.u8(..4) == 0 {
            self.pods.push((number, pod.clone()));
            return Some(pod);
        }
        self.pending.push((number, pod.clone()));
        Some(Pod { addresses: Vec::new(), ..pod })
    }
}
