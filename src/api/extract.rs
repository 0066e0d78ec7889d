//! Owns the reading of requests: JSON bodies, path and query parameters, the trace header.
//! Promises a problem that names what is wrong, and no more memory than the limit of a body.
//! Called by the handlers.

use std::str::FromStr;

use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use serde::Serialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::Api;
use super::middleware::RequestId;
use super::problem::Problem;
use crate::domain::{Caller, FieldError};
use crate::identifier::{EntityId, InvalidIdentifier, UserId};

/// Rows of a page unless the client says otherwise.
pub(super) const DEFAULT_LIMIT: usize = 50;
/// The most rows of a page.
pub(super) const MAX_LIMIT: usize = 200;

const JSON: &str = "application/json";
const CSV: &str = "text/csv";

/// The object of a JSON body.
pub(super) struct JsonObject(pub(super) Map<String, Value>);

impl FromRequest<Api> for JsonObject {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Api) -> Result<Self, Problem> {
        if !is_of(request.headers(), JSON) {
            return Err(Problem::unsupported_body("The body must be JSON", JSON));
        }
        object(&read(request, api, api.max_body_bytes).await?).map(Self)
    }
}

/// The body of an upload: the object of a JSON body, or the text of a CSV file. May be larger than other bodies.
pub(super) enum Upload {
    Json(Map<String, Value>),
    Csv(Vec<u8>),
}

impl FromRequest<Api> for Upload {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Api) -> Result<Self, Problem> {
        let csv = is_of(request.headers(), CSV);
        if !csv && !is_of(request.headers(), JSON) {
            return Err(Problem::unsupported_body(
                "The body must be JSON or CSV",
                "application/json or text/csv",
            ));
        }
        let bytes = read(request, api, api.max_upload_bytes).await?;
        if csv { Ok(Self::Csv(bytes)) } else { object(&bytes).map(Self::Json) }
    }
}

fn object(bytes: &[u8]) -> Result<Map<String, Value>, Problem> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Problem::invalid(vec![FieldError::new("body", "must be a JSON object")])),
        Err(error) => Err(Problem::malformed(error.to_string())),
    }
}

/// Whether the body is of this media type, with no other charset than UTF-8.
fn is_of(headers: &HeaderMap, media_type: &str) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()) else { return false };
    let mut parts = value.split(';').map(str::trim);
    parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case(media_type))
        && parts.filter_map(|p| p.split_once('=')).all(|(name, value)| {
            !name.eq_ignore_ascii_case("charset") || value.trim_matches('"').eq_ignore_ascii_case("utf-8")
        })
}

/// The whole body, read as it comes so that nothing beyond the limit is kept.
async fn read(request: Request, api: &Api, limit: usize) -> Result<Vec<u8>, Problem> {
    let too_large = || {
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "The body is too large")
            .detail(format!("at most {limit} bytes are taken"))
    };
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: usize| length > limit) {
        return Err(too_large());
    }
    let mut stream = request.into_body().into_data_stream();
    let collect = async {
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|_| Problem::malformed("the body ended before its end".to_owned()))?;
            if bytes.len() + chunk.len() > limit {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    };
    tokio::time::timeout(api.body_timeout, collect).await.unwrap_or_else(|_| {
        Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "body-timeout", "The body came too slowly"))
    })
}

/// The id in a path. An identifier that no entity can have is of none: 404.
pub(super) struct PathId(pub(super) Uuid);

impl FromRequestParts<Api> for PathId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        let Path(text) = Path::<String>::from_request_parts(parts, api)
            .await
            .map_err(|_| Problem::parameter("id", "must be percent-encoded UTF-8"))?;
        let id: EntityId =
            text.parse().map_err(|e: InvalidIdentifier| Problem::parameter("id", e.to_string()))?;
        id.as_str().parse().map(Self).map_err(|_| Problem::not_found())
    }
}

/// The query parameters. Those a handler does not ask for are ignored.
pub(super) struct Params(Vec<(String, String)>);

impl FromRequestParts<Api> for Params {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        let Query(pairs) = Query::from_request_parts(parts, api)
            .await
            .map_err(|_| Problem::parameter("query", "must be name=value pairs"))?;
        Ok(Self(pairs))
    }
}

const CURSOR: &str = "cursor";
const OF_A_PAGE: &str = "must be the next of an earlier page";

impl Params {
    /// The value of a parameter, given at most once.
    pub(super) fn text(&self, name: &str) -> Result<Option<&str>, Problem> {
        let mut given = self.0.iter().filter(|(n, _)| n == name);
        match (given.next(), given.next()) {
            (_, Some(_)) => Err(Problem::parameter(name, "is given more than once")),
            (found, None) => Ok(found.map(|(_, value)| value.as_str())),
        }
    }

    /// The value of a parameter in another type; `allowed` says what it takes.
    pub(super) fn parsed<T: FromStr>(&self, name: &str, allowed: &str) -> Result<Option<T>, Problem> {
        let parse = |text: &str| text.parse().map_err(|_| Problem::parameter(name, allowed));
        self.text(name)?.map(parse).transpose()
    }

