use crate::matrix::Matrix;

/// The cells as comma-separated values with a header line, one line each. The columns are the fields of the JSON cells.
///
/// # Errors
/// What the writer reports; not expected in memory.
pub fn csv(matrix: &Matrix) -> Result<String, csv::Error> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(["from", "to", "protocol", "port", "egress", "ingress", "allowed", "measured"])?;
    for cell in &matrix.cells {
        let (Some(from), Some(to), Some(path)) = (matrix.ends.get(cell.from), matrix.ends.get(cell.to), cell.path())
        else {
            continue;
        };
        writer.write_record([
            &from.label,
            &to.label,
            cell.protocol.as_str(),
            &cell.port.to_string(),
            &path.egress.to_string(),
            &path.ingress.to_string(),
            &cell.allowed().to_string(),
            &cell.measured().map(|measured| measured.to_string()).unwrap_or_default(),
        ])?;
    }
    let bytes = writer.into_inner().map_err(csv::IntoInnerError::into_error)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
