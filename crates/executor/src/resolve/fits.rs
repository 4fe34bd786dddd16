//! Whether the cuts of an application can become what is asked for: refused before anything is frozen for nothing. Pure.

use stillpoint_api::evidence::{CutKind, MemberEvidence};
use stillpoint_api::policy::Requirement;
use stillpoint_api::template::Layout;

use super::Refusal;
use super::decide::{Picked, hold_kind};
use crate::run::Plan;
use crate::verdict::torn_pod;

impl Picked<'_> {
    /// Refuses cuts that rule 8 of the verdict could never pass.
    ///
    /// # Errors
    /// The storage is not known to cut at one instant, or the volumes are cut one by one where that proves nothing.
    pub(super) fn fits(&self, plan: &Plan) -> Result<(), Refusal> {
        if self.one.options.requirement != Requirement::Required {
            return Ok(());
        }
        let (name, recipe) = (self.name(), &self.recipe);
        let locks = hold_kind(recipe).locks();
        let members: Vec<&MemberEvidence> =
            plan.members.iter().filter(|member| member.application == name).collect();
        if let Some(member) = members.iter().find(|member| member.storage.cut == CutKind::Copy)
            && !(locks && recipe.copy_safe.is_some())
        {
            return Err(Refusal::stands(
                "StorageNotTrusted",
                format!(
                    "application {name}: claim {} is on driver {}, which is not known to cut at one instant, and the \
                     template is not proven for copies: an operator who knows the driver adds it to the controller's \
                     --storage-trust file, with a reason; consistency: BestEffort keeps what can be had",
                    member.claim_name, member.driver
                ),
            ));
        }
        let staged = members.iter().any(|member| member.stage > 0);
        if staged || (locks && recipe.layout == Layout::AnyUnderLock) {
            return Ok(());
        }
        let Some((pod, torn)) = torn_pod(&members) else { return Ok(()) };
        let several: Vec<&str> = torn.iter().map(|member| member.claim_name.as_str()).collect();
        let why = if locks {
            "a lock on commits does not stop the server from writing its pages, so volumes that are cut one after the \
             other do not belong together"
        } else {
            "volumes that are cut one after the other are of different instants"
        };
        Err(Refusal::stands(
            "SeveralVolumes",
            format!(
                "application {name}: pod {pod} has {} volumes ({}) and the template is proven for one: {why}; cut them as one \
                 group on a driver whose groups are write-ordered (snapshot.group), use a template for several volumes \
                 (mysql-flushed writes every page before the cut, postgresql-staged cuts in order), or exclude those that the \
                 server does not write (volumes.exclude)",
                several.len(),
                several.join(", ")
            ),
        ))
    }
}
