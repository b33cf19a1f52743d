//! Commands in a lab that another process of the same user keeps.
//!
//! The lab [`publish`]es a state file that says which of its open files are namespaces; another process [`find`]s it and
//! [`run_in`]s one of them. Nothing is trusted but the kernel: the file must belong to the caller, and the process it
//! names must be alive and the same one that wrote it, known by when it started.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::geteuid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::enter::thread_count;
use crate::index::{EndpointIndex, NodeIndex};
use crate::namespace::NetNs;
use crate::network::Network;

/// What the first node can always be called.
const FIRST_NODE: &str = "node";

const PREFIX: &str = "ringfence-lab-";
const SUFFIX: &str = ".json";

/// What the state file holds.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    pid: u32,
    /// When the process started, in clock ticks since boot: a process number alone may come back.
    started: u64,
    nodes: Vec<Resident>,
    endpoints: Vec<Resident>,
}

/// A node or an endpoint.
#[derive(Debug, Serialize, Deserialize)]
struct Resident {
    name: String,
    /// The open file that is its network namespace.
    namespace: RawFd,
}

/// The state file of this process's lab; dropping it removes the file.
#[derive(Debug)]
pub struct Published {
    path: PathBuf,
}

impl Published {
    /// Where the state file is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        // A file that stays behind is recognised as stale by whoever looks next.
        let _ = fs::remove_file(&self.path);
    }
}

/// A lab that is running now.
#[derive(Debug)]
pub struct RunningLab {
    state: State,
}

impl RunningLab {
    /// The process that keeps it.
    pub fn pid(&self) -> u32 {
        self.state.pid
    }

    /// The names of its nodes, in its order.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.state.nodes.iter().map(|node| node.name.as_str())
    }

    /// The names of its endpoints, in its order.
    pub fn endpoints(&self) -> impl Iterator<Item = &str> {
        self.state.endpoints.iter().map(|endpoint| endpoint.name.as_str())
    }

    /// The place with a name: an endpoint's, a node's, or `node` for the first node.
    pub fn place(&self, name: &str) -> Option<Place> {
        if self.endpoints().any(|endpoint| endpoint == name) {
            return Some(Place::Endpoint(name.to_owned()));
        }
        let position = self.nodes().position(|node| node == name);
        position.or((name == FIRST_NODE).then_some(0)).map(|position| Place::Node(NodeIndex(position)))
    }
}

/// Where in a lab a command runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the network namespace of a node.
    Node(NodeIndex),
    /// In that of the endpoint with this name.
    Endpoint(String),
}

/// The state file could not be written.
#[derive(Debug, Error)]
#[error("cannot publish the lab as {}: {source}", path.display())]
pub struct PublishError {
    path: PathBuf,
    source: io::Error,
}

