//! The connection to the cluster, and what its refusals mean for a person.
//!
//! Guarantees: every call ends within [`CALL_TIMEOUT`]; nothing is sent twice behind the caller's back.

use std::fmt::Debug;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use futures::StreamExt as _;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Config, Resource};
use serde::de::DeserializeOwned;

use crate::failure::{Exit, Failure, near};

/// Longest time one call may take: the API server itself ends requests after 60 s, people give up before.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Which cluster and namespace.
#[derive(Args, Clone, Debug, Default)]
pub struct ClusterArgs {
    /// Namespace of the objects. Default: that of the kubeconfig's context
    #[arg(short, long, global = true, value_name = "NAME", help_heading = "Cluster")]
    pub namespace: Option<String>,
    /// Context of the kubeconfig. Default: the current one
    #[arg(long, global = true, value_name = "NAME", help_heading = "Cluster")]
    pub context: Option<String>,
    /// The kubeconfig. Default: $KUBECONFIG, ~/.kube/config, or the pod's own account
    #[arg(long, global = true, value_name = "FILE", help_heading = "Cluster")]
    pub kubeconfig: Option<PathBuf>,
}

/// A connection and the namespace it works in.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    /// The namespace.
    pub namespace: String,
}

/// How waiting for an object ended.
#[derive(Debug)]
pub enum Waited<K> {
    /// As it was when it was finished.
    Done(K),
    /// It was not finished in time.
    TimedOut,
    /// Somebody deleted it.
    Gone,
}

impl Cluster {
    /// Connects as the arguments say. Nothing is sent yet.
    ///
    /// # Errors
    /// No usable kubeconfig.
    pub async fn connect(args: &ClusterArgs) -> Result<Self, Failure> {
        let config = config(args).await?;
        let namespace = args.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(|error| no_cluster(chain(&error)))?;
        Ok(Self { client, namespace })
    }

    /// The connection, for what is not in one namespace.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Objects of this namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// One object; when it is not there, the names that were perhaps meant.
    ///
    /// # Errors
    /// Not found, forbidden, not reachable.
    pub async fn get<K>(&self, name: &str) -> Result<K, Failure>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        let api: Api<K> = self.api();
        let what = format!("cannot read {} {name:?}", K::kind(&()));
        if let Some(found) = self.call(&what, api.get_opt(name)).await? {
            return Ok(found);
        }
        let listed = self.call(&what, api.list(&ListParams::default().limit(500))).await?;
        let names: Vec<String> = listed.iter().map(kube::ResourceExt::name_any).collect();
        let meant = near(name, names.iter().map(String::as_str));
        let cure = if names.is_empty() {
            format!(
                "there is no {} in namespace {}: is it another one? (-n NAME)",
                K::kind(&()),
                self.namespace
            )
        } else if meant.is_empty() {
            format!("there are {}; is it another namespace? (-n NAME)", first(&names))
        } else {
            format!("did you mean {}?", meant.join(" or "))
        };
        Err(Failure::new(what, format!("it does not exist in namespace {}", self.namespace), cure))
    }

    /// One call with a deadline; `what` says what fails with it.
    ///
    /// # Errors
    /// The API server's refusal, explained; or no answer in time.
    pub async fn call<T>(
        &self,
        what: &str,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(answer) => answer.map_err(|error| explain(what, &self.namespace, &error)),
            Err(_) => Err(Failure::new(
                what,
                format!("the API server did not answer within {} s", CALL_TIMEOUT.as_secs()),
                "check that the cluster is up: `kubectl get --raw /readyz`",
            )),
        }
    }

    /// Watches one object until `finished` says so. `finished` sees every state that was seen.
    ///
    /// # Errors
    /// A refusal that waiting does not cure; interruptions are waited out.
    pub async fn wait<K>(
        &self,
        name: &str,
        limit: Duration,
        mut finished: impl FnMut(&K) -> bool,
    ) -> Result<Waited<K>, Failure>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + 'static,
    {
        let what = format!("cannot watch {} {name:?}", K::kind(&()));
        let watching = async {
            let mut seen = watcher::watch_object::<K>(self.api(), name).default_backoff().boxed();
            while let Some(state) = seen.next().await {
                match state {
                    Ok(Some(object)) if finished(&object) => return Ok(Waited::Done(object)),
                    Ok(Some(_)) => {}
                    Ok(None) => return Ok(Waited::Gone),
                    Err(error) => {
                        if let Some(refusal) = refused(&error) {
                            return Err(explain(&what, &self.namespace, refusal));
                        }
                    }
                }
            }
            Ok(Waited::TimedOut)
        };
        tokio::time::timeout(limit, watching).await.unwrap_or(Ok(Waited::TimedOut))
    }
}

