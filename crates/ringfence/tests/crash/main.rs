//! Starts, stops, crashes and switches of the agent, with packets: no packet passes that no state allows, and no connection is
//! cut that every state allows.
//!
//! RINGFENCE_CRASHES says how often the agent is killed with nftables, if not a hundred times. With each variant of iptables it
//! is three tenths of that.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "how much was sent is of interest also when all is well")]

#[path = "../../../dataplane/tests/kernel/namespace.rs"]
#[allow(dead_code, reason = "the lab makes the namespaces here")]
mod namespace;
mod older;
mod process;
mod site;
mod traffic;

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};
use nix::sched::{CloneFlags, unshare};
use process::{Agent, FILTERS, clean_up, holds, listing, sets, tool};
use ringfence_dataplane::PacketFilter;
use ringfence_dataplane::iptables::Variant;
use ringfence_lab::Isolation;
use site::{Site, States};
use traffic::under_load;

/// The longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// So long a change of the folder waits for another one before it counts.
const SETTLE: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Side by side, the floods would take each other's processors.
    arguments.test_threads = Some(1);
    if let Err(error) = ringfence_lab::enter(Isolation::Auto) {
        let trial = Trial::test("enter", move || Err(error.into()));
        return libtest_mimic::run(&arguments, vec![trial]).exit_code();
    }
    let mut trials = Vec::new();
    for filter in FILTERS {
        for (name, test) in
            [("killed", killed as fn(PacketFilter)), ("terminated", terminated), ("upgraded", older::upgraded)]
        {
            trials.push(trial(format!("{name}: {filter}"), move || test(filter)));
        }
    }
    trials.push(trial("switched".to_owned(), switched));
    trials.push(trial("a_switch_waits_for_the_first_program".to_owned(), a_switch_waits_for_the_first_program));
    trials.push(trial("a_switch_is_completed_later".to_owned(), a_switch_is_completed_later));
    trials.push(trial("cleanup_of_all".to_owned(), cleanup_of_all));
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A test in a thread and a network namespace of its own, which is the node.
fn trial(name: String, test: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, move || {
        let thread = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            test();
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok(())
    })
}

/// How often to kill the agent.
fn crashes(filter: PacketFilter) -> u32 {
    let all = std::env::var("RINGFENCE_CRASHES").ok().and_then(|crashes| crashes.parse().ok()).unwrap_or(100);
    if filter == PacketFilter::Nftables { all } else { all * 3 / 10 }
}

/// Kills the agent while it starts and while it writes changes.
fn killed(filter: PacketFilter) {
    let site = Site::build();
    let mut states = States::new(1);
    let mut random = fastrand::Rng::with_seed(2);
    site.tell(&states.next().0);
    let start = Instant::now();
    let mut agent = Agent::running(&site, filter, &[]);
    let first_load = start.elapsed();
    let crashes = crashes(filter);
    under_load(&site, &format!("killed {crashes} times, {filter}"), |traffic| {
        for round in 0..crashes {
            if round % 2 == 0 {
                site.tell(&states.next().0);
                // While the change is written, or shortly before or after it. One of iptables takes some hundred milliseconds.
                let span = if filter == PacketFilter::Nftables { 50 } else { 400 };
                thread::sleep(SETTLE + Duration::from_millis(random.u64(0..=span)));
                agent.kill();
                agent = Agent::start(&site, filter, &[]);
                traffic.meets(1);
            } else {
                // At any time of the start, or when it is done.
                thread::sleep(first_load.mul_f64(1.2 * random.f64()));
                agent.kill();
                if random.bool() {
                    site.tell(&states.next().0);
                }
                agent = Agent::running(&site, filter, &[]);
            }
        }
        traffic.connects();
        let (state, mark) = states.next();
        site.tell(&state);
        agent.until("the last change", || format!("{:?}", listing(filter)).contains(&mark));
    });
    drop(agent);
    is_like_a_fresh_load(&site, filter);
}

