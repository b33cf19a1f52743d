//! The operations.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::time::Duration;

use ringfence_control::{Sandbox, announcements};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::agent::Agent;
use crate::call::{Attachment, Command, PodIdentity, Variables};
use crate::config::{Network, OnTimeout, Settings};
use crate::failure::Failure;
use crate::{PLUGIN, VERSIONS, result};

/// No network configuration is longer, in bytes: that of GC grows with the pods of a node, and is still far below.
const LONGEST_INPUT: u64 = 16 << 20;
/// How long STATUS waits for the agent at most. One that is being replaced is no reason to call the node unready, as ADD
/// waits for it, too; but the runtime asks often.
const STATUS_PATIENCE: Duration = Duration::from_secs(5);

/// Executes one call of a container runtime: what is asked comes from the environment's `variables` and from `input`, the
/// result goes to `output`, remarks for people to `log`. Gives the exit code.
///
/// What goes wrong is told as an error object on `output`, with exit code 1.
pub fn run(
    variables: impl Fn(&str) -> Option<OsString>,
    input: impl Read,
    output: &mut impl Write,
    log: &mut impl Write,
) -> u8 {
    let mut call = Call { variables: &variables, log, version: VERSIONS[VERSIONS.len() - 1] };
    let (text, code) = match call.execute(input) {
        Ok(text) => (text, 0),
        Err(failure) => (failure.object(call.version) + "\n", 1),
    };
    // When standard output is gone there is nobody left to be told why.
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Ok(()) => code,
        Err(_) => 1,
    }
}

struct Call<'a> {
    variables: Variables<'a>,
    log: &'a mut dyn Write,
    /// In which version errors are told: that of the configuration once it is known, if it is one of ours.
    version: &'static str,
}

impl Call<'_> {
    fn execute(&mut self, input: impl Read) -> Result<String, Failure> {
        let command = Command::read(self.variables).inspect_err(|_| {
            self.note("this is a CNI plugin, for container runtimes to call; `ringfence cni install` puts it in place");
        })?;
        if command == Command::Version {
            return version(input);
        }
        let attachment = match command {
            Command::Add | Command::Check | Command::Del => Some(Attachment::read(self.variables, command)?),
            Command::Gc | Command::Status | Command::Version => None,
        };
        let text = read(input)?;
        let network = Network::parse(&text)?;
        if let Some(version) = VERSIONS.iter().find(|version| **version == network.cni_version) {
            self.version = version;
        }
        if let (Command::Del, Some(attachment)) = (command, &attachment) {
            return self.delete(attachment, &network);
        }
        if network.name.is_empty() {
            return Err(Failure::configuration("name is missing".to_owned()));
        }
        let settings = Settings::parse(&text)?;
        match (command, attachment) {
            (Command::Add, Some(attachment)) => self.add(attachment, &network, &settings),
            (Command::Check, Some(attachment)) => self.check(attachment, &network, &settings),
            (Command::Gc, _) => collect(&network),
            _ => status(&network, &settings),
        }
    }

    /// ADD: announces the pod's addresses and waits until its policies are in force for them.
    fn add(&mut self, attachment: Attachment, network: &Network<'_>, settings: &Settings) -> Result<String, Failure> {
        network.check_version("0.3.0")?;
        let made = made_before(network)?;
        let passed_on = result::passed_on(made, &network.cni_version)?;
        let Some(sandbox) = self.sandbox(attachment, made)? else {
            return Ok(passed_on);
        };
        let Err(failure) = isolate(&sandbox, network, settings) else {
            return Ok(passed_on);
        };
        if settings.continues(&sandbox.namespace) {
            // The announcement stays: the agent acts on it as soon as it can.
            self.note(&format!("pod {}/{} starts although {failure}", sandbox.namespace, sandbox.name));
            return Ok(passed_on);
        }
        // The runtime calls DEL now. But should it die before, the address will belong to another pod some day.
        self.forget(&sandbox.id, network)?;
        Err(failure)
    }

    /// CHECK: asks whether the pod's policies are in force for its addresses.
    fn check(&mut self, attachment: Attachment, network: &Network<'_>, settings: &Settings) -> Result<String, Failure> {
        network.check_version("0.4.0")?;
        let Some(sandbox) = self.sandbox(attachment, made_before(network)?)? else {
            return Ok(String::new());
        };
        match Agent::of(&settings.run_dir).check(&sandbox, settings.patience()) {
            Ok(()) => Ok(String::new()),
            Err(reason) if settings.continues(&sandbox.namespace) => {
                self.note(&format!("pod {}/{}: {reason}", sandbox.namespace, sandbox.name));
                Ok(String::new())
            }
            Err(reason) => Err(Failure::try_again(reason)),
        }
    }

    /// DEL: takes the announcement back. Needs neither the agent nor anything that ADD made, and no version either: a
    /// sandbox that cannot be deleted stays for ever.
    fn delete(&mut self, attachment: &Attachment, network: &Network<'_>) -> Result<String, Failure> {
        if attachment.is_primary() {
            self.forget(&attachment.container, network)?;
        }
        Ok(String::new())
    }

    fn forget(&mut self, id: &str, network: &Network<'_>) -> Result<(), Failure> {
        let (removed, told) = forget(id, network);
        if let Err(reason) = told {
            self.note(&format!("container {id}: {reason}"));
        }
        removed
    }

    /// The sandbox as the agent knows it; nothing if it is none of ours.
    fn sandbox(&mut self, attachment: Attachment, made: &RawValue) -> Result<Option<Sandbox>, Failure> {
        let Some(pod) = PodIdentity::read(self.variables)? else {
            return Ok(None);
        };
        let PodIdentity { namespace, name, uid } = pod;
        if !attachment.is_primary() {
            let interface = attachment.interface;
            self.note(&format!("pod {namespace}/{name}: {interface} is left alone, policies are about eth0"));
            return Ok(None);
        }
        let addresses = result::addresses(made)?;
        Ok(Some(Sandbox { id: attachment.container, namespace, name, uid, addresses }))
    }

    /// Runtimes show it, or keep it in their log.
    fn note(&mut self, text: &str) {
        let _ = writeln!(self.log, "{PLUGIN}: {text}");
    }
}

