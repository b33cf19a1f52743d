//! Everything that is not a policy: pods, workloads, namespaces, nodes, Services, lists, duplicates.

mod check;

use std::net::IpAddr;

use check::{Expected, check, pod_names, pods, read};
use ringfence_k8s::Severity::{Error, Fatal, Note, Warning};
use ringfence_k8s::{Source, parse};
use ringfence_model::{
    ContainerPort, ExternalTraffic, Masquerade, Object, ObjectKey, Phase, PodId, PodNetwork, Protocol, Service,
    ServiceKind, TargetPort, Topology,
};

#[test]
fn a_pod_in_full() {
    let manifests = check(
        "
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: kube-system
  uid: 5d1c-77
  labels: {app: web}
  creationTimestamp: 1970-01-02T00:00:00Z
spec:
  nodeName: n1
  hostNetwork: true
  containers:
  - name: a
    ports:
    - {name: http, containerPort: 8080}
    - {containerPort: 53, protocol: UDP, hostPort: 53}
  initContainers:
  - {name: sidecar, restartPolicy: Always, ports: [{containerPort: 9}]}
  - {name: setup, ports: [{containerPort: 10}]}
status:
  phase: Succeeded
  podIP: 10.0.0.1
  podIPs: [{ip: 010.0.0.1}, {ip: 'fd00::1'}]
",
        &[],
    );
    let pod = pods(&manifests)[0];
    assert_eq!(pod.id, PodId("5d1c-77".into()));
    assert_eq!(pod.to_string(), "kube-system/web");
    assert_eq!(pod.labels.len(), 1);
    assert_eq!(pod.node.as_deref(), Some("n1"));
    assert_eq!(pod.addresses, ["10.0.0.1".parse::<std::net::IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
    assert_eq!((pod.host_network, pod.phase, pod.created), (true, Phase::Finished, 86400));
    let port = |name: Option<&str>, protocol, port| ContainerPort { name: name.map(Into::into), protocol, port };
    assert_eq!(
        pod.ports,
        [port(Some("http"), Protocol::Tcp, 8080), port(None, Protocol::Udp, 53), port(None, Protocol::Tcp, 9),]
    );
    let origin = &manifests.origins[&ObjectKey::Pod(pod.id.clone())];
    assert_eq!((&*origin.file, origin.line, origin.column), ("f", 2, 1));
}

#[test]
fn a_sparse_pod_and_what_is_wrong_in_pods() {
    let manifests =
        check("{apiVersion: v1, kind: Pod, metadata: {name: a, creationTimestamp: null}, status: {podIP: ''}}", &[]);
    let pod = pods(&manifests)[0];
    assert_eq!((&*pod.id.0, pod.created, pod.phase), ("file:default/a", 0, Phase::Live));
    let wrong = |rest: &str, severity, field: &str, part: &str, kept: usize| {
        let text = format!("{{apiVersion: v1, kind: Pod, metadata: {{name: a{rest}}}");
        let manifests = check(&text, &[(severity, 1, field, part)]);
        assert_eq!(pods(&manifests).len(), kept, "{text}");
    };
    wrong(", labels: {access: true}}", Error, "metadata.labels.access", "quote it: \"true\"", 0);
    wrong(", labels: {v: 1.0}}", Error, "metadata.labels.v", "quote it: \"1.0\"", 0);
    wrong(", creationTimestamp: soon}", Warning, "metadata.creationTimestamp", "not a time", 1);
    wrong(", uid: 'a:b'}", Error, "metadata.uid", "not a uid", 0);
    wrong("}, status: {podIP: nowhere}", Error, "status.podIP", "not an IP address", 0);
    wrong("}, status: {podIPs: [{ip: 1.2.3}]}", Error, "status.podIPs[0].ip", "not an IP address", 0);
    wrong("}, spec: {hostNetwork: 'true'}", Error, "spec.hostNetwork", "not a boolean", 0);
    wrong(
        "}, spec: {containers: [{ports: [{containerPort: 0}]}]}",
        Error,
        "spec.containers[0].ports[0].containerPort",
        "0 is not",
        0,
    );
    wrong(
        "}, spec: {containers: [{ports: [{name: x}]}]}",
        Error,
        "spec.containers[0].ports[0].containerPort",
        "missing",
        0,
    );
    wrong("A}", Error, "metadata.name", "not a valid name", 0);
    wrong(", namespace: a.b}", Error, "metadata.namespace", "not a valid namespace", 0);
    wrong("\\u001b}", Error, "metadata.name", "not a valid name", 0);
}

/// Without its labels a namespace would pass selectors that name what it must not have.
#[test]
fn a_namespace_that_cannot_be_read_is_fatal() {
    let text = "{apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {quarantine: 'yes please!'}}}";
    check(
        text,
        &[
            (Error, 1, "metadata.labels.quarantine", "is not a label value"),
            (Fatal, 1, "", "Namespace a cannot be read"),
        ],
    );
}

#[test]
fn control_characters_never_leave_the_parser() {
    let text = "{\"apiVersion\":\"v1\",\"kind\":\"\\u001b[31m\",\"metadata\":{\"name\":\"\\u001b\"}}\n{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{\"name\":\"\\u001b\",\"labels\":{\"\\n\":\"\\u0007\"}}}";
    for diagnostic in read(text).diagnostics {
        let shown = format!("{diagnostic:?} {}", diagnostic.to_string().replace("\n    hint", ""));
        assert!(!shown.chars().any(char::is_control), "{shown}");
    }
}

fn workload(kind: &str, version: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: {version}\nkind: {kind}\nmetadata: {{name: w, namespace: default}}\nspec: {{{spec}, template: {{metadata: {{labels: {{app: w}}}}, spec: {{containers: [{{ports: [{{containerPort: 80}}]}}]}}}}}}\n"
    )
}

#[test]
fn workloads_expand_to_pods() {
    let expands = |kind: &str, version: &str, spec: &str, names: &str| {
        let manifests = check(&workload(kind, version, spec), &[]);
        assert_eq!(pod_names(&manifests), names, "{kind} {spec}");
        for pod in pods(&manifests) {
            assert_eq!(&*pod.labels["app"], "w");
            assert_eq!(pod.ports.len(), 1);
            assert_eq!(*pod.id.0, format!("file:{pod}"));
        }
        manifests
    };
    expands("Deployment", "apps/v1", "replicas: null", "default/w-0");
    expands("Deployment", "apps/v1", "replicas: 2", "default/w-0 default/w-1");
    expands("Deployment", "apps/v1", "replicas: 0", "");
    expands("ReplicaSet", "apps/v1", "replicas: 2", "default/w-0 default/w-1");
    expands("ReplicationController", "v1", "replicas: 1", "default/w-0");
    expands("DaemonSet", "apps/v1", "x: y", "default/w-0");
    expands("Job", "batch/v1", "x: y", "default/w-0");
    expands("Job", "batch/v1", "parallelism: 3, completions: 2", "default/w-0 default/w-1");
    expands("Job", "batch/v1", "completions: 5", "default/w-0");
    expands("Job", "batch/v1", "parallelism: 0", "");
    let stateful = expands("StatefulSet", "apps/v1", "replicas: 2", "default/w-0 default/w-1");
    let last = pods(&stateful)[1];
    assert_eq!(&*last.labels["statefulset.kubernetes.io/pod-name"], "w-1");
    assert_eq!(&*last.labels["apps.kubernetes.io/pod-index"], "1");

    let cron = "apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: c}\nspec: {jobTemplate: {spec: {parallelism: 2, template: {metadata: {labels: {a: b}}}}}}\n";
    assert_eq!(pod_names(&check(cron, &[])), "default/c-0 default/c-1");

    let nodes = "---\napiVersion: v1\nkind: Node\nmetadata: {name: n2}\n---\napiVersion: v1\nkind: Node\nmetadata: {name: n1}\n";
    let manifests = check(&format!("{}{nodes}", workload("DaemonSet", "apps/v1", "x: y")), &[]);
    let placed: Vec<String> =
        pods(&manifests).iter().map(|pod| format!("{pod}@{}", pod.node.as_deref().unwrap())).collect();
    assert_eq!(placed, ["default/w-0@n1", "default/w-1@n2"]);
}

#[test]
fn what_is_wrong_in_workloads() {
    let wrong = |spec: &str, field: &str, part: &str| {
        let manifests = check(&workload("Deployment", "apps/v1", spec), &[(Error, 5, field, part)]);
        assert_eq!(pod_names(&manifests), "", "{spec}");
    };
    wrong("replicas: 10001", "spec.replicas", "more than the 10000");
    wrong("replicas: -1", "spec.replicas", "negative");
    wrong("replicas: '3'", "spec.replicas", "remove the quotes: 3");
    check(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: w}\nspec: {}",
        &[(Error, 4, "spec.template", "missing")],
    );
    check("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: w}", &[(Error, 1, "spec", "missing")]);
    check("apiVersion: extensions/v1beta1\nkind: Deployment\nmetadata: {name: w}", &[(Warning, 1, "", "not read")]);
    let many: String = (0..21)
        .map(|index| {
            workload("Deployment", "apps/v1", "replicas: 10000").replace("name: w", &format!("name: w{index}"))
        })
        .collect();
    let manifests = check(&many, &[(Error, 102, "", "more than 200000 pods")]);
    assert_eq!(pods(&manifests).len(), 200_000);
}

