//! Owns the ranges of the strategies' parameters in words, for whoever set one outside.
//! Promises one for every field that the check of a strategy names.
//! May be called by every module; needs nothing but its arguments.

/// What is wrong with a field that is outside its range, and what is allowed.
#[must_use]
pub fn refusal_of(field: &str) -> Option<String> {
    range_of(field).map(|range| format!("{field} must {range}"))
}

/// What a field may be, as it follows "must": of the parameters of strategies, and of their set.
#[must_use]
pub(super) fn range_of(field: &str) -> Option<&'static str> {
    const SHARE: &str = "be 0 to 1";
    const DAYS: &str = "be at least 1";
    Some(match field {
        "strategies" => "have each strategy at most once",
        "opex_coverage.days"
        | "dca_out.parts"
        | "dca_out.interval_days"
        | "volatility_trigger.every_days"
        | "hashprice_cycle.every_days" => DAYS,
        "opex_coverage.max_share_day"
        | "trailing_stop.reserve_share"
        | "stop_loss.share"
        | "fixed_share.share"
        | "volatility_trigger.share"
        | "hashprice_cycle.share"
        | "next_sell_layers.quota"
        | "next_sell_layers.cap" => SHARE,
        "trailing_stop.trail" => "be 0 or more and less than 1",
        "stop_loss.cost_multiple" => "be greater than 0 and at most 1000",
        "layered.rungs" => {
            "have at most 100 rungs, each cost_multiple greater than the one before, greater than 0 and at most 1000, \
             each share 0 to 1 and all together at most 1"
        }
        "next_sell_layers.cost_multiples" => {
            "be at most 100, each greater than the one before, greater than 0 and at most 1000"
        }
        "halving_cycle.phases" => {
            "have at most 100 phases, each from greater than the one before, 0 or more and less than 1, each share_week 0 to 1"
        }
        "volatility_trigger.threshold" | "hashprice_cycle.puell_above" => "be 0 or more",
        "hashprice_cycle.percentile_above" => "be 0 to 100",
        _ => return None,
    })
}
