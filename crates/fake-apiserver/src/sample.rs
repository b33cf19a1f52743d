//! Objects as clusters have them, with the weight of `managedFields` and status.

use serde_json::{Map, Value, json};

fn map(pairs: &[(&str, &str)]) -> Map<String, Value> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect()
}

/// A Namespace in use.
pub fn namespace(name: &str, labels: &[(&str, &str)]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {
            "name": name, "labels": map(labels),
            "managedFields": [{
                "manager": "kubectl-create", "operation": "Update", "apiVersion": "v1", "time": "2026-01-01T00:00:00Z",
                "fieldsType": "FieldsV1", "fieldsV1": {"f:metadata": {"f:labels": {".": {}, "f:kubernetes.io/metadata.name": {}}}},
            }],
        },
        "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"},
    })
}

/// A Node that is ready, with its address and the ranges of its pods.
pub fn node(name: &str, address: &str, pod_cidrs: &[&str]) -> Value {
    let capacity = json!({"cpu": "8", "ephemeral-storage": "101430960Ki", "hugepages-1Gi": "0", "hugepages-2Mi": "0",
        "memory": "32661960Ki", "pods": "110"});
    let condition = |kind: &str, status: &str, reason: &str| {
        json!({"type": kind, "status": status, "reason": reason, "message": format!("kubelet says {reason}"), "lastHeartbeatTime": "2026-01-01T00:10:00Z",
            "lastTransitionTime": "2026-01-01T00:00:10Z"})
    };
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                "beta.kubernetes.io/arch": "amd64", "beta.kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
                "kubernetes.io/hostname": name, "kubernetes.io/os": "linux",
            },
            "annotations": {
                "node.alpha.kubernetes.io/ttl": "0", "volumes.kubernetes.io/controller-managed-attach-detach": "true",
            },
        },
        "spec": {"podCIDR": pod_cidrs.first().unwrap_or(&""), "podCIDRs": pod_cidrs},
        "status": {
            "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}],
            "allocatable": capacity, "capacity": capacity,
            "conditions": [
                condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
                condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
                condition("PIDPressure", "False", "KubeletHasSufficientPID"),
                condition("Ready", "True", "KubeletReady"),
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            "nodeInfo": {
                "architecture": "amd64", "bootID": "", "containerRuntimeVersion": "containerd://2.1.4",
                "kernelVersion": "6.12.0", "kubeProxyVersion": "", "kubeletVersion": "v1.36.0", "machineID": "",
                "operatingSystem": "linux", "osImage": "Debian GNU/Linux 13 (trixie)", "systemUUID": "",
            },
        },
    })
}

/// A Service of this type for the pods with the label `app`, with one port called `http`.
pub fn service(namespace: &str, name: &str, kind: &str, app: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": app}},
        "spec": {
            "type": kind, "selector": {"app": app}, "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": "http"}],
        },
        "status": {"loadBalancer": {}},
    })
}

/// An EndpointSlice of a Service, as its controller writes them: each of these addresses is ready on this TCP port.
pub fn endpoint_slice(namespace: &str, name: &str, service: &str, addresses: &[&str], port: u16) -> Value {
    let endpoint = |address: &&str| {
        json!({
            "addresses": [address], "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": "node-1", "zone": "a",
            "targetRef": {"kind": "Pod", "namespace": namespace, "name": format!("{service}-{address}"),
                "uid": "0a4b2f0e-5d1c-4c57-a1f0-6f5c8f1f2d11"},
        })
    };
    let family = if addresses.iter().any(|address| address.contains(':')) { "IPv6" } else { "IPv4" };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": namespace, "name": name,
            "labels": {"kubernetes.io/service-name": service,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"},
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:07Z"},
        },
        "addressType": family,
        "endpoints": addresses.iter().map(endpoint).collect::<Vec<_>>(),
        "ports": [{"name": "http", "protocol": "TCP", "port": port}],
    })
}

/// A NetworkPolicy with this `spec`.
pub fn network_policy(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {
            "namespace": namespace, "name": name,
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": spec.to_string()},
            "managedFields": [{
                "manager": "kubectl-client-side-apply", "operation": "Update", "apiVersion": "networking.k8s.io/v1",
                "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1",
                "fieldsV1": {
                    "f:metadata": {"f:annotations": {".": {}, "f:kubectl.kubernetes.io/last-applied-configuration": {}}},
                    "f:spec": {"f:egress": {}, "f:ingress": {}, "f:podSelector": {}, "f:policyTypes": {}},
                },
            }],
        },
        "spec": spec,
    })
}

