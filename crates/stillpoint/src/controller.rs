//! `stillpoint controller`: scheduler, executor, restores and metrics in one process.
//!
//! Guarantees: its configuration is printed at start; of several replicas one schedules, and all carry out runs; on SIGTERM
//! or SIGINT whatever is frozen is thawed first and journalled, and the lead is let go after that, when nothing is written
//! any more; a part that ends by itself ends the process with an error, so that it is restarted.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, Config};
use stillpoint_api::clock::SystemClock;
use stillpoint_api::evidence::Consistency;
use stillpoint_api::outcome::{HookPhase, HookResult, RunResult, Violation};
use stillpoint_executor::api_client::metered_client;
use stillpoint_executor::contents::ContentWatch;
use stillpoint_executor::context::Context;
use stillpoint_executor::exec::{KubeExec, exec_client_config};
use stillpoint_executor::hold::SystemEntropy;
use stillpoint_executor::observer::{RunLabels, RunObserver};
use stillpoint_executor::ownership::replica::identity;
use stillpoint_executor::ownership::{Ownership, Timing};
use stillpoint_executor::request_meter::{Answer, ApiRequest, RequestMeter, RequestObserver};
use stillpoint_executor::storage::{StorageTable, TrustFile};
use stillpoint_metrics::{
    BuildInfo, Calendar, Endpoints, FactsStore, Metrics, PolicyProjection, Readiness, WorkKind, WorkResult,
};
use stillpoint_scheduler::election::{self, Candidate, Leadership, Terms};
use stillpoint_scheduler::rules::RuleBook;
use stillpoint_scheduler::{Progress, QuietTimes, SchedulerContext, Work, WorkEnd, WorkObserver};
use tokio::sync::{oneshot, watch};
use tracing::{info, warn};

use crate::backups::share;
use crate::cluster::{self, ClusterArgs, chain};
use crate::commands::lint::documents;
use crate::failure::{Exit, Failure};
use crate::state::Inside;

/// How long a stopping controller waits for what its scheduler has begun: a few requests.
const SCHEDULER_ENDS_WITHIN: Duration = Duration::from_secs(5);

/// Shown below `--help`.
pub const HELP: &str = "\
Examples:
  stillpoint controller                                        with the pod's account or $KUBECONFIG
  stillpoint controller --storage-trust trust.yaml --log-format json

It needs the rights of deploy/base and nothing more. Namespaces opt in by a ServiceAccount stillpoint-hooks.
Several may run: one of them schedules, prunes and sweeps, all of them carry out runs; when the one that schedules is
killed, another does within 17 seconds.
/metrics, /healthz, /readyz and /debug/state are served on --metrics-address. SIGTERM thaws whatever is frozen, lets the
Lease of the scheduler go, then ends.";

/// Arguments of `controller`.
#[derive(Args, Clone, Debug)]
pub struct ControllerArgs {
    /// What is known about storage drivers beyond the built-in table: YAML with `entries` of driver, storageClass,
    /// cut, group, cutSignal and reason
    #[arg(long, value_name = "FILE")]
    pub storage_trust: Option<PathBuf>,
    /// Where /metrics, /healthz, /readyz and /debug/state (which replica leads, runs of this one, what is due next) are
    /// served
    #[arg(long, alias = "metrics-addr", value_name = "ADDRESS:PORT", default_value_t = stillpoint_metrics::server::DEFAULT_ADDRESS)]
    pub metrics_address: SocketAddr,
    /// Name of this replica in claims and journals; a random part is added at every start. Default: the host name, which
    /// is the pod's
    #[arg(long, value_name = "NAME", env = "STILLPOINT_REPLICA")]
    pub replica: Option<String>,
    /// Namespace of the Leases: one of whoever schedules, one per replica, and one per workload being backed up. Every
    /// replica must name the same.
    /// Default: the namespace of the pod's account, or of the kubeconfig's context
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE")]
    pub lease_namespace: Option<String>,
    /// Threads that carry runs
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub workers: u8,
    /// How log lines are written
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT", env = "STILLPOINT_LOG_FORMAT")]
    pub log_format: LogFormat,
    /// Which log lines, e.g. `info` or `info,stillpoint_executor=debug`
    #[arg(long, value_name = "FILTER", default_value = "info", env = "STILLPOINT_LOG")]
    pub log: String,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object per line.
    Json,
}

