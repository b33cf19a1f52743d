//! What every backend must do, as sequences of programs and one check.
//!
//! After each program of a sequence, what the backend enforces must be what it would enforce had it seen that program
//! alone: its state follows from the program, not from the history.

use std::fmt::Debug;

use ringfence_compile::Program;

use crate::backend::{ApplyError, Backend};
use crate::notation::{self, NotationError};
use crate::reconcile::{Outcome, Reconciler};

/// How a backend failed a sequence.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It did not take a program.
    #[error("program {index} was not applied")]
    NotApplied {
        /// The place of the program in the sequence, from 0.
        index: usize,
        /// Why.
        source: ApplyError,
    },
    /// It could not write a difference, although nobody else changed anything.
    #[error("the difference to program {index} was refused")]
    DifferenceRefused {
        /// The place of the program in the sequence, from 0.
        index: usize,
        /// Why.
        source: ApplyError,
    },
    /// It enforces something else.
    #[error("after program {index}\nexpected:\n{expected}\nenforced:\n{enforced}")]
    Different {
        /// The place of the program in the sequence, from 0.
        index: usize,
        /// What should be enforced.
        expected: String,
        /// What is.
        enforced: String,
    },
    /// It wrote something although nothing had changed.
    #[error("program {index} was written twice")]
    Restless {
        /// The place of the program in the sequence, from 0.
        index: usize,
    },
}

/// Applies programs one after the other. `read_back` says what the backend enforces, `expected` what it should.
///
/// # Errors
/// The first way in which the backend does not conform.
pub fn check<B: Backend, State: PartialEq + Debug>(
    backend: B,
    programs: &[B::Demand],
    mut read_back: impl FnMut(&B) -> State,
    mut expected: impl FnMut(&B::Demand) -> State,
) -> Result<(), Failure> {
    let mut reconciler = Reconciler::new(backend);
    for (index, program) in programs.iter().enumerate() {
        match reconciler.apply(program) {
            Ok(Outcome::Replaced { after: Some(source), .. }) => {
                return Err(Failure::DifferenceRefused { index, source });
            }
            Ok(_) => {}
            Err(source) => return Err(Failure::NotApplied { index, source }),
        }
        let (enforced, expected) = (read_back(reconciler.backend()), expected(program));
        if enforced != expected {
            let (expected, enforced) = (format!("{expected:#?}"), format!("{enforced:#?}"));
            return Err(Failure::Different { index, expected, enforced });
        }
        match reconciler.apply(program) {
            Ok(Outcome::Unchanged) => {}
            Ok(_) => return Err(Failure::Restless { index }),
            Err(source) => return Err(Failure::NotApplied { index, source }),
        }
    }
    Ok(())
}

