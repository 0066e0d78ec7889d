//! Who decides a trade: a second person, by the table of moves.

use hashinsight::domain::machine::{Rule as _, State};
use hashinsight::domain::treasury::TradeState;
use hashinsight::domain::treasury::trade::{MACHINE, Rule};
use reqwest::Method;
use serde_json::json;

use super::{Group, account, change, lot, order, price, problem, submitted, told, trade};
use crate::support::{Answer, SCOPES, TestApi, TestDb, unique, written};

/// Decides a trade as another user with the scope.
async fn decide(api: &TestApi, id: &str, what: &str) -> Answer {
    let token = api.token_of("second", &["treasury:approve"]);
    let path = format!("/api/treasury/trades/{id}/{what}");
    api.ask(&token, Method::POST, &path, Some(json!({"reason": "as agreed"}))).await
}

#[tokio::test]
async fn whoever_submitted_a_trade_neither_approves_nor_cancels_it() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    lot(&api, "1", 1).await;
    let id = submitted(&api, json!({})).await;
    let before = written(&db).await;
    let own = [api.token_of(&api.user, &["treasury:approve"]), api.admin_token()];
    for what in ["approve", "cancel"] {
        let path = format!("/api/treasury/trades/{id}/{what}");
        for token in &own {
            let refused = api.ask(token, Method::POST, &path, Some(json!({}))).await;
            problem(&refused, 409, "second-person");
        }
        let scoped = api.token_of("second", &["treasury:trade", "treasury:read"]);
        api.ask(&scoped, Method::POST, &path, Some(json!({}))).await.expect(403);
        api.ask(&api.foreign_token(), Method::POST, &path, Some(json!({}))).await.expect(404);
    }
    assert_eq!(written(&db).await, before);
    // Nor in the database.
    let around = sqlx::query("update treasury_trade set decided_by = submitted_by").execute(&db.admin).await;
    assert!(around.expect_err("refused").to_string().contains("second_person"));

    let approved = decide(&api, &id, "approve").await.expect(200);
    assert_eq!((&approved.body["status"], &approved.body["trade_id"]), (&json!("approved"), &json!(id)));
    let shown = trade(&api, &id).await;
    assert_eq!((&shown["decided_by"], &shown["state_reason"]), (&json!("second"), &json!("as agreed")));
    let told = told(&db, "treasury.trade_approved").await.pop().expect("an event");
    assert_eq!((&told["from"], &told["decided_by"]), (&json!("submitted"), &json!("second")));
    let actor: String =
        db.scalar("select actor from audit_log where action = 'treasury.trade_approved'").await;
    assert_eq!(actor, "second");
}

/// Lifting the limit first would do without the second person.
#[tokio::test]
async fn the_approval_limit_is_for_admins_to_set() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let token = api.token_of(&api.user, &["treasury:trade", "treasury:approve"]);
    let body = Some(json!({"approval_limit_usd": 1_000_000}));
    api.ask(&token, Method::PUT, "/api/treasury/settings", body).await.expect(403);
    api.ask(&token, Method::PUT, "/api/treasury/settings", Some(json!({"cash_usd": 5}))).await.expect(200);
    change(&api, json!({"approval_limit_usd": 1_000_000})).await;
}

#[tokio::test]
async fn above_the_limit_a_trade_waits_and_below_it_goes_on_by_itself() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let mut group = Group::default();
    lot(&api, "3", 1).await;
    change(&api, json!({"approval_limit_usd": 90_000})).await;
    price(&api, 90_000).await;
    let (small, large) =
        (submitted(&api, json!({"amount": 1})).await, submitted(&api, json!({"amount": 2})).await);
    group.run(&db).await;
    assert_eq!(trade(&api, &small).await["state"], "executed");
    assert_eq!(trade(&api, &large).await["state"], "submitted");
    price(&api, 80_000).await;
    group.run(&db).await;
    assert_eq!(
        trade(&api, &large).await["state"],
        "submitted",
        "worth less by now it needs approval all the same"
    );
    decide(&api, &large, "approve").await.expect(200);
    group.run(&db).await;
    assert_eq!(trade(&api, &large).await["state"], "executed");
}

