//! Fills: exact lots, exact gains, once, at a price that counts.

use serde_json::{Value, json};

use super::{
    Group, account, advance_to, apply, change, conserved, counts, lot, price, submit, submitted, told, trade,
};
use crate::support::{TestApi, TestDb};

/// The lots of the specification: 1 BTC at 40k, 1 at 60k, 0.5 at 80k.
async fn three_lots(api: &TestApi) -> [String; 3] {
    [lot(api, "1", 40_000).await, lot(api, "1", 60_000).await, lot(api, "0.5", 40_000).await]
}

/// T: sell 1.5 at 90k without a fee: basis and gain by each method.
#[tokio::test]
async fn a_sale_takes_exact_lots_by_the_method_of_the_account() {
    for (method, basis, gain, consumed) in [
        ("fifo", 70_000, 65_000, [100_000_000, 50_000_000, 0]),
        ("lifo", 100_000, 35_000, [0, 100_000_000, 50_000_000]),
        ("hifo", 100_000, 35_000, [0, 100_000_000, 50_000_000]),
        ("average", 84_000, 51_000, [100_000_000, 50_000_000, 0]),
    ] {
        let db = TestDb::new().await;
        let api = TestApi::start(&db).await;
        account(&api).await;
        change(&api, json!({"lot_method": method})).await;
        let lots = three_lots(&api).await;
        price(&api, 90_000).await;
        let id = submitted(&api, json!({"amount": "1.5"})).await;
        Group::default().run(&db).await;
        let done = trade(&api, &id).await;
        assert_eq!(
            (&done["state"], &done["realised_gain_usd"]),
            (&json!("executed"), &json!(gain)),
            "{method}"
        );
        assert_eq!((&done["proceeds_usd"], &done["fills"]), (&json!(135_000), &json!(1)));
        let told = told(&db, "treasury.trade_executed").await;
        assert_eq!(told.len(), 1);
        assert_eq!((&told[0]["basis_usd"], &told[0]["realised_gain_usd"]), (&json!(basis), &json!(gain)));
        assert_eq!((&told[0]["state"], &told[0]["price_usd"]), (&json!("executed"), &json!(90_000)));
        for (lot_id, sat) in lots.iter().zip(consumed) {
            let parts = told[0]["lots"].as_array().expect("lots");
            let part = parts.iter().find(|part| part["lot_id"] == **lot_id);
            assert_eq!(part.map_or(0, |part| part["sat"].as_i64().expect("satoshi")), sat, "{method}");
        }
        assert_eq!(conserved(&db).await, (100_000_000, 150_000_000));
        let cost: String = db.scalar("select trim_scale(sum(left_cost_usd))::text from treasury_lot").await;
        assert_eq!(cost, (140_000 - basis).to_string(), "{method}: cost is conserved, too");
    }
}

#[tokio::test]
async fn a_sale_may_name_its_lots_and_the_fee_is_in_the_gain() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    account(&api).await;
    change(&api, json!({"fee_share": "0.001"})).await;
    let [first, _, third] = three_lots(&api).await;
    price(&api, 90_000).await;
    submitted(&api, json!({"amount": "1", "lot_ids": [third, first]})).await;
    Group::default().run(&db).await;
    let told = told(&db, "treasury.trade_executed").await.pop().expect("a fill");
    let lots = json!([
        {"lot_id": third, "sat": 50_000_000, "basis_usd": told["lots"][0]["basis_usd"]},
        {"lot_id": first, "sat": 50_000_000, "basis_usd": told["lots"][1]["basis_usd"]},
    ]);
    assert_eq!(told["lots"], lots);
    assert_eq!((&told["basis_usd"], &told["fee_usd"]), (&json!(60_000), &json!(90)));
    assert_eq!(told["realised_gain_usd"], json!(29_910));
    // The event follows the submission, and says so.
    let cause: bool = db
        .scalar(
            "select e.payload ->> 'causation_id' = s.id::text from event_outbox e, event_outbox s \
             where e.event_type = 'treasury.trade_executed' and s.event_type = 'treasury.trade_submitted'",
        )
        .await;
    assert!(cause);
    let actor: String =
        db.scalar("select actor from audit_log where action = 'treasury.trade_executed'").await;
    assert_eq!(actor, "paper");
}

#[tokio::test]
async fn purchases_make_lots_and_hedges_move_none() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let mut group = Group::default();
    account(&api).await;
    change(&api, json!({"fee_share": "0.001", "cash_usd": 500_000})).await;
    lot(&api, "1", 40_000).await;
    price(&api, 90_000).await;
    submitted(&api, json!({"trade_type": "buy", "amount": "2"})).await;
    submitted(&api, json!({"trade_type": "hedge", "amount": "1"})).await;
    group.run(&db).await;
    let lots = api.get("/api/treasury/lots").await.expect(200).body["data"].clone();
    assert_eq!((&lots[1]["source"], &lots[1]["sat"]), (&json!("trade"), &json!(200_000_000)));
    assert_eq!(lots[1]["cost_usd"], json!(180_180), "with the fee");
    assert_eq!(conserved(&db).await, (300_000_000, 0));
    price(&api, 80_000).await;
    group.run(&db).await;
    let overview = api.get("/api/treasury/overview").await.expect(200).body["data"].clone();
    assert_eq!((&overview["hedged_sat"], &overview["hedge_gain_usd"]), (&json!(100_000_000), &json!(10_000)));
    assert_eq!((&overview["bought_sat"], &overview["fees_usd"]), (&json!(200_000_000), &json!(270)));
    assert_eq!(overview["cash_usd"], json!(500_000 - 180_180 - 90));
    assert_eq!(overview["realised_gain_usd"], json!(-90));
}

