//! What a small list looks like, as a file to look at. `RINGFENCE_BLESS=1` writes it anew.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use ringfence_compile::ProtocolRange;
use ringfence_compile::acl::{
    Acl, AclBelieved, AclEntry, AclGuard, AclNamespace, AclPeers, AclPolicy, AclPorts, AclReach, AclRule, AclSet,
    Members, SetId, SetRole,
};
use ringfence_dataplane::iptables::{IptablesOptions, Mark, render};
use ringfence_dataplane::nft::DenyAction;
use ringfence_model::{PortRange, Protocol};

/// Ingress to a pod of `shop`: the pods of a set may reach its port `http` and ports 8000 to 8080, blocks its port 53.
fn small() -> Acl {
    let set = |role, members| AclSet { role, members, origin: Arc::from("") };
    let addresses =
        |texts: &[&str]| Members::Addresses(texts.iter().map(|text| text.parse::<IpAddr>().unwrap()).collect());
    let networks = |cidrs: &[&str], except: &[&str]| Members::Networks {
        cidrs: cidrs.iter().map(|text| text.parse().unwrap()).collect(),
        except: except.iter().map(|text| text.parse().unwrap()).collect(),
    };
    let [isolated, selected, pods, blocks, serving] = [1, 2, 3, 4, 5].map(|number| SetId(number << 120));
    let endpoint = ("10.0.0.1".parse().unwrap(), Protocol::Tcp, 8443);
    let range = |protocol, first, last| AclPorts::Range(ProtocolRange { protocol, ports: PortRange { first, last } });
    let rule = |entries: &[(AclPeers, AclPorts)]| AclRule {
        entries: entries.iter().map(|(peers, ports)| AclEntry { peers: *peers, ports: *ports }).collect(),
    };
    let web = AclPolicy {
        name: Arc::from("web"),
        selected,
        rules: vec![
            rule(&[
                (AclPeers::Set(pods), AclPorts::Serving(serving)),
                (AclPeers::Set(pods), range(Protocol::Tcp, 8000, 8080)),
            ]),
            rule(&[(AclPeers::Set(blocks), range(Protocol::Udp, 53, 53))]),
        ],
    };
    let none = AclPolicy { name: Arc::from("default-deny"), selected: isolated, rules: Vec::new() };
    let namespace = AclNamespace { isolated, policies: vec![Arc::new(none), Arc::new(web)] };
    let mut acl = Acl::empty(Arc::from("node"));
    acl.ingress = OrdMap::unit(Arc::from("shop"), Arc::new(namespace));
    acl.sets = [
        (isolated, set(SetRole::Isolated, addresses(&["10.0.0.1", "10.0.0.2", "fd00::1"]))),
        (selected, set(SetRole::Selected, addresses(&["10.0.0.1", "fd00::1"]))),
        (pods, set(SetRole::Peers, addresses(&["10.9.0.1"]))),
        (blocks, set(SetRole::Peers, networks(&["0.0.0.0/0"], &["10.0.0.0/8"]))),
        (serving, set(SetRole::Serving, Members::Endpoints([endpoint].into_iter().collect()))),
    ]
    .into_iter()
    .collect();
    acl
}

/// The same with ranges that are guarded: one of IPv4, two of IPv6.
fn guarded() -> Acl {
    let known = SetId(6 << 120);
    let addresses = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1"].map(|text| text.parse::<IpAddr>().unwrap());
    let members = Members::Addresses(addresses.into_iter().collect());
    let ranges = ["10.0.0.0/24", "fd00::/64", "fd00:1::/64"].map(|text| text.parse().unwrap());
    let mut acl = small();
    acl.sets.insert(known, AclSet { role: SetRole::Known, members, origin: Arc::from("known pods") });
    acl.guard = Some(AclGuard { ranges: Arc::new(ranges), known });
    acl
}