/// What is in the kernel is what it would be if the agent had never run before.
fn is_like_a_fresh_load(site: &Site, filter: PacketFilter) {
    let before = listing(filter);
    assert!(before.len() > 10, "{before:?}");
    clean_up();
    let _agent = Agent::running(site, filter, &[]);
    let fresh = listing(filter);
    let names = before.keys().chain(fresh.keys());
    for name in names {
        assert_eq!(before.get(name), fresh.get(name), "{name}, before and in a fresh load");
    }
}

/// Stops the agent as operators do, with changes while it is away, and takes away and brings back all policies.
fn terminated(filter: PacketFilter) {
    let site = Site::build();
    let mut states = States::new(3);
    let mut random = fastrand::Rng::with_seed(4);
    site.tell(&states.next().0);
    let mut agent = Agent::running(&site, filter, &[]);
    under_load(&site, &format!("terminated and started again, {filter}"), |traffic| {
        for _ in 0..3 {
            site.tell(&states.next().0);
            thread::sleep(Duration::from_millis(random.u64(0..=200)));
            agent.terminate();
            assert!(holds(filter));
            site.tell(&states.next().0);
            traffic.meets(1000);
            agent = Agent::running(&site, filter, &["--on-exit=keep"]);
        }
        agent.terminate();
        agent = Agent::running(&site, filter, &["--on-exit=cleanup"]);
        // Without policies everything passes. The open connections go on also when policies are back, though nobody has tracked
        // them meanwhile; those that nobody has ever tracked could meet their first rule with an answer.
        traffic.without_new_flows(|| {
            agent.terminate();
            assert!(!holds(filter) && sets().is_empty(), "{:?}", sets());
            traffic.goes_on();
            agent = Agent::running(&site, filter, &[]);
        });
        traffic.meets(1000);
        traffic.connects();
    });
}

/// From packet filter to packet filter, with a change each time; half of the agents are killed before they are done.
fn switched() {
    const OTHERS: &str = "table inet other {
        set s { type ipv4_addr; elements = { 10.0.0.1 }; }
        chain c { ip saddr @s accept; }
    }";
    let site = Site::build();
    let mut states = States::new(5);
    let mut random = fastrand::Rng::with_seed(6);
    let [nftables, nft, legacy] = FILTERS;
    // What others have looks like ours but is not.
    tool("nft", &["-f", "-"], OTHERS);
    tool("ipset", &["restore"], "create rf-others hash:ip\nadd rf-others 10.0.0.1\n");
    let rules = "*filter\n:RF-OTHERS - [0:0]\n-A FORWARD -m set --match-set rf-others src -j RF-OTHERS\nCOMMIT\n";
    for variant in Variant::ALL {
        tool(&format!("iptables-{variant}-restore"), &["--noflush"], rules);
    }
    let others = || {
        let saved = Variant::ALL.map(|variant| tool(&format!("iptables-{variant}"), &["-S"], ""));
        let lines = saved.iter().flat_map(|text| text.lines()).filter(|line| line.contains("-OTHERS"));
        let lines: Vec<String> = lines.map(str::to_owned).collect();
        (lines, tool("nft", &["list", "table", "inet", "other"], ""), tool("ipset", &["save", "rf-others"], ""))
    };
    let before = others();
    site.tell(&states.next().0);
    let mut agent = Agent::running(&site, nftables, &[]);
    under_load(&site, "switched", |traffic| {
        for filter in [nft, nftables, legacy, nft, legacy, nftables, nft, nftables] {
            site.tell(&states.next().0);
            let start = Instant::now();
            agent.kill();
            agent = Agent::start(&site, filter, &[]);
            if random.bool() {
                thread::sleep(Duration::from_millis(random.u64(50..800)));
                agent.kill();
                site.tell(&states.next().0);
                agent = Agent::start(&site, filter, &[]);
            }
            agent.until("the switch", || {
                let wanted = |one: &PacketFilter| holds_ours(*one) == (*one == filter);
                FILTERS.iter().all(wanted) && our_sets().is_empty() == (filter == nftables)
            });
            println!("{filter} has taken over after {} ms", start.elapsed().as_millis());
            traffic.meets(100);
        }
        traffic.connects();
    });
    assert_eq!(others(), before);
    let [nft_chains, legacy_chains] = Variant::ALL.map(|variant| holds_ours(PacketFilter::Iptables(variant)));
    assert!(!nft_chains && !legacy_chains);
}

