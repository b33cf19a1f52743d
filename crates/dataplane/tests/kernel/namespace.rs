//! Clean kernels to test in: network namespaces, and the nft tool in them as a second opinion.

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
pub(crate) fn clean<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs nft in the network namespace of the calling thread; gives its output.
pub(crate) fn nft(arguments: &[&str], input: &str) -> Result<String, String> {
    let mut child = Command::new("nft")
        .args(arguments)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the nft tool is missing: install the package nftables");
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input.as_bytes()));
        child.wait_with_output().unwrap()
    });
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

/// Our table as nft lists it, in an order that does not depend on the order of writing: sets and chains sorted by name,
/// the elements of each set sorted. Rules stay in their order. The comment on the table is left out.
pub(crate) fn listing() -> Vec<String> {
    let text = nft(&["list", "table", "inet", "ringfence"], "").unwrap_or_else(|error| error);
    // Which of the two epochs it is follows from the history.
    let text = text.replace("epoch_b", "epoch_a");
    let inner =
        text.strip_prefix("table inet ringfence {\n").and_then(|text| text.strip_suffix("}\n")).unwrap_or(&text);
    let mut objects = Vec::new();
    for object in inner.split_inclusive("\n\t}\n") {
        let start = object
            .find("\t")
            .filter(|start| !object[*start..].starts_with("\tcomment"))
            .unwrap_or_else(|| object.find("\n\t").map_or(0, |line| line + 1));
        let object = object[start..].trim();
        match object.split_once("elements = {") {
            Some((head, elements)) => {
                let (elements, _) = elements.split_once('}').unwrap();
                let mut elements: Vec<&str> = elements.split(',').map(str::trim).collect();
                elements.sort_unstable();
                objects.push(format!("{}\n{}", head.trim(), elements.join("\n")));
            }
            None => objects.push(object.to_owned()),
        }
    }
    objects.sort_unstable();
    objects
}
