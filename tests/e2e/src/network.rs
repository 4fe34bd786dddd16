//! A network namespace of its own for a controller, so that its packets to the API server can be dropped: both ends
//! stay alive and neither is told, as in a partition.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use tokio::process::Command;

use crate::{Outcome, Problem};

const NAMESPACE: &str = "stillpoint-apart";
const OUTSIDE: &str = "spapart0";
const INSIDE: &str = "spapart1";
const HOST: &str = "10.99.77.1";
const OWN: Ipv4Addr = Ipv4Addr::new(10, 99, 77, 2);
/// Any port is free in there.
const METRICS_PORT: u16 = 9090;
/// The node's address, which the API server's certificate names; 127.0.0.1 is another machine in there.
const NODE: &str = "10.244.0.1";

/// The namespace, with one link to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(());

impl Network {
    /// Makes the namespace anew.
    ///
    /// # Errors
    /// The machine forbids it.
    pub async fn make() -> Outcome<Self> {
        let network = Self(());
        network.remove().await;
        let own = format!("{OWN}/30");
        let host = format!("{HOST}/30");
        for line in [
            vec!["netns", "add", NAMESPACE],
            vec!["link", "add", OUTSIDE, "type", "veth", "peer", "name", INSIDE],
            vec!["link", "set", INSIDE, "netns", NAMESPACE],
            vec!["addr", "add", &host, "dev", OUTSIDE],
            vec!["link", "set", OUTSIDE, "up"],
            vec!["-n", NAMESPACE, "addr", "add", &own, "dev", INSIDE],
            vec!["-n", NAMESPACE, "link", "set", INSIDE, "up"],
            vec!["-n", NAMESPACE, "link", "set", "lo", "up"],
            vec!["-n", NAMESPACE, "route", "add", "default", "via", HOST],
        ] {
            run("ip", &line).await?;
        }
        // The host answers for the node's address whatever link a packet came by, and must be let in by it.
        run("ip", &["netns", "exec", NAMESPACE, "ip", "route", "get", NODE]).await?;
        Ok(network)
    }

    /// Removes it, and the rules that drop its packets.
    pub async fn remove(self) {
        // What is not there needs no removing.
        let _ = self.heal().await;
        let _ = run("ip", &["netns", "del", NAMESPACE]).await;
        let _ = run("ip", &["link", "del", OUTSIDE]).await;
    }

    /// A program that runs in it.
    pub fn command(self, program: &Path) -> Command {
        let mut command = Command::new("/usr/sbin/ip");
        command.args(["netns", "exec", NAMESPACE]).arg(program);
        command
    }

    /// Where a controller in it serves metrics.
    pub fn listen(self) -> SocketAddr {
        SocketAddr::from((OWN, METRICS_PORT))
    }

    /// The API server as seen from in it.
    pub const fn server(self) -> &'static str {
        "https://10.244.0.1:6443"
    }

    /// Drops every packet to and from it, without a word to either side.
    ///
    /// # Errors
    /// The rules cannot be set.
    pub async fn drop_packets(self) -> Outcome {
        // Ours go in front of every other rule.
        run("iptables", &["-w", "-I", "INPUT", "-i", OUTSIDE, "-j", "DROP"]).await?;
        run("iptables", &["-w", "-I", "OUTPUT", "-o", OUTSIDE, "-j", "DROP"]).await
    }

    /// Lets them through again.
    ///
    /// # Errors
    /// None were dropped.
    pub async fn heal(self) -> Outcome {
        let inward = run("iptables", &["-w", "-D", "INPUT", "-i", OUTSIDE, "-j", "DROP"]).await;
        run("iptables", &["-w", "-D", "OUTPUT", "-o", OUTSIDE, "-j", "DROP"]).await?;
        inward
    }
}

async fn run(program: &str, arguments: &[&str]) -> Outcome {
    let output = Command::new(program).args(arguments).kill_on_drop(true).output().await?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Problem(format!("{program} {}: {}", arguments.join(" "), said.trim())))
}
