//! What is known about a host.

use std::path::PathBuf;

use ipnet::IpNet;
use ringfence_model::Enforcement;

/// What the caller knows about the cluster.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The ranges pod addresses of all nodes are taken from. If empty, they are guessed from rules and routes.
    pub pod_cidrs: Vec<IpNet>,
    /// How the agents run, or shall run.
    pub enforcement: Enforcement,
    /// Pod and Service ranges of other clusters that pods here call.
    pub other_clusters: Vec<IpNet>,
}

/// The outcome of looking at one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading<T> {
    /// It is there.
    Found(T),
    /// It is not there.
    Absent,
    /// It could not be looked at, for this reason.
    Unreadable(String),
}

impl<T> Reading<T> {
    /// What was found, if anything.
    pub fn found(&self) -> Option<&T> {
        match self {
            Reading::Found(found) => Some(found),
            Reading::Absent | Reading::Unreadable(_) => None,
        }
    }
}

/// One of the two families of addresses. Each has its own iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// The command for this family.
    pub fn command(self) -> &'static str {
        match self {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        }
    }

    /// The family of `net`.
    pub fn of(net: &IpNet) -> Family {
        match net {
            IpNet::V4(_) => Family::V4,
            IpNet::V6(_) => Family::V6,
        }
    }
}

/// One of the two packet filters that iptables commands write to. The kernel asks both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variant {
    /// iptables-nft.
    Nft,
    /// iptables-legacy.
    Legacy,
}

impl Variant {
    /// Both.
    pub const ALL: [Variant; 2] = [Variant::Nft, Variant::Legacy];

    /// What follows `iptables-` in the name of its commands.
    pub fn suffix(self) -> &'static str {
        match self {
            Variant::Nft => "nft",
            Variant::Legacy => "legacy",
        }
    }

    /// The other one.
    pub fn other(self) -> Variant {
        match self {
            Variant::Nft => Variant::Legacy,
            Variant::Legacy => Variant::Nft,
        }
    }
}

/// All rules of one variant and family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// Where they are.
    pub variant: Variant,
    /// What they are for.
    pub family: Family,
    /// As iptables-save prints them.
    pub saved: Reading<String>,
}

/// A bridge of the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bridge {
    /// Its name.
    pub name: String,
    /// The devices attached to it.
    pub ports: Vec<String>,
    /// It hands IPv4 packets to the packet filter, whatever the setting for all bridges is.
    pub filters_ipv4: bool,
    /// The same for IPv6.
    pub filters_ipv6: bool,
}

/// Where the addresses of a route are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// On this host, behind a device made for pods or containers.
    Here,
    /// Behind another host.
    Elsewhere,
    /// On a network this host is attached to, or wherever the default route leads.
    Unknown,
    /// Nowhere: packets to them are dropped.
    Nowhere,
}

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The addresses it is for.
    pub destination: IpNet,
    /// The device packets leave through; unknown if there are several.
    pub device: Option<String>,
    /// Where they are.
    pub place: Place,
}

/// A program that `--backend iptables` calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tool {
    /// Its name.
    pub name: &'static str,
    /// Where it is, if it is installed.
    pub path: Option<PathBuf>,
}

/// Whether a kernel module can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleState {
    /// It is in the kernel, or is loaded on demand.
    Available,
    /// The kernel was built without it, or the package it comes in is not installed.
    Missing,
    /// The modules of the running kernel are not to be seen from here, as in a container.
    Unknown,
}

/// A kernel module that a backend needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelModule {
    /// Its name.
    pub name: &'static str,
    /// Whether it can be used.
    pub state: ModuleState,
}

/// The file by which programs that write to iptables-legacy wait for each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockFile {
    /// Where it is.
    pub path: PathBuf,
    /// It is a file, as it must be.
    pub is_file: bool,
    /// Who has held it all the time it was looked at, a moment longer than a change takes.
    pub holder: Option<String>,
}

/// What came of programming something small, in a network of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// The packet filter, as `--backend` calls it.
    pub backend: String,
    /// What the kernel or the tools said, if they refused.
    pub refusal: Option<String>,
}

/// What an agent lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// It does not know the cluster's state.
    Enforcement,
    /// Nobody but who reads its log hears of errors in policies.
    Events,
    /// Other nodes do not hear of its node.
    Announcements,
}

/// Something that the API server does not let the agent do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// Verb and resource, such as `watch networkpolicies.networking.k8s.io`.
    pub what: String,
    /// What an agent is without it.
    pub lost: Lost,
    /// Why, as far as the server says.
    pub reason: String,
}

/// What was seen on one host, in one network namespace.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The pod ranges the caller named.
    pub pod_cidrs: Vec<IpNet>,
    /// How the agents run, or shall run.
    pub enforcement: Enforcement,
    /// Networks of other clusters that the caller named.
    pub other_clusters: Vec<IpNet>,
    /// The networks towards which the agent of this host keeps pods' addresses, if one answers. [`Facts::gather`] does not ask;
    /// who does fills this in.
    pub unmasqueraded: Vec<IpNet>,
    /// net.bridge.bridge-nf-call-iptables.
    pub bridge_nf_call_iptables: Reading<u64>,
    /// net.bridge.bridge-nf-call-ip6tables.
    pub bridge_nf_call_ip6tables: Reading<u64>,
    /// net.ipv4.ip_forward.
    pub ip_forward: Reading<u64>,
    /// net.ipv6.conf.all.forwarding.
    pub ip6_forwarding: Reading<u64>,
    /// net.netfilter.nf_conntrack_count.
    pub conntrack_count: Reading<u64>,
    /// net.netfilter.nf_conntrack_max.
    pub conntrack_max: Reading<u64>,
    /// The bridges.
    pub bridges: Reading<Vec<Bridge>>,
    /// The routes of the main table, both families.
    pub routes: Reading<Vec<Route>>,
    /// The rules of iptables.
    pub rulesets: Vec<Ruleset>,
    /// Which variant the command `iptables` writes to.
    pub iptables_variant: Reading<Variant>,
    /// The names of the IP sets.
    pub ipsets: Reading<Vec<String>>,
    /// Whether the table of the nftables backend exists.
    pub nftables_table: Reading<()>,
    /// The programs that `--backend iptables` calls.
    pub tools: Vec<Tool>,
    /// The kernel modules that `--backend iptables` needs.
    pub modules: Vec<KernelModule>,
    /// The kernel modules that `--backend nftables` needs.
    pub nftables_modules: Vec<KernelModule>,
    /// The lock of iptables-legacy.
    pub xtables_lock: Reading<LockFile>,
    /// What came of trying the packet filter. [`Facts::gather`] does not; who does fills this in.
    pub trial: Reading<Trial>,
    /// What the API server refuses. [`Facts::gather`] does not ask; who does fills this in.
    pub denials: Reading<Vec<Denial>>,
}
