//! The API server as the source, with everything that can go wrong on the way.
//!
//! After each fault the agent enforces what the server holds; meanwhile it allows nothing that the server has not allowed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "kube/bench.rs"]
mod bench;
#[path = "kube/pages.rs"]
mod pages;
#[path = "kube/reach.rs"]
mod reach;

use std::time::Duration;

use ringfence_agent::kube::KubeSource;
use ringfence_agent::kube::Publisher;
use ringfence_agent::trouble::{PolicyTrouble, TroubleKind};
use ringfence_fake_apiserver::{ALWAYS, FakeApiServer, Fault, On, Verb, sample};
use ringfence_model::{PolicyId, Tier};
use serde_json::{Value, json};
use tokio::sync::mpsc::channel;

use bench::{Bench, db_from, follow, pod, program, truth, world};

const KINDS: [&str; 4] = ["pods", "namespaces", "nodes", "networkpolicies"];

/// A change of each kind, one after the other; the agent must follow each.
fn change_everything(bench: &mut Bench) {
    let changes: [fn(&FakeApiServer); 8] = [
        |server| {
            server.apply(&pod("shop", "web-2", "web", "10.244.0.4"));
        },
        |server| {
            server.apply(&db_from(&json!([{"podSelector": {"matchLabels": {"app": "none"}}}])));
        },
        |server| {
            server.apply(&sample::namespace("other", &[("team", "a")]));
        },
        |server| {
            server.apply(&pod("other", "web", "api", "10.244.1.2"));
        },
        |server| {
            server.delete("pods", "shop", "web-2");
        },
        |server| {
            server.apply(&sample::namespace("other", &[]));
        },
        |server| {
            server.delete("nodes", "", "node-2");
        },
        |server| {
            server.apply(&db_from(&json!([{"podSelector": {"matchLabels": {"app": "web"}}}])));
        },
    ];
    for change in changes {
        bench.change(change);
        bench.catch_up();
    }
}

#[test]
fn the_agent_follows_the_server() {
    let mut bench = Bench::following();
    assert_eq!((bench.resets, bench.failures.len(), bench.is_well), (1, 0, true));
    change_everything(&mut bench);
    // Everything came by the watches.
    assert_eq!((bench.resets, bench.failures.as_slice()), (1, &[][..]));
    for resource in KINDS {
        assert_eq!(bench.server.requests_of(Verb::List, resource).len(), 1, "{resource}");
        assert_eq!(bench.server.requests_of(Verb::Watch, resource).len(), 1, "{resource}");
    }
}

/// Faults of the first list: nothing is enforced before all kinds are complete.
#[test]
fn the_first_lists_fail() {
    let faults = [
        (Fault::status(500), "(500)"),
        (Fault::status(503), "(503)"),
        (Fault::status(401), "credentials"),
        (Fault::status(403), "resources: [networkpolicies], verbs: [get, list, watch]"),
        (Fault::Cut, ""),
        (Fault::Truncate, "not what was asked for"),
        (Fault::Stall, "no answer"),
        (Fault::Hang, "no answer"),
        (
            Fault::Answer { code: 502, content_type: "text/html", body: "<h1>Bad\ngateway</h1>".into() },
            "<h1>Bad gateway",
        ),
        (Fault::Answer { code: 200, content_type: "text/html", body: "hello".into() }, "not what was asked for"),
        (Fault::Answer { code: 200, content_type: "application/json", body: "{}".into() }, "`items`"),
        (
            Fault::Answer { code: 200, content_type: "application/json", body: "{\"items\": []}".into() },
            "resourceVersion",
        ),
    ];
    for (fault, text) in faults {
        let mut bench = Bench::start(|server| server.inject(On::list("networkpolicies"), ALWAYS, fault.clone()));
        bench.wait_for("the failure is told", |bench| !bench.failures.is_empty());
        assert!(bench.server.wait_until(Duration::from_secs(20), |server| {
            server.watchers("pods") == 1 && server.requests_of(Verb::List, "networkpolicies").len() > 1
        }));
        bench.pump();
        assert!(bench.failed_with(text), "{fault:?}: {:?}", bench.failures);
        assert!(bench.failed_with("cannot list networkpolicies of http://127.0.0.1:"), "{:?}", bench.failures);
        assert!(bench.enforced().is_none(), "{fault:?}");
        // What changes meanwhile counts.
        bench.change(|server| {
            server.delete("pods", "shop", "web");
        });
        bench.server.heal();
        bench.catch_up();
        bench.recover();
        assert_eq!(bench.resets, 1, "{fault:?}");
    }
}