/// A dump of a live cluster has a workload, what it made, and what that made.
#[test]
fn nothing_is_expanded_twice() {
    let object = |kind: &str, version: &str, name: &str, owner: &str, rest: &str| {
        let owners = match owner.split_once('/') {
            Some((kind, name)) => format!(", ownerReferences: [{{kind: {kind}, name: {name}, controller: true}}]"),
            None => String::new(),
        };
        format!(
            "---\napiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}{owners}{rest}}}\nspec: {{template: {{}}}}\n"
        )
    };
    let deployment = object("Deployment", "apps/v1", "d", "", "");
    let replica_set = object("ReplicaSet", "apps/v1", "d-5f", "Deployment/d", "");
    let pod = object("Pod", "v1", "d-5f-x", "ReplicaSet/d-5f", ", labels: {pod-template-hash: 5f}");
    let cron =
        object("CronJob", "batch/v1", "c", "", "").replace("{template: {}}", "{jobTemplate: {spec: {template: {}}}}");
    let job = object("Job", "batch/v1", "c-123", "CronJob/c", "");
    let job_pod = object("Pod", "v1", "c-123-x", "Job/c-123", "");
    let stateful = object("StatefulSet", "apps/v1", "s", "", "");
    let stateful_pod = object("Pod", "v1", "s-0", "StatefulSet/s", "");
    for (parts, expected) in [
        (vec![&deployment], "default/d-0"),
        (vec![&deployment, &replica_set], "default/d-5f-0"),
        (vec![&deployment, &replica_set, &pod], "default/d-5f-x"),
        (vec![&pod, &replica_set, &deployment], "default/d-5f-x"),
        (vec![&deployment, &pod], "default/d-5f-x"),
        (vec![&replica_set, &pod], "default/d-5f-x"),
        (vec![&cron], "default/c-0"),
        (vec![&cron, &job], "default/c-123-0"),
        (vec![&cron, &job, &job_pod], "default/c-123-x"),
        (vec![&cron, &job_pod], "default/c-123-x"),
        (vec![&stateful, &stateful_pod], "default/s-0"),
        (vec![&deployment, &stateful, &pod], "default/s-0 default/d-5f-x"),
    ] {
        let text: String = parts.into_iter().cloned().collect();
        assert_eq!(pod_names(&check(&text, &[])), expected, "{text}");
    }
    let elsewhere =
        pod.replace("{name:", "{namespace: default, name:").replace("controller: true", "controller: false");
    assert_eq!(pod_names(&check(&format!("{deployment}{elsewhere}"), &[])), "default/d-0 default/d-5f-x");
}

