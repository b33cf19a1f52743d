//! The rules that kube-proxy would write in iptables mode, as text for `iptables-restore`.
//!
//! Chains and names are kube-proxy's, so that a packet meets the same translations in the same places and an
//! administrator finds what a real node has. They are appended to what is there. KUBE-FORWARD accepts what is about to be
//! masqueraded, whoever sent it, so an agent has to keep its rules before it, here as on a real node.
//!
//! Which traffic is a local pod's is told by the device it comes in through, as with `--detect-local-mode
//! BridgeInterface` or `InterfaceNamePrefix`: addresses of pods follow no pattern here.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use ringfence_model::ExternalTraffic;
use sha2::{Digest as _, Sha256};

use crate::index::NodeIndex;
use crate::services::{Backend, ServicePortSpec, ServiceSpec, Services};

/// The bit of the packet mark that asks for masquerading.
const MASQUERADE_MARK: &str = "0x4000";

/// How much of a hash is in the name of a chain, which may have 28 characters.
const HASH_LENGTH: usize = 16;

/// The longest comment that the packet filter takes, with a closing zero.
const COMMENT_LENGTH: usize = 255;

/// Whose rules they are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Viewpoint<'a> {
    pub(crate) node: NodeIndex,
    /// IPv4 or IPv6: each has tables of its own.
    pub(crate) is_v4: bool,
    /// The device that packets of local pods come in through; a trailing `+` stands for anything.
    pub(crate) pod_device: &'a str,
}

/// The rules of one node for one family. `None`: no Service has an address of it.
pub(crate) fn rules(services: &Services, viewpoint: Viewpoint<'_>) -> Option<String> {
    let ours = |address: &IpAddr| address.is_ipv4() == viewpoint.is_v4;
    if !services.list.iter().any(|service| service.cluster_ips.iter().any(ours)) {
        return None;
    }
    let mut tables = Tables::new();
    for service in &services.list {
        let cluster_ips: Vec<IpAddr> = service.cluster_ips.iter().copied().filter(ours).collect();
        if cluster_ips.is_empty() {
            continue;
        }
        for port in &service.ports {
            let backends = port.backends.iter().filter(|backend| ours(&backend.address)).collect();
            let port = Port {
                service,
                port,
                cluster_ips: &cluster_ips,
                backends,
                name: port_name(service, port),
                masquerade_all: services.masquerade_all,
                viewpoint,
            };
            port.write(&mut tables);
        }
    }
    // Last, so that a cluster IP that is a node's address as well is a cluster IP.
    let loopback = if viewpoint.is_v4 { "127.0.0.0/8" } else { "::1/128" };
    tables.nat.rule("KUBE-SERVICES", &format!("! -d {loopback} -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS"));
    Some(tables.nat.text() + &tables.filter.text())
}

/// One port of a Service in one family.
struct Port<'a> {
    service: &'a ServiceSpec,
    port: &'a ServicePortSpec,
    cluster_ips: &'a [IpAddr],
    backends: Vec<&'a Backend>,
    /// `namespace/name:port`
    name: String,
    masquerade_all: bool,
    viewpoint: Viewpoint<'a>,
}

