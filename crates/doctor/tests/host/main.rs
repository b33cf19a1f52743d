//! What is seen of a real kernel, each test in a network namespace of its own: findings come and go with what the `ip`,
//! `iptables`, `ipset` and `nft` commands do.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that cannot go on fails; one prints what its other process sees"
)]

mod namespace;

use libtest_mimic::{Arguments, Trial};
use namespace::{can, clean, run, write};
use ringfence_doctor::{Bridge, Facts, Options, Place, Reading, Route, Severity, Variant, examine, host_addresses};

fn main() {
    // See a_lock_that_is_held.
    if std::env::args().any(|argument| argument == "--look") {
        let findings = examine(&gather()).into_iter().filter(|finding| finding.id == "xtables-lock");
        return findings.for_each(|finding| println!("{}", finding.what));
    }
    namespace::enter();
    let tests: &[(&str, fn())] = &[
        ("bridges_and_their_settings", bridges_and_their_settings),
        ("routes_have_a_place", routes_have_a_place),
        ("addresses_of_the_host_itself", addresses_of_the_host_itself),
        ("masquerading_nft", || masquerading(Variant::Nft)),
        ("masquerading_ip6", masquerading_ip6),
        ("a_jump_that_is_not_first", a_jump_that_is_not_first),
        ("objects_of_two_backends", objects_of_two_backends),
        ("a_table_that_iptables_cannot_list", a_table_that_iptables_cannot_list),
        ("forwarding", forwarding),
        ("a_lock_that_is_held", a_lock_that_is_held),
        ("chains_of_another_agent", chains_of_another_agent),
        ("nothing_is_changed", nothing_is_changed),
    ];
    let mut trials: Vec<Trial> = tests.iter().map(|&(name, test)| trial(name, test)).collect();
    // Kernels are built without it nowadays.
    let legacy = std::path::Path::new(LEGACY_TABLES).exists();
    trials.push(trial("masquerading_legacy", || masquerading(Variant::Legacy)).with_ignored_flag(!legacy));
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// The tables of iptables-legacy that exist in the calling thread's network namespace.
const LEGACY_TABLES: &str = "/proc/thread-self/net/ip_tables_names";

fn trial(name: &str, test: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, move || {
        clean(test);
        Ok(())
    })
}

fn gather() -> Facts {
    let pod_cidrs = vec!["10.244.0.0/16".parse().unwrap(), "fd00:244::/48".parse().unwrap()];
    Facts::gather(Options { pod_cidrs, ..Options::default() })
}

/// What check `id` finds now: how bad, and the evidence.
fn found(id: &str) -> Vec<(Severity, String)> {
    let findings = examine(&gather()).into_iter().filter(|finding| finding.id == id);
    findings.map(|finding| (finding.severity, finding.evidence.unwrap_or_default())).collect()
}

/// A node: cni0 with a pod on it, and another node behind eth0 that has pods too.
fn node() {
    for command in [
        "ip link add cni0 type bridge",
        "ip link add veth0 type veth peer name pod0",
        "ip link set veth0 master cni0",
        "ip link add eth0 type veth peer name wire",
        "ip addr add 10.244.1.1/24 dev cni0",
        "ip addr add fd00:244:0:1::1/64 dev cni0 nodad",
        "ip addr add 192.0.2.1/24 dev eth0",
        "ip addr add 2001:db8::1/64 dev eth0 nodad",
        "ip link set lo up",
        "ip link set cni0 up",
        "ip link set veth0 up",
        "ip link set pod0 up",
        "ip link set eth0 up",
        "ip link set wire up",
        "ip route add 10.244.2.0/24 via 192.0.2.2",
        "ip route add fd00:244:0:2::/64 via 2001:db8::2",
        "ip route add blackhole 10.244.3.0/24",
        // As Cilium does it: through an address of the host itself.
        "ip addr add 10.244.4.1/32 dev cni0",
        "ip route add 10.244.4.1 dev cni0 scope link",
        "ip route add 10.244.4.0/24 via 10.244.4.1",
        "ip route add default via 192.0.2.254",
    ] {
        run(command, "");
    }
}