#[test]
fn namespaces_are_supplied() {
    let text = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: a, kubernetes.io/metadata.name: other}}
---
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: b, namespace: elsewhere}
---
apiVersion: v1
kind: Pod
metadata: {name: c}
";
    let manifests = check(
        text,
        &[
            (Warning, 2, "", "is \"other\" here: read as shop"),
            (Note, 10, "", "namespace elsewhere is not in the input: assumed to have no other labels"),
        ],
    );
    let namespaces: Vec<String> = manifests
        .objects
        .iter()
        .filter_map(|object| match object {
            Object::Namespace(namespace) => {
                assert_eq!(namespace.labels["kubernetes.io/metadata.name"], namespace.name);
                Some(format!("{}:{}", namespace.name, namespace.labels.len()))
            }
            _ => None,
        })
        .collect();
    assert_eq!(namespaces, ["shop:2", "default:1", "elsewhere:1"]);
}

fn service(spec: &str, expected: &[Expected<'_>]) -> Option<Service> {
    let text = format!("{{apiVersion: v1, kind: Service, metadata: {{name: web}}, spec: {spec}}}");
    check(&text, expected).objects.into_iter().find_map(|object| match object {
        Object::Service(service) => Some(service),
        _ => None,
    })
}

#[test]
fn services_say_how_they_are_reached() {
    let plain = service("{ports: [{port: 80}]}", &[]).unwrap();
    assert_eq!((plain.kind, plain.external_traffic), (ServiceKind::ClusterIp, ExternalTraffic::Cluster));
    assert_eq!(plain.ports[0].target, TargetPort::Number(80));
    assert_eq!(plain.ports[0].node_port, None);

    let open = service(
        "{type: NodePort, externalTrafficPolicy: Local, clusterIP: 10.96.0.9, clusterIPs: [10.96.0.9, 'fd00:96::9'],
          ports: [{name: a-rather-long-port-name, port: 80, targetPort: http, nodePort: 30080}, {port: 81, targetPort: 8081, nodePort: 0}]}",
        &[],
    )
    .unwrap();
    assert_eq!((open.kind, open.external_traffic), (ServiceKind::NodePort, ExternalTraffic::Local));
    assert_eq!(open.cluster_addresses, ["10.96.0.9".parse::<IpAddr>().unwrap(), "fd00:96::9".parse().unwrap()]);
    assert_eq!(open.ports[0].target, TargetPort::Name("http".into()));
    assert_eq!((open.ports[0].node_port, open.ports[1].node_port), (Some(30080), None));
    assert_eq!(open.ports[1].target, TargetPort::Number(8081));

    assert_eq!(service("{clusterIP: None, ports: [{port: 80}]}", &[]).unwrap().kind, ServiceKind::Headless);
    assert_eq!(service("{type: ExternalName, externalName: example.org}", &[]).unwrap().kind, ServiceKind::Headless);
    assert_eq!(service("{type: LoadBalancer, ports: [{port: 80}]}", &[]).unwrap().kind, ServiceKind::LoadBalancer);

    service("{type: Nodeport}", &[(Error, 1, "spec.type", "one of ClusterIP")]);
    service("{externalTrafficPolicy: local}", &[(Error, 1, "spec.externalTrafficPolicy", "one of Cluster, Local")]);
    service("{ports: [{port: 80, targetPort: '80'}]}", &[(Error, 1, "spec.ports[0].targetPort", "remove the quotes")]);
    service("{ports: [{targetPort: 80}]}", &[(Error, 1, "spec.ports[0].port", "missing")]);
    service("{clusterIP: nowhere}", &[(Error, 1, "spec.clusterIP", "address")]);
}

