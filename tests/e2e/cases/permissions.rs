//! Who may make Stillpoint do what (docs/authority.md): users of every sort against the real API server, cell by cell.
//!
//! Every request is a dry run, which passes authorization, admission and validation like any other; an exec is asked for without
//! its upgrade, which comes after both.

use std::fmt::Write as _;
use std::time::Duration;

use http::Method;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use stillpoint_api::Backup;
use stillpoint_e2e::ask::{Answer, Ask, Asker};
use stillpoint_e2e::cluster::documents;
use stillpoint_e2e::load::Engine;
use stillpoint_e2e::wait::now_micros;
use stillpoint_e2e::world::{MARIADB, POSTGRES, World};
use stillpoint_e2e::{Outcome, Present as _, ensure};

use crate::mariadb::by_hand;

/// The controller's account.
pub const CONTROLLER: &str = "system:serviceaccount:stillpoint-system:stillpoint-controller";
const COLLECTOR: &str = "system:serviceaccount:kube-system:generic-garbage-collector";
/// Rights and admission policies are in force a moment after they were stored; microseconds.
const IN_FORCE_WITHIN: i64 = 30_000_000;

/// The columns of the table.
const USERS: [&str; 8] = ["exec", "use", "editor", "admin", "operator", "controller", "collector", "token"];

/// The bindings that make these users.
fn bindings() -> Vec<Value> {
    let subject = |user: &str| json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": format!("e2e-{user}")}]);
    let role =
        |name: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name});
    let bind = |namespace: &str, user: &str, name: &str| {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": format!("e2e-{user}-{name}"), "namespace": namespace},
            "roleRef": role(name), "subjects": subject(user)})
    };
    vec![
        // The built-in roles have exec.
        bind(MARIADB, "exec", "edit"),
        bind(MARIADB, "use", "stillpoint-user"),
        bind(MARIADB, "editor", "stillpoint-edit"),
        bind(MARIADB, "admin", "admin"),
        bind(POSTGRES, "admin", "stillpoint-admin"),
        bind(MARIADB, "operator", "stillpoint-edit"),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": "e2e-operator"},
            "roleRef": role("stillpoint-operator"), "subjects": subject("operator")}),
    ]
}

/// One request, and how each user's is answered, in the order of [`USERS`]:
/// `+` allowed, `r` refused for want of a right, `p` refused by one of the admission policies, `i` by the kind's own rules,
/// `s` and `c`: as the controller's role says, which creates policies that rules stamp, and no others.
struct Row {
    what: &'static str,
    ask: Ask,
    cells: &'static str,
    policies: &'static [&'static str],
}

fn create(plural: &str, kind: &str, spec: Value) -> Ask {
    let body = json!({"apiVersion": "stillpoint.dev/v1alpha1", "kind": kind,
        "metadata": {"name": "e2e-asked", "namespace": MARIADB}, "spec": spec});
    Ask {
        method: Method::POST,
        path: format!("/apis/stillpoint.dev/v1alpha1/namespaces/{MARIADB}/{plural}"),
        body: Some(body),
    }
}

fn change(plural: &str, name: &str, patch: Value) -> Ask {
    let path = format!("/apis/stillpoint.dev/v1alpha1/namespaces/{MARIADB}/{plural}/{name}");
    Ask { method: Method::PATCH, path, body: Some(patch) }
}

fn delete(plural: &str, name: &str) -> Ask {
    let path = format!("/apis/stillpoint.dev/v1alpha1/namespaces/{MARIADB}/{plural}/{name}");
    Ask { method: Method::DELETE, path, body: None }
}

fn applications(template: &Value) -> Value {
    json!([{"name": "ledger", "selector": {"matchLabels": {"app": "mariadb"}}, "templateRef": template}])
}

const AUTHORS: &[&str] = &["stillpoint-authors"];
const RESTORES: &[&str] = &["stillpoint-authors", "stillpoint-restores"];
const HOLDS: &[&str] = &["stillpoint-holds"];

const POLICY: &str = "e2e-rights";
const HELD: &str = "e2e-rights-held";
const FREE: &str = "e2e-rights-free";
const IMPORT: &str = "e2e-rights-import";

