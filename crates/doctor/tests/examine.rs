//! What is said about hosts whose rules were written as kube-proxy, flannel, docker and CNI plugins write them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::needless_pass_by_value,
    reason = "a test that cannot go on fails; facts are moved together"
)]

mod node;

use node::{CNI, FLANNEL, KUBE_PROXY, found, guessing, nat, node, only, route, with};
use ringfence_doctor::{
    Bridge, CHECKS, Denial, Facts, Family, KernelModule, LockFile, Lost, ModuleState, Place, Reading, Severity, Tool,
    Trial, Variant, examine, render,
};

use Severity::{Note, Problem, Warning};
use Variant::{Legacy, Nft};

#[test]
fn nothing_is_wrong_with_a_good_node() {
    let facts = nat(&format!("{KUBE_PROXY}{FLANNEL}"));
    assert_eq!(found(&facts), []);
    assert_eq!(found(&guessing(facts)), []);
    let text = render::text(&[]);
    assert!(CHECKS.iter().all(|check| text.contains(check.id) && text.contains(check.looks_for)), "{text}");
}

#[test]
fn a_bridge_past_the_packet_filter() {
    let mut facts = node();
    facts.bridge_nf_call_iptables = Reading::Found(0);
    let finding = only(&facts);
    assert_eq!((finding.id, finding.severity), ("bridge-netfilter", Problem));
    assert!(finding.what.contains("IPv4") && finding.what.contains("cni0 (veth0, veth1)"), "{finding:?}");

    let mut own = facts.clone();
    own.bridges = Reading::Found(vec![Bridge {
        name: "b".to_owned(),
        ports: vec!["p".to_owned()],
        filters_ipv4: true,
        filters_ipv6: false,
    }]);
    assert_eq!(found(&own), [], "the bridge does it by itself");
    own.bridge_nf_call_iptables = Reading::Absent;
    assert_eq!(found(&own), [("bridge-netfilter", Problem)], "it cannot without the module");

    facts.bridge_nf_call_ip6tables = Reading::Absent;
    assert_eq!(found(&facts), [("bridge-netfilter", Problem); 2]);
    assert_eq!(found(&guessing(facts.clone())), [("bridge-netfilter", Problem), ("bridge-netfilter", Warning)]);
    facts.bridges = Reading::Found(vec![Bridge { name: "empty".to_owned(), ..Bridge::default() }]);
    assert_eq!(found(&facts), []);
}

#[test]
fn flannel_with_a_network_that_does_not_cover_the_pods() {
    let narrow = FLANNEL.replace("10.244.0.0/16", "10.244.0.0/23");
    let finding = only(&nat(&narrow));
    assert_eq!((finding.id, finding.severity), ("pod-masquerade", Problem));
    assert!(finding.remedy.contains("flannel"), "{finding:?}");
    assert!(finding.evidence.unwrap().contains("-s 10.244.0.0/23 ! -d 224.0.0.0/4"));
}

#[test]
fn the_bridge_plugin_with_ip_masq() {
    let finding = only(&nat(CNI));
    assert_eq!((finding.id, finding.severity), ("pod-masquerade", Problem));
    assert!(finding.remedy.contains("ipMasq"), "{finding:?}");
    assert!(finding.evidence.unwrap().contains("and 1 more such rule"));

    let guessed = only(&guessing(nat(CNI)));
    assert_eq!((guessed.id, guessed.severity), ("pod-masquerade", Warning));
    assert!(guessed.what.contains("guessed"), "{guessed:?}");
    // kube-proxy was told of all pods.
    assert_eq!(found(&guessing(nat(&format!("{KUBE_PROXY}{CNI}")))), [("pod-masquerade", Problem)]);

    let spared = CNI.replace("-d 10.244.1.0/24", "-d 10.244.0.0/16");
    assert_eq!(found(&nat(&spared)), []);
    let spared = format!("-A POSTROUTING -d 10.244.0.0/16 -j ACCEPT\n{CNI}");
    assert_eq!(found(&nat(&spared)), []);
    let too_late = format!("{CNI}-A POSTROUTING -d 10.244.0.0/16 -j ACCEPT");
    assert_eq!(found(&nat(&too_late)), [("pod-masquerade", Problem)]);
}