#[test]
fn a_topology_is_read_strictly() {
    let topology = |spec: &str, expected: &[Expected<'_>]| {
        let text =
            format!("{{apiVersion: lab.ringfence/v1alpha1, kind: Topology, metadata: {{name: x}}, spec: {spec}}}");
        check(&text, expected).topology
    };
    let full = topology("{nodes: 3, network: vxlan, masquerade: outside, masqueradeAll: true}", &[]);
    let expected = Topology {
        nodes: Some(3),
        pod_network: Some(PodNetwork::Vxlan),
        masquerade: Some(Masquerade::Outside),
        masquerade_all: Some(true),
    };
    assert_eq!(full, Some(expected));
    assert_eq!(topology("{}", &[]), Some(Topology::default()));
    assert_eq!(topology("{nodes: 0}", &[(Error, 1, "spec.nodes", "1 to 100")]), None);
    assert_eq!(topology("{network: flannel}", &[(Error, 1, "spec.network", "routed, bridge, vxlan")]), None);
    assert_eq!(topology("{masquerade: all}", &[(Error, 1, "spec.masquerade", "none, outside, pods")]), None);
    assert_eq!(topology("{masqueradeall: true}", &[(Error, 1, "spec.masqueradeall", "unknown field")]), None);
    let twice = "{apiVersion: lab.ringfence/v1alpha1, kind: Topology, metadata: {name: x}, spec: {nodes: 2}}\n---\n\
                 {apiVersion: lab.ringfence/v1alpha1, kind: Topology, metadata: {name: z}, spec: {nodes: 4}}";
    assert_eq!(check(twice, &[(Error, 3, "", "defined twice")]).topology.and_then(|topology| topology.nodes), Some(4));
}

