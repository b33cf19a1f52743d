//! The command line. Words and exit codes are a contract: scripts depend on them.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use ringfence_dataplane::iptables::Mark;
use ringfence_model::PodNetwork;

use crate::reach::ReachOptions;

/// Kubernetes NetworkPolicy for any cluster: who may reach whom, by manifests, by packets, on the node.
///
/// Exit codes: 0 yes or clean, 1 findings or differences, 2 wrong usage or a failure.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
pub(crate) struct Args {
    /// When to use colours.
    #[arg(long, value_enum, default_value_t = When::Auto, global = true)]
    pub(crate) color: When,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// A choice that a terminal can make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum When {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show all pod pairs and ports, by the compiled policies.
    ///
    /// Ports are those the destination declares; if it declares none, those that policies name by number, and TCP 80.
    Matrix {
        #[command(flatten)]
        input: Input,
        /// How to print it.
        #[arg(short, long, value_enum, default_value_t = MatrixFormat::Table)]
        output: MatrixFormat,
    },
    /// Build the cluster from network namespaces and send real packets.
    #[command(subcommand)]
    Lab(LabCommand),
    /// Print what would be programmed on a node.
    Render {
        #[command(flatten)]
        input: Input,
        /// The node. Can be left out when there is only one.
        #[arg(long)]
        node: Option<String>,
        /// Whether to print what the agent does with addresses in the node's spec.podCIDRs that no pod of the input has.
        #[arg(long, value_enum, default_value_t = UnknownPodsName::Allow)]
        unknown_pods: UnknownPodsName,
        #[command(flatten)]
        reach: ReachOptions,
        #[command(flatten)]
        filter: Filter,
    },
    /// Enforce the policies on this node, as they change, until told to terminate.
    Agent(AgentOptions),
    /// Ask the agent of this node how it is.
    ///
    /// Exit codes: 0 all that is known is enforced, 1 it is not, 2 no agent answers.
    Status(StatusOptions),
    /// Say what on this host would make policies fail: settings, masquerading, rules of others.
    ///
    /// Looks and changes nothing. Exit code 1 if there is a problem.
    Doctor(DoctorOptions),
    /// Let pods start only when their policies are in force: the plugin for the node's container runtime.
    #[command(subcommand)]
    Cni(CniCommand),
    /// Remove everything ringfence has put into this host's packet filter.
    Cleanup {
        /// Only from this packet filter. Default: from all.
        #[arg(long, value_enum)]
        backend: Option<BackendName>,
    },
    /// Say which ringfence this is.
    Version {
        /// How to print it.
        #[arg(short, long, value_enum, default_value_t = VersionFormat::Text)]
        output: VersionFormat,
    },
    /// Print what a shell needs to complete the words of this command.
    ///
    /// For bash: ringfence completions bash > /usr/share/bash-completion/completions/ringfence
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write those of all commands into a folder.
    Man {
        /// A folder such as /usr/local/share/man/man1; made if it does not exist.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum LabCommand {
    /// Build, enforce, probe all pairs and paths, compare with the specification; exit 1 if any connection differs.
    ///
    /// Needs no root and no Kubernetes: everything lives in namespaces of this process and is gone when it ends.
    Run {
        #[command(flatten)]
        input: Input,
        #[command(flatten)]
        filter: Filter,
        #[command(flatten)]
        reach: ReachOptions,
        #[command(flatten)]
        network: Network,
        /// How to print the result.
        #[arg(short, long, value_enum, default_value_t = LabFormat::Table)]
        output: LabFormat,
        /// Leave the lab up until Ctrl-C, to try things in it with `ringfence lab exec`.
        #[arg(long)]
        keep: bool,
    },
    /// Run a command inside a pod or node of a lab that runs with --keep.
    Exec {
        /// A pod as namespace/name, an external host by its address, a node by its name, or `node` for the first.
        end: String,
        /// The lab, by its process id. Can be left out when only one runs.
        #[arg(long)]
        lab: Option<u32>,
        /// The command and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

/// What the doctor looks at.
#[derive(Debug, ClapArgs)]
pub(crate) struct DoctorOptions {
    /// Where pods have their addresses. Without it, guessed from the rules on the host.
    #[arg(long, value_name = "CIDR")]
    pub(crate) pod_cidr: Vec<IpNet>,
    /// Ask the API server what the owner of these credentials may do. In a pod, its service account is asked about anyway.
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// How the agents run, or shall run. What these options restore is not reported as lost.
    #[command(flatten)]
    pub(crate) reach: ReachOptions,
    /// Write a small program to this packet filter, in a network namespace that is gone afterwards. Loads the kernel modules
    /// that are needed.
    #[arg(long = "try", value_enum, value_name = "BACKEND")]
    pub(crate) trial: Option<BackendName>,
    /// How to print the findings.
    #[arg(short, long, value_enum, default_value_t = DoctorFormat::Text)]
    pub(crate) output: DoctorFormat,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CniCommand {
    /// Put the plugin behind those of the network that the runtime uses. Changes nothing when it is there.
    Install(CniInstall),
    /// Take the plugin out of all networks and remove its program. Changes nothing when that is done.
    ///
    /// The program stays while there are pods that were started with it: the runtime may call it when they end.
    Uninstall {
        #[command(flatten)]
        place: CniPlace,
        /// Remove the program all the same.
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct CniPlace {
    /// Where the runtime looks for plugins.
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub(crate) bin_dir: PathBuf,
    /// Where the runtime looks for network configurations.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub(crate) conf_dir: PathBuf,
    /// The agent's run directory.
    #[arg(long, value_name = "DIR", default_value = ringfence_control::RUN_DIRECTORY)]
    pub(crate) run_dir: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct CniInstall {
    #[command(flatten)]
    pub(crate) place: CniPlace,
    /// The configuration's file name. Default: the first, which is what runtimes use.
    #[arg(long, value_name = "FILE")]
    pub(crate) conf: Option<String>,
    /// How long a pod's start waits for its policies.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub(crate) cni_timeout: u32,
    /// What becomes of a pod whose policies are not in force by then.
    #[arg(long, value_enum, default_value_t = OnTimeoutName::Fail)]
    pub(crate) on_timeout: OnTimeoutName,
    /// Pods of this namespace start all the same; repeat it for several.
    #[arg(long, value_name = "NAMESPACE")]
    pub(crate) continue_for: Vec<String>,
    /// If there is no network yet, wait for one.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub(crate) wait: u32,
    /// Stay, and put the plugin back whenever a network plugin has written its configuration without it.
    #[arg(long, conflicts_with = "wait")]
    pub(crate) keep: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnTimeoutName {
    /// It does not start; the runtime tries again later.
    Fail,
    /// It starts.
    Continue,
}

/// How the agent of a node runs.
#[derive(Debug, ClapArgs)]
pub(crate) struct AgentOptions {
    /// The API server and the credentials to follow it with. Without this and --source, the API server of the cluster
    /// that the agent is a pod of.
    #[arg(long, value_name = "PATH", conflicts_with = "source")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Another context of the kubeconfig than the current one.
    #[arg(long, value_name = "NAME", requires = "kubeconfig")]
    pub(crate) context: Option<String>,
    /// Instead of an API server: dir:PATH is a folder of manifests, which is followed. Pods need spec.nodeName and
    /// status.podIPs. Put files in place by renaming them.
    #[arg(long, value_name = "dir:PATH")]
    pub(crate) source: Option<SourceName>,
    /// The node, as in spec.nodeName of its pods.
    #[arg(long, env = "NODE_NAME")]
    pub(crate) node: String,
    #[command(flatten)]
    pub(crate) filter: Filter,
    #[command(flatten)]
    pub(crate) reach: ReachOptions,
    /// A file with more networks as --no-masquerade-cidr names them, one on each line, comments after #. It is followed; while
    /// it is wrong or away, what it said last counts.
    #[arg(long, value_name = "PATH")]
    pub(crate) no_masquerade_file: Option<PathBuf>,
    /// Whether to tell other nodes of this one, where --enforce-at or --node-traffic makes them ask: the addresses of its bridges
    /// and tunnels, and what it enforces, as annotations ringfence.io/node-addresses and ringfence.io/enforcement of its Node.
    /// That needs the right to patch Nodes. Without, somebody else has to write them.
    #[arg(long, value_name = "true|false", default_value_t = true, action = clap::ArgAction::Set)]
    pub(crate) publish_addresses: bool,
    /// What an address in this node's spec.podCIDRs gets while no known pod has it.
    ///
    /// A pod can send before the source tells its address, and until then no policy is enforced for it. With deny, such an
    /// address is no end of a new connection, except with this node itself. So new pods wait for the network until the source
    /// has told their addresses, and do without it while the source is away. Nothing is refused as long as no Node tells the
    /// ranges.
    #[arg(long, value_enum, default_value_t = UnknownPodsName::Deny)]
    pub(crate) unknown_pods: UnknownPodsName,
    /// Where to answer /livez and /readyz.
    #[arg(long, value_name = "ADDRESS:PORT|off", default_value = "127.0.0.1:9440")]
    pub(crate) health_listen: Listen,
    /// Where to answer /metrics.
    #[arg(long, value_name = "ADDRESS:PORT|off", default_value = "127.0.0.1:9441")]
    pub(crate) metrics_listen: Listen,
    /// Where to keep the socket that `ringfence status` and the CNI plugin ask, and where the plugin announces the addresses of
    /// new pods. Made if it is not there. With off nobody can ask, and pods are known by their status only.
    #[arg(long, value_name = "DIR|off", default_value = ringfence_control::RUN_DIRECTORY)]
    pub(crate) run_dir: RunDirectory,
    /// What becomes of the policies when the agent is told to terminate.
    #[arg(long, value_enum, default_value_t = OnExitName::Keep)]
    pub(crate) on_exit: OnExitName,
    /// How often to look for changes that others have made to ringfence's rules, and to mend them. With nftables they are
    /// heard of at once, and this is for what was not heard.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=86400))]
    pub(crate) resync: u32,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
}

/// What `ringfence status` asks.
#[derive(Debug, ClapArgs)]
pub(crate) struct StatusOptions {
    /// Where the agent keeps its socket.
    #[arg(long, value_name = "DIR", default_value = ringfence_control::RUN_DIRECTORY)]
    pub(crate) run_dir: PathBuf,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = StatusFormat::Text)]
    pub(crate) output: StatusFormat,
    /// Wait until all that is known is enforced, for at most so long. Without a number: a minute.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "60")]
    pub(crate) wait: Option<u32>,
}

/// The value of the agent's `--run-dir`.
#[derive(Clone, Debug)]
pub(crate) enum RunDirectory {
    Off,
    At(PathBuf),
}

impl std::str::FromStr for RunDirectory {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<RunDirectory, Self::Err> {
        match text {
            "off" => Ok(RunDirectory::Off),
            "" => Err("neither a directory nor off"),
            path => Ok(RunDirectory::At(path.into())),
        }
    }
}

/// The value of `--source`.
#[derive(Clone, Debug)]
pub(crate) enum SourceName {
    Directory(PathBuf),
}

impl std::str::FromStr for SourceName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<SourceName, Self::Err> {
        match text.split_once(':') {
            Some(("dir", path)) if !path.is_empty() => Ok(SourceName::Directory(path.into())),
            _ => Err("not a source; there is dir:PATH"),
        }
    }
}

/// The value of `--health-listen` and `--metrics-listen`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Listen {
    Off,
    At(SocketAddr),
}

impl std::str::FromStr for Listen {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Listen, Self::Err> {
        match text {
            "off" => Ok(Listen::Off),
            address => address.parse().map(Listen::At).map_err(|_| "neither an address with a port nor off"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum UnknownPodsName {
    /// No connection except with its node.
    Deny,
    /// Everything, as if it were a pod that no policy selects.
    Allow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnExitName {
    /// They stay in force.
    Keep,
    /// They are removed.
    Cleanup,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// For programs, an object a line.
    Json,
}

/// Where the cluster comes from.
#[derive(Debug, ClapArgs)]
pub(crate) struct Input {
    /// Manifests: files, directories (all .yaml, .yml and .json below them), or - for standard input.
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
    /// Range for pods without an address; give one of each family for dual stack. Without it: the podCIDRs of the pod's
    /// Node, else 10.244.0.0/16.
    #[arg(long, value_name = "CIDR")]
    pub(crate) pod_cidr: Vec<IpNet>,
}

/// The packet filter, and what it does.
#[derive(Debug, ClapArgs)]
pub(crate) struct Filter {
    /// The packet filter.
    #[arg(long, value_enum, default_value_t = BackendName::Nftables)]
    pub(crate) backend: BackendName,
    /// What happens to refused packets: an error for the sender, or silence.
    #[arg(long, value_enum, default_value_t = DenyName::Reject)]
    pub(crate) deny_action: DenyName,
    /// Which iptables to write to (backend iptables).
    #[arg(long, value_enum, value_name = "VARIANT", default_value_t = VariantName::Auto)]
    pub(crate) iptables: VariantName,
    /// The bit of the packet mark that the rules use, such as 0x1000 (backend iptables).
    #[arg(long)]
    pub(crate) mark: Option<Mark>,
    /// Enforce policies only towards peers in this range; repeat it for several. Default: everywhere (backend iptables).
    #[arg(long, value_name = "CIDR")]
    pub(crate) pod_ip_range: Vec<IpNet>,
}

/// The network that the lab plays. A Topology object in the input says the same; flags win.
#[derive(Debug, ClapArgs)]
pub(crate) struct Network {
    /// How many nodes to deal the pods out to. Default: the nodes of the input, or one.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(crate) nodes: Option<u8>,
    /// How packets between pods travel: routed, bridge (one on each node), vxlan (bridges and an overlay between nodes), or a
    /// file with a Topology, to be read with the input.
    #[arg(long, value_name = "routed|bridge|vxlan|FILE")]
    pub(crate) topology: Option<TopologyName>,
    /// Which packets of pods leave their node under the node's address.
    #[arg(long, value_enum)]
    pub(crate) masquerade: Option<MasqueradeName>,
    /// Let every call of a Service leave under the node's address, as with kube-proxy --masquerade-all.
    #[arg(long)]
    pub(crate) masquerade_all: bool,
    /// Manifests of another cluster, whose nodes, pods and Services have names and addresses of their own; repeat it for
    /// several clusters. There are routes between them, to the Services too, and the same agent runs in each. What
    /// --no-masquerade-cidr says is about the pods of PATH.
    #[arg(long, value_name = "PATH")]
    pub(crate) other_cluster: Vec<PathBuf>,
}

/// The value of `--topology`.
#[derive(Clone, Debug)]
pub(crate) enum TopologyName {
    Network(PodNetwork),
    File(PathBuf),
}

impl std::str::FromStr for TopologyName {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<TopologyName, Self::Err> {
        Ok(match text {
            "routed" => TopologyName::Network(PodNetwork::Routed),
            "bridge" => TopologyName::Network(PodNetwork::Bridge),
            "vxlan" => TopologyName::Network(PodNetwork::Vxlan),
            file => TopologyName::File(file.into()),
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum MasqueradeName {
    /// None.
    None,
    /// Those to addresses that are neither a pod's nor a node's.
    Outside,
    /// Those to pods of other nodes as well: a misconfiguration that hides sources from policies.
    Pods,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DenyName {
    /// TCP reset, or ICMP "administratively prohibited".
    Reject,
    /// Nothing.
    Drop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum VariantName {
    /// The one that kubelet and kube-proxy use on this host.
    Auto,
    /// iptables over nf_tables.
    Nft,
    /// The older kernel interface.
    Legacy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StatusFormat {
    /// For people.
    Text,
    /// For programs; the field names are stable.
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DoctorFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum VersionFormat {
    /// For people.
    Text,
    /// For programs; the field names are stable.
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum MatrixFormat {
    /// For people.
    Table,
    /// For programs; the field names are stable.
    Json,
    /// Comma-separated values, a line for each cell.
    Csv,
    /// A Markdown table.
    Md,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LabFormat {
    /// For people.
    Table,
    /// For programs; the field names are stable.
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendName {
    /// One nftables table of our own, `inet ringfence`.
    Nftables,
    /// Chains and ipsets of our own in the filter tables of iptables and ip6tables: a chain for each namespace, policy and
    /// rule.
    Iptables,
}
