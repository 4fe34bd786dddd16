//! The files under `config` and `deploy` are what the types say, and grant what docs/authority.md promises.
//!
//! `UPDATE=1 cargo test -p stillpoint-api --test config` renders the definitions anew.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use stillpoint_api::template::{self, Recipe};
use stillpoint_api::validate::{self, Finding};
use stillpoint_api::{BackupPolicy, ClusterHookTemplate, crd};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn documents(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    serde_yaml::Deserializer::from_str(&text).map(|document| Value::deserialize(document).unwrap()).collect()
}

fn files(folder: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    assert!(!files.is_empty(), "{folder} is empty");
    files
}

fn lint(file: &Path) -> Vec<Finding> {
    documents(file).iter().flat_map(validate::document).collect()
}

#[test]
fn the_definitions_on_disk_are_those_of_the_types() {
    let mut expected: Vec<String> = vec!["kustomization.yaml".into()];
    for definition in crd::all() {
        let file = root().join("config/crd").join(crd::file_name(&definition));
        let rendered = crd::yaml(&definition).unwrap();
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&file, &rendered).unwrap();
        }
        let found = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(found == rendered, "{} is not what the types say: run with UPDATE=1", file.display());
        expected.push(crd::file_name(&definition));
    }
    expected.sort();
    let found: Vec<String> = files("config/crd")
        .iter()
        .map(|file| file.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn everything_in_a_definition_is_bounded() {
    fn walk(schema: &Value, path: &str) {
        let has = |key: &str| schema.get(key).is_some();
        match schema["type"].as_str() {
            Some("string") => {
                assert!(has("maxLength") || has("enum") || has("format"), "{path} has no maxLength")
            }
            Some("array") => {
                assert!(has("maxItems"), "{path} has no maxItems");
                walk(&schema["items"], &format!("{path}[]"));
            }
            Some("object") if has("additionalProperties") => {
                assert!(has("maxProperties"), "{path} has no maxProperties");
                walk(&schema["additionalProperties"], &format!("{path}{{}}"));
            }
            _ => {}
        }
        assert!(!has("nullable"), "{path} is nullable");
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            walk(property, &format!("{path}.{name}"));
        }
    }
    for definition in crd::all() {
        let kind = definition.spec.names.kind.clone();
        let schema = serde_json::to_value(crd::schema(&kind).unwrap()).unwrap();
        for part in ["spec", "status"] {
            walk(&schema["properties"][part], &format!("{kind}.{part}"));
        }
    }
}

#[test]
fn defaults_of_the_definitions_are_those_of_the_types() {
    let schema = serde_json::to_value(crd::schema("BackupPolicy").unwrap()).unwrap();
    let ten_lines = &documents(&root().join("config/samples/first-policy.yaml"))[0];
    let policy: BackupPolicy = serde_json::from_value(ten_lines.clone()).unwrap();
    let filled = serde_json::to_value(&policy.spec).unwrap();
    for (name, property) in schema["properties"]["spec"]["properties"].as_object().unwrap() {
        if let Some(default) = property.get("default") {
            assert_eq!(&filled[name], default, "spec.{name}");
        }
    }
}

#[test]
fn shipped_templates_and_first_samples_lint_clean() {
    for file in files("config/templates") {
        assert_eq!(lint(&file), [], "{}", file.display());
        for document in
            documents(&file).into_iter().filter(|document| document["kind"] == "ClusterHookTemplate")
        {
            let template: ClusterHookTemplate = serde_json::from_value(document).unwrap();
            let advice = validate::advice(&template.spec.0);
            if ["rabbitmq", "kafka-cluster", "minio", "neo4j"]
                .contains(&template.metadata.name.as_deref().unwrap())
            {
                // Their vendors support no copy of what runs, and the templates claim none.
                let rules: Vec<_> = advice.iter().map(|advice| advice.rule).collect();
                assert_eq!(rules, ["NothingProven"]);
            } else {
                assert_eq!(advice, [], "{}", file.display());
            }
        }
    }
    for name in ["first-policy", "office-hours-policy", "restore", "backup-manual", "namespace-optin", "rule"]
    {
        let file = root().join(format!("config/samples/{name}.yaml"));
        assert_eq!(lint(&file), [], "{name}");
    }
}

