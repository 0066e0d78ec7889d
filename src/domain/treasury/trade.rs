//! Owns the trades: what is stored of one, its states, and the table of moves between them.
//! Promises that a state changes by a move of the table only; the database checks that it agrees with what is filled.
//! Called by the commands of this folder; read by the API.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::Serialize;
use uuid::Uuid;

use crate::db::{TenantTx, Tenanted};
use crate::domain::CommandError;
use crate::domain::machine::{self, IllegalMove, State, states};
use crate::economics::EconomicsError;
use crate::economics::treasury::money::{booked_usd, value_usd};
use crate::identifier::UserId;

states! {
    /// The states of a trade.
    TradeState {
        Submitted = "submitted",
        Approved = "approved",
        Executing = "executing",
        PartiallyFilled = "partially_filled",
        Executed = "executed",
        Cancelled = "cancelled",
        Failed = "failed",
    }
}

use TradeState::{Approved, Cancelled, Executed, Executing, Failed, PartiallyFilled, Submitted};

/// What moves a trade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// A second person: who submitted it may not ask for it.
    SecondPerson,
    /// The venue takes it, unless it needs a second person.
    WithinLimit,
    /// The venue.
    Venue,
}

impl machine::Rule for Rule {
    fn can_be_asked(self) -> bool {
        self == Self::SecondPerson
    }

    fn needs_reason(self) -> bool {
        false
    }
}

/// Executed, cancelled and failed are final.
pub const MACHINE: machine::Machine<TradeState, Rule> = machine::Machine {
    entity: "trade",
    moves: &[
        (Submitted, Approved, Rule::SecondPerson),
        (Submitted, Executing, Rule::WithinLimit),
        (Submitted, Cancelled, Rule::SecondPerson),
        (Approved, Executing, Rule::Venue),
        (Approved, Cancelled, Rule::SecondPerson),
        (Executing, PartiallyFilled, Rule::Venue),
        (Executing, Executed, Rule::Venue),
        (Executing, Cancelled, Rule::SecondPerson),
        (Executing, Failed, Rule::Venue),
        (PartiallyFilled, Executed, Rule::Venue),
        (PartiallyFilled, Cancelled, Rule::SecondPerson),
        (PartiallyFilled, Failed, Rule::Venue),
    ],
};

impl TradeState {
    /// Whether more of it may be filled.
    #[must_use]
    pub const fn is_open(self) -> bool {
        matches!(self, Submitted | Approved | Executing | PartiallyFilled)
    }
}

states! {
    /// What a trade does.
    TradeType {
        Buy = "buy",
        Sell = "sell",
        Hedge = "hedge",
    }
}

states! {
    /// How a trade is executed.
    Strategy {
        Market = "market",
        Limit = "limit",
        Twap = "twap",
        Vwap = "vwap",
    }
}

/// A trade, as it is stored and shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct Trade {
    #[sqlx(rename = "id")]
    pub trade_id: Uuid,
    /// The account.
    pub user_id: UserId,
    pub submitted_by: UserId,
    #[sqlx(try_from = "String")]
    pub trade_type: TradeType,
    pub asset: String,
    pub sat: i64,
    #[sqlx(try_from = "String")]
    pub execution_strategy: Strategy,
    pub target_price_usd: Option<Decimal>,
    #[sqlx(rename = "venue")]
    pub exchange: String,
    /// The strategy whose signal it follows.
    pub strategy: Option<String>,
    pub notes: Option<String>,
    /// The lots it takes, in this order; none: by the method of the account.
    pub lot_ids: Option<Vec<Uuid>>,
    #[sqlx(try_from = "String")]
    pub state: TradeState,
    pub state_reason: Option<String>,
    /// What it was worth when it was submitted, or when it turned out to need approval; none when no price was known.
    pub value_usd: Option<Decimal>,
    pub needs_approval: bool,
    pub decided_by: Option<UserId>,
    pub decided_at: Option<DateTime<Utc>>,
    /// When the venue took it.
    pub started_at: Option<DateTime<Utc>>,
    pub filled_sat: i64,
    /// Price times satoshi of what is filled, before fees.
    pub proceeds_usd: Decimal,
    pub fee_usd: Decimal,
    #[sqlx(rename = "gain_usd")]
    pub realised_gain_usd: Decimal,
    /// How many fills there are.
    pub fills: i32,
    pub filled_at: Option<DateTime<Utc>>,
    /// `no-price` or `stale-price` while it waits for a price that counts.
    pub waiting: Option<String>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

impl Trade {
    /// Moves it, if the table has the move and it is for this cause.
    pub(super) fn go(&mut self, to: TradeState, causes: impl Fn(Rule) -> bool) -> Result<(), IllegalMove> {
        MACHINE.check(self.state, to, causes)?;
        self.state = to;
        Ok(())
    }

