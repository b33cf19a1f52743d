//! Packets that no state allows, at full speed, and connections that every state allows, all the time.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use ringfence_lab::NetNs;
use socket2::{Domain, Socket, Type};

use crate::PATIENCE;
use crate::site::{BY_BLOCK, BY_DIRECTION, BY_LABEL, OPEN, Site, WEB};

/// So many sockets of a flood stay open, to be told that they were refused.
const RECENT: usize = 64;
/// One in so many forbidden packets opens a TCP connection.
const TCP_SHARE: usize = 8;

/// What has been sent and what has become of it.
#[derive(Default)]
pub(crate) struct Traffic {
    done: AtomicBool,
    /// Nothing is sent but over connections that are open.
    paused: AtomicBool,
    /// Who is opening connections or flooding, though not if paused.
    busy: AtomicUsize,
    datagrams: AtomicUsize,
    openings: AtomicUsize,
    refused: AtomicUsize,
    exchanges: AtomicUsize,
    /// The longest time that an exchange took, in microseconds.
    longest: AtomicUsize,
    connections: AtomicUsize,
    /// New connections that were refused though all states allow them.
    turned_away: AtomicUsize,
    /// What should not have happened.
    faults: Mutex<Vec<String>>,
}

/// Sets the flag also when a test fails.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Counts one that is busy.
struct Busy<'a>(&'a AtomicUsize);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Where forbidden packets would arrive.
struct Closed {
    datagrams: Vec<UdpSocket>,
    openings: Vec<TcpListener>,
}

/// Does `work` while packets fly, says how many, and fails if any forbidden one has passed or any allowed connection has
/// suffered. The policies must be in force.
pub(crate) fn under_load(site: &Site, title: &str, work: impl FnOnce(&Traffic)) {
    let traffic = Traffic::default();
    let closed = Closed::open(site);
    let servers = WEB.map(|address| listener(site.web(), address, OPEN));
    let traffic_ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let _ended = Done(&traffic_ended);
        for server in &servers {
            let ended = &traffic_ended;
            scope.spawn(move || serve(scope, server, ended));
        }
        traffic.fly(site, work);
    });
    let through = closed.arrived();
    let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    println!(
        "{title}: {} forbidden datagrams and {} forbidden TCP connections tried, {} refused aloud, {} through; \
         {} exchanges over 4 allowed connections, the longest took {} ms; {} new allowed connections, {} turned away; {} faults",
        count(&traffic.datagrams),
        count(&traffic.openings),
        count(&traffic.refused),
        through.len(),
        count(&traffic.exchanges),
        count(&traffic.longest) / 1000,
        count(&traffic.connections),
        count(&traffic.turned_away),
        traffic.faults.lock().unwrap().len(),
    );
    assert!(
        through.is_empty(),
        "{} forbidden packets have passed: {:?}",
        through.len(),
        &through[..through.len().min(20)]
    );
    let faults = traffic.faults.into_inner().unwrap();
    assert!(faults.is_empty(), "{} faults: {:#?}", faults.len(), &faults[..faults.len().min(20)]);
    // Known limit of nftables, seen about once in ten thousand under full load: see ARCHITECTURE.md.
    assert!(
        count(&traffic.turned_away) <= 2 + count(&traffic.connections) / 500,
        "too many new connections were turned away"
    );
    assert!(count(&traffic.refused) > 0, "nothing was enforced");
    assert!(count(&traffic.openings) > 0 && count(&traffic.connections) > 0, "too little was tried");
}

