//! Templates are kept by content: what a run used is stored once per namespace as a ControllerRevision named by its
//! digest, and checked against that digest whenever it is read (docs/api.md, templates).
//!
//! Whoever must undo a freeze later uses this copy: edits and deletions of the template in between change nothing.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use stillpoint_api::template::{Recipe, digest};

use crate::context::{Context, RequestError, bounded};
use crate::resolve::Refusal;

/// Label of kept templates.
pub const KEPT_LABEL: &str = "stillpoint.dev/kept";
/// Its value.
pub const KEPT_TEMPLATE: &str = "template";
/// Annotation that changes when a run relies on a copy that is there already, so that a removal which was decided before
/// finds another version.
const USED_ANNOTATION: &str = "stillpoint.dev/used-by";
/// Key of `data` under which the recipe is.
const DATA_KEY: &str = "recipe";
const PREFIX: &str = "stillpoint-template-";
/// Tries of a copy that is removed under our hands.
const TRIES: u32 = 3;

/// Name of the copy of a template with this digest.
pub fn kept_name(digest: &str) -> String {
    format!("{PREFIX}{digest}")
}

/// The digest that a name stands for.
pub fn kept_digest(name: &str) -> Option<&str> {
    name.strip_prefix(PREFIX)
}

/// Why a copy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// It could not be read.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// It is not there.
    #[error("the copy of the template is gone: ControllerRevision {0} was deleted")]
    Gone(String),
    /// It does not parse, or is not what its name says.
    #[error(
        "ControllerRevision {name} is not the template that the run used: {why}; it was changed by somebody"
    )]
    Changed {
        /// Its name.
        name: String,
        /// In what.
        why: String,
    },
}

/// Stores a template unless it is there; what is there already must be the same.
///
/// # Errors
/// A request failed, or something else has that name.
pub async fn keep(
    context: &Context,
    namespace: &str,
    recipe: &Recipe,
    backup_uid: &str,
) -> Result<(), Refusal> {
    let api: Api<ControllerRevision> = Api::namespaced(context.client.clone(), namespace);
    let digest = digest(recipe);
    let name = kept_name(&digest);
    let request = |error: RequestError| Refusal::request(&error);
    let wanted = revision(&name, recipe, backup_uid);
    for _ in 0..TRIES {
        let created =
            bounded("keep a copy of the template", api.create(&PostParams::default(), &wanted)).await;
        match created {
            Ok(_) => return Ok(()),
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(request(error)),
        }
        let used =
            Patch::Merge(serde_json::json!({"metadata": {"annotations": {USED_ANNOTATION: backup_uid}}}));
        let params = PatchParams::default();
        let patched = api.patch(&name, &params, &used);
        match bounded("use the kept copy of the template", patched).await {
            Ok(found) => {
                return read_recipe(&found, &digest)
                    .map(|_| ())
                    .map_err(|error| Refusal::stands("TemplateCopyChanged", format!("{error}: delete it")));
            }
            // Swept between the two requests.
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(request(error)),
        }
    }
    Err(Refusal::may_pass("TemplateNotKept", format!("ControllerRevision {name} goes and comes")))
}

/// The template that a run used.
///
/// # Errors
/// It is gone, was changed, or could not be read.
pub async fn read(context: &Context, namespace: &str, digest: &str) -> Result<Recipe, KeptError> {
    let api: Api<ControllerRevision> = Api::namespaced(context.client.clone(), namespace);
    let name = kept_name(digest);
    let found = bounded("read the kept copy of a template", api.get_opt(&name)).await?;
    read_recipe(&found.ok_or(KeptError::Gone(name))?, digest)
}

fn revision(name: &str, recipe: &Recipe, backup_uid: &str) -> ControllerRevision {
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(BTreeMap::from([(KEPT_LABEL.to_owned(), KEPT_TEMPLATE.to_owned())])),
            annotations: Some(BTreeMap::from([(USED_ANNOTATION.to_owned(), backup_uid.to_owned())])),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(serde_json::json!({DATA_KEY: stable_text(recipe)}))),
        revision: 1,
    }
}

/// The recipe as a JSON text in which nothing is written differently by another encoder.
///
/// The API server compares `data` byte by byte at every write and refuses a change; at a patch it encodes the stored
/// object anew and writes `<`, `>` and `&` as escapes (Go's `encoding/json`), so that a template with one of them
/// could never be used twice. As a string with these characters escaped beforehand it stays the same.
fn stable_text(recipe: &Recipe) -> String {
    // Only a map with keys that are no strings cannot be a JSON value; a recipe has none.
    let text = serde_json::to_string(recipe).unwrap_or_default();
    // In JSON these occur inside of strings only.
    let mut stable = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                stable.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
            other => stable.push(other),
        }
    }
    stable
}

fn read_recipe(revision: &ControllerRevision, wanted: &str) -> Result<Recipe, KeptError> {
    let changed = |why: String| KeptError::Changed { name: revision.name_any(), why };
    let data = revision.data.as_ref().and_then(|data| data.0.get(DATA_KEY)).and_then(|text| text.as_str());
    let recipe: Recipe =
        serde_json::from_str(data.unwrap_or_default()).map_err(|error| changed(error.to_string()))?;
    let found = digest(&recipe);
    if found != wanted {
        return Err(changed(format!("its digest is {found}")));
    }
    Ok(recipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_read_back_as_it_was_kept_and_a_changed_one_is_not() {
        let recipe =
            Recipe { description: Some("d".into()), data_paths: vec!["datadir".into()], ..Recipe::default() };
        let of = digest(&recipe);
        let mut revision = revision(&kept_name(&of), &recipe, "u");
        assert_eq!(read_recipe(&revision, &of).unwrap(), recipe);
        assert_eq!(kept_digest(&revision.name_any()), Some(of.as_str()));
        let another = Recipe { description: Some("another".into()), ..recipe.clone() };
        revision.data = Some(RawExtension(serde_json::json!({DATA_KEY: stable_text(&another)})));
        assert!(read_recipe(&revision, &of).unwrap_err().to_string().contains("its digest is"));
        revision.data = Some(RawExtension(serde_json::json!({"unknown": 1})));
        assert!(matches!(read_recipe(&revision, &of), Err(KeptError::Changed { .. })));
    }
    #[test]
    fn what_is_kept_has_nothing_that_the_api_server_would_write_differently() {
        let text = "SELECT IF(a>0 AND b<1, 'x&y', '\u{2028}')";
        let recipe = Recipe { description: Some(text.into()), ..Recipe::default() };
        let of = digest(&recipe);
        let revision = revision(&kept_name(&of), &recipe, "u");
        let sent = serde_json::to_string(&revision.data).unwrap();
        assert!(!sent.contains(['<', '>', '&', '\u{2028}', '\u{2029}']), "{sent}");
        assert_eq!(read_recipe(&revision, &of).unwrap(), recipe);
    }
}
