//! Owns the reading of a command's fields from a JSON object.
//! Promises to collect every mistake, each under the canonical name of its field, instead of stopping at the first.
//! Called by the commands of this folder. Unknown fields are ignored, and so is a `tenant_id`.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::identifier::InvalidIdentifier;

/// A field that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldError {
    /// The row of a batch, counted from 1; absent where there is one row only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub row: Option<usize>,
    /// The canonical name of the field.
    pub field: String,
    /// What is allowed, and where it helps, what to do.
    pub message: String,
}

impl FieldError {
    /// An error of one field.
    pub fn new(field: &str, message: impl Into<String>) -> Self {
        Self { row: None, field: field.to_owned(), message: message.into() }
    }

    /// The same error, of this row of a batch.
    pub fn of_row(self, row: usize) -> Self {
        Self { row: Some(row), ..self }
    }
}

/// The names of a field, the canonical one first, then what the predecessor called it.
pub type Names = &'static [&'static str];

/// A field as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Given<T> {
    /// Not given; also what a mistake reads as, once it is recorded.
    Absent,
    /// Given as an explicit null.
    Null,
    /// Given.
    Value(T),
}

impl<T> Given<T> {
    /// The value, with null like an absent field.
    pub fn value(self) -> Option<T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Absent | Self::Null => None,
        }
    }

    /// The value after a change, of a field that null clears.
    pub fn cleared(self, old: &Option<T>) -> Option<T>
    where
        T: Clone,
    {
        match self {
            Self::Value(value) => Some(value),
            Self::Absent => old.clone(),
            Self::Null => None,
        }
    }
}

/// The smallest allowed value of a decimal.
#[derive(Debug, Clone, Copy)]
pub enum Low {
    /// Must be greater.
    Above(Decimal),
    /// Must be this or greater.
    From(Decimal),
}

/// Reads the fields of one object and collects what is wrong with them.
#[derive(Debug)]
pub struct Input<'a> {
    object: &'a Map<String, Value>,
    errors: Vec<FieldError>,
}

impl<'a> Input<'a> {
    /// A reader of this object.
    pub fn new(object: &'a Map<String, Value>) -> Self {
        Self { object, errors: Vec::new() }
    }

    /// Records a mistake.
    pub fn refuse(&mut self, field: &str, message: impl Into<String>) {
        self.errors.push(FieldError::new(field, message));
    }

    /// The mistakes so far, if there are any.
    pub fn finish(self) -> Result<(), Vec<FieldError>> {
        if self.errors.is_empty() { Ok(()) } else { Err(self.errors) }
    }

