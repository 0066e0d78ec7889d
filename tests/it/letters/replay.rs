//! F36: a replay reaches the group that failed, once, at the tail of its key, and ends as resolved or dead.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures_util::future::join_all;
use hashinsight::config::EventLogKind::Postgres;
use hashinsight::dead_letter::{self, Verdict};
use hashinsight::doorbell::Bell;
use hashinsight::log::partition_of;
use serde_json::json;
use uuid::Uuid;

use super::ward::{Buried, Clinic, PATIENCE, Ward};
use crate::pipeline::record;
use crate::support::until;

const SHORT: Duration = Duration::from_millis(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_after_the_fix_is_applied_by_the_group_that_failed_and_by_no_other() {
    let mut ward = Ward::open(Postgres, 1).await;
    let (clinic, other) = (Clinic::with(&["poison"]), Clinic::with(&[]));
    ward.group("picky", &clinic, SHORT).await;
    ward.group("other", &other, SHORT).await;
    let poison = Uuid::now_v7();
    let dead = record("t:u", "poison", poison);
    ward.append(0, &[dead.clone(), record("t:u", "next", Uuid::now_v7())]).await;
    ward.holds("(select count(*) = 3 from event_inbox where outcome = 'applied')").await;
    ward.holds("(select count(*) = 1 from event_inbox where outcome = 'dead')").await;

    clinic.heal("poison");
    assert_eq!(
        ward.replay(&["--dry-run"]).await,
        json!({"dry_run": true, "matched": 1, "queued": 0, "skipped": 0})
    );
    let asked = ward.replay(&["--hours", "1", "--consumer", "picky", "--event-kind", "miner.updated"]).await;
    assert_eq!(asked, json!({"dry_run": false, "matched": 1, "queued": 1, "skipped": 0}));
    ward.holds("(select status = 'resolved' and resolved_at is not null from event_dlq)").await;
    assert_eq!(ward.replay(&[]).await["matched"], 0, "it is settled");

    // The original once more: it is in the inbox, whatever happened to it there.
    ward.append(0, &[dead]).await;
    ward.holds("(select bool_and(next_offset = 3) from consumer_offset where topic like '%miner')").await;
    assert_eq!(clinic.applied(), ["next", "poison"]);
    assert_eq!(other.applied(), ["poison", "next"]);
    let outcomes: i64 = ward.test.scalar("select count(*) from event_inbox where outcome = 'applied'").await;
    assert_eq!(outcomes, 4);
    assert_eq!(ward.test.scalar::<i64>("select count(*) from parked_event").await, 0);
    let (tenant, action, event): (String, String, Uuid) = sqlx::query_as(
        "select tenant_id, action, event_id from audit_log where actor like 'cli:_%' and entity_id = (select id::text from event_dlq)",
    )
    .fetch_one(&ward.test.admin)
    .await
    .expect("one entry");
    assert_eq!((tenant.as_str(), action.as_str(), event), ("t", "dlq.replay", poison));
    ward.close().await;
}

/// What a test compares of a letter before and after.
async fn state(ward: &Ward) -> (Uuid, String, i32, DateTime<Utc>, DateTime<Utc>) {
    sqlx::query_as("select id, status, retry_count, first_failed_at, last_failed_at from event_dlq")
        .fetch_one(&ward.test.admin)
        .await
        .expect("one letter")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_before_the_fix_ends_as_the_same_letter_dead_again() {
    let mut ward = Ward::open(Postgres, 1).await;
    let clinic = Clinic::with(&["poison"]);
    ward.group("picky", &clinic, Duration::from_millis(200)).await;
    ward.append(0, &[record("t:u", "poison", Uuid::now_v7())]).await;
    ward.holds("(select count(*) = 1 from event_dlq where status = 'dead')").await;
    let before = state(&ward).await;
    assert_eq!(before.2, 3);

    assert_eq!(ward.replay(&[]).await["queued"], 1);
    ward.holds("(select attempts = 1 from parked_event)").await;
    assert_eq!(ward.replay(&[]).await["matched"], 0, "while it is retried there is nothing to replay");
    // Its key waits behind it, the others do not.
    let sick = record("t:u", "behind", Uuid::now_v7());
    ward.append(0, &[sick, record("t:v", "beside", Uuid::now_v7())]).await;
    ward.holds("(select retry_count = 6 from event_dlq where status = 'dead')").await;
    ward.holds("(select count(*) = 2 from event_inbox where outcome = 'applied')").await;
    let after = state(&ward).await;
    assert_eq!((before.0, before.3), (after.0, after.3), "the same letter");
    assert!(before.4 < after.4, "it failed later");
    let journal = clinic.journal();
    assert_eq!(journal.iter().filter(|e| *e == "poison!").count(), 6);
    assert_eq!(journal.last().map(String::as_str), Some("behind"), "{journal:?}");
    assert!(
        journal.iter().position(|e| e == "beside") < journal.iter().rposition(|e| e == "poison!"),
        "{journal:?}"
    );
    let outcome: String = ward
        .test
        .scalar("select outcome from event_inbox i join event_dlq d using (consumer_name, event_id)")
        .await;
    assert_eq!(outcome, "dead");
    ward.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replays_at_once_queue_each_letter_once() {
    const LETTERS: usize = 60;
    let mut ward = Ward::open(Postgres, 2).await;
    let mut ids = Vec::new();
    for n in 0..LETTERS {
        let (key, event_id) = (format!("t:u{}", n % 20), Uuid::now_v7());
        let entity = format!("e-{n:02}");
        let value = record(&key, &entity, event_id).value.expect("a value");
        let buried = Buried {
            key: &key,
            partition: partition_of(key.as_bytes(), 2),
            offset: n as i64,
            event_id: Some(event_id),
            value: &value,
            ..Buried::default()
        };
        ids.push(ward.letter(buried).await);
    }
    let clinic = Clinic::with(&[]);
    ward.group("picky", &clinic, SHORT).await;
    let reports = tokio::join!(ward.replay(&[]), ward.replay(&["replay", "--rate", "2000"]));
    let count = |name: &str| {
        let of = |report: &serde_json::Value| report[name].as_u64().expect("a count");
        of(&reports.0) + of(&reports.1)
    };
    assert_eq!(count("queued"), LETTERS as u64, "{reports:?}");
    assert_eq!(count("matched"), count("queued") + count("skipped"), "{reports:?}");
    ward.holds("(select bool_and(status = 'resolved') from event_dlq)").await;
    let mut applied = clinic.applied();
    // Within a key in the order of the log.
    for n in 0..20 {
        let of_key: Vec<&String> =
            applied.iter().filter(|e| e[2..].parse::<usize>().expect("a number") % 20 == n).collect();
        assert!(of_key.is_sorted() && of_key.len() == 3, "{of_key:?}");
    }
    applied.sort();
    applied.dedup();
    assert_eq!(applied.len(), LETTERS, "each once");

    // Two that hold the same list: the second finds nothing left to ask for.
    ward.test.execute("update event_dlq set status = 'dead', resolved_at = null").await;
    let ask = async || {
        let mut tx = ward.test.db.worker().await.expect("begin");
        let verdicts = dead_letter::ask_for_replay(tx.conn(), &ids, "test").await.expect("asked");
        tx.commit().await.expect("commit");
        verdicts.into_iter().filter(|v| *v == Verdict::Queued).count()
    };
    let queued: Vec<usize> = join_all((0..4).map(|_| ask())).await;
    assert_eq!(queued.iter().sum::<usize>(), LETTERS, "{queued:?}");
    ward.test.bells.ring(Bell::Letters);
    ward.holds("(select bool_and(status = 'resolved') from event_dlq)").await;
    assert_eq!(clinic.applied().len(), LETTERS, "the inbox has them all: nothing is applied twice");
    ward.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_goes_to_the_tail_of_its_key() {
    let mut ward = Ward::open(Postgres, 1).await;
    let clinic = Clinic::with(&["first", "second"]);
    ward.group("picky", &clinic, Duration::from_millis(300)).await;
    ward.append(0, &[record("t:u", "first", Uuid::now_v7())]).await;
    ward.holds("(select count(*) = 1 from event_dlq where status = 'dead')").await;
    ward.append(0, &[record("t:u", "second", Uuid::now_v7()), record("t:u", "third", Uuid::now_v7())]).await;
    ward.holds("(select count(*) = 2 from parked_event)").await;
    clinic.heal("first");
    // Between the attempts of the second: the original of the key is still retrying.
    assert_eq!(ward.replay(&[]).await["queued"], 1);
    ward.holds("(select count(*) = 3 from parked_event)").await;
    ward.holds("(select count(*) = 2 from event_inbox where outcome = 'applied')").await;
    assert_eq!(clinic.applied(), ["third", "first"]);
    ward.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_whose_key_has_an_older_one_waits_for_it() {
    let ward = Ward::open(Postgres, 1).await;
    let of = |offset, kind| Buried { offset, kind: Some(kind), ..Buried::default() };
    // Bytes that were no event died before the event in front of them ran out of attempts.
    let young = ward.letter(Buried { ago: "3 hours", ..of(20, "miner.updated") }).await;
    let old = ward.letter(Buried { ago: "2 hours", ..of(10, "miner.added") }).await;
    let elsewhere = ward.letter(Buried { key: "t:v", ..of(30, "miner.updated") }).await;
    let other_group = ward.letter(Buried { group: "other", ..of(30, "miner.updated") }).await;
    let replay = async |arguments: &[&str]| {
        let mut all = vec!["replay"];
        all.extend(arguments);
        let ended = crate::support::process::run(&ward.test.environment, &all).await;
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        (ended.stdout, ended.stderr)
    };
    let (told, reasons) = replay(&["--event-kind", "miner.updated"]).await;
    assert_eq!(told, "3 dead letters matched, 2 queued, 1 skipped\n");
    let reason = format!("skipped {young}: {old} of the same key is older and dead");
    assert!(reasons.contains(&reason), "{reasons}");
    ward.holds(&format!(
        "(select array_agg(id order by id) = (select array_agg(i order by i) from unnest(array['{elsewhere}', '{other_group}']::uuid[]) i) \
         from event_dlq where status = 'replaying')"
    ))
    .await;
    let (told, reasons) = replay(&[]).await;
    assert_eq!(
        (told.as_str(), reasons.contains("skipped")),
        ("2 dead letters matched, 2 queued, 0 skipped\n", false)
    );
    let order: Vec<Uuid> = sqlx::query_scalar(
        "select id from event_dlq where raw_key = 't:u' and consumer_name = 'picky' order by requested_at",
    )
    .fetch_all(&ward.test.admin)
    .await
    .expect("asked");
    assert_eq!(order, [old, young], "in the order of the log");

    // A limit cuts at the younger end of a key.
    ward.test.execute("update event_dlq set status = 'dead', requested_at = null").await;
    assert_eq!(ward.replay(&["--consumer", "picky", "--limit", "1"]).await["queued"], 1);
    ward.holds(&format!("(select status = 'replaying' from event_dlq where id = '{old}')")).await;
    ward.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_read_is_decoded_again() {
    let mut ward = Ward::open(Postgres, 1).await;
    let clinic = Clinic::with(&[]);
    let (unreadable, arrived) = (Uuid::now_v7(), Uuid::now_v7());
    let newer = |entity: &str, id| {
        let text = String::from_utf8(record("t:u", entity, id).value.expect("a value")).expect("text");
        text.replace("\"version\":1", "\"version\":2").into_bytes()
    };
    let now = newer("of-tomorrow", unreadable);
    let also = newer("again", arrived);
    ward.append(0, &[record("t:u", "again", arrived)]).await;
    let of =
        |offset, event_id, value| Buried { offset, event_id: Some(event_id), value, ..Buried::default() };
    let first = ward.letter(of(10, unreadable, now.as_slice())).await;
    let second = ward.letter(of(11, arrived, also.as_slice())).await;
    ward.group("picky", &clinic, SHORT).await;
    assert_eq!(ward.replay(&[]).await["queued"], 2);
    ward.holds("(select bool_and(status = 'dead' and retry_count = 4) from event_dlq)").await;
    let reason: (String, String) =
        sqlx::query_as("select error_class, error_message from event_dlq where id = $1")
            .bind(first)
            .fetch_one(&ward.test.admin)
            .await
            .expect("a reason");
    assert_eq!((reason.0.as_str(), reason.1.contains("version 2")), ("unsupported_version", true));
    // The record in the log is applied beside the replays, before or after them.
    ward.holds(&format!("(select outcome = 'applied' from event_inbox where event_id = '{arrived}')")).await;
    assert_eq!(clinic.applied(), ["again"]);

    // A build that reads version 2 stands here as bytes that this one reads.
    ward.test
        .execute(
            "update event_dlq set raw_value = convert_to(replace(convert_from(raw_value, 'UTF8'), '\"version\":2', '\"version\":1'), 'UTF8')",
        )
        .await;
    assert_eq!(ward.replay(&[]).await["queued"], 2);
    ward.holds("(select bool_and(status = 'resolved') from event_dlq)").await;
    assert_eq!(
        clinic.applied(),
        ["again", "of-tomorrow"],
        "what another record brought is not applied again: {second}"
    );
    ward.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_topic_grew_the_keys_partition_of_today_picks_the_letter_up() {
    let mut ward = Ward::open(Postgres, 3).await;
    let (event_id, today) = (Uuid::now_v7(), partition_of(b"t:u", 3));
    let value = record("t:u", "poison", event_id).value.expect("a value");
    let yesterday = (today + 1) % 3;
    ward.letter(Buried {
        partition: yesterday,
        event_id: Some(event_id),
        value: &value,
        ..Buried::default()
    })
    .await;
    // The same offset of the partition of today is in the queue as well.
    ward.append(today, &[record("t:v", "poison", Uuid::now_v7())]).await;
    let clinic = Clinic::with(&["poison"]);
    ward.group("picky", &clinic, Duration::from_secs(60)).await;
    ward.holds("(select count(*) = 1 from parked_event)").await;
    assert_eq!(ward.replay(&[]).await["queued"], 1);
    let waits = format!(
        "(select array_agg(partition) = array[{today}, {today}] from parked_event where attempts = 1)"
    );
    ward.holds(&waits).await;
    ward.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_is_woken_up() {
    const ROUNDS: u32 = 4;
    let mut ward = Ward::open(Postgres, 1).await;
    ward.letter(Buried::default()).await;
    ward.group("picky", &Clinic::with(&[]), SHORT).await;
    ward.holds("(select owner_id is not null from consumer_offset where topic like '%miner')").await;
    let started = Instant::now();
    for round in 1..=ROUNDS {
        assert_eq!(ward.replay(&[]).await["queued"], 1);
        ward.holds(&format!("(select status = 'dead' and retry_count = {} from event_dlq)", 3 + round)).await;
    }
    // A worker that only polls takes at least four seconds for each but the first.
    assert!(started.elapsed() < Duration::from_secs(11), "{:?}", started.elapsed());
    ward.close().await;
}

/// More letters than the queue takes at once, most of them another partition's.
#[tokio::test(flavor = "multi_thread")]
async fn many_letters_pass_through_a_bounded_queue() {
    let mut ward = Ward::open(Postgres, 2).await;
    let key = |partition| {
        (0..).map(|n| format!("t:u{n}")).find(|k| partition_of(k.as_bytes(), 2) == partition).expect("a key")
    };
    let (ours, theirs) = (key(0), key(1));
    let template = "{\"event_id\":\"%ID\",\"kind\":\"miner.updated\",\"version\":1,\"tenant_id\":\"t\",\"user_id\":\"u\",\
                    \"entity_id\":\"e%N\",\"occurred_at\":\"2026-01-01T00:00:00Z\",\"data\":{}}";
    for (partition, key, count) in [(1, &theirs, 150), (0, &ours, 700)] {
        let sql = format!(
            "insert into event_dlq (consumer_name, event_id, event_kind, tenant_id, topic, partition, log_offset, raw_key, \
               raw_value, headers, error_class, error_message, retry_count, first_failed_at, last_failed_at, created_at) \
             select 'picky', i.id, 'miner.updated', 't', '{}', {partition}, n, '{key}', \
               convert_to(replace(replace('{template}', '%ID', i.id::text), '%N', n::text), 'UTF8'), \
               '[]', 'c', 'm', 3, now(), now(), now() + {partition} * interval '-1 minute' \
             from (select gen_random_uuid() as id, n from generate_series(1, {count}) n offset 0) i",
            ward.topic
        );
        ward.test.execute(&sql).await;
    }
    let clinic = Clinic::with(&["e1"]);
    ward.group("picky", &clinic, Duration::from_millis(600)).await;
    assert_eq!(ward.replay(&[]).await["queued"], 850);
    // While the head is retried, everything stands behind it, so what is there is what was let in.
    let mut most = 0;
    until("the heads died again", PATIENCE, async || {
        let sql =
            "select coalesce(max(n), 0) from (select count(*) n from parked_event group by partition) q";
        most = most.max(ward.test.scalar::<i64>(sql).await);
        let dead = "select count(*) = 2 from event_dlq where retry_count = 6";
        ward.test.scalar::<bool>(dead).await.then_some(())
    })
    .await;
    assert!((500..=600).contains(&most), "{most} in the queue of a partition");
    ward.holds("(select count(*) = 848 from event_dlq where status = 'resolved')").await;
    ward.holds("(select count(*) = 2 from event_dlq where status = 'dead')").await;
    ward.close().await;
}
