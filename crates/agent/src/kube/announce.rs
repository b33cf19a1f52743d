//! What other nodes have to know about this one, as annotations of its Node: addresses that its status does not tell, and what
//! its agent enforces.
//!
//! Overlay networks masquerade what a node sends to pods of others under the address of a tunnel or a bridge. Other nodes
//! believe such an address only if they know whose it is.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use ringfence_k8s::{ADDRESSES_ANNOTATION, ENFORCEMENT_ANNOTATION, MOST_TUNNEL_ADDRESSES};
use ringfence_model::{EnforceAt, Enforcement, NodeTraffic};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::failure::{causes, one_line};
use crate::status::{Status, Topic};

/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// So often the Node is looked at though nothing is different here: somebody may have taken the annotations away.
const LOOK: Duration = Duration::from_secs(600);
/// Who writes, in the server's books.
const MANAGER: &str = "ringfence";

/// What tells the addresses that packets of this node can come from, its own network's included.
pub type Addresses = Box<dyn Fn() -> io::Result<Vec<IpAddr>> + Send>;

/// Annotations by name. One without a text shall not be there.
type Annotations = BTreeMap<&'static str, Option<String>>;

/// Tells the API server about the agent's node.
pub struct Announcer {
    node: Arc<str>,
    enforcement: Enforcement,
    addresses: Addresses,
    every: Duration,
    status: Arc<Status>,
}

impl fmt::Debug for Announcer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Announcer").field("node", &self.node).field("enforcement", &self.enforcement).finish()
    }
}

impl Announcer {
    /// An announcer for the agent on `node`, that looks every so often whether the addresses are still the same.
    pub fn new(
        node: Arc<str>,
        enforcement: Enforcement,
        addresses: Addresses,
        every: Duration,
        status: Arc<Status>,
    ) -> Announcer {
        Announcer { node, enforcement, addresses, every, status }
    }

    /// Keeps the annotations true for ever. Failures are told once and tried again.
    pub(super) async fn announce(self, client: Client) {
        let nodes = Api::<Node>::all(client);
        let mut told: Option<(Vec<IpAddr>, Instant)> = None;
        let mut last_error = None;
        loop {
            let result = match self.current() {
                Ok(addresses)
                    if told.as_ref().is_some_and(|(known, at)| *known == addresses && at.elapsed() < LOOK) =>
                {
                    Ok(())
                }
                Ok(addresses) => self.tell(&nodes, &addresses).await.map(|()| told = Some((addresses, Instant::now()))),
                Err(error) => Err(format!("the addresses of this node cannot be read: {error}")),
            };
            let error = result.err();
            if last_error != error {
                if let Some(error) = &error {
                    warn!("{error}");
                }
                self.status.conditions(Topic::Announcement, error.clone());
                last_error = error;
            }
            sleep(self.every).await;
        }
    }

    /// The addresses to tell of, in order; none when nobody asks for them.
    fn current(&self) -> io::Result<Vec<IpAddr>> {
        if !tells_addresses(self.enforcement) {
            return Ok(Vec::new());
        }
        let mut addresses = (self.addresses)()?;
        addresses.sort_unstable();
        addresses.dedup();
        Ok(addresses)
    }

    /// Writes what the Node does not say yet.
    async fn tell(&self, nodes: &Api<Node>, addresses: &[IpAddr]) -> Result<(), String> {
        let found = match timeout(PATIENCE, nodes.get(&self.node)).await {
            Ok(Ok(node)) => node,
            Ok(Err(error)) => return Err(format!("cannot read Node {}: {}", self.node, explained(&error, "get"))),
            Err(_) => return Err(format!("cannot read Node {}: no answer", self.node)),
        };
        let wanted = wanted(self.enforcement, addresses, &found);
        let is = |name: &str| found.metadata.annotations.as_ref().and_then(|all| all.get(name));
        let differing: Annotations = wanted.into_iter().filter(|(name, text)| is(name) != text.as_ref()).collect();
        if differing.is_empty() {
            return Ok(());
        }
        let patch = Patch::Merge(json!({"metadata": {"annotations": &differing}}));
        let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let why = match timeout(PATIENCE, nodes.patch_metadata(&self.node, &parameters, &patch)).await {
            Ok(Ok(_)) => {
                info!("Node {} says {}", self.node, in_words(&differing));
                return Ok(());
            }
            Ok(Err(error)) => explained(&error, "patch"),
            Err(_) => "no answer".to_owned(),
        };
        Err(format!(
            "cannot tell other nodes of this one: {why}. By hand: kubectl annotate --overwrite node {} {}",
            self.node,
            in_words(&differing)
        ))
    }
}

