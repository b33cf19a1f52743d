//! The boundary: what every way to enforce a program must be able to do.

use std::error::Error;
use std::os::fd::BorrowedFd;
use std::{fmt, io};

use ringfence_compile::Compiler;
use ringfence_model::PolicyId;

/// What one node must enforce, in the shape that some backend takes.
pub trait Demand: Clone {
    /// What makes it from the state of the cluster.
    type Compiler: Compiler<Output = Self>;
    /// What differs between two of them.
    type Difference;

    /// From `self` to `to`; nothing when both demand the same.
    fn difference(&self, to: &Self) -> Option<Self::Difference>;
}

/// Puts programs into a kernel (or into a fake of one).
///
/// A call leaves the kernel enforcing the new program. Until then no packet passes that neither the program before nor the
/// new one allows; nor does one after a crash at any point in between.
pub trait Backend {
    /// What it takes.
    type Demand: Demand;

    /// A short name for logs and metrics.
    fn name(&self) -> &'static str;

    /// Makes the kernel enforce `program`, whatever was there before.
    ///
    /// # Errors
    /// The kernel refuses, or cannot be asked.
    fn replace(&mut self, program: &Self::Demand) -> Result<Applied, ApplyError>;

    /// Makes the kernel enforce `to`, by writing only what differs. The kernel must be known to enforce `from`, and
    /// `diff` must be the difference between the two.
    ///
    /// # Errors
    /// The kernel refuses, or cannot be asked. When something that should be there is not, it refuses.
    fn update(
        &mut self,
        from: &Self::Demand,
        to: &Self::Demand,
        diff: &<Self::Demand as Demand>::Difference,
    ) -> Result<Applied, ApplyError>;

    /// What administrators should know: what this host lacks, what could not be enforced as asked, what earlier runs have
    /// left. Complete once something was applied.
    fn remarks(&self) -> Vec<Remark> {
        Vec::new()
    }

    /// Looks whether the kernel still has what `program`, the last one applied, says, and makes it so if not. What others had
    /// done, if it had to. A backend that cannot tell finds nothing.
    ///
    /// # Errors
    /// The kernel refuses, or cannot be asked.
    fn repair(&mut self, _program: &Self::Demand) -> Result<Option<Drift>, ApplyError> {
        Ok(None)
    }

    /// What becomes readable when others may have changed what is ours; [`Backend::heed`] is to be called then, and nothing
    /// else may read from it. The same file for the backend's life. None if nobody tells this backend, so that
    /// [`Backend::repair`] is all there is.
    fn alarm(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Empties the alarm, and makes the kernel enforce `program`, the last one applied, if others have changed what is ours.
    /// Cheap when they have not: it believes the alarm, while [`Backend::repair`] sees for itself.
    ///
    /// # Errors
    /// The kernel refuses, or cannot be asked.
    fn heed(&mut self, _program: &Self::Demand) -> Result<Option<Drift>, ApplyError> {
        Ok(None)
    }

    /// Removes everything of ours; nothing is enforced afterwards. No error when there is nothing of ours.
    ///
    /// # Errors
    /// The kernel refuses, or cannot be asked.
    fn cleanup(&mut self) -> Result<(), ApplyError>;
}

/// What others had done to what is ours, before it was mended. A sentence for people, without its full stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift(pub String);

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Something that administrators should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// The policy that could not be enforced as it stands, if it is about one.
    pub policy: Option<PolicyId>,
    /// What there is to know, a sentence without the policy's name.
    pub text: String,
}

impl Remark {
    /// One that is not about a policy.
    pub fn general(text: impl Into<String>) -> Remark {
        Remark { policy: None, text: text.into() }
    }
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(policy) = &self.policy {
            write!(f, "policy {policy} ")?;
        }
        f.write_str(&self.text)
    }
}

/// What a transaction consisted of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Set and map elements written.
    pub elements_added: usize,
    /// Set and map elements deleted one by one. A table or set deleted as a whole does not count.
    pub elements_removed: usize,
    /// Messages to the kernel, the brackets of the transaction included.
    pub messages: usize,
    /// Their size in bytes.
    pub bytes: usize,
}

/// Why a program was not applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The kernel refused one part, and so the whole transaction. It enforces what it enforced before.
    #[error("the kernel refused {operation}")]
    Refused {
        /// The part of the transaction, for people.
        operation: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The transaction does not fit into the socket buffer. It was not sent.
    #[error(
        "a transaction of {bytes} bytes does not fit into the netlink send buffer of {limit} bytes: \
         raise net.core.wmem_max to at least {bytes}, or run with CAP_NET_ADMIN in the initial user namespace"
    )]
    TooLarge {
        /// The size of the transaction in bytes.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// Others kept changing the packet filter while we looked at it. Nothing was changed by us.
    #[error("the packet filter kept changing under {attempts} attempts to take stock of it")]
    Contended {
        /// How often it was tried.
        attempts: u32,
    },
    /// Nothing was sent, for a reason on our side of the kernel.
    #[error("cannot ask the kernel: {operation}")]
    Unsent {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The transaction was sent and its fate is not known: the answer was lost or makes no sense.
    #[error("the kernel's answer was lost: {operation}")]
    Lost {
        /// What was tried.
        operation: &'static str,
        /// Why there is no answer.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl ApplyError {
    /// Whether the kernel, or a tool, said that this process may not do it. Asking again does not help.
    pub fn is_not_permitted(&self) -> bool {
        let source: &(dyn Error + 'static) = match self {
            ApplyError::Refused { source, .. } => source,
            ApplyError::Unsent { source, .. } | ApplyError::Lost { source, .. } => &**source,
            ApplyError::TooLarge { .. } | ApplyError::Contended { .. } => return false,
        };
        source.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    }

    /// Whether the transaction may or may not have taken effect.
    pub fn state_unknown(&self) -> bool {
        match self {
            ApplyError::Lost { .. } => true,
            ApplyError::Refused { .. }
            | ApplyError::TooLarge { .. }
            | ApplyError::Contended { .. }
            | ApplyError::Unsent { .. } => false,
        }
    }
}
