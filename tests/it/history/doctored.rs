//! A small history in which everything is right, and what the checker says to it once something is not.

use std::time::Duration;

use chrono::DateTime;
use hashinsight::economics::{Assumptions, MinerLine, MinerStatus, Network, portfolio};
use hashinsight::event::kind;
use rust_decimal::Decimal;
use serde_json::{Value, json};
use uuid::Uuid;

use super::log::Logged;
use super::tables::{Audit, Dead, Event, Miner, Offset, Parked, Received, Snapshot};
use super::witness::{Admitted, Moved, Recomputed, Settled};
use super::{
    Action, Ended, Evicted, Hindered, History, Limits, Op, Outcome, Sample, Tables, Topics, Violation,
    Witness, check,
};

const GROUP: &str = "group";
const TENANT: &str = "t1";
const OWNER: &str = "ann";

const fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

const MINER: Uuid = id(100);
const SNAPSHOT: Uuid = id(200);
const ADDED: Uuid = id(1);
const CHANGED: Uuid = id(2);
const OBSERVED: Uuid = id(3);

fn event(position: i64, id: Uuid, kind: &str, entity: Uuid, data: Value) -> Event {
    let (aggregate_type, key) =
        if kind == kind::NETWORK_SNAPSHOT { ("ops", "network") } else { ("miner", OWNER) };
    Event {
        position,
        id,
        aggregate_type: aggregate_type.to_owned(),
        aggregate_id: entity.to_string(),
        event_key: format!("{TENANT}:{key}"),
        event_type: kind.to_owned(),
        tenant_id: TENANT.to_owned(),
        user_id: OWNER.to_owned(),
        payload: json!({"correlation_id": format!("r{position}"), "data": data}),
    }
}

fn logged(offset: i64, event: &Event) -> Logged {
    Logged {
        offset,
        key: Some(event.event_key.clone()),
        event_id: Some(event.id),
        position: Some(event.position),
        tenant_id: Some(event.tenant_id.clone()),
        kind: Some(event.event_type.clone()),
        value_event_id: Some(event.id),
        value_tenant_id: Some(event.tenant_id.clone()),
    }
}

fn op(n: u64, action: Action, status: u16, body: Value) -> Op {
    Op {
        client: 0,
        request_id: format!("r{n}"),
        tenant: TENANT.to_owned(),
        idempotency_key: None,
        action,
        invoked: 10 * n,
        completed: 10 * n + 5,
        outcome: Outcome::Ok { status, body },
    }
}

fn moved(xid: &str, topic: &str, offsets: (i64, i64), epochs: (i64, i64)) -> Moved {
    Moved {
        xid: xid.to_owned(),
        login: "consumer-1".to_owned(),
        consumer_name: GROUP.to_owned(),
        topic: topic.to_owned(),
        partition: 0,
        old_offset: offsets.0,
        new_offset: offsets.1,
        old_epoch: epochs.0,
        new_epoch: epochs.1,
    }
}

