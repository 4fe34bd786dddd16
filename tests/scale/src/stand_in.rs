//! The embedded API server as a process of its own: commands as lines of JSON on stdin, one line of JSON back for each.
//! It ends with its stdin.

use std::io::{BufRead as _, Write as _};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use stillpoint_simcluster::{SimCluster, SimOptions};

use crate::failure::{Outcome, Present as _};
use crate::population::{Class, Member, members, namespaces};

const POLICIES: &str = "backuppolicies.stillpoint.dev";
const BACKUPS: &str = "backups.stillpoint.dev";
/// Changes kept for watches: a watcher that is a whole herd behind must not list everything again.
const HISTORY: usize = 60_000;
/// Where the raw rate is measured.
pub const RAW: &str = "raw";

/// A command.
#[derive(Debug, Serialize, Deserialize)]
pub enum Ask {
    /// Make the population.
    Load {
        /// How many policies.
        policies: usize,
        /// Points of each.
        points: usize,
        /// When it is made.
        now: Timestamp,
    },
    /// Give every policy of these classes this schedule, in UTC.
    Schedule {
        /// The expression.
        cron: String,
    },
    /// Suspend or resume those that run every minute.
    Suspend(bool),
    /// Remove every Backup of the raw measurement.
    Purge,
    /// How many Backups were created since the last `Take`.
    Count,
    /// Microseconds since 1970, namespace and name of every Backup created since the last `Take`.
    Take,
}

/// Serves until stdin ends.
pub async fn serve() -> Outcome<bool> {
    let root = std::env::temp_dir().join(format!("stillpoint-scale-server-{}", std::process::id()));
    let options = SimOptions {
        history: HISTORY,
        record: Some("backups".to_owned()),
        // The points have no snapshots here, and without this API nobody misses them.
        snapshot_api: false,
        group_api: false,
        ..SimOptions::api_only(&root)
    };
    let cluster = SimCluster::start(options).await.present("start the embedded API server")?;
    let definitions: kube::Api<
        k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    > = kube::Api::all(cluster.client());
    for definition in stillpoint_api::crd::all() {
        definitions
            .create(&kube::api::PostParams::default(), &definition)
            .await
            .present("create the definitions")?;
    }
    say(&json!({"kubeconfig": cluster.kubeconfig_yaml()}))?;
    let mut made: Vec<Member> = Vec::new();
    let (lines, mut asked) = tokio::sync::mpsc::channel(4);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    while let Some(line) = asked.recv().await {
        let ask: Ask = serde_json::from_str(&line).present("read a command")?;
        let answer = answer(&cluster, ask, &mut made).await?;
        say(&answer)?;
    }
    let _ = cluster.shutdown().await;
    let _ = std::fs::remove_dir_all(&root);
    Ok(true)
}

fn say(answer: &Value) -> Outcome<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{answer}").and_then(|()| out.flush()).present("answer")
}

async fn answer(cluster: &SimCluster, ask: Ask, made: &mut Vec<Member>) -> Outcome<Value> {
    match ask {
        Ask::Load { policies, points, now } => {
            *made = members(policies, now).collect();
            let spaces = namespaces(policies).into_iter().chain([RAW.to_owned()]);
            let spaces = spaces.map(|name| json!({"metadata": {"name": name}}));
            cluster.load("namespaces", spaces).present("load the namespaces")?;
            cluster.load(POLICIES, made.iter().map(Member::policy)).present("load the policies")?;
            let all = made.iter().flat_map(|member| (0..points).map(move |back| member.point(back)));
            let loaded = cluster.load(BACKUPS, all).present("load the points")?;
            Ok(json!(loaded))
        }
        Ask::Schedule { cron } => {
            edit(cluster, made, |member| {
                let utc = member.class != Class::Minutely;
                utc.then(|| json!({"schedule": {"cron": cron, "timeZone": "Etc/UTC"}}))
            })
            .await
        }
        Ask::Suspend(suspend) => {
            edit(cluster, made, |member| {
                (member.class == Class::Minutely).then(|| json!({"suspend": suspend}))
            })
            .await
        }
        Ask::Purge => cluster.unload(BACKUPS, RAW).present("remove the raw Backups").map(|gone| json!(gone)),
        Ask::Count => Ok(json!(cluster.creations())),
        Ask::Take => {
            let taken = cluster.take_creations();
            let rows = taken.iter().map(|one| json!([one.at.as_microsecond(), one.namespace, one.name]));
            Ok(rows.collect())
        }
    }
}

/// Changes specs as users would, at a pace that watchers follow.
async fn edit(
    cluster: &SimCluster,
    made: &[Member],
    change: impl Fn(&Member) -> Option<Value>,
) -> Outcome<Value> {
    let mut edited = 0;
    for chunk in made.chunks(500) {
        for member in chunk {
            let Some(fields) = change(member) else { continue };
            cluster
                .edit(POLICIES, &member.namespace, &member.name, |policy| {
                    for (field, value) in fields.as_object().into_iter().flatten() {
                        policy["spec"][field] = value.clone();
                    }
                })
                .present("edit a policy")?;
            edited += 1;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(json!(edited))
}
