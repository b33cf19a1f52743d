//! The round trip of the first packet of a new UDP flow, through a node that filters.
//!
//! One thread on one processor plays both pods: a packet is on the other side when `send` returns, so the figure is what
//! the packets cost the kernel, without waking anybody up.

use std::error::Error;
use std::io::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use ringfence_dataplane::{NftBackend, NftOptions, Reconciler};
use ringfence_lab::{EndpointIndex, EndpointSpec, NetNs, Network, NetworkSpec};
use socket2::{Domain, Socket, Type};

use crate::cluster::{CLIENT, NODE_ADDRESS, PORT, SERVER, World};
use crate::report::{Report, median};

/// Tracks connections and filters nothing: what any stateful filter pays before its first rule.
const CONNTRACK_ONLY: &str = "table inet conntrack_only {
  chain forward { type filter hook forward priority filter; policy accept; ct state established,related accept; }
}";

/// How many flows have their sockets open at one time.
const BATCH: usize = 500;

/// One node with two pods, filtering in its own way.
struct Site {
    name: String,
    network: Network,
    server: UdpSocket,
    /// Medians, one for each round, in microseconds.
    rounds: Vec<f64>,
    /// Keeps what it programmed alive.
    _backend: Option<Reconciler<NftBackend>>,
}

pub(crate) fn measure(entries: &[u32], rounds: usize, flows: usize, report: &mut Report) -> Result<(), Box<dyn Error>> {
    stay_on_one_processor()?;
    let mut sites = vec![site("no packet filter", |_| Ok(None))?];
    sites.push(site("conntrack only", |node| {
        load(node, CONNTRACK_ONLY)?;
        Ok(None)
    })?);
    for &count in entries {
        report.progress(&format!("loading {count} entries"));
        sites.push(site(&format!("ringfence, {count} allowed"), |node| Ok(Some(enforce(node, count)?)))?);
    }
    for round in 0..=rounds {
        report.progress(&format!("latency, round {round} of {rounds}"));
        for site in &mut sites {
            let sample = round_trips(site, flows)?;
            // The first round warms caches and is not counted.
            if round > 0 {
                site.rounds.push(sample);
            }
        }
    }
    let baseline = sites[1].rounds.clone();
    for site in sites {
        let ratios = site.rounds.iter().zip(&baseline).map(|(this, base)| this / base).collect();
        report.latency(&site.name, median(site.rounds.clone()), median(ratios));
    }
    Ok(())
}

fn site(
    name: &str,
    filter: impl FnOnce(&NetNs) -> Result<Option<Reconciler<NftBackend>>, Box<dyn Error>>,
) -> Result<Site, Box<dyn Error>> {
    let endpoint = |name: &str, address| EndpointSpec {
        name: name.to_owned(),
        addresses: vec![address],
        listen: Vec::new(),
        host_network: false,
    };
    let spec = NetworkSpec {
        node_addresses: vec![NODE_ADDRESS],
        endpoints: vec![endpoint("client", CLIENT), endpoint("server", SERVER)],
    };
    let network = Network::build_around(NetNs::create()?, spec, &mut |_, _| ())?;
    let backend = filter(network.node())?;
    let server = network.namespace(EndpointIndex(1)).ok_or("no server")?;
    let server = server.within(|| UdpSocket::bind((SERVER, PORT)))??;
    server.set_nonblocking(true)?;
    Ok(Site { name: name.to_owned(), network, server, rounds: Vec::new(), _backend: backend })
}

/// Loads a small program of the baseline with the nft command.
fn load(node: &NetNs, script: &str) -> Result<(), Box<dyn Error>> {
    let spawn = || Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn();
    let mut nft = node.within(spawn)?.map_err(|error| format!("cannot run nft (install nftables): {error}"))?;
    nft.stdin.take().ok_or("no pipe")?.write_all(script.as_bytes())?;
    if nft.wait()?.success() { Ok(()) } else { Err("nft refused the baseline".into()) }
}

/// Grows the program step by step, so that it also loads where only small transactions are possible.
fn enforce(node: &NetNs, entries: u32) -> Result<Reconciler<NftBackend>, Box<dyn Error>> {
    let mut reconciler = Reconciler::new(node.within(|| NftBackend::new(NftOptions::default()))??);
    let mut world = World::new(1)?;
    reconciler.apply(&world.compile())?;
    for number in 1..entries {
        world.add_remote(number)?;
        if number % 2_000 == 0 {
            reconciler.apply(&world.compile())?;
        }
    }
    reconciler.apply(&world.compile())?;
    Ok(reconciler)
}

/// The median round trip of `flows` new flows, in microseconds.
fn round_trips(site: &Site, flows: usize) -> Result<f64, Box<dyn Error>> {
    let client = site.network.namespace(EndpointIndex(0)).ok_or("no client")?;
    let server = SocketAddr::new(SERVER, PORT);
    let mut times = Vec::with_capacity(flows);
    let mut buffer = [0; 16];
    while times.len() < flows {
        // A new source port is a new flow. Sockets are made before the clock runs.
        let sockets = client.within(|| {
            (0..BATCH.min(flows - times.len()))
                .map(|_| {
                    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
                    socket.bind(&SocketAddr::new(CLIENT, 0).into())?;
                    socket.connect(&server.into())?;
                    socket.set_nonblocking(true)?;
                    Ok(UdpSocket::from(socket))
                })
                .collect::<std::io::Result<Vec<_>>>()
        })??;
        for socket in &sockets {
            let start = Instant::now();
            socket.send(b"first")?;
            let (length, from) = arrived(|| site.server.recv_from(&mut buffer)).map_err(|e| lost(site, &e))?;
            site.server.send_to(&buffer[..length], from)?;
            arrived(|| socket.recv(&mut buffer)).map_err(|e| lost(site, &e))?;
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
    }
    Ok(median(times))
}

/// Waits for a packet that is there already, but for the rare case that the kernel has put it off.
fn arrived<T>(mut receive: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    let start = Instant::now();
    loop {
        match receive() {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if start.elapsed() > Duration::from_secs(2) {
                    return Err(error);
                }
            }
            received => return received,
        }
    }
}

fn lost(site: &Site, error: &std::io::Error) -> String {
    format!("{}: a packet of an allowed flow did not arrive: {error}", site.name)
}

fn stay_on_one_processor() -> Result<(), Box<dyn Error>> {
    let allowed = nix::sched::sched_getaffinity(Pid::from_raw(0))?;
    let last = (0..CpuSet::count()).rev().find(|cpu| allowed.is_set(*cpu).unwrap_or(false)).ok_or("no processor")?;
    let mut one = CpuSet::new();
    one.set(last)?;
    sched_setaffinity(Pid::from_raw(0), &one)?;
    Ok(())
}
