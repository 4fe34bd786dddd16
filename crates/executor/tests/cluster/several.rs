//! Several pods, volumes and applications: who is held when, what is cut when, and what is refused.

use std::fs;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use serde_json::{Value, json};
use stillpoint_api::Backup;
use stillpoint_api::evidence::{Consistency, Verdict};
use stillpoint_simcluster::{CLASS, Fault, FaultAction};

use crate::stage::{NAMESPACE, SOON, Stage, create, eventually, why};

const SERVER: &str = "host= conn= role=primary lease= gtid=";

/// Databases beside the one that every stage has, which is left alone.
struct Several(Stage);

impl Several {
    async fn new(name: &str) -> Self {
        let stage = Stage::faithful(name).await;
        let script = format!(
            "exec sh {}/database.sh \"${{HOW:-faithful}}\" \"$DIRECTORY\" \"$HOST\"",
            stage.cluster.root().display()
        );
        fs::write(stage.cluster.root().join("member.sh"), script).unwrap();
        Self(stage)
    }

    async fn claim(&self, name: &str) {
        create(
            &self.0.cluster,
            json!({
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "metadata": {"name": name, "namespace": NAMESPACE},
                "spec": {
                    "accessModes": ["ReadWriteMany"], "storageClassName": CLASS,
                    "resources": {"requests": {"storage": "1Gi"}},
                },
            }),
        )
        .await;
    }

    /// A pod `HOST` of application `app` that mounts claims; its data lies in a directory of its own on the first one.
    async fn pod(&self, host: &str, app: &str, claims: &[&str]) {
        let root = self.0.cluster.root();
        let mount = |claim: &str| root.join("mounts").join(host).join(claim);
        let directory = mount(claims[0]).join(host);
        let wal = claims.get(1).map(|claim| mount(claim).display().to_string()).unwrap_or_default();
        let script = "mkdir -p \"$DIRECTORY\"; echo open >\"$DIRECTORY/state\"; echo primary >\"$DIRECTORY/role\"; \
                      : >\"$DIRECTORY/ready\"; sleep 100000";
        let volumes: Vec<Value> = claims
            .iter()
            .map(|claim| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}}))
            .collect();
        let mounts: Vec<Value> =
            claims.iter().map(|claim| json!({"name": claim, "mountPath": mount(claim)})).collect();
        create(
            &self.0.cluster,
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": host, "namespace": NAMESPACE, "labels": {"app": app}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{
                        "name": "db", "image": "database", "command": ["sh", "-c", script],
                        "env": [
                            {"name": "DIRECTORY", "value": directory}, {"name": "HOST", "value": host},
                            {"name": "WAL", "value": wal},
                            {"name": "EVERYBODY", "value": root.join("everybody")},
                        ],
                        "readinessProbe": {"exec": {"command": ["test", "-f", directory.join("ready")]}, "periodSeconds": 1},
                        "volumeMounts": mounts,
                    }],
                    "volumes": volumes,
                },
            }),
        )
        .await;
        let pods: Api<Pod> = Api::namespaced(self.0.cluster.client(), NAMESPACE);
        eventually("the database runs", SOON, async || {
            let status = pods.get(host).await.ok()?.status?;
            let ready = status.conditions?.iter().any(|one| one.type_ == "Ready" && one.status == "True");
            ready.then_some(())
        })
        .await;
    }

    /// A template like the stage's own, for pods that differ by their environment.
    async fn template(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let script = self.0.cluster.root().join("member.sh");
        let lease = "set wait {{lease}} {{acquireSeconds}};\n";
        let mut spec = json!({
            "freeze": {"session": {
                "command": ["sh", script],
                "open": format!("{lease}say EVIDENCE {{{{n}}}} datadir=;\nsay READY {{{{n}}}} {SERVER};\n"),
                "freeze": format!("{lease}lock;\nsay EVIDENCE {{{{n}}}} durable=on;\nsay FROZEN {{{{n}}}} 0 {SERVER};\n"),
                "beat": format!("set wait {{{{lease}}}} 0;\nsay HELD {{{{n}}}} {{{{i}}}} {SERVER};\n"),
                "thaw": "unlock;\nsay THAWED {{n}};\n",
                "lease": {"variable": "wait", "unit": "s", "duration": "10s"},
                "position": "gtid",
                "local": {"key": "host", "equals": "PodHostname"},
            }},
            "evidence": ["durable", "datadir"],
            "dataPaths": ["datadir"],
            "crashSafe": {"source": "its only file", "settings": [{"name": "durable", "allowed": ["on"]}]},
        });
        change(&mut spec);
        create(
            &self.0.cluster,
            json!({
                "apiVersion": "stillpoint.dev/v1alpha1", "kind": "HookTemplate",
                "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec,
            }),
        )
        .await;
    }

    async fn back_up(&self, name: &str, applications: Value) -> Backup {
        self.begin(name, applications).await;
        self.0.finished(name).await
    }

    async fn begin(&self, name: &str, applications: Value) {
        let run = json!({
            "applications": applications,
            "freeze": {"maxHold": "12s", "acquireTimeout": "2s"},
            "run": {"maxAttempts": 1},
        });
        self.0.back_up_as(name, run).await;
    }

    /// What all databases went through, in one order.
    fn everybody(&self) -> Vec<String> {
        let log = fs::read_to_string(self.0.cluster.root().join("everybody")).unwrap_or_default();
        let told = log.lines().filter(|line| !line.ends_with(" opened") && !line.ends_with(" closed"));
        told.map(str::to_owned).collect()
    }

    async fn until(&self, what: &str) {
        eventually(what, SOON, async || self.everybody().iter().any(|line| line == what).then_some(())).await;
    }

    fn role(&self, host: &str, claim: &str, role: &str) {
        let directory = self.0.cluster.root().join("mounts").join(host).join(claim).join(host);
        fs::write(directory.join("role"), role).unwrap();
    }

    /// What a file says in every copy that has it.
    fn in_copies(&self, file: &str) -> Vec<String> {
        let mut said: Vec<String> = self
            .0
            .copies()
            .iter()
            .filter_map(|copy| fs::read_to_string(copy.join(file)).ok())
            .map(|text| text.trim().to_owned())
            .collect();
        said.sort();
        said
    }
}