/// A miner comes, goes online, and is seen to; then the network moves.
fn healthy() -> History {
    let events = vec![
        event(
            1,
            ADDED,
            kind::MINER_ADDED,
            MINER,
            json!({"model": "rig", "quantity": 2, "hashrate_ths": 200, "power_w": 3_500}),
        ),
        event(
            2,
            CHANGED,
            kind::MINER_STATUS_CHANGED,
            MINER,
            json!({"old_status": "pending", "new_status": "online"}),
        ),
        event(3, OBSERVED, kind::NETWORK_SNAPSHOT, SNAPSHOT, json!({"snapshot_id": SNAPSHOT})),
    ];
    let line = MinerLine {
        model: "rig".to_owned(),
        hashrate_ths: Decimal::from(200),
        power_w: Decimal::from(3_500),
        quantity: 2,
        purchase_price_usd: None,
        tariff_usd_kwh: None,
        status: MinerStatus::Online,
        location: None,
    };
    let (price, difficulty) = (Decimal::from(90_000), Decimal::from(150_000_000_000_000_i64));
    let network = Network {
        btc_price_usd: price,
        difficulty,
        block_height: 925_000,
        fees_btc_per_block: Decimal::ZERO,
    };
    let figures = portfolio(&[line], Some(&network), &Assumptions::default()).expect("in range");
    let mut row = json!(figures);
    for (name, value) in [
        ("tenant_id", json!(TENANT)),
        ("user_id", json!(OWNER)),
        ("version", json!(2)),
        ("event_id", json!(OBSERVED)),
        ("snapshot_id", json!(SNAPSHOT)),
    ] {
        row[name] = value;
    }
    let shown = json!({"data": {"version": 1, "event_id": CHANGED, "by_model": [
        {"model": "rig", "miners_total": 2, "miners_online": 2, "hashrate_ths": 400.0}]}});
    let admitted = |xid: &str, event: &Event| Admitted {
        xid: xid.to_owned(),
        login: "consumer-1".to_owned(),
        consumer_name: GROUP.to_owned(),
        event_id: event.id,
        outcome: "applied".to_owned(),
    };
    let recomputed = |xid: &str, version, event_id| Recomputed {
        xid: xid.to_owned(),
        login: "consumer-1".to_owned(),
        tenant_id: TENANT.to_owned(),
        user_id: OWNER.to_owned(),
        version,
        event_id,
        at: DateTime::UNIX_EPOCH + Duration::from_secs(1),
        snapshot_id: Some(SNAPSHOT).filter(|_| event_id == OBSERVED),
        by_model: json!([{"model": "rig", "miners_total": 2, "miners_online": 2, "hashrate_ths": 400.0}]),
    };
    let offset = |topic: &str, next_offset| Offset {
        consumer_name: GROUP.to_owned(),
        topic: topic.to_owned(),
        partition: 0,
        next_offset,
        owner_epoch: 1,
    };
    History {
        group: GROUP.to_owned(),
        assumptions: Assumptions::default(),
        began: DateTime::UNIX_EPOCH,
        ops: vec![
            op(1, Action::Add { body: json!({}) }, 201, json!({"event_id": ADDED, "miner_id": MINER})),
            op(2, Action::Status { miner: MINER, body: json!({}) }, 200, json!({"event_id": CHANGED})),
            op(3, Action::Snapshot { body: json!({}) }, 201, json!({"event_id": OBSERVED})),
            op(4, Action::Read { owner: OWNER.to_owned(), after: Some(CHANGED) }, 200, shown),
        ],
        topics: Topics(
            [
                (("miner".to_owned(), 0), vec![logged(0, &events[0]), logged(1, &events[1])]),
                (("ops".to_owned(), 0), vec![logged(0, &events[2])]),
            ]
            .into(),
        ),
        witness: Witness {
            moved: vec![
                moved("10", "miner", (0, 0), (0, 1)),
                moved("11", "ops", (0, 0), (0, 1)),
                moved("12", "miner", (0, 2), (1, 1)),
                moved("13", "ops", (0, 1), (1, 1)),
            ],
            admitted: vec![
                admitted("12", &events[0]),
                admitted("12", &events[1]),
                admitted("13", &events[2]),
            ],
            settled: Vec::new(),
            recomputed: vec![recomputed("12", 1, CHANGED), recomputed("13", 2, OBSERVED)],
        },
        tables: Tables {
            inbox: events
                .iter()
                .map(|event| Received {
                    consumer_name: GROUP.to_owned(),
                    event_id: event.id,
                    tenant_id: TENANT.to_owned(),
                    event_kind: event.event_type.clone(),
                    outcome: "applied".to_owned(),
                })
                .collect(),
            audit: events
                .iter()
                .map(|event| Audit {
                    tenant_id: TENANT.to_owned(),
                    event_id: Some(event.id),
                    request_id: Some(event.request_id().to_owned()),
                })
                .collect(),
            offsets: vec![offset("miner", 2), offset("ops", 1)],
            miners: vec![Miner {
                tenant_id: TENANT.to_owned(),
                id: MINER,
                owner_id: OWNER.to_owned(),
                model: "rig".to_owned(),
                hashrate_ths: Decimal::from(200),
                power_w: Decimal::from(3_500),
                quantity: 2,
                location: None,
                purchase_price_usd: None,
                electricity_cost_usd_kwh: None,
                status: "online".to_owned(),
                removed: false,
            }],
            snapshots: vec![Snapshot {
                tenant_id: TENANT.to_owned(),
                id: SNAPSHOT,
                btc_price_usd: price,
                difficulty,
                block_height: 925_000,
                fees_btc_per_block: Decimal::ZERO,
            }],
            portfolios: vec![row],
            outbox: events,
            ..Tables::default()
        },
        samples: vec![Sample {
            at: 1,
            memory: [("serve".to_owned(), 50)].into(),
            disk: 500,
            backlog: Some(0),
        }],
        limits: Limits { memory: 100, disk: 1_000, backlog: 10 },
        ended: Vec::new(),
        evicted: Vec::new(),
        hindered: Vec::new(),
    }
}

