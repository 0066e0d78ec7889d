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
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgConnection, Row};
use uuid::Uuid;

use super::Cursor;

/// A row as the publisher needs it.
#[derive(Debug, Clone, FromRow)]
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
    /// The last window did not fit one page: the next is measured before it is read.
    large: bool,
}

/// What is left of the window being read: counted once, since counting costs as much as reading.
#[derive(Debug, Clone, FromRow)]
struct Window {
    reading: String,
    first: Option<i64>,
    last: Option<i64>,
    count: i64,
}

/// What a look returned: the snapshot, and a row unless there is none.
struct Seen {
    reading: String,
    row: Option<OutboxRow>,
}

impl<'r> FromRow<'r, PgRow> for Seen {
    fn from_row(row: &'r PgRow) -> Result<Self, sqlx::Error> {
        let position: Option<i64> = row.try_get("position")?;
        let reading = row.try_get("reading")?;
        Ok(Self { reading, row: position.map(|_| OutboxRow::from_row(row)).transpose()? })
    }
}

/// Settings of the session that reads. The statements are planned once, without the values: with them, planning
/// would cost more than reading. The indexes are right whatever the statistics say, since a partition that was
/// empty when the plan was made fills up.
/// Measuring a backlog of many millions takes its time, and giving up would only begin it anew.
pub const READER_SETTINGS: [(&str, &str); 5] = [
    ("statement_timeout", "600000"),
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("jit", "off"),
];

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

/// A whole window, if it fits one page, and one row more than a page if not. By the index on xid: the sort is of
/// what is returned only.
const LOOK: &str = concat!(
    "select c.snapshot::text as reading, position, id, aggregate_type, event_key, event_type, tenant_id, \
     payload::text as payload, schema_version, traceparent, occurred_at from \
     (select coalesce($2::text::pg_snapshot, pg_current_snapshot()) as snapshot) c left join lateral \
     (select * from (",
    candidates!("*"),
    " offset 0) candidate where position > $3 \
     and pg_visible_in_snapshot(xid, c.snapshot) \
     and not pg_visible_in_snapshot(xid, $1::text::pg_snapshot) limit $4 + 1) w on true order by position"
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

/// The statements of the reader by name, for a look at their plans.
pub const STATEMENTS: [(&str, &str); 3] = [("look", LOOK), ("bounds", BOUNDS), ("page", PAGE)];

impl Reader {
    /// Starts where the cursor stands.
    pub fn new(cursor: Cursor, page_size: u32) -> Self {
        Self { cursor, window: None, page_size: i64::from(page_size), large: false }
    }

    /// The next page, or `None` when everything committed is published.
    pub async fn next(&mut self, conn: &mut PgConnection) -> Result<Option<Page>, sqlx::Error> {
        if self.window.is_none() && !self.large {
            let (reading, rows) = self.look(&mut *conn).await?;
            if rows.len() as i64 <= self.page_size {
                return Ok(self.whole_window(reading, rows));
            }
            // The snapshot of the look is no promise: nothing of it was handed over.
            self.large = true;
        }
        let window = match self.window.take() {
            Some(window) => window,
            None => self.measure(&mut *conn).await?,
        };
        let (Some(first), Some(last)) = (window.first, window.last) else {
            self.large = false;
            return Ok(self.whole_window(window.reading, Vec::new()));
        };
        let rows: Vec<OutboxRow> = sqlx::query_as(PAGE)
            .bind(&self.cursor.published)
            .bind(&window.reading)
            .bind(self.floor().max(first - 1))
            .bind(last)
            .bind(self.page_size)
            .fetch_all(conn)
            .await?;
        let after = match rows.last() {
            Some(row) if window.count > self.page_size => {
                let reading = Some(window.reading.clone());
                Cursor { reading, last_position: row.position, ..self.cursor.clone() }
            }
            _ => self.cursor_after(window.reading.clone()),
        };
        self.window = Some(window);
        Ok(Some(Page { rows, after }))
    }

    /// Moves on: the page's rows are handed over.
    pub fn advance(&mut self, page: &Page) {
        let handed_over = page.rows.len() as i64;
        self.window = self
            .window
            .take()
            .filter(|_| page.after.reading.is_some())
            .map(|window| Window { count: window.count - handed_over, ..window });
        if self.window.is_none() {
            self.large = handed_over >= self.page_size;
        }
        self.cursor = page.after.clone();
    }

    fn floor(&self) -> i64 {
        self.cursor.floor_position.max(self.cursor.last_position)
    }

    async fn look(&self, conn: &mut PgConnection) -> Result<(String, Vec<OutboxRow>), sqlx::Error> {
        let seen: Vec<Seen> = sqlx::query_as(LOOK)
            .bind(&self.cursor.published)
            .bind(&self.cursor.reading)
            .bind(self.floor())
            .bind(self.page_size)
            .fetch_all(conn)
            .await?;
        let reading = seen.first().map(|s| s.reading.clone()).ok_or(sqlx::Error::RowNotFound)?;
        Ok((reading, seen.into_iter().filter_map(|s| s.row).collect()))
    }

    async fn measure(&self, conn: &mut PgConnection) -> Result<Window, sqlx::Error> {
        sqlx::query_as(BOUNDS)
            .bind(&self.cursor.published)
            .bind(&self.cursor.reading)
            .bind(self.floor())
            .fetch_one(conn)
            .await
    }

    /// The page that ends its window. Without rows nothing needs to be stored: an older P reads the same rows again.
    fn whole_window(&mut self, reading: String, rows: Vec<OutboxRow>) -> Option<Page> {
        let after = self.cursor_after(reading);
        if rows.is_empty() {
            self.cursor = after;
            return None;
        }
        Some(Page { rows, after })
    }

    /// The cursor once the window up to a snapshot is exhausted.
    fn cursor_after(&self, reading: String) -> Cursor {
        Cursor {
            published: reading,
            reading: None,
            last_position: 0,
            floor_position: self.cursor.floor_position,
        }
    }
}
