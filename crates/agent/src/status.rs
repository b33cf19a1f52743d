//! What the loop tells about itself, for others to read at any time: metrics, and the report of `ringfence status`.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use ringfence_control::{Condition, Counts, LastApply, NodesApart, StatusReport};
use ringfence_model::{Direction, Enforcement};
use tokio::time::Instant;

use crate::trouble::TroubleKind;

/// The loop is taken for stuck when it has not turned for so long. A full load of many ipsets takes its time.
const STUCK: Duration = Duration::from_secs(60);
/// How many conditions are remembered; those that are over go first.
const MOST_CONDITIONS: usize = 64;
/// Bytes of a message. What comes from users, or from a tool, can be long.
const LONGEST_MESSAGE: usize = 1024;

/// A name and a value.
type Label = [(&'static str, &'static str); 1];
type Number = Gauge<u64, AtomicU64>;

/// What does not change while the agent runs.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// The release.
    pub version: String,
    /// The node.
    pub node: String,
    /// The packet filter's backend.
    pub backend: String,
    /// Where the state of the cluster comes from, for people.
    pub source: String,
}

/// What a [`Condition`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Topic {
    Source,
    PacketFilter,
    Policy,
    Node,
    Drift,
    Announcement,
    Networks,
}

impl Topic {
    fn name(self) -> &'static str {
        match self {
            Topic::Source => "source",
            Topic::PacketFilter => "packet filter",
            Topic::Policy => "policy",
            Topic::Node => "node",
            Topic::Drift => "drift",
            Topic::Announcement => "announcement",
            Topic::Networks => "networks",
        }
    }
}

/// What the loop tells about itself.
#[derive(Debug)]
pub struct Status {
    about: About,
    started: Instant,
    /// When the loop turned last, in seconds after `started`.
    turned: AtomicU64,
    ready: AtomicBool,
    told: Mutex<Told>,
    registry: Registry,
    apply_duration: Family<Label, Histogram, fn() -> Histogram>,
    programming_duration: Histogram,
    pub(crate) apply_errors: Counter,
    pub(crate) in_sync: Gauge,
    source_up: Gauge,
    pub(crate) generation: Number,
    pub(crate) drift_repairs: Counter,
    pub(crate) source_errors: Counter,
    policy_errors: Family<Label, Number>,
    peer_classes: Family<Label, Number>,
    pods: Number,
    local_pods: Number,
    isolated_pods: Number,
    policies: Number,
    announced_sandboxes: Number,
    enforcement: Family<Vec<(&'static str, &'static str)>, Number>,
    nodes_apart: Number,
    remote_pods: Number,
    believed_addresses: Number,
    believed_endpoints: Number,
    unmasqueraded: Number,
}

