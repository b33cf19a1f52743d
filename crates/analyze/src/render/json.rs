use std::net::IpAddr;

use serde::Serialize;

use crate::matrix::{EndKind, Matrix};

/// The field names are API.
#[derive(Serialize)]
struct Document<'a> {
    pods: Vec<Pod<'a>>,
    /// Left out when there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    externals: Vec<External<'a>>,
    cells: Vec<Cell<'a>>,
}

#[derive(Serialize)]
struct Pod<'a> {
    namespace: &'a str,
    name: &'a str,
    ips: &'a [IpAddr],
    node: &'a str,
}

#[derive(Serialize)]
struct External<'a> {
    name: &'a str,
    ips: &'a [IpAddr],
}

#[derive(Serialize)]
struct Cell<'a> {
    from: &'a str,
    to: &'a str,
    protocol: &'static str,
    port: u16,
    egress: bool,
    ingress: bool,
    allowed: bool,
    measured: Option<bool>,
}

/// The matrix as one JSON document, indented, with a final line break.
///
/// # Errors
/// What the serializer reports; not expected for these types.
pub fn json(matrix: &Matrix) -> Result<String, serde_json::Error> {
    let mut document = Document { pods: Vec::new(), externals: Vec::new(), cells: Vec::new() };
    for end in &matrix.ends {
        match &end.kind {
            EndKind::Pod { namespace, name, node, .. } => {
                document.pods.push(Pod { namespace, name, ips: &end.addresses, node });
            }
            EndKind::External { name } => document.externals.push(External { name, ips: &end.addresses }),
        }
    }
    for cell in &matrix.cells {
        let (Some(from), Some(to), Some(path)) = (matrix.ends.get(cell.from), matrix.ends.get(cell.to), cell.path())
        else {
            continue;
        };
        document.cells.push(Cell {
            from: &from.label,
            to: &to.label,
            protocol: cell.protocol.as_str(),
            port: cell.port,
            egress: path.egress,
            ingress: path.ingress,
            allowed: cell.allowed(),
            measured: cell.measured(),
        });
    }
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}