#[test]
fn nodes_services_and_external_hosts() {
    let manifests = check(
        "
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDR: 10.1.0.0/24, podCIDRs: [10.1.0.0/24, 'fd00:1::/64']}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: Hostname, address: n1}, {type: ExternalIP, address: 198.51.100.1}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: http, name: http}, {port: 53, protocol: UDP}]}
---
apiVersion: lab.ringfence/v1alpha1
kind: ExternalHost
metadata: {name: internet}
spec: {addresses: [203.0.113.1], ports: [{port: 443, name: https}]}
",
        &[],
    );
    assert!(manifests.objects.iter().any(|object| matches!(object, Object::Node(node)
        if node.addresses.len() == 2 && node.pod_cidrs.len() == 2)));
    assert!(manifests.objects.iter().any(|object| matches!(object, Object::Service(service)
        if service.ports.len() == 2 && service.ports[1].protocol == Protocol::Udp && service.selector.len() == 1)));
    assert_eq!(manifests.externals.len(), 1);
    assert_eq!(manifests.externals[0].ports[0].port, 443);

    let host = |spec: &str, field: &str, part: &str| {
        let text =
            format!("{{apiVersion: lab.ringfence/v1alpha1, kind: ExternalHost, metadata: {{name: x}}, spec: {spec}}}");
        assert!(check(&text, &[(Error, 1, field, part)]).externals.is_empty(), "{text}");
    };
    host("{addresses: [1.2.3.4], port: 80}", "spec.port", "unknown field");
    host("{address: 1.2.3.4}", "spec.address", "write `addresses`");
    host("{addresses: [nowhere]}", "spec.addresses[0]", "not an IP");
    host("{addresses: []}", "", "at least one");
    host(
        "{addresses: [1.2.3.4], ports: [{containerPort: 80, port: 80}]}",
        "spec.ports[0].containerPort",
        "write `port`",
    );
}

#[test]
fn lists_and_unknown_kinds() {
    let text = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Pod, metadata: {name: a}}
- {apiVersion: v1, kind: ConfigMap, metadata: {name: x}}
- {apiVersion: v1, kind: ConfigMap, metadata: {name: y}}
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata: {name: p}
  spec:
    ingress:
    - ports: [{protocol: udp}]
-
- {apiVersion: v1}
---
# Nothing here.
---
apiVersion: v1
kind: PodList
items: [{metadata: {name: b}}]
";
    let manifests = check(
        text,
        &[
            (Note, 6, "items[1]", "skipped: kind ConfigMap (apiVersion v1) says nothing about network policy"),
            (Error, 13, "items[3].spec.ingress[0].ports[0].protocol", "write UDP"),
            (Note, 8, "items[3]", "fails closed"),
            (Error, 14, "items[4]", "is empty"),
            (Error, 15, "items[5].kind", "no `kind`"),
        ],
    );
    assert_eq!(pod_names(&manifests), "default/a default/b");
    check("apiVersion: v1\nmetadata: {}", &[(Error, 1, "kind", "no `kind`")]);
    check("kind: Pod\nmetadata: {name: a}", &[(Error, 1, "apiVersion", "write apiVersion: v1")]);
    check(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a}",
        &[(Note, 1, "", "skipped: kind Service")],
    );
}

#[test]
fn duplicates_name_both_places() {
    let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {no1: xN}}\n";
    let text = format!("{}{}", pod.replace('N', "1"), pod.replace('N', "2"));
    let manifests = check(&text, &[(Error, 6, "", "defined twice: it is also in f:2:1; this one counts")]);
    assert_eq!(&*pods(&manifests)[0].labels["no1"], "x2");

    let uid = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: N, uid: u}\n";
    let text = format!("{}{}", uid.replace('N', "a"), uid.replace('N', "b"));
    assert_eq!(pod_names(&check(&text, &[(Error, 6, "", "Pod default/a is also in f:2:1")])), "default/b");

    let policy = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {policyTypes: [DIRECTION]}\n";
    let text = format!("{}{}", policy.replace("DIRECTION", "Ingress"), policy.replace("DIRECTION", "Egress"));
    let manifests = check(&text, &[(Warning, 7, "", "defined twice")]);
    assert!(check::policies(&manifests)[0].isolates.egress);

    let a = Source { name: "a.yaml", text: b"apiVersion: v1\nkind: Namespace\nmetadata: {name: x}" };
    let manifests = parse(&[a, Source { name: "b.yaml", ..a }]);
    assert_eq!(
        manifests.diagnostics[0].to_string(),
        "b.yaml:1:1: error: Namespace x: defined twice: it is also in a.yaml:1:1; this one counts\n    hint: remove one of them"
    );
}

#[test]
fn a_lost_document_is_fatal_and_those_before_it_are_kept() {
    let manifests =
        check("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\nkind: Pod\n kind: x\n", &[(Fatal, 6, "", "")]);
    assert_eq!(pod_names(&manifests), "default/a");
}
