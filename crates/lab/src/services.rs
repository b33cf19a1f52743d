//! Services as a network shall have them. They are a fixture of the lab: what kube-proxy does to packets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ringfence_model::{ExternalTraffic, Protocol};
use thiserror::Error;

use crate::index::NodeIndex;
use crate::spec::{NetworkSpec, Place, PlanError, node_at};

/// The Services of a cluster, and how kube-proxy is set up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Services {
    /// kube-proxy's `--masquerade-all`: every connection to a cluster IP reaches its backend under a node's address.
    pub masquerade_all: bool,
    /// Which iptables writes the rules.
    pub tables: Tables,
    /// The Services; while there are none, no rule is written.
    pub list: Vec<ServiceSpec>,
}

/// The two packet filters that iptables programs speak to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tables {
    /// nftables: `iptables-nft-restore` and `ip6tables-nft-restore`.
    #[default]
    Nft,
    /// ip_tables: `iptables-legacy-restore` and `ip6tables-legacy-restore`.
    Legacy,
}

impl Tables {
    /// Whether the programs that write it are installed. Services and masquerading need them.
    pub fn installed(self) -> bool {
        crate::rules::installed(self)
    }
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceSpec {
    /// `namespace/name`.
    pub name: String,
    /// At least one.
    pub cluster_ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePortSpec>,
    /// What it does with connections from outside.
    pub external_traffic_policy: ExternalTraffic,
    /// Which of several clusters it belongs to.
    pub cluster: usize,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePortSpec {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Of which protocol.
    pub protocol: Protocol,
    /// The port at the cluster IPs.
    pub port: u16,
    /// The port at the addresses of every node.
    pub node_port: Option<u16>,
    /// Where connections end; without any they are refused.
    pub backends: Vec<Backend>,
}

/// An endpoint of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Where it runs.
    pub node: NodeIndex,
}

/// Why a Service cannot be as described.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ServiceError {
    /// Such a Service is for names, not for packets.
    #[error("the Service {0} has no cluster IP")]
    NoClusterIp(String),
    /// Ports are 1 to 65535.
    #[error("the Service {service} has a {protocol} port 0, node port 0 or backend port 0; ports are 1 to 65535")]
    PortZero {
        /// The Service's name.
        service: String,
        /// Of which protocol.
        protocol: Protocol,
    },
    /// One connection would have two ways to go.
    #[error("the Service {service} has {protocol} port {port} twice")]
    PortTwice {
        /// The Service's name.
        service: String,
        /// Of which protocol.
        protocol: Protocol,
        /// The port.
        port: u16,
    },
    /// Node ports are unique in a cluster.
    #[error("the Service {second} wants the {protocol} node port {port}, which {first} has already")]
    NodePortTaken {
        /// Of which protocol.
        protocol: Protocol,
        /// The node port.
        port: u16,
        /// Whose it is.
        first: String,
        /// Who wants it too.
        second: String,
    },
    /// Nothing translates between families.
    #[error("the Service {service} has the backend {address}, but no cluster IP of that family")]
    BackendFamily {
        /// The Service's name.
        service: String,
        /// The backend's address.
        address: IpAddr,
    },
    /// The address belongs to an endpoint elsewhere.
    #[error("the Service {service} has the backend {address} on {claimed}, but that address is on {actual}")]
    BackendElsewhere {
        /// The Service's name.
        service: String,
        /// The backend's address.
        address: IpAddr,
        /// The node it is said to be on.
        claimed: String,
        /// The node it is on.
        actual: String,
    },
}

