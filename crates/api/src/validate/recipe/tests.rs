//! Each rule of a template, broken once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use serde_json::{Value, json};

fn base() -> Value {
    json!({
        "parameters": [{"name": "user", "default": "root"}, {"name": "label", "default": "x"}],
        "evidence": ["durable"],
        "dataPaths": [],
        "crashSafe": {"source": "manual", "settings": [{"name": "durable", "allowed": ["1"]}]},
        "freeze": {"session": {
            "command": ["/usr/bin/mariadb", "-u", "{{user}}", "-NBrn"],
            "open": "SET wait_timeout={{lease}}, lock_wait_timeout={{acquireSeconds}};\nSELECT 'READY {{n}} gtid=0';\n",
            "freeze": "LOCK;\nSELECT 'EVIDENCE {{n}} durable=1', {{label}};\nSELECT 'FROZEN {{n}} 0 gtid=0';\n",
            "beat": "SELECT 'HELD {{n}} {{i}} gtid=0';\n",
            "thaw": "UNLOCK;\nSELECT 'THAWED {{n}}';\n",
            "canary": "SELECT nothing;\nSELECT 'CANARY {{n}}';\n",
            "lease": {"variable": "wait_timeout", "unit": "s", "duration": "10s"},
            "position": "gtid"
        }}
    })
}

fn rules(pointer: &str, value: Value) -> Vec<&'static str> {
    let mut object = base();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    object.pointer_mut(parent).unwrap()[key] = value;
    let typed: Recipe = serde_json::from_value(object).unwrap();
    recipe(&typed, "HookTemplate", "t").into_iter().map(|finding| finding.rule).collect()
}

const SESSION: &str = "/freeze/session";

#[test]
fn a_sound_session_has_no_findings() {
    let typed: Recipe = serde_json::from_value(base()).unwrap();
    assert_eq!(recipe(&typed, "HookTemplate", "t"), []);
    assert_eq!(advice(&typed), []);
}

#[test]
fn a_client_that_cannot_hold_is_refused() {
    for (argv, rule) in [
        (json!(["mysql", "-n", "-e", "x"]), "OneShotClient"),
        (json!(["mariadb", "-n", "--execute=x"]), "OneShotClient"),
        (json!(["psql", "-v", "ON_ERROR_STOP=1", "-c", "x"]), "OneShotClient"),
        (json!(["psql", "-v", "ON_ERROR_STOP=1", "-f", "x"]), "OneShotClient"),
        (json!(["sh", "-c", "x"]), "OneShotClient"),
        (json!(["mongosh", "--eval", "x"]), "OneShotClient"),
        (json!(["mariadb", "-u", "root"]), "BufferedClient"),
        (json!(["psql", "-X"]), "GoesOnAfterError"),
    ] {
        assert_eq!(rules("/freeze/session/command", argv.clone()), [rule], "{argv}");
    }
    for argv in [json!(["mariadb", "--unbuffered"]), json!(["psql", "-X", "-v", "ON_ERROR_STOP=1"])] {
        assert_eq!(rules("/freeze/session/command", argv.clone()), Vec::<&str>::new(), "{argv}");
    }
}

#[test]
fn texts_say_their_word_and_are_complete() {
    for field in ["open", "freeze", "beat", "thaw", "canary"] {
        let text = base().pointer(&format!("{SESSION}/{field}")).unwrap().as_str().unwrap().to_owned();
        let pointer = format!("{SESSION}/{field}");
        assert_eq!(rules(&pointer, json!(text.replace(" {{n}}", " 7"))), ["WordMissing"], "{field}");
        assert_eq!(rules(&pointer, json!(text.trim_end())), ["UnterminatedText"], "{field}");
        assert_eq!(
            rules(&pointer, json!(text.trim_end().trim_end_matches(';').to_owned() + "\n")),
            ["UnterminatedText"],
            "{field}"
        );
    }
}

