//! The peers of a policy rule: pods and address blocks.

use ipnet::IpNet;
use ringfence_model::{IpBlock, NamespaceScope, Peer};

use crate::address::parse_cidr;
use crate::diagnostic::shown;
use crate::read::{At, Report, mapping, string};
use crate::selector::selector;

/// Reads one entry of `from` or `to`: pods, or an address block, not both.
pub(crate) fn peer(report: &mut Report, at: &At<'_>) -> Option<Peer> {
    if at.node.is_null() {
        report.error_hint(at, "a peer is left empty", "remove the dash, or say which peer");
        return None;
    }
    let fields = mapping(report, at)?;
    fields.only(report, &["podSelector", "namespaceSelector", "ipBlock"], |name| match name {
        "ports" => Some("`ports` stands beside `from` or `to`, in the same rule: check the indentation"),
        "matchLabels" | "matchExpressions" => Some("it belongs inside `podSelector` or `namespaceSelector`"),
        "cidr" | "except" => Some("it belongs inside `ipBlock`"),
        "namespace" => {
            Some("select it by its label: `namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ...}}`")
        }
        _ => None,
    });
    for name in ["podSelector", "namespaceSelector"] {
        if let Some(at) = fields.left_empty(name) {
            report.warning(
                &at,
                format!("`{name}` is left empty and so counts as not written"),
                format!("write `{name}: {{}}` to select everything"),
            );
        }
    }
    let pods = fields.get("podSelector").map(|at| selector(report, &at));
    let namespaces = fields.get("namespaceSelector").map(|at| selector(report, &at));
    let block = fields.get("ipBlock").map(|at| (at, ip_block(report, &at)));
    match (pods, namespaces, block) {
        (None, None, None) => {
            report.error_hint(
                at,
                "a peer needs `podSelector`, `namespaceSelector` or `ipBlock`",
                "to allow every peer, leave the whole list out",
            );
            None
        }
        (None, None, Some((_, block))) => block.map(Peer::Block),
        (_, _, Some((at, _))) => {
            report.error_hint(
                &at,
                "`ipBlock` cannot stand beside `podSelector` or `namespaceSelector`",
                "put a dash before it to make it a peer of its own",
            );
            None
        }
        (pods, namespaces, None) => Some(Peer::Pods {
            namespaces: namespaces.map_or(NamespaceScope::Own, NamespaceScope::Matching),
            pods: pods.unwrap_or_default(),
        }),
    }
}

/// Reads `ipBlock`. The entries of `except` are strict subsets of `cidr` and may overlap each other.
fn ip_block(report: &mut Report, at: &At<'_>) -> Option<IpBlock> {
    let fields = mapping(report, at)?;
    fields.only(report, &["cidr", "except"], |name| match name {
        "ports" => Some("`ports` stands beside `from` or `to`, in the same rule: check the indentation"),
        "cidrs" => Some("write `cidr`; one block per peer"),
        _ => None,
    });
    let block = match fields.get("cidr") {
        Some(at) => cidr(report, &at),
        None => {
            report.error(&fields.at.missing("cidr"), "`cidr` is missing");
            None
        }
    };
    let mut except = Vec::new();
    fields.each(report, "except", |report, at| {
        let Some(inner) = cidr(report, at) else { return };
        if let Some(block) = block
            && !is_strict_subset(inner, block)
        {
            report.error(at, format!("{inner} is not a strict subset of {block}"));
        }
        except.push(inner);
    });
    Some(IpBlock { cidr: block?, except })
}

fn is_strict_subset(inner: IpNet, outer: IpNet) -> bool {
    // `contains` is false across families.
    outer.contains(&inner) && inner.prefix_len() > outer.prefix_len()
}

/// Reads a CIDR and masks its host bits.
pub(crate) fn cidr(report: &mut Report, at: &At<'_>) -> Option<IpNet> {
    let text = string(report, at, "CIDR")?;
    match parse_cidr(text) {
        Ok(read) => {
            if read.had_host_bits {
                let message = format!("\"{}\" has host bits set: read as {}", shown(text), read.block);
                report.warning(at, message, format!("write {}", read.block));
            }
            Some(read.block)
        }
        Err(reason) => {
            let message = format!("\"{}\" is {reason}", shown(text));
            if reason.contains("without a prefix") {
                let bits = if text.contains(':') { 128 } else { 32 };
                report.error_hint(at, message, format!("write {}/{bits} for a single address", shown(text)));
            } else {
                report.error_hint(at, message, "write it as in 10.0.0.0/8 or 2001:db8::/32");
            }
            None
        }
    }
}
