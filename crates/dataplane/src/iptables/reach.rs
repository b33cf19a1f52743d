//! What of a layout is about the reach of a node: whom it judges for others, whom it believes, where sources are kept.

use ringfence_compile::acl::{AclBelieved, AclReach, SetId};
use ringfence_model::{Direction, Family};

use super::layout::{Chain, Layout, OPEN};
use super::name::{Hook, Table};

/// Packets that claim an address and come in by the device that leads to it. Their way back is sought in the kernel's
/// tables of routes, which it can only be while they have not been routed themselves.
pub(super) const COMES_FROM_THERE: &str = "-m rpfilter";

/// The sets that a reach refers to.
pub(super) fn sets(reach: &AclReach) -> impl Iterator<Item = SetId> {
    let judged = if let AclBelieved::Endpoints(set) = reach.believed { Some(set) } else { None };
    [reach.local, reach.nodes, judged].into_iter().flatten()
}

/// What this node itself leads to a pod, from a port of its own, no other node has judged: who called that port was shown to
/// this node first.
const LED_ELSEWHERE: &str = "-m conntrack ! --ctstate DNAT ";

impl Layout<'_> {
    /// The hooks that a table needs.
    pub(super) fn hooks(self, table: Table, family: Family) -> Vec<Hook> {
        match table {
            Table::Filter => vec![Hook::Forward, Hook::Output],
            Table::Mangle => self.origin(family).map(|_| Hook::Arrival).into_iter().collect(),
            Table::Nat => self.departure(family).map(|_| Hook::Departure).into_iter().collect(),
        }
    }

    /// The tables that the list needs in any family.
    pub(super) fn tables(self) -> Vec<Table> {
        let needs = |table: &Table| Family::ALL.into_iter().any(|family| !self.hooks(*table, family).is_empty());
        Table::ALL.into_iter().filter(needs).collect()
    }

    /// Marks packets that come from another node's address by the device that leads there; of no other has a packet that
    /// passed here the mark, though the tunnel it came through may have left it one.
    pub(super) fn origin(self, family: Family) -> Option<Vec<String>> {
        let nodes = self.traceable(family)?;
        let bit = self.options.mark.bits();
        let marks = format!("-m set --match-set {nodes} src {COMES_FROM_THERE} -j MARK --set-xmark {bit:#x}/{bit:#x}");
        Some(vec![self.clear(), OPEN.to_owned(), marks])
    }

    /// Lets connections from pods of this node to some networks go out as they are. Further rules of the table are not asked.
    pub(super) fn departure(self, family: Family) -> Option<Vec<String>> {
        let kept = &self.acl.reach.unmasqueraded;
        if !self.can.translate() || !kept.iter().any(|network| Family::of(network.addr()) == family) {
            return None;
        }
        let local = self.address_set(self.acl.reach.local?, family)?;
        let kept = self.names().kept(family);
        Some(vec![format!("-m set --match-set {local} src -m set --match-set {kept} dst -j ACCEPT")])
    }

    /// The set of other nodes, if any of them is believed and packets can be traced to where they come from.
    fn traceable(self, family: Family) -> Option<String> {
        let believes = self.can.trace() && self.acl.reach.believed != AclBelieved::Nothing;
        self.address_set(self.acl.reach.nodes.filter(|_| believes)?, family)
    }

    /// In `RF-OUTPUT`: nobody judges what the node sends to its own pods, or at all when it judges no pods of others or all
    /// nodes are trusted.
    pub(super) fn own_or_not(self, family: Family) -> Vec<String> {
        if !self.judges_own() {
            return vec!["-m addrtype --src-type LOCAL -j RETURN".to_owned()];
        }
        let local = self.acl.reach.local.and_then(|local| self.address_set(local, family));
        let to_local =
            local.map(|local| format!("-m addrtype --src-type LOCAL -m set --match-set {local} dst -j RETURN"));
        let judged = format!("-m addrtype --src-type LOCAL -g {}", self.names().own());
        to_local.into_iter().chain([judged]).collect()
    }

    /// The chain for what the node itself sends to others than its own pods. The pod's node will believe this one, so here
    /// the pod's policies are asked. No pod is at the other end: nothing else is. Whatever addresses pods claim, the node
    /// reaches itself.
    pub(super) fn own(self, family: Family) -> Option<Chain> {
        let to_itself = ["-m addrtype --dst-type LOCAL -j RETURN".to_owned()];
        let rules = || to_itself.into_iter().chain(self.namespaces(Direction::Ingress, family)).collect();
        self.judges_own().then(|| (self.names().own(), rules()))
    }

    /// Whether what the node itself sends to pods of others is judged. Trusted nodes' is not.
    fn judges_own(self) -> bool {
        self.acl.reach.judges_others && self.acl.reach.believed != AclBelieved::Everything
    }

    /// The chain for what another node has judged: it takes the mark away. Who goes there does not come back.
    pub(super) fn believed_chain(self, family: Family) -> Option<Chain> {
        self.traceable(family).map(|_| (self.names().believed(), vec![self.clear()]))
    }

    /// Lets go what another node has judged, and what nodes are trusted with. After these no packet has the mark.
    pub(super) fn trust(self, hook: Hook, family: Family) -> Vec<String> {
        let mut rules = Vec::new();
        if let (Hook::Forward, Some(nodes)) = (hook, self.traceable(family)) {
            if let Some(covered) = self.covered(family) {
                let (bit, chain) = (self.options.mark.bits(), self.names().believed());
                rules.push(format!(
                    "-m mark --mark {bit:#x}/{bit:#x} -m set --match-set {nodes} src {covered}-g {chain}"
                ));
            }
            rules.push(self.clear());
        }
        if self.acl.reach.believed == AclBelieved::Everything {
            let nodes = self.acl.reach.nodes.and_then(|nodes| self.address_set(nodes, family));
            rules.extend(nodes.map(|nodes| format!("-m set --match-set {nodes} dst -j RETURN")));
        }
        rules
    }

    /// To where another node's judgement counts. Nothing when there is no such place.
    fn covered(self, family: Family) -> Option<String> {
        match self.acl.reach.believed {
            AclBelieved::Nothing => None,
            AclBelieved::Endpoints(set) => {
                let judged = self.endpoint_set(set, family)?;
                Some(format!("-m set --match-set {judged} dst,dst {LED_ELSEWHERE}"))
            }
            AclBelieved::LocalPods => {
                let local = self.address_set(self.acl.reach.local?, family)?;
                Some(format!("-m set --match-set {local} dst {LED_ELSEWHERE}"))
            }
            AclBelieved::Everything => Some(String::new()),
        }
    }

    /// The chains of a table, callers before those they call.
    pub(super) fn chains_in(self, table: Table, family: Family) -> Vec<Chain> {
        let one = |hook: Hook, rules: Option<Vec<String>>| -> Vec<Chain> {
            rules.map(|rules| (hook.chain().to_owned(), rules)).into_iter().collect()
        };
        match table {
            Table::Filter => self.chains(family),
            Table::Mangle => one(Hook::Arrival, self.origin(family)),
            Table::Nat => one(Hook::Departure, self.departure(family)),
        }
    }
}
