//! What becomes of the data of a Backup that is being deleted: it goes, it stays behind, or the Backup waits.
//!
//! [`decide`] is pure. Guarantees: nothing goes with its namespace or with the definition of Backups; a held point and one that
//! a Restore reads stay as they are, whoever deletes them and whether or not an admission policy is installed; what could not
//! be found out deletes nothing (docs/retention.md).

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use stillpoint_api::backup::{ABANDON_ANNOTATION, Backup, FINISHED};
use stillpoint_api::conditions;
use stillpoint_api::restore::Restore;

use crate::context::{Context, RequestError, bounded};

/// Name of the definition of Backups: where it is being deleted, the API server deletes every Backup.
const DEFINITION: &str = "backups.stillpoint.dev";

/// Event, and reason to wait: the point is under a legal hold.
pub const DELETION_HELD: &str = "DeletionHeld";
/// Event, and reason to wait: a Restore reads the point.
pub const DELETION_WAITS: &str = "DeletionWaits";

/// What is known when a Backup is to go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Circumstances {
    /// Its namespace is being deleted, or gone.
    pub namespace_ends: bool,
    /// The definition of Backups is being deleted.
    pub definition_ends: bool,
    /// Why it is held (`Backup.spec.hold`).
    pub held: Option<String>,
    /// It has the annotation that keeps the data.
    pub abandoned: bool,
    /// Restores that read it and have not finished.
    pub read_by: Vec<String>,
}

/// What becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Its snapshots and their data go, then it.
    Delete,
    /// It goes at once, and its data stays, for this reason.
    Leave(&'static str),
    /// It stays as it is.
    Wait(Wait),
}

/// Why a deleted Backup stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Reason of the event.
    pub reason: &'static str,
    /// What to do about it.
    pub note: String,
}

/// Decides what becomes of a deleted Backup.
pub fn decide(found: &Circumstances) -> Ending {
    // A finalizer that waited here would keep the namespace, or every Backup of the cluster, from ending; the contents are
    // Retain, so that what is held is still there.
    if found.namespace_ends {
        return Ending::Leave("its namespace is being deleted");
    }
    if found.definition_ends {
        return Ending::Leave("the definition of Backups is being deleted");
    }
    if let Some(reason) = &found.held {
        return Ending::Wait(Wait {
            reason: DELETION_HELD,
            note: format!(
                "the Backup was deleted and is under a legal hold ({reason}): it and its data stay until spec.hold is \
                 removed; then they go"
            ),
        });
    }
    if found.abandoned {
        return Ending::Leave("abandoned");
    }
    if !found.read_by.is_empty() {
        return Ending::Wait(Wait {
            reason: DELETION_WAITS,
            note: format!(
                "the Backup was deleted while Restore {} reads it: its data goes when that has finished",
                found.read_by.join(", ")
            ),
        });
    }
    Ending::Delete
}

/// Reads what [`decide`] needs.
///
/// # Errors
/// A request failed: nothing is to be deleted before it is known.
pub async fn look(
    context: &Context,
    namespace: &str,
    backup: &Backup,
) -> Result<Circumstances, RequestError> {
    let spaces: Api<Namespace> = Api::all(context.client.clone());
    let space = bounded("read the namespace", spaces.get_metadata_opt(namespace)).await?;
    let definitions: Api<CustomResourceDefinition> = Api::all(context.client.clone());
    let definition =
        bounded("read the definition of Backups", definitions.get_metadata_opt(DEFINITION)).await?;
    let restores: Api<Restore> = Api::namespaced(context.client.clone(), namespace);
    let restores = match bounded("list the Restores", restores.list(&ListParams::default())).await {
        Ok(listed) => listed.items,
        // Their definition is gone, and they with it.
        Err(error) if error.is_not_found() => Vec::new(),
        Err(error) => return Err(error),
    };
    let name = backup.name_any();
    Ok(Circumstances {
        namespace_ends: space.is_none_or(|space| space.metadata.deletion_timestamp.is_some()),
        definition_ends: definition.is_some_and(|found| found.metadata.deletion_timestamp.is_some()),
        held: backup.spec.hold.as_ref().map(|hold| hold.reason.clone()),
        abandoned: backup.annotations().get(ABANDON_ANNOTATION).is_some_and(|value| value == "true"),
        read_by: restores.iter().filter(|restore| reads(restore, &name)).map(ResourceExt::name_any).collect(),
    })
}

/// A Restore names its Backup in its status before it makes anything.
fn reads(restore: &Restore, backup: &str) -> bool {
    restore.status.as_ref().is_some_and(|status| {
        status.backup.as_deref() == Some(backup) && !conditions::is_true(&status.conditions, FINISHED)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held() -> Circumstances {
        Circumstances { held: Some("case 4711".into()), ..Circumstances::default() }
    }

    #[test]
    fn a_deleted_backup_takes_its_data_along_unless_something_speaks_against_it() {
        assert_eq!(decide(&Circumstances::default()), Ending::Delete);
        let abandoned = Circumstances { abandoned: true, ..Circumstances::default() };
        assert_eq!(decide(&abandoned), Ending::Leave("abandoned"));
    }

    #[test]
    fn no_data_goes_with_its_namespace_or_with_the_definition_held_or_not() {
        for circumstances in [held(), Circumstances::default()] {
            let space = Circumstances { namespace_ends: true, ..circumstances.clone() };
            let definition = Circumstances { definition_ends: true, ..circumstances };
            for ending in [decide(&space), decide(&definition)] {
                assert!(matches!(ending, Ending::Leave(_)), "{ending:?}");
            }
        }
    }

    #[test]
    fn a_held_point_stays_even_when_it_is_abandoned_and_says_why() {
        let Ending::Wait(wait) = decide(&Circumstances { abandoned: true, ..held() }) else {
            panic!("it went")
        };
        assert_eq!(wait.reason, DELETION_HELD);
        assert!(wait.note.contains("case 4711") && wait.note.contains("spec.hold"), "{}", wait.note);
    }

    #[test]
    fn a_point_that_a_restore_reads_stays_until_that_has_finished() {
        let read = Circumstances { read_by: vec!["r".into()], ..Circumstances::default() };
        let Ending::Wait(wait) = decide(&read) else { panic!("it went") };
        assert_eq!(wait.reason, DELETION_WAITS);
        assert!(wait.note.contains("Restore r"), "{}", wait.note);
    }
}
