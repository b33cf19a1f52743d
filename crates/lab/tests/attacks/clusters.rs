//! Two clusters: which addresses the pods of one have in the other, and outside.

use std::net::IpAddr;

use libtest_mimic::Failed;
use nix::sched::{CloneFlags, unshare};
use ringfence_analyze::{PlacementOptions, add_endpoint_slices, place};
use ringfence_dataplane::{ApplyError, Backend};
use ringfence_k8s::{Manifests, Source, parse};
use ringfence_lab::{EndpointIndex, Experiment, Finished, Origin, Probe, ProbeOutcome, Tables, Timeouts};
use ringfence_model::Protocol;

const FIRST: &[u8] = include_bytes!("../../../../examples/two-clusters/cluster-1/cluster.yaml");
const SECOND: &[u8] = include_bytes!("../../../../examples/two-clusters/cluster-2/cluster.yaml");

/// The other cluster's pods and Services.
const OTHER: [&str; 4] = ["10.2.0.0/16", "10.102.0.0/16", "fd00:2::/32", "fd00:102::/64"];

/// Pod `east/a`, its node, the pod it calls in the other cluster, the Service before it, and a host outside, by family.
const ENDS: [[&str; 5]; 2] = [
    ["10.1.1.10", "192.0.2.11", "10.2.1.10", "10.102.0.5", "198.51.100.20"],
    ["fd00:1:1::10", "2001:db8:1::11", "fd00:2:1::10", "fd00:102::5", "2001:db8:100::20"],
];

/// Only towards the other cluster is the address kept, and only if that is asked for.
pub(crate) fn sources<B: Backend>(
    tables: Tables,
    mut open: impl FnMut() -> Result<B, ApplyError>,
) -> Result<(), Failed> {
    for kept in [false, true] {
        let lab = build(kept, tables, &mut open)?;
        for [pod, node, other, service, outside] in ENDS {
            seen(&lab, pod, other, 5432, if kept { pod } else { node })?;
            seen(&lab, pod, outside, 443, node)?;
            // Answers come back though the Service's node translates them; it shows its own pod the caller's address, and
            // pods of its other node its own.
            answered(&lab, pod, service)?;
        }
    }
    Ok(())
}

fn build<B: Backend>(
    kept: bool,
    service_tables: Tables,
    open: impl FnMut() -> Result<B, ApplyError>,
) -> Result<Finished, Failed> {
    // Each trial has a thread, and each lab a first node of its own.
    unshare(CloneFlags::CLONE_NEWNET)?;
    let (first, second) = (read(FIRST)?, read(SECOND)?);
    let unmasqueraded = if kept { OTHER.map(str::parse).into_iter().collect::<Result<_, _>>()? } else { Vec::new() };
    let experiment = Experiment {
        objects: first.objects,
        others: vec![second.objects],
        unmasqueraded,
        externals: first.externals,
        service_tables,
        topology: first.topology.ok_or("no topology")?,
        ..Experiment::default()
    };
    Ok(ringfence_lab::run(experiment, open, &mut |_, _, _| ())?)
}

fn read(text: &[u8]) -> Result<Manifests, Failed> {
    let mut manifests = parse(&[Source { name: "cluster.yaml", text }]);
    place(&mut manifests.objects, &manifests.externals, &PlacementOptions::default())?;
    add_endpoint_slices(&mut manifests.objects);
    Ok(manifests)
}

fn call(lab: &Finished, from: &str, to: &str, port: u16) -> Result<ProbeOutcome, Failed> {
    let (source, destination): (IpAddr, IpAddr) = (from.parse()?, to.parse()?);
    let position = lab.matrix.ends.iter().position(|end| end.addresses.contains(&source)).ok_or("no such end")?;
    let from = Origin::Endpoint(EndpointIndex(position));
    let probe = Probe { from, source: Some(source), destination, protocol: Protocol::Tcp, port };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(lab.network.probe(probe, &Timeouts::default())))
}

/// Whoever answers has seen the call come from this address.
fn seen(lab: &Finished, from: &str, to: &str, port: u16, expected: &str) -> Result<(), Failed> {
    match call(lab, from, to, port)? {
        ProbeOutcome::Answered { seen, .. } if seen.ip() == expected.parse::<IpAddr>()? => Ok(()),
        outcome => Err(format!("{from} to {to}, which should see {expected}: {outcome:?}").into()),
    }
}

fn answered(lab: &Finished, from: &str, service: &str) -> Result<(), Failed> {
    match call(lab, from, service, 5432)? {
        ProbeOutcome::Answered { .. } => Ok(()),
        outcome => Err(format!("{from} to {service}: {outcome:?}").into()),
    }
}
