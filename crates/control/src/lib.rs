//! How programs on a node talk to its agent: one request and one answer, a line of JSON each, over a Unix socket.
//!
//! `ringfence status` and the CNI plugin ask; the agent answers. Field names are a contract, also between an agent and a
//! plugin of different releases: fields that one side does not know are ignored.
//!
//! A sandbox (the network of one pod on this node) is also told by a file, see [`announcements`]: it outlives the agent.

pub mod announcements;
mod client;
mod status;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use client::{ControlError, MAX_BYTES, MAX_REQUEST_BYTES, ask};
pub use status::{Condition, Counts, LastApply, NodesApart, StatusReport};

/// Where the agent keeps its socket and what it must not forget. Gone after a reboot, as pods' networks are.
pub const RUN_DIRECTORY: &str = "/run/ringfence";
/// The socket's name in that directory.
pub const SOCKET_NAME: &str = "agent.sock";

/// Where the socket is in a run directory.
pub fn socket_path(run_directory: &Path) -> std::path::PathBuf {
    run_directory.join(SOCKET_NAME)
}

/// Makes a run directory that is not there, for its owner only.
///
/// # Errors
/// The file system refuses.
pub fn make_run_directory(run_directory: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(run_directory)
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// How the agent is. Answered with [`Response::Status`].
    Status,
    /// A pod has got its network. Answered with [`Response::Done`] once the packet filter enforces what the pod's policies
    /// say for these addresses, or with [`Response::NotYet`] when the patience is over.
    AddSandbox {
        /// The pod's network.
        sandbox: Sandbox,
        /// How long to wait, in milliseconds.
        patience_ms: u64,
    },
    /// Whether the policies of this pod are in force for these addresses: [`Response::Done`] or [`Response::NotYet`], at once.
    CheckSandbox {
        /// The pod's network.
        sandbox: Sandbox,
    },
    /// A pod's network is gone. [`Response::Done`] at once, also if it was never heard of.
    DeleteSandbox {
        /// Its container id, as in [`Sandbox::id`].
        id: String,
    },
}

/// The network of one pod on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// The runtime's id of it (`CNI_CONTAINERID`): letters, digits and `_.-`.
    pub id: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's UID, if the runtime tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The addresses it has got.
    pub addresses: Vec<IpAddr>,
}

/// More addresses than any pod has.
const MOST_ADDRESSES: usize = 64;

/// Why a [`Sandbox`] cannot be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSandbox {
    /// See [`announcements::is_valid_id`].
    #[error("{0:?} is not the id of a sandbox")]
    Id(String),
    /// Whose network it is, is not said.
    #[error("a sandbox belongs to a pod: namespace and name are missing")]
    NoPod,
    /// A pod in a network of its own has addresses, and not many.
    #[error("a sandbox has 1 to {MOST_ADDRESSES} addresses, not {0}")]
    Addresses(usize),
    /// No pod can have that address for its own.
    #[error("{0} is no address of a pod")]
    Address(IpAddr),
}

impl Sandbox {
    /// Whether it makes sense.
    ///
    /// # Errors
    /// Why it does not.
    pub fn check(&self) -> Result<(), InvalidSandbox> {
        if !announcements::is_valid_id(&self.id) {
            return Err(InvalidSandbox::Id(self.id.clone()));
        }
        if self.namespace.is_empty() || self.name.is_empty() {
            return Err(InvalidSandbox::NoPod);
        }
        if !(1..=MOST_ADDRESSES).contains(&self.addresses.len()) {
            return Err(InvalidSandbox::Addresses(self.addresses.len()));
        }
        let is_nobodys =
            |address: &&IpAddr| address.is_unspecified() || address.is_loopback() || address.is_multicast();
        self.addresses.iter().find(is_nobodys).map_or(Ok(()), |address| Err(InvalidSandbox::Address(*address)))
    }
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "snake_case")]
pub enum Response {
    /// To [`Request::Status`].
    Status(Box<StatusReport>),
    /// It is so.
    Done,
    /// It is not so, or not yet.
    NotYet {
        /// Why, for people.
        reason: String,
    },
    /// The request cannot be answered.
    Error {
        /// Why, for people.
        message: String,
    },
}