fn application(name: &str, template: &str) -> Value {
    json!({
        "name": name, "selector": {"matchLabels": {"app": name}},
        "templateRef": {"kind": "HookTemplate", "name": template},
    })
}

fn all_pods(name: &str, template: &str) -> Value {
    let mut application = application(name, template);
    application["pods"] = json!("All");
    application
}

fn verdict(backup: &Backup) -> Verdict {
    backup.status.as_ref().unwrap().verdict.clone().unwrap_or_default()
}

fn proven(backup: &Backup) {
    let status = backup.status.as_ref().unwrap();
    assert_eq!(why(backup), "Completed", "{:#?}", status.conditions);
    assert_eq!(status.consistency, Some(Consistency::Application), "{:#?}", status.verdict);
}

#[tokio::test]
async fn applications_freeze_by_their_order_and_thaw_in_reverse_around_cuts_they_have_in_common() {
    let several = Several::new("orders").await;
    several.template("locking", |_| {}).await;
    for (host, app, claim) in [("a-0", "a", "data-a"), ("b-0", "b", "data-b")] {
        several.claim(claim).await;
        several.pod(host, app, &[claim]).await;
    }
    let (mut a, mut b) = (application("a", "locking"), application("b", "locking"));
    (a["order"], b["order"]) = (json!(7), json!(-1));
    let backup = several.back_up("b", json!([a, b])).await;
    proven(&backup);
    assert_eq!(several.everybody(), ["b-0 frozen", "a-0 frozen", "a-0 thawed", "b-0 thawed"]);
    assert_eq!(several.in_copies("a-0/state"), ["frozen"]);
    assert_eq!(several.in_copies("b-0/state"), ["frozen"], "both were held over both cuts");
    assert!(backup.status.as_ref().unwrap().cross_consistent);
    several.0.end().await;
}

#[tokio::test]
async fn applications_of_which_one_is_not_held_are_each_consistent_and_not_together() {
    let several = Several::new("observed-beside").await;
    several.template("locking", |_| {}).await;
    several
        .template("observing", |spec| {
            let session = &mut spec["freeze"]["session"];
            session["locks"] = json!(false);
            for text in ["freeze", "thaw"] {
                let plain = session[text].as_str().unwrap().replace("unlock;\n", "").replace("lock;\n", "");
                session[text] = json!(plain);
            }
        })
        .await;
    for (host, app, claim) in [("a-0", "a", "data-a"), ("b-0", "b", "data-b")] {
        several.claim(claim).await;
        several.pod(host, app, &[claim]).await;
    }
    let backup =
        several.back_up("b", json!([application("a", "locking"), application("b", "observing")])).await;
    proven(&backup);
    assert!(!backup.status.as_ref().unwrap().cross_consistent);
    several.0.end().await;
}