impl Traffic {
    /// Returns when `work` is done and all is sent and answered.
    fn fly(&self, site: &Site, work: impl FnOnce(&Traffic)) {
        let web = WEB.map(|address| address.parse::<IpAddr>().unwrap());
        thread::scope(|scope| {
            let _done = Done(&self.done);
            for from in [site.client(), site.outside()] {
                for to in web {
                    scope.spawn(move || self.check(|| self.converse(from, to)));
                    scope.spawn(move || self.check(|| self.connect_anew(from, to)));
                }
            }
            scope.spawn(|| self.flood(site.client(), &[BY_LABEL, BY_DIRECTION]));
            scope.spawn(|| self.flood(site.outside(), &[BY_BLOCK, BY_LABEL]));
            self.wait("packets", || self.datagrams.load(Ordering::Relaxed) > 100);
            self.wait("exchanges", || self.exchanges.load(Ordering::Relaxed) > 100);
            work(self);
            self.without_new_flows(|| ());
        });
    }

    /// Does `work` while nothing is sent, or on its way, but over connections that are open.
    pub(crate) fn without_new_flows(&self, work: impl FnOnce()) {
        self.paused.store(true, Ordering::SeqCst);
        self.wait("pause", || self.busy.load(Ordering::SeqCst) == 0);
        thread::sleep(Duration::from_millis(100));
        work();
        self.paused.store(false, Ordering::Relaxed);
    }

    /// Waits until so many forbidden packets more have been sent.
    pub(crate) fn meets(&self, packets: usize) {
        let before = self.datagrams.load(Ordering::Relaxed);
        self.wait("packets", || self.datagrams.load(Ordering::Relaxed) >= before + packets);
    }

    /// Waits until open connections have been used.
    pub(crate) fn goes_on(&self) {
        let before = self.exchanges.load(Ordering::Relaxed);
        self.wait("exchanges", || self.exchanges.load(Ordering::Relaxed) >= before + 100);
    }

    /// Waits until new connections have been made.
    pub(crate) fn connects(&self) {
        let before = self.connections.load(Ordering::Relaxed);
        self.wait("new connections", || self.connections.load(Ordering::Relaxed) >= before + 20);
    }

    #[track_caller]
    fn wait(&self, what: &str, mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            let faults = self.faults.lock().unwrap();
            assert!(start.elapsed() < PATIENCE, "no {what}: {faults:?}");
            drop(faults);
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn check(&self, work: impl FnOnce() -> Result<(), String>) {
        if let Err(fault) = work() {
            self.faults.lock().unwrap().push(fault);
        }
    }

    /// Permission to send anything new, to be given back.
    fn unless_paused(&self) -> Option<Busy<'_>> {
        self.busy.fetch_add(1, Ordering::SeqCst);
        let busy = Busy(&self.busy);
        (!self.paused.load(Ordering::SeqCst)).then_some(busy)
    }

    fn is_done(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }

    /// New flows to all `ports`, each from a port of its own.
    fn flood(&self, from: &NetNs, ports: &[u16]) {
        let flood = || {
            let mut number = 0_u64;
            let mut recent: VecDeque<Socket> = VecDeque::new();
            while !self.is_done() {
                let Some(_busy) = self.unless_paused() else {
                    recent.clear();
                    thread::sleep(Duration::from_millis(1));
                    continue;
                };
                for address in WEB {
                    for port in ports {
                        number += 1;
                        let to = SocketAddr::new(address.parse().unwrap(), *port);
                        recent.push_back(self.send(to, number));
                    }
                }
                while recent.len() > RECENT {
                    let refused = recent.pop_front().is_some_and(|socket| !matches!(socket.take_error(), Ok(None)));
                    self.refused.fetch_add(usize::from(refused), Ordering::Relaxed);
                }
            }
        };
        from.within(flood).unwrap();
    }

    fn send(&self, to: SocketAddr, number: u64) -> Socket {
        // The numbers of all ports go round.
        let open = (number / 4).is_multiple_of(TCP_SHARE as u64);
        let socket = Socket::new(Domain::for_address(to), if open { Type::STREAM } else { Type::DGRAM }, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        match socket.connect(&to.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(nix::libc::EINPROGRESS) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) => panic!("{to}: {error}"),
        }
        if open {
            self.openings.fetch_add(1, Ordering::Relaxed);
        } else {
            self.datagrams.fetch_add(1, Ordering::Relaxed);
            // What was refused is counted later.
            let _ = socket.send(&number.to_be_bytes());
        }
        socket
    }

