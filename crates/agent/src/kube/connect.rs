//! Which API server, and with what credentials.

use std::path::{Path, PathBuf};

use kube::Config;
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};

use super::failure::causes;

/// Why there is no API server to ask.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig cannot be read or does not say enough.
    #[error("cannot use the kubeconfig {}: {why}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// No kubeconfig was named, and this is no pod of a cluster.
    #[error("no API server: this is not a pod with a service account ({0}); name a kubeconfig with --kubeconfig PATH")]
    NotInCluster(String),
    /// There is no runtime to read it in.
    #[error("cannot read the configuration: {0}")]
    Runtime(#[from] std::io::Error),
}

/// The configuration of a client.
pub(super) fn config(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<Config, ConnectError> {
    let mut config = match kubeconfig {
        Some(path) => from_file(path, context)?,
        None => Config::incluster().map_err(|error: InClusterError| ConnectError::NotInCluster(causes(&error)))?,
    };
    // Pauses are the follower's, and it must see Retry-After.
    config.default_retry = false;
    // Silence is judged by what was asked for, not by the connection.
    config.read_timeout = None;
    Ok(config)
}

fn from_file(path: &Path, context: Option<&str>) -> Result<Config, ConnectError> {
    let unusable = |error: KubeconfigError| ConnectError::Kubeconfig { path: path.to_owned(), why: explained(&error) };
    let kubeconfig = Kubeconfig::read_from(path).map_err(unusable)?;
    let options = KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
    // It waits for nothing, whatever its signature says.
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(Config::from_custom_kubeconfig(kubeconfig, &options)).map_err(unusable)
}

fn explained(error: &KubeconfigError) -> String {
    match error {
        KubeconfigError::ReadConfig(source, _) => source.to_string(),
        KubeconfigError::CurrentContextNotSet => "it has no current-context; choose one with --context".to_owned(),
        KubeconfigError::LoadContext(name) => format!("it has no context \"{}\"", name.escape_debug()),
        KubeconfigError::LoadClusterOfContext(name) => {
            format!("it has no cluster \"{}\", which the context names", name.escape_debug())
        }
        error => causes(error),
    }
}
