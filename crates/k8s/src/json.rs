//! JSON text to document trees. The YAML parser takes most JSON, but neither escaped surrogate pairs nor several
//! documents without a separator, and its look-ahead makes it hold a whole file in tokens.

use crate::dom::{Builder, Node, Position, Problem};
use crate::scalar::{ScalarType, resolve_plain};

/// Whether a text begins as a JSON object or array does.
pub(crate) fn is_likely(text: &str) -> bool {
    text.trim_start_matches('\u{feff}').trim_start().starts_with(['{', '['])
}

/// Whether the first thing in a text that [is likely](is_likely) JSON is a quoted key or value, as YAML in flow style
/// seldom has it.
pub(crate) fn has_quoted_key(text: &str) -> bool {
    let inner = text.trim_start_matches(|c: char| c.is_whitespace() || matches!(c, '\u{feff}' | '{' | '['));
    inner.starts_with('"')
}

/// Reads the JSON values of `text`, one after the other, with or without `---` lines between them, and hands each to
/// `document` as [`yaml::read`](crate::yaml::read) does.
pub(crate) fn read(text: &str, document: &mut dyn FnMut(Result<Option<Node>, Vec<Problem>>)) -> Result<(), Problem> {
    let mut reader = Reader {
        rest: text.trim_start_matches('\u{feff}'),
        position: Position { line: 1, column: 1 },
        builder: Builder::default(),
    };
    loop {
        reader.skip_space();
        if reader.position.column == 1 && reader.rest.starts_with("---") {
            reader.advance(3);
            continue;
        }
        if reader.rest.is_empty() {
            return Ok(());
        }
        reader.value()?;
        document(reader.builder.end_document());
    }
}

struct Reader<'a> {
    rest: &'a str,
    position: Position,
    builder: Builder,
}

impl<'a> Reader<'a> {
    /// Reads one value. Recursion is bounded, because opening a collection too deep fails.
    fn value(&mut self) -> Result<(), Problem> {
        self.skip_space();
        let start = self.position;
        match self.peek() {
            Some('{') => {
                self.builder.open_mapping(start, 0)?;
                self.list('}', "an object", Reader::member)
            }
            Some('[') => {
                self.builder.open_sequence(start, 0)?;
                self.list(']', "an array", Reader::value)
            }
            Some('"') => self.string(),
            Some(first) if first == '-' || first.is_ascii_digit() => {
                let text = self.number()?;
                self.builder.scalar(start, 0, text, resolve_plain(text))
            }
            _ => {
                let Some(word) = ["true", "false", "null"].into_iter().find(|word| self.rest.starts_with(word)) else {
                    return Err(self.expected("a JSON value"));
                };
                self.advance(word.len());
                self.builder.scalar(start, 0, word, resolve_plain(word))
            }
        }
    }

