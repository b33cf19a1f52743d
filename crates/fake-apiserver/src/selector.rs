//! Label and field selectors, as query parameters write them.

use crate::object::Object;
use crate::resource::Resource;

/// What a list or watch asks for.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    /// Empty: all namespaces.
    pub(crate) namespace: String,
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

#[derive(Debug, PartialEq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Debug, PartialEq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Missing,
}

impl Selection {
    /// # Errors
    ///
    /// The API server's message about a selector that cannot be read.
    pub(crate) fn parse(resource: &Resource, namespace: &str, labels: &str, fields: &str) -> Result<Selection, String> {
        let labels = requirements(labels)?;
        let fields = requirements(fields)?;
        for field in &fields {
            let common = matches!(field.key.as_str(), "metadata.name" | "metadata.namespace");
            if !common && !resource.fields.contains(&field.key.as_str()) {
                return Err(format!("field label not supported: {}", field.key));
            }
            if !matches!(field.test, Test::In(_) | Test::NotIn(_)) {
                return Err(format!("invalid field selector: {}", field.key));
            }
        }
        Ok(Selection { namespace: namespace.to_owned(), labels, fields })
    }

    /// Whether everything is selected.
    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(crate) fn selects(&self, object: &Object) -> bool {
        (self.namespace.is_empty() || self.namespace == object.namespace())
            && self.labels.iter().all(|requirement| requirement.holds(object.label(&requirement.key)))
            && self.fields.iter().all(|requirement| requirement.holds(Some(object.field(&requirement.key))))
    }
}

impl Requirement {
    fn holds(&self, value: Option<&str>) -> bool {
        let among = |values: &[String]| value.is_some_and(|value| values.iter().any(|one| one == value));
        match &self.test {
            Test::In(values) => among(values),
            Test::NotIn(values) => !among(values),
            Test::Exists => value.is_some(),
            Test::Missing => value.is_none(),
        }
    }
}

fn requirements(text: &str) -> Result<Vec<Requirement>, String> {
    split_outside_parentheses(text).into_iter().map(requirement).collect()
}

/// One of `a=b`, `a==b`, `a!=b`, `a in (b,c)`, `a notin (b,c)`, `a` and `!a`.
fn requirement(text: &str) -> Result<Requirement, String> {
    let of = |key: &str, test| Ok(Requirement { key: key.trim().to_owned(), test });
    let one = |value: &str| vec![value.trim().to_owned()];
    if let Some((key, values)) = text.split_once('(') {
        let values = values.trim().strip_suffix(')').ok_or_else(|| format!("unable to parse requirement: {text}"))?;
        let values = values.split(',').map(|value| value.trim().to_owned()).collect();
        return match key.trim().rsplit_once(char::is_whitespace) {
            Some((key, "in")) => of(key, Test::In(values)),
            Some((key, "notin")) => of(key, Test::NotIn(values)),
            _ => Err(format!("unable to parse requirement: {text}")),
        };
    }
    if let Some((key, value)) = text.split_once("!=") {
        return of(key, Test::NotIn(one(value)));
    }
    if let Some((key, value)) = text.split_once('=') {
        return of(key, Test::In(one(value.strip_prefix('=').unwrap_or(value))));
    }
    match text.trim().strip_prefix('!') {
        Some(key) => of(key, Test::Missing),
        None => of(text, Test::Exists),
    }
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut inside) = (Vec::new(), 0, false);
    for (at, character) in text.char_indices() {
        match character {
            '(' => inside = true,
            ')' => inside = false,
            ',' if !inside => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts.retain(|part| !part.trim().is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(labels: &str, fields: &str, expected: bool) {
        let pods = Resource::named("pods").unwrap();
        let value = json!({
            "metadata": {"namespace": "shop", "name": "web", "labels": {"app": "web", "tier": "front"}},
            "spec": {"nodeName": "n1"}, "status": {"phase": "Running"}
        });
        let object = Object::new(pods, value.as_object().unwrap().clone());
        let selection = Selection::parse(pods, "", labels, fields).unwrap();
        assert_eq!(selection.selects(&object), expected, "{labels} {fields}");
    }

    #[test]
    fn labels_and_fields_select_as_documented() {
        check("", "", true);
        check("app=web", "", true);
        check("app==web, tier!=back", "", true);
        check("app=web,tier=back", "", false);
        check("app in (api, web),tier notin (back)", "", true);
        check("app notin (api,web)", "", false);
        check("tier", "", true);
        check("!tier", "", false);
        check("!other,other!=x,other notin (x)", "", true);
        check("other=", "", false);
        check("", "spec.nodeName=n1,status.phase!=Failed", true);
        check("", "spec.nodeName=n2", false);
        check("", "spec.nodeName=", false);
        check("", "spec.hostNetwork=false", true);
        check("", "metadata.name=web,metadata.namespace=shop", true);
        check("app=web", "metadata.name=other", false);
    }

    #[test]
    fn a_field_that_is_not_served_is_refused() {
        let pods = Resource::named("pods").unwrap();
        let error = Selection::parse(pods, "", "", "spec.color=red").unwrap_err();
        assert_eq!(error, "field label not supported: spec.color");
        assert!(Selection::parse(pods, "", "a in b)", "").is_ok_and(|s| !s.is_everything()));
        assert!(Selection::parse(pods, "", "a in (b", "").is_err());
    }
}
