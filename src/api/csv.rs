//! Owns tables as CSV: what a spreadsheet opens.
//! Promises that no text of a user is taken for a formula, and that numbers stay numbers.
//! Called by the handlers of lists that can be exported.

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, SecondsFormat, Utc};
use rust_decimal::Decimal;
use serde::Serialize;
use tracing::error;

use super::extract::{DEFAULT_LIMIT, Page, Params};
use super::problem::Problem;

/// The most rows of a file.
const MOST_ROWS: usize = 10_000;

/// What the client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Csv,
}

impl Format {
    /// `format=csv`, or CSV as the one type the client accepts.
    pub(super) fn of(params: &Params, headers: &HeaderMap) -> Result<Self, Problem> {
        match params.text("format")? {
            Some("csv") => Ok(Self::Csv),
            Some("json") => Ok(Self::Json),
            Some(_) => Err(Problem::parameter("format", "must be json or csv")),
            None => Ok(if accepts_csv(headers) { Self::Csv } else { Self::Json }),
        }
    }

    /// How many rows of a list are asked for: a file has all of them, up to 10,000, unless the client says `limit`.
    pub(super) fn limit(self, params: &Params) -> Result<usize, Problem> {
        match self {
            Self::Csv if params.text("limit")?.is_none() => Ok(MOST_ROWS),
            _ => params.limit(DEFAULT_LIMIT),
        }
    }
}

/// Whether CSV is named before JSON, or without it. Weights are not looked at: a list names what it likes best first.
fn accepts_csv(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let types = accept.split(',').filter_map(|part| part.split(';').next()).map(str::trim);
    let known = types.filter(|name| {
        ["text/csv", "application/json", "*/*"].iter().any(|known| name.eq_ignore_ascii_case(known))
    });
    known.take(1).any(|name| name.eq_ignore_ascii_case("text/csv"))
}

/// One cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cell {
    Text(String),
    Number(Decimal),
    Empty,
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<Decimal> for Cell {
    fn from(number: Decimal) -> Self {
        Self::Number(number)
    }
}

impl From<i64> for Cell {
    fn from(number: i64) -> Self {
        Self::Number(number.into())
    }
}

impl From<DateTime<Utc>> for Cell {
    fn from(time: DateTime<Utc>) -> Self {
        Self::Text(time.to_rfc3339_opts(SecondsFormat::AutoSi, true))
    }
}

impl<T: Into<Self>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Empty, Into::into)
    }
}

impl Cell {
    /// Text that a spreadsheet would take for a formula gets an apostrophe in front; one that is a number is none.
    fn write(&self) -> String {
        match self {
            Self::Empty => String::new(),
            Self::Number(number) => number.normalize().to_string(),
            Self::Text(text)
                if text.starts_with(['=', '+', '-', '@', '\t', '\r', '\n']) && !is_number(text) =>
            {
                format!("'{text}")
            }
            Self::Text(text) => text.clone(),
        }
    }
}

fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (whole, decimals) = digits.split_once('.').unwrap_or((digits, "0"));
    let all_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    all_digits(whole) && all_digits(decimals)
}

/// How a list becomes a file.
pub(super) struct Export<T> {
    /// The header that names it.
    pub(super) file: &'static str,
    pub(super) columns: &'static [&'static str],
    pub(super) cells: fn(&T) -> Vec<Cell>,
}

impl<T: Serialize> Export<T> {
    /// A page as the client asks for it. A file of which there is more has a `Link` to the rest: `path` with what filters the
    /// list.
    pub(super) fn answer(
        &self,
        format: Format,
        page: Page<T>,
        path: &str,
        filter: &[(&str, Option<String>)],
    ) -> Result<Response, Problem> {
        if format == Format::Json {
            return Ok(Json(page).into_response());
        }
        let mut response = table(self.file, self.columns, page.data.iter().map(self.cells))?;
        if let Some(next) = page.next {
            let mut rest = format!("<{path}?format=csv&cursor={next}");
            for (name, value) in filter {
                if let Some(value) = value {
                    rest.push_str(&format!("&{name}={value}"));
                }
            }
            rest.push_str(">; rel=\"next\"");
            let rest = HeaderValue::try_from(rest).map_err(|error| {
                error!(%error, "the link to the rest of a file cannot be sent");
                Problem::internal()
            })?;
            response.headers_mut().insert(header::LINK, rest);
        }
        Ok(response)
    }
}

/// A table with a header, as a file of this name.
pub(super) fn table(
    file: &'static str,
    header: &[&str],
    rows: impl Iterator<Item = Vec<Cell>>,
) -> Result<Response, Problem> {
    let body = written(header, rows).map_err(|error| {
        error!(%error, "a table could not be written as CSV");
        Problem::internal()
    })?;
    let mut response = Response::new(Body::from(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/csv; charset=utf-8"));
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static(file));
    Ok(response)
}

fn written(header: &[&str], rows: impl Iterator<Item = Vec<Cell>>) -> Result<Vec<u8>, csv::Error> {
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    writer.write_record(header)?;
    for row in rows {
        writer.write_record(row.iter().map(Cell::write))?;
    }
    writer.into_inner().map_err(|error| error.into_error().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formulas_are_text_and_numbers_are_numbers() {
        for (text, cell) in [
            ("=1+1", "'=1+1"),
            ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
            ("-2+3", "'-2+3"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("\t=1", "'\t=1"),
            ("\r=1", "'\r=1"),
            ("-", "'-"),
            ("-1.5", "-1.5"),
            ("+3", "+3"),
            ("-1e5", "'-1e5"),
            ("plain = text", "plain = text"),
            ("", ""),
        ] {
            assert_eq!(Cell::from(text).write(), cell);
        }
        assert_eq!(Cell::from(Decimal::new(-150, 2)).write(), "-1.5");
        assert_eq!(Cell::from(None::<i64>).write(), "");
    }

    #[test]
    fn cells_are_quoted_where_csv_needs_it() {
        let rows = [vec![Cell::from("a,\"b\"\nc"), Cell::from(-5), Cell::from("=x,y")]];
        let text = written(&["one", "two", "three"], rows.into_iter()).expect("written");
        let text = String::from_utf8(text).expect("text");
        assert_eq!(text, "one,two,three\r\n\"a,\"\"b\"\"\nc\",-5,\"'=x,y\"\r\n");
    }

    #[test]
    fn the_type_named_first_counts() {
        for (accept, csv) in [
            ("text/csv", true),
            ("text/csv, */*;q=0.1", true),
            ("application/xml, Text/CSV;q=0.9", true),
            ("application/json, text/csv", false),
            ("*/*", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]);
            assert_eq!(accepts_csv(&headers), csv, "{accept}");
        }
        assert!(!accepts_csv(&HeaderMap::new()));
    }
}
