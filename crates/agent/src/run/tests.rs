use std::sync::Arc;

use ringfence_dataplane::fake::{FakeBackend, Transaction};
use ringfence_k8s::{Source, parse};
use ringfence_model::Object;
use tokio::sync::mpsc::{Sender, channel};
use tokio::task::{JoinHandle, LocalSet};

use super::*;
use crate::source::Update;
use crate::{Change, run};

fn objects(text: &str) -> Vec<Object> {
    parse(&[Source { name: "test", text: text.as_bytes() }]).objects
}

fn update(changes: Vec<Change>) -> Event {
    Event::Update(Update::new(changes, Vec::new()))
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
            run(agent, receiver, stop, settings, &seen).await
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
            running.events.send(update(objects(&pod(number)).into_iter().map(Change::Apply).collect())).await.unwrap();
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
