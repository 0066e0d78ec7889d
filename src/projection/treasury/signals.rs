//! What the strategies say, and whether it is news: an event for every price would be one for nobody.

use uuid::Uuid;

use crate::db::Tenanted;
use crate::domain::treasury::signal::{self, Told};
use crate::economics::treasury::{Limit, Plan, Signal};
use crate::identifier::UserId;
use crate::projection::HandlerError;
use crate::read_model::treasury_write::{self, SignalRow};

/// By which part of what was told the satoshi must differ to be told again: a twentieth.
const NEWS: i64 = 20;
/// Why a strategy has no signal any more.
const NOTHING: &str = "its rule does not apply";

/// Stores the signals of an account; emits `treasury.signal` for those that changed. A strategy that said something and
/// does not any more, or is not chosen any more, has nothing to sell; one that cannot be evaluated says what it said last.
pub(super) async fn store<T: Tenanted>(
    tx: &mut T,
    user: &UserId,
    cause: Option<Uuid>,
    plan: &Plan,
) -> Result<(), HandlerError> {
    let tenant = tx.tenant().clone();
    let known = treasury_write::signals(tx.conn(), user).await?;
    let mut said: Vec<Said> = plan.signals.iter().map(Said::of).collect();
    let is_unknown =
        |row: &SignalRow| plan.unevaluated.iter().any(|what| what.strategy.as_str() == row.strategy);
    let silent =
        known.iter().filter(|row| said.iter().all(|said| said.strategy != row.strategy) && !is_unknown(row));
    let silent: Vec<Said> = silent.map(|row| Said::nothing(&row.strategy)).collect();
    said.extend(silent);
    for said in said {
        let old = known.iter().find(|row| row.strategy == said.strategy);
        let told = old.map(|row| (row.told_sat, row.told_limit.as_deref()));
        let limited_by = said.limit.map(name_of);
        let (told_sat, told_limit, told_at, event_id) = if is_news(told, said.sat, limited_by) {
            let event_id = signal::tell(tx, user, cause, said.told()).await?;
            (said.sat, limited_by.map(str::to_owned), tx.now(), event_id)
        } else if let Some(row) = old {
            (row.told_sat, row.told_limit.clone(), row.told_at, row.event_id)
        } else {
            continue;
        };
        let row = SignalRow {
            strategy: said.strategy,
            sat: said.sat,
            wanted_sat: said.wanted_sat,
            reason: said.reason,
            limited_by: limited_by.map(str::to_owned),
            told_sat,
            told_limit,
            told_at,
            event_id,
        };
        if old != Some(&row) {
            treasury_write::store_signal(tx.conn(), &tenant, user, &row).await?;
        }
    }
    Ok(())
}

/// What a strategy says.
struct Said {
    strategy: String,
    sat: i64,
    wanted_sat: i64,
    reason: String,
    limit: Option<Limit>,
}

impl Said {
    fn of(signal: &Signal) -> Self {
        let count = |sat: u64| i64::try_from(sat).unwrap_or(i64::MAX);
        Self {
            strategy: signal.strategy.to_string(),
            sat: count(signal.sat),
            wanted_sat: count(signal.wanted_sat),
            reason: signal.reason.clone(),
            limit: signal.limit,
        }
    }

    fn nothing(strategy: &str) -> Self {
        Self { strategy: strategy.to_owned(), sat: 0, wanted_sat: 0, reason: NOTHING.to_owned(), limit: None }
    }

    fn told(&self) -> Told<'_> {
        Told {
            strategy: &self.strategy,
            sat: self.sat,
            wanted_sat: self.wanted_sat,
            reason: &self.reason,
            limit: self.limit,
        }
    }
}

/// The name in JSON, SQL and events.
fn name_of(limit: Limit) -> &'static str {
    match limit {
        Limit::Inventory => "inventory",
        Limit::Strategy => "strategy",
        Limit::DayShare => "day_share",
        Limit::Reserve => "reserve",
        Limit::MinimumOrder => "minimum_order",
    }
}

/// Whether what a strategy says now differs from what was told last: it begins or ends, another limit binds, or the
/// satoshi differ by a twentieth.
fn is_news(told: Option<(i64, Option<&str>)>, sat: i64, limit: Option<&str>) -> bool {
    let Some((told_sat, told_limit)) = told else { return true };
    let differs = (sat - told_sat).unsigned_abs();
    told_limit != limit
        || (told_sat == 0) != (sat == 0)
        || differs > 0 && differs.saturating_mul(NEWS.unsigned_abs()) >= told_sat.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_are_a_beginning_an_end_another_limit_or_a_twentieth() {
        assert!(is_news(None, 0, Some("reserve")), "said for the first time");
        for (told, now, news) in [
            ((100, None), (100, None), false),
            ((100, None), (104, None), false),
            ((100, None), (105, None), true),
            ((100, None), (95, None), true),
            ((100, None), (0, None), true),
            ((0, None), (0, None), false),
            ((0, None), (1, None), true),
            ((100, None), (100, Some("day_share")), true),
            ((100, Some("day_share")), (100, Some("reserve")), true),
        ] {
            let (sat, limit) = now;
            assert_eq!(is_news(Some(told), sat, limit), news, "{told:?} to {now:?}");
        }
    }

    #[test]
    fn names_are_those_of_json() {
        for limit in [Limit::Inventory, Limit::Strategy, Limit::DayShare, Limit::Reserve, Limit::MinimumOrder]
        {
            assert_eq!(serde_json::json!(limit), name_of(limit));
        }
    }
}
