//! Owns the gate in front of the handlers: a verified token with the scope a handler needs.
//! Promises 401 for a token that does not count and 403 for one that does not allow, with no detail of the first.
//! Called by the router, before a body is read.

use std::marker::PhantomData;

use axum::extract::FromRequestParts;
use axum::http::header;
use axum::http::request::Parts;
use tracing::debug;

use super::Api;
use super::problem::Problem;
use super::token::Principal;
use crate::identifier::UserId;

/// A right that a token may give.
pub(super) trait Scope: Send + Sync {
    const NAME: &'static str;
}

macro_rules! scope {
    ($name:ident, $text:literal) => {
        pub(super) struct $name;

        impl Scope for $name {
            const NAME: &'static str = $text;
        }
    };
}

scope!(MinersRead, "miners:read");
scope!(MinersWrite, "miners:write");
scope!(PortfolioRead, "portfolio:read");
scope!(OpsRead, "ops:read");
scope!(IntelligenceRead, "intelligence:read");
scope!(OpsPlan, "ops:plan");
scope!(TreasuryRead, "treasury:read");
scope!(TreasuryTrade, "treasury:trade");
scope!(TreasuryApprove, "treasury:approve");
scope!(CrmRead, "crm:read");
scope!(CrmWrite, "crm:write");
scope!(DlqRead, "dlq:read");
scope!(DlqReplay, "dlq:replay");

/// A principal whose token has the scope `S`.
pub(super) struct Allowed<S: Scope> {
    pub(super) who: Principal,
    scope: PhantomData<S>,
}

impl<S: Scope> FromRequestParts<Api> for Allowed<S> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        let mut given = parts.headers.get_all(header::AUTHORIZATION).iter();
        let (Some(header), None) = (given.next(), given.next()) else {
            return Err(Problem::unauthorized(false));
        };
        let token = header.to_str().ok().and_then(bearer).ok_or_else(|| Problem::unauthorized(false))?;
        let principal = api.verifier.verify(token).map_err(|refused| {
            debug!(reason = %refused, "a token is refused");
            Problem::unauthorized(true)
        })?;
        if !principal.may(S::NAME) {
            return Err(Problem::forbidden(format!("the scope {} is required", S::NAME)));
        }
        Ok(Self { who: principal, scope: PhantomData })
    }
}

fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The user whom a request is about: the caller, unless it names another and `others` says that the caller may.
pub(super) fn about(
    who: &Principal,
    named: Option<UserId>,
    others: bool,
    refusal: impl Into<String>,
) -> Result<UserId, Problem> {
    match named {
        None => Ok(who.user.clone()),
        Some(user) if user == who.user || others => Ok(user),
        Some(_) => Err(Problem::forbidden(refusal)),
    }
}
