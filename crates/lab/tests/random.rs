//! Random clusters on two nodes with real packets: every packet filter must do what the oracle says, over every path.
//!
//! RINGFENCE_PACKET_CASES says how many clusters are tried with each filter (without it, a few).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::ExitCode;

use arbitrary::Unstructured;
use libtest_mimic::{Arguments, Failed, Trial};
use nix::sched::{CloneFlags, unshare};
use ringfence_analyze::paths::Trip;
use ringfence_analyze::{PlacementOptions, add_endpoint_slices, place, render};
use ringfence_dataplane::iptables::{IptablesBackend, IptablesOptions, Variant};
use ringfence_dataplane::{Backend, NftBackend, NftOptions};
use ringfence_lab::{Experiment, Finished, Isolation, RunError, Tables};
use ringfence_model::{EnforceAt, Enforcement, NodeTraffic, Object, Phase, PodNetwork, Topology};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each trial has networks of its own; side by side they would take each other's processors.
    arguments.test_threads = Some(1);
    if let Err(error) = ringfence_lab::enter(Isolation::Auto) {
        let trial = Trial::test("enter", move || Err(error.into()));
        return libtest_mimic::run(&arguments, vec![trial]).exit_code();
    }
    let cases = std::env::var("RINGFENCE_PACKET_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(12);
    let mut trials = Vec::new();
    for seed in 0..cases {
        trials.push(Trial::test(format!("nftables {seed}"), move || {
            agrees(seed, Tables::Nft, || NftBackend::new(NftOptions::default()))
        }));
        for (name, variant, tables) in
            [("iptables-nft", Variant::Nft, Tables::Nft), ("iptables-legacy", Variant::Legacy, Tables::Legacy)]
        {
            trials.push(Trial::test(format!("{name} {seed}"), move || {
                let options = IptablesOptions { variant: Some(variant), ..IptablesOptions::default() };
                agrees(seed, tables, || IptablesBackend::open(options.clone()))
            }));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn agrees<B: Backend>(
    seed: u64,
    service_tables: Tables,
    open: impl FnMut() -> Result<B, ringfence_dataplane::ApplyError>,
) -> Result<(), Failed> {
    // Each trial has a thread, and each thread a first node of its own.
    unshare(CloneFlags::CLONE_NEWNET)?;
    let networks = [PodNetwork::Routed, PodNetwork::Bridge, PodNetwork::Vxlan];
    let pod_network = networks.into_iter().cycle().nth(usize::try_from(seed)? % networks.len());
    let ats = [EnforceAt::Entry, EnforceAt::Everywhere, EnforceAt::Destination];
    let traffics = [NodeTraffic::Own, NodeTraffic::Own, NodeTraffic::All, NodeTraffic::Policy];
    let number = usize::try_from(seed)?;
    let enforcement =
        Enforcement { at: ats[number / 3 % ats.len()], node_traffic: traffics[number / 2 % traffics.len()] };
    let masquerade_all = Some(number % 5 == 0);
    let experiment = Experiment {
        objects: cluster(seed, pod_network == Some(PodNetwork::Vxlan))?,
        enforcement,
        topology: Topology { pod_network, masquerade_all, ..Topology::default() },
        service_tables,
        ..Experiment::default()
    };
    let finished: Result<Finished, RunError> = ringfence_lab::run(experiment, open, &mut |_, _, _| ());
    let Finished { matrix, trips, .. } = finished?;
    if matrix.cells.is_empty() {
        return Err("nothing was tried".into());
    }
    if matrix.differences().next().is_some() || trips.iter().any(Trip::differs) {
        return Err(format!("{}\n{}", render::comparison(&matrix), render::paths(&trips)).into());
    }
    Ok(())
}

/// A random cluster that can be built: in the random ones pods share addresses, and some have none that can be routed.
fn cluster(seed: u64, tunnels: bool) -> Result<Vec<Object>, Failed> {
    let bytes = ringfence_scenario::bytes(seed, 20_000);
    let mut objects = ringfence_scenario::cluster(&mut Unstructured::new(&bytes))?;
    let mut taken: BTreeSet<IpAddr> = BTreeSet::new();
    for object in &mut objects {
        match object {
            Object::Pod(pod) => {
                if pod.host_network || pod.phase == Phase::Finished {
                    pod.addresses.clear();
                }
                let last: IpAddr = [255, 255, 255, 255].into();
                pod.addresses.retain(|address| *address != last && taken.insert(*address));
            }
            Object::Node(node) => {
                node.addresses.clear();
                node.tunnel_addresses.clear();
            }
            _ => {}
        }
    }
    let options = PlacementOptions { nodes: Some(2), tunnels, ..PlacementOptions::default() };
    place(&mut objects, &[], &options)?;
    objects.retain(|object| !matches!(object, Object::EndpointSlice(_)));
    add_endpoint_slices(&mut objects);
    Ok(objects)
}
