//! `HookTemplate` and `ClusterHookTemplate`: the reusable recipe for one kind of application.
//!
//! A template says how to prepare, hold, release and check an application, and what it claims about it. A claim
//! carries its source. No secret passes through here: credentials stay in the container (docs/authority.md).

use std::collections::BTreeMap;

mod detect;
mod language;
mod message;
pub mod placeholder;
mod placement;
mod reader;
pub mod recovery;
pub mod restored;
mod substitute;
mod types;

pub use detect::{Detected, detect};
pub use language::{Language, literal};
pub use message::{ClientMessage, Meaning};
pub(crate) use placement::misplaced;
pub(crate) use substitute::{END_BLOCKER, arguments, texts};
pub use substitute::{digest, substitute};
pub(crate) use types::type_mismatch;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::ShortDuration;
use crate::policy::PodChoice;
use restored::{Check, DrillSafe, NamedCommand};

/// A hook template of one namespace.
#[derive(CustomResource, JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "stillpoint.dev",
    version = "v1alpha1",
    kind = "HookTemplate",
    plural = "hooktemplates",
    namespaced,
    shortname = "spt",
    category = "stillpoint",
    printcolumn(name = "Description", type_ = "string", json_path = ".spec.description"),
    printcolumn(name = "Proof", type_ = "string", json_path = ".spec.proof")
)]
#[serde(transparent)]
pub struct HookTemplateSpec(pub Recipe);

/// A hook template for all namespaces.
#[derive(CustomResource, JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "stillpoint.dev",
    version = "v1alpha1",
    kind = "ClusterHookTemplate",
    plural = "clusterhooktemplates",
    shortname = "spct",
    category = "stillpoint",
    printcolumn(name = "Description", type_ = "string", json_path = ".spec.description"),
    printcolumn(name = "Proof", type_ = "string", json_path = ".spec.proof")
)]
#[serde(transparent)]
pub struct ClusterHookTemplateSpec(pub Recipe);

/// How one kind of application is prepared, held, released and checked.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.freeze) ? !has(self.preHook) && !has(self.postHook) : has(self.preHook) && has(self.postHook)").message("either freeze, or both preHook and postHook"))]
pub struct Recipe {
    /// What it is for, in one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub description: Option<String>,
    /// How it was proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
    /// Server versions it was proven with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 64)))]
    pub versions: Vec<String>,
    /// Which containers it fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detect: Option<Detect>,
    /// What a policy may set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub parameters: Vec<Parameter>,
    /// Where it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// Heavy work before the freeze; a failure ends the attempt with nothing frozen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prepare: Option<Prepare>,
    /// How it is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<Freeze>,
    /// Short form of `freeze.commands`: the command that freezes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre_hook: Option<Hook>,
    /// Short form of `freeze.commands`: the command that thaws.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post_hook: Option<Hook>,
    /// That the engine recovers from an atomic cut, and what voids it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crash_safe: Option<CrashSafe>,
    /// That a file copy under the hold is usable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_safe: Option<CopySafe>,
    /// For which instant the point stands.
    #[serde(default)]
    #[schemars(default)]
    pub data_time: DataTime,
    /// On how many volumes it is proven.
    #[serde(default)]
    #[schemars(default)]
    pub layout: Layout,
    /// Which claim holds what: each command prints absolute paths, one a line, and the claim that is mounted there has the
    /// role. Run in the container before anything is frozen.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 8))]
    pub volume_roles: BTreeMap<String, CommandOnly>,
    /// Names of the EVIDENCE lines the hold prints.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 64)))]
    pub evidence: Vec<String>,
    /// Names of EVIDENCE lines whose values are paths that the server writes; each must lie on a member.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 64)))]
    pub data_paths: Vec<String>,
    /// What its client says when it cannot, and what that means; the first that fits is taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub messages: Vec<ClientMessage>,
    /// Says who is still stuck behind a lock that was not acquired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall_probe: Option<StallProbe>,
    /// Makes sure that it is thawed after an unknown outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recover: Option<Recover>,
    /// Whether a restored copy may be started beside the original. Without it: `Never`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drill_safe: Option<DrillSafe>,
    /// Steps in a restored copy whose server runs, before checks, in this order (`stillpoint restore check`). Each may run again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub after_restore: Vec<NamedCommand>,
    /// Checks of a restored copy whose server runs (`stillpoint restore check`); they change nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub checks: Vec<Check>,
}

