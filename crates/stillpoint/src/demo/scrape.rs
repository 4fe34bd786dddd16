//! Reads the controller's HTTP endpoints as a monitoring system does.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The controller answers from memory; slower than this is no answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// GETs a path: status code and body. HTTP/1.0, so that the body ends with the connection.
///
/// # Errors
/// Nobody listens, or there is no HTTP answer in time.
pub async fn get(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::InvalidData)?;
        let code =
            head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
        Ok((code, body.to_owned()))
    };
    tokio::time::timeout(ANSWER_WITHIN, exchange)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// The first sample of a metric whose labels contain all of these, and its line.
pub fn sample<'t>(text: &'t str, name: &str, labels: &[(&str, &str)]) -> Option<(&'t str, f64)> {
    text.lines().find_map(|line| {
        let rest = line.strip_prefix(name)?.strip_prefix('{')?;
        let (given, value) = rest.rsplit_once("} ")?;
        let has = |(label, wanted): &(&str, &str)| given.contains(&format!("{label}=\"{wanted}\""));
        labels.iter().all(has).then_some(())?;
        Some((line, value.trim().parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_found_by_its_whole_name_and_its_labels() {
        let text = "# HELP a b\na_b{policy=\"x\"} 1\na{namespace=\"shop\",policy=\"y\"} 2\na{namespace=\"shop\",policy=\"x\"} 1.5e3\n";
        let found = sample(text, "a", &[("policy", "x"), ("namespace", "shop")]);
        assert_eq!(found, Some(("a{namespace=\"shop\",policy=\"x\"} 1.5e3", 1500.0)));
        assert_eq!(sample(text, "a", &[("policy", "z")]), None);
    }
}
