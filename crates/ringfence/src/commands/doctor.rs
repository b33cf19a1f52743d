use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum as _;
use ringfence_agent::access::{Lost, needed, refusals};
use ringfence_agent::{Agent, Change};
use ringfence_control::{Request, Response, StatusReport, ask, socket_path};
use ringfence_dataplane::iptables::{IptablesBackend, IptablesOptions};
use ringfence_dataplane::{ApplyError, Backend, NftBackend, NftOptions};
use ringfence_doctor::{Denial, Facts, Options, Reading, Severity, Trial, examine, render};
use ringfence_k8s::{Source, parse};
use ringfence_lab::Isolation;
use ringfence_model::Enforcement;

use super::exit_code;
use crate::args::{BackendName, DoctorFormat, DoctorOptions};
use crate::output::{self, Failure};

/// How long the agent of this host may take to say how it is.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is tried: a program with something of every kind.
const TRIAL: &[u8] = include_bytes!("trial.yaml");

pub(super) fn run(options: &DoctorOptions) -> Result<ExitCode, Failure> {
    let agent = agent();
    let told = options.reach.enforcement();
    // What is not told is as the agent here has it, if there is one.
    let enforcement = match &agent {
        Some(report) if told == Enforcement::default() => enforcement(report).unwrap_or_default(),
        _ => told,
    };
    let mut facts = Facts::gather(Options {
        pod_cidrs: options.pod_cidr.clone(),
        enforcement,
        other_clusters: options.reach.no_masquerade_cidr.clone(),
    });
    let kept = agent.iter().flat_map(|report| &report.unmasqueraded);
    facts.unmasqueraded = kept.filter_map(|network| network.parse().ok()).collect();
    // The API server is reached from the host's network, so before this process leaves it.
    if options.kubeconfig.is_some() || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
        facts.denials = denials(options.kubeconfig.as_deref(), enforcement)?;
    }
    if let Some(backend) = options.trial {
        facts.trial = tried(backend);
    }
    let findings = examine(&facts);
    let text = match options.output {
        DoctorFormat::Text => render::text(&findings),
        DoctorFormat::Json => serde_json::to_string_pretty(&findings).map_err(io::Error::from)? + "\n",
    };
    output::print(&text)?;
    Ok(exit_code(findings.iter().any(|finding| finding.severity == Severity::Problem)))
}

/// How the agent of this host is, if one answers where agents do by default.
fn agent() -> Option<StatusReport> {
    let socket = socket_path(Path::new(ringfence_control::RUN_DIRECTORY));
    match ask(&socket, &Request::Status, PATIENCE) {
        Ok(Response::Status(report)) => Some(*report),
        Ok(_) | Err(_) => None,
    }
}

/// How an agent enforces; nothing for one that is too old to say it.
fn enforcement(report: &StatusReport) -> Option<Enforcement> {
    format!("{}/{}", report.enforce_at, report.node_traffic).parse().ok()
}

fn denials(kubeconfig: Option<&Path>, enforcement: Enforcement) -> Result<Reading<Vec<Denial>>, Failure> {
    // Threads that it starts are gone when it is: the trial needs a process with a single one.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(match runtime.block_on(refusals(kubeconfig, &needed(enforcement, true))) {
        Ok(refusals) => Reading::Found(
            refusals
                .into_iter()
                .map(|refusal| Denial {
                    what: format!("{} {}", refusal.verb, resource(refusal.access.resource, refusal.access.group)),
                    lost: match refusal.access.lost {
                        Lost::Enforcement => ringfence_doctor::Lost::Enforcement,
                        Lost::Events => ringfence_doctor::Lost::Events,
                        Lost::Announcements => ringfence_doctor::Lost::Announcements,
                    },
                    reason: refusal.reason,
                })
                .collect(),
        ),
        Err(error) => Reading::Unreadable(error.to_string()),
    })
}

/// As kubectl writes it.
fn resource(resource: &str, group: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

/// Writes a program in namespaces of this process' own. There is no way back from there.
fn tried(backend: BackendName) -> Reading<Trial> {
    if let Err(error) = ringfence_lab::enter(Isolation::Auto) {
        return Reading::Unreadable(error.to_string());
    }
    let refusal = match backend {
        BackendName::Nftables => program(NftBackend::new(NftOptions::default())),
        BackendName::Iptables => program(IptablesBackend::open(IptablesOptions::default())),
    };
    let name = backend.to_possible_value().map(|value| value.get_name().to_owned());
    Reading::Found(Trial { backend: name.unwrap_or_default(), refusal })
}

/// What refused the program, if anything did.
fn program<B: Backend>(backend: Result<B, ApplyError>) -> Option<String> {
    let backend = match backend {
        Ok(backend) => backend,
        Err(error) => return Some(told(&error)),
    };
    let mut agent = Agent::new("node".into(), backend);
    let objects = parse(&[Source { name: "trial.yaml", text: TRIAL }]).objects;
    if let Err(error) = agent.change(Change::Reset(objects)) {
        return Some(told(&error));
    }
    match agent.sync() {
        Ok(_) => agent.backend().remarks().first().map(ToString::to_string),
        Err(error) => Some(told(&error)),
    }
}

/// An error with its causes.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A policy that is not understood would be tried as one that allows nothing.
    #[test]
    fn what_is_tried_is_sound() {
        let manifests = parse(&[Source { name: "trial.yaml", text: TRIAL }]);
        assert_eq!(manifests.diagnostics, []);
        assert_eq!(manifests.objects.len(), 4);
    }
}