/// The table. A cell that changes is a promise that changes.
fn rows(template: &Value) -> Vec<Row> {
    let policy = |extra: Value| create("backuppolicies", "BackupPolicy", by_hand(&extra));
    let shared = applications(&json!({"name": "mariadb"}));
    let own = applications(&json!({"kind": "HookTemplate", "name": "mine"}));
    let run = |run: Value| create("backups", "Backup", json!({"run": run}));
    let restore = |source: Value, target: Value| {
        create("restores", "Restore", json!({"source": source, "target": target}))
    };
    let point = json!({"backupRef": {"name": "point"}});
    let slot = "2026-01-01T00:00:00Z";
    let scheduled = |run: Value| create("backups", "Backup", json!({"trigger": "Schedule", "run": run}));
    let drill = json!({"schedule": {"cron": "0 4 * * 0"}});
    let group = "/apis/rbac.authorization.k8s.io/v1";
    let template = |plural: &str, kind: &str, path: &str| Ask {
        method: Method::POST,
        path: format!("/apis/stillpoint.dev/v1alpha1/{path}{plural}"),
        body: Some(json!({"apiVersion": "stillpoint.dev/v1alpha1", "kind": kind,
            "metadata": {"name": "e2e-asked"}, "spec": template})),
    };
    let contents = "/apis/snapshot.storage.k8s.io/v1/volumesnapshotcontents";
    let row = |what, cells, policies, ask| Row { what, ask, cells, policies };
    vec![
        row("create a policy with a cluster template", "++p+pcrr", AUTHORS, policy(json!({}))),
        row(
            "create a policy with an own template",
            "+pp+pcrr",
            AUTHORS,
            policy(json!({"applications": own})),
        ),
        row(
            "create a HookTemplate",
            "+pp+prrr",
            AUTHORS,
            template("hooktemplates", "HookTemplate", &format!("namespaces/{MARIADB}/")),
        ),
        row(
            "create a policy that starts drills",
            "+pp+pcrr",
            AUTHORS,
            policy(json!({"verification": drill})),
        ),
        row("stamp a policy by a rule", "++p+psrr", AUTHORS, policy(json!({"ruleRef": {"name": "rule"}}))),
        row(
            "change the spec of a policy",
            "++p+prpr",
            AUTHORS,
            change("backuppolicies", POLICY, json!({"spec": {"suspend": true}})),
        ),
        row(
            "change the labels of a policy",
            "+++++r+r",
            AUTHORS,
            change("backuppolicies", POLICY, json!({"metadata": {"labels": {"x": "y"}}})),
        ),
        row("delete a policy", "+++++++r", AUTHORS, delete("backuppolicies", POLICY)),
        row("run a policy", "++p+pprr", AUTHORS, run(json!({"policyRef": {"name": POLICY}}))),
        row("run a cluster template inline", "++p+pprr", AUTHORS, run(json!({"applications": shared}))),
        row("run an own template inline", "+pp+pprr", AUTHORS, run(json!({"applications": own}))),
        row(
            "run a policy as the scheduler does",
            "ppppp+rr",
            AUTHORS,
            scheduled(json!({"policyRef": {"name": POLICY}, "slot": slot})),
        ),
        row(
            "run inline as the scheduler does",
            "iiiiiirr",
            AUTHORS,
            scheduled(json!({"applications": shared})),
        ),
        row("cancel a run", "++p+pppr", AUTHORS, change("backups", FREE, json!({"spec": {"cancel": true}}))),
        row(
            "write a status",
            "rrrrr++r",
            AUTHORS,
            Ask {
                path: format!("/apis/stillpoint.dev/v1alpha1/namespaces/{MARIADB}/backups/{FREE}/status"),
                ..change("backups", FREE, json!({"status": {"attempt": 7}}))
            },
        ),
        row(
            "hold a point",
            "+++++++r",
            HOLDS,
            change("backups", FREE, json!({"spec": {"hold": {"reason": "case 4711"}}})),
        ),
        row(
            "let a held point go",
            "pppp+ppr",
            HOLDS,
            change("backups", HELD, json!({"spec": {"hold": null}})),
        ),
        row("delete a held point", "pppppppr", HOLDS, delete("backups", HELD)),
        row("delete a point", "+++++++r", HOLDS, delete("backups", FREE)),
        row("restore to new claims", "+pp+prrr", RESTORES, restore(point.clone(), json!({"clone": {}}))),
        row(
            "restore from another namespace",
            "ppp+prrr",
            RESTORES,
            restore(json!({"backupRef": {"name": "point", "namespace": POSTGRES}}), json!({"clone": {}})),
        ),
        row(
            "restore the newest point of another namespace",
            "ppp+prrr",
            RESTORES,
            restore(
                json!({"latest": {"policyRef": {"name": "nightly"}, "namespace": POSTGRES}}),
                json!({"clone": {}}),
            ),
        ),
        row(
            "restore in place",
            "+pp+prrr",
            RESTORES,
            restore(
                point.clone(),
                json!({"inPlace": {"workload": {"name": "mariadb"}, "confirm": "mariadb"}}),
            ),
        ),
        row(
            "restore raw handles",
            "ppppprrr",
            RESTORES,
            restore(
                json!({"handles": {"driver": "btrfs.csi.stillpoint.dev", "handles": {"data": "x"}}}),
                json!({"clone": {}}),
            ),
        ),
        row(
            "create a ClusterHookTemplate",
            "rrrrprrr",
            &["stillpoint-cluster-templates"],
            template("clusterhooktemplates", "ClusterHookTemplate", ""),
        ),
        row(
            "write a ProtectionRule",
            "rrrr+rrr",
            &[],
            Ask {
                method: Method::POST,
                path: "/apis/stillpoint.dev/v1alpha1/protectionrules".to_owned(),
                body: Some(json!({"apiVersion": "stillpoint.dev/v1alpha1", "kind": "ProtectionRule",
                    "metadata": {"name": "e2e-asked"},
                    "spec": {"namespaceSelector": {"matchLabels": {"tier": "gold"}}, "require": {"rpo": "26h"}}})),
            },
        ),
        row(
            "let a namespace in (bind stillpoint-hooks)",
            "rrr+rrrr",
            &[],
            Ask {
                method: Method::POST,
                path: format!("{group}/namespaces/{MARIADB}/rolebindings"),
                body: Some(json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
                "metadata": {"name": "e2e-asked"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "stillpoint-hooks"},
                "subjects": [{"kind": "ServiceAccount", "name": "stillpoint-hooks", "namespace": MARIADB}]})),
            },
        ),
        row(
            "exec into the database",
            "+rr+rrrp",
            &["stillpoint-hooks-exec"],
            Ask {
                method: Method::POST,
                path: format!("/api/v1/namespaces/{MARIADB}/pods/mariadb-0/exec"),
                body: None,
            },
        ),
        row(
            "read Secrets",
            "+rr+rr+r",
            &[],
            Ask { method: Method::GET, path: format!("/api/v1/namespaces/{MARIADB}/secrets"), body: None },
        ),
        row(
            "let an imported snapshot's data go",
            "rrrrrp+r",
            &["stillpoint-contents"],
            Ask {
                method: Method::PATCH,
                path: format!("{contents}/{IMPORT}"),
                body: Some(json!({"spec": {"deletionPolicy": "Delete"}})),
            },
        ),
    ]
}

