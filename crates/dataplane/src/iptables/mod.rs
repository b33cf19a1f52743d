//! The iptables backend: writes access control lists as rules that people can read, and sets.
//!
//! ```text
//! Acl ─► layout ─► chains, sets ─► plan::replace ─┐
//! AclDiff ─────────────────────► plan::update ────┴─► steps ─► ipset restore, iptables-restore ─► kernel
//! ```
//!
//! Everything of ours has a name that tells (`name`), in the filter tables of both families and among the sets; where other
//! nodes are believed, in the mangle tables, and where pods keep their addresses, in the nat tables. Nothing else is ever
//! written, except a jump to each chain of ours that a chain of the kernel leads to.
//!
//! # Why no packet passes that neither the old nor the new list allows
//!
//! There is no transaction over rules and sets, nor over both families. A packet looks at each set as it is at that moment.
//! At a chain it looks as it was when the packet met the first of them, or as it is now: nftables keeps two generations of
//! rules, so what a packet sees of a chain that is rewritten can change with the second transaction after it, and that may
//! be anybody's. So nothing here relies on more than this: *a packet sees each chain and each set in some state that it
//! had while the packet was judged.*
//!
//! A *new edition* ([`Backend::replace`]) has all names different: its sets and chains are there before a transaction for each
//! family makes `RF-FORWARD` and `RF-OUTPUT` lead to them. A packet goes through one version of those, and so through one
//! edition. What was before is deleted after a grace: a chain that is emptied under a packet would let it pass.
//!
//! An *update* stays in its edition. Call what can only allow less a *taking*: one more member of a set of isolated pods, one
//! less of any other set, a line less in a chain that marks, one more namespace that is judged; the opposite a *giving*.
//! Rules ask sets for members only and never for non-members (but one that never changes), so between takings every mixture
//! of states allows no more than the old list, and between givings no more than the new one. An update that only takes, or
//! only gives, has no wrong moment. Any other goes like this:
//!
//! 1. Sets that only the new rules ask are made with all members; no rule asks them yet. Then all takings, first of sets,
//!    then of rules, which now are those that both lists have.
//! 2. Grace: packets that have seen something before its taking are through.
//! 3. All givings, first of rules, then of sets.
//! 4. Grace, then the deletion of chains and sets that no rule leads to any more.
//!
//! An update that took and had no grace owes one: the next update pays it before it gives. It begins as soon as the update is
//! done, so a giving that comes some milliseconds later does not wait for it.
//!
//! A set that outgrows its size is made larger under another name, with the members that the step is about to give it,
//! and swapped. A namespace that comes to the node or leaves it comes or goes with its set of isolated pods, which is made
//! and destroyed, not changed: it is isolated, and free again, by the rules, at step 3.
//!
//! So an address becomes known after its pod is isolated, and is unknown before its pod is free. Which ranges are guarded
//! changes with a new edition only.
//!
//! # Whom the mark belongs to
//!
//! Which device leads to a packet's source can only be asked in the mangle table, before there is a route, and is needed in
//! the filter table. `RF-ORIGIN` takes the bit of the mark from every packet that comes in, whoever left it there, and gives it
//! to those that claim another node's address and come from where that is. `RF-FORWARD` believes a packet that has the bit
//! *and* whose source is in its own set of nodes *and* whose destination is one for which that counts. So `RF-ORIGIN` alone
//! allows nothing: whatever becomes of the mangle table, a packet passes only if the list in the filter table says so, and
//! without `RF-ORIGIN` nobody is believed. Guarded ranges are asked about before. After that `RF-FORWARD` takes the bit from
//! every packet, before any rule of a policy could give it; a filter table that does not know `RF-ORIGIN` asks about the bit
//! in chains of policies only, and takes it before.
//!
//! The mangle tables come before the filter tables and go after them. In between, `RF-ORIGIN` marks what either edition
//! believes: a connection that both allow is not to be refused because only one has marked it.
//!
//! What the node itself sends is judged by the same chains of namespaces when there are pods of others among them. It is
//! let through to members of the set of its own pods, which is one of the sets that a taking makes smaller.
//!
//! # Silence
//!
//! Between takings and givings packets are refused that both lists allow. They must not be told so: connections would
//! break. From before the first taking until a grace after the last giving the set `hold` has everybody in it, and
//! refusals are silent; the sender tries again. A crash in between leaves that silence and what both lists allow.
//!

