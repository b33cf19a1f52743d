//! The nftables backend against the kernel, each test in a network namespace of its own.
//!
//! What the backend wrote over netlink is listed with nft and compared with what nft itself makes of our text: two
//! printers, two parsers and a kernel in between have to agree.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod drift;
mod masquerade;
mod namespace;
mod pods;
#[path = "../model/random.rs"]
mod random;
mod reach;
mod unknown;

use std::error::Error;
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};
use namespace::{clean, listing, nft};
use proptest::test_runner::{Config, TestRunner};
use ringfence_compile::Program;
use ringfence_dataplane::nft::{self as backend, DenyAction, NftOptions};
use ringfence_dataplane::{ApplyError, Backend as _, NftBackend, Outcome, Reconciler, conformance, notation};

fn main() {
    namespace::enter();
    let mut trials = vec![
        Trial::test("random_sequences", random_sequences),
        Trial::test("text_can_be_checked", text_can_be_checked),
    ];
    for (name, text) in conformance::SEQUENCES {
        trials.push(Trial::test(format!("sequence: {name}"), move || conforms(&conformance::sequence(text)?)));
    }
    let tests: &[(&str, fn())] = &[
        ("drop_instead_of_reject", drop_instead_of_reject),
        ("our_table_deleted", || tampered("delete table inet ringfence")),
        ("our_rules_deleted", || tampered("flush chain inet ringfence forward; delete chain inet ringfence forward")),
        ("one_element_deleted", || tampered(&format!("delete element inet ringfence {GATE} {{ 10.9.0.1 }}"))),
        ("one_element_added", || tampered(&format!("add element inet ringfence {GATE} {{ 10.9.0.2 }}"))),
        ("cleared_chains_are_filled", cleared_chains_are_filled),
        ("others_are_busy", others_are_busy),
        ("a_table_without_guard_is_taken_over", a_table_without_guard_is_taken_over),
        ("leftovers_vanish", leftovers_vanish),
        ("others_stay_untouched", others_stay_untouched),
        ("base_chains_stay", base_chains_stay),
        ("wrong_base_chain_is_made_right", wrong_base_chain_is_made_right),
        ("a_sleeping_table_is_woken", a_sleeping_table_is_woken),
        ("errors_name_the_element", errors_name_the_element),
        ("cleanup_takes_only_what_is_ours", cleanup_takes_only_what_is_ours),
        ("many_elements_take_many_messages", many_elements_take_many_messages),
        ("hostile_names_are_only_comments", hostile_names_are_only_comments),
        ("unknown_pods", || unknown::packets(new())),
        ("no_packet_while_pods_become_known", || unknown::flood(new(), 3000)),
        ("other_nodes_are_believed_about_endpoints", reach::endpoints),
        ("other_nodes_are_believed_about_local_pods", reach::local_pods),
        ("other_nodes_are_not_believed_about_node_ports_of_this_one", reach::node_ports_of_the_pods_node),
        ("other_nodes_are_exempt", reach::exempt),
        ("what_the_node_sends_to_pods_of_others", reach::sent),
        ("no_packet_while_nodes_and_endpoints_take_turns", reach::flood),
        ("errors_reach_pods_of_others", reach::errors),
        ("sources_are_kept_against_nft", masquerade::kept_against_nft),
        ("sources_are_kept_against_iptables_nft", || masquerade::kept_against_iptables("nft")),
        ("sources_are_kept_against_iptables_legacy", || masquerade::kept_against_iptables("legacy")),
        ("base_chain_for_sources_comes_and_goes", masquerade::base_chain_comes_and_goes),
        ("what_the_alarm_tells_is_mended", drift::what_the_alarm_tells_is_mended),
        ("what_is_read_back_is_mended", drift::what_is_read_back_is_mended),
        ("what_is_ours_is_recognised", drift::what_is_ours_is_recognised),
        ("others_ring_in_vain", drift::others_ring_in_vain),
        ("our_own_writing_does_not_ring", drift::our_own_writing_does_not_ring),
        ("an_overflow_makes_us_look", drift::an_overflow_makes_us_look),
        ("no_repair_while_others_write", drift::no_repair_while_others_write),
        ("an_update_does_not_hide_harm", drift::an_update_does_not_hide_harm),
    ];
    for &(name, test) in tests {
        trials.push(Trial::test(name, move || {
            clean(test);
            Ok(())
        }));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn new() -> NftBackend {
    NftBackend::new(NftOptions::default()).unwrap()
}

fn program(text: &str) -> Program {
    notation::parse("node", text).unwrap()
}

const OPEN: &str = "ingress pod 10.0.0.1 default/web-0
    ingress port 10.0.0.1 TCP/80 1
    ingress gate 1 v4,pods default/[app=a]
    ingress class a 1
    ingress peer 10.9.0.1 a";
const CHANGED: &str = "ingress pod 10.0.0.1 default/web-0
    egress pod 10.0.0.1 default/web-0
    ingress port 10.0.0.1 TCP/80 1
    ingress gate 1 v4,pods default/[app=a]
    ingress class a 1
    ingress peer 10.9.0.2 a";
/// The set of the gate in both.
const GATE: &str = "in4_p_00000000000000000000000000000001";

/// What nft makes of our text in a clean kernel.
fn expected(program: &Program, options: NftOptions) -> Vec<String> {
    clean(|| {
        nft(&["-f", "-"], &backend::render(program, options)).unwrap();
        listing()
    })
}

fn assert_enforced(program: &Program) {
    let expected = expected(program, NftOptions::default());
    assert_eq!(listing().join("\n"), expected.join("\n"));
}

fn conforms(programs: &[Program]) -> Result<(), Failed> {
    clean(|| {
        let expected = |program: &Program| expected(program, NftOptions::default());
        conformance::check(new(), programs, |_| listing(), expected)
    })
    .map_err(|failure| {
        let mut text = failure.to_string();
        let mut cause = failure.source();
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        text.into()
    })
}

/// `PROPTEST_CASES` asks for more.
fn random_sequences() -> Result<(), Failed> {
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { Config::default().cases } else { 40 };
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let mut runner = TestRunner::new(config);
    runner.run(&random::programs(), |programs| {
        conforms(&programs).map_err(|failure| {
            proptest::test_runner::TestCaseError::fail(failure.message().unwrap_or("failed").to_owned())
        })
    })?;
    Ok(())
}

fn text_can_be_checked() -> Result<(), Failed> {
    for script in [
        include_str!("../model/scripts/small.nft"),
        include_str!("../model/scripts/guarded.nft"),
        include_str!("../model/scripts/reaching.nft"),
    ] {
        clean(|| nft(&["-c", "-f", "-"], script))?;
    }
    for (_, text) in conformance::SEQUENCES {
        for program in conformance::sequence(text)? {
            clean(|| nft(&["-c", "-f", "-"], &backend::render(&program, NftOptions::default())))?;
        }
    }
    Ok(())
}

fn drop_instead_of_reject() {
    let options = NftOptions { deny: DenyAction::Drop };
    NftBackend::new(options).unwrap().replace(&program(OPEN)).unwrap();
    assert_eq!(listing(), expected(&program(OPEN), options));
}

/// Somebody else changes our table between two programs.
fn tampered(harm: &str) {
    let mut reconciler = Reconciler::new(new());
    reconciler.apply(&program(OPEN)).unwrap();
    nft(&["-f", "-"], harm).unwrap();
    let outcome = reconciler.apply(&program(CHANGED)).unwrap();
    assert!(
        matches!(&outcome, Outcome::Replaced { after: Some(ApplyError::Refused { .. }), .. }),
        "the update should have been refused: {outcome:?}"
    );
    assert_enforced(&program(CHANGED));
}

/// Cleared chains let everything pass. The next update writes all of them again, although it does not change them.
fn cleared_chains_are_filled() {
    let harms = [
        "flush chain inet ringfence forward; flush chain inet ringfence judge",
        "flush table inet ringfence",
        "flush chain inet ringfence in4",
        "flush chain inet ringfence in_deny",
        "flush chain inet ringfence in_g_00000000000000000000000000000001",
        "insert rule inet ringfence in4 accept",
    ];
    for harm in harms {
        clean(|| {
            let mut reconciler = Reconciler::new(new());
            reconciler.apply(&program(OPEN)).unwrap();
            nft(&["-f", "-"], harm).unwrap();
            assert!(matches!(reconciler.apply(&program(CHANGED)).unwrap(), Outcome::Updated(_)), "{harm}");
            assert_enforced(&program(CHANGED));
        });
    }
}

/// Transactions about other tables do not stand in the way of updates.
fn others_are_busy() {
    let mut reconciler = Reconciler::new(new());
    for text in [OPEN, CHANGED, OPEN, CHANGED] {
        let outcome = reconciler.apply(&program(text)).unwrap();
        assert!(!matches!(outcome, Outcome::Replaced { after: Some(_), .. }), "{outcome:?}");
        assert_enforced(&program(text));
        nft(&["-f", "-"], "add table ip other; add chain ip other busy; add rule ip other busy counter").unwrap();
    }
}

/// What earlier versions have left: in one transaction the ranges are guarded, and free again.
fn a_table_without_guard_is_taken_over() {
    nft(&["-f", "-"], include_str!("../model/scripts/small.nft")).unwrap();
    let guarded = program(include_str!("../model/scripts/guarded.program"));
    new().replace(&guarded).unwrap();
    assert_enforced(&guarded);
    let small = program(include_str!("../model/scripts/small.program"));
    new().replace(&small).unwrap();
    assert_enforced(&small);
}

fn leftovers_vanish() {
    let old = "table inet ringfence {
        set old { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 }; }
        map in4_ports { type inet_service : verdict; elements = { 80 : jump oldest }; }
        chain oldest { accept; }
        chain older { tcp dport vmap @in4_ports; ip saddr { 10.0.0.1, 10.0.0.2 } goto oldest; }
        chain in_deny { ip saddr @old accept; }
        chain forward { type filter hook forward priority filter; jump older; }
        chain stray { type filter hook input priority 5; jump oldest; }
    }";
    nft(&["-f", "-"], old).unwrap();
    new().replace(&program(OPEN)).unwrap();
    let ours = listing();
    let missing_comments = |objects: Vec<String>| -> Vec<String> {
        // The comments of a table and of a base chain that were there before stay as they were.
        let keep = |line: &&str| !line.contains("do not edit") && !line.contains("routed packets");
        objects.iter().map(|object| object.lines().filter(keep).map(str::trim).collect()).collect()
    };
    assert_eq!(missing_comments(ours), missing_comments(expected(&program(OPEN), NftOptions::default())));
}

