//! The loop of a node: the only writer. Events of the source become batches, a batch one program, a program one apply.

use std::collections::BTreeSet;
use std::pin::pin;
use std::time::Duration;

use ipnet::IpNet;
use ringfence_compile::{Acl, Program};
use ringfence_dataplane::{ApplyError, Backend, Drift, Outcome};
use ringfence_k8s::{Diagnostic, Severity};
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, sleep_until};
use tracing::{error, info, warn};

use crate::backoff::Backoff;
use crate::guard::{Bell, Pace};
use crate::health::Status;
use crate::source::{CAPACITY, Event, Update};
use crate::succession::Succession;
use crate::window::Window;
use crate::{Agent, Change, SyncError};

/// So often the loop turns though nothing happens, to show that it can.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// The pauses after the packet filter has refused a change.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// What is enforced after the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExit {
    /// The last program. A restart takes over from it.
    Keep,
    /// Nothing.
    Cleanup,
}

/// How the loop runs.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How often to look whether others have changed what is ours.
    pub resync: Duration,
    /// What to leave behind.
    pub on_exit: OnExit,
}

/// Why the loop has ended without having been told to, or has not left behind what it should.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The source is gone for good. The last program stays in force.
    #[error("the source has ended; the policies stay in force as they are")]
    SourceEnded,
    /// The cleanup at the end.
    #[error("cannot clean up: {}", explained(.0))]
    Cleanup(ApplyError),
}

/// Programs that count themselves.
pub trait Numbered {
    /// The number: greater is newer.
    fn generation(&self) -> u64;
}

impl Numbered for Program {
    fn generation(&self) -> u64 {
        self.generation
    }
}

impl Numbered for Acl {
    fn generation(&self) -> u64 {
        self.generation
    }
}

/// Keeps the packet filter true to what the source says, until `stop`.
///
/// Nothing is written before the first complete state. When writing fails, what is in force stays, and it is tried again
/// after a pause that grows; events are taken in meanwhile. When the source fails, the last state stays in force and is
/// still guarded against others. What other packet filters hold is cleared once the first program is in force.
///
/// # Errors
/// See [`RunError`].
pub async fn run<B: Backend<Demand: Numbered>>(
    agent: Agent<B>,
    mut events: Receiver<Event>,
    stop: impl Future<Output = ()>,
    settings: Settings,
    succession: Succession,
    status: &Status,
) -> Result<(), RunError> {
    let bell = Bell::new(agent.backend().alarm());
    let mut node = Node::new(agent, settings.resync, succession, status);
    let mut stop = pin!(stop);
    let mut batch = Vec::new();
    loop {
        status.turn();
        tokio::select! {
            biased;
            () = &mut stop => break,
            // All that waits belongs to one batch.
            count = events.recv_many(&mut batch, CAPACITY) => {
                if count == 0 {
                    return Err(RunError::SourceEnded);
                }
            }
            () = bell.rings(), if !node.rung => node.rung = true,
            () = sleep_until(node.next()) => {}
        }
        for event in batch.drain(..) {
            node.take(event);
        }
        node.work();
    }
    match settings.on_exit {
        OnExit::Keep => info!("stopped; what is in force stays"),
        OnExit::Cleanup => {
            node.agent.cleanup().map_err(RunError::Cleanup)?;
            info!("stopped; nothing is enforced any more");
        }
    }
    Ok(())
}

/// The loop's state.
struct Node<'a, B: Backend> {
    agent: Agent<B>,
    succession: Succession,
    status: &'a Status,
    window: Window,
    backoff: Backoff,
    /// When to write, if there is something to write.
    due: Option<Instant>,
    resync: Duration,
    next_repair: Instant,
    /// The backend's alarm is to be heeded.
    rung: bool,
    pace: Pace,
    /// What was said last, in order not to repeat it.
    trouble: Option<String>,
    source_trouble: Option<String>,
    diagnostics: BTreeSet<String>,
    remarks: Vec<String>,
    guarded: Option<Vec<IpNet>>,
}

impl<'a, B: Backend<Demand: Numbered>> Node<'a, B> {
    fn new(agent: Agent<B>, resync: Duration, succession: Succession, status: &'a Status) -> Node<'a, B> {
        Node {
            agent,
            succession,
            status,
            window: Window::default(),
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            due: None,
            resync,
            next_repair: Instant::now() + resync,
            rung: false,
            pace: Pace::default(),
            trouble: None,
            source_trouble: None,
            diagnostics: BTreeSet::new(),
            remarks: Vec::new(),
            guarded: None,
        }
    }

    /// When there is something to do at the latest.
    fn next(&self) -> Instant {
        let now = Instant::now();
        // What is due comes first, see `work`.
        let first = self.due.unwrap_or_else(|| {
            if self.rung { self.pace.earliest(now).min(self.next_repair) } else { self.next_repair }
        });
        first.min(now + HEARTBEAT)
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Update(update) => {
                if self.source_trouble.take().is_some() {
                    info!("the source can be read again");
                }
                self.update(update);
            }
            Event::Partial(update) => self.update(update),
            Event::Failed(error) => {
                self.status.source_errors.inc();
                let text = error.to_string();
                if self.source_trouble.as_ref() != Some(&text) {
                    error!("the source cannot be read, and what is in force stays: {}", on_one_line(&text));
                    self.source_trouble = Some(text);
                }
            }
        }
    }