/// What the controller runs with.
#[derive(Clone, Debug)]
pub struct ControllerOptions {
    /// How to reach the cluster.
    pub config: Config,
    /// What is known about drivers.
    pub storage: StorageTable,
    /// Where metrics are served.
    pub metrics_address: SocketAddr,
    /// Name of this replica.
    pub replica: String,
    /// Namespace of the Leases.
    pub lease_namespace: String,
}

/// Runs the controller until it is told to stop.
///
/// # Errors
/// It cannot start, or a part of it ended by itself.
pub fn command(cluster: &ClusterArgs, args: &ControllerArgs) -> Result<Exit, Failure> {
    log_to_stderr(args)?;
    let storage = storage_table(args.storage_trust.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(usize::from(args.workers))
        .enable_all()
        .build()
        .map_err(|error| Failure::new("cannot start the asynchronous runtime", error.to_string(), ""))?;
    runtime.block_on(async {
        let config = cluster::config(cluster).await?;
        let options = ControllerOptions {
            lease_namespace: args.lease_namespace.clone().unwrap_or_else(|| config.default_namespace.clone()),
            config,
            storage,
            metrics_address: args.metrics_address,
            replica: args.replica.clone().unwrap_or_else(host_name),
        };
        run(options, stopped()).await?;
        Ok(Exit::Success)
    })
}

fn log_to_stderr(args: &ControllerArgs) -> Result<(), Failure> {
    let filter = tracing_subscriber::EnvFilter::try_new(&args.log).map_err(|error| {
        Failure::new("cannot read --log", error.to_string(), "for example --log info").exiting(Exit::Usage)
    })?;
    // A line that cannot be written is lost. Told on stderr, as is the default, that would be a panic: whoever reads the log
    // goes away, or its disk is full, and the controller would end with it, in the middle of a freeze.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    let started = match args.log_format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    started.map_err(|error| Failure::new("cannot start logging", error.to_string(), ""))
}

/// The built-in storage table with the operator's file over it.
///
/// # Errors
/// The file cannot be read or is wrong.
pub fn storage_table(file: Option<&Path>) -> Result<StorageTable, Failure> {
    let Some(file) = file else { return Ok(StorageTable::built_in()) };
    let wrong = |why: String| {
        Failure::new(
            format!("cannot use the storage trust file {}", file.display()),
            why,
            "see docs/design/storage.md for its form",
        )
        .exiting(Exit::Usage)
    };
    let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
    // The strict reader of `lint`: a key that is written twice is refused, not overruled.
    let read = documents::parse(&text);
    if let Some(fault) = read.faults.first() {
        return Err(wrong(format!("{}: {}", fault.path, fault.message)));
    }
    let [value] = <[serde_json::Value; 1]>::try_from(read.values)
        .map_err(|values| wrong(format!("it holds {} documents, and one is meant", values.len())))?;
    let trust: TrustFile = serde_json::from_value(value).map_err(|error| wrong(error.to_string()))?;
    StorageTable::with_trust(&trust).map_err(|error| wrong(error.to_string()))
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .ok()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "stillpoint".to_owned())
}

/// Resolves at SIGTERM or SIGINT; a second signal ends the process at once.
async fn stopped() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        warn!("signals cannot be caught; stop the controller by ending its session");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("stopping: what is frozen is thawed first; a second signal ends the process at once");
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::process::exit(130);
    });
}

