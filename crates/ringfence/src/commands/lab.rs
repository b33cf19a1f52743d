use std::collections::BTreeSet;
use std::io::{self, IsTerminal as _};
use std::process::{Command, ExitCode};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ringfence_analyze::ends;
use ringfence_analyze::paths::{Frontend, Trip, frontends};
use ringfence_analyze::render::{self, TableStyle, View};
use ringfence_dataplane::NftBackend;
use ringfence_dataplane::iptables::IptablesBackend;
use ringfence_lab::exec;
use ringfence_lab::{Experiment, Finished, Isolation, Stage, Tables, Timeouts};
use ringfence_model::{ExternalHost, Object};

use super::exit_code;
use crate::args::{BackendName, Filter, Input, LabFormat, Network, VariantName, When};
use crate::input::{self, Cluster};
use crate::output::{self, Failure, Messages};
use crate::reach::ReachOptions;

/// What to do with the result.
pub(super) struct Report {
    pub(super) format: LabFormat,
    pub(super) keep: bool,
    pub(super) color: When,
}

pub(super) fn run(
    input: &Input,
    filter: &Filter,
    reach: &ReachOptions,
    network: &Network,
    report: &Report,
    messages: &Messages,
) -> Result<ExitCode, Failure> {
    filter.check()?;
    let Cluster { mut objects, externals, topology, has_errors } = input::read(input, Some(network), messages)?;
    let service_tables = match filter.iptables {
        VariantName::Legacy => Tables::Legacy,
        VariantName::Auto | VariantName::Nft => Tables::Nft,
    };
    let mut others = input::others(input, network, topology, messages)?;
    let mut clusters: Vec<&mut Vec<Object>> = [&mut objects].into_iter().chain(&mut others).collect();
    let services = clusters.iter().any(|objects| objects.iter().any(is_service));
    if services && !service_tables.installed() {
        messages.warning("Services are left out: the lab plays them with iptables, which is not installed");
        clusters.iter_mut().for_each(|objects| objects.retain(|object| !is_service(object)));
    }
    for service in clusters.iter().flat_map(|objects| unserved(objects, &externals)) {
        messages.note(&format!("Service {service} leads to no pod of the input"));
    }
    let experiment = Experiment {
        objects,
        others,
        enforcement: reach.enforcement(),
        unmasqueraded: reach.no_masquerade_cidr.clone(),
        externals,
        topology,
        service_tables,
        timeouts: Timeouts::default(),
    };
    // From here on this process is the lab. It has started no thread yet, which the kernel insists on.
    ringfence_lab::enter(Isolation::Auto).map_err(ringfence_lab::RunError::from)?;
    let mut bar = Bar::new();
    let mut progress = |stage, done, of| bar.show(stage, done, of);
    let finished = match filter.backend {
        BackendName::Nftables => ringfence_lab::run(experiment, || NftBackend::new(filter.nft()), &mut progress),
        BackendName::Iptables => {
            ringfence_lab::run(experiment, || IptablesBackend::open(filter.iptables()), &mut progress)
        }
    };
    bar.clear();
    let finished = finished?;
    for warning in finished.network.warnings() {
        messages.warning(&warning.to_string());
    }
    for remark in &finished.remarks {
        messages.warning(remark);
    }
    output::print(&shown(&finished, report)?)?;
    let differ = finished.matrix.differences().next().is_some() || finished.trips.iter().any(Trip::differs);
    if report.keep {
        wait(&finished, messages)?;
    }
    Ok(exit_code(has_errors || differ))
}

fn is_service(object: &Object) -> bool {
    matches!(object, Object::Service(_))
}

