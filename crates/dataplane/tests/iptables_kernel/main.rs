//! The iptables backend against the kernel, each test in a network namespace of its own, with both variants of iptables.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

#[path = "../kernel/namespace.rs"]
#[allow(dead_code, reason = "these tests do not ask nft")]
mod namespace;
mod packets;
#[path = "../kernel/pods.rs"]
mod pods;
mod random;
mod reach;
#[path = "../kernel/unknown.rs"]
mod unknown;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};
use namespace::clean;
use ringfence_compile::ProtocolRange;
use ringfence_compile::acl::{
    Acl, AclEntry, AclNamespace, AclPeers, AclPolicy, AclPorts, AclRule, AclSet, Members, SetId, SetRole,
};
use ringfence_dataplane::iptables::{IptablesBackend, IptablesOptions, Variant};
use ringfence_dataplane::nft::DenyAction;
use ringfence_dataplane::{AclDiff, ApplyError, Backend as _, Demand as _, Outcome, Reconciler, conformance};
use ringfence_model::{PortRange, Protocol};

/// A process started with this argument does [`one_policy_is_refused`] and [`reach::untraceable`] with the tools it finds in its
/// `PATH`.
const REFUSAL: &str = "--with-tools-that-refuse";

type Test = fn(Variant);

fn main() {
    namespace::enter();
    if let Some(variant) = std::env::args().skip_while(|argument| argument != REFUSAL).nth(1) {
        let variant = Variant::ALL.into_iter().find(|one| one.to_string() == variant).unwrap();
        clean(|| one_policy_is_refused(variant));
        return clean(|| reach::untraceable(variant));
    }
    let tests: &[(&str, Test)] = &[
        ("random_sequences", random_sequences),
        ("listed_as_written", listed_as_written),
        ("others_stay_untouched", others_stay_untouched),
        ("tampering_is_repaired", tampering_is_repaired),
        ("a_crash_at_any_step", a_crash_at_any_step),
        ("a_crash_while_replacing", a_crash_while_replacing),
        ("tools_that_refuse", tools_that_refuse),
        ("sets_grow", sets_grow),
        ("blocks", blocks),
        ("hostile_names", hostile_names),
        ("both_variants", both_variants),
        ("detection", detection),
        ("a_set_that_others_ask", a_set_that_others_ask),
        ("errors_name_set_and_policy", errors_name_set_and_policy),
        ("choices", choices),
        ("connections", packets::connections),
        ("other_nodes", reach::nodes),
        ("other_nodes_and_node_ports_of_this_one", reach::node_ports),
        ("the_nodes_own_calls", reach::own),
        ("sources_are_kept", reach::sources),
        ("tampering_in_all_tables", reach::tampering),
        ("crashes_in_all_tables", reach::crashes),
        ("others_in_all_tables", reach::others),
        ("unknown_pods", |variant| unknown::packets(new(variant))),
        ("no_packet_while_pods_become_known", |variant| unknown::flood(new(variant), 20)),
    ];
    let mut trials = Vec::new();
    for &(name, test) in tests {
        for variant in Variant::ALL {
            trials.push(Trial::test(format!("{name}: {variant}"), move || {
                clean(|| test(variant));
                Ok::<(), Failed>(())
            }));
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn options(variant: Variant) -> IptablesOptions {
    IptablesOptions { variant: Some(variant), ..IptablesOptions::default() }
}

fn new(variant: Variant) -> IptablesBackend {
    IptablesBackend::open(options(variant)).unwrap()
}

fn run(tool: &str, arguments: &[&str], input: &str) -> Result<String, String> {
    let mut child = Command::new(tool)
        .args(arguments)
        // In a user namespace the lock belongs to somebody else.
        .env("XTABLES_LOCKFILE", "/dev/null")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{tool}: {error}: install the packages iptables and ipset"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

fn iptables(variant: Variant, command: &str) {
    let arguments: Vec<&str> = command.split(' ').collect();
    run(&format!("iptables-{variant}"), &arguments, "").unwrap_or_else(|error| panic!("{command}: {error}"));
}

fn ipset(command: &str) {
    run("ipset", &["restore"], command).unwrap_or_else(|error| panic!("{command}: {error}"));
}

/// The filter tables and all sets, without what the tools say about the time, and sets in the order of their names. Of the
/// other tables what has our names.
fn everything(variant: Variant) -> Vec<String> {
    let mut lines = Vec::new();
    for base in ["iptables", "ip6tables"] {
        let saved = run(&format!("{base}-{variant}-save"), &["-t", "filter"], "").unwrap();
        lines.extend(saved.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{base} {line}")));
        for table in ["mangle", "nat"] {
            let saved = run(&format!("{base}-{variant}-save"), &["-t", table], "").unwrap();
            let ours = saved.lines().filter(|line| line.contains("RF"));
            lines.extend(ours.map(|line| format!("{base}-{table} {line}")));
        }
    }
    let saved = run("ipset", &["save"], "").unwrap();
    let without_sizes = |line: &str| match line.split_once(" hashsize") {
        Some((line, _)) => line.to_owned(),
        None => line.to_owned(),
    };
    let sets: BTreeSet<String> = saved.lines().map(without_sizes).collect();
    lines.extend(sets);
    lines
}

/// What of ours is in the kernel, in one spelling for all editions. The order of chains is not ours.
fn ours(variant: Variant) -> BTreeMap<String, Vec<String>> {
    let mut ours: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in everything(variant) {
        let line = line
            .split(' ')
            .map(|word| match word.as_bytes() {
                [b'R', b'F', b'0'..=b'9', b'-', ..] => format!("RFx{}", &word[3..]),
                [b'r', b'f', b'0'..=b'9', b'-', ..] => format!("rfx{}", &word[3..]),
                [b':', b'R', b'F', b'0'..=b'9', b'-', ..] => format!(":RFx{}", &word[4..]),
                _ => word.to_owned(),
            })
            .collect::<Vec<_>>()
            .join(" ");
        let object = line.split(' ').take(3).collect::<Vec<_>>().join(" ");
        ours.entry(object).or_default().push(line);
    }
    for lines in ours.values_mut().filter(|lines| lines.iter().any(|line| line.starts_with("add "))) {
        lines.sort();
    }
    ours
}

/// What a fresh backend makes of a list.
fn expected(acl: &Acl, variant: Variant) -> BTreeMap<String, Vec<String>> {
    clean(|| {
        new(variant).replace(acl).unwrap();
        ours(variant)
    })
}

fn addresses(texts: &[&str]) -> Members {
    Members::Addresses(texts.iter().map(|text| text.parse::<IpAddr>().unwrap()).collect())
}

const POD: SetId = SetId(1 << 120);
const SELECTED: SetId = SetId(2 << 120);
const PEERS: SetId = SetId(3 << 120);
const OTHERS: SetId = SetId(4 << 120);

/// One pod with a policy `web` that lets some peers to its port 80, and another, `bad`, that lets others to port 666.
fn small(peers: &[&str], others: &[&str]) -> Acl {
    let mut acl = Acl::empty(Arc::from("node"));
    let policy = |name: &str, set, port| {
        let ports = ProtocolRange { protocol: Protocol::Tcp, ports: PortRange::single(port) };
        let entry = AclEntry { peers: AclPeers::Set(set), ports: AclPorts::Range(ports) };
        Arc::new(AclPolicy { name: Arc::from(name), selected: SELECTED, rules: vec![AclRule { entries: vec![entry] }] })
    };
    let policies = vec![policy("bad", OTHERS, 666), policy("web", PEERS, 80)];
    acl.ingress.insert(Arc::from("default"), Arc::new(AclNamespace { isolated: POD, policies }));
    let pod = || addresses(&["10.0.0.1", "fd00::1"]);
    for (id, role, members) in [
        (POD, SetRole::Isolated, pod()),
        (SELECTED, SetRole::Selected, pod()),
        (PEERS, SetRole::Peers, addresses(peers)),
        (OTHERS, SetRole::Peers, addresses(others)),
    ] {
        acl.sets.insert(id, AclSet { role, members, origin: Arc::from("") });
    }
    acl
}

fn with_first_policy(acl: &Acl, change: impl FnOnce(&mut AclPolicy)) -> Acl {
    let mut acl = acl.clone();
    let (name, mut namespace) = acl.ingress.get_min().cloned().unwrap();
    change(Arc::make_mut(&mut Arc::make_mut(&mut namespace).policies[0]));
    acl.ingress.insert(name, namespace);
    acl
}

fn conforms(lists: &[Acl], variant: Variant) {
    let result = clean(|| conformance::check(new(variant), lists, |_| ours(variant), |acl| expected(acl, variant)));
    if let Err(failure) = result {
        let source = failure.source().map_or_else(String::new, |source| format!(": {source}: {:?}", source.source()));
        panic!("{failure}{source}");
    }
}

/// `RINGFENCE_SEEDS` asks for more.
fn random_sequences(variant: Variant) {
    let seeds = std::env::var("RINGFENCE_SEEDS").map_or(6, |seeds| seeds.parse().unwrap());
    for seed in 0..seeds {
        conforms(&random::arbitrary(seed), variant);
        let compiled = random::compiled(seed * 7 + 11);
        conforms(&compiled[..compiled.len().min(6)], variant);
    }
}

/// What the tools list is what they were given: otherwise every look at the kernel would end in writing it anew.
fn listed_as_written(variant: Variant) {
    for seed in 0..6 {
        for acl in random::arbitrary(seed).iter().chain(&random::compiled(seed + 20)).take(6) {
            let mut backend = new(variant);
            backend.replace(acl).unwrap();
            assert!(backend.repair(acl).unwrap().is_none());
        }
    }
}

const FOREIGN: &str = "*mangle
:PREROUTING ACCEPT [0:0]
-A PREROUTING -p tcp -j MARK --set-xmark 0x4000/0x4000
COMMIT
*nat
:KUBE-SERVICES - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
COMMIT
*filter
:FORWARD DROP [0:0]
:DOCKER-USER - [0:0]
:KUBE-FORWARD - [0:0]
:RF-INPUT - [0:0]
:RF0-OTHER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -m comment --comment \"see -j RF-FORWARD \\\" here\" -j KUBE-FORWARD
-A OUTPUT -m set --match-set others dst -j RF-INPUT
-A DOCKER-USER -m set --match-set rf-others src -j RETURN
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
COMMIT
";

fn others_stay_untouched(variant: Variant) {
    ipset(
        "create others hash:ip family inet\nadd others 10.0.0.9\ncreate rf-others hash:net\nadd rf-others 10.0.0.0/8\n",
    );
    run(&format!("iptables-{variant}-restore"), &["--noflush"], FOREIGN).unwrap();
    run(
        &format!("ip6tables-{variant}-restore"),
        &["--noflush"],
        "*filter\n-A FORWARD -j ACCEPT\n-A OUTPUT -j ACCEPT\nCOMMIT\n",
    )
    .unwrap();
    let all = || {
        let saved = run(&format!("iptables-{variant}-save"), &[], "").unwrap();
        let tables: Vec<String> = saved.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
        (tables, everything(variant))
    };
    let before = all();
    let mut reconciler = Reconciler::new(new(variant));
    let lists = [small(&["10.9.0.1"], &[]), small(&["10.9.0.2"], &["10.9.0.3"]), random::arbitrary(3).remove(1)];
    for acl in &lists {
        reconciler.apply(acl).unwrap();
    }
    reconciler.forget();
    reconciler.apply(&lists[0]).unwrap();
    let first =
        |hook: &str| everything(variant).into_iter().find(|line| line.contains(&format!("-A {hook} "))).unwrap();
    assert_eq!(first("FORWARD"), "iptables -A FORWARD -j RF-FORWARD");
    assert_eq!(first("OUTPUT"), "iptables -A OUTPUT -j RF-OUTPUT");
    reconciler.cleanup().unwrap();
    assert_eq!(all(), before);
    reconciler.cleanup().unwrap();
    assert_eq!(all(), before);
}

fn tampering_is_repaired(variant: Variant) {
    let acl = small(&["10.9.0.1"], &[]);
    let wanted = expected(&acl, variant);
    let mut backend = new(variant);
    assert!(backend.repair(&acl).unwrap().is_some());
    assert_eq!(ours(variant), wanted);
    let chain = |what: &str| {
        let lines = everything(variant);
        let name = lines.iter().find_map(|line| line.split(&[' ', ':']).find(|word| word.contains(what)));
        name.unwrap().to_owned()
    };
    let harms: &[&dyn Fn()] = &[
        &|| iptables(variant, "-D FORWARD -j RF-FORWARD"),
        &|| iptables(variant, "-I FORWARD -j ACCEPT"),
        &|| iptables(variant, "-A FORWARD -j RF-FORWARD"),
        &|| iptables(variant, "-A FORWARD -p tcp -j RF-FORWARD"),
        &|| iptables(variant, "-F OUTPUT"),
        &|| iptables(variant, "-F RF-FORWARD"),
        &|| iptables(variant, &format!("-F {}", chain("-POL-IN-"))),
        &|| iptables(variant, &format!("-I {} -j ACCEPT", chain("-NS-IN-"))),
        &|| iptables(variant, &format!("-D {} 1", chain("-RULE-IN-"))),
        &|| ipset(&format!("add {} 10.9.9.9", chain("-peer4-"))),
        &|| ipset(&format!("flush {}", chain("-iso4-"))),
        &|| ipset(&format!("flush {}", chain("-range6"))),
        &|| ipset(&format!("add {} 0.0.0.0/1", chain("-hold4"))),
        &|| ipset("create rf7-tmp4-AAAAAAAAAAAAAAAA hash:ip"),
        &|| iptables(variant, "-N RF7-NS-IN-AAAAAAAAAAAAAAAA"),
    ];
    for (number, harm) in harms.iter().enumerate() {
        harm();
        assert!(new(variant).difference(&acl).unwrap().is_some(), "{number}");
        assert!(backend.repair(&acl).unwrap().is_some(), "{number}");
        assert!(backend.repair(&acl).unwrap().is_none(), "{number}");
        assert!(new(variant).difference(&acl).unwrap().is_none(), "{number}");
        let mut found = ours(variant);
        // What was let in there is not ours.
        if let Some(rules) = found.get_mut("iptables -A FORWARD") {
            rules.retain(|rule| !rule.ends_with("-j ACCEPT"));
        }
        assert_eq!(found, wanted, "{number}");
    }
}

/// Dies after each number of steps; a new process makes it right.
fn a_crash_at_any_step(variant: Variant) {
    let pairs = [
        (small(&["10.9.0.1", "fd00::9"], &[]), small(&["10.9.0.2"], &["10.9.0.3"])),
        (random::arbitrary(4).remove(0), random::arbitrary(4).remove(2)),
    ];
    for (from, to) in &pairs {
        let wanted = expected(to, variant);
        let diff = from.difference(to).unwrap();
        for steps in 0..20 {
            let mut backend = new(variant);
            backend.replace(from).unwrap();
            backend.stop_after(steps);
            let whole = backend.update(from, to, &diff).is_ok();
            new(variant).replace(to).unwrap();
            assert_eq!(ours(variant), wanted, "{steps}");
            if whole {
                assert!(steps > 3, "{steps}");
                break;
            }
            assert!(steps < 19, "it does not end");
        }
    }
}

fn a_crash_while_replacing(variant: Variant) {
    let (from, to) = (small(&["10.9.0.1"], &[]), small(&["10.9.0.2"], &["10.9.0.3"]));
    let wanted = expected(&to, variant);
    for steps in 0..8 {
        new(variant).replace(&from).unwrap();
        let mut backend = new(variant);
        backend.stop_after(steps);
        let whole = backend.replace(&to).is_ok();
        assert!(backend.repair(&to).is_err() || whole);
        new(variant).replace(&to).unwrap();
        assert_eq!(ours(variant), wanted, "{steps}");
        new(variant).cleanup().unwrap();
        assert!(!everything(variant).iter().any(|line| line.contains("RF") || line.contains("rf")));
        assert_eq!(whole, steps == 7, "{steps}");
    }
}

/// Runs [`one_policy_is_refused`] and [`reach::untraceable`] in a process that finds other tools first.
fn tools_that_refuse(variant: Variant) {
    let directory = std::env::temp_dir().join(format!("ringfence-refuse-{variant}-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    for tool in ["ipset".to_owned(), format!("iptables-{variant}-restore")] {
        // The kernel does not say what it does not like about the older tables.
        let line =
            if tool == "iptables-legacy-restore" { "$(printf '%s\\n' \"$input\" | wc -l)" } else { "${line%%:*}" };
        let script = format!(
            "#!/bin/sh\n[ \"$1\" = restore ] || [ \"$1\" = --noflush ] || exec /usr/sbin/{tool} \"$@\"\n\
            input=$(cat)\n\
            line=$(printf '%s\\n' \"$input\" | grep -n -e '10[.]66[.]6[.]6' -e 'dport 6666' -e 'm rpfilter' | head -n 1)\n\
            [ -z \"$line\" ] || {{ echo \"{tool}: Error occurred at line: {line}\" >&2; exit 2; }}\n\
            printf '%s\\n' \"$input\" | /usr/sbin/{tool} \"$@\"\n"
        );
        let path = directory.join(tool);
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([REFUSAL, &variant.to_string()])
        .env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", directory.display()))
        .output()
        .unwrap();
    std::fs::remove_dir_all(directory).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn one_policy_is_refused(variant: Variant) {
    let good = small(&["10.9.0.1"], &["10.9.0.2"]);
    let bad_set = small(&["10.9.0.1"], &["10.66.6.6"]);
    let with_ports = |first, last| {
        let ports = ProtocolRange { protocol: Protocol::Tcp, ports: PortRange { first, last } };
        with_first_policy(&good, |policy| policy.rules[0].entries[0].ports = AclPorts::Range(ports))
    };
    let (bad_rule, bad_ports) = (with_ports(6666, 6666), with_ports(9, 8));

    let mut reconciler = Reconciler::new(new(variant));
    for (bad, first_by_difference) in [(&bad_set, true), (&bad_rule, true), (&bad_ports, false), (&bad_set, false)] {
        let outcome = reconciler.apply(&good).unwrap();
        assert!(matches!(outcome, Outcome::Replaced { after: None, .. } | Outcome::Updated(_)), "{outcome:?}");
        assert_eq!(reconciler.backend().refused(), []);
        let open = ours(variant);
        if !first_by_difference {
            reconciler.forget();
        }
        reconciler.apply(bad).unwrap();
        let [refused] = reconciler.backend().refused() else { panic!("{:?}", reconciler.backend().refused()) };
        assert_eq!((&*refused.namespace, &*refused.policy), ("default", "bad"));
        let remarks = reconciler.backend().remarks();
        assert!(remarks.iter().any(|remark| remark.to_string().contains("policy default/bad")), "{remarks:?}");
        assert!(refused.reason.contains("line") || refused.reason.contains("range of ports"), "{}", refused.reason);
        let closed = ours(variant);
        let lines = |state: &BTreeMap<String, Vec<String>>, what: &str| -> Vec<String> {
            state.values().flatten().filter(|line| line.contains(what)).cloned().collect()
        };
        assert_eq!(lines(&closed, "default/bad"), [""; 0]);
        assert_eq!(lines(&closed, "default/web"), lines(&open, "default/web"));
        assert_eq!(lines(&closed, "-iso"), lines(&open, "-iso"), "its pods stay isolated");
        assert!(reconciler.backend_mut().repair(bad).unwrap().is_some(), "it is tried again");
        assert_eq!(ours(variant), closed);
    }
    reconciler.apply(&good).unwrap();
    assert_eq!(reconciler.backend().refused(), []);
}

fn sets_grow(variant: Variant) {
    let with = |count: u32| {
        let mut acl = small(&[], &["10.9.0.1"]);
        let v4 = (0..count).map(|number| IpAddr::from(Ipv4Addr::from(0x0a14_0000 + number)));
        let v6 = (0..count).map(|number| IpAddr::from(Ipv6Addr::from(0xfd00 << 112 | u128::from(number + 2))));
        acl.sets.get_mut(&PEERS).unwrap().members = Members::Addresses(v4.chain(v6).collect());
        acl
    };
    let lists = [with(1), with(200), with(20_000), with(150), with(151)];
    let sizes = || -> Vec<usize> {
        let saved = run("ipset", &["save"], "").unwrap();
        let peers =
            saved.lines().filter(|line| line.contains("create") && line.contains(&format!("-peer4-{}", tail(PEERS))));
        peers
            .map(|line| line.split(' ').skip_while(|word| *word != "maxelem").nth(1).unwrap().parse().unwrap())
            .collect()
    };
    let mut reconciler = Reconciler::new(new(variant));
    let mut seen = Vec::new();
    for acl in &lists {
        let outcome = reconciler.apply(acl).unwrap();
        assert!(!matches!(outcome, Outcome::Replaced { after: Some(_), .. }), "{outcome:?}");
        assert_eq!(ours(variant), expected(acl, variant));
        seen.extend(sizes());
    }
    assert_eq!(seen.len(), lists.len());
    assert!(seen[0] < seen[1] && seen[1] < 65_536 && seen[2] >= 40_000 && seen[4] == seen[2], "{seen:?}");
    assert!(matches!(reconciler.apply(&with(152)).unwrap(), Outcome::Updated(applied) if applied.elements_added == 2));
}

/// The kernel's sets hold what the blocks say.
fn blocks(variant: Variant) {
    let mut asked = 0;
    for seed in 0..12 {
        for acl in random::arbitrary(seed) {
            let mut backend = new(variant);
            backend.replace(&acl).unwrap();
            let names: Vec<String> = everything(variant)
                .into_iter()
                .filter_map(|line| line.strip_prefix("create ").map(str::to_owned))
                .filter(|line| line.contains("-peer") && line.contains("hash:net"))
                .map(|line| line.split(' ').next().unwrap().to_owned())
                .collect();
            for (id, set) in &acl.sets {
                let Members::Networks { cidrs, except } = &set.members else { continue };
                for text in [
                    "10.0.0.1",
                    "10.9.0.1",
                    "10.9.0.2",
                    "127.255.255.255",
                    "128.0.0.0",
                    "255.0.0.1",
                    "fd00:9::1",
                    "::2",
                ] {
                    let address: IpAddr = text.parse().unwrap();
                    let wanted = cidrs.iter().any(|cidr| cidr.contains(&address))
                        && !except.iter().any(|except| except.contains(&address));
                    let family = if address.is_ipv4() { "-peer4-" } else { "-peer6-" };
                    let name = names.iter().find(|name| name.contains(family) && name.ends_with(&tail(*id)));
                    let found = name.is_some_and(|name| run("ipset", &["test", name, text], "").is_ok());
                    assert_eq!(found, wanted, "{text} in {cidrs:?} without {except:?}");
                    asked += usize::from(name.is_some());
                }
            }
        }
    }
    assert!(asked > 50, "{asked}");
}

/// The end of the name of a set: 80 bits, 5 in a letter.
fn tail(id: SetId) -> String {
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    (0..16).map(|place| char::from(letters[usize::try_from(id.0 >> (123 - 5 * place) & 31).unwrap()])).collect()
}

fn hostile_names(variant: Variant) {
    let hostile = "\"; -j ACCEPT\\ \n\u{1f4a9} ' --comment # $(reboot) `id` \"";
    for name in [hostile.to_owned(), hostile.repeat(30), "a".repeat(253), "\\".repeat(300), "\"".repeat(300)] {
        let acl = small(&["10.9.0.1"], &["10.9.0.2"]);
        let mut acl = with_first_policy(&acl, |policy| policy.name = Arc::from(name.as_str()));
        let namespace = acl.ingress.get_min().map(|(_, namespace)| namespace.clone()).unwrap();
        acl.ingress = [(Arc::from(name.as_str()), namespace)].into_iter().collect();
        let mut backend = new(variant);
        backend.replace(&acl).unwrap();
        assert_eq!(backend.refused(), []);
        assert!(backend.repair(&acl).unwrap().is_none(), "{:#?}", ours(variant));
        assert!(!everything(variant).iter().any(|line| line.ends_with("-j ACCEPT")));
    }
}

/// What is left in the variant of yesterday is found, and cleaned up with the rest.
fn both_variants(variant: Variant) {
    let acl = small(&["10.9.0.1"], &[]);
    assert_eq!(new(variant).stale_in_other().unwrap(), [""; 0]);
    new(variant.other()).replace(&acl).unwrap();
    let backend = new(variant);
    let stale = backend.stale_in_other().unwrap();
    assert_eq!(stale.len(), 6, "{stale:?}");
    let remarks = backend.remarks();
    assert!(remarks.iter().any(|remark| remark.text.contains("6 chains of an earlier run")), "{remarks:?}");
    let mut backend = new(variant);
    backend.cleanup().unwrap();
    assert_eq!(backend.stale_in_other().unwrap(), [""; 0]);
    for variant in Variant::ALL {
        assert!(!everything(variant).iter().any(|line| line.contains("RF") || line.contains("rf")));
    }
}

/// Looking for signs loads no table, and finds the kubelet's.
fn detection(variant: Variant) {
    let loaded = || std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default();
    let default = IptablesBackend::open(IptablesOptions::default()).unwrap().variant();
    assert_eq!(loaded(), "");
    clean(|| {
        iptables(variant, "-A INPUT -j ACCEPT");
        assert_eq!(Variant::detect().unwrap(), variant);
        iptables(variant.other(), "-A INPUT -j ACCEPT");
        assert_eq!(Variant::detect().unwrap(), default, "as many rules in both");
        iptables(variant.other(), "-A INPUT -j ACCEPT");
        assert_eq!(Variant::detect().unwrap(), variant.other());
        iptables(variant, "-t nat -N KUBE-PROXY-CANARY");
        assert_eq!(Variant::detect().unwrap(), variant);
        iptables(variant.other(), "-t mangle -N KUBE-IPTABLES-HINT");
        assert_eq!(Variant::detect().unwrap(), variant.other());
    });
}

fn errors_name_set_and_policy(variant: Variant) {
    let (from, to) = (small(&["10.9.0.1"], &[]), small(&["10.9.0.1", "10.9.0.2"], &[]));
    let mut backend = new(variant);
    backend.replace(&from).unwrap();
    let set = format!("rf0-peer4-{}", tail(PEERS));
    ipset(&format!("add {set} 10.9.0.2"));
    let error = backend.update(&from, &to, &AclDiff::between(&from, &to)).unwrap_err();
    let ApplyError::Refused { operation, source } = error else { panic!("not refused: {error}") };
    assert!(operation.contains(&format!("`add {set} 10.9.0.2`")), "{operation}");
    assert!(operation.contains("default/web"), "{operation}");
    assert!(source.to_string().contains("already added"), "{source}");
    // What the kernel has is not certain now: everything is written.
    backend.update(&from, &to, &AclDiff::between(&from, &to)).unwrap();
    assert_eq!(ours(variant), expected(&to, variant));
    let mut reconciler = Reconciler::new(backend);
    reconciler.apply(&from).unwrap();
    ipset(&format!("add {set} 10.9.0.2"));
    let outcome = reconciler.apply(&to).unwrap();
    assert!(matches!(outcome, Outcome::Replaced { after: Some(_), .. }), "{outcome:?}");
    assert_eq!(ours(variant), expected(&to, variant));
}

/// It fails no program; what else can be destroyed is; and patience helps.
fn a_set_that_others_ask(variant: Variant) {
    let acl = small(&["10.9.0.1"], &[]);
    let mut backend = new(variant);
    backend.replace(&acl).unwrap();
    let set = format!("rf0-sel4-{}", tail(SELECTED));
    iptables(variant, &format!("-A INPUT -m set --match-set {set} src -j ACCEPT"));
    backend.replace(&acl).unwrap();
    let left = || -> Vec<String> {
        let names = run("ipset", &["list", "-name"], "").unwrap();
        names.lines().filter(|name| name.starts_with("rf0-")).map(str::to_owned).collect()
    };
    assert_eq!(left(), [set.as_str()]);
    assert!(backend.cleanup().is_err());
    assert_eq!(left(), [set.as_str()]);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(200));
            iptables(variant, "-F INPUT");
        });
        backend.cleanup().unwrap();
    });
    assert_eq!(left(), [""; 0]);
}

fn choices(variant: Variant) {
    let options = IptablesOptions {
        deny: DenyAction::Drop,
        mark: "0x80000000".parse().unwrap(),
        pod_ip_range: ["10.0.0.0/8", "10.1.2.3/16", "0.0.0.0/0"].map(|network| network.parse().unwrap()).to_vec(),
        ..options(variant)
    };
    let acl = small(&["10.9.0.1"], &[]);
    let mut backend = IptablesBackend::open(options).unwrap();
    backend.replace(&acl).unwrap();
    assert!(backend.repair(&acl).unwrap().is_none());
    let lines = everything(variant);
    assert!(!lines.iter().any(|line| line.contains("REJECT")));
    assert!(lines.iter().any(|line| line.contains("--set-xmark 0x80000000/0x80000000")));
    for network in ["0.0.0.0/1", "128.0.0.0/1", "10.0.0.0/8", "10.1.0.0/16"] {
        assert!(lines.contains(&format!("add rf0-range4 {network}")), "{network}: {lines:#?}");
    }
    assert!(lines.contains(&"add rf0-range6 8000::/1".to_owned()));
    // Without privileges there is a word about the lock.
    assert!(backend.notes().iter().all(|note| note.contains("xtables.lock")), "{:?}", backend.notes());
}
