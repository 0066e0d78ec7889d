//! Owns JSON Web Tokens: what they must say, and how one for development is made.
//! Promises that one algorithm is accepted, whatever the header of a token asks for.
//! Called by the API for every request and by `hashinsight token jwt`.

use std::time::Duration;

use chrono::Utc;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::{AuthConfig, ConfigError};
use crate::identifier::{TenantId, UserId};

/// How far the clocks of issuer and server may be apart, seconds.
const LEEWAY_SECONDS: u64 = 30;
/// A longer token is refused unread.
const MAX_BYTES: usize = 8 * 1024;
/// A role that has every scope of its tenant.
const ADMIN: &str = "admin";

/// Who asks, as a verified token says.
#[derive(Debug, Clone)]
pub struct Principal {
    pub tenant: TenantId,
    pub user: UserId,
    admin: bool,
    scopes: Vec<String>,
}

impl Principal {
    /// Whether the token allows this.
    pub fn may(&self, scope: &str) -> bool {
        self.admin || self.scopes.iter().any(|s| s == scope)
    }

    /// Whether this principal may act for another user of its tenant.
    pub fn is_admin(&self) -> bool {
        self.admin
    }
}

/// Why a token is refused. Shown to nobody: it would help whoever forges one.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("longer than {MAX_BYTES} bytes")]
    TooLong,
    #[error("its header says it is something else than an access token")]
    Type,
    #[error("a claim has another type than it should: {0}")]
    Claim(&'static str),
    #[error(transparent)]
    Jwt(#[from] jsonwebtoken::errors::Error),
}

/// The claims. Serde refuses a claim that is given twice.
#[derive(Deserialize)]
struct Claims {
    tenant_id: TenantId,
    user_id: Option<UserId>,
    /// Free text where `user_id` names the user.
    sub: Option<Value>,
    scopes: Option<Vec<String>>,
    scope: Option<String>,
    role: Option<String>,
    // Checked by the library; named here so that a second one is refused.
    #[serde(rename = "exp")]
    _exp: Value,
    #[serde(rename = "nbf")]
    _nbf: Option<Value>,
    #[serde(rename = "iss")]
    _iss: Option<Value>,
    #[serde(rename = "aud")]
    _aud: Option<Value>,
}

/// Verifies tokens with the configured secret.
pub struct Verifier {
    key: DecodingKey,
    validation: Validation,
}

impl Verifier {
    /// A verifier for HS256.
    ///
    /// # Errors
    /// No secret is configured; a short one was refused with the configuration.
    pub fn new(auth: &AuthConfig) -> Result<Self, ConfigError> {
        let secret = secret(auth)?;
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = LEEWAY_SECONDS;
        validation.validate_nbf = true;
        validation.validate_aud = auth.audience().is_some();
        let mut required = vec!["exp"];
        if let Some(issuer) = auth.issuer() {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        if let Some(audience) = auth.audience() {
            validation.set_audience(&[audience]);
            required.push("aud");
        }
        validation.set_required_spec_claims(&required);
        Ok(Self { key: DecodingKey::from_secret(secret), validation })
    }

    /// Who asks with this token.
    pub fn verify(&self, token: &str) -> Result<Principal, Refused> {
        if token.len() > MAX_BYTES {
            return Err(Refused::TooLong);
        }
        let data = jsonwebtoken::decode::<Claims>(token, &self.key, &self.validation)?;
        let kind = data.header.typ.as_deref().unwrap_or("JWT");
        if !["JWT", "at+jwt", "application/at+jwt"].iter().any(|k| k.eq_ignore_ascii_case(kind)) {
            return Err(Refused::Type);
        }
        let claims = data.claims;
        let user = match (claims.user_id, claims.sub) {
            (Some(user), _) => user,
            (None, Some(sub)) => serde_json::from_value(sub).map_err(|_| Refused::Claim("sub"))?,
            (None, None) => return Err(Refused::Claim("user_id")),
        };
        let mut scopes = claims.scopes.unwrap_or_default();
        scopes.extend(claims.scope.iter().flat_map(|s| s.split_whitespace()).map(str::to_owned));
        Ok(Principal { tenant: claims.tenant_id, user, admin: claims.role.as_deref() == Some(ADMIN), scopes })
    }
}

/// What a development token says.
#[derive(Debug, Clone, Serialize)]
pub struct Grant<'a> {
    pub tenant_id: &'a TenantId,
    pub user_id: &'a UserId,
    pub scopes: &'a [String],
    /// `admin`, or nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'a str>,
}

#[derive(Serialize)]
struct SignedClaims<'a> {
    #[serde(flatten)]
    grant: &'a Grant<'a>,
    sub: &'a UserId,
    iat: i64,
    exp: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
}

/// Signs a token that [`Verifier::verify`] accepts for `ttl` from now.
///
/// # Errors
/// No secret is configured.
pub fn sign(auth: &AuthConfig, grant: &Grant<'_>, ttl: Duration) -> Result<String, ConfigError> {
    let secret = secret(auth)?;
    let now = Utc::now().timestamp();
    let claims = SignedClaims {
        grant,
        sub: grant.user_id,
        iat: now,
        exp: now.saturating_add(i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX)),
        iss: auth.issuer(),
        aud: auth.audience(),
    };
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(secret))
        .map_err(|e| ConfigError(format!("a token cannot be signed: {e}")))
}

fn secret(auth: &AuthConfig) -> Result<&[u8], ConfigError> {
    match auth.jwt_secret.expose_secret().as_bytes() {
        [] => Err(ConfigError(
            "auth.jwt_secret is not set: set JWT_SECRET to at least 32 random bytes, for instance of `openssl rand \
             -base64 32`"
                .to_owned(),
        )),
        secret => Ok(secret),
    }
}