/// What it was worth when it was submitted says little once the price has jumped.
#[tokio::test]
async fn a_trade_that_is_worth_more_by_its_first_step_waits_for_the_second_person() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let mut group = Group::default();
    lot(&api, "3", 1).await;
    change(&api, json!({"approval_limit_usd": 90_000})).await;
    price(&api, 80_000).await;
    let (jumped, small) =
        (submitted(&api, json!({"amount": 1})).await, submitted(&api, json!({"amount": "0.5"})).await);
    assert_eq!(trade(&api, &jumped).await["needs_approval"], false);
    price(&api, 100_000).await;
    group.run(&db).await;
    let waits = trade(&api, &jumped).await;
    assert_eq!((&waits["state"], &waits["needs_approval"]), (&json!("submitted"), &json!(true)));
    assert_eq!((&waits["value_usd"], &waits["waiting"]), (&json!(100_000), &json!(null)));
    assert_eq!(trade(&api, &small).await["state"], "executed", "half of it goes by itself");
    let events = told(&db, "treasury.trade_approval_needed").await;
    assert_eq!((events.len(), &events[0]["trade_id"]), (1, &json!(jumped)), "told once");
    assert_eq!(
        (&events[0]["value_usd"], &events[0]["approval_limit_usd"]),
        (&json!(100_000), &json!(90_000))
    );
    // Worth less again it waits all the same, and is told no more.
    price(&api, 80_000).await;
    group.run(&db).await;
    assert_eq!(trade(&api, &jumped).await["state"], "submitted");
    assert_eq!(told(&db, "treasury.trade_approval_needed").await.len(), 1);
    decide(&api, &jumped, "approve").await.expect(200);
    price(&api, 200_000).await;
    group.run(&db).await;
    assert_eq!(trade(&api, &jumped).await["state"], "executed", "approved is approved");
}

/// Whoever decides finds what waits without knowing whose it is.
#[tokio::test]
async fn every_users_trades_are_listed_for_who_decides() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let mut ids = Vec::new();
    for user in ["ann", "bob"] {
        let token = api.token_of(user, SCOPES);
        let body = Some(json!({"amount": 1, "cost_usd": 1}));
        api.ask(&token, Method::POST, "/api/treasury/lots", body).await.expect(201);
        let done = api.ask(&token, Method::POST, "/api/treasury/execute", Some(order(json!({})))).await;
        ids.push(done.expect(202).body["trade_id"].clone());
    }
    let decider = api.token_of("second", &["treasury:read", "treasury:approve"]);
    let all = "/api/treasury/trades?user_id=*&state=submitted";
    let list = api.ask(&decider, Method::GET, all, None).await.expect(200).body;
    let listed: Vec<_> =
        list["data"].as_array().expect("rows").iter().map(|row| row["trade_id"].clone()).collect();
    assert_eq!(listed, ids);
    let page = api.ask(&decider, Method::GET, &format!("{all}&limit=1"), None).await.expect(200).body;
    let next = format!("{all}&limit=1&cursor={}", page["next"].as_str().expect("a next page"));
    let rest = api.ask(&decider, Method::GET, &next, None).await.expect(200).body;
    assert_eq!((&page["data"][0]["user_id"], &rest["data"][0]["user_id"]), (&json!("ann"), &json!("bob")));
    for token in [api.token(), api.token_of("second", &["treasury:read"])] {
        api.ask(&token, Method::GET, all, None).await.expect(403);
    }
    let foreign = api.ask(&api.foreign_token(), Method::GET, all, None).await.expect(200).body;
    assert_eq!(foreign["data"], json!([]), "of the tenant");
    let csv = api.client.get(api.url(&format!("{all}&format=csv&limit=1"))).bearer_auth(&decider);
    let csv = csv.send().await.expect("an answer");
    let link = csv.headers()["link"].to_str().expect("text").to_owned();
    assert!(link.contains("user_id=*") || link.contains("user_id=%2A"), "{link}");
    assert_eq!(csv.text().await.expect("text").lines().count(), 2);
}

