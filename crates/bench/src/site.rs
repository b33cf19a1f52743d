//! One node with two pods, through which packets are timed.
//!
//! One thread on one processor plays both pods: a packet is on the other side when `send` returns, so the figure is what
//! the packets cost the kernel, without waking anybody up.

use std::cell::Cell;
use std::error::Error;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use ringfence_lab::{EndpointIndex, EndpointSpec, NetNs, Network, NetworkSpec, NodeIndex, NodeSpec, Place};
use socket2::{Domain, Socket, Type};

use crate::cluster::{CLIENT, NODE_ADDRESS, PORT, SERVER};
use crate::report::median;

/// Tracks connections and filters nothing: what any stateful filter pays before its first rule.
const CONNTRACK_ONLY: &str = "table inet conntrack_only {
  chain forward { type filter hook forward priority filter; policy accept; ct state established,related accept; }
}";
/// A port that no policy allows.
const CLOSED_PORT: u16 = PORT + 1;
/// How many flows have their sockets open at one time.
const BATCH: usize = 500;
/// What is given to the kernel, and taken from it, at one time.
const WRITE_BYTES: usize = 256 * 1024;
/// How long to wait for what comes at once.
const PATIENCE: Duration = Duration::from_secs(2);

/// One node with two pods, filtering in its own way.
pub(crate) struct Site {
    name: String,
    network: Network,
    server: UdpSocket,
    /// How many packets asked whether they pass.
    asked: Cell<u64>,
}

/// An open TCP connection through a site, both of its ends.
pub(crate) struct Stream {
    client: TcpStream,
    server: TcpStream,
    buffer: Vec<u8>,
}

/// An open UDP flow through a site, both of its ends.
pub(crate) struct Packets {
    client: UdpSocket,
    server: UdpSocket,
}

impl Site {
    /// Builds the network and lets `filter` load the node's packet filter, in the node's network namespace.
    pub(crate) fn new(name: &str, filter: impl FnOnce() -> Result<(), Box<dyn Error>>) -> Result<Site, Box<dyn Error>> {
        let endpoint = |name: &str, address| EndpointSpec {
            name: name.to_owned(),
            place: Place::Pod { node: NodeIndex(0) },
            addresses: vec![address],
            listen: Vec::new(),
        };
        let spec = NetworkSpec {
            nodes: vec![NodeSpec { name: "node".to_owned(), addresses: vec![NODE_ADDRESS], ..NodeSpec::default() }],
            endpoints: vec![endpoint("client", CLIENT), endpoint("server", SERVER)],
            ..NetworkSpec::default()
        };
        let network = Network::build_around(vec![NetNs::create()?], spec, &mut |_, _| ())?;
        network.node(NodeIndex(0)).ok_or("no node")?.namespace().within(filter)??;
        let server = network.namespace(EndpointIndex(1)).ok_or("no server")?.within(|| listen(PORT))??;
        Ok(Site { name: name.to_owned(), network, server, asked: Cell::new(0) })
    }

    /// The node's network namespace.
    pub(crate) fn node(&self) -> Result<&NetNs, Box<dyn Error>> {
        Ok(self.network.node(NodeIndex(0)).ok_or("no node")?.namespace())
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// An error, if a packet arrives that no policy allows: then this measures nothing.
    pub(crate) fn check_refusal(&self) -> Result<(), Box<dyn Error>> {
        let closed = self.listener(CLOSED_PORT)?;
        let client = self.client()?.within(|| call(CLOSED_PORT))??;
        client.send(b"refused")?;
        std::thread::sleep(Duration::from_millis(5));
        match closed.recv_from(&mut [0; 16]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) => Err(format!("{}: a packet arrived that no policy allows", self.name).into()),
        }
    }