#[test]
fn nothing_waits_without_a_bound_and_silence_ends_the_hold() {
    let open = "/freeze/session/open";
    assert_eq!(
        rules(open, json!("SET wait_timeout={{lease}};\nSELECT 'READY {{n}} gtid=0';\n")),
        ["UnboundedWait"]
    );
    assert_eq!(
        rules(open, json!("SET lock_wait_timeout={{acquireSeconds}};\nSELECT 'READY {{n}} gtid=0';\n")),
        ["SessionWithoutLease"]
    );
    assert_eq!(rules("/freeze/session/lease/duration", json!("11s")), ["LeaseOutOfRange"]);
    assert_eq!(rules("/freeze/session/lease/duration", json!("1s")), ["LeaseOutOfRange"]);
    assert_eq!(
        rules("/freeze/session/thaw", json!("SET GLOBAL read_only = 0;\nSELECT 'THAWED {{n}}';\n")),
        ["ThawMakesWritable"]
    );
    assert_eq!(rules("/freeze/session/locks", json!(false)), Vec::<&str>::new());
}

#[test]
fn what_is_claimed_is_printed() {
    assert_eq!(rules("/evidence", json!(["durable", "lsn"])), ["EvidenceNotPrinted"]);
    assert_eq!(rules("/evidence", json!([])), ["EvidenceNotPrinted"]);
    assert_eq!(rules("/dataPaths", json!(["datadir"])), ["EvidenceNotPrinted"]);
    assert_eq!(rules("/freeze/session/position", json!("lsn")), ["KeyNotPrinted"]);
    assert_eq!(rules("/freeze/session/position", json!("commits")), ["UnknownKey", "KeyNotPrinted"]);
    assert_eq!(
        rules("/freeze/session/local", json!({"key": "host", "equals": "PodHostname"})),
        ["KeyNotPrinted"]
    );
}

#[test]
fn placeholders_and_parameters_fit_each_other() {
    let beat = "/freeze/session/beat";
    assert_eq!(rules(beat, json!("SELECT 'HELD {{n}} {{i}} gtid=0', {{who}};\n")), ["UnknownParameter"]);
    assert_eq!(rules(beat, json!("SELECT 'HELD {{n}} {{i}} gtid=0', '{{label}}';\n")), ["QuotedParameter"]);
    assert_eq!(rules("/freeze/session/thaw", json!("SELECT 'THAWED {{n}} {{i}}';\n")), ["UnknownParameter"]);
    assert_eq!(rules("/freeze/session/command", json!(["mariadb", "-n", "{{n}}"])), ["UnknownParameter"]);
    let parameter = |extra: Value| {
        let mut all = base()["parameters"].clone();
        all.as_array_mut().unwrap().push(extra);
        rules("/parameters", all)
    };
    assert_eq!(parameter(json!({"name": "user"})), ["DuplicateName"]);
    assert_eq!(parameter(json!({"name": "lease"})), ["ReservedParameter"]);
    assert_eq!(parameter(json!({"name": "A b"})), ["InvalidName"]);
    assert_eq!(parameter(json!({"name": "e", "type": "enum"})), ["EnumValues"]);
    assert_eq!(parameter(json!({"name": "e", "enum": ["a"]})), ["EnumValues"]);
    assert_eq!(parameter(json!({"name": "k", "type": "integer", "default": "x"})), ["ParameterType"]);
    assert_eq!(parameter(json!({"name": "k", "type": "path", "default": "a/b"})), ["ParameterType"]);
    assert_eq!(parameter(json!({"name": "k", "type": "duration", "default": "soon"})), ["ParameterType"]);
    assert_eq!(parameter(json!({"name": "k", "type": "identifier", "default": "a b"})), ["ParameterType"]);
    assert_eq!(
        parameter(json!({"name": "k", "type": "integer", "max": 9, "default": "10"})),
        ["ParameterType"]
    );
    assert_eq!(parameter(json!({"name": "k", "type": "integer", "min": 9, "max": 8})), ["IntegerRange"]);
    assert_eq!(parameter(json!({"name": "k", "type": "string", "min": 9})), ["IntegerRange"]);
    assert_eq!(parameter(json!({"name": "k", "fromEnv": "X"})), ["NotSupportedYet"]);
    assert_eq!(parameter(json!({"name": "k", "fromFile": "/x"})), ["NotSupportedYet"]);
}

