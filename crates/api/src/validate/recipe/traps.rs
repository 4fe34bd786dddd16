//! Commands and statements that are known not to do what their author hopes: each has undone somebody's backup.
//!
//! They are found by their words. A sound template that has such words for another reason can say them otherwise; a template
//! that falls into the trap never reaches a cluster.

use crate::template::{self, Freeze, Recipe};
use crate::validate::Finding;

/// Statements whose lock belongs to the connection that ran them, in lower case and with single spaces.
const OF_THE_CONNECTION: [&str; 10] = [
    "flush tables with read lock",
    "lock instance for backup",
    "backup stage ",
    "begin immediate",
    "pg_backup_start",
    "pg_start_backup",
    // To end one that was left behind (OFF) is no lock.
    "suspend_for_snapshot_backup on",
    "suspend_for_snapshot_backup = on",
    "suspend_for_snapshot_backup =on",
    "suspend_for_snapshot_backup=on",
];
/// Statements that make a replica a primary, without white space and in lower case.
pub(super) const MAKES_WRITABLE: [&str; 7] = [
    "read_only=0",
    "read_only=off",
    "read_only=false",
    "read_only:=0",
    "pg_promote",
    "resetreplicaall",
    "resetslaveall",
];
/// Statements that make a server read-only for everybody until somebody undoes it.
const OUTLIVES: [&str; 6] = [
    "setglobalread_only=",
    "setglobalsuper_read_only=",
    "setpersistread_only=",
    "setpersistsuper_read_only=",
    "default_transaction_read_only",
    "setread_onlywithrollback",
];

/// What a template does at a place: its argv or its text.
struct Place<'r> {
    path: String,
    /// As it is written.
    words: Vec<&'r str>,
}

impl Place<'_> {
    /// In lower case, with single spaces.
    fn spoken(&self) -> String {
        self.words.join(" ").to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// In lower case, without white space.
    fn tight(&self) -> String {
        self.spoken().replace(' ', "")
    }
}

pub(super) fn traps(recipe: &Recipe) -> Vec<Finding> {
    let mut found = Vec::new();
    for (path, argv) in template::arguments(recipe) {
        let place = Place { path, words: argv.iter().map(String::as_str).collect() };
        found.extend(one_shot_lock(recipe, &place));
        found.extend(irreversible(&place));
        found.extend(thaw_makes_writable(&place));
        found.extend(freezes_too_much(&place));
        found.extend(secret(recipe, &place));
    }
    if let Some(Freeze::Session(held)) = &recipe.freeze {
        for (field, text) in template::texts(held) {
            let place = Place { path: format!("spec.freeze.session.{field}"), words: vec![text] };
            found.extend(irreversible(&place));
            found.extend(freezes_too_much(&place));
        }
        found.extend(secret_in_text(recipe));
        let text = Place { path: "spec.freeze.session.freeze".into(), words: vec![&held.freeze] }.spoken();
        let labelled = text.contains("pg_backup_start") || text.contains("pg_start_backup");
        if labelled && held.stages.is_empty() {
            found.push(Finding::new(
                "spec.freeze.session.freeze",
                "LabelInOneCut",
                "a backup label in a copy of one instant keeps it from starting: its end is written after the cut. Leave \
                 pg_backup_start out for one volume, or cut the volumes by stages",
            ));
        }
    }
    found
}

/// A lock that is gone before the snapshot is asked for.
fn one_shot_lock(recipe: &Recipe, place: &Place<'_>) -> Option<Finding> {
    let runs_alone = place.path != "spec.freeze.session.command";
    let spoken = place.spoken();
    let of_tables = locks_tables(&spoken).then_some("lock tables");
    let known = OF_THE_CONNECTION.iter().copied();
    let statement = known.filter(|statement| spoken.contains(statement)).chain(of_tables).next()?;
    // A process that the command leaves behind keeps its connection.
    let leaves_one = spoken.contains('&') && matches!(recipe.freeze, Some(Freeze::Commands(_)));
    // Looking for sessions that wait for such a lock takes none.
    let looks = place.path.starts_with("spec.stallProbe");
    (runs_alone && !leaves_one && !looks).then(|| {
        Finding::new(
            &place.path,
            "OneShotLock",
            format!(
                "{:?} holds only as long as the connection that ran it, which ends with this command, before anything is \
                 cut: use freeze.session",
                statement.trim_end()
            ),
        )
    })
}

