//! `hashinsight serve`: the HTTP API.

use crate::api::token::Verifier;
use crate::config::Config;
use crate::role::app::App;

/// Serves until a signal.
pub async fn run(config: Config) -> anyhow::Result<()> {
    // Which log carries the events must be settled before one is accepted.
    config.event_log_kind(false)?;
    Verifier::new(&config.auth)?;
    let app = App::open(config).await?;
    let cache = app.cache(app.redis().await?);
    app.spawn_api(&cache).await?;
    app.run().await
}
