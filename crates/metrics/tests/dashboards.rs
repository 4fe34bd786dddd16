//! The contract between what the controller exposes and what rules and dashboards ask for, both ways: every metric,
//! label and fixed label value of a query is exposed, and every exposed metric is asked for or said to be for other
//! uses. Every alert has a runbook, a case in which it fires and one in which it does not (dashboards/README.md).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use stillpoint_api::outcome::{HookPhase, HookResult, RunResult};
use stillpoint_metrics::collector::Family;
use stillpoint_metrics::{
    BuildInfo, FactsStore, Metrics, ProcessFacts, RuleFacts, WorkKind, WorkResult, process,
};

/// Exposed, and on purpose in no rule and on no dashboard here.
const FOR_OTHER_USES: &[(&str, &str)] = &[
    ("stillpoint_build_info", "identifies the binary"),
    ("stillpoint_slots_total", "for reports on an objective of slots"),
    ("stillpoint_unprotected_volumes", "about a namespace; for a dashboard of all of them"),
    ("stillpoint_orphaned_backups", "about a namespace; for a dashboard of all of them"),
    ("stillpoint_retention_blocked", "explains why points stay"),
    ("stillpoint_retention_overdue", "explains why points stay"),
    ("stillpoint_retention_deletions_total", "for questions about who deleted what"),
    ("stillpoint_orphan_deletions_total", "for questions about who deleted what"),
    ("stillpoint_recovery_point_cut_spread_seconds", "for the judgement of storage"),
    ("stillpoint_restore_size_bytes", "for the planning of storage"),
    ("stillpoint_last_run_duration_seconds", "for the planning of schedules"),
    ("process_resident_memory_bytes", "about the process, not about a policy"),
    ("stillpoint_restores_total", "whoever restores looks at the Restore"),
    ("stillpoint_restore_duration_seconds", "for the planning of recovery"),
    ("stillpoint_policy_in_blackout", "explains why nothing starts"),
    ("stillpoint_runs_waiting", "about a namespace; for a dashboard of all of them"),
    ("stillpoint_rule_policies", "about a rule; for a dashboard of all of them"),
    ("stillpoint_rule_policies_outside", "the policies have an alert of their own"),
    ("stillpoint_queue_depth", "about the process; for a dashboard of the controller"),
    ("stillpoint_workers_busy", "about the process; for a dashboard of the controller"),
    ("stillpoint_workers", "about the process; for a dashboard of the controller"),
    ("stillpoint_run_start_delay_seconds", "about the process; for a dashboard of the controller"),
    ("stillpoint_reconcile_duration_seconds", "about the process; for a dashboard of the controller"),
    ("stillpoint_kube_requests_total", "about the process; for a dashboard of the controller"),
    ("stillpoint_kube_request_duration_seconds", "about the process; for a dashboard of the controller"),
];

/// Labels whose values are a closed set.
const CLOSED: &[&str] =
    &["state", "reason", "outcome", "status", "type", "phase", "trigger", "consistency", "result"];

/// Where the runbooks are read on the web.
const RUNBOOKS: &str = "https://github.com/stillpoint-dev/stillpoint/blob/main/docs/runbooks/";

/// What each metric exposes: its labels, and the values seen of each.
type Catalogue = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

/// A metric that a query asks for, and the matchers: label, operator, value.
#[derive(Debug)]
struct Selector {
    metric: String,
    matchers: Vec<(String, String, String)>,
}

/// What a query mentions.
#[derive(Debug, Default)]
struct Query {
    selectors: Vec<Selector>,
    /// Label lists of `by`, `on`, `group_left` and their like.
    groupings: Vec<(String, Vec<String>)>,
    words: BTreeSet<String>,
}

/// One query and where it is.
struct Asked {
    place: String,
    text: String,
    query: Query,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|found| found == ending));
    paths.sort();
    assert!(!paths.is_empty(), "nothing in {folder}");
    paths
}

fn yaml(path: &Path) -> Value {
    serde_yaml::from_str(&fs::read_to_string(path).unwrap())
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn string<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or("")
}