#[test]
fn a_value_stays_a_value_wherever_it_stands() {
    let beat = "/freeze/session/beat";
    let inside = "SELECT 'HELD {{n}} {{i}} gtid=0', 'of {{label}} today';\n";
    assert_eq!(rules(beat, json!(inside)), ["QuotedParameter"]);
    let prepare = |argv: Value| rules("/prepare", json!({"command": argv}));
    assert_eq!(prepare(json!(["sh", "-c", "app {{label}}"])), ["UnquotedParameter"]);
    assert_eq!(prepare(json!(["mariadb", "-e", "SELECT {{label|mysql}}"])), Vec::<&str>::new());
    assert_eq!(prepare(json!(["mariadb", "-e", "SELECT {{label|klingon}}"])), ["UnknownLanguage"]);
}

#[test]
fn a_message_is_known_by_words_and_says_something() {
    let message = |contains: &str, says: &str| {
        rules("/messages", json!([{"contains": contains, "means": "PrivilegeMissing", "says": says}]))
    };
    assert_eq!(message("ORA-01031", "grant it"), Vec::<&str>::new());
    assert_eq!(message(" or ", "grant it"), ["MessageTooShort"]);
    assert_eq!(message("ORA-01031", " "), ["MessageWithoutWords"]);
    assert_eq!(message("ORA-01031", "grant it to {{user}}"), ["MessageWithoutWords"]);
}

#[test]
fn a_freeze_has_a_thaw() {
    let held = |value: Value| {
        let typed: Recipe = serde_json::from_value(value).unwrap();
        recipe(&typed, "HookTemplate", "t").into_iter().map(|finding| finding.rule).collect::<Vec<_>>()
    };
    assert!(held(json!({"preHook": {"command": ["a"]}})).contains(&"FreezeWithoutThaw"));
    assert!(held(json!({"postHook": {"command": ["a"]}})).contains(&"ThawWithoutFreeze"));
    assert!(
        held(json!({"freeze": {"commands": {"freeze": ["a"], "thaw": []}}})).contains(&"FreezeWithoutThaw")
    );
    assert_eq!(held(json!({})), ["NoFreeze"]);
    assert_eq!(held(json!({"freeze": {"none": {}}, "preHook": {"command": ["a"]}})), ["FreezeAndHooks"]);
    assert_eq!(held(json!({"freeze": {"none": {}}})), Vec::<&str>::new());
}

#[test]
fn what_runs_in_a_restored_copy_is_bounded_named_and_expects_one_thing() {
    let one = json!({"name": "a", "command": ["x"]});
    let with = |more: Value| {
        let mut check = one.clone();
        check.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        rules("/checks", json!([check]))
    };
    assert_eq!(rules("/drillSafe", json!("Standalone")), Vec::<&str>::new());
    assert_eq!(rules("/afterRestore", json!([one])), Vec::<&str>::new());
    assert_eq!(with(json!({"timeout": "2h", "expect": {"equals": ""}})), Vec::<&str>::new());
    assert_eq!(with(json!({"timeout": "25h"})), ["UnboundedWait"]);
    assert_eq!(with(json!({"timeout": "500ms"})), ["UnboundedWait"]);
    assert_eq!(with(json!({"expect": {}})), ["ExpectOne"]);
    assert_eq!(with(json!({"expect": {"equals": "ok", "atLeast": 1}})), ["ExpectOne"]);
    assert_eq!(with(json!({"command": ["x", "{{nobody}}"]})), ["UnknownParameter"]);
    let twice: Recipe = serde_json::from_value(json!({
        "freeze": {"none": {}}, "afterRestore": [one], "checks": [one],
    }))
    .unwrap();
    let found = recipe(&twice, "HookTemplate", "t");
    assert_eq!(found.iter().map(|finding| finding.rule).collect::<Vec<_>>(), ["DuplicateName"]);
}

#[test]
fn two_commands_are_a_template_in_either_form() {
    for value in [
        json!({"preHook": {"command": ["a"]}, "postHook": {"command": ["b"]}}),
        json!({"freeze": {"commands": {"freeze": ["a"], "thaw": ["b"], "probe": ["c"]}}, "stallProbe": {"command": ["d"]},
            "recover": {"command": ["e"], "probe": ["f"]}}),
    ] {
        let typed: Recipe = serde_json::from_value(value).unwrap();
        assert_eq!(recipe(&typed, "HookTemplate", "t"), []);
    }
}

