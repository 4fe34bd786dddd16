//! The command line: what there is, with examples; what each command does is in [`crate::commands`].

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use jiff::Timestamp;
use stillpoint_api::duration::{LongDuration, ShortDuration};

use crate::cluster::ClusterArgs;
use crate::output::Format;

/// Application-consistent backups for Kubernetes, without an agent
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, max_term_width = 110, after_long_help = EXAMPLES)]
pub struct Cli {
    /// Which cluster and namespace.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
First steps:
  stillpoint crd | kubectl apply --server-side -f -     install the kinds
  stillpoint lint policy.yaml                           check before applying
  stillpoint doctor                                     what of the cluster would make backups fail or freezes long
  stillpoint plan -n shop                               what would be frozen and cut, and what is missing
  stillpoint explain '0 2 * * *' --tz Europe/Berlin     see when it fires
  stillpoint backup run --policy nightly --wait         one backup now, e.g. before a migration
  stillpoint backup describe NAME                       what was frozen, for how long, and what is proven
  stillpoint restore run --policy nightly --wait        the newest proven point as new claims

Exit codes: 0 done (a backup: proven application-consistent), 1 failed or findings,
3 crash-consistent, 4 nothing proven, 64 wrong usage, 75 not finished in time.";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the CustomResourceDefinitions
    #[command(after_help = "Example:\n  stillpoint crd | kubectl apply --server-side -f -")]
    Crd,
    /// Check files without a cluster: fields, values, schedules, templates and their parameters
    #[command(after_help = LINT_HELP)]
    Lint(LintArgs),
    /// List the templates: of the library, or of the files named, with how each was proven
    #[command(after_help = TEMPLATES_HELP)]
    Templates(TemplatesArgs),
    /// Show when a schedule fires, across changes of the clock, and whether it can meet an RPO
    #[command(after_help = EXPLAIN_HELP)]
    Explain(ExplainArgs),
    /// Run backups and look at them
    #[command(subcommand)]
    Backup(BackupCommand),
    /// Bring a recovery point back
    #[command(subcommand)]
    Restore(RestoreCommand),
    /// Check the cluster: snapshot stack, throttles, storage, rights; reads only, changes nothing
    #[command(after_help = DOCTOR_HELP)]
    Doctor(DoctorArgs),
    /// Foresee each policy's run: what is detected, frozen, cut, provable and missing; changes nothing
    #[command(after_help = PLAN_HELP)]
    Plan(PlanArgs),
    /// Try the hooks of an application
    #[command(subcommand)]
    Hooks(HooksCommand),
    /// Run the controller: schedules, backups, restores and metrics
    #[command(after_help = crate::controller::HELP)]
    Controller(crate::controller::ControllerArgs),
    /// Protect, lose and bring back a real PostgreSQL on an embedded cluster of its own
    #[cfg(feature = "demo")]
    #[command(after_help = crate::demo::HELP)]
    Demo(crate::demo::DemoArgs),
    /// Print the version
    Version,
}

const LINT_HELP: &str = "\
Examples:
  stillpoint lint policy.yaml templates/*.yaml
  kustomize build . | stillpoint lint - -o json
  stillpoint lint --explain OneShotLock      why a rule is there, and what to write instead

Exit codes: 0 nothing found, 1 findings, 64 a file cannot be read. Objects of other groups are passed over.
With -o json: a list of {file, object, path, rule, message}.";

const TEMPLATES_HELP: &str = "\
Examples:
  stillpoint templates
  stillpoint templates redis                 its parameters and what it claims
  stillpoint templates --file my-template.yaml -o json

PROOF is real (a real server), engine (the real storage engine), emulated (a program that behaves as documented) or none.
Exit codes: 0 listed, 1 there is no such template, 64 a file cannot be read.";

const EXPLAIN_HELP: &str = "\
Examples:
  stillpoint explain '30 2 * * *' --tz Europe/Berlin --from 2026-03-27T00:00:00Z --count 4
  stillpoint explain '0 */6 * * *' --rpo 8h -o json
  stillpoint explain '@every 15m'

Exit codes: 0 explained, 1 the expression or zone is wrong (the field is named), 64 wrong usage.";

const DOCTOR_HELP: &str = "\
Examples:
  stillpoint doctor
  stillpoint doctor --storage-trust trust.yaml --strict
  stillpoint doctor -o json