/// The hand-written sequences: a name, and programs in [`notation`], separated by lines of dashes.
pub const SEQUENCES: &[(&str, &str)] = &[
    (
        "a pod is isolated, opened, and free again",
        "---
        ingress pod 10.0.0.1 default/web-0
        ---
        ingress pod 10.0.0.1 default/web-0
        ingress port 10.0.0.1 TCP/80 anyone
        ---
        ingress pod 10.0.0.1 default/web-0
        ingress port 10.0.0.1 rest anyone
        ---",
    ),
    (
        "peers come, move to another class, and go",
        "ingress pod 10.0.0.1 default/web-0
        ingress port 10.0.0.1 TCP/80 1
        ingress gate 1 v4,pods default/[app=a]
        ingress class a 1
        ingress peer 10.9.0.1 a
        ---
        ingress pod 10.0.0.1 default/web-0
        ingress port 10.0.0.1 TCP/80 1
        ingress port 10.0.0.1 rest 2
        ingress gate 1 v4,pods default/[app=a]
        ingress gate 2 v4,pods default/[app=b]
        ingress class a 1
        ingress class ab 1,2
        ingress peer 10.9.0.1 ab
        ingress peer 10.9.0.2 a
        ---
        ingress pod 10.0.0.1 default/web-0
        ingress port 10.0.0.1 rest 2
        ingress gate 2 v4,pods default/[app=b]
        ingress class b 2
        ingress peer 10.9.0.2 b
        ---
        ingress pod 10.0.0.1 default/web-0",
    ),
    (
        "gates without members",
        "ingress pod 10.0.0.1 default/web-0
        ingress port 10.0.0.1 TCP/80 1
        ingress gate 1 v4,pods default/[app=nobody]
        ---
        ingress pod 10.0.0.1 default/web-0
        ingress port 10.0.0.1 TCP/80 1
        ingress gate 1 v4,pods default/[app=nobody]
        ingress class a 1
        ingress peer 10.9.0.1 a
        ---
        ingress pod 10.0.0.1 default/web-0
        ingress port 10.0.0.1 TCP/80 1
        ingress gate 1 v4,pods default/[app=nobody]",
    ),
    (
        "both families and both directions at once",
        "ingress pod 10.0.0.1 default/web-0
        ingress port 10.0.0.1 TCP/80 1
        ingress port 10.0.0.1 TCP/1000-2000 1
        ingress port 10.0.0.1 UDP/* 1
        ingress pod fd00::1 default/web-0
        ingress port fd00::1 TCP/80 1
        ingress port fd00::1 SCTP/80 anyone
        egress pod 10.0.0.1 default/web-0
        egress pod fd00::1 default/web-0
        egress port fd00::1 rest 1
        ingress gate 1 v4,v6,pods default/[app=a]; 10.0.0.0/8
        ingress block 1 10.0.0.0-10.255.255.255
        egress gate 1 v6 ::/0
        egress block 1 ::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff
        ingress class a 1
        ingress peer 10.9.0.1 a
        ingress peer fd00::9 a
        ---
        node-address 192.0.2.1
        ingress pod fd00::1 default/web-0
        ingress port fd00::1 TCP/80 1
        ingress gate 1 v6,pods default/[app=a]; 10.0.0.0/8
        ingress class a 1
        ingress peer fd00::9 a
        egress pod fd00::1 default/web-0
        egress port fd00::1 rest 2
        egress gate 2 v6 2001:db8::/48
        egress block 2 2001:db8::-2001:db8:0:ffff:ffff:ffff:ffff:ffff
        ---
        egress pod fd00::1 default/web-0",
    ),
    (
        "blocks that touch, shrink, grow and reach both ends",
        "ingress pod 10.0.0.1 default/web-0
        ingress port 10.0.0.1 TCP/80 1
        ingress gate 1 v4 blocks
        ingress block 1 0.0.0.0-9.255.255.255
        ingress block 1 10.0.1.0-10.0.1.255
        ingress block 1 224.0.0.0-255.255.255.255
        ---
        ingress pod 10.0.0.1 default/web-0
        ingress port 10.0.0.1 TCP/80 1
        ingress gate 1 v4 blocks
        ingress block 1 0.0.0.0-255.255.255.255
        ---
        ingress pod 10.0.0.1 default/web-0
        ingress port 10.0.0.1 TCP/80 1
        ingress gate 1 v4 blocks
        ingress block 1 0.0.0.0-10.0.0.4
        ingress block 1 10.0.0.6-255.255.255.254
        ---
        ingress pod 10.0.0.1 default/web-0
        ingress port 10.0.0.1 TCP/80 1
        ingress gate 1 v4 blocks
        ingress block 1 0.0.0.0
        ingress block 1 10.0.0.4-10.0.0.6
        ingress block 1 255.255.255.255",
    ),
    (
        "port ranges that overlap the ones they replace",
        "ingress pod 10.0.0.1 default/web-0
        ingress port 10.0.0.1 TCP/100-200 anyone
        ---
        ingress pod 10.0.0.1 default/web-0
        ingress port 10.0.0.1 TCP/150-300 anyone
        ---
        ingress pod 10.0.0.1 default/web-0
        ingress port 10.0.0.1 TCP/* anyone
        ingress port 10.0.0.1 UDP/0-15 anyone
        ---
        ingress pod 10.0.0.1 default/web-0
        ingress port 10.0.0.1 TCP/65520-65535 anyone
        ingress port 10.0.0.1 UDP/0-16 anyone
        ---
        ingress pod 10.0.0.1 default/web-0
        ingress port 10.0.0.1 TCP/65519-65535 1
        ingress port 10.0.0.1 UDP/0-65534 anyone
        ingress gate 1 v4,pods default/[app=a]
        ---
        ingress pod 10.0.0.1 default/web-0
        ingress port 10.0.0.1 TCP/65519-65535 2
        ingress port 10.0.0.1 UDP/0-65534 2
        ingress gate 2 v4,pods default/[app=b]",
    ),
    (
        "what only people read changes",
        "ingress pod 10.0.0.1 default/web-0
        ingress port 10.0.0.1 TCP/80 1
        ingress gate 1 v4,pods default/[app=a]
        ingress class a 1
        ingress peer 10.9.0.1 a
        ---
        ingress pod 10.0.0.1 default/web-1
        ingress port 10.0.0.1 TCP/80 1
        ingress gate 1 v4,pods the same in other words
        ingress class a 1
        ingress peer 10.9.0.1 a",
    ),
    (
        "ranges are guarded, pods become known and unknown",
        "ingress pod 10.0.0.1 default/web-0
        ---
        guard 10.0.0.0/24
        known 10.0.0.1
        ingress pod 10.0.0.1 default/web-0
        ---
        guard 10.0.0.0/24
        known 10.0.0.1
        known 10.0.0.2
        known 10.0.0.3
        ingress pod 10.0.0.1 default/web-0
        egress pod 10.0.0.2 default/web-1
        ---
        guard 10.0.0.0/24
        guard fd00::/60
        known 10.0.0.1
        known 10.0.0.3
        known fd00::1
        ingress pod 10.0.0.1 default/web-0
        ---
        guard fd00::/60
        ---
        guard 10.0.0.0/25
        guard fd00::/64
        known 10.0.0.3
        known fd00::1
        ---",
    ),
    (
        "other nodes are believed about endpoints, which come and go, as the nodes do",
        "judges-others
        believes endpoints
        ---
        judges-others
        believes endpoints
        local 10.0.0.1
        other-node 192.0.2.2
        endpoint 10.0.0.1 TCP/80
        ingress pod 10.9.0.7 default/web-7
        ---
        judges-others
        believes endpoints
        local 10.0.0.1
        local fd00::1
        other-node 192.0.2.3
        other-node 2001:db8::2
        endpoint 10.0.0.1 UDP/80
        endpoint fd00::1 SCTP/65535
        ingress pod 10.9.0.7 default/web-7
        ---
        judges-others
        believes endpoints
        local fd00::1
        other-node 192.0.2.3
        endpoint 10.0.0.1 UDP/80
        endpoint fd00::1 SCTP/65535
        ingress pod 10.9.0.7 default/web-7
        ---",
    ),
    (
        "other nodes are believed about all local pods, then about everything, then about nothing",
        "judges-others
        believes local-pods
        local 10.0.0.1
        other-node 192.0.2.2
        guard 10.0.0.0/24
        known 10.0.0.1
        ingress pod 10.0.0.1 default/web-0
        ---
        judges-others
        believes everything
        local 10.0.0.1
        other-node 192.0.2.2
        guard 10.0.0.0/24
        known 10.0.0.1
        ingress pod 10.0.0.1 default/web-0
        ---
        judges-others
        local 10.0.0.1
        guard 10.0.0.0/24
        known 10.0.0.1
        ingress pod 10.0.0.1 default/web-0
        ---
        believes everything
        other-node 192.0.2.2
        ---
        believes everything
        other-node 192.0.2.2
        other-node fd00:a::2",
    ),
    (
        "sources are kept towards networks that come and go",
        "local 10.0.0.1
        unmasqueraded 10.128.0.0/9
        ---
        local 10.0.0.1
        local fd00::1
        unmasqueraded 10.128.0.0/10
        unmasqueraded 10.192.0.0/10
        unmasqueraded fd00:8::/32
        ---
        unmasqueraded ::/0
        ---
        ingress pod 10.0.0.1 default/web-0
        ---
        local 10.0.0.1
        unmasqueraded 0.0.0.0/0
        ingress pod 10.0.0.1 default/web-0",
    ),
    (
        "a pod and its block pass different gates",
        "ingress pod 10.0.0.1 default/web-0
        ingress port 10.0.0.1 TCP/80 1
        ingress port 10.0.0.1 TCP/81 2
        ingress gate 1 v4,pods default/[app=a]
        ingress gate 2 v4 10.0.0.0/8
        ingress block 2 10.0.0.0-10.255.255.255
        ingress class a 1
        ingress peer 10.9.0.1 a",
    ),
];

/// Reads a sequence.
///
/// # Errors
/// The first line that is not in [`notation`].
pub fn sequence(text: &str) -> Result<Vec<Program>, NotationError> {
    text.split("---").map(|program| notation::parse("node", program)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sequence_can_be_read() {
        for (name, text) in SEQUENCES {
            assert!(sequence(text).is_ok_and(|programs| !programs.is_empty()), "{name}");
        }
    }
}