    /// A field as it stands in the object.
    pub fn raw(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name)
    }

    /// Whether this field was refused.
    pub fn refused(&self, names: Names) -> bool {
        self.errors.iter().any(|e| e.field == names[0])
    }

    /// A value that must be given: records its absence, once.
    pub fn required<T>(&mut self, names: Names, given: Given<T>) -> Option<T> {
        if matches!(given, Given::Absent | Given::Null) && !self.refused(names) {
            self.refuse(names[0], "is required");
        }
        given.value()
    }

    /// The value after a change, of a field that always has one: records a null.
    pub fn kept<T: Clone>(&mut self, names: Names, given: Given<T>, old: &T) -> T {
        match given {
            Given::Value(value) => value,
            Given::Absent => old.clone(),
            Given::Null => {
                self.refuse(names[0], "must not be null or empty");
                old.clone()
            }
        }
    }

    /// A decimal, as a JSON number or a string.
    pub fn decimal(&mut self, names: Names, low: Low, high: Decimal) -> Given<Decimal> {
        self.read(names, |value| {
            let number = decimal_of(value).ok_or("must be a decimal number or a string that holds one")?;
            let (enough, bound) = match low {
                Low::Above(low) => (number > low, format!("greater than {low}")),
                Low::From(low) => (number >= low, format!("at least {low}")),
            };
            if enough && number <= high {
                Ok(number.normalize())
            } else {
                Err(format!("must be {bound} and at most {high}"))
            }
        })
    }

    /// An integer, as a JSON number or a string.
    pub fn integer(&mut self, names: Names, range: RangeInclusive<i64>) -> Given<i64> {
        self.read(names, |value| {
            let message = || format!("must be an integer from {} to {}", range.start(), range.end());
            let number = decimal_of(value).filter(Decimal::is_integer).ok_or_else(message)?;
            i64::try_from(number).ok().filter(|n| range.contains(n)).ok_or_else(message)
        })
    }

    /// true or false.
    pub fn boolean(&mut self, names: Names) -> Given<bool> {
        self.read(names, |value| value.as_bool().ok_or_else(|| "must be true or false".to_owned()))
    }

    /// Text of at most `longest` characters, without the spaces around it; empty text is like null.
    pub fn text(&mut self, names: Names, longest: usize) -> Given<String> {
        let given = self.read(names, |value| {
            let text = value.as_str().ok_or("must be a string")?.trim();
            if text.contains('\0') {
                Err("must not contain the character NUL".to_owned())
            } else if text.chars().count() > longest {
                Err(format!("must have at most {longest} characters"))
            } else {
                Ok(text.to_owned())
            }
        });
        match given {
            Given::Value(text) if text.is_empty() => Given::Null,
            given => given,
        }
    }

    /// An identifier, as a JSON string or an integer.
    pub fn identifier<T>(&mut self, names: Names) -> Given<T>
    where
        T: FromStr<Err = InvalidIdentifier> + PartialEq,
    {
        self.read(names, |value| {
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Number(n) if n.is_i64() || n.is_u64() => n.to_string(),
                _ => return Err("must be a string or an integer".to_owned()),
            };
            text.parse().map_err(|e: InvalidIdentifier| e.to_string())
        })
    }

    /// One of the names that `T` knows; its error says which they are.
    pub fn choice<T>(&mut self, names: Names) -> Given<T>
    where
        T: FromStr + PartialEq,
        T::Err: Display,
    {
        self.read(names, |value| {
            value.as_str().unwrap_or_default().parse().map_err(|e: T::Err| e.to_string())
        })
    }

    /// A moment in RFC 3339, with any offset.
    pub fn timestamp(&mut self, names: Names) -> Given<DateTime<Utc>> {
        self.read(names, |value| {
            let text = value.as_str().unwrap_or_default();
            let time = DateTime::parse_from_rfc3339(text)
                .map_err(|_| "must be a time in RFC 3339, such as 2026-01-31T12:00:00Z")?;
            Ok(time.to_utc())
        })
    }

    /// Reads a field under each name it was given; names that disagree contradict each other.
    fn read<T: PartialEq>(&mut self, names: Names, parse: impl Fn(&Value) -> Result<T, String>) -> Given<T> {
        let mut found: Option<(&str, Given<T>)> = None;
        for name in names {
            let Some(value) = self.object.get(*name) else { continue };
            let given = match value {
                Value::Null => Given::Null,
                value => match parse(value) {
                    Ok(value) => Given::Value(value),
                    Err(message) if *name == names[0] => {
                        self.refuse(names[0], message);
                        return Given::Absent;
                    }
                    Err(message) => {
                        self.refuse(names[0], format!("{message} (given as {name})"));
                        return Given::Absent;
                    }
                },
            };
            match &found {
                Some((other, earlier)) if *earlier != given => {
                    self.refuse(
                        names[0],
                        format!("{other} and {name} contradict each other: give one of them"),
                    );
                    return Given::Absent;
                }
                Some(_) => {}
                None => found = Some((name, given)),
            }
        }
        found.map_or(Given::Absent, |(_, given)| given)
    }
}