mod abilities;
mod clear;
mod debt;
mod diff;
mod drift;
mod layout;
mod listing;
mod members;
#[cfg(test)]
mod model;
mod name;
mod options;
mod plan;
mod reach;
mod render;
mod tools;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ringfence_compile::acl::{Acl, AclEntry, AclPolicy, AclPorts};
use ringfence_model::{Direction, Family, PolicyId, Tier};

pub use diff::AclDiff;
pub use options::{InvalidMark, IptablesOptions, Mark, Variant};
pub use render::render;

use crate::backend::{Applied, ApplyError, Backend, Drift, Remark};
use abilities::Abilities;
pub(crate) use clear::clear_variants_but;
use debt::Debt;
use layout::Layout;
use name::{Edition, Names, Table};
use plan::{Capacities, Step, Update, Work};
pub(crate) use tools::grace;
use tools::{Failure, Tools};

/// How often to try to destroy a set: the kernel lets go of deleted rules a moment later.
const DESTROY_ATTEMPTS: u32 = 50;
const DESTROY_PAUSE: Duration = Duration::from_millis(20);

/// A policy that could not be written. The pods it selects stay isolated, and it allows them nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedPolicy {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub policy: Arc<str>,
    /// What was wrong.
    pub reason: String,
}

/// A policy's namespace and its name.
type PolicyName = (Arc<str>, Arc<str>);

/// Policies to close, with the reason.
type Closed = BTreeMap<PolicyName, String>;

/// Enforces lists with iptables and ipset, in the network namespace of the calling thread.
#[derive(Debug)]
pub struct IptablesBackend {
    options: IptablesOptions,
    tools: Tools,
    notes: Vec<String>,
    can: Abilities,
    /// The edition in force; nothing when that is not certain.
    edition: Option<Edition>,
    /// Packets may be under judgement that have seen what the last update took. Until this is over.
    debt: Debt,
    capacities: Capacities,
    refused: Vec<RefusedPolicy>,
    /// How the tools list what they were given, when they do not list it as it was given: fingerprints of both, and whether
    /// it was listed so after two separate writes.
    spelling: Option<(u64, u64, bool)>,
    /// After how many steps to stop.
    steps_left: Option<usize>,
}

/// A step that failed.
struct Stopped {
    error: ApplyError,
    /// What a tool refused, if one did.
    refusal: Option<Refusal>,
}

/// What a tool did not take.
struct Refusal {
    /// The line, when the tool told: the kernel sees the older tables as a whole.
    line: Option<String>,
    /// The family whose rules were to be written; none for sets.
    family: Option<Family>,
    said: String,
}

impl From<ApplyError> for Stopped {
    fn from(error: ApplyError) -> Stopped {
        Stopped { error, refusal: None }
    }
}

impl IptablesBackend {
    /// Finds the tools. The kernel is not changed.
    ///
    /// # Errors
    /// Tools are missing, or cannot list what there is.
    pub fn open(options: IptablesOptions) -> Result<IptablesBackend, ApplyError> {
        let variant = match options.variant {
            Some(variant) => variant,
            None => Variant::detect()?,
        };
        let tools = Tools::find(variant)?;
        let mut notes = Vec::new();
        if !tools.families.contains(&Family::V6) {
            notes.push("the kernel has no IPv6: nothing is written for it".to_owned());
        }
        if tools.has_own_lock() {
            notes.push(
                "/run/xtables.lock cannot be opened: others who write legacy rules do not wait for us".to_owned(),
            );
        }
        Ok(IptablesBackend {
            options,
            tools,
            notes,
            can: Abilities::default(),
            edition: None,
            debt: Debt::new(grace),
            capacities: Capacities::new(),
            refused: Vec::new(),
            spelling: None,
            steps_left: None,
        })
    }