#[test]
fn the_full_sample_fits_the_schema_and_lint_names_what_is_to_come() {
    let mut found = lint(&root().join("config/samples/full-policy.yaml"));
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(found.iter().all(|finding| finding.rule == "NotSupportedYet"), "{found:#?}");
    let paths: Vec<&str> = found.iter().map(|finding| finding.path.as_str()).collect();
    assert_eq!(paths, ["spec.objectives.rto", "spec.verification",]);
}

fn library() -> Vec<(String, Recipe)> {
    files("config/templates")
        .iter()
        .flat_map(|file| documents(file))
        .filter(|document| document["kind"] == "ClusterHookTemplate")
        .map(|document| {
            let template: ClusterHookTemplate = serde_json::from_value(document).unwrap();
            (template.metadata.name.unwrap(), template.spec.0)
        })
        .collect()
}

#[test]
fn shipped_templates_resolve_with_their_defaults() {
    for (name, recipe) in library() {
        let resolved = template::substitute(&recipe, &Default::default()).unwrap();
        let left: Vec<String> = serde_json::to_string(&resolved)
            .unwrap()
            .split("{{")
            .skip(1)
            .filter_map(|rest| rest.split_once("}}").map(|(name, _)| name.to_owned()))
            .filter(|name| !template::placeholder::RUN_TIME.contains(&name.as_str()))
            .filter(|name| name != template::placeholder::BLOCKER)
            .filter(|name| !recipe.recover.iter().any(|recover| recover.needs.contains(name)))
            .collect();
        assert_eq!(left, Vec::<String>::new(), "{name}");
        // A run judges what it would run, which has values where the file has placeholders.
        assert_eq!(validate::recipe(&resolved, "ClusterHookTemplate", &name), [], "{name}");
        assert_eq!(template::digest(&resolved).len(), 64);
    }
}

#[test]
fn the_usual_images_find_their_template() {
    let library = library();
    let catalog = || library.iter().map(|(name, recipe)| (name.as_str(), recipe));
    for (image, expected) in [
        ("postgres:17", Some("postgresql")),
        ("docker.io/bitnami/postgresql:15", Some("postgresql")),
        ("postgis/postgis:16-3.4", Some("postgresql")),
        ("cloudnative-pg/postgresql:17.5", Some("postgresql")),
        ("zalando/spilo-17:4.0-p2", Some("postgresql")),
        ("crunchydata/crunchy-postgres:ubi9-17", Some("postgresql")),
        ("mysql/community-server:8.4", Some("mysql")),
        ("percona/percona-server-mongodb:8.0", Some("mongodb")),
        ("docker.io/bitnami/mariadb:11.4", Some("mariadb")),
        ("mariadb:11.4", Some("mariadb")),
        ("cluster.local/mariadb:1", Some("mariadb")),
        ("mysql:8.4", Some("mysql")),
        ("percona/percona-server:8.0", Some("mysql")),
        ("docker.io/bitnami/redis:7.4", Some("redis")),
        ("valkey/valkey:9-alpine", Some("valkey")),
        ("mongo:8", Some("mongodb")),
        ("mongodb/mongodb-community-server:8.0-ubi9", Some("mongodb")),
        ("cassandra:5.0", Some("cassandra")),
        ("k8ssandra/cass-management-api:5.0.4-ubi", Some("cassandra")),
        ("quay.io/coreos/etcd:v3.5.30", Some("etcd")),
        ("rabbitmq:4-management", Some("rabbitmq")),
        ("registry.example/mssql/server:2022-latest", Some("sqlserver")),
        ("registry.example/database/free:latest", Some("oracle")),
        ("gvenzl/oracle-free:23-slim", Some("oracle")),
        ("registry.example/elasticsearch/elasticsearch:8.17.0", Some("elasticsearch")),
        ("opensearchproject/opensearch:2.19.1", Some("opensearch")),
        ("apache/kafka:3.9.0", Some("kafka")),
        ("confluentinc/cp-kafka:7.6.0", Some("kafka")),
        ("clickhouse/clickhouse-server:25.3", Some("clickhouse")),
        ("cockroachdb/cockroach:v25.1.0", Some("cockroachdb")),
        ("neo4j:5-community", Some("neo4j")),
        ("minio/minio:latest", Some("minio")),
        ("influxdb:1.8-alpine", Some("influxdb")),
        ("bitnami/redis-exporter", None),
        ("bitnami/mongodb-exporter", None),
        ("prom/mysqld-exporter", None),
        ("prometheuscommunity/postgres-exporter", None),
        ("danielqsj/kafka-exporter", None),
        ("prometheuscommunity/elasticsearch-exporter", None),
    ] {
        let found = template::detect(&[image], catalog()).map(|found| found.template);
        assert_eq!(found.as_deref(), expected, "{image}");
    }
}

