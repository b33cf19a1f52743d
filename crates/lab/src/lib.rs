//! A cluster in a box: nodes, pods and external hosts as network namespaces of one process, with real listeners and
//! real packets between them.
//!
//! [`enter()`] first, alone; then [`Network::build`], [`Network::listen`] and any number of [`Network::probe`]s.
//! Nothing of it has a name or a file outside the process, except the state file of a lab that others may
//! [`run commands in`](exec): however the process ends, everything ends with it.

mod build_error;
mod clusters;
mod conntrack;
mod enter;
pub mod exec;
mod index;
mod kube_proxy;
mod links;
mod listen;
mod namespace;
mod network;
mod probe;
mod probes;
mod raw;
mod rules;
mod run;
mod sctp;
mod services;
mod spec;
mod trips;
mod way;
mod wiring;

pub use build_error::BuildError;
pub use enter::{EnterError, Entered, Isolation, enter};
pub use index::{EndpointIndex, NodeIndex};
pub use links::LinkError;
pub use listen::ListenError;
pub use namespace::{NetNs, SysctlError};
pub use network::{Network, Node};
pub use probe::{Origin, Probe, ProbeError, ProbeOutcome, Refusal, Timeouts};
pub use rules::RulesError;
pub use run::{Experiment, Finished, RunError, Stage, run};
pub use services::{Backend, ServiceError, ServicePortSpec, ServiceSpec, Services, Tables};
pub use spec::{EndpointSpec, NetworkSpec, NodeSpec, Place, PlanError, Warning};
