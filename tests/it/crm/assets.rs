//! Assets: a deployed one is a miner, and its miner follows it.

use reqwest::Method;
use serde_json::{Value, json};

use super::{account, go, kinds, made, problem, shown, told};
use crate::support::{TestApi, TestDb, written};

/// A received asset.
async fn received(api: &TestApi, account: &str) -> String {
    let body = json!({"account_id": account, "model": "S21", "quantity": 4, "location": "Hall 1",
        "purchase_price": 3000, "electricity_cost": "0.05", "serial_number": "SN-1"});
    let id = made(api, "assets", body).await;
    go(api, "assets", &id, json!({"to": "RECEIVED"})).await.expect(200);
    id
}

#[tokio::test]
async fn deployment_makes_a_miner_and_decommissioning_removes_it() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let account = account(&api).await;
    let id = received(&api, &account).await;
    let before = written(&db).await;
    let deployed = go(&api, "assets", &id, json!({"to": "DEPLOYED"})).await.expect(200);
    assert_eq!(kinds(&deployed), ["crm.asset_status_changed", "miner.added"]);
    let after = written(&db).await;
    assert_eq!((after.0 - before.0, after.1 - before.1, after.2 - before.2), (1, 2, 2), "in one transaction");
    let xids: i64 = db
        .scalar(
            "select count(distinct xid) from (select xid from event_outbox order by position desc limit 2) x",
        )
        .await;
    assert_eq!(xids, 1);

    let miner_id = deployed.body["miner_id"].as_str().expect("a miner").to_owned();
    let path = format!("/api/miners/{miner_id}");
    let miner = api.get(&path).await.expect(200).body["data"].clone();
    let expected = json!({
        "miner_id": miner_id, "owner_id": account, "model": "S21", "hashrate_ths": 200, "power_w": 3500,
        "quantity": 4, "location": "Hall 1", "purchase_price_usd": 3000, "electricity_cost_usd_kwh": 0.05,
        "status": "pending", "status_reason": null, "created_at": miner["created_at"],
        "updated_at": miner["updated_at"],
    });
    assert_eq!(miner, expected);
    assert_eq!(told(&db, "miner.added").await["owner_id"], account);
    assert_eq!(told(&db, "crm.asset_status_changed").await["miner_id"], miner_id);

    for (to, status) in [
        ("MINING", "online"),
        ("MAINTENANCE", "maintenance"),
        ("MINING", "online"),
        ("DEPLOYED", "offline"),
        ("MAINTENANCE", "maintenance"),
    ] {
        let moved = go(&api, "assets", &id, json!({"to": to, "reason": "shift"})).await.expect(200);
        assert_eq!(kinds(&moved), ["crm.asset_status_changed", "miner.status_changed"], "{to}");
        assert_eq!(api.get(&path).await.body["data"]["status"], status);
    }
    // It is started from here: deployed it was once.
    problem(&go(&api, "assets", &id, json!({"to": "DEPLOYED"})).await, 409, "invalid-transition");
    let gone = go(&api, "assets", &id, json!({"to": "DECOMMISSIONED"})).await.expect(200);
    assert_eq!(kinds(&gone), ["crm.asset_status_changed", "miner.removed"]);
    api.get(&path).await.expect(404);
    assert_eq!(shown(&api, "assets", &id).await["miner_id"], miner_id, "kept for the record");
}

/// Somebody removed the miner: the asset can go too, and nothing else.
#[tokio::test]
async fn an_asset_whose_miner_is_gone_can_only_be_decommissioned() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let account = account(&api).await;
    let id = received(&api, &account).await;
    let deployed = go(&api, "assets", &id, json!({"to": "DEPLOYED"})).await.expect(200);
    let miner = deployed.body["miner_id"].as_str().expect("a miner");
    api.delete(&format!("/api/miners/{miner}")).await.expect(200);
    let before = written(&db).await;
    problem(&go(&api, "assets", &id, json!({"to": "MINING"})).await, 409, "miner-is-removed");
    assert_eq!(written(&db).await, before);
    let gone = go(&api, "assets", &id, json!({"to": "DECOMMISSIONED"})).await.expect(200);
    assert_eq!(kinds(&gone), ["crm.asset_status_changed"]);
}

