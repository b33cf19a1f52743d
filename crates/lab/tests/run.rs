//! The experiment itself: with a backend that does its work everything agrees, with one that does not it shows.
//!
//! The process enters its namespaces before it has a second thread, so it brings its own `main`.

use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use nix::sched::{CloneFlags, unshare};
use ringfence_analyze::{Matrix, PlacementOptions, place};
use ringfence_dataplane::fake::FakeBackend;
use ringfence_dataplane::iptables::{IptablesBackend, IptablesOptions, Variant};
use ringfence_dataplane::{ApplyError, Backend, NftBackend, NftOptions, Reconciler, notation};
use ringfence_k8s::{Source, parse};
use ringfence_lab::{
    EndpointIndex, Experiment, Isolation, NetNs, NodeIndex, Origin, Probe, ProbeOutcome, Stage, Timeouts,
};
use ringfence_model::Object;
use socket2::{Domain, Socket, Type};

const CLUSTER: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec: {containers: [{name: c, ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}, {containerPort: 9, protocol: SCTP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec: {containers: [{name: c, ports: [{containerPort: 80}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec:
  podSelector: {matchLabels: {app: web}}
";

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if let Err(error) = ringfence_lab::enter(Isolation::Auto) {
        let trial = Trial::test("enter", move || Err(error.into()));
        return libtest_mimic::run(&arguments, vec![trial]).exit_code();
    }
    let trials = vec![
        Trial::test("a_backend_that_enforces_agrees", || {
            let matrix = run(|| NftBackend::new(NftOptions::default()))?;
            same(&matrix.differences().count(), &0)?;
            same(&matrix.cells.iter().filter(|cell| cell.measured() == Some(true)).count(), &1)
        }),
        Trial::test("a_backend_that_enforces_nothing_differs", || {
            let matrix = run(|| Ok(FakeBackend::default()))?;
            same(&matrix.differences().count(), &3)
        }),
        Trial::test("refusals_reach_the_client_of_a_pod_that_may_send_nothing", || {
            refusals(|| NftBackend::new(NftOptions::default()))?;
            let options = |variant| IptablesOptions { variant: Some(variant), ..IptablesOptions::default() };
            refusals(|| IptablesBackend::open(options(Variant::Nft)))?;
            refusals(|| IptablesBackend::open(options(Variant::Legacy)))
        }),
        Trial::test("a_forged_source_gets_no_exemption", forged_sources),
        Trial::test("no_packet_slips_between_two_programs", no_packet_slips_between_two_programs),
        Trial::test("a_pod_reaches_itself_through_a_service", hairpin),
        Trial::test("progress_reaches_its_end_in_every_stage", || {
            let mut last: Vec<(Stage, usize, usize)> = Vec::new();
            run_with(|| Ok(FakeBackend::default()), &mut |stage, done, of| {
                last.retain(|(seen, ..)| *seen != stage);
                last.push((stage, done, of));
            })?;
            same(
                &last,
                &vec![
                    (Stage::Building, 2, 2),
                    (Stage::Checking, 4, 4),
                    (Stage::Probing, 4, 4),
                    (Stage::Tracing, 8, 8),
                    (Stage::Paths, 4, 4),
                ],
            )
        }),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// `web`, isolated for ingress, and `client`, with the addresses that placement gives them from an IPv6 range.
const CLIENT: &str = "fd00::2";
const WEB: &str = "fd00::3";

fn run_v6() -> Result<ringfence_lab::Finished, Failed> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let mut manifests = parse(&[Source { name: "cluster.yaml", text: CLUSTER.as_bytes() }]);
    let options =
        PlacementOptions { nodes: Some(1), pod_cidrs: vec!["fd00::/64".parse()?], ..PlacementOptions::default() };
    place(&mut manifests.objects, &[], &options)?;
    let open = || NftBackend::new(NftOptions::default());
    Ok(ringfence_lab::run(experiment(manifests.objects), open, &mut |_, _, _| ())?)
}

/// The reset that refuses a connection carries the address of the pod that was called, whose own packets are refused too.
fn refusals<B: Backend>(open: impl FnMut() -> Result<B, ApplyError>) -> Result<(), Failed> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let both_ways = format!("{CLUSTER}  policyTypes: [Ingress, Egress]\n");
    let mut manifests = parse(&[Source { name: "cluster.yaml", text: both_ways.as_bytes() }]);
    let pod_cidrs = vec!["10.244.0.0/24".parse()?, "fd00::/64".parse()?];
    place(&mut manifests.objects, &[], &PlacementOptions { nodes: Some(1), pod_cidrs, ..PlacementOptions::default() })?;
    let lab = ringfence_lab::run(experiment(manifests.objects), open, &mut |_, _, _| ())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for cell in lab.matrix.cells.iter().filter(|cell| !cell.allowed()) {
        for path in &cell.paths {
            let probe = Probe {
                from: Origin::Endpoint(EndpointIndex(cell.from)),
                source: Some(path.source),
                destination: path.destination,
                protocol: cell.protocol,
                port: cell.port,
            };
            match runtime.block_on(lab.network.probe(probe, &Timeouts::default())) {
                ProbeOutcome::Refused(_) => {}
                outcome => return Err(format!("{probe:?}: {outcome:?}").into()),
            }
        }
    }
    Ok(())
}

/// IPv6 has no reverse path filter, so a pod can send with any source; what it sends must be judged all the same.
fn forged_sources() -> Result<(), Failed> {
    let lab = run_v6()?;
    let ends = &lab.matrix.ends;
    let index = |name: &str| ends.iter().position(|end| end.label == name).map(EndpointIndex).ok_or(name.to_owned());
    let namespace = |name: &str| lab.network.namespace(index(name)?).ok_or(name.to_owned());
    let receiver = namespace("default/web")?.within(|| UdpSocket::bind((WEB, 9999)))??;
    receiver.set_read_timeout(Some(Duration::from_millis(300)))?;
    // IPPROTO_RAW: what is sent is the whole packet, its source included.
    let raw = Some(socket2::Protocol::from(255));
    let sender =
        namespace("default/client")?.within(|| Socket::new(Domain::IPV6, Type::from(libc::SOCK_RAW), raw))??;
    let node = ends.first().map(|_| "2001:db8:ffff::2").ok_or("no ends")?;
    for source in [CLIENT, WEB, node, "2001:db8::66"] {
        let to: SocketAddr = (WEB.parse::<Ipv6Addr>()?, 0).into();
        sender.send_to(&udp_packet(source.parse()?, 4000, WEB.parse()?, 9999), &to.into())?;
        if receiver.recv_from(&mut [0; 64]).is_ok() {
            return Err(format!("a packet that says it is from {source} has arrived").into());
        }
    }
    // What was sent is a packet that arrives where nothing is isolated.
    let receiver = namespace("default/client")?.within(|| UdpSocket::bind((CLIENT, 9999)))??;
    receiver.set_read_timeout(Some(Duration::from_secs(2)))?;
    let sender = namespace("default/web")?.within(|| Socket::new(Domain::IPV6, Type::from(libc::SOCK_RAW), raw))??;
    let to: SocketAddr = (CLIENT.parse::<Ipv6Addr>()?, 0).into();
    sender.send_to(&udp_packet("2001:db8::66".parse()?, 4000, CLIENT.parse()?, 9999), &to.into())?;
    receiver.recv_from(&mut [0; 64])?;
    Ok(())
}

/// Neither program lets the client reach port 7000 of web: in each, that port leads to the gate that the client does not
/// pass. A packet that met the port of one program and the gate of the other would pass.
fn no_packet_slips_between_two_programs() -> Result<(), Failed> {
    let program = |gate: u8, clients: u8| {
        let text = format!(
            "ingress pod {WEB} default/web
            ingress port {WEB} UDP/7000 {gate}
            ingress port {WEB} UDP/7001 {clients}
            ingress gate 1 v6,pods one
            ingress gate 2 v6,pods two
            ingress class {clients} {clients}
            ingress peer {CLIENT} {clients}"
        );
        notation::parse("node", &text)
    };
    let programs = [program(1, 2)?, program(2, 1)?];
    let lab = run_v6()?;
    let position = |name: &str| lab.matrix.ends.iter().position(|end| end.label == name).map(EndpointIndex);
    let namespace = |name: &str| position(name).and_then(|index| lab.network.namespace(index)).ok_or(name.to_owned());
    let receiver = namespace("default/web")?.within(|| UdpSocket::bind((WEB, 7000)))??;
    receiver.set_nonblocking(true)?;
    let raw = Some(socket2::Protocol::from(255));
    let sender =
        namespace("default/client")?.within(|| Socket::new(Domain::IPV6, Type::from(libc::SOCK_RAW), raw))??;
    let mut reconciler = Reconciler::new(first(&lab)?.within(|| NftBackend::new(NftOptions::default()))??);
    let done = AtomicBool::new(false);
    let (sent, changes) = std::thread::scope(|scope| {
        let flood = scope.spawn(|| flood(&sender, &done));
        let end = Instant::now() + Duration::from_secs(2);
        let mut changes = 0_usize;
        while Instant::now() < end {
            if let Err(error) = reconciler.apply(&programs[changes % 2]) {
                done.store(true, Ordering::Relaxed);
                return Err(Failed::from(error));
            }
            changes += 1;
        }
        done.store(true, Ordering::Relaxed);
        let sent = flood.join().map_err(|_| Failed::from("the flood has failed"))??;
        Ok((sent, changes))
    })?;
    if sent < 1000 || changes < 100 {
        return Err(format!("only {sent} packets and {changes} changes").into());
    }
    match receiver.recv_from(&mut [0; 64]) {
        Err(_) => Ok(()),
        Ok(_) => Err(format!("among {sent} packets over {changes} changes, one has passed").into()),
    }
}

fn first(lab: &ringfence_lab::Finished) -> Result<&NetNs, Failed> {
    Ok(lab.network.node(NodeIndex(0)).ok_or("no node")?.namespace())
}

/// Sends from ever new ports, until told to stop; gives how many packets.
fn flood(sender: &Socket, done: &AtomicBool) -> Result<usize, Failed> {
    let (client, web): (Ipv6Addr, Ipv6Addr) = (CLIENT.parse()?, WEB.parse()?);
    let to = SocketAddr::from((web, 0)).into();
    let packets: Vec<Vec<u8>> = (10_000..40_000).map(|from| udp_packet(client, from, web, 7000)).collect();
    let mut sent = 0;
    for packet in packets.iter().cycle() {
        if done.load(Ordering::Relaxed) {
            break;
        }
        sender.send_to(packet, &to)?;
        sent += 1;
    }
    Ok(sent)
}

/// An IPv6 packet with a UDP datagram.
fn udp_packet(source: Ipv6Addr, from: u16, destination: Ipv6Addr, port: u16) -> Vec<u8> {
    let payload = b"forged";
    let length = u16::try_from(8 + payload.len()).unwrap_or_default().to_be_bytes();
    let mut udp = [&from.to_be_bytes()[..], &port.to_be_bytes(), &length, &[0, 0], payload].concat();
    let pseudo = [&source.octets()[..], &destination.octets(), &[0, 0], &length, &[0, 0, 0, 17], &udp].concat();
    let mut sum: u32 =
        pseudo.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |b| u32::from(*b))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let checksum = !u16::try_from(sum).unwrap_or_default();
    udp[6..8].copy_from_slice(&checksum.to_be_bytes());
    [&[0x60, 0, 0, 0][..], &length, &[17, 64], &source.octets(), &destination.octets(), &udp].concat()
}

/// A Service sends a pod's connection back to the pod: the node routes a packet from the pod to itself.
fn hairpin() -> Result<(), Failed> {
    let lab = run_v6()?;
    let service = "table ip6 services { chain pre { type nat hook prerouting priority dstnat; \
                   ip6 daddr fd00:5::1 udp dport 53 dnat to [fd00::3]:9999; }; }";
    let nft = || Command::new("nft").arg(service).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").status();
    if !first(&lab)?.within(nft)??.success() {
        return Err("nft refused the service".into());
    }
    let position = lab.matrix.ends.iter().position(|end| end.label == "default/web").ok_or("no web")?;
    let web = lab.network.namespace(EndpointIndex(position)).ok_or("no web")?;
    let receiver = web.within(|| UdpSocket::bind((WEB, 9999)))??;
    receiver.set_read_timeout(Some(Duration::from_secs(2)))?;
    let sender = web.within(|| UdpSocket::bind((WEB, 0)))??;
    sender.send_to(b"to myself", ("fd00:5::1", 53))?;
    let (_, from) = receiver.recv_from(&mut [0; 64])?;
    same(&from.ip().to_string(), &WEB.to_owned())
}

fn experiment(objects: Vec<Object>) -> Experiment {
    Experiment { objects, ..Experiment::default() }
}

fn run<B: Backend>(open: impl FnMut() -> Result<B, ApplyError>) -> Result<Matrix, Failed> {
    run_with(open, &mut |_, _, _| ())
}

fn run_with<B: Backend>(
    open: impl FnMut() -> Result<B, ApplyError>,
    progress: &mut dyn FnMut(Stage, usize, usize),
) -> Result<Matrix, Failed> {
    // Each trial has a thread, and each thread a node of its own.
    unshare(CloneFlags::CLONE_NEWNET)?;
    let mut manifests = parse(&[Source { name: "cluster.yaml", text: CLUSTER.as_bytes() }]);
    place(&mut manifests.objects, &[], &PlacementOptions { nodes: Some(1), ..PlacementOptions::default() })?;
    let finished = ringfence_lab::run(experiment(manifests.objects), open, progress)?;
    Ok(finished.matrix)
}

fn same<T: PartialEq + std::fmt::Debug>(left: &T, right: &T) -> Result<(), Failed> {
    if left == right { Ok(()) } else { Err(format!("{left:?} is not {right:?}").into()) }
}
