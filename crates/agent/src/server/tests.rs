use std::io::{Read as _, Write as _};
use std::time::Instant;

use ringfence_control::{ControlError, Sandbox, ask};

use super::*;

/// A socket whose queries are answered with Done by a thread; all that were asked are returned when it goes.
struct Served {
    directory: tempfile::TempDir,
    _socket: ControlSocket,
}

fn served() -> Served {
    let directory = tempfile::tempdir().unwrap();
    let mut socket = ControlSocket::open(directory.path()).unwrap();
    let mut queries = socket.serve(&Arc::new(Status::default())).unwrap();
    thread::spawn(move || {
        while let Some(query) = queries.blocking_recv() {
            query.answer.send(Response::Done).unwrap();
        }
    });
    Served { directory, _socket: socket }
}

impl Served {
    fn ask(&self, request: &Request) -> Result<Response, ControlError> {
        ask(&socket_path(self.directory.path()), request, Duration::from_secs(20))
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(socket_path(self.directory.path())).unwrap()
    }

    fn says(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // It may hang up before it has read everything.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }
}

fn sandbox(id: &str, address: &str) -> Sandbox {
    Sandbox {
        id: id.to_owned(),
        namespace: "default".to_owned(),
        name: "web".to_owned(),
        uid: None,
        addresses: vec![address.parse().unwrap()],
    }
}

#[test]
fn answers_are_those_of_the_loop_or_its_status() {
    let served = served();
    assert!(matches!(served.ask(&Request::Status), Ok(Response::Status(_))));
    assert_eq!(served.ask(&Request::DeleteSandbox { id: "a".to_owned() }).unwrap(), Response::Done);
    let add = |sandbox| served.ask(&Request::AddSandbox { sandbox, patience_ms: 0 }).unwrap();
    assert_eq!(add(sandbox("a", "10.0.0.1")), Response::Done);
    for (id, address) in [("../a", "10.0.0.1"), ("a", "127.0.0.1")] {
        assert!(matches!(add(sandbox(id, address)), Response::Error { .. }), "{id} {address}");
    }
}

#[test]
fn junk_is_answered_and_forgotten() {
    let served = served();
    let long = vec![b'x'; usize::try_from(MAX_REQUEST_BYTES).unwrap() * 4];
    let junk: [(&[u8], &str); 5] = [
        (b"GET / HTTP/1.1\r\n", "cannot be read"),
        (b"{\"request\":\"fly\"}\n", "cannot be read"),
        (b"\xff\xfe\n", "cannot be read"),
        (b"\n", "cannot be read"),
        (&long, ""),
    ];
    for (bytes, expected) in junk {
        let said = served.says(bytes);
        assert!(said.contains(expected), "{said}");
    }
    assert!(matches!(served.ask(&Request::Status), Ok(Response::Status(_))));
}

#[test]
fn silent_clients_and_many_of_them_hold_nobody_up() {
    let served = served();
    let silent: Vec<UnixStream> = (0..300).map(|_| served.connect()).collect();
    for stream in silent.iter().take(100) {
        (&mut &*stream).write_all(b"{\"request\":").unwrap();
    }
    let start = Instant::now();
    thread::scope(|scope| {
        for number in 0..100 {
            let served = &served;
            scope.spawn(move || {
                let sandbox = sandbox(&format!("a{number}"), "10.0.0.1");
                assert_eq!(served.ask(&Request::CheckSandbox { sandbox }).unwrap(), Response::Done);
            });
        }
    });
    assert!(start.elapsed() < PATIENCE, "they waited for the silent ones");
}

#[test]
fn only_its_owner_can_ask() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("some/where");
    let socket = ControlSocket::open(&run).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!((mode(&run), mode(&socket_path(&run))), (0o700, 0o600));
    drop(socket);
    assert!(!socket_path(&run).exists());
    fs::set_permissions(&run, Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(ControlSocket::open(&run), Err(ServerError::Insecure(_))));
    assert_eq!(mode(&run), 0o777, "it is not ours to change");
}

#[test]
fn a_stale_socket_is_replaced_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path();
    let path = socket_path(run);
    // What a process that was killed leaves.
    drop(UnixListener::bind(&path).unwrap());
    let socket = ControlSocket::open(run).unwrap();
    assert!(UnixStream::connect(&path).is_ok());
    let error = ControlSocket::open(run).unwrap_err();
    assert!(matches!(error, ServerError::AnotherAgent(_)), "{error}");
    assert!(UnixStream::connect(&path).is_ok(), "the living one keeps its socket");
    drop(socket);
    let other = UnixListener::bind(&path).unwrap();
    assert!(matches!(ControlSocket::open(run), Err(ServerError::AnotherAgent(_))));
    drop(other);
    fs::remove_file(&path).unwrap();
    fs::write(&path, "mine").unwrap();
    assert!(matches!(ControlSocket::open(run), Err(ServerError::NotASocket(_))));
    assert_eq!(fs::read(&path).unwrap(), b"mine");
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/nowhere", &path).unwrap();
    assert!(matches!(ControlSocket::open(run), Err(ServerError::NotASocket(_))));
    let file = run.join("file");
    fs::write(&file, "").unwrap();
    let error = ControlSocket::open(&file).unwrap_err();
    assert!(matches!(error, ServerError::Directory { .. }), "{error}");
    let long = run.join("x".repeat(120));
    assert!(matches!(ControlSocket::open(&long), Err(ServerError::Listen { .. })));
}