#[test]
fn what_commands_print_cannot_be_asked_for() {
    let hooks = json!({"preHook": {"command": ["a"]}, "postHook": {"command": ["b"]}});
    for (key, value) in [
        ("evidence", json!(["durable"])),
        ("dataPaths", json!(["datadir"])),
        ("crashSafe", json!({"source": "x", "settings": [{"name": "durable", "allowed": ["1"]}]})),
    ] {
        let mut object = hooks.clone();
        object[key] = value;
        let typed: Recipe = serde_json::from_value(object).unwrap();
        let rules: Vec<_> = recipe(&typed, "HookTemplate", "t").into_iter().map(|found| found.rule).collect();
        assert_eq!(rules, ["EvidenceNotPrinted"], "{key}");
    }
}

#[test]
fn advice_names_what_weakens_the_proof() {
    let typed: Recipe =
        serde_json::from_value(json!({"freeze": {"commands": {"freeze": ["a"], "thaw": ["b"]}}})).unwrap();
    assert_eq!(advice(&typed)[0].rule, "ContinuityDeclared");
    let typed: Recipe =
        serde_json::from_value(json!({"preHook": {"command": ["a"]}, "postHook": {"command": ["b"]}}))
            .unwrap();
    assert_eq!(advice(&typed)[0].rule, "ContinuityDeclared");
    let direct = json!({"freeze": {"commands":
        {"freeze": ["a"], "thaw": ["b"], "probe": ["c"], "allowWithoutDeadline": true}}});
    let typed: Recipe = serde_json::from_value(direct).unwrap();
    assert_eq!(advice(&typed)[0].rule, "FreezeWithoutDeadline");
    let typed: Recipe =
        serde_json::from_value(json!({"freeze": {"none": {}}, "parameters": [{"name": "a"}]})).unwrap();
    assert_eq!(
        advice(&typed).iter().map(|found| found.rule).collect::<Vec<_>>(),
        ["NothingProven", "UnusedParameter"]
    );
}

fn staged(roles: Value, stages: Value) -> Vec<&'static str> {
    let mut object = base();
    object["volumeRoles"] = roles;
    object["freeze"]["session"]["stages"] = stages;
    let typed: Recipe = serde_json::from_value(object).unwrap();
    recipe(&typed, "HookTemplate", "t").into_iter().map(|finding| finding.rule).collect()
}

#[test]
fn stages_place_every_role_once_and_lead_to_each_other() {
    let roles = json!({"data": {"command": ["d"]}, "wal": {"command": ["w"]}});
    let then = "SELECT 'FROZEN {{n}} 1 gtid=0';\n";
    let of = |stages: Value| staged(roles.clone(), stages);
    let data = json!({"volumes": {"roles": ["data"]}, "then": then});
    let wal = json!({"volumes": {"roles": ["wal"]}});
    assert_eq!(of(json!([data, wal])), Vec::<&str>::new());
    assert_eq!(of(json!([])), Vec::<&str>::new(), "roles alone tell whether data lies outside");
    assert_eq!(of(json!([{"volumes": {"roles": ["data", "wal"]}}])), ["OneStage"]);
    assert_eq!(of(json!([data, {"volumes": {"roles": ["redo"]}}])), ["UnknownRole", "RoleWithoutStage"]);
    assert_eq!(of(json!([data, {"volumes": {"roles": ["data", "wal"]}}])), ["DuplicateName"]);
    assert_eq!(of(json!([{"volumes": {"roles": ["data"]}}, wal])), ["WordMissing"]);
    assert_eq!(of(json!([data, {"volumes": {"roles": ["wal"]}, "then": then}])), ["ThenAfterLastStage"]);
    let unended = json!({"volumes": {"roles": ["data"]}, "then": "SELECT 'FROZEN {{n}} 1 gtid=0'"});
    assert_eq!(of(json!([unended, wal])), ["UnterminatedText"]);
    let keyless = json!({"volumes": {"roles": ["data"]}, "then": "SELECT 'FROZEN {{n}} 1';\n"});
    assert_eq!(of(json!([keyless, wal])), ["KeyNotPrinted"]);
    assert_eq!(staged(json!({"data": {"command": [""]}}), json!([])), ["NoCommand"]);
}

