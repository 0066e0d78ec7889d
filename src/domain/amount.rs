//! Owns the reading of amounts: US dollars and bitcoin.
//! Promises that both are exact: what has more decimals than are kept is refused and not rounded.
//! Called by the commands.

use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;
use serde_json::Value;

use super::Input;
use super::input::{Given, Low, Names};
use crate::economics::treasury::money::SAT_PER_BTC;

/// No sum may be larger.
pub(super) const MAX_USD: Decimal = Decimal::from_parts(3_567_587_328, 232, 0, false, 0);
/// Dollars, because what comes in bitcoin is worth fractions of a cent; and bitcoin, because a satoshi is not divided.
const MAX_DECIMALS: u32 = 8;
/// No more bitcoin will ever be.
const MAX_BTC: Decimal = Decimal::from_parts(21_000_000, 0, 0, false, 0);

/// An amount of US dollars, with up to eight decimals.
pub(super) fn usd(input: &mut Input<'_>, names: Names, low: Low) -> Given<Decimal> {
    exact(input, names, low, MAX_USD)
}

/// A sum of US dollars of either sign, with up to eight decimals.
pub(super) fn balance_usd(input: &mut Input<'_>, names: Names) -> Given<Decimal> {
    exact(input, names, Low::From(-MAX_USD), MAX_USD)
}

/// Bitcoin, as satoshi: more than 0, with up to eight decimals.
pub(super) fn btc(input: &mut Input<'_>, names: Names) -> Given<i64> {
    match exact(input, names, Low::Above(Decimal::ZERO), MAX_BTC) {
        Given::Value(btc) => (btc * Decimal::from(SAT_PER_BTC)).to_i64().map_or(Given::Absent, Given::Value),
        Given::Null => Given::Null,
        Given::Absent => Given::Absent,
    }
}

fn exact(input: &mut Input<'_>, names: Names, low: Low, high: Decimal) -> Given<Decimal> {
    // A number is read with 28 digits: of more, the text must tell.
    let long = names
        .iter()
        .any(|name| input.raw(name).is_some_and(|value| decimals_of(value) > MAX_DECIMALS as usize));
    match input.decimal(names, low, high) {
        Given::Value(amount) if long || amount.scale() > MAX_DECIMALS => {
            input.refuse(names[0], format!("must have at most {MAX_DECIMALS} decimals"));
            Given::Absent
        }
        given => given,
    }
}

/// Decimals as they are written, without the zeros at their end; what has an exponent is told by its value.
fn decimals_of(value: &Value) -> usize {
    let text = match value {
        Value::Number(number) => number.as_str(),
        Value::String(text) => text.trim(),
        _ => return 0,
    };
    match text.split_once('.') {
        Some((_, decimals)) if !text.contains(['e', 'E']) => decimals.trim_end_matches('0').len(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn money_is_exact_or_refused() {
        let amount = |value: Value| {
            let object = json!({ "value_usd": value });
            let mut input = Input::new(object.as_object().expect("an object"));
            let given = usd(&mut input, &["value_usd"], Low::Above(Decimal::ZERO));
            input.finish().map(|()| given)
        };
        assert_eq!(MAX_USD, Decimal::from(1_000_000_000_000_u64));
        for taken in [json!("0.1"), json!("1000000000000"), json!("0.00000001"), json!("1.500000000000")] {
            assert!(matches!(amount(taken.clone()), Ok(Given::Value(_))), "{taken}");
        }
        for refused in [json!("0"), json!(-1), json!("1000000000000.01"), json!("0.000000001"), json!("x")] {
            let errors = amount(refused.clone()).expect_err("refused");
            assert_eq!(errors[0].field, "value_usd", "{refused}");
        }
    }

    #[test]
    fn bitcoin_are_whole_satoshi_or_refused() {
        let amount = |text: &str| {
            let object = json!({ "amount": text });
            let mut input = Input::new(object.as_object().expect("an object"));
            let given = btc(&mut input, &["amount"]);
            input.finish().map(|()| given)
        };
        for (text, sat) in [
            ("1", 100_000_000),
            ("0.00000001", 1),
            ("12.5", 1_250_000_000),
            ("0.100000000000", 10_000_000),
            ("1e-8", 1),
            ("21000000", 2_100_000_000_000_000),
        ] {
            assert_eq!(amount(text), Ok(Given::Value(sat)), "{text}");
        }
        let beyond_every_digit = format!("1.{}1", "0".repeat(40));
        for text in
            ["0", "-1", "0.000000001", "0.123456789", "1e-9", "21000000.00000001", "x", &beyond_every_digit]
        {
            let errors = amount(text).expect_err("refused");
            assert_eq!(errors[0].field, "amount", "{text}");
        }
    }
}
