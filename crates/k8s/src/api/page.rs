//! A page of a list: its metadata, and the objects on it, one after the other without a copy of their text.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::tree::{Shape, item};
use crate::diagnostic::Diagnostic;
use crate::dom::Node;

/// `metadata` of a list.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct ListMeta {
    /// The version that the list is of, empty if there is none.
    pub resource_version: String,
    /// Where the next page begins, if there is one. Servers also write an empty text for none.
    #[serde(rename = "continue")]
    pub continue_token: Option<String>,
}

/// Why a page of a list cannot be read.
#[derive(Debug)]
pub enum PageError {
    /// It is not a list in JSON.
    Malformed(serde_json::Error),
    /// An object on it without a usable name: nobody knows which one it is.
    Object(Box<Diagnostic>),
}

impl fmt::Display for PageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PageError::Malformed(error) => error.fmt(f),
            PageError::Object(diagnostic) => diagnostic.fmt(f),
        }
    }
}

impl std::error::Error for PageError {}

/// Reads a page and hands over each object. `take` says whether to go on.
pub(super) struct Page<F> {
    shape: &'static Shape,
    take: F,
}

impl<F: FnMut(Node) -> bool> Page<F> {
    pub(super) fn new(shape: &'static Shape, take: F) -> Page<F> {
        Page { shape, take }
    }

    pub(super) fn read(self, json: &[u8]) -> serde_json::Result<ListMeta> {
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        let metadata = deserializer.deserialize_map(self)?;
        deserializer.end()?;
        Ok(metadata)
    }
}

impl<'de, F: FnMut(Node) -> bool> Visitor<'de> for Page<F> {
    type Value = ListMeta;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<ListMeta, A::Error> {
        let mut metadata = None;
        let mut has_items = false;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "metadata" if metadata.is_none() => metadata = Some(map.next_value()?),
                "metadata" => return Err(A::Error::duplicate_field("metadata")),
                // Which of two is meant, nobody knows.
                "items" if has_items => return Err(A::Error::duplicate_field("items")),
                "items" => {
                    has_items = true;
                    map.next_value_seed(Items { shape: self.shape, take: &mut self.take })?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        // Where there are none, a server says so: what is no list must not take all objects of a kind away.
        if !has_items {
            return Err(A::Error::missing_field("items"));
        }
        Ok(metadata.unwrap_or_default())
    }
}

/// The list of the objects. Go writes no items as null.
struct Items<'f, F> {
    shape: &'static Shape,
    take: &'f mut F,
}

impl<'de, F: FnMut(Node) -> bool> DeserializeSeed<'de> for Items<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, F: FnMut(Node) -> bool> Visitor<'de> for Items<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the items of a list")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(node) = list.next_element_seed(item(self.shape))? {
            if !(self.take)(node) {
                return Err(A::Error::custom("an object without a name"));
            }
        }
        Ok(())
    }
}