#[test]
fn a_role_rule_has_a_command_and_distinct_roles() {
    let role = |value: Value| rules("/target", json!({"role": value}));
    assert_eq!(role(json!({"command": ["x"], "accept": ["primary", "standby"]})), Vec::<&str>::new());
    assert_eq!(role(json!({"command": [], "accept": ["primary"]})), ["NoCommand"]);
    assert_eq!(role(json!({"command": ["x"], "accept": []})), ["NoRole"]);
    assert_eq!(role(json!({"command": ["x"], "accept": ["a", "a"]})), ["DuplicateName"]);
}

#[test]
fn a_barrier_makes_up_for_a_setting_only_between_the_lock_and_frozen() {
    let with_barrier = |freeze: &str, more: &dyn Fn(&mut Value)| {
        let mut object = base();
        object["crashSafe"]["settings"][0]["orBarrier"] = json!(true);
        object["freeze"]["session"]["freeze"] = json!(freeze);
        more(&mut object);
        let typed: Recipe = serde_json::from_value(object).unwrap();
        recipe(&typed, "HookTemplate", "t").into_iter().map(|finding| finding.rule).collect::<Vec<_>>()
    };
    let (lock, told) = (
        "LOCK;\nSELECT 'EVIDENCE {{n}} durable=1', {{label}};\n",
        "SELECT 'EVIDENCE {{n}} barrier=flush';\n",
    );
    let frozen = "SELECT 'FROZEN {{n}} 0 gtid=0';\n";
    let sound = format!("{lock}{told}{frozen}");
    let same = |_: &mut Value| {};
    assert_eq!(with_barrier(&sound, &same), Vec::<&str>::new());
    assert_eq!(with_barrier(&format!("{lock}{frozen}"), &same), ["BarrierNotPrinted"]);
    assert_eq!(with_barrier(&format!("{lock}{frozen}{told}"), &same), ["BarrierAfterFrozen"]);
    let observer = |object: &mut Value| object["freeze"]["session"]["locks"] = json!(false);
    assert_eq!(with_barrier(&sound, &observer), ["BarrierWithoutLock"]);
    for field in ["open", "beat", "thaw", "canary"] {
        let moved = |object: &mut Value| {
            let text = object["freeze"]["session"][field].as_str().unwrap().to_owned();
            object["freeze"]["session"][field] = json!(format!("{told}{text}"));
        };
        assert_eq!(with_barrier(&sound, &moved), ["BarrierOutsideFreeze"], "{field}");
    }
}

fn of_commands(commands: Value, settings: Value) -> Vec<&'static str> {
    let mut held = json!({"freeze": ["f"], "thaw": ["t"]});
    held.as_object_mut().unwrap().extend(commands.as_object().unwrap().clone());
    let typed: Recipe = serde_json::from_value(json!({
        "freeze": {"commands": held}, "crashSafe": {"source": "manual", "settings": settings},
    }))
    .unwrap();
    recipe(&typed, "HookTemplate", "t").into_iter().map(|finding| finding.rule).collect()
}

#[test]
fn two_commands_have_settings_only_where_a_barrier_makes_up_for_them() {
    let barrier = || json!({"barrier": ["sync", "-f", "/data"]});
    let setting =
        |or_barrier: bool| json!([{"name": "appendfsync", "allowed": ["always"], "orBarrier": or_barrier}]);
    assert_eq!(of_commands(barrier(), setting(true)), Vec::<&str>::new());
    assert_eq!(of_commands(json!({}), setting(true)), ["BarrierNotPrinted"]);
    assert_eq!(of_commands(barrier(), setting(false)), ["EvidenceNotPrinted"]);
    let nothing: Recipe = serde_json::from_value(json!({
        "freeze": {"none": {}}, "crashSafe": {"source": "manual", "settings": setting(true)},
    }))
    .unwrap();
    let found = recipe(&nothing, "HookTemplate", "t");
    assert_eq!(found.iter().map(|one| one.rule).collect::<Vec<_>>(), ["BarrierWithoutLock"]);
}

