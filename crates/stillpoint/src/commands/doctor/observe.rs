//! Reads the cluster, and writes nothing. What cannot be read is a fact as well.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{PersistentVolume, Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::{
    ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject,
};
use kube::api::ListParams;
use kube::client::Body;
use kube::{Api, Client, ResourceExt as _};
use serde::de::DeserializeOwned;
use stillpoint_api::clock::Clock;
use stillpoint_api::snapshot::{VolumeSnapshot, VolumeSnapshotClass};
use stillpoint_api::{Backup, BackupPolicy, ClusterHookTemplate};
use stillpoint_executor::context::HOOKS_ACCOUNT;
use stillpoint_executor::storage_path::PathRun;

use super::component;
use super::observed::{Authority, ClockOffset, Grant, Observed, Seen};
use crate::cluster::Cluster;
use crate::failure::Failure;

/// Objects per request: what kubectl takes.
const PAGE: u32 = 500;
/// The ClusterRole that namespaces bind to their hooks account.
const HOOKS_ROLE: &str = "stillpoint-hooks";
/// Account of the controller, by deploy/base.
const CONTROLLER_ACCOUNT: (&str, &str) = ("stillpoint-system", "stillpoint-controller");

/// Reads everything, the most of it at once.
///
/// # Errors
/// The cluster does not even tell its version.
pub(super) async fn observe(cluster: &Cluster, clock: &dyn Clock) -> Result<Observed, Failure> {
    let client = cluster.client();
    // The first question: a cluster that does not answer it needs no doctor.
    let version = cluster.call("cannot ask the cluster for its version", client.apiserver_version()).await?;
    let version = version_of(&version.major, &version.minor);
    let reader = Reader { cluster, client: client.clone() };
    let (clock, groups, pods, classes, volumes) = tokio::join!(
        clock_offset(&client, clock),
        reader.groups(),
        reader.list::<Pod>("pods"),
        reader.served::<VolumeSnapshotClass>("snapshot classes"),
        reader.list::<PersistentVolume>("volumes"),
    );
    let (snapshots, authority, accounts, policies, templates, backups) = tokio::join!(
        reader.snapshots(),
        reader.authority(),
        reader.hooks_accounts(),
        reader.served::<BackupPolicy>("policies"),
        reader.served::<ClusterHookTemplate>("templates"),
        reader.served::<Backup>("backups"),
    );
    Ok(Observed {
        version,
        clock,
        groups,
        components: pods.map(|pods| component::find(&pods)),
        classes,
        drivers: volumes.map(|volumes| drivers(&volumes)),
        snapshots,
        authority,
        opted_in: accounts,
        with_policies: policies.map(|policies| policies.map(|all| namespaces(&all))),
        templates: templates
            .map(|templates| templates.map(|all| all.iter().map(kube::ResourceExt::name_any).collect())),
        runs: backups.map(|backups| runs(&backups.unwrap_or_default())),
    })
}

struct Reader<'c> {
    cluster: &'c Cluster,
    client: Client,
}

