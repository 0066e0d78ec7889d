//! The real binary as a process: started, heard, signalled.

use std::collections::BTreeMap;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

/// Longer than any step of a process takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// A running role. Killed with this value.
pub(crate) struct Process {
    child: Child,
    /// Its lines. They are read whether or not the test waits for one: a process whose pipe is full stands still.
    log: mpsc::UnboundedReceiver<String>,
    heard: String,
}

/// How a command ended.
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The binary with this environment and nothing of the caller's own.
pub(crate) fn command(environment: &BTreeMap<String, String>, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hashinsight"));
    command.env_clear().env("HOME", std::env::temp_dir()).env("HASHINSIGHT__LOG__FORMAT", "text");
    command.envs(environment).args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs a command to its end.
pub(crate) async fn run(environment: &BTreeMap<String, String>, arguments: &[&str]) -> Ended {
    let output = tokio::time::timeout(DEADLINE, command(environment, arguments).output())
        .await
        .unwrap_or_else(|_| panic!("{arguments:?} did not end"))
        .expect("the binary runs");
    Ended {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Process {
    /// Starts a role and waits until its log says `ready`.
    pub(crate) async fn start(
        environment: &BTreeMap<String, String>,
        arguments: &[&str],
        ready: &str,
    ) -> Self {
        let mut child = command(environment, arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let (said, log) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                // Nobody listens any more, and still the pipe must not fill.
                let _ = said.send(line);
            }
        });
        let mut process = Self { child, log, heard: String::new() };
        process.says(ready).await;
        process
    }

    /// Waits for a line of the log that contains `text`.
    pub(crate) async fn says(&mut self, text: &str) {
        let listen = async {
            while let Some(line) = self.log.recv().await {
                self.heard.push_str(&line);
                self.heard.push('\n');
                if line.contains(text) {
                    return true;
                }
            }
            false
        };
        let said = tokio::time::timeout(DEADLINE, listen).await.unwrap_or(false);
        assert!(said, "it never said {text:?}:\n{}", self.heard);
    }

    /// SIGKILL: no chance to tidy up.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.expect("killed");
    }

    /// Sends a signal by its name.
    pub(crate) async fn signal(&self, name: &str) {
        let pid = self.child.id().expect("it runs").to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status().await.expect("kill");
        assert!(sent.success());
    }

    /// The most memory it ever had, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        let pid = self.child.id().expect("it runs");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux");
        peak.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1_024
    }

    /// Waits for the end; returns the status and what was said on the way.
    pub(crate) async fn ended(mut self) -> (ExitStatus, String) {
        let ended = async {
            while let Some(line) = self.log.recv().await {
                self.heard.push_str(&line);
                self.heard.push('\n');
            }
            self.child.wait().await.expect("it ends")
        };
        let status = tokio::time::timeout(DEADLINE, ended).await.expect("it ends in time");
        (status, self.heard)
    }
}
