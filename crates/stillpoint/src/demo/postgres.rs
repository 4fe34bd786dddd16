//! PostgreSQL for the demo: where its programs are, how they get here, and the pods that run them.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use stillpoint_simcluster::CLASS;

use super::voice::Voice;
use crate::failure::Failure;

/// Options of every psql: no start-up files, bare answers, no password prompt, the first error ends it.
pub const PSQL: [&str; 9] = ["-X", "-q", "-A", "-t", "-w", "-v", "ON_ERROR_STOP=1", "-U", "postgres"];

/// The uid of `nobody` on every common distribution: PostgreSQL refuses to run as root.
const NOBODY: u32 = 65534;

/// What a server needs, all from one directory so that versions do not mix.
const NEEDED: [&str; 4] = ["initdb", "postgres", "psql", "pg_isready"];

const SOURCE: &str = "https://www.postgresql.org/download/";

/// The programs of one version.
#[derive(Clone, Debug)]
pub struct Programs {
    /// Their directory.
    pub directory: PathBuf,
    /// As `postgres --version` says it.
    pub version: String,
}

impl Programs {
    /// The newest version that is installed.
    pub fn find() -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let in_path = std::env::split_paths(&path);
        // A link in PATH leads to the directory where the other programs are.
        let linked = in_path.filter_map(|directory| {
            directory.join("initdb").canonicalize().ok()?.parent().map(Path::to_owned)
        });
        versions(Path::new("/usr/lib/postgresql"))
            .into_iter()
            .chain(linked)
            .find(|directory| NEEDED.iter().all(|program| directory.join(program).exists()))
            .and_then(Self::in_directory)
    }

    fn in_directory(directory: PathBuf) -> Option<Self> {
        let said = Command::new(directory.join("postgres")).arg("--version").output().ok()?;
        let version =
            String::from_utf8_lossy(&said.stdout).trim().replace("postgres (PostgreSQL)", "PostgreSQL");
        said.status.success().then_some(Self { directory, version })
    }

    /// A program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Finds it, or installs it and says so.
    ///
    /// # Errors
    /// It is neither installed nor installable.
    pub fn find_or_install(voice: &Voice) -> Result<Self, Failure> {
        if let Some(found) = Self::find() {
            return Ok(found);
        }
        install(voice)?;
        Self::find().ok_or_else(|| {
            Failure::new(
                "PostgreSQL was installed but cannot be found",
                "initdb, postgres, psql and pg_isready are in no directory of /usr/lib/postgresql/*/bin or PATH",
                "put the directory that has them into PATH",
            )
        })
    }
}

/// `<root>/<version>/bin`, newest first.
fn versions(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    found.sort();
    found.into_iter().rev().map(|(_, directory)| directory).collect()
}

/// Debian's packages would create and start a server of the system; the setting that prevents it is written only
/// where nobody has decided yet.
const INSTALL: &str = "
set -e
export DEBIAN_FRONTEND=noninteractive UCF_FORCE_CONFFOLD=1
setting=/etc/postgresql-common/createcluster.conf
if [ ! -e $setting ]; then
  mkdir -p /etc/postgresql-common
  echo 'create_main_cluster = false' >$setting
fi
apt-get update -qq || echo 'the package lists could not be refreshed'
apt-get install -y -qq --no-install-recommends postgresql
";

