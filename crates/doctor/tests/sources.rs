//! Where sources are lost, and which options restore them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::needless_pass_by_value,
    reason = "a test that cannot go on fails; facts are moved together"
)]

mod node;

use node::{CNI, FLANNEL, KUBE_PROXY, nat, only};
use ringfence_doctor::{Facts, Finding, Severity, examine};
use ringfence_model::{EnforceAt, Enforcement, NodeTraffic};

use Severity::{Note, Problem, Warning};

/// The same host, where the agents run otherwise.
fn enforcing(facts: &Facts, at: EnforceAt, node_traffic: NodeTraffic) -> Facts {
    Facts { enforcement: Enforcement { at, node_traffic }, ..facts.clone() }
}

/// Where nodes before the one that replaces a source judge, nothing is lost, and what they run with is told.
#[test]
fn lost_sources_are_restored_by_judging_before() {
    let all = r#"-A KUBE-SERVICES -d 10.96.0.9/32 -m comment --comment "demo/web cluster IP" -j KUBE-SVC-A
        -A KUBE-SVC-A -d 10.96.0.9/32 -m comment --comment "demo/web cluster IP" -j KUBE-MARK-MASQ"#;
    let external = r#"-A KUBE-EXT-A -m comment --comment "masquerade traffic for demo/web external" -j KUBE-MARK-MASQ"#;
    for (rules, id, severity, by_entry) in [
        (CNI, "pod-masquerade", Problem, false),
        (all, "masquerade-all", Problem, false),
        (external, "nodeport-snat", Warning, true),
    ] {
        let facts = nat(rules);
        let finding = only(&facts);
        assert_eq!((finding.id, finding.severity), (id, severity));
        let option = if by_entry { "--enforce-at entry on all nodes" } else { "--enforce-at everywhere on all nodes" };
        assert!(finding.remedy.contains(option), "{finding:?}");
        for at in EnforceAt::ALL {
            let is_judged = at == EnforceAt::Everywhere || (by_entry && at == EnforceAt::Entry);
            for node_traffic in NodeTraffic::ALL {
                // Where nobody is believed, the pod's node judges by the address it sees.
                let restored = is_judged && node_traffic != NodeTraffic::Policy;
                let finding = only(&enforcing(&facts, at, node_traffic));
                let expected = if restored { Note } else { severity };
                assert_eq!((finding.id, finding.severity), (id, expected), "{at:?} {node_traffic:?}");
                assert_eq!(finding.remedy.starts_with("none is needed"), restored, "{finding:?}");
                let policy = node_traffic == NodeTraffic::Policy;
                assert_eq!(finding.remedy.contains("another --node-traffic"), policy, "{finding:?}");
            }
        }
    }
}

#[test]
fn what_other_clusters_see_is_told() {
    let outside = |facts: &Facts| -> Vec<Finding> {
        examine(facts).into_iter().filter(|finding| finding.id == "other-clusters").collect()
    };
    let facts = nat(&format!("{KUBE_PROXY}{FLANNEL}"));
    let told = outside(&facts);
    let [finding] = &told[..] else { panic!("{told:?}") };
    assert_eq!(finding.severity, Note);
    assert!(finding.remedy.contains("--no-masquerade-cidr"), "{finding:?}");
    assert!(finding.evidence.as_ref().unwrap().contains("! -d 224.0.0.0/4"), "{finding:?}");
    // Nothing masquerades, or nothing that pods send there.
    assert_eq!(outside(&nat(KUBE_PROXY)), []);
    assert_eq!(outside(&nat("-A POSTROUTING -s 192.0.2.0/24 -j MASQUERADE")), []);

    let nets = |texts: &[&str]| -> Vec<ipnet::IpNet> { texts.iter().map(|text| text.parse().unwrap()).collect() };
    let named = Facts { other_clusters: nets(&["10.245.0.0/16", "10.97.0.0/16", "fd00:245::/48"]), ..facts.clone() };
    let told = outside(&named);
    assert_eq!(told.iter().map(|finding| finding.severity).collect::<Vec<_>>(), [Warning; 2], "no rule is of IPv6");
    assert!(told[0].what.contains("10.245.0.0/16") && told[0].remedy.contains("--no-masquerade-cidr 10.245.0.0/16"));
    // The agent keeps them, in whatever pieces; or a rule before does.
    let kept = Facts { unmasqueraded: nets(&["10.244.0.0/15", "10.97.0.0/16"]), ..named.clone() };
    assert_eq!(outside(&kept), []);
    let half = Facts { unmasqueraded: nets(&["10.245.0.0/17", "10.97.0.0/16"]), ..named };
    assert_eq!(outside(&half).len(), 1);
    let spared = nat(&format!("-A POSTROUTING -d 10.245.0.0/16 -j ACCEPT\n{FLANNEL}"));
    assert_eq!(outside(&Facts { other_clusters: nets(&["10.245.0.0/16"]), ..spared }), []);
    let any = Facts { unmasqueraded: nets(&["10.245.0.0/16"]), ..facts };
    assert_eq!(outside(&any), [], "who runs the agent knows");
}
