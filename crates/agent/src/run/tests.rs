use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use ringfence_control::{Request, Response, StatusReport};
use ringfence_dataplane::Remark;
use ringfence_dataplane::fake::{FakeBackend, Transaction};
use ringfence_k8s::{Source, parse};
use ringfence_model::Object;
use tokio::sync::mpsc::{Sender, channel};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, LocalSet};

use super::*;
use crate::Change;
use crate::source::Update;

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
struct Shared(Rc<RefCell<FakeBackend>>, Rc<RefCell<Vec<Remark>>>);

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

    fn remarks(&self) -> Vec<Remark> {
        self.1.borrow().clone()
    }

    fn cleanup(&mut self) -> Result<(), ApplyError> {
        self.0.borrow_mut().cleanup()
    }
}

struct Running {
    backend: Shared,
    status: Arc<Status>,
    events: Sender<Event>,
    queries: Sender<Query>,
    troubles: Receiver<PolicyTrouble>,
    stop: tokio::sync::oneshot::Sender<()>,
    task: JoinHandle<Result<(), RunError>>,
}

impl Running {
    fn start(on_exit: OnExit) -> Running {
        Running::start_in(on_exit, None)
    }

    fn start_in(on_exit: OnExit, run_directory: Option<PathBuf>) -> Running {
        Running::start_with(on_exit, run_directory, None)
    }

    fn start_with(on_exit: OnExit, run_directory: Option<PathBuf>, networks: Option<Networks>) -> Running {
        let (backend, status) = (Shared::default(), Arc::new(Status::default()));
        let (events, receiver) = channel(CAPACITY);
        let (queries, queried) = channel(CAPACITY);
        let (troubled, troubles) = channel(CAPACITY);
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let agent = Agent::new("node".into(), backend.clone());
        let settings = Settings { resync: Duration::from_secs(30), on_exit, run_directory };
        let seen = status.clone();
        let task = tokio::task::spawn_local(async move {
            let stop = async { stopped.await.unwrap_or(()) };
            let inputs = Inputs { events: receiver, queries: Some(queried), troubles: Some(troubled), networks };
            run(agent, inputs, stop, settings, Succession::none(), &seen).await
        });
        Running { backend, status, events, queries, troubles, stop, task }
    }

    fn transactions(&self) -> usize {
        self.backend.0.borrow().transactions().len()
    }

    async fn query(&self, request: Request) -> oneshot::Receiver<Response> {
        let (answer, answered) = oneshot::channel();
        self.queries.send(Query { request, answer }).await.unwrap();
        answered
    }

    /// As it is told to who asks. What others read meanwhile may be older.
    async fn report(&self) -> StatusReport {
        match self.query(Request::Status).await.await.unwrap() {
            Response::Status(report) => *report,
            other => panic!("{other:?}"),
        }
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
        assert_eq!((running.transactions(), running.report().await.counts.pods), (2, 8));
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
        // A change each millisecond for two seconds. The paused clock makes programs cost no time, so the least counts.
        for step in 0..2000 {
            let changed = objects(&pod(2 + step % 2)).into_iter();
            let change =
                |object: Object| if step % 4 < 2 { Change::Apply(object) } else { Change::Delete(object.key()) };
            running.events.send(update(changed.map(change).collect())).await.unwrap();
            turn(1).await;
        }
        let transactions = running.transactions();
        assert!((350..=450).contains(&transactions), "{transactions}");
        let backend = running.backend.clone();
        running.end().await.unwrap();
        assert_eq!(backend.0.borrow().transactions().last(), Some(&Transaction::Cleanup));
    });
}