/// Breaks what the server does for one resource.
type Break = fn(&FakeApiServer, &str);

/// Faults of a watch, or of the list after it was lost. Each is met by every kind.
#[test]
fn watches_and_lists_fail_later() {
    let faults: [(&str, Break); 14] = [
        ("the watch is cut", |server, resource| server.cut_watches(resource)),
        ("the watch ends", |server, resource| server.end_watches(resource)),
        ("the watch stalls", |server, resource| server.stall_watches(resource)),
        ("410 inside the watch", |server, resource| server.fail_watches(resource, 410)),
        ("500 inside the watch", |server, resource| server.fail_watches(resource, 500)),
        ("410 as an answer", |server, resource| {
            server.inject(On::watch(resource), 1, Fault::status(410));
            server.cut_watches(resource);
        }),
        ("410 as the first event, twice", |server, resource| {
            server.inject(On::watch(resource), 2, Fault::ErrorEvent(410));
            server.cut_watches(resource);
        }),
        ("429, 500, 503 on the way back", |server, resource| {
            server.inject(On::watch(resource), 1, Fault::retry_after(429, 1));
            server.inject(On::watch(resource), 2, Fault::status(500));
            server.inject(On::watch(resource), 1, Fault::status(503));
            server.cut_watches(resource);
        }),
        ("half of the new list, then 410", |server, resource| {
            server.inject(On::list(resource), 1, Fault::HalfList);
            server.fail_watches(resource, 410);
        }),
        ("the new list is cut, stalls, ends early", |server, resource| {
            for fault in [Fault::Cut, Fault::Stall, Fault::Truncate] {
                server.inject(On::list(resource), 1, fault);
            }
            server.fail_watches(resource, 410);
        }),
        ("the next watches are cut inside an event", |server, resource| {
            server.inject(On::watch(resource), 2, Fault::Cut);
            server.cut_watches(resource);
        }),
        ("the next watch stalls from the beginning", |server, resource| {
            server.inject(On::watch(resource), 2, Fault::Stall);
            server.cut_watches(resource);
        }),
        ("events come twice", |server, resource| {
            server.inject(On::watch(resource), 1, Fault::Duplicate);
            server.cut_watches(resource);
        }),
        ("older events come after newer ones", |server, resource| {
            server.inject(On::watch(resource), 1, Fault::Replay);
            server.cut_watches(resource);
        }),
    ];
    for resource in KINDS {
        let mut bench = Bench::following();
        for (name, fault) in &faults {
            println!("{resource}: {name}");
            fault(&bench.server, resource);
            change_everything(&mut bench);
            bench.change(|server| {
                server.apply(&sample::node("node-2", "192.0.2.2", &["10.244.1.0/24"]));
                server.apply(&pod("other", "web", "web", "10.244.1.2"));
            });
            bench.catch_up();
            bench.server.heal();
        }
        bench.recover();
        assert_eq!(bench.resets, 1, "{resource}");
    }
}

/// A cut watch goes on where it was: nobody pays for a list.
#[test]
fn a_watch_is_resumed_where_it_was() {
    let mut bench = Bench::following();
    bench.server.send_bookmarks("pods");
    for _ in 0..3 {
        let watches = bench.server.requests_of(Verb::Watch, "pods").len();
        bench.server.cut_watches("pods");
        // While nobody watches.
        bench.change(|server| {
            server.apply(&pod("shop", "web-2", "web", "10.244.0.4"));
        });
        bench.catch_up();
        bench.change(|server| {
            server.delete("pods", "shop", "web-2");
        });
        bench.catch_up();
        assert!(bench.server.requests_of(Verb::Watch, "pods").len() > watches);
    }
    assert_eq!(bench.server.requests_of(Verb::List, "pods").len(), 1);
}

