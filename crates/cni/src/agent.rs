//! Asking the agent, patiently and never for longer than that.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ringfence_control::{ControlError, Request, Response, Sandbox, ask, socket_path};

/// How much later than it was asked to the agent may answer.
const GRACE: Duration = Duration::from_millis(500);
/// How long after a failure it is asked again. An agent that is being replaced is away for a moment.
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
        self.until_done(patience, true, request)
    }

    /// Waits until the sandbox is isolated, if there is an agent.
    pub(crate) fn check(&self, sandbox: &Sandbox, patience: Duration) -> Result<(), String> {
        self.until_done(patience, false, |_| Request::CheckSandbox { sandbox: sandbox.clone() })
    }

    /// Tells that a sandbox is gone. Whether the agent has heard it: one that is not there reads the files when it starts.
    pub(crate) fn delete(&self, id: &str) -> Result<(), String> {
        match self.ask(&Request::DeleteSandbox { id: id.to_owned() }, GRACE) {
            Ok(response) => done(response),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Whether pods can be added.
    pub(crate) fn ready(&self, patience: Duration) -> Result<(), String> {
        match self.ask(&Request::Status, patience) {
            Ok(Response::Status(status)) if status.ready => Ok(()),
            Ok(Response::Status(_)) => Err("it has not enforced anything yet".to_owned()),
            Ok(response) => done(response),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Asks again and again. An agent that is away is waited for if `wait_for_agent` says so.
    fn until_done(
        &self,
        patience: Duration,
        wait_for_agent: bool,
        request: impl Fn(Duration) -> Request,
    ) -> Result<(), String> {
        let start = Instant::now();
        loop {
            let rest = patience.saturating_sub(start.elapsed());
            let reason = match self.ask(&request(rest), rest + GRACE) {
                Ok(Response::Done) => return Ok(()),
                Ok(Response::NotYet { reason }) => reason,
                // It will not answer otherwise next time.
                Ok(response) => return done(response),
                Err(error @ ControlError::Unreadable(_)) => return Err(error.to_string()),
                Err(error) if wait_for_agent => error.to_string(),
                Err(error) => return Err(error.to_string()),
            };
            if start.elapsed() + PAUSE >= patience {
                return Err(reason);
            }
            thread::sleep(PAUSE);
        }
    }

    /// One question. On a thread of its own, because connecting to a Unix socket whose owner hangs has no time-out.
    fn ask(&self, request: &Request, patience: Duration) -> Result<Response, ControlError> {
        let (sender, answer) = mpsc::channel();
        let (socket, request) = (self.socket.clone(), request.clone());
        thread::Builder::new().name("ask".to_owned()).spawn(move || {
            // Nobody listens any more when it took too long.
            let _ = sender.send(ask(&socket, &request, patience));
        })?;
        answer.recv_timeout(patience + GRACE).unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
    }
}

fn done(response: Response) -> Result<(), String> {
    match response {
        Response::Done => Ok(()),
        Response::NotYet { reason: what } | Response::Error { message: what } => Err(what),
        Response::Status(_) => Err("the agent's answer is one to another question".to_owned()),
    }
}