fn bridges_and_their_settings() {
    let settings = ["/proc/sys/net/bridge/bridge-nf-call-iptables", "/proc/sys/net/bridge/bridge-nf-call-ip6tables"];
    let set = |value| settings.iter().for_each(|setting| write(setting, value));
    assert_eq!(gather().bridges, Reading::Found(Vec::new()));
    run("ip link add cni0 type bridge", "");
    assert_eq!(found("bridge-netfilter"), [], "a bridge without ports");
    run("ip link add veth0 type veth peer name pod0", "");
    run("ip link set veth0 master cni0", "");
    let bridge = |filters_ipv4| Bridge {
        name: "cni0".to_owned(),
        ports: vec!["veth0".to_owned()],
        filters_ipv4,
        filters_ipv6: false,
    };
    assert_eq!(gather().bridges, Reading::Found(vec![bridge(false)]));
    if !std::path::Path::new(settings[0]).exists() {
        let found = found("bridge-netfilter");
        assert!(matches!(&found[..], [(Severity::Problem, reason), _] if reason.contains("not loaded")), "{found:?}");
        return;
    }
    set("0");
    let off = |name| (Severity::Problem, format!("net.bridge.{name} is 0"));
    assert_eq!(found("bridge-netfilter"), [off("bridge-nf-call-iptables"), off("bridge-nf-call-ip6tables")]);
    run("ip link set cni0 type bridge nf_call_iptables 1", "");
    assert_eq!(gather().bridges, Reading::Found(vec![bridge(true)]));
    assert_eq!(found("bridge-netfilter"), [off("bridge-nf-call-ip6tables")]);
    set("1");
    assert_eq!(found("bridge-netfilter"), []);
}

/// Those from which packets to other nodes can come, and no others.
fn addresses_of_the_host_itself() {
    node();
    for command in [
        "ip addr add 192.0.2.99/32 dev lo",
        "ip addr add 10.244.1.99/32 dev veth0",
        "ip link add idle type bridge",
        "ip addr add 172.17.0.1/16 dev idle",
        "ip addr add 169.254.7.7/16 dev cni0 scope link",
        "ip link add flannel.1 type vxlan id 1 local 192.0.2.1 dstport 8472",
        "ip addr add 10.244.1.0/32 dev flannel.1",
        "ip addr add fd00:244:0:1::/128 dev flannel.1 nodad",
        "ip link set flannel.1 up",
        "ip addr add 10.9.0.1 peer 10.9.0.2 dev cni0",
    ] {
        run(command, "");
    }
    // Not every kernel has them.
    if can("ip link add kube-ipvs0 type dummy") {
        run("ip addr add 10.96.0.1/32 dev kube-ipvs0", "");
        run("ip link set kube-ipvs0 up", "");
    }
    let found: Vec<String> = host_addresses().unwrap().iter().map(ToString::to_string).collect();
    // eth0 is a veth here: the test has no other wire.
    assert_eq!(found, ["10.9.0.1", "10.244.1.0", "10.244.1.1", "10.244.4.1", "fd00:244:0:1::", "fd00:244:0:1::1"]);
    run("ip link set flannel.1 down", "");
    assert!(!host_addresses().unwrap().contains(&"10.244.1.0".parse().unwrap()));
}

fn routes_have_a_place() {
    node();
    let facts = gather();
    let routes = facts.routes.found().unwrap();
    let place = |destination: &str| {
        let destination = destination.parse().unwrap();
        let route = routes.iter().find(|route| route.destination == destination).unwrap();
        (route.device.as_deref(), route.place)
    };
    assert_eq!(place("10.244.1.0/24"), (Some("cni0"), Place::Here));
    assert_eq!(place("fd00:244:0:1::/64"), (Some("cni0"), Place::Here));
    assert_eq!(place("10.244.2.0/24"), (Some("eth0"), Place::Elsewhere));
    assert_eq!(place("fd00:244:0:2::/64"), (Some("eth0"), Place::Elsewhere));
    assert_eq!(place("10.244.3.0/24"), (None, Place::Nowhere));
    assert_eq!(place("10.244.4.0/24"), (Some("cni0"), Place::Here));
    assert_eq!(place("0.0.0.0/0"), (Some("eth0"), Place::Unknown));
    let local = |route: &&Route| route.destination == "192.0.2.1/32".parse().unwrap();
    assert_eq!(routes.iter().find(local), None, "of the main table only");
}

fn masquerading(variant: Variant) {
    let restore = |rules: &str| {
        run(&format!("iptables-{}-restore", variant.suffix()), &format!("*nat\n{rules}\nCOMMIT\n"));
    };
    node();
    assert_eq!(found("pod-masquerade"), []);
    restore("-A POSTROUTING -s 10.244.1.0/24 ! -o cni0 -m comment --comment \"a \\\"comment\\\"\" -j MASQUERADE");
    let evidence = format!(
        "-A POSTROUTING -s 10.244.1.0/24 ! -o cni0 -m comment --comment \"a \\\"comment\\\"\" -j MASQUERADE \
         (table nat of iptables-{})",
        variant.suffix()
    );
    assert_eq!(found("pod-masquerade"), [(Severity::Problem, evidence)]);
    restore("-A POSTROUTING -d 10.244.0.0/16 -j RETURN\n-A POSTROUTING -s 10.244.1.0/24 ! -o cni0 -j MASQUERADE");
    assert_eq!(found("pod-masquerade"), []);
    restore(
        "-A POSTROUTING -p tcp -m tcp --dport 80 -m mark ! --mark 0x1/0x1 -j SNAT --to-source 192.0.2.1 --persistent",
    );
    assert!(matches!(found("pod-masquerade")[..], [(Severity::Warning, _)]));
    restore("");
    assert_eq!(found("pod-masquerade"), []);
}