/// A packet filter holds what an agent writes.
fn holds_ours(filter: PacketFilter) -> bool {
    match filter {
        PacketFilter::Nftables => holds(filter),
        PacketFilter::Iptables(_) => listing(filter).keys().any(|object| object.ends_with(" RF-FORWARD")),
    }
}

fn our_sets() -> Vec<String> {
    sets().into_iter().filter(|set| set != "rf-others").collect()
}

/// What the other packet filter holds is kept for as long as there is nothing in its place.
fn a_switch_waits_for_the_first_program() {
    let site = Site::build();
    let [nftables, nft, _] = FILTERS;
    let state = States::new(7).next().0;
    site.tell(&state);
    Agent::running(&site, nftables, &[]).kill();
    site.tell("kind: {");
    let mut agent = Agent::start(&site, nft, &["--resync=1"]);
    agent.says("what was read last stays in force");
    // Twice the agent has looked at the packet filter by then.
    thread::sleep(Duration::from_millis(2500));
    assert!(holds(nftables) && !holds(nft), "{}", agent.log());
    site.tell(&state);
    agent.says("removed what ringfence had put into nftables");
    assert!(!holds(nftables) && holds(nft));
}

/// What cannot be removed is reported once, and removed as soon as it can be.
fn a_switch_is_completed_later() {
    let site = Site::build();
    let [nftables, _, legacy] = FILTERS;
    site.tell(&States::new(8).next().0);
    Agent::running(&site, legacy, &[]).kill();
    let set = sets().remove(0);
    let family = if set.contains('6') { "ip6tables-nft" } else { "iptables-nft" };
    tool(family, &["-A", "INPUT", "-m", "set", "--match-set", &set, "src"], "");
    let mut agent = Agent::running(&site, nftables, &["--resync=1"]);
    agent.says("could not be removed");
    assert!(!holds(legacy));
    agent.until("the other sets", || sets() == [set.clone()]);
    thread::sleep(Duration::from_millis(2500));
    assert_eq!(agent.log().matches("could not be removed").count(), 1, "{}", agent.log());
    tool(family, &["-F", "INPUT"], "");
    agent.until("the rest", || sets().is_empty());
}

/// `ringfence cleanup` without a backend takes everything, also twice, and with one that alone.
fn cleanup_of_all() {
    let site = Site::build();
    site.tell(&States::new(9).next().0);
    let [nftables, nft, legacy] = FILTERS;
    let fill = || {
        Agent::running(&site, nftables, &[]).kill();
        let table = tool("nft", &["list", "table", "inet", "ringfence"], "");
        Agent::running(&site, legacy, &[]).kill();
        let rules = tool("iptables-legacy-save", &[], "");
        let rules: String =
            rules.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect();
        tool("iptables-nft-restore", &["--noflush"], &rules);
        tool("nft", &["-f", "-"], &table);
        assert!(holds(nftables) && holds(nft) && holds(legacy) && !sets().is_empty());
    };
    fill();
    clean_up();
    assert!(!holds(nftables) && !holds(nft) && !holds(legacy) && sets().is_empty(), "{:?}", sets());
    clean_up();
    fill();
    process::clean_up_only("nftables");
    assert!(!holds(nftables) && holds(nft) && holds(legacy));
    process::clean_up_only("iptables");
    assert!(!holds(nft) && !holds(legacy) && sets().is_empty());
}