/// Why a command did not run, or not to its end.
#[derive(Debug, Error)]
pub enum ExecError {
    /// The lab has ended since it was found.
    #[error("the lab of process {0} has ended")]
    Ended(u32),
    /// The lab ended while the command ran, so the command was killed.
    #[error("the lab of process {0} ended; the command was killed")]
    EndedMeanwhile(u32),
    /// No such endpoint.
    #[error("the lab of process {pid} has no endpoint {name:?}")]
    NoSuchEndpoint {
        /// The lab's process.
        pid: u32,
        /// What was asked for.
        name: String,
    },
    /// No such node.
    #[error("the lab of process {pid} has no node number {}", node.0)]
    NoSuchNode {
        /// The lab's process.
        pid: u32,
        /// What was asked for.
        node: NodeIndex,
    },
    /// The kernel lets only single-threaded processes enter a user namespace.
    #[error("commands in a lab must be started before any thread, but this process has {0} threads")]
    Threads(usize),
    /// The lab's namespaces are closed to the caller.
    #[error("cannot {what} of the lab's process {pid}: {source}; it must be run by the same user")]
    Enter {
        /// What was tried.
        what: &'static str,
        /// The lab's process.
        pid: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// The command itself.
    #[error("cannot run {command:?}: {source}")]
    Command {
        /// The program.
        command: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Makes this process's lab known to other processes of the same user, until the returned value is dropped.
///
/// The file is in `$XDG_RUNTIME_DIR`, or else in the directory for temporary files, readable by its owner only.
pub fn publish(network: &Network) -> Result<Published, PublishError> {
    let pid = std::process::id();
    let directory = state_directory();
    let failed = |path: &Path, source| PublishError { path: path.to_owned(), source };
    let started = start_time(pid).map_err(|source| failed(&directory, source))?;
    let resident =
        |name: &str, namespace: &NetNs| Resident { name: name.to_owned(), namespace: namespace.descriptor() };
    let nodes = network.nodes().iter().map(|node| resident(node.name(), node.namespace()));
    let endpoints = network.endpoints.iter().enumerate();
    let endpoints = endpoints
        .filter_map(|(position, endpoint)| Some(resident(&endpoint.name, network.namespace(EndpointIndex(position))?)));
    let state = State { pid, started, nodes: nodes.collect(), endpoints: endpoints.collect() };
    let path = directory.join(format!("{PREFIX}{pid}-{started}{SUFFIX}"));
    write_state(&path, &state).map_err(|source| failed(&path, source))?;
    Ok(Published { path })
}

fn write_state(path: &Path, state: &State) -> io::Result<()> {
    let text = serde_json::to_vec(state)?;
    // Whoever reads the file while it is being written finds no sound JSON and passes over it.
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(&text)
}

/// The labs of this user that are running now. State files of labs that have ended are removed on the way.
pub fn find() -> Vec<RunningLab> {
    let Ok(entries) = fs::read_dir(state_directory()) else {
        return Vec::new();
    };
    let is_ours = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(PREFIX) && name.ends_with(SUFFIX)
    };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_ours).collect();
    paths.sort();
    let mut labs = Vec::new();
    for path in paths {
        let Ok(state) = read_state(&path) else { continue };
        if start_time(state.pid).is_ok_and(|started| started == state.started) {
            labs.push(RunningLab { state });
        } else {
            // Without the right to remove it, the next look ignores it just the same.
            let _ = fs::remove_file(&path);
        }
    }
    labs
}

/// Reads a state file, which must be a plain file that only the caller can have written.
fn read_state(path: &Path) -> io::Result<State> {
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    let private = metadata.permissions().mode() & 0o077 == 0;
    if !metadata.is_file() || metadata.uid() != geteuid().as_raw() || !private {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Moves this process into a place of a lab and runs a command there to its end, or to the lab's.
///
/// The process must be single-threaded, and it stays where it was moved to: this is the last thing it does before it
/// exits with the status that is returned. File system and process numbers are the caller's own; with a lab in a user
/// namespace the command is root there and has no rights outside. Only the command itself is killed when the lab
/// ends, not what it has started.
pub fn run_in(lab: &RunningLab, place: &Place, command: &mut Command) -> Result<ExitStatus, ExecError> {
    let state = &lab.state;
    let pid = state.pid;
    let resident = match place {
        Place::Node(node) => state.nodes.get(node.0).ok_or(ExecError::NoSuchNode { pid, node: *node })?,
        Place::Endpoint(name) => {
            let found = state.endpoints.iter().find(|endpoint| endpoint.name == *name);
            found.ok_or_else(|| ExecError::NoSuchEndpoint { pid, name: name.clone() })?
        }
    };
    let descriptor = resident.namespace;
    let enter = |what, source| ExecError::Enter { what, pid, source };
    let threads = thread_count().map_err(|source| enter("see whether there are threads beside that", source))?;
    if threads != 1 {
        return Err(ExecError::Threads(threads));
    }
    // The descriptor comes first: as long as it reports no end, what is opened by number is of the same process.
    let lab_process = watch(pid).map_err(|_| ExecError::Ended(pid))?;
    let user = File::open(format!("/proc/{pid}/ns/user"));
    let network = NetNs::open(Path::new(&format!("/proc/{pid}/fd/{descriptor}")));
    let same_process = start_time(pid).is_ok_and(|started| started == state.started);
    if !same_process || has_ended(&lab_process) {
        return Err(ExecError::Ended(pid));
    }
    let user = user.map_err(|source| enter("open the user namespace", source))?;
    let network = network.map_err(|source| enter("open the network namespace", source))?;
    // Nobody may enter the user namespace they are in already.
    if !is_own_user_namespace(&user) {
        setns(&user, CloneFlags::CLONE_NEWUSER).map_err(|errno| enter("enter the user namespace", errno.into()))?;
    }
    network.join().map_err(|source| enter("enter the network namespace", source))?;

    let failed = |command: &Command, source| ExecError::Command {
        command: command.get_program().to_string_lossy().into_owned(),
        source,
    };
    let mut child = command.spawn().map_err(|source| failed(command, source))?;
    // The terminal sends Ctrl-C to both; what it means is for the command to say.
    let keys = SigSet::from_iter([Signal::SIGINT, Signal::SIGQUIT]);
    keys.thread_block().map_err(|errno| failed(command, errno.into()))?;
    let outlived = watch(child.id()).and_then(|child_process| wait_for_either(&child_process, &lab_process));
    if !matches!(outlived, Ok(Ended::Command)) {
        // Also when the watch has failed: a command nobody watches would outlive its lab.
        child.kill().map_err(|source| failed(command, source))?;
    }
    let status = child.wait().map_err(|source| failed(command, source))?;
    match outlived {
        Ok(Ended::Command) => Ok(status),
        Ok(Ended::Lab) => Err(ExecError::EndedMeanwhile(pid)),
        Err(source) => Err(failed(command, source)),
    }
}

enum Ended {
    Command,
    Lab,
}

fn wait_for_either(command: impl AsFd, lab: impl AsFd) -> io::Result<Ended> {
    let mut watched = [PollFd::new(&command, PollFlags::IN), PollFd::new(&lab, PollFlags::IN)];
    loop {
        match poll(&mut watched, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
            Ok(_) => {}
        }
        match watched.each_ref().map(|fd| !fd.revents().is_empty()) {
            [true, _] => return Ok(Ended::Command),
            [false, true] => return Ok(Ended::Lab),
            [false, false] => {}
        }
    }
}

/// A file that becomes readable when the process ends.
fn watch(pid: u32) -> io::Result<std::os::fd::OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

fn has_ended(process: impl AsFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    !matches!(poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&now)), Ok(0))
}

fn is_own_user_namespace(user: &File) -> bool {
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    match (user.metadata().map(identity), fs::metadata("/proc/self/ns/user").map(identity)) {
        (Ok(theirs), Ok(ours)) => theirs == ours,
        _ => false,
    }
}

/// When a process started, in clock ticks since boot.
fn start_time(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field, the program's name in parentheses, may itself hold spaces and parentheses; the time is the
    // 22nd field, the 20th after it.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let field = after_name.split_ascii_whitespace().nth(19).and_then(|field| field.parse().ok());
    field.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat has no start time")))
}

/// Where state files are.
fn state_directory() -> PathBuf {
    let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    runtime.filter(|path| path.is_absolute() && path.is_dir()).unwrap_or_else(env::temp_dir)
}