/// A scrape of one policy of every shape, through the code that serves `/metrics`.
fn scrape() -> String {
    let build = BuildInfo { version: "1.2.3".into(), revision: "abc".into() };
    let metrics = Arc::new(Metrics::new(&build).unwrap());
    let store = FactsStore::new(Arc::clone(&metrics));
    // The types of conditions that the scheduler sets (docs/api.md).
    let conditions: Vec<Value> = ["Accepted", "Ready", "RPOAttainable", "ClockSkew"]
        .iter()
        .map(|kind| {
            json!({"type": kind, "status": "True", "reason": "Any", "message": "",
                   "lastTransitionTime": "2026-11-01T00:00:00Z"})
        })
        .collect();
    let policy = json!({
        "apiVersion": "stillpoint.dev/v1alpha1", "kind": "BackupPolicy",
        "metadata": {"name": "nightly", "namespace": "shop", "creationTimestamp": "2026-11-01T00:00:00Z"},
        "spec": {
            "schedule": {"cron": "0 2 * * *"}, "objectives": {"rpo": "26h"},
            "applications": [{"name": "db", "selector": {"matchLabels": {"app": "db"}}}],
        },
        "status": {
            "conditions": conditions, "nextSlots": ["2026-11-22T02:00:00+01:00"],
            "lastSlot": "2026-11-20T01:00:00Z", "maxIntervalSeconds": 90000, "minIntervalSeconds": 82800,
        },
    });
    let nightly = serde_json::from_value(policy).unwrap();
    store.policy_applied(&nightly);
    let backup = json!({
        "apiVersion": "stillpoint.dev/v1alpha1", "kind": "Backup",
        "metadata": {"name": "a", "namespace": "shop", "creationTimestamp": "2026-11-20T01:00:00Z"},
        "spec": {"run": {"policyRef": {"name": "nightly"}}, "trigger": "Schedule"},
        "status": {"phase": "Succeeded", "consistency": "Application", "cut": "2026-11-20T01:00:00.000000Z",
                   "startedAt": "2026-11-20T01:00:00.000000Z", "finishedAt": "2026-11-20T01:01:00.000000Z",
                   "members": [{"application": "db", "podName": "db-0", "podUID": "p", "claimName": "data",
                                "volumeSnapshot": "s", "cut": "2026-11-20T01:00:00.000000Z"}],
                   "window": {"startedAt": "2026-11-20T01:00:00.000000Z", "frozenSeconds": 0.0625}},
    });
    store.backup_applied(&serde_json::from_value(backup).unwrap());
    metrics.freeze("shop", "nightly", 0.1);
    metrics.overhead("shop", "nightly", 0.1);
    for phase in HookPhase::ALL {
        metrics.hook("shop", "nightly", "db", phase, 0.1);
        metrics.hook_ended("shop", "nightly", "db", phase, HookResult::Succeeded);
    }
    store.policies_listing();
    store.policy_applied(&nightly);
    store.policies_listed();
    store.claims_listing();
    let claim = json!({"name": "data", "namespace": "shop", "annotations": {"pv.kubernetes.io/bind-completed": "yes"}});
    store.claim_applied(&serde_json::from_value(claim).unwrap());
    store.claims_listed();
    metrics.cut("disk.csi", 0.1);
    metrics.ready("disk.csi", 0.1);
    metrics.restored("shop", "nightly", RunResult::Succeeded, 1.0);
    let meters = metrics.meters();
    let second = std::time::Duration::from_secs(1);
    meters.started(second);
    meters.worked(WorkKind::Policy, WorkResult::Succeeded, second);
    for code in ["200", "409", "429", "500", "503", "unreachable", "abandoned"] {
        meters.requested("get", "pods", code, second);
    }
    meters.clocks_read(1.0);
    let process = ProcessFacts {
        leads: true,
        last_tick: Some("2026-11-20T01:00:00Z".parse().unwrap()),
        rules: vec![RuleFacts { name: "gold".into(), ..RuleFacts::default() }],
        ..ProcessFacts::default()
    };
    let mut text: String = Family::ALL.iter().map(|family| family.render(&store)).collect();
    text.extend(Metrics::render(&*metrics));
    text + &process::render(&process)
}

fn catalogue() -> Catalogue {
    let mut catalogue = Catalogue::new();
    for line in scrape().lines().filter(|line| !line.starts_with('#')) {
        let series = line.rsplit_once(' ').unwrap().0;
        let query = parse(series);
        let [selector] = &query.selectors[..] else { panic!("not one series: {line}") };
        let labels = catalogue.entry(selector.metric.clone()).or_default();
        for (label, _, value) in &selector.matchers {
            labels.entry(label.clone()).or_default().insert(value.clone());
        }
    }
    catalogue
}

/// The family of a series of a histogram.
fn family(metric: &str) -> &str {
    let parts = ["_seconds_bucket", "_seconds_sum", "_seconds_count"];
    match parts.iter().find(|part| metric.ends_with(**part)) {
        Some(part) => &metric[..metric.len() - part.len() + "_seconds".len()],
        None => metric,
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '$')
}

