//! The command line. Words and exit codes are a contract: scripts depend on them.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

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
        /// The packet filter.
        #[arg(long, value_enum, default_value_t = BackendName::Nftables)]
        backend: BackendName,
    },
    /// Remove everything ringfence has put into this host's packet filter.
    Cleanup {
        /// The packet filter.
        #[arg(long, value_enum, default_value_t = BackendName::Nftables)]
        backend: BackendName,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum LabCommand {
    /// Build, enforce, probe all pairs, compare with the specification; exit 1 if any cell differs.
    ///
    /// Needs no root and no Kubernetes: everything lives in namespaces of this process and is gone when it ends.
    /// All pods run on one node; where that changes a verdict, it says so.
    Run {
        #[command(flatten)]
        input: Input,
        /// The packet filter.
        #[arg(long, value_enum, default_value_t = BackendName::Nftables)]
        backend: BackendName,
        /// How to print the result.
        #[arg(short, long, value_enum, default_value_t = LabFormat::Table)]
        output: LabFormat,
        /// Leave the lab up until Ctrl-C, to try things in it with `ringfence lab exec`.
        #[arg(long)]
        keep: bool,
    },
    /// Run a command inside a pod of a lab that runs with --keep.
    Exec {
        /// The pod as namespace/name, an external host by its address, or `node`.
        end: String,
        /// The lab, by its process id. Can be left out when only one runs.
        #[arg(long)]
        lab: Option<u32>,
        /// The command and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
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
}
