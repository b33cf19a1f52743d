use std::sync::Arc;

use ringfence_model::{Labels, Operator, Requirement, Selector};

/// Every entry of `matchLabels` and of `matchExpressions` must hold; a selector without entries matches everything.
pub(crate) fn matches(selector: &Selector, labels: &Labels) -> bool {
    for (key, wanted) in &selector.match_labels {
        match labels.get(key) {
            Some(value) if value == wanted => {}
            _ => return false,
        }
    }
    for requirement in &selector.match_expressions {
        if !holds(requirement, labels) {
            return false;
        }
    }
    true
}

/// Whether a namespace matches of which only the name is known. What asks for another label than that of the name may hold
/// or not, so it does not.
pub(crate) fn matches_by_name(selector: &Selector, name: &Arc<str>) -> bool {
    const NAME: &str = "kubernetes.io/metadata.name";
    for key in selector.match_labels.keys() {
        if &**key != NAME {
            return false;
        }
    }
    for requirement in &selector.match_expressions {
        if &*requirement.key != NAME {
            return false;
        }
    }
    matches(selector, &Labels::from([(NAME.into(), name.clone())]))
}

/// `NotIn` and `DoesNotExist` hold when the key is absent.
fn holds(requirement: &Requirement, labels: &Labels) -> bool {
    let value = labels.get(&requirement.key);
    match &requirement.operator {
        Operator::In(values) => match value {
            Some(value) => values.contains(value),
            None => false,
        },
        Operator::NotIn(values) => match value {
            Some(value) => !values.contains(value),
            None => true,
        },
        Operator::Exists => value.is_some(),
        Operator::DoesNotExist => value.is_none(),
    }
}