One line per check: ok, warning or error; what is so, why it matters, what to do. It lists pods, volumes, snapshot
classes, roles and bindings of the whole cluster: what your account may not read is a warning.
Exit codes: 0 no error (with --strict: no warning either), 1 something is wrong, 64 no usable kubeconfig.
With -o json: {errors, warnings, findings: [{check, severity, what, why, cure}]}.";

const PLAN_HELP: &str = "\
For each policy of the namespace, and for each workload with claims that no policy selects (marked NO POLICY):
  detected    its template and by what it was found (named, annotation, image), its pods and their roles
  prepare     what runs before anything is held
  freeze      in which pods what is held, what a writer feels, and when it ends if we fall silent
  promise     the longest freeze, and what of it is for the locks and for the cuts
  cut         which snapshots are asked for (alone, group, one by one), of which driver and class, and whether its cuts
              are known to be one instant
  at best     what the point could be worth if all goes well, by the rules of the verdict: ✓ can be proven, ✗ cannot
  missing     everything that would keep a run from giving a point, and what to do
  not known   what only a run can tell; `stillpoint hooks test` tells some of it

Examples:
  stillpoint plan -n shop
  stillpoint plan -n shop --policy nightly --storage-trust trust.yaml
  stillpoint plan -n shop --ask-nothing -o json

Nothing is changed and nothing is frozen. As before every backup, a template's role commands run in the pods, as the
namespace's account stillpoint-hooks: you need the right to impersonate it; --as-me runs them with your own rights,
--ask-nothing runs nothing and says what it took for granted. Snapshot requests are sent with dryRun, as you.

Exit codes: 0 every policy could run, 1 something is missing for one, 64 wrong usage. A workload without a policy fails
nothing. With -o json: {plans: [{subject, couldRun, detected, parts, missing, unknown}], unlabelled}.";

