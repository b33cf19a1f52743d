//! The agent's control socket: programs on the node ask here, see [`ringfence_control`].
//!
//! It is served from a thread of its own, so that clients that are slow, silent or many do not touch the loop, and so that
//! the agent can say how it is while the loop is busy.

use std::fs::{self, File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ringfence_control::{MAX_REQUEST_BYTES, Request, Response, make_run_directory, socket_path};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tracing::debug;

use crate::status::Status;

/// How long a client may take to ask, and to take its answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many clients are served at once. Others wait until it is their turn.
const MOST_CLIENTS: usize = 512;
/// How many queries wait for the loop.
const CAPACITY: usize = 64;
/// Held by the agent that serves the directory's socket, as long as its process lives.
const LOCK_NAME: &str = "agent.lock";
/// The socket until it may be asked. Not longer than its final name: the kernel allows about 100 bytes.
const NEW_SOCKET_NAME: &str = "agent.new";

/// A request that only the loop can answer.
#[derive(Debug)]
pub struct Query {
    /// What is asked.
    pub request: Request,
    /// Who hears the answer.
    pub answer: oneshot::Sender<Response>,
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The directory cannot be made or used.
    #[error("cannot use the run directory {}: {source}", path.display())]
    Directory {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others could put a socket or announcements of their own into it.
    #[error("others may write to the run directory {}: it must belong to root or the agent's user, without write permission \
             for others (chmod go-w)", .0.display())]
    Insecure(PathBuf),
    /// A living agent has the directory.
    #[error("another agent answers in {}", .0.display())]
    AnotherAgent(PathBuf),
    /// There is something, and it is not ours to remove.
    #[error("{} exists and is not a socket: remove it, or choose another --run-dir", .0.display())]
    NotASocket(PathBuf),
    /// The socket cannot be made.
    #[error("cannot listen on {}: {source}", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The agent's socket. It goes when this is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    listener: Option<UnixListener>,
    /// Locked.
    _lock: File,
}

impl ControlSocket {
    /// Makes the directory (mode 0700) if there is none, and in it the socket (mode 0600). One that a dead agent has left is
    /// replaced.
    ///
    /// # Errors
    /// See [`ServerError`]. Nothing that others have made was changed.
    pub fn open(run_directory: &Path) -> Result<ControlSocket, ServerError> {
        let path = socket_path(run_directory);
        let unusable = |source| ServerError::Directory { path: run_directory.to_owned(), source };
        make_run_directory(run_directory).map_err(unusable)?;
        let metadata = fs::metadata(run_directory).map_err(unusable)?;
        let is_trusted = [0, rustix::process::geteuid().as_raw()].contains(&metadata.uid());
        if !is_trusted || metadata.mode() & 0o022 != 0 {
            return Err(ServerError::Insecure(run_directory.to_owned()));
        }
        let lock = lock(run_directory)?;
        match fs::symlink_metadata(&path) {
            Ok(metadata) if !metadata.file_type().is_socket() => return Err(ServerError::NotASocket(path)),
            // It holds no lock, but somebody answers.
            Ok(_) if UnixStream::connect(&path).is_ok() => {
                return Err(ServerError::AnotherAgent(run_directory.to_owned()));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(unusable(error)),
        }
        // Under its name it is there for its owner only, from the beginning.
        let new = run_directory.join(NEW_SOCKET_NAME);
        let _ = fs::remove_file(&new);
        let listener = UnixListener::bind(&new).and_then(|listener| {
            fs::set_permissions(&new, Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            fs::rename(&new, &path)?;
            Ok(listener)
        });
        match listener {
            Ok(listener) => Ok(ControlSocket { path, listener: Some(listener), _lock: lock }),
            Err(source) => Err(ServerError::Listen { path, source }),
        }
    }

    /// Answers from a thread of its own, as long as the process lives: how the agent is from `status`, all else from who
    /// takes the queries.
    ///
    /// # Errors
    /// There is no thread or runtime to be had.
    pub fn serve(&mut self, status: &Arc<Status>) -> io::Result<mpsc::Receiver<Query>> {
        let (queries, receiver) = mpsc::channel(CAPACITY);
        let Some(listener) = self.listener.take() else { return Err(io::ErrorKind::NotConnected.into()) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _guard = runtime.enter();
            tokio::net::UnixListener::from_std(listener)?
        };
        let server = Server { status: status.clone(), queries };
        thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || runtime.block_on(accept(listener, Arc::new(server))))?;
        Ok(receiver)
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // While the lock is held nobody else has put another one there.
        let _ = fs::remove_file(&self.path);
    }
}

fn lock(run_directory: &Path) -> Result<File, ServerError> {
    let path = run_directory.join(LOCK_NAME);
    let unusable = |source| ServerError::Directory { path: run_directory.to_owned(), source };
    let file = File::options().write(true).create(true).truncate(false).open(path).map_err(unusable)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(ServerError::AnotherAgent(run_directory.to_owned())),
        Err(TryLockError::Error(error)) => Err(unusable(error)),
    }
}

struct Server {
    status: Arc<Status>,
    queries: mpsc::Sender<Query>,
}

async fn accept(listener: tokio::net::UnixListener, server: Arc<Server>) {
    let turns = Arc::new(Semaphore::new(MOST_CLIENTS));
    loop {
        // It is never closed.
        let Ok(turn) = turns.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of files, most likely.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let server = server.clone();
        tokio::spawn(async move {
            if let Err(error) = server.serve(stream).await {
                debug!("a client of the control socket: {error}");
            }
            drop(turn);
        });
    }
}

impl Server {
    /// One request, one answer.
    async fn serve(&self, mut stream: tokio::net::UnixStream) -> io::Result<()> {
        let (reader, mut writer) = stream.split();
        let mut line = Vec::new();
        timeout(PATIENCE, BufReader::new(reader.take(MAX_REQUEST_BYTES)).read_until(b'\n', &mut line)).await??;
        if line.is_empty() {
            return Ok(());
        }
        let response = self.respond(&line).await;
        let mut line = serde_json::to_vec(&response)?;
        line.push(b'\n');
        timeout(PATIENCE, writer.write_all(&line)).await?
    }

    async fn respond(&self, line: &[u8]) -> Response {
        let error = |message: String| Response::Error { message };
        if line.last() != Some(&b'\n') {
            return error(format!("a request is one line of at most {MAX_REQUEST_BYTES} bytes, its newline included"));
        }
        let request = match serde_json::from_slice(line) {
            Ok(request) => request,
            Err(reason) => return error(format!("the request cannot be read: {reason}")),
        };
        let checked = match &request {
            Request::Status => return Response::Status(Box::new(self.status.report())),
            Request::AddSandbox { sandbox, .. } | Request::CheckSandbox { sandbox } => sandbox.check(),
            Request::DeleteSandbox { .. } => Ok(()),
        };
        if let Err(reason) = checked {
            return error(reason.to_string());
        }
        let (answer, answered) = oneshot::channel();
        // The loop has ended, or ends now.
        let stopping = || error("the agent is stopping".to_owned());
        if self.queries.send(Query { request, answer }).await.is_err() {
            return stopping();
        }
        answered.await.unwrap_or_else(|_| stopping())
    }
}

#[cfg(test)]
mod tests;
