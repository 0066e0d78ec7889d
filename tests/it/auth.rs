//! Tokens: which count, and what they allow.

use chrono::Utc;
use jsonwebtoken::crypto::sign;
use jsonwebtoken::{Algorithm, EncodingKey};
use reqwest::Method;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use crate::support::{Answer, TestApi, TestDb, settings, token};

const MODEL: &str = r#"{"model":"S21"}"#;

/// Base64 as tokens use it: URL alphabet, no padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let n = chunk.iter().fold(0u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for digit in 0..=chunk.len() {
            text.push(char::from(ALPHABET[(n >> (18 - 6 * digit) & 63) as usize]));
        }
    }
    text
}

/// A token with any header and any claims, signed as HS256 whatever the header says.
fn forge(header: &str, claims: &str, secret: &str) -> String {
    let message = format!("{}.{}", base64(header.as_bytes()), base64(claims.as_bytes()));
    let signature = sign(message.as_bytes(), &EncodingKey::from_secret(secret.as_bytes()), Algorithm::HS256)
        .expect("sign");
    format!("{message}.{signature}")
}

struct Forger {
    secret: String,
    tenant: String,
}

impl Forger {
    fn of(db: &TestDb, api: &TestApi) -> Self {
        Self { secret: db.config.auth.jwt_secret.expose_secret().to_owned(), tenant: api.tenant.clone() }
    }

    /// Claims that count, until they are changed.
    fn claims(&self) -> Value {
        json!({"tenant_id": self.tenant, "user_id": "u1", "scopes": ["miners:read"],
            "exp": Utc::now().timestamp() + 600})
    }

    fn with(&self, field: &str, value: Value) -> String {
        let mut claims = self.claims();
        claims[field] = value;
        self.signed(&claims)
    }

    fn without(&self, field: &str) -> String {
        let mut claims = self.claims();
        claims.as_object_mut().expect("an object").remove(field);
        self.signed(&claims)
    }

    fn signed(&self, claims: &Value) -> String {
        forge(r#"{"alg":"HS256","typ":"JWT"}"#, &claims.to_string(), &self.secret)
    }

    fn headed(&self, header: &str) -> String {
        forge(header, &self.claims().to_string(), &self.secret)
    }
}

async fn status(api: &TestApi, token: &str) -> u16 {
    let answer = api.ask(token, Method::GET, "/api/miners", None).await;
    if answer.status == 401 {
        assert_eq!(
            answer.header("www-authenticate"),
            "Bearer realm=\"hashinsight\", error=\"invalid_token\""
        );
        assert_eq!(answer.body["detail"], Value::Null, "a refusal says nothing about the token");
    }
    answer.status.as_u16()
}

#[tokio::test]
async fn only_a_whole_and_timely_token_counts() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let forger = Forger::of(&db, &api);
    let now = Utc::now().timestamp();

