//! Owns what every request passes: an id, a measurement, a net for panics, and limits of time and load.
//! Promises `x-request-id` on every answer and a problem document for every refusal.
//! Called by the router.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use tracing::{Instrument, error, info_span};
use uuid::Uuid;

use super::Api;
use super::problem::Problem;
use crate::identifier::EntityId;
use crate::metrics;

const REQUEST_ID: &str = "x-request-id";

/// The id of a request: the client's, if it is an identifier, or else a new one.
#[derive(Debug, Clone)]
pub(super) struct RequestId(pub(super) String);

/// The outermost layer.
pub(super) async fn every_request(mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = request_id(request.headers());
    let method = method_label(request.method());
    let path = request.uri().path().to_owned();
    let route = request.extensions().get::<MatchedPath>().map(|m| m.as_str().to_owned());
    request.extensions_mut().insert(RequestId(id.clone()));

    let span = info_span!("http", request_id = id, method, route);
    let handled = AssertUnwindSafe(next.run(request)).catch_unwind().instrument(span.clone()).await;
    let mut response = handled.unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<&str>()
            .map(|m| (*m).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_default();
        span.in_scope(|| error!(panic = message, "a handler panicked"));
        Problem::internal().into_response()
    });
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        let mut rendered = problem.render(&path, &id);
        // `Allow` was added by the router.
        if let Some(allow) = response.headers_mut().remove(header::ALLOW) {
            rendered.headers_mut().insert(header::ALLOW, allow);
        }
        response = rendered;
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let route = route.as_deref().unwrap_or("unmatched");
    metrics::http_request(method, route, response.status().as_u16(), started.elapsed().as_secs_f64());
    response
}

/// Refuses work beyond the limit and ends work that takes too long.
pub(super) async fn limits(State(api): State<Api>, request: Request, next: Next) -> Response {
    let Ok(_permit) = api.in_flight.try_acquire() else {
        return Problem::unavailable("overloaded", "Too many requests are worked on").into_response();
    };
    match tokio::time::timeout(api.request_timeout, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::unavailable("timeout", "The request took too long").into_response(),
    }
}

fn request_id(headers: &HeaderMap) -> String {
    headers
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok()?.parse::<EntityId>().ok())
        .map_or_else(|| Uuid::now_v7().to_string(), |id| id.to_string())
}

/// Clients may invent methods; a metric has room for those that exist.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "OTHER",
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::routing::get;
    use tower::ServiceExt;

    use super::*;

    async fn broken() -> &'static str {
        panic!("secret state")
    }

    #[tokio::test]
    async fn a_panic_is_a_bare_500_with_an_id() {
        let router = Router::new().route("/", get(broken)).layer(axum::middleware::from_fn(every_request));
        let request =
            Request::builder().uri("/").header(REQUEST_ID, "r1").body(Body::empty()).expect("a request");
        let response = router.oneshot(request).await.expect("an answer");
        assert_eq!(
            (response.status().as_u16(), &response.headers()[REQUEST_ID]),
            (500, &"r1".parse().expect("text"))
        );
        let body = axum::body::to_bytes(response.into_body(), 10_000).await.expect("a body");
        let text = String::from_utf8_lossy(&body);
        assert!(text.contains("\"request_id\":\"r1\"") && !text.contains("secret"), "{text}");
    }
}