/// A Pod of a ReplicaSet. Without addresses it is pending, and without a node it waits to be scheduled; `""` is no node. Of a
/// pod with addresses the container `main` listens on TCP 8080, by the name `http`.
///
/// It weighs what pods in clusters weigh, about 7 kB.
pub fn pod(namespace: &str, name: &str, labels: &[(&str, &str)], node: &str, addresses: &[&str]) -> Value {
    let owner = name.rsplit_once('-').map_or(name, |(owner, _)| owner);
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": namespace, "name": name, "generateName": format!("{owner}-"), "labels": map(labels),
            "annotations": {
                "kubectl.kubernetes.io/restartedAt": "2026-01-01T00:00:00Z", "prometheus.io/path": "/metrics",
                "prometheus.io/port": "8080", "prometheus.io/scrape": "true",
            },
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner,
                "uid": "5f4f4d9c-7b1c-4b51-9d5a-1f6c7a0b9d11", "controller": true, "blockOwnerDeletion": true,
            }],
            "managedFields": managed_fields(labels),
        },
        "spec": pod_spec(),
        "status": {"phase": "Pending", "qosClass": "Burstable"},
    });
    if !node.is_empty() {
        pod["spec"]["nodeName"] = json!(node);
    }
    if let Some(first) = addresses.first() {
        pod["status"] = running_status(first, addresses);
    }
    pod
}

