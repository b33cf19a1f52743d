use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{Request, Response};

/// No answer is longer, in bytes, its newline included.
pub const MAX_BYTES: u64 = 1 << 20;
/// No request is longer, in bytes, its newline included: a pod has few addresses.
pub const MAX_REQUEST_BYTES: u64 = 1 << 14;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens there.
    #[error("no agent answers at {}: {source}", path.display())]
    NoAgent {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The agent took the request and did not answer, or not in time.
    #[error("the agent did not answer: {0}")]
    NoAnswer(#[from] io::Error),
    /// The answer makes no sense: another program listens there, or a release that is too different.
    #[error("the agent's answer cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
}

/// Asks the agent that listens at `socket`. Waits for each of the connection's steps no longer than `patience`.
///
/// # Errors
/// There is no agent, no answer in time, or none that can be read.
pub fn ask(socket: &Path, request: &Request, patience: Duration) -> Result<Response, ControlError> {
    let no_agent = |source| ControlError::NoAgent { path: socket.to_owned(), source };
    let mut stream = UnixStream::connect(socket).map_err(no_agent)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = Vec::new();
    BufReader::new(stream.take(MAX_BYTES)).read_until(b'\n', &mut answer)?;
    if answer.is_empty() {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(serde_json::from_slice(&answer)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// Answers one request with `answer`, whatever it is; gives the request.
    fn agent(path: &Path, answer: &'static [u8]) -> thread::JoinHandle<String> {
        let listener = UnixListener::bind(path).unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = String::new();
            BufReader::new(&stream).read_line(&mut request).unwrap();
            stream.write_all(answer).unwrap();
            request
        })
    }

    #[test]
    fn a_request_is_a_line_and_so_is_the_answer() {
        let directory = tempfile::tempdir().unwrap();
        let socket = crate::socket_path(directory.path());
        let asked = agent(&socket, b"{\"response\":\"not_yet\",\"reason\":\"later\",\"new\":1}\n");
        let request = Request::DeleteSandbox { id: "a1".to_owned() };
        let response = ask(&socket, &request, Duration::from_secs(5)).unwrap();
        assert_eq!(response, Response::NotYet { reason: "later".to_owned() });
        assert_eq!(asked.join().unwrap(), "{\"request\":\"delete_sandbox\",\"id\":\"a1\"}\n");
    }

    #[test]
    fn no_agent_no_answer_no_sense() {
        let directory = tempfile::tempdir().unwrap();
        let ask = |path: &Path| ask(path, &Request::Status, Duration::from_secs(5)).unwrap_err();
        assert!(matches!(ask(&directory.path().join("none")), ControlError::NoAgent { .. }));
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(ask(&file), ControlError::NoAgent { .. }));
        for (name, answer) in [("silent", b"".as_slice()), ("junk", b"HTTP/1.1 400 Bad Request\n")] {
            let socket = directory.path().join(name);
            let agent = agent(&socket, answer);
            let error = ask(&socket);
            assert_eq!(matches!(error, ControlError::NoAnswer(_)), name == "silent", "{error}");
            assert_eq!(matches!(error, ControlError::Unreadable(_)), name == "junk", "{error}");
            agent.join().unwrap();
        }
    }
}