    /// The value of a parameter that is one of these.
    pub(super) fn one_of(&self, name: &str, allowed: &[&str]) -> Result<Option<&str>, Problem> {
        let given = self.text(name)?;
        if given.is_some_and(|given| !allowed.contains(&given)) {
            return Err(Problem::parameter(name, format!("must be one of {}", allowed.join(", "))));
        }
        Ok(given)
    }

    /// A moment.
    pub(super) fn time(&self, name: &str) -> Result<Option<DateTime<Utc>>, Problem> {
        self.moment(name, "must be a time in RFC 3339, such as 2026-01-31T12:00:00Z")
    }

    /// RFC 3339 alone: its years have four digits, and PostgreSQL knows them all.
    fn moment(&self, name: &str, allowed: &str) -> Result<Option<DateTime<Utc>>, Problem> {
        let parse = |text: &str| {
            let time = DateTime::parse_from_rfc3339(text);
            time.map(|time| time.to_utc()).map_err(|_| Problem::parameter(name, allowed))
        };
        self.text(name)?.map(parse).transpose()
    }

    /// Where an earlier page ended.
    pub(super) fn cursor<T: FromStr>(&self) -> Result<Option<T>, Problem> {
        self.parsed(CURSOR, OF_A_PAGE)
    }

    /// Where an earlier page of what is ordered by time ended.
    pub(super) fn time_cursor(&self) -> Result<Option<DateTime<Utc>>, Problem> {
        self.moment(CURSOR, OF_A_PAGE)
    }

    /// A user of the tenant.
    pub(super) fn user(&self, name: &str) -> Result<Option<UserId>, Problem> {
        self.parsed(name, &InvalidIdentifier.to_string())
    }

    /// How many rows a page has; `default` when the client does not say.
    pub(super) fn limit(&self, default: usize) -> Result<usize, Problem> {
        let allowed = format!("must be an integer from 1 to {MAX_LIMIT}");
        match self.parsed("limit", &allowed)? {
            None => Ok(default),
            Some(limit) if (1..=MAX_LIMIT).contains(&limit) => Ok(limit),
            Some(_) => Err(Problem::parameter("limit", allowed)),
        }
    }
}

/// What a command records of the request that caused it.
pub(super) struct Trace {
    request_id: String,
    traceparent: String,
    now: DateTime<Utc>,
}

impl FromRequestParts<Api> for Trace {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        let request_id = parts.extensions.get::<RequestId>().map(|id| id.0.clone()).unwrap_or_default();
        let traceparent = parts
            .headers
            .get("traceparent")
            .and_then(|v| v.to_str().ok())
            .filter(|text| is_traceparent(text))
            .unwrap_or_default()
            .to_owned();
        Ok(Self { request_id, traceparent, now: api.db.now() })
    }
}

impl Trace {
    /// The id of the request.
    pub(super) fn request_id(&self) -> &str {
        &self.request_id
    }

    /// The caller of a command.
    pub(super) fn caller<'a>(&'a self, actor: &'a UserId) -> Caller<'a> {
        Caller { actor, request_id: &self.request_id, traceparent: &self.traceparent, now: self.now }
    }
}

/// `00-<32 hex>-<16 hex>-<2 hex>` in lower case, with neither id all zero (W3C Trace Context).
fn is_traceparent(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let [version, trace, parent, flags] = parts.as_slice() else { return false };
    let hex = |text: &str, length| {
        text.len() == length && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let some = |text: &str| text.bytes().any(|b| b != b'0');
    *version == "00" && hex(trace, 32) && hex(parent, 16) && hex(flags, 2) && some(trace) && some(parent)
}

/// A page of a list, and where the next one starts.
#[derive(Serialize)]
pub(super) struct Page<T> {
    pub(super) data: Vec<T>,
    pub(super) next: Option<String>,
}

impl<T> Page<T> {
    /// From one row more than the page holds: the row tells that there is a next page.
    pub(super) fn new(mut rows: Vec<T>, limit: usize, cursor: impl Fn(&T) -> String) -> Self {
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| more).map(cursor);
        Self { data: rows, next }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn content_types() {
        for (value, taken) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/json;charset=\"UTF-8\"", true),
            ("application/json; charset=latin1", false),
            ("text/json", false),
            ("text/csv", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(value))]);
            assert_eq!(is_of(&headers, JSON), taken, "{value}");
            assert_eq!(is_of(&headers, CSV), value == "text/csv", "{value}");
        }
        assert!(!is_of(&HeaderMap::new(), JSON));
    }

    #[test]
    fn trace_contexts() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert!(is_traceparent(good));
        for bad in [
            "",
            "00",
            &good.to_uppercase(),
            &good.replace("00-", "ff-"),
            &good.replace("-01", "-01-x"),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        ] {
            assert!(!is_traceparent(bad), "{bad}");
        }
    }
}
