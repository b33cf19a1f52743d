//! Pods that a node routes, each a network namespace of its own.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};

/// What became of an attempt to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Open,
    Refused,
    Silence,
}
use Answer::{Open, Refused, Silence};

/// A thread in a network namespace of its own.
pub(crate) struct Pod(Sender<Box<dyn FnOnce() + Send>>);

impl Pod {
    /// The `number`th pod of the node whose namespace the calling thread is in.
    pub(crate) fn new(number: u8) -> Pod {
        let (work, todo) = channel::<Box<dyn FnOnce() + Send>>();
        let (tell, told) = channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tell.send(format!("/proc/{}/task/{}/ns/net", std::process::id(), nix::unistd::gettid())).unwrap();
            todo.into_iter().for_each(|work| work());
        });
        let namespace = told.recv().unwrap();
        ip(&format!("link add pod{number} type veth peer name eth0 netns {namespace}"));
        ip(&format!("addr add 10.0.{number}.254/24 dev pod{number}"));
        ip(&format!("addr add fd00:{number}::fe/64 dev pod{number} nodad"));
        ip(&format!("link set pod{number} up"));
        let pod = Pod(work);
        pod.inside(move || {
            ip("link set lo up");
            ip(&format!("addr add 10.0.{number}.1/24 dev eth0"));
            ip(&format!("addr add fd00:{number}::1/64 dev eth0 nodad"));
            ip("link set eth0 up");
            ip(&format!("route add default via 10.0.{number}.254"));
            ip(&format!("-6 route add default via fd00:{number}::fe"));
        });
        pod
    }

    pub(crate) fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = channel();
        self.0.send(Box::new(move || tell.send(work()).unwrap())).unwrap();
        told.recv().unwrap()
    }

    /// The answers over IPv4 and IPv6.
    pub(crate) fn connect(&self, to: [&'static str; 2], port: u16) -> [Answer; 2] {
        self.inside(move || connect(to, port))
    }
}

/// The answers to the calling thread.
pub(crate) fn connect(to: [&'static str; 2], port: u16) -> [Answer; 2] {
    to.map(|address| {
        let address = SocketAddr::new(address.parse::<IpAddr>().unwrap(), port);
        match TcpStream::connect_timeout(&address, Duration::from_millis(700)) {
            Ok(_) => Open,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Refused,
            Err(error) if error.kind() == ErrorKind::TimedOut => Silence,
            Err(error) => panic!("{address}: {error}"),
        }
    })
}

/// Runs ip in the network namespace of the calling thread.
pub(crate) fn ip(command: &str) {
    let arguments: Vec<&str> = command.split(' ').collect();
    let output = Command::new("ip").args(arguments).output().expect("install the package iproute2");
    assert!(output.status.success(), "ip {command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Accepts connections from now on.
pub(crate) fn listen(port: u16) {
    let listener = TcpListener::bind(("::", port)).unwrap();
    thread::spawn(move || listener.incoming().for_each(drop));
}

/// Makes a router of the namespace that the calling thread is in.
pub(crate) fn forward() {
    for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/net/{switch}"), "1").unwrap();
    }
}
