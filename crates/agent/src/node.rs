//! The state of the loop: what it knows, what is due, who waits, what was said.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use ringfence_control::{Request, Response, announcements};
use ringfence_dataplane::{ApplyError, Backend, Drift, Outcome, Remark};
use ringfence_k8s::{Diagnostic, Severity};
use ringfence_model::{Direction, PolicyId};
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::backoff::Backoff;
use crate::guard::Pace;
use crate::networks;
use crate::run::{Inputs, Numbered, RunError, Settings, explained, on_one_line};
use crate::server::Query;
use crate::source::{Event, Update};
use crate::status::{Status, Topic};
use crate::succession::Succession;
use crate::trouble::{TroubleKind, Troubles, invalid_policies};
use crate::waiting::Waiting;
use crate::window::Window;
use crate::{Agent, Change, NotCovered, SyncError};

/// So often the loop turns though nothing happens, to show that it can.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// The pauses after the packet filter has refused a change.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// What there is of what is not counted more often: counting takes more than a change.
const COUNTING: Duration = Duration::from_secs(1);
/// Nobody waits longer for an answer.
const LONGEST_PATIENCE: Duration = Duration::from_secs(600);

/// The loop's state.
pub(crate) struct Node<'a, B: Backend> {
    pub(crate) agent: Agent<B>,
    succession: Succession,
    status: &'a Status,
    run_directory: Option<PathBuf>,
    window: Window,
    backoff: Backoff,
    /// When to write, if there is something to write.
    due: Option<Instant>,
    resync: Duration,
    next_repair: Instant,
    /// The backend's alarm is to be heeded.
    pub(crate) rung: bool,
    pace: Pace,
    counted: Instant,
    /// When to count, if what was counted last is not what there is.
    count_due: Option<Instant>,
    waiting: Waiting,
    troubles: Troubles,
    /// What was said last, in order not to repeat it.
    failure: Option<String>,
    /// What of the source cannot be read, and why.
    source_failures: BTreeMap<String, String>,
    diagnostics: BTreeSet<String>,
    remarks: Vec<Remark>,
    guarded: Option<Vec<IpNet>>,
    is_unknown: bool,
    /// Networks towards which sources are kept whatever the file with more of them says.
    fixed_networks: Vec<IpNet>,
}

