//! Reads the outbox by the difference of two snapshots, in the order of position.
//!
//! A cursor on the last position would lose the rows of a transaction that drew its positions early and committed
//! late; waiting for the oldest open transaction would stall behind any of them. Here each row carries the id of its
//! transaction, and a window holds the rows that one snapshot sees and the one before did not:
//!
//! ```text
//!   published P ──────────── reading C          rows visible in C and not in P,
//!        └── the window ────────┘               page by page in the order of position
//! ```
//!
//! A window once begun is finished under its stored C: a fresh one would hold rows below the saved position.

use chrono::NaiveDateTime;
use sqlx::PgConnection;
use uuid::Uuid;

use super::Cursor;

/// A row as the publisher needs it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct OutboxRow {
    pub position: i64,
    pub id: Uuid,
    pub aggregate_type: String,
    pub event_key: String,
    pub event_type: String,
    pub tenant_id: String,
    /// The value: PostgreSQL's text form of the payload.
    pub payload: String,
    pub schema_version: i32,
    pub traceparent: String,
    pub occurred_at: NaiveDateTime,
}

/// What one read returned: rows to hand over and the cursor to store once they are.
#[derive(Debug)]
pub struct Page {
    pub rows: Vec<OutboxRow>,
    pub after: Cursor,
}

/// The reader's place. Reading is repeatable until [`Reader::advance`].
#[derive(Debug, Clone)]
pub struct Reader {
    cursor: Cursor,
    window: Option<Window>,
    page_size: i64,
}

/// What is left of the window being read: counted once, since counting costs as much as reading.
#[derive(Debug, Clone, sqlx::FromRow)]
struct Window {
    reading: String,
    first: Option<i64>,
    last: Option<i64>,
    count: i64,
}

/// The candidates of a window. The index on xid finds them: everything from the end of P on, and the
/// transactions that were in progress in P.
macro_rules! candidates {
    ($columns:literal) => {
        concat!(
            "select ",
            $columns,
            " from event_outbox where xid >= pg_snapshot_xmax($1::text::pg_snapshot) ",
            "union all select ",
            $columns,
            " from event_outbox ",
            "where xid = any (array(select pg_snapshot_xip($1::text::pg_snapshot)))"
        )
    };
}

/// The rows of a window within bounds of position, by the index on position. `$1` P, `$2` C.
const PAGE: &str = "select position, id, aggregate_type, event_key, event_type, tenant_id, payload::text as payload, \
     schema_version, traceparent, occurred_at from event_outbox \
     where position > $3 and position <= $4 \
     and pg_visible_in_snapshot(xid, $2::text::pg_snapshot) \
     and not pg_visible_in_snapshot(xid, $1::text::pg_snapshot) \
     order by position limit $5";

/// A window that fits one page, by the index on xid: the sort is of that page only.
const SMALL_WINDOW: &str = concat!(
    "select position, id, aggregate_type, event_key, event_type, tenant_id, payload::text as payload, \
     schema_version, traceparent, occurred_at from (",
    candidates!("*"),
    " offset 0) candidate where position > $3 and position <= $4 \
     and pg_visible_in_snapshot(xid, $2::text::pg_snapshot) \
     and not pg_visible_in_snapshot(xid, $1::text::pg_snapshot) \
     order by position limit $5"
);

/// The bounds of the window up to a snapshot: `$2`, or a new one. `offset 0` keeps the planner on the index on xid.
const BOUNDS: &str = concat!(
    "select c.snapshot::text as reading, w.first, w.last, w.count from \
     (select coalesce($2::text::pg_snapshot, pg_current_snapshot()) as snapshot) c cross join lateral \
     (select min(position) as first, max(position) as last, count(*) as count from (",
    candidates!("position, xid"),
    " offset 0) candidate where position > $3 \
     and pg_visible_in_snapshot(xid, c.snapshot) \
     and not pg_visible_in_snapshot(xid, $1::text::pg_snapshot)) w"
);

/// The statements of the reader by name, for a look at their plans. `$1` P, `$2` C, `$3` the position after which to
/// read, `$4` the last position, `$5` the number of rows.
pub const STATEMENTS: [(&str, &str); 3] =
    [("bounds", BOUNDS), ("small window", SMALL_WINDOW), ("page", PAGE)];

impl Reader {
    /// Starts where the cursor stands.
    pub fn new(cursor: Cursor, page_size: u32) -> Self {
        Self { cursor, window: None, page_size: i64::from(page_size) }
    }

    /// The next page, or `None` when everything committed is published.
    pub async fn next(&mut self, conn: &mut PgConnection) -> Result<Option<Page>, sqlx::Error> {
        let floor = self.cursor.floor_position.max(self.cursor.last_position);
        let window: Window = match self.window.take() {
            Some(window) => window,
            None => {
                sqlx::query_as(BOUNDS)
                    .bind(&self.cursor.published)
                    .bind(&self.cursor.reading)
                    .bind(floor)
                    .fetch_one(&mut *conn)
                    .await?
            }
        };
        let (Some(first), Some(last)) = (window.first, window.last) else {
            // Nothing new: what C sees is published. Not stored, since an older P reads the same rows again.
            self.cursor.published = window.reading;
            self.cursor.reading = None;
            self.cursor.last_position = 0;
            return Ok(None);
        };
        let fits = window.count <= self.page_size;
        let rows: Vec<OutboxRow> = sqlx::query_as(if fits { SMALL_WINDOW } else { PAGE })
            .bind(&self.cursor.published)
            .bind(&window.reading)
            .bind(floor.max(first - 1))
            .bind(last)
            .bind(self.page_size)
            .fetch_all(conn)
            .await?;
        let after = match rows.last() {
            Some(row) if !fits => {
                let reading = Some(window.reading.clone());
                Cursor { reading, last_position: row.position, ..self.cursor.clone() }
            }
            _ => Cursor {
                published: window.reading.clone(),
                reading: None,
                last_position: 0,
                floor_position: self.cursor.floor_position,
            },
        };
        self.window = Some(window);
        Ok(Some(Page { rows, after }))
    }

    /// Moves on: the page's rows are in the log and its cursor is stored.
    pub fn advance(&mut self, page: Page) {
        let handed_over = page.rows.len() as i64;
        self.window = self
            .window
            .take()
            .filter(|_| page.after.reading.is_some())
            .map(|window| Window { count: window.count - handed_over, ..window });
        self.cursor = page.after;
    }
}
