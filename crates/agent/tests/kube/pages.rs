//! Lists in pages, and those that break off between two of them.

use std::net::IpAddr;
use std::time::Duration;

use ringfence_fake_apiserver::{ALWAYS, FakeApiServer, Fault, On, Verb, sample};

use crate::bench::Bench;

/// Pages, and lists that the server forgets between two of them: twice, and then there are no pages.
#[test]
fn a_list_has_pages() {
    let mut bench = Bench::start(|server| {
        for number in 0..1200 {
            let address = format!("10.1.{}.{}", number / 250, 1 + number % 250);
            server.apply(&sample::pod("shop", &format!("p{number}"), &[("app", "web")], "node-2", &[&address]));
        }
        server.inject(On::continued("pods"), 2, Fault::status(410));
    });
    bench.catch_up();
    let limits: Vec<_> = bench
        .server
        .requests_of(Verb::List, "pods")
        .iter()
        .map(|request| (request.query.contains_key("limit"), request.query.contains_key("continue")))
        .collect();
    // A watch that is silent for long enough is followed by another list.
    assert_eq!(limits[..5], [(true, false), (true, true), (true, false), (true, true), (false, false)]);
    // By pages again.
    bench.server.fail_watches("pods", 410);
    bench.change(|server| {
        server.delete("pods", "shop", "p7");
    });
    bench.catch_up();
    bench.wait_for("the list is complete", |bench| bench.server.requests_of(Verb::List, "pods").len() >= 8);
}

/// What a first list has told before it broke off goes when the next one does not have it.
#[test]
fn a_first_list_breaks_off() {
    let address = |number: usize| format!("10.1.{}.{}", number / 250, 1 + number % 250);
    let apply = |server: &FakeApiServer, number: usize, app: &str| {
        let name = format!("p{number:04}");
        server.apply(&sample::pod("shop", &name, &[("app", app)], "node-2", &[&address(number)]));
    };
    let mut bench = Bench::start(|server| {
        (0..1200).for_each(|number| apply(server, number, "web"));
        server.inject(On::continued("pods"), ALWAYS, Fault::status(500));
    });
    bench.wait_for("the failure is told", |bench| bench.failed_with("(500)"));
    bench.change(|server| {
        server.delete("pods", "shop", "p0007");
        apply(server, 8, "other");
    });
    bench.server.heal();
    bench.catch_up();
    bench.recover();
    let peers = bench.enforced().unwrap().ingress.peers;
    let class = |number: usize| peers.get(&address(number).parse::<IpAddr>().unwrap());
    assert!(class(6).is_some() && class(6) == class(1199) && class(6) != class(8));
    assert_eq!(class(7), None);
    assert_eq!(bench.resets, 1);
}

/// A later list counts when it is complete: of one that breaks off, no page does.
#[test]
fn a_later_list_breaks_off() {
    let address = |number: usize| format!("10.1.{}.{}", number / 250, 1 + number % 250);
    let apply = |server: &FakeApiServer, number: usize, app: &str| {
        let name = format!("p{number:04}");
        server.apply(&sample::pod("shop", &name, &[("app", app)], "node-2", &[&address(number)]));
    };
    let mut bench = Bench::start(|server| (0..1200).for_each(|number| apply(server, number, "web")));
    bench.catch_up();
    let before = bench.enforced().unwrap();
    bench.server.inject(On::continued("pods"), ALWAYS, Fault::status(500));
    bench.server.fail_watches("pods", 410);
    bench.wait_for("the failure is told", |bench| bench.failed_with("(500)"));
    bench.change(|server| apply(server, 8, "other"));
    // The first page of each list to come tells of it.
    let lists = bench.server.requests_of(Verb::List, "pods").len();
    bench.wait_for("it lists again", |bench| bench.server.requests_of(Verb::List, "pods").len() >= lists + 6);
    assert!(bench.enforces(&before));
    bench.server.heal();
    bench.catch_up();
    assert!(!bench.enforces(&before));
}

/// The labels that policies speak of are known before the pods are; but no list waits for one that fails.
#[test]
fn policies_are_listed_before_pods() {
    let delay = Duration::from_millis(200);
    for fault in [Fault::Delay(delay), Fault::status(500)] {
        let mut bench = Bench::start(|server| server.inject(On::list("networkpolicies"), 1, fault.clone()));
        bench.catch_up();
        let first = |resource| bench.server.requests_of(Verb::List, resource)[0].at;
        assert!(first("pods") > first("networkpolicies"), "{fault:?}");
        assert!(fault != Fault::Delay(delay) || first("pods") - first("networkpolicies") >= delay);
        assert!(first("namespaces") < first("pods"));
    }
}
