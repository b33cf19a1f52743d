//! Clean kernels to test in: network namespaces, and commands in them.

use std::io::Write as _;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};

/// Takes the process, which must have one thread, to where it may make network namespaces: a user namespace, or none
/// for a root that may not have one. Call it first in `main`.
pub(crate) fn enter() {
    let (user, group) = (nix::unistd::getuid(), nix::unistd::getgid());
    if unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).is_ok() {
        std::fs::write("/proc/self/setgroups", "deny").unwrap();
        std::fs::write("/proc/self/uid_map", format!("0 {user} 1")).unwrap();
        std::fs::write("/proc/self/gid_map", format!("0 {group} 1")).unwrap();
    } else {
        unshare(CloneFlags::CLONE_NEWNET).expect("neither a user namespace nor the right to make a network namespace");
    }
}

/// Runs `work` in a network namespace of its own.
pub(crate) fn clean(work: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            work();
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// Runs a command in the network namespace of the calling thread; gives what it prints.
pub(crate) fn run(command: &str, input: &str) -> String {
    let mut words = command.split(' ');
    let mut child = Command::new(words.next().unwrap())
        .args(words)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        // The lock of the host is not ours to open, and there is nobody else in the namespace.
        .env("XTABLES_LOCKFILE", "/dev/null")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command}: {error}; install iproute2, iptables, ipset and nftables"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Whether a command works in the network namespace of the calling thread.
pub(crate) fn can(command: &str) -> bool {
    let mut words = command.split(' ');
    let program = words.next().unwrap();
    let output = Command::new(program).args(words).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").output().unwrap();
    output.status.success()
}

/// Writes a setting of the network namespace of the calling thread.
pub(crate) fn write(setting: &str, value: &str) {
    std::fs::write(setting, value).unwrap_or_else(|error| panic!("{setting}: {error}"));
}
