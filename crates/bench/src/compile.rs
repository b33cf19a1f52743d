//! What compiling costs on the node of a large cluster: all of it at the start, and each change after that.
//!
//! Every size is measured in a process of its own, because the most memory that a process had is known for all of it.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::Instant;

use clap::{Args, ValueEnum};
use comfy_table::Table;
use nix::sys::resource::{UsageWho, getrusage};
use ringfence_compile::acl::AclCompiler;
use ringfence_compile::{Compiler, NodeCompiler};
use ringfence_dataplane::Demand;
use ringfence_model::{Object, ObjectKey};
use serde::{Deserialize, Serialize};

use crate::cluster::World;
use crate::mix::Mix;
use crate::process::Memory;
use crate::report::{Report, markdown, median, percentile};

/// How compiling is measured.
#[derive(Args, Clone, Debug)]
#[group(skip)]
pub(crate) struct Options {
    /// Sizes for compile, the smallest first: PODS/POLICIES, or PODS/POLICIES/NAMESPACES.
    #[arg(long, value_delimiter = ',')]
    #[arg(default_values = ["1000/100", "10000/1000", "100000/10000", "100000/75000/25000"])]
    compile_sizes: Vec<Size>,
    /// What is compiled to.
    #[arg(long, value_delimiter = ',', default_values = ["gates", "list"])]
    compile_shapes: Vec<Shape>,
    /// How often each change is compiled.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    compile_rounds: u32,
    /// Policies of one pod, besides those of the size.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    compile_hot_policies: u32,
    /// Namespaces that the node's pods are in; else as many as it has pods, and no more than there are. With the same number
    /// for all sizes, what grows with the node's own policies does not count as growth.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=110))]
    compile_local_namespaces: Option<u32>,
    /// Measure the one size here and print it for the process that started this one.
    #[arg(long, hide = true)]
    pub(crate) compile_here: bool,
}

/// A size of cluster, as it is given on the command line: `PODS/POLICIES`, or `PODS/POLICIES/NAMESPACES`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Size {
    pods: u32,
    policies: u32,
    namespaces: u32,
}

impl Size {
    pub(crate) fn mix(self) -> Mix {
        let mix = Mix::new(self.pods, self.policies);
        Mix { namespaces: self.namespaces, local_namespaces: mix.local_pods.min(self.namespaces), ..mix }
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let numbers: Result<Vec<u32>, _> = text.split('/').map(str::parse).collect();
        let (pods, policies, namespaces) = match numbers.as_deref() {
            Ok([pods, policies]) => (*pods, *policies, Mix::new(*pods, *policies).namespaces),
            Ok([pods, policies, namespaces]) => (*pods, *policies, *namespaces),
            _ => return Err("write PODS/POLICIES, or PODS/POLICIES/NAMESPACES".to_owned()),
        };
        if pods == 0 || namespaces == 0 || pods > 1_000_000 || policies > 1_000_000 {
            return Err("from 1 to 1000000 pods, up to 1000000 policies, at least 1 namespace".to_owned());
        }
        Ok(Size { pods, policies, namespaces })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.pods, self.policies, self.namespaces)
    }
}

/// What is compiled to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Shape {
    /// The program of nftables.
    Gates,
    /// The list of iptables.
    List,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Shape::Gates => "gates (nftables)",
            Shape::List => "list (iptables)",
        })
    }
}

/// What is changed. Each goes back and forth or round, so the cluster stays as large as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Event {
    RemotePodAdded,
    RemotePodDeleted,
    RemotePodLabel,
    LocalPodAdded,
    LocalPodDeleted,
    LocalPodLabel,
    NamespaceLabel,
    PolicyAdded,
    PolicyDeleted,
    PolicyChanged,
    PolicyElsewhere,
    WideAdded,
    WideChanged,
    WideDeleted,
    HotPolicy,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Event::RemotePodAdded => "remote pod added",
            Event::RemotePodDeleted => "remote pod deleted",
            Event::RemotePodLabel => "label of a remote pod changed",
            Event::LocalPodAdded => "local pod added",
            Event::LocalPodDeleted => "local pod deleted",
            Event::LocalPodLabel => "label of a local pod changed",
            Event::NamespaceLabel => "label of a namespace changed",
            Event::PolicyAdded => "policy added",
            Event::PolicyDeleted => "policy deleted",
            Event::PolicyChanged => "policy changed",
            Event::PolicyElsewhere => "policy of no local pod changed",
            Event::WideAdded => "policy of 1,000 pods added",
            Event::WideChanged => "policy of 1,000 pods changed",
            Event::WideDeleted => "policy of 1,000 pods deleted",
            Event::HotPolicy => "one of many policies of one pod changed",
        })
    }
}

