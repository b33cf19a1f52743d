//! Completions and manual pages, both from the definition of the arguments.

use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::args::Args;
use crate::output::{self, Failure};

const NAME: &str = "ringfence";

pub(super) fn completions(shell: Shell) -> Result<ExitCode, Failure> {
    // Not straight to standard output: the generator panics when it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), NAME, &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

/// The page of `ringfence` itself to standard output; or one page a command into `directory`: `ringfence.1`,
/// `ringfence-agent.1`, `ringfence-lab-run.1` and so on.
pub(super) fn pages(directory: Option<&Path>) -> Result<ExitCode, Failure> {
    match directory {
        Some(directory) => {
            let failure = |source| Failure::WriteTo { path: directory.to_owned(), source };
            std::fs::create_dir_all(directory).map_err(failure)?;
            clap_mangen::generate_to(Args::command(), directory).map_err(failure)?;
        }
        None => {
            let mut page = Vec::new();
            // As generate_to does: `help` has no page.
            clap_mangen::Man::new(Args::command().disable_help_subcommand(true)).render(&mut page)?;
            output::print(&String::from_utf8_lossy(&page))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
