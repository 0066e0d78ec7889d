//! Owns the difficulty adjustment: the retarget every 2016 blocks and its projection inside an epoch.
//! Promises the consensus clamp, a factor of 4 either way, on both; the target is 600 seconds per block.
//! May be called by every module; needs nothing but its arguments.

use super::EconomicsError;
use super::exact::{dec, div, product};
use super::mining::check_difficulty;
use rust_decimal::Decimal;

/// Blocks in a difficulty epoch (consensus).
pub const EPOCH_BLOCKS: u32 = 2016;
/// Target duration of a block in seconds (consensus).
pub const BLOCK_SECONDS: u64 = 600;
/// Target duration of an epoch in seconds, 2016 * 600.
pub const EPOCH_SECONDS: u64 = EPOCH_BLOCKS as u64 * BLOCK_SECONDS;
/// An epoch counts at least a quarter and at most four times its target.
const CLAMP_SECONDS: (u64, u64) = (EPOCH_SECONDS / 4, EPOCH_SECONDS * 4);

/// Blocks of the current epoch that exist at `height`, counting the block at `height`: 1..=2016.
#[must_use]
pub fn epoch_blocks_done(height: u64) -> u32 {
    // The remainder is below 2016, so the conversion keeps its value.
    (height % u64::from(EPOCH_BLOCKS)) as u32 + 1
}

/// Difficulty after an epoch that took `actual_seconds`: `old * 1_209_600 / clamp(actual, 302_400, 4_838_400)`.
/// Block times are not monotone, so a zero or negative duration is possible and is clamped like any short one.
///
/// # Errors
/// [`EconomicsError::OutOfRange`] for an `old` difficulty outside 1e3..=1e18.
pub fn retarget(old: Decimal, actual_seconds: i64) -> Result<Decimal, EconomicsError> {
    check_difficulty(old)?;
    scale(old, u64::try_from(actual_seconds).unwrap_or(0))
}

/// Difficulty expected at the next retarget, `blocks_done` blocks and `elapsed_seconds` into an epoch, when the rest
/// of it comes at the target rate; clamped like the retarget itself.
///
/// # Errors
/// [`EconomicsError::OutOfRange`] for a difficulty outside 1e3..=1e18 or more than 2016 blocks.
pub fn projected_difficulty(
    current: Decimal,
    blocks_done: u32,
    elapsed_seconds: u64,
) -> Result<Decimal, EconomicsError> {
    check_difficulty(current)?;
    scale(current, projected_seconds(blocks_done, elapsed_seconds)?)
}

/// Relative change expected at the next retarget (0.025 is +2.5 %): `2016 * 600 / (e + (2016 - p) * 600) - 1` for
/// `p = blocks_done` and `e = elapsed_seconds`, clamped to -0.75..=3 as the retarget is.
///
/// # Errors
/// [`EconomicsError::OutOfRange`] for more than 2016 blocks.
pub fn projected_change(blocks_done: u32, elapsed_seconds: u64) -> Result<Decimal, EconomicsError> {
    let factor = scale(Decimal::ONE, projected_seconds(blocks_done, elapsed_seconds)?)?;
    Ok(factor - Decimal::ONE)
}

fn projected_seconds(blocks_done: u32, elapsed_seconds: u64) -> Result<u64, EconomicsError> {
    let blocks_left =
        EPOCH_BLOCKS.checked_sub(blocks_done).ok_or(EconomicsError::OutOfRange { field: "blocks_done" })?;
    Ok(elapsed_seconds.saturating_add(u64::from(blocks_left) * BLOCK_SECONDS))
}

fn scale(difficulty: Decimal, seconds: u64) -> Result<Decimal, EconomicsError> {
    const FIGURE: &str = "difficulty";
    let (shortest, longest) = CLAMP_SECONDS;
    let grown = product([difficulty, dec(EPOCH_SECONDS, 0)], FIGURE)?;
    div(grown, Decimal::from(seconds.clamp(shortest, longest)), FIGURE)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{close, d};
    use super::*;

    const DAY: i64 = 86_400;
    const TARGET: i64 = EPOCH_SECONDS as i64;

    #[test]
    fn retargets_with_the_clamp() {
        let after = |seconds| retarget(d("150e12"), seconds).expect("in range");
        close(after(27 * DAY / 2), "155.5555556e12");
        assert_eq!(after(5 * TARGET), d("37.5e12"));
        assert_eq!(after(TARGET / 10), d("600e12"));
        assert_eq!(after(TARGET), d("150e12"));
        for seconds in [0, -1, i64::MIN] {
            assert_eq!(after(seconds), d("600e12"));
        }
        assert_eq!(after(i64::MAX), d("37.5e12"));
        assert_eq!(retarget(d("1e18"), 0), Ok(d("4e18")));
        assert!(retarget(d("0"), TARGET).is_err());
    }

    #[test]
    fn projects_inside_the_epoch() {
        let percent = projected_change(1000, 570_000).expect("in range") * d("100");
        close(percent, "2.543235");
        let next = projected_difficulty(d("150e12"), 1000, 570_000).expect("in range");
        close(next, "153.8148525e12");
        assert_eq!(projected_change(0, 0), Ok(d("0")));
        assert_eq!(projected_change(2016, EPOCH_SECONDS), Ok(d("0")));
    }

    #[test]
    fn projection_is_total_and_clamped() {
        assert_eq!(projected_change(2016, 0), Ok(d("3")));
        assert_eq!(projected_change(0, u64::MAX), Ok(d("-0.75")));
        let outside = EconomicsError::OutOfRange { field: "blocks_done" };
        assert_eq!(projected_change(2017, 0), Err(outside));
    }

    #[test]
    fn position_in_the_epoch() {
        assert_eq!(epoch_blocks_done(0), 1);
        assert_eq!(epoch_blocks_done(2015), 2016);
        assert_eq!(epoch_blocks_done(2016), 1);
        assert_eq!(epoch_blocks_done(u64::MAX), (u64::MAX % 2016) as u32 + 1);
    }
}
