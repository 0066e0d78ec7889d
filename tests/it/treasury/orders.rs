//! Submitting a trade: what is taken, what is refused, and that nothing is sold twice.

use serde_json::{Value, json};

use super::{account, change, lot, price, problem, submit, submitted, told, trade};
use crate::support::{TestApi, TestDb, written};

#[tokio::test]
async fn a_trade_is_submitted_with_its_event() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    lot(&api, "2", 100_000).await;
    price(&api, 90_000).await;
    let before = written(&db).await;
    let fields = json!({"amount": 1.5, "notes": "for the power bill", "exchange": "paper"});
    let answer = submit(&api, fields).await.expect(202);
    let id = answer.body["trade_id"].as_str().expect("an id").to_owned();
    let expected = json!({
        "success": true, "trade_id": id, "status": "submitted", "event_id": answer.event_id(),
        "message": "the trade was submitted; it waits for the approval of a second person",
        "needs_approval": true, "estimated_execution_time": "PT0S",
    });
    assert_eq!(answer.body, expected);
    assert_eq!(answer.header("location"), format!("/api/treasury/trades/{id}"));
    let after = written(&db).await;
    assert_eq!((after.0 - before.0, after.1 - before.1, after.2 - before.2), (1, 1, 1), "one transaction");

    let mut shown = trade(&api, &id).await;
    for (field, value) in [
        ("sat", json!(150_000_000)),
        ("state", json!("submitted")),
        ("value_usd", json!(135_000)),
        ("submitted_by", json!(api.user)),
        ("notes", json!("for the power bill")),
        ("filled_sat", json!(0)),
        ("exchange", json!("paper")),
    ] {
        assert_eq!(shown[field], value, "{field}");
    }
    let mut told = told(&db, "treasury.trade_submitted").await.pop().expect("an event");
    for finer_than_the_table in ["created_at", "updated_at"] {
        told[finer_than_the_table] = Value::Null;
        shown[finer_than_the_table] = Value::Null;
    }
    assert_eq!(told, shown);
    let key: String =
        db.scalar("select event_key from event_outbox where event_type = 'treasury.trade_submitted'").await;
    assert_eq!(key, format!("{}:{}", api.tenant, api.user));
}

#[tokio::test]
async fn fields_that_break_a_rule_are_named_and_leave_nothing() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let id = lot(&api, "10", 1).await;
    let before = written(&db).await;
    let refused = api.post("/api/treasury/execute", json!({})).await.expect(422);
    assert_eq!(refused.fields(), ["trade_type", "asset", "amount", "execution_strategy"]);
    for (fields, field) in [
        (json!({"trade_type": "give"}), "trade_type"),
        (json!({"asset": "ETH"}), "asset"),
        (json!({"amount": "0.123456789"}), "amount"),
        (json!({"amount": "0.0000000010000"}), "amount"),
        (json!({"amount": 0}), "amount"),
        (json!({"amount": -1}), "amount"),
        (json!({"amount": "21000000.1"}), "amount"),
        (json!({"amount": 1, "amount_btc": 2}), "amount"),
        (json!({"execution_strategy": "iceberg"}), "execution_strategy"),
        (json!({"execution_strategy": "limit"}), "target_price_usd"),
        (json!({"target_price": 0}), "target_price_usd"),
        (json!({"target_price": 1, "target_price_usd": 2}), "target_price_usd"),
        (json!({"exchange": "elsewhere"}), "exchange"),
        (json!({"notes": "x".repeat(2_001)}), "notes"),
        (json!({"strategy": "layered"}), "strategy"),
        (json!({"lot_ids": []}), "lot_ids"),
        (json!({"lot_ids": "x"}), "lot_ids"),
        (json!({"lot_ids": [uuid::Uuid::now_v7()]}), "lot_ids"),
        (json!({"trade_type": "buy", "lot_ids": [id]}), "lot_ids"),
        (json!({"trade_type": "hedge", "strategy": "layered"}), "strategy"),
    ] {
        let refused = submit(&api, fields.clone()).await.expect(422);
        assert_eq!(refused.fields(), [field], "{fields}");
    }
    assert_eq!(written(&db).await, before);
}