    /// What it may be worth at a price, USD. A limit may fill far from the price of today: what it names counts where that is
    /// more. A limit alone tells no worth, since a sale fills at any price above it.
    pub(super) fn worth_usd(
        sat: i64,
        target_price_usd: Option<Decimal>,
        price_usd: Decimal,
    ) -> Result<Decimal, EconomicsError> {
        let price_usd = target_price_usd.map_or(price_usd, |target| target.max(price_usd));
        Ok(booked_usd(value_usd(sat.unsigned_abs(), price_usd)?).normalize())
    }

    /// Satoshi that are not filled.
    pub(super) fn left_sat(&self) -> i64 {
        self.sat - self.filled_sat
    }

    /// Stores everything about it that may change.
    pub(super) async fn store<T: Tenanted>(&self, tx: &mut T) -> Result<(), sqlx::Error> {
        sqlx::query(
            "update treasury_trade set state = $2, state_reason = $3, decided_by = $4, decided_at = $5, \
             started_at = $6, filled_sat = $7, proceeds_usd = $8, fee_usd = $9, gain_usd = $10, fills = $11, \
             filled_at = $12, waiting = $13, updated_at = $14, needs_approval = $15, value_usd = $16 where id = $1",
        )
        .bind(self.trade_id)
        .bind(self.state.as_str())
        .bind(&self.state_reason)
        .bind(&self.decided_by)
        .bind(self.decided_at)
        .bind(self.started_at)
        .bind(self.filled_sat)
        .bind(self.proceeds_usd)
        .bind(self.fee_usd)
        .bind(self.realised_gain_usd)
        .bind(self.fills)
        .bind(self.filled_at)
        .bind(&self.waiting)
        .bind(self.updated_at)
        .bind(self.needs_approval)
        .bind(self.value_usd)
        .execute(tx.conn())
        .await
        .map(drop)
    }
}

/// A trade of the tenant.
pub async fn get(tx: &mut TenantTx, id: Uuid) -> Result<Trade, CommandError> {
    let found =
        sqlx::query_as("select * from treasury_trade where id = $1").bind(id).fetch_optional(tx.conn());
    found.await?.ok_or(CommandError::NotFound)
}

/// Which trades a list shows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Filter<'a> {
    pub state: Option<&'a str>,
    pub trade_type: Option<&'a str>,
    /// Submitted at this moment or later.
    pub from: Option<DateTime<Utc>>,
    /// Submitted before this moment.
    pub to: Option<DateTime<Utc>>,
}

/// The list of one account, and that of all: two statements, since each has an index of its own.
macro_rules! list {
    ($whose:literal) => {
        concat!(
            "select * from treasury_trade where ",
            $whose,
            " and ($2::text is null or state = $2) \
             and ($3::text is null or trade_type = $3) and ($4::timestamptz is null or created_at >= $4) \
             and ($5::timestamptz is null or created_at < $5) and ($6::uuid is null or id > $6) order by id limit $7"
        )
    };
}

/// Up to `limit` trades of an account, or of every account of the tenant, in the order they were submitted, behind `after`.
pub async fn list(
    tx: &mut TenantTx,
    user: Option<&UserId>,
    filter: Filter<'_>,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Trade>, sqlx::Error> {
    let statement = if user.is_some() { list!("user_id = $1") } else { list!("$1::text is null") };
    sqlx::query_as(statement)
        .bind(user)
        .bind(filter.state)
        .bind(filter.trade_type)
        .bind(filter.from)
        .bind(filter.to)
        .bind(after)
        .bind(limit)
        .fetch_all(tx.conn())
        .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::machine::Rule as _;

    /// The specification: submitted -> approved -> executing -> partially_filled -> executed | cancelled | failed.
    #[test]
    fn moves_go_forward_and_end() {
        let moves: Vec<String> = MACHINE
            .moves
            .iter()
            .map(|(from, to, rule)| format!("{} {} {rule:?}", from.as_str(), to.as_str()))
            .collect();
        let expected = [
            "submitted approved SecondPerson",
            "submitted executing WithinLimit",
            "submitted cancelled SecondPerson",
            "approved executing Venue",
            "approved cancelled SecondPerson",
            "executing partially_filled Venue",
            "executing executed Venue",
            "executing cancelled SecondPerson",
            "executing failed Venue",
            "partially_filled executed Venue",
            "partially_filled cancelled SecondPerson",
            "partially_filled failed Venue",
        ];
        assert_eq!(moves, expected);
        for state in TradeState::ALL {
            let goes_on = MACHINE.moves.iter().any(|(from, ..)| from == state);
            assert_eq!(goes_on, state.is_open(), "{}", state.as_str());
            let asked = MACHINE.allowed(*state);
            assert!(asked.iter().all(|to| ["approved", "cancelled"].contains(to)), "{asked:?}");
        }
        assert!(!Rule::Venue.can_be_asked() && !Rule::WithinLimit.can_be_asked());
    }
}
