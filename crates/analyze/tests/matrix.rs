//! The matrix and its renderings.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use ringfence_analyze::render::{self, TableStyle, View};
use ringfence_analyze::{Matrix, PlacementOptions, compile_nodes, ends, place};
use ringfence_k8s::{Source, parse};

const CLUSTER: &str = "
apiVersion: v1
kind: Pod
metadata: {name: api, namespace: shop, labels: {app: api}}
spec: {nodeName: n1, containers: [{name: c, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {nodeName: n2, containers: [{name: c, ports: [{containerPort: 5432}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: quiet, namespace: shop, labels: {app: quiet}}
spec: {nodeName: n2, containers: [{name: c}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress, Egress]
  ingress:
    - from: [{podSelector: {matchLabels: {app: api}}}]
      ports: [{port: 5432}, {port: 7000, endPort: 7010, protocol: UDP}]
---
apiVersion: lab.ringfence/v1alpha1
kind: ExternalHost
metadata: {name: one}
spec: {addresses: [203.0.113.1], ports: [{port: 443}]}
---
apiVersion: lab.ringfence/v1alpha1
kind: ExternalHost
metadata: {name: six}
spec: {addresses: ['2001:db8::6'], ports: [{port: 443}]}
";

fn matrix() -> Matrix {
    let mut manifests = parse(&[Source { name: "test.yaml", text: CLUSTER.as_bytes() }]);
    place(&mut manifests.objects, &manifests.externals, &PlacementOptions::default()).unwrap();
    let ends = ends(&manifests.objects, &manifests.externals);
    Matrix::compiled(ends, &compile_nodes(manifests.objects).unwrap())
}

#[test]
fn cells_are_the_pairs_that_share_a_family_and_the_ports_to_try() {
    let text = render::csv(&matrix()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "from,to,protocol,port,egress,ingress,allowed,measured");
    // Declared ports only where there are some; else what policies name, both ends of ranges, and TCP 80. Nothing between
    // external hosts, nothing to or from a host without a common family.
    let to_quiet: Vec<&str> = lines.iter().filter(|line| line.starts_with("shop/api,shop/quiet")).copied().collect();
    assert_eq!(
        to_quiet,
        [
            "shop/api,shop/quiet,TCP,80,true,true,true,",
            "shop/api,shop/quiet,TCP,5432,true,true,true,",
            "shop/api,shop/quiet,UDP,7000,true,true,true,",
            "shop/api,shop/quiet,UDP,7010,true,true,true,",
        ]
    );
    assert!(!text.contains("2001:db8::6"));
    assert!(lines.contains(&"shop/api,shop/db,TCP,5432,true,true,true,"));
    assert!(lines.contains(&"shop/quiet,shop/db,TCP,5432,true,false,false,"));
    assert!(lines.contains(&"shop/db,shop/api,TCP,80,false,true,false,"));
    assert!(lines.contains(&"203.0.113.1,shop/db,TCP,5432,true,false,false,"));
    assert_eq!(lines.len() - 1, 3 + 3 + 3 * 4 + 3);
}

#[test]
fn a_table_too_wide_for_the_terminal_gets_numbered_columns() {
    let matrix = matrix();
    let wide = render::table(&matrix, View::Expected, TableStyle { color: false, width: 200 });
    assert!(wide.contains("TCP/5432"), "{wide}");
    let narrow = render::table(&matrix, View::Expected, TableStyle { color: false, width: 60 });
    assert!(narrow.contains("   2  shop/db TCP/5432"), "{narrow}");
    assert!(narrow.contains("no (I)") && narrow.contains("no (E)"), "{narrow}");
    assert!(narrow.lines().all(|line| line.chars().count() <= 60), "{narrow}");
    // A terminal too narrow for one column gets one column at a time.
    let tiny = render::table(&matrix, View::Expected, TableStyle { color: false, width: 5 });
    assert_eq!(tiny.matches("from \\ to").count(), 7, "{tiny}");
}

#[test]
fn a_measurement_that_differs_is_marked_and_told() {
    let mut matrix = matrix();
    for cell in &mut matrix.cells {
        for path in &mut cell.paths {
            path.measured = Some(path.allowed());
        }
    }
    assert!(render::comparison(&matrix).starts_with("The two agree: 21 connections tried"));
    matrix.cells[0].paths[0].measured = Some(!matrix.cells[0].paths[0].allowed());
    let told = render::comparison(&matrix);
    assert!(told.starts_with("They differ: 1 of 21 connections"), "{told}");
    assert!(told.contains("shop/api -> shop/db TCP/5432"), "{told}");
    let table = render::table(&matrix, View::Measured, TableStyle { color: false, width: 200 });
    assert!(table.contains("no !"), "{table}");
}

#[test]
fn markdown_has_a_row_for_each_end() {
    let text = render::markdown(&matrix(), View::Expected);
    assert_eq!(text.lines().count(), 2 + 5);
    assert!(text.starts_with("| from \\ to | shop/api TCP/80 |"), "{text}");
}
