//! The embedded API server's process, as the bench speaks with it.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::failure::{Outcome, Present as _, Problem};
use crate::stand_in::Ask;

/// A running server. It ends when this is dropped.
pub struct Server {
    child: Child,
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    /// How to reach it.
    pub kubeconfig: PathBuf,
}

impl Server {
    /// Starts it.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn start(work: &Path) -> Outcome<Self> {
        let own = std::env::current_exe().present("find this program")?;
        let mut child = Command::new(own)
            .arg("serve")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .present("start the embedded API server")?;
        let (commands, answers) = (child.stdin.take(), child.stdout.take());
        let answers = BufReader::new(answers.present("read the server's answers")?).lines();
        let kubeconfig = work.join("kubeconfig");
        let mut server =
            Self { child, commands: commands.present("write to the server")?, answers, kubeconfig };
        let hello = server.answer().await?;
        let text = hello["kubeconfig"].as_str().present("read the server's kubeconfig")?;
        std::fs::write(&server.kubeconfig, text).present("write the kubeconfig")?;
        Ok(server)
    }

    async fn answer(&mut self) -> Outcome<Value> {
        let line = self.answers.next_line().await.present("read the server's answer")?;
        let line = line.ok_or_else(|| Problem("the embedded API server ended".to_owned()))?;
        serde_json::from_str(&line).present("read the server's answer")
    }

    /// Has a command carried out.
    ///
    /// # Errors
    /// The server ended.
    pub async fn ask(&mut self, ask: &Ask) -> Outcome<Value> {
        let mut line = serde_json::to_string(ask).present("write a command")?;
        line.push('\n');
        self.commands.write_all(line.as_bytes()).await.present("write a command")?;
        self.answer().await
    }

    /// Its process.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Ends it.
    pub async fn end(mut self) {
        drop(self.commands);
        let within = std::time::Duration::from_secs(20);
        if tokio::time::timeout(within, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}
