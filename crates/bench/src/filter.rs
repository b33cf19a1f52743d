//! The packet filters that are compared, each behind the same few calls.

use std::error::Error;
use std::fmt;
use std::process::{Command, Stdio};
use std::time::Instant;

use ringfence_dataplane::iptables::Variant;
use ringfence_dataplane::{
    Applied, ApplyError, Backend, Demand, IptablesBackend, IptablesOptions, NftBackend, NftOptions,
};
use ringfence_lab::NetNs;
use ringfence_model::Object;

use crate::cluster::World;
use crate::report::{Report, chain};

/// A way to enforce policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Filter {
    Nftables,
    Iptables(Variant),
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Filter::Nftables => f.write_str("nftables"),
            Filter::Iptables(variant) => write!(f, "iptables-{variant}"),
        }
    }
}

/// What one change took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Compiling and finding the difference, in milliseconds.
    pub(crate) compile: f64,
    /// Writing, until the kernel enforces it, in milliseconds.
    pub(crate) write: f64,
    pub(crate) applied: Applied,
}

/// A program in force. To be called in its network namespace.
pub(crate) trait Enforced {
    /// Writes everything anew, next to what is there.
    fn reload(&mut self) -> Result<Sample, Box<dyn Error>>;

    /// Brings these objects of the cluster into force, as one change.
    fn change(&mut self, objects: Vec<Object>) -> Result<Sample, Box<dyn Error>>;
}

struct Enforcer<B: Backend> {
    backend: B,
    world: World<<B::Demand as Demand>::Compiler>,
    in_force: B::Demand,
}

impl Filter {
    /// nftables, and those variants of iptables that have their tools and a kernel that takes them.
    pub(crate) fn available(report: &mut Report) -> Result<Vec<Filter>, Box<dyn Error>> {
        let mut filters = vec![Filter::Nftables];
        for variant in Variant::ALL {
            let filter = Filter::Iptables(variant);
            match NetNs::create()?.within(|| filter.enforce(Vec::new()))? {
                Ok(_) => filters.push(filter),
                Err(error) => report.skipped(&format!("{filter}: {}", chain(&*error))),
            }
        }
        Ok(filters)
    }

    /// Enforces what the policies of `objects` say, in the network namespace of the calling thread.
    pub(crate) fn enforce(self, objects: Vec<Object>) -> Result<(Box<dyn Enforced>, Sample), Box<dyn Error>> {
        match self {
            Filter::Nftables => enforce(NftBackend::new(NftOptions::default())?, objects),
            Filter::Iptables(variant) => {
                let options = IptablesOptions { variant: Some(variant), ..IptablesOptions::default() };
                enforce(IptablesBackend::open(options)?, objects)
            }
        }
    }
}

/// Whether the nft command, which loads baselines, can be run; else says what that costs.
pub(crate) fn has_nft(report: &mut Report, without: &str) -> bool {
    let found = Command::new("nft").arg("--version").stdout(Stdio::null()).status();
    let error = match found {
        Ok(status) if status.success() => return true,
        Ok(status) => format!("nft --version: {status}"),
        Err(error) => error.to_string(),
    };
    report.skipped(&format!("{without}: cannot run nft (install nftables): {error}"));
    false
}

fn enforce<B: Backend + 'static>(
    mut backend: B,
    objects: Vec<Object>,
) -> Result<(Box<dyn Enforced>, Sample), Box<dyn Error>> {
    let start = Instant::now();
    let mut world: World<<B::Demand as Demand>::Compiler> = World::new(objects)?;
    let in_force = world.compile();
    let compile = milliseconds(start);
    let (write, applied) = timed(|| backend.replace(&in_force))?;
    Ok((Box::new(Enforcer { backend, world, in_force }), Sample { compile, write, applied }))
}

impl<B: Backend> Enforced for Enforcer<B> {
    fn reload(&mut self) -> Result<Sample, Box<dyn Error>> {
        let (write, applied) = timed(|| self.backend.replace(&self.in_force))?;
        Ok(Sample { compile: 0.0, write, applied })
    }

    fn change(&mut self, objects: Vec<Object>) -> Result<Sample, Box<dyn Error>> {
        for object in objects {
            self.world.apply(object)?;
        }
        let start = Instant::now();
        let next = self.world.compile();
        let diff = self.in_force.difference(&next);
        let compile = milliseconds(start);
        let (write, applied) = match diff {
            Some(diff) => timed(|| self.backend.update(&self.in_force, &next, &diff))?,
            // The filters differ in what they need to know. With the usual sizes every change is one for all of them.
            None => (0.0, Applied::default()),
        };
        self.in_force = next;
        Ok(Sample { compile, write, applied })
    }
}

fn timed(write: impl FnOnce() -> Result<Applied, ApplyError>) -> Result<(f64, Applied), ApplyError> {
    let start = Instant::now();
    let applied = write()?;
    Ok((milliseconds(start), applied))
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