    /// One connection, for as long as packets fly.
    fn converse(&self, from: &NetNs, to: IpAddr) -> Result<(), String> {
        let stream = from.within(|| connect(to)).unwrap();
        let mut stream = stream.map_err(|error| format!("a connection to {to} cannot be opened: {error}"))?;
        let mut number = 0_u64;
        while !self.is_done() {
            let start = Instant::now();
            exchange(&mut stream, number)
                .map_err(|error| format!("the open connection to {to} was cut after {number} exchanges: {error}"))?;
            number += 1;
            self.exchanges.fetch_add(1, Ordering::Relaxed);
            let took = usize::try_from(start.elapsed().as_micros()).unwrap();
            self.longest.fetch_max(took, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// One connection after the other.
    fn connect_anew(&self, from: &NetNs, to: IpAddr) -> Result<(), String> {
        while !self.is_done() {
            thread::sleep(Duration::from_millis(20));
            let Some(_busy) = self.unless_paused() else { continue };
            let stream = from.within(|| connect(to)).unwrap();
            match stream.and_then(|mut stream| exchange(&mut stream, 0)) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    self.turned_away.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                Err(error) => return Err(format!("a new connection to {to} failed: {error}")),
            }
            self.connections.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Answers on all connections until nobody opens any more.
fn serve<'scope>(scope: &'scope Scope<'scope, '_>, server: &'scope TcpListener, ended: &'scope AtomicBool) {
    while !ended.load(Ordering::Relaxed) {
        match server.accept() {
            Ok((stream, _)) => {
                scope.spawn(move || echo(stream));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(1)),
            Err(error) => panic!("accepting: {error}"),
        }
    }
}

impl Closed {
    fn open(site: &Site) -> Closed {
        let mut closed = Closed { datagrams: Vec::new(), openings: Vec::new() };
        for address in WEB {
            for port in [BY_LABEL, BY_DIRECTION, BY_BLOCK] {
                let to = SocketAddr::new(address.parse().unwrap(), port);
                let socket = site.web().within(|| UdpSocket::bind(to)).unwrap().unwrap();
                socket.set_nonblocking(true).unwrap();
                closed.datagrams.push(socket);
                closed.openings.push(listener(site.web(), address, port));
            }
        }
        closed
    }

    /// What has arrived: to whom, from whom, and the number it had.
    fn arrived(&self) -> Vec<String> {
        let mut arrived = Vec::new();
        for socket in &self.datagrams {
            let mut number = [0; 8];
            while let Ok((_, from)) = socket.recv_from(&mut number) {
                arrived.push(format!("UDP {} ← {from} #{}", socket.local_addr().unwrap(), u64::from_be_bytes(number)));
            }
        }
        for listener in &self.openings {
            while let Ok((_, from)) = listener.accept() {
                arrived.push(format!("TCP {} ← {from}", listener.local_addr().unwrap()));
            }
        }
        arrived
    }
}

fn listener(namespace: &NetNs, address: &str, port: u16) -> TcpListener {
    let to = SocketAddr::new(address.parse().unwrap(), port);
    let listener = namespace.within(|| TcpListener::bind(to)).unwrap().unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

fn connect(to: IpAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::new(to, OPEN), PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream, number: u64) -> std::io::Result<()> {
    stream.write_all(&number.to_be_bytes())?;
    let mut answer = [0; 8];
    stream.read_exact(&mut answer)?;
    if answer == number.to_be_bytes() { Ok(()) } else { Err(ErrorKind::InvalidData.into()) }
}

/// Until the other end closes.
fn echo(mut stream: TcpStream) {
    stream.set_nonblocking(false).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut word = [0; 8];
    while stream.read_exact(&mut word).is_ok() && stream.write_all(&word).is_ok() {}
}
