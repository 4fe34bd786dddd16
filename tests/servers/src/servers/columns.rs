//! ClickHouse and InfluxDB from Debian 12, asked by HTTP.

use std::collections::BTreeSet;
use std::path::Path;

use stillpoint_api::template::Recipe;

use super::{Engine, Refusal, debian, numbers, overwrite};
use crate::Outcome;
use crate::checks::Checked;
use crate::container::{Container, Server};
use crate::writer::Commit;

const ROOT: &str = "bookworm";

/// One server with a MergeTree table.
pub struct Clickhouse;

impl Clickhouse {
    fn ask(container: &Container, statement: &str) -> Outcome<String> {
        container.shell(&format!("curl -sS -f --data-binary '{statement}' http://127.0.0.1:18123/"))
    }

    fn configuration(data: &str) -> String {
        format!(
            "<yandex><logger><level>warning</level><console>1</console></logger><http_port>18123</http_port>\
             <tcp_port>19000</tcp_port><listen_host>127.0.0.1</listen_host><path>{data}/</path>\
             <tmp_path>{data}/tmp/</tmp_path><user_files_path>{data}/user_files/</user_files_path>\
             <mark_cache_size>67108864</mark_cache_size><users_config>{data}.users.xml</users_config>\
             <default_profile>default</default_profile><default_database>default</default_database></yandex>"
        )
    }

    const USERS: &str = "<yandex><profiles><default></default></profiles><quotas><default></default></quotas><users><default>\
        <password></password><networks><ip>127.0.0.1</ip></networks><profile>default</profile><quota>default</quota></default>\
        </users></yandex>";
}

impl Engine for Clickhouse {
    fn container(&self, roots: &Path) -> Container {
        debian(roots, ROOT)
    }

    fn version(&self, container: &Container) -> Outcome<String> {
        let text = container.shell("dpkg-query -W -f '${Version}' clickhouse-server")?;
        Ok(format!("clickhouse {}", text.split('+').next().unwrap_or_default()))
    }

    fn start(&self, container: &Container, data: &str) -> Outcome<Server> {
        let write = |name: &str, text: &str| {
            std::fs::write(container.outside(&format!("{data}.{name}")), text)
                .map_err(|error| error.to_string())
        };
        write("config.xml", &Self::configuration(data))?;
        write("users.xml", Self::USERS)?;
        let config = format!("--config-file={data}.config.xml");
        let mut server = container
            .serve(&["clickhouse-server", &config], &container.outside(data).with_extension("log"))?;
        server.until(|| {
            Self::ask(container, "CREATE TABLE IF NOT EXISTS t (row UInt64) ENGINE = MergeTree ORDER BY row")
                .map(|_| ())
        })?;
        Ok(server)
    }

    fn parameters(&self, data: &str) -> Vec<(&'static str, String)> {
        vec![("directory", data.to_owned()), ("port", "19000".to_owned())]
    }

    fn commit(&self, container: &Container, _data: &str) -> Outcome<Commit> {
        let container = container.clone();
        Ok(Box::new(move |row| Self::ask(&container, &format!("INSERT INTO t VALUES ({row})")).map(|_| ())))
    }

    fn rows(&self, container: &Container, _data: &str) -> Outcome<BTreeSet<u64>> {
        Ok(numbers(&Self::ask(container, "SELECT row FROM t")?))
    }

    fn refusals(&self) -> Vec<Refusal> {
        vec![
            Refusal {
                name: "no server",
                parameters: vec![("port", "19999")],
                says: "the server on port 19999: ",
                ..Refusal::default()
            },
            Refusal {
                name: "no directory",
                parameters: vec![("directory", "/srv/none")],
                says: "there is no directory /srv/none",
                ..Refusal::default()
            },
        ]
    }

    fn damage(&self, container: &Container, copy: &str) -> Option<Outcome<()>> {
        Some(overwrite(container, &format!("'{copy}/data/default/t' -name row.bin")))
    }

    fn more(&self, container: &Container, recipe: &Recipe, _data: &str) -> Vec<Checked> {
        let torn = (|| {
            Self::ask(container, "CREATE TABLE logged (row UInt64) ENGINE = TinyLog")?;
            let said = refused(container, recipe, "table default.logged (TinyLog) may be torn");
            Self::ask(container, "DROP TABLE logged")?;
            said
        })();
        // What a Buffer table has taken is in its target once prepare is done.
        let buffered = (|| {
            Self::ask(
                container,
                "CREATE TABLE waiting (row UInt64) ENGINE = Buffer(default, t, 1, 600, 600, 1000000, 1000000, 1000000000, 1000000000)",
            )?;
            Self::ask(container, "INSERT INTO waiting VALUES (0)")?;
            let count = || Self::ask(container, "SELECT count() FROM t WHERE row = 0");
            let before = count()?;
            let prepare = recipe.prepare.as_ref().ok_or("no prepare")?;
            let done = container.run(&prepare.command)?;
            let after = count()?;
            Self::ask(container, "DROP TABLE waiting")?;
            if (before.trim(), after.trim(), done.code) == ("0", "1", Some(0)) {
                return Ok("in its table after prepare, not before".to_owned());
            }
            Err(format!("before {before:?}, after {after:?}, {done:?}"))
        })();
        vec![("table that may be torn".into(), torn), ("buffered row".into(), buffered)]
    }
}

