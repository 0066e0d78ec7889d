//! Owns the one error type of the API and its form, RFC 9457.
//! Promises that a client learns what it can mend and nothing else: an unknown failure is a bare 500, logged once.
//! Called by every handler; `middleware` adds what only it knows.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value, json};
use tracing::{error, warn};

use crate::db::{SqlFailure, classify};
use crate::domain::machine::IllegalMove;
use crate::domain::{CommandError, FieldError};

/// Where the types of problems are named.
const TYPE_PREFIX: &str = "urn:hashinsight:problem:";

/// What went wrong, for the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    /// The last part of `type`.
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) detail: Option<String>,
    pub(super) errors: Vec<FieldError>,
    /// What this type of problem tells beyond the others.
    pub(super) members: Box<Map<String, Value>>,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
}

/// The document of a problem.
#[derive(Serialize)]
struct Document<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    instance: &'a str,
    request_id: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [FieldError],
    #[serde(flatten)]
    members: &'a Map<String, Value>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, name: &'static str, title: &'static str) -> Self {
        Self {
            status,
            name,
            title,
            detail: None,
            errors: Vec::new(),
            members: Box::default(),
            headers: Vec::new(),
        }
    }

    pub(super) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    fn header(mut self, name: HeaderName, value: &'static str) -> Self {
        self.headers.push((name, HeaderValue::from_static(value)));
        self
    }

    fn field(mut self, field: &str, message: impl Into<String>) -> Self {
        self.errors.push(FieldError::new(field, message));
        self
    }

    /// A query or path parameter that cannot be read.
    pub(super) fn parameter(name: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-parameter", "A parameter is not allowed")
            .detail(format!("the parameter {name} is not allowed"))
            .field(name, message)
    }

    /// A body that is no JSON.
    pub(super) fn malformed(detail: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed-json", "The body is not JSON").detail(detail)
    }

    /// A body of a kind that is not taken here.
    pub(super) fn unsupported_body(title: &'static str, allowed: &str) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", title)
            .detail(format!("send the header content-type: {allowed}"))
    }

    /// A batch of more rows than are taken at once.
    pub(super) fn too_many_rows(limit: usize) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-many-rows", "There are too many rows")
            .detail(format!("at most {limit} are taken at once: send the others in further batches"))
    }

    /// Fields that break a rule.
    pub(super) fn invalid(errors: Vec<FieldError>) -> Self {
        let mut problem =
            Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-field", "A field breaks a rule");
        problem.errors = errors;
        problem
    }

    /// No token, or none that counts.
    pub(super) fn unauthorized(token_given: bool) -> Self {
        let challenge = if token_given {
            "Bearer realm=\"hashinsight\", error=\"invalid_token\""
        } else {
            "Bearer realm=\"hashinsight\""
        };
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", "A valid bearer token is required")
            .header(header::WWW_AUTHENTICATE, challenge)
    }

    /// A token that does not allow this.
    pub(super) fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "The token does not allow this")
            .detail(detail)
            .header(header::WWW_AUTHENTICATE, "Bearer realm=\"hashinsight\", error=\"insufficient_scope\"")
    }

    pub(super) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "Not found")
    }

    /// Something that a later attempt may get.
    pub(super) fn unavailable(name: &'static str, title: &'static str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, name, title).header(header::RETRY_AFTER, "1")
    }

    /// A move that the table of an entity's states does not have.
    fn invalid_transition(illegal: &IllegalMove) -> Self {
        let mut problem =
            Self::new(StatusCode::CONFLICT, "invalid-transition", "No such move").detail(illegal.to_string());
        for (name, value) in
            [("from", json!(illegal.from)), ("to", json!(illegal.to)), ("allowed", json!(illegal.allowed))]
        {
            problem.members.insert(name.to_owned(), value);
        }
        problem
    }

    /// A failure that is ours. What it is stands in the log.
    pub(super) fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Internal error")
    }

    /// The answer, for the request it belongs to.
    pub(super) fn render(&self, instance: &str, request_id: &str) -> Response {
        let document = Document {
            r#type: format!("{TYPE_PREFIX}{}", self.name),
            title: self.title,
            status: self.status.as_u16(),
            detail: self.detail.as_deref(),
            instance,
            request_id,
            errors: &self.errors,
            members: &self.members,
        };
        let body = serde_json::to_vec(&document).unwrap_or_default();
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        for (name, value) in &self.headers {
            headers.insert(name.clone(), value.clone());
        }
        response
    }
}

/// The problem travels beside the response: the middleware renders it with the request's path and id.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<sqlx::Error> for Problem {
    fn from(error: sqlx::Error) -> Self {
        match classify(&error) {
            SqlFailure::Transient => {
                warn!(%error, "the database did not answer a request");
                Self::unavailable("database-unavailable", "The database does not answer")
            }
            SqlFailure::Permanent => {
                error!(%error, "a statement of the API failed");
                Self::internal()
            }
        }
    }
}

impl From<CommandError> for Problem {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Invalid(errors) => Self::invalid(errors),
            CommandError::NotFound => Self::not_found(),
            CommandError::Transition(illegal) => Self::invalid_transition(&illegal),
            CommandError::Rule { rule, detail } => {
                Self::new(StatusCode::CONFLICT, rule, "A rule forbids it as things stand").detail(detail)
            }
            CommandError::Sql(error) => error.into(),
            CommandError::Event(error) => {
                error!(%error, "an event could not be appended");
                Self::internal()
            }
        }
    }
}

/// No route has this path.
pub(super) async fn unknown_route() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "unknown-route", "No such route")
}

/// The route does not take this method; the router adds `Allow`.
pub(super) async fn wrong_method() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "wrong-method", "The route does not take this method")
}