    /// The variant in use.
    pub fn variant(&self) -> Variant {
        self.tools.variant
    }

    /// What the administrator should know about this host. Complete after the first program.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The policies of the last program that could not be written. They are tried again with the next one.
    pub fn refused(&self) -> &[RefusedPolicy] {
        &self.refused
    }

    /// Our chains in the variant that is not in use. They are in force too.
    ///
    /// # Errors
    /// They cannot be listed.
    pub fn stale_in_other(&self) -> Result<Vec<String>, ApplyError> {
        let Ok(other) = Tools::find(self.tools.variant.other()) else {
            return Ok(Vec::new());
        };
        let mut chains = BTreeSet::new();
        for listing in other.chains()?.tables.into_values() {
            chains.extend(listing.chains.into_keys());
        }
        Ok(chains.into_iter().collect())
    }

    /// Stops after so many steps, and in all that is called later, as a crash would. For tests.
    pub fn stop_after(&mut self, steps: usize) {
        self.steps_left = Some(steps);
    }

    fn layout<'a>(&'a self, acl: &'a Acl, edition: Edition) -> Layout<'a> {
        Layout { acl, options: &self.options, edition, can: self.can }
    }

    /// Whether the kernel takes some rules, tried with a chain that nothing leads to.
    fn takes(&self, table: Table, family: Family, rules: &[String]) -> Result<bool, ApplyError> {
        let [try_it, undo] = plan::trial(table, rules);
        match self.tools.restore_rules(family, &try_it) {
            Ok(()) => {
                let undone = self.tools.restore_rules(family, &undo);
                undone.map(|()| true).map_err(|failure| failure.unanswered("undoing a trial"))
            }
            Err(Failure::NotRun(error)) => Err(error),
            Err(Failure::Refused(_)) => Ok(false),
        }
    }

    /// Performs the steps of a program. A set that something of others asks cannot be destroyed: that fails no program.
    fn run(&mut self, steps: &[Step]) -> Result<Applied, Stopped> {
        let mut applied = Applied::default();
        for step in steps {
            if step.work == Work::Owed {
                self.debt.pay();
                continue;
            }
            if let Some(left) = &mut self.steps_left {
                *left = left
                    .checked_sub(1)
                    .ok_or_else(|| ApplyError::Unsent { operation: step.title, source: "stopped on request".into() })?;
            }
            match (self.perform(step, &mut applied), &step.work) {
                (Err(Stopped { error: ApplyError::Refused { .. }, .. }), Work::Destroy(_)) => {}
                (result, _) => result?,
            }
        }
        Ok(applied)
    }

    fn perform(&self, step: &Step, applied: &mut Applied) -> Result<(), Stopped> {
        let (lines, result) = match &step.work {
            Work::Grace | Work::Owed => {
                grace();
                return Ok(());
            }
            Work::Destroy(names) => return self.destroy(names.clone(), applied).map_err(Stopped::from),
            Work::Sets(lines) => (lines, self.tools.restore_sets(&text(lines))),
            Work::Rules(family, lines) => (lines, self.tools.restore_rules(*family, &text(lines))),
        };
        match result {
            Ok(()) => {
                applied.messages += lines.len();
                applied.bytes += lines.iter().map(|line| line.len() + 1).sum::<usize>();
                applied.elements_added += lines.iter().filter(|line| line.starts_with("add ")).count();
                applied.elements_removed += lines.iter().filter(|line| line.starts_with("del ")).count();
                Ok(())
            }
            Err(Failure::NotRun(error)) => Err(error.into()),
            Err(Failure::Refused(said)) => {
                let line = refused_line(&said).and_then(|number| lines.get(number.checked_sub(1)?));
                let line = line.filter(|line| *line != "COMMIT").cloned();
                let operation = match &line {
                    Some(line) => format!("`{line}` ({})", step.title),
                    None => format!("to {}", step.title),
                };
                let family = if let Work::Rules(family, _) = step.work { Some(family) } else { None };
                let refusal = Some(Refusal { line, family, said: said.clone() });
                Err(Stopped { error: ApplyError::Refused { operation, source: tools::refusal(said) }, refusal })
            }
        }
    }

