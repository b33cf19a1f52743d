//! The oracle: what a policy means, read literally.
//!
//! It walks every policy, every rule and every peer for every question, keeps no index and remembers nothing. It shares
//! the model's types with the compiler and not one line of logic: everything else is tested against it, so it has to be
//! right by inspection. Please keep it slow.

mod selector;
mod state;
mod verdict;

pub use state::{State, UnsupportedTier};
pub use verdict::{Answer, Arrival, Reason, RuleRef, Verdict, judge, judge_at};
