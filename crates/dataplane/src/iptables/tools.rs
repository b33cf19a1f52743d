//! Running iptables and ipset, in the network namespace of the calling thread.

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use ringfence_model::Family;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::thread::{MembarrierCommand, membarrier};

use super::Variant;
use super::listing::{Listing, Stock, has_chain, rules_of_others, set_names};
use super::name::Table;
use crate::backend::ApplyError;

/// Where administrators' tools are, also for a service whose `PATH` does not say so.
const DIRECTORIES: [&str; 5] = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"];
/// Held by whoever writes legacy tables.
const LOCK: &str = "/run/xtables.lock";
/// Names another lock to the tools.
const LOCK_VARIABLE: &str = "XTABLES_LOCKFILE";
/// How many seconds to wait for the lock.
const LOCK_SECONDS: &str = "10";
/// How often to try while others write, and how long to wait after the first attempt.
const BUSY_ATTEMPTS: u32 = 5;
const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// Longer than any packet is judged.
const GRACE: Duration = Duration::from_millis(20);

/// The tools of one variant.
#[derive(Debug)]
pub(super) struct Tools {
    pub(super) variant: Variant,
    /// Which families the kernel has.
    pub(super) families: Vec<Family>,
    restore: [PathBuf; 2],
    save: [PathBuf; 2],
    ipset: PathBuf,
    /// A lock of our own.
    lock: Option<OwnedFd>,
}

/// A tool is missing.
#[derive(Debug, thiserror::Error)]
#[error("{tool} is not installed: install the package {package}")]
pub(super) struct Missing {
    tool: String,
    package: &'static str,
}

/// A tool did not do what it was asked to.
#[derive(Debug)]
pub(super) enum Failure {
    /// It could not be run.
    NotRun(ApplyError),
    /// It refused. What it said.
    Refused(String),
}

impl Failure {
    /// For a question, which changes nothing when it fails.
    pub(super) fn unanswered(self, operation: &'static str) -> ApplyError {
        match self {
            Failure::NotRun(error) => error,
            Failure::Refused(said) => ApplyError::Unsent { operation, source: refusal(said).into() },
        }
    }
}

/// What a tool said, as the error that it stands for.
pub(super) fn refusal(said: String) -> io::Error {
    // iptables prints the second one for both, ipset the first one.
    let not_permitted = ["Operation not permitted", "Permission denied (you must be root)"];
    match not_permitted.iter().any(|text| said.contains(text)) {
        true => io::Error::new(io::ErrorKind::PermissionDenied, said),
        false => io::Error::other(said),
    }
}

impl Tools {
    /// Looks for the tools of a variant.
    pub(super) fn find(variant: Variant) -> Result<Tools, ApplyError> {
        let suffix = match variant {
            Variant::Nft => "nft",
            Variant::Legacy => "legacy",
        };
        let plain = default_variant() == Some(variant);
        let tool = |family: Family, what: &str| {
            let name = |infix: &str| format!("{}{infix}-{what}", base(family));
            find(&name(&format!("-{suffix}")))
                .or_else(|| if plain { find(&name("")) } else { None })
                .ok_or_else(|| missing(name(&format!("-{suffix}")), "iptables"))
        };
        let each = |what: &str| Ok::<_, ApplyError>([tool(Family::V4, what)?, tool(Family::V6, what)?]);
        Ok(Tools {
            variant,
            families: families(),
            restore: each("restore")?,
            save: each("save")?,
            ipset: find("ipset").ok_or_else(|| missing("ipset".to_owned(), "ipset"))?,
            lock: if variant == Variant::Legacy { own_lock()? } else { None },
        })
    }

    /// Whether the lock that everybody takes cannot be taken.
    pub(super) fn has_own_lock(&self) -> bool {
        self.lock.is_some()
    }

