//! Webhooks: sent by every process that runs the group which queues them, `crm-sync-group`.

use std::time::Duration;

use tracing::warn;

use crate::config::WebhooksConfig;
use crate::domain::webhook::{AllowedHosts, Vault};
use crate::role::app::App;
use crate::webhook::{Sender, Settings};

/// How webhooks are sent.
fn settings(config: &WebhooksConfig) -> Settings {
    Settings {
        allowed: AllowedHosts::parse(&config.allowed_hosts),
        poll: Duration::from_millis(config.poll_ms),
        timeout: Duration::from_millis(config.timeout_ms),
        in_flight: config.in_flight,
        in_flight_of_tenant: config.in_flight_of_tenant,
        in_flight_of_endpoint: config.in_flight_of_endpoint,
    }
}

impl App {
    /// Starts the sender; without a key there is nothing to sign with.
    pub fn spawn_webhooks(&self) -> anyhow::Result<()> {
        let Some(vault) = Vault::new(&self.config.webhooks.key) else {
            warn!("webhooks.key is not set: no webhook is sent");
            return Ok(());
        };
        let settings = settings(&self.config.webhooks);
        let sender = Sender::new(self.db.clone(), self.bells.clone(), vault, settings)?;
        self.lifecycle.spawn("webhooks", sender.run(self.lifecycle.stopping().clone()));
        Ok(())
    }
}