impl Port<'_> {
    fn write(&self, tables: &mut Tables) {
        if self.backends.is_empty() {
            self.refuse(tables);
            return;
        }
        let service_chain = self.chain("SVC", "");
        tables.nat.chain(&service_chain);
        for &cluster_ip in self.cluster_ips {
            let matched = self.at(Some(cluster_ip), self.port.port, "cluster IP");
            tables.nat.rule("KUBE-SERVICES", &format!("{matched} -j {service_chain}"));
            let from = if self.masquerade_all { String::new() } else { format!("! -i {} ", self.viewpoint.pod_device) };
            tables.nat.rule(&service_chain, &format!("{from}{matched} -j KUBE-MARK-MASQ"));
        }
        for backend in &self.backends {
            let address = backend.address;
            let chain = self.backend_chain(backend);
            tables.nat.chain(&chain);
            // A backend that reaches itself must get its answers through here, not from itself.
            tables.nat.rule(&chain, &format!("-s {} {} -j KUBE-MARK-MASQ", IpNet::from(address), self.comment("")));
            let to = SocketAddr::new(address, backend.port);
            let protocol = self.protocol();
            tables.nat.rule(
                &chain,
                &format!("-p {protocol} -m {protocol} {} -j DNAT --to-destination {to}", self.comment("")),
            );
        }
        let all = self.backends.iter().map(|backend| self.backend_chain(backend)).collect();
        self.choose(tables, &service_chain, all);
        if let Some(node_port) = self.port.node_port {
            self.write_external(tables, node_port, &service_chain);
        }
    }

    /// What happens to connections to a node port.
    fn write_external(&self, tables: &mut Tables, node_port: u16, service_chain: &str) {
        let external_chain = self.chain("EXT", "");
        tables.nat.chain(&external_chain);
        let matched = self.at(None, node_port, "");
        tables.nat.rule("KUBE-NODEPORTS", &format!("{matched} -j {external_chain}"));
        match self.service.external_traffic_policy {
            ExternalTraffic::Cluster => {
                let comment = self.comment("masquerade traffic for external destinations");
                tables.nat.rule(&external_chain, &format!("{comment} -j KUBE-MARK-MASQ"));
                tables.nat.rule(&external_chain, &format!("-j {service_chain}"));
            }
            ExternalTraffic::Local => {
                let comment = self.comment("pod traffic for external destinations");
                let pods = format!("-i {} {comment}", self.viewpoint.pod_device);
                tables.nat.rule(&external_chain, &format!("{pods} -j {service_chain}"));
                let node =
                    format!("{} -m addrtype --src-type LOCAL", self.comment("node traffic for external destinations"));
                tables.nat.rule(&external_chain, &format!("{node} -j KUBE-MARK-MASQ"));
                tables.nat.rule(&external_chain, &format!("{node} -j {service_chain}"));
                let local = self.backends.iter().filter(|backend| backend.node == self.viewpoint.node);
                let local: Vec<String> = local.map(|backend| self.backend_chain(backend)).collect();
                if local.is_empty() {
                    let matched = self.at(None, node_port, "has no local endpoints");
                    tables
                        .filter
                        .rule("KUBE-EXTERNAL-SERVICES", &format!("{matched} -m addrtype --dst-type LOCAL -j DROP"));
                } else {
                    let local_chain = self.chain("SVL", "");
                    tables.nat.chain(&local_chain);
                    self.choose(tables, &local_chain, local);
                    tables.nat.rule(&external_chain, &format!("-j {local_chain}"));
                }
            }
        }
    }

    /// What happens to connections to a Service that nobody stands behind.
    fn refuse(&self, tables: &mut Tables) {
        const REASON: &str = "has no endpoints";
        for &cluster_ip in self.cluster_ips {
            let matched = self.at(Some(cluster_ip), self.port.port, REASON);
            tables.filter.rule("KUBE-SERVICES", &format!("{matched} -j REJECT"));
        }
        if let Some(node_port) = self.port.node_port {
            let matched = self.at(None, node_port, REASON);
            tables.filter.rule("KUBE-EXTERNAL-SERVICES", &format!("{matched} -m addrtype --dst-type LOCAL -j REJECT"));
        }
    }

    /// Goes to one of several chains, each as likely as the others.
    fn choose(&self, tables: &mut Tables, chain: &str, to: Vec<String>) {
        let count = to.len();
        for (position, target) in to.into_iter().enumerate() {
            let left = count - position;
            let chance = match left {
                1 => String::new(),
                _ => format!(" -m statistic --mode random --probability {:.10}", 1.0 / left as f64),
            };
            tables.nat.rule(chain, &format!("{}{chance} -j {target}", self.comment("")));
        }
    }

    /// Matches packets to a port, of one address or any.
    fn at(&self, address: Option<IpAddr>, number: u16, remark: &str) -> String {
        let protocol = self.protocol();
        let address = address.map(|address| format!("-d {} ", IpNet::from(address))).unwrap_or_default();
        format!("{address}-p {protocol} -m {protocol} --dport {number} {}", self.comment(remark))
    }

    /// Names are the user's, so everything that could mean something to iptables-restore is left out.
    fn comment(&self, remark: &str) -> String {
        let is_plain = |&letter: &char| letter.is_ascii_alphanumeric() || "-_./: ".contains(letter);
        let text: String = self.name.chars().chain([' ']).chain(remark.chars()).filter(is_plain).collect();
        let end = text.trim_end().len().min(COMMENT_LENGTH);
        format!("-m comment --comment \"{}\"", &text[..end])
    }

    fn backend_chain(&self, backend: &Backend) -> String {
        self.chain("SEP", &SocketAddr::new(backend.address, backend.port).to_string())
    }

    /// kube-proxy's name for a chain of this port.
    fn chain(&self, kind: &str, of: &str) -> String {
        let digest = Sha256::digest(format!("{}{}{of}", self.name, self.protocol()));
        format!("KUBE-{kind}-{}", base32(&digest))
    }

    fn protocol(&self) -> String {
        self.port.protocol.to_string().to_ascii_lowercase()
    }
}