/// A bookmark moves the place to resume from, so that a kind that never changes survives compaction.
#[test]
fn bookmarks_keep_the_place() {
    let mut bench = Bench::following();
    bench.change(|server| {
        server.apply(&pod("shop", "web-2", "web", "10.244.0.4"));
    });
    bench.catch_up();
    bench.server.send_bookmarks("networkpolicies");
    bench.server.compact();
    // Give the bookmark its time: the watch must have taken it before it is cut.
    bench.change(|server| {
        server.apply(&db_from(&json!([])));
    });
    bench.catch_up();
    bench.server.cut_watches("networkpolicies");
    bench.change(|server| {
        server.apply(&db_from(&json!([{"podSelector": {}}])));
    });
    bench.catch_up();
    assert_eq!(bench.server.requests_of(Verb::List, "networkpolicies").len(), 1);
}

#[test]
fn a_server_that_is_away_comes_back() {
    let mut bench = Bench::following();
    bench.server.go_away();
    bench.wait_for("the failures are told", |bench| bench.failures.len() >= 4);
    let before = bench.enforced().unwrap();
    bench.change(|server| {
        server.apply(&pod("shop", "web-2", "web", "10.244.0.4"));
        server.delete("pods", "shop", "web");
        server.delete("networkpolicies", "shop", "web");
    });
    std::thread::sleep(Duration::from_millis(200));
    bench.pump();
    // Not a line for each attempt.
    assert!(bench.failures.len() <= 12, "{:#?}", bench.failures);
    assert!(bench.enforces(&before) && !bench.is_well);
    bench.server.compact();
    bench.server.come_back();
    bench.catch_up();
    bench.recover();
    change_everything(&mut bench);
    assert_eq!(bench.resets, 1);
}

/// Retry-After is honoured, and the pauses grow.
#[test]
fn a_busy_server_is_left_alone() {
    let mut bench = Bench::start(|server| server.inject(On::list("pods"), 1, Fault::retry_after(429, 1)));
    bench.catch_up();
    let lists = bench.server.requests_of(Verb::List, "pods");
    assert!(lists[1].at.duration_since(lists[0].at) >= Duration::from_secs(1), "{lists:?}");
    assert!(bench.failed_with("too much to do (429)"), "{:?}", bench.failures);
}

/// What policies cannot see wakes nobody.
#[test]
fn metadata_costs_nothing() {
    let mut bench = Bench::following();
    let updates = bench.updates;
    for number in 0..20 {
        bench.server.modify("pods", "shop", "web", |pod| {
            pod["metadata"]["annotations"]["x"] = json!(number.to_string());
            pod["status"]["conditions"] = json!([{"type": "Ready", "status": number.to_string()}]);
        });
        bench.server.modify("nodes", "", "node-1", |node| node["status"]["images"] = json!([number]));
    }
    // The watch brings changes in order: with this one, all others have been there.
    bench.change(|server| {
        server.apply(&pod("shop", "web-2", "web", "10.244.0.4"));
    });
    bench.catch_up();
    assert_eq!(bench.updates, updates + 1);
}

#[test]
fn a_pod_of_the_same_name_is_another_one() {
    let mut bench = Bench::following();
    for number in 0..5 {
        bench.change(|server| {
            server.delete("pods", "shop", "web");
        });
        bench.change(|server| {
            server.apply(&pod("shop", "web", "web", &format!("10.244.0.{}", 4 + number % 2)));
        });
    }
    bench.catch_up();
}