impl Reader<'_> {
    /// All objects of a kind; a kind that is not served is a reason like any other.
    async fn list<K>(&self, what: &str) -> Seen<Vec<K>>
    where
        K: kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        self.pages(what, ListParams::default()).await.map_err(|failure| failure.why)
    }

    /// The same; `None` where the kind is not served.
    async fn served<K>(&self, what: &str) -> Seen<Option<Vec<K>>>
    where
        K: kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        match self.try_pages(what, ListParams::default()).await {
            Ok(found) => Ok(found),
            Err(failure) => Err(failure.why),
        }
    }

    async fn pages<K>(&self, what: &str, params: ListParams) -> Result<Vec<K>, Failure>
    where
        K: kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        match self.try_pages(what, params).await? {
            Some(all) => Ok(all),
            None => Err(Failure::new(format!("cannot list {what}"), "the cluster does not serve them", "")),
        }
    }

    async fn try_pages<K>(&self, what: &str, params: ListParams) -> Result<Option<Vec<K>>, Failure>
    where
        K: kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        let api: Api<K> = Api::all(self.client.clone());
        let mut params = params.limit(PAGE);
        let mut all = Vec::new();
        loop {
            let what = format!("cannot list {what}");
            let page = async {
                match api.list(&params).await {
                    Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
                    other => other.map(Some),
                }
            };
            let Some(page) = self.cluster.call(&what, page).await? else { return Ok(None) };
            all.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(Some(all)),
            }
        }
    }

    async fn groups(&self) -> Seen<BTreeMap<String, Vec<String>>> {
        let listed = self.cluster.call("cannot list API groups", self.client.list_api_groups()).await;
        let groups = listed.map_err(|failure| failure.why)?.groups.into_iter();
        Ok(groups
            .map(|group| (group.name, group.versions.into_iter().map(|version| version.version).collect()))
            .collect())
    }

    /// How many there are, without reading them.
    async fn snapshots(&self) -> Seen<Option<u64>> {
        let api: Api<VolumeSnapshot> = Api::all(self.client.clone());
        let first = ListParams::default().limit(1);
        let counting = async {
            match api.list_metadata(&first).await {
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
                other => other.map(Some),
            }
        };
        let page =
            self.cluster.call("cannot count snapshots", counting).await.map_err(|failure| failure.why)?;
        Ok(page.map(|page| {
            let rest = page.metadata.remaining_item_count.unwrap_or(0);
            page.items.len() as u64 + u64::try_from(rest).unwrap_or(0)
        }))
    }

    async fn hooks_accounts(&self) -> Seen<BTreeSet<String>> {
        let named = ListParams::default().fields(&format!("metadata.name={HOOKS_ACCOUNT}"));
        let accounts: Vec<ServiceAccount> =
            self.pages("service accounts", named).await.map_err(|failure| failure.why)?;
        Ok(namespaces(&accounts))
    }

    async fn authority(&self) -> Seen<Authority> {
        let (cluster_bindings, bindings, cluster_roles) = tokio::join!(
            self.list::<ClusterRoleBinding>("cluster role bindings"),
            self.list::<RoleBinding>("role bindings"),
            self.list::<ClusterRole>("cluster roles"),
        );
        let roles: BTreeMap<String, Vec<PolicyRule>> = cluster_roles?
            .into_iter()
            .map(|role| (role.name_any(), role.rules.unwrap_or_default()))
            .collect();
        let mut authority = Authority { hooks: roles.get(HOOKS_ROLE).cloned(), ..Authority::default() };
        for binding in cluster_bindings? {
            let place = format!("ClusterRoleBinding/{}", binding.name_any());
            let rules = roles.get(&binding.role_ref.name).cloned();
            note(&mut authority, None, &place, &binding.role_ref, binding.subjects.as_deref(), rules);
        }
        for binding in bindings? {
            let namespace = binding.namespace().unwrap_or_default();
            let place = format!("RoleBinding/{namespace}/{}", binding.name_any());
            let subjects = binding.subjects.as_deref();
            let rules = if binding.role_ref.kind == "ClusterRole" {
                roles.get(&binding.role_ref.name).cloned()
            } else if subjects.iter().flat_map(|all| all.iter()).any(is_wide) {
                let api: Api<Role> = Api::namespaced(self.client.clone(), &namespace);
                let read = self.cluster.call("cannot read a role", api.get_opt(&binding.role_ref.name)).await;
                read.map_err(|failure| failure.why)?.map(|role| role.rules.unwrap_or_default())
            } else {
                None
            };
            note(&mut authority, Some(&namespace), &place, &binding.role_ref, subjects, rules);
        }
        Ok(authority)
    }
}

/// A subject that every hooks account is a member of.
fn is_wide(subject: &Subject) -> bool {
    subject.kind == "Group"
        && (subject.name == "system:serviceaccounts" || subject.name.starts_with("system:serviceaccounts:"))
}

fn note(
    authority: &mut Authority,
    namespace: Option<&str>,
    binding: &str,
    role: &RoleRef,
    subjects: Option<&[Subject]>,
    rules: Option<Vec<PolicyRule>>,
) {
    for subject in subjects.unwrap_or_default() {
        let grant = || Grant {
            binding: binding.to_owned(),
            to: subject.name.clone(),
            role: format!("{}/{}", role.kind, role.name),
            rules: rules.clone(),
        };
        if is_wide(subject) {
            authority.to_all_accounts.push(grant());
        } else if subject.kind == "ServiceAccount" {
            let home = subject.namespace.as_deref().or(namespace).unwrap_or_default();
            if (home, subject.name.as_str()) == CONTROLLER_ACCOUNT {
                authority.to_controller.push(grant());
            } else if subject.name == HOOKS_ACCOUNT && role.name == HOOKS_ROLE {
                authority.bound.insert(namespace.unwrap_or(home).to_owned());
            }
        }
    }
}

fn namespaces<K: kube::Resource>(objects: &[K]) -> BTreeSet<String> {
    objects.iter().filter_map(|object| object.meta().namespace.clone()).collect()
}

