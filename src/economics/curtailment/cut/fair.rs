//! Owns the fair order of a cut: every customer gives the same share of its power, as far as whole miners allow.
//! Promises that no customer is cut further over its share than by the one miner that rounding gives it.
//! May be called by manual cuts only.

use super::super::super::EconomicsError;
use super::super::super::exact::{add, product, sub};
use super::Ranked;
use rust_decimal::Decimal;
use std::collections::BTreeMap;

/// The candidates in the order of a fair cut of `target_w` watt.
///
/// A customer's quota is its share of all power times the target. First come the miners that fit into the quotas,
/// lowest score first; then one more of each customer, largest unfilled quota first, of which the cut takes as many as
/// it needs. One each is enough: with them every customer is at its quota or has no miner left, and the quotas add up to
/// the target. Quotas are compared as products, `cut * all <= own * target`, so that no division decides.
pub(super) fn fair_order<'a>(
    mut ranked: Vec<Ranked<'a>>,
    target_w: Decimal,
) -> Result<Vec<Ranked<'a>>, EconomicsError> {
    const FIGURE: &str = "cut_kw";
    ranked.sort_by_key(|r| r.score);
    let mut all = Decimal::ZERO;
    let mut customers: BTreeMap<&str, (Decimal, Vec<Ranked<'a>>)> = BTreeMap::new();
    for r in ranked {
        let (own, miners) = customers.entry(&r.miner.customer).or_default();
        *own = add(*own, r.miner.power_w, FIGURE)?;
        all = add(all, r.miner.power_w, FIGURE)?;
        miners.push(r);
    }

    let (mut order, mut next) = (Vec::new(), Vec::new());
    for (own, miners) in customers.into_values() {
        let quota = product([own, target_w], FIGURE)?;
        let mut cut = Decimal::ZERO;
        let mut miners = miners.into_iter();
        for r in miners.by_ref() {
            let with = add(cut, r.miner.power_w, FIGURE)?;
            if product([with, all], FIGURE)? <= quota {
                cut = with;
                order.push(r);
            } else {
                next.push((sub(quota, product([cut, all], FIGURE)?, FIGURE)?, r));
                break;
            }
        }
    }
    // Stable: equal remainders keep the order of the customers' names.
    next.sort_by(|(a, _), (b, _)| b.cmp(a));
    order.extend(next.into_iter().map(|(_, r)| r));
    Ok(order)
}