    /// Destroys sets, with patience.
    fn destroy(&self, mut names: Vec<String>, applied: &mut Applied) -> Result<(), ApplyError> {
        applied.messages += names.len();
        for _ in 0..DESTROY_ATTEMPTS {
            let lines: Vec<String> = names.iter().map(|name| format!("destroy {name}")).collect();
            let said = match self.tools.restore_sets(&text(&lines)) {
                Ok(()) => return Ok(()),
                Err(Failure::NotRun(error)) => return Err(error),
                Err(Failure::Refused(said)) => said,
            };
            // The ones before it are gone. It is tried again, after the others.
            let done = refused_line(&said).and_then(|number| number.checked_sub(1)).filter(|done| *done < names.len());
            let Some(done) = done else {
                return Err(ApplyError::Refused {
                    operation: "destroying sets".to_owned(),
                    source: tools::refusal(said),
                });
            };
            names.drain(..done);
            names.rotate_left(1);
            thread::sleep(DESTROY_PAUSE);
        }
        let operation = format!("destroying {}", names.join(" "));
        Err(ApplyError::Refused { operation, source: io::ErrorKind::ResourceBusy.into() })
    }

    /// Writes everything. Policies that the tools refuse are closed, until they take the rest or refuse something else.
    fn write(&mut self, program: &Acl) -> Result<Applied, ApplyError> {
        self.edition = None;
        self.refused.clear();
        self.probe(program)?;
        let mut closed = invalid(program);
        loop {
            let stock = self.tools.stock()?;
            let edition = plan::free_edition(&stock);
            let narrowed = narrow(program, &closed);
            let mut capacities = Capacities::new();
            let layout = self.layout(&narrowed, edition);
            let steps = plan::replace(layout, &self.tools.families, &stock, &mut capacities);
            let stopped = match self.run(&steps) {
                Ok(applied) => {
                    self.edition = Some(edition);
                    self.debt.forget();
                    self.capacities = capacities;
                    let refused = |((namespace, policy), reason)| RefusedPolicy { namespace, policy, reason };
                    self.refused = closed.into_iter().map(refused).collect();
                    return Ok(applied);
                }
                Err(stopped) => stopped,
            };
            let culprits = match &stopped.refusal {
                None => return Err(stopped.error),
                Some(Refusal { line: Some(line), .. }) => culprits(&narrowed, Names(edition), line),
                Some(Refusal { family: Some(family), .. }) => {
                    self.untakable(self.layout(&narrowed, edition), *family)?
                }
                Some(_) => Vec::new(),
            };
            if culprits.is_empty() {
                return Err(stopped.error);
            }
            let reason = stopped.refusal.map(|refusal| refusal.said).unwrap_or_default();
            closed.extend(culprits.into_iter().map(|policy| (policy, reason.clone())));
        }
    }

    /// The policies whose rules the kernel does not take, each tried alone. Their sets must be there.
    fn untakable(&self, layout: Layout<'_>, family: Family) -> Result<Vec<PolicyName>, ApplyError> {
        let mut untakable = Vec::new();
        for direction in Direction::ALL {
            for (namespace, policy) in policies_of(layout.acl, direction) {
                let chains = layout.policy(direction, namespace, policy, family);
                let rules: Vec<String> = chains.into_iter().flat_map(|(_, rules)| rules).collect();
                if !rules.is_empty() && !self.takes(Table::Filter, family, &rules)? {
                    untakable.push((namespace.clone(), policy.name.clone()));
                }
            }
        }
        Ok(untakable)
    }
}

