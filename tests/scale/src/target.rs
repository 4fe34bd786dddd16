//! The API server that is measured against, and the population in it.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;
use stillpoint_api::clock::SharedClock;

use crate::failure::{Outcome, Present as _};
use crate::server::Server;
use crate::stand_in::Ask;

/// One Backup that was created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    /// When, microseconds since 1970.
    pub at: i64,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// An API server.
pub struct Target {
    server: Server,
    clock: SharedClock,
}

impl Target {
    /// Starts one.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn start(work: &Path, clock: &SharedClock) -> Outcome<Self> {
        Ok(Self { server: Server::start(work).await?, clock: clock.clone() })
    }

    /// The kubeconfig of a client with all rights.
    pub fn kubeconfig(&self) -> PathBuf {
        self.server.kubeconfig.clone()
    }

    /// The same, read.
    ///
    /// # Errors
    /// The file cannot be read.
    pub async fn config(&self) -> Outcome<kube::Config> {
        let file = Kubeconfig::read_from(self.kubeconfig()).present("read the kubeconfig")?;
        let mut config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
            .await
            .present("read the kubeconfig")?;
        config.default_retry = false;
        Ok(config)
    }

    /// Makes the population.
    ///
    /// # Errors
    /// The API server's.
    pub async fn load(&mut self, policies: usize, points: usize) -> Outcome<()> {
        let now = self.clock.wall();
        self.server.ask(&Ask::Load { policies, points, now }).await.map(|_| ())
    }

    /// Gives every policy that is not a minutely one this schedule.
    ///
    /// # Errors
    /// The API server's.
    pub async fn schedule(&mut self, cron: &str) -> Outcome<()> {
        self.server.ask(&Ask::Schedule { cron: cron.to_owned() }).await.map(|_| ())
    }

    /// Suspends or resumes the minutely ones; how many there are.
    ///
    /// # Errors
    /// The API server's.
    pub async fn suspend(&mut self, suspend: bool) -> Outcome<usize> {
        let edited = self.server.ask(&Ask::Suspend(suspend)).await?;
        edited.as_u64().and_then(|edited| usize::try_from(edited).ok()).present("read how many were edited")
    }

    /// Removes what the raw measurement made.
    ///
    /// # Errors
    /// The API server's.
    pub async fn purge(&mut self) -> Outcome<()> {
        self.server.ask(&Ask::Purge).await.map(|_| ())
    }

    /// How many Backups were created since they were taken.
    ///
    /// # Errors
    /// The server ended.
    pub async fn count(&mut self) -> Outcome<usize> {
        let count = self.server.ask(&Ask::Count).await?;
        count.as_u64().and_then(|count| usize::try_from(count).ok()).present("read how many were created")
    }

    /// Takes the Backups that were created since the last call.
    ///
    /// # Errors
    /// The server ended.
    pub async fn take(&mut self) -> Outcome<Vec<Created>> {
        let rows = self.server.ask(&Ask::Take).await?;
        let row = |row: &Value| {
            Some(Created {
                at: row[0].as_i64()?,
                namespace: row[1].as_str()?.to_owned(),
                name: row[2].as_str()?.to_owned(),
            })
        };
        rows.as_array().into_iter().flatten().map(row).collect::<Option<_>>().present("read what was created")
    }

    /// Now, by the clock that creations are noted with.
    pub fn now(&self) -> Timestamp {
        self.clock.wall()
    }

    /// Process of the API server.
    pub fn process(&self) -> Option<u32> {
        self.server.id()
    }

    /// Ends what was started.
    pub async fn end(self) {
        self.server.end().await;
    }
}