/// The exact value of a JSON number or of a string that holds one; digits beyond the 28th are rounded.
fn decimal_of(value: &Value) -> Option<Decimal> {
    let text = match value {
        Value::Number(number) => number.as_str(),
        Value::String(text) => text.trim(),
        _ => return None,
    };
    // The parser would also take `1_000`.
    if !text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E')) {
        return None;
    }
    if text.contains(['e', 'E']) { Decimal::from_scientific(text).ok() } else { text.parse().ok() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const RATE: Names = &["hashrate_ths", "hashrate"];
    const TEN: Decimal = Decimal::TEN;

    fn read<T>(
        json: Value,
        reader: impl Fn(&mut Input<'_>) -> Given<T>,
    ) -> Result<Given<T>, Vec<FieldError>> {
        let object = json.as_object().expect("an object");
        let mut input = Input::new(object);
        let given = reader(&mut input);
        input.finish().map(|()| given)
    }

    fn rate(json: Value) -> Result<Given<Decimal>, Vec<FieldError>> {
        read(json, |input| input.decimal(RATE, Low::Above(Decimal::ZERO), TEN))
    }

    #[test]
    fn decimals_are_exact_in_every_spelling() {
        let big: Value =
            serde_json::from_str(r#"{"d": 150000000000000.0, "e": 1.5e14, "f": "1.5E+14"}"#).expect("json");
        for name in ["d", "e", "f"] {
            let number = decimal_of(&big[name]).expect(name).normalize();
            assert_eq!(number.to_string(), "150000000000000");
        }
        for value in [json!(2.5), json!("2.5"), json!(" 2.50 "), json!("25e-1")] {
            assert_eq!(rate(json!({ "hashrate_ths": value })), Ok(Given::Value(Decimal::new(25, 1))));
        }
        let tiny: Value = serde_json::from_str("0.1234567890123456789012345678").expect("json");
        assert_eq!(decimal_of(&tiny).expect("28 digits").to_string(), "0.1234567890123456789012345678");
    }

    #[test]
    fn what_is_no_decimal_or_out_of_range_is_refused() {
        for value in [
            "\"\"",
            "\"x\"",
            "\"1_0\"",
            "\"NaN\"",
            "\"Infinity\"",
            "true",
            "[1]",
            "{}",
            "1e400000",
            "1e-400000",
            "\"1e99999999999\"",
        ] {
            let json = serde_json::from_str(&format!("{{\"hashrate_ths\": {value}}}")).expect("json");
            let errors = rate(json).expect_err(value);
            assert_eq!(errors[0].message, "must be a decimal number or a string that holds one", "{value}");
        }
        for value in ["0", "-0", "-1", "10.0000001", "1e20"] {
            let json = serde_json::from_str(&format!("{{\"hashrate_ths\": {value}}}")).expect("json");
            let errors = rate(json).expect_err(value);
            assert_eq!(errors[0], FieldError::new("hashrate_ths", "must be greater than 0 and at most 10"));
        }
    }

    #[test]
    fn aliases_are_taken_and_contradictions_refused() {
        assert_eq!(rate(json!({"hashrate": 5})), Ok(Given::Value(Decimal::from(5))));
        assert_eq!(rate(json!({"hashrate": 5, "hashrate_ths": "5.0"})), Ok(Given::Value(Decimal::from(5))));
        assert_eq!(rate(json!({"hashrate": null})), Ok(Given::Null));
        assert_eq!(rate(json!({"other": 1})), Ok(Given::Absent));
        for json in [json!({"hashrate": 5, "hashrate_ths": 6}), json!({"hashrate": null, "hashrate_ths": 6})]
        {
            let errors = rate(json).expect_err("contradiction");
            assert_eq!(errors[0].field, "hashrate_ths");
            assert!(errors[0].message.contains("hashrate_ths and hashrate contradict"), "{errors:?}");
        }
        let errors = rate(json!({"hashrate": -5})).expect_err("range");
        assert_eq!(errors[0].field, "hashrate_ths");
        assert!(errors[0].message.ends_with("(given as hashrate)"), "{errors:?}");
    }

    #[test]
    fn integers_text_and_times() {
        let count = |json| read(json, |i| i.integer(&["n"], 1..=100));
        assert_eq!(count(json!({"n": 5})), Ok(Given::Value(5)));
        assert_eq!(count(json!({"n": "5"})), Ok(Given::Value(5)));
        for bad in [json!(1.5), json!(0), json!(101), json!(-1), json!("x"), json!(true), json!(1e30)] {
            assert!(count(json!({ "n": bad })).is_err(), "{bad}");
        }
        let text = |json| read(json, |i| i.text(&["t"], 3));
        assert_eq!(text(json!({"t": " äöü "})), Ok(Given::Value("äöü".to_owned())));
        assert_eq!(text(json!({"t": "  "})), Ok(Given::Null));
        for bad in [json!("abcd"), json!("a\0b"), json!(5)] {
            assert!(text(json!({ "t": bad })).is_err(), "{bad}");
        }
        let time = |json| read(json, |i| i.timestamp(&["at"]));
        let noon = time(json!({"at": "2026-01-31T13:00:00+01:00"})).expect("a time").value().expect("given");
        assert_eq!(noon.to_rfc3339(), "2026-01-31T12:00:00+00:00");
        for bad in
            [json!("yesterday"), json!("2026-01-31"), json!(1_700_000_000), json!("2026-13-01T00:00:00Z")]
        {
            assert!(time(json!({ "at": bad })).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_mistake_is_collected() {
        let json = json!({"n": 0, "hashrate_ths": -1});
        let mut input = Input::new(json.as_object().expect("an object"));
        let _ = input.integer(&["n"], 1..=2);
        let _ = input.decimal(RATE, Low::Above(Decimal::ZERO), TEN);
        let model = input.text(&["model"], 10);
        assert!(input.required(&["model"], model).is_none());
        let fields: Vec<String> = input.finish().expect_err("three").into_iter().map(|e| e.field).collect();
        assert_eq!(fields, ["n", "hashrate_ths", "model"]);
    }
}