#[test]
fn docker_with_a_bridge_of_its_own_and_with_the_pods() {
    let own = "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE";
    let mut facts = nat(own);
    let Reading::Found(routes) = &mut facts.routes else { unreachable!() };
    routes.push(route("172.17.0.0/16", "docker0", Place::Here));
    assert_eq!(found(&facts), []);
    assert_eq!(found(&guessing(facts)), []);

    let pods = "-A POSTROUTING -s 10.244.1.0/24 ! -o docker0 -j MASQUERADE";
    let finding = only(&nat(pods));
    assert_eq!((finding.id, finding.severity), ("pod-masquerade", Problem));
    assert!(finding.remedy.contains("--ip-masq=false"), "{finding:?}");
    assert_eq!(found(&guessing(nat(pods))), [("pod-masquerade", Warning)]);
    // What leaves for other nodes leaves through the overlay's device.
    assert_eq!(found(&nat("-A POSTROUTING -s 10.244.1.0/24 -o eth0 -d 10.244.2.0/24 -j MASQUERADE")), []);
    assert_eq!(found(&nat("-A POSTROUTING -s 10.244.1.0/24 -o flannel+ -j MASQUERADE")), [("pod-masquerade", Problem)]);
}

#[test]
fn other_ways_to_spare_pods() {
    for rules in [
        "-A POSTROUTING -s 10.244.0.0/16 ! -d 10.244.0.0/16 -j MASQUERADE",
        "-A POSTROUTING -m addrtype ! --dst-type LOCAL -j IP-MASQ
         -A IP-MASQ -d 10.0.0.0/8 -j RETURN
         -A IP-MASQ -j MASQUERADE",
        "-A POSTROUTING -s 10.244.1.0/24 ! -d 10.0.0.0/8 ! -o cilium_+ -j MASQUERADE",
        "-A POSTROUTING -m set --match-set cali40masq-ipam-pools src -m set ! --match-set cali40all-ipam-pools dst -j MASQUERADE",
        "-A POSTROUTING -j MARK --set-xmark 0x1/0x1
         -A POSTROUTING -m mark ! --mark 0x1/0x1 -j MASQUERADE",
        "-A POSTROUTING -g SKIP
         -A POSTROUTING -j MASQUERADE
         -A SKIP -j LOG",
        "-A POSTROUTING -p icmp -j MASQUERADE",
        "-A POSTROUTING -s 10.244.2.0/24 -j MASQUERADE",
        "-A POSTROUTING -m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE",
        "-A OUTPUT -j MASQUERADE",
        // Which is a loop the kernel would refuse.
        "-A POSTROUTING -j POSTROUTING
         -A POSTROUTING -j POSTROUTING",
    ] {
        assert_eq!(found(&nat(rules)), [], "{rules}");
    }
}

#[test]
fn every_piece_of_a_range_counts() {
    let half = "-A POSTROUTING -d 10.244.2.0/25 -j RETURN\n-A POSTROUTING -d 10.244.2.0/24 -j MASQUERADE";
    assert!(only(&nat(half)).what.contains("from 10.244.1.0 to 10.244.2.128"));
    let one = "-A POSTROUTING -s 10.244.1.9/32 -d 10.244.2.9/32 -j MASQUERADE";
    assert!(only(&nat(one)).what.contains("from 10.244.1.9 to 10.244.2.9"));
}

#[test]
fn only_packets_to_other_nodes_matter() {
    assert_eq!(found(&nat("-A POSTROUTING -s 10.244.1.0/24 -d 10.244.1.0/24 -j MASQUERADE")), []);
    let mut facts = nat("-A POSTROUTING -d 10.244.3.0/24 -j MASQUERADE");
    assert_eq!(found(&facts), [("pod-masquerade", Problem)], "by the default route");
    let Reading::Found(routes) = &mut facts.routes else { unreachable!() };
    routes.push(route("10.244.3.0/24", "", Place::Nowhere));
    assert_eq!(found(&facts), []);
}

#[test]
fn the_range_of_a_node_is_what_its_plugin_spares() {
    let mut facts = guessing(nat(CNI));
    facts.routes = Reading::Found(vec![
        route("10.9.0.0/24", "eth0", Place::Elsewhere),
        route("10.244.1.7/32", "veth0", Place::Here),
        route("10.244.2.0/24", "eth0", Place::Elsewhere),
    ]);
    let finding = only(&facts);
    assert_eq!((finding.id, finding.severity), ("pod-masquerade", Warning));
    assert!(finding.what.contains("from 10.244.1.7 to 10.244.2.0"), "{finding:?}");
}

