//! Every state to every state, over HTTP and in the database: the tables of moves are what happens.

use hashinsight::domain::crm::machine::{Machine, Rule, State};
use hashinsight::domain::crm::{asset, contract, deal, invoice, lead, ticket};
use hashinsight::domain::machine::Rule as _;
use serde_json::json;

use super::{account, deal as new_deal, go, made, problem, shown};
use crate::support::{TestApi, TestDb, written};

/// Tries each pair on an entity of its own, which `make` makes and `dress` puts into the state.
async fn walk<S: State>(
    (db, api): (&TestDb, &TestApi),
    path: &str,
    machine: &Machine<S>,
    make: impl AsyncFn() -> String,
    dress: impl Fn(&str) -> String,
) {
    let table = format!("crm_{}", machine.entity);
    for from in S::ALL.iter().copied() {
        for to in S::ALL.iter().copied() {
            let (from_name, to_name) = (from.as_str(), to.as_str());
            let id = make().await;
            let dressed =
                format!("update {table} set state = '{from_name}'{} where id = '{id}'", dress(from_name));
            db.execute(&dressed).await;
            let before = written(db).await;
            let answer = go(api, path, &id, json!({"to": to_name, "reason": "because"})).await;
            match machine.check(from, to, Rule::can_be_asked) {
                Ok(_) => {
                    assert_eq!(answer.status, 200, "{table}: {from_name} to {to_name}: {:#}", answer.body);
                    assert_eq!(shown(api, path, &id).await["state"], to_name);
                    assert_eq!(answer.event_id().len(), 36);
                    let (_, events, audit) = written(db).await;
                    let told = answer.body["events"].as_array().map_or(0, Vec::len) as i64;
                    assert_eq!((events - before.1, audit - before.2), (told, told), "an audit row an event");
                }
                Err(refused) => {
                    problem(&answer, 409, "invalid-transition");
                    assert_eq!(answer.body["from"], from_name);
                    assert_eq!(answer.body["to"], to_name);
                    assert_eq!(answer.body["allowed"], json!(refused.allowed));
                    assert_eq!(answer.body["detail"], refused.to_string());
                    assert_eq!(shown(api, path, &id).await["state"], from_name);
                    assert_eq!(written(db).await, before, "a refusal left something");
                }
            }
        }
    }
}

#[tokio::test]
async fn leads_and_deals() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let account = account(&api).await;
    let won = new_deal(&api, &account, "PROPOSAL", json!(1)).await;
    let lead = async || made(&api, "leads", json!({"name": "Ada"})).await;
    walk((&db, &api), "leads", &lead::MACHINE, lead, |state| match state {
        "CONVERTED" => format!(", account_id = '{account}', deal_id = '{won}'"),
        _ => String::new(),
    })
    .await;
    let deal = async || new_deal(&api, &account, "PROSPECTING", json!(100)).await;
    walk((&db, &api), "deals", &deal::MACHINE, deal, |state| match state {
        "CLOSED_LOST" => ", state_reason = 'price'".to_owned(),
        _ => String::new(),
    })
    .await;
}

#[tokio::test]
async fn contracts_and_invoices() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let account = account(&api).await;
    let contract = async || {
        let deal = new_deal(&api, &account, "NEGOTIATION", json!(100)).await;
        made(&api, "contracts", json!({"deal_id": deal})).await
    };
    walk((&db, &api), "contracts", &contract::MACHINE, contract, |_| String::new()).await;
    let invoice = async || made(&api, "invoices", json!({"account_id": account, "total_usd": 10})).await;
    walk((&db, &api), "invoices", &invoice::MACHINE, invoice, |state| match state {
        "PAID" => ", paid_usd = total_usd".to_owned(),
        "PARTIAL" => ", paid_usd = 1".to_owned(),
        _ => String::new(),
    })
    .await;
}

#[tokio::test]
async fn tickets_and_assets() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let account = account(&api).await;
    let ticket = async || made(&api, "tickets", json!({"account_id": account, "subject": "Fan"})).await;
    walk((&db, &api), "tickets", &ticket::MACHINE, ticket, |state| match state {
        "resolved" | "closed" => ", resolved_at = now()".to_owned(),
        _ => String::new(),
    })
    .await;
    let miner = std::cell::RefCell::new(String::new());
    let asset = async || {
        miner.replace(api.add_miner(json!({"model": "S21"})).await);
        made(&api, "assets", json!({"account_id": account, "model": "S21"})).await
    };
    walk((&db, &api), "assets", &asset::MACHINE, asset, |state| match state {
        "DEPLOYED" | "MINING" | "MAINTENANCE" => format!(", miner_id = '{}'", miner.borrow()),
        _ => String::new(),
    })
    .await;
}

/// A state that no entity has is no move but a mistake.
#[tokio::test]
async fn a_state_that_does_not_exist_is_a_field_error() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let lead = made(&api, "leads", json!({"name": "Ada"})).await;
    let before = written(&db).await;
    for body in
        [json!({}), json!({"to": null}), json!({"to": "contacted"}), json!({"to": "WON"}), json!({"to": 5})]
    {
        let refused = go(&api, "leads", &lead, body.clone()).await.expect(422);
        assert_eq!(refused.fields(), ["to"], "{body}");
    }
    let refused =
        go(&api, "leads", &lead, json!({"to": "LOST", "reason": "x".repeat(501)})).await.expect(422);
    assert_eq!(refused.fields(), ["reason"]);
    go(&api, "leads", &uuid::Uuid::now_v7().to_string(), json!({"to": "LOST"})).await.expect(404);
    assert_eq!(written(&db).await, before);
}