    /// Whether the packet of a new flow is let through now.
    pub(crate) fn passes(&self) -> Result<bool, Box<dyn Error>> {
        /// A packet that passes is there when `send` returns, but for rare cases.
        const LATE: Duration = Duration::from_micros(200);
        let number = self.asked.get();
        self.asked.set(number + 1);
        let socket = self.client()?.within(|| call(PORT))??;
        let sent = Instant::now();
        socket.send(&number.to_be_bytes())?;
        let mut buffer = [0; 8];
        loop {
            match self.server.recv(&mut buffer) {
                // One before may have been late.
                Ok(_) if u64::from_be_bytes(buffer) == number => return Ok(true),
                Ok(_) => {}
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error.into()),
                Err(_) if sent.elapsed() > LATE => return Ok(false),
                Err(_) => {}
            }
        }
    }

    /// The median round trip of the first packets of `flows` new flows, in microseconds.
    pub(crate) fn first_packets(&self, flows: usize) -> Result<f64, Box<dyn Error>> {
        let mut times = Vec::with_capacity(flows);
        while times.len() < flows {
            // A new source port is a new flow. Sockets are made before the clock runs.
            let batch = BATCH.min(flows - times.len());
            for socket in &self.calls(PORT, batch)? {
                times.push(self.round_trip(socket)?);
            }
        }
        Ok(median(times))
    }

    /// The median of `round_trips` round trips in one flow that has been open before, in microseconds.
    pub(crate) fn established(&self, round_trips: usize) -> Result<f64, Box<dyn Error>> {
        let socket = self.open_flow()?;
        let times = (0..round_trips).map(|_| self.round_trip(&socket)).collect::<Result<_, _>>()?;
        Ok(median(times))
    }

    /// Where packets to [`PORT`] arrive. Does not wait.
    pub(crate) fn server(&self) -> &UdpSocket {
        &self.server
    }

    /// Where packets to another port of the server arrive. Does not wait.
    pub(crate) fn listener(&self, port: u16) -> Result<UdpSocket, Box<dyn Error>> {
        Ok(self.server_namespace()?.within(|| listen(port))??)
    }

    /// New flows from the client to a port of the server, before their first packets.
    pub(crate) fn calls(&self, port: u16, count: usize) -> Result<Vec<UdpSocket>, Box<dyn Error>> {
        Ok(self.client()?.within(|| (0..count).map(|_| call(port)).collect::<io::Result<_>>())??)
    }

    /// An open TCP connection from the client.
    pub(crate) fn stream(&self) -> Result<Stream, Box<dyn Error>> {
        let listener = self.server_namespace()?.within(|| TcpListener::bind((SERVER, PORT)))??;
        let client = self.client()?.within(|| TcpStream::connect_timeout(&(SERVER, PORT).into(), PATIENCE))??;
        let (server, _) = listener.accept()?;
        client.set_nonblocking(true)?;
        server.set_nonblocking(true)?;
        Ok(Stream { client, server, buffer: vec![0; WRITE_BYTES] })
    }

    /// A UDP flow from the client that was answered.
    pub(crate) fn open_flow(&self) -> Result<UdpSocket, Box<dyn Error>> {
        let client = self.client()?.within(|| call(PORT))??;
        self.round_trip(&client)?;
        Ok(client)
    }

    /// The same, with its other end.
    pub(crate) fn packets(&self) -> Result<Packets, Box<dyn Error>> {
        Ok(Packets { client: self.open_flow()?, server: self.server.try_clone()? })
    }

    fn server_namespace(&self) -> Result<&NetNs, Box<dyn Error>> {
        Ok(self.network.namespace(EndpointIndex(1)).ok_or("no server")?)
    }

    fn client(&self) -> Result<&NetNs, Box<dyn Error>> {
        Ok(self.network.namespace(EndpointIndex(0)).ok_or("no client")?)
    }

    fn round_trip(&self, socket: &UdpSocket) -> Result<f64, Box<dyn Error>> {
        let mut buffer = [0; 16];
        let start = Instant::now();
        socket.send(b"ping")?;
        let (length, from) = arrived(|| self.server.recv_from(&mut buffer)).map_err(|error| self.lost(&error))?;
        self.server.send_to(&buffer[..length], from)?;
        arrived(|| socket.recv(&mut buffer)).map_err(|error| self.lost(&error))?;
        Ok(start.elapsed().as_secs_f64() * 1e6)
    }

    fn lost(&self, error: &io::Error) -> String {
        format!("{}: a packet of an allowed flow did not arrive: {error}", self.name)
    }
}

impl Stream {
    /// Writes all that the kernel takes and reads all that has come, once. How many bytes have come.
    pub(crate) fn carry(&mut self) -> Result<usize, Box<dyn Error>> {
        let start = Instant::now();
        loop {
            match self.client.write(&self.buffer) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error.into()),
                _ => {}
            }
            let mut carried = 0;
            loop {
                match self.server.read(&mut self.buffer) {
                    Ok(0) => return Err("the connection ended".into()),
                    Ok(length) => carried += length,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error.into()),
                }
            }
            if carried > 0 {
                return Ok(carried);
            }
            if start.elapsed() > PATIENCE {
                return Err("the connection carries nothing".into());
            }
        }
    }
}

impl Packets {
    /// Sends some packets and receives those that came. How many have come; an error if none.
    pub(crate) fn carry(&mut self) -> Result<usize, Box<dyn Error>> {
        /// As many as fit into any socket's queue.
        const AT_ONCE: usize = 32;
        for _ in 0..AT_ONCE {
            self.client.send(&[0; 64])?;
        }
        let mut buffer = [0; 64];
        arrived(|| self.server.recv(&mut buffer))?;
        let mut carried = 1;
        loop {
            match self.server.recv(&mut buffer) {
                Ok(_) => carried += 1,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(carried),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn listen(port: u16) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((SERVER, port))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn call(port: u16) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.bind(&SocketAddr::new(CLIENT, 0).into())?;
    socket.connect(&SocketAddr::new(SERVER, port).into())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Loads the baseline with the nft command.
pub(crate) fn conntrack_only() -> Result<(), Box<dyn Error>> {
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn()?;
    nft.stdin.take().ok_or("no pipe")?.write_all(CONNTRACK_ONLY.as_bytes())?;
    if nft.wait()?.success() { Ok(()) } else { Err("nft refused the baseline".into()) }
}

/// Waits for a packet that is there already, but for the rare case that the kernel has put it off.
fn arrived<T>(mut receive: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let start = Instant::now();
    loop {
        match receive() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if start.elapsed() > PATIENCE {
                    return Err(error);
                }
            }
            received => return received,
        }
    }
}

/// For the rest of the process.
pub(crate) fn stay_on_one_processor() -> Result<(), Box<dyn Error>> {
    let allowed = nix::sched::sched_getaffinity(Pid::from_raw(0))?;
    let last = (0..CpuSet::count()).rev().find(|cpu| allowed.is_set(*cpu).unwrap_or(false)).ok_or("no processor")?;
    let mut one = CpuSet::new();
    one.set(last)?;
    sched_setaffinity(Pid::from_raw(0), &one)?;
    Ok(())
}