/// What the suite makes for the table: two finished runs, one of them held, a policy, and an import.
async fn set_up(world: &mut World) -> Outcome {
    world.database(MARIADB, Engine::Mariadb, None).await?;
    world.open_namespace(POSTGRES).await?;
    for object in bindings() {
        world.cluster.apply(&object.to_string(), MARIADB).await?;
    }
    world.controller().await?;
    world.policy(MARIADB, POLICY, by_hand(&json!({}))).await?;
    for (name, hold) in [(FREE, Value::Null), (HELD, json!({"reason": "case 4711"}))] {
        let object = json!({"apiVersion": "stillpoint.dev/v1alpha1", "kind": "Backup", "metadata": {"name": name},
            "spec": {"run": {"policyRef": {"name": "nobody"}}}});
        let mut object = object;
        if !hold.is_null() {
            object["spec"]["hold"] = hold;
        }
        world.cluster.apply(&object.to_string(), MARIADB).await?;
        // There is no such policy: it fails and nothing is frozen.
        world.finished(MARIADB, name, Duration::from_secs(60)).await?;
    }
    let import = json!({"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent", "metadata": {"name": IMPORT},
        "spec": {"driver": "nobody.example", "deletionPolicy": "Retain", "source": {"snapshotHandle": "none"},
            "volumeSnapshotRef": {"name": "none", "namespace": MARIADB}}});
    world.cluster.apply(&import.to_string(), MARIADB).await?;
    Ok(())
}

async fn tidy(world: &World) -> Outcome {
    let backups: Api<Backup> = Api::namespaced(world.cluster.client.clone(), MARIADB);
    if backups.get_opt(HELD).await?.is_some() {
        let release = Patch::Merge(json!({"spec": {"hold": null}}));
        backups.patch(HELD, &PatchParams::default(), &release).await?;
    }
    let mine = [HELD, FREE];
    for name in mine {
        let gone = ["-n", MARIADB, "delete", "backup.stillpoint.dev", name, "--ignore-not-found"];
        world.cluster.kubectl(&gone, None).await?.good("delete a Backup of the table")?;
    }
    let release = [
        "patch",
        "volumesnapshotcontent",
        IMPORT,
        "--type=merge",
        "-p",
        "{\"metadata\":{\"finalizers\":null}}",
    ];
    world.cluster.kubectl(&release, None).await?;
    for gone in [
        ["delete", "volumesnapshotcontent", IMPORT, "--ignore-not-found"],
        ["delete", "clusterrolebinding", "e2e-operator", "--ignore-not-found"],
    ] {
        world.cluster.kubectl(&gone, None).await?.good("tidy up after the table")?;
    }
    Ok(())
}