/// A file that is wrong changes nothing, and is told.
#[test]
fn networks_are_followed() {
    with_paused_clock(async {
        let network = |text: &str| text.parse::<IpNet>().unwrap();
        let (sender, readings) = channel(1);
        let first = Err("networks: it is empty".to_owned());
        let networks = Networks { fixed: vec![network("10.9.0.0/16")], first, readings };
        let running = Running::start_with(OnExit::Keep, None, Some(networks));
        let told = || {
            let conditions = running.status.report().conditions.into_iter();
            conditions.filter(|condition| condition.now).map(|condition| condition.message).collect::<Vec<_>>()
        };
        running.events.send(update(vec![Change::Reset(objects(&pod(1)))])).await.unwrap();
        turn(100).await;
        assert_eq!(told(), ["networks: it is empty"]);
        let first_generation = running.report().await.generation;
        assert_eq!(running.report().await.unmasqueraded, ["10.9.0.0/16"]);
        sender.send(Ok(vec![network("10.1.0.0/16"), network("10.0.0.0/16")])).await.unwrap();
        turn(2000).await;
        let before = running.report().await.generation;
        let kept = running.report().await.unmasqueraded;
        assert!(
            kept == ["10.0.0.0/15", "10.9.0.0/16"] || kept == ["10.0.0.0/16", "10.1.0.0/16", "10.9.0.0/16"],
            "{kept:?}"
        );
        assert_eq!(told(), Vec::<String>::new());
        assert!(before > first_generation, "it is written");
        sender.send(Err("networks: line 1".to_owned())).await.unwrap();
        turn(2000).await;
        let report = running.report().await;
        assert_eq!(
            (report.unmasqueraded, report.generation, told()),
            (kept, before, vec!["networks: line 1".to_owned()])
        );
        sender.send(Ok(Vec::new())).await.unwrap();
        turn(2000).await;
        assert_eq!((running.report().await.unmasqueraded, told()), (vec!["10.9.0.0/16".to_owned()], Vec::new()));
        // Nobody follows a file any more.
        drop(sender);
        turn(100).await;
        running.end().await.unwrap();
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
        let Running { backend, events, queries: _queries, task, stop: _stop, .. } = Running::start(OnExit::Cleanup);
        events.send(update(vec![Change::Reset(objects(&pod(1)))])).await.unwrap();
        turn(1).await;
        drop(events);
        assert!(matches!(task.await.unwrap(), Err(RunError::SourceEnded)));
        // It was not told to go.
        assert!(backend.0.borrow().enforced().is_some());
    });
}

mod requests {
    use ringfence_control::{Sandbox, announcements};

    use super::*;
    use crate::trouble::TroubleKind;

    fn sandbox(id: &str, name: &str, address: &str) -> Sandbox {
        Sandbox {
            id: id.to_owned(),
            namespace: "default".to_owned(),
            name: name.to_owned(),
            uid: None,
            addresses: vec![address.parse().unwrap()],
        }
    }

    /// A pod whose status tells no address yet.
    fn new_pod(number: usize) -> Vec<Object> {
        objects(&pod(number).replace(&format!("ip: 10.0.0.{number}"), "ip: ''"))
    }

    impl Running {
        async fn add(&self, sandbox: Sandbox, patience_ms: u64) -> oneshot::Receiver<Response> {
            self.query(Request::AddSandbox { sandbox, patience_ms }).await
        }

        async fn change(&self, objects: Vec<Object>) {
            self.events.send(update(objects.into_iter().map(Change::Apply).collect())).await.unwrap();
        }

        async fn first_state(&self) {
            let mut all = objects(&pod(1));
            all.extend(objects(&policy("deny")));
            self.events.send(update(vec![Change::Reset(all)])).await.unwrap();
            turn(1).await;
        }

        fn isolates(&self, address: &str) -> bool {
            let address: IpAddr = address.parse().unwrap();
            let backend = self.backend.0.borrow();
            backend.enforced().is_some_and(|enforced| enforced.ingress.subjects.contains_key(&address))
        }
    }

