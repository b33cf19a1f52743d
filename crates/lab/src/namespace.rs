//! Network namespaces that live as long as a file is open.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use thiserror::Error;

/// The calling thread's network namespace. `/proc/self/ns/net` would be that of the thread that `main` runs on.
const OF_THIS_THREAD: &str = "/proc/thread-self/ns/net";

/// A network namespace, held by an open file and by nothing else: no name below /run/netns, no process in it.
///
/// The kernel destroys it, with all devices in it, once this value is dropped and no socket in it is left, so also
/// when the process is killed.
#[derive(Debug)]
pub struct NetNs {
    handle: File,
}

impl NetNs {
    /// Makes a new namespace, empty but for a `lo` that is down. The calling thread stays where it is.
    ///
    /// Needs CAP_SYS_ADMIN in the user namespace of the process. ENOSPC says that `user.max_net_namespaces` is used up.
    pub fn create() -> io::Result<NetNs> {
        // A thread of its own enters the namespace and ends there, so no thread ever has to find its way back.
        let made = thread::Builder::new().name("netns".to_owned()).spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            NetNs::current()
        })?;
        made.join().map_err(|_| io::Error::other("the thread that makes a network namespace panicked"))?
    }

    /// The namespace the calling thread is in.
    pub fn current() -> io::Result<NetNs> {
        NetNs::open(Path::new(OF_THIS_THREAD))
    }

    /// The namespace behind a file such as `/proc/PID/ns/net` or `/proc/PID/fd/N`.
    pub fn open(path: &Path) -> io::Result<NetNs> {
        Ok(NetNs { handle: File::open(path)? })
    }

    /// Another handle of the same namespace.
    pub fn share(&self) -> io::Result<NetNs> {
        Ok(NetNs { handle: self.handle.try_clone()? })
    }

    /// Runs `inside` with the calling thread in this namespace and returns what it returns.
    ///
    /// Sockets belong for ever to the namespace they were made in, files below /proc/sys/net to that of the thread
    /// that opens them, and a child process starts in that of the thread that spawns it: so `inside` is where they are
    /// made, and they may be used anywhere. It must not wait on anything another task does, for it blocks the thread.
    /// The thread returns to where it was also when `inside` panics. Should the kernel refuse the way back, the
    /// process is aborted: a thread in the wrong namespace would send packets where nobody expects them.
    pub fn within<R>(&self, inside: impl FnOnce() -> R) -> io::Result<R> {
        let _home = Home(NetNs::current()?);
        self.join()?;
        Ok(inside())
    }

    /// Moves the calling thread into this namespace for good.
    pub(crate) fn join(&self) -> io::Result<()> {
        Ok(setns(&self.handle, CloneFlags::CLONE_NEWNET)?)
    }

    /// The number of the open file, for `/proc/PID/fd/N`.
    pub(crate) fn descriptor(&self) -> RawFd {
        self.handle.as_raw_fd()
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

/// Where a thread returns to when this is dropped.
struct Home(NetNs);

impl Drop for Home {
    fn drop(&mut self) {
        if self.0.join().is_err() {
            std::process::abort();
        }
    }
}

/// A kernel setting could not be written.
#[derive(Debug, Error)]
pub enum SysctlError {
    /// As in most containers.
    #[error(
        "{file} is on a read-only file system and cannot be remounted; run where /proc/sys is writable, for example in a \
         privileged container: {source}"
    )]
    ReadOnly {
        /// The file below /proc/sys.
        file: String,
        /// What the write said.
        source: io::Error,
    },
    /// Anything else; ENOENT says that the kernel has no such setting.
    #[error("cannot set {file} to {value:?}: {source}")]
    Write {
        /// The file below /proc/sys.
        file: String,
        /// What was to be written.
        value: String,
        /// What the write said.
        source: io::Error,
    },
}

impl SysctlError {
    /// Whether this kernel simply has no such setting.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, SysctlError::Write { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Writes `value` to `/proc/sys/net/{name}` of the calling thread's network namespace.
pub(crate) fn set_sysctl(name: &str, value: &str) -> Result<(), SysctlError> {
    let file = format!("/proc/sys/net/{name}");
    let mut written = write_setting(&file, value);
    if matches!(&written, Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem) && remount_proc_sys().is_ok()
    {
        written = write_setting(&file, value);
    }
    written.map_err(|source| match source.kind() {
        io::ErrorKind::ReadOnlyFilesystem => SysctlError::ReadOnly { file, source },
        _ => SysctlError::Write { file, value: value.to_owned(), source },
    })
}

/// Settings take one write(2) each; an empty list is written as a line end.
fn write_setting(file: &str, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(file)?.write_all(format!("{value}\n").as_bytes())
}

/// Container runtimes mount /proc/sys read-only. The mount namespace is ours, so this changes nothing outside.
fn remount_proc_sys() -> io::Result<()> {
    if !fs::metadata("/proc/sys")?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    let writable = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    Ok(mount(None::<&str>, "/proc/sys", None::<&str>, writable, None::<&str>)?)
}