/// How a template was proven.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Proof {
    /// Against the real server.
    Real,
    /// Against the real storage engine.
    Engine,
    /// Against a program that behaves as documented.
    Emulated,
    /// Not at all.
    #[default]
    None,
}

/// Which containers a template fits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Detect {
    /// Image names, `*` stands for anything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 253)))]
    pub images: Vec<String>,
}

/// A parameter that a policy may set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!(has(self.fromEnv) && has(self.fromFile))").message("at most one of fromEnv and fromFile"))]
#[x_kube(validation = Rule::new("(self.type == 'enum') == (has(self.enum) && size(self.enum) > 0)").message("a parameter of type enum lists its values under enum, others do not"))]
#[x_kube(validation = Rule::new("self.type == 'integer' || (!has(self.min) && !has(self.max))").message("min and max are for a parameter of type integer"))]
#[x_kube(validation = Rule::new("!(has(self.min) && has(self.max)) || self.min <= self.max").message("min is not above max"))]
#[x_kube(validation = Rule::new("!(self.name in ['n', 'i', 'lease', 'acquireSeconds', 'blocker'])").message("n, i, lease, acquireSeconds and blocker are filled at run time and cannot be parameters"))]
pub struct Parameter {
    /// Name; `{{name}}` in texts and arguments, `{{name|language}}` for a literal inside of an argument.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z][a-zA-Z0-9]*$"))]
    pub name: String,
    /// Type of its values.
    #[serde(default, rename = "type")]
    #[schemars(default)]
    pub type_: ParameterType,
    /// Value when the policy sets none; without a default the policy must set it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub default: Option<String>,
    /// Environment variable of the container that holds the value. Not supported yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub from_env: Option<String>,
    /// File in the container that holds the value. Not supported yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub from_file: Option<String>,
    /// Allowed values of an enum.
    #[serde(default, rename = "enum", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 253)))]
    pub enum_: Vec<String>,
    /// Least value of an integer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<i64>,
    /// Greatest value of an integer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<i64>,
    /// What it is, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub description: Option<String>,
}

/// Type of a parameter's values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ParameterType {
    /// Any text without control characters.
    #[default]
    String,
    /// A whole number.
    Integer,
    /// `true` or `false`.
    Boolean,
    /// One of `enum`.
    Enum,
    /// A length of time in milliseconds to hours: `500ms`, `1m30s`.
    Duration,
    /// A name of the server's: letters, digits and `_`, at most 63. In SQL a quoted identifier.
    Identifier,
    /// An absolute path without `..`.
    Path,
    /// A piece of a program that is a whole argument, run as it is: a line for the shell.
    Script,
}

/// Where a template runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Target {
    /// Name of the container, when the policy names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub container: Option<String>,
    /// Which pods are held, when the policy says Auto.
    #[serde(default)]
    #[schemars(default)]
    pub pods: PodChoice,
    /// How the role of a pod is found; without it the pods of a selector are alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<RoleRule>,
}

/// How the role of a pod is found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RoleRule {
    /// Prints the role, nothing else. Runs in the container before anything is frozen, and again after the thaw.
    #[schemars(length(min = 1, max = 64), inner(length(max = 32768)))]
    pub command: Vec<String>,
    /// Roles that may be held, in order of preference.
    #[schemars(length(min = 1, max = 8), inner(length(max = 63)))]
    pub accept: Vec<String>,
}

/// Heavy work before the freeze.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Prepare {
    /// Argv, no shell.
    #[schemars(length(min = 1, max = 64), inner(length(max = 32768)))]
    pub command: Vec<String>,
    /// Longest time it may take. Default 60s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<ShortDuration>,
}

/// How an application is held: exactly one of these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Freeze {
    /// The client itself, reading statements from stdin; the lock dies with the session.
    Session(Box<Session>),
    /// Two commands, wrapped into one held process.
    Commands(Commands),
    /// Nothing is held.
    None {},
}

