//! The syntax of names, labels and port names (`k8s.io/apimachinery/pkg/util/validation`).

/// A DNS-1123 label of at most 63 characters: the name of a namespace or a Service.
pub(crate) fn is_dns_label(text: &str) -> bool {
    text.len() <= 63 && is_dns_word(text)
}

/// A DNS-1123 subdomain of at most 253 characters: the name of most objects.
pub(crate) fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_word)
}

fn is_dns_word(text: &str) -> bool {
    let ends = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let bytes = text.as_bytes();
    ends(bytes.first())
        && ends(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-')
}

/// A label key: a name of at most 63 characters, with an optional DNS subdomain and a slash before it.
pub(crate) fn is_label_key(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_dns_subdomain(prefix) && is_qualified_word(name),
        None => is_qualified_word(text),
    }
}

/// A label value: empty, or at most 63 letters, digits, `-`, `_` and `.` that begin and end with a letter or digit.
pub(crate) fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_qualified_word(text)
}

fn is_qualified_word(text: &str) -> bool {
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    text.len() <= 63
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// A port name (RFC 6335): at most 15 of `[a-z0-9-]`, at least one letter, no `-` at an end or twice in a row.
pub(crate) fn is_port_name(text: &str) -> bool {
    text.len() <= 15 && is_dns_word(text) && !text.contains("--") && text.bytes().any(|byte| byte.is_ascii_lowercase())
}

/// A `metadata.uid` as clusters make them, and a little wider. It never holds a `:`, which keeps it apart from the
/// ids made for pods of files.
pub(crate) fn is_uid(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rule: fn(&str) -> bool, good: &[&str], bad: &[&str]) {
        for text in good {
            assert!(rule(text), "{text:?} is valid");
        }
        for text in bad {
            assert!(!rule(text), "{text:?} is invalid");
        }
    }

    #[test]
    fn names_follow_kubernetes() {
        let long = "a".repeat(63);
        let longer = "a".repeat(64);
        check(is_dns_label, &["a", "0", "a-b", &long], &["", "A", "-a", "a-", "a.b", "a_b", &longer, "é"]);
        check(is_dns_subdomain, &["a", "a.b", &longer], &["", ".", "a..b", "a.", "A", &"a".repeat(254)]);
        check(
            is_label_key,
            &["app", "App_1.x", "app.kubernetes.io/name", &long],
            &["", "/a", "a/", "a/b/c", "A/b", "-a", "a b", "a\n", &longer],
        );
        check(is_label_value, &["", "true", "A.b_c-d", &long], &["-a", "a-", "a b", "a/b", "é", &longer]);
        check(
            is_port_name,
            &["http", "h2", "a-b-c", "0a", "abcdefghijklmno"],
            &["", "80", "Http", "-a", "a-", "a--b", "a_b", "abcdefghijklmnop"],
        );
        check(is_uid, &["3f2a-11", "x"], &["", "a:b", "a b", &"a".repeat(129)]);
    }
}
