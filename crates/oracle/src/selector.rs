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