/// What one size was measured to cost with one compiler.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Costs {
    size: Size,
    shape: Shape,
    /// Filing all objects and compiling the first program, in milliseconds.
    from_scratch_ms: f64,
    from_scratch_processor_ms: f64,
    /// The most that was resident, with all objects, in MB.
    peak_mb: f64,
    /// What was resident of it before the first object was made.
    before_mb: f64,
    events: BTreeMap<Event, Quantiles>,
}

/// In the unit of the samples: here microseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Quantiles {
    pub(crate) median: f64,
    pub(crate) p99: f64,
    pub(crate) slowest: f64,
}

impl Quantiles {
    pub(crate) fn of(samples: Vec<f64>) -> Quantiles {
        Quantiles {
            median: median(samples.clone()),
            p99: percentile(samples.clone(), 99),
            slowest: percentile(samples, 100),
        }
    }
}

/// Measures each size in a process of its own.
pub(crate) fn measure(options: &Options, report: &mut Report) -> Result<(), Box<dyn Error>> {
    let sizes = &options.compile_sizes;
    for (shape, size) in options.compile_shapes.iter().flat_map(|shape| sizes.iter().map(move |size| (shape, size))) {
        report.progress(&format!("compiling to {shape}: {size} pods/policies/namespaces"));
        let name = shape.to_possible_value().ok_or("no name")?;
        let mut child = Command::new(std::env::current_exe()?);
        child.args(["--parts", "compile", "--compile-here"]);
        child.args(["--compile-rounds", &options.compile_rounds.to_string()]);
        child.args(["--compile-hot-policies", &options.compile_hot_policies.to_string()]);
        if let Some(namespaces) = options.compile_local_namespaces {
            child.args(["--compile-local-namespaces", &namespaces.to_string()]);
        }
        child.args(["--compile-shapes", name.get_name()]);
        let output = child.args(["--compile-sizes", &size.to_string()]).stderr(Stdio::inherit()).output()?;
        if !output.status.success() {
            return Err(format!("compiling {size}: {}", output.status).into());
        }
        report.compile.push(serde_json::from_slice(&output.stdout)?);
    }
    Ok(())
}

/// Measures the first size in this process and prints it for [`measure`].
#[allow(clippy::print_stdout, reason = "the answer to the process that asked")]
pub(crate) fn measure_here(options: &Options) -> Result<(), Box<dyn Error>> {
    let size = options.compile_sizes.first().copied().ok_or("no size")?;
    let mix = size.mix();
    let most = mix.local_namespaces;
    let local_namespaces = options.compile_local_namespaces.map_or(most, |asked| asked.min(most));
    let mix = Mix { local_namespaces, hot_policies: options.compile_hot_policies, ..mix };
    let shape = options.compile_shapes.first().copied().ok_or("no shape")?;
    let costs = match shape {
        Shape::Gates => costs::<NodeCompiler>(shape, size, &mix, options.compile_rounds)?,
        Shape::List => costs::<AclCompiler>(shape, size, &mix, options.compile_rounds)?,
    };
    println!("{}", serde_json::to_string(&costs)?);
    Ok(())
}

fn costs<C: Compiler>(shape: Shape, size: Size, mix: &Mix, rounds: u32) -> Result<Costs, Box<dyn Error>>
where
    C::Output: Demand,
{
    let before_mb = Memory::of("self")?.resident;
    let objects: Vec<Object> = mix.objects().collect();
    let (start, processor) = (Instant::now(), processor_ms()?);
    let mut world: World<C> = World::new(objects)?;
    let mut program_now = world.compile();
    let from_scratch_ms = start.elapsed().as_secs_f64() * 1e3;
    let from_scratch_processor_ms = processor_ms()? - processor;
    let peak_mb = Memory::of("self")?.peak;

    let mut samples: BTreeMap<Event, Vec<f64>> = BTreeMap::new();
    for round in 0..rounds {
        for (event, change) in changes(mix, round) {
            let start = Instant::now();
            match change {
                Change::Apply(object) => world.apply(object)?,
                Change::Delete(key) => world.delete(&key),
            }
            let next = world.compile();
            let difference = program_now.difference(&next);
            samples.entry(event).or_default().push(start.elapsed().as_secs_f64() * 1e6);
            drop(difference);
            program_now = next;
        }
    }
    let events = samples.into_iter().map(|(event, samples)| (event, Quantiles::of(samples))).collect();
    Ok(Costs { size, shape, from_scratch_ms, from_scratch_processor_ms, peak_mb, before_mb, events })
}

#[allow(clippy::large_enum_variant, reason = "used at once")]
pub(crate) enum Change {
    Apply(Object),
    Delete(ObjectKey),
}