#[tokio::test]
async fn no_more_is_sold_than_is_owned_and_not_reserved() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    lot(&api, "1", 40_000).await;
    lot(&api, "2", 100_000).await;
    let refused = submit(&api, json!({"amount": "3.00000001"})).await;
    problem(&refused, 409, "more-than-owned");
    assert!(refused.body["detail"].as_str().expect("text").contains("300000000 sat are held"));

    submitted(&api, json!({"amount": "2.5"})).await;
    let before = written(&db).await;
    problem(&submit(&api, json!({"amount": "0.50000001"})).await, 409, "more-than-owned");
    assert_eq!(written(&db).await, before);
    submitted(&api, json!({"amount": "0.5"})).await;
    problem(&submit(&api, json!({"amount": "0.00000001"})).await, 409, "more-than-owned");
    // A purchase takes nothing, and a hedge moves none of the bitcoin that are promised; but it hedges no more than are held.
    submitted(&api, json!({"trade_type": "buy", "amount": 100})).await;
    submitted(&api, json!({"trade_type": "hedge", "amount": 2})).await;
    problem(&submit(&api, json!({"trade_type": "hedge", "amount": "1.1"})).await, 409, "more-than-owned");
}

#[tokio::test]
async fn named_lots_give_what_they_hold() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let (small, large) = (lot(&api, "1", 40_000).await, lot(&api, "2", 100_000).await);
    problem(&submit(&api, json!({"amount": "1.5", "lot_ids": [small]})).await, 409, "more-than-owned");
    submitted(&api, json!({"amount": "1.5", "lot_ids": [large]})).await;
}

/// What an open sale names is promised to it, and so is not to another that names it as well.
#[tokio::test]
async fn named_lots_are_reserved_by_the_open_trades_that_name_them() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let (one, two) = (lot(&api, "1", 40_000).await, lot(&api, "1", 60_000).await);
    let first = submitted(&api, json!({"amount": 1, "lot_ids": [one]})).await;
    let before = written(&db).await;
    let refused = submit(&api, json!({"amount": 1, "lot_ids": [one]})).await;
    problem(&refused, 409, "more-than-owned");
    assert!(refused.body["detail"].as_str().is_some_and(|text| text.contains("reserved by open trades")));
    assert_eq!(written(&db).await, before);
    submitted(&api, json!({"amount": "0.4", "lot_ids": [two]})).await;
    let rest = json!({"amount": "0.6", "lot_ids": [two]});
    db.execute(&format!("update treasury_trade set state = 'cancelled' where id = '{first}'")).await;
    submitted(&api, rest).await;
    submitted(&api, json!({"amount": 1, "lot_ids": [one]})).await;
}

/// Two sales at once of everything there is: one of them finds it reserved.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_sales_at_once_one_is_refused() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    for n in 1..=5 {
        lot(&api, "1", 1).await;
        let sell = || submit(&api, json!({"amount": 1}));
        let (one, two) = tokio::join!(sell(), sell());
        let (done, refused) = if one.status == 202 { (one, two) } else { (two, one) };
        done.expect(202);
        problem(&refused, 409, "more-than-owned");
        let trades: i64 = db.scalar("select count(*) from treasury_trade").await;
        assert_eq!(trades, n);
    }
}

#[tokio::test]
async fn approval_is_needed_above_the_limit_and_where_the_worth_is_unknown() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    lot(&api, "10", 1).await;
    change(&api, json!({"approval_limit_usd": 90_000})).await;
    let needs = async |fields: Value| submit(&api, fields).await.expect(202).body["needs_approval"].clone();
    assert_eq!(needs(json!({"amount": "0.1"})).await, true, "no price is known");
    price(&api, 90_000).await;
    assert_eq!(needs(json!({"amount": 1})).await, false, "at the limit");
    assert_eq!(needs(json!({"amount": "1.00000001"})).await, true);
    let limit = json!({"amount": 1, "execution_strategy": "limit", "target_price": 90_001});
    assert_eq!(needs(limit).await, true, "what it may be worth counts");
    db.execute("update network_snapshots set observed_at = now() - interval '31 minutes'").await;
    assert_eq!(needs(json!({"amount": "0.1"})).await, true, "the price is too old");
    let limit = json!({"amount": 1, "execution_strategy": "limit", "target_price": 1});
    assert_eq!(needs(limit).await, true, "a low limit alone tells no worth");
}

