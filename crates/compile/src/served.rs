//! Which addresses answer for Services that can be called from outside, and on which ports.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ringfence_model::{EndpointSlice, Protocol, Service, ServiceKind};

/// Namespace and name.
type Name = (Arc<str>, Arc<str>);

/// Endpoints of Services that can be called from outside: by a node port or under an external address.
#[derive(Default)]
pub(crate) struct Served {
    /// The Services that can be.
    exposed: BTreeSet<Name>,
    slices: HashMap<Name, EndpointSlice>,
    /// None of the sets is empty.
    by_service: HashMap<Name, BTreeSet<Arc<str>>>,
    /// Of exposed Services. Neither map is ever empty.
    ports: HashMap<IpAddr, BTreeMap<(Protocol, u16), Claims>>,
}

/// How many slices name an endpoint.
#[derive(Default)]
struct Claims {
    all: usize,
    /// With an endpoint that Services may lead to.
    serving: usize,
}

impl Served {
    /// Whether an address answers for such a Service, or is about to.
    pub(crate) fn holds(&self, address: IpAddr) -> bool {
        self.ports.contains_key(&address)
    }

    /// The ports on which such Services may lead to an address now.
    pub(crate) fn serving(&self, address: IpAddr) -> impl Iterator<Item = (Protocol, u16)> {
        let ports = self.ports.get(&address).into_iter().flatten();
        ports.filter(|(_, claims)| claims.serving > 0).map(|(port, _)| *port)
    }

    /// All addresses that it holds.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.ports.keys().copied()
    }

    /// Files a Service. Returns the addresses about which something changed.
    pub(crate) fn apply_service(&mut self, service: &Service) -> Vec<IpAddr> {
        let by_port = matches!(service.kind, ServiceKind::NodePort | ServiceKind::LoadBalancer);
        let exposed = by_port || !service.external_addresses.is_empty();
        self.expose(&(service.namespace.clone(), service.name.clone()), exposed)
    }

    /// Forgets a Service.
    pub(crate) fn delete_service(&mut self, namespace: &Arc<str>, name: &Arc<str>) -> Vec<IpAddr> {
        self.expose(&(namespace.clone(), name.clone()), false)
    }

    fn expose(&mut self, service: &Name, exposed: bool) -> Vec<IpAddr> {
        let news = if exposed { self.exposed.insert(service.clone()) } else { self.exposed.remove(service) };
        if !news {
            return Vec::new();
        }
        let slices = self.by_service.get(service).into_iter().flatten();
        let slices: Vec<Name> = slices.map(|slice| (service.0.clone(), slice.clone())).collect();
        slices.iter().flat_map(|slice| self.count(slice, exposed)).collect()
    }

    /// Files a slice, in place of the one of its name.
    pub(crate) fn apply_slice(&mut self, slice: EndpointSlice) -> Vec<IpAddr> {
        let name = (slice.namespace.clone(), slice.name.clone());
        if self.slices.get(&name) == Some(&slice) {
            return Vec::new();
        }
        let mut changed = self.delete_slice(&slice.namespace, &slice.name);
        let service = slice.service.as_ref().map(|service| (slice.namespace.clone(), service.clone()));
        let exposed = service.as_ref().is_some_and(|service| self.exposed.contains(service));
        if let Some(service) = service {
            self.by_service.entry(service).or_default().insert(slice.name.clone());
        }
        self.slices.insert(name.clone(), slice);
        if exposed {
            changed.extend(self.count(&name, true));
        }
        changed
    }

    /// Forgets a slice.
    pub(crate) fn delete_slice(&mut self, namespace: &Arc<str>, name: &Arc<str>) -> Vec<IpAddr> {
        let name = (namespace.clone(), name.clone());
        let service = self.slices.get(&name).and_then(|slice| slice.service.clone());
        let mut changed = Vec::new();
        if let Some(service) = service.map(|service| (name.0.clone(), service)) {
            if self.exposed.contains(&service) {
                changed = self.count(&name, false);
            }
            if let Some(slices) = self.by_service.get_mut(&service) {
                slices.remove(&name.1);
                if slices.is_empty() {
                    self.by_service.remove(&service);
                }
            }
        }
        self.slices.remove(&name);
        changed
    }

    /// Counts the endpoints of a slice in, or out again.
    fn count(&mut self, slice: &Name, more: bool) -> Vec<IpAddr> {
        let Some(slice) = self.slices.get(slice) else { return Vec::new() };
        for endpoint in &slice.endpoints {
            for port in &slice.ports {
                let ports = self.ports.entry(endpoint.address).or_default();
                let claims = ports.entry(*port).or_default();
                let serving = usize::from(endpoint.serving);
                if more {
                    *claims = Claims { all: claims.all + 1, serving: claims.serving + serving };
                } else {
                    *claims = Claims { all: claims.all - 1, serving: claims.serving - serving };
                    if claims.all == 0 {
                        ports.remove(port);
                    }
                    if ports.is_empty() {
                        self.ports.remove(&endpoint.address);
                    }
                }
            }
        }
        slice.endpoints.iter().map(|endpoint| endpoint.address).collect()
    }

    /// Whether nothing is left of objects that were there.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.exposed.is_empty() && self.slices.is_empty() && self.by_service.is_empty() && self.ports.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use ringfence_model::{Endpoint, ExternalTraffic};

    use super::*;

    const PORT: (Protocol, u16) = (Protocol::Tcp, 80);

    fn address() -> IpAddr {
        IpAddr::V4([10, 0, 0, 1].into())
    }

    fn exposed(name: &str) -> Service {
        Service {
            namespace: "shop".into(),
            name: name.into(),
            kind: ServiceKind::NodePort,
            selector: BTreeMap::new(),
            cluster_addresses: Vec::new(),
            external_addresses: Vec::new(),
            external_traffic: ExternalTraffic::Cluster,
            ports: Vec::new(),
        }
    }

    fn slice(name: &str, service: &str, serving: bool) -> EndpointSlice {
        EndpointSlice {
            namespace: "shop".into(),
            name: name.into(),
            service: Some(service.into()),
            endpoints: vec![Endpoint { address: address(), serving }],
            ports: vec![PORT],
        }
    }

    /// An endpoint serves as long as one slice says so, however many others name it.
    #[test]
    fn slices_that_name_the_same_endpoint_are_counted_apart() {
        let mut served = Served::default();
        served.apply_service(&exposed("front"));
        served.apply_service(&exposed("back"));
        served.apply_slice(slice("front-1", "front", false));
        assert!(served.holds(address()));
        assert_eq!(served.serving(address()).count(), 0);
        served.apply_slice(slice("back-1", "back", true));
        assert_eq!(served.serving(address()).collect::<Vec<_>>(), [PORT]);
        served.delete_service(&"shop".into(), &"back".into());
        assert_eq!(served.serving(address()).count(), 0, "the other one does not serve");
        assert!(served.holds(address()));
        served.apply_service(&exposed("back"));
        served.apply_slice(slice("back-1", "back", false));
        assert_eq!(served.serving(address()).count(), 0);
        for name in ["front-1", "back-1"] {
            served.delete_slice(&"shop".into(), &name.into());
        }
        assert!(!served.holds(address()));
    }
}
