//! Gathering the facts. Everything here only looks, and asks nothing of a part of the kernel that would have to be
//! loaded to answer.

use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::facts::{Facts, Family, KernelModule, LockFile, ModuleState, Options, Reading, Ruleset, Tool, Variant};
use crate::rtnetlink;

/// Where administrators' programs are, also for users whose PATH lacks them.
const SYSTEM_PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// What `--backend iptables` calls.
const TOOLS: [&str; 5] = ["iptables-save", "iptables-restore", "ip6tables-save", "ip6tables-restore", "ipset"];

/// What its rules and sets need.
const MODULES: [&str; 9] = [
    "ip_set",
    "ip_set_hash_ip",
    "ip_set_hash_ipport",
    "ip_set_hash_net",
    "xt_addrtype",
    "xt_bpf",
    "xt_conntrack",
    "xt_mark",
    "xt_set",
];

/// What the rules of `--backend nftables` need. Sets and the other expressions are in nf_tables itself.
const NFTABLES_MODULES: [&str; 4] = ["nf_tables", "nft_ct", "nft_fib_inet", "nft_reject_inet"];

/// Where iptables-legacy has its lock, unless told otherwise.
const XTABLES_LOCK: &str = "/run/xtables.lock";

/// A lock that is held for longer than this is not held for a change.
const MOMENT: Duration = Duration::from_millis(500);

impl Facts {
    /// Looks at the host, in the network namespace of the calling thread. What cannot be looked at is noted as
    /// [`Reading::Unreadable`].
    pub fn gather(options: Options) -> Facts {
        let iptables_variant = iptables_variant();
        let rulesets = Variant::ALL
            .into_iter()
            .flat_map(|variant| Family::ALL.map(|family| (variant, family)))
            .map(|(variant, family)| {
                let saved = saved(variant, family, iptables_variant.found() == Some(&variant));
                Ruleset { variant, family, saved }
            })
            .collect();
        Facts {
            pod_cidrs: options.pod_cidrs,
            enforcement: options.enforcement,
            other_clusters: options.other_clusters,
            unmasqueraded: Vec::new(),
            bridge_nf_call_iptables: setting("net/bridge/bridge-nf-call-iptables"),
            bridge_nf_call_ip6tables: setting("net/bridge/bridge-nf-call-ip6tables"),
            ip_forward: setting("net/ipv4/ip_forward"),
            ip6_forwarding: setting("net/ipv6/conf/all/forwarding"),
            conntrack_count: setting("net/netfilter/nf_conntrack_count"),
            conntrack_max: setting("net/netfilter/nf_conntrack_max"),
            bridges: reading(rtnetlink::bridges()),
            routes: reading(rtnetlink::routes()),
            rulesets,
            iptables_variant,
            ipsets: ipsets(),
            nftables_table: nftables_table(),
            tools: TOOLS.map(|name| Tool { name, path: tool(name) }).into(),
            modules: MODULES.map(|name| KernelModule { name, state: module(name) }).into(),
            nftables_modules: NFTABLES_MODULES.map(|name| KernelModule { name, state: module(name) }).into(),
            xtables_lock: xtables_lock(),
            trial: Reading::Absent,
            denials: Reading::Absent,
        }
    }
}

fn reading<T>(result: io::Result<T>) -> Reading<T> {
    match result {
        Ok(found) => Reading::Found(found),
        Err(error) if error.kind() == ErrorKind::NotFound => Reading::Absent,
        Err(error) => Reading::Unreadable(error.to_string()),
    }
}

/// A number below /proc/sys. Those of the network are the calling thread's.
fn setting(path: &str) -> Reading<u64> {
    match reading(std::fs::read_to_string(Path::new("/proc/sys").join(path))) {
        Reading::Found(text) => match text.trim().parse() {
            Ok(number) => Reading::Found(number),
            Err(_) => Reading::Unreadable(format!("{:?} is no number", text.trim())),
        },
        Reading::Absent => Reading::Absent,
        Reading::Unreadable(reason) => Reading::Unreadable(reason),
    }
}

/// The directories programs are searched in.
fn search_path() -> String {
    std::env::var("PATH").map_or_else(|_| SYSTEM_PATH.to_owned(), |path| format!("{path}:{SYSTEM_PATH}"))
}

fn program(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&search_path()).map(|directory| directory.join(name)).find(|path| path.is_file())
}

/// A program, of whatever variant.
fn tool(name: &str) -> Option<PathBuf> {
    let of_variant = |variant: Variant| {
        let (command, what) = name.split_once('-')?;
        program(&format!("{command}-{}-{what}", variant.suffix()))
    };
    program(name).or_else(|| Variant::ALL.into_iter().find_map(of_variant))
}

/// What a program prints; if it fails, what it complains about. A program that is not installed is absent.
fn output(name: &str, arguments: &[&str]) -> Reading<String> {
    let Some(path) = program(name) else { return Reading::Absent };
    let output =
        Command::new(path).args(arguments).env("PATH", search_path()).env("LC_ALL", "C").stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => Reading::Found(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => {
            let complaint = String::from_utf8_lossy(&output.stderr);
            let complaint = complaint.trim();
            let reason = if complaint.is_empty() { output.status.to_string() } else { complaint.to_owned() };
            Reading::Unreadable(format!("{name}: {reason}"))
        }
        Err(error) => Reading::Unreadable(format!("{name}: {error}")),
    }
}