#[test]
fn what_ends_a_blocker_names_it_and_nothing_else_knows_that_name() {
    let probe = |end: Value| rules("/stallProbe", json!({"command": ["who"], "endBlocker": end}));
    assert_eq!(
        probe(json!(["client", "-u", "{{user}}", "-e", "KILL QUERY ID {{blocker}}"])),
        Vec::<&str>::new()
    );
    assert_eq!(probe(json!(["client", "-e", "KILL ALL"])), ["BlockerNotNamed"]);
    assert_eq!(probe(json!(["{{blocker}}"])), ["BlockerIsNoProgram"]);
    assert_eq!(probe(json!(["client", "{{blocker}}", "{{other}}"])), ["UnknownParameter"]);
    assert_eq!(rules("/stallProbe", json!({"command": ["who", "{{blocker}}"]})), ["UnknownParameter"]);
    let parameters = json!([{"name": "user", "default": "root"}, {"name": "label", "default": "x"},
        {"name": "blocker", "default": "1"}]);
    assert_eq!(rules("/parameters", parameters), ["ReservedParameter"]);
}

fn of(value: Value) -> Vec<&'static str> {
    let typed: Recipe = serde_json::from_value(value).unwrap();
    recipe(&typed, "HookTemplate", "t").into_iter().map(|finding| finding.rule).collect()
}

fn two(freeze: &str, thaw: &str) -> Vec<&'static str> {
    of(json!({"freeze": {"commands": {"freeze": ["sh", "-c", freeze], "thaw": ["sh", "-c", thaw]}}}))
}

#[test]
fn a_lock_that_ends_with_its_command_is_refused() {
    for freeze in [
        "mysql -e 'FLUSH  TABLES\nWITH READ LOCK'",
        "mariadb -e 'BACKUP STAGE START; BACKUP STAGE BLOCK_COMMIT'",
        "sqlite3 /data/db 'BEGIN IMMEDIATE'",
        "psql -c \"SELECT pg_backup_start('x')\"",
        "mysql -e 'LOCK INSTANCE FOR BACKUP'",
        "mysql -e 'LOCK TABLES t READ'",
        "psql -c 'LOCK TABLE t IN SHARE MODE'",
        "sqlcmd -Q 'ALTER SERVER CONFIGURATION SET SUSPEND_FOR_SNAPSHOT_BACKUP = ON'",
        "sqlcmd -Q 'ALTER DATABASE d SET SUSPEND_FOR_SNAPSHOT_BACKUP=ON (MODE = COPY_ONLY)'",
    ] {
        assert_eq!(two(freeze, "true"), ["OneShotLock"], "{freeze}");
        let hooks = json!({"preHook": {"command": ["sh", "-c", freeze]}, "postHook": {"command": ["true"]}});
        assert_eq!(of(hooks), ["OneShotLock"], "{freeze}");
    }
    assert_eq!(two("app pause", "app resume"), Vec::<&str>::new());
    assert_eq!(two("app pause", "mysql -e 'UNLOCK TABLES'"), Vec::<&str>::new());
    let resume = "sqlcmd -Q 'ALTER SERVER CONFIGURATION SET SUSPEND_FOR_SNAPSHOT_BACKUP = OFF'";
    assert_eq!(two("app pause", resume), Vec::<&str>::new());
}

#[test]
fn what_cannot_be_undone_is_refused() {
    assert_eq!(two("nodetool drain", "true"), ["DrainsNode"]);
    assert_eq!(two("nodetool flush", "nodetool clearsnapshot --all"), ["ClearsForeignSnapshots"]);
    assert_eq!(two("nodetool flush; drain-the-queue", "nodetool clearsnapshot -t x"), Vec::<&str>::new());
    assert_eq!(two("mysql -e 'SET GLOBAL super_read_only = ON'", "true"), ["FreezeOutlivesSession"]);
    assert_eq!(
        two("psql -c 'ALTER SYSTEM SET default_transaction_read_only=on'", "true"),
        ["FreezeOutlivesSession"]
    );
    assert_eq!(two("app pause", "mysql -e 'SET GLOBAL read_only = 0'"), ["ThawMakesWritable"]);
    let recover =
        json!({"freeze": {"none": {}}, "recover": {"command": ["psql", "-c", "SELECT pg_promote()"]}});
    assert_eq!(of(recover), ["ThawMakesWritable"]);
}

