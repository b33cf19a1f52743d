//! What is wrong with single policies, for their owners to hear: the way from the loop to whoever tells them.

use ringfence_model::PolicyId;

/// Something wrong with one policy. Its pods are isolated as it says and it allows nothing, or less than it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyTrouble {
    /// The policy.
    pub policy: PolicyId,
    /// What kind of trouble.
    pub kind: TroubleKind,
    /// What is wrong and what to do, on one line.
    pub message: String,
}

/// What kind of trouble a policy has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TroubleKind {
    /// What it says makes no sense.
    Invalid,
    /// It makes sense, but this node cannot enforce it as it stands.
    NotProgrammed,
}
