//! The clients of the API server that the freeze window waits for: kube's own stack, on connections without Nagle's
//! algorithm.
//!
//! kube's connector leaves it on, and offers no way to change that. A request goes out in two writes, head and body;
//! on a connection that has been quiet the second one waits for the acknowledgement of the first, which the server's kernel
//! delays by 40 ms. Measured (docs/figures.md): 45 ms of the window of a run with three volumes.

use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::{Client, Config};
use tower::retry::RetryLayer;
use tower::util::option_layer;
use tower::{BoxError, ServiceBuilder};

use crate::request_meter::RequestMeter;

/// A client that sends at once. Behind a proxy it is kube's own: the connector to a proxy is not ours to make.
///
/// # Errors
/// The configuration cannot be used: its certificates, its credentials.
pub fn api_client(config: Config) -> Result<Client, kube::Error> {
    client(config, None)
}

/// The same, and every request is told to `meter`.
///
/// # Errors
/// The configuration cannot be used: its certificates, its credentials.
pub fn metered_client(config: Config, meter: RequestMeter) -> Result<Client, kube::Error> {
    client(config, Some(meter))
}

fn client(config: Config, meter: Option<RequestMeter>) -> Result<Client, kube::Error> {
    // Outermost: there a path is still as it was asked for, whatever the server's address begins with.
    let meter = option_layer(meter);
    if config.proxy_url.is_some() {
        return Ok(ClientBuilder::try_from(config)?.with_layer(&meter).build());
    }
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp)?);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    connector.set_reset_reader_on_write(config.reset_reader_on_write);
    let http: legacy::Client<_, Body> = legacy::Builder::new(TokioExecutor::new()).build(connector);
    let service = ServiceBuilder::new()
        .layer(meter)
        .layer(config.base_uri_layer())
        .option_layer(config.default_retry.then(|| RetryLayer::new(RetryPolicy::server_retry())))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(ClientBuilder::new(service, config.default_namespace).build())
}
