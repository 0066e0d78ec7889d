//! Our own publisher or consumer as a process of its own: this program, started once more.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, bail};
use secrecy::ExposeSecret;
use tokio::process::{Child, Command};

use super::process::{self, Usage};
use crate::config::{self, Config};

/// A running role. Killed with this value.
pub struct OwnProcess {
    child: Child,
    shown: String,
}

impl OwnProcess {
    /// Starts it on the database of the configuration and with topics of this prefix. It keeps what else the
    /// environment and the configuration file of this process say; its warnings go where ours go.
    pub fn start(
        config: &Config,
        file: Option<&PathBuf>,
        topic_prefix: &str,
        slot: Option<&str>,
        arguments: &[&str],
    ) -> anyhow::Result<Self> {
        let mut environment = BTreeMap::from([
            ("DATABASE_URL", config.database.url.expose_secret()),
            ("HASHINSIGHT__WAL__DATABASE_URL", ""),
            ("HASHINSIGHT__KAFKA__TOPIC_PREFIX", topic_prefix),
            ("HASHINSIGHT__METRICS__BIND", ""),
            ("RUST_LOG", "warn"),
        ]);
        environment.extend(slot.map(|slot| ("HASHINSIGHT__WAL__SLOT", slot)));
        environment.extend(file.and_then(|file| Some(("HASHINSIGHT_CONFIG", file.to_str()?))));
        let shown = format!("hashinsight {}", arguments.join(" "));
        let child = Command::new(config::executable()?)
            .args(arguments)
            .envs(environment)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("`{shown}` cannot be started"))?;
        Ok(Self { child, shown })
    }

    /// Fails if it has ended: nobody asked it to.
    pub fn check(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("`{}` ended by itself ({status}); what it said stands above", self.shown);
        }
        Ok(())
    }

    /// What it has used since its start.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        process::usage(self.child.id().context("it has ended")?)
    }

    /// Ends it at once: what it leaves behind is reset anyway.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.child.kill().await.with_context(|| format!("`{}` cannot be ended", self.shown))
    }
}