impl<'a, B: Backend<Demand: Numbered>> Node<'a, B> {
    /// Takes over what was announced to agents before this one.
    pub(crate) fn new(
        agent: Agent<B>,
        settings: &Settings,
        inputs: &Inputs,
        succession: Succession,
        status: &'a Status,
    ) -> Node<'a, B> {
        let mut node = Node {
            agent,
            succession,
            status,
            run_directory: settings.run_directory.clone(),
            window: Window::default(),
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            due: None,
            resync: settings.resync,
            next_repair: Instant::now() + settings.resync,
            rung: false,
            pace: Pace::default(),
            counted: Instant::now(),
            count_due: None,
            waiting: Waiting::default(),
            troubles: Troubles::new(inputs.troubles.clone()),
            failure: None,
            source_failures: BTreeMap::new(),
            diagnostics: BTreeSet::new(),
            remarks: Vec::new(),
            guarded: None,
            is_unknown: false,
            fixed_networks: Vec::new(),
        };
        node.status.enforces(node.agent.enforcement());
        if let Some(networks) = &inputs.networks {
            node.fixed_networks.clone_from(&networks.fixed);
            node.agent.keep_sources_towards(&networks.fixed);
            node.networks(networks.first.clone());
        }
        node.load_announcements();
        node.count();
        node
    }

    /// When there is something to do at the latest.
    pub(crate) fn next(&self) -> Instant {
        let now = Instant::now();
        // What is due comes first, see `work`.
        let first = self.due.unwrap_or_else(|| {
            if self.rung { self.pace.earliest(now).min(self.next_repair) } else { self.next_repair }
        });
        let others = self.waiting.next().into_iter().chain(self.count_due);
        others.fold(first.min(now + HEARTBEAT), Instant::min)
    }

    /// Hears from the source.
    pub(crate) fn take(&mut self, event: Event) {
        match event {
            Event::Begun(changes) => self.change(changes),
            Event::Update(update) => {
                if !self.source_failures.is_empty() {
                    self.source_failures.clear();
                    info!("the source can be read again");
                    self.status.conditions(Topic::Source, []);
                }
                self.status.source_fails(false);
                self.update(update);
            }
            Event::Partial(update) => self.update(update),
            Event::Failed(error) => {
                self.status.source_errors.inc();
                self.status.source_fails(true);
                let text = on_one_line(&error.to_string());
                let part = error.part().to_owned();
                if self.source_failures.insert(part, text.clone()).as_ref() != Some(&text) {
                    error!("{text}; what was read last stays in force");
                }
                self.status.conditions(Topic::Source, self.source_failures.values().cloned());
            }
        }
    }

    fn update(&mut self, update: Update) {
        let changed = !update.changes.is_empty();
        self.change(update.changes);
        if let Some(diagnostics) = &update.diagnostics {
            self.say_diagnostics(diagnostics);
            self.trouble(TroubleKind::Invalid, invalid_policies(diagnostics));
        }
        for id in self.agent.take_forgotten() {
            self.remove_announcement(&id);
        }
        // Changes of what policies do not look at are none.
        if !self.agent.is_behind() {
            return;
        }
        if changed {
            self.status.waits(update.received);
        }
        // Who waits for a pod does not wait for a batch, too.
        if self.waiting.sandboxes().any(|sandbox| self.agent.knows_pod_of(sandbox)) {
            self.hurry();
        } else {
            self.schedule();
        }
    }

    fn change(&mut self, changes: Vec<Change>) {
        for change in changes {
            // The rest is not held back: it may take rights away.
            if let Err(error) = self.agent.change(change) {
                self.status.source_errors.inc();
                error!("ignored: {error}");
            }
        }
    }

    /// Hears what the file says that names other clusters. While it is wrong, what it said last counts.
    pub(crate) fn networks(&mut self, reading: networks::Reading) {
        let error = reading.as_ref().err().cloned();
        match reading {
            Ok(networks) => {
                let all: Vec<IpNet> = self.fixed_networks.iter().copied().chain(networks).collect();
                self.agent.keep_sources_towards(&all);
                let kept: Vec<String> = self.agent.unmasqueraded().iter().map(ToString::to_string).collect();
                info!(
                    "pods keep their addresses towards these networks: {}",
                    if kept.is_empty() { "none".to_owned() } else { kept.join(", ") }
                );
                self.schedule();
                self.count_due.get_or_insert(Instant::now());
            }
            Err(error) => {
                error!("{error}; the networks that were read last stay exempt from masquerading");
            }
        }
        self.status.conditions(Topic::Networks, error);
    }

    fn say_diagnostics(&mut self, diagnostics: &[Diagnostic]) {
        let mut all = BTreeSet::new();
        for diagnostic in diagnostics {
            let text = on_one_line(&diagnostic.to_string());
            if !self.diagnostics.contains(&text) {
                match diagnostic.severity {
                    Severity::Note => info!("{text}"),
                    Severity::Warning => warn!("{text}"),
                    Severity::Error | Severity::Fatal => error!("{text}"),
                }
            }
            all.insert(text);
        }
        self.diagnostics = all;
    }

    /// Hears from a program on this node.
    pub(crate) fn ask(&mut self, query: Query) {
        let Query { request, answer } = query;
        match request {
            Request::Status => {
                if self.count_due.is_some() {
                    self.count();
                }
                let _ = answer.send(Response::Status(Box::new(self.status.report())));
            }
            Request::AddSandbox { sandbox, patience_ms } => {
                let until = Instant::now() + Duration::from_millis(patience_ms).min(LONGEST_PATIENCE);
                self.agent.announce(sandbox.clone(), seconds(SystemTime::now()));
                self.announced();
                self.hurry();
                self.waiting.add(sandbox, until, answer);
            }
            Request::CheckSandbox { sandbox } => {
                self.hurry();
                self.waiting.add(sandbox, Instant::now(), answer);
            }
            Request::DeleteSandbox { id } => {
                self.agent.withdraw(&id);
                self.announced();
                self.remove_announcement(&id);
                self.schedule();
                let _ = answer.send(Response::Done);
            }
        }
    }

    /// An announcement is a change like those of the source.
    fn announced(&mut self) {
        self.recount();
        if self.agent.is_behind() {
            self.status.waits(Instant::now());
        }
    }

    /// Writes what has changed with the next batch.
    fn schedule(&mut self) {
        if self.agent.is_behind() && self.due.is_none() {
            let now = Instant::now();
            self.due = Some(self.window.opens(now));
        }
    }

    /// Writes what has changed at once, except while writing fails: then it is tried again when it would be anyway.
    fn hurry(&mut self) {
        if self.agent.is_behind() && self.failure.is_none() {
            self.due = Some(Instant::now());
        }
    }

    /// Does what is due.
    ///
    /// # Errors
    /// It turns out that this process must not write at all.
    pub(crate) fn work(&mut self) -> Result<(), RunError> {
        let now = Instant::now();
        if self.due.is_some_and(|due| due <= now) {
            self.sync()?;
            // It may have heard the alarm, and does not mend.
            self.rung = true;
        }
        // While something is to be written, what the kernel has is not what it shall have.
        if self.due.is_none() {
            self.guard(now);
        }
        if self.count_due.is_some_and(|due| due <= now) {
            self.count();
        }
        self.waiting.settle(Instant::now(), |sandbox| {
            self.agent.covers(sandbox).map_err(|reason| match (&reason, &self.failure) {
                (NotCovered::NotInForce, Some(failure)) => format!("{reason}: {failure}"),
                _ => reason.to_string(),
            })?;
            match self.rung {
                true => Err("others may have changed the packet filter, which is still to be looked at".to_owned()),
                false => Ok(()),
            }
        });
        self.troubles.tell();
        Ok(())
    }

    fn sync(&mut self) -> Result<(), RunError> {
        let start = Instant::now();
        let result = self.agent.sync();
        let took = start.elapsed();
        self.due = None;
        self.window.close(start, took);
        match result {
            Ok(outcome) => {
                self.succession.in_force();
                match &outcome {
                    Outcome::Unchanged => {}
                    Outcome::Updated(_) => self.status.applied("update", took),
                    Outcome::Replaced { after, .. } => {
                        self.status.applied("replace", took);
                        if let Some(error) = after {
                            warn!("the difference could not be written, so everything was: {}", explained(error));
                        }
                        self.say_remarks();
                    }
                }
                self.in_sync();
            }
            // The source's first state was refused, and it said so; or only a sandbox is known yet.
            Err(SyncError::NotReady) => {}
            Err(SyncError::Apply(error)) if error.is_not_permitted() && !self.status.is_ready() => {
                return Err(RunError::NotPermitted(error));
            }
            Err(SyncError::Apply(error)) => self.out_of_sync(&error),
        }
        Ok(())
    }

    /// Looks after what others may have changed: when the alarm rings, and from time to time without it.
    fn guard(&mut self, now: Instant) {
        if self.rung && self.pace.earliest(now) <= now {
            self.rung = false;
            let result = self.agent.heed();
            self.mended(result);
        }
        if self.next_repair <= now && self.due.is_none() {
            let result = self.agent.repair();
            self.mended(result);
            self.succession.retry();
            self.say_remarks();
            self.next_repair = Instant::now() + self.resync;
        }
    }

    fn mended(&mut self, result: Result<Option<Drift>, ApplyError>) {
        match result {
            Ok(None) => {}
            Ok(Some(drift)) => {
                // The backend may have been deaf while it wrote.
                self.rung = true;
                self.status.drift_repairs.inc();
                self.status.happened(Topic::Drift, &drift.to_string());
                match self.pace.mended(Instant::now()) {
                    Some(pause) if pause < Pace::LONGEST => warn!("{drift}: mended"),
                    Some(pause) => {
                        warn!(
                            "{drift}: mended. This goes on, so from now on it is mended every {pause:?} and not told"
                        );
                    }
                    None => {}
                }
            }
            Err(error) => self.out_of_sync(&error),
        }
    }

    fn in_sync(&mut self) {
        if self.status.in_sync.set(1) == 0 {
            info!(node = self.agent.node(), "the policies are in force");
            // Who hears that it is ready sees what there is.
            self.count_due = Some(Instant::now());
        }
        if self.failure.take().is_some() {
            self.status.conditions(Topic::PacketFilter, []);
        }
        self.say_whether_known();
        self.say_guarded();
        self.backoff.reset();
        self.status.caught_up();
        let Some(program) = self.agent.program() else { return };
        self.status.generation.set(program.generation());
        for direction in Direction::ALL {
            if let Some(count) = program.peer_classes(direction) {
                self.status.count_peer_classes(direction, count);
            }
        }
        self.recount();
    }

    /// What there is has changed: counts it, now or when it is time.
    fn recount(&mut self) {
        self.count_due.get_or_insert(self.counted + COUNTING);
        if self.count_due.is_some_and(|due| due <= Instant::now()) {
            self.count();
        }
    }

    fn count(&mut self) {
        (self.counted, self.count_due) = (Instant::now(), None);
        let isolated = self.agent.program().map(Numbered::isolated).unwrap_or_default();
        let mut counts = self.agent.counts(&isolated);
        counts.invalid_policies = self.troubles.count(TroubleKind::Invalid) as u64;
        let trust = self.agent.program().map(Numbered::trust).unwrap_or_default();
        (counts.believed_addresses, counts.believed_endpoints) = (trust.addresses as u64, trust.endpoints as u64);
        self.status.count(counts);
        let networks = self.agent.unmasqueraded().iter().map(ToString::to_string).collect();
        self.status.reaches(networks, self.agent.nodes_apart());
    }

    fn out_of_sync(&mut self, error: &ApplyError) {
        self.status.apply_errors.inc();
        self.status.in_sync.set(0);
        let text = explained(error);
        self.status.conditions(Topic::PacketFilter, [text.clone()]);
        if self.failure.as_ref() != Some(&text) {
            error!("the packet filter could not be changed and is tried again: {text}");
            self.failure = Some(text);
        }
        self.due = Some(Instant::now() + self.backoff.pause(fastrand::f64()));
    }

    /// A name that is not that of the Node is a mistake that nothing else shows.
    fn say_whether_known(&mut self) {
        let is_unknown = !self.agent.knows_its_node();
        if is_unknown == self.is_unknown {
            return;
        }
        self.is_unknown = is_unknown;
        let text =
            format!("no Node is called {0}, and no pod is on {0}: there is nothing to enforce", self.agent.node());
        if is_unknown {
            warn!("{text}");
        }
        self.status.conditions(Topic::Node, is_unknown.then_some(text));
    }

    fn say_guarded(&mut self) {
        let guarded = self.agent.guarded();
        if guarded == self.guarded {
            return;
        }
        match guarded.as_deref() {
            None => {}
            Some([]) => warn!(
                "no Node {} with spec.podCIDRs is known: a pod is not held back before its address is known",
                self.agent.node()
            ),
            Some(ranges) => {
                let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
                info!("addresses in {} are refused until their pods are known", ranges.join(", "));
            }
        }
        self.guarded = guarded;
    }

    /// To gather them may take processes: not after each update.
    fn say_remarks(&mut self) {
        let remarks = self.agent.backend().remarks();
        for remark in remarks.iter().filter(|remark| !self.remarks.contains(remark)) {
            warn!("{remark}");
        }
        let about = |remark: &Remark| remark.policy.clone().map(|policy| (policy, remark.text.clone()));
        self.trouble(TroubleKind::NotProgrammed, remarks.iter().filter_map(about).collect());
        self.status.remarks(remarks.iter().map(ToString::to_string).collect());
        self.remarks = remarks;
    }

    /// All policies with a trouble of one kind.
    fn trouble(&mut self, kind: TroubleKind, policies: BTreeMap<PolicyId, String>) {
        self.troubles.set(kind, policies);
        self.status.count_troubles(kind, self.troubles.count(kind));
        self.status.conditions(Topic::Policy, self.troubles.lines());
        // Also without a program: a policy that is broken and stays so is no change of what is enforced.
        if self.status.is_ready() {
            self.recount();
        }
    }

    fn load_announcements(&mut self) {
        let Some(run_directory) = &self.run_directory else { return };
        match announcements::read_all(run_directory) {
            Ok(announced) => {
                for (path, reason) in announced.unreadable {
                    warn!("{} announces no sandbox, and its pod waits for its status: {reason}", path.display());
                }
                for sandbox in announced.sandboxes {
                    let since = announcements::written_at(run_directory, &sandbox.id);
                    self.agent.announce(sandbox, seconds(since.unwrap_or_else(|_| SystemTime::now())));
                }
            }
            Err(error) => error!(
                "the announced sandboxes in {} cannot be read, and their pods wait for their status: {error}",
                run_directory.display()
            ),
        }
    }

    fn remove_announcement(&self, id: &str) {
        if let Some(run_directory) = &self.run_directory
            && let Err(error) = announcements::remove(run_directory, id)
        {
            warn!("the announcement of sandbox {id} cannot be removed: {error}");
        }
    }
}

/// Since the epoch; a clock before it is not set.
fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