/// Two who deploy one asset make one miner.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_deployments_at_once_one_makes_the_miner() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let account = account(&api).await;
    for n in 1..=5 {
        let id = received(&api, &account).await;
        let deploy = || go(&api, "assets", &id, json!({"to": "DEPLOYED"}));
        let (one, two) = tokio::join!(deploy(), deploy());
        let (done, refused) = if one.status == 200 { (one, two) } else { (two, one) };
        done.expect(200);
        problem(&refused, 409, "invalid-transition");
        let miners: i64 = db.scalar("select count(*) from miners").await;
        assert_eq!(miners, n);
    }
}

#[tokio::test]
async fn fields_of_an_asset_have_the_rules_of_a_miner() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let account = account(&api).await;
    let before = written(&db).await;
    for (body, fields) in [
        (json!({}), vec!["account_id", "model"]),
        (json!({"account_id": account, "model": "No Such Model"}), vec!["hashrate_ths", "power_w"]),
        (json!({"account_id": account, "model": "S21", "quantity": 0}), vec!["quantity"]),
        (
            json!({"account_id": account, "model": "S21", "hashrate": 1, "hashrate_ths": 2}),
            vec!["hashrate_ths"],
        ),
        (json!({"account_id": account, "model": "S21", "serial_number": 5}), vec!["serial_number"]),
    ] {
        let refused = api.post("/api/crm/assets", body.clone()).await.expect(422);
        assert_eq!(refused.fields(), fields, "{body}");
    }
    assert_eq!(written(&db).await, before);
    let id = received(&api, &account).await;
    let path = format!("/api/crm/assets/{id}");
    let changed = api.patch(&path, json!({"quantity": 5, "location": null, "notes": "x"})).await.expect(200);
    assert_eq!(kinds(&changed), ["crm.asset_updated"]);
    let changes = told(&db, "crm.asset_updated").await["changes"].clone();
    assert_eq!(changes["quantity"], json!({"old": 4, "new": 5}));
    assert_eq!(changes["location"], json!({"old": "Hall 1", "new": null}));
    assert_eq!(api.patch(&path, json!({"quantity": 5})).await.expect(200).body["event_id"], Value::Null);
    go(&api, "assets", &id, json!({"to": "DEPLOYED"})).await.expect(200);
    problem(&api.patch(&path, json!({"quantity": 6})).await, 409, "asset-is-deployed");
    api.patch(&path, json!({"serial_number": "SN-2"})).await.expect(200);
}

/// The portfolio behind an account is shown and filled with it: whose it is, an admin says.
#[tokio::test]
async fn another_users_portfolio_is_named_by_admins_only() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let body = |user: &str| json!({"name": "Northern Hash", "portfolio_user_id": user});
    let before = written(&db).await;
    let refused = api.post("/api/crm/accounts", body("bob")).await.expect(403);
    assert!(refused.body["detail"].as_str().is_some_and(|detail| detail.contains("admin")));
    let lead = made(&api, "leads", json!({"name": "Ada"})).await;
    let convert = json!({"to": "CONVERTED", "portfolio_user_id": "bob"});
    go(&api, "leads", &lead, convert).await.expect(403);
    assert_eq!(written(&db).await.0, before.0 + 1);
    let own = made(&api, "accounts", body(&api.user)).await;
    assert_eq!(shown(&api, "accounts", &own).await["portfolio_user_id"], api.user);
    let made =
        api.ask(&api.admin_token(), Method::POST, "/api/crm/accounts", Some(body("bob"))).await.expect(201);
    let id = made.body["account_id"].as_str().expect("an id");
    assert_eq!(shown(&api, "accounts", id).await["portfolio_user_id"], "bob");
    // And stays: the events of an account keep their partition.
    let refused = api.patch(&format!("/api/crm/accounts/{id}"), json!({"portfolio_user_id": "eve"})).await;
    assert_eq!(refused.expect(422).fields(), ["portfolio_user_id"]);
}
