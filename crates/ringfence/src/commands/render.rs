use std::process::ExitCode;

use ringfence_analyze::compile_nodes;
use ringfence_dataplane::{NftOptions, nft};

use super::exit_code;
use crate::args::{BackendName, Input};
use crate::input;
use crate::output::{self, Failure, Messages};

pub(super) fn run(
    input: &Input,
    node: Option<&str>,
    backend: BackendName,
    messages: &Messages,
) -> Result<ExitCode, Failure> {
    let cluster = input::read(input, messages)?;
    let programs = compile_nodes(cluster.objects)?;
    let known = || programs.keys().map(|name| &**name).collect::<Vec<_>>().join(", ");
    let program = match (node, programs.first_key_value()) {
        (Some(node), _) => {
            programs.get(node).ok_or_else(|| Failure::NoSuchNode { node: node.to_owned(), known: known() })?
        }
        (None, Some((_, program))) if programs.len() == 1 => program,
        (None, _) => return Err(Failure::WhichNode(programs.len(), known())),
    };
    match backend {
        BackendName::Nftables => output::print(&nft::render(program, NftOptions::default()))?,
    }
    Ok(exit_code(cluster.has_errors))
}
