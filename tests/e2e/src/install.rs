//! Installs the product's definitions, rights and templates. The controller is a child of the suite instead of
//! deploy/base's Deployment, with the token of its account.

use std::time::Duration;

use crate::cluster::Cluster;
use crate::wait::{Look, until};
use crate::{Outcome, Problem};

const DEFINITIONS: [&str; 5] =
    ["backuppolicies", "backups", "clusterhooktemplates", "hooktemplates", "restores"];
const RIGHTS: [&str; 4] = ["namespace", "serviceaccount", "roles", "controller-role"];
const TEMPLATES: [&str; 2] = ["postgresql", "mariadb"];

/// Installs everything and waits until it is served.
///
/// # Errors
/// An object was refused, or is not served in time.
pub async fn product(cluster: &Cluster) -> Outcome {
    for name in DEFINITIONS {
        cluster.apply(&cluster.read(&format!("config/crd/{name}.yaml"))?, "").await?;
    }
    for name in DEFINITIONS {
        let crd = format!("crd/{name}.stillpoint.dev");
        let wait = ["wait", "--for=condition=Established", &crd, "--timeout=20s"];
        cluster.kubectl(&wait, None).await?.good("wait for the definitions")?;
    }
    for name in RIGHTS {
        cluster.apply(&cluster.read(&format!("deploy/base/{name}.yaml"))?, "stillpoint-system").await?;
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
