//! Kafka Connect and the connector in it.

use super::{Check, Limit};
use crate::config::Config;
use crate::connector::{self, Connect, Difference, RestError, Settings, Status};

const REGISTER: &str = "run `hashinsight connector register`";

/// The checks, and whether Debezium publishes.
pub(super) struct Examined {
    pub(super) checks: Vec<Check>,
    pub(super) runs: bool,
}

pub(super) async fn examine(config: &Config) -> Examined {
    let alone = |check| Examined { checks: vec![check], runs: false };
    if config.kafka.connect_url().is_none() {
        return alone(Check::ok("connect", "not configured: `hashinsight publish` publishes"));
    }
    let (connect, expected) = match Connect::new(config).and_then(|c| Ok((c, connector::settings(config)?))) {
        Ok(both) => both,
        Err(error) => return alone(Check::failed("connect", error.0, "correct the configuration")),
    };
    let limit = Limit::start();
    let worker = match limit.ask(connect.worker()).await {
        Ok(worker) => worker,
        Err(cause) => {
            return alone(Check::failed(
                "connect",
                cause,
                "start Kafka Connect, or correct KAFKA_CONNECT_URL",
            ));
        }
    };
    let mut checks = vec![Check::ok("connect", format!("Kafka Connect {} answers", worker.version))];
    let found = limit.ask(async {
        let running = connect.settings().await?;
        Ok::<_, RestError>((connect.status().await?, running.unwrap_or_default()))
    });
    let (status, running) = match found.await {
        Ok(found) => found,
        Err(cause) => {
            checks.push(Check::failed("connector", cause, "try again; see Kafka Connect's log"));
            return Examined { checks, runs: false };
        }
    };
    let runs = status.as_ref().is_some_and(Status::runs);
    checks.push(judge(status.as_ref(), &connector::differences(&expected, &running)));
    let remedy = "see Kafka Connect's log";
    checks.extend(
        limit
            .check("exactly once", remedy, async {
                let found = transactions(&connect, &running).await?;
                Ok::<_, RestError>(vec![found.map_or_else(
                    || Check::ok("exactly once", "off, as it must be"),
                    |(detail, remedy)| Check::failed("exactly once", detail, remedy),
                )])
            })
            .await,
    );
    Examined { checks, runs }
}

/// Whether Connect's producer writes transactions, and what to do about it.
pub(in crate::role) async fn transactions(
    connect: &Connect,
    running: &Settings,
) -> Result<Option<(String, &'static str)>, RestError> {
    let of_connector = connector::transactional(running);
    if !of_connector.is_empty() {
        return Ok(Some((
            format!(
                "the connector asks for transactions ({}): their control records stop our consumers",
                of_connector.join(", ")
            ),
            "delete the connector and register it anew; topics it has written to must be made again",
        )));
    }
    if connect.writes_transactions().await? {
        return Ok(Some((
            "Kafka Connect writes every source in transactions: their control records stop our consumers"
                .to_owned(),
            "set exactly.once.source.support=disabled for the workers and restart them",
        )));
    }
    Ok(None)
}

fn judge(status: Option<&Status>, differences: &[Difference]) -> Check {
    let name = "connector";
    let Some(status) = status else {
        return Check::failed(name, format!("{} is not registered", connector::NAME), REGISTER);
    };
    if !status.runs() {
        let tasks: Vec<&str> = status.tasks.iter().map(|task| task.state.as_str()).collect();
        let cause = status.failure().map_or_else(String::new, |cause| format!(": {cause}"));
        return Check::failed(
            name,
            format!(
                "{} is {}, its tasks are [{}]{cause}",
                connector::NAME,
                status.connector.state,
                tasks.join(", ")
            ),
            format!(
                "remove the cause, then PUT /connectors/{0}/resume if it is paused or stopped, otherwise POST \
                 /connectors/{0}/restart?includeTasks=true",
                connector::NAME
            ),
        );
    }
    if !differences.is_empty() {
        let keys: Vec<&str> = differences.iter().map(|d| d.key.as_str()).collect();
        return Check::warning(
            name,
            format!("{} runs with other settings than ours: {}", connector::NAME, keys.join(", ")),
            format!("see `hashinsight connector status`, then {REGISTER}"),
        );
    }
    Check::ok(name, format!("{} and its task run, with our settings", connector::NAME))
}