#[test]
fn a_rule_for_everything() {
    for rules in [
        "-A POSTROUTING -j MASQUERADE",
        "-A POSTROUTING -j SNAT --to-source 192.0.2.1",
        "-A POSTROUTING -p tcp -m tcp -j MASQUERADE",
        "-A POSTROUTING -j LOG
         -A POSTROUTING -j A
         -A POSTROUTING -j MASQUERADE
         -A A -d 10.244.1.0/24 -j ACCEPT
         -A A -j RETURN
         -A A -j ACCEPT",
        "-A POSTROUTING -j MARK --set-xmark 0x1/0x1
         -A POSTROUTING -m mark --mark 0x1/0x1 -j MASQUERADE",
    ] {
        assert_eq!(found(&nat(rules)), [("pod-masquerade", Problem)], "{rules}");
        assert_eq!(found(&guessing(nat(rules))), [("pod-masquerade", Warning)], "{rules}");
        let legacy = with(node(), Legacy, Family::V4, "nat", rules);
        assert_eq!(found(&legacy), [("pod-masquerade", Problem)], "{rules}");
    }
}

#[test]
fn what_cannot_be_told_is_a_warning() {
    for rules in [
        "-A POSTROUTING -m set --match-set some src -j MASQUERADE",
        "-A POSTROUTING -p tcp -m tcp --dport 80 -j MASQUERADE",
        // Either the first rule spares the packet or the second one applies.
        "-A POSTROUTING -m set --match-set pods dst -j RETURN
         -A POSTROUTING -j MASQUERADE",
        // The packet may return from A, and then the last rule applies.
        "-A POSTROUTING -j A
         -A POSTROUTING -j MASQUERADE
         -A A -m socket -j RETURN
         -A A -j ACCEPT",
    ] {
        assert_eq!(found(&nat(rules)), [("pod-masquerade", Warning)], "{rules}");
    }
    let mut facts = nat("-A POSTROUTING -j MASQUERADE");
    facts.routes = Reading::Found(vec![route("0.0.0.0/0", "eth0", Place::Unknown)]);
    assert_eq!(found(&facts), [("pod-masquerade", Note)], "no pod has a route");
    assert_eq!(found(&guessing(facts)), [("pod-masquerade", Note)], "nothing tells the ranges");
}

#[test]
fn ip6tables_is_followed_as_well() {
    let rules = "-A POSTROUTING -s fd00:244:0:1::/64 ! -o cni0 -j MASQUERADE";
    let facts = with(node(), Nft, Family::V6, "nat", rules);
    let finding = only(&facts);
    assert_eq!((finding.id, finding.severity), ("pod-masquerade", Problem));
    assert!(finding.what.contains("to fd00:244:"), "{finding:?}");
    assert!(finding.evidence.unwrap().contains("ip6tables-nft"));
    let spared = format!("-A POSTROUTING -d fd00:244::/48 -j RETURN\n{rules}");
    assert_eq!(found(&with(node(), Nft, Family::V6, "nat", &spared)), []);
}

#[test]
fn masquerade_all() {
    let facts = nat(&KUBE_PROXY.replace("-A KUBE-SVC-AAAA ! -s 10.244.0.0/16 ", "-A KUBE-SVC-AAAA "));
    let finding = only(&facts);
    assert_eq!((finding.id, finding.severity), ("masquerade-all", Problem));
    let by_device = KUBE_PROXY
        .replace("! -s 10.244.0.0/16 -d", "-d")
        .replace("-A KUBE-SVC-AAAA -d", "-A KUBE-SVC-AAAA ! -i cni0 -d");
    assert_eq!(found(&nat(&by_device)), []);
    let ipvs = "-A KUBE-SERVICES -m comment --comment \"for masquerade purpose\" -m set --match-set KUBE-CLUSTER-IP";
    assert_eq!(found(&nat(&format!("{ipvs} dst,dst -j KUBE-MARK-MASQ"))), [("masquerade-all", Problem)]);
    assert_eq!(found(&nat(&format!("{ipvs} src,dst -j KUBE-MARK-MASQ"))), []);
}

