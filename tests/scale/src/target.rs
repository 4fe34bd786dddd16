//! The API server that is measured against, and the population in it.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::Value;
use stillpoint_api::clock::SharedClock;

use crate::failure::{Outcome, Present as _};
use crate::real::{self, Real};
use crate::server::Server;
use crate::stand_in::Ask;

/// Which API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The embedded one.
    Embedded,
    /// kube-apiserver with etcd.
    Real,
}

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
    server: Running,
    clock: SharedClock,
}

enum Running {
    Embedded(Box<Server>),
    Real(Box<Real>),
}

impl Target {
    /// Starts one.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn start(which: Which, work: &Path, clock: &SharedClock) -> Outcome<Self> {
        let server = match which {
            Which::Embedded => Running::Embedded(Box::new(Server::start(work).await?)),
            Which::Real => Running::Real(Box::new(Real::start(work, clock).await?)),
        };
        Ok(Self { server, clock: clock.clone() })
    }

    /// The kubeconfig of a client with all rights.
    pub fn kubeconfig(&self) -> PathBuf {
        match &self.server {
            Running::Embedded(server) => server.kubeconfig.clone(),
            Running::Real(server) => server.kubeconfig.clone(),
        }
    }

    /// The same, read.
    ///
    /// # Errors
    /// The file cannot be read.
    pub async fn config(&self) -> Outcome<kube::Config> {
        real::config(&self.kubeconfig()).await
    }

    /// Makes the population.
    ///
    /// # Errors
    /// The API server's.
    pub async fn load(&mut self, policies: usize, points: usize) -> Outcome<()> {
        let now = self.clock.wall();
        match &mut self.server {
            Running::Embedded(server) => server.ask(&Ask::Load { policies, points, now }).await.map(|_| ()),
            Running::Real(server) => server.load(policies, points, now).await,
        }
    }

    /// Gives every policy that is not a minutely one this schedule.
    ///
    /// # Errors
    /// The API server's.
    pub async fn schedule(&mut self, cron: &str) -> Outcome<()> {
        match &mut self.server {
            Running::Embedded(server) => {
                server.ask(&Ask::Schedule { cron: cron.to_owned() }).await.map(|_| ())
            }
            Running::Real(server) => server.schedule(cron).await.map(|_| ()),
        }
    }

    /// Suspends or resumes the minutely ones; how many there are.
    ///
    /// # Errors
    /// The API server's.
    pub async fn suspend(&mut self, suspend: bool) -> Outcome<usize> {
        match &mut self.server {
            Running::Embedded(server) => {
                number(&server.ask(&Ask::Suspend(suspend)).await?, "read how many were edited")
            }
            Running::Real(server) => server.suspend(suspend).await,
        }
    }

    /// Removes what the raw measurement made.
    ///
    /// # Errors
    /// The API server's.
    pub async fn purge(&mut self) -> Outcome<()> {
        match &mut self.server {
            Running::Embedded(server) => server.ask(&Ask::Purge).await.map(|_| ()),
            Running::Real(server) => server.purge().await,
        }
    }

    /// How many Backups were created since they were taken.
    ///
    /// # Errors
    /// The server ended.
    pub async fn count(&mut self) -> Outcome<usize> {
        match &mut self.server {
            Running::Embedded(server) => {
                number(&server.ask(&Ask::Count).await?, "read how many were created")
            }
            Running::Real(server) => Ok(server.count()),
        }
    }

    /// Takes the Backups that were created since the last call.
    ///
    /// # Errors
    /// The server ended.
    pub async fn take(&mut self) -> Outcome<Vec<Created>> {
        let server = match &mut self.server {
            Running::Embedded(server) => server,
            Running::Real(server) => return Ok(server.take()),
        };
        let rows = server.ask(&Ask::Take).await?;
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

    /// Processes of the API server.
    pub fn processes(&self) -> Vec<u32> {
        match &self.server {
            Running::Embedded(server) => server.id().into_iter().collect(),
            Running::Real(server) => server.ids(),
        }
    }

    /// Ends what was started.
    pub async fn end(self) {
        match self.server {
            Running::Embedded(server) => server.end().await,
            Running::Real(server) => server.end().await,
        }
    }
}

fn number(answer: &Value, what: &str) -> Outcome<usize> {
    answer.as_u64().and_then(|count| usize::try_from(count).ok()).present(what)
}