#[test]
fn more_than_the_writes_is_not_frozen() {
    assert_eq!(two("redis-cli CLIENT PAUSE 10000", "redis-cli CLIENT UNPAUSE"), ["PauseStopsProbes"]);
    assert_eq!(two("app-client pause", "app-client resume"), Vec::<&str>::new());
    assert_eq!(two("redis-cli CLIENT PAUSE 10000 WRITE", "redis-cli CLIENT UNPAUSE"), Vec::<&str>::new());
    assert_eq!(two("fsfreeze -f /", "fsfreeze -u /"), ["FreezesRoot", "FreezesRoot"]);
    assert_eq!(two("/sbin/fsfreeze -f /data", "/sbin/fsfreeze -u /data"), Vec::<&str>::new());
}

#[test]
fn a_secret_is_on_no_command_line() {
    let with = |parameter: &str, argv: Value| {
        of(
            json!({"parameters": [{"name": parameter, "default": "x"}], "freeze": {"none": {}}, "prepare": {"command": argv}}),
        )
    };
    assert_eq!(with("password", json!(["app", "{{password}}"])), ["SecretOnCommandLine"]);
    assert_eq!(with("apiToken", json!(["app", "--t={{apiToken}}"])), ["SecretOnCommandLine"]);
    assert_eq!(with("user", json!(["mysql", "-u", "{{user}}", "-phunter2"])), ["SecretOnCommandLine"]);
    assert_eq!(with("user", json!(["app", "{{user}}", "--password=hunter2"])), ["SecretOnCommandLine"]);
    assert_eq!(with("passwordFile", json!(["app", "--from", "{{passwordFile}}"])), Vec::<&str>::new());
    assert_eq!(with("passwordVariable", json!(["app", "{{passwordVariable}}"])), Vec::<&str>::new());
    assert_eq!(with("port", json!(["nodetool", "-p", "{{port}}"])), Vec::<&str>::new());
    for argv in [
        json!(["redis-cli", "-a", "hunter2", "{{user}}"]),
        json!(["app", "{{user}}", "--password", "hunter2"]),
        json!(["nodetool", "-u", "{{user}}", "-pw", "hunter2", "flush"]),
        json!(["mongosh", "mongodb://root:hunter2@127.0.0.1/admin", "{{user}}"]),
        json!(["sh", "-c", "PGPASSWORD=hunter2 psql -U \"$0\" -c CHECKPOINT", "{{user}}"]),
        json!(["sh", "-c", "exec mysql -u \"$0\" -phunter2 -e 'SELECT 1'", "{{user}}"]),
    ] {
        assert_eq!(with("user", argv.clone()), ["SecretOnCommandLine"], "{argv}");
    }
    for argv in [
        json!(["sh", "-c", "PGPASSWORD=$(cat \"$1\") psql -U \"$0\" -c CHECKPOINT", "{{user}}", "/run/x"]),
        json!(["sh", "-c", "MYSQL_PWD=\"$X\" mysql -u \"$0\" -p\"$X\" -e 'SELECT 1'", "{{user}}"]),
        json!(["cp", "-a", "/data", "{{user}}"]),
        json!(["mongosh", "mongodb://127.0.0.1:27017/admin", "{{user}}"]),
    ] {
        assert_eq!(with("user", argv.clone()), Vec::<&str>::new(), "{argv}");
    }
    let parameters =
        json!([{"name": "user", "default": "x"}, {"name": "label", "default": "x"}, {"name": "password"}]);
    let mut object = base();
    object["parameters"] = parameters;
    object["freeze"]["session"]["canary"] = json!("SELECT {{password}};\nSELECT 'CANARY {{n}}';\n");
    assert_eq!(of(object), ["SecretInText"]);
}

#[test]
fn a_backup_label_belongs_between_two_cuts() {
    let text = "SELECT pg_backup_start('x', true);\nSELECT 'EVIDENCE {{n}} durable=1', {{label}};\nSELECT 'FROZEN {{n}} 0 gtid=0';\n";
    assert_eq!(rules("/freeze/session/freeze", json!(text)), ["LabelInOneCut"]);
}

#[test]
fn a_point_that_stands_for_prepare_has_one() {
    assert_eq!(of(json!({"freeze": {"none": {}}, "dataTime": "Prepare"})), ["NothingPrepared"]);
    let prepared = json!({"freeze": {"none": {}}, "dataTime": "Prepare", "prepare": {"command": ["sync"]}});
    assert_eq!(of(prepared), Vec::<&str>::new());
}

