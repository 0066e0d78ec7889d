//! `hashinsight consume --group G`: one member of one group, and scheduled work in turn with the others.

use crate::config::Config;
use crate::read_model;
use crate::role::app::App;

/// Consumes until a signal.
pub async fn run(config: Config, group: &str) -> anyhow::Result<()> {
    let kind = config.event_log_kind(false)?;
    let app = App::open(config).await?;
    let log = app.log(kind).await?;
    let redis = app.redis().await?;
    let (cache, locks) = (app.cache(redis.clone()), app.locks(redis));
    app.spawn_consumer(group, &log, &cache, &locks).await?;
    app.spawn_jobs(&cache);
    if group == read_model::crm::GROUP {
        app.spawn_webhooks()?;
    }
    app.run().await
}
