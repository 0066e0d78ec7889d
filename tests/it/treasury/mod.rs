//! The treasury: its rules over HTTP, what prices and time do to trades, and the read models.

mod backtest;
mod export;
mod fills;
mod flow;
mod limits;
mod orders;
mod overview;
mod second_person;
mod signals;
mod slices;

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use hashinsight::domain::treasury::execution::{Advanced, advance};
use hashinsight::event::Event;
use hashinsight::read_model::treasury::GROUP;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::pipeline;
use crate::support::{Answer, TestApi, TestDb, problem};

/// An account that needs no second person, and whose venue takes no fee.
async fn account(api: &TestApi) {
    let settings = json!({"approval_limit_usd": 1_000_000_000, "fee_share": 0});
    change(api, settings).await;
}

/// Changes settings as an admin.
async fn change(api: &TestApi, body: Value) -> Answer {
    api.ask(&api.admin_token(), Method::PUT, "/api/treasury/settings", Some(body)).await.expect(200)
}

/// Adds a lot and returns its id. Lots come in the order in which they were acquired.
async fn lot(api: &TestApi, amount: &str, cost: i64) -> String {
    let body = json!({"amount": amount, "cost_usd": cost});
    let added = api.post("/api/treasury/lots", body).await.expect(201);
    added.body["lot_id"].as_str().expect("an id").to_owned()
}

/// A price of this moment.
async fn price(api: &TestApi, usd: impl Into<Value>) -> Answer {
    let body = json!({"btc_price_usd": usd.into(), "difficulty": 150e12, "block_height": 925_000});
    api.post("/api/network/snapshots", body).await.expect(201)
}

/// When the venue took the first trade; now, if it has taken none.
const START: &str = "select coalesce(min(started_at), now()) from treasury_trade";

/// A price of so many minutes after [`START`], known from then on.
async fn price_in(db: &TestDb, api: &TestApi, minutes: i64, usd: i64) {
    let at = db.scalar::<DateTime<Utc>>(START).await + TimeDelta::minutes(minutes);
    sqlx::query(
        "insert into network_snapshots (tenant_id, id, btc_price_usd, difficulty, block_height, observed_at, created_at) \
         values ($1, gen_random_uuid(), $2::bigint, 150e12, 925000, $3, $3)",
    )
    .bind(&api.tenant)
    .bind(usd)
    .bind(at)
    .execute(&db.admin)
    .await
    .expect("a snapshot");
}

/// A trade that can be submitted, with some fields of the test's own.
fn order(fields: Value) -> Value {
    let mut body =
        json!({"trade_type": "sell", "asset": "BTC", "amount": "1", "execution_strategy": "market"});
    for (name, value) in fields.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

async fn submit(api: &TestApi, fields: Value) -> Answer {
    api.post("/api/treasury/execute", order(fields)).await
}

/// Submits a trade and returns its id.
async fn submitted(api: &TestApi, fields: Value) -> String {
    let answer = submit(api, fields).await.expect(202);
    answer.body["trade_id"].as_str().expect("an id").to_owned()
}

async fn trade(api: &TestApi, id: &str) -> Value {
    api.get(&format!("/api/treasury/trades/{id}")).await.expect(200).body["data"].clone()
}

/// What time does to the trades, so many minutes after [`START`].
async fn advance_to(db: &TestDb, api: &TestApi, minutes: i64) -> Advanced {
    let now = db.scalar::<DateTime<Utc>>(START).await + TimeDelta::minutes(minutes);
    let mut tx = db.db.tenant(&api.tenant.parse().expect("a tenant")).await.expect("begin");
    let done = advance(&mut tx, now).await.expect("advanced");
    tx.commit().await.expect("commit");
    done
}

/// The group, which reads the outbox as its topics.
#[derive(Default)]
struct Group {
    position: i64,
}

impl Group {
    /// Applies what is new until nothing is; returns the kinds, in order. What the group itself emits comes back to it.
    async fn run(&mut self, db: &TestDb) -> Vec<String> {
        let mut kinds = Vec::new();
        for _ in 0..10 {
            let events = self.next(db).await;
            if events.is_empty() {
                return kinds;
            }
            kinds.extend(events.iter().map(|event| event.kind.clone()));
            apply(db, &events).await;
        }
        panic!("the group goes on hearing from itself: {kinds:?}");
    }

    async fn next(&mut self, db: &TestDb) -> Vec<Event> {
        let (events, position) = pipeline::events_behind(db, self.position).await;
        self.position = position;
        events
    }
}

/// Applies events as one batch of the group.
async fn apply(db: &TestDb, events: &[Event]) {
    pipeline::apply(db, GROUP, events).await;
}

/// The data of all events of a kind, in order.
async fn told(db: &TestDb, kind: &str) -> Vec<Value> {
    sqlx::query_scalar("select payload -> 'data' from event_outbox where event_type = $1 order by position")
        .bind(kind)
        .fetch_all(&db.admin)
        .await
        .expect(kind)
}

/// How many events there are of each kind of the treasury.
async fn counts(db: &TestDb) -> BTreeMap<String, i64> {
    let rows: Vec<(String, i64)> = sqlx::query_as(
        "select event_type, count(*) from event_outbox where event_type like 'treasury.%' group by 1 order by 1",
    )
    .fetch_all(&db.admin)
    .await
    .expect("counts");
    rows.into_iter().collect()
}

/// Satoshi left in lots, sold, bought by trades, and added as lots: the first two are the last two.
async fn conserved(db: &TestDb) -> (i64, i64) {
    let (left, sold, in_lots, bought): (i64, i64, i64, i64) = sqlx::query_as(
        "select (select coalesce(sum(left_sat), 0)::bigint from treasury_lot), \
         (select coalesce(sum(sat), 0)::bigint from treasury_fill where trade_type = 'sell'), \
         (select coalesce(sum(sat), 0)::bigint from treasury_lot), \
         (select coalesce(sum(sat), 0)::bigint from treasury_fill where trade_type = 'buy')",
    )
    .fetch_one(&db.admin)
    .await
    .expect("sums");
    assert_eq!(left + sold, in_lots, "satoshi left and sold are those that came in");
    let consumed: i64 = db
        .scalar("select coalesce(sum((part ->> 'sat')::bigint), 0)::bigint from treasury_fill, jsonb_array_elements(lots) part")
        .await;
    assert_eq!(consumed, sold, "every satoshi sold was of a lot");
    let made: i64 =
        db.scalar("select coalesce(sum(sat), 0)::bigint from treasury_lot where source = 'trade'").await;
    assert_eq!(made, bought);
    let filled: bool = db
        .scalar(
            "select not exists (select from treasury_trade t where filled_sat <> (select coalesce(sum(sat), 0) \
             from treasury_fill f where f.trade_id = t.id))",
        )
        .await;
    assert!(filled, "a trade's sum is that of its fills");
    (left, sold)
}