/// Drivers that have volumes.
fn drivers(volumes: &[PersistentVolume]) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for spec in volumes.iter().filter_map(|volume| volume.spec.as_ref()) {
        if let Some(csi) = &spec.csi {
            found
                .entry(csi.driver.clone())
                .or_default()
                .insert(spec.storage_class_name.clone().unwrap_or_default());
        }
    }
    found
}

/// Storage paths by driver, newest first. A run over several drivers tells nothing about one of them.
fn runs(backups: &[Backup]) -> BTreeMap<String, Vec<PathRun>> {
    let mut dated: Vec<(Timestamp, String, PathRun)> = Vec::new();
    for status in
        backups.iter().filter(|backup| backup.finished()).filter_map(|backup| backup.status.as_ref())
    {
        let drivers: BTreeSet<&str> = status.members.iter().map(|member| member.driver.as_str()).collect();
        let begun = status.window.as_ref().and_then(|window| window.started_at.as_ref());
        if let (Some(begun), [driver], Some(run)) =
            (begun, drivers.into_iter().collect::<Vec<_>>().as_slice(), PathRun::of(status))
        {
            dated.push((begun.0, (*driver).to_owned(), run));
        }
    }
    dated.sort_by_key(|(begun, ..)| std::cmp::Reverse(*begun));
    let mut runs: BTreeMap<String, Vec<PathRun>> = BTreeMap::new();
    for (_, driver, run) in dated {
        runs.entry(driver).or_default().push(run);
    }
    runs
}

/// `1` and `36+` are 1.36.
fn version_of(major: &str, minor: &str) -> Seen<(u32, u32)> {
    let number = |text: &str| {
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u32>().map_err(|_| format!("it calls itself {major:?}.{minor:?}"))
    };
    Ok((number(major)?, number(minor)?))
}

async fn clock_offset(client: &Client, clock: &dyn Clock) -> Seen<ClockOffset> {
    let request = http::Request::get("/version").body(Body::empty()).map_err(|error| error.to_string())?;
    let before = clock.wall();
    let asked = tokio::time::timeout(crate::cluster::CALL_TIMEOUT, client.send(request)).await;
    let after = clock.wall();
    let answer = match asked {
        Ok(answer) => answer.map_err(|error| crate::cluster::chain(&error))?,
        Err(_) => return Err("the API server did not answer in time".to_owned()),
    };
    let date = answer.headers().get(http::header::DATE).and_then(|date| date.to_str().ok());
    let date = date.ok_or("the API server does not tell its time")?;
    let server = jiff::fmt::rfc2822::parse(date).map_err(|error| error.to_string())?.timestamp();
    Ok(ClockOffset {
        least: server.duration_since(after),
        // Whole seconds: it was up to one more.
        most: server.duration_since(before) + SignedDuration::from_secs(1),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_vendors_are_read() {
        assert_eq!(version_of("1", "36"), Ok((1, 36)));
        assert_eq!(version_of("1", "35+"), Ok((1, 35)));
        assert!(version_of("", "x").is_err());
    }

    #[test]
    fn only_finished_runs_on_one_driver_count_newest_first() {
        let backup = |name: &str, started: &str, drivers: &[&str], finished: bool| -> Backup {
            let members: Vec<_> = drivers
                .iter()
                .map(|driver| {
                    serde_json::json!({"application": "a", "podName": "p", "podUID": "u", "claimName": "c",
                        "volumeHandle": "v", "driver": driver, "storageClass": "", "capacity": "1Gi",
                        "volumeSnapshot": "s", "postSent": 0, "signal": 60000})
                })
                .collect();
            let conditions = if finished {
                serde_json::json!([{"type": "Finished", "status": "True", "reason": "Completed", "message": "",
                    "lastTransitionTime": started}])
            } else {
                serde_json::json!([])
            };
            serde_json::from_value(serde_json::json!({
                "apiVersion": "stillpoint.dev/v1alpha1", "kind": "Backup", "metadata": {"name": name},
                "spec": {"run": {"policyRef": {"name": "p"}}},
                "status": {"phase": if finished { "Succeeded" } else { "Freezing" }, "members": members,
                    "conditions": conditions, "window": {"startedAt": started}},
            }))
            .unwrap()
        };
        let found = runs(&[
            backup("old", "2026-01-01T00:00:00.000000Z", &["d"], true),
            backup("new", "2026-01-02T00:00:00.000000Z", &["d", "d"], true),
            backup("mixed", "2026-01-03T00:00:00.000000Z", &["d", "e"], true),
            backup("running", "2026-01-04T00:00:00.000000Z", &["d"], false),
        ]);
        let counts: Vec<usize> = found["d"].iter().map(|run| run.waits.len()).collect();
        assert_eq!((counts, found.len()), (vec![2, 1], 1));
    }
}
