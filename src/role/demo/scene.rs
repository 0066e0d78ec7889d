//! What the demo's tenant has beside its changing fleet, so that every part of the product has something to show: a market
//! for power with an evening peak, a site with a plan, a treasury that trades, a miner that fails, and a
//! customer who does not pay.

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use rust_decimal::Decimal;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::object;
use crate::db::TenantTx;
use crate::domain::crm::{Account, Entity, Invoice, Stateful};
use crate::domain::ops::{cut, plan, price, settings};
use crate::domain::treasury::{account, lot, order};
use crate::domain::{Caller, CommandError, miner, network};
use crate::economics::curtailment::PlanStatus;
use crate::identifier::UserId;

const MARKET: &str = "DEMO";
/// Where the miners of the site stand.
const HALL: &str = "Hall 7";
/// Where the one stands that fails: no plan takes it off, and it is missed.
pub(super) const FAILING_HALL: &str = "Hall 8";
/// What it makes of its 200 TH/s, and how hot it runs.
const FAILING_THS: f64 = 118.0;
const FAILING_C: f64 = 88.0;
/// USD/MWh of each hour of the day, UTC: wind at night, a peak in the evening.
const PRICES: [i32; 24] =
    [-12, -15, -18, -16, -9, 8, 26, 38, 42, 36, 30, 24, 20, 22, 28, 36, 58, 96, 184, 212, 148, 74, 31, 6];
/// For how long the failing miner has reported by the start.
const REPORTED_MINUTES: i64 = 45;

/// Sets the scene for a site of `owner`, whose plan and trades `second` approves; of its energy `pue` is that at the meter
/// per that at the machine. Nothing where it was set before.
pub(super) async fn set(
    tx: &mut TenantTx,
    owner: &UserId,
    second: &UserId,
    snapshot: &Map<String, Value>,
    pue: Decimal,
) -> Result<(), CommandError> {
    if settings::get(tx, owner).await?.updated_at.is_some() {
        return Ok(());
    }
    let now = tx.now();
    let by = |actor| Caller { actor, request_id: "demo", traceparent: "", now };
    network::record(tx, by(owner), snapshot).await?;
    for quantity in [40, 30, 20] {
        add(tx, by(owner), HALL, quantity).await?;
    }
    let failing = add(tx, by(owner), FAILING_HALL, 1).await?;
    let reported = (0..=REPORTED_MINUTES).map(|minutes| point(failing, now - TimeDelta::minutes(minutes)));
    report(tx, by(owner), reported.collect()).await?;

    price::receive(tx, by(owner), &prices(now)).await?;
    let site = json!({
        "market": MARKET, "step_seconds": 3_600, "cap_kw": 400, "min_online_share": "0.1", "min_down_steps": 2,
        "recovery_minutes": 15, "strike_low_usd_mwh": 250, "strike_high_usd_mwh": 400,
    });
    settings::put(tx, by(owner), owner, &object(site)).await?;
    let cut = json!({
        "target_kw": 100, "strategy": "performance_priority", "filter": {"locations": [HALL]}, "starts_at": now,
        "ends_at": now + TimeDelta::hours(2),
    });
    let asked = cut::Request::read(by(owner), &object(cut)).map_err(CommandError::Invalid)?;
    let running = cut::running(tx, &asked, owner, now).await?;
    let planned = plan::create(tx, by(owner), &asked.plan(owner.clone(), &running, pue)?).await?;
    let approved = object(json!({"reason": "the evening is dear"}));
    plan::decide(tx, by(second), None, planned.plan_id, PlanStatus::Approved, &approved).await?;

    let treasury = json!({
        "cash_usd": 250_000, "opex_usd_month": 90_000, "approval_limit_usd": 50_000,
        "strategies": ["layered", {"opex_coverage": {"days": 45}}],
    });
    account::change(tx, by(owner), owner, &object(treasury)).await?;
    for (days, cost_usd) in [(200, 52_000), (120, 71_000), (40, 88_000)] {
        let mined = json!({"amount": "1", "cost_usd": cost_usd, "acquired_at": now - TimeDelta::days(days)});
        lot::add(tx, by(owner), owner, &object(mined)).await?;
    }
    // Filled at once; in parts over an hour; and one that waits for the second person.
    for (amount, execution) in [("0.1", "market"), ("0.3", "twap"), ("1.2", "market")] {
        let sale =
            json!({"trade_type": "sell", "asset": "BTC", "amount": amount, "execution_strategy": execution});
        order::submit(tx, by(owner), &object(sale)).await?;
    }

    let customer = json!({"name": "Aurora Hosting", "email": "billing@aurora.example"});
    let customer = Account::create(tx, by(owner), &object(customer)).await?;
    let bill = json!({
        "account_id": customer.id, "total_usd": "12400", "description": "Hosting, Hall 7",
        "due_at": now - TimeDelta::days(9),
    });
    let bill = Invoice::create(tx, by(owner), &object(bill)).await?;
    Invoice::transition(tx, by(owner), bill.id, &object(json!({"to": "ISSUED"}))).await?;
    Ok(())
}

/// What the failing miner reports at this moment.
pub(super) async fn go_on(tx: &mut TenantTx, caller: Caller<'_>, failing: Uuid) -> Result<(), CommandError> {
    report(tx, caller, vec![point(failing, caller.now)]).await
}

async fn add(tx: &mut TenantTx, caller: Caller<'_>, hall: &str, quantity: u32) -> Result<Uuid, CommandError> {
    let fields = json!({
        "model": "S21", "quantity": quantity, "status": "online", "location": hall,
        "purchase_price_usd": 3_200, "electricity_cost_usd_kwh": "0.055",
    });
    Ok(miner::add(tx, caller, &object(fields)).await?.miner_id)
}

fn point(miner: Uuid, at: DateTime<Utc>) -> Value {
    json!({"miner_id": miner, "at": at, "hashrate_ths": FAILING_THS, "power_w": 3_420, "temperature_c": FAILING_C})
}

async fn report(tx: &mut TenantTx, caller: Caller<'_>, points: Vec<Value>) -> Result<(), CommandError> {
    miner::telemetry::take(tx, caller, None, &points, TimeDelta::days(1)).await.map(drop)
}

/// The hours from the one that runs to the end of tomorrow.
fn prices(now: DateTime<Utc>) -> Map<String, Value> {
    let hour = now.duration_trunc(TimeDelta::hours(1)).unwrap_or(now);
    let prices: Vec<Value> = (0..36)
        .map(|ahead| {
            let start = hour + TimeDelta::hours(ahead);
            let of_day = (start.timestamp() / 3_600).rem_euclid(24);
            let price = usize::try_from(of_day).ok().and_then(|hour| PRICES.get(hour));
            json!({"start": start, "seconds": 3_600, "price_usd_mwh": price})
        })
        .collect();
    object(json!({"market": MARKET, "prices": prices}))
}