#[tokio::test]
async fn lots_and_settings_have_rules() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    assert_eq!(api.get("/api/treasury/settings").await.expect(200).body["data"], Value::Null);
    account(&api).await;
    let before = written(&db).await;
    for (body, field) in [
        (json!({"cost_usd": 1}), "amount"),
        (json!({"amount": 1}), "cost_usd"),
        (json!({"amount": 1, "cost_usd": -1}), "cost_usd"),
        (json!({"amount": 1, "cost_usd": "0.000000001"}), "cost_usd"),
        (json!({"amount": 1, "cost_usd": 1, "source": "trade"}), "source"),
        (json!({"amount": 1, "cost_usd": 1, "source": "found"}), "source"),
        (json!({"amount": 1, "cost_usd": 1, "acquired_at": "2999-01-01T00:00:00Z"}), "acquired_at"),
    ] {
        let refused = api.post("/api/treasury/lots", body.clone()).await.expect(422);
        assert_eq!(refused.fields(), [field], "{body}");
    }
    let admin = api.admin_token();
    for (body, field) in [
        (json!({"cash_usd": "x"}), "cash_usd"),
        (json!({"cash_usd": null}), "cash_usd"),
        (json!({"opex_usd_month": -1}), "opex_usd_month"),
        (json!({"opex_usd_month": 30, "opex_usd_day": 2}), "opex_usd_month"),
        (json!({"opex_usd_day": 1_000_000_000_000_i64}), "opex_usd_day"),
        (json!({"approval_limit_usd": -1}), "approval_limit_usd"),
        (json!({"lot_method": "specific_id"}), "lot_method"),
        (json!({"fee_share": 1}), "fee_share"),
        (json!({"max_share_day": 1.1}), "max_share_day"),
        (json!({"min_reserve_sat": 0.5}), "min_reserve_sat"),
        (json!({"strategies": ["sell_all"]}), "strategies"),
        (json!({"strategies": ["hodl", "hodl"]}), "strategies"),
        (json!({"strategies": [{"opex_coverage": {"days": 0}}]}), "strategies"),
        (json!({"strategies": [{"opex_coverage": {"dais": 5}}]}), "strategies"),
        (
            json!({"strategies": [{"stop_loss": {"cost_multiple": "70000000000000000000000000000"}}]}),
            "strategies",
        ),
    ] {
        let refused =
            api.ask(&admin, reqwest::Method::PUT, "/api/treasury/settings", Some(body.clone())).await;
        assert_eq!(refused.expect(422).fields(), [field], "{body}");
    }
    assert_eq!(written(&db).await, before);
    let days = Some(json!({"strategies": [{"opex_coverage": {"days": 0}}]}));
    let refused = api.ask(&admin, reqwest::Method::PUT, "/api/treasury/settings", days).await.expect(422);
    assert_eq!(refused.body["errors"][0]["message"], "opex_coverage.days must be at least 1");

    let body = json!({"cash_usd": "600000.5", "opex_usd_day": 100, "lot_method": "hifo",
        "strategies": ["hodl", {"opex_coverage": {"days": 45}}]});
    change(&api, body).await;
    let settings = api.get("/api/treasury/settings").await.expect(200).body["data"].clone();
    assert_eq!((&settings["cash_usd"], &settings["cash_now_usd"]), (&json!(600_000.5), &json!(600_000.5)));
    assert_eq!((&settings["opex_usd_month"], &settings["lot_method"]), (&json!(3_000), &json!("hifo")));
    assert_eq!(settings["strategies"][1]["opex_coverage"]["days"], 45);
    let changes = told(&db, "treasury.settings_changed").await.pop().expect("an event")["changes"].clone();
    assert_eq!(changes["opex_usd_month"], json!({"old": 0, "new": 3_000}));
    assert!(changes.get("fee_share").is_none(), "{changes}");
    let unchanged = change(&api, json!({"lot_method": "hifo"})).await;
    assert_eq!(unchanged.body["event_id"], Value::Null);
}
