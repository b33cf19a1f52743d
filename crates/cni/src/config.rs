//! The network configuration that the runtime gives on standard input.

use std::path::PathBuf;
use std::time::Duration;

use ringfence_control::RUN_DIRECTORY;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::VERSIONS;
use crate::failure::Failure;

/// What users choose, as it stands in the plugin's entry of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Settings {
    /// The agent's run directory, absolute.
    pub run_dir: PathBuf,
    /// How long ADD waits for the agent, in seconds: 1 to 3600.
    pub timeout_seconds: u32,
    /// What becomes of a pod whose policies are not in force by then.
    pub on_timeout: OnTimeout,
    /// Namespaces whose pods start all the same.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub continue_for: Vec<String>,
}

/// What becomes of a pod when the agent does not confirm in time.
///
/// A pod that starts unprotected is the worse defect, so it fails unless users say otherwise. What the agent itself needs,
/// and the agent, are on the node's network: no plugin is called for them, and they start without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnTimeout {
    /// It does not start; the runtime tries again later.
    Fail,
    /// It starts. Until the agent is back nothing but `--unknown-pods` applies to it.
    Continue,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            run_dir: run_directory(),
            timeout_seconds: 10,
            on_timeout: OnTimeout::Fail,
            continue_for: Vec::new(),
        }
    }
}

impl Settings {
    /// Whether a pod of this namespace starts although its policies are not in force.
    pub(crate) fn continues(&self, namespace: &str) -> bool {
        self.on_timeout == OnTimeout::Continue || self.continue_for.iter().any(|other| other == namespace)
    }

    /// How long ADD waits.
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds.into())
    }

    /// What is wrong with them, if anything.
    pub(crate) fn check(&self) -> Result<(), String> {
        if !self.run_dir.is_absolute() {
            return Err(format!("runDir: {} is not an absolute path", self.run_dir.display()));
        }
        if !(1..=3600).contains(&self.timeout_seconds) {
            return Err(format!("timeoutSeconds: {} is not between 1 and 3600", self.timeout_seconds));
        }
        Ok(())
    }
}

/// What standard input holds for every operation.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Network<'t> {
    /// Absent is a version from before versions.
    #[serde(default)]
    pub(crate) cni_version: String,
    #[serde(default)]
    pub(crate) name: String,
    /// As in [`Settings`]. DEL and GC need nothing else of them, and shall not fail because something else is wrong.
    #[serde(default = "run_directory")]
    pub(crate) run_dir: PathBuf,
    /// What the plugins before this one have made.
    #[serde(borrow)]
    pub(crate) prev_result: Option<&'t RawValue>,
    /// For GC: what is still attached. `null` is how some runtimes write that nothing is.
    #[serde(rename = "cni.dev/valid-attachments", default, deserialize_with = "present")]
    pub(crate) valid_attachments: Option<Option<Vec<ValidAttachment>>>,
}

/// An attachment that GC must leave.
#[derive(Debug, Deserialize)]
pub(crate) struct ValidAttachment {
    #[serde(rename = "containerID")]
    pub(crate) container: String,
}

impl<'t> Network<'t> {
    pub(crate) fn parse(text: &'t str) -> Result<Network<'t>, Failure> {
        serde_json::from_str(text).map_err(|error| explained(&error))
    }

    /// Refuses versions other than [`VERSIONS`], and those older than `oldest`.
    pub(crate) fn check_version(&self, oldest: &str) -> Result<(), Failure> {
        let spoken = VERSIONS.iter().skip_while(|version| **version != oldest);
        if spoken.clone().any(|version| *version == self.cni_version) {
            return Ok(());
        }
        let spoken: Vec<&str> = spoken.copied().collect();
        Err(Failure::version(format!("cniVersion is {:?}; this plugin needs {}", self.cni_version, spoken.join(", "))))
    }
}

impl Settings {
    pub(crate) fn parse(text: &str) -> Result<Settings, Failure> {
        let settings: Settings = serde_json::from_str(text).map_err(|error| explained(&error))?;
        settings.check().map_err(Failure::configuration)?;
        Ok(settings)
    }
}

fn explained(error: &serde_json::Error) -> Failure {
    if error.is_data() { Failure::configuration(error.to_string()) } else { Failure::undecodable(error.to_string()) }
}

fn run_directory() -> PathBuf {
    RUN_DIRECTORY.into()
}

/// Tells a field that is `null` from one that is absent.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_back_as_they_were_written() {
        let settings = Settings { continue_for: vec!["kube-system".to_owned()], ..Settings::default() };
        let text = serde_json::to_string(&settings).unwrap();
        assert_eq!(
            text,
            r#"{"runDir":"/run/ringfence","timeoutSeconds":10,"onTimeout":"fail","continueFor":["kube-system"]}"#
        );
        assert_eq!(Settings::parse(&text).unwrap(), settings);
        assert_eq!(Settings::parse(r#"{"type":"ringfence-cni","runtimeConfig":{}}"#).unwrap(), Settings::default());
        for wrong in [
            r#"{"runDir":"run"}"#,
            r#"{"timeoutSeconds":0}"#,
            r#"{"timeoutSeconds":"5"}"#,
            r#"{"timeoutSeconds":-1}"#,
            r#"{"onTimeout":"ignore"}"#,
            r#"{"continueFor":"kube-system"}"#,
        ] {
            let said = Settings::parse(wrong).unwrap_err();
            assert!(said.to_string().starts_with("invalid network configuration: "), "{wrong}: {said}");
        }
        assert!(Settings::parse("{").unwrap_err().to_string().starts_with("cannot decode"));
    }

    #[test]
    fn absent_is_not_null() {
        let valid = |text| Network::parse(text).unwrap().valid_attachments;
        assert!(valid("{}").is_none());
        assert!(matches!(valid(r#"{"cni.dev/valid-attachments":null}"#), Some(None)));
        assert!(matches!(valid(r#"{"cni.dev/valid-attachments":[]}"#), Some(Some(list)) if list.is_empty()));
    }
}