/// Objects that cannot be read. What was read of them before counts, if that is safer.
#[test]
fn objects_that_do_not_parse() {
    let mut bench = Bench::following();
    let known = bench.enforced().unwrap();

    // A pod that is known keeps its isolation; one that is not is nobody.
    let mut broken = bench.server.get("pods", "shop", "db").unwrap();
    broken["metadata"]["labels"] = json!({"app": {"not": "text"}});
    broken["metadata"]["resourceVersion"] = json!((bench.server.version() + 1).to_string());
    bench.server.apply_unsound("pods", "shop", "db", &broken);
    let mut unknown = pod("shop", "new", "web", "10.244.0.5");
    unknown["metadata"]["uid"] = json!("u-new");
    unknown["status"]["podIPs"] = json!("10.244.0.5");
    bench.server.apply_unsound("pods", "shop", "new", &unknown);
    bench.wait_for("both are told", |bench| {
        ["Pod shop/db: metadata.labels.app", "Pod shop/new: status.podIPs"]
            .iter()
            .all(|text| bench.diagnostics.iter().any(|diagnostic| diagnostic.contains(text)))
    });
    assert!(bench.enforces(&known));
    // The same after a new list.
    let lists = bench.server.requests_of(Verb::List, "pods").len();
    bench.server.fail_watches("pods", 410);
    bench.wait_for("a new list", |bench| bench.server.requests_of(Verb::List, "pods").len() > lists);
    assert!(bench.server.wait_until(Duration::from_secs(20), |server| server.watchers("pods") > 0));
    bench.pump();
    assert!(bench.enforces(&known) && bench.diagnostics.len() >= 2, "{:?}", bench.diagnostics);
    bench.change(|server| {
        server.apply(&pod("shop", "db", "db", "10.244.0.3"));
        server.delete("pods", "shop", "new");
    });
    bench.catch_up();
    bench.wait_for("nothing is wrong any more", |bench| bench.diagnostics.is_empty());

    // The labels of a namespace are unknown: what they opened is closed.
    let mut broken = bench.server.get("namespaces", "", "shop").unwrap();
    broken["metadata"]["labels"] = json!(["team"]);
    broken["metadata"]["resourceVersion"] = json!((bench.server.version() + 1).to_string());
    bench.change(|server| server.apply_unsound("namespaces", "", "shop", &broken));
    bench.wait_for("it is told", |bench| {
        bench.diagnostics.iter().any(|text| text.contains("Namespace shop: metadata.labels"))
    });
    bench.catch_up();
    assert!(!bench.enforces(&known));
    bench.change(|server| {
        server.apply(&sample::namespace("shop", &[("team", "a")]));
    });
    bench.catch_up();

    // A policy fails closed.
    bench.change(|server| {
        server.apply(&db_from(&json!([{"podSelector": {"matchLabels": 7}}])));
    });
    bench.catch_up();
    bench.wait_for("it is told", |bench| {
        bench
            .diagnostics
            .iter()
            .any(|text| text.contains("NetworkPolicy shop/db: spec.ingress[0].from[0].podSelector.matchLabels"))
    });
    let flow = "10.244.0.2 to 10.244.0.3";
    assert!(!program(&truth(&bench.server)).eval(&web_to_db()).allowed(), "{flow}");
    bench.change(|server| {
        server.apply(&db_from(&json!([{"podSelector": {}}])));
    });
    bench.catch_up();
    assert!(bench.enforced().unwrap().eval(&web_to_db()).allowed(), "{flow}");
}

fn web_to_db() -> ringfence_model::Flow {
    ringfence_model::Flow {
        source: "10.244.0.2".parse().unwrap(),
        destination: "10.244.0.3".parse().unwrap(),
        transport: ringfence_model::Transport::Port(ringfence_model::Protocol::Tcp, 5432),
    }
}

/// An object that nobody can name: the list as a whole is not to be trusted, and what was known stays.
#[test]
fn items_without_a_name() {
    for item in [json!(7), json!({"metadata": {}}), json!({"metadata": {"namespace": "shop", "name": ["x"]}})] {
        let mut bench = Bench::following();
        let known = bench.enforced().unwrap();
        bench.server.apply_unsound("pods", "shop", "junk", &item);
        // The watch fails on it, and so does each new list.
        bench.wait_for("it is told", |bench| bench.failed_with(" pods of "));
        bench.wait_for("it is listed again", |bench| bench.server.requests_of(Verb::List, "pods").len() > 2);
        bench.pump();
        assert!(bench.enforces(&known) && !bench.is_well);
        // Other kinds go on.
        bench.change(|server| {
            server.apply(&db_from(&json!([])));
        });
        bench.catch_up();
        assert!(!bench.is_well);
        bench.change(|server| {
            server.delete("pods", "shop", "junk");
        });
        bench.catch_up();
        bench.recover();
        change_everything(&mut bench);
    }
}

