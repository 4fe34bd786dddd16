//! Installs the product from the very files of `deploy/base` and the templates of `config/templates`.
//!
//! For a controller that is a child of the suite the Deployment and its PodDisruptionBudget are left out, and nothing else. For one
//! in the cluster the Deployment gets the image of this machine, and everything gets what is known about the test storage.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::{Cluster, documents};
use crate::controller::{NAMESPACE, Place};
use crate::deployed::DEPLOYMENT;
use crate::wait::{Look, until};
use crate::{Outcome, Present as _, Problem};

/// The image of `make image`, imported by tests/cluster.
const IMAGE: &str = "cluster.local/stillpoint:1";
const TEMPLATES: [&str; 2] = ["postgresql", "mariadb"];

/// Installs everything and waits until it is served. A Deployment starts nothing yet.
///
/// # Errors
/// An object was refused, or is not served in time.
pub async fn product(cluster: &Cluster, place: Place) -> Outcome {
    install(cluster, place, "0").await
}

/// Puts back what a case took away. A Deployment keeps its replicas: they run all the time.
///
/// # Errors
/// As [`product`].
pub async fn product_again(cluster: &Cluster, place: Place) -> Outcome {
    let ask = ["-n", NAMESPACE, "get", DEPLOYMENT, "--ignore-not-found", "-o", "jsonpath={.spec.replicas}"];
    let now = cluster.kubectl(&ask, None).await?.good("read the Deployment's replicas")?;
    install(cluster, place, &now).await
}

async fn install(cluster: &Cluster, place: Place, replicas: &str) -> Outcome {
    let built = cluster.kubectl(&["kustomize", "deploy/base"], None).await?.good("kustomize deploy/base")?;
    let (definitions, rest): (Vec<Value>, Vec<Value>) =
        documents(&built)?.into_iter().partition(|object| object["kind"] == "CustomResourceDefinition");
    for definition in &definitions {
        cluster.apply(&definition.to_string(), "").await?;
    }
    for definition in &definitions {
        let name = definition["metadata"]["name"].as_str().present("the definition's name")?;
        let wait = ["wait", "--for=condition=Established", &format!("crd/{name}"), "--timeout=20s"];
        cluster.kubectl(&wait, None).await?.good("wait for the definitions")?;
    }
    let trust = cluster.read("config/trust/cluster.yaml")?;
    for mut object in rest {
        match (object["kind"].as_str(), place) {
            (Some("Deployment" | "PodDisruptionBudget"), Place::Process) => continue,
            (Some("Deployment"), Place::InCluster) => {
                object["spec"]["replicas"] = json!(replicas.trim().parse().unwrap_or(0));
                let container = &mut object["spec"]["template"]["spec"]["containers"][0];
                container["image"] = json!(IMAGE);
                container["imagePullPolicy"] = json!("Never");
            }
            (Some("ConfigMap"), _) => object["data"]["trust.yaml"] = json!(trust),
            (_, _) => {}
        }
        cluster.apply(&object.to_string(), "").await?;
    }
    for name in TEMPLATES {
        template(cluster, &cluster.read(&format!("config/templates/{name}.yaml"))?).await?;
    }
    Ok(())
}

/// Installs a template; its kind may not be served yet.
///
/// # Errors
/// It was refused, or its kind is not served in time.
pub async fn template(cluster: &Cluster, text: &str) -> Outcome {
    until("the templates to be served", Duration::from_secs(20), async || {
        Ok(match cluster.apply(text, "").await {
            Ok(_) => Look::Done(()),
            Err(Problem(words)) if words.contains("404") || words.contains("not found") => {
                Look::NotYet(words)
            }
            Err(problem) => return Err(problem),
        })
    })
    .await
}
