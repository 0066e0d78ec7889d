//! F32: the clocks of hosts are hours off, and step. Nothing that is done rests on them: the order of things comes from
//! the database and the log, deadlines from clocks that only run, and times from PostgreSQL's clock.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use hashinsight::api::token::{Grant, sign};
use reqwest::StatusCode;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::processes::{GROUP, WORKS};
use crate::support::broker::free_port;
use crate::support::group::Member;
use crate::support::process::{Process, run};
use crate::support::publishing::{LEADS, Publishing, id_of};
use crate::support::skew::SkewedClock;
use crate::support::{TestDb, service, token};

/// What a stage may take on a busy machine. The clocks are off by much more.
const BUSY: f64 = 60.0;

async fn on_kafka(further: &[(&str, &str)]) -> Publishing {
    let kafka = service("KAFKA_BROKERS");
    let settings = [&[("HASHINSIGHT__CONSUMER__BATCH_SIZE", "50")], further].concat();
    Publishing::on(&kafka, &kafka, &settings).await
}

fn environment(test: &TestDb, further: &[(&str, &str)]) -> BTreeMap<String, String> {
    let mut environment = test.environment.clone();
    environment.extend(further.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
    environment
}

/// The mean of a latency that a process has served.
async fn mean(metrics: &str, stage: &str) -> f64 {
    let text =
        reqwest::get(format!("http://{metrics}/metrics")).await.expect("served").text().await.expect("text");
    let value = |suffix: &str| -> f64 {
        let name = format!("hashinsight_stage_latency_seconds_{suffix}{{stage=\"{stage}\"");
        let values = text.lines().filter(|line| line.starts_with(&name));
        values.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    };
    assert!(value("count") > 0.0, "{text}");
    value("sum") / value("count")
}

/// Publisher and members, each with a clock of its own, which steps under load.
async fn clocks_that_are_off_and_step(protocol: &str) {
    let publishing = on_kafka(&[("HASHINSIGHT__GROUP__PROTOCOL", protocol)]).await;
    let test = &publishing.test;
    // So far ahead that a record of now would look as if Kafka were about to delete it.
    let clocks = [SkewedClock::off_by("+9d"), SkewedClock::off_by("+5h"), SkewedClock::off_by("-7h")];
    let metrics = format!("127.0.0.1:{}", free_port());
    let variables = [&clocks[0].variables()[..], &[("HASHINSIGHT__METRICS__BIND", &metrics)]].concat();
    let doctor = run(&environment(test, &variables[..4]), &["doctor", "--json"]).await;
    let report: Value = serde_json::from_str(&doctor.stdout).expect("json");
    let checks = report["checks"].as_array().expect("checks");
    let clock = checks.iter().find(|check| check["name"] == "clock").expect("looked at");
    assert_eq!(clock["status"], "failed", "the clock is off, or this test shows nothing: {clock}");

    let publisher = Process::start(&environment(test, &variables), &["publish"], LEADS).await;
    let mut members = Vec::new();
    for clock in &clocks[1..] {
        members.push(Member::start_with(test, &clock.variables()).await);
    }
    let both = test.shared(&[3, 3]).await;
    let writer = test.keep_writing();
    for (round, steps) in
        [["-30h", "-7h", "+5h"], ["+9d", "+3d", "-3d"], ["-9d", "-5h", "+7h"]].iter().enumerate()
    {
        publishing.holds(&format!("count(*) > {} from event_inbox", 60 * (round + 1))).await;
        clocks.iter().zip(steps).for_each(|(clock, step)| clock.step(step));
    }
    publishing.holds("count(*) > 300 from event_inbox").await;
    drop(writer);
    test.everything_is_applied_once().await;
    assert_eq!(test.shared(&[3, 3]).await, both, "nobody is evicted who lives");
    assert_eq!(test.scalar::<i64>("select coalesce(sum(incarnation), 0)::bigint from group_slot").await, 0);

    // A failing event waits as long as it should, by the database's clock.
    test.execute(
        "create sequence failures; create function fail() returns trigger language plpgsql security definer as \
         'begin if nextval(''public.failures'') <= 2 then raise division_by_zero; end if; return new; end'; \
         create trigger fail before insert or update on portfolio for each row execute function fail()",
    )
    .await;
    test.write_events(1).await;
    test.everything_is_applied_once().await;
    assert!(
        test.scalar::<i64>("select last_value from failures").await >= 3,
        "it failed, and was tried again"
    );
    let retries = members[0].metric("hashinsight_retries_total").await
        + members[1].metric("hashinsight_retries_total").await;
    assert!(retries >= 2.0, "{retries}");

    for member in &members {
        let mean = mean(member.metrics(), "write_to_visible").await;
        assert!((0.0..BUSY).contains(&mean), "{mean} s from the write to the portfolio");
        assert_eq!(member.metric("hashinsight_events_duplicate_total").await, 0.0);
        assert_eq!(member.metric("hashinsight_fenced_commits_total").await, 0.0);
    }
    let mean = mean(&metrics, "write_to_log").await;
    assert!((0.0..BUSY).contains(&mean), "{mean} s from the write to the log");
    records_have_the_times_of_their_events(publishing).await;
    publisher.signal("TERM").await;
    let (status, said) = publisher.ended().await;
    assert_eq!(status.code(), Some(0), "{said}");
    for member in members {
        let said = member.stop().await;
        assert!(!said.contains("evicted"), "{said}");
    }
}

/// Not those of the publisher's clock: Kafka refuses times that lie ahead, and deletes by them.
async fn records_have_the_times_of_their_events(mut publishing: Publishing) {
    publishing.everything_is_published().await;
    let rows: Vec<(Uuid, chrono::NaiveDateTime)> = sqlx::query_as("select id, occurred_at from event_outbox")
        .fetch_all(&publishing.test.admin)
        .await
        .expect("rows");
    let written: HashMap<Uuid, DateTime<Utc>> = rows.into_iter().map(|(id, at)| (id, at.and_utc())).collect();
    for topic in ["miner", "ops"].map(|aggregate| publishing.topic(aggregate)) {
        for record in publishing.read_of(&topic) {
            let apart = record.timestamp - written[&id_of(record)];
            assert!(apart.abs() < TimeDelta::seconds(1), "{apart} in {topic}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_kafkas_groups_and_the_publisher_do_not_mind_their_clocks() {
    clocks_that_are_off_and_step("kafka").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_with_leases_and_the_publisher_do_not_mind_their_clocks() {
    clocks_that_are_off_and_step("lease").await;
}

/// What the API dates, and the inbox is partitioned by, is PostgreSQL's time.
#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_host_months_off_are_of_today() {
    let api = format!("127.0.0.1:{}", free_port());
    let publishing = on_kafka(&[("HASHINSIGHT__SERVER__BIND", &api)]).await;
    let test = &publishing.test;
    let _publisher = publishing.publisher("poll", LEADS).await;
    let _consumer = Process::start(&test.environment, &GROUP, WORKS).await;
    let partitions = "select string_agg(relname, ' ' order by relname) from pg_class \
                      where relname like 'event\\_%box\\_p%' and relkind = 'r'";
    let before: String = test.scalar(partitions).await;
    let clock = SkewedClock::off_by("+60d");
    let server = Process::start(&environment(test, &clock.variables()), &["serve"], "the API listens").await;
    let client = reqwest::Client::new();
    let bearer = long_lived(test);
    let post = async |path: &str, body: Value| {
        let url = format!("http://{api}/api/{path}");
        let answer = client.post(url).bearer_auth(&bearer).json(&body).send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::CREATED);
        answer.json::<Value>().await.expect("json")
    };
    // Whether a token has expired is for the server's own clock to say.
    let refused = client.get(format!("http://{api}/api/miners"));
    let hour = token(&test.config, "acme", "owner-1", &["miners:read"], None);
    assert_eq!(refused.bearer_auth(hour).send().await.expect("an answer").status(), StatusCode::UNAUTHORIZED);

    for (step, quantity) in [("+60d", 1), ("-60d", 2), ("+1d", 3)] {
        clock.step(step);
        let network =
            json!({"btc_price_usd": 90_000 + quantity, "difficulty": 150e12, "block_height": 925_000});
        post("network/snapshots", network).await;
        let added = post("miners", json!({"model": "S21", "status": "online", "quantity": quantity})).await;
        let id: Uuid = added["event_id"].as_str().and_then(|id| id.parse().ok()).expect("an id");
        let (seconds, _) = id.get_timestamp().expect("version 7").to_unix();
        let apart = Utc::now().timestamp() - i64::try_from(seconds).expect("a time");
        assert!(apart.abs() < 120, "{step}: an id {apart} s old");

        let url = format!("http://{api}/api/portfolio?after={id}&wait=10");
        let seen = client.get(url).bearer_auth(&bearer).send().await.expect("an answer");
        assert_eq!(seen.status(), StatusCode::OK, "{step}");
        let seen: Value = seen.json().await.expect("json");
        let all = (1..=quantity).sum::<i64>();
        assert_eq!(seen["data"]["miners_total"], all, "{step}: what is called visible is there: {seen}");

        let miner = &added["miner_id"];
        post("miners/telemetry", json!({"points": [{"miner_id": miner, "hashrate_ths": 200}]})).await;
        let id = miner.as_str().expect("an id");
        let url = format!("http://{api}/api/miners/{id}/telemetry?resolution=raw");
        let points = client.get(url).bearer_auth(&bearer).send().await.expect("an answer");
        let points: Value = points.json().await.expect("json");
        assert_eq!(points["data"].as_array().map(Vec::len), Some(1), "{step}: of the last day: {points}");
    }
    let place = "select string_agg(distinct tableoid::regclass::text, ' ') from event_inbox";
    let day = Utc::now().format("event_inbox_p%Y%m%d").to_string();
    assert_eq!(test.scalar::<String>(place).await, day, "or the day has just ended");
    let newest: bool = test
        .scalar("select max(observed_at) - now() between interval '-2 minutes' and interval '1 second' from network_snapshots")
        .await;
    assert!(newest, "no observation lies ahead of all to come");
    assert_eq!(
        test.scalar::<String>(partitions).await,
        before,
        "days are made and dropped by PostgreSQL's clock"
    );
    server.signal("TERM").await;
    assert_eq!(server.ended().await.0.code(), Some(0));
}

/// A token that is valid for as far as the clock goes astray.
fn long_lived(test: &TestDb) -> String {
    let (tenant, user) = ("acme".parse().expect("a tenant"), "owner-1".parse().expect("a user"));
    let grant = Grant { tenant_id: &tenant, user_id: &user, scopes: &[], role: Some("admin") };
    sign(&test.config.auth, &grant, Duration::from_secs(90 * 86_400)).expect("signed")
}