/// Words, strings (with their first quote) and single signs; comments and ranges are left out.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '#' => while rest.next_if(|c| *c != '\n').is_some() {},
            '[' => while rest.next().is_some_and(|c| c != ']') {},
            '"' | '\'' => {
                let mut token = String::from('"');
                while let Some(inner) = rest.next() {
                    match inner {
                        '\\' => token.extend(rest.next()),
                        end if end == c => break,
                        other => token.push(other),
                    }
                }
                tokens.push(token);
            }
            c if is_word(c) => {
                let mut token = String::from(c);
                while let Some(next) = rest.next_if(|c| is_word(*c) || *c == '.') {
                    token.push(next);
                }
                tokens.push(token);
            }
            c if c.is_whitespace() => {}
            sign => tokens.push(sign.to_string()),
        }
    }
    tokens
}

/// Enough of PromQL to know what a query mentions; that it is valid promtool says.
fn parse(text: &str) -> Query {
    const OPERATORS: [&str; 6] = ["and", "or", "unless", "bool", "offset", "atan2"];
    const LISTS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
    let tokens = tokens(text);
    let token = |at: usize| tokens.get(at).map_or("", String::as_str);
    let mut query = Query::default();
    let mut at = 0;
    while at < tokens.len() {
        let word = token(at);
        at += 1;
        if !word.starts_with(|c: char| c.is_ascii_alphabetic()) {
            continue;
        }
        query.words.insert(word.to_owned());
        if LISTS.contains(&word) {
            let mut labels = Vec::new();
            if token(at) == "(" {
                at += 1;
                while !matches!(token(at), ")" | "") {
                    labels.extend(Some(token(at).to_owned()).filter(|label| label != ","));
                    at += 1;
                }
            }
            query.groupings.push((word.to_owned(), labels));
        } else if !OPERATORS.contains(&word) && !matches!(token(at), "(" | "by" | "without") {
            let mut selector = Selector { metric: word.to_owned(), matchers: Vec::new() };
            if token(at) == "{" {
                at += 1;
                while !matches!(token(at), "}" | "") {
                    let label = token(at).to_owned();
                    let mut operator = String::new();
                    at += 1;
                    while matches!(token(at), "=" | "!" | "~") {
                        operator.push_str(token(at));
                        at += 1;
                    }
                    selector.matchers.push((label, operator, token(at).trim_start_matches('"').to_owned()));
                    at += 1;
                    at += usize::from(token(at) == ",");
                }
            }
            query.selectors.push(selector);
        }
    }
    query
}

fn rules() -> Vec<(PathBuf, Value)> {
    let mut rules = Vec::new();
    for path in files("dashboards/rules", "yaml") {
        for group in list(&yaml(&path), "groups") {
            rules.extend(list(group, "rules").iter().map(|rule| (path.clone(), rule.clone())));
        }
    }
    assert!(!rules.is_empty());
    rules
}

fn alerts() -> Vec<Value> {
    rules().into_iter().map(|(_, rule)| rule).filter(|rule| rule["alert"].is_string()).collect()
}

fn dashboards() -> Vec<(String, Value)> {
    let named = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        (path.file_name().unwrap().to_string_lossy().into_owned(), serde_json::from_str(&text).unwrap())
    };
    files("dashboards", "json").into_iter().map(named).collect()
}

/// Every query of rules and dashboards.
fn asked() -> Vec<Asked> {
    let mut asked = Vec::new();
    let mut ask = |place: String, text: &str| {
        asked.push(Asked { query: parse(text), text: text.to_owned(), place });
    };
    for (_, rule) in rules() {
        ask(format!("{}{}", string(&rule, "alert"), string(&rule, "record")), string(&rule, "expr"));
    }
    for (name, dashboard) in dashboards() {
        for panel in list(&dashboard, "panels") {
            for target in list(panel, "targets") {
                ask(format!("{name}: {}", string(panel, "title")), string(target, "expr"));
            }
        }
        for variable in list(&dashboard["templating"], "list") {
            let text = variable["query"]["query"].as_str().unwrap_or_default();
            if let Some(inner) = text.strip_prefix("label_values(").and_then(|text| text.strip_suffix(')')) {
                let (selector, label) = inner.rsplit_once(',').unwrap();
                let label = label.trim();
                ask(format!("{name}: ${label}"), &format!("count by ({label}) ({selector})"));
            }
        }
    }
    asked
}

