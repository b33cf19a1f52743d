//! Label selectors.

use std::collections::BTreeSet;
use std::sync::Arc;

use ringfence_model::{Operator, Requirement, Selector};

use crate::diagnostic::shown;
use crate::names::{is_label_key, is_label_value};
use crate::read::{At, Fields, Report, labels, mapping, string};

/// Reads a selector. Everything wrong is reported; the caller looks at the report to know whether to trust it.
pub(crate) fn selector(report: &mut Report, at: &At<'_>) -> Selector {
    let mut selector = Selector::default();
    let Some(fields) = mapping(report, at) else { return selector };
    fields.only(report, &["matchLabels", "matchExpressions"], |name| {
        Some(match name {
            "matchlabels" | "MatchLabels" | "matchLabel" | "labels" => "write `matchLabels`",
            "matchexpressions" | "MatchExpressions" | "matchExpression" => "write `matchExpressions`",
            "podSelector" | "namespaceSelector" => "it stands beside this selector: check the indentation",
            _ => "a label belongs under `matchLabels`: `matchLabels: {key: \"value\"}`",
        })
    });
    if let Some(at) = fields.get("matchLabels") {
        selector.match_labels = labels(report, &at);
    }
    fields.each(report, "matchExpressions", |report, at| {
        if let Some(requirement) = requirement(report, at) {
            selector.match_expressions.push(requirement);
        }
    });
    if let Some(at) = fields.left_empty("matchLabels")
        && selector.match_expressions.is_empty()
    {
        report.warning(
            &at,
            "`matchLabels` is left empty, so it selects everything",
            "name the labels, or write {} if everything is what you mean",
        );
    }
    selector
}

fn requirement(report: &mut Report, at: &At<'_>) -> Option<Requirement> {
    let fields = mapping(report, at)?;
    fields.only(report, &["key", "operator", "values"], |name| match name {
        "value" => Some("write `values`, a list: `values: [...]`"),
        "op" => Some("write `operator`"),
        _ => None,
    });
    let key = key(report, fields);
    let values = values(report, fields);
    let operator = operator(report, fields, values);
    Some(Requirement { key: key?, operator: operator? })
}

fn key(report: &mut Report, fields: Fields<'_>) -> Option<Arc<str>> {
    let Some(at) = fields.get("key") else {
        report.error(&fields.at.missing("key"), "the label `key` is missing");
        return None;
    };
    let key = string(report, &at, "label key")?;
    if !is_label_key(key) {
        report.error(&at, format!("\"{}\" is not a label key", shown(key)));
        return None;
    }
    Some(key.into())
}

fn values(report: &mut Report, fields: Fields<'_>) -> BTreeSet<Arc<str>> {
    let mut values = BTreeSet::new();
    fields.each(report, "values", |report, at| match string(report, at, "label value") {
        Some(value) if is_label_value(value) => {
            values.insert(value.into());
        }
        Some(value) => report.error(at, format!("\"{}\" is not a label value", shown(value))),
        None => {}
    });
    values
}

/// `In` and `NotIn` need values, `Exists` and `DoesNotExist` must have none.
fn operator(report: &mut Report, fields: Fields<'_>, values: BTreeSet<Arc<str>>) -> Option<Operator> {
    let Some(at) = fields.get("operator") else {
        report.error_hint(&fields.at.missing("operator"), "the `operator` is missing", OPERATORS);
        return None;
    };
    let text = string(report, &at, "operator")?;
    // What is not a list is reported already.
    let written = fields.get("values").map_or(Some(0), |at| at.list_length())?;
    match text {
        "In" | "NotIn" if written == 0 => {
            report.error(&fields.at.missing("values"), format!("operator {text} needs `values`"));
            None
        }
        "In" => Some(Operator::In(values)),
        "NotIn" => Some(Operator::NotIn(values)),
        "Exists" | "DoesNotExist" if written > 0 => {
            let at = fields.get("values").unwrap_or(at);
            let hint = "take them away, or use In or NotIn";
            report.error_hint(&at, format!("operator {text} must have no values"), hint);
            None
        }
        "Exists" => Some(Operator::Exists),
        "DoesNotExist" => Some(Operator::DoesNotExist),
        _ => {
            report.error_hint(&at, format!("\"{}\" is not an operator", shown(text)), OPERATORS);
            None
        }
    }
}

const OPERATORS: &str = "the operators are In, NotIn, Exists and DoesNotExist";
