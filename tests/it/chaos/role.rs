//! One process of a run: started, killed, frozen, and started again, each time with a log file of its own.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::process::Child;

use crate::support::cluster::send;
use crate::support::process::command;

/// Twice what a role has to drain.
const DRAIN: Duration = Duration::from_secs(20);

/// What a member says that finds itself taken for dead.
const EVICTED: &str = "this member stood still and was evicted";

pub(crate) struct Role {
    pub(crate) name: &'static str,
    environment: BTreeMap<String, String>,
    arguments: Vec<&'static str>,
    /// What it says once it works.
    ready: &'static [&'static str],
    folder: PathBuf,
    starts: usize,
    child: Option<Child>,
}

impl Role {
    pub(crate) fn new(
        name: &'static str,
        arguments: &[&'static str],
        ready: &'static [&'static str],
        environment: BTreeMap<String, String>,
        folder: PathBuf,
    ) -> Self {
        Self { name, environment, arguments: arguments.to_vec(), ready, folder, starts: 0, child: None }
    }

    pub(crate) fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs", self.name);
        self.starts += 1;
        let log = File::create(self.log()).expect("a log");
        let mut command = command(&self.environment, &self.arguments);
        self.child = Some(command.stdout(Stdio::null()).stderr(log).spawn().expect("the binary starts"));
    }

    pub(crate) async fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().await.expect("killed");
        }
    }

    /// SIGTERM; the status, or none when it had to be killed or did not run.
    pub(crate) async fn terminate(&mut self) -> Option<ExitStatus> {
        let mut child = self.child.take()?;
        send("TERM", child.id()?);
        let ended = tokio::time::timeout(DRAIN, child.wait()).await;
        match ended {
            Ok(status) => Some(status.expect("its status")),
            Err(_) => {
                child.kill().await.expect("killed");
                None
            }
        }
    }

    /// By its name; whoever does not run hears nothing.
    pub(crate) fn signal(&self, name: &str) {
        if let Some(pid) = self.child.as_ref().and_then(Child::id) {
            send(name, pid);
        }
    }

    /// The status of one that ended without being asked to.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().expect("its status")?;
        self.child = None;
        Some(status)
    }

    /// Whether the process of the last start has worked.
    pub(crate) fn was_ready(&self) -> bool {
        let said = self.said();
        self.ready.iter().any(|ready| said.contains(ready))
    }

    /// When the processes of all starts found themselves evicted from their group.
    pub(crate) fn evictions(&self) -> Vec<DateTime<Utc>> {
        let logs =
            (1..=self.starts).map(|start| std::fs::read_to_string(self.log_of(start)).unwrap_or_default());
        let time = |line: &str| DateTime::parse_from_rfc3339(line.split_whitespace().next()?).ok();
        let of = |log: String| -> Vec<_> {
            log.lines().filter(|line| line.contains(EVICTED)).filter_map(time).map(|at| at.to_utc()).collect()
        };
        logs.flat_map(of).collect()
    }

    /// The end of the log of the last start.
    pub(crate) fn last_words(&self) -> String {
        let said = self.said();
        let lines: Vec<&str> = said.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }

    /// Resident memory in bytes.
    pub(crate) fn memory(&self) -> Option<u64> {
        let pid = self.child.as_ref()?.id()?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(resident.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1_024)
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    fn log(&self) -> PathBuf {
        self.log_of(self.starts)
    }

    fn log_of(&self, start: usize) -> PathBuf {
        self.folder.join(format!("{}.{start}.log", self.name))
    }
}
