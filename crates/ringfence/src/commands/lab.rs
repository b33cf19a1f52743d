use std::collections::BTreeSet;
use std::io::{self, IsTerminal as _};
use std::process::{Command, ExitCode};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ringfence_analyze::render::{self, TableStyle, View};
use ringfence_analyze::{Matrix, PlacementOptions, compile_nodes, ends, place};
use ringfence_dataplane::{NftBackend, NftOptions};
use ringfence_lab::exec::{self, Place};
use ringfence_lab::{Isolation, Stage, Timeouts};
use ringfence_model::Object;

use super::exit_code;
use crate::args::{BackendName, Input, LabFormat, When};
use crate::input::{self, Cluster};
use crate::output::{self, Failure, Messages};

pub(super) fn run(
    input: &Input,
    backend: BackendName,
    format: LabFormat,
    keep: bool,
    color: When,
    messages: &Messages,
) -> Result<ExitCode, Failure> {
    let mut cluster = input::read(input, messages)?;
    move_to_one_node(&mut cluster, messages)?;
    // From here on this process is the lab. It has started no thread yet, which the kernel insists on.
    ringfence_lab::enter(Isolation::Auto).map_err(ringfence_lab::RunError::from)?;
    let mut bar = Bar::new();
    let open = || match backend {
        BackendName::Nftables => NftBackend::new(NftOptions::default()),
    };
    let finished =
        ringfence_lab::run(cluster.objects, &cluster.externals, &Timeouts::default(), open, &mut |stage, done, of| {
            bar.show(stage, done, of);
        });
    bar.clear();
    let finished = finished?;
    for warning in finished.network.warnings() {
        messages.warning(&warning.to_string());
    }
    output::print(&shown(&finished.matrix, format, color)?)?;
    let differences = finished.matrix.differences().count();
    if keep {
        wait(&finished, messages)?;
    }
    Ok(exit_code(cluster.has_errors || differences > 0))
}

/// The lab plays one node. What nodes have to do with a verdict is told: traffic of pods on the host network is their
/// node's, and a pod's own node is never refused.
fn move_to_one_node(cluster: &mut Cluster, messages: &Messages) -> Result<(), Failure> {
    let nodes = cluster.objects.iter().filter(|object| matches!(object, Object::Node(_))).count();
    if nodes == 1 {
        return Ok(());
    }
    let apart = allowed(cluster)?;
    let options = PlacementOptions { single_node: true, ..PlacementOptions::default() };
    for note in place(&mut cluster.objects, &cluster.externals, &options)?.notes {
        messages.note(&note);
    }
    let together = allowed(cluster)?;
    let moved: Vec<&String> = apart.symmetric_difference(&together).collect();
    if let Some(first) = moved.first() {
        messages.warning(&format!(
            "on one node {} of the connections have another verdict than on the nodes of the input, such as {first}; \
             `ringfence matrix` shows those",
            moved.len(),
        ));
    }
    Ok(())
}

/// The connections that the policies allow.
fn allowed(cluster: &Cluster) -> Result<BTreeSet<String>, Failure> {
    let ends = ends(&cluster.objects, &cluster.externals);
    let matrix = Matrix::compiled(ends, &compile_nodes(cluster.objects.iter().cloned())?);
    let label = |end: usize| matrix.ends.get(end).map_or("", |end| end.label.as_str());
    let cells = matrix.cells.iter().filter(|cell| cell.allowed());
    let text = cells.map(|cell| format!("{} -> {} {}/{}", label(cell.from), label(cell.to), cell.protocol, cell.port));
    Ok(text.collect())
}

fn shown(matrix: &Matrix, format: LabFormat, color: When) -> Result<String, Failure> {
    match format {
        LabFormat::Json => Ok(render::json(matrix).map_err(io::Error::from)?),
        LabFormat::Table => {
            let style =
                TableStyle { color: output::colored(color, io::stdout().is_terminal()), width: output::width() };
            Ok(format!(
                "Expected, by the specification:\n{}{}\n\nMeasured, with packets:\n{}{}",
                render::table(matrix, View::Expected, style),
                render::LEGEND,
                render::table(matrix, View::Measured, style),
                render::comparison(matrix),
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
    let place = if end == "node" { Place::Node } else { Place::Endpoint(end.to_owned()) };
    if end != "node" && !lab.endpoints().any(|name| name == end) {
        let known = lab.endpoints().take(20).collect::<Vec<_>>().join(", ");
        return Err(Failure::NoSuchEnd { end: end.to_owned(), known });
    }
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
                Stage::Probing => "probing all pairs",
            });
        }
    }

    fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
