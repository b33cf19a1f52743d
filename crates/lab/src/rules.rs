//! Packet filter rules of the lab itself, written by the programs that people know and in the shapes that they know: Services
//! and masquerading.

use std::io::{self, Write as _};
use std::net::IpAddr;
use std::process::{Command, Stdio};

use ipnet::IpNet;
use ringfence_model::{Masquerade, PodNetwork, Protocol};
use thiserror::Error;

use crate::build_error::BuildError;
use crate::index::NodeIndex;
use crate::kube_proxy::{self, Viewpoint};
use crate::namespace::NetNs;
use crate::services::{Services, Tables};
use crate::spec::{NetworkSpec, Warning};
use crate::wiring::{BRIDGE_NAME, INTERFACE_PREFIX, pod_addresses};

/// Sees the packets that pods send, as the chains do that CNI plugins make.
const MASQUERADE_CHAIN: &str = "LAB-MASQ";

/// Where the programs are that PATH of an ordinary user does not lead to.
const ADMINISTRATORS_PATH: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// Rules that could not be written.
#[derive(Debug, Error)]
pub enum RulesError {
    /// A program that is not there.
    #[error("there is no {program}; install it (Debian: {package})")]
    Missing {
        /// The program.
        program: &'static str,
        /// Which package has it.
        package: &'static str,
    },
    /// A program that could not be run.
    #[error("cannot run {program}: {source}")]
    Run {
        /// The program.
        program: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A program that did not accept what it was given.
    #[error("{program} says: {said}")]
    Refused {
        /// The program.
        program: &'static str,
        /// Its standard error.
        said: String,
    },
}

/// Writes the rules of one node and says what had to be left out.
pub(crate) fn write(spec: &NetworkSpec, node: NodeIndex, namespace: &NetNs) -> Result<Option<Warning>, BuildError> {
    let name = || spec.nodes.get(node.0).map(|node| node.name.clone()).unwrap_or_default();
    write_all(spec, node, namespace)
        .map(|without_sctp| Some(Warning::NoSctpServices { node: name(), reason: without_sctp?.to_string() }))
        .map_err(|source| BuildError::Rules { node: name(), source })
}

fn write_all(spec: &NetworkSpec, node: NodeIndex, namespace: &NetNs) -> Result<Option<RulesError>, RulesError> {
    let cluster = spec.nodes.get(node.0).map_or(0, |node| node.cluster);
    let own = spec.services.of(cluster);
    let services = match (write_services(&own, spec, node, namespace), own.without(Protocol::Sctp)) {
        (Err(refused @ RulesError::Refused { .. }), Some(without_sctp)) => {
            write_services(&without_sctp, spec, node, namespace)?;
            Ok(Some(refused))
        }
        (other, _) => other.map(|()| None),
    };
    // After kube-proxy's, which puts its own rules first.
    for is_v4 in [true, false] {
        if let Some(text) = masquerade(spec, node, is_v4) {
            restore(spec.services.tables, is_v4, &text, namespace)?;
        }
    }
    services
}

fn write_services(
    services: &Services,
    spec: &NetworkSpec,
    node: NodeIndex,
    namespace: &NetNs,
) -> Result<(), RulesError> {
    let prefix = format!("{INTERFACE_PREFIX}+");
    let pod_device = if spec.pod_network == PodNetwork::Routed { prefix.as_str() } else { BRIDGE_NAME };
    for is_v4 in [true, false] {
        if let Some(text) = kube_proxy::rules(services, Viewpoint { node, is_v4, pod_device }) {
            restore(services.tables, is_v4, &text, namespace)?;
        }
    }
    Ok(())
}

/// What a CNI plugin does to packets that its pods send, for `iptables-restore`. `None`: nothing.
fn masquerade(spec: &NetworkSpec, node: NodeIndex, is_v4: bool) -> Option<String> {
    let networks = |addresses: &mut dyn Iterator<Item = IpAddr>| -> Vec<IpNet> {
        IpNet::aggregate(&addresses.filter(|address| address.is_ipv4() == is_v4).map(IpNet::from).collect())
    };
    let pods = networks(&mut pod_addresses(spec, node));
    let spared = match spec.masquerade {
        Masquerade::None => return None,
        Masquerade::Outside => {
            let cluster = spec.nodes.get(node.0).map(|node| node.cluster);
            let nodes = || spec.nodes.iter().enumerate().filter(|(_, other)| Some(other.cluster) == cluster);
            let all_pods = nodes().flat_map(|(number, _)| pod_addresses(spec, NodeIndex(number)));
            let all_nodes = nodes().flat_map(|(_, node)| node.addresses.iter().chain(&node.tunnel_addresses).copied());
            networks(&mut all_pods.chain(all_nodes))
        }
        Masquerade::PodsToo => pods.clone(),
    };
    if pods.is_empty() {
        return None;
    }
    let mut text = format!("*nat\n:{MASQUERADE_CHAIN} - [0:0]\n");
    for pods in pods {
        text.push_str(&format!(
            "-A POSTROUTING -s {pods} -m comment --comment \"lab: ipMasq\" -j {MASQUERADE_CHAIN}\n"
        ));
    }
    for spared in spared {
        text.push_str(&format!("-A {MASQUERADE_CHAIN} -d {spared} -j ACCEPT\n"));
    }
    let multicast = if is_v4 { "224.0.0.0/4" } else { "ff00::/8" };
    text.push_str(&format!("-A {MASQUERADE_CHAIN} ! -d {multicast} -j MASQUERADE\nCOMMIT\n"));
    Some(text)
}

/// Adds the rules of `text` with the program of that variant and family.
fn restore(tables: Tables, is_v4: bool, text: &str, namespace: &NetNs) -> Result<(), RulesError> {
    let program = match (tables, is_v4) {
        (Tables::Nft, true) => "iptables-nft-restore",
        (Tables::Nft, false) => "ip6tables-nft-restore",
        (Tables::Legacy, true) => "iptables-legacy-restore",
        (Tables::Legacy, false) => "ip6tables-legacy-restore",
    };
    run(program, "iptables", &["--noflush"], text, namespace)
}

/// Whether the programs that write rules of this variant are installed.
pub(crate) fn installed(tables: Tables) -> bool {
    let program = match tables {
        Tables::Nft => "iptables-nft-restore",
        Tables::Legacy => "iptables-legacy-restore",
    };
    let path = format!("{}:{ADMINISTRATORS_PATH}", std::env::var("PATH").unwrap_or_default());
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Runs a program in a namespace, with `input` as its standard input.
fn run(
    program: &'static str,
    package: &'static str,
    arguments: &[&str],
    input: &str,
    namespace: &NetNs,
) -> Result<(), RulesError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => RulesError::Missing { program, package },
        _ => RulesError::Run { program, source },
    };
    let path = std::env::var("PATH").unwrap_or_default();
    let spawn = || {
        Command::new(program)
            .args(arguments)
            .env("PATH", format!("{path}:{ADMINISTRATORS_PATH}"))
            // iptables-legacy takes a lock, by default a file that only root can open. What it is about is the
            // namespace it runs in, and that is a file, too.
            .env("XTABLES_LOCKFILE", "/proc/self/ns/net")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
    };
    let mut child = namespace.within(spawn).and_then(|spawned| spawned).map_err(failed)?;
    // A program that gives up early closes its input; what it says about that is the better error.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(RulesError::Refused { program, said });
    }
    written.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{EndpointSpec, NodeSpec, Place};

    fn two_nodes(masquerade: Masquerade) -> NetworkSpec {
        let node = |name: &str, address: &str| NodeSpec {
            name: name.to_owned(),
            addresses: vec![address.parse().unwrap()],
            ..NodeSpec::default()
        };
        let pod = |node, address: &str| EndpointSpec {
            name: "pod".to_owned(),
            place: Place::Pod { node: NodeIndex(node) },
            addresses: vec![address.parse().unwrap()],
            listen: Vec::new(),
        };
        NetworkSpec {
            nodes: vec![node("one", "192.0.2.1"), node("two", "192.0.2.2"), node("empty", "192.0.2.3")],
            endpoints: vec![pod(0, "10.0.0.0"), pod(0, "10.0.0.1"), pod(1, "10.0.1.1")],
            masquerade,
            ..NetworkSpec::default()
        }
    }

    #[test]
    fn masquerading_spares_whom_it_should() {
        let text = |mode, node| masquerade(&two_nodes(mode), NodeIndex(node), true);
        assert_eq!(text(Masquerade::None, 0), None);
        let expected = |spared: &str| {
            let jumps = "-A POSTROUTING -s 10.0.0.0/31 -m comment --comment \"lab: ipMasq\" -j LAB-MASQ\n";
            let last = "-A LAB-MASQ ! -d 224.0.0.0/4 -j MASQUERADE\nCOMMIT\n";
            let spared: String =
                spared.split(' ').map(|network| format!("-A LAB-MASQ -d {network} -j ACCEPT\n")).collect();
            Some(format!("*nat\n:LAB-MASQ - [0:0]\n{jumps}{spared}{last}"))
        };
        let all = "10.0.0.0/31 10.0.1.1/32 192.0.2.1/32 192.0.2.2/31";
        assert_eq!(text(Masquerade::Outside, 0), expected(all));
        assert_eq!(text(Masquerade::PodsToo, 0), expected("10.0.0.0/31"));
        assert_eq!(text(Masquerade::Outside, 2), None);
        assert_eq!(masquerade(&two_nodes(Masquerade::Outside), NodeIndex(0), false), None);
        let mut apart = two_nodes(Masquerade::Outside);
        apart.nodes[1].cluster = 1;
        let own = "10.0.0.0/31 192.0.2.1/32 192.0.2.3/32";
        assert_eq!(masquerade(&apart, NodeIndex(0), true), expected(own));
    }
}
