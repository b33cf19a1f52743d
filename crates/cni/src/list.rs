//! The text of a network configuration, with or without our plugin. Everything else stays as its owner wrote it, byte by byte.

use std::borrow::Cow;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::{PLUGIN, Settings, VERSIONS};

/// Why a text is no list that our plugin could stand in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListError {
    #[error("it is not JSON as network configurations are: {0}")]
    Json(#[from] serde_json::Error),
    #[error("it has no plugins; {PLUGIN} must stand behind one that makes the pods' network")]
    NoPlugins,
    #[error("it has no name")]
    NoName,
    #[error("it is a plugin without a type")]
    NoType,
    #[error("its cniVersion is {0:?}, and plugins can be chained from 0.3.0 on")]
    NoChains(String),
    #[error("its cniVersion {0:?} is not one that {PLUGIN} speaks; the newest is {newest}", newest = VERSIONS[4])]
    UnknownVersion(String),
}

/// Our plugin in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Entry {
    #[serde(rename = "type")]
    plugin: String,
    #[serde(flatten)]
    pub(crate) settings: Settings,
    /// The single plugin that the list was made from: the name of its file, which lies beside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) derived_from: Option<String>,
}

impl Entry {
    pub(crate) fn new(settings: &Settings) -> Entry {
        Entry { plugin: PLUGIN.to_owned(), settings: settings.clone(), derived_from: None }
    }
}

/// The fields of a configuration that are looked at.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields<'t> {
    name: Option<String>,
    cni_version: Option<String>,
    cni_versions: Option<Vec<String>>,
    #[serde(borrow)]
    plugins: Option<&'t RawValue>,
    r#type: Option<String>,
}

#[derive(Deserialize)]
struct Plugin {
    r#type: Option<String>,
}

/// A list of plugins.
pub(crate) struct List<'t> {
    text: &'t str,
    fields: Fields<'t>,
    /// Where the content of the list is, between the brackets.
    inside: Range<usize>,
    /// Where each plugin is.
    plugins: Vec<Range<usize>>,
    /// Which of them are ours.
    ours: Vec<usize>,
}

impl<'t> List<'t> {
    /// Reads a list that may be one of an old version, or have no other plugin than ours.
    pub(crate) fn parse(text: &'t str) -> Result<List<'t>, ListError> {
        let fields: Fields<'t> = serde_json::from_str(text)?;
        let Some(raw) = fields.plugins else {
            return Err(ListError::NoPlugins);
        };
        let range = position(text, raw);
        let raw_plugins: Vec<&RawValue> = serde_json::from_str(raw.get())?;
        let (mut plugins, mut ours) = (Vec::new(), Vec::new());
        for (index, raw) in raw_plugins.into_iter().enumerate() {
            plugins.push(position(text, raw));
            let plugin: Plugin = serde_json::from_str(raw.get())?;
            if plugin.r#type.as_deref() == Some(PLUGIN) {
                ours.push(index);
            }
        }
        Ok(List { text, fields, inside: range.start + 1..range.end - 1, plugins, ours })
    }

    /// Our plugin, if the list has it where it works: once, behind others. Its fields may be wrong.
    pub(crate) fn entry(&self) -> Option<Result<Entry, serde_json::Error>> {
        match self.ours[..] {
            [index] if index > 0 => Some(serde_json::from_str(&self.text[self.plugins[index].clone()])),
            _ => None,
        }
    }

    /// Whether our plugin is anywhere in it.
    pub(crate) fn has_ours(&self) -> bool {
        !self.ours.is_empty()
    }