/// That prepare fails now and says this.
fn refused(container: &Container, recipe: &Recipe, says: &str) -> Outcome<String> {
    let prepare = recipe.prepare.as_ref().ok_or("no prepare")?;
    let done = container.run(&prepare.command)?;
    if done.code != Some(0) && done.stderr.contains(says) {
        return Ok(done.stderr.trim().to_owned());
    }
    Err(format!("it should say {says:?}: {done:?}"))
}

/// One server of version 1.
pub struct Influxdb;

impl Influxdb {
    fn query(container: &Container, statement: &str) -> Outcome<String> {
        container.shell(&format!(
            "curl -sS -f -H 'Accept: application/csv' 'http://127.0.0.1:18086/query?db=d&epoch=ns' --data-urlencode 'q={statement}'"
        ))
    }
}

impl Engine for Influxdb {
    fn container(&self, roots: &Path) -> Container {
        debian(roots, ROOT)
    }

    fn version(&self, container: &Container) -> Outcome<String> {
        let text = container.shell("influxd version")?;
        Ok(text.split(" (").next().unwrap_or_default().replace("InfluxDB v", "influxdb "))
    }

    fn start(&self, container: &Container, data: &str) -> Outcome<Server> {
        let text = format!(
            "reporting-disabled = true\nbind-address = \"127.0.0.1:18088\"\n[meta]\n  dir = \"{data}/meta\"\n[data]\n  dir = \"{data}/data\"\n  wal-dir = \"{data}/wal\"\n  cache-snapshot-write-cold-duration = \"1s\"\n[http]\n  bind-address = \"127.0.0.1:18086\"\n"
        );
        let file = format!("{data}.conf");
        std::fs::write(container.outside(&file), text).map_err(|error| error.to_string())?;
        let mut server = container
            .serve(&["influxd", "-config", &file], &container.outside(data).with_extension("log"))?;
        server.until(|| Self::query(container, "CREATE DATABASE d").map(|_| ()))?;
        Ok(server)
    }

    fn parameters(&self, data: &str) -> Vec<(&'static str, String)> {
        vec![("directory", data.to_owned())]
    }

    fn commit(&self, container: &Container, _data: &str) -> Outcome<Commit> {
        let container = container.clone();
        Ok(Box::new(move |row| {
            let line =
                format!("curl -sS -f --data-binary 't row={row}i {row}' 'http://127.0.0.1:18086/write?db=d'");
            container.shell(&line).map(|_| ())
        }))
    }

    fn rows(&self, container: &Container, _data: &str) -> Outcome<BTreeSet<u64>> {
        let text = Self::query(container, "SELECT row FROM t")?;
        Ok(text.lines().filter_map(|line| line.rsplit(',').next()?.parse().ok()).collect())
    }

    fn refusals(&self) -> Vec<Refusal> {
        vec![
            Refusal {
                name: "no directory",
                parameters: vec![("directory", "/srv/none")],
                says: "there is no directory /srv/none",
                ..Refusal::default()
            },
            Refusal {
                name: "another directory",
                parameters: vec![("directory", "/srv")],
                says: "/srv has neither influxd.bolt (2.x) nor meta/meta.db (1.x)",
                ..Refusal::default()
            },
        ]
    }

    fn damage(&self, container: &Container, copy: &str) -> Option<Outcome<()>> {
        // A file of points is written once nothing comes any more.
        let files = format!("'{copy}/data/d' -name '*.tsm' -size +0");
        let written = format!(
            "timeout 60 sh -c 'until [ -n \"$(find \"$0\" -name *.tsm)\" ]; do sleep 0.2; done' '{copy}/data/d'"
        );
        Some(container.shell(&written).and_then(|_| overwrite(container, &files)))
    }

    fn more(&self, container: &Container, recipe: &Recipe, data: &str) -> Vec<Checked> {
        // A part that is mounted from elsewhere is another file system.
        let elsewhere = (|| {
            let wal = format!("{data}/wal");
            container.shell(&format!("mv '{wal}' '{wal}.away' && ln -s /proc '{wal}'"))?;
            let said = refused(container, recipe, "lies on another file system");
            container.shell(&format!("rm '{wal}' && mv '{wal}.away' '{wal}'"))?;
            said
        })();
        vec![("log on another volume".into(), elsewhere)]
    }
}
