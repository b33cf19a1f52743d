//! What one node has to let through, by the oracle.

use std::collections::HashMap;
use std::net::IpAddr;

use ringfence_model::{Flow, Object, Phase, Pod};
use ringfence_oracle::{State, UnsupportedTier, Verdict, judge};

use crate::cluster::OUR_NODE;

/// The oracle, asked about our node: what it says of other nodes' pods is theirs to enforce.
pub(super) struct Judge {
    state: State,
    /// Whether the pod at an address is ours to enforce.
    ours: HashMap<IpAddr, bool>,
}

impl Judge {
    pub(super) fn new<'a>(objects: impl Iterator<Item = &'a Object> + Clone) -> Result<Judge, UnsupportedTier> {
        let mut owners: HashMap<IpAddr, &Pod> = HashMap::new();
        for object in objects.clone() {
            let Object::Pod(pod) = object else { continue };
            if pod.phase == Phase::Finished || pod.host_network {
                continue;
            }
            for address in &pod.addresses {
                let owner = owners.entry(*address).or_insert(pod);
                if (owner.created, &owner.id) < (pod.created, &pod.id) {
                    *owner = pod;
                }
            }
        }
        let ours = owners.into_iter().map(|(address, pod)| (address, pod.node.as_deref() == Some(OUR_NODE))).collect();
        Ok(Judge { state: State::new(objects)?, ours })
    }

    /// Whether our node lets the flow through, and all that the oracle says.
    pub(super) fn verdict(&self, flow: &Flow) -> (bool, Verdict) {
        let verdict = judge(&self.state, flow);
        let ours = |address| self.ours.get(&address).copied().unwrap_or_default();
        let egress = verdict.egress.allowed || !ours(flow.source);
        let ingress = verdict.ingress.allowed || !ours(flow.destination);
        (egress && ingress, verdict)
    }
}
