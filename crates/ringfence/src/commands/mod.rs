//! One module a command: read, ask the library, print.

mod agent;
mod cleanup;
pub(crate) mod cni;
mod doctor;
mod lab;
mod manual;
mod matrix;
mod render;
mod status;
mod version;

use std::process::ExitCode;

use crate::args::{Args, Command, LabCommand};
use crate::output::{Failure, Messages};

/// Runs what the command line asks for.
pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let messages = Messages::new(args.color);
    match &args.command {
        Command::Matrix { input, output } => matrix::run(input, *output, args.color, &messages),
        Command::Lab(LabCommand::Run { input, filter, reach, network, output, keep }) => lab::run(
            input,
            filter,
            reach,
            network,
            &lab::Report { format: *output, keep: *keep, color: args.color },
            &messages,
        ),
        Command::Lab(LabCommand::Exec { end, lab, command }) => lab::exec(end, *lab, command),
        Command::Render { input, node, unknown_pods, reach, filter } => {
            render::run(input, node.as_deref(), (*unknown_pods).into(), reach, filter, &messages)
        }
        Command::Agent(options) => agent::run(options),
        Command::Status(options) => status::run(options),
        Command::Doctor(options) => doctor::run(options),
        Command::Cni(command) => cni::run(command, &messages),
        Command::Cleanup { backend } => cleanup::run(*backend, &messages),
        Command::Version { output } => version::run(*output),
        Command::Completions { shell } => manual::completions(*shell),
        Command::Man { dir } => manual::pages(dir.as_deref()),
    }
}

/// 0, or 1 when something was found.
fn exit_code(findings: bool) -> ExitCode {
    ExitCode::from(u8::from(findings))
}