#[test]
fn a_state_that_ends_by_itself_is_renewed_in_time_by_a_process_that_stays() {
    let renewed = |lease: &str, direct: bool| {
        of(
            json!({"freeze": {"commands": {"freeze": ["a"], "thaw": ["b"], "renew": {"command": ["a"], "lease": lease},
            "allowWithoutDeadline": direct}}}),
        )
    };
    assert_eq!(renewed("10s", false), Vec::<&str>::new());
    assert_eq!(renewed("4s", false), ["LeaseOutOfRange"]);
    assert_eq!(renewed("11s", false), ["LeaseOutOfRange"]);
    assert_eq!(renewed("10s", true), ["RenewWithoutHolder"]);
}

#[test]
fn a_client_behind_a_shell_is_looked_at() {
    let behind = |client: Value| {
        let mut argv =
            json!(["sh", "-c", "v=$1; shift; export PW=$(printenv \"$v\"); exec \"$@\"", "name", "{{user}}"]);
        argv.as_array_mut().unwrap().extend(client.as_array().unwrap().clone());
        rules("/freeze/session/command", argv)
    };
    assert_eq!(behind(json!(["mariadb", "-n"])), Vec::<&str>::new());
    assert_eq!(behind(json!(["mariadb", "-u", "root"])), ["BufferedClient"]);
    assert_eq!(behind(json!(["mariadb", "-n", "-e", "x"])), ["OneShotClient"]);
    assert_eq!(
        behind(json!(["sh", "-c", "while read -r l; do echo \"$l\"; done | \"$@\"", "name", "mysql"])),
        ["BufferedClient"]
    );
    assert_eq!(behind(json!(["sh", "-c", "x"])), ["OneShotClient"]);
}

fn recovering(change: impl Fn(&mut Value)) -> Vec<&'static str> {
    let mut object = base();
    object["evidence"] = json!(["durable", "old_x"]);
    object["recover"] =
        json!({"command": ["client", "SET x={{old_x}}"], "probe": ["p", "{{old_x}}"], "needs": ["old_x"]});
    let open = object["freeze"]["session"]["open"].as_str().unwrap().to_owned();
    object["freeze"]["session"]["open"] = json!(format!("SELECT 'EVIDENCE {{{{n}}}} old_x=1';\n{open}"));
    change(&mut object);
    let typed: Recipe = serde_json::from_value(object).unwrap();
    recipe(&typed, "HookTemplate", "t").into_iter().map(|finding| finding.rule).collect()
}

#[test]
fn what_a_recovery_needs_is_told_before_the_freeze() {
    assert_eq!(recovering(|_| ()), Vec::<&str>::new());
    let told = "SELECT 'EVIDENCE {{n}} old_x=1';\n";
    let without = |object: &Value| object["freeze"]["session"]["open"].as_str().unwrap().replace(told, "");
    let broken: [&dyn Fn(&mut Value); 6] = [
        &|object| object["evidence"] = json!(["durable"]),
        // What the freeze text prints is not in the journal when it is needed.
        &|object| {
            object["freeze"]["session"]["open"] = json!(without(object));
            let freeze = object["freeze"]["session"]["freeze"].as_str().unwrap();
            object["freeze"]["session"]["freeze"] = json!(format!("{told}{freeze}"));
        },
        // Printed again, it would take the place of the old value.
        &|object| {
            let beat = object["freeze"]["session"]["beat"].as_str().unwrap();
            object["freeze"]["session"]["beat"] = json!(format!("{told}{beat}"));
        },
        &|object| object["recover"]["command"] = json!(["client", "SET x=1"]),
        &|object| object["recover"]["probe"] = json!(["{{old_x}}"]),
        &|object| object["recover"]["command"] = json!(["client", "SET x={{old_x|mysql}} {{old_x}}"]),
    ];
    for (at, change) in broken.iter().enumerate() {
        assert!(recovering(*change).contains(&"RecoveryNotTold"), "{at}");
    }
    let elsewhere = recovering(|object| object["prepare"] = json!({"command": ["p", "{{old_x}}"]}));
    assert_eq!(elsewhere, ["UnknownParameter"], "a value of the hold is known to its recovery only");
}