/// The same events again, and all of them at once: nothing is filled a second time.
#[tokio::test]
async fn repeated_events_fill_nothing_twice() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    account(&api).await;
    three_lots(&api).await;
    price(&api, 90_000).await;
    submitted(&api, json!({"amount": "1.5"})).await;
    submitted(&api, json!({"amount": "0.3", "execution_strategy": "twap"})).await;
    let events = Group::default().next(&db).await;
    apply(&db, &events).await;
    let (after, sold) = (counts(&db).await, conserved(&db).await);
    assert_eq!(after["treasury.trade_executed"], 2);
    for again in [events.clone(), events.iter().rev().cloned().collect()] {
        apply(&db, &again).await;
        assert_eq!((counts(&db).await, conserved(&db).await), (after.clone(), sold));
    }
    // What the group emitted comes back to it.
    Group::default().run(&db).await;
    assert_eq!((counts(&db).await, conserved(&db).await), (after, sold));
}

#[tokio::test]
async fn a_trade_waits_for_a_price_that_counts() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let mut group = Group::default();
    account(&api).await;
    lot(&api, "1", 1).await;
    let id = submitted(&api, json!({"amount": "0.5"})).await;
    db.execute("update treasury_trade set needs_approval = false").await;
    group.run(&db).await;
    let waits = trade(&api, &id).await;
    assert_eq!((&waits["state"], &waits["waiting"]), (&json!("submitted"), &json!("no-price")));

    price(&api, 90_000).await;
    db.execute("update network_snapshots set observed_at = now() - interval '31 minutes'").await;
    group.run(&db).await;
    let waits = trade(&api, &id).await;
    assert_eq!((&waits["state"], &waits["waiting"]), (&json!("submitted"), &json!("stale-price")));
    assert_eq!(advance_to(&db, &api, 0).await.blind, 1);
    assert_eq!(counts(&db).await.get("treasury.trade_executed"), None);

    price(&api, 91_000).await;
    group.run(&db).await;
    let done = trade(&api, &id).await;
    assert_eq!((&done["state"], &done["waiting"]), (&json!("executed"), &Value::Null));
    assert_eq!(done["proceeds_usd"], json!(45_500));
}

#[tokio::test]
async fn a_limit_order_waits_for_its_price() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let mut group = Group::default();
    account(&api).await;
    lot(&api, "1", 1).await;
    price(&api, 90_000).await;
    let limit = json!({"amount": "0.5", "execution_strategy": "limit", "target_price": 95_000});
    let answer = submit(&api, limit).await.expect(202);
    assert_eq!(answer.body["estimated_execution_time"], Value::Null);
    let id = answer.body["trade_id"].as_str().expect("an id");
    for (usd, state) in [(94_999, "executing"), (95_001, "executed")] {
        price(&api, usd).await;
        group.run(&db).await;
        assert_eq!(trade(&api, id).await["state"], state, "{usd}");
    }
    assert_eq!(told(&db, "treasury.trade_executed").await[0]["price_usd"], json!(95_001));
}

/// A sale names a lot that one without names takes first: it finds it sold out and fails, and its event says why.
#[tokio::test]
async fn a_sale_whose_lots_are_gone_fails() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    account(&api).await;
    let named = lot(&api, "1", 40_000).await;
    lot(&api, "1", 60_000).await;
    price(&api, 90_000).await;
    let waits =
        json!({"amount": 1, "lot_ids": [named], "execution_strategy": "limit", "target_price": 95_000});
    let second = submitted(&api, waits).await;
    let first = submitted(&api, json!({"amount": 1})).await;
    let mut group = Group::default();
    group.run(&db).await;
    assert_eq!(trade(&api, &first).await["state"], "executed");
    price(&api, 95_000).await;
    group.run(&db).await;
    let failed = trade(&api, &second).await;
    assert_eq!(failed["state"], "failed");
    let told = told(&db, "treasury.trade_failed").await;
    assert_eq!((told.len(), &told[0]["trade_id"]), (1, &json!(second)));
    assert_eq!(told[0]["reason"], failed["state_reason"]);
    assert!(failed["state_reason"].as_str().expect("a reason").contains("cannot be sold"));
    assert_eq!(conserved(&db).await, (100_000_000, 100_000_000));
    submitted(&api, json!({"amount": 1})).await;
}

/// A price and a request at the same time: sales and reservations of one account take turns.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn prices_and_requests_at_once_conserve_every_satoshi() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    account(&api).await;
    three_lots(&api).await;
    price(&api, 90_000).await;
    for _ in 0..5 {
        submitted(&api, json!({"amount": "0.2"})).await;
    }
    let events = Group::default().next(&db).await;
    let request = async || submit(&api, json!({"amount": "0.4"})).await.status.as_u16();
    let (_, _, _, one, two, three, four) = tokio::join!(
        apply(&db, &events),
        apply(&db, &events),
        advance_to(&db, &api, 0),
        request(),
        request(),
        request(),
        request()
    );
    let taken = [one, two, three, four].iter().filter(|status| **status == 202).count();
    assert_eq!(taken, 3, "1.5 of 2.5 are left: three times 0.4 and no more");
    Group::default().run(&db).await;
    assert_eq!(counts(&db).await["treasury.trade_executed"], 8);
    assert_eq!(conserved(&db).await, (30_000_000, 220_000_000));
}