const OTHERS: &str = "table ip nat {
        map services { type ipv4_addr . inet_proto . inet_service : verdict; elements = { 10.96.0.1 . tcp . 443 : goto one }; }
        chain one { tcp dport 443 dnat to 10.0.0.1:6443; }
        chain prerouting { type nat hook prerouting priority dstnat; ip daddr . meta l4proto . th dport vmap @services; }
    }
    table ip ringfence { chain forward { type filter hook forward priority filter; counter; }; }
    table inet foo { set s { type ipv4_addr; elements = { 10.0.0.1 }; }; chain c { ip saddr @s counter accept; }; }";

fn others_stay_untouched() {
    nft(&["-f", "-"], OTHERS).unwrap();
    let before = nft(&["-a", "list", "ruleset"], "").unwrap();
    let mut reconciler = Reconciler::new(new());
    reconciler.apply(&program(OPEN)).unwrap();
    reconciler.apply(&program(CHANGED)).unwrap();
    reconciler.forget();
    reconciler.apply(&program(OPEN)).unwrap();
    reconciler.cleanup().unwrap();
    assert_eq!(nft(&["-a", "list", "ruleset"], "").unwrap(), before);
}

fn base_chains_stay() {
    let mut backend = new();
    let handles = || -> Vec<String> {
        let text = nft(&["-a", "list", "table", "inet", "ringfence"], "").unwrap();
        let base = |line: &&str| ["chain forward {", "chain output {"].iter().any(|name| line.contains(name));
        text.lines().filter(base).map(str::to_owned).collect()
    };
    backend.replace(&program(OPEN)).unwrap();
    let before = handles();
    assert_eq!(before.len(), 2);
    backend.replace(&program(CHANGED)).unwrap();
    backend.replace(&program("")).unwrap();
    assert_eq!(handles(), before);
}