/// What is said of a history with this change: the invariants, each once.
fn said(change: impl FnOnce(&mut History)) -> Vec<&'static str> {
    let mut history = healthy();
    change(&mut history);
    let mut said: Vec<&str> = check(&history).iter().map(|violation| violation.invariant).collect();
    said.sort_unstable();
    said.dedup();
    said
}

fn lost(outcome: &mut Outcome) {
    *outcome = Outcome::Info { status: None, why: "reset".to_owned() };
}

fn refused(outcome: &mut Outcome) {
    *outcome = Outcome::Fail { status: Some(404), why: "not found".to_owned() };
}

fn dead(status: &str) -> Dead {
    Dead {
        consumer_name: GROUP.to_owned(),
        topic: "miner".to_owned(),
        partition: 0,
        log_offset: 1,
        event_id: Some(CHANGED),
        tenant_id: Some(TENANT.to_owned()),
        status: status.to_owned(),
        error_class: "database".to_owned(),
        error_message: "broken".to_owned(),
    }
}

fn parked() -> Parked {
    Parked {
        consumer_name: GROUP.to_owned(),
        topic: "miner".to_owned(),
        partition: 0,
        log_offset: 1,
        event_id: CHANGED,
        tenant_id: TENANT.to_owned(),
        error_message: None,
    }
}

/// The effects of a write, which then never was.
fn undo_change(history: &mut History) {
    history.tables.outbox.remove(1);
    history.tables.audit.remove(1);
}

#[test]
fn what_is_right_is_not_complained_about() {
    assert_eq!(check(&healthy()), Vec::<Violation>::new());
    // Of a write whose answer was lost both ends are right.
    assert!(said(|h| lost(&mut h.ops[1].outcome)).is_empty());
    let never = |h: &mut History| {
        h.ops.push(op(5, Action::Remove { miner: MINER }, 200, Value::Null));
        lost(&mut h.ops[4].outcome);
    };
    assert!(said(never).is_empty());
    // So is an answer that nothing changed, a repeated record, and a dead letter that was replayed.
    assert!(
        said(|h| h.ops.push(op(
            5,
            Action::Update { miner: MINER, body: json!({}) },
            200,
            json!({"event_id": null})
        )))
        .is_empty()
    );
    let repeated = |h: &mut History| {
        let again = Logged { offset: 2, ..h.topics.0[&("miner".to_owned(), 0)][0].clone() };
        h.topics.0.get_mut(&("miner".to_owned(), 0)).expect("it is there").push(again);
        h.witness.moved.push(moved("14", "miner", (2, 3), (1, 1)));
        h.tables.offsets[0].next_offset = 3;
    };
    assert!(said(repeated).is_empty());
    assert!(said(|h| h.tables.dead.push(dead("resolved"))).is_empty());
}

