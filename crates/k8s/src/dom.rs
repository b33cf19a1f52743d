//! A small document tree that knows the place of every node, and the builder that keeps it small.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::diagnostic::shown;
use crate::scalar::ScalarType;

/// How deep collections may nest. Walking and dropping a tree recurses this deep at most.
pub(crate) const MAX_DEPTH: usize = 128;

/// How many nodes one source may hold after its aliases are expanded.
pub(crate) const MAX_NODES: usize = 5_000_000;

/// A place in a source, both counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

/// A value and its place. Cloning is cheap: collections and text are shared, which is how aliases are expanded.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) position: Position,
    pub(crate) value: Value,
}

#[derive(Clone, Debug)]
pub(crate) enum Value {
    Scalar(Rc<str>, ScalarType),
    Sequence(Rc<Vec<Node>>),
    Mapping(Rc<Vec<Entry>>),
}

/// One key of a mapping with its value. Keys are scalars and their texts are distinct.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: Node,
    pub(crate) value: Node,
}

impl Node {
    pub(crate) fn is_null(&self) -> bool {
        matches!(self.value, Value::Scalar(_, ScalarType::Null))
    }

    /// The text of a scalar of any type; empty for a collection.
    pub(crate) fn text(&self) -> &str {
        match &self.value {
            Value::Scalar(text, _) => text,
            Value::Sequence(_) | Value::Mapping(_) => "",
        }
    }

    /// The value of a key of a mapping.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Mapping(entries) => entries.iter().find(|entry| entry.key.text() == key).map(|entry| &entry.value),
            Value::Scalar(..) | Value::Sequence(_) => None,
        }
    }
}

/// Why a document cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) position: Position,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

impl Problem {
    pub(crate) fn new(position: Position, message: impl Into<String>) -> Problem {
        Problem { position, message: message.into(), hint: None }
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Problem {
        self.hint = Some(hint.into());
        self
    }
}

/// Builds the trees of the documents of one source from a stream of events, within the limits above.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    /// The collections that are not closed yet, outermost first.
    open: Vec<Open>,
    /// Nodes of the whole source so far, aliases counted with everything they stand for.
    nodes: usize,
    /// The finished anchored nodes of the current document.
    anchors: BTreeMap<usize, Subtree>,
    root: Option<Node>,
    /// Keys given twice: the document is lost, but reading goes on to find all of them.
    duplicates: Vec<Problem>,
}

#[derive(Debug)]
struct Open {
    position: Position,
    anchor: usize,
    nodes: usize,
    height: usize,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>, Option<Node>),
}

/// A node with its number of nodes and its height; a scalar has height 0.
#[derive(Clone, Debug)]
struct Subtree {
    node: Node,
    nodes: usize,
    height: usize,
}

impl Builder {
    /// Opens a sequence. `anchor` is 0 for none, here and below.
    pub(crate) fn open_sequence(&mut self, position: Position, anchor: usize) -> Result<(), Problem> {
        self.open(position, anchor, Content::Sequence(Vec::new()))
    }

    /// Opens a mapping.
    pub(crate) fn open_mapping(&mut self, position: Position, anchor: usize) -> Result<(), Problem> {
        self.open(position, anchor, Content::Mapping(Vec::new(), None))
    }

    fn open(&mut self, position: Position, anchor: usize, content: Content) -> Result<(), Problem> {
        self.check_depth(position, 1)?;
        self.count(position, 1)?;
        self.open.push(Open { position, anchor, nodes: 1, height: 1, content });
        Ok(())
    }

    /// Closes the innermost collection.
    pub(crate) fn close(&mut self) -> Result<(), Problem> {
        let Some(open) = self.open.pop() else { return Ok(()) };
        let value = match open.content {
            Content::Sequence(items) => Value::Sequence(Rc::new(items)),
            Content::Mapping(entries, _) => {
                self.find_duplicates(&entries);
                Value::Mapping(Rc::new(merge(entries)?))
            }
        };
        let subtree = Subtree { node: Node { position: open.position, value }, nodes: open.nodes, height: open.height };
        self.finish(subtree, open.anchor)
    }

