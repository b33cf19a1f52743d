//! A short soak, and that it finds what is wrong.
//!
//! It runs the program `ringfence` that was built beside this one, as `cargo test --workspace` does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::process::{Command, Output};

/// Runs the soak in a process of its own, which enters its namespaces by itself.
fn soak(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence-bench"));
    command.args(["--parts=soak", "--soak-pods=300", "--soak-policies=60", "--user-namespace"]).args(arguments);
    command.output().unwrap()
}

#[test]
fn twenty_seconds_of_churn() {
    let soaked = soak(&["--soak-seconds=20"]);
    let (said, complained) = (String::from_utf8_lossy(&soaked.stdout), String::from_utf8_lossy(&soaked.stderr));
    assert!(soaked.status.success(), "{complained}");
    assert!(said.contains("| checks "), "{said}");
}

/// What is done wrong, and what the soak has to say then.
#[test]
fn what_is_wrong_is_found() {
    for (sabotage, patience, complaint) in [
        // These two are waited out.
        ("wrong-node", "15", "it knows of Totals"),
        ("withheld-change", "15", "table inet ringfence is not as expected"),
        ("foreign-chain", "90", "1 drift repairs"),
        ("lost-packets", "90", "wrong deny"),
        ("disguised", "90", "wrong allow"),
    ] {
        let soaked = soak(&["--soak-seconds=20", "--soak-patience", patience, "--soak-sabotage", sabotage]);
        let complained = String::from_utf8_lossy(&soaked.stderr);
        assert_eq!(soaked.status.code(), Some(2), "{sabotage}: {complained}");
        assert!(complained.contains(complaint) && complained.contains("seed 1"), "{sabotage}: {complained}");
    }
}