/// A held session (docs/design/freeze.md §2.2). Texts know `{{n}}` (nonce), `{{i}}` (beat), `{{lease}}` and
/// `{{acquireSeconds}}`, and the template's parameters as quoted literals.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("self.open.contains('READY {{n}}')").message("the open text prints READY {{n}}"))]
#[x_kube(validation = Rule::new("self.freeze.contains('FROZEN {{n}}')").message("the freeze text prints FROZEN {{n}}"))]
#[x_kube(validation = Rule::new("self.beat.contains('HELD {{n}} {{i}}')").message("the beat text prints HELD {{n}} {{i}}"))]
#[x_kube(validation = Rule::new("self.thaw.contains('THAWED {{n}}')").message("the thaw text prints THAWED {{n}}"))]
pub struct Session {
    /// Argv of the client, no shell; parameters are substituted as whole arguments or parts of one.
    #[schemars(length(min = 1, max = 64), inner(length(max = 32768)))]
    pub command: Vec<String>,
    /// In which language the texts are written: how a parameter is quoted in them.
    #[serde(default)]
    #[schemars(default)]
    pub language: Language,
    /// Sets the lease, prints READY.
    #[schemars(length(min = 1, max = 16384))]
    pub open: String,
    /// Locks, prints EVIDENCE and FROZEN.
    #[schemars(length(min = 1, max = 16384))]
    pub freeze: String,
    /// Renews the lease, prints HELD.
    #[schemars(length(min = 1, max = 16384))]
    pub beat: String,
    /// Unlocks, prints THAWED.
    #[schemars(length(min = 1, max = 16384))]
    pub thaw: String,
    /// A failing statement, then one that prints CANARY; a client that prints it does not stop at its first error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16384))]
    pub canary: Option<String>,
    /// Whether it stops commits; false: an observer.
    #[serde(default = "yes")]
    #[schemars(default = "yes")]
    pub locks: bool,
    /// The server's own timeout that frees the application when we fall silent.
    pub lease: Lease,
    /// Key of READY, FROZEN and HELD whose equality proves that nothing was committed (grade Position).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub position: Option<String>,
    /// Source of the claim that the thaw text fails unless this session owns the lock (grade Lock).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub thaw_proves_lock: Option<String>,
    /// How the server says that it is this container's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<LocalRule>,
    /// Volumes cut in ordered groups, with statements between them (docs/design/freeze.md §2.5). Where all roles lie on
    /// one claim it is one cut, and no text between stages is sent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub stages: Vec<Stage>,
}

fn yes() -> bool {
    true
}

/// The server's own timeout of a session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!has(self.duration) || (duration(self.duration) >= duration('2s') && duration(self.duration) <= duration('10s'))").message("a lease is 2s to 10s: beats come every 2s, and a silent controller must not hold longer"))]
pub struct Lease {
    /// Name of the server's variable.
    #[schemars(length(min = 1, max = 128))]
    pub variable: String,
    /// Unit of the variable.
    pub unit: LeaseUnit,
    /// Lease that each beat asks for; at most 10s. Default 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<ShortDuration>,
}

/// Unit of a lease variable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LeaseUnit {
    /// Milliseconds.
    #[serde(rename = "ms")]
    Milliseconds,
    /// Seconds, rounded down, at least 1.
    #[default]
    #[serde(rename = "s")]
    Seconds,
}

/// How the server says that it is this container's (docs/design/freeze.md §2.7).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LocalRule {
    /// Key of READY, FROZEN and HELD.
    #[schemars(length(min = 1, max = 64))]
    pub key: String,
    /// What its value must be.
    pub equals: LocalValue,
}

/// What a local key must say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LocalValue {
    /// `true` (or `t`, `1`): the server sees the session as local.
    #[default]
    True,
    /// The pod's host name.
    PodHostname,
}

/// One stage of an ordered cut.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stage {
    /// The volumes of this stage.
    pub volumes: StageVolumes,
    /// Text between this stage and the next; prints FROZEN {{n}} and the number of the next. The last stage has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16384))]
    pub then: Option<String>,
}

/// The volumes of a stage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StageVolumes {
    /// Their roles, as in `volumeRoles`.
    #[schemars(length(min = 1, max = 8), inner(length(max = 63)))]
    pub roles: Vec<String>,
}

/// Two commands wrapped into one held process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Commands {
    /// Freezes.
    #[schemars(length(min = 1, max = 64), inner(length(max = 32768)))]
    pub freeze: Vec<String>,
    /// Thaws.
    #[schemars(length(min = 1, max = 64), inner(length(max = 32768)))]
    pub thaw: Vec<String>,
    /// Succeeds while frozen, whoever froze it, and fails otherwise; without it the frozen state is never seen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 32768)))]
    pub probe: Vec<String>,
    /// Runs after `freeze` succeeded and before FROZEN: makes durable what was frozen (`sync -f` of each volume). That it
    /// succeeded is told as EVIDENCE `barrier=command`, which makes up for settings with `orBarrier`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 32768)))]
    pub barrier: Vec<String>,
    /// Renews a frozen state that ends by itself, with every beat. HELD is answered only while it cannot have ended in
    /// between (docs/design/freeze.md §2.2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renew: Option<Renew>,
    /// Two separate execs without a process that holds. At most `Crash` unless a probe shows the state.
    #[serde(default)]
    #[schemars(default)]
    pub allow_without_deadline: bool,
}