/// The controller itself.
///
/// # Errors
/// It cannot start, or a part of it ended by itself.
pub async fn run(
    options: ControllerOptions,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), Failure> {
    let ControllerOptions { config, storage, metrics_address, replica, lease_namespace } = options;
    let replica = identity(&replica, &SystemEntropy)
        .map_err(|error| Failure::new("the system gave no random bytes", error.to_string(), ""))?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        replica,
        lease_namespace,
        api_server = %config.cluster_url,
        metrics = %metrics_address,
        "stillpoint controller"
    );
    let clock = SystemClock::shared();
    let config = exec_client_config(config);
    let failed =
        |what: &str, why: String| Failure::new(what, why, "check the kubeconfig and that the cluster is up");
    let build = BuildInfo {
        version: env!("CARGO_PKG_VERSION").into(),
        revision: option_env!("STILLPOINT_REVISION").unwrap_or("unknown").into(),
    };
    let metrics = Arc::new(
        Metrics::new(&build)
            .map_err(|error| Failure::new("cannot register the metrics", error.to_string(), ""))?,
    );
    let meter = RequestMeter::new(Arc::new(Observed(Arc::clone(&metrics))), Arc::clone(&clock));
    let made = |error: kube::Error| failed("cannot make the client", chain(&error));
    // Streams of exec have connections of their own.
    let exec = metered_client(config.clone(), meter.clone()).map_err(made)?;
    let exec = KubeExec::with_client(exec, Arc::clone(&clock));
    let client = metered_client(config, meter).map_err(made)?;
    let rules = Arc::new(RuleBook::default());
    let calendar = Quiet(QuietTimes::new(Arc::clone(&rules), Arc::clone(&clock)));
    let facts = Arc::new(FactsStore::with_calendar(Arc::clone(&metrics), Arc::new(calendar)));
    let readiness = Readiness::default();
    let listener = stillpoint_metrics::bind(metrics_address)
        .await
        .map_err(|error| Failure::new("cannot serve metrics", error.to_string(), "").exiting(Exit::Usage))?;

    let contents = ContentWatch::new();
    let context = Context {
        client: client.clone(),
        exec: Arc::new(exec),
        clock: Arc::clone(&clock),
        entropy: Arc::new(SystemEntropy),
        storage: Arc::new(storage),
        observer: Arc::new(Observed(Arc::clone(&metrics))),
        contents: contents.clone(),
        ownership: Ownership::new(replica.clone(), lease_namespace.clone(), Timing::default()),
        impersonate: true,
    };
    let leadership = Leadership::none(Arc::clone(&clock));
    let progress = watch::Sender::new(Progress::default());
    let (stop, stopping) = watch::channel(false);
    let until_stopped = || {
        let mut stopping = stopping.clone();
        async move {
            // An error means that the sender is gone, which is a stop as well.
            let _ = stopping.wait_for(|stop| *stop).await;
        }
    };
    let listed = |name: &'static str| {
        let part = readiness.part(name);
        let (sender, mut receiver) = watch::channel(false);
        tokio::spawn(async move {
            while receiver.changed().await.is_ok() {
                if *receiver.borrow() { part.ready() } else { part.not_ready() }
            }
        });
        sender
    };

    let mut server = tokio::spawn(stillpoint_metrics::serve(
        listener,
        Endpoints {
            metrics: Arc::clone(&metrics),
            facts: Arc::clone(&facts) as Arc<dyn stillpoint_metrics::Facts>,
            readiness: readiness.clone(),
            process: Arc::new(Inside {
                leadership: leadership.clone(),
                ownership: context.ownership.clone(),
                progress: progress.subscribe(),
                rules: Arc::clone(&rules),
            }),
        },
        until_stopped(),
    ));
    let (leave, leaving) = oneshot::channel::<()>();
    let mut electing = tokio::spawn(election::run(
        Candidate {
            client: client.clone(),
            namespace: lease_namespace,
            identity: replica,
            clock: Arc::clone(&clock),
            terms: Terms::default(),
            leadership: leadership.clone(),
        },
        async move {
            // A sender that is gone is a reason to leave as well.
            let _ = leaving.await;
        },
    ));
    let mut sweeping = tokio::spawn(only_the_leader_sweeps(context.ownership.clone(), leadership.clone()));
    let mut watching = tokio::spawn(contents.run(client.clone()));
    let (sharing, [for_metrics, for_executor, for_scheduler]) =
        share(stillpoint_executor::controller::backup_events(&client));
    let mut sharing = tokio::spawn(sharing);
    let mut feeding = {
        let (client, facts, readiness) = (client.clone(), Arc::clone(&facts), readiness.clone());
        tokio::spawn(async move {
            stillpoint_metrics::feed_with(client, None, for_metrics, facts, &readiness).await;
        })
    };
    let mut backups = tokio::spawn(stillpoint_executor::controller::run_with(
        context.clone(),
        for_executor,
        listed("executor: backups listed"),
        until_stopped(),
    ));
    let mut restores = tokio::spawn(stillpoint_executor::restore::run(
        context,
        listed("executor: restores listed"),
        until_stopped(),
    ));
    let cluster_uid = cluster_uid(&client).await;
    let mut scheduler = tokio::spawn(stillpoint_scheduler::run_with(
        SchedulerContext {
            client,
            clock,
            cluster_uid,
            ready: listed("scheduler: policies and backups listed"),
            leadership,
            progress,
            deletions: Arc::new(Observed(Arc::clone(&metrics))),
            work: Arc::new(Observed(Arc::clone(&metrics))),
            rules,
        },
        for_scheduler,
        until_stopped(),
    ));

    // A part that ends although nobody asked is an error: half a controller looks alive and protects nothing.
    let ended = tokio::select! {
        () = shutdown => None,
        end = &mut backups => Some(describe("executor", end)),
        end = &mut restores => Some(describe("restores", end)),
        end = &mut scheduler => Some(describe("scheduler", end)),
        end = &mut server => Some(describe_endless("metrics server", end)),
        end = &mut watching => Some(describe_endless("watch on snapshot contents", end)),
        end = &mut sharing => Some(describe_endless("watch on Backups", end)),
        end = &mut feeding => Some(describe_endless("metrics watch", end)),
        end = &mut electing => Some(describe_endless("election", end)),
        end = &mut sweeping => Some(describe_endless("switch of the sweeper", end)),
    };
    stop.send_replace(true);
    // The executor thaws and journals: nothing comes before that. The server lets a scrape finish.
    if !backups.is_finished() {
        let _ = backups.await;
    }
    // What the scheduler has begun it finishes; then nothing of the leader's is under way, and the lead may pass.
    if !scheduler.is_finished() && tokio::time::timeout(SCHEDULER_ENDS_WITHIN, &mut scheduler).await.is_err()
    {
        scheduler.abort();
        let _ = scheduler.await;
    }
    let _ = leave.send(());
    if !electing.is_finished() {
        let _ = electing.await;
    }
    sweeping.abort();
    watching.abort();
    sharing.abort();
    feeding.abort();
    if !server.is_finished() {
        let _ = server.await;
    }
    match ended {
        None => {
            info!("stopped");
            Ok(())
        }
        Some(why) => {
            Err(Failure::new("a part of the controller ended by itself", why, "it is safe to start it again"))
        }
    }
}

