//! The loop of a node: the only writer. Events of the source become batches, a batch one program, a program one apply.
//! Programs on the node ask in between; announced sandboxes do not wait for a batch.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use ipnet::IpNet;
use ringfence_compile::acl::{AclBelieved, Members, SetId, SetRole};
use ringfence_compile::{Acl, Believed, Program};
use ringfence_dataplane::{ApplyError, Backend};
use ringfence_model::Direction;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::time::sleep_until;
use tracing::info;

use crate::Agent;
use crate::guard::Bell;
use crate::networks;
use crate::node::Node;
use crate::server::Query;
use crate::source::{CAPACITY, Event};
use crate::status::Status;
use crate::succession::Succession;
use crate::trouble::PolicyTrouble;

/// What is enforced after the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExit {
    /// The last program. A restart takes over from it.
    Keep,
    /// Nothing.
    Cleanup,
}

/// How the loop runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How often to look whether others have changed what is ours.
    pub resync: Duration,
    /// What to leave behind.
    pub on_exit: OnExit,
    /// Where sandboxes are announced by files, if anywhere.
    pub run_directory: Option<PathBuf>,
}

/// Whom the loop listens to, and who listens to it.
#[derive(Debug)]
pub struct Inputs {
    /// What the source reports.
    pub events: Receiver<Event>,
    /// What programs on the node ask, if there is a control socket.
    pub queries: Option<Receiver<Query>>,
    /// Hears of each policy that has something wrong, when that is new or different. Nobody waits for it.
    pub troubles: Option<Sender<PolicyTrouble>>,
    /// Networks towards which sources are kept, if they may change.
    pub networks: Option<Networks>,
}

/// Networks towards which the node's pods keep their addresses.
#[derive(Debug)]
pub struct Networks {
    /// Those that are always meant.
    pub fixed: Vec<IpNet>,
    /// What the file with more of them says first.
    pub first: networks::Reading,
    /// What it says later.
    pub readings: Receiver<networks::Reading>,
}

impl Inputs {
    /// The source and nothing else.
    pub fn new(events: Receiver<Event>) -> Inputs {
        Inputs { events, queries: None, troubles: None, networks: None }
    }
}

/// Why the loop has ended without having been told to, or has not left behind what it should.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The source is gone for good. The last program stays in force.
    #[error("the source has ended; the policies stay in force as they are")]
    SourceEnded,
    /// The very first attempt to write. Trying again would not help.
    #[error(
        "changing the packet filter needs the capability CAP_NET_ADMIN in the node's network namespace: run the agent as \
         root, or give its container the capability NET_ADMIN and the host's network ({})",
        explained(.0)
    )]
    NotPermitted(ApplyError),
    /// The cleanup at the end.
    #[error("cannot clean up: {}", explained(.0))]
    Cleanup(ApplyError),
}

/// What programs tell about themselves in numbers.
pub trait Numbered {
    /// Its own number: greater is newer.
    fn generation(&self) -> u64;

    /// How many peer classes one direction has; nothing where there are none by design.
    fn peer_classes(&self, direction: Direction) -> Option<usize>;

    /// The addresses that are isolated in some direction, those of pods of other nodes included.
    fn isolated(&self) -> BTreeSet<IpAddr>;

    /// How far other nodes are believed.
    fn trust(&self) -> Trust;
}

/// How far a program believes other nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// How many addresses of other nodes are believed.
    pub addresses: usize,
    /// About how many endpoints, where only some count.
    pub endpoints: usize,
}

impl Numbered for Program {
    fn generation(&self) -> u64 {
        self.generation
    }

    fn peer_classes(&self, direction: Direction) -> Option<usize> {
        let side = match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        };
        Some(side.classes.len())
    }

    fn isolated(&self) -> BTreeSet<IpAddr> {
        self.ingress.subjects.keys().chain(self.egress.subjects.keys()).copied().collect()
    }

    fn trust(&self) -> Trust {
        let endpoints = match &self.reach.believed {
            Believed::Endpoints(endpoints) => endpoints.len(),
            Believed::Nothing | Believed::LocalPods | Believed::Everything => 0,
        };
        Trust { addresses: self.reach.nodes.len(), endpoints }
    }
}

