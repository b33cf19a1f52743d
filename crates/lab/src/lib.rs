//! A cluster in a box: a node, pods and external hosts as network namespaces of one process, with real listeners and
//! real packets between them.
//!
//! [`enter()`] first, alone; then [`Network::build`], [`Network::listen`] and any number of [`Network::probe`]s.
//! Nothing of it has a name or a file outside the process, except the state file of a lab that others may
//! [`run commands in`](exec): however the process ends, everything ends with it.

mod enter;
pub mod exec;
mod links;
mod listen;
mod namespace;
mod network;
mod probe;
mod raw;
mod run;
mod sctp;
mod spec;

pub use enter::{EnterError, Entered, Isolation, enter};
pub use links::LinkError;
pub use listen::ListenError;
pub use namespace::{NetNs, SysctlError};
pub use network::{BuildError, EndpointIndex, Network};
pub use probe::{Origin, Probe, ProbeError, ProbeOutcome, Refusal, Timeouts};
pub use run::{Finished, RunError, Stage, run};
pub use spec::{EndpointSpec, NetworkSpec, PlanError, Warning};