/// The changes of one round, in the order in which they are made.
pub(crate) fn changes(mix: &Mix, round: u32) -> Vec<(Event, Change)> {
    let apply = |event, object: Object| (event, Change::Apply(object));
    let delete = |event, object: &Object| (event, Change::Delete(object.key()));
    let pod = |number, changes| Object::Pod(mix.pod(number, changes));
    let remote_pods = mix.pods - mix.local_pods;
    let new = pod(mix.pods + round, 0);
    let remote = (mix.local_pods + round * 97 % remote_pods.max(1), 1 + round * 97 / remote_pods.max(1));
    let local = Object::Pod(mix.local_pod(mix.pods + round, 0));
    let local_changed = (round % mix.local_pods, 1 + round / mix.local_pods);
    let namespace = round % mix.namespaces;
    let local_namespaces = mix.local_namespaces;
    let kinds = (mix.policies / mix.namespaces).max(1);
    let policy = round % local_namespaces + round / local_namespaces % kinds * mix.namespaces;
    let added = round % local_namespaces + (kinds + round % 10) * mix.namespaces;
    let elsewhere = mix.namespaces - 1 + round % kinds * mix.namespaces;
    let policy_of = |number, changes| Object::Policy(mix.policy(number, changes));
    let wide = |port: u32| Object::Policy(mix.wide_policy(4_000 + (port % 1_000) as u16));
    vec![
        apply(Event::RemotePodAdded, new.clone()),
        delete(Event::RemotePodDeleted, &new),
        apply(Event::RemotePodLabel, pod(remote.0, remote.1)),
        apply(Event::LocalPodAdded, local.clone()),
        delete(Event::LocalPodDeleted, &local),
        apply(Event::LocalPodLabel, pod(local_changed.0, local_changed.1)),
        apply(Event::NamespaceLabel, Object::Namespace(mix.namespace(namespace, namespace + 1 + round))),
        apply(Event::PolicyAdded, policy_of(added, 0)),
        delete(Event::PolicyDeleted, &policy_of(added, 0)),
        apply(Event::PolicyChanged, policy_of(policy, 1 + round)),
        apply(Event::PolicyElsewhere, policy_of(elsewhere, 1 + round)),
        apply(Event::WideAdded, wide(2 * round)),
        apply(Event::WideChanged, wide(2 * round + 1)),
        delete(Event::WideDeleted, &wide(0)),
        apply(Event::HotPolicy, Object::Policy(mix.hot_policy(round % mix.hot_policies.max(1), 1 + round))),
    ]
}

/// Processor time of this process so far, in milliseconds.
fn processor_ms() -> Result<f64, nix::Error> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let ms = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 * 1e3 + time.tv_usec() as f64 / 1e3;
    Ok(ms(usage.user_time()) + ms(usage.system_time()))
}

/// What all sizes cost from scratch, and each change at each size.
pub(crate) fn tables(all: &[Costs]) -> Vec<(String, Table)> {
    let mut scratch = markdown(&[
        "pods",
        "policies",
        "namespaces",
        "program",
        "from scratch, ms",
        "processor, ms",
        "most resident, MB",
        "of it before, MB",
    ]);
    for costs in all {
        scratch.add_row([
            costs.size.pods.to_string(),
            costs.size.policies.to_string(),
            costs.size.namespaces.to_string(),
            costs.shape.to_string(),
            format!("{:.0}", costs.from_scratch_ms),
            format!("{:.0}", costs.from_scratch_processor_ms),
            format!("{:.0}", costs.peak_mb),
            format!("{:.0}", costs.before_mb),
        ]);
    }
    let mut tables = vec![("Compiling from scratch: filing all objects, and the first program".to_owned(), scratch)];
    for shape in Shape::value_variants() {
        let of: Vec<&Costs> = all.iter().filter(|costs| costs.shape == *shape).collect();
        // Of several with as many pods, that with the fewest namespaces: the smallest has few.
        let by = |costs: &&&Costs| (costs.size.pods, std::cmp::Reverse(costs.size.namespaces));
        let (Some(smallest), Some(largest)) = (of.iter().min_by_key(by), of.iter().max_by_key(by)) else {
            continue;
        };
        let mut header = vec!["change".to_owned()];
        header.extend(of.iter().map(|costs| format!("{}, µs", costs.size)));
        header.push("growth of the median".to_owned());
        let mut table = markdown(&header.iter().map(String::as_str).collect::<Vec<_>>());
        for (event, quantiles) in &largest.events {
            let mut row = vec![event.to_string()];
            row.extend(of.iter().map(|costs| {
                costs.events.get(event).map_or_else(String::new, |q| format!("{:.0} / {:.0}", q.median, q.p99))
            }));
            let before = smallest.events.get(event).map_or(0.0, |quantiles| quantiles.median);
            row.push(format!("{:.1}", quantiles.median / before));
            table.add_row(row);
        }
        tables.push((
            format!("One change, filed, compiled and compared: {shape} (median / p99; growth to {})", largest.size),
            table,
        ));
    }
    tables
}