#[test]
fn lines_that_make_no_sense() {
    let lines = [
        "hello",
        "{}",
        r#"{"type": "ADDED"}"#,
        r#"{"type": "RENAMED", "object": {"metadata": {"name": "x", "namespace": "shop"}}}"#,
        r#"{"type": "ERROR", "object": {}}"#,
        r#"{"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old resource version"}}"#,
        r#"{"type": "BOOKMARK", "object": 7}"#,
        r#"{"type": "DELETED", "object": {"metadata": {"name": 7}}}"#,
        // A pod that is gone, or never was: an old state of it must not count.
        r#"{"type": "MODIFIED", "object": {"metadata": {"name": "x", "namespace": "shop", "uid": "u", "resourceVersion": "1",
            "labels": {"app": "web"}}, "status": {"podIP": "10.244.0.6"}}}"#,
    ];
    for line in lines {
        let mut bench = Bench::following();
        bench.server.send_line("pods", &line.replace('\n', " "));
        change_everything(&mut bench);
        bench.recover();
    }
}

/// Changes of one kind in bursts, while its watch and lists fail by chance.
#[test]
fn random_faults() {
    for seed in 0..40 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut bench = Bench::following();
        for _ in 0..12 {
            let fault = match random.u8(0..10) {
                0 => Some(Fault::Cut),
                1 => Some(Fault::Duplicate),
                2 => Some(Fault::Replay),
                3 => Some(Fault::EndAfter(1)),
                4 => Some(Fault::ErrorEvent(410)),
                5 => Some(Fault::status(500)),
                6 => Some(Fault::status(410)),
                _ => None,
            };
            if let Some(fault) = fault {
                bench.server.inject(On::watch("pods"), random.usize(1..3), fault);
            }
            if random.bool() {
                let fault = random.choice([Fault::HalfList, Fault::Cut, Fault::Truncate, Fault::status(503)]).unwrap();
                bench.server.inject(On::list("pods"), 1, fault);
            }
            match random.u8(0..8) {
                0 => bench.server.cut_watches("pods"),
                1 => bench.server.end_watches("pods"),
                2 => bench.server.fail_watches("pods", 410),
                3 => bench.server.replay("pods", random.usize(1..6)),
                4 => bench.server.send_bookmarks("pods"),
                5 => bench.server.compact(),
                _ => {}
            }
            for _ in 0..random.usize(0..6) {
                let name = format!("p{}", random.u8(0..4));
                let app = *random.choice(&["web", "db", "none"]).unwrap();
                let address = format!("10.244.{}.{}", random.u8(0..2), random.u8(2..7));
                let delete = random.u8(0..3) == 0;
                bench.change(|server| {
                    if delete {
                        server.delete("pods", "shop", &name);
                    } else {
                        server.apply(&pod("shop", &name, app, &address));
                    }
                });
                bench.pump();
            }
            bench.catch_up();
        }
    }
}

/// Objects at the edge of what a server accepts.
#[test]
fn unusual_objects() {
    let mut bench = Bench::start(|server| {
        let name = "a".repeat(253);
        let spec = json!({"podSelector": {}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"ipBlock": {"cidr": "::/0"}}, {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}]}]});
        server.apply(&sample::network_policy("shop", &name, &spec));
        let mut crowded = pod("shop", "crowded", "web", "10.244.0.5");
        for number in 0..10_000 {
            crowded["metadata"]["labels"][format!("key-{number}")] = json!("value");
        }
        server.apply(&crowded);
        server.apply(&sample::pod("shop", "three", &[], "node-1", &["10.244.0.6", "fd00::6", "10.244.0.4"]));
        server.apply(&sample::node("bare", "192.0.2.3", &[]));
    });
    bench.catch_up();
    assert_eq!(bench.diagnostics, Vec::<String>::new());
    change_everything(&mut bench);
}

