//! Requests in somebody's name, and who refused them: the rights, an admission policy, or the kind's own rules.

use std::fmt;

use http::{Method, Request};
use k8s_openapi::api::authorization::v1::{ResourceRule, SelfSubjectRulesReview};
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::{Outcome, Problem};

/// Somebody to ask as.
pub struct Asker {
    client: Client,
}

/// How a request was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It would be done.
    Allowed,
    /// RBAC refused it.
    NoRight(String),
    /// An admission policy of this name refused it.
    Policy {
        /// Its name.
        name: String,
        /// What the person reads.
        message: String,
    },
    /// The kind's own rules refused it.
    Invalid(String),
}

/// A request; all but execs are dry runs, which pass authorization and admission like any other.
#[derive(Clone, Debug)]
pub struct Ask {
    /// GET, POST, PATCH (a merge patch), DELETE.
    pub method: Method,
    /// Path without a query.
    pub path: String,
    /// Object or patch.
    pub body: Option<Value>,
}

impl Asker {
    /// As a user or service account, by impersonation with all rights of the suite. The groups of a service account follow.
    ///
    /// # Errors
    /// No kubeconfig.
    pub async fn user(cluster: &Cluster, name: &str) -> Outcome<Self> {
        let mut config = config(cluster).await?;
        config.auth_info.impersonate = Some(name.to_owned());
        Ok(Self { client: Client::try_from(config)? })
    }

    /// With a token, as somebody who took it would.
    ///
    /// # Errors
    /// No kubeconfig.
    pub async fn token(cluster: &Cluster, token: String) -> Outcome<Self> {
        let mut config = config(cluster).await?;
        config.auth_info = kube::config::AuthInfo { token: Some(token.into()), ..Default::default() };
        Ok(Self { client: Client::try_from(config)? })
    }

    /// The rules that the API server tells the asker about itself.
    ///
    /// # Errors
    /// It does not.
    pub async fn rules(&self, review: SelfSubjectRulesReview) -> Outcome<Vec<ResourceRule>> {
        let reviews: Api<SelfSubjectRulesReview> = Api::all(self.client.clone());
        let answer = reviews.create(&PostParams::default(), &review).await?;
        Ok(answer.status.map(|status| status.resource_rules).unwrap_or_default())
    }

    /// Asks, and says who refused.
    ///
    /// # Errors
    /// The request failed in another way: it says nothing about rights.
    pub async fn ask(&self, ask: &Ask) -> Outcome<Answer> {
        let exec = ask.path.ends_with("/exec");
        // An exec has no dry run. Without an upgrade it passes authorization and admission and goes no further.
        let query = match (&ask.method, exec) {
            (_, true) => "?container=mariadb&stdout=true&command=true",
            (&Method::GET, false) => "?limit=1",
            (_, false) => "?dryRun=All",
        };
        let patch = ask.method == Method::PATCH;
        let kind = if patch { "application/merge-patch+json" } else { "application/json" };
        let body = ask.body.as_ref().map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(ask.method.clone())
            .uri(format!("{}{query}", ask.path))
            .header(http::header::CONTENT_TYPE, kind)
            .body(body.into_bytes())?;
        let status = match self.client.request_text(request).await {
            Ok(_) => return Ok(Answer::Allowed),
            Err(kube::Error::Api(status)) => status,
            Err(other) => return Err(other.into()),
        };
        let message = status.message.clone();
        match status.code {
            400 if exec && message.contains("pgrade") => Ok(Answer::Allowed),
            403 | 422 if message.contains("ValidatingAdmissionPolicy '") => {
                let named = message.split("ValidatingAdmissionPolicy '").nth(1).unwrap_or_default();
                let name = named.split('\'').next().unwrap_or_default().to_owned();
                let told = message.split("denied request: ").nth(1).unwrap_or(&message);
                Ok(Answer::Policy { name, message: told.to_owned() })
            }
            403 => Ok(Answer::NoRight(message)),
            422 => Ok(Answer::Invalid(message)),
            code => Err(Problem(format!("{} {}: {code} {message}", ask.method, ask.path))),
        }
    }
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asker").finish_non_exhaustive()
    }
}

async fn config(cluster: &Cluster) -> Outcome<Config> {
    let kubeconfig = Kubeconfig::read_from(&cluster.kubeconfig)?;
    Ok(Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?)
}