fn wrong_base_chain_is_made_right() {
    let wrong = [
        "chain forward { type filter hook forward priority 10; }",
        "chain forward { type filter hook input priority filter; }",
        "chain forward { type route hook output priority filter; }",
        "chain forward { accept; }",
        "chain forward { type filter hook forward priority filter; policy drop; }",
        "chain judge { type filter hook input priority filter; }",
    ];
    for chain in wrong {
        clean(|| {
            nft(&["-f", "-"], &format!("table inet ringfence {{ {chain}; }}")).unwrap();
            new().replace(&program(OPEN)).unwrap();
            let text = listing().join("\n");
            assert!(text.contains("type filter hook forward priority filter; policy accept;"), "{chain}: {text}");
            assert!(!text.contains("hook input"), "{chain}: {text}");
        });
    }
}

fn a_sleeping_table_is_woken() {
    new().replace(&program(OPEN)).unwrap();
    nft(&["-f", "-"], "table inet ringfence { flags dormant; }").unwrap();
    new().replace(&program(OPEN)).unwrap();
    assert_enforced(&program(OPEN));
}

fn errors_name_the_element() {
    let mut backend = new();
    backend.replace(&program(OPEN)).unwrap();
    nft(&["-f", "-"], &format!("delete element inet ringfence {GATE} {{ 10.9.0.1 }}")).unwrap();
    let before = listing();
    let (from, to) = (program(OPEN), program(CHANGED));
    let error = backend.update(&from, &to, &ringfence_dataplane::ProgramDiff::between(&from, &to)).unwrap_err();
    let ApplyError::Refused { operation, source } = error else {
        panic!("not refused: {error}");
    };
    assert_eq!(operation, format!("deleting 10.9.0.1 from {GATE}"));
    assert_eq!(source.kind(), std::io::ErrorKind::NotFound);
    assert_eq!(listing(), before);
}

