//! Whatever the text, parsing ends soon and says what is wrong.

mod check;

use std::time::{Duration, Instant};

use check::read;
use proptest::prelude::*;
use ringfence_k8s::{Diagnostic, Manifests, Severity, Source, parse};

/// Far more than any case takes, far less than one that is quadratic.
const SOON: Duration = Duration::from_secs(20);

#[track_caller]
#[allow(clippy::disallowed_methods, reason = "the crate has no clock, but its test may time it")]
fn fatal(text: &[u8], line: usize, part: &str) -> Manifests {
    let start = Instant::now();
    let manifests = parse(&[Source { name: "f", text }]);
    assert!(start.elapsed() < SOON, "took {:?}", start.elapsed());
    let is_fatal = |diagnostic: &&Diagnostic| diagnostic.severity == Severity::Fatal;
    let lost: Vec<&Diagnostic> = manifests.diagnostics.iter().filter(is_fatal).collect();
    let beginning = String::from_utf8_lossy(text.get(..80).unwrap_or(text));
    assert!(!lost.is_empty(), "nothing fatal in {beginning:?}");
    let said = lost[0];
    assert_eq!(said.location.line, line, "{said}");
    assert!(said.to_string().contains(part), "{part:?} in {said}");
    manifests
}

#[test]
fn nesting_ends_at_a_limit() {
    const MANY: usize = 500_000;
    fatal("[".repeat(MANY).as_bytes(), 1, "");
    fatal("{".repeat(MANY).as_bytes(), 1, "");
    fatal("[{\"a\":".repeat(MANY).as_bytes(), 1, "levels deep");
    fatal("{\"a\":".repeat(MANY).as_bytes(), 1, "levels deep");
    fatal("a: [{b: ".repeat(MANY).as_bytes(), 1, "");
    fatal("- ".repeat(MANY).as_bytes(), 1, "levels deep");
    fatal("? ".repeat(MANY).as_bytes(), 1, "levels deep");
    let nested: String = (0..1400).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    fatal(nested.as_bytes(), 129, "levels deep");
}

#[test]
fn junk_is_refused() {
    fatal(b"\xff\xfea\0", 1, "UTF-16");
    fatal(b"a: b\nc: \xc3\x28", 2, "f:2:4: fatal: the source is not UTF-8");
    fatal(b"a: b\nc: \0", 2, "control character");
    fatal(&vec![0; 1 << 20], 1, "control character");
    fatal(b"just some text", 1, "not a Kubernetes object");
    fatal(b"- a\n- b", 1, "not a Kubernetes object");
    fatal(b"a: [1, 2\nb: c", 2, "");
    fatal(b"a: 'x", 1, "");
    fatal(b"a: x\n\tb: y", 1, "tab");
    fatal(b"{\"a\": 1\n \"b\": 2}", 2, "expected `,` or `}` in an object");
    fatal(b"{{ .Values.x }}\nkind: Pod", 1, "");
    fatal(b"{\"a\": {\"b\": 1,\n \"b\": 2}}", 2, "the key \"b\" is given twice, first in line 1");
    fatal(b"a: 1\nb: 2\na: 3", 3, "the key \"a\" is given twice, first in line 1");
    fatal(b"? [a]\n: b", 1, "cannot be a key");
    fatal(b"a: &x {b: *x}", 1, "the alias stands for nothing");
    fatal(b"a: &x 1\n---\nb: *x", 3, "the alias stands for nothing");
    fatal(b"a: *x", 1, "unknown anchor");
    fatal(b"a: {<<: [b]}", 1, "only mappings can be merged");
    fatal("\"".repeat((1 << 20) + 1).as_bytes(), 1, "");
}

#[test]
fn size_is_limited() {
    fatal(&vec![b'a'; 100_000_000], 1, "larger than 64 MiB");
    fatal(&[b"- [".as_slice(), &b"a,".repeat(30_000_000)].concat(), 1, "separators");
    fatal(&[b"a:\n".as_slice(), &b"- 1\n".repeat(6_000_000)].concat(), 4_999_999, "more than 5000000 values");
    let wrong = "- {apiVersion: v1, kind: Pod}\n".repeat(20_000);
    let manifests = fatal(format!("kind: List\nitems:\n{wrong}").as_bytes(), 1, "more than 10000 things are wrong");
    assert_eq!(manifests.diagnostics.len(), 10_001);
}

#[test]
fn aliases_do_not_explode() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..60 {
        let previous = format!("*a{},", level - 1).repeat(10);
        bomb.push_str(&format!("a{level}: &a{level} [{previous}]\n"));
    }
    fatal(bomb.as_bytes(), 7, "once aliases are expanded");
    let mut merges = "a0: &a0 {k0: x}\n".to_owned();
    for level in 1..60 {
        let previous = level - 1;
        merges.push_str(&format!("a{level}: &a{level} {{<<: [*a{previous}, *a{previous}], k{level}: x}}\n"));
    }
    fatal(merges.as_bytes(), 20, "once aliases are expanded");
    let deep: String = (1..200).map(|level| format!("a{level}: &a{level} [*a{}]\n", level - 1)).collect();
    fatal(format!("a0: &a0 x\n{deep}").as_bytes(), 129, "levels deep");
}

const VALID: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: db
  namespace: shop
  labels: &l {app: web}
spec:
  podSelector: {matchLabels: {<<: *l}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - ipBlock: {cidr: 172.17.0.0/16, except: [172.17.1.0/24]}
    - namespaceSelector: {matchExpressions: [{key: a, operator: In, values: [x, \"y\"]}]}
    ports:
    - protocol: TCP
      port: 6379
      endPort: 6400
---
{\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"metadata\": {\"name\": \"a\\u0062\", \"uid\": \"u\"}, \"status\": {\"podIP\": \"10.0.0.1\"}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: w, creationTimestamp: 2024-01-01T00:00:00Z}
spec:
  template:
    metadata:
      labels:
        app: |-
          x
    spec: {containers: [{ports: [{name: http, containerPort: 80}]}]}
";

#[test]
fn the_manifests_to_mutate_are_valid() {
    check::check(VALID, &[]);
}

const PIECES: [&str; 24] = [
    "[", "]", "{", "}", ":", ": ", "- ", "\n", "\n  ", "\t", "\"", "'", "&l ", "*l", "<<: ", "!!str ", "|\n", "? ",
    "#", "---\n", "null", "\u{feff}", "\\", ",",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        parse(&[Source { name: "f", text: &bytes }]);
    }

    #[test]
    fn arbitrary_pieces_never_panic(pieces in proptest::collection::vec(proptest::sample::select(&PIECES[..]), 0..60)) {
        read(&pieces.concat());
    }

    #[test]
    fn mutated_manifests_never_panic_and_fail_closed(
        edits in proptest::collection::vec((0..VALID.len(), 0..40_usize, proptest::sample::select(&PIECES[..])), 1..6),
    ) {
        let mut text = VALID.as_bytes().to_vec();
        for (at, cut, piece) in edits {
            let at = at.min(text.len());
            let end = (at + cut).min(text.len());
            text.splice(at..end, piece.bytes());
        }
        let manifests = parse(&[Source { name: "f", text: &text }]);
        for policy in check::policies(&manifests) {
            let object = format!("NetworkPolicy {}", policy.id);
            let is_invalid = manifests
                .diagnostics
                .iter()
                .any(|said| said.severity == Severity::Error && said.object.as_deref() == Some(&object));
            // Whatever was broken, no half of a policy is enforced.
            prop_assert!(!is_invalid || (policy.ingress.is_empty() && policy.egress.is_empty()));
        }
    }
}
