//! The loop and the backend's alarm: heeded at once, after what is to be written, and not too often.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::cell::RefCell;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ringfence_agent::run::{Inputs, OnExit, Settings, run};
use ringfence_agent::source::{CAPACITY, Event, Update};
use ringfence_agent::status::Status;
use ringfence_agent::succession::Succession;
use ringfence_agent::{Agent, Change};
use ringfence_compile::Program;
use ringfence_dataplane::{Applied, ApplyError, Backend, Drift, ProgramDiff};
use tokio::sync::mpsc::{Sender, channel};
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep};

/// Takes down what it is asked to do. Whatever can be read from its alarm is harm.
struct Guarded {
    alarm: UnixStream,
    calls: Rc<RefCell<Vec<(Instant, &'static str)>>>,
}

impl Guarded {
    fn called(&self, what: &'static str) {
        self.calls.borrow_mut().push((Instant::now(), what));
    }
}

impl Backend for Guarded {
    type Demand = Program;

    fn name(&self) -> &'static str {
        "guarded"
    }

    fn replace(&mut self, _: &Program) -> Result<Applied, ApplyError> {
        self.called("replace");
        Ok(Applied::default())
    }

    fn update(&mut self, _: &Program, _: &Program, _: &ProgramDiff) -> Result<Applied, ApplyError> {
        self.called("update");
        Ok(Applied::default())
    }

    fn alarm(&self) -> Option<BorrowedFd<'_>> {
        Some(self.alarm.as_fd())
    }

    fn heed(&mut self, _: &Program) -> Result<Option<Drift>, ApplyError> {
        let mut bytes = [0; 4096];
        let harm = self.alarm.read(&mut bytes).is_ok();
        self.called(if harm { "mend" } else { "heed" });
        Ok(harm.then(|| Drift("harm".to_owned())))
    }

    fn cleanup(&mut self) -> Result<(), ApplyError> {
        Ok(())
    }
}

/// What the backend was asked to do, and after how many milliseconds.
type Calls = Vec<(u128, &'static str)>;

/// Runs the loop while `story` does things: it gets what rings the alarm, and what takes events.
fn calls_during<F: Future<Output = ()>>(story: impl FnOnce(UnixStream, Sender<Event>) -> F) -> Calls {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let (alarm, ringer) = UnixStream::pair().unwrap();
        alarm.set_nonblocking(true).unwrap();
        let calls = Rc::new(RefCell::new(Vec::new()));
        let backend = Guarded { alarm, calls: calls.clone() };
        let (events, receiver) = channel(CAPACITY);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let settings = Settings { resync: Duration::from_secs(3600), on_exit: OnExit::Keep, run_directory: None };
        let task = tokio::task::spawn_local(async move {
            let status = Arc::new(Status::default());
            let stop = async { stopped.await.unwrap_or(()) };
            let agent = Agent::new("node".into(), backend);
            run(agent, Inputs::new(receiver), stop, settings, Succession::none(), &status).await
        });
        let start = Instant::now();
        story(ringer, events.clone()).await;
        stop.send(()).unwrap();
        task.await.unwrap().unwrap();
        calls.take().into_iter().map(|(when, what)| ((when - start).as_millis(), what)).collect()
    })
}

fn first_state() -> Event {
    Event::Update(Update::new(vec![Change::Reset(Vec::new())], Vec::new()))
}

/// The paused clock jumps whenever all wait; a file that becomes readable is seen before that, but not by each of its steps.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    sleep(Duration::from_millis(1)).await;
}

#[test]
fn harm_is_mended_at_once_and_once() {
    let calls = calls_during(|mut ringer, events| async move {
        // Nothing is in force yet, so there is nothing to mend.
        ringer.write_all(b"!").unwrap();
        settle().await;
        events.send(first_state()).await.unwrap();
        settle().await;
        sleep(Duration::from_secs(20)).await;
        ringer.write_all(b"!").unwrap();
        settle().await;
        sleep(Duration::from_secs(20)).await;
    });
    let what: Vec<&str> = calls.iter().map(|(_, what)| *what).collect();
    // The backend may have been deaf while it mended.
    assert_eq!(what, ["replace", "mend", "heed", "mend", "heed"]);
    assert!(calls[3].0 - calls[1].0 < 21_000, "{calls:?}");
}

#[test]
fn who_fights_is_answered_ever_more_slowly() {
    let calls = calls_during(|mut ringer, events| async move {
        events.send(first_state()).await.unwrap();
        for _ in 0..1000 {
            ringer.write_all(b"!").unwrap();
            settle().await;
            sleep(Duration::from_millis(4)).await;
        }
    });
    let mends: Vec<u128> = calls.iter().filter(|(_, what)| *what == "mend").map(|(when, _)| *when).collect();
    let pauses: Vec<u128> = mends.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.len() > 5, "{calls:?}");
    for (pause, least) in pauses.iter().zip([100, 200, 400].into_iter().chain(std::iter::repeat(800))) {
        assert!((least..least + 100).contains(pause), "{pauses:?}");
    }
}