impl Numbered for Acl {
    fn generation(&self) -> u64 {
        self.generation
    }

    fn peer_classes(&self, _: Direction) -> Option<usize> {
        None
    }

    fn isolated(&self) -> BTreeSet<IpAddr> {
        let sets = self.sets.values().filter(|set| set.role == SetRole::Isolated);
        let members = sets.filter_map(|set| match &set.members {
            Members::Addresses(addresses) => Some(addresses),
            Members::Endpoints(_) | Members::Networks { .. } => None,
        });
        members.flatten().copied().collect()
    }

    fn trust(&self) -> Trust {
        let size = |id: SetId| match self.sets.get(&id).map(|set| &set.members) {
            Some(Members::Addresses(addresses)) => addresses.len(),
            Some(Members::Endpoints(endpoints)) => endpoints.len(),
            Some(Members::Networks { .. }) | None => 0,
        };
        let endpoints = match self.reach.believed {
            AclBelieved::Endpoints(id) => size(id),
            AclBelieved::Nothing | AclBelieved::LocalPods | AclBelieved::Everything => 0,
        };
        Trust { addresses: self.reach.nodes.map_or(0, size), endpoints }
    }
}

/// Keeps the packet filter true to what the source says, until `stop`.
///
/// Nothing is written before the first complete state. When writing fails, what is in force stays, and it is tried again
/// after a pause that grows; events are taken in meanwhile. When the source fails, the last state stays in force and is
/// still guarded against others. What other packet filters hold is cleared once the first program is in force.
///
/// # Errors
/// See [`RunError`].
pub async fn run<B: Backend<Demand: Numbered>>(
    agent: Agent<B>,
    mut inputs: Inputs,
    stop: impl Future<Output = ()>,
    settings: Settings,
    succession: Succession,
    status: &Status,
) -> Result<(), RunError> {
    let bell = Bell::new(agent.backend().alarm());
    let mut node = Node::new(agent, &settings, &inputs, succession, status);
    let mut stop = pin!(stop);
    let (mut events, mut queries) = (Vec::new(), Vec::new());
    loop {
        status.turn();
        tokio::select! {
            biased;
            () = &mut stop => break,
            // All that waits belongs to one batch.
            count = inputs.events.recv_many(&mut events, CAPACITY) => {
                if count == 0 {
                    return Err(RunError::SourceEnded);
                }
            }
            Some(query) = asked(inputs.queries.as_mut()) => queries.push(query),
            Some(reading) = reread(inputs.networks.as_mut()) => node.networks(reading),
            () = bell.rings(), if !node.rung => node.rung = true,
            () = sleep_until(node.next()) => {}
        }
        for event in events.drain(..) {
            node.take(event);
        }
        // A source in a storm keeps nobody from asking. All who ask by now share one apply.
        if let Some(waiting) = &mut inputs.queries {
            queries.extend(std::iter::from_fn(|| waiting.try_recv().ok()).take(CAPACITY));
        }
        for query in queries.drain(..) {
            node.ask(query);
        }
        node.work()?;
    }
    match settings.on_exit {
        OnExit::Keep => info!("stopped; what is in force stays"),
        OnExit::Cleanup => {
            node.agent.cleanup().map_err(RunError::Cleanup)?;
            info!("stopped; nothing is enforced any more");
        }
    }
    Ok(())
}

/// The next query. Nothing when nobody can ask any more.
async fn asked(queries: Option<&mut Receiver<Query>>) -> Option<Query> {
    queries?.recv().await
}

/// The next reading of the networks. Nothing when there is none to come.
async fn reread(networks: Option<&mut Networks>) -> Option<networks::Reading> {
    networks?.readings.recv().await
}

/// An error with its causes, on one line.
pub fn explained(error: &ApplyError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    on_one_line(&text)
}

/// Hints stand on lines of their own where people read them.
pub(crate) fn on_one_line(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests;
