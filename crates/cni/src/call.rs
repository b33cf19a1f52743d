//! What the runtime asks for in the environment.

use std::ffi::OsString;

use ringfence_control::announcements::is_valid_id;

use crate::failure::Failure;

/// Gives a variable of the environment.
pub(crate) type Variables<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The name of a network interface is shorter than this in the kernel.
const IFNAMSIZ: usize = 16;

/// The operations of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Add,
    Check,
    Del,
    Gc,
    Status,
    Version,
}

impl Command {
    pub(crate) fn read(variables: Variables<'_>) -> Result<Command, Failure> {
        match required(variables, "CNI_COMMAND")?.as_str() {
            "ADD" => Ok(Command::Add),
            "CHECK" => Ok(Command::Check),
            "DEL" => Ok(Command::Del),
            "GC" => Ok(Command::Gc),
            "STATUS" => Ok(Command::Status),
            "VERSION" => Ok(Command::Version),
            other => Err(Failure::environment(format!("CNI_COMMAND: {other:?} is not an operation of CNI"))),
        }
    }
}

/// One interface of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attachment {
    /// The runtime's id of the container.
    pub(crate) container: String,
    /// The interface's name in it.
    pub(crate) interface: String,
}

impl Attachment {
    /// Whether this is the interface that Kubernetes knows of.
    ///
    /// containerd, CRI-O and cri-dockerd all call it so. Others are added by meta plugins such as Multus; the addresses there
    /// are in no pod's status, and NetworkPolicy does not speak of them.
    pub(crate) fn is_primary(&self) -> bool {
        self.interface == "eth0"
    }

    pub(crate) fn read(variables: Variables<'_>, command: Command) -> Result<Attachment, Failure> {
        let container = required(variables, "CNI_CONTAINERID")?;
        if !is_valid_id(&container) {
            return Err(Failure::environment(format!("CNI_CONTAINERID: {container:?} is not a container's id")));
        }
        let interface = required(variables, "CNI_IFNAME")?;
        let forbidden = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
        if interface.len() >= IFNAMSIZ || matches!(interface.as_str(), "." | "..") || interface.contains(forbidden) {
            return Err(Failure::environment(format!("CNI_IFNAME: {interface:?} is not an interface's name")));
        }
        if command != Command::Del {
            required(variables, "CNI_NETNS")?;
        }
        Ok(Attachment { container, interface })
    }
}

/// Who the container is in Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PodIdentity {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: Option<String>,
}

impl PodIdentity {
    /// Reads `CNI_ARGS`. Gives nothing when the runtime does not work for Kubernetes.
    pub(crate) fn read(variables: Variables<'_>) -> Result<Option<PodIdentity>, Failure> {
        let invalid = |what: String| Failure::environment(format!("CNI_ARGS: {what}"));
        let mut identity = PodIdentity::default();
        for pair in optional(variables, "CNI_ARGS")?.split(';').filter(|pair| !pair.is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(invalid(format!("{pair:?} is not a key and a value")));
            };
            // Other keys are for other plugins, whether or not IgnoreUnknown says so.
            let (longest, field) = match key {
                "K8S_POD_NAMESPACE" => (63, &mut identity.namespace),
                "K8S_POD_NAME" => (253, &mut identity.name),
                "K8S_POD_UID" => (253, identity.uid.get_or_insert_default()),
                _ => continue,
            };
            let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
            if value.len() > longest || !value.chars().all(allowed) {
                return Err(invalid(format!("{value:?} cannot be a {key}")));
            }
            value.clone_into(field);
        }
        identity.uid = identity.uid.filter(|uid| !uid.is_empty());
        match (identity.namespace.as_str(), identity.name.as_str()) {
            ("", "") => Ok(None),
            ("", _) => Err(invalid("K8S_POD_NAMESPACE is missing".to_owned())),
            (_, "") => Err(invalid("K8S_POD_NAME is missing".to_owned())),
            _ => Ok(Some(identity)),
        }
    }
}

fn required(variables: Variables<'_>, name: &str) -> Result<String, Failure> {
    let value = optional(variables, name)?;
    if value.is_empty() { Err(Failure::environment(format!("{name} is missing"))) } else { Ok(value) }
}

fn optional(variables: Variables<'_>, name: &str) -> Result<String, Failure> {
    variables(name)
        .unwrap_or_default()
        .into_string()
        .map_err(|value| Failure::environment(format!("{name}: {} is not UTF-8", value.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(arguments: &str) -> Result<Option<PodIdentity>, Failure> {
        PodIdentity::read(&|name| (name == "CNI_ARGS").then(|| arguments.into()))
    }

    #[test]
    fn identities() {
        let web = |uid: Option<&str>| {
            Ok(Some(PodIdentity {
                namespace: "shop".to_owned(),
                name: "web-0.a".to_owned(),
                uid: uid.map(str::to_owned),
            }))
        };
        let containerd = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0.a;K8S_POD_INFRA_CONTAINER_ID=f00;\
                          K8S_POD_UID=4c8e";
        assert_eq!(identity(containerd), web(Some("4c8e")));
        assert_eq!(identity("K8S_POD_NAME=web-0.a;;K8S_POD_UID=;K8S_POD_NAMESPACE=shop;OTHER=a=b;"), web(None));
        assert_eq!(identity(""), Ok(None));
        assert_eq!(identity("FOO=BAR"), Ok(None));
        for wrong in [
            "K8S_POD_NAMESPACE=shop",
            "K8S_POD_NAME=web",
            "K8S_POD_NAMESPACE=../x;K8S_POD_NAME=web",
            "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=a=b",
            "K8S_POD_NAMESPACE=shop;K8S_POD_NAME",
            &format!("K8S_POD_NAMESPACE={};K8S_POD_NAME=web", "a".repeat(64)),
        ] {
            let said = identity(wrong).unwrap_err().to_string();
            assert!(said.contains("CNI_ARGS"), "{wrong}: {said}");
        }
    }
}