/// Whether anybody asks for more addresses of nodes than their status tells.
fn tells_addresses(enforcement: Enforcement) -> bool {
    enforcement.at != EnforceAt::Destination || enforcement.node_traffic == NodeTraffic::All
}

/// What the Node shall say. Whoever enforces by default takes back what an earlier agent has said about that, and leaves the
/// addresses to others.
fn wanted(enforcement: Enforcement, addresses: &[IpAddr], node: &Node) -> Annotations {
    let announces = enforcement != Enforcement::default();
    let mut wanted = Annotations::from([(ENFORCEMENT_ANNOTATION, announces.then(|| enforcement.to_string()))]);
    if tells_addresses(enforcement) {
        let status = node.status.as_ref().and_then(|status| status.addresses.as_ref()).into_iter().flatten();
        let known: Vec<IpAddr> = status.filter_map(|address| address.address.parse().ok()).collect();
        let more = addresses.iter().filter(|address| !known.contains(address)).take(MOST_TUNNEL_ADDRESSES);
        let more: Vec<String> = more.map(ToString::to_string).collect();
        wanted.insert(ADDRESSES_ANNOTATION, (!more.is_empty()).then(|| more.join(",")));
    }
    wanted
}

/// As kubectl takes them: one without a text goes.
fn in_words(annotations: &Annotations) -> String {
    let word = |(name, text): (&&str, &Option<String>)| match text {
        Some(text) => format!("{name}={text}"),
        None => format!("{name}-"),
    };
    annotations.iter().map(word).collect::<Vec<_>>().join(" ")
}

fn explained(error: &kube::Error, verb: &str) -> String {
    match error {
        kube::Error::Api(status) if status.code == 403 => format!(
            "the API server forbids it; bind the agent's account to a ClusterRole with apiGroups: [\"\"], \
             resources: [nodes], verbs: [{verb}]"
        ),
        kube::Error::Api(status) => one_line(&status.message),
        error => causes(error),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn node(status: &Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n1"}, "status": status})).unwrap()
    }

    fn said(at: EnforceAt, node_traffic: NodeTraffic, addresses: &[&str]) -> String {
        let node = node(&json!({"addresses": [
            {"type": "InternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": "n1"}]}));
        let addresses: Vec<IpAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        in_words(&wanted(Enforcement { at, node_traffic }, &addresses, &node))
    }

    #[test]
    fn a_node_says_what_its_status_does_not() {
        let (entry, own) = (EnforceAt::Entry, NodeTraffic::Own);
        assert_eq!(
            said(entry, own, &["10.244.1.0", "192.0.2.1", "fd00::1"]),
            "ringfence.io/enforcement=entry/own ringfence.io/node-addresses=10.244.1.0,fd00::1"
        );
        assert_eq!(said(entry, own, &["192.0.2.1"]), "ringfence.io/enforcement=entry/own ringfence.io/node-addresses-");
        assert_eq!(
            said(EnforceAt::Destination, NodeTraffic::Policy, &["10.244.1.0"]),
            "ringfence.io/enforcement=destination/policy"
        );
        assert_eq!(said(EnforceAt::Destination, own, &["10.244.1.0"]), "ringfence.io/enforcement-");
    }

    #[test]
    fn no_more_than_others_read() {
        let many: Vec<String> = (0..200).map(|last| format!("10.244.1.{last}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let said = said(EnforceAt::Everywhere, NodeTraffic::All, &many);
        assert_eq!(said.matches(',').count() + 1, MOST_TUNNEL_ADDRESSES);
    }
}
