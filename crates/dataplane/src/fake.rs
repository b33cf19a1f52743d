//! A backend without a kernel, as strict as one: what a real one would refuse, it refuses, and then nothing changes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use ringfence_compile::{Admission, Believed, ClassId, Gate, GateId, Guard, Program, Reach, Side, Subject};
use ringfence_model::{Direction, Protocol};

use crate::backend::{Applied, ApplyError, Backend};
use crate::diff::{MapDiff, ProgramDiff, ReachDiff, SideDiff};
use crate::notation;

/// A transaction that took effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transaction {
    /// Everything was written.
    Replace(Box<Program>),
    /// A difference was written.
    Update(Box<ProgramDiff>),
    /// Everything was removed.
    Cleanup,
}

/// One direction, as the fake keeps it. Public so that tests can do harm.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// As [`Side::subjects`].
    pub subjects: BTreeMap<IpAddr, Subject>,
    /// As [`Side::gates`].
    pub gates: BTreeMap<GateId, Arc<Gate>>,
    /// As [`Side::classes`].
    pub classes: BTreeMap<ClassId, Arc<BTreeSet<GateId>>>,
    /// As [`Side::peers`].
    pub peers: BTreeMap<IpAddr, ClassId>,
}

/// What the fake enforces.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Enforced {
    node: Arc<str>,
    node_addresses: BTreeSet<IpAddr>,
    ingress: Tables,
    egress: Tables,
    ranges: BTreeSet<IpNet>,
    known: BTreeSet<IpAddr>,
    reach: Sets,
}

/// A [`Reach`], as the fake keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sets {
    judges_others: bool,
    /// Without endpoints.
    believed: Believed,
    local: BTreeSet<IpAddr>,
    nodes: BTreeSet<IpAddr>,
    endpoints: BTreeSet<Endpoint>,
    kept: BTreeSet<IpNet>,
}

/// Address, protocol and port.
type Endpoint = (IpAddr, Protocol, u16);

/// The fake.
#[derive(Debug, Default)]
pub struct FakeBackend {
    enforced: Option<Enforced>,
    transactions: Vec<Transaction>,
    faults: Vec<Fault>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Refuse,
    LoseAnswer,
}

/// Why the fake refuses.
#[derive(Debug)]
struct Refusal {
    what: String,
    kind: io::ErrorKind,
}

impl FakeBackend {
    /// A fake that enforces nothing.
    pub fn new() -> FakeBackend {
        FakeBackend::default()
    }

    /// The next call is refused and has no effect.
    pub fn fail_next(&mut self) {
        self.faults.insert(0, Fault::Refuse);
    }

    /// The next call takes effect and reports that its fate is not known.
    pub fn fail_after_applying(&mut self) {
        self.faults.insert(0, Fault::LoseAnswer);
    }

    /// What took effect, oldest first.
    pub fn transactions(&self) -> &[Transaction] {
        &self.transactions
    }

    /// What is enforced, rebuilt from the fake's own tables; its generation is 0. Nothing after a cleanup.
    pub fn enforced(&self) -> Option<Program> {
        self.enforced.as_ref().map(Enforced::to_program)
    }

    /// What is enforced, in [`notation`].
    pub fn dump(&self) -> String {
        self.enforced().map_or_else(String::new, |program| notation::print(&program))
    }

    /// Somebody else changes our tables.
    pub fn tamper(&mut self, direction: Direction, harm: impl FnOnce(&mut Tables)) {
        if let Some(enforced) = &mut self.enforced {
            harm(enforced.tables(direction));
        }
    }

    /// Somebody else deletes our tables.
    pub fn tamper_delete_all(&mut self) {
        self.enforced = None;
    }

    fn commit(
        &mut self,
        enforced: Option<Enforced>,
        transaction: Transaction,
        applied: Applied,
    ) -> Result<Applied, ApplyError> {
        let fault = self.faults.pop();
        if fault == Some(Fault::Refuse) {
            return Err(refused(Refusal { what: "a transaction, as asked".to_owned(), kind: io::ErrorKind::Other }));
        }
        self.enforced = enforced;
        self.transactions.push(transaction);
        if fault == Some(Fault::LoseAnswer) {
            let source = io::Error::from(io::ErrorKind::UnexpectedEof);
            return Err(ApplyError::Lost { operation: "writing", source: source.into() });
        }
        Ok(applied)
    }
}

impl Backend for FakeBackend {
    type Demand = Program;

