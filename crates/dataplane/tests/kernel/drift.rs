//! What others do to our table is noticed and mended; what they do to theirs is not our business.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ringfence_compile::Program;
use ringfence_dataplane::{Backend as _, NftBackend, Outcome, Reconciler};

use crate::namespace::{clean, nft};
use crate::{CHANGED, GATE, OPEN, assert_enforced, new, program};

/// A program with something of everything: both directions and families, ports, ranges and the rest, pods and blocks.
const ALL: &str = "judges-others
    believes endpoints
    local 10.0.0.1
    local fd00::1
    other-node 192.0.2.2
    endpoint 10.0.0.1 TCP/80
    unmasqueraded 10.128.0.0/9
    ingress pod 10.0.0.1 default/web-0
    ingress port 10.0.0.1 TCP/80 1
    ingress port 10.0.0.1 TCP/1000-2000 1
    ingress port 10.0.0.1 rest anyone
    ingress gate 1 v4,v6,pods default/[app=a]
    ingress block 1 10.0.0.0-10.0.0.7
    ingress block 1 10.0.0.8-10.0.0.9
    ingress block 1 255.0.0.0-255.255.255.255
    ingress block 1 fd00::-fd00::ffff
    ingress class a 1
    ingress peer 10.9.0.1 a
    ingress peer fd00:9::1 a
    egress pod 10.0.0.1 default/web-0
    egress pod fd00::1 default/web-0
    egress port fd00::1 UDP/53 1
    egress port fd00::1 SCTP/1-65535 1
    egress gate 1 v4,v6,pods dns
    egress class b 1
    egress peer fd00:9::2 b";

/// What somebody does to our table, and the end of what we say about it.
fn harms() -> Vec<(String, &'static str)> {
    let harm = |text: &str, what| (text.replace("OURS", "inet ringfence").replace("GATE", GATE), what);
    vec![
        harm("delete table OURS", "deleted all in table inet ringfence, and more"),
        harm("flush table OURS", "deleted a rule of chain forward in table inet ringfence, and more"),
        harm("flush chain OURS judge", "deleted a rule of chain judge in table inet ringfence, and more"),
        harm("flush ruleset", "deleted all in table inet ringfence, and more"),
        harm("insert rule OURS forward accept", "added a rule to chain forward in table inet ringfence"),
        harm("insert rule OURS in4 ip saddr 10.7.7.7 return", "added a rule to chain in4 in table inet ringfence"),
        harm(
            "add rule OURS in_g_00000000000000000000000000000001 accept",
            "added a rule to chain in_g_00000000000000000000000000000001 in table inet ringfence",
        ),
        harm(
            "delete element OURS GATE { 10.9.0.1 }",
            "deleted from set in4_p_00000000000000000000000000000001 in table inet ringfence",
        ),
        harm(
            "add element OURS GATE { 10.7.7.7 }",
            "added to set in4_p_00000000000000000000000000000001 in table inet ringfence",
        ),
        harm("flush set OURS GATE", "deleted from set in4_p_00000000000000000000000000000001 in table inet ringfence"),
        harm("flush set OURS in4_pods", "deleted from set in4_pods in table inet ringfence"),
        harm(
            "delete element OURS in4_ports { 10.0.0.1 . tcp . 80 : goto in_g_00000000000000000000000000000001 }; add element OURS in4_ports { 10.0.0.1 . tcp . 80 : return }",
            "deleted from set in4_ports in table inet ringfence, and more",
        ),
        harm(
            "add element OURS in4_b_00000000000000000000000000000001 { 10.7.0.0/16 }",
            "added to set in4_b_00000000000000000000000000000001 in table inet ringfence, and more",
        ),
        harm(
            "delete element OURS in4_b_00000000000000000000000000000001 { 255.0.0.0-255.255.255.255 }",
            "deleted from set in4_b_00000000000000000000000000000001 in table inet ringfence",
        ),
        harm("delete element OURS nodes4 { 192.0.2.2 }", "deleted from set nodes4 in table inet ringfence"),
        harm("add element OURS nodes4 { 10.0.0.9 }", "added to set nodes4 in table inet ringfence"),
        harm("add element OURS nodes6 { fd00::9 }", "added to set nodes6 in table inet ringfence"),
        harm("flush set OURS local6", "deleted from set local6 in table inet ringfence"),
        harm("add element OURS judged4 { 10.0.0.1 . tcp . 81 }", "added to set judged4 in table inet ringfence"),
        harm("delete element OURS kept4 { 10.128.0.0/9 }", "deleted from set kept4 in table inet ringfence, and more"),
        harm("flush chain OURS trust", "deleted a rule of chain trust in table inet ringfence, and more"),
        harm("insert rule OURS sent return", "added a rule to chain sent in table inet ringfence"),
        harm("flush chain OURS postrouting", "deleted a rule of chain postrouting in table inet ringfence"),
        harm(
            "flush chain OURS postrouting; delete chain OURS postrouting",
            "deleted a rule of chain postrouting in table inet ringfence, and more",
        ),
        harm("chain OURS forward { policy drop; }", "added or changed chain forward in table inet ringfence"),
        harm("table OURS { flags dormant; }", "changed the flags in table inet ringfence"),
        harm("add chain OURS stray", "added or changed chain stray in table inet ringfence"),
        harm(
            "add chain OURS stray { type filter hook input priority 5; policy drop; }",
            "added or changed chain stray in table inet ringfence",
        ),
        harm("add set OURS stray { type ipv4_addr; }", "added set stray in table inet ringfence"),
        harm("rename chain OURS in4 in5", "added or changed chain in5 in table inet ringfence"),
    ]
}