fn rules(file: &str, role: &str) -> Vec<Value> {
    documents(&root().join(file))
        .into_iter()
        .filter(|document| document["kind"] == "ClusterRole" || document["kind"] == "Role")
        .filter(|document| document["metadata"]["name"] == role)
        .flat_map(|document| document["rules"].as_array().unwrap().clone())
        .collect()
}

fn words<'a>(rule: &'a Value, key: &str) -> Vec<&'a str> {
    rule[key].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

#[test]
fn the_controller_has_no_verb_on_secrets_and_none_on_exec() {
    let rules = rules("deploy/base/controller-role.yaml", "stillpoint-controller");
    assert!(rules.len() > 10);
    for rule in &rules {
        let (resources, verbs) = (words(rule, "resources"), words(rule, "verbs"));
        assert!(resources.iter().all(|resource| *resource != "secrets"), "{rule}");
        assert!(resources.iter().all(|resource| !resource.starts_with("pods/")), "{rule}");
        assert!(
            verbs.iter().all(|verb| !verb.starts_with("impersonate")),
            "that is impersonation.yaml: {rule}"
        );
        for word in [words(rule, "apiGroups"), resources, verbs].concat() {
            assert!(!word.contains('*'), "a wildcard: {rule}");
        }
        if rule["apiGroups"][0] == "rbac.authorization.k8s.io" {
            panic!("the controller hands out no rights: {rule}");
        }
    }
}

#[test]
fn hooks_are_impersonated_for_exec_alone_and_before_1_36_by_a_role_that_is_bound_nowhere() {
    let constrained = rules("deploy/base/impersonation.yaml", "stillpoint-impersonation");
    let [account, exec] = constrained.as_slice() else { panic!("two rules") };
    assert_eq!(words(account, "verbs"), ["impersonate:serviceaccount"]);
    assert_eq!(words(account, "resourceNames"), ["stillpoint-hooks"]);
    assert_eq!(words(exec, "resources"), ["pods/exec"]);
    assert_eq!(words(exec, "verbs"), ["impersonate-on:serviceaccount:get"]);

    let overlay = "deploy/overlays/kubernetes-1.30";
    let classic = documents(&root().join(overlay).join("impersonator.yaml"));
    let [role] = classic.as_slice() else { panic!("a role and no binding: a namespace's admin binds it") };
    let rule = &role["rules"][0];
    assert_eq!(role["rules"].as_array().unwrap().len(), 1);
    assert_eq!(
        (words(rule, "verbs"), words(rule, "resourceNames")),
        (vec!["impersonate"], vec!["stillpoint-hooks"])
    );
    let patches = documents(&root().join(overlay).join("kustomization.yaml"))[0]["patches"].clone();
    let deleted: Vec<Value> = patches
        .as_array()
        .unwrap()
        .iter()
        .map(|patch| serde_yaml::from_str(patch["patch"].as_str().unwrap()).unwrap())
        .collect();
    for object in documents(&root().join("deploy/base/impersonation.yaml")) {
        let gone = deleted.iter().any(|patch| {
            patch["$patch"] == "delete"
                && patch["kind"] == object["kind"]
                && patch["metadata"]["name"] == object["metadata"]["name"]
        });
        assert!(gone, "both at once void the constraint: {} stays", object["kind"]);
    }
}

