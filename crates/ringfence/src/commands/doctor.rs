use std::io;
use std::process::ExitCode;

use ipnet::IpNet;
use ringfence_doctor::{Facts, Options, Severity, examine, render};

use super::exit_code;
use crate::args::DoctorFormat;
use crate::output::{self, Failure};

pub(super) fn run(pod_cidrs: &[IpNet], format: DoctorFormat) -> Result<ExitCode, Failure> {
    let findings = examine(&Facts::gather(Options { pod_cidrs: pod_cidrs.to_vec() }));
    let text = match format {
        DoctorFormat::Text => render::text(&findings),
        DoctorFormat::Json => serde_json::to_string_pretty(&findings).map_err(io::Error::from)? + "\n",
    };
    output::print(&text)?;
    Ok(exit_code(findings.iter().any(|finding| finding.severity == Severity::Problem)))
}
