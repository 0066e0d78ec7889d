//! The look at a trade that needs no second person before the venue takes it: what it was worth when it was submitted may be
//! less than what it is worth now.

use serde_json::json;

use super::{Advanced, Step};
use crate::db::Tenanted;
use crate::domain::CommandError;
use crate::domain::treasury::trade::Trade;
use crate::domain::treasury::venue::Blind;
use crate::event::kind;

impl<T: Tenanted> Step<'_, T> {
    /// Whether a submitted trade goes on by itself. Without a price that counts it waits for one. Worth more than the limit of
    /// its account it waits for a second person from here on, which emits `treasury.trade_approval_needed`.
    pub(super) async fn goes_by_itself(
        &mut self,
        trade: &mut Trade,
        done: &mut Advanced,
    ) -> Result<bool, CommandError> {
        let Some(price) = self.prices.current() else {
            let blind = if self.prices.newest.is_some() { Blind::StalePrice } else { Blind::NoPrice };
            trade.waiting = Some(blind.as_str().to_owned());
            done.blind += 1;
            return Ok(false);
        };
        trade.waiting = None;
        // What is too large to be computed is above every limit.
        let worth_usd = Trade::worth_usd(trade.sat, trade.target_price_usd, price.price_usd).ok();
        let limit_usd = self.settings.approval_limit_usd;
        if worth_usd.is_some_and(|worth| worth <= limit_usd) {
            return Ok(true);
        }
        (trade.needs_approval, trade.value_usd) = (true, worth_usd);
        let data = json!({
            "trade_id": trade.trade_id, "trade_type": trade.trade_type, "sat": trade.sat, "value_usd": worth_usd,
            "approval_limit_usd": limit_usd, "price_usd": price.price_usd.normalize(), "snapshot_id": price.snapshot_id,
            "price_at": price.at,
        });
        self.tell(kind::TREASURY_TRADE_APPROVAL_NEEDED, trade, data).await?;
        Ok(false)
    }
}