/// What is exposed and what the rules record: the first part of a recorded name says its labels.
fn exposed_and_recorded() -> Catalogue {
    let mut known = catalogue();
    for (_, rule) in rules() {
        if let Some(record) = rule["record"].as_str() {
            let level = record.split(':').next().unwrap();
            let labels = level.split('_').map(|label| (label.to_owned(), BTreeSet::new())).collect();
            assert!(known.insert(record.to_owned(), labels).is_none(), "{record} is there twice");
        }
    }
    known
}

#[test]
fn every_metric_and_label_that_is_asked_for_is_exposed() {
    let known = exposed_and_recorded();
    let exposed = catalogue();
    let mut wrong = Vec::new();
    for Asked { place, query, text } in asked() {
        assert!(!query.selectors.is_empty(), "{place}: no metric in {text}");
        for selector in &query.selectors {
            let Some(labels) = known.get(&selector.metric) else {
                wrong.push(format!("{place}: no metric {}", selector.metric));
                continue;
            };
            for (label, operator, value) in &selector.matchers {
                if !labels.contains_key(label) {
                    wrong.push(format!("{place}: {} has no label {label}", selector.metric));
                } else if CLOSED.contains(&label.as_str()) && exposed.contains_key(&selector.metric) {
                    let values = value
                        .split('|')
                        .filter(|_| operator.ends_with('~'))
                        .chain(Some(value.as_str()).filter(|_| !operator.ends_with('~')));
                    for value in values.filter(|value| !labels[label].contains(*value)) {
                        wrong.push(format!("{place}: {} never has {label}={value}", selector.metric));
                    }
                }
            }
        }
        for (word, labels) in &query.groupings {
            for label in labels {
                // An aggregation over a series without the label would silently merge or drop.
                let lack = query.selectors.iter().filter(|selector| {
                    known.get(&selector.metric).is_some_and(|labels| !labels.contains_key(label))
                });
                wrong.extend(lack.map(|one| format!("{place}: {word} ({label}): not on {}", one.metric)));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_exposed_metric_is_asked_for_or_said_to_be_for_other_uses() {
    let asked: BTreeSet<String> = asked()
        .into_iter()
        .flat_map(|asked| asked.query.selectors)
        .map(|selector| family(&selector.metric).to_owned())
        .collect();
    let other: BTreeSet<&str> = FOR_OTHER_USES.iter().map(|(metric, _)| *metric).collect();
    for metric in catalogue().keys().map(|metric| family(metric)) {
        assert!(
            asked.contains(metric) != other.contains(metric),
            "{metric}: asked for: {}, for other uses: {}",
            asked.contains(metric),
            other.contains(metric)
        );
    }
}

#[test]
fn the_document_lists_every_exposed_metric_and_no_other() {
    let text = fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    let documented: BTreeSet<String> = rows
        .filter_map(|row| row.split('`').nth(1))
        .filter(|name| name.starts_with("stillpoint_") || name.starts_with("process_"))
        .map(str::to_owned)
        .collect();
    let exposed: BTreeSet<String> = catalogue().keys().map(|metric| family(metric).to_owned()).collect();
    assert_eq!(documented, exposed);
}

#[test]
fn a_recorded_series_has_the_labels_that_its_name_says() {
    for (_, rule) in rules() {
        let Some(record) = rule["record"].as_str() else { continue };
        let level: BTreeSet<&str> = record.split(':').next().unwrap().split('_').collect();
        let query = parse(string(&rule, "expr"));
        for (word, labels) in &query.groupings {
            assert_eq!(labels.iter().map(String::as_str).collect::<BTreeSet<_>>(), level, "{record}: {word}");
        }
        // What is not recorded at this level already is aggregated to it: a second replica must not double it.
        let recorded = query.selectors.iter().all(|one| one.metric.starts_with("namespace_policy"));
        assert!(recorded || !query.groupings.is_empty(), "{record}");
    }
}

#[test]
fn every_alert_says_what_happened_and_leads_to_its_runbook() {
    let mut led_to = BTreeSet::new();
    for alert in alerts() {
        let name = string(&alert, "alert");
        let expression = string(&alert, "expr");
        let query = parse(expression);
        assert!(name.starts_with("Stillpoint"), "{name}");
        assert!(matches!(string(&alert["labels"], "severity"), "critical" | "warning"), "{name}");
        // `== bool` is never empty: such an alert always fires.
        assert!(!query.words.contains("bool"), "{name}: bool");
        let words = ["summary", "description"].map(|key| string(&alert["annotations"], key));
        for text in words {
            assert!(text.ends_with('.') && text.len() > 20, "{name}: {text:?}");
            for label in text.split("$labels.").skip(1) {
                let label: String = label.chars().take_while(|c| is_word(*c)).collect();
                let kept =
                    query.groupings.iter().any(|(word, labels)| word == "by" && labels.contains(&label))
                        || query.selectors.iter().any(|selector| {
                            selector.metric.split(':').next().is_some_and(|level| {
                                selector.metric.contains(':') && level.split('_').any(|part| part == label)
                            })
                        });
                assert!(kept, "{name}: the expression drops {label}");
            }
        }
        let page = string(&alert["annotations"], "runbook_url");
        let page = page.strip_prefix(RUNBOOKS).unwrap_or_else(|| panic!("{name}: {page}"));
        let text = fs::read_to_string(root().join("docs/runbooks").join(page))
            .unwrap_or_else(|error| panic!("{name}: {page}: {error}"));
        assert!(text.starts_with(&format!("# {name}\n")), "{page} is not about {name}");
        for heading in ["## What it means", "## What to look at", "## What to do"] {
            assert!(text.contains(heading), "{page}: no {heading}");
        }
        assert!(led_to.insert(page.to_owned()), "{page} is for two alerts");
    }
    let pages = files("docs/runbooks", "md");
    let pages = pages.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned());
    assert_eq!(pages.collect::<BTreeSet<_>>(), led_to, "a runbook that no alert leads to");
}

#[test]
fn every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() {
    let mut fires = BTreeSet::new();
    let mut silent = BTreeSet::new();
    for path in files("dashboards/rules/tests", "yaml") {
        for case in list(&yaml(&path), "tests") {
            for check in list(case, "alert_rule_test") {
                let cases = if list(check, "exp_alerts").is_empty() { &mut silent } else { &mut fires };
                cases.insert(string(check, "alertname").to_owned());
            }
        }
    }
    let alerts: BTreeSet<String> = alerts().iter().map(|alert| string(alert, "alert").to_owned()).collect();
    assert_eq!(fires, alerts, "alerts with a case in which they fire");
    assert_eq!(silent, alerts, "alerts with a case in which they do not");
}

#[test]
fn a_dashboard_can_be_provisioned_and_each_panel_explains_itself() {
    for (name, dashboard) in dashboards() {
        assert!(dashboard["id"].is_null() && dashboard["editable"] == json!(false), "{name}");
        assert!(!string(&dashboard, "uid").is_empty() && string(&dashboard, "uid").len() <= 40, "{name}");
        assert!(dashboard["schemaVersion"].is_u64() && !string(&dashboard, "title").is_empty(), "{name}");
        // Only the import dialogue resolves inputs; provisioning does not.
        assert!(dashboard.get("__inputs").is_none() && !dashboard.to_string().contains("${DS_"), "{name}");
        let variables: Vec<&str> =
            list(&dashboard["templating"], "list").iter().map(|variable| string(variable, "name")).collect();
        assert!(variables.contains(&"datasource"), "{name}");
        let mut ids = BTreeSet::new();
        let mut cells = BTreeSet::new();
        for panel in list(&dashboard, "panels") {
            let title = format!("{name}: {}", string(panel, "title"));
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: id twice");
            let grid = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
            let [left, top, width, height] = grid;
            assert!(width > 0 && height > 0 && left + width <= 24, "{title}: {grid:?}");
            for cell in (left..left + width).flat_map(|x| (top..top + height).map(move |y| (x, y))) {
                assert!(cells.insert(cell), "{title} overlaps at {cell:?}");
            }
            if string(panel, "type") == "row" {
                continue;
            }
            assert!(string(panel, "title").len() > 3 && string(panel, "description").len() > 20, "{title}");
            assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title}: no unit");
            assert_eq!(string(&panel["datasource"], "uid"), "${datasource}", "{title}");
            assert!(!list(panel, "targets").is_empty(), "{title}: no query");
            for target in list(panel, "targets") {
                let expression = string(target, "expr");
                let query = parse(expression);
                for counting in ["rate", "increase", "irate"] {
                    let ranged =
                        ["[$__rate_interval]", "[$__range]"].iter().any(|one| expression.contains(one));
                    assert!(!query.words.contains(counting) || ranged, "{title}: {expression}");
                }
                for selector in query.selectors.iter().filter(|one| !one.metric.contains("_leader")) {
                    for label in ["namespace", "policy"] {
                        let given = selector.matchers.iter().any(|(found, _, _)| found == label);
                        let driver = ["_cut_duration", "_ready_duration"]
                            .iter()
                            .any(|one| selector.metric.contains(one));
                        assert!(given || driver, "{title}: {} of every {label}", selector.metric);
                    }
                }
            }
        }
    }
}
