//! `hashinsight publish`: outbox to log.

use crate::config::Config;
use crate::role::app::App;

/// Publishes until a signal.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let kind = config.event_log_kind(false)?;
    let app = App::open(config).await?;
    let log = app.log(kind).await?;
    app.spawn_publisher(&log);
    app.run().await
}
