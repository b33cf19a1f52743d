//! Asking the agent, patiently and never for longer than that.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ringfence_control::{ControlError, Request, Response, Sandbox, ask, socket_path};

/// How much later than it was asked to the agent may answer.
const GRACE: Duration = Duration::from_secs(1);
/// How long after a no it is asked again.
const PAUSE: Duration = Duration::from_millis(50);

/// The agent of this node.
pub(crate) struct Agent {
    socket: PathBuf,
}

impl Agent {
    pub(crate) fn of(run_directory: &Path) -> Agent {
        Agent { socket: socket_path(run_directory) }
    }

    /// Waits until the sandbox is isolated, or says why it is not.
    pub(crate) fn add(&self, sandbox: &Sandbox, patience: Duration) -> Result<(), String> {
        let request = |rest: Duration| Request::AddSandbox {
            sandbox: sandbox.clone(),
            patience_ms: u64::try_from(rest.as_millis()).unwrap_or(u64::MAX),
        };
        self.until(patience, request, |answer| answer.and_then(done))
    }

    /// Waits until the sandbox is isolated, if there is an agent.
    pub(crate) fn check(&self, sandbox: &Sandbox, patience: Duration) -> Result<(), String> {
        let request = |_| Request::CheckSandbox { sandbox: sandbox.clone() };
        self.until(patience, request, |answer| answer.map_err(|not| Not::Ever(not.reason())).and_then(done))
    }

    /// Tells that a sandbox is gone. Whether the agent has heard it: one that is not there reads the files when it starts.
    pub(crate) fn delete(&self, id: &str) -> Result<(), String> {
        let request = Request::DeleteSandbox { id: id.to_owned() };
        self.ask(&request, GRACE).and_then(done).map_err(Not::reason)
    }

    /// Waits until pods can be added.
    pub(crate) fn ready(&self, patience: Duration) -> Result<(), String> {
        self.until(
            patience,
            |_| Request::Status,
            |answer| match answer? {
                Response::Status(status) if status.ready => Ok(()),
                Response::Status(_) => Err(Not::Yet("the agent has not enforced anything yet".to_owned())),
                other => done(other),
            },
        )
    }

    /// Asks again and again until the answer is yes or final.
    fn until(
        &self,
        patience: Duration,
        request: impl Fn(Duration) -> Request,
        judge: impl Fn(Result<Response, Not>) -> Result<(), Not>,
    ) -> Result<(), String> {
        let start = Instant::now();
        loop {
            let rest = patience.saturating_sub(start.elapsed());
            match judge(self.ask(&request(rest), rest + GRACE)) {
                Ok(()) => return Ok(()),
                Err(Not::Ever(reason)) => return Err(reason),
                Err(Not::Yet(reason)) if start.elapsed() + PAUSE >= patience => return Err(reason),
                Err(Not::Yet(_)) => thread::sleep(PAUSE),
            }
        }
    }

    /// One question. On a thread of its own, because connecting to a Unix socket whose owner hangs has no time-out.
    fn ask(&self, request: &Request, patience: Duration) -> Result<Response, Not> {
        let (sender, answer) = mpsc::channel();
        let (socket, request) = (self.socket.clone(), request.clone());
        let asked = thread::Builder::new().name("ask".to_owned()).spawn(move || {
            // Nobody listens any more when it took too long.
            let _ = sender.send(ask(&socket, &request, patience));
        });
        asked.map_err(|error| Not::Yet(format!("cannot ask the agent: {error}")))?;
        match answer.recv_timeout(patience + GRACE) {
            Ok(Ok(response)) => Ok(response),
            // Another program, or another protocol: it will not answer otherwise next time.
            Ok(Err(error @ ControlError::Unreadable(_))) => Err(Not::Ever(error.to_string())),
            // An agent that is being replaced is away for a moment.
            Ok(Err(error)) => Err(Not::Yet(error.to_string())),
            Err(_) => Err(Not::Yet("the agent does not answer".to_owned())),
        }
    }
}

/// Why the answer is not yes.
enum Not {
    /// It may be soon.
    Yet(String),
    /// It will not be.
    Ever(String),
}

impl Not {
    fn reason(self) -> String {
        match self {
            Not::Yet(reason) | Not::Ever(reason) => reason,
        }
    }
}

fn done(response: Response) -> Result<(), Not> {
    match response {
        Response::Done => Ok(()),
        Response::NotYet { reason } => Err(Not::Yet(reason)),
        Response::Error { message } => Err(Not::Ever(message)),
        Response::Status(_) => Err(Not::Ever("the agent's answer is one to another question".to_owned())),
    }
}
