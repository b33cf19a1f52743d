//! The compiler of one node: keeps its [`Program`] true to a [`Cluster`] with work that follows the change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use ringfence_model::{Direction, Family};

use crate::cluster::{Cluster, Touched};
use crate::compiler::Compiler;
use crate::digest::{Digest, Digester};
use crate::gate::{Admission, Gate, GateId};
use crate::guard::{UnknownPods, Watch};
use crate::pod_class::{PodClass, PodClassId};
use crate::port_table::PortTable;
use crate::program::{ClassId, Program, Side, Subject};
use crate::regions::regions;
use crate::rules::{Rules, local_pods};
use crate::terms::{LocalPod, PodTerm, Term};

/// Compiles the program of one node, again and again.
pub struct NodeCompiler {
    node: Arc<str>,
    generation: u64,
    /// Namespaces of the node's pods: policies elsewhere cannot select any of them.
    namespaces: BTreeSet<Arc<str>>,
    /// Of which numbers the port names of egress rules stood for when the rules were compiled.
    numbers_version: u64,
    ingress: SideCompiler,
    egress: SideCompiler,
    watch: Watch,
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
            fresh: true,
        }
    }

    /// The program for the state as it is now. `touched` must tell of every change since the last call.
    ///
    /// A change of remote pods costs a few look-ups per address. A change of the rules that concern this node (its pods,
    /// their policies, labels of namespaces) is compiled per pod class; members are looked at only where the gates that
    /// the class passes changed.
    pub fn compile(&mut self, cluster: &Cluster, touched: &Touched) -> Program {
        let all = touched.everything || self.fresh;
        if all {
            *self = NodeCompiler {
                generation: self.generation,
                watch: std::mem::take(&mut self.watch),
                fresh: false,
                ..NodeCompiler::new(self.node.clone())
            };
            self.compile_rules(cluster);
        } else if self.rules_may_differ(cluster, touched) {
            self.compile_rules(cluster);
        }
        for address in &touched.addresses {
            self.ingress.place(cluster, *address);
            self.egress.place(cluster, *address);
        }
        for side in [&mut self.ingress, &mut self.egress] {
            side.forget_gone(cluster);
        }
        self.generation += 1;
        let node = cluster.node(&self.node);
        Program {
            generation: self.generation,
            node: self.node.clone(),
            node_addresses: node.into_iter().flat_map(|node| node.addresses.iter().copied()).collect(),
            ingress: self.ingress.side.clone(),
            egress: self.egress.side.clone(),
            guard: self.watch.follow(cluster, touched, &self.node, all).clone(),
        }
    }

    fn rules_may_differ(&self, cluster: &Cluster, touched: &Touched) -> bool {
        touched.nodes.contains(&self.node)
            || !touched.namespaces.is_empty()
            || touched.policies.iter().any(|namespace| self.namespaces.contains(namespace))
            || self.egress.names_peer_ports && self.numbers_version != cluster.classes().numbers_version()
    }

    fn compile_rules(&mut self, cluster: &Cluster) {
        let local = local_pods(cluster, &self.node);
        self.namespaces = local.keys().cloned().collect();
        self.numbers_version = cluster.classes().numbers_version();
        self.ingress.compile_rules(cluster, &local);
        self.egress.compile_rules(cluster, &local);
    }
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

    fn compile(&mut self, cluster: &Cluster, touched: &Touched) -> Program {
        NodeCompiler::compile(self, cluster, touched)
    }
}

/// The gates that pods of a class pass, over each family.
#[derive(Clone, Default, PartialEq, Eq)]
struct Passes {
    v4: Arc<BTreeSet<GateId>>,
    v6: Arc<BTreeSet<GateId>>,
}

