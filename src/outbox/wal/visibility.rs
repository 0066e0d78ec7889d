//! Waits until what arrived can be seen in the tables.
//!
//! The server sends a transaction once its commit is on the disk. Only then does it become visible to others: a moment
//! later, or, with a synchronous standby that does not answer, much later. Whoever heard of an event must find what it
//! is about, so a row is not handed over before.

use std::time::Duration;

use sqlx::PgConnection;
use tokio::time::sleep;

/// Between two looks at what is usually over at once.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// What is visible, as far as it was asked.
#[derive(Debug)]
pub struct Visibility {
    session: PgConnection,
    seen: Snapshot,
}

/// A snapshot of PostgreSQL: what is below `xmin`, or below `xmax` and not in progress, is visible.
#[derive(Debug, Default, PartialEq, Eq)]
struct Snapshot {
    xmin: u64,
    xmax: u64,
    in_progress: Vec<u64>,
}

impl Visibility {
    /// As this session sees it.
    pub fn of(session: PgConnection) -> Self {
        Self { session, seen: Snapshot::default() }
    }

    /// Returns when everybody sees what these transactions, which are committed, have written.
    pub async fn wait(&mut self, transactions: &[u32]) -> Result<(), sqlx::Error> {
        while !transactions.iter().all(|transaction| self.seen.sees(*transaction)) {
            let text: String =
                sqlx::query_scalar("select pg_current_snapshot()::text").fetch_one(&mut self.session).await?;
            let malformed = || sqlx::Error::Decode(format!("{text:?} is no snapshot").into());
            self.seen = Snapshot::read(&text).ok_or_else(malformed)?;
            if !transactions.iter().all(|transaction| self.seen.sees(*transaction)) {
                sleep(LOOK_AGAIN).await;
            }
        }
        Ok(())
    }
}

impl Snapshot {
    /// Reads the text form, `xmin:xmax:xip,xip,...`.
    fn read(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, ':');
        let (xmin, xmax) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let listed = parts.next()?.split(',').filter(|id| !id.is_empty());
        Some(Self { xmin, xmax, in_progress: listed.map(|id| id.parse().ok()).collect::<Option<_>>()? })
    }

    fn sees(&self, transaction: u32) -> bool {
        let id = nearest(self.xmax, transaction);
        id < self.xmin || id < self.xmax && !self.in_progress.contains(&id)
    }
}

/// The id with this lower half that is nearest to another id: of a transaction that just ended, it is the one.
fn nearest(to: u64, low: u32) -> u64 {
    let ahead = low.wrapping_sub(to as u32).cast_signed();
    to.saturating_add_signed(i64::from(ahead))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_progress_or_still_to_come_is_not_seen() {
        let snapshot = Snapshot::read("100:110:100,105").expect("a snapshot");
        assert_eq!(snapshot, Snapshot { xmin: 100, xmax: 110, in_progress: vec![100, 105] });
        let seen = |id| snapshot.sees(id);
        assert_eq!(
            [99, 100, 101, 105, 109, 110, 111].map(seen),
            [true, false, true, false, true, false, false]
        );
        assert!(Snapshot::read("7:7:").expect("a snapshot").sees(6));
        assert_eq!(Snapshot::read("7:7"), None);
        assert_eq!(Snapshot::read("7:8:x"), None);
        assert!(!Snapshot::default().sees(3), "before the first look nothing is seen");
    }

    #[test]
    fn ids_go_on_where_their_lower_half_begins_again() {
        let turn = 5 << 32;
        let snapshot = Snapshot { xmin: turn + 2, xmax: turn + 4, in_progress: vec![turn + 2] };
        assert!(snapshot.sees(u32::MAX), "the last one before the turn");
        assert!(snapshot.sees(1) && !snapshot.sees(2) && snapshot.sees(3) && !snapshot.sees(4));
        let before = Snapshot { xmin: turn - 3, xmax: turn - 1, in_progress: vec![turn - 3] };
        assert!(!before.sees(1), "assigned after the turn, and not seen yet");
    }
}