#[test]
fn i1_an_acknowledged_write_is_applied_once() {
    // Lost before it was committed, before it was applied, and dead without need.
    let said_of_lost = said(|h| {
        undo_change(h);
        h.ops.truncate(3);
    });
    assert!(said_of_lost.contains(&"I1"), "{said_of_lost:?}");
    assert!(said(|h| drop(h.tables.inbox.remove(1))).contains(&"I1"));
    assert!(
        said(|h| {
            h.tables.inbox[1].outcome = "dead".to_owned();
            h.tables.dead.push(dead("dead"));
        })
        .contains(&"I1")
    );
    // Admitted twice, as if the inbox row had been gone in between; and no witness of it.
    assert_eq!(said(|h| h.witness.admitted.push(h.witness.admitted[0].clone())), ["I1", "I4"]);
    assert_eq!(said(|h| drop(h.witness.admitted.remove(0))), ["I1"]);
    // Twice by one request, of which the client does not know.
    let twice = said(|h| {
        lost(&mut h.ops[1].outcome);
        h.tables.outbox[2].payload["correlation_id"] = json!("r2");
        h.tables.audit[2].request_id = Some("r2".to_owned());
        lost(&mut h.ops[2].outcome);
    });
    assert_eq!(twice, ["I1"]);
}

#[test]
fn i2_nothing_else_is_applied() {
    assert_eq!(said(|h| refused(&mut h.ops[2].outcome)), ["I2"]);
    // A transaction that was rolled back after it was published, and after it was applied.
    assert!(said(undo_change).contains(&"I2"));
    assert!(said(|h| drop(h.ops.remove(2))).contains(&"I2"));
    assert_eq!(said(|h| drop(h.tables.audit.remove(0))), ["I2"]);
    let changes_nothing = |h: &mut History| {
        h.ops[2].outcome = Outcome::Ok { status: 200, body: json!({"event_id": null}) };
    };
    assert_eq!(said(changes_nothing), ["I2"]);
}

#[test]
fn i3_the_read_models_are_the_sum_of_the_writes() {
    assert_eq!(said(|h| h.tables.portfolios[0]["miners_online"] = json!(1)), ["I3"]);
    assert_eq!(said(|h| h.tables.portfolios[0]["by_model"][0]["miners_total"] = json!(4)), ["I3"]);
    assert_eq!(said(|h| h.tables.portfolios[0]["snapshot_id"] = Value::Null), ["I3"]);
    assert_eq!(said(|h| h.tables.portfolios[0]["version"] = json!(3)), ["I3"]);
    assert_eq!(said(|h| h.tables.portfolios.clear()), ["I3"]);
    // Lost updates, which the next event would repair: the second recalculation did not build on the first; it knew the
    // miner as it was before, or not at all; it did not know its snapshot.
    assert_eq!(said(|h| h.witness.recomputed[1].version = 1), ["I3"]);
    assert_eq!(said(|h| h.witness.recomputed[1].by_model[0]["miners_online"] = json!(0)), ["I3"]);
    assert_eq!(said(|h| h.witness.recomputed[1].by_model = json!([])), ["I3"]);
    assert_eq!(said(|h| h.witness.recomputed[1].by_model[0]["model"] = json!("another")), ["I3"]);
    assert_eq!(said(|h| h.witness.recomputed[1].snapshot_id = None), ["I3"]);
    // The record itself: a change lost in the row, and one made on a state that never was.
    assert!(said(|h| h.tables.miners[0].quantity = 3).contains(&"I3"));
    assert_eq!(said(|h| h.tables.outbox[1].payload["data"]["old_status"] = json!("offline")), ["I3"]);
    assert!(said(|h| h.tables.miners.clear()).contains(&"I3"));
}