    /// Adds a scalar.
    pub(crate) fn scalar(
        &mut self,
        position: Position,
        anchor: usize,
        text: &str,
        kind: ScalarType,
    ) -> Result<(), Problem> {
        self.count(position, 1)?;
        let node = Node { position, value: Value::Scalar(text.into(), kind) };
        self.finish(Subtree { node, nodes: 1, height: 0 }, anchor)
    }

    /// Adds what an alias stands for.
    pub(crate) fn alias(&mut self, position: Position, anchor: usize) -> Result<(), Problem> {
        let Some(subtree) = self.anchors.get(&anchor).cloned() else {
            return Err(Problem::new(
                position,
                "the alias stands for nothing: its anchor is not complete in this document",
            ));
        };
        self.check_depth(position, subtree.height)?;
        self.count(position, subtree.nodes)?;
        self.finish(subtree, 0)
    }

    /// Ends the current document and hands over its tree, or why there is none.
    pub(crate) fn end_document(&mut self) -> Result<Option<Node>, Vec<Problem>> {
        self.anchors.clear();
        self.open.clear();
        let root = self.root.take();
        let duplicates = std::mem::take(&mut self.duplicates);
        if duplicates.is_empty() { Ok(root) } else { Err(duplicates) }
    }

    fn finish(&mut self, subtree: Subtree, anchor: usize) -> Result<(), Problem> {
        if anchor != 0 {
            self.anchors.insert(anchor, subtree.clone());
        }
        let Some(parent) = self.open.last_mut() else {
            self.root = Some(subtree.node);
            return Ok(());
        };
        parent.nodes += subtree.nodes;
        parent.height = parent.height.max(subtree.height + 1);
        match &mut parent.content {
            Content::Sequence(items) => items.push(subtree.node),
            Content::Mapping(entries, key) => match key.take() {
                Some(key) => entries.push(Entry { key, value: subtree.node }),
                None if subtree.height > 0 => {
                    return Err(Problem::new(subtree.node.position, "a list or a mapping cannot be a key"));
                }
                None => *key = Some(subtree.node),
            },
        }
        Ok(())
    }

    fn check_depth(&self, position: Position, height: usize) -> Result<(), Problem> {
        if self.open.len() + height > MAX_DEPTH {
            return Err(Problem::new(position, format!("nested more than {MAX_DEPTH} levels deep")));
        }
        Ok(())
    }

    fn count(&mut self, position: Position, nodes: usize) -> Result<(), Problem> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > MAX_NODES {
            return Err(Problem::new(position, format!("more than {MAX_NODES} values once aliases are expanded")));
        }
        Ok(())
    }

    fn find_duplicates(&mut self, entries: &[Entry]) {
        let mut seen = BTreeMap::new();
        for entry in entries {
            let key = entry.key.text();
            let here = entry.key.position;
            if let Some(first) = seen.insert(key, here) {
                self.duplicates.push(
                    Problem::new(
                        here,
                        format!("the key \"{}\" is given twice, first in line {}", shown(key), first.line),
                    )
                    .with_hint(match key {
                        "apiVersion" | "kind" => "if another object begins here, a line --- is missing before it",
                        _ => "a YAML reader keeps only one of them; remove the other",
                    }),
                );
            }
        }
    }
}

/// Expands the merge key `<<`: entries of the merged mappings count unless the mapping, or a mapping merged before,
/// has the key already.
fn merge(mut entries: Vec<Entry>) -> Result<Vec<Entry>, Problem> {
    let is_merge = |entry: &Entry| matches!(entry.key.value, Value::Scalar(_, ScalarType::Merge));
    let Some(index) = entries.iter().position(is_merge) else {
        return Ok(entries);
    };
    let merged = entries.remove(index).value;
    let sources: Vec<&Node> = match &merged.value {
        Value::Sequence(items) => items.iter().collect(),
        Value::Mapping(_) | Value::Scalar(..) => vec![&merged],
    };
    let mut seen: BTreeSet<Rc<str>> = entries.iter().map(|entry| entry.key.text().into()).collect();
    for source in sources {
        let Value::Mapping(additions) = &source.value else {
            return Err(Problem::new(source.position, "only mappings can be merged with `<<`"));
        };
        for addition in additions.iter() {
            if seen.insert(addition.key.text().into()) {
                entries.push(addition.clone());
            }
        }
    }
    Ok(entries)
}