    fn name(&self) -> &'static str {
        "fake"
    }

    fn replace(&mut self, program: &Program) -> Result<Applied, ApplyError> {
        let enforced = Enforced::of(program);
        enforced.check().map_err(refused)?;
        let elements_added =
            enforced.ingress.len() + enforced.egress.len() + enforced.known.len() + enforced.reach.len();
        let applied = Applied { elements_added, messages: 1, ..Applied::default() };
        self.commit(Some(enforced), Transaction::Replace(Box::new(program.clone())), applied)
    }

    fn update(&mut self, _from: &Program, _to: &Program, diff: &ProgramDiff) -> Result<Applied, ApplyError> {
        let Some(mut enforced) = self.enforced.clone() else {
            return Err(refused(missing("our tables")));
        };
        let mut applied = Applied { messages: 1, ..Applied::default() };
        for direction in Direction::ALL {
            enforced.tables(direction).apply(diff.side(direction), &mut applied).map_err(refused)?;
        }
        let (removed, added) = (&diff.node_addresses_removed, &diff.node_addresses_added);
        write_set(&mut enforced.node_addresses, (removed, added)).map_err(refused)?;
        write_set(&mut enforced.ranges, (&diff.ranges_removed, &diff.ranges_added)).map_err(refused)?;
        write_set(&mut enforced.known, (&diff.known_removed, &diff.known_added)).map_err(refused)?;
        applied.elements_removed += diff.known_removed.len();
        applied.elements_added += diff.known_added.len();
        enforced.reach.apply(&diff.reach, &mut applied).map_err(refused)?;
        enforced.check().map_err(refused)?;
        self.commit(Some(enforced), Transaction::Update(Box::new(diff.clone())), applied)
    }

    fn cleanup(&mut self) -> Result<(), ApplyError> {
        self.commit(None, Transaction::Cleanup, Applied::default()).map(|_| ())
    }
}

impl Enforced {
    fn of(program: &Program) -> Enforced {
        Enforced {
            node: Arc::clone(&program.node),
            node_addresses: program.node_addresses.clone(),
            ingress: Tables::of(&program.ingress),
            egress: Tables::of(&program.egress),
            ranges: program.guard.ranges().iter().copied().collect(),
            known: program.guard.known().iter().copied().collect(),
            reach: Sets::of(&program.reach),
        }
    }

    fn to_program(&self) -> Program {
        Program {
            generation: 0,
            node: Arc::clone(&self.node),
            node_addresses: self.node_addresses.clone(),
            ingress: self.ingress.to_side(),
            egress: self.egress.to_side(),
            guard: Guard::new(&Vec::from_iter(self.ranges.iter().copied()), self.known.iter().copied()),
            reach: self.reach.to_reach(),
        }
    }

    fn tables(&mut self, direction: Direction) -> &mut Tables {
        match direction {
            Direction::Ingress => &mut self.ingress,
            Direction::Egress => &mut self.egress,
        }
    }

    fn check(&self) -> Result<(), Refusal> {
        self.ingress.check()?;
        self.egress.check()
    }
}

impl Sets {
    fn of(reach: &Reach) -> Sets {
        let (believed, endpoints) = match &reach.believed {
            Believed::Endpoints(endpoints) => (Believed::Endpoints(Default::default()), endpoints.clone()),
            other => (other.clone(), Default::default()),
        };
        Sets {
            judges_others: reach.judges_others,
            believed,
            local: reach.local.iter().copied().collect(),
            nodes: reach.nodes.iter().copied().collect(),
            endpoints: endpoints.into_iter().collect(),
            kept: reach.unmasqueraded.iter().copied().collect(),
        }
    }

    fn to_reach(&self) -> Reach {
        Reach {
            judges_others: self.judges_others,
            local: self.local.iter().copied().collect(),
            nodes: self.nodes.iter().copied().collect(),
            believed: match &self.believed {
                Believed::Endpoints(_) => Believed::Endpoints(self.endpoints.iter().copied().collect()),
                other => other.clone(),
            },
            unmasqueraded: self.kept.iter().copied().collect(),
        }
    }

    fn len(&self) -> usize {
        self.local.len() + self.nodes.len() + self.endpoints.len() + self.kept.len()
    }

    fn apply(&mut self, diff: &ReachDiff, applied: &mut Applied) -> Result<(), Refusal> {
        let before = self.len();
        write_set(&mut self.local, (&diff.local_removed, &diff.local_added))?;
        write_set(&mut self.nodes, (&diff.nodes_removed, &diff.nodes_added))?;
        write_set(&mut self.endpoints, (&diff.endpoints_removed, &diff.endpoints_added))?;
        write_set(&mut self.kept, (&diff.kept_removed, &diff.kept_added))?;
        self.judges_others = diff.judges_others.unwrap_or(self.judges_others);
        self.believed = diff.believed.clone().unwrap_or_else(|| self.believed.clone());
        let added =
            diff.local_added.len() + diff.nodes_added.len() + diff.endpoints_added.len() + diff.kept_added.len();
        applied.elements_added += added;
        applied.elements_removed += before + added - self.len();
        Ok(())
    }
}

