use std::io::{self, IsTerminal as _};
use std::process::ExitCode;

use ringfence_analyze::render::{self, TableStyle, View};
use ringfence_analyze::{Matrix, compile_nodes, ends};

use super::exit_code;
use crate::args::{Input, MatrixFormat, When};
use crate::input;
use crate::output::{self, Failure, Messages};

pub(super) fn run(input: &Input, format: MatrixFormat, color: When, messages: &Messages) -> Result<ExitCode, Failure> {
    let cluster = input::read(input, None, messages)?;
    let ends = ends(&cluster.objects, &cluster.externals);
    let programs = compile_nodes(cluster.objects)?;
    let matrix = Matrix::compiled(ends, &programs);
    let text = match format {
        MatrixFormat::Table => {
            let color = output::colored(color, io::stdout().is_terminal());
            let table = render::table(&matrix, View::Expected, TableStyle { color, width: output::width() });
            format!("{table}{}\n", render::LEGEND)
        }
        MatrixFormat::Json => render::json(&matrix).map_err(io::Error::from)?,
        MatrixFormat::Csv => render::csv(&matrix).map_err(io::Error::other)?,
        MatrixFormat::Md => render::markdown(&matrix, View::Expected),
    };
    output::print(&text)?;
    Ok(exit_code(cluster.has_errors))
}