#[test]
fn i3_a_read_after_a_write_shows_it() {
    let answer = |h: &mut History, change: fn(&mut Value)| {
        if let Outcome::Ok { body, .. } = &mut h.ops[3].outcome {
            change(body);
        }
    };
    // As it was before the write; not at all.
    assert_eq!(said(|h| answer(h, |b| b["data"]["by_model"][0]["miners_online"] = json!(0))), ["I3"]);
    assert_eq!(said(|h| answer(h, |b| b["data"]["by_model"] = json!([]))), ["I3"]);
    assert_eq!(said(|h| refused(&mut h.ops[3].outcome)), ["I3"]);
    // Versions go back.
    let back = |h: &mut History| {
        let mut later = Op { invoked: 90, completed: 95, ..h.ops[3].clone() };
        answer(h, |b| b["data"]["version"] = json!(2));
        later.request_id = "r5".to_owned();
        h.ops.push(later);
    };
    assert_eq!(said(back), ["I3"]);
    // A snapshot that the answer does not know.
    let old_network = |h: &mut History| {
        h.ops[3].action = Action::Read { owner: OWNER.to_owned(), after: Some(OBSERVED) };
        answer(h, |b| b["data"]["snapshot_id"] = Value::Null);
    };
    assert_eq!(said(old_network), ["I3"]);
    // An acknowledged miner that nobody removed.
    let gone = |h: &mut History| {
        h.ops.push(op(5, Action::Remove { miner: MINER }, 200, Value::Null));
        refused(&mut h.ops[4].outcome);
    };
    assert_eq!(said(gone), ["I3"]);
}

#[test]
fn i4_positions_increase_per_aggregate() {
    let swapped_log = |h: &mut History| {
        let lane = h.topics.0.get_mut(&("miner".to_owned(), 0)).expect("it is there");
        lane.swap(0, 1);
        (lane[0].offset, lane[1].offset) = (0, 1);
    };
    assert_eq!(said(swapped_log), ["I4"]);
    assert_eq!(said(|h| h.witness.admitted.swap(0, 1)), ["I4"]);
    // What was settled later is aside: a replayed dead letter comes when it comes.
    let replayed = |h: &mut History| {
        h.witness.admitted.swap(0, 1);
        h.witness.settled.push(Settled {
            xid: "12".to_owned(),
            consumer_name: GROUP.to_owned(),
            event_id: ADDED,
            old_outcome: "parked".to_owned(),
            new_outcome: "applied".to_owned(),
        });
    };
    assert!(said(replayed).is_empty());
}

#[test]
fn i5_offsets_go_forward_to_the_end() {
    assert_eq!(said(|h| h.witness.moved[3].old_offset = 5), ["I5", "I9"]);
    assert_eq!(said(|h| h.witness.moved.push(moved("14", "ops", (1, 0), (1, 1)))), ["I5"]);
    assert_eq!(said(|h| h.tables.offsets[1].next_offset = 0), ["I5"]);
    let short = |h: &mut History| {
        h.tables.offsets[1].next_offset = 2;
        h.witness.moved[3].new_offset = 2;
    };
    assert_eq!(said(short), ["I5"]);
}

#[test]
fn i6_an_event_is_in_one_place() {
    assert!(said(|h| drop(h.topics.0.get_mut(&("ops".to_owned(), 0)).expect("there").pop())).contains(&"I6"));
    assert_eq!(said(|h| h.tables.stuck.push(1)), ["I6"]);
    assert_eq!(said(|h| h.tables.parked.push(parked())), ["I6"]);
    assert_eq!(said(|h| h.tables.dead.push(dead("dead"))), ["I6"]);
    assert!(said(|h| h.tables.inbox[1].outcome = "parked".to_owned()).contains(&"I6"));
    assert!(said(|h| drop(h.tables.inbox.remove(1))).contains(&"I6"));
    let unreadable = |h: &mut History| {
        let lane = h.topics.0.get_mut(&("miner".to_owned(), 0)).expect("there");
        lane.push(Logged { offset: 2, event_id: None, value_event_id: None, ..lane[0].clone() });
        h.witness.moved.push(moved("14", "miner", (2, 3), (1, 1)));
        h.tables.offsets[0].next_offset = 3;
    };
    assert_eq!(said(unreadable), ["I6"]);
}

