//! Leaving the host's namespaces, once, at the start of the process.

use std::fs;
use std::io;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, getegid, geteuid};
use thiserror::Error;

/// How the process gets the right to make network namespaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// A user namespace in which the caller is root; needs no privilege.
    UserNamespace,
    /// No user namespace: the caller has CAP_SYS_ADMIN already and keeps real root's rights, such as socket buffers
    /// beyond `net.core.rmem_max`.
    RootOnly,
    /// A user namespace, or without one when the kernel refuses it and the caller is root.
    #[default]
    Auto,
}

/// What [`enter`] has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entered {
    /// Whether the process is now root of a user namespace of its own rather than the root it was before.
    pub user_namespace: bool,
    /// How many files the process may have open (the soft limit, after it was raised to the hard one).
    pub open_files: u64,
}

/// Why the process could not leave the host's namespaces.
#[derive(Debug, Error)]
pub enum EnterError {
    /// The kernel gives new namespaces to single-threaded processes only.
    #[error("the lab must be entered before any thread is started, but this process has {0} threads")]
    Threads(usize),
    /// Unprivileged user namespaces are off.
    #[error("the kernel refuses a user namespace: {source}; {advice}, or run as root")]
    UserNamespaceRefused {
        /// What the administrator can change, read from this host's settings.
        advice: String,
        /// What unshare(2) said.
        source: io::Error,
    },
    /// Neither a user namespace nor CAP_SYS_ADMIN.
    #[error("cannot make network and mount namespaces without a user namespace: {0}; this needs root (CAP_SYS_ADMIN)")]
    NotPermitted(#[source] io::Error),
    /// The new user namespace has no users yet, and writing them failed.
    #[error("cannot write {file}, which makes the caller root of the new user namespace: {source}")]
    IdMap {
        /// The file below /proc.
        file: &'static str,
        /// What the write said.
        source: io::Error,
    },
    /// The host would see the lab's mounts.
    #[error("cannot make the new mount namespace private: {0}")]
    Mounts(#[source] io::Error),
    /// /proc is not what this needs.
    #[error("cannot read {file}: {source}; is /proc mounted?")]
    Proc {
        /// The file below /proc.
        file: &'static str,
        /// What the read said.
        source: io::Error,
    },
}

/// Moves the process into new network and mount namespaces, and a user namespace as `isolation` says.
///
/// To be called at the very start of `main`: while other threads run, the kernel refuses it, and threads that are
/// started later inherit what this one has entered. The network namespace the process is in afterwards is empty but
/// for a `lo` that is down; it is meant to be the node. Nothing outside the process changes, and everything goes when
/// the process ends, however it ends.
pub fn enter(isolation: Isolation) -> Result<Entered, EnterError> {
    let threads = thread_count().map_err(|source| EnterError::Proc { file: "/proc/self/task", source })?;
    if threads != 1 {
        return Err(EnterError::Threads(threads));
    }
    let (uid, gid) = (geteuid(), getegid());
    let user_namespace = match isolation {
        Isolation::RootOnly => {
            unshare_without_user()?;
            false
        }
        Isolation::UserNamespace => {
            unshare_with_user().map_err(user_namespace_refused)?;
            true
        }
        Isolation::Auto => match unshare_with_user() {
            Ok(()) => true,
            Err(_) if uid.is_root() => {
                unshare_without_user()?;
                false
            }
            Err(refused) => return Err(user_namespace_refused(refused)),
        },
    };
    if user_namespace {
        become_root(uid, gid)?;
    }
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).map_err(|errno| EnterError::Mounts(errno.into()))?;
    Ok(Entered { user_namespace, open_files: raise_open_files() })
}

/// How many threads this process has.
pub(crate) fn thread_count() -> io::Result<usize> {
    Ok(fs::read_dir("/proc/self/task")?.count())
}

fn unshare_with_user() -> Result<(), Errno> {
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
}

fn unshare_without_user() -> Result<(), EnterError> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).map_err(|errno| EnterError::NotPermitted(errno.into()))
}

/// Maps the caller to root of the user namespace it has just entered, and nobody else.
fn become_root(uid: Uid, gid: Gid) -> Result<(), EnterError> {
    let write =
        |file: &'static str, text: String| fs::write(file, text).map_err(|source| EnterError::IdMap { file, source });
    // An unprivileged process may map its group only after it has given up setgroups(2).
    write("/proc/self/setgroups", "deny".to_owned())?;
    write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    write("/proc/self/gid_map", format!("0 {gid} 1"))
}

fn user_namespace_refused(errno: Errno) -> EnterError {
    EnterError::UserNamespaceRefused { advice: advice(), source: errno.into() }
}

/// Names the settings that forbid user namespaces here, or all candidates when none of them is known to.
fn advice() -> String {
    let settings = [
        ("kernel.unprivileged_userns_clone", "0", "1"),
        ("user.max_user_namespaces", "0", "10000"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
    ];
    let forbids = |&(name, off, _): &(&str, &str, &str)| {
        let file = format!("/proc/sys/{}", name.replace('.', "/"));
        fs::read_to_string(file).is_ok_and(|value| value.trim() == off)
    };
    let found: Vec<_> = settings.into_iter().filter(forbids).collect();
    let wanted = if found.is_empty() { settings.to_vec() } else { found };
    let commands: Vec<String> = wanted.iter().map(|(name, _, on)| format!("`sysctl {name}={on}`")).collect();
    let certainty = if wanted.len() == 1 { "allow it with" } else { "allow it with one of" };
    format!("{certainty} {} (in a container, its seccomp profile may forbid it too)", commands.join(", "))
}

/// Every pod holds a few files open and every probe one, so the lab takes all it may have. A limit that cannot be
/// raised is no failure: fewer probes run at once.
fn raise_open_files() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return 1024;
    };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    }
}
