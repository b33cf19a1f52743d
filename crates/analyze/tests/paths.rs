//! Which paths there are to try.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use ringfence_analyze::paths::{Attempt, Client, Led, PathKind, Side, attempts};
use ringfence_analyze::{Matrix, PlacementOptions, ends, place};
use ringfence_k8s::{Source, parse};

const CLUSTER: &str = "
apiVersion: v1
kind: Node
metadata: {name: n1}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
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
metadata: {name: h, labels: {app: host}}
spec: {nodeName: n1, hostNetwork: true, containers: [{name: c, ports: [{containerPort: 9100}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: http, nodePort: 30080}]}
---
apiVersion: v1
kind: Service
metadata: {name: local}
spec: {type: NodePort, externalTrafficPolicy: Local, selector: {app: web}, ports: [{port: 81, targetPort: http, nodePort: 30081}]}
---
apiVersion: v1
kind: Service
metadata: {name: by-hand}
spec: {ports: [{port: 82}]}
---
apiVersion: lab.ringfence/v1alpha1
kind: ExternalHost
metadata: {name: office}
spec: {addresses: [203.0.113.1], ports: [{port: 443}]}
";

#[test]
fn every_kind_of_path_is_found() {
    let mut manifests = parse(&[Source { name: "test.yaml", text: CLUSTER.as_bytes() }]);
    place(&mut manifests.objects, &manifests.externals, &PlacementOptions::default()).unwrap();
    let matrix = Matrix::new(ends(&manifests.objects, &manifests.externals), |_, _, _| (true, true));
    let label = |attempt: &Attempt| match &attempt.from {
        Client::End(end) => matrix.ends[*end].label.clone(),
        Client::Node(name) => format!("node {name}"),
    };
    let mut shown: Vec<String> = Vec::new();
    for attempt in attempts(&[Side { objects: &manifests.objects, gate: None }], &matrix) {
        let via = attempt.via.as_ref().map_or(String::new(), |via| format!(" [{via}]"));
        for backend in &attempt.backends {
            let (to, port) = (&matrix.ends[backend.end].label, backend.address.port());
            shown.push(format!("{}: {} -> {to} {port}{via}", backend.kind.name(), label(&attempt)));
        }
    }
    shown.sort();
    assert_eq!(shown.join("\n") + "\n", include_str!("paths.txt"));
}

/// Of another cluster, pods are called directly, and its Services by way of one of its nodes.
#[test]
fn other_clusters_are_called_directly_and_through_their_services() {
    let mut manifests = parse(&[Source { name: "test.yaml", text: CLUSTER.as_bytes() }]);
    place(&mut manifests.objects, &[], &PlacementOptions::default()).unwrap();
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: far}, spec: {nodeName: m1, containers: [{name: c, ports: [{containerPort: 1}]}]}, status: {podIP: 10.9.0.1}}";
    let node = "{apiVersion: v1, kind: Node, metadata: {name: m1}, status: {addresses: [{type: InternalIP, address: 192.0.2.99}]}}";
    let text = format!("{pod}\n---\n{node}\n");
    let mut others = parse(&[Source { name: "other.yaml", text: text.as_bytes() }]).objects;
    place(&mut others, &[], &PlacementOptions::default()).unwrap();
    let all: Vec<_> = manifests.objects.iter().chain(&others).cloned().collect();
    let matrix = Matrix::new(ends(&all, &[]), |_, _, _| (true, true));
    let gate: std::sync::Arc<str> = "n1".into();
    let sides = [Side { objects: &manifests.objects, gate: Some(&gate) }, Side { objects: &others, gate: None }];
    let of_far =
        |attempt: &&Attempt| matches!(attempt.from, Client::End(end) if matrix.ends[end].label == "default/far");
    let attempts = attempts(&sides, &matrix);
    let kinds: Vec<(PathKind, Led, usize)> = attempts
        .iter()
        .filter(of_far)
        .filter(|attempt| attempt.dial.port() != 9100)
        .map(|attempt| (attempt.backends[0].kind, attempt.led.clone(), attempt.backends.len()))
        .collect();
    let directly = (PathKind::OtherCluster, Led::Nowhere, 1);
    let through = (PathKind::OtherClusterService, Led::At(gate.clone()), 2);
    assert_eq!(kinds, [directly.clone(), directly, through.clone(), through]);
}
