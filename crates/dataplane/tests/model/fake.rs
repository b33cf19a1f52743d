//! The fake conforms, keeps its promises about faults, and carries the reconciler through them.

use proptest::prelude::*;
use ringfence_compile::{ClassId, Program};
use ringfence_dataplane::fake::{FakeBackend, Transaction};
use ringfence_dataplane::{Backend as _, Outcome, ProgramDiff, Reconciler, conformance, notation};
use ringfence_model::Direction;

use crate::random;

fn read_back(fake: &FakeBackend) -> Program {
    fake.enforced().unwrap()
}

fn check(programs: &[Program]) {
    let expected = |program: &Program| Program { generation: 0, ..program.clone() };
    conformance::check(FakeBackend::new(), programs, read_back, expected).unwrap();
}

fn program(text: &str) -> Program {
    notation::parse("node", text).unwrap()
}

const CLOSED: &str = "ingress pod 10.0.0.1 default/web-0";
const OPEN: &str = "ingress pod 10.0.0.1 default/web-0
    ingress port 10.0.0.1 TCP/80 1
    ingress gate 1 v4,pods default/[app=a]
    ingress class a 1
    ingress peer 10.9.0.1 a";

#[test]
fn the_fake_conforms() {
    for (_, text) in conformance::SEQUENCES {
        check(&conformance::sequence(text).unwrap());
    }
}

proptest! {
    #[test]
    fn the_fake_conforms_to_random_programs(programs in random::programs()) {
        check(&programs);
    }

    #[test]
    fn updates_without_references_broken(from in random::program(), to in random::program()) {
        let mut updated = FakeBackend::new();
        updated.replace(&from).unwrap();
        updated.update(&from, &to, &ProgramDiff::between(&from, &to)).unwrap();
        let mut replaced = FakeBackend::new();
        replaced.replace(&to).unwrap();
        prop_assert_eq!(updated.dump(), replaced.dump());
    }

    #[test]
    fn a_difference_is_empty_if_and_only_if_the_programs_demand_the_same(
        from in random::program(),
        to in random::program(),
    ) {
        let newer = Program { generation: 7, ..from.clone() };
        prop_assert!(ProgramDiff::between(&from, &newer).is_empty());
        prop_assert_eq!(ProgramDiff::between(&from, &to).is_empty(), from == to);
    }
}

#[test]
fn a_refused_update_is_followed_by_one_replace() {
    let mut reconciler = Reconciler::new(FakeBackend::new());
    reconciler.apply(&program(CLOSED)).unwrap();
    reconciler.backend_mut().fail_next();
    let outcome = reconciler.apply(&program(OPEN)).unwrap();
    assert!(matches!(outcome, Outcome::Replaced { after: Some(_), .. }));
    assert_eq!(read_back(reconciler.backend()), program(OPEN));
    assert!(matches!(reconciler.backend().transactions(), [Transaction::Replace(_), Transaction::Replace(_)]));
}

#[test]
fn when_the_replace_fails_too_the_old_program_stays_in_force_and_the_next_call_replaces() {
    let mut reconciler = Reconciler::new(FakeBackend::new());
    reconciler.apply(&program(CLOSED)).unwrap();
    reconciler.backend_mut().fail_next();
    reconciler.backend_mut().fail_next();
    assert!(!reconciler.apply(&program(OPEN)).unwrap_err().state_unknown());
    assert!(reconciler.in_force().is_none());
    assert_eq!(read_back(reconciler.backend()), program(CLOSED));
    assert!(matches!(reconciler.apply(&program(CLOSED)).unwrap(), Outcome::Replaced { after: None, .. }));
}

#[test]
fn a_lost_answer_is_not_trusted_in_either_direction() {
    let mut reconciler = Reconciler::new(FakeBackend::new());
    reconciler.apply(&program(CLOSED)).unwrap();
    reconciler.backend_mut().fail_after_applying();
    let outcome = reconciler.apply(&program(OPEN)).unwrap();
    assert!(matches!(outcome, Outcome::Replaced { after: Some(error), .. } if error.state_unknown()));
    assert_eq!(read_back(reconciler.backend()), program(OPEN));
}

#[test]
fn what_is_not_as_it_was_is_noticed_when_it_is_touched() {
    let mut reconciler = Reconciler::new(FakeBackend::new());
    reconciler.apply(&program(OPEN)).unwrap();
    reconciler.backend_mut().tamper(Direction::Ingress, |tables| tables.peers.clear());
    let outcome = reconciler.apply(&program(CLOSED)).unwrap();
    assert!(matches!(outcome, Outcome::Replaced { after: Some(_), .. }));
    reconciler.backend_mut().tamper_delete_all();
    let outcome = reconciler.apply(&program(OPEN)).unwrap();
    assert!(matches!(outcome, Outcome::Replaced { after: Some(_), .. }));
    assert_eq!(read_back(reconciler.backend()), program(OPEN));
}

#[test]
fn a_peer_of_a_class_that_is_not_there_is_refused_and_nothing_changes() {
    let mut fake = FakeBackend::new();
    fake.replace(&program(CLOSED)).unwrap();
    let mut dangling = program(CLOSED);
    dangling.ingress.peers.insert(random::address("10.9.0.1"), ClassId(5));
    assert!(fake.replace(&dangling).is_err());
    let diff = ProgramDiff::between(&program(CLOSED), &dangling);
    assert!(fake.update(&program(CLOSED), &dangling, &diff).is_err());
    assert_eq!(read_back(&fake), program(CLOSED));
    assert_eq!(fake.transactions().len(), 1);
}

#[test]
fn after_a_cleanup_nothing_is_enforced_and_everything_is_written_anew() {
    let mut reconciler = Reconciler::new(FakeBackend::new());
    reconciler.apply(&program(OPEN)).unwrap();
    reconciler.cleanup().unwrap();
    assert_eq!(reconciler.backend().dump(), "");
    assert!(matches!(reconciler.apply(&program(OPEN)).unwrap(), Outcome::Replaced { after: None, .. }));
}
