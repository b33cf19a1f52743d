//! The `ringfence` command.

mod args;
mod commands;
mod filter;
mod input;
mod output;
mod reach;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::Args;
use crate::output::Failure;

fn main() -> ExitCode {
    // Before all else: pods wait for it.
    if let Some(code) = commands::cni::plugin() {
        return code;
    }
    let args = Args::parse();
    match commands::run(&args) {
        Ok(code) => code,
        Err(Failure::BrokenPipe) => ExitCode::SUCCESS,
        Err(failure) => output::report(&failure, &args),
    }
}