#[test]
fn external_callers_of_services() {
    let cluster = r#"
        -A KUBE-EXT-AAAA -m comment --comment "masquerade traffic for demo/web:http external destinations" -j KUBE-MARK-MASQ
        -A KUBE-EXT-AAAA -j KUBE-SVC-AAAA"#;
    let finding = only(&nat(&format!("{KUBE_PROXY}{cluster}")));
    assert_eq!((finding.id, finding.severity), ("nodeport-snat", Warning));
    assert!(finding.what.ends_with(": demo/web:http"), "{finding:?}");
    let local = r#"
        -A KUBE-EXT-AAAA -s 10.244.0.0/16 -m comment --comment "pod traffic for demo/web:http external destinations" -j KUBE-SVC-AAAA
        -A KUBE-EXT-AAAA -m comment --comment "masquerade LOCAL traffic for demo/web:http external destinations" -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ
        -A KUBE-EXT-AAAA -m comment --comment "route LOCAL traffic for demo/web:http external destinations" -m addrtype --src-type LOCAL -j KUBE-SVC-AAAA
        -A KUBE-EXT-AAAA -j KUBE-SVL-AAAA"#;
    assert_eq!(found(&nat(&format!("{KUBE_PROXY}{local}"))), []);
    let old = r#"
        -A KUBE-NODEPORTS -p tcp -m comment --comment "demo/old:http" -m tcp --dport 30080 -j KUBE-MARK-MASQ
        -A KUBE-NODEPORTS -s 127.0.0.0/8 -p tcp -m comment --comment "demo/local" -m tcp --dport 30081 -j KUBE-MARK-MASQ"#;
    assert!(only(&nat(old)).what.ends_with(": demo/old:http"));
}

#[test]
fn forwarding_is_off() {
    let mut facts = node();
    facts.ip_forward = Reading::Found(0);
    assert_eq!(found(&facts), [("ip-forward", Problem)]);
    facts.ip6_forwarding = Reading::Found(0);
    assert_eq!(found(&facts), [("ip-forward", Problem); 2]);
    assert_eq!(found(&guessing(facts)), [("ip-forward", Problem)], "nobody says that pods have IPv6");
}

const RINGFENCE: &str = ":RF-FORWARD - [0:0]\n:RF-OUTPUT - [0:0]\n-A FORWARD -j RF-FORWARD\n-A OUTPUT -j RF-OUTPUT\n";

#[test]
fn rules_in_both_variants() {
    let kube = with(node(), Nft, Family::V4, "mangle", ":KUBE-IPTABLES-HINT - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]");
    assert_eq!(found(&kube), []);

    let docker = with(kube.clone(), Legacy, Family::V4, "filter", "-A FORWARD -o docker0 -j DOCKER");
    let finding = only(&docker);
    assert_eq!((finding.id, finding.severity), ("iptables-variants", Warning));
    assert!(finding.evidence.unwrap().contains("iptables-nft: KUBE-IPTABLES-HINT, KUBE-KUBELET-CANARY"));

    let ours = only(&with(kube.clone(), Legacy, Family::V4, "filter", RINGFENCE));
    assert_eq!((ours.id, ours.severity), ("iptables-variants", Warning));
    assert!(ours.evidence.unwrap().contains("RF-FORWARD"));

    let twice = with(with(kube.clone(), Legacy, Family::V4, "filter", RINGFENCE), Nft, Family::V4, "filter", RINGFENCE);
    assert_eq!(found(&twice), [("iptables-variants", Problem), ("iptables-variants", Warning)]);

    let proxy = with(kube.clone(), Legacy, Family::V4, "nat", ":KUBE-PROXY-CANARY - [0:0]");
    assert!(only(&proxy).evidence.unwrap().contains("iptables-legacy: KUBE-PROXY-CANARY"));

    let mut command = kube;
    command.iptables_variant = Reading::Found(Legacy);
    let finding = only(&command);
    assert_eq!((finding.id, finding.severity), ("iptables-variants", Note));
    assert!(finding.what.ends_with("the command iptables is iptables-legacy"));
}

#[test]
fn what_the_iptables_backend_lacks() {
    let mut facts = node();
    facts.tools.push(Tool { name: "ip6tables", path: None });
    facts.modules.push(KernelModule { name: "xt_conntrack", state: ModuleState::Missing });
    let finding = only(&facts);
    assert_eq!((finding.id, finding.severity), ("tools", Note));
    assert_eq!(finding.what, "missing: the command ip6tables, the kernel module xt_conntrack");
    let text = render::text(&[finding]);
    assert!(text.starts_with("note: tools: missing"), "{text}");
    assert!(text.contains("Nothing found"), "a note is nothing wrong: {text}");
}

