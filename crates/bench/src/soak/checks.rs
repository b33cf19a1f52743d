//! What is looked at, at every quiet point.
//!
//! First the kernel's tables must become what compiling from scratch says; that waits for events under way. From then on nothing
//! changes, so packets and the compiled program have to agree with the oracle at once.

use std::error::Error;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use ringfence_compile::acl::Acl;
use ringfence_compile::{Compiler, Program};
use ringfence_control::{Request, Response, StatusReport};
use ringfence_dataplane::nft::ruleset;
use ringfence_dataplane::{IptablesBackend, IptablesOptions, NftBackend, NftOptions};
use ringfence_model::{Flow, Object, Pod, Protocol, Transport};

use super::Failure;
use super::field::Field;
use super::judge::Judge;
use super::present::{Present, Totals};
use super::vitals::Waits;
use crate::cluster::{OUR_NODE, World};
use crate::filter::Filter;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// Packets of each check.
const PACKETS: usize = 40;
/// Flows of each check that are asked of the program alone.
const FLOWS: usize = 20;
/// How often a packet is sent that should arrive: the machine may be busy.
const ATTEMPTS: usize = 8;

/// What was asked so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Asked {
    pub(super) checks: usize,
    pub(super) packets_passed: usize,
    pub(super) packets_refused: usize,
    /// Packets that had to be sent again before one arrived.
    pub(super) packets_lost: usize,
    pub(super) flows_allowed: usize,
    pub(super) flows_refused: usize,
    /// Of the last check.
    pub(super) elements: Option<usize>,
}

/// A program compiled from scratch, in either shape.
enum Compiled {
    Program(Program),
    Acl(Acl),
}

impl Compiled {
    fn of<'a>(filter: Filter, objects: impl Iterator<Item = &'a Object>) -> Result<Compiled, Failure> {
        fn compile<'a, C: Compiler>(objects: impl Iterator<Item = &'a Object>) -> Result<C::Output, Failure> {
            Ok(World::<C>::new(objects.cloned())?.compile())
        }
        Ok(match filter {
            Filter::Nftables => Compiled::Program(compile::<ringfence_compile::NodeCompiler>(objects)?),
            Filter::Iptables(_) => Compiled::Acl(compile::<ringfence_compile::acl::AclCompiler>(objects)?),
        })
    }

    fn allows(&self, flow: &Flow) -> bool {
        match self {
            Compiled::Program(program) => program.eval(flow).allowed(),
            Compiled::Acl(acl) => acl.eval(flow).allowed(),
        }
    }

    /// Where the kernel differs, as seen in the network namespace of the calling thread by somebody who wrote nothing.
    fn difference(&self, filter: Filter) -> Result<Option<String>, Box<dyn Error>> {
        let drift = match (self, filter) {
            (Compiled::Program(program), _) => NftBackend::new(NftOptions::default())?.difference(program)?,
            (Compiled::Acl(acl), Filter::Iptables(variant)) => {
                let options = IptablesOptions { variant: Some(variant), ..IptablesOptions::default() };
                IptablesBackend::open(options)?.difference(acl)?
            }
            (Compiled::Acl(_), Filter::Nftables) => return Err("a list for nftables".into()),
        };
        Ok(drift.map(|drift| drift.to_string()))
    }

    /// How many elements all sets have.
    fn elements(&self) -> Option<usize> {
        match self {
            Compiled::Program(program) => {
                Some(ruleset(program, NftOptions::default()).sets.iter().map(|(_, elements)| elements.len()).sum())
            }
            Compiled::Acl(_) => None,
        }
    }
}

/// Looks at everything.
pub(super) struct Inspector<'a> {
    pub(super) field: &'a Field,
    pub(super) filter: Filter,
    /// The agent's control socket.
    pub(super) socket: &'a Path,
    pub(super) asked: Asked,
    /// How long the agent took to catch up.
    pub(super) waits: Waits,
    patience: Duration,
    generation: u64,
}

