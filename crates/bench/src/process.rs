//! An agent as users run it: a process, fed by an API server.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ringfence_dataplane::iptables::Variant;
use ringfence_lab::NetNs;
use serde::Serialize;
use tempfile::TempDir;

use crate::cluster::OUR_NODE;
use crate::filter::Filter;

/// The kernel's unit of processor time in `/proc`, as all architectures tell it to user space.
const TICKS_PER_SECOND: f64 = 100.0;

/// A running agent. Killed in the end.
pub(crate) struct AgentProcess {
    child: Child,
    log: PathBuf,
    /// Its socket and its log.
    directory: TempDir,
}

/// The memory of a process, in MB of a million bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Memory {
    /// Resident now.
    pub(crate) resident: f64,
    /// The most that was resident.
    pub(crate) peak: f64,
}

/// What a process has used so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    pub(crate) memory: Memory,
    /// Processor time, of itself and of the tools it has run and waited for.
    pub(crate) processor: Duration,
}

impl AgentProcess {
    /// The program to measure: the one that was built beside this one.
    pub(crate) fn program() -> Result<PathBuf, Box<dyn Error>> {
        let program = std::env::current_exe()?.with_file_name("ringfence");
        if program.is_file() {
            return Ok(program);
        }
        Err(format!("{} is not there: build it first, as `make bench` does", program.display()).into())
    }

    /// Starts an agent in a node's network namespace.
    pub(crate) fn start(node: &NetNs, kubeconfig: &Path, filter: Filter) -> Result<AgentProcess, Box<dyn Error>> {
        AgentProcess::start_as(OUR_NODE, node, kubeconfig, filter)
    }

    /// The same, for the node of this name.
    pub(crate) fn start_as(
        name: &str,
        node: &NetNs,
        kubeconfig: &Path,
        filter: Filter,
    ) -> Result<AgentProcess, Box<dyn Error>> {
        let directory = tempfile::tempdir()?;
        let log = directory.path().join("log");
        let mut command = Command::new(AgentProcess::program()?);
        command.args(["agent", "--node", name, "--kubeconfig"]).arg(kubeconfig);
        command.arg("--run-dir").arg(directory.path().join("run"));
        match filter {
            Filter::Nftables => command.args(["--backend", "nftables"]),
            Filter::Iptables(Variant::Nft) => command.args(["--backend", "iptables", "--iptables", "nft"]),
            Filter::Iptables(Variant::Legacy) => command.args(["--backend", "iptables", "--iptables", "legacy"]),
        };
        // In a user namespace the lock belongs to somebody else.
        command.env("XTABLES_LOCKFILE", "/dev/null").stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(std::fs::File::create(&log)?);
        let child = node.within(|| command.spawn())??;
        Ok(AgentProcess { child, log, directory })
    }

    /// An error with its log, if it has ended.
    pub(crate) fn check(&mut self) -> Result<(), Box<dyn Error>> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(format!("the agent ended ({status}): {}", self.log()).into()),
        }
    }

    /// Where it answers `ringfence status`.
    pub(crate) fn socket(&self) -> PathBuf {
        ringfence_control::socket_path(&self.directory.path().join("run"))
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn usage(&self) -> Result<Usage, Box<dyn Error>> {
        let process = self.child.id().to_string();
        let memory = Memory::of(&process)?;
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
        // The second field is a name in brackets that may hold anything.
        let fields: Vec<&str> = stat.rsplit_once(')').ok_or("no name")?.1.split_whitespace().collect();
        // cutime and cstime: fields 16 and 17, of which the first two are cut off.
        let ticks = fields.get(13..15).ok_or("a short line")?.iter().map(|field| field.parse::<f64>());
        let tools: f64 = ticks.sum::<Result<_, _>>()?;
        Ok(Usage { memory, processor: self.own_processor()? + Duration::from_secs_f64(tools / TICKS_PER_SECOND) })
    }

    /// Of the threads that there are, in nanoseconds: single changes cost far less than a tick.
    fn own_processor(&self) -> Result<Duration, Box<dyn Error>> {
        let mut nanoseconds = 0;
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            // One that has just ended has no file any more.
            let Ok(text) = std::fs::read_to_string(thread?.path().join("schedstat")) else { continue };
            nanoseconds += text.split_whitespace().next().ok_or("an empty file")?.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(nanoseconds))
    }
}

impl Memory {
    /// Of the process with this number, or of `self`.
    pub(crate) fn of(process: &str) -> Result<Memory, Box<dyn Error>> {
        let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
        let kilobytes = |name: &str| -> Result<f64, Box<dyn Error>> {
            let line =
                status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).ok_or("no such line")?;
            Ok(line.trim().trim_end_matches(" kB").parse()?)
        };
        Ok(Memory { resident: kilobytes("VmRSS")? * 1024.0 / 1e6, peak: kilobytes("VmHWM")? * 1024.0 / 1e6 })
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