impl Tables {
    fn of(side: &Side) -> Tables {
        Tables {
            subjects: side.subjects.iter().map(|(key, value)| (*key, value.clone())).collect(),
            gates: side.gates.iter().map(|(key, value)| (*key, value.clone())).collect(),
            classes: side.classes.iter().map(|(key, value)| (*key, value.clone())).collect(),
            peers: side.peers.iter().map(|(key, value)| (*key, *value)).collect(),
        }
    }

    fn to_side(&self) -> Side {
        Side {
            subjects: self.subjects.iter().map(|(key, value)| (*key, value.clone())).collect(),
            gates: self.gates.iter().map(|(key, value)| (*key, value.clone())).collect(),
            classes: self.classes.iter().map(|(key, value)| (*key, value.clone())).collect(),
            peers: self.peers.iter().map(|(key, value)| (*key, *value)).collect(),
        }
    }

    fn len(&self) -> usize {
        self.subjects.len() + self.gates.len() + self.classes.len() + self.peers.len()
    }

    fn apply(&mut self, diff: &SideDiff, applied: &mut Applied) -> Result<(), Refusal> {
        write(&mut self.subjects, &diff.subjects, applied)?;
        write(&mut self.gates, &diff.gates, applied)?;
        write(&mut self.classes, &diff.classes, applied)?;
        write(&mut self.peers, &diff.peers, applied)
    }

    /// Nothing points at what is not there, as in a kernel.
    fn check(&self) -> Result<(), Refusal> {
        if let Some(id) = self.peers.values().find(|id| !self.classes.contains_key(id)) {
            return Err(missing(format_args!("class {id:?}, which peers belong to")));
        }
        let admitted = self.subjects.values().flat_map(|subject| subject.ports.admissions());
        let led_to = admitted.filter_map(|admission| match admission {
            Admission::Gate(id) => Some(id),
            Admission::Anyone => None,
        });
        let passed = self.classes.values().flat_map(|gates| gates.iter().copied());
        match led_to.chain(passed).find(|id| !self.gates.contains_key(id)) {
            Some(id) => Err(missing(format_args!("gate {id}"))),
            None => Ok(()),
        }
    }
}

/// Writes a difference. What is removed or changed must be there as it was, what is added must not.
fn write<K: Ord + Clone + fmt::Debug, V: PartialEq + Clone>(
    map: &mut BTreeMap<K, V>,
    diff: &MapDiff<K, V>,
    applied: &mut Applied,
) -> Result<(), Refusal> {
    let removed = diff.removed.iter().map(|(key, old)| (key, old));
    let changed = diff.changed.iter().map(|(key, old, _)| (key, old));
    for (key, old) in removed.chain(changed) {
        if map.remove(key).as_ref() != Some(old) {
            return Err(missing(format_args!("{key:?}")));
        }
        applied.elements_removed += 1;
    }
    let added = diff.added.iter().map(|(key, new)| (key, new));
    let changed = diff.changed.iter().map(|(key, _, new)| (key, new));
    for (key, new) in added.chain(changed) {
        if map.insert(key.clone(), new.clone()).is_some() {
            return Err(present(format_args!("{key:?}")));
        }
        applied.elements_added += 1;
    }
    Ok(())
}

/// The same for what is either there or not.
fn write_set<T: Ord + Copy + fmt::Debug>(set: &mut BTreeSet<T>, (removed, added): (&[T], &[T])) -> Result<(), Refusal> {
    if let Some(item) = removed.iter().find(|item| !set.remove(item)) {
        return Err(missing(format_args!("{item:?}")));
    }
    match added.iter().find(|item| !set.insert(**item)) {
        Some(item) => Err(present(format_args!("{item:?}"))),
        None => Ok(()),
    }
}

fn missing(what: impl fmt::Display) -> Refusal {
    Refusal { what: what.to_string(), kind: io::ErrorKind::NotFound }
}

fn present(what: impl fmt::Display) -> Refusal {
    Refusal { what: what.to_string(), kind: io::ErrorKind::AlreadyExists }
}

fn refused(refusal: Refusal) -> ApplyError {
    ApplyError::Refused { operation: refusal.what, source: refusal.kind.into() }
}
