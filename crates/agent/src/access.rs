//! What the agent asks of the API server, and whether it may.

use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Api, Client, Config};
use ringfence_model::{EnforceAt, Enforcement};

/// How long all questions together may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the agent does with one resource, in all namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The resource, as in URLs.
    pub resource: &'static str,
    /// The verbs.
    pub verbs: &'static [&'static str],
    /// What does not work without it.
    pub lost: Lost,
}

/// What an agent is without some access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// It knows no complete state, so it enforces nothing new.
    Enforcement,
    /// Errors in policies are told in its log and metrics only.
    Events,
    /// Other nodes learn neither its node's tunnel addresses nor what it enforces.
    Announcements,
}

const READ: &[&str] = &["get", "list", "watch"];
const TELL: &[&str] = &["create"];
const CHANGE: &[&str] = &["patch"];

/// What every agent needs. The role in `deploy/` grants exactly this, which a test holds it to.
pub const NEEDED: &[Access] = &[
    Access { group: "", resource: "pods", verbs: READ, lost: Lost::Enforcement },
    Access { group: "", resource: "namespaces", verbs: READ, lost: Lost::Enforcement },
    Access { group: "", resource: "nodes", verbs: READ, lost: Lost::Enforcement },
    Access { group: "networking.k8s.io", resource: "networkpolicies", verbs: READ, lost: Lost::Enforcement },
    Access { group: "events.k8s.io", resource: "events", verbs: TELL, lost: Lost::Events },
];

/// What it needs in addition with `--enforce-at entry`.
pub const ENTRY: &[Access] = &[
    Access { group: "", resource: "services", verbs: READ, lost: Lost::Enforcement },
    Access { group: "discovery.k8s.io", resource: "endpointslices", verbs: READ, lost: Lost::Enforcement },
];

/// What it needs in addition to tell other nodes of its own.
pub const ANNOUNCE: &[Access] = &[Access { group: "", resource: "nodes", verbs: CHANGE, lost: Lost::Announcements }];

/// What an agent needs that runs like this. One that enforces by default has nothing to announce.
pub fn needed(enforcement: Enforcement, announces: bool) -> Vec<Access> {
    let mut needed = NEEDED.to_vec();
    if enforcement.at == EnforceAt::Entry {
        needed.extend_from_slice(ENTRY);
    }
    if announces && enforcement != Enforcement::default() {
        needed.extend_from_slice(ANNOUNCE);
    }
    needed
}

/// Something that the agent needs and may not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What it is about.
    pub access: Access,
    /// The verb of it.
    pub verb: &'static str,
    /// Why not, as far as the API server says.
    pub reason: String,
}

/// Why it could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The file with the credentials.
    #[error("kubeconfig {}: {source}", path.display())]
    Kubeconfig {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: Box<KubeconfigError>,
    },
    /// The credentials of a pod.
    #[error("the service account of this pod: {0}")]
    InCluster(Box<InClusterError>),
    /// The API server.
    #[error("the API server: {}", told(.0))]
    Server(Box<kube::Error>),
    /// It does not answer.
    #[error("the API server did not answer within {} s", PATIENCE.as_secs())]
    Silence,
}

/// What in `needed` is refused to whom the credentials in `kubeconfig` belong to; without it, to the service account of
/// the pod this runs in. Asks by SelfSubjectAccessReviews, which everybody may, and changes nothing.
///
/// # Errors
/// There are no usable credentials, or no answer from the API server within ten seconds.
pub async fn refusals(kubeconfig: Option<&Path>, needed: &[Access]) -> Result<Vec<Refusal>, AskError> {
    let asked = async {
        let config = match kubeconfig {
            Some(path) => from_file(path)
                .await
                .map_err(|source| AskError::Kubeconfig { path: path.to_owned(), source: Box::new(source) })?,
            None => Config::incluster().map_err(|error| AskError::InCluster(Box::new(error)))?,
        };
        let server = |error| AskError::Server(Box::new(error));
        ask(&Client::try_from(config).map_err(server)?, needed).await.map_err(server)
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or(Err(AskError::Silence))
}

async fn from_file(path: &Path) -> Result<Config, KubeconfigError> {
    Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &KubeConfigOptions::default()).await
}

async fn ask(client: &Client, needed: &[Access]) -> Result<Vec<Refusal>, kube::Error> {
    let reviews = Api::<SelfSubjectAccessReview>::all(client.clone());
    let mut refusals = Vec::new();
    for access in needed {
        for verb in access.verbs {
            let attributes = ResourceAttributes {
                group: Some(access.group.to_owned()),
                resource: Some(access.resource.to_owned()),
                verb: Some((*verb).to_owned()),
                ..ResourceAttributes::default()
            };
            let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
            let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
            // No status is no permission.
            let status = reviews.create(&PostParams::default(), &review).await?.status.unwrap_or_default();
            if !status.allowed {
                let reason = status.reason.or(status.evaluation_error).unwrap_or_default();
                refusals.push(Refusal { access: *access, verb, reason });
            }
        }
    }
    Ok(refusals)
}

/// An error with its causes, which kube's own text leaves out.
fn told(error: &kube::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}
