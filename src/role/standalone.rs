//! `hashinsight standalone`: every role in one process.

use std::io::IsTerminal;
use std::time::Duration;

use secrecy::ExposeSecret;

use crate::api::token::Verifier;
use crate::cli;
use crate::config::{self, Config};
use crate::projection;
use crate::role::app::{App, assumptions};
use crate::role::demo::{Demo, Summary};
use crate::role::{migrate, print_json, topics};

/// How often the status line is renewed on a terminal.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// How often it is written where lines cannot be overwritten.
const LOG_STATUS_EVERY: Duration = Duration::from_secs(10);

/// Runs until a signal, or with `--for` until the time is over.
pub async fn run(mut config: Config, args: &cli::Standalone) -> anyhow::Result<()> {
    let kind = config.event_log_kind(true)?;
    if args.demo && config.auth.jwt_secret.expose_secret().is_empty() {
        config.auth.jwt_secret = config::kept_secret("demo-jwt-secret")?;
    }
    if args.demo && config.webhooks.key.expose_secret().is_empty() {
        config.webhooks.key = config::kept_secret("demo-webhooks-key")?;
    }
    Verifier::new(&config.auth)?;
    migrate::migrate(&config).await?;
    let app = App::open(config).await?;
    let log = app.log(kind).await?;
    log.ensure_topics(&topics::specs(&app.config, kind)).await?;
    let redis = app.redis().await?;
    let (cache, locks) = (app.cache(redis.clone()), app.locks(redis));
    app.spawn_publisher(&log)?;
    for group in projection::groups(assumptions(&app.config.economics)) {
        app.spawn_consumer(group.name, &log, &cache, &locks).await?;
    }
    // Before the jobs, whose first run finds what there is to do.
    let demo = match args.demo {
        true => Some(Demo::new(app.db.clone(), app.bells.clone(), log, &app.config.economics).await?),
        false => None,
    };
    app.spawn_jobs(&cache);
    app.spawn_webhooks()?;
    let address = app.spawn_api(&cache).await?;
    let Some(demo) = demo else { return app.run().await };

    if !args.json {
        println!("{}", demo.welcome(address, &app.config)?);
    }
    let (json, run_for, lifecycle) = (args.json, args.run_for, app.lifecycle.clone());
    app.lifecycle.spawn("demo", async move {
        let live = std::io::stderr().is_terminal() && !json;
        let every = if live { STATUS_EVERY } else { LOG_STATUS_EVERY };
        let show = |line: &str| if live { eprint!("\r\x1b[K{line}") } else { eprintln!("{line}") };
        let summary = demo.run(lifecycle.stopping(), run_for, every, show).await?;
        if json {
            print_json(&summary)?;
        } else {
            print(&summary);
        }
        lifecycle.stop();
        Ok(())
    });
    app.run().await
}

fn print(summary: &Summary) {
    let ms = &summary.write_to_visible_ms;
    println!(
        "\n{} events, write to visible p50 {} ms, p95 {} ms, p99 {} ms, lag {}, dead letters {}",
        summary.events,
        ms.p50,
        ms.p95,
        ms.p99,
        summary.lag.map_or_else(|| "unknown".to_owned(), |n| n.to_string()),
        summary.dead_letters
    );
}
