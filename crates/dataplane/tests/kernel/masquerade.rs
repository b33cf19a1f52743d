//! Sources that are kept: packets against the masquerading of others, whatever it is written with.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::Duration;

use ringfence_dataplane::Reconciler;

use crate::namespace::{clean, nft};
use crate::pods::{Pod, forward};
use crate::{OPEN, assert_enforced, new, program};

/// The sources that the pods 2 (the world) and 8 (another cluster) see when pod 1 calls them, over IPv4 and IPv6.
struct Network {
    one: Pod,
    _others: [Pod; 2],
}

const OWN: [&str; 2] = ["10.0.1.1", "fd00:1::1"];
const WORLD: [&str; 2] = ["10.0.2.1", "fd00:2::1"];
const CLUSTER: [&str; 2] = ["10.0.8.1", "fd00:8::1"];
/// The node's addresses towards them.
const NODE_TO_WORLD: [&str; 2] = ["10.0.2.254", "fd00:2::fe"];
const NODE_TO_CLUSTER: [&str; 2] = ["10.0.8.254", "fd00:8::fe"];

const KEEPS: &str = "local 10.0.1.1
    local fd00:1::1
    unmasqueraded 10.0.8.0/24
    unmasqueraded fd00:8::/64";

impl Network {
    fn new() -> Network {
        forward();
        let [one, two, eight] = [1, 2, 8].map(Pod::new);
        for pod in [&two, &eight] {
            pod.inside(|| {
                let listener = TcpListener::bind(("::", 80)).unwrap();
                thread::spawn(move || {
                    for mut stream in listener.incoming().flatten() {
                        let source = stream.peer_addr().unwrap().ip().to_canonical();
                        stream.write_all(source.to_string().as_bytes()).unwrap();
                    }
                });
            });
        }
        let network = Network { one, _others: [two, eight] };
        // The first packets over IPv6 wait for addresses to be settled.
        let settled =
            || [WORLD, CLUSTER].map(|to| network.seen(to)) == [OWN.map(str::to_owned), OWN.map(str::to_owned)];
        assert!((0..10).any(|_| settled()), "the network does not work");
        network
    }

    fn seen(&self, by: [&'static str; 2]) -> [String; 2] {
        self.one.inside(move || by.map(|address| seen_by(address).unwrap_or_else(|error| error.to_string())))
    }
}

/// What the other end answers: the source that it sees. So the answers have come back, too.
fn seen_by(address: &str) -> std::io::Result<String> {
    let address = (address.parse::<IpAddr>().unwrap(), 80).into();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(700))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut source = String::new();
    stream.read_to_string(&mut source)?;
    Ok(source)
}

/// `masquerade` makes others masquerade what pods send.
fn kept_against(masquerade: impl Fn()) {
    let network = Network::new();
    let mut reconciler = Reconciler::new(new());
    let check = |kept: bool| {
        assert_eq!(network.seen(WORLD), NODE_TO_WORLD, "kept: {kept}");
        assert_eq!(network.seen(CLUSTER), if kept { OWN } else { NODE_TO_CLUSTER });
    };
    reconciler.apply(&program("")).unwrap();
    masquerade();
    check(false);
    for _ in 0..2 {
        reconciler.apply(&program(KEEPS)).unwrap();
        check(true);
        // Another pod's source is not.
        reconciler.apply(&program(&KEEPS.replace("1.1", "1.2").replace("1::1", "1::2"))).unwrap();
        check(false);
        reconciler.apply(&program(KEEPS)).unwrap();
        check(true);
        reconciler.apply(&program("local 10.0.1.1")).unwrap();
        check(false);
    }
    // Written as a whole, and when others write theirs afterwards.
    reconciler.forget();
    reconciler.apply(&program(KEEPS)).unwrap();
    masquerade();
    check(true);
    reconciler.forget();
    reconciler.apply(&program(OPEN)).unwrap();
    check(false);
    reconciler.apply(&program(KEEPS)).unwrap();
    check(true);
    reconciler.cleanup().unwrap();
    check(false);
}

pub(crate) fn kept_against_nft() {
    kept_against(|| {
        let rules = "table ip cni { chain post { type nat hook postrouting priority srcnat; ip saddr 10.0.1.0/24 masquerade; }; }
            table inet cni { chain post { type nat hook postrouting priority srcnat; ip6 saddr fd00:1::/64 masquerade; }; }";
        nft(&["-f", "-"], rules).unwrap();
    });
}

pub(crate) fn kept_against_iptables(variant: &str) {
    kept_against(|| {
        for (command, pods) in [("iptables", "10.0.1.0/24"), ("ip6tables", "fd00:1::/64")] {
            let command = format!("{command}-{variant}");
            let arguments = ["-w", "-t", "nat", "-A", "POSTROUTING", "-s", pods, "-j", "MASQUERADE"];
            let output = Command::new(&command).args(arguments).output().expect("install the package iptables");
            assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        }
    });
}

/// The chain is taken over, made right, and taken away, and the others stay where they are.
pub(crate) fn base_chain_comes_and_goes() {
    let handles = || -> Vec<String> {
        let text = nft(&["-a", "list", "table", "inet", "ringfence"], "").unwrap();
        let base = |line: &&str| ["chain forward {", "chain output {"].iter().any(|name| line.contains(name));
        text.lines().filter(base).map(str::to_owned).collect()
    };
    let (open, keeps) = (program(OPEN), program(&format!("{OPEN}\n{KEEPS}")));
    let mut reconciler = Reconciler::new(new());
    reconciler.apply(&open).unwrap();
    let before = handles();
    for forget in [false, true, false, true] {
        for wanted in [&keeps, &open] {
            if forget {
                reconciler.forget();
            }
            reconciler.apply(wanted).unwrap();
            assert_enforced(wanted);
            assert_eq!(handles(), before);
        }
    }
    for wrong in [
        "type nat hook postrouting priority srcnat",
        "type filter hook postrouting priority 99",
        "type nat hook input priority 99",
    ] {
        clean(|| {
            nft(&["-f", "-"], &format!("table inet ringfence {{ chain postrouting {{ {wrong}; }}; }}")).unwrap();
            let mut reconciler = Reconciler::new(new());
            reconciler.apply(&keeps).unwrap();
            assert!(nft(&["list", "ruleset"], "").unwrap().contains("type nat hook postrouting priority srcnat - 1;"));
            assert_eq!(new().difference(&keeps).unwrap(), None, "{wrong}");
        });
    }
}
