use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use ringfence_model::{Labels, Operator, Requirement, Selector};

use crate::digest::Digester;

/// A label selector in normal form: requirements sorted, without duplicates, `matchLabels` among them.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Matcher(Vec<Requirement>);

impl Matcher {
    pub(crate) fn new(selector: &Selector) -> Matcher {
        let exact = selector.match_labels.iter().map(|(key, value)| Requirement {
            key: key.clone(),
            operator: Operator::In(BTreeSet::from([value.clone()])),
        });
        let all: BTreeSet<Requirement> = selector.match_expressions.iter().cloned().chain(exact).collect();
        Matcher(all.into_iter().collect())
    }

    pub(crate) fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| {
            let value = labels.get(&requirement.key);
            match &requirement.operator {
                Operator::In(values) => value.is_some_and(|v| values.contains(v)),
                Operator::NotIn(values) => value.is_none_or(|v| !values.contains(v)),
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        })
    }

    /// A label that everything has that matches, with one of these values; of several the one with the fewest. Nothing when
    /// it demands no label with certain values.
    pub(crate) fn demand(&self) -> Option<(&Arc<str>, &BTreeSet<Arc<str>>)> {
        let demands = self.0.iter().filter_map(|requirement| match &requirement.operator {
            Operator::In(values) => Some((&requirement.key, values)),
            Operator::NotIn(_) | Operator::Exists | Operator::DoesNotExist => None,
        });
        demands.min_by_key(|(_, values)| values.len())
    }

    /// The label keys whose values it depends on.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.iter().map(|requirement| &requirement.key)
    }

    pub(crate) fn digest_into(&self, digester: &mut Digester) {
        digester.number(self.0.len());
        for requirement in &self.0 {
            digester.text(&requirement.key);
            let (operator, values) = match &requirement.operator {
                Operator::In(values) => ("In", Some(values)),
                Operator::NotIn(values) => ("NotIn", Some(values)),
                Operator::Exists => ("Exists", None),
                Operator::DoesNotExist => ("DoesNotExist", None),
            };
            digester.text(operator);
            digester.number(values.map_or(0, BTreeSet::len));
            for value in values.into_iter().flatten() {
                digester.text(value);
            }
        }
    }
}

/// As `kubectl` writes selectors: `app=db,tier in (a,b),!old`; `*` for the selector of everything.
impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("*");
        }
        for (i, Requirement { key, operator }) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match operator {
                Operator::In(values) if values.len() == 1 => {
                    write!(f, "{key}={}", values.first().map_or("", |v| v))?;
                }
                Operator::In(values) => write!(f, "{key} in ({})", joined(values))?,
                Operator::NotIn(values) => write!(f, "{key} notin ({})", joined(values))?,
                Operator::Exists => write!(f, "{key}")?,
                Operator::DoesNotExist => write!(f, "!{key}")?,
            }
        }
        Ok(())
    }
}

fn joined(values: &BTreeSet<Arc<str>>) -> String {
    values.iter().map(|v| &**v).collect::<Vec<_>>().join(",")
}