impl Services {
    /// Checks the Services against each other and against the network. That the cluster IPs are nobody else's is for
    /// the caller to check.
    pub(crate) fn check(&self, spec: &NetworkSpec) -> Result<(), PlanError> {
        let homes = homes(spec);
        let mut node_ports: BTreeMap<(usize, Protocol, u16), &str> = BTreeMap::new();
        for service in &self.list {
            let name = || service.name.clone();
            if service.cluster_ips.is_empty() {
                return Err(ServiceError::NoClusterIp(name()).into());
            }
            let mut ports = BTreeSet::new();
            for port in &service.ports {
                let protocol = port.protocol;
                let backend_ports = port.backends.iter().map(|backend| backend.port);
                if [port.port].into_iter().chain(port.node_port).chain(backend_ports).any(|number| number == 0) {
                    return Err(ServiceError::PortZero { service: name(), protocol }.into());
                }
                if !ports.insert((protocol, port.port)) {
                    return Err(ServiceError::PortTwice { service: name(), protocol, port: port.port }.into());
                }
                if let Some(number) = port.node_port
                    && let Some(first) = node_ports.insert((service.cluster, protocol, number), &service.name)
                {
                    let (first, second) = (first.to_owned(), name());
                    return Err(ServiceError::NodePortTaken { protocol, port: number, first, second }.into());
                }
                for backend in &port.backends {
                    check_backend(service, backend, spec, &homes)?;
                }
            }
        }
        Ok(())
    }

    /// Those of one cluster.
    pub(crate) fn of(&self, cluster: usize) -> Services {
        let list = self.list.iter().filter(|service| service.cluster == cluster).cloned().collect();
        Services { list, ..*self }
    }

    /// The same Services without the ports of one protocol. `None`: there are no such ports.
    pub(crate) fn without(&self, protocol: Protocol) -> Option<Services> {
        let mut less = self.clone();
        for service in &mut less.list {
            service.ports.retain(|port| port.protocol != protocol);
        }
        (less != *self).then_some(less)
    }
}

fn check_backend(
    service: &ServiceSpec,
    backend: &Backend,
    spec: &NetworkSpec,
    homes: &BTreeMap<IpAddr, NodeIndex>,
) -> Result<(), PlanError> {
    let address = backend.address;
    let claimed = node_at(&spec.nodes, backend.node, || format!("the backend {address} of {}", service.name))?;
    if !service.cluster_ips.iter().any(|cluster_ip| cluster_ip.is_ipv4() == address.is_ipv4()) {
        return Err(ServiceError::BackendFamily { service: service.name.clone(), address }.into());
    }
    match homes.get(&address).filter(|&&home| home != backend.node).and_then(|home| spec.nodes.get(home.0)) {
        None => Ok(()),
        Some(actual) => {
            let (claimed, actual) = (claimed.name.clone(), actual.name.clone());
            Err(ServiceError::BackendElsewhere { service: service.name.clone(), address, claimed, actual }.into())
        }
    }
}

/// The node of each address of a node or pod.
fn homes(spec: &NetworkSpec) -> BTreeMap<IpAddr, NodeIndex> {
    let of_nodes = spec.nodes.iter().enumerate().map(|(position, node)| (NodeIndex(position), &node.addresses));
    let of_pods = spec.endpoints.iter().filter_map(|endpoint| match endpoint.place {
        Place::Pod { node } => Some((node, &endpoint.addresses)),
        Place::HostNetwork { .. } | Place::External => None,
    });
    of_nodes
        .chain(of_pods)
        .flat_map(|(node, addresses)| addresses.iter().map(move |&address| (address, node)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_one_protocol_can_be_left_out() {
        let port = |protocol| ServicePortSpec { name: None, protocol, port: 80, node_port: None, backends: Vec::new() };
        let with = |ports: &[Protocol]| {
            let ports = ports.iter().copied().map(port).collect();
            Services { list: vec![ServiceSpec { ports, ..ServiceSpec::default() }], ..Services::default() }
        };
        let less = with(&[Protocol::Tcp, Protocol::Sctp]).without(Protocol::Sctp);
        assert_eq!(less, Some(with(&[Protocol::Tcp])));
        assert_eq!(with(&[Protocol::Tcp]).without(Protocol::Sctp), None);
    }
}