/// What metrics have no form for.
#[derive(Debug, Default)]
struct Told {
    source_fails: bool,
    /// When the oldest change was received that is not in force yet.
    waiting_since: Option<Instant>,
    last_apply: Option<(&'static str, Duration, Instant)>,
    counts: Counts,
    enforcement: Enforcement,
    unmasqueraded: Vec<String>,
    nodes_apart: NodesApart,
    conditions: VecDeque<Noticed>,
    remarks: Vec<String>,
}

#[derive(Debug)]
struct Noticed {
    topic: Topic,
    message: String,
    now: bool,
    at: Instant,
}

impl Default for Status {
    fn default() -> Status {
        Status::new(About::default())
    }
}

impl Status {
    /// The status of an agent that has done nothing yet.
    pub fn new(about: About) -> Status {
        // A millisecond to half a minute.
        let histogram: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 2.0, 16));
        let mut status = Status {
            about,
            started: Instant::now(),
            turned: AtomicU64::new(0),
            ready: AtomicBool::new(false),
            told: Mutex::default(),
            registry: Registry::with_prefix("ringfence"),
            apply_duration: Family::new_with_constructor(histogram),
            programming_duration: histogram(),
            apply_errors: Counter::default(),
            in_sync: Gauge::default(),
            source_up: Gauge::default(),
            generation: Gauge::default(),
            drift_repairs: Counter::default(),
            source_errors: Counter::default(),
            policy_errors: Family::default(),
            peer_classes: Family::default(),
            pods: Gauge::default(),
            local_pods: Gauge::default(),
            isolated_pods: Gauge::default(),
            policies: Gauge::default(),
            announced_sandboxes: Gauge::default(),
            enforcement: Family::default(),
            nodes_apart: Gauge::default(),
            remote_pods: Gauge::default(),
            believed_addresses: Gauge::default(),
            believed_endpoints: Gauge::default(),
            unmasqueraded: Gauge::default(),
        };
        for kind in [TroubleKind::Invalid, TroubleKind::NotProgrammed] {
            status.policy_errors.get_or_create(&[("reason", kind.name())]).set(0);
        }
        status.register();
        status
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("build", "The running release", Info::new([("version", self.about.version.clone())]));
        let (help, duration) = ("Time to compile and write a program", self.apply_duration.clone());
        registry.register_with_unit("apply_duration", help, Unit::Seconds, duration);
        let help = "Time from the moment the oldest change of a batch was received until it was in force";
        let duration = self.programming_duration.clone();
        registry.register_with_unit("policy_programming_duration", help, Unit::Seconds, duration);
        registry.register("apply_errors", "Attempts to write or repair that failed", self.apply_errors.clone());
        registry.register(
            "in_sync",
            "Whether the last attempt to write or repair succeeded: what is known is enforced",
            self.in_sync.clone(),
        );
        registry.register("program_generation", "Number of the program in force", self.generation.clone());
        registry.register("drift_repairs", "Times that others' changes were mended", self.drift_repairs.clone());
        registry.register("source_up", "Whether all of the state could be read last time", self.source_up.clone());
        registry.register(
            "source_errors",
            "Failures to read the state, those that repeat the one before not counted",
            self.source_errors.clone(),
        );
        let help = "Policies that are not enforced as they stand, and allow nothing, by reason";
        registry.register("policy_errors", help, self.policy_errors.clone());
        let help = "Sets of pods that pass the same gates of this node, by direction; nftables only";
        registry.register("peer_classes", help, self.peer_classes.clone());
        registry.register("pods", "Pods of the whole cluster in the state that is enforced", self.pods.clone());
        registry.register("local_pods", "Pods of this node that policies can select", self.local_pods.clone());
        let help = "Pods of this node that some policy isolates in some direction";
        registry.register("isolated_pods", help, self.isolated_pods.clone());
        registry.register("policies", "Policies of the whole cluster", self.policies.clone());
        let help = "Sandboxes of this node that the CNI plugin has announced";
        registry.register("announced_sandboxes", help, self.announced_sandboxes.clone());
        self.register_reach();
    }

    /// What tells of connections beyond those of the node's own pods.
    fn register_reach(&mut self) {
        let registry = &mut self.registry;
        let help = "Where policies are enforced and whose node addresses are exempt: 1 for the choice that was made";
        registry.register("enforcement", help, self.enforcement.clone());
        let help = "Other nodes that do not announce the same enforcement";
        registry.register("nodes_apart", help, self.nodes_apart.clone());
        let help = "Isolated pods of other nodes to which this node judges connections";
        registry.register("remote_isolated_pods", help, self.remote_pods.clone());
        let help = "Addresses of other nodes whose judgement is believed";
        registry.register("believed_node_addresses", help, self.believed_addresses.clone());
        let help = "Endpoints of this node's pods about which other nodes are believed, where only some count";
        registry.register("believed_endpoints", help, self.believed_endpoints.clone());
        let help = "Networks towards which pods keep their addresses, whatever else masquerades";
        registry.register("unmasqueraded_networks", help, self.unmasqueraded.clone());
    }

    /// How the agent enforces.
    pub(crate) fn enforces(&self, enforcement: Enforcement) {
        let labels = vec![("at", enforcement.at.as_str()), ("node_traffic", enforcement.node_traffic.as_str())];
        self.enforcement.get_or_create(&labels).set(1);
        self.told().enforcement = enforcement;
    }

    /// Towards which networks sources are kept, and which nodes enforce otherwise.
    pub(crate) fn reaches(&self, unmasqueraded: Vec<String>, nodes_apart: NodesApart) {
        self.unmasqueraded.set(unmasqueraded.len() as u64);
        self.nodes_apart.set(nodes_apart.count);
        let mut told = self.told();
        (told.unmasqueraded, told.nodes_apart) = (unmasqueraded, nodes_apart);
    }

    /// The loop is alive.
    pub(crate) fn turn(&self) {
        self.turned.store(self.started.elapsed().as_secs(), Ordering::Relaxed);
    }

    /// A program is in force.
    pub(crate) fn applied(&self, mode: &'static str, took: Duration) {
        self.apply_duration.get_or_create(&[("mode", mode)]).observe(took.as_secs_f64());
        self.told().last_apply = Some((mode, took, Instant::now()));
        self.ready.store(true, Ordering::Relaxed);
    }

    /// A change that was received at `since` is not in force yet.
    pub(crate) fn waits(&self, since: Instant) {
        let oldest = &mut self.told().waiting_since;
        *oldest = Some(oldest.map_or(since, |oldest| oldest.min(since)));
    }

    /// All changes received so far are in force.
    pub(crate) fn caught_up(&self) {
        if let Some(since) = self.told().waiting_since.take() {
            self.programming_duration.observe(since.elapsed().as_secs_f64());
        }
    }

    /// What there is in the state that is in force.
    pub(crate) fn count(&self, counts: Counts) {
        self.pods.set(counts.pods);
        self.local_pods.set(counts.local_pods);
        self.isolated_pods.set(counts.isolated_pods);
        self.policies.set(counts.policies);
        self.announced_sandboxes.set(counts.sandboxes);
        self.remote_pods.set(counts.remote_pods);
        self.believed_addresses.set(counts.believed_addresses);
        self.believed_endpoints.set(counts.believed_endpoints);
        self.told().counts = counts;
    }

    /// How many peer classes a direction of the program has.
    pub(crate) fn count_peer_classes(&self, direction: Direction, count: usize) {
        let direction = match direction {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        };
        self.peer_classes.get_or_create(&[("direction", direction)]).set(count as u64);
    }

    /// How many policies have a trouble of this kind.
    pub(crate) fn count_troubles(&self, kind: TroubleKind, count: usize) {
        self.policy_errors.get_or_create(&[("reason", kind.name())]).set(count as u64);
    }

    /// Whether the source cannot be read now.
    pub(crate) fn source_fails(&self, fails: bool) {
        self.source_up.set(i64::from(!fails));
        self.told().source_fails = fails;
    }

    /// All that is wrong about a topic now. What was wrong before and is not any more stays known as such for a while.
    pub(crate) fn conditions(&self, topic: Topic, messages: impl IntoIterator<Item = String>) {
        let mut told = self.told();
        let mut messages: Vec<String> = messages.into_iter().map(cut).collect();
        for noticed in told.conditions.iter_mut().filter(|noticed| noticed.topic == topic) {
            noticed.now = false;
            if let Some(position) = messages.iter().position(|message| *message == noticed.message) {
                messages.swap_remove(position);
                (noticed.now, noticed.at) = (true, Instant::now());
            }
        }
        for message in messages {
            told.notice(Noticed { topic, message, now: true, at: Instant::now() });
        }
    }

    /// Something that was wrong and is not any more.
    pub(crate) fn happened(&self, topic: Topic, message: &str) {
        let mut told = self.told();
        told.conditions.retain(|noticed| noticed.topic != topic || noticed.message != message);
        told.notice(Noticed { topic, message: message.to_owned(), now: false, at: Instant::now() });
    }

    /// What the backend has to say.
    pub(crate) fn remarks(&self, remarks: Vec<String>) {
        self.told().remarks = remarks;
    }

    /// Whether something has been enforced.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// Whether the loop turns.
    pub(crate) fn is_live(&self) -> bool {
        self.started.elapsed().as_secs().saturating_sub(self.turned.load(Ordering::Relaxed)) < STUCK.as_secs()
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// How the agent is, all in one.
    pub fn report(&self) -> StatusReport {
        let told = self.told();
        let conditions = told.conditions.iter().map(|noticed| Condition {
            about: noticed.topic.name().to_owned(),
            message: noticed.message.clone(),
            now: noticed.now,
            age_seconds: noticed.at.elapsed().as_secs_f64(),
        });
        let stuck = (!self.is_live()).then(|| Condition {
            about: "loop".to_owned(),
            message: "it has not turned for a minute or longer".to_owned(),
            now: true,
            age_seconds: 0.0,
        });
        let mut conditions: Vec<Condition> = stuck.into_iter().chain(conditions).collect();
        conditions.sort_by(|a, b| a.age_seconds.total_cmp(&b.age_seconds));
        StatusReport {
            version: self.about.version.clone(),
            node: self.about.node.clone(),
            backend: self.about.backend.clone(),
            source: self.about.source.clone(),
            uptime_seconds: self.started.elapsed().as_secs(),
            ready: self.is_ready(),
            in_sync: self.in_sync.get() == 1 && told.waiting_since.is_none(),
            source_ok: !told.source_fails,
            generation: self.generation.get(),
            lag_seconds: told.waiting_since.map_or(0.0, |since| since.elapsed().as_secs_f64()),
            last_apply: told.last_apply.map(|(mode, took, at)| LastApply {
                mode: mode.to_owned(),
                duration_seconds: took.as_secs_f64(),
                age_seconds: at.elapsed().as_secs_f64(),
            }),
            counts: told.counts,
            drift_repairs: self.drift_repairs.get(),
            apply_errors: self.apply_errors.get(),
            source_errors: self.source_errors.get(),
            enforce_at: told.enforcement.at.as_str().to_owned(),
            node_traffic: told.enforcement.node_traffic.as_str().to_owned(),
            unmasqueraded: told.unmasqueraded.clone(),
            nodes_apart: told.nodes_apart.clone(),
            conditions,
            remarks: told.remarks.clone(),
        }
    }

    /// Nothing that holds the lock leaves it half changed.
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Told {
    fn notice(&mut self, noticed: Noticed) {
        if self.conditions.len() >= MOST_CONDITIONS {
            let over = self.conditions.iter().position(|noticed| !noticed.now);
            self.conditions.remove(over.unwrap_or_default());
        }
        self.conditions.push_back(noticed);
    }
}

fn cut(mut message: String) -> String {
    if message.len() > LONGEST_MESSAGE {
        message.truncate(message.floor_char_boundary(LONGEST_MESSAGE));
        message.push('…');
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stuck_loop_is_not_live() {
        let status = Status::default();
        status.turn();
        assert!(status.is_live());
        tokio::time::advance(STUCK).await;
        assert!(!status.is_live());
        assert_eq!(status.report().conditions[0].about, "loop");
        status.turn();
        assert!(status.is_live());
    }

    #[tokio::test(start_paused = true)]
    async fn in_sync_is_when_nothing_waits() {
        let status = Status::default();
        status.in_sync.set(1);
        assert!(status.report().in_sync);
        let first = Instant::now();
        tokio::time::advance(Duration::from_secs(2)).await;
        status.waits(Instant::now());
        status.waits(first);
        status.waits(Instant::now());
        let report = status.report();
        assert!((report.in_sync, report.lag_seconds) == (false, 2.0), "{report:?}");
        status.caught_up();
        let report = status.report();
        assert!((report.in_sync, report.lag_seconds) == (true, 0.0), "{report:?}");
        let mut metrics = String::new();
        prometheus_client::encoding::text::encode(&mut metrics, status.registry()).unwrap();
        for line in ["policy_programming_duration_seconds_sum 2.0\n", "policy_programming_duration_seconds_count 1\n"] {
            assert!(metrics.contains(line), "{metrics}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn conditions_come_and_go() {
        let status = Status::default();
        let seen = |status: &Status| -> Vec<(String, bool)> {
            status.report().conditions.into_iter().map(|condition| (condition.message, condition.now)).collect()
        };
        status.conditions(Topic::Policy, ["a".to_owned(), "b".to_owned()]);
        status.conditions(Topic::Source, ["a".to_owned()]);
        tokio::time::advance(Duration::from_secs(1)).await;
        status.conditions(Topic::Policy, ["b".to_owned()]);
        status.happened(Topic::Drift, "mended");
        tokio::time::advance(Duration::from_secs(1)).await;
        status.happened(Topic::Drift, "mended");
        let expected = [("mended", false), ("b", true), ("a", false), ("a", true)];
        assert_eq!(seen(&status), expected.map(|(message, now)| (message.to_owned(), now)));
        status.conditions(Topic::Policy, (0..1000).map(|number| format!("{number}{}", "é".repeat(2000))));
        let report = status.report();
        assert_eq!(report.conditions.len(), MOST_CONDITIONS);
        assert!(report.conditions.iter().all(|condition| condition.message.len() < LONGEST_MESSAGE + 4));
    }
}
