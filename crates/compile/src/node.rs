//! The compiler of one node: keeps its [`Program`] true to a [`Cluster`] with work that follows the change.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ringfence_model::{Direction, Enforcement, Node};

use crate::cluster::{Cluster, Touched};
use crate::compiler::Compiler;
use crate::guard::{UnknownPods, Watch};
use crate::judged::Share;
use crate::program::Program;
use crate::reach::ReachWatch;
use crate::side::SideCompiler;

/// Compiles the program of one node, again and again.
pub struct NodeCompiler {
    node: Arc<str>,
    generation: u64,
    /// Namespaces of the pods that the node judges: policies elsewhere cannot select any of them.
    namespaces: BTreeSet<Arc<str>>,
    /// Of the numbers that port names stood for when the rules were compiled.
    numbers_version: u64,
    ingress: SideCompiler,
    egress: SideCompiler,
    watch: Watch,
    reach: ReachWatch,
    fresh: bool,
}

impl NodeCompiler {
    /// A compiler that has seen nothing yet.
    pub fn new(node: Arc<str>) -> NodeCompiler {
        NodeCompiler {
            node,
            generation: 0,
            namespaces: BTreeSet::new(),
            numbers_version: 0,
            ingress: SideCompiler::new(Direction::Ingress),
            egress: SideCompiler::new(Direction::Egress),
            watch: Watch::default(),
            reach: ReachWatch::default(),
            fresh: true,
        }
    }

    /// The program for the state as it is now. `touched` must tell of every change since the last call.
    ///
    /// A change of remote pods costs a few look-ups per address. Of the namespaces of the node's own pods those are compiled
    /// again in which a pod of the node or a policy changed; beyond them it is looked at the pods that some policy gives
    /// other rights than before, and at those of namespaces with other labels.
    pub fn compile(&mut self, cluster: &Cluster, touched: &Touched) -> Program {
        let all = touched.everything || self.fresh;
        if all {
            *self = NodeCompiler {
                generation: self.generation,
                watch: std::mem::take(&mut self.watch),
                reach: std::mem::take(&mut self.reach),
                fresh: false,
                ..NodeCompiler::new(self.node.clone())
            };
        }
        for namespace in self.outdated(cluster, touched, all) {
            let share = Share { node: &self.node, at: self.reach.enforcement.at };
            for side in [&mut self.ingress, &mut self.egress] {
                side.compile_home(cluster, share, &namespace);
            }
        }
        for side in [&mut self.ingress, &mut self.egress] {
            side.settle(cluster, all, &touched.namespaces);
            for address in &touched.addresses {
                side.place(cluster, *address);
            }
            side.forget_gone(cluster);
        }
        self.generation += 1;
        let node = cluster.node(&self.node);
        Program {
            generation: self.generation,
            node: self.node.clone(),
            node_addresses: node.into_iter().flat_map(own_addresses).collect(),
            ingress: self.ingress.side.clone(),
            egress: self.egress.side.clone(),
            guard: self.watch.follow(cluster, touched, &self.node, all).clone(),
            reach: self.reach.follow(cluster, touched, &self.node, all).clone(),
        }
    }

    /// The namespaces that have to be compiled again.
    fn outdated(&mut self, cluster: &Cluster, touched: &Touched, all: bool) -> BTreeSet<Arc<str>> {
        let share = Share { node: &self.node, at: self.reach.enforcement.at };
        let mut outdated = BTreeSet::new();
        if all {
            self.namespaces = share.namespaces(cluster);
            outdated.clone_from(&self.namespaces);
        } else {
            for namespace in share.touched(touched) {
                if share.has_pods(cluster, &namespace) {
                    self.namespaces.insert(namespace.clone());
                } else {
                    self.namespaces.remove(&namespace);
                }
                outdated.insert(namespace);
            }
        }
        outdated.extend(touched.policies.iter().filter(|namespace| self.namespaces.contains(*namespace)).cloned());
        let numbers_version = cluster.classes().numbers_version();
        if self.numbers_version != numbers_version {
            self.numbers_version = numbers_version;
            outdated.extend(self.egress.outdated(cluster));
        }
        outdated
    }
}

/// The addresses that a node's packets can come from.
pub(crate) fn own_addresses(node: &Node) -> impl Iterator<Item = IpAddr> {
    node.addresses.iter().chain(&node.tunnel_addresses).copied()
}

impl Compiler for NodeCompiler {
    type Output = Program;

    fn for_node(node: Arc<str>) -> NodeCompiler {
        NodeCompiler::new(node)
    }

    fn with_unknown_pods(mut self, unknown: UnknownPods) -> NodeCompiler {
        self.watch.unknown = unknown;
        self
    }

    fn with_enforcement(mut self, enforcement: Enforcement) -> NodeCompiler {
        self.reach.enforcement = enforcement;
        self
    }

    fn compile(&mut self, cluster: &Cluster, touched: &Touched) -> Program {
        NodeCompiler::compile(self, cluster, touched)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compiler::tests;

    #[test]
    fn nothing_is_left_of_what_is_gone() {
        tests::nothing_is_left_of_what_is_gone(|compiler: &NodeCompiler, said| {
            assert!(compiler.namespaces.is_empty(), "{said}");
            assert!(compiler.ingress.is_empty() && compiler.egress.is_empty(), "{said}");
        });
    }
}