impl Backend for IptablesBackend {
    type Demand = Acl;

    fn name(&self) -> &'static str {
        "iptables"
    }

    fn replace(&mut self, program: &Acl) -> Result<Applied, ApplyError> {
        self.write(program)
    }

    fn update(&mut self, from: &Acl, to: &Acl, diff: &AclDiff) -> Result<Applied, ApplyError> {
        let (Some(edition), [], true) = (self.edition, self.refused.as_slice(), invalid(to).is_empty()) else {
            return self.write(to);
        };
        let mut capacities = std::mem::take(&mut self.capacities);
        let (old, new) = (self.layout(from, edition), self.layout(to, edition));
        let update = plan::update(old, new, diff, &self.tools.families, &mut capacities, self.debt.is_owed());
        let Some(Update { steps, owes_grace }) = update else {
            return self.write(to);
        };
        // Until all steps are done nothing is certain.
        self.edition = None;
        let applied = self.run(&steps).map_err(|stopped| name_policies(stopped, to, Names(edition)))?;
        // It begins now, though nothing but the next giving has to wait for it.
        self.debt.updated(owes_grace);
        self.edition = Some(edition);
        self.capacities = capacities;
        Ok(applied)
    }

    fn remarks(&self) -> Vec<Remark> {
        let mut remarks: Vec<Remark> = self.notes.iter().map(Remark::general).collect();
        remarks.extend(self.refused.iter().map(|RefusedPolicy { namespace, policy, reason }| Remark {
            policy: Some(PolicyId { tier: Tier::Namespace, namespace: namespace.clone(), name: policy.clone() }),
            text: format!("cannot be written and allows nothing until it can: {reason}"),
        }));
        // What cannot be listed cannot be told either.
        let stale = self.stale_in_other().unwrap_or_default();
        if let Some(first) = stale.first() {
            let (count, other) = (stale.len(), self.tools.variant.other());
            remarks.push(Remark::general(format!(
                "iptables-{other} has {count} chains of an earlier run, {first} among them, which are in force too: remove \
                 them with `ringfence cleanup --backend iptables` and start again"
            )));
        }
        remarks
    }

    /// Compares jumps, chains, rules, sets and members. Writes everything anew also if policies were refused.
    ///
    /// Versions of iptables may list rules in other words than they were given. Their words are learned: what is listed
    /// after two separate writes alike, with the chains, the number of rules and the members that were written.
    fn repair(&mut self, program: &Acl) -> Result<Option<Drift>, ApplyError> {
        if let (Some(edition), []) = (self.edition, self.refused.as_slice()) {
            let (found, expected) = self.found_and_expected(program, edition)?;
            if found == expected
                || found.is_shaped_as(&expected) && self.spelling == Some((expected.words(), found.words(), true))
            {
                return Ok(None);
            }
        }
        self.replace(program)?;
        if let (Some(edition), []) = (self.edition, self.refused.as_slice()) {
            let (found, expected) = self.found_and_expected(program, edition)?;
            if found != expected && found.is_shaped_as(&expected) {
                let words = found.words();
                // Editions differ between two writes, and so do names.
                let again = self.spelling.is_some_and(|(_, listed, _)| listed == words);
                self.spelling = Some((expected.words(), words, again));
            }
        }
        Ok(Some(Drift("others had changed rules or sets of ringfence".to_owned())))
    }

    /// Removes ours from both variants, and touches only one that has something of ours.
    fn cleanup(&mut self) -> Result<(), ApplyError> {
        self.edition = None;
        self.refused.clear();
        if let Ok(other) = Tools::find(self.tools.variant.other()) {
            let ours = std::mem::replace(&mut self.tools, other);
            let deleted = self.delete_chains();
            self.tools = ours;
            deleted?;
        }
        let steps = plan::cleanup(&self.tools.stock()?);
        self.run(&steps).map_err(|stopped| stopped.error)?;
        match self.tools.stock()?.sets.as_slice() {
            [] => Ok(()),
            sets => Err(ApplyError::Refused {
                operation: format!("destroying {}", sets.join(" ")),
                source: io::ErrorKind::ResourceBusy.into(),
            }),
        }
    }
}