fn port_name(service: &ServiceSpec, port: &ServicePortSpec) -> String {
    match &port.name {
        Some(name) => format!("{}:{name}", service.name),
        None => service.name.clone(),
    }
}

/// The beginning of the base32 form (RFC 4648) of a digest.
fn base32(digest: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let bit = |number: usize| digest.get(number / 8).map_or(0, |byte| usize::from(byte >> (7 - number % 8) & 1));
    let letter = |position: usize| (0..5).fold(0, |value, at| value << 1 | bit(position * 5 + at));
    (0..HASH_LENGTH).map(|position| char::from(ALPHABET[letter(position)])).collect()
}

/// The two tables that kube-proxy writes.
struct Tables {
    nat: Table,
    filter: Table,
}

impl Tables {
    /// Both with what is there for all Services together.
    fn new() -> Tables {
        let mut nat = Table::new("nat");
        for chain in ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-MARK-MASQ", "KUBE-POSTROUTING"] {
            nat.chain(chain);
        }
        nat.rule("PREROUTING", "-j KUBE-SERVICES");
        nat.rule("OUTPUT", "-j KUBE-SERVICES");
        nat.rule("POSTROUTING", "-j KUBE-POSTROUTING");
        nat.rule("KUBE-MARK-MASQ", &format!("-j MARK --or-mark {MASQUERADE_MARK}"));
        let unmarked = format!("-m mark ! --mark {MASQUERADE_MARK}/{MASQUERADE_MARK}");
        nat.rule("KUBE-POSTROUTING", &format!("{unmarked} -j RETURN"));
        nat.rule("KUBE-POSTROUTING", &format!("-j MARK --xor-mark {MASQUERADE_MARK}"));
        nat.rule("KUBE-POSTROUTING", "-j MASQUERADE --random-fully");
        let mut filter = Table::new("filter");
        // As on a node whose kube-proxy runs with nf_conntrack_tcp_be_liberal: without it, packets that connection
        // tracking takes for invalid are dropped, and so are those of connections whose other direction goes elsewhere.
        filter.chain("KUBE-FORWARD");
        filter.rule("FORWARD", "-j KUBE-FORWARD");
        filter.rule("KUBE-FORWARD", &format!("-m mark --mark {MASQUERADE_MARK}/{MASQUERADE_MARK} -j ACCEPT"));
        filter.rule("KUBE-FORWARD", "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT");
        for (chain, from) in
            [("KUBE-SERVICES", ["FORWARD", "OUTPUT"]), ("KUBE-EXTERNAL-SERVICES", ["INPUT", "FORWARD"])]
        {
            filter.chain(chain);
            for base in from {
                filter.rule(base, &format!("-m conntrack --ctstate NEW -j {chain}"));
            }
        }
        Tables { nat, filter }
    }
}