    /// Reads what is between an opening bracket, where the reader stands, and `close`.
    fn list(
        &mut self,
        close: char,
        what: &str,
        item: fn(&mut Reader<'a>) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        self.advance(1);
        self.skip_space();
        if self.peek() == Some(close) {
            self.advance(1);
            return self.builder.close();
        }
        loop {
            item(self)?;
            self.skip_space();
            match self.peek() {
                Some(',') => self.advance(1),
                Some(found) if found == close => {
                    self.advance(1);
                    return self.builder.close();
                }
                _ => return Err(self.expected(&format!("`,` or `{close}` in {what}"))),
            }
        }
    }

    fn member(&mut self) -> Result<(), Problem> {
        self.skip_space();
        if self.peek() != Some('"') {
            return Err(self.expected("a quoted key"));
        }
        self.string()?;
        self.skip_space();
        if self.peek() != Some(':') {
            return Err(self.expected("`:` after a key"));
        }
        self.advance(1);
        self.value()
    }

    fn string(&mut self) -> Result<(), Problem> {
        let start = self.position;
        self.advance(1);
        let mut text = String::new();
        loop {
            let end = self
                .rest
                .find(|c: char| c == '"' || c == '\\' || c < ' ')
                .ok_or_else(|| Problem::new(start, "the string does not end"))?;
            text.push_str(self.rest.get(..end).unwrap_or_default());
            self.advance(end);
            match self.peek() {
                Some('"') => break,
                Some('\\') => text.push(self.escape()?),
                _ => return Err(self.expected("no control character inside a string")),
            }
        }
        self.advance(1);
        self.builder.scalar(start, 0, &text, ScalarType::String)
    }

    fn escape(&mut self) -> Result<char, Problem> {
        let invalid = Problem::new(self.position, "invalid escape sequence");
        self.advance(1);
        let plain = match self.peek() {
            Some(c @ ('"' | '\\' | '/')) => c,
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('u') => {
                let high = self.code_unit().ok_or_else(|| invalid.clone())?;
                if !(0xd800..0xdc00).contains(&high) || !self.rest.starts_with("\\u") {
                    // A lone surrogate is no character; Go's JSON reader puts the replacement character too.
                    return Ok(char::from_u32(high).unwrap_or(char::REPLACEMENT_CHARACTER));
                }
                self.advance(1);
                let low = self.code_unit().ok_or(invalid)?;
                let combined = 0x10000 + ((high - 0xd800) << 10) + (low.wrapping_sub(0xdc00) & 0x3ff);
                return Ok(if (0xdc00..0xe000).contains(&low) {
                    char::from_u32(combined).unwrap_or(char::REPLACEMENT_CHARACTER)
                } else {
                    char::REPLACEMENT_CHARACTER
                });
            }
            _ => return Err(invalid),
        };
        self.advance(1);
        Ok(plain)
    }

    /// Reads `uXXXX`.
    fn code_unit(&mut self) -> Option<u32> {
        let digits = self.rest.get(1..5)?;
        if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let value = u32::from_str_radix(digits, 16).ok()?;
        self.advance(5);
        Some(value)
    }

    fn number(&mut self) -> Result<&'a str, Problem> {
        let rest = self.rest;
        let length =
            rest.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))).unwrap_or(rest.len());
        let text = rest.get(..length).unwrap_or_default();
        if !is_number(text) {
            return Err(self.expected("a JSON number"));
        }
        self.advance(length);
        Ok(text)
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn skip_space(&mut self) {
        let trimmed = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
        self.advance(self.rest.len() - trimmed.len());
    }

    /// Moves on by `bytes`, which end at a character.
    fn advance(&mut self, bytes: usize) {
        let (passed, rest) = self.rest.split_at_checked(bytes).unwrap_or((self.rest, ""));
        for c in passed.chars() {
            if c == '\n' {
                self.position.line += 1;
                self.position.column = 1;
            } else {
                self.position.column += 1;
            }
        }
        self.rest = rest;
    }

    fn expected(&self, what: &str) -> Problem {
        let found = match self.peek() {
            Some(c) => format!("`{}`", c.escape_debug()),
            None => "the end of the text".to_owned(),
        };
        Problem::new(self.position, format!("expected {what}, found {found}"))
    }
}

/// The grammar of RFC 8259, section 6.
fn is_number(text: &str) -> bool {
    let text = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (text, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.is_none_or(digits)
        && exponent.is_none_or(|exponent| digits(exponent.strip_prefix(['-', '+']).unwrap_or(exponent)))
}

#[cfg(test)]
mod tests {
    use super::read;

    /// The text as `{:?}` of the single document's scalars, or the error with its place.
    fn check(text: &str, expected: Result<usize, &str>) {
        let mut documents = 0;
        let result = read(text, &mut |document| {
            assert!(document.is_ok());
            documents += 1;
        });
        let result = result
            .map(|()| documents)
            .map_err(|problem| format!("{}:{}: {}", problem.position.line, problem.position.column, problem.message));
        assert_eq!(result, expected.map_err(str::to_owned), "{text}");
    }

    #[test]
    fn json_is_read_or_refused_with_a_place() {
        check("{}", Ok(1));
        check("{}{}\n[]\n---\n{}", Ok(4));
        check("{\n\t\"a\":\t[1, -2.5e+3, true, null]}", Ok(1));
        check("{\"a\": \"\\ud83d\\ude00\\/\\u00e9\\ud83d\"}", Ok(1));
        check("{\"a\": 1,}", Err("1:9: expected a quoted key, found `}`"));
        check("{\"a\" 1}", Err("1:6: expected `:` after a key, found `1`"));
        check("[1\n 2]", Err("2:2: expected `,` or `]` in an array, found `2`"));
        check("[01]", Err("1:2: expected a JSON number, found `0`"));
        check("[\"é\", \"x", Err("1:7: the string does not end"));
        check("[\"\\x\"]", Err("1:3: invalid escape sequence"));
        check("[\"\\u+123\"]", Err("1:3: invalid escape sequence"));
        check("[\"\\ud83d\\ud83d\"]", Ok(1));
        check("[", Err("1:2: expected a JSON value, found the end of the text"));
        check("[\"\n\"]", Err("1:3: expected no control character inside a string, found `\\n`"));
    }
}