fn is_readable(backend: &NftBackend) -> bool {
    let mut fds = [PollFd::new(backend.alarm().unwrap(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).unwrap() > 0
}

fn enforcing(program: &Program) -> NftBackend {
    let mut backend = new();
    backend.replace(program).unwrap();
    backend
}

pub(crate) fn what_the_alarm_tells_is_mended() {
    for (harm, what) in harms() {
        clean(|| {
            let all = program(ALL);
            let mut backend = enforcing(&all);
            assert!(!is_readable(&backend));
            nft(&["-f", "-"], &harm).unwrap();
            assert!(is_readable(&backend), "{harm}");
            let drift = backend.heed(&all).unwrap().expect(&harm).to_string();
            let (who, told) = drift.split_once(") ").unwrap();
            assert!(who.starts_with("nft (process ") && told == what, "{harm}: {drift}");
            assert_enforced(&all);
            assert!(!is_readable(&backend), "{harm}");
            assert_eq!(backend.heed(&all).unwrap(), None, "{harm}");
            assert_eq!(backend.repair(&all).unwrap(), None, "{harm}");
        });
    }
}

/// A backend that has heard nothing reads everything back.
pub(crate) fn what_is_read_back_is_mended() {
    for (harm, _) in harms() {
        clean(|| {
            let all = program(ALL);
            drop(enforcing(&all));
            let mut deaf = new();
            assert_eq!(deaf.repair(&all).unwrap(), None, "before {harm}");
            assert_eq!(deaf.difference(&all).unwrap(), None, "before {harm}");
            drop(deaf);
            nft(&["-f", "-"], &harm).unwrap();
            let mut deaf = new();
            // To look changes nothing, so there is the same to be seen again.
            for _ in 0..2 {
                let difference = deaf.difference(&all).unwrap().expect(&harm).to_string();
                assert!(difference.starts_with("table inet ringfence is not as expected: "), "{harm}: {difference}");
            }
            let drift = deaf.heed(&all).unwrap().expect(&harm).to_string();
            assert!(drift.starts_with("table inet ringfence was not as written: "), "{harm}: {drift}");
            assert_enforced(&all);
            assert_eq!(deaf.repair(&all).unwrap(), None, "{harm}");
        });
    }
}

/// What was written in any way is recognised when it is read back.
pub(crate) fn what_is_ours_is_recognised() {
    for (_, text) in ringfence_dataplane::conformance::SEQUENCES {
        clean(|| {
            let mut reconciler = Reconciler::new(new());
            for program in ringfence_dataplane::conformance::sequence(text).unwrap() {
                reconciler.apply(&program).unwrap();
                // So that the transaction number is not ours.
                nft(&["-f", "-"], "add table ip other; delete table ip other").unwrap();
                assert_eq!(new().difference(&program).unwrap(), None, "{text}");
                assert_eq!(reconciler.repair().unwrap(), None, "{text}");
            }
        });
    }
}

/// Handles of the rules of a chain that every program has.
fn handles() -> String {
    nft(&["-a", "list", "chain", "inet", "ringfence", "output"], "").unwrap()
}

pub(crate) fn others_ring_in_vain() {
    let (open, more) = (program(OPEN), program(&format!("{OPEN}\n    ingress peer 10.9.0.3 a")));
    let mut reconciler = Reconciler::new(new());
    reconciler.apply(&open).unwrap();
    let before = handles();
    for round in 0..10 {
        nft(
            &["-f", "-"],
            "add table ip ringfence; add chain ip ringfence forward; add rule ip ringfence forward accept",
        )
        .unwrap();
        nft(&["-f", "-"], "add table inet other; add set inet other s { type ipv4_addr; }").unwrap();
        assert!(is_readable(reconciler.backend()));
        if round % 2 == 0 {
            assert_eq!(reconciler.heed().unwrap(), None);
            assert!(!is_readable(reconciler.backend()));
        }
        // An update after that is a difference, as if nobody else were there.
        let outcome = reconciler.apply(if round % 4 < 2 { &more } else { &open }).unwrap();
        assert!(matches!(outcome, Outcome::Updated(_) | Outcome::Unchanged), "{outcome:?}");
        assert_eq!(handles(), before);
    }
    assert_eq!(reconciler.repair().unwrap(), None);
    assert_eq!(handles(), before);
}

pub(crate) fn our_own_writing_does_not_ring() {
    let mut many = program(OPEN);
    let class = many.ingress.peers.values().copied().next().unwrap();
    for number in 0..3000_u32 {
        many.ingress.peers.insert(std::net::Ipv4Addr::from(0x0b00_0000 + number).into(), class);
    }
    let mut reconciler = Reconciler::new(new());
    for wanted in [&program(OPEN), &many, &program(CHANGED), &many] {
        reconciler.apply(wanted).unwrap();
        assert!(!is_readable(reconciler.backend()));
    }
    reconciler.forget();
    reconciler.apply(&many).unwrap();
    assert!(!is_readable(reconciler.backend()));
    assert_eq!(reconciler.heed().unwrap(), None);
    // And listens again.
    nft(&["-f", "-"], "flush chain inet ringfence judge").unwrap();
    assert!(reconciler.heed().unwrap().is_some());
}

/// What is written before anybody looks at the alarm does not hide what the alarm tells.
pub(crate) fn an_update_does_not_hide_harm() {
    for (harm, _) in harms() {
        clean(|| {
            let (all, more) = (program(ALL), program(&format!("{ALL}\n    ingress peer 10.9.0.3 a")));
            let mut reconciler = Reconciler::new(new());
            reconciler.apply(&all).unwrap();
            nft(&["-f", "-"], &harm).unwrap();
            match reconciler.apply(&more).unwrap() {
                Outcome::Updated(_) => assert!(reconciler.heed().unwrap().is_some(), "{harm}"),
                Outcome::Replaced { after: Some(_), .. } => {}
                outcome => panic!("{outcome:?}"),
            }
            assert_enforced(&more);
            assert_eq!(reconciler.repair().unwrap(), None, "{harm}");
        });
    }
}

/// A transaction of somebody else: rules taken and given, in a table of the same family and a like name.
fn busy() -> String {
    let mut script =
        "add table inet ringfences; add chain inet ringfences c; flush chain inet ringfences c\n".to_owned();
    for number in 0..300 {
        script.push_str(&format!("add rule inet ringfences c tcp dport {number} counter accept\n"));
    }
    script
}

/// More was announced than the socket holds. What is missing may be about our table, or not.
pub(crate) fn an_overflow_makes_us_look() {
    let open = program(OPEN);
    let mut backend = enforcing(&open);
    let flood = || (0..30).for_each(|_| assert!(nft(&["-f", "-"], &busy()).is_ok()));
    flood();
    assert_eq!(backend.heed(&open).unwrap(), None);
    flood();
    nft(&["-f", "-"], &format!("delete element inet ringfence {GATE} {{ 10.9.0.1 }}")).unwrap();
    let drift = backend.heed(&open).unwrap().unwrap().to_string();
    // Not from what was announced: that was lost.
    assert_eq!(drift, format!("table inet ringfence was not as written: set {GATE} differs"));
    assert_enforced(&open);
}

/// Somebody writes to another table all the time.
pub(crate) fn no_repair_while_others_write() {
    let (open, more) = (program(OPEN), program(&format!("{OPEN}\n    ingress peer 10.9.0.3 a")));
    let mut reconciler = Reconciler::new(new());
    reconciler.apply(&open).unwrap();
    std::thread::scope(|scope| {
        // A thread is in the network namespace of the one that made it.
        let writer = scope.spawn(|| (0..60).for_each(|_| assert!(nft(&["-f", "-"], &busy()).is_ok())));
        let mut round = 0;
        while !writer.is_finished() {
            round += 1;
            reconciler.apply(if round % 2 == 0 { &more } else { &open }).unwrap();
            assert_eq!(reconciler.heed().unwrap(), None);
            if round % 10 == 0 {
                assert_eq!(reconciler.repair().unwrap(), None);
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    });
    assert_eq!(reconciler.repair().unwrap(), None);
    assert_enforced(reconciler.in_force().unwrap());
}