/// One table as `iptables-restore` reads it.
struct Table {
    name: &'static str,
    chains: String,
    rules: String,
}

impl Table {
    fn new(name: &'static str) -> Table {
        Table { name, chains: String::new(), rules: String::new() }
    }

    fn chain(&mut self, name: &str) {
        // Writing to a String does not fail.
        let _ = writeln!(self.chains, ":{name} - [0:0]");
    }

    fn rule(&mut self, chain: &str, rule: &str) {
        let _ = writeln!(self.rules, "-A {chain} {rule}");
    }

    fn text(&self) -> String {
        format!("*{}\n{}{}COMMIT\n", self.name, self.chains, self.rules)
    }
}

#[cfg(test)]
mod tests {
    use ringfence_model::Protocol;

    use super::*;

    const HERE: NodeIndex = NodeIndex(1);

    fn service(external_traffic_policy: ExternalTraffic, backends: &[(&str, usize)]) -> Services {
        let backend = |&(address, node): &(&str, usize)| {
            let address: SocketAddr = address.parse().unwrap();
            Backend { address: address.ip(), port: address.port(), node: NodeIndex(node) }
        };
        let port = ServicePortSpec {
            name: Some("http".to_owned()),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: Some(30080),
            backends: backends.iter().map(backend).collect(),
        };
        let service = ServiceSpec {
            name: "default/web\"\n-A".to_owned(),
            cluster_ips: vec!["10.96.0.1".parse().unwrap(), "fd00:96::1".parse().unwrap()],
            ports: vec![port],
            external_traffic_policy,
            ..ServiceSpec::default()
        };
        Services { list: vec![service], ..Services::default() }
    }

