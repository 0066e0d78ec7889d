//! The secrets of endpoints: made, sealed for the database, and used to sign.
//!
//! The format is that of Standard Webhooks: `whsec_` and base64 of 32 random bytes; a signature is `v1,` and base64 of
//! HMAC-SHA256 over `{id}.{timestamp}.{body}`. Sealed is AES-256-GCM under a key derived from `webhooks.key`, bound to
//! tenant and endpoint: a sealed secret that is copied to another row opens nothing.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use ring::{hkdf, hmac};
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use uuid::Uuid;

use crate::domain::CommandError;
use crate::identifier::TenantId;

const PREFIX: &str = "whsec_";
const BYTES: usize = 32;
/// What the derived key is for.
const PURPOSE: &[&[u8]] = &[b"hashinsight webhook secrets"];
/// The first byte of what is sealed in this way.
const SEAL: u8 = 1;

/// A secret that signs.
#[derive(Debug)]
pub struct Secret(SecretSlice<u8>);

impl Secret {
    /// A new one, of the system's random numbers.
    pub fn new() -> Result<Self, CommandError> {
        let mut bytes = vec![0; BYTES];
        SystemRandom::new().fill(&mut bytes).map_err(|_| unsealable("the system gives no random numbers"))?;
        Ok(Self(bytes.into()))
    }

    /// As the tenant keeps it.
    pub fn text(&self) -> SecretString {
        format!("{PREFIX}{}", STANDARD.encode(self.0.expose_secret())).into()
    }

    /// The signature of a message, for the header `webhook-signature`.
    pub fn sign(&self, id: &str, timestamp: i64, body: &str) -> String {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, self.0.expose_secret()));
        for part in [id, ".", &timestamp.to_string(), ".", body] {
            context.update(part.as_bytes());
        }
        format!("v1,{}", STANDARD.encode(context.sign()))
    }
}

/// Seals and opens secrets.
pub struct Vault {
    key: LessSafeKey,
}

impl Vault {
    /// With the key of the configuration; none where none is set.
    pub fn new(key: &SecretString) -> Option<Self> {
        let key = key.expose_secret();
        if key.is_empty() {
            return None;
        }
        let derived = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(key.as_bytes());
        let derived = derived.expand(PURPOSE, &AES_256_GCM).ok()?;
        Some(Self { key: LessSafeKey::new(UnboundKey::from(derived)) })
    }

    /// The secret as the database keeps it.
    pub(super) fn seal(
        &self,
        secret: &Secret,
        tenant: &TenantId,
        endpoint: Uuid,
    ) -> Result<Vec<u8>, CommandError> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| unsealable("the system gives no random numbers"))?;
        let mut text = secret.0.expose_secret().to_vec();
        self.key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(bound_to(tenant, endpoint)),
                &mut text,
            )
            .map_err(|_| unsealable("a secret could not be sealed"))?;
        Ok([&[SEAL], &nonce[..], &text].concat())
    }

    /// The secret of an endpoint; none where it was sealed with another key, or for another endpoint.
    pub fn open(&self, sealed: &[u8], tenant: &TenantId, endpoint: Uuid) -> Option<Secret> {
        let (nonce, text) = sealed.strip_prefix(&[SEAL])?.split_first_chunk::<NONCE_LEN>()?;
        let mut text = text.to_vec();
        let opened = self.key.open_in_place(
            Nonce::assume_unique_for_key(*nonce),
            Aad::from(bound_to(tenant, endpoint)),
            &mut text,
        );
        Some(Secret(opened.ok()?.to_vec().into()))
    }
}

fn bound_to(tenant: &TenantId, endpoint: Uuid) -> Vec<u8> {
    format!("{tenant}:{endpoint}").into_bytes()
}

fn unsealable(what: &'static str) -> CommandError {
    CommandError::Sql(sqlx::Error::Encode(what.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of https://docs.svix.com/receiving/verifying-payloads/how-manual, in the format of Standard Webhooks.
    #[test]
    fn a_signature_is_that_of_the_published_example() {
        let bytes = STANDARD.decode("plJ3nmyCDGBKInavdOK15jsl").expect("base64");
        let secret = Secret(bytes.into());
        assert_eq!(secret.text().expose_secret(), "whsec_plJ3nmyCDGBKInavdOK15jsl");
        let body = r#"{"event_type":"ping","data":{"success":true}}"#;
        assert_eq!(
            secret.sign("msg_loFOjxBNrRLzqYUf", 1_731_705_121, body),
            "v1,rAvfW3dJ/X/qxhsaXPOyyCGmRKsaKWcsNccKXlIktD0="
        );
    }

    #[test]
    fn what_is_sealed_opens_with_the_same_key_for_the_same_endpoint() {
        let vault = Vault::new(&"a key of the tests, which is long".to_owned().into()).expect("a key");
        let (tenant, other): (TenantId, TenantId) =
            ("t".parse().expect("a tenant"), "u".parse().expect("a tenant"));
        let (id, secret) = (Uuid::now_v7(), Secret::new().expect("random"));
        let sealed = vault.seal(&secret, &tenant, id).expect("sealed");
        let clear = secret.0.expose_secret();
        assert!(!sealed.windows(clear.len()).any(|part| part == clear), "not in clear");
        let opened = vault.open(&sealed, &tenant, id).expect("opens");
        assert_eq!(opened.0.expose_secret(), clear);
        assert_ne!(sealed, vault.seal(&secret, &tenant, id).expect("sealed"), "never the same twice");

        assert!(vault.open(&sealed, &other, id).is_none());
        assert!(vault.open(&sealed, &tenant, Uuid::now_v7()).is_none());
        let another = Vault::new(&"another key of the tests, as long".to_owned().into()).expect("a key");
        assert!(another.open(&sealed, &tenant, id).is_none());
        for n in 0..sealed.len() {
            let mut broken = sealed.clone();
            broken[n] ^= 1;
            assert!(vault.open(&broken, &tenant, id).is_none(), "byte {n}");
        }
        assert!(vault.open(&[], &tenant, id).is_none() && vault.open(&[1; 8], &tenant, id).is_none());
        assert!(Vault::new(&String::new().into()).is_none());
        assert!(!format!("{secret:?}").contains(&STANDARD.encode(clear)));
    }
}
