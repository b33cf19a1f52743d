//! What a plain scalar means: the YAML 1.1 rules as kubectl's YAML library applies them.

/// The type of a scalar, and its value when it is not text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum ScalarType {
    Null,
    Boolean(bool),
    /// A decimal, hexadecimal (`0x`), octal (`0o`) or binary (`0b`) integer that fits.
    Integer(i64),
    /// A number with a leading zero: octal in YAML 1.1, decimal in YAML 1.2, so it is nobody's guess what was meant.
    LeadingZero,
    /// Any other number.
    Float,
    String,
    /// The merge key `<<`.
    Merge,
    /// It carries a tag that Kubernetes objects have no use for, such as `!!binary`.
    Tagged,
}

impl ScalarType {
    /// The type with its article, for messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            ScalarType::Null => "empty",
            ScalarType::Boolean(_) => "a boolean",
            ScalarType::Integer(_) | ScalarType::Float => "a number",
            ScalarType::LeadingZero => "a number with a leading zero",
            ScalarType::String | ScalarType::Merge => "a string",
            ScalarType::Tagged => "a value with an unknown tag",
        }
    }
}

/// Resolves a scalar that was written without quotes.
pub(crate) fn resolve_plain(text: &str) -> ScalarType {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return ScalarType::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y" => {
            return ScalarType::Boolean(true);
        }
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "n" | "N" => {
            return ScalarType::Boolean(false);
        }
        "<<" => return ScalarType::Merge,
        ".nan" | ".NaN" | ".NAN" => return ScalarType::Float,
        _ => {}
    }
    let negative = text.starts_with('-');
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") {
        return ScalarType::Float;
    }
    if !unsigned.starts_with(|first: char| first.is_ascii_digit() || first == '.') {
        return ScalarType::String;
    }
    integer(unsigned, negative)
        .unwrap_or_else(|| if is_decimal_float(unsigned) { ScalarType::Float } else { ScalarType::String })
}

/// Reads an integer without its sign. Underscores between digits are allowed, as kubectl's YAML allows them.
fn integer(unsigned: &str, negative: bool) -> Option<ScalarType> {
    let digits: String = unsigned.chars().filter(|&c| c != '_').collect();
    let (radix, digits) = match digits.get(..2) {
        Some("0x" | "0X") => (16, digits.get(2..)?),
        Some("0o" | "0O") => (8, digits.get(2..)?),
        Some("0b" | "0B") => (2, digits.get(2..)?),
        _ => (10, digits.as_str()),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    if radix == 10 && digits.len() > 1 && digits.starts_with('0') {
        return Some(ScalarType::LeadingZero);
    }
    Some(match i64::from_str_radix(digits, radix) {
        Ok(value) => ScalarType::Integer(if negative { -value } else { value }),
        Err(_) => ScalarType::Float,
    })
}

/// Digits with an optional fraction and an optional exponent.
fn is_decimal_float(unsigned: &str) -> bool {
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let exponent_is_number = exponent.is_none_or(|exponent| {
        let exponent = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
        !exponent.is_empty() && digits(exponent)
    });
    digits(whole) && digits(fraction) && !(whole.is_empty() && fraction.is_empty()) && exponent_is_number
}

#[cfg(test)]
mod tests {
    use super::ScalarType::{self, Boolean, Float, Integer, LeadingZero, Merge, Null, String};
    use super::resolve_plain;

    #[test]
    fn plain_scalars_resolve_as_kubectl_resolves_them() {
        let cases: &[(&str, ScalarType)] = &[
            ("", Null),
            ("~", Null),
            ("null", Null),
            ("nULL", String),
            ("true", Boolean(true)),
            ("yes", Boolean(true)),
            ("on", Boolean(true)),
            ("y", Boolean(true)),
            ("off", Boolean(false)),
            ("N", Boolean(false)),
            ("tRUE", String),
            ("0", Integer(0)),
            ("-0", Integer(0)),
            ("80", Integer(80)),
            ("+80", Integer(80)),
            ("-1", Integer(-1)),
            ("0x50", Integer(80)),
            ("0o120", Integer(80)),
            ("0b11", Integer(3)),
            ("65_535", Integer(65535)),
            ("080", LeadingZero),
            ("0120", LeadingZero),
            ("00", LeadingZero),
            ("1.5", Float),
            ("1.", Float),
            (".5", Float),
            ("1e3", Float),
            ("99999999999999999999", Float),
            (".inf", Float),
            ("-.inf", Float),
            (".nan", Float),
            (".", String),
            ("-", String),
            ("+", String),
            ("1.2.3", String),
            ("10.0.0.0/8", String),
            ("0x", String),
            ("0xé", String),
            ("1é", String),
            ("e5", String),
            ("12e", String),
            ("2024-01-01", String),
            ("<<", Merge),
            ("web", String),
        ];
        for (text, expected) in cases {
            assert_eq!(resolve_plain(text), *expected, "{text:?}");
        }
    }
}
