//! The packet filters that are compared, each behind the same few calls.

use std::error::Error;
use std::fmt;
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};
use ringfence_dataplane::iptables::Variant;
use ringfence_dataplane::{
    Applied, ApplyError, Backend, Demand, IptablesBackend, IptablesOptions, NftBackend, NftOptions,
};
use ringfence_lab::NetNs;
use ringfence_model::{Object, ObjectKey};

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
    /// Processor time of that, of the tools too, in milliseconds. What the kernel puts off, such as freeing, is not in it.
    pub(crate) processor: f64,
    pub(crate) applied: Applied,
}

/// A program in force. To be called in its network namespace.
pub(crate) trait Enforced {
    /// Writes everything anew, next to what is there.
    fn reload(&mut self) -> Result<Sample, Box<dyn Error>>;

    /// Brings these objects of the cluster into force, as one change.
    fn change(&mut self, objects: Vec<Object>) -> Result<Sample, Box<dyn Error>>;

    /// Takes one object out of the cluster.
    fn delete(&mut self, key: &ObjectKey) -> Result<Sample, Box<dyn Error>>;

    /// Writes what is in force into the calling thread's network namespace, too.
    fn copy(&self) -> Result<Box<dyn Loaded>, Box<dyn Error>>;
}

/// Tables that nothing will change any more.
pub(crate) trait Loaded {
    /// Takes them away. To be called in their network namespace.
    fn clear(&mut self) -> Result<(), ApplyError>;
}

impl<B: Backend> Loaded for B {
    fn clear(&mut self) -> Result<(), ApplyError> {
        self.cleanup()
    }
}

struct Enforcer<B: Backend> {
    open: Box<dyn Fn() -> Result<B, ApplyError>>,
    backend: B,
    world: World<<B::Demand as Demand>::Compiler>,
    in_force: B::Demand,
}

impl Filter {
    /// nftables, and those variants of iptables that have their tools and a kernel that takes them; of these the ones with
    /// the given names, or all.
    pub(crate) fn available(names: &[String], report: &mut Report) -> Result<Vec<Filter>, Box<dyn Error>> {
        let is_asked = |filter: &Filter| names.is_empty() || names.contains(&filter.to_string());
        let mut filters: Vec<Filter> = [Filter::Nftables].into_iter().filter(is_asked).collect();
        for filter in Variant::ALL.map(Filter::Iptables).into_iter().filter(is_asked) {
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
            Filter::Nftables => enforce(|| NftBackend::new(NftOptions::default()), objects),
            Filter::Iptables(variant) => enforce(
                move || IptablesBackend::open(IptablesOptions { variant: Some(variant), ..IptablesOptions::default() }),
                objects,
            ),
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
    open: impl Fn() -> Result<B, ApplyError> + 'static,
    objects: Vec<Object>,
) -> Result<(Box<dyn Enforced>, Sample), Box<dyn Error>> {
    let mut backend = open()?;
    let start = Instant::now();
    let mut world: World<<B::Demand as Demand>::Compiler> = World::new(objects)?;
    let in_force = world.compile();
    let compile = milliseconds(start);
    let sample = timed(compile, || backend.replace(&in_force))?;
    Ok((Box::new(Enforcer { open: Box::new(open), backend, world, in_force }), sample))
}

impl<B: Backend + 'static> Enforced for Enforcer<B> {
    fn reload(&mut self) -> Result<Sample, Box<dyn Error>> {
        timed(0.0, || self.backend.replace(&self.in_force))
    }

    fn change(&mut self, objects: Vec<Object>) -> Result<Sample, Box<dyn Error>> {
        for object in objects {
            self.world.apply(object)?;
        }
        self.follow()
    }

    fn delete(&mut self, key: &ObjectKey) -> Result<Sample, Box<dyn Error>> {
        self.world.delete(key);
        self.follow()
    }

    fn copy(&self) -> Result<Box<dyn Loaded>, Box<dyn Error>> {
        let mut backend = (self.open)()?;
        backend.replace(&self.in_force)?;
        Ok(Box::new(backend))
    }
}

impl<B: Backend> Enforcer<B> {
    /// Brings what the cluster is now into force.
    fn follow(&mut self) -> Result<Sample, Box<dyn Error>> {
        let start = Instant::now();
        let next = self.world.compile();
        let diff = self.in_force.difference(&next);
        let compile = milliseconds(start);
        let sample = match diff {
            Some(diff) => timed(compile, || self.backend.update(&self.in_force, &next, &diff))?,
            // The filters differ in what they need to know.
            None => Sample { compile, write: 0.0, processor: 0.0, applied: Applied::default() },
        };
        self.in_force = next;
        Ok(sample)
    }
}

fn timed(compile: f64, write: impl FnOnce() -> Result<Applied, ApplyError>) -> Result<Sample, Box<dyn Error>> {
    let processor = processor_ms()?;
    let start = Instant::now();
    let applied = write()?;
    let write = milliseconds(start);
    Ok(Sample { compile, write, processor: processor_ms()? - processor, applied })
}

/// Processor time of this process and of the tools it has run, so far, in milliseconds.
fn processor_ms() -> Result<f64, nix::Error> {
    let mut total = 0.0;
    for who in [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN] {
        let usage = getrusage(who)?;
        for time in [usage.user_time(), usage.system_time()] {
            total += time.tv_sec() as f64 * 1e3 + time.tv_usec() as f64 / 1e3;
        }
    }
    Ok(total)
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
