//! Troubles of policies as Kubernetes Events on these policies, for those who wrote them.
//!
//! All nodes find the same fault in a policy. The name of an Event follows from what it says, so the first node writes it and
//! the others learn that it is there.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{PartialObjectMeta, PostParams};
use kube::{Api, Client, ResourceExt as _};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc::Receiver;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::failure::causes;
use crate::trouble::{PolicyTrouble, TroubleKind};

/// Who reports, for all Events of ringfence.
const CONTROLLER: &str = "ringfence.io/agent";
/// Between two Events: a node full of invalid policies is no load for the server.
const PAUSE: Duration = Duration::from_millis(200);
/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest note that the server takes, in bytes.
const LONGEST_NOTE: usize = 1024;
/// The longest name of an object.
const LONGEST_NAME: usize = 253;

/// Tells the API server of troubles.
#[derive(Debug)]
pub struct Publisher {
    node: Arc<str>,
    troubles: Receiver<PolicyTrouble>,
}

impl Publisher {
    /// A publisher of what comes out of `troubles`, in the name of the agent on `node`.
    pub fn new(node: Arc<str>, troubles: Receiver<PolicyTrouble>) -> Publisher {
        Publisher { node, troubles }
    }

    /// Publishes until there is nothing more to come. What cannot be published is logged and forgotten: nothing depends on it.
    pub(super) async fn publish(mut self, client: Client) {
        let mut last_error = None;
        while let Some(trouble) = self.troubles.recv().await {
            let result = timeout(PATIENCE, create(&client, &self.node, &trouble)).await;
            match result.unwrap_or_else(|_| Err(format!("no answer for {} s", PATIENCE.as_secs()))) {
                Ok(()) => last_error = None,
                Err(error) if last_error.as_ref() == Some(&error) => {}
                Err(error) => {
                    warn!("cannot write an Event for policy {}: {error}", trouble.policy);
                    last_error = Some(error);
                }
            }
            sleep(PAUSE).await;
        }
    }
}

/// Creates the Event, unless the policy is gone or another node was first.
async fn create(client: &Client, node: &str, trouble: &PolicyTrouble) -> Result<(), String> {
    let PolicyTrouble { policy, .. } = trouble;
    let policies: Api<NetworkPolicy> = Api::namespaced(client.clone(), &policy.namespace);
    let found = match policies.get_metadata_opt(&policy.name).await {
        Ok(Some(found)) => found,
        Ok(None) => return Ok(()),
        Err(error) => return Err(explained(&error, "get", "networkpolicies", "networking.k8s.io")),
    };
    let event = event(&found, node, trouble, Timestamp::now());
    let events: Api<Event> = Api::namespaced(client.clone(), &policy.namespace);
    match events.create(&PostParams::default(), &event).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => {
            debug!("policy {policy}: told by another node");
            Ok(())
        }
        // The namespace is about to go, and everything in it.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(explained(&error, "create", "events", "events.k8s.io")),
    }
}

fn explained(error: &kube::Error, verb: &str, resource: &str, group: &str) -> String {
    match error {
        kube::Error::Api(status) if status.code == 403 => format!(
            "the API server forbids it; bind the agent's account to a ClusterRole with apiGroups: [{group}], \
             resources: [{resource}], verbs: [{verb}]"
        ),
        kube::Error::Api(status) => super::failure::one_line(&status.message),
        error => causes(error),
    }
}

fn event(policy: &PartialObjectMeta<NetworkPolicy>, node: &str, trouble: &PolicyTrouble, now: Timestamp) -> Event {
    let uid = policy.uid().unwrap_or_default();
    let (reason, action) = match trouble.kind {
        TroubleKind::Invalid => ("InvalidPolicy", "Validate"),
        TroubleKind::NotProgrammed => ("NotProgrammed", "Program"),
    };
    Event {
        metadata: ObjectMeta {
            name: Some(event_name(&trouble.policy.name, &[&uid, reason, &trouble.message])),
            namespace: Some(trouble.policy.namespace.to_string()),
            ..ObjectMeta::default()
        },
        type_: Some("Warning".to_owned()),
        reason: Some(reason.to_owned()),
        action: Some(action.to_owned()),
        note: Some(cut(&trouble.message, LONGEST_NOTE).to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some("networking.k8s.io/v1".to_owned()),
            kind: Some("NetworkPolicy".to_owned()),
            namespace: Some(trouble.policy.namespace.to_string()),
            name: Some(trouble.policy.name.to_string()),
            uid: Some(uid),
            resource_version: policy.resource_version(),
            field_path: None,
        }),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(cut(node, 128).to_owned()),
        event_time: Some(MicroTime(now)),
        ..Event::default()
    }
}

/// The name of the policy, as far as there is room, and a hash of what the Event says.
fn event_name(policy: &str, parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_be_bytes());
        hash.update(part);
    }
    let digits: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    // A cut may leave a dot or a dash at the end, which may stand before another dot only if it is a letter or a digit.
    let room = LONGEST_NAME - digits.len() - 1;
    let policy = cut(policy, room).trim_end_matches(['.', '-']);
    format!("{policy}.{digits}")
}

/// The beginning of a text, of so many bytes at most.
fn cut(text: &str, bytes: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes)).unwrap_or(text)
}
