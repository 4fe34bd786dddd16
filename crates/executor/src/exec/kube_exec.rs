//! The real [`Exec`]: `kube::Client::connect` and a task on its socket.

use std::time::Duration;

use futures::future::BoxFuture;
use kube::{Client, Config};
use stillpoint_api::clock::SharedClock;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::drive::drive;
use super::stream::pair;
use super::{Exec, ExecError, ExecHandle, ExecLimits, ExecTarget};
use crate::api_client::api_client;

/// TCP and TLS must be up within this time, so that the 10 s to open are not spent on a dead address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest message accepted: servers send at most 32 KiB per frame; the rest is room, and bounds memory.
const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;

/// `config` made fit for exec. Use a client of its own for it.
///
/// - `default_retry = false`: the default layer repeats **any** request on 429, 503 and 504, up to 15 times;
///   an exec would run its command again.
/// - a connect timeout below the time to open.
/// - no read timeout: a held stream may be silent; pings and the stream's own deadline find a dead peer.
pub fn exec_client_config(mut config: Config) -> Config {
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = None;
    config
}

/// Opens streams through the API server.
#[derive(Clone)]
pub struct KubeExec {
    client: Client,
    clock: SharedClock,
}

impl KubeExec {
    /// An exec with a client of its own, built from [`exec_client_config`]`(config)`.
    ///
    /// # Errors
    /// [`ExecError`] when the configuration cannot be made into a client.
    pub fn from_config(config: Config, clock: SharedClock) -> Result<Self, ExecError> {
        let client = api_client(exec_client_config(config))
            .map_err(|error| ExecError::Other { detail: format!("no client for exec: {error}") })?;
        Ok(Self { client, clock })
    }

    /// An exec over `client`, which must not repeat requests: see [`exec_client_config`].
    pub const fn with_client(client: Client, clock: SharedClock) -> Self {
        Self { client, clock }
    }

    async fn open_once(&self, target: &ExecTarget, limits: ExecLimits) -> Result<ExecHandle, ExecError> {
        let request = target.request()?;
        let within = limits
            .close_at
            .map_or(limits.open_within, |close_at| limits.open_within.min(close_at.since(self.clock.mono())));
        let connection = match timeout(within, self.client.connect(request)).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Err(ExecError::from_kube(&error)),
            Err(_elapsed) => {
                return Err(ExecError::Timeout { detail: format!("no upgrade within {within:?}") });
            }
        };
        let half_close = connection.supports_stream_close();
        // Nothing was read through kube's wrapper yet, so the bare socket can be wrapped anew, bounded.
        let bounds = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE_BYTES))
            .max_frame_size(Some(MAX_MESSAGE_BYTES));
        let socket = WebSocketStream::from_raw_socket(
            connection.into_stream().into_inner(),
            Role::Client,
            Some(bounds),
        )
        .await;
        let (handle, side) = pair(limits, self.clock.clone(), half_close);
        tracing::debug!(
            namespace = %target.namespace, pod = %target.pod, container = %target.container,
            argv = %target.argv_digest(), half_close, "exec opened"
        );
        tokio::spawn(drive(socket, half_close, side));
        Ok(handle)
    }
}

impl Exec for KubeExec {
    fn open<'a>(
        &'a self,
        target: &'a ExecTarget,
        limits: ExecLimits,
    ) -> BoxFuture<'a, Result<ExecHandle, ExecError>> {
        Box::pin(self.open_once(target, limits))
    }

    fn clock(&self) -> SharedClock {
        self.clock.clone()
    }
}
