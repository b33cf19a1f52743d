//! A node, its rules, and what is found on it.
#![allow(dead_code, reason = "every test crate uses its own part")]

use ringfence_doctor::{
    Bridge, CHECKS, Facts, Family, Finding, KernelModule, LockFile, ModuleState, Place, Reading, Route, Ruleset,
    Severity, Tool, Variant, examine,
};
use ringfence_model::Enforcement;

use Severity::Note;
use Variant::Nft;

/// A node with flannel's routes: its own pods on cni0, those of another node behind flannel.1.
pub(crate) fn node() -> Facts {
    Facts {
        pod_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:244::/48".parse().unwrap()],
        enforcement: Enforcement::default(),
        other_clusters: Vec::new(),
        unmasqueraded: Vec::new(),
        bridge_nf_call_iptables: Reading::Found(1),
        bridge_nf_call_ip6tables: Reading::Found(1),
        ip_forward: Reading::Found(1),
        ip6_forwarding: Reading::Found(1),
        conntrack_count: Reading::Found(90),
        conntrack_max: Reading::Found(100),
        bridges: Reading::Found(vec![Bridge {
            name: "cni0".to_owned(),
            ports: vec!["veth0".to_owned(), "veth1".to_owned()],
            ..Bridge::default()
        }]),
        routes: Reading::Found(vec![
            route("0.0.0.0/0", "eth0", Place::Unknown),
            route("192.0.2.0/24", "eth0", Place::Unknown),
            route("10.244.1.0/24", "cni0", Place::Here),
            route("10.244.2.0/24", "flannel.1", Place::Elsewhere),
            route("::/0", "eth0", Place::Unknown),
            route("fd00:244:0:1::/64", "cni0", Place::Here),
            route("fd00:244:0:2::/64", "flannel.1", Place::Elsewhere),
        ]),
        rulesets: Variant::ALL
            .into_iter()
            .flat_map(|variant| Family::ALL.map(|family| Ruleset { variant, family, saved: Reading::Absent }))
            .collect(),
        iptables_variant: Reading::Found(Nft),
        ipsets: Reading::Absent,
        nftables_table: Reading::Absent,
        tools: vec![Tool { name: "ipset", path: Some("/usr/sbin/ipset".into()) }],
        modules: vec![
            KernelModule { name: "ip_set", state: ModuleState::Available },
            KernelModule { name: "xt_set", state: ModuleState::Unknown },
        ],
        nftables_modules: vec![
            KernelModule { name: "nf_tables", state: ModuleState::Available },
            KernelModule { name: "nft_fib_inet", state: ModuleState::Unknown },
        ],
        xtables_lock: Reading::Found(LockFile { path: "/run/xtables.lock".into(), is_file: true, holder: None }),
        trial: Reading::Absent,
        denials: Reading::Absent,
    }
}

pub(crate) fn route(destination: &str, device: &str, place: Place) -> Route {
    Route { destination: destination.parse().unwrap(), device: Some(device.to_owned()), place }
}

/// Adds rules to the node's.
pub(crate) fn with(mut facts: Facts, variant: Variant, family: Family, table: &str, rules: &str) -> Facts {
    let of = |ruleset: &&mut Ruleset| ruleset.variant == variant && ruleset.family == family;
    let ruleset = facts.rulesets.iter_mut().find(of).unwrap();
    let before = ruleset.saved.found().cloned().unwrap_or_default();
    let rules: String = rules.lines().map(|line| format!("{}\n", line.trim())).collect();
    ruleset.saved = Reading::Found(format!("{before}*{table}\n{rules}COMMIT\n"));
    facts
}

/// The node with rules in table nat of iptables-nft.
pub(crate) fn nat(rules: &str) -> Facts {
    with(node(), Nft, Family::V4, "nat", rules)
}

pub(crate) fn guessing(mut facts: Facts) -> Facts {
    facts.pod_cidrs.clear();
    facts
}

/// All that [`examine`] finds but that pods outside the cluster are not seen, which is so nearly everywhere.
pub(crate) fn unusual(facts: &Facts) -> Vec<Finding> {
    let mut findings = examine(facts);
    findings.retain(|finding| (finding.id, finding.severity) != ("other-clusters", Note));
    findings
}

/// What [`examine`] finds: the checks and how bad it is.
pub(crate) fn found(facts: &Facts) -> Vec<(&'static str, Severity)> {
    unusual(facts).iter().map(|finding| (finding.id, finding.severity)).collect()
}

/// The only finding.
pub(crate) fn only(facts: &Facts) -> Finding {
    let findings = unusual(facts);
    let [finding] = &findings[..] else { panic!("one finding expected: {findings:#?}") };
    assert!(CHECKS.iter().any(|check| check.id == finding.id), "{finding:?}");
    finding.clone()
}

pub(crate) const KUBE_PROXY: &str = r#":KUBE-MARK-MASQ - [0:0]
    :KUBE-PROXY-CANARY - [0:0]
    -A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
    -A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
    -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
    -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
    -A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
    -A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
    -A KUBE-SEP-AAAA -s 10.244.1.7/32 -m comment --comment "demo/web:http" -j KUBE-MARK-MASQ
    -A KUBE-SEP-AAAA -p tcp -m comment --comment "demo/web:http" -m tcp -j DNAT --to-destination 10.244.1.7:80
    -A KUBE-SERVICES -d 10.96.0.9/32 -p tcp -m comment --comment "demo/web:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-AAAA
    -A KUBE-SERVICES -m comment --comment "kubernetes service nodeports" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
    -A KUBE-SVC-AAAA ! -s 10.244.0.0/16 -d 10.96.0.9/32 -p tcp -m comment --comment "demo/web:http cluster IP" -m tcp --dport 80 -j KUBE-MARK-MASQ
    -A KUBE-SVC-AAAA -m comment --comment "demo/web:http -> 10.244.1.7:80" -j KUBE-SEP-AAAA
"#;

/// As flannel writes it: only for its own network, only what leaves it.
pub(crate) const FLANNEL: &str = r#"
    -A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
    -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
    -A FLANNEL-POSTRTG -s 10.244.1.0/24 -d 10.244.0.0/16 -m comment --comment "flanneld masq" -j RETURN
    -A FLANNEL-POSTRTG -s 10.244.0.0/16 -d 10.244.1.0/24 -m comment --comment "flanneld masq" -j RETURN
    -A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.1.0/24 -m comment --comment "flanneld masq" -j RETURN
    -A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
    -A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
"#;

/// As the bridge plugin writes it with ipMasq: only the node's own range is spared.
pub(crate) const CNI: &str = r#"
    -A POSTROUTING -s 10.244.1.7/32 -m comment --comment "name: \"cbr0\" id: \"aa\"" -j CNI-aa
    -A POSTROUTING -s 10.244.1.8/32 -m comment --comment "name: \"cbr0\" id: \"bb\"" -j CNI-bb
    -A CNI-aa -d 10.244.1.0/24 -m comment --comment "name: \"cbr0\" id: \"aa\"" -j ACCEPT
    -A CNI-aa ! -d 224.0.0.0/4 -m comment --comment "name: \"cbr0\" id: \"aa\"" -j MASQUERADE
    -A CNI-bb -d 10.244.1.0/24 -m comment --comment "name: \"cbr0\" id: \"bb\"" -j ACCEPT
    -A CNI-bb ! -d 224.0.0.0/4 -m comment --comment "name: \"cbr0\" id: \"bb\"" -j MASQUERADE
"#;