#[test]
fn every_admission_policy_is_installed_denies_and_fails_closed() {
    let installed = installed();
    let mut names = Vec::new();
    for file in files("deploy/base") {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        if name != "kustomization.yaml" {
            assert!(installed.contains(&name), "{name} is not installed");
        }
        if !name.starts_with("admission-") {
            continue;
        }
        let found = documents(&file);
        let [policy, binding] = found.as_slice() else { panic!("{name}: a policy and its binding") };
        assert_eq!(policy["spec"]["failurePolicy"], "Fail", "{name}");
        assert_eq!(binding["spec"]["policyName"], policy["metadata"]["name"], "{name}");
        assert_eq!(binding["spec"]["validationActions"], serde_json::json!(["Deny"]), "{name}");
        // One check costs 350 000 of the 1 000 000 that an expression may cost; a third would be a denial at run time.
        let expressions = ["variables", "validations", "matchConditions"]
            .iter()
            .flat_map(|list| policy["spec"][*list].as_array().into_iter().flatten());
        for expression in expressions.filter_map(|one| one["expression"].as_str()) {
            assert!(expression.matches(".check(").count() <= 2, "{name}: {expression}");
        }
        names.push(policy["metadata"]["name"].as_str().unwrap().trim_start_matches("stillpoint-").to_owned());
    }
    assert_eq!(names, ["authors", "cluster-templates", "contents", "holds", "hooks-exec", "restores"]);
}

#[test]
fn the_hooks_account_may_exec_and_nothing_else() {
    let rules = rules("deploy/base/roles.yaml", "stillpoint-hooks");
    assert_eq!(rules.len(), 1);
    assert_eq!(words(&rules[0], "resources"), ["pods/exec"]);
    assert_eq!(words(&rules[0], "verbs"), ["get", "create"]);
}

#[test]
fn a_held_backup_is_deleted_by_nobody_and_released_by_who_has_the_verb() {
    let found = documents(&root().join("deploy/base/admission-holds.yaml"));
    let [policy, binding] = found.as_slice() else { panic!("a policy and its binding") };
    assert_eq!(binding["spec"]["policyName"], policy["metadata"]["name"]);
    assert_eq!(binding["spec"]["validationActions"], serde_json::json!(["Deny"]));
    assert_eq!(policy["spec"]["failurePolicy"], "Fail");
    let matched = &policy["spec"]["matchConstraints"]["resourceRules"][0];
    assert_eq!(words(matched, "operations"), ["UPDATE", "DELETE"]);
    assert_eq!(words(matched, "resources"), ["backups"]);
    let rule = policy["spec"]["validations"][0]["expression"].as_str().unwrap();
    assert!(rule.starts_with("request.operation == 'UPDATE' && ("), "a DELETE is never allowed: {rule}");
    assert!(rule.contains(".check('release')"), "{rule}");
    let operator = rules("deploy/base/roles.yaml", "stillpoint-operator");
    assert!(operator.iter().any(|rule| words(rule, "verbs") == ["release"]));
    let files = installed();
    assert!(files.contains(&"admission-holds.yaml".to_owned()), "{files:?}");
}

fn installed() -> Vec<String> {
    let all = documents(&root().join("deploy/base/kustomization.yaml"));
    words(&all[0], "resources").into_iter().map(str::to_owned).collect()
}

#[test]
fn nobody_is_given_a_status_a_wildcard_or_the_schedulers_verb() {
    let roles: Vec<Value> = documents(&root().join("deploy/base/roles.yaml"))
        .into_iter()
        .filter(|document| document["kind"] == "ClusterRole")
        .collect();
    assert_eq!(roles.len(), 8);
    for rule in roles.iter().flat_map(|role| role["rules"].as_array().unwrap()) {
        assert!(words(rule, "resources").iter().all(|resource| !resource.ends_with("/status")), "{rule}");
        assert!(words(rule, "verbs").iter().all(|verb| *verb != "*" && *verb != "schedule"), "{rule}");
    }
}
