use std::io;

use thiserror::Error;

use crate::links::LinkError;
use crate::namespace::SysctlError;
use crate::rules::RulesError;
use crate::spec::PlanError;

/// Why a network could not be built. What was made until then is gone again; the first node keeps what it was given.
#[derive(Debug, Error)]
pub enum BuildError {
    /// The description contradicts itself.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// No namespace for a node, an endpoint or the fabric.
    #[error(
        "cannot make the network namespace of {of}: {source}; if that is ENOSPC, raise user.max_net_namespaces, if \
         it is EMFILE, the limit of open files (ulimit -n)"
    )]
    Namespace {
        /// Whose.
        of: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A kernel setting of a namespace.
    #[error("cannot configure {of}: {source}")]
    Sysctl {
        /// Whose.
        of: String,
        /// Which setting and why.
        source: SysctlError,
    },
    /// A device, address or route.
    #[error("cannot wire {of}: {source}")]
    Link {
        /// Whose.
        of: String,
        /// Which request and why.
        source: LinkError,
    },
    /// Rules that play Services or masquerade.
    #[error("cannot write the rules of {node}: {source}")]
    Rules {
        /// The node's name.
        node: String,
        /// Which and why.
        source: RulesError,
    },
}
