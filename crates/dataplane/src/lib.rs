//! From a [`Program`](ringfence_compile::Program) to what the kernel enforces.
//!
//! ```text
//! Program ──► Reconciler ──► ProgramDiff ──► Backend ──► kernel
//!               remembers what was applied      nft: layout ──► ruleset ──► netlink (or text, for people)
//!                                               fake: plain tables, faults on request
//! ```
//!
//! Every change is one transaction: the kernel enforces the program before or the program after, never a mixture. When
//! it is not certain what the kernel enforces, everything is written anew, again in one transaction, and what was in
//! force stays in force until that one commits. [`iptables`] takes access control lists instead of programs and has no
//! such transactions; its documentation says what takes their place.

mod backend;
mod clear;
pub mod conformance;
mod diff;
pub mod fake;
pub mod iptables;
pub mod nft;
pub mod notation;
mod reconcile;

pub use backend::{Applied, ApplyError, Backend, Demand, Drift, Remark};
pub use clear::{Cleared, PacketFilter, clear_all_but};
pub use diff::{MapDiff, ProgramDiff, ReachDiff, SideDiff};
pub use iptables::{AclDiff, IptablesBackend, IptablesOptions};
pub use nft::{DenyAction, NftBackend, NftOptions};
pub use reconcile::{Outcome, Reconciler};
