//! The shipped templates with their parameters filled in.

use std::collections::BTreeMap;
use std::path::Path;

use stillpoint_api::ClusterHookTemplate;
use stillpoint_api::template::{self, Recipe};

use crate::Outcome;

/// The template `name` with these parameters.
pub fn recipe(name: &str, parameters: &[(&str, String)]) -> Outcome<Recipe> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../config/templates/{name}.yaml"));
    let text = std::fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    // Through JSON: a YAML reader takes the unions of the API for something else.
    let value: serde_json::Value = serde_yaml::from_str(&text).map_err(|error| error.to_string())?;
    let template: ClusterHookTemplate = serde_json::from_value(value).map_err(|error| error.to_string())?;
    let set: BTreeMap<String, String> =
        parameters.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    template::substitute(&template.spec.0, &set).map_err(|found| format!("{found:?}"))
}