#[test]
fn objects_of_two_backends() {
    let sets = |mut facts: Facts| {
        facts.ipsets = Reading::Found(vec!["rf4-web".to_owned(), "rfkill".to_owned(), "KUBE-CLUSTER-IP".to_owned()]);
        facts
    };
    let iptables = with(node(), Nft, Family::V4, "filter", RINGFENCE);
    assert_eq!(found(&iptables), []);
    assert_eq!(found(&sets(iptables.clone())), []);
    assert_eq!(found(&sets(node())), [("leftovers", Warning)], "sets without rules");
    for mut facts in [iptables, sets(node())] {
        facts.nftables_table = Reading::Found(());
        let finding = only(&facts);
        assert_eq!((finding.id, finding.severity), ("leftovers", Warning));
        assert!(finding.remedy.contains("ringfence cleanup --backend iptables"), "{finding:?}");
        assert!(!finding.evidence.unwrap().contains("rfkill"));
    }
    let mut edition = with(node(), Legacy, Family::V6, "filter", ":RF3-POL-IN-A - [0:0]\n:RFC - [0:0]");
    edition.nftables_table = Reading::Found(());
    assert_eq!(only(&edition).evidence.as_deref(), Some("table inet ringfence, RF3-POL-IN-A"));
    let mut nftables = node();
    nftables.nftables_table = Reading::Found(());
    assert_eq!(found(&nftables), []);
}

#[test]
fn rules_before_ours() {
    let filter = |rules: &str| with(node(), Nft, Family::V4, "filter", rules);
    let before = |rules: &str| found(&filter(&format!("{rules}\n{RINGFENCE}")));
    assert_eq!(before("-A FORWARD -j ACCEPT"), [("jump-position", Problem)]);
    assert_eq!(
        before("-A FORWARD -j KUBE-FORWARD\n-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT"),
        [("jump-position", Problem)]
    );
    assert_eq!(before("-A OUTPUT -o eth0 -j ACCEPT"), [("jump-position", Problem)]);
    assert_eq!(before("-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"), [("jump-position", Note)]);
    assert_eq!(before("-A FORWARD -m conntrack --ctstate INVALID -j DROP"), [("jump-position", Note)]);
    assert_eq!(before("-A INPUT -j ACCEPT"), []);
    assert_eq!(found(&filter(&format!("{RINGFENCE}-A FORWARD -j ACCEPT"))), []);
    assert_eq!(
        found(&filter(&RINGFENCE.replace("-A OUTPUT -j RF-OUTPUT", ""))),
        [("jump-position", Problem)],
        "no jump"
    );
}

#[test]
fn a_full_connection_table() {
    let mut facts = node();
    facts.conntrack_count = Reading::Found(91);
    assert_eq!(found(&facts), [("conntrack", Warning)]);
    facts.conntrack_max = Reading::Found(0);
    assert_eq!(found(&facts), [], "no limit");
}

#[test]
fn what_could_not_be_read_is_said() {
    let mut facts = node();
    facts.routes = Reading::Unreadable("not permitted".to_owned());
    facts.rulesets.iter_mut().for_each(|ruleset| ruleset.saved = Reading::Unreadable("broken".to_owned()));
    assert_eq!(found(&facts), [("unreadable", Note); 5]);
    assert!(render::text(&examine(&facts)).contains("not permitted"));
}

#[test]
fn the_worst_comes_first_and_control_characters_do_not_come_through() {
    let mut facts = nat("-A POSTROUTING -m comment --comment \"\x1b[2Jx\" -j MASQUERADE");
    facts.tools.push(Tool { name: "iptables", path: None });
    facts.conntrack_count = Reading::Found(100);
    facts.bridge_nf_call_iptables = Reading::Found(0);
    let text = render::text(&examine(&facts));
    let order: Vec<&str> =
        text.lines().filter(|line| !line.starts_with(' ')).filter_map(|line| line.split(": ").nth(1)).collect();
    assert_eq!(order, ["bridge-netfilter", "pod-masquerade", "conntrack", "other-clusters", "tools"]);
    assert!(!text.contains('\x1b') && !text.contains("Nothing found"), "{text}");
}

#[test]
fn json() {
    let mut facts = node();
    facts.ip_forward = Reading::Found(0);
    let json = serde_json::to_value(examine(&facts)).unwrap();
    assert_eq!(json[0]["id"], "ip-forward");
    assert_eq!(json[0]["severity"], "problem");
    assert_eq!(json[0]["evidence"], "net.ipv4.ip_forward is 0");
}

#[test]
fn modules_that_nftables_lacks() {
    let mut facts = node();
    facts.nftables_modules[1].state = ModuleState::Missing;
    let finding = only(&facts);
    assert_eq!((finding.id, finding.severity), ("nftables", Warning));
    assert!(finding.what.contains("nft_fib_inet") && !finding.what.contains("nf_tables"), "{finding:?}");
}

