//! Scheduled work: once across processes, by the database's clock, and nothing of it holds anything else up.

mod invoices;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use hashinsight::db::TenantTx;
use hashinsight::jobs::{Ended, Job, JobError, Progress, Run, Runner, Schedule, Settings, Step};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::support::{TestDb, until};

const LONG: Duration = Duration::from_secs(60);

/// Writes its run into a table of the test, for every tenant of another one.
struct Probe {
    /// A permit for each transaction that may end.
    gate: Semaphore,
    inside: AtomicUsize,
    most_inside: AtomicUsize,
    panics: bool,
}

impl Probe {
    fn new(permits: usize) -> Arc<Self> {
        let (inside, most_inside) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self { gate: Semaphore::new(permits), inside, most_inside, panics: false })
    }
}

#[async_trait]
impl Job for Probe {
    fn name(&self) -> &'static str {
        "probe"
    }

    fn schedule(&self) -> Schedule {
        Schedule::Every(Duration::from_secs(300))
    }

    fn tenants(&self) -> &'static str {
        "select tenant_id from probe_tenant order by 1"
    }

    async fn run(&self, tx: &mut TenantTx, run: &Run) -> Result<Progress, JobError> {
        let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_inside.fetch_max(inside, Ordering::SeqCst);
        let tenant = tx.tenant().to_string();
        let done = sqlx::query("insert into probe_run (tenant_id, run) select $1, $2 from probe_tenant where tenant_id = $1 and 1 / least(works, 1) > 0")
            .bind(&tenant)
            .bind(&run.id)
            .execute(tx.conn())
            .await;
        if done.is_ok() {
            // A test that opens no gate is over after that.
            tokio::time::timeout(LONG, self.gate.acquire()).await??.forget();
        }
        self.inside.fetch_sub(1, Ordering::SeqCst);
        assert!(!self.panics, "as the test asked for");
        done?;
        let more: bool = sqlx::query_scalar(
            "select (select works from probe_tenant where tenant_id = $1) \
             > (select count(*) from probe_run where tenant_id = $1 and run = $2)",
        )
        .bind(&tenant)
        .bind(&run.id)
        .fetch_one(tx.conn())
        .await?;
        Ok(if more { Progress::More } else { Progress::Done })
    }
}

/// A database with tenants `a`, `b` and `c`.
async fn with_tenants() -> TestDb {
    let db = TestDb::new().await;
    db.execute(
        "create table probe_tenant (tenant_id text primary key, works int not null default 1); \
         create table probe_run (tenant_id text, run text, at timestamptz not null default clock_timestamp()); \
         grant select on probe_tenant to hi_app, hi_owner; grant select, insert on probe_run to hi_app; \
         insert into probe_tenant values ('a'), ('b'), ('c')",
    )
    .await;
    db
}

async fn runner(db: &TestDb, job: &Arc<Probe>, lease: Duration) -> Runner {
    let settings = Settings { poll: Duration::from_millis(50), lease };
    let runner = Runner::new(db.db.clone(), db.bells.clone(), Arc::<Probe>::clone(job), settings);
    runner.register().await.expect("registered");
    runner
}

async fn step(runner: &Runner) -> Step {
    runner.step(&CancellationToken::new()).await.expect("a step")
}

async fn runs(db: &TestDb) -> i64 {
    db.scalar("select count(*) from probe_run").await
}

async fn due(db: &TestDb, when: &str) {
    db.execute(&format!("update scheduled_job set next_run_at = now() + interval '{when}'")).await;
}

fn well(tenants: usize) -> Ended {
    Ended { tenants, tenants_failed: 0, error: None }
}