fn made_before<'t>(network: &Network<'t>) -> Result<&'t RawValue, Failure> {
    network.prev_result.ok_or_else(|| {
        Failure::configuration(
            "prevResult is missing: the plugin that makes the pod's network must come before".to_owned(),
        )
    })
}

/// First the file, so that an agent that is away learns of it when it comes; then the agent that is there.
fn isolate(sandbox: &Sandbox, network: &Network<'_>, settings: &Settings) -> Result<(), Failure> {
    let written = announcements::write_of_network(&network.run_dir, sandbox, &network.name)
        .map_err(|error| unwritable("announce", &sandbox.id, network, &error));
    let isolated = Agent::of(&settings.run_dir).add(sandbox, settings.patience());
    written.and(isolated.map_err(Failure::try_again))
}

/// Removes an announcement and tells the agent. Gives whether the file is gone, and what the agent said.
fn forget(id: &str, network: &Network<'_>) -> (Result<(), Failure>, Result<(), String>) {
    let removed = announcements::remove(&network.run_dir, id)
        .map_err(|error| unwritable("take back the announcement of", id, network, &error));
    (removed, Agent::of(&network.run_dir).delete(id))
}

fn unwritable(what: &str, id: &str, network: &Network<'_>, error: &std::io::Error) -> Failure {
    Failure::input_output(format!("cannot {what} container {id} in {}: {error}", network.run_dir.display()))
}

/// GC: takes back the announcements of this network whose containers are gone.
fn collect(network: &Network<'_>) -> Result<String, Failure> {
    network.check_version("1.1.0")?;
    // Without the list nothing is known to be gone.
    let Some(valid) = &network.valid_attachments else {
        return Err(Failure::configuration("cni.dev/valid-attachments is missing".to_owned()));
    };
    let valid: BTreeSet<&str> = valid.iter().flatten().map(|attachment| attachment.container.as_str()).collect();
    let announced = announcements::ids_of_network(&network.run_dir, &network.name)
        .map_err(|error| Failure::input_output(format!("cannot read {}: {error}", network.run_dir.display())))?;
    let mut result = Ok(String::new());
    for id in announced.iter().filter(|id| !valid.contains(id.as_str())) {
        let (removed, _) = forget(id, network);
        result = result.and_then(|text| removed.map(|()| text));
    }
    result
}

/// STATUS: whether ADD has a chance.
fn status(network: &Network<'_>, settings: &Settings) -> Result<String, Failure> {
    network.check_version("1.1.0")?;
    match Agent::of(&settings.run_dir).ready(settings.patience().min(STATUS_PATIENCE)) {
        // Pods start without it.
        Err(_) if settings.on_timeout == OnTimeout::Continue => Ok(String::new()),
        Err(reason) => Err(Failure::unavailable(reason)),
        Ok(()) => Ok(String::new()),
    }
}

/// VERSION: which versions are spoken.
fn version(input: impl Read) -> Result<String, Failure> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Question {
        cni_version: String,
    }

    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        cni_version: String,
        supported_versions: [&'static str; VERSIONS.len()],
    }

    // The answer is the same whatever is asked, and those who ask by hand send nothing.
    let asked = serde_json::from_str(&read(input)?).ok().map(|question: Question| question.cni_version);
    let cni_version = asked.unwrap_or_else(|| VERSIONS[VERSIONS.len() - 1].to_owned());
    let answer = Answer { cni_version, supported_versions: VERSIONS };
    serde_json::to_string(&answer).map_err(|error| Failure::input_output(error.to_string()))
}

fn read(input: impl Read) -> Result<String, Failure> {
    let mut text = Vec::new();
    input
        .take(LONGEST_INPUT + 1)
        .read_to_end(&mut text)
        .map_err(|error| Failure::input_output(format!("cannot read standard input: {error}")))?;
    if text.len() as u64 > LONGEST_INPUT {
        return Err(Failure::undecodable(format!("standard input is longer than {LONGEST_INPUT} bytes")));
    }
    String::from_utf8(text).map_err(|error| Failure::undecodable(format!("standard input: {error}")))
}