/// How to reach the cluster, as the arguments say. Nothing is sent.
///
/// # Errors
/// No usable kubeconfig.
pub async fn config(args: &ClusterArgs) -> Result<Config, Failure> {
    let options = KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
    let mut config = match &args.kubeconfig {
        Some(file) => {
            let read = Kubeconfig::read_from(file).map_err(|error| no_cluster(chain(&error)))?;
            Config::from_custom_kubeconfig(read, &options).await.map_err(|error| no_cluster(chain(&error)))?
        }
        None if args.context.is_some() => {
            Config::from_kubeconfig(&options).await.map_err(|error| no_cluster(chain(&error)))?
        }
        None => Config::infer().await.map_err(|error| no_cluster(chain(&error)))?,
    };
    // The client would repeat a POST that was answered 503; a create that was done twice looks like a conflict.
    config.default_retry = false;
    Ok(config)
}

fn no_cluster(why: String) -> Failure {
    Failure::new(
        "no cluster to talk to",
        why,
        "set KUBECONFIG or --kubeconfig to a file that `kubectl get ns` works with, and --context to one of its contexts",
    )
    .exiting(Exit::Usage)
}

/// The part of a watch error that the API server will repeat however long one waits.
fn refused(error: &watcher::Error) -> Option<&kube::Error> {
    let inner = match error {
        watcher::Error::InitialListFailed(inner)
        | watcher::Error::WatchStartFailed(inner)
        | watcher::Error::WatchFailed(inner) => inner,
        watcher::Error::WatchError(_) | watcher::Error::NoResourceVersion => return None,
    };
    match inner {
        kube::Error::Api(status) if matches!(status.code, 401 | 403 | 404) => Some(inner),
        _ => None,
    }
}

/// What a refusal means and what to do about it.
fn explain(what: &str, namespace: &str, error: &kube::Error) -> Failure {
    match error {
        kube::Error::Api(status) => match status.code {
            401 => Failure::new(
                what,
                "the API server does not know who you are",
                "log in again, or choose another --context",
            ),
            403 => Failure::new(
                what,
                status.message.clone(),
                format!(
                    "ask for the right: `kubectl auth can-i --list -n {namespace}` shows what you may do"
                ),
            ),
            // A 404 for a named object is handled where it is asked for: this one is for the whole resource.
            404 if status.details.as_ref().is_none_or(|details| details.name.is_empty()) => Failure::new(
                what,
                "this cluster does not know the kinds of stillpoint.dev",
                "install them: `stillpoint crd | kubectl apply --server-side -f -`",
            ),
            409 => Failure::new(what, status.message.clone(), "choose another --name"),
            422 | 400 => {
                let causes = status.details.iter().flat_map(|details| &details.causes);
                let fields: Vec<String> =
                    causes.map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
                let why = if fields.is_empty() { status.message.clone() } else { fields.join("; ") };
                Failure::new(what, why, "")
            }
            _ => Failure::new(what, status.message.clone(), ""),
        },
        other => Failure::new(
            what,
            chain(other),
            "check that the cluster is up and that the kubeconfig names it: `kubectl cluster-info`",
        ),
    }
}

/// An error and what it came from, in one line and without repetitions.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = inner.source();
    }
    text
}

fn first(names: &[String]) -> String {
    let shown = names.iter().take(5).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > 5 { format!("{shown} and {} more", names.len() - 5) } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16, details: serde_json::Value) -> kube::Error {
        let status = serde_json::json!({
            "status": "Failure", "code": code, "message": "no", "reason": "X", "details": details,
        });
        kube::Error::Api(Box::new(serde_json::from_value(status).unwrap()))
    }

    #[test]
    fn a_cluster_without_our_kinds_is_told_how_to_get_them() {
        let failure = explain("cannot list Backups", "shop", &status(404, serde_json::json!({})));
        assert!(failure.cure.contains("stillpoint crd | kubectl apply --server-side -f -"), "{failure}");
    }

    #[test]
    fn a_forbidden_call_says_how_to_see_ones_rights() {
        let failure = explain("cannot list Backups", "shop", &status(403, serde_json::json!({"name": "x"})));
        assert!(failure.cure.contains("kubectl auth can-i --list -n shop"), "{failure}");
    }

    #[test]
    fn a_refused_object_names_its_fields() {
        let causes =
            serde_json::json!({"causes": [{"field": "spec.run", "message": "exactly one", "reason": "X"}]});
        let failure = explain("cannot create Backup", "shop", &status(422, causes));
        assert_eq!(failure.why, "spec.run: exactly one");
    }
}
