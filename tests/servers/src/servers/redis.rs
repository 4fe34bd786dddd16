//! Redis and Valkey, with an append only file that is flushed every second and with a snapshot file alone, with a password.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use stillpoint_api::template::{Freeze, Recipe};

use super::{Engine, Refusal, debian, numbers, overwrite};
use crate::Outcome;
use crate::checks::Checked;
use crate::container::{Container, Server};
use crate::held::Held;
use crate::writer::Commit;

const PASSWORD: &str = "s3 cret'\"";

/// One of the two servers.
pub struct Redis {
    product: &'static str,
    append_only: bool,
}

impl Redis {
    /// With an append only file.
    pub fn append_only(product: &'static str) -> Self {
        Self { product, append_only: true }
    }

    /// With a snapshot file alone.
    pub fn snapshot_file(product: &'static str) -> Self {
        Self { product, append_only: false }
    }

    fn port(&self) -> u16 {
        let base = if self.product == "redis" { 26379 } else { 26389 };
        if self.append_only { base } else { base + 1 }
    }

    fn client(&self) -> String {
        format!("{}-cli -p {} --no-auth-warning", self.product, self.port())
    }

    fn ask(&self, container: &Container, command: &str) -> Outcome<String> {
        container.shell(&format!("REDISCLI_AUTH=\"$SERVER_PASSWORD\" {} {command}", self.client()))
    }
}

impl Engine for Redis {
    fn container(&self, roots: &Path) -> Container {
        let mut container = debian(roots, "sid");
        let variable =
            if self.append_only && self.product == "valkey" { "VALKEY_PASSWORD" } else { "REDIS_PASSWORD" };
        container.env = vec![(variable.into(), PASSWORD.into()), ("SERVER_PASSWORD".into(), PASSWORD.into())];
        container
    }

    fn version(&self, container: &Container) -> Outcome<String> {
        let line = container.shell(&format!("{}-server --version", self.product))?;
        let version = line.split(' ').find_map(|word| word.strip_prefix("v=")).unwrap_or("unknown");
        Ok(format!("{} {version}", self.product))
    }

    fn start(&self, container: &Container, data: &str) -> Outcome<Server> {
        let (program, port) = (format!("{}-server", self.product), self.port().to_string());
        let kept = if self.append_only { "yes" } else { "no" };
        let argv = [
            program.as_str(),
            "--port",
            &port,
            "--bind",
            "127.0.0.1",
            "--dir",
            data,
            "--appendonly",
            kept,
            "--appendfsync",
            "everysec",
            "--save",
            "",
            "--requirepass",
            PASSWORD,
        ];
        let mut server = container.serve(&argv, &container.outside(data).with_extension("log"))?;
        server.until(|| match self.ask(container, "PING")?.trim() {
            "PONG" => Ok(()),
            other => Err(other.to_owned()),
        })?;
        Ok(server)
    }

    fn parameters(&self, _data: &str) -> Vec<(&'static str, String)> {
        let client = (!self.append_only).then(|| ("client", format!("{}-cli", self.product)));
        std::iter::once(("port", self.port().to_string())).chain(client).collect()
    }

    fn commit(&self, _container: &Container, _data: &str) -> Outcome<Commit> {
        let stream = TcpStream::connect(("127.0.0.1", self.port())).map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let mut lines = BufReader::new(stream.try_clone().map_err(|error| error.to_string())?);
        let mut stream = stream;
        let mut ask = move |words: &[&str]| -> Outcome<String> {
            let mut text = format!("*{}\r\n", words.len());
            for word in words {
                text += &format!("${}\r\n{word}\r\n", word.len());
            }
            stream.write_all(text.as_bytes()).map_err(|error| error.to_string())?;
            let mut line = String::new();
            lines.read_line(&mut line).map_err(|error| error.to_string())?;
            if line.starts_with('-') || line.is_empty() { Err(line) } else { Ok(line) }
        };
        ask(&["AUTH", PASSWORD])?;
        Ok(Box::new(move |row| ask(&["SADD", "rows", &row.to_string()]).map(|_| ())))
    }

    fn rows(&self, container: &Container, _data: &str) -> Outcome<BTreeSet<u64>> {
        Ok(numbers(&self.ask(container, "SMEMBERS rows")?))
    }

    fn refusals(&self) -> Vec<Refusal> {
        let variable =
            if self.append_only && self.product == "valkey" { "VALKEY_PASSWORD" } else { "REDIS_PASSWORD" };
        let missing = if self.append_only {
            vec![("client", "no-such-client")]
        } else {
            vec![("passwordFile", "/none")]
        };
        vec![
            Refusal {
                name: "wrong password",
                env: vec![(variable, "wrong")],
                says: "authentication failed",
                ..Refusal::default()
            },
            Refusal {
                name: if self.append_only { "no client" } else { "no password file" },
                parameters: missing,
                says: if self.append_only { "no program no-such-client" } else { "authentication failed" },
                ..Refusal::default()
            },
            Refusal {
                name: "no server",
                parameters: vec![("port", "26999")],
                says: "does not answer on port 26999",
                ..Refusal::default()
            },
        ]
    }

    fn damage(&self, container: &Container, copy: &str) -> Option<Outcome<()>> {
        let files = if self.append_only { "*.incr.aof" } else { "*.rdb" };
        Some(overwrite(container, &format!("'{copy}' -name '{files}'")))
    }

    fn more(&self, container: &Container, recipe: &Recipe, _data: &str) -> Vec<Checked> {
        let Some(Freeze::Commands(commands)) = &recipe.freeze else {
            let wrong = (|| {
                self.ask(container, "CONFIG SET appendonly yes")?;
                let done = container.run(&recipe.prepare.as_ref().ok_or("no prepare")?.command)?;
                self.ask(container, "CONFIG SET appendonly no")?;
                if done.code != Some(0) && done.stderr.contains("use the template redis or valkey") {
                    return Ok(done.stderr.trim().to_owned());
                }
                Err(format!("{done:?}"))
            })();
            return vec![("append only".into(), wrong)];
        };
        let foreign = (|| {
            self.ask(container, "CLIENT PAUSE 60000 WRITE")?;
            let opened = Held::open(container, recipe);
            let paused = container.run(&commands.probe)?.code == Some(0);
            self.ask(container, "CLIENT UNPAUSE")?;
            match opened {
                Err(why) if why.contains("foreign_freeze") && paused => {
                    Ok("left alone, and left paused".into())
                }
                Err(why) => Err(why),
                Ok(_) => Err("a server that somebody else paused was taken".into()),
            }
        })();
        let lapsed = (|| {
            let mut held = Held::open(container, recipe)?;
            held.freeze(Duration::from_secs(60))?;
            std::thread::sleep(Duration::from_millis(10_500));
            if held.beat_unanswered(Duration::from_secs(3))? {
                return Ok("no HELD once the pause has ended".into());
            }
            Err("HELD after the pause has ended".into())
        })();
        vec![("foreign pause".into(), foreign), ("late beat".into(), lapsed)]
    }
}