fn ended(step: Step) -> Ended {
    match step {
        Step::Ran(ended) => ended,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_due_time_is_one_run_by_the_databases_clock() {
    let db = with_tenants().await;
    let probe = Probe::new(1_000);
    let (one, two) = (runner(&db, &probe, LONG).await, runner(&db, &probe, LONG).await);
    for round in 1..=5 {
        let (first, second) = tokio::join!(step(&one), step(&two));
        let ran = [&first, &second].into_iter().filter(|step| matches!(step, Step::Ran(_))).count();
        assert_eq!(ran, 1, "{first:?}, {second:?}");
        assert_eq!(runs(&db).await, 3 * round);
        let Step::Waiting(pause) = step(&one).await else { panic!("due again") };
        assert!((Duration::from_secs(290)..=Duration::from_secs(300)).contains(&pause), "{pause:?}");
        // Not yet, by a second; and long ago, which is made up for once.
        due(&db, "1 second").await;
        assert!(matches!(step(&two).await, Step::Waiting(_)));
        due(&db, "-10 hours").await;
    }
    assert_eq!(db.scalar::<i64>("select count(distinct run) from probe_run").await, 5);
    // Another schedule is taken over, and the same one leaves the time as it is.
    db.execute("update scheduled_job set schedule = 'every 1 s', next_run_at = now() + interval '1 day'")
        .await;
    one.register().await.expect("registered");
    assert_eq!(ended(step(&one).await), well(3));
    due(&db, "1 day").await;
    one.register().await.expect("registered");
    assert!(matches!(step(&one).await, Step::Waiting(_)));
}

#[tokio::test]
async fn a_run_that_takes_longer_than_its_interval_and_lease_is_alone() {
    let db = with_tenants().await;
    let probe = Probe::new(0);
    // Longer than a busy machine stands still.
    let lease = Duration::from_secs(5);
    let (one, two) = (runner(&db, &probe, lease).await, runner(&db, &probe, lease).await);
    let watch = async {
        until("the lease was renewed", LONG, async || {
            due(&db, "-1 second").await;
            assert!(matches!(step(&two).await, Step::Waiting(_)), "somebody is at it");
            let renewed = "lease_until > started_at + interval '7 seconds' from scheduled_job";
            db.scalar::<bool>(&format!("select {renewed}")).await.then_some(())
        })
        .await;
        probe.gate.add_permits(3);
    };
    let (first, ()) = tokio::join!(step(&one), watch);
    assert_eq!(ended(first), well(3));
    assert_eq!((runs(&db).await, probe.most_inside.load(Ordering::SeqCst)), (3, 1));
    // What it was due for meanwhile is one run.
    probe.gate.add_permits(3);
    due(&db, "-1 second").await;
    assert_eq!(ended(step(&two).await), well(3));
}

#[tokio::test]
async fn a_runner_that_lost_its_lease_rolls_back_and_writes_nothing_down() {
    let db = with_tenants().await;
    let probe = Probe::new(0);
    let lease = Duration::from_millis(1_000);
    let one = runner(&db, &probe, lease).await;
    let take = async {
        until("it is at work", LONG, async || (probe.inside.load(Ordering::SeqCst) == 1).then_some(())).await;
        db.execute("update scheduled_job set epoch = epoch + 1, owner = 'another'").await;
    };
    let (lost, ()) = tokio::join!(step(&one), take);
    assert!(matches!(lost, Step::Lost), "{lost:?}");
    assert_eq!(runs(&db).await, 0);
    assert_eq!(db.scalar::<String>("select owner from scheduled_job").await, "another");
    // Nobody renews for that other one.
    let two = runner(&db, &probe, lease).await;
    probe.gate.add_permits(6);
    until("the lease has run out", LONG, async || matches!(step(&two).await, Step::Ran(_)).then_some(()))
        .await;
    assert_eq!(runs(&db).await, 3);
}

#[tokio::test]
async fn a_stop_gives_the_job_back_after_the_transaction_that_runs() {
    let db = with_tenants().await;
    let probe = Probe::new(0);
    let one = runner(&db, &probe, LONG).await;
    let stopping = CancellationToken::new();
    let stop = async {
        until("it is at work", LONG, async || (probe.inside.load(Ordering::SeqCst) == 1).then_some(())).await;
        stopping.cancel();
        probe.gate.add_permits(1);
    };
    let (stopped, ()) = tokio::join!(one.step(&stopping), stop);
    assert!(matches!(stopped, Ok(Step::Stopped)), "{stopped:?}");
    assert_eq!(runs(&db).await, 1, "what had begun was finished");
    probe.gate.add_permits(3);
    assert_eq!(ended(step(&runner(&db, &probe, LONG).await).await), well(3));
}

#[tokio::test]
async fn a_failing_tenant_stops_nobody_and_is_tried_again_alone() {
    let db = with_tenants().await;
    let probe = Probe::new(1_000);
    let one = runner(&db, &probe, LONG).await;
    db.execute("update probe_tenant set works = 0 where tenant_id = 'b'").await;
    let first = ended(step(&one).await);
    assert_eq!((first.tenants, first.tenants_failed, runs(&db).await), (3, 1, 2));
    assert!(first.error.as_deref().is_some_and(|error| error.contains("division by zero")), "{first:?}");
    let failures = async || {
        let row: (String, i32, f64) = sqlx::query_as(
            "select f.tenant_id, f.failures, extract(epoch from f.retry_at - f.last_failed_at)::float8 \
             from scheduled_job_failure f join scheduled_job j on j.name = f.job and j.retry_at = f.retry_at",
        )
        .fetch_one(&db.admin)
        .await
        .expect("one failure, which the job waits for");
        (row.0, row.1, row.2.round() as i64)
    };
    assert_eq!(failures().await, ("b".to_owned(), 1, 60));

    // In its pause it is left alone, when the job is due as well.
    assert!(matches!(step(&one).await, Step::Waiting(pause) if pause <= Duration::from_secs(60)));
    due(&db, "-1 second").await;
    assert_eq!(ended(step(&one).await), well(2));
    assert_eq!(runs(&db).await, 4);
    assert!(
        db.scalar::<bool>("select error is not null and tenants_failed = 1 from scheduled_job").await,
        "still in view"
    );
    let next: bool = db.scalar("select next_run_at > now() + interval '4 minutes' from scheduled_job").await;
    assert!(next);

    // Then it is tried alone, and the job is due for the others when it was; the pause grows.
    let pass = "update scheduled_job_failure set retry_at = now(); update scheduled_job set retry_at = now()";
    for (failures_so_far, pause) in [(2, 120), (3, 240)] {
        db.execute(pass).await;
        let again = ended(step(&one).await);
        assert_eq!((again.tenants, again.tenants_failed), (1, 1));
        assert_eq!(failures().await, ("b".to_owned(), failures_so_far, pause));
    }
    assert!(db.scalar::<bool>("select next_run_at > now() + interval '4 minutes' from scheduled_job").await);
    let shown: (i32, i32, Option<String>) =
        sqlx::query_as("select tenants_failed, failures_in_a_row, error from scheduled_job")
            .fetch_one(&db.admin)
            .await
            .expect("the job");
    assert_eq!((shown.0, shown.1, shown.2.is_some()), (1, 3, true));

    db.execute("update probe_tenant set works = 1 where tenant_id = 'b'").await;
    db.execute(pass).await;
    assert_eq!(ended(step(&one).await), well(1));
    assert_eq!(runs(&db).await, 5);
    let rest: bool = db
        .scalar("select not exists (select from scheduled_job_failure) and retry_at is null and error is null from scheduled_job")
        .await;
    assert!(rest, "nothing is left of it");
}

#[tokio::test]
async fn a_job_that_panics_or_cannot_list_its_tenants_has_failed() {
    let db = with_tenants().await;
    let panicking = Arc::new(Probe { panics: true, ..Arc::into_inner(Probe::new(9)).expect("one holder") });
    let one = runner(&db, &panicking, LONG).await;
    let first = ended(step(&one).await);
    assert_eq!((first.tenants, first.tenants_failed), (3, 3));
    assert_eq!(first.error.as_deref(), Some("the job panicked"));
    assert_eq!(runs(&db).await, 0, "rolled back");

    db.execute("delete from scheduled_job_failure; alter table probe_tenant rename to away").await;
    due(&db, "-1 second").await;
    let second = ended(step(&one).await);
    assert!(second.error.as_deref().is_some_and(|error| error.contains("probe_tenant")), "{second:?}");
    let pause: f64 =
        db.scalar("select extract(epoch from next_run_at - finished_at)::float8 from scheduled_job").await;
    assert!((9.0..=21.0).contains(&pause), "sooner than its interval, and not at once: {pause}");
}

/// Whoever has much to do does it a part at a time, in turn with the others.
#[tokio::test]
async fn a_tenant_with_much_to_do_goes_behind_the_others() {
    let db = with_tenants().await;
    db.execute("update probe_tenant set works = case tenant_id when 'a' then 3 when 'b' then 1 else 2 end")
        .await;
    let probe = Probe::new(1_000);
    assert_eq!(ended(step(&runner(&db, &probe, LONG).await).await), well(3));
    let turns: String = db.scalar("select string_agg(tenant_id, ' ' order by at) from probe_run").await;
    assert_eq!(turns, "a b c a c a");
}

/// The look across tenants cannot write, whatever it is asked.
#[tokio::test]
async fn what_lists_tenants_writes_nothing() {
    let db = with_tenants().await;
    let delete = "delete from crm_account returning tenant_id";
    let refused = db.db.across_tenants::<(String,)>(delete, &[]).await.expect_err("read only");
    assert_eq!(refused.as_database_error().and_then(|e| e.code()).as_deref(), Some("25006"));
    let seen: Vec<(String,)> = db
        .db
        .across_tenants("select tenant_id from probe_tenant where tenant_id = $1", &["b"])
        .await
        .expect("seen");
    assert_eq!(seen, [("b".to_owned(),)]);
}
