//! When a run is at rest: nothing committed that is not published, nothing published that is not consumed, nothing waits.

use std::time::Duration;

use hashinsight::outbox;
use tokio::time::{Instant, sleep};

use super::stage::Stage;

/// Longer than every deadline of the product after each other, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(150);

/// Waits for rest; what is still under way, if it does not come.
pub(crate) async fn come_to_rest(stage: &Stage) -> Result<Duration, String> {
    let began = Instant::now();
    loop {
        let under_way = match under_way(stage).await {
            Ok(under_way) if under_way.is_empty() => return Ok(began.elapsed()),
            Ok(under_way) => under_way,
            Err(error) => error.to_string(),
        };
        if began.elapsed() > PATIENCE {
            return Err(format!("no rest within {PATIENCE:?}: {under_way}"));
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Empty at rest.
async fn under_way(stage: &Stage) -> anyhow::Result<String> {
    let admin = &stage.test.admin;
    let progress = outbox::progress(&mut *admin.acquire().await?).await?;
    if progress.backlog > 0 || progress.stuck > 0 {
        return Ok(format!("{progress:?}"));
    }
    let parked: i64 = sqlx::query_scalar("select count(*) from parked_event").fetch_one(admin).await?;
    if parked > 0 {
        return Ok(format!("{parked} events are parked"));
    }
    let offsets: Vec<(String, i32, i64)> =
        sqlx::query_as("select topic, partition, next_offset from consumer_offset").fetch_all(admin).await?;
    if offsets.is_empty() {
        return Ok("no group works".to_owned());
    }
    for (topic, partition, next) in offsets {
        let end = stage.log.bounds(&topic, partition).await?.end;
        if next < end {
            return Ok(format!("{topic}/{partition} is consumed to {next} of {end}"));
        }
    }
    Ok(String::new())
}