impl<'a> Inspector<'a> {
    pub(super) fn new(field: &'a Field, filter: Filter, socket: &'a Path, patience: Duration) -> Inspector<'a> {
        let (asked, waits) = (Asked::default(), Waits::default());
        Inspector { field, filter, socket, asked, waits, patience, generation: 0 }
    }

    /// One check. Nothing may change meanwhile. `alive` fails when the agent has ended.
    pub(super) fn check(
        &mut self,
        present: &Present<'_>,
        random: &mut fastrand::Rng,
        mut alive: impl FnMut() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        // Pods last: what policies speak of is known then, and each is classified once.
        let is_pod = |object: &&Object| matches!(object, Object::Pod(_));
        let others = present.objects().filter(|object| !is_pod(object));
        let compiled = Compiled::of(self.filter, others.chain(present.objects().filter(is_pod)))?;
        let start = Instant::now();
        while let Some(difference) = self.behind(present, &compiled)? {
            alive()?;
            if start.elapsed() > self.patience {
                return Err(format!("the agent has not caught up within {:?}: {difference}", self.patience).into());
            }
            sleep(LOOK);
        }
        self.waits.add(start.elapsed());
        let judge = Judge::new(present.objects().collect::<Vec<_>>().into_iter())?;
        self.ask_program(&judge, &compiled, present, random)?;
        self.ask_kernel(&judge, &compiled, random)?;
        self.asked.elements = compiled.elements();
        self.asked.checks += 1;
        Ok(())
    }

    /// What is not yet as it should be.
    fn behind(&mut self, present: &Present<'_>, compiled: &Compiled) -> Result<Option<String>, Failure> {
        let status = match ringfence_control::ask(self.socket, &Request::Status, self.patience) {
            Ok(Response::Status(status)) => status,
            // It is starting.
            Err(error) if self.generation == 0 => return Ok(Some(error.to_string())),
            Ok(other) => return Err(format!("the agent answers {other:?}").into()),
            Err(error) => return Err(error.into()),
        };
        self.examine(&status)?;
        let counts = status.counts;
        let told = Totals {
            pods: counts.pods,
            local_pods: counts.local_pods,
            policies: counts.policies,
            invalid_policies: counts.invalid_policies,
            namespaces: counts.namespaces,
        };
        let expected = present.totals(OUR_NODE);
        if told != expected {
            return Ok(Some(format!("there should be {expected:?}, it knows of {told:?}")));
        }
        if !status.in_sync {
            return Ok(Some("it is not in sync".to_owned()));
        }
        self.field
            .node()?
            .within(|| compiled.difference(self.filter).map_err(|error| error.to_string()))?
            .map_err(Into::into)
    }

    /// What must never be, whenever it is looked at.
    fn examine(&mut self, status: &StatusReport) -> Result<(), Failure> {
        let StatusReport { drift_repairs, apply_errors, generation, .. } = status;
        if *drift_repairs > 0 || *apply_errors > 0 {
            let conditions: Vec<&str> = status.conditions.iter().map(|condition| condition.message.as_str()).collect();
            return Err(format!(
                "{drift_repairs} drift repairs and {apply_errors} failures to write, and nobody else writes here: {conditions:?}"
            )
            .into());
        }
        if *generation < self.generation {
            return Err(format!("generation {generation} after {}", self.generation).into());
        }
        self.generation = *generation;
        Ok(())
    }

    /// Flows of pods of our node that are not in the network.
    fn ask_program(
        &mut self,
        judge: &Judge,
        compiled: &Compiled,
        present: &Present<'_>,
        random: &mut fastrand::Rng,
    ) -> Result<(), Failure> {
        let pods = present.objects().filter_map(|object| match object {
            Object::Pod(pod) if !pod.addresses.is_empty() => Some(pod),
            _ => None,
        });
        let (ours, others): (Vec<&Pod>, Vec<&Pod>) = pods.partition(|pod| pod.node.as_deref() == Some(OUR_NODE));
        for _ in 0..FLOWS {
            let Some(&subject) = random.choice(&ours) else { break };
            // Among thousands of pods, one that policies of a namespace speak of would hardly ever be met by chance.
            let near: Vec<&Pod> = match random.u8(..4) {
                0 => Vec::new(),
                1 => others.iter().filter(|pod| !pod.namespace.starts_with("namespace-")).copied().collect(),
                _ => others.iter().chain(&ours).filter(|pod| pod.namespace == subject.namespace).copied().collect(),
            };
            let Some(&peer) = random.choice(if near.is_empty() { &others } else { &near }) else { break };
            let (from, to) = if random.bool() { (subject, peer) } else { (peer, subject) };
            let pair = (random.choice(&from.addresses), random.choice(&to.addresses));
            let (Some(&source), Some(&destination)) = pair else { continue };
            if source.is_ipv4() != destination.is_ipv4() {
                continue;
            }
            let flow = Flow { source, destination, transport: transport(to, random) };
            let (expected, verdict) = judge.verdict(&flow);
            if compiled.allows(&flow) != expected {
                return Err(
                    format!("{flow}: the oracle says {verdict:?}, the program compiled from scratch differs").into()
                );
            }
            if expected {
                self.asked.flows_allowed += 1;
            } else {
                self.asked.flows_refused += 1;
            }
        }
        Ok(())
    }

    /// Packets through the network.
    fn ask_kernel(&mut self, judge: &Judge, compiled: &Compiled, random: &mut fastrand::Rng) -> Result<(), Failure> {
        let mut flows: Vec<Flow> = (0..PACKETS).filter_map(|_| self.field.flow(random)).collect();
        for attempt in 0..ATTEMPTS {
            let passed = self.field.pass(&flows)?;
            let mut again = Vec::new();
            for (flow, passed) in flows.into_iter().zip(passed) {
                let (expected, verdict) = judge.verdict(&flow);
                let last = attempt + 1 == ATTEMPTS;
                match (expected, passed) {
                    (true, true) => self.asked.packets_passed += 1,
                    (false, false) => self.asked.packets_refused += 1,
                    (true, false) if !last => again.push(flow),
                    _ => {
                        let (wrong, done) =
                            if passed { ("allow", "let it through") } else { ("deny", "did not let it through") };
                        let program = if compiled.allows(&flow) { "allows" } else { "refuses" };
                        return Err(format!(
                            "wrong {wrong}: {flow}: the oracle says {verdict:?}, the program compiled from scratch {program} it, the kernel {done}"
                        )
                        .into());
                    }
                }
            }
            self.asked.packets_lost += again.len();
            flows = again;
            if flows.is_empty() {
                break;
            }
        }
        Ok(())
    }
}

/// A port that the destination has a name for, or that policies of the crowd speak of, or near by.
fn transport(to: &Pod, random: &mut fastrand::Rng) -> Transport {
    if let (true, Some(port)) = (random.bool(), random.choice(&to.ports)) {
        return Transport::Port(port.protocol, port.port);
    }
    let kind = if &*to.namespace == "kube-system" { 0 } else { random.u8(..6) };
    let (protocol, port) = match kind {
        0 => (if random.bool() { Protocol::Udp } else { Protocol::Tcp }, 53),
        1 => (Protocol::Tcp, 443),
        2 => (Protocol::Tcp, 29_990 + random.u16(..100)),
        3 => (Protocol::Udp, 4_242),
        4 => return Transport::Icmp(8),
        _ => (Protocol::Tcp, 8_000 + random.u16(..40)),
    };
    Transport::Port(protocol, port)
}
