//! Which pods' connections a node judges: those of its own pods, and to pods of others where it is asked to.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ringfence_model::{Direction, EnforceAt, Pod};

use crate::cluster::{Cluster, Touched};

/// One node's share.
#[derive(Clone, Copy)]
pub(crate) struct Share<'a> {
    pub(crate) node: &'a str,
    pub(crate) at: EnforceAt,
}

impl Share<'_> {
    /// The pods of a namespace whose connections in a direction the node judges, each with the addresses at which it does.
    pub(crate) fn pods<'a>(
        self,
        cluster: &'a Cluster,
        namespace: &Arc<str>,
        direction: Direction,
    ) -> Vec<(&'a Arc<Pod>, Vec<IpAddr>)> {
        let mut pods: Vec<_> = cluster.local_pods(self.node, namespace).collect();
        if direction == Direction::Ingress && self.at != EnforceAt::Destination {
            let judged = |address| self.judges_elsewhere(cluster, address);
            pods.extend(cluster.pods_elsewhere(self.node, namespace, judged));
        }
        pods
    }

    /// Whether there is a pod in a namespace that the node judges.
    pub(crate) fn has_pods(self, cluster: &Cluster, namespace: &Arc<str>) -> bool {
        let judged = |address| self.judges_elsewhere(cluster, address);
        cluster.local_pods(self.node, namespace).next().is_some()
            || (self.at != EnforceAt::Destination
                && cluster.pods_elsewhere(self.node, namespace, judged).next().is_some())
    }

    /// The namespaces with such pods.
    pub(crate) fn namespaces(self, cluster: &Cluster) -> BTreeSet<Arc<str>> {
        let mut namespaces = match self.at {
            EnforceAt::Destination | EnforceAt::Entry => cluster.local_namespaces(self.node),
            EnforceAt::Everywhere => cluster.pod_namespaces(),
        };
        if self.at == EnforceAt::Entry {
            let homes = cluster.served().addresses().filter_map(|address| cluster.home_of(address));
            namespaces.extend(homes.map(|(namespace, _)| namespace.clone()));
        }
        namespaces.retain(|namespace| self.has_pods(cluster, namespace));
        namespaces
    }

    /// The namespaces in which something about such pods may have changed.
    pub(crate) fn touched(self, touched: &Touched) -> BTreeSet<Arc<str>> {
        let mut namespaces = BTreeSet::new();
        match self.at {
            EnforceAt::Destination | EnforceAt::Entry => {
                namespaces.extend(touched.nodes.get(self.node).into_iter().flatten().cloned());
            }
            EnforceAt::Everywhere => namespaces.extend(touched.pods.iter().cloned()),
        }
        if self.at == EnforceAt::Entry {
            namespaces.extend(touched.served.iter().cloned());
        }
        namespaces
    }

    /// Whether the node judges connections to the pod that owns an address.
    pub(crate) fn judges(self, cluster: &Cluster, address: IpAddr) -> bool {
        cluster.home_of(address).is_some_and(|(_, node)| node.is_some_and(|node| **node == *self.node))
            || self.judges_elsewhere(cluster, address)
    }

    fn judges_elsewhere(self, cluster: &Cluster, address: IpAddr) -> bool {
        match self.at {
            EnforceAt::Destination => false,
            EnforceAt::Entry => cluster.served().holds(address),
            EnforceAt::Everywhere => true,
        }
    }
}