/// Hands the outcome of the election to the sweeper: scheduler and executor do not know each other.
async fn only_the_leader_sweeps(ownership: Ownership, leadership: Leadership) {
    let mut news = leadership.follow();
    loop {
        ownership.sweep(leadership.leads());
        news.changed().await;
    }
}

fn describe<E: std::fmt::Display>(part: &str, end: Result<Result<(), E>, tokio::task::JoinError>) -> String {
    match end {
        Ok(Ok(())) => format!("the {part} ended"),
        Ok(Err(error)) => format!("the {part}: {error}"),
        Err(error) => format!("the {part} panicked: {error}"),
    }
}

fn describe_endless(part: &str, end: Result<(), tokio::task::JoinError>) -> String {
    match end {
        Ok(()) => format!("the {part} ended"),
        Err(error) => format!("the {part} panicked: {error}"),
    }
}

/// The seed of jitter: any constant of the cluster.
async fn cluster_uid(client: &Client) -> String {
    let spaces: Api<Namespace> = Api::all(client.clone());
    match tokio::time::timeout(stillpoint_executor::context::REQUEST_TIMEOUT, spaces.get_opt("kube-system"))
        .await
    {
        Ok(Ok(Some(space))) => space.metadata.uid.unwrap_or_default(),
        _ => String::new(),
    }
}

