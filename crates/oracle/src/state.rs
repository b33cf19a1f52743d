use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ringfence_model::{
    EndpointSlice, Labels, Namespace, Node, Object, Phase, Pod, Policy, PolicyId, Protocol, Service, ServiceKind, Tier,
};

/// Everything the oracle looks at: plain lists.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub(crate) namespaces: Vec<Namespace>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) pods: Vec<Pod>,
    pub(crate) policies: Vec<Policy>,
    pub(crate) services: Vec<Service>,
    pub(crate) slices: Vec<EndpointSlice>,
}

/// A policy of a tier that is not evaluated yet. Guessing would be worse than refusing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsupportedTier(pub PolicyId);

impl fmt::Display for UnsupportedTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "policy {} is of tier {:?}, which is not supported", self.0, self.0.tier)
    }
}

impl std::error::Error for UnsupportedTier {}

impl State {
    /// A state of these objects. Of two with the same identity the later one counts.
    ///
    /// # Errors
    /// A policy that is not a NetworkPolicy.
    pub fn new<'a>(objects: impl IntoIterator<Item = &'a Object>) -> Result<State, UnsupportedTier> {
        let by_key: BTreeMap<_, _> = objects.into_iter().map(|object| (object.key(), object)).collect();
        let mut state = State::default();
        for object in by_key.into_values() {
            match object {
                Object::Namespace(namespace) => state.namespaces.push(namespace.clone()),
                Object::Node(node) => state.nodes.push(node.clone()),
                Object::Pod(pod) => state.pods.push(pod.clone()),
                Object::Policy(policy) if policy.id.tier == Tier::Namespace => state.policies.push(policy.clone()),
                Object::Policy(policy) => return Err(UnsupportedTier(policy.id.clone())),
                Object::Service(service) => state.services.push(service.clone()),
                Object::EndpointSlice(slice) => state.slices.push(slice.clone()),
            }
        }
        Ok(state)
    }

    /// The pod that owns an address: live, not on its node's network, and of several the one created last.
    pub(crate) fn pod_at(&self, address: IpAddr) -> Option<&Pod> {
        let mut owner: Option<&Pod> = None;
        for pod in &self.pods {
            if pod.phase == Phase::Finished || pod.host_network || !pod.addresses.contains(&address) {
                continue;
            }
            owner = match owner {
                Some(other) if (other.created, &other.id) > (pod.created, &pod.id) => Some(other),
                _ => Some(pod),
            };
        }
        owner
    }

    /// The labels of a namespace, if it is in the state.
    pub(crate) fn namespace_labels(&self, name: &str) -> Option<&Labels> {
        for namespace in &self.namespaces {
            if &*namespace.name == name {
                return Some(&namespace.labels);
            }
        }
        None
    }

    /// Whether an address is some node's.
    pub(crate) fn is_node(&self, address: IpAddr) -> bool {
        self.nodes.iter().any(|node| node.addresses.contains(&address) || node.tunnel_addresses.contains(&address))
    }

    /// Whether an address is that node's.
    pub(crate) fn is_node_named(&self, name: &str, address: IpAddr) -> bool {
        self.nodes.iter().any(|node| {
            &*node.name == name && (node.addresses.contains(&address) || node.tunnel_addresses.contains(&address))
        })
    }

    /// The ports of an address to which Services lead that can be called from outside the cluster at its nodes; if asked for,
    /// those only to which they may lead now.
    pub(crate) fn exposed_endpoints(&self, address: IpAddr, serving: bool) -> Vec<(Protocol, u16)> {
        let mut ports = Vec::new();
        for slice in &self.slices {
            let exposed = self.services.iter().any(|service| {
                let by_port = service.kind == ServiceKind::NodePort || service.kind == ServiceKind::LoadBalancer;
                service.namespace == slice.namespace
                    && Some(&service.name) == slice.service.as_ref()
                    && (by_port || !service.external_addresses.is_empty())
            });
            if !exposed {
                continue;
            }
            for endpoint in &slice.endpoints {
                if endpoint.address == address && (endpoint.serving || !serving) {
                    ports.extend(slice.ports.iter().copied());
                }
            }
        }
        ports
    }

    /// Whether an address is one of the pod's own node.
    pub(crate) fn is_own_node(&self, pod: &Pod, address: IpAddr) -> bool {
        self.nodes.iter().any(|node| {
            let has = node.addresses.contains(&address) || node.tunnel_addresses.contains(&address);
            Some(&node.name) == pod.node.as_ref() && has
        })
    }
}