#[tokio::test]
async fn every_pod_of_an_application_is_held_on_its_own_volume() {
    let several = Several::new("all-pods").await;
    several.template("locking", |_| {}).await;
    for (host, claim) in [("set-0", "data-set-0"), ("set-1", "data-set-1")] {
        several.claim(claim).await;
        several.pod(host, "set", &[claim]).await;
    }
    let refused = several.back_up("auto", json!([application("set", "locking")])).await;
    assert_eq!(why(&refused), "SeveralPods");
    let backup = several.back_up("all", json!([all_pods("set", "locking")])).await;
    proven(&backup);
    let status = backup.status.as_ref().unwrap();
    assert_eq!((status.holds.len(), status.members.len()), (2, 2));
    assert_ne!(status.holds[0].nonce, status.holds[1].nonce);
    assert_eq!(several.in_copies("set-0/state"), ["frozen"]);
    assert_eq!(several.in_copies("set-1/state"), ["frozen"]);
    several.0.end().await;
}

#[tokio::test]
async fn a_claim_of_several_pods_is_cut_once_and_all_who_write_to_it_are_held() {
    let several = Several::new("shared").await;
    several.template("locking", |_| {}).await;
    several.claim("common").await;
    several.pod("one", "pair", &["common"]).await;
    several.pod("two", "pair", &["common"]).await;
    let backup = several.back_up("pair", json!([all_pods("pair", "locking")])).await;
    proven(&backup);
    let status = backup.status.as_ref().unwrap();
    assert_eq!((status.holds.len(), status.members.len()), (2, 1));
    for host in ["one", "two"] {
        assert_eq!(several.in_copies(&format!("{host}/state")), ["frozen"], "{host}");
    }

    several.pod("stranger", "other", &["common"]).await;
    let refused = several.back_up("refused", json!([all_pods("pair", "locking")])).await;
    assert_eq!(why(&refused), "PodNotHeld");
    let told = several.0.events().await;
    assert!(
        told.iter().any(|(reason, message)| reason == "PodNotHeld" && message.contains("pod stranger")),
        "{told:?}"
    );
    several.0.end().await;
}

#[tokio::test]
async fn a_pod_that_begins_to_write_to_a_member_ends_the_freeze() {
    let several = Several::new("newcomer").await;
    several.template("locking", |_| {}).await;
    several.claim("common").await;
    several.pod("one", "pair", &["common"]).await;
    several.0.slow_cuts(Duration::from_secs(4));
    several.begin("b", json!([application("pair", "locking")])).await;
    several.until("one frozen").await;
    several.pod("stranger", "other", &["common"]).await;
    let backup = several.0.finished("b").await;
    assert_eq!(why(&backup), "PodChanged");
    let told = several.0.events().await;
    assert!(told.iter().any(|(_, message)| message.contains("pod stranger, which is not held")), "{told:?}");
    assert_eq!(several.everybody(), ["one frozen", "one thawed"]);
    several.0.end().await;
}

/// Two pods of which the role command tells one.
async fn replicas(name: &str) -> Several {
    let several = Several::new(name).await;
    several
        .template("replicated", |spec| {
            spec["target"] = json!({"pods": "One", "role": {
                "command": ["sh", "-c", "cat \"$DIRECTORY/role\""], "accept": ["primary", "standby"],
            }});
        })
        .await;
    for (host, claim) in [("set-0", "data-set-0"), ("set-1", "data-set-1")] {
        several.claim(claim).await;
        several.pod(host, "set", &[claim]).await;
    }
    several.role("set-0", "data-set-0", "standby");
    several
}

#[tokio::test]
async fn the_pod_of_the_preferred_role_is_held_and_the_choice_is_looked_at_again() {
    let several = replicas("roles").await;
    let backup = several.back_up("b", json!([application("set", "replicated")])).await;
    proven(&backup);
    let status = backup.status.as_ref().unwrap();
    let held: Vec<&str> = status.holds.iter().map(|hold| hold.pod_name.as_str()).collect();
    assert_eq!(held, ["set-1"]);
    let resolved = &status.resolved.as_ref().unwrap().applications[0];
    assert_eq!(resolved.chosen_at_ready, resolved.chosen_at_thawed);
    assert!(
        resolved.chosen_at_ready[0].starts_with("set-1/")
            && resolved.chosen_at_ready[0].ends_with("=primary")
    );

    for host in ["set-0", "set-1"] {
        several.role(host, &format!("data-{host}"), "learner");
    }
    let refused = several.back_up("none", json!([application("set", "replicated")])).await;
    assert_eq!(why(&refused), "RoleNotAccepted");
    several.0.end().await;
}

#[tokio::test]
async fn a_failover_during_the_freeze_is_no_proof() {
    let several = replicas("failover").await;
    several.0.slow_cuts(Duration::from_secs(2));
    several.begin("b", json!([application("set", "replicated")])).await;
    several.until("set-1 frozen").await;
    several.role("set-0", "data-set-0", "primary");
    several.role("set-1", "data-set-1", "standby");
    let backup = several.0.finished("b").await;
    assert_eq!(why(&backup), "NotProven", "{:#?}", backup.status);
    let missing = verdict(&backup).missing;
    assert!(
        missing.iter().any(|finding| finding.rule == 4 && finding.finding.contains("role rule")),
        "{missing:#?}"
    );
    several.0.end().await;
}

