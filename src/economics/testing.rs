//! Owns the helpers of this folder's unit tests.
//! Promises comparisons at the relative tolerance of the specification, 1e-6.
//! May be called by tests of this folder only.

use rust_decimal::Decimal;

/// A decimal from its literal.
pub(super) fn d(text: &str) -> Decimal {
    text.parse().or_else(|_| Decimal::from_scientific(text)).expect("a decimal literal")
}

/// Asserts that `actual` is `expected` within a relative 1e-6.
#[track_caller]
pub(super) fn close(actual: Decimal, expected: &str) {
    near(actual, d(expected), d("0.000001"));
}

/// Asserts that `actual` is `expected` within the relative tolerance.
#[track_caller]
pub(super) fn near(actual: Decimal, expected: Decimal, relative: Decimal) {
    assert!((actual - expected).abs() <= expected.abs() * relative, "{actual} is not {expected}");
}

/// Asserts that a figure exists and is `expected` within a relative 1e-6.
#[track_caller]
pub(super) fn some_close(actual: Option<Decimal>, expected: &str) {
    close(actual.expect("the figure exists"), expected);
}

/// A small deterministic generator (xorshift64), so property loops need no dependency and repeat exactly.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    /// A number in `0..sides`.
    pub(super) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}