/// Arguments of `plan`.
#[derive(Args, Debug)]
pub struct PlanArgs {
    /// Only this policy
    #[arg(long, value_name = "NAME")]
    pub policy: Option<String>,
    /// The file that the controller is given, so that drivers are judged as it judges them
    #[arg(long, value_name = "FILE")]
    pub storage_trust: Option<PathBuf>,
    /// Ask pods for their roles with your own rights
    #[arg(long, conflicts_with = "ask_nothing")]
    pub as_me: bool,
    /// Run nothing in any container
    #[arg(long)]
    pub ask_nothing: bool,
    /// How the plan is printed
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

/// Arguments of `doctor`.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// The file that the controller is given, so that drivers are judged as it judges them
    #[arg(long, value_name = "FILE")]
    pub storage_trust: Option<PathBuf>,
    /// Warnings fail too
    #[arg(long)]
    pub strict: bool,
    /// How findings are printed
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

/// Arguments of `lint`.
#[derive(Args, Debug)]
pub struct LintArgs {
    /// YAML or JSON files; `-` is stdin
    #[arg(required_unless_present = "explain", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Say why a rule about templates is there, and what to write instead
    #[arg(long, value_name = "RULE", conflicts_with = "files")]
    pub explain: Option<String>,
    /// How findings are printed
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

/// Arguments of `templates`.
#[derive(Args, Debug)]
pub struct TemplatesArgs {
    /// One template, in full
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// Templates of this file instead of the library; `-` is stdin
    #[arg(long, value_name = "FILE")]
    pub file: Vec<PathBuf>,
    /// How they are printed
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

/// Arguments of `explain`.
#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// Five fields (minute hour day-of-month month day-of-week), a macro such as @daily, or @every 15m
    #[arg(value_name = "CRON", allow_hyphen_values = true)]
    pub expression: String,
    /// IANA time zone
    #[arg(long, value_name = "ZONE", default_value = "Etc/UTC")]
    pub tz: String,
    /// Slots strictly after this instant (RFC 3339). Default: now
    #[arg(long, value_name = "RFC3339")]
    pub from: Option<Timestamp>,
    /// How many slots
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub count: u16,
    /// Recovery point objective to judge, e.g. 26h or 1d
    #[arg(long, value_name = "DURATION")]
    pub rpo: Option<LongDuration>,
    /// How it is printed
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

/// What can be done with hooks.
#[derive(Debug, Subcommand)]
pub enum HooksCommand {
    /// Run prepare, freeze and thaw against the live pods, without a snapshot, and say how long each step took
    #[command(after_help = HOOKS_TEST_HELP)]
    Test(HooksTestArgs),
}

const HOOKS_TEST_HELP: &str = "\
The applications ARE frozen, for as long as the freeze and the thaw themselves take: milliseconds when all is well, at
most --max-hold whatever happens. It is done as a backup does it (same pods, same account, same checks), by you and not by
the controller, and leaves no object behind.

Examples:
  stillpoint hooks test -n shop nightly                      every application of policy nightly
  stillpoint hooks test -n shop --selector app=db            one application, its template found by its image
  stillpoint hooks test -n shop --selector app=db --template generic --param freeze='app-cli pause' \\
      --param thaw='app-cli resume' --param probe='app-cli status | grep -q paused'

Hooks run as the namespace's account stillpoint-hooks, so you need the right to impersonate it; --as-me runs them with
your own rights instead, which need `create pods/exec`.

Exit codes: 0 frozen and thawed, 1 refused, failed or not proven thawed (the report says which), 64 wrong usage.";

/// Arguments of `hooks test`.
#[derive(Args, Debug)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["policy", "selector"])))]
pub struct HooksTestArgs {
    /// A policy: all of its applications, in its order and with its bounds
    #[arg(value_name = "POLICY")]
    pub policy: Option<String>,
    /// Labels of the pods of one application, e.g. app=db,tier=data
    #[arg(long, value_name = "KEY=VALUE,…", value_parser = pairs)]
    pub selector: Option<Pairs>,
    /// Template of the application. Default: the one that its image finds
    #[arg(long, value_name = "NAME", requires = "selector")]
    pub template: Option<String>,
    /// The template is a HookTemplate of the namespace, not a ClusterHookTemplate
    #[arg(long, requires = "template")]
    pub namespaced: bool,
    /// A parameter of the template; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair, requires = "selector")]
    pub param: Vec<(String, String)>,
    /// Container in which the hooks run. Default: the template's, else the first
    #[arg(long, value_name = "NAME", requires = "selector")]
    pub container: Option<String>,
    /// Longest time from freeze to thaw. Default: the policy's, else 30s
    #[arg(long, value_name = "DURATION", requires = "selector")]
    pub max_hold: Option<ShortDuration>,
    /// Run the hooks with your own rights
    #[arg(long)]
    pub as_me: bool,
    /// How the result is printed
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

/// Labels of a selector.
#[derive(Clone, Debug)]
pub struct Pairs(pub Vec<(String, String)>);

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not NAME=VALUE")),
    }
}

fn pairs(text: &str) -> Result<Pairs, String> {
    text.split(',').map(pair).collect::<Result<Vec<_>, _>>().map(Pairs)
}

/// What can be done with backups.
#[derive(Debug, Subcommand)]
pub enum BackupCommand {
    /// Run a backup of a policy now
    #[command(after_help = RUN_HELP)]
    Run(BackupRunArgs),
    /// Cancel a run: it is thawed at once, its snapshots are removed, and it fails
    Cancel(BackupCancelArgs),
    /// List backups, newest first
    List(BackupListArgs),
    /// Show one backup: its freeze window, its verdict rule by rule, and what to do next
    Describe(BackupDescribeArgs),
    /// Recompute the verdict of a backup from its stored evidence and compare: 0 it agrees, 1 it does not
    VerifyEvidence(BackupDescribeArgs),
}

const RUN_HELP: &str = "\
Example, in a pipeline before a migration:
  stillpoint backup run --policy nightly --wait --timeout 10m || exit 1

Exit codes with --wait: 0 proven application-consistent, 1 failed, 3 crash-consistent, 4 nothing proven,
75 not finished in time (it goes on). Under `consistency: Required` what is not proven has failed.";

/// Arguments of `backup run`.
#[derive(Args, Debug)]
pub struct BackupRunArgs {
    /// The policy
    #[arg(long, value_name = "NAME")]
    pub policy: String,
    /// Name of the Backup. Default: <policy>-manual-<time>
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    #[command(flatten)]
    pub wait: WaitArgs,
    /// How the Backup is printed
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

/// Whether and how long to wait.
#[derive(Args, Clone, Copy, Debug)]
pub struct WaitArgs {
    /// Wait until it is finished, and say how it ended by the exit code
    #[arg(long)]
    pub wait: bool,
    /// Longest time to wait: exit code 75 when it is over; the run goes on
    #[arg(long, value_name = "DURATION", default_value = "30m", requires = "wait")]
    pub timeout: ShortDuration,
}

impl WaitArgs {
    /// How long to wait; `None`: not at all.
    pub fn limit(&self) -> Option<Duration> {
        self.wait.then(|| self.timeout.get())
    }
}

/// Arguments of `backup cancel`.
#[derive(Args, Debug)]
pub struct BackupCancelArgs {
    /// The Backup
    #[arg(value_name = "NAME")]
    pub name: String,
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// Arguments of `backup list`.
#[derive(Args, Debug)]
pub struct BackupListArgs {
    /// Only those of this policy
    #[arg(long, value_name = "NAME")]
    pub policy: Option<String>,
    /// How they are printed
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

/// Arguments of `backup describe`.
#[derive(Args, Debug)]
pub struct BackupDescribeArgs {
    /// The Backup
    pub name: String,
    /// How it is printed
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

/// What can be done with restores.
#[derive(Debug, Subcommand)]
pub enum RestoreCommand {
    /// Make new claims from a recovery point; nothing that exists is touched
    #[command(after_help = RESTORE_HELP)]
    Run(RestoreRunArgs),
    /// Run the template's steps and checks in a pod that you started on restored claims
    #[command(after_help = RESTORE_CHECK_HELP)]
    Check(RestoreCheckArgs),
}

const RESTORE_HELP: &str = "\
Examples:
  stillpoint restore run --policy nightly --wait
  stillpoint restore run --policy nightly --before 2026-11-20T12:00:00Z --prefix monday- --wait
  stillpoint restore run --backup nightly-1f2e3d4c-h9sd1 --wait

--policy takes the newest proven point; --backup takes that one, whatever it is worth.
Exit codes with --wait: 0 restored, 1 failed, 75 not finished in time (it goes on).";

const RESTORE_CHECK_HELP: &str = "\
What a point is worth shows when a server runs on it: start one on the claims of `restore run`, then check it. The template is
the one that the backup used, as it was then: first its afterRestore steps, in their order, then its checks, all of them.
They run in copies only: a pod without restored claims, or with a claim of the original, is refused.

Examples:
  stillpoint restore check -n shop orders-copy                     the pod orders-copy, on claims of one Restore
  stillpoint restore check -n shop orders-copy --container mysql -o json

`stillpoint templates NAME` shows the steps and checks, and whether a copy may run beside its original (drillSafe).
They run as the namespace's account stillpoint-hooks, so you need the right to impersonate it; --as-me runs them with
your own rights instead, which need `create pods/exec`.

Exit codes: 0 all passed, 1 one failed or nothing could be run, 64 wrong usage.";

/// Arguments of `restore check`.
#[derive(Args, Debug)]
pub struct RestoreCheckArgs {
    /// The pod whose server runs on the restored claims
    #[arg(value_name = "POD")]
    pub pod: String,
    /// Container of the server. Default: the only one, else the one called as the original's
    #[arg(short, long, value_name = "NAME")]
    pub container: Option<String>,
    /// Application of the backup, where it has several
    #[arg(long, value_name = "NAME")]
    pub application: Option<String>,
    /// Run the steps and checks with your own rights
    #[arg(long)]
    pub as_me: bool,
    /// How the result is printed
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

/// Arguments of `restore run`.
#[derive(Args, Debug)]
pub struct RestoreRunArgs {
    #[command(flatten)]
    pub source: RestoreSourceArgs,
    /// Only points cut before this instant (RFC 3339)
    #[arg(long, value_name = "RFC3339", requires = "policy", conflicts_with = "backup")]
    pub before: Option<Timestamp>,
    /// The new claims are <prefix><claim>. Default: <restore>-
    #[arg(long, value_name = "TEXT")]
    pub prefix: Option<String>,
    /// Name of the Restore. Default: <policy or backup>-<time>
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    #[command(flatten)]
    pub wait: WaitArgs,
    /// How the Restore is printed
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

/// What is restored: exactly one of these.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub struct RestoreSourceArgs {
    /// This Backup
    #[arg(long, value_name = "NAME")]
    pub backup: Option<String>,
    /// The newest proven point of this policy
    #[arg(long, value_name = "NAME")]
    pub policy: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_restore_needs_exactly_one_source() {
        let parse = |args: &[&str]| {
            Cli::try_parse_from([&["stillpoint", "restore", "run"], args].concat()).map(|_| ()).is_ok()
        };
        assert!(parse(&["--backup", "b"]) && parse(&["--policy", "p", "--before", "2026-01-01T00:00:00Z"]));
        assert!(!parse(&[]) && !parse(&["--backup", "b", "--policy", "p"]));
        assert!(!parse(&["--backup", "b", "--before", "2026-01-01T00:00:00Z"]));
    }
}