    fn update(&mut self, update: Update) {
        let changed = !update.changes.is_empty();
        let reset = update.changes.iter().any(|change| matches!(change, Change::Reset(_)));
        for change in update.changes {
            // The rest of the update is not held back: it may take rights away.
            if let Err(error) = self.agent.change(change) {
                self.status.source_errors.inc();
                error!("ignored: {error}");
            }
        }
        if reset && !self.agent.knows_its_node() {
            warn!("no Node is called {0}, and no pod is on {0}: there is nothing to enforce", self.agent.node());
        }
        self.status.policy_errors.set(invalid_policies(&update.diagnostics));
        self.say_diagnostics(&update.diagnostics);
        if changed && self.due.is_none() {
            let now = Instant::now();
            self.due = Some(now + self.window.open(now));
        }
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

    /// Does what is due.
    fn work(&mut self) {
        let now = Instant::now();
        if self.due.is_some_and(|due| due <= now) {
            self.sync();
            // It may have heard the alarm, and does not mend.
            self.rung = true;
        }
        // While something is to be written, what the kernel has is not what it shall have.
        if self.due.is_some() {
            return;
        }
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

    fn sync(&mut self) {
        let start = Instant::now();
        let result = self.agent.sync();
        let took = start.elapsed();
        self.due = None;
        self.window.close(Instant::now());
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
            // The source's first state was refused. It said so.
            Err(SyncError::NotReady) => {}
            Err(SyncError::Apply(error)) => self.out_of_sync(&error),
        }
    }

    fn mended(&mut self, result: Result<Option<Drift>, ApplyError>) {
        match result {
            Ok(None) => {}
            Ok(Some(drift)) => {
                self.status.drift_repairs.inc();
                let now = Instant::now();
                match self.pace.mended(now) {
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
        }
        self.say_guarded();
        self.trouble = None;
        self.backoff.reset();
        self.status.pods.set(self.agent.pods() as u64);
        if let Some(program) = self.agent.program() {
            self.status.generation.set(program.generation());
        }
    }

    fn out_of_sync(&mut self, error: &ApplyError) {
        self.status.apply_errors.inc();
        self.status.in_sync.set(0);
        let text = explained(error);
        if self.trouble.as_ref() != Some(&text) {
            error!("the packet filter could not be changed and is tried again: {text}");
            self.trouble = Some(text);
        }
        self.due = Some(Instant::now() + self.backoff.pause(fastrand::f64()));
    }

    /// Which ranges are guarded, whenever that changes.
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
        self.remarks = remarks;
    }
}

/// How many policies have an error.
fn invalid_policies(diagnostics: &[Diagnostic]) -> u64 {
    let invalid = diagnostics.iter().filter(|diagnostic| diagnostic.severity >= Severity::Error);
    let objects = invalid.filter_map(|diagnostic| diagnostic.object.as_deref());
    objects.filter(|object| object.starts_with("NetworkPolicy ")).collect::<BTreeSet<_>>().len() as u64
}

/// An error with its causes, on one line.
pub fn explained(error: &ApplyError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    on_one_line(&text)
}

/// Hints stand on lines of their own where people read them.
fn on_one_line(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ringfence_dataplane::fake::{FakeBackend, Transaction};
    use ringfence_k8s::{Source, parse};
    use ringfence_model::Object;
    use tokio::sync::mpsc::{Sender, channel};
    use tokio::task::{JoinHandle, LocalSet};

    use super::*;

    fn objects(text: &str) -> Vec<Object> {
        parse(&[Source { name: "test", text: text.as_bytes() }]).objects
    }

    fn update(changes: Vec<Change>) -> Event {
        Event::Update(Update { changes, diagnostics: Vec::new() })
    }

    fn policy(name: &str) -> String {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}}}\nspec: {{podSelector: {{}}}}"
        )
    }

    fn pod(number: usize) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p{number}}}\nspec: {{nodeName: node}}\n\
             status: {{podIPs: [{{ip: 10.0.0.{number}}}]}}"
        )
    }

    /// A backend that others can look at while the loop owns it.
    #[derive(Clone, Default)]
    struct Shared(std::rc::Rc<std::cell::RefCell<FakeBackend>>);

    impl Backend for Shared {
        type Demand = Program;

        fn name(&self) -> &'static str {
            "shared"
        }

        fn replace(&mut self, program: &Program) -> Result<ringfence_dataplane::Applied, ApplyError> {
            self.0.borrow_mut().replace(program)
        }

        fn update(
            &mut self,
            from: &Program,
            to: &Program,
            diff: &ringfence_dataplane::ProgramDiff,
        ) -> Result<ringfence_dataplane::Applied, ApplyError> {
            self.0.borrow_mut().update(from, to, diff)
        }

        fn cleanup(&mut self) -> Result<(), ApplyError> {
            self.0.borrow_mut().cleanup()
        }
    }

    struct Running {
        backend: Shared,
        status: Arc<Status>,
        events: Sender<Event>,
        stop: tokio::sync::oneshot::Sender<()>,
        task: JoinHandle<Result<(), RunError>>,
    }

    impl Running {
        fn start(on_exit: OnExit) -> Running {
            let (backend, status) = (Shared::default(), Arc::new(Status::default()));
            let (events, receiver) = channel(CAPACITY);
            let (stop, stopped) = tokio::sync::oneshot::channel();
            let agent = Agent::new("node".into(), backend.clone());
            let settings = Settings { resync: Duration::from_secs(30), on_exit };
            let seen = status.clone();
            let task = tokio::task::spawn_local(async move {
                let stop = async { stopped.await.unwrap_or(()) };
                run(agent, receiver, stop, settings, Succession::none(), &seen).await
            });
            Running { backend, status, events, stop, task }
        }

        fn transactions(&self) -> usize {
            self.backend.0.borrow().transactions().len()
        }

        async fn end(self) -> Result<(), RunError> {
            self.stop.send(()).unwrap();
            self.task.await.unwrap()
        }
    }

    async fn turn(milliseconds: u64) {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    }

    fn with_paused_clock<F: Future<Output = ()>>(test: F) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        LocalSet::new().block_on(&runtime, test);
    }

    #[test]
    fn nothing_before_the_first_state_and_one_program_a_batch() {
        with_paused_clock(async {
            let running = Running::start(OnExit::Keep);
            let failed = crate::source::SourceError::NoManifests("nowhere".into());
            running.events.send(Event::Failed(failed)).await.unwrap();
            turn(10_000).await;
            assert_eq!((running.transactions(), running.status.source_errors.get()), (0, 1));
            let mut first = objects(&pod(1));
            first.extend(objects(&policy("deny")));
            running.events.send(update(vec![Change::Reset(first)])).await.unwrap();
            turn(1).await;
            assert_eq!((running.transactions(), running.status.in_sync.get()), (1, 1));
            // All that came while the loop was away is one transaction.
            for number in 2..9 {
                running
                    .events
                    .send(update(objects(&pod(number)).into_iter().map(Change::Apply).collect()))
                    .await
                    .unwrap();
            }
            turn(200).await;
            assert_eq!((running.transactions(), running.status.pods.get()), (2, 8));
            let backend = running.backend.clone();
            running.end().await.unwrap();
            assert!(backend.0.borrow().enforced().is_some());
        });
    }

    #[test]
    fn a_storm_is_collected() {
        with_paused_clock(async {
            let running = Running::start(OnExit::Cleanup);
            let mut all = objects(&pod(1));
            all.extend(objects(&policy("deny")));
            running.events.send(update(vec![Change::Reset(all)])).await.unwrap();
            // A change each millisecond for two seconds. (The paused clock makes programs cost no time.)
            for step in 0..2000 {
                let changed = objects(&pod(2 + step % 2)).into_iter();
                let change =
                    |object: Object| if step % 4 < 2 { Change::Apply(object) } else { Change::Delete(object.key()) };
                running.events.send(update(changed.map(change).collect())).await.unwrap();
                turn(1).await;
            }
            let transactions = running.transactions();
            assert!((15..=40).contains(&transactions), "{transactions}");
            let backend = running.backend.clone();
            running.end().await.unwrap();
            assert_eq!(backend.0.borrow().transactions().last(), Some(&Transaction::Cleanup));
        });
    }

    #[test]
    fn a_failed_apply_is_tried_again() {
        with_paused_clock(async {
            let running = Running::start(OnExit::Keep);
            running.backend.0.borrow_mut().fail_next();
            running.events.send(update(vec![Change::Reset(objects(&pod(1)))])).await.unwrap();
            turn(100).await;
            assert_eq!((running.transactions(), running.status.in_sync.get()), (0, 0));
            // A change does not shorten the pause.
            running.events.send(update(objects(&pod(2)).into_iter().map(Change::Apply).collect())).await.unwrap();
            turn(100).await;
            assert_eq!((running.transactions(), running.status.apply_errors.get()), (0, 1));
            turn(500).await;
            assert_eq!((running.transactions(), running.status.in_sync.get()), (1, 1));
        });
    }

    #[test]
    fn without_a_source_it_ends() {
        with_paused_clock(async {
            let Running { backend, events, task, stop: _stop, .. } = Running::start(OnExit::Cleanup);
            events.send(update(vec![Change::Reset(objects(&pod(1)))])).await.unwrap();
            turn(1).await;
            drop(events);
            assert!(matches!(task.await.unwrap(), Err(RunError::SourceEnded)));
            // It was not told to go.
            assert!(backend.0.borrow().enforced().is_some());
        });
    }
}
