//! Which EndpointSlices files get that have none, and where ends of tunnels get their addresses from.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use ringfence_analyze::{PlacementOptions, add_endpoint_slices, place};
use ringfence_k8s::{Source, parse};
use ringfence_model::Object;

const CLUSTER: &str = "
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDRs: [10.1.0.0/24, 'fd00:1::/64']}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
spec: {podCIDRs: [10.2.0.0/24]}
---
apiVersion: v1
kind: Pod
metadata: {name: a, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: b, labels: {app: web}}
spec: {nodeName: n2, containers: [{name: c, ports: [{name: http, containerPort: 8081}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: h, labels: {app: web}}
spec: {nodeName: n2, hostNetwork: true, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: elsewhere, namespace: other, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: c}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, clusterIP: 10.96.0.9, selector: {app: web}, ports: [{port: 80, targetPort: http}, {port: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: by-hand}
spec: {ports: [{port: 82}]}
";

fn objects(text: &str, options: &PlacementOptions) -> Vec<Object> {
    let mut manifests = parse(&[Source { name: "test.yaml", text: text.as_bytes() }]);
    place(&mut manifests.objects, &manifests.externals, options).unwrap();
    add_endpoint_slices(&mut manifests.objects);
    manifests.objects
}

fn slices(objects: &[Object]) -> Vec<String> {
    let shown = objects.iter().filter_map(|object| match object {
        Object::EndpointSlice(slice) => {
            let endpoints: Vec<String> = slice.endpoints.iter().map(|end| end.address.to_string()).collect();
            let ports: Vec<String> = slice.ports.iter().map(|(protocol, port)| format!("{protocol}/{port}")).collect();
            Some(format!("{} {}: {}", slice.service.as_deref().unwrap(), endpoints.join(" "), ports.join(" ")))
        }
        _ => None,
    });
    shown.collect()
}

#[test]
fn a_slice_for_each_family_and_each_meaning_of_a_port_name() {
    let objects = objects(CLUSTER, &PlacementOptions::default());
    // The Service has an address of one family; the pod on its node's network answers at the node's address.
    let expected = ["web 10.1.0.2 192.0.2.3: TCP/8080 UDP/53", "web 10.2.0.2: TCP/8081 UDP/53"];
    assert_eq!(slices(&objects), expected);
}

#[test]
fn a_service_that_has_slices_gets_no_more() {
    let mut objects = objects(CLUSTER, &PlacementOptions::default());
    let before = slices(&objects);
    add_endpoint_slices(&mut objects);
    assert_eq!(slices(&objects), before);
}

#[test]
fn tunnels_end_in_the_ranges_of_pods_and_take_no_address_from_them() {
    let tunnels = |options: &PlacementOptions| -> Vec<String> {
        let objects = objects(CLUSTER, options);
        let nodes = objects.iter().filter_map(|object| match object {
            Object::Node(node) => Some(node.tunnel_addresses.iter().map(ToString::to_string).collect::<Vec<_>>()),
            _ => None,
        });
        nodes.map(|addresses| addresses.join(" ")).collect()
    };
    assert_eq!(tunnels(&PlacementOptions::default()), ["", ""]);
    let options = PlacementOptions { tunnels: true, ..PlacementOptions::default() };
    // Both nodes speak IPv6, because a pod does; the second has no range of it.
    assert_eq!(tunnels(&options), ["10.1.0.4 fd00:1::4", "10.2.0.3 fd00:10:244::2"]);
}