    /// The variant that others on this host use.
    pub(super) fn detect() -> Result<Variant, ApplyError> {
        let mut best: Option<((bool, bool, usize), Variant)> = None;
        let default = default_variant();
        // Of two with equal signs of use the first one is taken.
        let order = if default == Some(Variant::Legacy) { [Variant::Legacy, Variant::Nft] } else { Variant::ALL };
        let mut problem = None;
        for variant in order {
            let signs = Tools::find(variant).and_then(|tools| tools.signs_of_use());
            match signs {
                Ok(signs) if best.is_none_or(|(most, _)| signs > most) => best = Some((signs, variant)),
                Ok(_) => {}
                Err(error) => problem = problem.or(Some(error)),
            }
        }
        match (best, problem) {
            (Some((_, variant)), _) => Ok(variant),
            (None, Some(error)) => Err(error),
            (None, None) => Err(missing("iptables".to_owned(), "iptables")),
        }
    }

    /// The kubelet's hint, older signs of the kubelet and kube-proxy, and how many rules others have.
    fn signs_of_use(&self) -> Result<(bool, bool, usize), ApplyError> {
        let mut signs = (false, false, 0);
        for family in &self.families {
            let saved = self.save(*family, None)?;
            signs.0 |= has_chain(&saved, "KUBE-IPTABLES-HINT");
            signs.1 |= has_chain(&saved, "KUBE-KUBELET-CANARY") || has_chain(&saved, "KUBE-PROXY-CANARY");
            signs.2 += rules_of_others(&saved);
        }
        Ok(signs)
    }

    /// What `iptables-save` prints, of one table or of all.
    fn save(&self, family: Family, table: Option<&str>) -> Result<String, ApplyError> {
        if self.variant == Variant::Legacy && !legacy_has(family, table) {
            return Ok(String::new());
        }
        let arguments: Vec<&str> = table.map_or_else(Vec::new, |table| vec!["-t", table]);
        self.run(of(&self.save, family), &arguments, "").map_err(|failure| failure.unanswered("listing chains"))
    }

    /// What of ours is in a table, and what leads there.
    pub(super) fn listing(&self, table: Table, family: Family) -> Result<Listing, ApplyError> {
        Ok(Listing::read(&self.save(family, Some(table.name()))?, table))
    }

    /// What of ours is in all tables, without sets.
    pub(super) fn chains(&self) -> Result<Stock, ApplyError> {
        let mut stock = Stock::default();
        for table in Table::ALL {
            for family in &self.families {
                stock.tables.insert((table, *family), self.listing(table, *family)?);
            }
        }
        Ok(stock)
    }

    /// What of ours there is.
    pub(super) fn stock(&self) -> Result<Stock, ApplyError> {
        Ok(Stock { sets: self.sets()?, ..self.chains()? })
    }

    /// The names of our sets.
    pub(super) fn sets(&self) -> Result<Vec<String>, ApplyError> {
        Ok(set_names(&self.ask_ipset(&["list", "-name"])?))
    }

    /// All sets with their members, others' too.
    pub(super) fn saved_sets(&self) -> Result<String, ApplyError> {
        self.ask_ipset(&["save"])
    }

    fn ask_ipset(&self, arguments: &[&str]) -> Result<String, ApplyError> {
        self.run(&self.ipset, arguments, "").map_err(|failure| failure.unanswered("listing sets"))
    }

    /// Performs the lines of an `ipset restore`, one after the other.
    pub(super) fn restore_sets(&self, lines: &str) -> Result<(), Failure> {
        self.run(&self.ipset, &["restore"], lines).map(|_| ())
    }

    /// Performs the lines of an `iptables-restore`, all or none.
    pub(super) fn restore_rules(&self, family: Family, lines: &str) -> Result<(), Failure> {
        self.run(of(&self.restore, family), &["--noflush", "-w", LOCK_SECONDS], lines).map(|_| ())
    }

    /// Others who write at the same time say nothing about what is to be written: it is tried again.
    fn run(&self, tool: &Path, arguments: &[&str], input: &str) -> Result<String, Failure> {
        for attempt in 1..=BUSY_ATTEMPTS {
            let mut command = Command::new(tool);
            command.args(arguments).env("LC_ALL", "C");
            if let Some(lock) = &self.lock {
                // A descriptor of ours, by a name that a child process can open.
                command.env(LOCK_VARIABLE, format!("/proc/{}/fd/{}", std::process::id(), lock.as_raw_fd()));
            }
            match run(&mut command, input) {
                Err(Failure::Refused(said)) if is_busy(&said) => thread::sleep(BUSY_PAUSE * attempt),
                result => return result,
            }
        }
        Err(Failure::NotRun(ApplyError::Contended { attempts: BUSY_ATTEMPTS }))
    }
}