/// How a frozen state that ends by itself is renewed: `CLIENT PAUSE` of Redis and Valkey.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("duration(self.lease) >= duration('5s') && duration(self.lease) <= duration('10s')").message("a lease is 5s to 10s: it is renewed every 2s, and a silent controller must not hold longer"))]
pub struct Renew {
    /// Argv, no shell. It sets the state anew for the whole lease.
    #[schemars(length(min = 1, max = 64), inner(length(max = 32768)))]
    pub command: Vec<String>,
    /// After how long the state ends by itself, counted from `freeze` or `renew`: 5s to 10s. `freeze` sets it too.
    pub lease: ShortDuration,
}

/// A hook of the short form.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hook {
    /// Argv, no shell.
    #[schemars(length(min = 1, max = 64), inner(length(max = 32768)))]
    pub command: Vec<String>,
}

/// That the engine recovers from an atomic cut, and what voids it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CrashSafe {
    /// Where this is documented or measured.
    #[schemars(length(min = 1, max = 1024))]
    pub source: String,
    /// Settings that must have been read in the run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub settings: Vec<Setting>,
}

/// A setting of the server that must have been read in the run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Setting {
    /// Name of the EVIDENCE line.
    #[schemars(length(min = 1, max = 64))]
    pub name: String,
    /// Values that are durable, compared without case.
    #[schemars(length(min = 1, max = 16), inner(length(max = 253)))]
    pub allowed: Vec<String>,
    /// Asked only while another setting has a value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<SettingCondition>,
    /// Whether a barrier that ran after the lock and before FROZEN makes up for another value: EVIDENCE `barrier=NAME` of
    /// the freeze text, or `freeze.commands.barrier` (docs/design/freeze.md §4.9).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schemars(default)]
    pub or_barrier: bool,
}

/// Another setting that has a value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SettingCondition {
    /// Name of the EVIDENCE line.
    #[schemars(length(min = 1, max = 64))]
    pub name: String,
    /// Any of these values, compared without case.
    #[schemars(length(min = 1, max = 16), inner(length(max = 253)))]
    pub values: Vec<String>,
}

/// That a file copy under the hold is usable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CopySafe {
    /// The proof.
    #[schemars(length(min = 1, max = 1024))]
    pub proof: String,
}

/// For which instant a point stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DataTime {
    /// The cut.
    #[default]
    Cut,
    /// The beginning of prepare: the server acknowledges before it is durable, and prepare makes durable what was
    /// acknowledged before it began.
    Prepare,
}

/// On how many volumes a template is proven.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Layout {
    /// One volume, or one write-ordered group.
    #[default]
    OneVolume,
    /// Any number of volumes under one lock.
    AnyUnderLock,
}

/// Who is stuck behind a lock that was not acquired, and how what blocks them is ended (docs/design/freeze.md §3).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StallProbe {
    /// Prints who is stuck and who is in the way, or nothing. A word `blocker=ID` in its first line names the statement
    /// that `endBlocker` may end: 1 to 64 letters, digits, `_.:-`, beginning with a letter or digit.
    #[schemars(length(min = 1, max = 64), inner(length(max = 32768)))]
    pub command: Vec<String>,
    /// Ends the statement `{{blocker}}` and nothing else. Run only under `freeze.onBlocked: KillBlocker`, after the
    /// acquisition has failed, once per attempt and ID.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 32768)))]
    pub end_blocker: Vec<String>,
}

/// A command alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CommandOnly {
    /// Argv, no shell.
    #[schemars(length(min = 1, max = 64), inner(length(max = 32768)))]
    pub command: Vec<String>,
}

/// Makes sure that an application is thawed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Recover {
    /// Undoes what the run did; idempotent.
    #[schemars(length(min = 1, max = 64), inner(length(max = 32768)))]
    pub command: Vec<String>,
    /// Succeeds while it is still frozen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 32768)))]
    pub probe: Vec<String>,
    /// Names of EVIDENCE lines of a session's open text that both may use as `{{name}}`: what the freeze changes and only
    /// the server knows, such as the old value of a setting. They are journaled before the freeze; a hold that does not
    /// tell one, or tells another value than 1 to 64 letters, digits and `_.:-`, is refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(max = 64)))]
    pub needs: Vec<String>,
}