#[test]
fn what_came_of_trying() {
    let mut facts = node();
    facts.trial = Reading::Found(Trial { backend: "nftables".to_owned(), refusal: None });
    assert_eq!(found(&facts), []);
    facts.trial = Reading::Found(Trial { backend: "nftables".to_owned(), refusal: Some("no fib".to_owned()) });
    let finding = only(&facts);
    assert_eq!((finding.id, finding.severity), ("trial", Problem));
    assert_eq!(finding.evidence.as_deref(), Some("no fib"));
    facts.trial = Reading::Unreadable("seccomp".to_owned());
    assert_eq!(found(&facts), [("trial", Note)]);
}

#[test]
fn the_lock_of_iptables_legacy() {
    let lock = |is_file, holder: Option<&str>| {
        let (path, holder) = ("/run/xtables.lock".into(), holder.map(str::to_owned));
        Facts { xtables_lock: Reading::Found(LockFile { path, is_file, holder }), ..node() }
    };
    let finding = only(&lock(true, Some("process 7 (stuck)")));
    assert_eq!((finding.id, finding.severity), ("xtables-lock", Warning));
    assert!(finding.what.contains("process 7 (stuck)"), "{finding:?}");
    let finding = only(&lock(false, None));
    assert_eq!((finding.id, finding.severity), ("xtables-lock", Warning));
    assert!(finding.remedy.contains("rmdir /run/xtables.lock"), "{finding:?}");
    assert_eq!(found(&Facts { xtables_lock: Reading::Absent, ..node() }), []);
    assert_eq!(found(&Facts { xtables_lock: Reading::Unreadable(String::new()), ..node() }), [("unreadable", Note)]);
}

#[test]
fn other_agents_are_known_by_their_chains() {
    let rules = ":cali-FORWARD - [0:0]\n:cali-INPUT - [0:0]\n-A cali-FORWARD -j RETURN";
    let facts = with(with(node(), Nft, Family::V4, "filter", rules), Legacy, Family::V6, "filter", rules);
    let finding = only(&facts);
    assert_eq!((finding.id, finding.severity), ("policy-agents", Warning));
    assert!(finding.what.starts_with("Calico"), "{finding:?}");
    let evidence = "iptables-nft: cali-FORWARD, cali-INPUT; ip6tables-legacy: cali-FORWARD, cali-INPUT";
    assert_eq!(finding.evidence.as_deref(), Some(evidence));

    let two =
        with(node(), Nft, Family::V4, "filter", ":KUBE-POD-FW-A - [0:0]\n:KUBE-NWPLCY-B - [0:0]\n:WEAVE-NPC - [0:0]");
    assert_eq!(found(&two), [("policy-agents", Warning); 2]);
    // kube-proxy and kubelet enforce no policies, and ours are no others.
    let ours = ":KUBE-FORWARD - [0:0]\n:KUBE-SERVICES - [0:0]\n:RF-FORWARD - [0:0]\n-A FORWARD -j RF-FORWARD";
    assert_eq!(found(&with(node(), Nft, Family::V4, "filter", ours)), []);
}

#[test]
fn what_the_api_server_refuses() {
    let denial = |what: &str, lost| Denial { what: what.to_owned(), lost, reason: "no rule".to_owned() };
    let mut facts = node();
    facts.denials = Reading::Found(Vec::new());
    assert_eq!(found(&facts), []);
    facts.denials = Reading::Found(vec![denial("create events.", Lost::Events)]);
    assert_eq!(found(&facts), [("rbac", Warning)]);
    facts.denials =
        Reading::Found(vec![denial("list pods.", Lost::Enforcement), denial("watch pods.", Lost::Enforcement)]);
    let finding = only(&facts);
    assert_eq!((finding.id, finding.severity), ("rbac", Problem));
    assert!(finding.what.ends_with("list pods., watch pods."), "{finding:?}");
    assert_eq!(finding.evidence.as_deref(), Some("no rule"));
    facts.denials = Reading::Found(vec![denial("patch nodes", Lost::Announcements)]);
    let finding = only(&facts);
    assert_eq!((finding.id, finding.severity), ("rbac", Warning));
    assert!(finding.why.contains("do not believe"), "{finding:?}");
    facts.denials = Reading::Unreadable("connection refused".to_owned());
    assert_eq!(found(&facts), [("rbac", Warning)]);
}