/// LOCK TABLES of MySQL and LOCK TABLE of PostgreSQL, and not UNLOCK TABLES.
fn locks_tables(spoken: &str) -> bool {
    let words: Vec<&str> = spoken.split(|one: char| !one.is_ascii_alphanumeric()).collect();
    words.windows(2).any(|pair| pair[0] == "lock" && ["table", "tables"].contains(&pair[1]))
}

/// What cannot be undone, or undoes more than was done.
fn irreversible(place: &Place<'_>) -> Option<Finding> {
    let (spoken, tight) = (place.spoken(), place.tight());
    let refuse = |rule: &'static str, why: &str| Some(Finding::new(&place.path, rule, why));
    let is_nodetool = spoken.contains("nodetool");
    if is_nodetool && spoken.split(' ').any(|word| word.trim_matches(['"', '\'', ';']) == "drain") {
        return refuse(
            "DrainsNode",
            "nodetool drain takes the node out of service until it is restarted: nodetool flush does what a backup needs",
        );
    }
    if is_nodetool && spoken.contains("clearsnapshot") && spoken.contains("--all") {
        return refuse(
            "ClearsForeignSnapshots",
            "nodetool clearsnapshot --all removes everybody's snapshots: name the tag with -t",
        );
    }
    let undoes =
        place.path.ends_with("thaw") || place.path.contains("postHook") || place.path.contains("recover");
    if !undoes && OUTLIVES.iter().any(|statement| tight.contains(statement)) {
        return refuse(
            "FreezeOutlivesSession",
            "this makes the whole server read-only until somebody undoes it: it survives our session, has no lease, and its \
             undoing would make a replica writable; hold a lock in the session instead",
        );
    }
    None
}

/// Undoing what may have been so before.
fn thaw_makes_writable(place: &Place<'_>) -> Option<Finding> {
    // The session's thaw has its own check, with the same rule.
    let tight = place.tight();
    let statement = MAKES_WRITABLE.iter().find(|statement| tight.contains(**statement))?;
    Some(Finding::new(
        &place.path,
        "ThawMakesWritable",
        format!("{statement} can make a replica writable: thaw only what this run froze"),
    ))
}

/// More than the application's writes.
fn freezes_too_much(place: &Place<'_>) -> Option<Finding> {
    let spoken = place.spoken();
    // Not of `app-client pause`, which is somebody's own program.
    let own = |before: &str| before.ends_with(|last: char| last.is_alphanumeric() || "-_./".contains(last));
    let paused = spoken.match_indices("client pause").find(|(at, _)| !own(&spoken[..*at]));
    if let Some((at, words)) = paused
        && !spoken[at + words.len()..].split([';', '\n']).next().unwrap_or_default().contains("write")
    {
        return Some(Finding::new(
            &place.path,
            "PauseStopsProbes",
            "CLIENT PAUSE without WRITE stops every command, and with it the probes that keep the container alive: add WRITE",
        ));
    }
    let words: Vec<&str> = spoken.split(' ').map(|word| word.trim_matches(['"', '\'', ';'])).collect();
    let freezes = words.iter().any(|word| *word == "fsfreeze" || word.ends_with("/fsfreeze"));
    if freezes && words.last().is_some_and(|last| *last == "/") {
        return Some(Finding::new(
            &place.path,
            "FreezesRoot",
            "freezing / stops the container's own shell and log, so that nothing can thaw it: name the volume",
        ));
    }
    None
}