fn run(command: &mut Command, input: &str) -> Result<String, Failure> {
    let unsent =
        |source: io::Error| Failure::NotRun(ApplyError::Unsent { operation: "running a tool", source: source.into() });
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(unsent)?;
    let stdin = child.stdin.take();
    let output = thread::scope(|scope| {
        // A tool that refuses a line does not read the rest; its exit tells.
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input.as_bytes())));
        child.wait_with_output()
    });
    // It has read its input: whether it has done what was asked is not known.
    let output = output.map_err(|source| {
        Failure::NotRun(ApplyError::Lost { operation: "waiting for a tool", source: source.into() })
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let mut said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if said.contains("Message too long") {
        // iptables-nft sends a transaction as one message, which outside the initial user namespace has to fit into the
        // default buffer.
        said.push_str(": raise net.core.wmem_max, or run with CAP_NET_ADMIN in the initial user namespace");
    }
    Err(Failure::Refused(if said.is_empty() { output.status.to_string() } else { said }))
}

/// Whether a tool gave up because others were writing: the lock of the legacy tables, a change between its reading and
/// its writing.
fn is_busy(said: &str) -> bool {
    said.contains("xtables lock") || said.contains("Resource temporarily unavailable")
}

/// Waits until all packets that are being judged now are through.
///
/// Netfilter's hooks run in RCU read sections, and the system call waits for all of those. With one CPU it does not
/// have to wait, and where CPUs are kept free of interrupts it cannot.
pub(crate) fn grace() {
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    if !online.contains(['-', ',']) || membarrier(MembarrierCommand::Global).is_err() {
        thread::sleep(GRACE);
    }
}

/// Which variant is behind the plain name `iptables`.
fn default_variant() -> Option<Variant> {
    let said = run(Command::new(find("iptables")?).arg("--version"), "").ok()?;
    // Before there was a choice there was no word about it.
    Some(if said.contains("nf_tables") { Variant::Nft } else { Variant::Legacy })
}

/// A kernel without IPv6 has no such file.
pub(super) fn families() -> Vec<Family> {
    let present = |family: &Family| *family == Family::V4 || Path::new("/proc/thread-self/net/if_inet6").exists();
    Family::ALL.into_iter().filter(present).collect()
}

/// Whether the legacy tables of a family are in the kernel, one or any. Merely asking for one would load it.
pub(super) fn legacy_has(family: Family, table: Option<&str>) -> bool {
    let names = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    let names = fs::read_to_string(names).unwrap_or_default();
    table.map_or(!names.is_empty(), |table| names.lines().any(|name| name == table))
}

/// In a user namespace the lock often belongs to somebody who is not there. The network namespace is ours alone then, so
/// a lock of our own does; the tools insist on one. On the host, others who write have to wait for us, so there the lock must
/// be theirs too.
fn own_lock() -> Result<Option<OwnedFd>, ApplyError> {
    if std::env::var_os(LOCK_VARIABLE).is_some() || fs::File::options().append(true).create(true).open(LOCK).is_ok() {
        return Ok(None);
    }
    if in_initial_user_namespace() {
        let advice =
            format!("{LOCK} cannot be opened: mount the host's into the container, or name it with {LOCK_VARIABLE}");
        return Err(ApplyError::Unsent { operation: "opening the lock of iptables-legacy", source: advice.into() });
    }
    let lock = memfd_create("xtables.lock", MemfdFlags::CLOEXEC);
    lock.map(Some).map_err(|error| ApplyError::Unsent { operation: "making a lock", source: error.into() })
}

fn in_initial_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn find(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(DIRECTORIES.map(PathBuf::from));
    directories.map(|directory| directory.join(tool)).find(|candidate| candidate.is_file())
}

fn missing(tool: String, package: &'static str) -> ApplyError {
    ApplyError::Unsent { operation: "finding the tools", source: Missing { tool, package }.into() }
}

fn base(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

fn of(tools: &[PathBuf; 2], family: Family) -> &Path {
    let [v4, v6] = tools;
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}
