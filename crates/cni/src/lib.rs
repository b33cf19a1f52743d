//! The CNI plugin `ringfence-cni`, and its place in a node's network configuration.
//!
//! A container runtime gives a pod its network by calling the plugins of a list, one after the other. This one stands behind
//! those that make the network. It changes nothing: it tells the agent whose addresses these are, and returns when the packet
//! filter enforces that pod's policies for them. Only then the runtime starts the pod's containers, so that a pod is isolated
//! before its first packet.
//!
//! [`run`] is the plugin: environment and standard input to standard output and an exit code, as the [CNI specification]
//! says. [`install`] and [`uninstall`] put it into the list that the runtime uses and take it out; [`keep`] follows a
//! directory in which others write.
//!
//! [CNI specification]: https://github.com/containernetworking/cni/blob/main/SPEC.md

mod agent;
mod call;
mod config;
mod failure;
mod files;
mod install;
mod keep;
mod list;
mod plugin;
mod result;

pub use config::{OnTimeout, Settings};
pub use install::{Change, InstallError, Installation, Options, Outcome, install, installed, uninstall};
pub use keep::keep;
pub use plugin::run;

/// The plugin's type in network configurations, and the name of its file.
pub const PLUGIN: &str = "ringfence-cni";

/// The versions of the CNI protocol that the plugin speaks. Older ones have no chains of plugins.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
