use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, io, thread};

use ringfence_cni::{Change, InstallError, OnTimeout, Options, Outcome, PLUGIN, Settings};
use ringfence_control::Request;

use crate::args::{CniCommand, CniInstall, OnTimeoutName};
use crate::output::{self, Failure, Messages};

/// How long the agent may take to say that it is there.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often `--wait` looks for a network.
const LOOK: Duration = Duration::from_millis(500);

/// Is the plugin if this process was called as such, by its name or as `ringfence cni` in a runtime's environment.
pub(crate) fn plugin() -> Option<ExitCode> {
    let mut arguments = env::args_os();
    let name = arguments.next()?;
    let called = Path::new(&name).file_name() == Some(OsStr::new(PLUGIN))
        || arguments.next().is_some_and(|first| first == "cni")
            && arguments.next().is_none()
            && env::var_os("CNI_COMMAND").is_some();
    called.then(|| {
        let code = ringfence_cni::run(
            |name| env::var_os(name),
            io::stdin().lock(),
            &mut io::stdout().lock(),
            &mut io::stderr().lock(),
        );
        ExitCode::from(code)
    })
}

pub(super) fn run(command: &CniCommand, messages: &Messages) -> Result<ExitCode, Failure> {
    match command {
        CniCommand::Install(install) => {
            let options = options(install)?;
            if install.keep {
                ringfence_cni::keep(&options, |result| match result {
                    Ok(outcome) => messages.note(describe(&outcome).trim_end()),
                    Err(error) => messages.warning(&error.to_string()),
                })
            }
            let outcome = install_within(&options, Duration::from_secs(install.wait.into()))?;
            output::print(&describe(&outcome))?;
            let socket = ringfence_control::socket_path(&install.place.run_dir);
            if let Err(error) = ringfence_control::ask(&socket, &Request::Status, PATIENCE) {
                messages.warning(&format!("{error}; until one does, pods that start wait for it in vain"));
            }
        }
        CniCommand::Uninstall { place, force } => {
            let outcome = ringfence_cni::uninstall(&place.bin_dir, &place.conf_dir, &place.run_dir, *force)?;
            output::print(&describe(&outcome))?;
            for remark in &outcome.remarks {
                messages.warning(remark);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn options(install: &CniInstall) -> Result<Options, Failure> {
    Ok(Options {
        bin_dir: install.place.bin_dir.clone(),
        conf_dir: install.place.conf_dir.clone(),
        conf: install.conf.clone(),
        program: env::current_exe().map_err(Failure::NoProgram)?,
        settings: Settings {
            run_dir: install.place.run_dir.clone(),
            timeout_seconds: install.cni_timeout,
            on_timeout: match install.on_timeout {
                OnTimeoutName::Fail => OnTimeout::Fail,
                OnTimeoutName::Continue => OnTimeout::Continue,
            },
            continue_for: install.continue_for.clone(),
        },
    })
}

/// Installs, and tries again while there is no network to install into, or one that is being written.
fn install_within(options: &Options, patience: Duration) -> Result<Outcome, InstallError> {
    let start = Instant::now();
    loop {
        let result = ringfence_cni::install(options);
        let later = matches!(
            &result,
            Err(InstallError::NoNetwork(_)
                | InstallError::NoSuchConfiguration(_)
                | InstallError::Unusable { .. }
                | InstallError::Busy(_))
        );
        if !later || start.elapsed() + LOOK > patience {
            return result;
        }
        thread::sleep(LOOK);
    }
}

fn describe(outcome: &Outcome) -> String {
    let mut text = String::new();
    for change in &outcome.changes {
        let (done, path) = match change {
            Change::Written(path) => ("wrote", path),
            Change::Removed(path) => ("removed", path),
        };
        let _ = writeln!(text, "{done} {}", path.display());
    }
    if outcome.changes.is_empty() {
        text.push_str("nothing to change\n");
    }
    text
}
