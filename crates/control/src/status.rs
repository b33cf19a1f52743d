use serde::{Deserialize, Serialize};

/// How an agent is. The JSON of `ringfence status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatusReport {
    /// The agent's version.
    pub version: String,
    /// The node it works for.
    pub node: String,
    /// The packet filter.
    pub backend: String,
    /// Where the state of the cluster comes from, for people.
    pub source: String,
    /// Seconds since it was started.
    pub uptime_seconds: u64,
    /// Something has been enforced since it was started.
    pub ready: bool,
    /// All that the source has reported is enforced.
    pub in_sync: bool,
    /// The source could be read last time.
    pub source_ok: bool,
    /// Number of the program in force; 0 before the first.
    pub generation: u64,
    /// How long the oldest change that is not enforced yet has been waiting, in seconds.
    pub lag_seconds: f64,
    /// The last time the packet filter was written to.
    pub last_apply: Option<LastApply>,
    /// What there is.
    pub counts: Counts,
    /// How often others' changes to the packet filter were mended.
    pub drift_repairs: u64,
    /// How often writing to the packet filter failed.
    pub apply_errors: u64,
    /// How often the source could not be read.
    pub source_errors: u64,
    /// Where policies are enforced, as `--enforce-at` names it. All nodes must do the same.
    pub enforce_at: String,
    /// Whose node addresses are exempt, as `--node-traffic` names it. All nodes must do the same.
    pub node_traffic: String,
    /// The networks towards which the node's pods keep their addresses, whatever else masquerades.
    pub unmasqueraded: Vec<String>,
    /// The nodes that do not announce that they do the same.
    pub nodes_apart: NodesApart,
    /// What is wrong now, or was last, newest first.
    pub conditions: Vec<Condition>,
    /// What the packet filter's backend has to say: what it lacks, what could not be enforced as asked.
    pub remarks: Vec<String>,
}

/// The last time the packet filter was written to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LastApply {
    /// `replace` for all of it, `update` for what differed.
    pub mode: String,
    /// How long it took, in seconds.
    pub duration_seconds: f64,
    /// How long ago it was, in seconds.
    pub age_seconds: f64,
}

/// What there is in the state that is enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Pods of the cluster.
    pub pods: u64,
    /// Pods of this node that policies can select.
    pub local_pods: u64,
    /// Those of them that some policy isolates in some direction.
    pub isolated_pods: u64,
    /// Policies of the cluster.
    pub policies: u64,
    /// Those of them with an error, which allow nothing.
    pub invalid_policies: u64,
    /// Namespaces of the cluster.
    pub namespaces: u64,
    /// Sandboxes that the CNI plugin has announced.
    pub sandboxes: u64,
    /// Pods of other nodes that some policy isolates, and to which this node judges connections.
    pub remote_pods: u64,
    /// Addresses of other nodes whose judgement is believed.
    pub believed_addresses: u64,
    /// Endpoints of this node's pods about which they are believed, where they are about some only.
    pub believed_endpoints: u64,
}

/// Nodes that do not announce what they should.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodesApart {
    /// How many.
    pub count: u64,
    /// Some of their names.
    pub first: Vec<String>,
}

/// Something that is or was wrong.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Condition {
    /// What it is about: `source`, `packet filter`, `policy`, `drift`, ...
    pub about: String,
    /// What is wrong.
    pub message: String,
    /// Whether it still is.
    pub now: bool,
    /// How long ago it was noticed last, in seconds.
    pub age_seconds: f64,
}