/// The permission table: printed, kept as permissions.md, and asserted cell by cell.
pub async fn table(world: &mut World) -> Outcome {
    set_up(world).await?;
    let outcome = asked(world).await;
    tidy(world).await?;
    outcome
}

async fn asked(world: &World) -> Outcome {
    let cluster = &world.cluster;
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), MARIADB);
    let spec = TokenRequestSpec { expiration_seconds: Some(600), ..TokenRequestSpec::default() };
    let request = TokenRequest { spec, ..TokenRequest::default() };
    let stolen = accounts.create_token_request("stillpoint-hooks", &PostParams::default(), &request).await?;
    let mut askers = Vec::new();
    for user in USERS {
        askers.push(match user {
            "controller" => Asker::user(cluster, CONTROLLER).await?,
            "collector" => Asker::user(cluster, COLLECTOR).await?,
            "token" => Asker::token(cluster, stolen.status.clone().present("the token")?.token).await?,
            name => Asker::user(cluster, &format!("e2e-{name}")).await?,
        });
    }
    let template = documents(&cluster.read("config/templates/mariadb.yaml")?)?;
    let template = template.first().present("the template")?["spec"].clone();
    let rows = rows(&template);
    let stamps = stamps(world)?;
    let deadline = now_micros() + IN_FORCE_WITHIN;
    let mut wrong = Vec::new();
    let mut table = String::new();
    let mut told = String::new();
    let header: String = USERS.iter().map(|user| format!("{user:<11}")).collect();
    let mut printed = format!("        {:<48}{header}\n", "");
    // Writing to a String cannot fail.
    let _ = writeln!(table, "| request | {} |\n|---|{}", USERS.join(" | "), "---|".repeat(USERS.len()));
    for row in &rows {
        let mut words = Vec::new();
        for ((user, asker), cell) in USERS.iter().zip(&askers).zip(row.cells.chars()) {
            let cell = match (cell, stamps) {
                ('s', true) => '+',
                ('c', true) => 'p',
                ('s' | 'c', false) => 'r',
                (other, _) => other,
            };
            let seen = settled(asker, row, cell, deadline).await?;
            if !fits(&seen, cell, row.policies) {
                wrong.push(format!("{}, {user}: expected {cell}, got {seen:?}", row.what));
            }
            let word = match &seen {
                Answer::Allowed => "allowed",
                Answer::NoRight(_) => "no right",
                Answer::Policy { name, .. } => name.trim_start_matches("stillpoint-"),
                Answer::Invalid(_) => "invalid",
            };
            words.push(word.to_owned());
            if let Answer::Policy { message, .. } | Answer::Invalid(message) = &seen {
                let _ = writeln!(told, "- {}, {user}: {message}", row.what);
            }
        }
        let cells: String = words.iter().map(|word| format!("{word:<11.10}")).collect();
        let _ = writeln!(printed, "        {:<48}{cells}", row.what);
        let _ = writeln!(table, "| {} | {} |", row.what, words.join(" | "));
    }
    print!("{printed}");
    std::fs::write(world.out.join("permissions.md"), format!("{table}\n{told}"))?;
    println!("        {} requests of {} users; what each is told: permissions.md", rows.len(), USERS.len());
    ensure!(wrong.is_empty(), "{} cells are wrong:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

/// The answer, once rights and policies are in force: as expected, or what it still is at the deadline.
async fn settled(asker: &Asker, row: &Row, cell: char, deadline: i64) -> Outcome<Answer> {
    loop {
        let seen = asker.ask(&row.ask).await?;
        if fits(&seen, cell, row.policies) || now_micros() > deadline {
            return Ok(seen);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn fits(seen: &Answer, cell: char, policies: &[&str]) -> bool {
    match seen {
        Answer::Allowed => cell == '+',
        Answer::NoRight(_) => cell == 'r',
        Answer::Policy { name, .. } => cell == 'p' && policies.contains(&name.as_str()),
        Answer::Invalid(_) => cell == 'i',
    }
}

/// Whether deploy/base lets the controller create policies, which are those that rules stamp.
fn stamps(world: &World) -> Outcome<bool> {
    let role = documents(&world.cluster.read("deploy/base/controller-role.yaml")?)?;
    let rules = role.iter().filter_map(|object| object["rules"].as_array()).flatten();
    let has = |rule: &Value, key: &str, word: &str| {
        rule[key].as_array().is_some_and(|words| words.iter().any(|one| one == word))
    };
    let mut rules = rules.filter(|rule| has(rule, "resources", "backuppolicies"));
    Ok(rules.any(|rule| has(rule, "verbs", "create")))
}
