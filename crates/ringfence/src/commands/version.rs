use std::io;
use std::process::ExitCode;

use clap::ValueEnum as _;
use serde::Serialize;

use crate::args::{BackendName, VersionFormat};
use crate::output::{self, Failure};

/// What this binary is. The field names are a contract.
#[derive(Debug, Serialize)]
struct Version {
    version: &'static str,
    /// The commit it was built from; null if that was not known.
    commit: Option<&'static str>,
    /// What it was built for, as Rust names it.
    target: &'static str,
    /// The packet filters that it can write to.
    backends: Vec<String>,
}

pub(super) fn run(format: VersionFormat) -> Result<ExitCode, Failure> {
    let names = BackendName::value_variants().iter().filter_map(BackendName::to_possible_value);
    let version = Version {
        version: env!("CARGO_PKG_VERSION"),
        commit: option_env!("RINGFENCE_COMMIT"),
        target: env!("RINGFENCE_TARGET"),
        backends: names.map(|name| name.get_name().to_owned()).collect(),
    };
    let text = match format {
        VersionFormat::Json => serde_json::to_string_pretty(&version).map_err(io::Error::from)? + "\n",
        VersionFormat::Text => {
            let Version { version, commit, target, backends } = version;
            format!(
                "ringfence {version}\ncommit    {}\ntarget    {target}\nbackends  {}\n",
                commit.unwrap_or("unknown"),
                backends.join(", ")
            )
        }
    };
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}