    fn reason(response: Response) -> String {
        match response {
            Response::NotYet { reason } => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_sandbox_does_not_wait_for_a_batch() {
        with_paused_clock(async {
            let running = Running::start(OnExit::Keep);
            running.first_state().await;
            running.change(new_pod(2)).await;
            turn(150).await;
            // A storm, until a change waits for others.
            let mut number = 2;
            loop {
                number += 1;
                running.change(objects(&pod(number))).await;
                turn(1).await;
                if !running.isolates(&format!("10.0.0.{number}")) {
                    break;
                }
            }
            let start = tokio::time::Instant::now();
            let answer = running.add(sandbox("a", "p2", "10.0.0.200"), 60_000).await;
            assert_eq!(answer.await.unwrap(), Response::Done);
            assert_eq!(start.elapsed(), Duration::ZERO);
            assert!(running.isolates("10.0.0.200"));
            let report = running.report().await;
            assert_eq!(
                (report.in_sync, report.counts.sandboxes, report.counts.isolated_pods),
                (true, 1, number as u64)
            );
        });
    }

    #[test]
    fn what_there_is_is_counted_when_asked_and_once_a_second() {
        with_paused_clock(async {
            let running = Running::start(OnExit::Keep);
            turn(2_000).await;
            running.first_state().await;
            assert_eq!(running.status.report().counts.pods, 1);
            running.change(objects(&pod(2))).await;
            turn(1).await;
            assert_eq!(running.status.report().counts.pods, 1, "counted a moment ago");
            assert_eq!(running.report().await.counts.pods, 2, "who asks is told what is");
            running.change(objects(&pod(3))).await;
            turn(1_100).await;
            let counts = running.status.report().counts;
            assert_eq!((counts.pods, counts.isolated_pods), (3, 3), "without another change");
        });
    }

    #[test]
    fn it_waits_for_its_pod_and_no_longer_than_its_patience() {
        with_paused_clock(async {
            let running = Running::start(OnExit::Keep);
            let early = running.add(sandbox("a", "p1", "10.0.0.201"), 60_000).await;
            turn(100).await;
            running.first_state().await;
            assert_eq!(early.await.unwrap(), Response::Done);
            assert!(running.isolates("10.0.0.201") && !running.isolates("10.0.0.1"));
            let start = tokio::time::Instant::now();
            let soon = running.add(sandbox("b", "p2", "10.0.0.202"), 3000).await;
            let never = running.add(sandbox("c", "p3", "10.0.0.203"), 1000).await;
            let gone = running.add(sandbox("d", "p4", "10.0.0.204"), 60_000).await;
            drop(gone);
            assert!(reason(never.await.unwrap()).contains("default/p3"));
            assert_eq!(start.elapsed(), Duration::from_secs(1));
            running.change(new_pod(2)).await;
            assert_eq!(soon.await.unwrap(), Response::Done);
            assert_eq!(start.elapsed(), Duration::from_secs(1));
            // The one whose patience was over is announced all the same.
            running.change(new_pod(3)).await;
            turn(200).await;
            assert!(running.isolates("10.0.0.203"));
        });
    }

    #[test]
    fn a_failed_apply_leaves_them_waiting_and_is_not_hurried() {
        with_paused_clock(async {
            let running = Running::start(OnExit::Keep);
            running.first_state().await;
            running.change((2..5).flat_map(new_pod).collect()).await;
            turn(200).await;
            let before = running.transactions();
            // The difference, everything, and everything once more.
            for _ in 0..3 {
                running.backend.0.borrow_mut().fail_next();
            }
            let first = running.add(sandbox("a", "p2", "10.0.0.202"), 60_000).await;
            turn(10).await;
            let mut second = running.add(sandbox("b", "p3", "10.0.0.203"), 60_000).await;
            let impatient = running.add(sandbox("c", "p4", "10.0.0.204"), 20).await;
            let said = reason(impatient.await.unwrap());
            assert!(said.contains("refused"), "{said}");
            assert_eq!((running.transactions(), running.status.in_sync.get()), (before, 0));
            assert_eq!(running.status.apply_errors.get(), 1, "a request does not shorten the pause");
            assert!(second.try_recv().is_err());
            let report = running.status.report();
            assert!(!report.in_sync && report.lag_seconds > 0.0, "{report:?}");
            assert!(report.conditions.iter().any(|condition| condition.now && condition.about == "packet filter"));
            assert_eq!(first.await.unwrap(), Response::Done);
            assert_eq!(second.await.unwrap(), Response::Done);
            let report = running.status.report();
            assert!(report.in_sync && report.conditions.iter().all(|condition| !condition.now), "{report:?}");
        });
    }

    #[test]
    fn checks_are_answered_at_once() {
        with_paused_clock(async {
            let running = Running::start(OnExit::Keep);
            let check = |name, address| running.query(Request::CheckSandbox { sandbox: sandbox("a", name, address) });
            let start = tokio::time::Instant::now();
            assert!(reason(check("p1", "10.0.0.1").await.await.unwrap()).contains("no complete state"));
            running.first_state().await;
            assert_eq!(check("p1", "10.0.0.1").await.await.unwrap(), Response::Done);
            running.change(objects(&pod(2))).await;
            assert_eq!(check("p2", "10.0.0.2").await.await.unwrap(), Response::Done, "what waits is written");
            assert!(reason(check("p2", "10.0.0.9").await.await.unwrap()).contains("10.0.0.9"));
            assert!(start.elapsed() <= Duration::from_millis(1), "{:?}", start.elapsed());
        });
    }

    #[test]
    fn announcements_outlive_the_agent_but_not_their_pod() {
        with_paused_clock(async {
            let run = tempfile::tempdir().unwrap();
            let with_uid = |id: &str, uid: &str, address: &str| Sandbox {
                uid: Some(uid.to_owned()),
                ..sandbox(id, "p1", address)
            };
            announcements::write(run.path(), &with_uid("a", "u1", "10.0.0.201")).unwrap();
            announcements::write(run.path(), &with_uid("b", "u2", "10.0.0.202")).unwrap();
            std::fs::write(run.path().join("sandboxes/c.json"), "{").unwrap();
            let running = Running::start_in(OnExit::Keep, Some(run.path().to_owned()));
            let mut all = objects(&pod(1).replace("name: p1", "name: p1, uid: u1"));
            let key = all[1].key();
            all.extend(objects(&policy("deny")));
            running.events.send(update(vec![Change::Reset(all)])).await.unwrap();
            turn(1).await;
            // With the very first program, and though nobody has asked this agent.
            assert_eq!(running.transactions(), 1);
            assert!(running.isolates("10.0.0.201") && !running.isolates("10.0.0.1"));
            running.events.send(update(vec![Change::Delete(key)])).await.unwrap();
            turn(200).await;
            let left = |run: &std::path::Path| {
                let announced = announcements::read_all(run).unwrap().sandboxes.into_iter();
                announced.map(|sandbox| sandbox.id).collect::<Vec<_>>()
            };
            assert_eq!(left(run.path()), ["b"]);
            let answer = running.query(Request::DeleteSandbox { id: "b".to_owned() }).await;
            assert_eq!(answer.await.unwrap(), Response::Done);
            assert!(left(run.path()).is_empty());
            assert_eq!(running.report().await.counts.sandboxes, 0);
        });
    }

    #[test]
    fn the_loop_goes_on_when_nobody_can_ask_any_more() {
        with_paused_clock(async {
            let mut running = Running::start(OnExit::Keep);
            running.queries = channel(1).0;
            running.first_state().await;
            assert_eq!(running.transactions(), 1);
            running.end().await.unwrap();
        });
    }

    #[test]
    fn troubles_are_told_and_counted() {
        with_paused_clock(async {
            let mut running = Running::start(OnExit::Keep);
            let broken = policy("bad").replace("podSelector: {}", "podSelector: {}, ingress: [{form: []}]");
            let manifests = parse(&[Source { name: "test", text: broken.as_bytes() }]);
            let first = vec![Change::Reset(manifests.objects)];
            running.events.send(Event::Update(Update::new(first, manifests.diagnostics))).await.unwrap();
            turn(1).await;
            let trouble = running.troubles.try_recv().unwrap();
            assert_eq!((trouble.policy.to_string().as_str(), trouble.kind), ("default/bad", TroubleKind::Invalid));
            assert_eq!(running.report().await.counts.invalid_policies, 1);
            running
                .backend
                .1
                .borrow_mut()
                .push(ringfence_dataplane::Remark { policy: Some(trouble.policy), text: "is too long".to_owned() });
            running.backend.0.borrow_mut().fail_next();
            running.change(objects(&pod(2))).await;
            turn(200).await;
            let trouble = running.troubles.try_recv().unwrap();
            assert_eq!((trouble.kind, trouble.message.as_str()), (TroubleKind::NotProgrammed, "is too long"));
            // Mended: the source has nothing to say any more.
            running.events.send(update(Vec::new())).await.unwrap();
            turn(1).await;
            assert!(running.troubles.try_recv().is_err());
            assert_eq!(running.report().await.counts.invalid_policies, 0);
        });
    }
}