fn pod_spec() -> Value {
    let variable = |name: &str| json!({"name": name, "value": format!("value of {name}")});
    let probe = |path: &str| {
        json!({"httpGet": {"path": path, "port": "http", "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10,
            "successThreshold": 1, "failureThreshold": 3})
    };
    let toleration =
        |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
    json!({
        "volumes": [
            {"name": "config", "configMap": {"name": "config", "defaultMode": 420}},
            {"name": "kube-api-access-x7k2p", "projected": {"sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{"path": "namespace",
                    "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
            ], "defaultMode": 420}},
        ],
        "containers": [{
            "name": "main", "image": "registry.example.com/team/service:1.24.3",
            "args": ["--config=/etc/service/config.yaml", "--log-format=json", "--listen=:8080"],
            "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
            "env": [variable("LOG_LEVEL"), variable("REGION"), variable("DATABASE_URL"), variable("OTEL_ENDPOINT"),
                {"name": "POD_IP", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}}],
            "resources": {"limits": {"memory": "512Mi"}, "requests": {"cpu": "100m", "memory": "256Mi"}},
            "volumeMounts": [
                {"name": "config", "readOnly": true, "mountPath": "/etc/service"},
                {"name": "kube-api-access-x7k2p", "readOnly": true,
                    "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"},
            ],
            "livenessProbe": probe("/livez"), "readinessProbe": probe("/readyz"),
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            "imagePullPolicy": "IfNotPresent",
            "securityContext": {"capabilities": {"drop": ["ALL"]}, "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true},
        }],
        "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
        "serviceAccountName": "default", "serviceAccount": "default",
        "securityContext": {"runAsUser": 65532, "runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "schedulerName": "default-scheduler",
        "tolerations": [toleration("node.kubernetes.io/not-ready"), toleration("node.kubernetes.io/unreachable")],
        "priority": 0, "enableServiceLinks": true, "preemptionPolicy": "PreemptLowerPriority",
    })
}

fn running_status(first: &str, addresses: &[&str]) -> Value {
    let condition = |kind: &str| {
        json!({"type": kind, "observedGeneration": 1, "status": "True", "lastProbeTime": null,
            "lastTransitionTime": "2026-01-01T00:00:07Z"})
    };
    json!({
        "observedGeneration": 1, "phase": "Running",
        "conditions": [condition("PodReadyToStartContainers"), condition("Initialized"), condition("Ready"),
            condition("ContainersReady"), condition("PodScheduled")],
        "hostIP": "192.0.2.10", "hostIPs": [{"ip": "192.0.2.10"}],
        "podIP": first, "podIPs": addresses.iter().map(|address| json!({"ip": address})).collect::<Vec<_>>(),
        "startTime": "2026-01-01T00:00:01Z",
        "containerStatuses": [{
            "name": "main", "state": {"running": {"startedAt": "2026-01-01T00:00:05Z"}}, "lastState": {}, "ready": true,
            "restartCount": 0, "started": true, "image": "registry.example.com/team/service:1.24.3",
            "imageID": "registry.example.com/team/service@sha256:6b8a1c1f3d0f4c6f9f4b2f2a0f6f6d6c7a4f0d3d8f6a1b5c9e7d2a4b6c8e0f12",
            "containerID": "containerd://0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0",
            "resources": {"limits": {"memory": "512Mi"}, "requests": {"cpu": "100m", "memory": "256Mi"}},
            "user": {"linux": {"uid": 65532, "gid": 65532, "supplementalGroups": [65532]}},
        }],
        "qosClass": "Burstable",
    })
}

/// What the controller manager and the kubelet leave behind about who wrote which field.
fn managed_fields(labels: &[(&str, &str)]) -> Value {
    let labels: Map<String, Value> = labels.iter().map(|(key, _)| (format!("f:{key}"), json!({}))).collect();
    let leaf = |names: &[&str]| -> Value {
        let leaves: Map<String, Value> = names.iter().map(|name| (format!("f:{name}"), json!({}))).collect();
        Value::Object(leaves)
    };
    let probe = json!({".": {}, "f:failureThreshold": {}, "f:periodSeconds": {}, "f:successThreshold": {},
        "f:timeoutSeconds": {}, "f:httpGet": {".": {}, "f:path": {}, "f:port": {}, "f:scheme": {}}});
    let mut container =
        leaf(&["args", "image", "imagePullPolicy", "name", "terminationMessagePath", "terminationMessagePolicy"]);
    container["f:env"] = json!({".": {},
        "k:{\"name\":\"LOG_LEVEL\"}": leaf(&["name", "value"]), "k:{\"name\":\"REGION\"}": leaf(&["name", "value"]),
        "k:{\"name\":\"DATABASE_URL\"}": leaf(&["name", "value"]),
        "k:{\"name\":\"OTEL_ENDPOINT\"}": leaf(&["name", "value"]),
        "k:{\"name\":\"POD_IP\"}": {".": {}, "f:name": {}, "f:valueFrom": {"f:fieldRef": {}}}});
    container["f:livenessProbe"] = probe.clone();
    container["f:readinessProbe"] = probe;
    container["f:ports"] = json!({".": {},
        "k:{\"containerPort\":8080,\"protocol\":\"TCP\"}": leaf(&["containerPort", "name", "protocol"])});
    container["f:resources"] = json!({".": {}, "f:limits": {".": {}, "f:memory": {}},
        "f:requests": {".": {}, "f:cpu": {}, "f:memory": {}}});
    container["f:securityContext"] = json!({".": {}, "f:allowPrivilegeEscalation": {},
        "f:capabilities": {".": {}, "f:drop": {}}, "f:readOnlyRootFilesystem": {}});
    container["f:volumeMounts"] = json!({".": {},
        "k:{\"mountPath\":\"/etc/service\"}": leaf(&["mountPath", "name", "readOnly"])});
    let mut spec =
        leaf(&["dnsPolicy", "enableServiceLinks", "restartPolicy", "schedulerName", "terminationGracePeriodSeconds"]);
    spec["f:containers"] = json!({"k:{\"name\":\"main\"}": container});
    spec["f:securityContext"] = json!({".": {}, "f:runAsNonRoot": {}, "f:runAsUser": {},
        "f:seccompProfile": {".": {}, "f:type": {}}});
    spec["f:volumes"] = json!({".": {}, "k:{\"name\":\"config\"}": {".": {}, "f:name": {},
        "f:configMap": {".": {}, "f:defaultMode": {}, "f:name": {}}}});
    let condition = leaf(&["lastProbeTime", "lastTransitionTime", "observedGeneration", "status", "type"]);
    json!([
        {
            "manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1",
            "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1",
            "fieldsV1": {
                "f:metadata": {
                    "f:annotations": {".": {}, "f:kubectl.kubernetes.io/restartedAt": {}, "f:prometheus.io/path": {},
                        "f:prometheus.io/port": {}, "f:prometheus.io/scrape": {}},
                    "f:generateName": {}, "f:labels": labels,
                    "f:ownerReferences": {".": {}, "k:{\"uid\":\"5f4f4d9c-7b1c-4b51-9d5a-1f6c7a0b9d11\"}": {}},
                },
                "f:spec": spec,
            },
        },
        {
            "manager": "kubelet", "operation": "Update", "apiVersion": "v1", "time": "2026-01-01T00:00:07Z",
            "fieldsType": "FieldsV1", "subresource": "status",
            "fieldsV1": {"f:status": {
                "f:conditions": {
                    "k:{\"type\":\"ContainersReady\"}": condition, "k:{\"type\":\"Initialized\"}": condition,
                    "k:{\"type\":\"PodReadyToStartContainers\"}": condition, "k:{\"type\":\"Ready\"}": condition,
                },
                "f:containerStatuses": {}, "f:hostIP": {}, "f:hostIPs": {}, "f:observedGeneration": {}, "f:phase": {},
                "f:podIP": {}, "f:podIPs": {".": {}, "k:{\"ip\":\"10.244.0.7\"}": {".": {}, "f:ip": {}}},
                "f:startTime": {},
            }},
        },
    ])
}