#[test]
fn i7_no_effect_leaves_its_tenant() {
    assert_eq!(said(|h| h.tables.inbox[0].tenant_id = "t2".to_owned()), ["I7"]);
    assert_eq!(said(|h| h.tables.audit[0].tenant_id = "t2".to_owned()), ["I7"]);
    let header = |h: &mut History| {
        h.topics.0.get_mut(&("ops".to_owned(), 0)).expect("there")[0].tenant_id = Some("t2".to_owned());
    };
    assert_eq!(said(header), ["I7"]);
    assert_eq!(said(|h| h.ops[2].tenant = "t2".to_owned()), ["I7"]);
    assert_eq!(said(|h| h.ops[3].tenant = "t2".to_owned()), ["I7"]);
    assert!(said(|h| h.witness.recomputed[0].tenant_id = "t2".to_owned()).contains(&"I7"));
    assert!(said(|h| h.witness.recomputed[0].user_id = "bob".to_owned()).contains(&"I7"));
}

#[test]
fn i8_a_repeated_request_has_one_effect_and_one_answer() {
    let repeat = |h: &mut History| {
        h.ops[0].idempotency_key = Some("k".to_owned());
        let again = Op { request_id: "r5".to_owned(), ..h.ops[0].clone() };
        h.ops.push(again);
    };
    // The second answer names the event of the first request, as it should.
    assert!(said(repeat).is_empty());
    let other_answer = |h: &mut History| {
        repeat(h);
        h.ops[4].outcome = Outcome::Ok { status: 201, body: json!({"event_id": ADDED, "miner_id": id(101)}) };
    };
    assert_eq!(said(other_answer), ["I8"]);
    let second_effect = |h: &mut History| {
        repeat(h);
        h.tables.outbox[1].payload["correlation_id"] = json!("r5");
        h.tables.audit[1].request_id = Some("r5".to_owned());
        lost(&mut h.ops[1].outcome);
    };
    assert_eq!(said(second_effect), ["I8"]);
}

#[test]
fn i9_nothing_is_written_with_a_stale_fence() {
    assert_eq!(said(|h| h.witness.moved[3].login = "consumer-2".to_owned()), ["I9"]);
    assert_eq!(said(|h| h.witness.admitted[2].xid = "14".to_owned()), ["I9"]);
    assert_eq!(said(|h| h.witness.recomputed[1].xid = "14".to_owned()), ["I9"]);
    assert!(said(|h| (h.witness.moved[3].old_epoch, h.witness.moved[3].new_epoch) = (0, 0)).contains(&"I9"));
}

#[test]
fn i10_nothing_grows_without_bound() {
    assert_eq!(said(|h| h.samples[0].memory.insert("serve".to_owned(), 101).map_or((), drop)), ["I10"]);
    assert_eq!(said(|h| h.samples[0].disk = 1_001), ["I10"]);
    assert_eq!(said(|h| h.samples[0].backlog = Some(1)), ["I10"]);
}

#[test]
fn f20_roles_live_and_answers_are_of_use() {
    let ended = |was_ready| Ended {
        role: "consumer-1".to_owned(),
        at: 1,
        status: "exit status: 1".to_owned(),
        was_ready,
        last_words: String::new(),
    };
    assert_eq!(said(|h| h.ended.push(ended(true))), ["F20"]);
    assert!(said(|h| h.ended.push(ended(false))).is_empty());
    let broken = |h: &mut History| {
        h.ops[2].outcome = Outcome::Info { status: Some(500), why: "internal".to_owned() };
    };
    assert_eq!(said(broken), ["F20"]);
}

#[test]
fn f40_nobody_is_evicted_who_lives() {
    let evicted = |h: &mut History| {
        h.evicted.push(Evicted { role: "consumer-1".to_owned(), at: 5_000_000 });
    };
    assert_eq!(said(evicted), ["F40"]);
    let frozen = |role: &str| {
        said(|h| {
            evicted(h);
            h.hindered.push(Hindered { role: role.to_owned(), from: 1_000_000, to: 4_000_000 });
        })
    };
    assert_eq!(frozen("consumer-2"), ["F40"]);
    assert!(frozen("consumer-1").is_empty());
}
