//! Findings as text for people.

use std::fmt::Write as _;

use crate::{CHECKS, Finding, Severity};

/// The findings, the worst first; or that nothing is wrong. What was checked is listed if there is no problem.
pub fn text(findings: &[Finding]) -> String {
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|finding| finding.severity);
    let mut out = String::new();
    for finding in &sorted {
        let severity = match finding.severity {
            Severity::Problem => "problem",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        let mut line = |label: &str, text: &str| {
            // Rules carry comments that anybody may have written.
            let text: String =
                text.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect();
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{label}{text}");
        };
        line(&format!("{severity}: {}: ", finding.id), &finding.what);
        line("    why:    ", &finding.why);
        line("    remedy: ", &finding.remedy);
        if let Some(evidence) = &finding.evidence {
            line("    seen:   ", evidence);
        }
    }
    if sorted.iter().all(|finding| finding.severity == Severity::Note) {
        out.push_str("Nothing found that would make policies fail. Looked for:\n");
        for check in CHECKS {
            let _ = writeln!(out, "    {}: {}", check.id, check.looks_for);
        }
    }
    out
}
