//! Manifests and random clusters through parser and compiler: every verdict of the compiled programs is the oracle's.
#![no_main]

use std::net::IpAddr;

use arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use ringfence_analyze::{Matrix, PlacementOptions, compile_nodes, ends, place};
use ringfence_k8s::{Severity, Source, parse};
use ringfence_model::{ExternalHost, Object};
use ringfence_oracle::{State, judge};

fuzz_target!(|data: &[u8]| {
    // A leading zero byte cannot begin a manifest: it marks bytes for the generator.
    match data.split_first() {
        Some((0, bytes)) => {
            let mut u = Unstructured::new(bytes);
            if let Ok(objects) = ringfence_scenario::cluster(&mut u) {
                check(objects, Vec::new());
            }
        }
        _ => {
            let manifests = parse(&[Source { name: "fuzz.yaml", text: data }]);
            if manifests.diagnostics.iter().all(|d| d.severity != Severity::Fatal) && manifests.objects.len() < 60 {
                check(manifests.objects, manifests.externals);
            }
        }
    }
});

fn check(mut objects: Vec<Object>, mut externals: Vec<ExternalHost>) {
    // Someone off the cluster at the border of every block is worth more than one anywhere.
    let elsewhere: [IpAddr; 2] = [[198, 51, 100, 7].into(), [0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 1].into()];
    externals.truncate(4);
    externals.push(ExternalHost { name: "elsewhere".into(), addresses: elsewhere.into(), ports: Vec::new() });
    if place(&mut objects, &externals, &PlacementOptions::default()).is_err() {
        return;
    }
    let Ok(programs) = compile_nodes(objects.iter().cloned()) else { return };
    let Ok(oracle) = State::new(&objects) else { return };
    let ends = ends(&objects, &externals);
    let compiled = Matrix::compiled(ends.clone(), &programs);
    let literal = Matrix::new(ends, |_, _, flow| {
        let verdict = judge(&oracle, flow);
        (verdict.egress.allowed, verdict.ingress.allowed)
    });
    for (compiled, literal) in compiled.cells.iter().zip(&literal.cells) {
        assert_eq!(compiled, literal, "among {objects:#?}");
    }
}