/// Whether a parameter of this name is a secret. Where one lies is none.
fn is_secret(name: &str) -> bool {
    let name = name.to_lowercase();
    ["password", "passwd", "secret", "token", "apikey"].iter().any(|word| name.contains(word))
        && !["file", "path", "variable"].iter().any(|end| name.ends_with(end))
}

/// Words that everybody in the container can read in the list of processes, and the audit log in the request.
fn secret(recipe: &Recipe, place: &Place<'_>) -> Option<Finding> {
    let parameter =
        recipe.parameters.iter().filter(|parameter| is_secret(&parameter.name)).find(|parameter| {
            place
                .words
                .iter()
                .any(|word| template::placeholder::names(word).any(|name| name == parameter.name))
        });
    let written = spelled_out(&place.words).then_some("a password");
    let what = parameter.map(|parameter| parameter.name.as_str()).or(written)?;
    Some(Finding::new(
        &place.path,
        "SecretOnCommandLine",
        format!(
            "{what} on a command line is read by everybody in the container and by who reads the audit log: use a socket, or \
             the container's own variable or file, which a shell there reads"
        ),
    ))
}

/// Whether a password is written into an argv, or into a script that is one of its words. What a shell fills in is none.
fn spelled_out(words: &[&str]) -> bool {
    let mut client = "";
    let mut before = "";
    for word in words.iter().flat_map(|word| word.split_whitespace()) {
        let word = word.trim_matches(['"', '\'', ';', '(', ')']);
        let text = |value: &str| {
            let value = value.trim_matches(['"', '\'']);
            !value.is_empty() && !value.starts_with(['$', '{', '-', '/', '`'])
        };
        let attached = ["--password=", "--pass=", "PGPASSWORD=", "MYSQL_PWD=", "REDISCLI_AUTH="];
        let of_mysql = ["mysql", "mariadb", "mysqldump", "mariadb-dump", "mysqladmin"].contains(&client);
        let next = match before {
            "--password" | "--pass" => true,
            "-a" => ["redis-cli", "valkey-cli"].contains(&client),
            "-pw" => client == "nodetool",
            "-P" => client == "sqlcmd",
            _ => false,
        };
        if attached.iter().any(|option| word.strip_prefix(option).is_some_and(text))
            || of_mysql && word.strip_prefix("-p").is_some_and(text)
            || next && text(word)
            || in_uri(word)
        {
            return true;
        }
        let program = word.rsplit('/').next().unwrap_or(word);
        if CLIENTS.contains(&program) {
            client = program;
        }
        before = word;
    }
    false
}

/// Programs with options of their own for a password.
const CLIENTS: [&str; 9] = [
    "mysql",
    "mariadb",
    "mysqldump",
    "mariadb-dump",
    "mysqladmin",
    "redis-cli",
    "valkey-cli",
    "nodetool",
    "sqlcmd",
];

/// `scheme://user:password@host`.
fn in_uri(word: &str) -> bool {
    let Some((_, rest)) = word.split_once("://") else { return false };
    let Some((user, _)) = rest.split('/').next().unwrap_or_default().rsplit_once('@') else { return false };
    user.split_once(':')
        .is_some_and(|(_, password)| !password.is_empty() && !password.starts_with(['$', '{']))
}

/// A parameter that is a secret, in the texts of a session: its value is in the policy, for everybody who may read that.
fn secret_in_text(recipe: &Recipe) -> Vec<Finding> {
    let Some(Freeze::Session(held)) = &recipe.freeze else { return Vec::new() };
    let secret =
        |text: &str| template::placeholder::names(text).find(|name| is_secret(name)).map(str::to_owned);
    let found = template::texts(held).into_iter().filter_map(|(field, text)| Some((field, secret(text)?)));
    found
        .map(|(field, name)| {
            Finding::new(
                format!("spec.freeze.session.{field}"),
                "SecretInText",
                format!(
                    "{name} would be written in the policy, and sent through the controller: let a shell in the container read it \
                     into the client's environment, or use a socket that needs none"
                ),
            )
        })
        .collect()
}