#[tokio::test]
async fn a_role_that_cannot_be_asked_for_right_after_the_thaw_is_asked_for_again() {
    let several = replicas("unheard").await;
    several.0.slow_cuts(Duration::from_secs(1));
    several.begin("b", json!([application("set", "replicated")])).await;
    several.until("set-1 frozen").await;
    // Nothing is executed in the window but what is held already: these are the questions after it.
    let hits = several.0.cluster.faults().hits();
    several.0.cluster.faults().inject(Fault::new("*", "pods/exec", FaultAction::Status(503)).times(2));
    let backup = several.0.finished("b").await;
    assert_eq!(several.0.cluster.faults().hits(), hits + 2);
    assert_eq!(why(&backup), "Completed", "{:#?}", backup.status);
    several.0.end().await;
}

/// A database with its data and its log on a volume each; the log is cut last.
async fn staged(name: &str) -> Several {
    let several = Several::new(name).await;
    several
        .template("staged", |spec| {
            let session = &mut spec["freeze"]["session"];
            session["locks"] = json!(false);
            session["freeze"] = json!(format!(
                "set wait {{{{lease}}}} 0;\nstage 0;\nsay EVIDENCE {{{{n}}}} durable=on;\nsay FROZEN {{{{n}}}} 0 {SERVER};\n"
            ));
            session["thaw"] = json!("stage 2;\nsay THAWED {{n}};\n");
            session["stages"] = json!([
                {"volumes": {"roles": ["data"]}, "then": format!(
                    "set wait {{{{lease}}}} 0;\nstage 1;\nsay EVIDENCE {{{{n}}}} label=;\nsay FROZEN {{{{n}}}} 1 {SERVER};\n"
                )},
                {"volumes": {"roles": ["wal"]}},
            ]);
            spec["volumeRoles"] = json!({
                "data": {"command": ["sh", "-c", "echo \"$DIRECTORY\""]},
                "wal": {"command": ["sh", "-c", "echo \"${WAL:-$DIRECTORY/wal}\""]},
            });
            spec["evidence"] = json!(["durable", "datadir", "label"]);
        })
        .await;
    several
}

#[tokio::test]
async fn volumes_are_cut_in_the_order_of_their_stages_with_the_texts_between_them() {
    let several = staged("stages").await;
    several.claim("data-s").await;
    several.claim("wal-s").await;
    several.pod("s-0", "s", &["data-s", "wal-s"]).await;
    let backup = several.back_up("b", json!([application("s", "staged")])).await;
    proven(&backup);
    assert_eq!(several.everybody(), ["s-0 stage 0", "s-0 stage 1", "s-0 stage 2"]);
    // What each copy says was true when it was cut.
    assert_eq!(several.in_copies("s-0/stage"), ["0"], "the data was cut in the first stage");
    assert_eq!(several.in_copies("stage"), ["1"], "the log after the text that leads to the second");
    let status = backup.status.as_ref().unwrap();
    assert_eq!(status.members.iter().map(|member| member.stage).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(status.holds[0].facts["label"], "START WAL\nLABEL", "what a restore needs is kept");
    assert_eq!(status.holds[0].stages.len(), 1);

    let mut excluding = application("s", "staged");
    excluding["volumes"] = json!({"exclude": ["wal-s"]});
    let refused = several.back_up("excluded", json!([excluding])).await;
    assert_eq!(why(&refused), "PathNotCovered");
    several.0.end().await;
}

#[tokio::test]
async fn a_staged_database_on_one_volume_is_one_cut_and_no_text_between() {
    let several = staged("one-stage").await;
    several.claim("data-s").await;
    several.pod("s-0", "s", &["data-s"]).await;
    let backup = several.back_up("b", json!([application("s", "staged")])).await;
    proven(&backup);
    assert_eq!(several.everybody(), ["s-0 stage 0", "s-0 stage 2"]);
    assert_eq!(several.in_copies("s-0/stage"), ["0"]);
    several.0.end().await;
}

#[tokio::test]
async fn two_volumes_without_a_template_for_them_are_refused() {
    let several = Several::new("two-volumes").await;
    several.template("locking", |_| {}).await;
    several.claim("data-s").await;
    several.claim("wal-s").await;
    several.pod("s-0", "s", &["data-s", "wal-s"]).await;
    let refused = several.back_up("b", json!([application("s", "locking")])).await;
    assert_eq!(why(&refused), "SeveralVolumes");
    assert!(several.everybody().is_empty(), "nothing was frozen");
    several.0.end().await;
}
