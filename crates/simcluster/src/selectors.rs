//! Label and field selectors as the API server reads them: equality, `in`, `notin`, existence; fields by dotted
//! path. A selector that cannot be read is refused, never ignored.

use serde_json::Value;

use crate::error::ApiError;

/// The conjunction of a label selector and a field selector.
#[derive(Clone, Debug, Default)]
pub struct Selectors {
    labels: Vec<(String, Requirement)>,
    fields: Vec<(String, bool, String)>,
}

#[derive(Clone, Debug)]
enum Requirement {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
}

impl Selectors {
    /// Reads both selectors in their query-parameter form; empty selects everything.
    pub fn parse(labels: &str, fields: &str) -> Result<Self, ApiError> {
        let labels = split_outside_parens(labels)
            .into_iter()
            .map(|term| parse_label_term(term.trim()))
            .collect::<Result<_, _>>()?;
        let fields = fields
            .split(',')
            .filter(|term| !term.trim().is_empty())
            .map(|term| parse_field_term(term.trim()))
            .collect::<Result<_, _>>()?;
        Ok(Self { labels, fields })
    }

    /// Whether everything is selected.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether labels alone decide.
    pub fn only_labels(&self) -> bool {
        self.fields.is_empty()
    }

    /// Whether `object` is selected.
    pub fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.labels.iter().all(|(key, requirement)| requirement.holds(labels[key.as_str()].as_str()))
            && self.fields.iter().all(|(path, equal, value)| (field(object, path) == *value) == *equal)
    }
}

impl Requirement {
    fn holds(&self, label: Option<&str>) -> bool {
        match self {
            Self::In(values) => label.is_some_and(|label| values.iter().any(|value| value == label)),
            Self::NotIn(values) => label.is_none_or(|label| values.iter().all(|value| value != label)),
            Self::Exists => label.is_some(),
            Self::Absent => label.is_none(),
        }
    }
}

fn field(object: &Value, path: &str) -> String {
    let found = path.split('.').try_fold(object, |at, step| at.get(step));
    match found {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    }
}

fn split_outside_parens(selector: &str) -> Vec<&str> {
    let (mut depth, mut start, mut terms) = (0_i32, 0, Vec::new());
    for (at, letter) in selector.char_indices() {
        match letter {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                terms.push(&selector[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    terms.push(&selector[start..]);
    terms.retain(|term| !term.trim().is_empty());
    terms
}

fn parse_label_term(term: &str) -> Result<(String, Requirement), ApiError> {
    let unreadable = || ApiError::bad_request(format!("unable to parse requirement: {term:?}"));
    if let Some((head, values)) = term.split_once('(') {
        let values = values.strip_suffix(')').ok_or_else(unreadable)?;
        let values = values.split(',').map(|value| value.trim().to_owned()).collect();
        let (key, operator) = head.trim().rsplit_once(char::is_whitespace).ok_or_else(unreadable)?;
        return match operator {
            "in" => Ok((key.trim().to_owned(), Requirement::In(values))),
            "notin" => Ok((key.trim().to_owned(), Requirement::NotIn(values))),
            _ => Err(unreadable()),
        };
    }
    for (operator, negated) in [("!=", true), ("==", false), ("=", false)] {
        if let Some((key, value)) = term.split_once(operator) {
            let values = vec![value.trim().to_owned()];
            let requirement = if negated { Requirement::NotIn(values) } else { Requirement::In(values) };
            return Ok((key.trim().to_owned(), requirement));
        }
    }
    match term.strip_prefix('!') {
        Some(key) => Ok((key.trim().to_owned(), Requirement::Absent)),
        None if term.contains(char::is_whitespace) => Err(unreadable()),
        None => Ok((term.to_owned(), Requirement::Exists)),
    }
}

fn parse_field_term(term: &str) -> Result<(String, bool, String), ApiError> {
    for (operator, equal) in [("!=", false), ("==", true), ("=", true)] {
        if let Some((path, value)) = term.split_once(operator) {
            return Ok((path.trim().to_owned(), equal, value.trim().to_owned()));
        }
    }
    Err(ApiError::bad_request(format!(
        "invalid field selector {term:?}: it must be path=value or path!=value"
    )))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_read_as_the_api_server_reads_them() {
        let object = json!({
            "metadata": {"name": "pg-0", "labels": {"app": "pg", "tier": "db"}},
            "status": {"phase": "Running"}, "spec": {"replicas": 3},
        });
        for (labels, fields, selected) in [
            ("", "", true),
            ("app=pg", "", true),
            ("app==pg,tier!=web", "", true),
            ("app in (pg, maria),tier", "", true),
            ("app notin (pg)", "", false),
            ("!zone", "", true),
            ("!app", "", false),
            ("zone!=a", "", true),
            ("", "metadata.name=pg-0,status.phase!=Failed", true),
            ("", "spec.replicas=3", true),
            ("", "spec.nodeName=", true),
            ("", "spec.nodeName=a", false),
        ] {
            let selectors = Selectors::parse(labels, fields).unwrap();
            assert_eq!(selectors.matches(&object), selected, "{labels} / {fields}");
        }
        assert!(Selectors::parse("app in pg", "").is_err());
        assert!(Selectors::parse("", "metadata.name").is_err());
    }
}
