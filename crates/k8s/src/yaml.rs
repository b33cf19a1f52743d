//! YAML text to document trees.
//!
//! The parser below is pulled event by event and keeps no call stack per nesting level, so the limits of the
//! [`Builder`] stop it in time. One thing it does not bound itself: at the start of a flow collection it collects the
//! tokens of the whole collection before the first event, because the collection may turn out to be a key. The input
//! is therefore metered: it ends when too many characters that can begin a token pass without an event.

use std::cell::Cell;
use std::str::Chars;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Tag};

use crate::dom::{Builder, Node, Position, Problem};
use crate::scalar::{ScalarType, resolve_plain};

/// How many token characters may pass between two events. Objects that fit into a cluster stay far below it.
const MAX_LOOKAHEAD: usize = 1_000_000;

/// Reads all documents of `text` and hands each to `document`: its tree (`None` when it is empty) or why it is lost.
/// Fails when the rest of the text cannot be read.
pub(crate) fn read(text: &str, document: &mut dyn FnMut(Result<Option<Node>, Vec<Problem>>)) -> Result<(), Problem> {
    let lookahead = Cell::new(0);
    let metered = Metered { chars: text.chars(), lookahead: &lookahead };
    let mut builder = Builder::default();
    let mut last = Position { line: 1, column: 1 };
    for event in Parser::new_from_iter(metered) {
        if lookahead.get() > MAX_LOOKAHEAD {
            return Err(Problem::new(
                last,
                format!(
                    "a flow collection or string with more than {MAX_LOOKAHEAD} separators begins after this place"
                ),
            )
            .with_hint("write it as JSON or in block style"));
        }
        let (event, span) = event.map_err(|error| Problem::new(place(error.marker()), error.info()))?;
        lookahead.set(0);
        last = place(&span.start);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                builder.scalar(last, anchor, &text, scalar_type(&text, style, tag.as_deref()))?;
            }
            Event::SequenceStart(anchor, _) => builder.open_sequence(last, anchor)?,
            Event::MappingStart(anchor, _) => builder.open_mapping(last, anchor)?,
            Event::SequenceEnd | Event::MappingEnd => builder.close()?,
            Event::Alias(anchor) => builder.alias(last, anchor)?,
            Event::DocumentEnd => document(builder.end_document()),
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) => {}
        }
    }
    Ok(())
}

fn place(marker: &Marker) -> Position {
    Position { line: marker.line().max(1), column: marker.col() + 1 }
}

fn scalar_type(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> ScalarType {
    match tag {
        // The bare `!` makes any scalar a string.
        Some(tag) if tag.handle.is_empty() && tag.suffix == "!" => ScalarType::String,
        Some(tag) if tag.is_yaml_core_schema() => match tag.suffix.as_str() {
            "str" => ScalarType::String,
            "int" | "bool" | "float" | "null" => resolve_plain(text),
            _ => ScalarType::Tagged,
        },
        Some(_) => ScalarType::Tagged,
        None if style == ScalarStyle::Plain => resolve_plain(text),
        None => ScalarType::String,
    }
}

/// The characters of a source; it ends early when more than [`MAX_LOOKAHEAD`] token characters pass uncounted.
struct Metered<'a> {
    chars: Chars<'a>,
    lookahead: &'a Cell<usize>,
}

impl Iterator for Metered<'_> {
    type Item = char;

    fn next(&mut self) -> Option<char> {
        let next = self.chars.next()?;
        if matches!(next, ',' | '[' | ']' | '{' | '}' | ':' | '?' | '"' | '\'' | '*' | '&' | '!' | '-') {
            let count = self.lookahead.get() + 1;
            self.lookahead.set(count);
            if count > MAX_LOOKAHEAD {
                return None;
            }
        }
        Some(next)
    }
}