impl Passes {
    fn over(&self, family: Family) -> &Arc<BTreeSet<GateId>> {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

/// A pod term and the gates it opens.
struct OpenedBy {
    term: PodTerm,
    gates: Passes,
}

/// One direction. Everything but `side` is what it takes to compile the next `side` from this one.
struct SideCompiler {
    direction: Direction,
    side: Side,
    names_peer_ports: bool,
    opened_by: Vec<OpenedBy>,
    /// The positions in `opened_by` whose term reaches a namespace.
    reaching: HashMap<Arc<str>, Arc<[usize]>>,
    /// A memo: pod class ids are never used twice.
    passes: HashMap<PodClassId, Passes>,
    /// How many entries of `side.peers` point at a class. Never zero.
    entries: HashMap<ClassId, usize>,
}

impl SideCompiler {
    fn new(direction: Direction) -> SideCompiler {
        SideCompiler {
            direction,
            side: Side::default(),
            names_peer_ports: false,
            opened_by: Vec::new(),
            reaching: HashMap::new(),
            passes: HashMap::new(),
            entries: HashMap::new(),
        }
    }

    fn compile_rules(&mut self, cluster: &Cluster, local: &BTreeMap<Arc<str>, Vec<Arc<LocalPod>>>) {
        let rules = Rules::gather(cluster, local, self.direction);
        self.names_peer_ports = rules.names_peer_ports;
        let mut gates = Gates::new(&rules.terms);
        let mut subjects = OrdMap::new();
        for (local, grants) in &rules.subjects {
            let table = PortTable::new(grants, |terms| gates.admission(terms));
            let subject = Subject { pod: local.pod.to_string().into(), ports: Arc::new(table) };
            for address in &local.addresses {
                gates.concern(&subject.ports, Family::of(*address));
                subjects.insert(*address, subject.clone());
            }
        }
        self.side.subjects = subjects;
        self.opened_by = gates.opened_by();
        // What is as before keeps its place in memory, which makes differences cheap to find.
        let before = std::mem::take(&mut self.side.gates);
        self.side.gates = gates
            .finish()
            .map(|(id, gate)| match before.get(&id) {
                Some(same) if **same == gate => (id, same.clone()),
                _ => (id, Arc::new(gate)),
            })
            .collect();

        self.reaching.clear();
        let before = std::mem::take(&mut self.passes);
        for (id, class) in cluster.classes().iter() {
            let passes = self.passes_of(cluster, id, class);
            if before.get(&id) != Some(&passes) {
                for address in cluster.member_addresses(class) {
                    self.place(cluster, address);
                }
            }
        }
    }

    /// Drops what it knows of classes that are gone, once they are as many as those that are there.
    fn forget_gone(&mut self, cluster: &Cluster) {
        if self.passes.len() > 2 * cluster.classes().len() {
            self.passes.retain(|id, _| cluster.classes().get(*id).is_some());
        }
    }

    /// Brings the entry of one address up to date, whoever owns it now.
    fn place(&mut self, cluster: &Cluster, address: IpAddr) {
        let passes = cluster.class_at(address).map(|(id, class)| self.passes_of(cluster, id, class));
        let passes = passes.as_ref().map(|passes| passes.over(Family::of(address))).filter(|gates| !gates.is_empty());
        let before = match passes {
            Some(gates) => {
                let id = self.acquire(gates);
                self.side.peers.insert(address, id)
            }
            None => self.side.peers.remove(&address),
        };
        if let Some(before) = before {
            self.release(before);
        }
    }

    fn passes_of(&mut self, cluster: &Cluster, id: PodClassId, class: &PodClass) -> Passes {
        if let Some(known) = self.passes.get(&id) {
            return known.clone();
        }
        let namespace = &class.traits.namespace;
        let reaching = self.reaching.entry(namespace.clone()).or_insert_with(|| {
            let labels = cluster.namespace_labels(namespace);
            let reaching = self.opened_by.iter().enumerate().filter(|(_, o)| o.term.reaches(namespace, labels));
            reaching.map(|(position, _)| position).collect()
        });
        let (mut v4, mut v6) = (BTreeSet::new(), BTreeSet::new());
        for OpenedBy { term, gates } in reaching.iter().filter_map(|position| self.opened_by.get(*position)) {
            if term.selects(&class.traits) {
                v4.extend(gates.v4.iter());
                v6.extend(gates.v6.iter());
            }
        }
        let passes = Passes { v4: Arc::new(v4), v6: Arc::new(v6) };
        self.passes.insert(id, passes.clone());
        passes
    }

    /// The class that passes exactly these gates, for one more entry.
    fn acquire(&mut self, gates: &Arc<BTreeSet<GateId>>) -> ClassId {
        let mut digester = Digester::new("peer class");
        digester.number(gates.len());
        for gate in gates.iter() {
            digester.digest(Digest(gate.0));
        }
        let id = ClassId(digester.finish().0);
        let entries = self.entries.entry(id).or_default();
        if *entries == 0 {
            self.side.classes.insert(id, gates.clone());
        }
        *entries += 1;
        id
    }

    /// Gives one entry back; the last one takes the class with it.
    fn release(&mut self, id: ClassId) {
        let Some(entries) = self.entries.get_mut(&id) else { return };
        *entries -= 1;
        if *entries == 0 {
            self.entries.remove(&id);
            self.side.classes.remove(&id);
        }
    }
}

/// Gates under construction.
struct Gates<'t> {
    terms: &'t [Term],
    digests: Vec<Digest>,
    /// The position of the term of all pods, which makes other pod terms beside it say nothing.
    every_pod: Option<usize>,
    /// Terms, and the families of the subjects that lead there.
    found: BTreeMap<GateId, Found>,
}

struct Found {
    terms: BTreeSet<usize>,
    v4: bool,
    v6: bool,
}

impl<'t> Gates<'t> {
    fn new(terms: &'t [Term]) -> Gates<'t> {
        let everything = Term::Pods(PodTerm::everything());
        Gates {
            terms,
            digests: terms.iter().map(Term::digest).collect(),
            every_pod: terms.iter().position(|term| *term == everything),
            found: BTreeMap::new(),
        }
    }

    /// What a set of terms, never empty, comes to.
    fn admission(&mut self, terms: &BTreeSet<usize>) -> Admission {
        let term = |position: &usize| self.terms.get(*position);
        if terms.iter().any(|position| term(position) == Some(&Term::Anyone)) {
            return Admission::Anyone;
        }
        let every_pod = self.every_pod.filter(|position| terms.contains(position));
        let needed: BTreeSet<usize> = terms
            .iter()
            .filter(|position| match every_pod {
                Some(every_pod) => **position == every_pod || matches!(term(position), Some(Term::Block(_))),
                None => true,
            })
            .copied()
            .collect();
        let mut digests: Vec<Digest> =
            needed.iter().filter_map(|position| self.digests.get(*position)).copied().collect();
        digests.sort_unstable();
        let mut digester = Digester::new("gate");
        digester.number(digests.len());
        for digest in digests {
            digester.digest(digest);
        }
        let id = GateId(digester.finish().0);
        self.found.entry(id).or_insert(Found { terms: needed, v4: false, v6: false });
        Admission::Gate(id)
    }

    /// Notes that a subject of this family leads to the gates of a table.
    fn concern(&mut self, ports: &PortTable, family: Family) {
        for admission in ports.admissions() {
            if let Admission::Gate(id) = admission
                && let Some(found) = self.found.get_mut(&id)
            {
                match family {
                    Family::V4 => found.v4 = true,
                    Family::V6 => found.v6 = true,
                }
            }
        }
    }

    /// The pod terms that open some gate.
    fn opened_by(&self) -> Vec<OpenedBy> {
        let mut by_term: BTreeMap<usize, Passes> = BTreeMap::new();
        for (id, found) in &self.found {
            for position in &found.terms {
                let passes = by_term.entry(*position).or_default();
                if found.v4 {
                    Arc::make_mut(&mut passes.v4).insert(*id);
                }
                if found.v6 {
                    Arc::make_mut(&mut passes.v6).insert(*id);
                }
            }
        }
        let opened_by = by_term.into_iter().filter_map(|(position, gates)| match self.terms.get(position)? {
            Term::Pods(term) => Some(OpenedBy { term: term.clone(), gates }),
            Term::Anyone | Term::Block(_) => None,
        });
        opened_by.collect()
    }

    fn finish(self) -> impl Iterator<Item = (GateId, Gate)> {
        // A gate can be left over whose segment vanished in the rest of its table, and a pod can own no address: no
        // subject leads to such a gate.
        let led_to = self.found.into_iter().filter(|(_, found)| found.v4 || found.v6);
        led_to.map(|(id, found)| {
            let terms: Vec<&Term> = found.terms.iter().filter_map(|position| self.terms.get(*position)).collect();
            let blocks = terms.iter().filter_map(|term| match term {
                Term::Block(block) if block.cidr.addr().is_ipv4() && found.v4 => Some(block),
                Term::Block(block) if block.cidr.addr().is_ipv6() && found.v6 => Some(block),
                _ => None,
            });
            let texts: BTreeSet<String> = terms.iter().map(ToString::to_string).collect();
            let gate = Gate {
                v4: found.v4,
                v6: found.v6,
                selects_pods: terms.iter().any(|term| matches!(term, Term::Pods(_))),
                blocks: regions(blocks),
                origin: texts.into_iter().collect::<Vec<_>>().join("; ").into(),
            };
            (id, gate)
        })
    }
}