#[test]
fn what_is_wrong_with_a_kubeconfig_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config");
    let open = |context: Option<&str>| KubeSource::open(Some(&path), context).unwrap_err().to_string();
    let named = format!("cannot use the kubeconfig {}: ", path.display());
    assert_eq!(open(None), format!("{named}No such file or directory (os error 2)"));
    let server = FakeApiServer::start().unwrap();
    let good: Value = json!({"apiVersion": "v1", "kind": "Config", "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": server.url()}}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}},
            {"name": "lost", "context": {"cluster": "gone", "user": "u"}}],
        "users": [{"name": "u", "user": {}}]});
    std::fs::write(&path, good.to_string()).unwrap();
    assert_eq!(open(Some("there")), format!("{named}it has no context \"there\""));
    assert_eq!(open(Some("lost")), format!("{named}it has no cluster \"gone\", which the context names"));
    assert_eq!(KubeSource::open(Some(&path), None).unwrap().server(), server.url());
    for (text, part) in [("{", "YAML"), ("[]", "YAML"), ("clusters: []", "current-context")] {
        std::fs::write(&path, text).unwrap();
        assert!(open(None).contains(part), "{text}: {}", open(None));
    }
    // Tests do not run inside a cluster.
    let error = KubeSource::open(None, None).unwrap_err().to_string();
    assert!(error.starts_with("no API server: this is not a pod"), "{error}");
}

fn trouble(name: &str, kind: TroubleKind, message: &str) -> PolicyTrouble {
    let policy = PolicyId { tier: Tier::Namespace, namespace: "shop".into(), name: name.into() };
    PolicyTrouble { policy, kind, message: message.to_owned() }
}

/// Every node finds the same fault; the policy has one Event.
#[test]
fn troubles_become_events() {
    const EVENTS: &str = "events.events.k8s.io";
    let server = FakeApiServer::start().unwrap();
    world(&server);
    let long = "p".repeat(253);
    server.apply(&sample::network_policy("shop", &long, &json!({"podSelector": {}})));
    let mut nodes = Vec::new();
    for node in ["node-1", "node-2", "node-3"] {
        let (sender, troubles) = channel(16);
        let events = follow(&server, Some(Publisher::new(node.into(), troubles)));
        for trouble in [
            trouble("db", TroubleKind::Invalid, "spec.ingress[0]: it is wrong"),
            trouble("db", TroubleKind::Invalid, "spec.ingress[0]: it is wrong"),
            trouble("gone", TroubleKind::Invalid, "it is wrong"),
            trouble(&long, TroubleKind::NotProgrammed, &"é".repeat(1000)),
            trouble("db", TroubleKind::NotProgrammed, "spec.ingress[0]: it is wrong"),
        ] {
            sender.try_send(trouble).unwrap();
        }
        nodes.push((sender, events));
    }
    // The last one of each node was tried.
    assert!(server.wait_until(Duration::from_secs(60), |server| server.requests_of(Verb::Create, EVENTS).len() == 9));
    assert!(server.wait_until(Duration::from_secs(60), |server| server.objects(EVENTS).len() == 3));
    let policy = server.get("networkpolicies", "shop", "db").unwrap();
    let about_db: Vec<Value> =
        server.objects(EVENTS).into_iter().filter(|event| event["regarding"]["name"] == "db").collect();
    assert_eq!(about_db.len(), 2);
    let event = about_db.iter().find(|event| event["reason"] == "InvalidPolicy").unwrap();
    assert_eq!(event["note"], "spec.ingress[0]: it is wrong");
    assert_eq!((&event["type"], &event["action"]), (&json!("Warning"), &json!("Validate")));
    assert_eq!(event["reportingController"], "ringfence.io/agent");
    assert!(event["reportingInstance"].as_str().unwrap().starts_with("node-"));
    let regarding = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "namespace": "shop", "name": "db",
        "uid": policy["metadata"]["uid"], "resourceVersion": policy["metadata"]["resourceVersion"]});
    assert_eq!(event["regarding"], regarding);
    for event in server.objects(EVENTS) {
        assert!(
            event["metadata"]["name"].as_str().unwrap().len() <= 253 && event["note"].as_str().unwrap().len() <= 1024
        );
    }
}
