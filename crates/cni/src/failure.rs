use serde::Serialize;

/// Why the plugin could not do it, as the runtime is told: a code of the specification, what is wrong, and more about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    code: u32,
    message: &'static str,
    details: String,
}

/// The specification's error object.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ErrorObject<'a> {
    cni_version: &'a str,
    code: u32,
    msg: &'a str,
    details: &'a str,
}

impl Failure {
    /// The configuration asks for a version that is not spoken here.
    pub(crate) fn version(details: String) -> Failure {
        Failure { code: 1, message: "incompatible CNI version", details }
    }

    /// A variable of the environment is missing or makes no sense; `details` names it.
    pub(crate) fn environment(details: String) -> Failure {
        Failure { code: 4, message: "invalid environment variable", details }
    }

    /// A file cannot be read or written.
    pub(crate) fn input_output(details: String) -> Failure {
        Failure { code: 5, message: "input or output failed", details }
    }

    /// Standard input is not what it should be.
    pub(crate) fn undecodable(details: String) -> Failure {
        Failure { code: 6, message: "cannot decode the network configuration", details }
    }

    /// The configuration has a field with a wrong value, or lacks one.
    pub(crate) fn configuration(details: String) -> Failure {
        Failure { code: 7, message: "invalid network configuration", details }
    }

    /// The agent has not confirmed in time.
    pub(crate) fn try_again(details: String) -> Failure {
        Failure { code: 11, message: "the pod's network policies are not in force yet", details }
    }

    /// No pods can be added now.
    pub(crate) fn unavailable(details: String) -> Failure {
        Failure { code: 50, message: "the ringfence agent is not available", details }
    }

    /// The object for standard output.
    pub(crate) fn object(&self, cni_version: &str) -> String {
        let object = ErrorObject { cni_version, code: self.code, msg: self.message, details: &self.details };
        // Strings and a number: there is nothing that could not be written.
        serde_json::to_string(&object).unwrap_or_default()
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.message, self.details)
    }
}