/// The list with some policies closed.
fn narrow(acl: &Acl, closed: &Closed) -> Acl {
    if closed.is_empty() {
        return acl.clone();
    }
    let is_closed = |namespace: &str, policy: &str| closed.contains_key(&(namespace.into(), policy.into()));
    layout::without(acl, is_closed)
}

fn text(lines: &[String]) -> String {
    let mut text = String::with_capacity(lines.iter().map(|line| line.len() + 1).sum());
    for line in lines {
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// The number of the line that a tool complains about.
fn refused_line(said: &str) -> Option<usize> {
    said.match_indices("line").find_map(|(at, word)| {
        let rest = said.get(at + word.len()..)?.trim_start_matches([':', ' ']);
        let end = rest.find(|character: char| !character.is_ascii_digit()).unwrap_or(rest.len());
        rest.get(..end)?.parse().ok()
    })
}

/// Policies that cannot be written, found without asking the tools.
fn invalid(acl: &Acl) -> Closed {
    let mut closed = Closed::new();
    let backwards =
        |entry: &AclEntry| matches!(entry.ports, AclPorts::Range(range) if range.ports.first > range.ports.last);
    for (namespace, policy) in policies(acl) {
        if policy.rules.iter().flat_map(|rule| &rule.entries).any(backwards) {
            closed
                .insert((namespace.clone(), policy.name.clone()), "a range of ports ends before it starts".to_owned());
        }
    }
    closed
}

/// All policies, those of both directions twice, with their namespaces.
fn policies(acl: &Acl) -> impl Iterator<Item = (&Arc<str>, &Arc<AclPolicy>)> {
    Direction::ALL.into_iter().flat_map(|direction| policies_of(acl, direction))
}

fn policies_of(acl: &Acl, direction: Direction) -> impl Iterator<Item = (&Arc<str>, &Arc<AclPolicy>)> {
    let namespaces = acl.side(direction).iter();
    namespaces.flat_map(|(name, namespace)| namespace.policies.iter().map(move |policy| (name, policy)))
}

/// The policies that a line is about: whose rule it is, or who refers to the set. None, when it is not about policies.
fn culprits(acl: &Acl, names: Names, line: &str) -> Vec<PolicyName> {
    let Some(name) = line.strip_prefix(':').unwrap_or(line).split(' ').find(|word| word.starts_with(['R', 'r'])) else {
        return Vec::new();
    };
    let has_rule = |namespace: &str, policy: &AclPolicy| {
        let rules = 0..policy.rules.len();
        rules.into_iter().any(|rule| {
            Direction::ALL.into_iter().any(|direction| names.rule(direction, namespace, &policy.name, rule) == name)
        })
    };
    let is_set = |policy: &AclPolicy| {
        layout::policy_sets(policy).any(|id| {
            let role = acl.sets.get(&id).map(|set| set.role);
            Family::ALL.into_iter().any(|family| {
                names.temporary(family, id) == name || role.is_some_and(|role| names.set(role, family, id) == name)
            })
        })
    };
    let about = policies(acl).filter(|(namespace, policy)| has_rule(namespace, policy) || is_set(policy));
    about.map(|(namespace, policy)| (namespace.clone(), policy.name.clone())).collect()
}

/// Adds to a refusal the policies it is about.
fn name_policies(stopped: Stopped, acl: &Acl, names: Names) -> ApplyError {
    let line = stopped.refusal.and_then(|refusal| refusal.line);
    let culprits = line.map_or_else(Vec::new, |line| culprits(acl, names, &line));
    match (stopped.error, culprits.first()) {
        (ApplyError::Refused { operation, source }, Some((namespace, policy))) => {
            ApplyError::Refused { operation: format!("{operation} for policy {namespace}/{policy}"), source }
        }
        (error, _) => error,
    }
}
