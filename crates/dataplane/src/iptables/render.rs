//! What would be written, as a script for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use ringfence_compile::acl::Acl;
use ringfence_model::Family;

use super::abilities::Abilities;
use super::layout::Layout;
use super::listing::Stock;
use super::name::Edition;
use super::plan::{self, Capacities, Work};
use super::{IptablesOptions, invalid, narrow};

/// What [`Backend::replace`](crate::Backend::replace) would have restored into a kernel with nothing of ours in it, step by step.
pub fn render(acl: &Acl, options: &IptablesOptions) -> String {
    let closed = invalid(acl);
    let acl = narrow(acl, &closed);
    let layout = Layout { acl: &acl, options, edition: Edition::default(), can: Abilities::ALL };
    let steps = plan::replace(layout, &Family::ALL, &Stock::default(), &mut Capacities::new());
    let legend: BTreeMap<String, String> = Family::ALL.into_iter().flat_map(|family| layout.legend(family)).collect();
    let mut script = String::new();
    for (number, step) in (1..).zip(&steps) {
        let (tool, lines) = match &step.work {
            Work::Sets(lines) => ("ipset restore", lines),
            Work::Rules(Family::V4, lines) => ("iptables-restore --noflush", lines),
            Work::Rules(Family::V6, lines) => ("ip6tables-restore --noflush", lines),
            Work::Grace | Work::Owed | Work::Destroy(_) => continue,
        };
        let separator = if script.is_empty() { "" } else { "\n" };
        // Writing to a string cannot fail.
        let _ = writeln!(script, "{separator}# {number}. {tool}: {}", step.title);
        for line in lines {
            if let Some(meaning) = introduced(line).and_then(|name| legend.get(name)) {
                let _ = writeln!(script, "# {meaning}");
            }
            let _ = writeln!(script, "{line}");
        }
    }
    script
}

/// The set or chain that a line makes.
fn introduced(line: &str) -> Option<&str> {
    let name = line.strip_prefix("create ").or_else(|| line.strip_prefix(':'))?;
    name.split(' ').next()
}