fn cleanup_takes_only_what_is_ours() {
    let mut backend = new();
    backend.cleanup().unwrap();
    nft(&["-f", "-"], OTHERS).unwrap();
    let before = nft(&["list", "ruleset"], "").unwrap();
    backend.replace(&program(OPEN)).unwrap();
    backend.cleanup().unwrap();
    backend.cleanup().unwrap();
    assert_eq!(nft(&["list", "ruleset"], "").unwrap(), before);
}

fn many_elements_take_many_messages() {
    let mut many = program(OPEN);
    // More than fits into one message, and not more than nft can load without privileges.
    let class = many.ingress.peers.values().copied().next().unwrap();
    let mut blocks = Vec::new();
    for number in 0..900_u32 {
        many.ingress.peers.insert(std::net::Ipv4Addr::from(0x0b00_0000 + number).into(), class);
        let address = std::net::Ipv6Addr::from(u128::from(number) << 64).into();
        blocks.push(ringfence_model::AddressRange { first: address, last: address });
    }
    many.egress = program(
        "egress pod fd00::1 default/web-0
        egress port fd00::1 TCP/80 2
        egress gate 2 v6 many",
    )
    .egress;
    let (id, gate) = many.egress.gates.get_min().cloned().unwrap();
    many.egress.gates.insert(id, Arc::new(ringfence_compile::Gate { blocks, ..(*gate).clone() }));
    let mut reconciler = Reconciler::new(new());
    reconciler.apply(&many).unwrap();
    assert_enforced(&many);
    let outcome = reconciler.apply(&program(OPEN)).unwrap();
    assert!(matches!(outcome, Outcome::Updated(applied) if applied.elements_removed >= 900), "{outcome:?}");
    assert_enforced(&program(OPEN));
}

fn hostile_names_are_only_comments() {
    let hostile = "\"; drop; \\ \u{1f4a9} ' comment #";
    let text = OPEN.replace("default/web-0", hostile).replace("default/[app=a]", &hostile.repeat(30));
    new().replace(&program(&text)).unwrap();
    assert_enforced(&program(&text));
}