    fn written(services: &Services, is_v4: bool) -> Vec<String> {
        let text = rules(services, Viewpoint { node: HERE, is_v4, pod_device: "cni0" }).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// The rules of the chains whose names begin so, without comments and with hashes cut to their kind.
    fn chain(lines: &[String], name: &str) -> Vec<String> {
        let plain = |line: &String| {
            let (before, after) = line.split_once("-m comment").unwrap_or((line, ""));
            let after = after.rsplit_once('"').map_or("", |(_, after)| after);
            let words = before.split_whitespace().chain(after.split_whitespace());
            let short = |word: &str| match word.get(..8) {
                Some(kind) if word.len() == 9 + HASH_LENGTH && word.starts_with("KUBE-") => kind.to_owned(),
                _ => word.to_owned(),
            };
            words.skip(2).map(short).collect::<Vec<_>>().join(" ")
        };
        lines.iter().filter(|line| line.starts_with(&format!("-A {name}"))).map(plain).collect()
    }

    #[test]
    fn a_service_of_two_backends() {
        let services = service(ExternalTraffic::Cluster, &[("10.0.0.1:8080", 0), ("10.0.0.2:8081", 1)]);
        let lines = written(&services, true);
        let at_cluster_ip = "-d 10.96.0.1/32 -p tcp -m tcp --dport 80";
        assert_eq!(
            chain(&lines, "KUBE-SERVICES"),
            [
                format!("{at_cluster_ip} -j KUBE-SVC"),
                "! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS".to_owned(),
            ]
        );
        assert_eq!(
            chain(&lines, "KUBE-SVC"),
            [
                format!("! -i cni0 {at_cluster_ip} -j KUBE-MARK-MASQ"),
                "-m statistic --mode random --probability 0.5000000000 -j KUBE-SEP".to_owned(),
                "-j KUBE-SEP".to_owned(),
            ]
        );
        assert_eq!(
            chain(&lines, "KUBE-SEP"),
            [
                "-s 10.0.0.1/32 -j KUBE-MARK-MASQ",
                "-p tcp -m tcp -j DNAT --to-destination 10.0.0.1:8080",
                "-s 10.0.0.2/32 -j KUBE-MARK-MASQ",
                "-p tcp -m tcp -j DNAT --to-destination 10.0.0.2:8081",
            ]
        );
        assert_eq!(chain(&lines, "KUBE-NODEPORTS"), ["-p tcp -m tcp --dport 30080 -j KUBE-EXT"]);
        assert_eq!(chain(&lines, "KUBE-EXT-"), ["-j KUBE-MARK-MASQ", "-j KUBE-SVC"]);
        assert_eq!(lines.iter().filter(|line| line.starts_with(":KUBE-SEP")).count(), 2);
        let all = written(&Services { masquerade_all: true, ..services }, true);
        assert_eq!(chain(&all, "KUBE-SVC")[0], format!("{at_cluster_ip} -j KUBE-MARK-MASQ"));
    }

    #[test]
    fn local_policy_keeps_to_the_node() {
        let services = service(ExternalTraffic::Local, &[("10.0.0.1:8080", 0), ("10.0.0.2:8081", 1)]);
        let lines = written(&services, true);
        assert_eq!(
            chain(&lines, "KUBE-EXT-"),
            [
                "-i cni0 -j KUBE-SVC",
                "-m addrtype --src-type LOCAL -j KUBE-MARK-MASQ",
                "-m addrtype --src-type LOCAL -j KUBE-SVC",
                "-j KUBE-SVL",
            ]
            .map(str::to_owned)
        );
        let local: Vec<&String> = lines.iter().filter(|line| line.starts_with("-A KUBE-SVL")).collect();
        let backend = lines.iter().find(|line| line.ends_with("10.0.0.2:8081")).unwrap();
        let backend_chain = backend.split_whitespace().nth(1).unwrap();
        assert!(matches!(local.as_slice(), [only] if only.ends_with(backend_chain)), "{local:?}");
        let elsewhere = service(ExternalTraffic::Local, &[("10.0.0.1:8080", 0)]);
        let lines = written(&elsewhere, true);
        assert_eq!(chain(&lines, "KUBE-EXT-").len(), 3);
        assert_eq!(
            chain(&lines, "KUBE-EXTERNAL-SERVICES"),
            ["-p tcp -m tcp --dport 30080 -m addrtype --dst-type LOCAL -j DROP"]
        );
    }

    #[test]
    fn families_are_apart() {
        let services = service(ExternalTraffic::Cluster, &[("10.0.0.1:8080", 0)]);
        // There is a cluster IP of the other family, but nobody stands behind it.
        let lines = written(&services, false);
        assert_eq!(chain(&lines, "KUBE-SEP"), [""; 0]);
        assert!(
            chain(&lines, "KUBE-SERVICES").contains(&"-d fd00:96::1/128 -p tcp -m tcp --dport 80 -j REJECT".to_owned())
        );
        let services = service(ExternalTraffic::Cluster, &[("[2001:db8::1]:8080", 0)]);
        let lines = written(&services, false);
        assert!(chain(&lines, "KUBE-SEP").iter().any(|rule| rule.ends_with("--to-destination [2001:db8::1]:8080")));
        let mut only_v4 = services;
        only_v4.list[0].cluster_ips.truncate(1);
        assert!(rules(&only_v4, Viewpoint { node: HERE, is_v4: false, pod_device: "cni0" }).is_none());
    }

    #[test]
    fn names_cannot_break_out_of_their_comments() {
        for line in written(&service(ExternalTraffic::Cluster, &[("10.0.0.1:8080", 0)]), true) {
            assert!(line == "COMMIT" || line.starts_with(['*', ':', '-']), "{line}");
            assert!(matches!(line.matches('"').count(), 0 | 2), "{line}");
        }
    }

    /// From RFC 4648, section 10: "foobar" is MZXW6YTBOI.
    #[test]
    fn base32_is_that_of_the_rfc() {
        assert!(base32(b"foobar").starts_with("MZXW6YTBO"));
        assert_eq!(base32(&[0xff; 32]), "7".repeat(HASH_LENGTH));
    }
}