    /// The text with our plugin at the end, or where it is now. The same text when it is there as it should be.
    pub(crate) fn with(&self, entry: &Entry) -> Result<Cow<'t, str>, ListError> {
        if self.fields.name.as_deref().unwrap_or_default().is_empty() {
            return Err(ListError::NoName);
        }
        let versions = self.fields.cni_versions.iter().flatten().chain(&self.fields.cni_version);
        check_versions(versions.map(String::as_str))?;
        if self.plugins.len() == self.ours.len() {
            return Err(ListError::NoPlugins);
        }
        let wanted = serde_json::to_string(entry)?;
        if let [index] = self.ours[..]
            && index > 0
        {
            let present = self.plugins[index].clone();
            if serde_json::from_str::<Value>(&self.text[present.clone()])? == serde_json::to_value(entry)? {
                return Ok(Cow::Borrowed(self.text));
            }
            return Ok(Cow::Owned(self.replaced(present, &wanted)));
        }
        if self.has_ours() {
            let others = self.without();
            return Ok(Cow::Owned(List::parse(&others)?.with(entry)?.into_owned()));
        }
        // Laid out as what is before it: with the same space as between the last two, or as before the only one.
        let last = &self.plugins[self.plugins.len() - 1];
        let separator = match self.plugins.len().checked_sub(2) {
            Some(before) => self.text[self.plugins[before].end..last.start].to_owned(),
            None => format!(",{}", &self.text[self.inside.start..last.start]),
        };
        Ok(Cow::Owned(self.replaced(last.end..last.end, &(separator + &wanted))))
    }

    /// The text without our plugin. What [`with`](List::with) added is gone, and nothing else.
    pub(crate) fn without(&self) -> String {
        let mut text = self.text.to_owned();
        // From the last to the first, so that positions stay true.
        for &index in self.ours.iter().rev() {
            let start = match index.checked_sub(1) {
                Some(before) => self.plugins[before].end,
                None => self.plugins[index].start,
            };
            let end = match self.plugins.get(index + 1) {
                Some(after) if index == 0 => after.start,
                _ => self.plugins[index].end,
            };
            text.replace_range(start..end, "");
        }
        text
    }

    fn replaced(&self, range: Range<usize>, by: &str) -> String {
        let mut text = self.text.to_owned();
        text.replace_range(range, by);
        text
    }
}

/// A list made of a configuration that is a single plugin, with ours behind it. `file` is the name of its file.
pub(crate) fn derive(single: &str, file: &str, settings: &Settings) -> Result<String, ListError> {
    let fields: Fields<'_> = serde_json::from_str(single)?;
    if fields.r#type.as_deref().unwrap_or_default().is_empty() {
        return Err(ListError::NoType);
    }
    // Of single plugins runtimes look at this one only.
    check_versions(fields.cni_version.as_deref())?;
    let Some(name) = fields.name.filter(|name| !name.is_empty()) else {
        return Err(ListError::NoName);
    };
    let entry = Entry { derived_from: Some(file.to_owned()), ..Entry::new(settings) };
    let version = serde_json::to_string(&fields.cni_version)?;
    let (name, entry) = (serde_json::to_string(&name)?, serde_json::to_string(&entry)?);
    let single = single.trim();
    Ok(format!(
        "{{\n  \"cniVersion\": {version},\n  \"name\": {name},\n  \"plugins\": [\n{single},\n    {entry}\n  ]\n}}\n"
    ))
}

/// The runtime speaks the newest version of the configuration that it knows, so all new ones must be spoken here.
fn check_versions<'v>(versions: impl IntoIterator<Item = &'v str>) -> Result<(), ListError> {
    match versions.into_iter().max_by_key(|version| parts(version)) {
        Some(newest) if VERSIONS.contains(&newest) => Ok(()),
        Some(newest) if parts(newest) >= parts(VERSIONS[0]) => Err(ListError::UnknownVersion(newest.to_owned())),
        older => Err(ListError::NoChains(older.unwrap_or_default().to_owned())),
    }
}

/// Numbers of a version, for comparison; what is no number is 0.
fn parts(version: &str) -> Vec<u32> {
    version.split('.').map(|part| part.parse().unwrap_or(0)).collect()
}

/// Where a value stands in the text that it was parsed from.
fn position(text: &str, value: &RawValue) -> Range<usize> {
    let start = value.get().as_ptr().addr() - text.as_ptr().addr();
    start..start + value.get().len()
}
