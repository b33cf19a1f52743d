//! What other versions have left, or could have.

use std::fmt::Write as _;

use ringfence_dataplane::PacketFilter;

use crate::is_like_a_fresh_load;
use crate::process::{Agent, sets, tool};
use crate::site::{BY_LABEL, OPEN, Site, States};
use crate::traffic::under_load;

/// The table of the first version, with the policies of a state that is gone.
const FIRST: &str = include_str!("older/first.nft");

/// A table that no version had: base chains as ours and one of another hook; chains and sets with the names of ours, of other
/// types and with other contents; maps to chains that are no gates; objects that nothing of ours knows.
const STRANGE: &str = include_str!("older/strange.nft");

/// The agent takes over from what is there, under load.
pub(crate) fn upgraded(filter: PacketFilter) {
    let site = Site::build();
    let mut states = States::new(10);
    site.tell(&states.next().0);
    let forget = |text: &str| match filter {
        PacketFilter::Nftables => {
            tool("nft", &["-f", "-"], &format!("table inet ringfence\ndelete table inet ringfence\n{text}"));
        }
        PacketFilter::Iptables(variant) => {
            for (family, tables) in [("inet", "iptables"), ("inet6", "ip6tables")] {
                let (ipset, rules) = edition_seven(family);
                tool("ipset", &["restore"], &ipset);
                tool(&format!("{tables}-{variant}-restore"), &["--noflush"], &rules);
            }
        }
    };
    Agent::running(&site, filter, &[]).kill();
    let layouts: &[&str] = if filter == PacketFilter::Nftables { &[FIRST, STRANGE] } else { &[""] };
    forget(layouts[0]);
    under_load(&site, &format!("upgraded, {filter}"), |traffic| {
        for _ in 0..5 {
            for layout in layouts {
                // The kernel cannot change a layout so that nothing slips: it is the agent that has to.
                traffic.without_new_flows(|| forget(layout));
                traffic.meets(200);
                site.tell(&states.next().0);
                Agent::running(&site, filter, &[]).kill();
                traffic.meets(200);
            }
        }
        traffic.connects();
    });
    assert!(!sets().iter().any(|set| set.starts_with("rf7-")));
    is_like_a_fresh_load(&site, filter);
}

/// Chains and sets of an edition that were laid out otherwise, next to whatever is in force, and in force themselves from now
/// on; and what an interrupted attempt has left of yet another edition.
fn edition_seven(family: &str) -> (String, String) {
    let (net, pods, all) = if family == "inet" {
        (32, ["10.244.0.2", "10.244.0.3"], "0.0.0.0/1")
    } else {
        (128, ["fd00::2", "fd00::3"], "::/1")
    };
    let digit = if family == "inet" { 4 } else { 6 };
    let iso = format!("rf7-iso{digit}-AAAAAAAAAAAAAAAA");
    let mut ipset = String::new();
    for set in [&iso, &format!("rf8-peer{digit}-BBBBBBBBBBBBBBBB")] {
        let _ = writeln!(ipset, "create -exist {set} hash:net family {family} maxelem 2048");
        for pod in pods {
            let _ = writeln!(ipset, "add -exist {set} {pod}/{net}");
        }
    }
    let _ = writeln!(ipset, "create -exist rf8-hold{digit} hash:net family {family}\nadd -exist rf8-hold{digit} {all}");
    let rules = format!(
        "*filter
:RF-FORWARD - [0:0]
:RF-OUTPUT - [0:0]
:RF7-NS-IN-AAAAAAAAAAAAAAAA - [0:0]
:RF7-POL-IN-AAAAAAAAAAAAAAAA - [0:0]
:RF8-POL-EG-CCCCCCCCCCCCCCCC - [0:0]
-D FORWARD -j RF-FORWARD
-A FORWARD -j RF-FORWARD
-A FORWARD -m comment --comment \"from before\" -j RF-OUTPUT
-A RF-FORWARD -m set --match-set {iso} dst -j RF7-NS-IN-AAAAAAAAAAAAAAAA
-A RF7-NS-IN-AAAAAAAAAAAAAAAA -m conntrack --ctstate ESTABLISHED -j RETURN
-A RF7-NS-IN-AAAAAAAAAAAAAAAA -g RF7-POL-IN-AAAAAAAAAAAAAAAA
-A RF7-POL-IN-AAAAAAAAAAAAAAAA -p tcp -m tcp --dport {OPEN} -j RETURN
-A RF7-POL-IN-AAAAAAAAAAAAAAAA -p udp -m udp --dport {BY_LABEL} -j DROP
-A RF7-POL-IN-AAAAAAAAAAAAAAAA -j REJECT
-A RF8-POL-EG-CCCCCCCCCCCCCCCC -j ACCEPT
COMMIT
"
    );
    (ipset, rules)
}