/// Which variant `iptables` is. Versions that do not say are from before there were two.
fn iptables_variant() -> Reading<Variant> {
    match output("iptables", &["--version"]) {
        Reading::Found(version) if version.contains("nf_tables") => Reading::Found(Variant::Nft),
        Reading::Found(_) => Reading::Found(Variant::Legacy),
        Reading::Absent => Reading::Absent,
        Reading::Unreadable(reason) => Reading::Unreadable(reason),
    }
}

/// The rules of a variant; `plain` if commands without the variant in their name belong to it.
fn saved(variant: Variant, family: Family, plain: bool) -> Reading<String> {
    if variant == Variant::Legacy {
        // To list a table of iptables-legacy is to load it; this file names those that are loaded.
        let names = match family {
            Family::V4 => "/proc/thread-self/net/ip_tables_names",
            Family::V6 => "/proc/thread-self/net/ip6_tables_names",
        };
        match reading(std::fs::read_to_string(names)) {
            Reading::Found(names) if names.trim().is_empty() => return Reading::Absent,
            Reading::Found(_) => {}
            other => return other,
        }
    }
    let exact = format!("{}-{}-save", family.command(), variant.suffix());
    let listed = match output(&exact, &[]) {
        Reading::Absent if plain => output(&format!("{}-save", family.command()), &[]),
        other => other,
    };
    match listed {
        Reading::Absent => Reading::Unreadable(format!("{exact} is not installed")),
        other => other,
    }
}

fn ipsets() -> Reading<Vec<String>> {
    // The command ipset loads the module to ask it.
    if !Path::new("/sys/module/ip_set").exists() {
        return Reading::Absent;
    }
    match output("ipset", &["list", "-n"]) {
        Reading::Found(names) => Reading::Found(names.lines().map(str::to_owned).collect()),
        Reading::Absent => Reading::Unreadable("ipset is not installed".to_owned()),
        Reading::Unreadable(reason) => Reading::Unreadable(reason),
    }
}

/// Our table, without the elements of its sets.
fn nftables_table() -> Reading<()> {
    match output("nft", &["--terse", "list", "table", "inet", "ringfence"]) {
        Reading::Found(_) => Reading::Found(()),
        Reading::Absent => Reading::Unreadable("nft is not installed".to_owned()),
        Reading::Unreadable(reason) if reason.contains("No such file or directory") => Reading::Absent,
        Reading::Unreadable(reason) => Reading::Unreadable(reason),
    }
}

fn module(name: &str) -> ModuleState {
    if Path::new("/sys/module").join(name).exists() {
        return ModuleState::Available;
    }
    let Ok(release) = std::fs::read_to_string("/proc/sys/kernel/osrelease") else { return ModuleState::Unknown };
    let directory = Path::new("/lib/modules").join(release.trim());
    let listed = ["modules.dep", "modules.builtin"].map(|file| std::fs::read_to_string(directory.join(file)));
    let file = format!("/{name}.ko");
    if listed.iter().flatten().any(|listed| listed.contains(&file)) {
        ModuleState::Available
    } else if listed.iter().all(Result::is_ok) {
        ModuleState::Missing
    } else {
        ModuleState::Unknown
    }
}

/// The lock, without taking it: the kernel lists who holds which.
fn xtables_lock() -> Reading<LockFile> {
    let path = PathBuf::from(std::env::var_os("XTABLES_LOCKFILE").unwrap_or_else(|| XTABLES_LOCK.into()));
    reading(std::fs::metadata(&path).and_then(|metadata| {
        let first = lock_holder(&metadata)?;
        let holder = match first {
            Some(first) => {
                std::thread::sleep(MOMENT);
                lock_holder(&metadata)?.filter(|holder| *holder == first).map(process)
            }
            None => None,
        };
        Ok(LockFile { path, is_file: metadata.is_file(), holder })
    }))
}

/// The process that holds a lock on the file, which is 0 if it is not of this process namespace.
fn lock_holder(file: &std::fs::Metadata) -> io::Result<Option<u32>> {
    let identity =
        format!("{:02x}:{:02x}:{}", rustix::fs::major(file.dev()), rustix::fs::minor(file.dev()), file.ino());
    let locks = std::fs::read_to_string("/proc/locks")?;
    // `1: FLOCK  ADVISORY  WRITE 1199 00:17:245 0 EOF`; one that waits has `->` after the number.
    let holder = locks.lines().find_map(|line| match line.split_whitespace().collect::<Vec<_>>()[..] {
        [_, "FLOCK", _, _, pid, of, ..] if of == identity => Some(pid.parse().unwrap_or(0)),
        _ => None,
    });
    Ok(holder)
}

/// A process as people know it.
fn process(pid: u32) -> String {
    match std::fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("process {pid} ({})", name.trim()),
        Err(_) if pid == 0 => "a process outside of this container".to_owned(),
        Err(_) => format!("process {pid}"),
    }
}