/// Hands the executor's and the scheduler's events to the metrics: they do not know each other.
struct Observed(Arc<Metrics>);

impl stillpoint_scheduler::DeletionObserver for Observed {
    fn asked(&self, policy: &stillpoint_scheduler::projection::PolicyKey, deleted: bool) {
        use stillpoint_metrics::DeletionResult;
        let result = if deleted { DeletionResult::Deleted } else { DeletionResult::Failed };
        self.0.retention_deletion(&policy.namespace, &policy.name, result);
    }

    fn orphan(&self, _policy: &stillpoint_scheduler::projection::PolicyKey, deleted: bool) {
        use stillpoint_metrics::DeletionResult;
        self.0.orphan_deletion(if deleted { DeletionResult::Deleted } else { DeletionResult::Failed });
    }
}

impl WorkObserver for Observed {
    fn started(&self, delay: Duration) {
        self.0.meters().started(delay);
    }

    fn worked(&self, work: Work, end: WorkEnd, took: Duration) {
        let kind = match work {
            Work::Policy => WorkKind::Policy,
            Work::Start => WorkKind::Start,
        };
        let result = match end {
            WorkEnd::Succeeded => WorkResult::Succeeded,
            WorkEnd::Failed => WorkResult::Failed,
            WorkEnd::Deposed => WorkResult::Deposed,
        };
        self.0.meters().worked(kind, result, took);
    }

    fn clocks_read(&self, ahead: jiff::SignedDuration) {
        self.0.meters().clocks_read(ahead.as_secs_f64());
    }
}

impl RequestObserver for Observed {
    fn answered(&self, request: &ApiRequest, answer: Answer, took: Duration) {
        let ApiRequest { verb, resource } = request;
        let status;
        let code = match answer {
            Answer::Status(code) => {
                status = code.to_string();
                status.as_str()
            }
            Answer::Unreachable => "unreachable",
            Answer::Abandoned => "abandoned",
        };
        self.0.meters().requested(verb, resource, code, took);
    }
}

/// Tells the metrics of blackouts, which the scheduler knows.
struct Quiet(QuietTimes);

impl Calendar for Quiet {
    fn in_blackout(&self, namespace: &str, policy: &PolicyProjection) -> bool {
        self.0.hold(namespace, &policy.blackouts, Some(&policy.time_zone), policy.created)
    }
}

impl RunObserver for Observed {
    fn freeze(&self, run: &RunLabels, seconds: f64) {
        self.0.freeze(&run.namespace, &run.policy, seconds);
    }

    fn overhead(&self, run: &RunLabels, seconds: f64) {
        self.0.overhead(&run.namespace, &run.policy, seconds);
    }

    fn hook(&self, run: &RunLabels, application: &str, phase: HookPhase, seconds: f64) {
        self.0.hook(&run.namespace, &run.policy, application, phase, seconds);
    }

    fn hook_ended(&self, run: &RunLabels, application: &str, phase: HookPhase, result: HookResult) {
        self.0.hook_ended(&run.namespace, &run.policy, application, phase, result);
    }

    fn violation(&self, run: &RunLabels, violation: Violation) {
        self.0.violation(&run.namespace, &run.policy, violation);
    }

    fn restored(&self, run: &RunLabels, result: RunResult, seconds: f64) {
        self.0.restored(&run.namespace, &run.policy, result, seconds);
    }

    fn cut(&self, driver: &str, seconds: f64) {
        self.0.cut(driver, seconds);
    }

    fn ready(&self, driver: &str, seconds: f64) {
        self.0.ready(driver, seconds);
    }

    fn finished(
        &self,
        run: &RunLabels,
        trigger: stillpoint_api::backup::Trigger,
        consistency: Option<Consistency>,
        result: RunResult,
    ) {
        self.0.backup_finished(&run.namespace, &run.policy, trigger, consistency.unwrap_or_default(), result);
    }
}
