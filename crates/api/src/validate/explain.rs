//! What each rule about a template is for, in words that need no other page.

/// A rule and its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explained {
    /// Its name, as findings carry it.
    pub rule: &'static str,
    /// What it finds.
    pub what: &'static str,
    /// What goes wrong without it, measured where it says so.
    pub why: &'static str,
    /// What to write instead.
    pub instead: &'static str,
}

/// Why a rule is there; `None`: it is no rule about templates.
pub fn explain(rule: &str) -> Option<&'static Explained> {
    EXPLAINED.iter().find(|explained| explained.rule.eq_ignore_ascii_case(rule))
}

/// Every rule about templates, the dangerous ones first.
pub const EXPLAINED: &[Explained] = &[
    Explained {
        rule: "OneShotLock",
        what: "A lock is taken by a command that ends.",
        why: "A lock of a database belongs to the connection that took it. `mysql -e \"FLUSH TABLES WITH READ LOCK\"` ends with 0, and the lock ends with it: measured, 823 commits in the 2 s after it. The snapshot that follows is one without a lock, and nobody notices before the restore.",
        instead: "freeze.session: one client that stays, freezes when it is told to, and says THAWED only while it still holds the lock.",
    },
    Explained {
        rule: "FreezeWithoutThaw",
        what: "Something freezes and nothing thaws.",
        why: "What was frozen stays frozen when the backup is over.",
        instead: "Write freeze.commands.thaw, or postHook.",
    },
    Explained {
        rule: "ThawWithoutFreeze",
        what: "Something thaws and nothing freezes.",
        why: "A thaw without a freeze undoes somebody else's.",
        instead: "Write preHook, or remove postHook.",
    },
    Explained {
        rule: "ThawMakesWritable",
        what: "A thaw, a probe or a recovery makes a server writable.",
        why: "A replica is read-only for its whole life. `SET GLOBAL read_only=OFF` after a backup that ran on a replica, or after a fail-over in between, gives the set two primaries.",
        instead: "Undo only what this session did: UNLOCK TABLES, COMMIT, BACKUP STAGE END.",
    },
    Explained {
        rule: "FreezeOutlivesSession",
        what: "The freeze is a setting of the whole server.",
        why: "`SET GLOBAL super_read_only` or `default_transaction_read_only` survives the session and has no end of its own: when whoever set it is killed, production stays read-only. It is also in the copy. Writers get errors instead of waiting: measured on PostgreSQL, 12834 in 2 s.",
        instead: "A lock in the session, which ends with it.",
    },
    Explained {
        rule: "LabelInOneCut",
        what: "A backup label is asked for, and everything is cut at one instant.",
        why: "The record that ends the backup is written after the cut. A copy with the label waits for it at the start and dies: `WAL ends before end of online backup`, 0 of 6 copies started; without the label all did.",
        instead: "Leave pg_backup_start out on one volume. On several, cut them by stages: the data volumes between start and stop, the WAL volume after.",
    },
    Explained {
        rule: "UnboundedWait",
        what: "A lock or a prepare may wait for ever.",
        why: "lock_wait_timeout is a year by default. A waiting FLUSH TABLES WITH READ LOCK stops every writer behind it, for as long as it waits.",
        instead: "Set the server's lock timeout to {{acquireSeconds}} in open; prepare takes 1s to 1h.",
    },
    Explained {
        rule: "SessionWithoutLease",
        what: "The server is never told to end a session that falls silent.",
        why: "When the controller is cut off, no end of input comes, and the lock stays until somebody finds the session.",
        instead: "Set the lease variable to {{lease}} in open, before READY is printed. Where the server has none, a shell in front of the client can keep it (see the template sqlite).",
    },
    Explained {
        rule: "LeaseOutOfRange",
        what: "A lease is too short or too long.",
        why: "Beats come every 2 s, so that a shorter lease ends between two of them; a longer one keeps the application frozen after a controller fell silent.",
        instead: "2s to 10s for a session, 5s to 10s for a state that ends by itself.",
    },
    Explained {
        rule: "SecretOnCommandLine",
        what: "A password is on a command line.",
        why: "Everybody in the container reads it in the list of processes, and the API server writes it into the audit log, for the command of an exec is part of the request.",
        instead: "A socket that needs none, or the container's own variable or file, which a line of shell there reads into the client's environment (see the template mysql).",
    },
    Explained {
        rule: "SecretInText",
        what: "A text of a session has a parameter whose name says that it is a password.",
        why: "Its value would be in the policy, readable by everybody who may read policies, and it would pass through the controller.",
        instead: "A line of shell in the container that reads the container's own variable or file into the client's environment (see the template mysql).",
    },
    Explained {
        rule: "DrainsNode",
        what: "A hook runs `nodetool drain`.",
        why: "It is no quiesce: the node stops taking part in the cluster until it is restarted.",
        instead: "nodetool flush, with dataTime: Prepare.",
    },
    Explained {
        rule: "ClearsForeignSnapshots",
        what: "A hook runs `nodetool clearsnapshot --all`.",
        why: "It removes the snapshots of everybody, those that somebody keeps on purpose too.",
        instead: "nodetool clearsnapshot -t TAG.",
    },
    Explained {
        rule: "PauseStopsProbes",
        what: "CLIENT PAUSE without WRITE.",
        why: "It stops every command, PING too. The liveness probe fails, and the container is restarted in the middle of the backup.",
        instead: "CLIENT PAUSE … WRITE.",
    },
    Explained {
        rule: "FreezesRoot",
        what: "fsfreeze of /.",
        why: "The shell that should thaw it waits for the frozen file system itself. Nothing but a restart of the machine helps.",
        instead: "Name the volume, from a shell that lies on another one; or the template filesystem, which freezes nothing.",
    },
    Explained {
        rule: "OneShotClient",
        what: "The session's client runs one statement and ends.",
        why: "The lock ends with the client, before anything is cut.",
        instead: "Remove -c, -e, --eval: the client reads its statements from its input.",
    },
    Explained {
        rule: "BufferedClient",
        what: "The client prints nothing before the end of its input.",
        why: "mysql and mariadb keep what they print until their input ends, so that READY is never seen.",
        instead: "Add -n.",
    },
    Explained {
        rule: "GoesOnAfterError",
        what: "The client goes on after an error.",
        why: "When the lock fails it would print FROZEN all the same.",
        instead: "psql: -v ON_ERROR_STOP=1.",
    },
    Explained {
        rule: "NoCanary",
        what: "Nothing shows that the client stops at its first error.",
        why: "A client that goes on prints FROZEN without a lock.",
        instead: "canary: a statement that fails, then one that prints CANARY {{n}}. It is tried before anything is frozen.",
    },
    Explained {
        rule: "UnterminatedText",
        what: "A text does not end with `;` and a line break.",
        why: "Clients run an unterminated last statement only at the end of their input: after the hold, or never.",
        instead: "End every text with `;` and a line break.",
    },
    Explained {
        rule: "WordMissing",
        what: "A text never prints the word that the controller waits for.",
        why: "The run waits until its time is over and gives up.",
        instead: "READY {{n}}, FROZEN {{n}} 0, HELD {{n}} {{i}}, THAWED {{n}}, CANARY {{n}}.",
    },
    Explained {
        rule: "EvidenceNotPrinted",
        what: "Something is judged that no text prints.",
        why: "It is then always missing, and the point is never Application.",
        instead: "Print EVIDENCE {{n}} name=value, and name it in evidence.",
    },
    Explained {
        rule: "KeyNotPrinted",
        what: "READY, FROZEN and HELD do not all carry a key.",
        why: "What is compared must be there each time.",
        instead: "Print it in open, freeze and beat.",
    },
    Explained {
        rule: "UnknownKey",
        what: "A key outside the protocol's set.",
        why: "A line with an unknown key does not count at all.",
        instead: "Use one of the keys that the message lists, or an EVIDENCE line.",
    },
    Explained {
        rule: "ContinuityDeclared",
        what: "Nothing shows that the lock was held without a break.",
        why: "The point is called Application because the author vouches for it, and policies with a higher minContinuity refuse it.",
        instead: "position, thawProvesLock, or for commands a probe.",
    },
    Explained {
        rule: "NothingProven",
        what: "Nothing is locked, and no recovery is claimed.",
        why: "Such a point is never Application.",
        instead: "crashSafe with its source, or a lock.",
    },
    Explained {
        rule: "NothingPrepared",
        what: "dataTime: Prepare without prepare.",
        why: "The point would stand for an instant at which nothing happened.",
        instead: "Write prepare, or remove dataTime.",
    },
    Explained {
        rule: "FreezeWithoutDeadline",
        what: "Two separate execs, and nothing that undoes them.",
        why: "When the controller dies in between, the application stays frozen.",
        instead: "Remove allowWithoutDeadline where the container has a shell; otherwise write recover.",
    },
    Explained {
        rule: "RecoveryNotTold",
        what: "A recovery needs a value that the open text does not print.",
        why: "A freeze that changes a setting of the server is undone by its old value. When everything that knew it is killed, the journal is the only place that has it, and the journal is written before FREEZE: what the freeze text prints is too late.",
        instead: "Print EVIDENCE {{n}} name=value in open, name it in evidence, and use it as {{name}} in recover.command, in no other argument and not as the program.",
    },
    Explained {
        rule: "RenewWithoutHolder",
        what: "renew with allowWithoutDeadline.",
        why: "Nobody in the pod measures the time between two renewals.",
        instead: "Remove allowWithoutDeadline, or renew.",
    },
    Explained {
        rule: "NoFreeze",
        what: "The template does not say how the application is held.",
        why: "It would be cut as it is, which must be said.",
        instead: "freeze: session, commands or none: {}.",
    },
    Explained {
        rule: "FreezeAndHooks",
        what: "freeze and preHook or postHook.",
        why: "They say the same thing twice, and might not agree.",
        instead: "Keep one of them.",
    },
    Explained {
        rule: "NoCommand",
        what: "A command is empty.",
        why: "There is nothing to run.",
        instead: "Write its argv.",
    },
    Explained {
        rule: "NoRole",
        what: "A role rule accepts no role.",
        why: "No pod would ever be chosen.",
        instead: "Name the roles as the command prints them, the preferred one first.",
    },
    Explained {
        rule: "BarrierNotPrinted",
        what: "A setting has orBarrier, and no barrier is told.",
        why: "Only a barrier that ran in this run makes up for it.",
        instead: "Print EVIDENCE {{n}} barrier=NAME in the freeze text, after the statement that makes everything durable; or write freeze.commands.barrier.",
    },
    Explained {
        rule: "BarrierOutsideFreeze",
        what: "A barrier is told outside of the freeze text.",
        why: "It counts only between the lock and FROZEN.",
        instead: "Move it into the freeze text.",
    },
    Explained {
        rule: "BarrierAfterFrozen",
        what: "A barrier is told after FROZEN.",
        why: "The snapshots may have been cut by then.",
        instead: "Move it before FROZEN.",
    },
    Explained {
        rule: "BarrierWithoutLock",
        what: "An observer has a barrier.",
        why: "It stops nobody, so that more is acknowledged after any barrier.",
        instead: "Remove orBarrier.",
    },
    Explained {
        rule: "OneStage",
        what: "One stage.",
        why: "That is no order.",
        instead: "Add the volumes that are cut after it, or remove stages.",
    },
    Explained {
        rule: "UnknownRole",
        what: "A stage names a role that nothing tells.",
        why: "Its volumes are not known.",
        instead: "Write it in volumeRoles.",
    },
    Explained {
        rule: "RoleWithoutStage",
        what: "A role is in no stage.",
        why: "It would never be cut.",
        instead: "Say when its volumes are cut.",
    },
    Explained {
        rule: "ThenAfterLastStage",
        what: "A text after the last stage.",
        why: "Nothing is cut after it.",
        instead: "Move it into thaw.",
    },
    Explained {
        rule: "BlockerIsNoProgram",
        what: "{{blocker}} is the program.",
        why: "What a server prints must not choose a program.",
        instead: "Write the program, and {{blocker}} among its arguments.",
    },
    Explained {
        rule: "BlockerNotNamed",
        what: "endBlocker does not name what it ends.",
        why: "It would end anything.",
        instead: "Use {{blocker}}.",
    },
    Explained {
        rule: "UnknownParameter",
        what: "A placeholder without a parameter.",
        why: "It would be sent as it is.",
        instead: "Add it to parameters, or correct its name.",
    },
    Explained {
        rule: "UnusedParameter",
        what: "A parameter that nothing uses.",
        why: "Who sets it believes that it does something.",
        instead: "Remove it.",
    },
    Explained {
        rule: "ReservedParameter",
        what: "A parameter has the name of a run-time value.",
        why: "n, i, lease, acquireSeconds and blocker are filled when the hold runs.",
        instead: "Choose another name.",
    },
    Explained {
        rule: "QuotedParameter",
        what: "A placeholder stands in quotes, in a comment or against another word of a text.",
        why: "A string becomes a quoted literal by itself. Inside of other quotes it would close them, and the rest of the value would be read as a statement.",
        instead: "Let it stand alone, without quotes: WHERE name = {{name}}. Where it is a part of a text, concatenate.",
    },
    Explained {
        rule: "UnquotedParameter",
        what: "A placeholder stands inside of a program: the script of sh -c, the statement of psql -c, a URI.",
        why: "There a value with a quote, `;` or `$(…)` is a statement of its own: whoever may write a policy would run anything as the database's superuser.",
        instead: "Pass it behind the script and write \"$0\", \"$1\" …; or name the language, {{name|mysql}}, {{name|uri}}; or give it a type that cannot say anything else (identifier, integer). A line for the shell that a policy may choose is a parameter of type script and a whole argument.",
    },
    Explained {
        rule: "UnknownLanguage",
        what: "The language behind | is not known, or not the one that is read there.",
        why: "Each language ends its literals differently; what is safe in one is a statement in another.",
        instead: "In arguments sql, mysql, postgresql, javascript, shell or uri, as the program reads. The texts of a session have freeze.session.language.",
    },
    Explained {
        rule: "IntegerRange",
        what: "min or max without type: integer, or min above max.",
        why: "It would be ignored, or no value would fit.",
        instead: "Write type: integer, and min not above max.",
    },
    Explained {
        rule: "MessageTooShort",
        what: "A message is known by less than four characters.",
        why: "They stand in nearly every output, so that every failure would be explained by it.",
        instead: "The number or the name of the client's error.",
    },
    Explained {
        rule: "MessageWithoutWords",
        what: "A message says nothing, or has a placeholder.",
        why: "It is shown to the user as it is.",
        instead: "Cause and cure in one sentence.",
    },
    Explained {
        rule: "EnumValues",
        what: "A parameter's type and its values do not fit.",
        why: "Only the type enum lists values, and it must.",
        instead: "Write type: enum with enum: […], or neither.",
    },
    Explained {
        rule: "ParameterType",
        what: "A default is no value of its type.",
        why: "It could never be used.",
        instead: "Correct the default.",
    },
    Explained {
        rule: "InvalidName",
        what: "A name that cannot be used.",
        why: "Names are letters and digits; roles of volumes are DNS labels.",
        instead: "Choose another one.",
    },
    Explained {
        rule: "DuplicateName",
        what: "A name is there twice.",
        why: "Only one of them would count.",
        instead: "Rename or remove one.",
    },
    Explained {
        rule: "ExpectOne",
        what: "A check's expect says nothing, or two things.",
        why: "A check that expects nothing passes whatever is printed, and two expectations hide which one failed.",
        instead: "Write either equals or atLeast, or leave expect out: then the exit code decides.",
    },
    Explained {
        rule: "NotSupportedYet",
        what: "A field whose behaviour is still to come.",
        why: "It would be ignored, and nothing is ignored here.",
        instead: "Remove it; the message says what to do instead.",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Every rule that the validator can answer with, as it is written in its source.
    #[test]
    fn every_rule_about_templates_is_explained() {
        let sources = [
            include_str!("../template/placement.rs"),
            include_str!("recipe.rs"),
            include_str!("recipe/barrier.rs"),
            include_str!("recipe/recovery.rs"),
            include_str!("recipe/restored.rs"),
            include_str!("recipe/session.rs"),
            include_str!("recipe/stages.rs"),
            include_str!("recipe/traps.rs"),
        ];
        let is_rule = |word: &str| {
            word.len() > 5
                && word.starts_with(|first: char| first.is_ascii_uppercase())
                && word.chars().all(|one| one.is_ascii_alphabetic())
                && word.chars().skip(1).any(|one| one.is_ascii_uppercase())
        };
        let mut found = 0;
        for word in sources.iter().flat_map(|source| source.split('"')).filter(|word| is_rule(word)) {
            assert!(explain(word).is_some(), "{word} has no explanation");
            found += 1;
        }
        assert!(found > 40, "{found}");
    }

    #[test]
    fn a_rule_is_explained_once() {
        let mut names: Vec<&str> = EXPLAINED.iter().map(|explained| explained.rule).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