/// The same for a node that judges for others, believes others about a port, and lets pods keep their IPv4 addresses.
fn reaching() -> Acl {
    let [local, nodes, judged] = [7, 8, 9].map(|number| SetId(number << 120));
    let mut acl = guarded();
    let addresses = |text: &str| Members::Addresses([text.parse::<IpAddr>().unwrap()].into_iter().collect());
    let endpoint = ("10.0.0.1".parse().unwrap(), Protocol::Tcp, 8443);
    for (id, role, members, origin) in [
        (local, SetRole::Local, addresses("10.0.0.1"), "pods of this node"),
        (nodes, SetRole::Nodes, addresses("192.0.2.2"), "addresses of other nodes"),
        (judged, SetRole::Believed, Members::Endpoints([endpoint].into_iter().collect()), "what other nodes judge"),
    ] {
        acl.sets.insert(id, AclSet { role, members, origin: Arc::from(origin) });
    }
    acl.reach = AclReach {
        judges_others: true,
        local: Some(local),
        nodes: Some(nodes),
        believed: AclBelieved::Endpoints(judged),
        unmasqueraded: Arc::new(["10.9.0.0/16".parse().unwrap()]),
    };
    acl
}

fn check(name: &str, acl: &Acl) {
    let golden = format!("{}/tests/iptables_model/scripts/{name}.rules", env!("CARGO_MANIFEST_DIR"));
    let script = render(acl, &IptablesOptions::default());
    if std::env::var_os("RINGFENCE_BLESS").is_some() {
        std::fs::write(&golden, &script).unwrap();
    }
    assert_eq!(script, std::fs::read_to_string(&golden).unwrap_or_default());
}

#[test]
fn the_script_of_a_small_list() {
    check("small", &small());
}

#[test]
fn the_script_of_a_list_that_guards_ranges() {
    check("guarded", &guarded());
}

#[test]
fn the_script_of_a_list_that_reaches_others() {
    check("reaching", &reaching());
}

/// A policy that cannot be written takes no guard away, nor what other nodes are told.
#[test]
fn guard_and_reach_stay_whatever_becomes_of_a_policy() {
    let mut acl = reaching();
    let (name, mut namespace) = acl.ingress.get_min().cloned().unwrap();
    let ports = AclPorts::Range(ProtocolRange { protocol: Protocol::Tcp, ports: PortRange { first: 2, last: 1 } });
    let entry = AclEntry { peers: AclPeers::Anyone, ports };
    let bad = AclPolicy { rules: vec![AclRule { entries: vec![entry] }], ..(*namespace.policies[0]).clone() };
    Arc::make_mut(&mut namespace).policies[0] = Arc::new(bad);
    acl.ingress.insert(name, namespace);
    assert_eq!(render(&acl, &IptablesOptions::default()), render(&reaching(), &IptablesOptions::default()));
}

#[test]
fn choices_change_only_what_they_are_about() {
    let ours = render(&small(), &IptablesOptions::default());
    let dropping = render(&small(), &IptablesOptions { deny: DenyAction::Drop, ..IptablesOptions::default() });
    let refusals = |script: &str| script.lines().filter(|line| !line.contains("REJECT")).map(str::to_owned).collect();
    let mut kept: Vec<String> = refusals(&ours);
    let mut found: Vec<String> = dropping.lines().map(str::to_owned).collect();
    found.retain(|line| !line.ends_with("-j DROP"));
    kept.retain(|line| !line.ends_with("-j DROP"));
    assert_eq!(found, kept);
    let marked = render(&small(), &IptablesOptions { mark: Mark::new(1).unwrap(), ..IptablesOptions::default() });
    assert_eq!(marked.replace("0x1/0x1", "0x1000/0x1000").replace("0x0/0x1", "0x0/0x1000"), ours);
}

#[test]
fn a_mark_is_one_bit() {
    for (text, bits) in [("0x2000", 0x2000), ("8192", 0x2000), ("0X80000000", 1 << 31), ("1", 1)] {
        assert_eq!(text.parse::<Mark>().map(Mark::bits), Ok(bits));
    }
    for text in ["", "0", "3", "0x", "0x100000000", "-1", "2000h", "0x2001", "0x4000", "0x8000"] {
        assert!(text.parse::<Mark>().is_err(), "{text}");
    }
    assert_eq!(Mark::default().to_string(), "0x1000");
}
