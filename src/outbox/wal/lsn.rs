//! A place in the write-ahead log, in PostgreSQL's notation.

use std::fmt;
use std::str::FromStr;

/// A log sequence number: a byte's distance from the start of the write-ahead log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

/// Text that is no log sequence number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no log sequence number: two hexadecimal numbers of at most 8 digits, such as 16/B374D848")]
pub struct InvalidLsn(String);

impl Lsn {
    /// How many bytes lie between an earlier place and this one; 0 if it is not earlier.
    pub fn bytes_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl FromStr for Lsn {
    type Err = InvalidLsn;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // u32::from_str_radix would take a sign.
        let half = |digits: &str| {
            let hexadecimal = digits.bytes().all(|b| b.is_ascii_hexdigit());
            u32::from_str_radix(digits, 16).ok().filter(|_| hexadecimal).map(u64::from)
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Self(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| InvalidLsn(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_order_are_postgresqls() {
        for text in ["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF", "1/0"] {
            assert_eq!(text.parse::<Lsn>().expect("valid").to_string(), text);
        }
        let parse = |text: &str| text.parse::<Lsn>().expect("valid");
        assert!(parse("0/FFFFFFFF") < parse("1/0"));
        assert_eq!(parse("1/10").bytes_since(parse("0/FFFFFFF0")), 0x20);
        assert_eq!(parse("0/1").bytes_since(parse("0/2")), 0);
        for refused in
            ["", "/", "1", "1/", "/1", "+1/1", "1/-1", "123456789/0", "0/123456789", "g/0", "1/2/3"]
        {
            assert!(refused.parse::<Lsn>().is_err(), "{refused}");
        }
    }
}
