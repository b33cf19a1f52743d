//! What all tests of this crate share: parse a text, compare what was said about it.
#![allow(dead_code, reason = "every test crate uses its own part")]

use ringfence_k8s::{Diagnostic, Manifests, Severity, Source, parse};
use ringfence_model::{Object, Pod, Policy};

/// Parses one text as the file `f`.
pub(crate) fn read(text: &str) -> Manifests {
    parse(&[Source { name: "f", text: text.as_bytes() }])
}

/// A diagnostic that is expected: severity, line, field, part of the message or of the hint.
pub(crate) type Expected<'a> = (Severity, usize, &'a str, &'a str);

/// Parses `text` and compares its diagnostics with `expected`, in order. Notes are left out unless expected.
pub(crate) fn check(text: &str, expected: &[Expected<'_>]) -> Manifests {
    let manifests = read(text);
    let wants_notes = expected.iter().any(|(severity, ..)| *severity == Severity::Note);
    let found: Vec<&Diagnostic> = manifests
        .diagnostics
        .iter()
        .filter(|diagnostic| wants_notes || diagnostic.severity != Severity::Note)
        .collect();
    let all: String = manifests.diagnostics.iter().map(|d| format!("{d}\n")).collect();
    assert_eq!(found.len(), expected.len(), "number of diagnostics of\n{text}\n{all}");
    for (found, (severity, line, field, part)) in found.iter().zip(expected) {
        let said = format!("{} / {}", found.message, found.hint.as_deref().unwrap_or_default());
        assert_eq!(found.severity, *severity, "{found}\nin\n{text}");
        assert_eq!(found.location.line, *line, "line of {found}\nin\n{text}");
        assert_eq!(found.field, *field, "field of {found}\nin\n{text}");
        assert!(said.contains(part), "{part:?} in {said:?}\nof\n{text}");
    }
    manifests
}

/// All policies.
pub(crate) fn policies(manifests: &Manifests) -> Vec<&Policy> {
    manifests
        .objects
        .iter()
        .filter_map(|object| match object {
            Object::Policy(policy) => Some(policy),
            _ => None,
        })
        .collect()
}

/// All pods.
pub(crate) fn pods(manifests: &Manifests) -> Vec<&Pod> {
    manifests
        .objects
        .iter()
        .filter_map(|object| match object {
            Object::Pod(pod) => Some(pod),
            _ => None,
        })
        .collect()
}

/// The names of all pods as `namespace/name`, with a space between.
pub(crate) fn pod_names(manifests: &Manifests) -> String {
    let names: Vec<String> = pods(manifests).iter().map(ToString::to_string).collect();
    names.join(" ")
}
