//! What a network shall look like, and whether that can be built.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ringfence_model::Protocol;
use thiserror::Error;

use crate::network::EndpointIndex;

/// A pod, or a host outside the cluster: to the lab they are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSpec {
    /// What its listeners answer with and what its device is labelled with, usually `namespace/pod`.
    pub name: String,
    /// Its addresses of either family, each without a prefix. Empty for an endpoint in the host network means all of
    /// the node's.
    pub addresses: Vec<IpAddr>,
    /// The ports it answers on, at each of its addresses. Doubles count once.
    pub listen: Vec<(Protocol, u16)>,
    /// Whether it lives in the node's own network namespace, with the node's addresses.
    pub host_network: bool,
}

/// A node and what is connected to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkSpec {
    /// The node's own addresses; the first of a family is what its packets come from.
    pub node_addresses: Vec<IpAddr>,
    /// Pods and external hosts.
    pub endpoints: Vec<EndpointSpec>,
}

/// Why a network cannot be as described.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    /// Addresses are unique, and only the host network shares the node's.
    #[error("{second} has the address {address}, which {first} has already")]
    AddressTaken {
        /// The address.
        address: IpAddr,
        /// Whose it is: an endpoint's name or "the node".
        first: String,
        /// Who wants it too.
        second: String,
    },
    /// An address that cannot be routed.
    #[error("{endpoint} cannot have the address {address}: it is not a unicast address that can be routed")]
    AddressUnusable {
        /// The endpoint's name, or "the node".
        endpoint: String,
        /// The address.
        address: IpAddr,
    },
    /// An endpoint without any address.
    #[error("{endpoint} has no address; give it one, or put it into the host network")]
    NoAddress {
        /// The endpoint's name.
        endpoint: String,
    },
    /// The node has to answer each family's packets with ICMP errors, so it needs an address.
    #[error("{endpoint} has the address {address}, but the node has none of that family; give it one")]
    NoNodeAddress {
        /// The endpoint's name.
        endpoint: String,
        /// The address.
        address: IpAddr,
    },
    /// Host network means the node's addresses.
    #[error("{endpoint} is in the host network, but its address {address} is none of the node's")]
    NotTheNodes {
        /// The endpoint's name.
        endpoint: String,
        /// The address.
        address: IpAddr,
    },
    /// Nobody can listen on port 0.
    #[error("{endpoint} cannot listen on {protocol} port 0; ports are 1 to 65535")]
    PortZero {
        /// The endpoint's name.
        endpoint: String,
        /// Of which protocol.
        protocol: Protocol,
    },
    /// Device numbers are two bytes.
    #[error("{0} endpoints are more than one node can have (65535)")]
    TooMany(usize),
}

/// Something that cannot be as described, but leaves the rest usable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// Two endpoints in the host network want the same port. A real node could run only one of them.
    PortTaken {
        /// Of which protocol.
        protocol: Protocol,
        /// Which port.
        port: u16,
        /// Who answers there.
        first: String,
        /// Who does not.
        second: String,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::PortTaken { protocol, port, first, second } => write!(
                f,
                "{second} does not listen on {protocol} port {port} of the node, because {first} does; both are in the host \
                 network"
            ),
        }
    }
}

/// A description that holds together.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) node_addresses: Vec<IpAddr>,
    pub(crate) endpoints: Vec<EndpointSpec>,
    pub(crate) services: BTreeMap<(IpAddr, Protocol, u16), EndpointIndex>,
    pub(crate) warnings: Vec<Warning>,
}