    let mut by_sub = forger.claims();
    by_sub["sub"] = by_sub["user_id"].take();
    by_sub.as_object_mut().expect("an object").remove("user_id");
    for (what, token) in [
        ("as issued", forger.signed(&forger.claims())),
        ("sub instead of user_id", forger.signed(&by_sub)),
        ("sub that is no identifier beside user_id", forger.with("sub", json!("auth0|1:2"))),
        ("integers as identifiers", forger.with("user_id", json!(123))),
        ("scope with spaces", forger.with("scope", json!("other:right miners:read"))),
        ("no typ", forger.headed(r#"{"alg":"HS256"}"#)),
        ("access token", forger.headed(r#"{"alg":"HS256","typ":"at+jwt"}"#)),
        ("expired within the leeway", forger.with("exp", json!(now - 20))),
        ("valid soon, within the leeway", forger.with("nbf", json!(now + 20))),
        ("an audience nobody asked for", forger.with("aud", json!("somebody"))),
        ("admin", forger.with("role", json!("admin"))),
    ] {
        assert_eq!(status(&api, &token).await, 200, "{what}");
    }

    let good = forger.signed(&forger.claims());
    let (head, tail) = good.rsplit_once('.').expect("three parts");
    let flipped = if tail.starts_with('A') { "B" } else { "A" };
    let tampered = format!("{head}.{flipped}{}", &tail[1..]);
    let claims = forger.claims().to_string();
    let none = format!("{}.{}.", base64(br#"{"alg":"none"}"#), base64(claims.as_bytes()));
    let twice = claims.replacen('{', "{\"tenant_id\":\"other\",", 1);
    let twice_exp = claims.replacen('{', "{\"exp\":1,", 1);
    let padded = forger.with("padding", json!("x".repeat(9_000)));
    let other_payload = {
        let mut other = forger.claims();
        other["tenant_id"] = json!("other");
        let parts: Vec<&str> = good.split('.').collect();
        format!("{}.{}.{}", parts[0], base64(other.to_string().as_bytes()), parts[2])
    };
    for (what, token) in [
        ("no token at all", "nonsense".to_owned()),
        ("alg none", none),
        ("alg none, signed", forger.headed(r#"{"alg":"none"}"#)),
        ("RS256 header over an HS256 signature", forger.headed(r#"{"alg":"RS256"}"#)),
        ("HS512 header", forger.headed(r#"{"alg":"HS512"}"#)),
        ("no alg", forger.headed("{}")),
        ("another kind of token", forger.headed(r#"{"alg":"HS256","typ":"dpop+jwt"}"#)),
        ("wrong secret", forge(r#"{"alg":"HS256"}"#, &claims, "another secret of thirty-two bytes")),
        ("another signature", tampered),
        ("claims of somebody else", other_payload),
        ("no signature", format!("{head}.")),
        ("missing exp", forger.without("exp")),
        ("exp as text", forger.with("exp", json!((now + 600).to_string()))),
        ("exp null", forger.with("exp", Value::Null)),
        ("expired", forger.with("exp", json!(now - 40))),
        ("not yet valid", forger.with("nbf", json!(now + 40))),
        ("nbf as text", forger.with("nbf", json!("0"))),
        ("no tenant", forger.without("tenant_id")),
        ("tenant null", forger.with("tenant_id", Value::Null)),
        ("tenant that is no identifier", forger.with("tenant_id", json!("a:b"))),
        ("no user", forger.without("user_id")),
        ("user that is no identifier", forger.with("user_id", json!("a b"))),
        ("scopes as text", forger.with("scopes", json!("miners:read"))),
        ("tenant twice", forge(r#"{"alg":"HS256"}"#, &twice, &forger.secret)),
        ("exp twice", forge(r#"{"alg":"HS256"}"#, &twice_exp, &forger.secret)),
        ("claims that are no object", forge(r#"{"alg":"HS256"}"#, "[]", &forger.secret)),
        ("longer than 8 KiB", padded),
    ] {
        assert_eq!(status(&api, &token).await, 401, "{what}");
    }

    // No token, another scheme, two headers: there is nothing to call invalid.
    let two = api.client.get(api.url("/api/miners")).bearer_auth(&good).bearer_auth(&good);
    for request in [
        api.client.get(api.url("/api/miners")),
        api.client.get(api.url("/api/miners")).bearer_auth(""),
        api.client.get(api.url("/api/miners")).basic_auth("u", Some("p")),
        two,
    ] {
        let answer = Answer::of(request.send().await.expect("an answer")).await.expect(401);
        assert_eq!(answer.header("www-authenticate"), "Bearer realm=\"hashinsight\"");
        assert_eq!(answer.header("content-type"), "application/problem+json");
    }
}

#[tokio::test]
async fn issuer_and_audience_count_once_configured() {
    let demanding = settings(&[
        ("HASHINSIGHT__AUTH__ISSUER", "https://issuer.example"),
        ("HASHINSIGHT__AUTH__AUDIENCE", "hashinsight"),
    ]);
    let db = TestDb::with(demanding).await;
    let api = TestApi::start(&db).await;
    let forger = Forger::of(&db, &api);
    let with = |iss: Value, aud: Value| {
        let mut claims = forger.claims();
        (claims["iss"], claims["aud"]) = (iss, aud);
        forger.signed(&claims)
    };
    let (issuer, audience) = (json!("https://issuer.example"), json!("hashinsight"));
    for (expected, token) in [
        (200, with(issuer.clone(), audience.clone())),
        (200, with(issuer.clone(), json!(["other", "hashinsight"]))),
        (401, with(json!("https://issuer.example.evil"), audience.clone())),
        (401, with(issuer.clone(), json!("other"))),
        (401, with(issuer.clone(), json!(["other"]))),
        (401, with(issuer.clone(), json!([]))),
        (401, with(Value::Null, audience.clone())),
        (401, with(issuer, Value::Null)),
        (401, forger.signed(&forger.claims())),
        (200, api.token()),
    ] {
        assert_eq!(status(&api, &token).await, expected);
    }
}

#[tokio::test]
async fn every_endpoint_asks_for_its_scope_before_it_reads() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let id = api.add_miner(json!({"model": "S21"})).await;
    let (miner, status) = (format!("/api/miners/{id}"), format!("/api/miners/{id}/status"));
    let all = ["miners:read", "miners:write", "portfolio:read", "ops:plan"];
    for (method, path, scope) in [
        (Method::GET, "/api/miners", "miners:read"),
        (Method::GET, &miner, "miners:read"),
        (Method::POST, "/api/miners", "miners:write"),
        (Method::PATCH, &miner, "miners:write"),
        (Method::DELETE, &miner, "miners:write"),
        (Method::PATCH, &status, "miners:write"),
        (Method::POST, "/api/miners/sync", "miners:write"),
        (Method::POST, "/api/network/snapshots", "ops:plan"),
        (Method::GET, "/api/portfolio", "portfolio:read"),
    ] {
        let what = format!("{method} {path}");
        let others: Vec<&str> = all.into_iter().filter(|s| *s != scope).collect();
        // A body that is no JSON: who may not ask learns nothing about it.
        let ask = |token: Option<String>| {
            let request = api.client.request(method.clone(), api.url(path)).body("{");
            let request = match token {
                Some(token) => request.bearer_auth(token),
                None => request,
            };
            async { Answer::of(request.send().await.expect("an answer")).await }
        };
        assert_eq!(ask(None).await.status, 401, "{what}");
        let forbidden = ask(Some(api.token_with(&others))).await.expect(403);
        assert_eq!(forbidden.body["detail"], format!("the scope {scope} is required"), "{what}");
        assert!(forbidden.header("www-authenticate").contains("insufficient_scope"), "{what}");
        for token in [api.token_with(&[scope]), api.admin_token()] {
            if method != Method::DELETE {
                let allowed = ask(Some(token)).await.status.as_u16();
                assert!([200, 415].contains(&allowed), "{what}: {allowed}");
            }
        }
    }
    // These need no token.
    for path in ["/livez", "/readyz", "/api/miner-models"] {
        let answer = api.client.get(api.url(path)).send().await.expect("an answer");
        assert_eq!(answer.status(), 200, "{path}");
    }
}

#[tokio::test]
async fn a_token_for_development_is_what_it_says() {
    let db = TestDb::new().await;
    let api = TestApi::start(&db).await;
    let reader = token(&db.config, "somewhere", "somebody", &["miners:read"], None);
    api.ask(&reader, Method::GET, "/api/miners", None).await.expect(200);
    let body: Value = serde_json::from_str(MODEL).expect("json");
    api.ask(&reader, Method::POST, "/api/miners", Some(body)).await.expect(403);
}
