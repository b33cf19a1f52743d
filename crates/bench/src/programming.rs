//! How long it takes to write programs for many allowed peers into the kernel with nftables.

use std::error::Error;
use std::time::Instant;

use ringfence_compile::NodeCompiler;
use ringfence_dataplane::{ApplyError, Backend as _, NftBackend, NftOptions, ProgramDiff};
use ringfence_lab::NetNs;

use crate::cluster::{World, allowed, remote};
use crate::report::{Report, median, percentile};

/// Single pods added to each loaded program.
const ADDITIONS: u32 = 500;

pub(crate) fn measure(entries: &[u32], report: &mut Report) -> Result<(), Box<dyn Error>> {
    for &count in entries {
        report.progress(&format!("programming {count} entries"));
        let mut world: World<NodeCompiler> = World::new(allowed(count))?;
        let compile = Instant::now();
        let mut program = world.compile();
        let compile = compile.elapsed();

        let node = NetNs::create()?;
        let mut backend = node.within(|| NftBackend::new(NftOptions::default()))??;
        let load = Instant::now();
        match backend.replace(&program) {
            Ok(_) => {}
            Err(error @ ApplyError::TooLarge { .. }) => {
                report.skipped(&format!("full load of {count}: {error}"));
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        let load = load.elapsed();

        let (mut kernel, mut compiled) = (Vec::new(), Vec::new());
        for number in count..count + ADDITIONS {
            world.apply(remote(number))?;
            let start = Instant::now();
            let next = world.compile();
            let diff = ProgramDiff::between(&program, &next);
            compiled.push(start.elapsed().as_secs_f64() * 1e6);
            let start = Instant::now();
            backend.update(&program, &next, &diff)?;
            kernel.push(start.elapsed().as_secs_f64() * 1e6);
            program = next;
        }
        report.programming(
            count,
            compile.as_secs_f64() * 1e3,
            load.as_secs_f64() * 1e3,
            median(compiled.clone()),
            median(kernel.clone()),
            percentile(kernel, 99),
        );
    }
    Ok(())
}