fn masquerading_ip6() {
    node();
    run("ip6tables-nft-restore", "*nat\n-A POSTROUTING -s fd00:244:0:1::/64 -j MASQUERADE\nCOMMIT\n");
    assert!(matches!(found("pod-masquerade")[..], [(Severity::Problem, _)]));
    run("ip6tables-nft-restore", "*nat\n-A POSTROUTING ! -d fd00:244::/48 -j MASQUERADE\nCOMMIT\n");
    assert_eq!(found("pod-masquerade"), []);
}

fn a_jump_that_is_not_first() {
    let ours = ":RF-FORWARD - [0:0]\n-A FORWARD -j RF-FORWARD\n";
    run("iptables-nft-restore", &format!("*filter\n{ours}COMMIT\n"));
    assert_eq!(found("jump-position"), []);
    run("iptables-nft -I FORWARD -i eth0 -j ACCEPT", "");
    assert_eq!(found("jump-position"), [(Severity::Problem, "-A FORWARD -i eth0 -j ACCEPT".to_owned())]);
    run("iptables-nft -D FORWARD 1", "");
    assert_eq!(found("jump-position"), []);
}

fn objects_of_two_backends() {
    run("nft add table inet ringfence", "");
    assert_eq!(gather().nftables_table, Reading::Found(()));
    assert_eq!(found("leftovers"), []);
    run("ipset create rf0-test hash:ip", "");
    let both = "table inet ringfence, rf0-test".to_owned();
    assert_eq!(found("leftovers"), [(Severity::Warning, both)]);
    run("nft delete table inet ringfence", "");
    assert_eq!(found("leftovers"), [(Severity::Warning, "rf0-test".to_owned())]);
    run("ipset destroy rf0-test", "");
    assert_eq!(found("leftovers"), []);
}

fn a_table_that_iptables_cannot_list() {
    assert_eq!(found("unreadable"), []);
    run("nft -f -", "table ip nat { chain c { type nat hook postrouting priority 100; masquerade; }; }");
    assert!(matches!(&found("unreadable")[..], [(Severity::Note, line)] if line.contains("`nat'")));
    run("nft delete table ip nat", "");
    assert_eq!(found("unreadable"), []);
}

fn forwarding() {
    write("/proc/sys/net/ipv4/ip_forward", "0");
    write("/proc/sys/net/ipv6/conf/all/forwarding", "0");
    assert_eq!(found("ip-forward").len(), 2);
    write("/proc/sys/net/ipv4/ip_forward", "1");
    write("/proc/sys/net/ipv6/conf/all/forwarding", "1");
    assert_eq!(found("ip-forward"), []);
}

/// With a lock file of its own: the one in /run is the host's.
fn a_lock_that_is_held() {
    let folder = std::env::temp_dir().join(format!("ringfence-doctor-lock-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("xtables.lock");
    let look = || {
        // Seen by a process of its own: an environment cannot be changed safely while threads run.
        let myself = std::env::current_exe().unwrap();
        let output = std::process::Command::new(myself).arg("--look").env("XTABLES_LOCKFILE", &path).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(look(), "");
    let file = std::fs::File::create(&path).unwrap();
    assert_eq!(look(), "");
    file.lock().unwrap();
    let held = format!("process {} (", std::process::id());
    let seen = look();
    assert!(seen.starts_with(&held) && seen.contains("holds the lock"), "{seen}");
    file.unlock().unwrap();
    assert_eq!(look(), "");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(look().contains("is not a file"));
    std::fs::remove_dir_all(folder).unwrap();
}

fn chains_of_another_agent() {
    assert_eq!(found("policy-agents"), []);
    run("ip6tables-nft -N cali-FORWARD", "");
    assert_eq!(found("policy-agents"), [(Severity::Warning, "ip6tables-nft: cali-FORWARD".to_owned())]);
    run("ip6tables-nft -X cali-FORWARD", "");
    assert_eq!(found("policy-agents"), []);
}

fn nothing_is_changed() {
    let look = || {
        let tables = std::fs::read_to_string(LEGACY_TABLES).unwrap_or_default();
        (run("nft list ruleset", ""), tables, run("ip -details link show", ""))
    };
    let before = look();
    let facts = gather();
    assert_eq!(look(), before);
    assert_eq!((before.0.as_str(), before.1.as_str()), ("", ""));
    for ruleset in &facts.rulesets {
        let nothing = match ruleset.variant {
            Variant::Nft => Reading::Found(String::new()),
            Variant::Legacy => Reading::Absent,
        };
        assert_eq!(ruleset.saved, nothing);
    }
    let unread: Vec<_> = examine(&facts).into_iter().filter(|finding| finding.id == "unreadable").collect();
    assert_eq!(unread, []);
}