/// Checks a description and decides who answers where.
pub(crate) fn plan(spec: NetworkSpec) -> Result<Plan, PlanError> {
    let NetworkSpec { node_addresses, mut endpoints } = spec;
    if endpoints.len() > usize::from(u16::MAX) {
        return Err(PlanError::TooMany(endpoints.len()));
    }
    let the_node = "the node";
    let mut owners: BTreeMap<IpAddr, String> = BTreeMap::new();
    for &address in &node_addresses {
        claim(&mut owners, address, the_node)?;
    }
    for endpoint in &mut endpoints {
        if endpoint.host_network && endpoint.addresses.is_empty() {
            endpoint.addresses.clone_from(&node_addresses);
        }
        if endpoint.addresses.is_empty() {
            return Err(PlanError::NoAddress { endpoint: endpoint.name.clone() });
        }
        for &address in &endpoint.addresses {
            if !endpoint.host_network {
                claim(&mut owners, address, &endpoint.name)?;
            } else if !node_addresses.contains(&address) {
                return Err(PlanError::NotTheNodes { endpoint: endpoint.name.clone(), address });
            }
            if !node_addresses.iter().any(|own| own.is_ipv4() == address.is_ipv4()) {
                return Err(PlanError::NoNodeAddress { endpoint: endpoint.name.clone(), address });
            }
        }
    }
    let mut services = BTreeMap::new();
    let mut warnings = Vec::new();
    for (position, endpoint) in endpoints.iter().enumerate() {
        let ports: BTreeSet<(Protocol, u16)> = endpoint.listen.iter().copied().collect();
        for (protocol, port) in ports {
            if port == 0 {
                return Err(PlanError::PortZero { endpoint: endpoint.name.clone(), protocol });
            }
            let mut taken = None;
            for &address in &endpoint.addresses {
                let first = *services.entry((address, protocol, port)).or_insert(EndpointIndex(position));
                if first.0 != position {
                    taken = Some(first);
                }
            }
            if let Some(first) = taken.and_then(|first| endpoints.get(first.0)) {
                let (first, second) = (first.name.clone(), endpoint.name.clone());
                warnings.push(Warning::PortTaken { protocol, port, first, second });
            }
        }
    }
    Ok(Plan { node_addresses, endpoints, services, warnings })
}

fn claim(owners: &mut BTreeMap<IpAddr, String>, address: IpAddr, owner: &str) -> Result<(), PlanError> {
    if !is_usable(address) {
        return Err(PlanError::AddressUnusable { endpoint: owner.to_owned(), address });
    }
    match owners.insert(address, owner.to_owned()) {
        None => Ok(()),
        Some(first) => Err(PlanError::AddressTaken { address, first, second: owner.to_owned() }),
    }
}

/// Whether hosts can have the address and routers pass it on.
fn is_usable(address: IpAddr) -> bool {
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return false;
    }
    match address {
        IpAddr::V4(v4) => v4.octets()[0] != 0 && !v4.is_link_local() && !v4.is_broadcast(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local() && v6.to_ipv4_mapped().is_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(name: &str, addresses: &[&str], listen: &[(Protocol, u16)], host_network: bool) -> EndpointSpec {
        EndpointSpec {
            name: name.to_owned(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            listen: listen.to_vec(),
            host_network,
        }
    }

    fn planned(endpoints: Vec<EndpointSpec>) -> Result<Plan, PlanError> {
        plan(NetworkSpec { node_addresses: vec!["192.0.2.1".parse().unwrap()], endpoints })
    }

    #[test]
    fn contradictions_are_named() {
        let tcp = Protocol::Tcp;
        let taken = planned(vec![endpoint("a", &["10.0.0.1"], &[], false), endpoint("b", &["10.0.0.1"], &[], false)]);
        assert_eq!(taken.unwrap_err().to_string(), "b has the address 10.0.0.1, which a has already");
        let of_node = planned(vec![endpoint("a", &["192.0.2.1"], &[], false)]);
        assert_eq!(of_node.unwrap_err().to_string(), "a has the address 192.0.2.1, which the node has already");
        for (name, bad) in [
            ("loopback", endpoint("a", &["127.0.0.1"], &[], false)),
            ("link-local", endpoint("a", &["fe80::1"], &[], false)),
            ("mapped", endpoint("a", &["::ffff:10.0.0.1"], &[], false)),
            ("other family", endpoint("a", &["2001:db8::1"], &[], false)),
            ("no address", endpoint("a", &[], &[], false)),
            ("foreign host address", endpoint("a", &["10.0.0.1"], &[], true)),
            ("port 0", endpoint("a", &["10.0.0.1"], &[(tcp, 0)], false)),
        ] {
            assert!(planned(vec![bad]).is_err(), "{name}");
        }
    }

    #[test]
    fn a_port_declared_twice_is_one_listener_and_the_host_network_is_shared() {
        let web = [(Protocol::Tcp, 80), (Protocol::Tcp, 80)];
        let plan = planned(vec![
            endpoint("pod", &["10.0.0.1"], &web, false),
            endpoint("host-a", &[], &web, true),
            endpoint("host-b", &["192.0.2.1"], &web, true),
        ])
        .unwrap();
        assert_eq!(plan.services.len(), 2);
        assert_eq!(plan.services[&("192.0.2.1".parse().unwrap(), Protocol::Tcp, 80)], EndpointIndex(1));
        let (first, second) = ("host-a".to_owned(), "host-b".to_owned());
        assert_eq!(plan.warnings, [Warning::PortTaken { protocol: Protocol::Tcp, port: 80, first, second }]);
    }
}