/// The ports of Services behind which nobody is.
fn unserved(objects: &[Object], externals: &[ExternalHost]) -> BTreeSet<String> {
    let frontends = frontends(objects, &ends(objects, externals));
    let port = |frontend: &Frontend<'_>| {
        let Frontend { service, port, .. } = frontend;
        format!("{}/{} {}/{}", service.namespace, service.name, port.protocol, port.port)
    };
    let served: BTreeSet<String> =
        frontends.iter().filter(|(_, f)| !f.backends.is_empty()).map(|(_, f)| port(f)).collect();
    frontends.iter().map(|(_, frontend)| port(frontend)).filter(|port| !served.contains(port)).collect()
}

fn shown(finished: &Finished, report: &Report) -> Result<String, Failure> {
    let Finished { matrix, trips, .. } = finished;
    match report.format {
        LabFormat::Json => Ok(render::json_with_paths(matrix, trips).map_err(io::Error::from)?),
        LabFormat::Table => {
            let color = output::colored(report.color, io::stdout().is_terminal());
            let style = TableStyle { color, width: output::width() };
            Ok(format!(
                "Expected, by the specification:\n{}{}\n\nMeasured, with packets:\n{}{}\n{}",
                render::table(matrix, View::Expected, style),
                render::LEGEND,
                render::table(matrix, View::Measured, style),
                render::comparison(matrix),
                render::paths(trips),
            ))
        }
    }
}

/// Keeps the lab up until it is interrupted.
fn wait(finished: &ringfence_lab::Finished, messages: &Messages) -> Result<(), Failure> {
    let example = finished.matrix.ends.first().map_or("NAMESPACE/POD", |end| end.label.as_str());
    finished.keep(|| {
        messages.note(&format!("the lab is up (process {}); enter a pod from another terminal:", std::process::id()));
        messages.note(&format!("    ringfence lab exec {example} -- sh"));
        messages.note("Ctrl-C ends it");
    })?;
    Ok(())
}

/// Runs a command in a pod of a lab that is up.
pub(super) fn exec(end: &str, lab: Option<u32>, command: &[String]) -> Result<ExitCode, Failure> {
    let mut running = exec::find();
    if let Some(pid) = lab {
        running.retain(|lab| lab.pid() == pid);
    }
    let lab = match running.as_slice() {
        [lab] => lab,
        [] => return Err(Failure::WhichLab("no lab is up; start one with `ringfence lab run PATH --keep`".to_owned())),
        several => {
            let pids: Vec<_> = several.iter().map(|lab| lab.pid().to_string()).collect();
            return Err(Failure::WhichLab(format!("several labs are up; choose with --lab: {}", pids.join(", "))));
        }
    };
    let Some(place) = lab.place(end) else {
        let known = lab.nodes().chain(lab.endpoints()).take(20).collect::<Vec<_>>().join(", ");
        return Err(Failure::NoSuchEnd { end: end.to_owned(), known });
    };
    let Some((program, arguments)) = command.split_first() else { return Ok(ExitCode::SUCCESS) };
    let status = exec::run_in(lab, &place, Command::new(program).args(arguments))?;
    Ok(ExitCode::from(shell_status(status)))
}

/// As a shell would: the command's own status, or 128 and the signal that ended it.
fn shell_status(status: std::process::ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt as _;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

/// A progress bar on a terminal, nothing elsewhere.
struct Bar {
    bar: ProgressBar,
    stage: Option<Stage>,
}

impl Bar {
    fn new() -> Bar {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{msg:>18} [{bar:40}] {pos}/{len}") {
            bar.set_style(style.progress_chars("=> "));
        }
        Bar { bar, stage: None }
    }

    fn show(&mut self, stage: Stage, done: usize, of: usize) {
        self.bar.set_length(of as u64);
        self.bar.set_position(done as u64);
        if self.stage != Some(stage) {
            self.stage = Some(stage);
            self.bar.set_message(match stage {
                Stage::Building => "building the pods",
                Stage::Checking => "asking listeners",
                Stage::Probing => "probing",
                Stage::Tracing => "tracing paths",
                Stage::Paths => "probing paths",
            });
        }
    }

    fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
