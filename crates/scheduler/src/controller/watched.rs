//! What the watches show, and which policies are looked at because of it.
//!
//! Guarantees: an object that cannot be read is told and counts for nothing; readiness is told once everything was listed.

use std::sync::Arc;

use kube::core::DeserializeGuard;
use kube::core::error_boundary::InvalidObject;
use kube::runtime::watcher::Event;
use stillpoint_api::backup::Backup;
use stillpoint_api::policy::BackupPolicy;

use super::Scheduler;
use crate::projection::PolicyKey;

impl Scheduler {
    pub(super) fn policy_event(&mut self, event: Event<DeserializeGuard<BackupPolicy>>) {
        match event {
            Event::Init => self.projection.policies_listing(),
            Event::InitDone => {
                for key in self.projection.policies_listed() {
                    self.policy_gone(&key);
                }
                self.policies_listed.done_once = true;
                self.all_listed();
            }
            Event::InitApply(DeserializeGuard(guarded)) | Event::Apply(DeserializeGuard(guarded)) => {
                self.policy_applied(guarded.as_ref());
            }
            Event::Delete(DeserializeGuard(guarded)) => {
                let metadata = match &guarded {
                    Ok(policy) => &policy.metadata,
                    Err(invalid) => &invalid.metadata,
                };
                let key = PolicyKey::new(
                    metadata.namespace.as_deref().unwrap_or_default(),
                    metadata.name.as_deref().unwrap_or_default(),
                );
                self.projection.policy_gone(&key);
                self.policy_gone(&key);
            }
        }
    }

    pub(super) fn policy_applied(&mut self, guarded: Result<&BackupPolicy, &InvalidObject>) {
        match guarded {
            // Our own status writes come back as well and change nothing.
            Ok(policy) => {
                self.context.rules.policy_applied(policy);
                if self.projection.policy_applied(policy) {
                    let key = PolicyKey::of(policy);
                    self.touch_orphans(&key);
                    self.enqueue(key);
                }
            }
            Err(invalid) => tracing::error!(
                namespace = invalid.metadata.namespace,
                policy = invalid.metadata.name,
                error = invalid.error,
                "a policy cannot be read and is not scheduled; correct it or reinstall the CRDs of this version"
            ),
        }
    }

    /// Looks at the policies of the namespaces for which other rules hold now.
    pub(super) fn rules_changed(&mut self) {
        let touched = self.context.rules.take_touched();
        let keys = self.projection.policies().filter(|key| touched.contains(&key.namespace));
        let keys: Vec<PolicyKey> = keys.cloned().collect();
        keys.into_iter().for_each(|key| self.enqueue(key));
        self.touch_orphans_in(&touched);
        self.all_listed();
    }

    pub(super) fn policy_gone(&mut self, key: &PolicyKey) {
        self.context.rules.policy_gone(key);
        self.due.remove(key);
        self.failures.remove(key);
        self.deletes_wait.remove(key);
        self.touch_orphans(key);
    }

    pub(super) fn backup_event(&mut self, event: Event<Arc<DeserializeGuard<Backup>>>) {
        match event {
            Event::Init => self.projection.backups_listing(),
            Event::InitDone => {
                for key in self.projection.backups_listed() {
                    self.backup_changed(Some(key));
                }
                self.backups_listed.done_once = true;
                self.all_listed();
            }
            Event::InitApply(backup) | Event::Apply(backup) => {
                self.backup_applied(backup.0.as_ref());
            }
            Event::Delete(backup) => {
                if let Ok(backup) = &backup.0 {
                    let touched = self.projection.backup_gone(backup);
                    self.backup_changed(touched);
                }
            }
        }
        self.context.set_frozen(self.projection.anything_frozen());
        self.resume_deletes();
    }

    pub(super) fn backup_applied(&mut self, guarded: Result<&Backup, &InvalidObject>) {
        match guarded {
            Ok(backup) => {
                let touched = self.projection.backup_applied(backup);
                if touched.is_some() {
                    self.doubt_backup(backup);
                }
                self.backup_changed(touched);
            }
            Err(invalid) => tracing::error!(
                namespace = invalid.metadata.namespace,
                backup = invalid.metadata.name,
                error = invalid.error,
                "a Backup cannot be read and is not counted; reinstall the CRDs of this version"
            ),
        }
    }

    pub(super) fn backup_changed(&mut self, policy: Option<PolicyKey>) {
        let Some(key) = policy else { return };
        self.touch_orphans(&key);
        if self.projection.has_policy(&key) {
            self.enqueue(key);
        }
    }

    pub(super) fn all_listed(&mut self) {
        if self.listed() && !self.ready.send_replace(true) {
            let policies = self.projection.policies().count();
            tracing::info!(policies, "the scheduler has listed all policies and backups");
            self.begin();
        }
    }
}
