use std::net::IpAddr;

use serde::Serialize;

use crate::matrix::{EndKind, Matrix};
use crate::paths::Trip;

/// The field names are API.
#[derive(Serialize)]
struct Document<'a> {
    pods: Vec<Pod<'a>>,
    /// Left out when there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    externals: Vec<External<'a>>,
    cells: Vec<Cell<'a>>,
    /// Left out when no path was tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    paths: Option<Vec<Path<'a>>>,
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

#[derive(Serialize)]
struct Path<'a> {
    path: &'static str,
    from: &'a str,
    to: &'a str,
    through: Option<&'a str>,
    protocol: &'static str,
    port: u16,
    source: IpAddr,
    seen: Option<IpAddr>,
    carried: bool,
    intended: bool,
    expected: bool,
    measured: bool,
}

/// The matrix as one JSON document, indented, with a final line break.
///
/// # Errors
/// What the serializer reports; not expected for these types.
pub fn json(matrix: &Matrix) -> Result<String, serde_json::Error> {
    print(&document(matrix))
}

/// The matrix and what came of each path, as one JSON document.
///
/// # Errors
/// As [`json`].
pub fn json_with_paths(matrix: &Matrix, trips: &[Trip]) -> Result<String, serde_json::Error> {
    let paths = trips.iter().map(|trip| Path {
        path: trip.kind.id(),
        from: &trip.from,
        to: &trip.to,
        through: trip.via.as_deref(),
        protocol: trip.protocol.as_str(),
        port: trip.port,
        source: trip.source,
        seen: trip.seen,
        carried: trip.carried,
        intended: trip.intended,
        expected: trip.expected,
        measured: trip.measured,
    });
    print(&Document { paths: Some(paths.collect()), ..document(matrix) })
}

fn print(document: &Document<'_>) -> Result<String, serde_json::Error> {
    Ok(serde_json::to_string_pretty(document)? + "\n")
}

fn document(matrix: &Matrix) -> Document<'_> {
    let mut document = Document { pods: Vec::new(), externals: Vec::new(), cells: Vec::new(), paths: None };
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
    document
}