fn install(voice: &Voice) -> Result<(), Failure> {
    let by_hand =
        format!("install PostgreSQL 13 or newer by hand and put its programs into PATH; see {SOURCE}");
    let missing = "PostgreSQL is needed and not installed";
    if !Path::new("/usr/bin/apt-get").exists() {
        return Err(Failure::new(missing, "this machine has no apt-get to install it with", by_hand));
    }
    let root = is_root();
    voice.say(&format!(
        "PostgreSQL is not installed. Installing Debian's package `postgresql`{}; it will not create or start a server \
         of the system (create_main_cluster = false in /etc/postgresql-common/createcluster.conf, unless that file \
         exists). It stays installed afterwards: `apt-get remove postgresql-common` takes it away. Ctrl-C is heeded \
         when the installation has ended.",
        if root { "" } else { " with sudo, which may ask for your password" }
    ));
    if !root {
        // In the foreground, where a password can be asked for; what follows is not interruptible half way.
        let allowed = Command::new("sudo").arg("-v").status();
        if !allowed.as_ref().is_ok_and(std::process::ExitStatus::success) {
            let why =
                allowed.err().map_or_else(|| "sudo refused".to_owned(), |error| format!("sudo: {error}"));
            return Err(Failure::new(missing, why, by_hand));
        }
    }
    let argv: &[&str] = if root { &["sh", "-c", INSTALL] } else { &["sudo", "-n", "sh", "-c", INSTALL] };
    // A group of its own: Ctrl-C must not leave packages half configured.
    let installed = Command::new(argv[0]).args(&argv[1..]).stdin(Stdio::null()).process_group(0).output();
    let installed = installed.map_err(|error| Failure::new(missing, error.to_string(), by_hand.clone()))?;
    if installed.status.success() {
        return Ok(());
    }
    let said = [installed.stdout, installed.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let last: Vec<&str> = said.lines().rev().take(5).collect();
    let last: Vec<&str> = last.into_iter().rev().collect();
    Err(Failure::new("PostgreSQL could not be installed", last.join("; "), by_hand))
}

/// Whether this process may become another user.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// Where a server's directories appear.
#[derive(Clone, Debug)]
pub struct Places {
    /// Its volume.
    pub data: PathBuf,
    /// Its socket; apart from the data, because lock files of sockets name a process that lives.
    pub sockets: PathBuf,
}

impl Places {
    /// Those of a server, below the cluster's root.
    pub fn of(root: &Path, server: &str) -> Self {
        let mounts = root.join("mnt").join(server);
        Self { data: mounts.join("data"), sockets: mounts.join("run") }
    }
}

/// The StatefulSet `orders-db`: a common server with durable settings, one volume.
pub fn stateful_set(programs: &Programs, places: &Places) -> Value {
    let script = "set -e
        if [ ! -s \"$DATA/pg/PG_VERSION\" ]; then
          rm -rf \"$DATA/new\"
          initdb -D \"$DATA/new\" -U postgres -A trust -E UTF8 --no-locale -k >/dev/null
          mv \"$DATA/new\" \"$DATA/pg\"
        fi
        rm -f \"$DATA/pg/postmaster.pid\"
        exec postgres -D \"$DATA/pg\" -k \"$PGHOST\" -c listen_addresses= -c unix_socket_permissions=0700 \
          -c max_wal_size=128MB -c shared_buffers=32MB -c max_connections=30";
    let labels = json!({"app": "orders-db"});
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": {"name": "orders-db", "namespace": "shop", "labels": labels},
        "spec": {
            "serviceName": "orders-db", "replicas": 1, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod_spec(programs, places, script, json!([]))},
            "volumeClaimTemplates": [{
                "metadata": {"name": "data"},
                "spec": {"storageClassName": CLASS, "accessModes": ["ReadWriteOnce"],
                         "resources": {"requests": {"storage": "1Gi"}}},
            }],
        },
    })
}

/// A pod with a server on a restored claim, which recovers as after a power failure.
pub fn restored_pod(programs: &Programs, places: &Places, claim: &str) -> Value {
    let script = "rm -f \"$DATA/pg/postmaster.pid\"
        exec postgres -D \"$DATA/pg\" -k \"$PGHOST\" -c listen_addresses= -c unix_socket_permissions=0700";
    let claim = json!([{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "orders-db-restored", "namespace": "shop", "labels": {"app": "orders-db-restored"}},
        "spec": pod_spec(programs, places, script, claim),
    })
}

fn pod_spec(programs: &Programs, places: &Places, script: &str, claims: Value) -> Value {
    let path = format!("{}:/usr/local/bin:/usr/bin:/bin", programs.directory.display());
    let mut volumes = vec![json!({"name": "run", "emptyDir": {}})];
    volumes.extend(claims.as_array().cloned().unwrap_or_default());
    let mut spec = json!({
        "terminationGracePeriodSeconds": 3,
        "containers": [{
            // The embedded cluster has no images; by its name the template is found.
            "name": "postgres", "image": "postgres:15", "command": ["sh", "-c", script],
            "env": [{"name": "PATH", "value": path}, {"name": "DATA", "value": places.data},
                    {"name": "PGHOST", "value": places.sockets}],
            "volumeMounts": [{"name": "data", "mountPath": places.data}, {"name": "run", "mountPath": places.sockets}],
            "readinessProbe": {"exec": {"command": ["pg_isready", "-q", "-U", "postgres"]}, "periodSeconds": 1},
        }],
        "volumes": volumes,
    });
    if is_root() {
        spec["securityContext"] = json!({"runAsUser": NOBODY});
    }
    spec
}

/// Asks a server.
///
/// # Errors
/// psql's own words.
pub async fn sql(programs: &Programs, places: &Places, text: &str) -> Result<String, String> {
    let asked = tokio::process::Command::new(programs.program("psql"))
        .args(PSQL)
        .arg("-h")
        .arg(&places.sockets)
        .args(["-c", text])
        .stdin(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| error.to_string())?;
    if asked.status.success() {
        return Ok(String::from_utf8_lossy(&asked.stdout).trim().to_owned());
    }
    Err(String::from_utf8_lossy(&asked.stderr).trim().replace('\n', "; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_is_taken_by_number_not_by_letter() {
        let root = std::env::temp_dir().join(format!("stillpoint-versions-{}", std::process::id()));
        for version in ["9", "15", "17", "not-a-version"] {
            std::fs::create_dir_all(root.join(version)).unwrap();
        }
        let found = versions(&root);
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(found, ["17", "15", "9"].map(|version| root.join(version).join("bin")));
    }
}
