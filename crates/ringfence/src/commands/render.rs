use std::process::ExitCode;

use ringfence_compile::acl::AclCompiler;
use ringfence_compile::{Cluster, Compiler, NodeCompiler, Touched, UnknownPods};
use ringfence_dataplane::{iptables, nft};
use ringfence_model::Object;

use super::exit_code;
use crate::args::{BackendName, Filter, Input};
use crate::input;
use crate::output::{self, Failure, Messages};
use crate::reach::ReachOptions;

pub(super) fn run(
    input: &Input,
    node: Option<&str>,
    unknown: UnknownPods,
    reach: &ReachOptions,
    filter: &Filter,
    messages: &Messages,
) -> Result<ExitCode, Failure> {
    filter.check()?;
    let cluster = input::read(input, None, messages)?;
    let objects = cluster.objects;
    let text = match filter.backend {
        BackendName::Nftables => nft::render(&compiled::<NodeCompiler>(objects, node, unknown, reach)?, filter.nft()),
        BackendName::Iptables => {
            iptables::render(&compiled::<AclCompiler>(objects, node, unknown, reach)?, &filter.iptables())
        }
    };
    output::print(&text)?;
    Ok(exit_code(cluster.has_errors))
}

/// What one node must enforce.
fn compiled<C: Compiler>(
    objects: Vec<Object>,
    node: Option<&str>,
    unknown: UnknownPods,
    reach: &ReachOptions,
) -> Result<C::Output, Failure> {
    let mut cluster = Cluster::new();
    let mut touched = Touched::default();
    cluster.reset(objects, &mut touched)?;
    cluster.keep_sources_towards(&reach.no_masquerade_cidr, &mut touched);
    let names = cluster.node_names();
    let known = || names.iter().map(|name| &**name).collect::<Vec<_>>().join(", ");
    let name = match (node, names.first()) {
        (Some(node), _) => {
            names.get(node).ok_or_else(|| Failure::NoSuchNode { node: node.to_owned(), known: known() })?
        }
        (None, Some(only)) if names.len() == 1 => only,
        (None, _) => return Err(Failure::WhichNode(names.len(), known())),
    };
    let mut compiler = C::for_node(name.clone()).with_unknown_pods(unknown).with_enforcement(reach.enforcement());
    Ok(compiler.compile(&cluster, &touched))
}
