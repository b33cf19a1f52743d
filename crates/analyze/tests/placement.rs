//! Which node and which addresses pods of files get.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use ringfence_analyze::{PlacementOptions, ends, place};
use ringfence_k8s::{Source, parse};
use ringfence_model::Object;

fn placed(text: &str, options: &PlacementOptions) -> Result<(Vec<String>, Vec<String>), String> {
    let mut manifests = parse(&[Source { name: "test.yaml", text: text.as_bytes() }]);
    let notes = place(&mut manifests.objects, &manifests.externals, options).map_err(|error| error.to_string())?.notes;
    let shown = ends(&manifests.objects, &manifests.externals).into_iter().map(|end| {
        let addresses: Vec<String> = end.addresses.iter().map(ToString::to_string).collect();
        format!("{} {} {}", end.label, end.node().map_or("-", |node| node), addresses.join(" "))
    });
    Ok((shown.collect(), notes))
}

fn check(text: &str, options: &PlacementOptions, expected: &[&str]) {
    assert_eq!(placed(text, options).unwrap().0, expected);
}

fn pod(name: &str, spec: &str, status: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: c}}]{spec}}}\nstatus: {{{status}}}\n"
    )
}

fn node(name: &str, spec: &str, addresses: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\nstatus: {{addresses: [{addresses}]}}\n"
    )
}

#[test]
fn addresses_follow_the_order_of_names_and_avoid_those_in_use() {
    let text = [pod("c", "", ""), pod("a", "", ""), pod("b", "", "podIP: 10.244.0.3")].concat();
    let expected = ["default/a node-1 10.244.0.2", "default/b node-1 10.244.0.3", "default/c node-1 10.244.0.4"];
    check(&text, &PlacementOptions::default(), &expected);
}

#[test]
fn ranges_come_from_the_options_before_the_node() {
    let text = [node("worker", "podCIDRs: [10.9.0.0/24, 'fd09::/64']", ""), pod("a", "", "")].concat();
    check(&text, &PlacementOptions::default(), &["default/a worker 10.9.0.2 fd09::2"]);
    let options = PlacementOptions { pod_cidrs: vec!["fd00::/120".parse().unwrap()], ..PlacementOptions::default() };
    check(&text, &options, &["default/a worker fd00::2"]);
}

#[test]
fn a_full_range_is_an_error_that_names_it() {
    let text = [pod("a", "", ""), pod("b", "", "")].concat();
    let options = PlacementOptions { pod_cidrs: vec!["10.1.0.0/30".parse().unwrap()], ..PlacementOptions::default() };
    let error = placed(&text, &options).unwrap_err();
    assert!(error.contains("10.1.0.0/30") && error.contains("default/b"), "{error}");
}

#[test]
fn two_pods_with_one_address_are_an_error() {
    let text = [pod("a", "", "podIP: 10.0.0.9"), pod("b", "", "podIP: 10.0.0.9")].concat();
    let error = placed(&text, &PlacementOptions::default()).unwrap_err();
    assert!(error.contains("default/a") && error.contains("default/b") && error.contains("10.0.0.9"), "{error}");
}

#[test]
fn one_node_takes_all_pods_when_asked() {
    let text = [pod("a", ", nodeName: n2", ""), pod("b", ", nodeName: n1", ""), pod("c", "", "")].concat();
    check(
        &text,
        &PlacementOptions::default(),
        &["default/a n2 10.244.0.2", "default/b n1 10.244.0.3", "default/c n1 10.244.0.4"],
    );
    let single = PlacementOptions { nodes: Some(1), ..PlacementOptions::default() };
    let (ends, notes) = placed(&text, &single).unwrap();
    assert!(ends.iter().all(|end| end.contains(" n1 ")), "{ends:?}");
    assert_eq!(notes.len(), 1);
}

#[test]
fn pods_are_dealt_out_to_as_many_nodes_as_asked_for() {
    let text = [pod("a", "", ""), pod("b", ", nodeName: n1", ""), pod("c", "", ""), pod("d", "", "")].concat();
    let two = PlacementOptions { nodes: Some(2), ..PlacementOptions::default() };
    check(
        &text,
        &two,
        &[
            "default/a n1 10.244.0.2",
            "default/b n1 10.244.0.3",
            "default/c node-1 10.244.0.4",
            "default/d n1 10.244.0.5",
        ],
    );
}

#[test]
fn services_get_addresses_and_node_ports() {
    let service = |name: &str, spec: &str| {
        format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n")
    };
    let text = [
        pod("a", "", "podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]"),
        service("open", "type: NodePort, ports: [{port: 80}, {port: 81, nodePort: 30000}, {port: 53, protocol: UDP}]"),
        service("plain", "clusterIP: 10.96.0.2, ports: [{port: 80}]"),
        service("none", "clusterIP: None, ports: [{port: 80}]"),
    ];
    let mut manifests = parse(&[Source { name: "test.yaml", text: text.concat().as_bytes() }]);
    place(&mut manifests.objects, &[], &PlacementOptions::default()).unwrap();
    let shown: Vec<String> = manifests
        .objects
        .iter()
        .filter_map(|object| match object {
            Object::Service(service) => {
                let ports: Vec<_> = service.ports.iter().map(|port| port.node_port).collect();
                Some(format!("{} {:?} {ports:?}", service.name, service.cluster_addresses))
            }
            _ => None,
        })
        .collect();
    let expected = [
        "open [10.96.0.3, fd00:10:96::2] [Some(30001), Some(30000), Some(30000)]",
        "plain [10.96.0.2] [None]",
        "none [] [None]",
    ];
    assert_eq!(shown, expected);
}

#[test]
fn pods_on_the_host_network_have_the_node_s_addresses() {
    let node = node("worker", "", "{type: InternalIP, address: 192.0.2.77}");
    let text = [node, pod("a", ", hostNetwork: true", ""), pod("b", "", "phase: Succeeded")].concat();
    check(&text, &PlacementOptions::default(), &["default/a worker 192.0.2.77"]);
}

#[test]
fn nodes_speak_every_family_that_is_spoken() {
    let text = [pod("a", "", "podIP: fd00::5"), pod("h", ", hostNetwork: true", "")].concat();
    check(&text, &PlacementOptions::default(), &["default/a node-1 fd00::5", "default/h node-1 2001:db8:ffff::2"]);
}

#[test]
fn a_pod_on_the_host_network_tells_the_addresses_of_a_node_that_is_not_in_the_input() {
    let text =
        [pod("h", ", hostNetwork: true, nodeName: w1", "podIP: 192.168.1.10"), pod("a", ", nodeName: w1", "")].concat();
    check(&text, &PlacementOptions::default(), &["default/a w1 10.244.0.2", "default/h w1 192.168.1.10"]);
}