/// Every state to what can be asked for, over HTTP and in the database.
#[tokio::test]
async fn every_state_and_every_decision() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    account(&api).await;
    lot(&api, "100", 1).await;
    for from in TradeState::ALL.iter().copied() {
        for (what, to) in [("approve", TradeState::Approved), ("cancel", TradeState::Cancelled)] {
            let id = submitted(&api, json!({})).await;
            let (state, filled) = match from {
                TradeState::PartiallyFilled => (from.as_str(), "1"),
                TradeState::Executed => (from.as_str(), "sat"),
                _ => (from.as_str(), "0"),
            };
            let started =
                if matches!(from, TradeState::Submitted | TradeState::Approved) { "null" } else { "now()" };
            let dress = format!(
                "update treasury_trade set state = '{state}', filled_sat = {filled}, started_at = {started}, \
                 decided_by = case when '{state}' = 'approved' then 'third' end where id = '{id}'"
            );
            db.execute(&dress).await;
            let before = written(&db).await;
            let answer = decide(&api, &id, what).await;
            match MACHINE.check(from, to, Rule::can_be_asked) {
                Ok(_) => {
                    answer.expect(200);
                    assert_eq!(trade(&api, &id).await["state"], to.as_str(), "{state}");
                    let after = written(&db).await;
                    assert_eq!((after.1 - before.1, after.2 - before.2), (1, 1));
                }
                Err(refused) => {
                    problem(&answer, 409, "invalid-transition");
                    assert_eq!(answer.body["allowed"], json!(refused.allowed), "{state} to {what}");
                    assert_eq!(trade(&api, &id).await["state"], state);
                    assert_eq!(written(&db).await, before);
                }
            }
            // What stays open would hold bitcoin back from the next round.
            db.execute("update treasury_trade set state = 'cancelled', filled_sat = 0").await;
        }
    }
    decide(&api, &uuid::Uuid::now_v7().to_string(), "approve").await.expect(404);
}

#[tokio::test]
async fn what_is_cancelled_is_free_again() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    lot(&api, "1", 1).await;
    let id = submitted(&api, json!({"amount": 1})).await;
    decide(&api, &id, "cancel").await.expect(200);
    assert_eq!(told(&db, "treasury.trade_cancelled").await.len(), 1);
    submitted(&api, json!({"amount": 1})).await;
}

#[tokio::test]
async fn trades_are_shown_to_their_account_and_to_who_decides() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    lot(&api, "1", 1).await;
    let id = submitted(&api, json!({})).await;
    let (one, many) =
        (format!("/api/treasury/trades/{id}"), format!("/api/treasury/trades?user_id={}", api.user));
    let other = unique("u");
    let reader = api.token_of(&other, &["treasury:read"]);
    api.ask(&reader, Method::GET, &one, None).await.expect(404);
    api.ask(&reader, Method::GET, &many, None).await.expect(403);
    let decider = api.token_of(&other, &["treasury:read", "treasury:approve"]);
    api.ask(&decider, Method::GET, &one, None).await.expect(200);
    let list = api.ask(&decider, Method::GET, &many, None).await.expect(200);
    assert_eq!(list.body["data"][0]["trade_id"], id);
    let stranger = api.foreign_token();
    api.ask(&stranger, Method::GET, &one, None).await.expect(404);
    assert_eq!(api.ask(&stranger, Method::GET, &many, None).await.expect(200).body["data"], json!([]));
    for path in ["overview", "signals", "settings", "lots"] {
        let path = format!("/api/treasury/{path}?user_id={}", api.user);
        api.ask(&decider, Method::GET, &path, None).await.expect(403);
        api.ask(&api.token_with(&["treasury:trade"]), Method::GET, &path, None).await.expect(403);
        api.ask(&api.admin_token(), Method::GET, &path, None).await.expect(200);
    }
    let strange = api.ask(&stranger, Method::GET, "/api/treasury/lots", None).await.expect(200);
    assert_eq!(strange.body["data"], json!([]));
    for path in ["execute", "lots", "settings"] {
        let (path, reader) = (format!("/api/treasury/{path}"), api.token_with(&["treasury:read"]));
        let method = if path.ends_with("settings") { Method::PUT } else { Method::POST };
        api.ask(&reader, method, &path, Some(json!({}))).await.expect(403);
    }
}
