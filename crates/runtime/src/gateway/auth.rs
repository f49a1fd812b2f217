//! Access tokens: [`Auth`] is the one type that mints and verifies them.
//!
//! Tokens are JWTs signed with Ed25519 by a key of the cluster. A token that claims any other signature is refused: we
//! choose the algorithm and the keys, not the token.

use std::collections::HashMap;
use std::sync::Arc;

use ed25519_dalek::SigningKey;
use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode,
};
use parking_lot::RwLock;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::kernel::clock::Timestamp;
use crate::kernel::entity::{Role, Scopes};
use crate::kernel::ids::{IdSource, is_valid_id};
use crate::kernel::secret::Secret;
use crate::persistence::keys;

const ISSUER: &str = "proxie";
/// Allowed difference between the clocks of nodes.
const LEEWAY_S: i64 = 5;
/// Longest token that is looked at. Longer ones are not ours, and not worth a signature check.
const MAX_TOKEN_BYTES: usize = 4_096;

/// Prefix of an Ed25519 private key in PKCS #8 (RFC 8410); the 32 bytes of the seed follow.
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    pub iss: String,
    pub aud: String,
    pub sub: String,
    pub role: Role,
    /// The user's plan, if it is not the default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    /// RFC 8693: what it may do, with spaces between. Without it: all that its role may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    pub jti: String,
    /// Time of issue in seconds since the epoch, like the two below.
    pub iat: i64,
    pub nbf: i64,
    pub exp: i64,
}

impl Claims {
    pub fn scopes(&self) -> Scopes {
        self.scope.as_deref().map_or(Scopes::ALL, Scopes::parse)
    }

    pub fn expires_at(&self) -> Timestamp {
        Timestamp::from_second(self.exp).unwrap_or(Timestamp::MAX)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    #[error("the access token is not valid")]
    Invalid,
    #[error("the access token has expired")]
    Expired,
    #[error("the access token was revoked")]
    Revoked,
}

/// What a client carries for us, as it was sealed.
#[derive(Serialize, Deserialize)]
struct SealedClaims {
    iss: String,
    /// What it is for: no access token, and nothing that was sealed for something else.
    aud: String,
    exp: i64,
    value: Value,
}

/// Times of revocation in seconds since the epoch, by `user:<id>` or `jti:<id>`.
pub type Revocations = Arc<HashMap<String, i64>>;

pub struct Auth {
    /// The cluster's keys, never empty; the first one signs. A retired key stays until the last of its tokens has
    /// expired.
    keys: RwLock<Arc<[Key]>>,
    validation: Validation,
    revocations: watch::Sender<Revocations>,
}

struct Key {
    kid: String,
    encoding: EncodingKey,
    decoding: DecodingKey,
    public: String,
}

impl Key {
    fn new(key: &keys::SigningKey) -> Self {
        let public =
            base64url(&SigningKey::from_bytes(key.secret.reveal()).verifying_key().to_bytes());
        Self {
            kid: key.kid.clone(),
            encoding: EncodingKey::from_ed_der(&[&PKCS8_PREFIX[..], key.secret.reveal()].concat()),
            decoding: DecodingKey::from_ed_components(&public)
                .expect("the public key was just encoded"),
            public,
        }
    }
}

/// A new random key, for a store that has none yet.
pub fn fresh_key() -> keys::SigningKey {
    keys::SigningKey {
        kid: format!("key_{:016x}", rand::random::<u64>()),
        secret: Secret::new(rand::random()),
    }
}

impl Auth {
    pub fn new(key: &keys::SigningKey) -> Self {
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[ISSUER]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        // Times are checked against our own clock, which tests can move.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        Self {
            keys: RwLock::new([Key::new(key)].into()),
            validation,
            revocations: watch::channel(Revocations::default()).0,
        }
    }

    /// Replaces the keys with those in the store, the signing key first. An empty list changes nothing.
    pub fn set_keys(&self, keys: &[keys::SigningKey]) {
        let known = self.keys();
        let same = keys.iter().map(|key| &key.kid).eq(known.iter().map(|key| &key.kid));
        if !same && !keys.is_empty() {
            let keys = keys.iter().map(Key::new).collect();
            *self.keys.write() = keys;
        }
    }

    fn keys(&self) -> Arc<[Key]> {
        self.keys.read().clone()
    }

    pub fn mint(&self, user_id: &str, role: Role, now: Timestamp, ttl_s: i64) -> String {
        self.mint_for(user_id, role, None, None, now, ttl_s)
    }

    pub fn mint_for(
        &self,
        user_id: &str,
        role: Role,
        tier: Option<&str>,
        scope: Option<&str>,
        now: Timestamp,
        ttl_s: i64,
    ) -> String {
        let iat = now.as_second();
        let claims = Claims {
            iss: ISSUER.into(),
            aud: ISSUER.into(),
            sub: user_id.into(),
            role,
            tier: tier.map(str::to_owned),
            scope: scope.map(str::to_owned),
            jti: IdSource::new(now, rand::random()).mint("tok"),
            iat,
            nbf: iat,
            exp: iat + ttl_s,
        };
        self.sign(&claims)
    }

    fn sign(&self, claims: &impl Serialize) -> String {
        let keys = self.keys();
        let key = keys.first().expect("there is always a key");
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(key.kid.clone());
        encode(&header, claims, &key.encoding).expect("claims serialise and the key signs")
    }

    /// The claims of a token that one of our keys has signed.
    fn checked<T: DeserializeOwned>(&self, token: &str, validation: &Validation) -> Option<T> {
        let header = decode_header(token).ok().filter(|it| it.alg == Algorithm::EdDSA)?;
        let keys = self.keys();
        let key = keys.iter().find(|key| header.kid.as_deref() == Some(&key.kid))?;
        decode::<T>(token, &key.decoding, validation).ok().map(|it| it.claims)
    }

    /// Seals what a client is to carry for us: it can be read, and not be changed. Every node opens it.
    pub fn seal(&self, purpose: &str, value: Value, now: Timestamp, ttl_s: i64) -> String {
        let (iss, aud) = (ISSUER.into(), format!("{ISSUER}/{purpose}"));
        self.sign(&SealedClaims { iss, aud, exp: now.as_second() + ttl_s, value })
    }

    /// What was sealed for this purpose, unless its time is over.
    pub fn open(&self, purpose: &str, sealed: &str, now: Timestamp) -> Option<Value> {
        let mut validation = self.validation.clone();
        validation.set_audience(&[format!("{ISSUER}/{purpose}")]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        let claims: SealedClaims = self.checked(sealed, &validation)?;
        (claims.exp > now.as_second()).then_some(claims.value)
    }

    pub fn verify(&self, token: &str, now: Timestamp) -> Result<Claims, AuthError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(AuthError::Invalid);
        }
        let claims: Claims = self.checked(token, &self.validation).ok_or(AuthError::Invalid)?;
        let now = now.as_second();
        if !is_valid_id(&claims.sub) || claims.nbf > now + LEEWAY_S || claims.iat > now + LEEWAY_S {
            return Err(AuthError::Invalid);
        }
        // A token is refused from the second of `exp` on: leeway here would only prolong it.
        if claims.exp <= now {
            return Err(AuthError::Expired);
        }
        if self.is_revoked(&claims) {
            return Err(AuthError::Revoked);
        }
        Ok(claims)
    }

    /// Whether the token is revoked. A revocation covers the user's tokens issued up to and including its own second:
    /// when in doubt, refuse.
    pub fn is_revoked(&self, claims: &Claims) -> bool {
        let revocations = self.revocations.borrow();
        if revocations.is_empty() {
            return false;
        }
        revocations.contains_key(&format!("jti:{}", claims.jti))
            || revocations.get(&format!("user:{}", claims.sub)).is_some_and(|at| claims.iat <= *at)
    }

    /// Replaces the list of revocations with the one in the store. Live connections are woken only when it has changed.
    pub fn set_revocations(&self, revocations: Vec<(String, i64)>) {
        let new: Revocations = Arc::new(revocations.into_iter().collect());
        self.revocations.send_if_modified(|old| {
            let changed = **old != *new;
            *old = new;
            changed
        });
    }

    pub fn revocations(&self) -> watch::Receiver<Revocations> {
        self.revocations.subscribe()
    }

    /// The public keys as a JSON Web Key Set (RFC 7517).
    pub fn jwks(&self) -> Value {
        let shown = |key: &Key| {
            json!({
                "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": key.kid, "x": key.public,
            })
        };
        json!({"keys": self.keys().iter().map(shown).collect::<Vec<_>>()})
    }
}

/// Base64 as in RFC 4648, URL-safe, without padding.
pub(crate) fn base64url(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let n = chunk.iter().fold(0_u32, |n, byte| n << 8 | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for at in 0..=chunk.len() {
            out.push(char::from(ALPHABET[(n >> (18 - 6 * at)) as usize & 63]));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(seed: u8) -> Auth {
        Auth::new(&keys::SigningKey { kid: "k1".into(), secret: [seed; 32].into() })
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    const NOW: i64 = 1_800_000_000;

    fn token(auth: &Auth) -> String {
        auth.mint("alice", Role::Consumer, at(NOW), 60)
    }

    #[test]
    fn a_token_says_who_and_until_when() {
        let auth = auth(1);
        let claims = auth.verify(&token(&auth), at(NOW)).unwrap();
        assert_eq!(
            (claims.sub.as_str(), claims.role, claims.exp),
            ("alice", Role::Consumer, NOW + 60)
        );
    }

    #[test]
    fn a_token_may_name_what_it_is_for() {
        let auth = auth(1);
        let scopes = |scope: Option<&str>| {
            let token = auth.mint_for("alice", Role::Consumer, None, scope, at(NOW), 60);
            auth.verify(&token, at(NOW)).unwrap().scopes()
        };
        assert!(scopes(None).have("playback"));
        let some = scopes(Some("playback  device"));
        assert!(some.have("playback") && some.have("device") && !some.have("play"));
        assert!(!scopes(Some("")).have("playback"), "nothing is not everything");
    }

    #[test]
    fn time_bounds_hold() {
        let auth = auth(1);
        let token = token(&auth);
        assert!(auth.verify(&token, at(NOW + 59)).is_ok());
        assert_eq!(auth.verify(&token, at(NOW + 60)), Err(AuthError::Expired));
        assert!(auth.verify(&token, at(NOW - 4)).is_ok());
        assert_eq!(auth.verify(&token, at(NOW - 60)), Err(AuthError::Invalid));
    }

    #[test]
    fn another_key_does_not_count() {
        assert_eq!(auth(1).verify(&token(&auth(2)), at(NOW)), Err(AuthError::Invalid));
    }

    #[test]
    fn a_key_that_no_longer_signs_verifies_while_it_is_known() {
        let key =
            |kid: &str| keys::SigningKey { kid: kid.into(), secret: [kid.len() as u8; 32].into() };
        let auth = Auth::new(&key("old"));
        let old = token(&auth);
        auth.set_keys(&[key("newer"), key("old")]);
        let new = token(&auth);
        assert_eq!(decode_header(&new).unwrap().kid.as_deref(), Some("newer"));
        assert!(auth.verify(&old, at(NOW)).is_ok() && auth.verify(&new, at(NOW)).is_ok());
        assert_eq!(auth.jwks()["keys"].as_array().unwrap().len(), 2);
        auth.set_keys(&[]);
        assert!(auth.verify(&old, at(NOW)).is_ok(), "a store without keys is no reason");
        auth.set_keys(&[key("newer")]);
        assert_eq!(auth.verify(&old, at(NOW)), Err(AuthError::Invalid));
        assert!(auth.verify(&new, at(NOW)).is_ok());
    }

    #[test]
    fn the_token_does_not_choose_its_algorithm() {
        let auth = auth(1);
        let good = token(&auth);
        let parts: Vec<&str> = good.split('.').collect();
        let none = base64url(br#"{"alg":"none","typ":"JWT","kid":"k1"}"#);
        let hs256 = base64url(br#"{"alg":"HS256","typ":"JWT","kid":"k1"}"#);
        // The classic confusion: the public key, which everybody knows, as an HMAC secret.
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some("k1".into());
        let claims = auth.verify(&good, at(NOW)).unwrap();
        let confused =
            encode(&header, &claims, &EncodingKey::from_secret(auth.keys()[0].public.as_bytes()))
                .unwrap();
        for bad in [
            format!("{none}.{}.", parts[1]),
            format!("{none}.{}.{}", parts[1], parts[2]),
            format!("{hs256}.{}.{}", parts[1], parts[2]),
            confused,
            format!("{}.{}.", parts[0], parts[1]),
            format!("{}.{}", parts[0], parts[1]),
            String::new(),
            "a.b.c".into(),
            "x".repeat(10_000),
        ] {
            assert_eq!(auth.verify(&bad, at(NOW)), Err(AuthError::Invalid), "{bad}");
        }
    }

    #[test]
    fn what_is_sealed_is_no_token_and_opens_for_its_purpose_only() {
        let (auth, value) = (auth(1), json!({"answers": {"name": "Alice"}}));
        let sealed = auth.seal("mcp", value.clone(), at(NOW), 60);
        assert_eq!(auth.open("mcp", &sealed, at(NOW + 59)), Some(value));
        assert_eq!(auth.open("mcp", &sealed, at(NOW + 60)), None, "its time is over");
        assert_eq!(auth.open("other", &sealed, at(NOW)), None);
        assert_eq!(auth.open("mcp", &format!("{sealed}x"), at(NOW)), None);
        assert_eq!(auth.open("mcp", &token(&auth), at(NOW)), None, "a token is nothing sealed");
        assert_eq!(auth.verify(&sealed, at(NOW)), Err(AuthError::Invalid));
        let stranger =
            super::Auth::new(&keys::SigningKey { kid: "k1".into(), secret: [2; 32].into() });
        assert_eq!(stranger.open("mcp", &sealed, at(NOW)), None);
    }

    #[test]
    fn revocations_count_from_their_second_on() {
        let auth = auth(1);
        let old = token(&auth);
        let mut watched = auth.revocations();
        auth.set_revocations(vec![("user:alice".into(), NOW)]);
        assert!(watched.has_changed().unwrap());
        watched.borrow_and_update();
        assert_eq!(auth.verify(&old, at(NOW)), Err(AuthError::Revoked));
        auth.set_revocations(vec![("user:alice".into(), NOW)]);
        assert!(!watched.has_changed().unwrap(), "the same list wakes nobody");
        let new = auth.mint("alice", Role::Consumer, at(NOW + 1), 60);
        let jti = auth.verify(&new, at(NOW + 1)).unwrap().jti;
        auth.set_revocations(vec![(format!("jti:{jti}"), NOW)]);
        assert_eq!(auth.verify(&new, at(NOW + 1)), Err(AuthError::Revoked));
        assert!(auth.verify(&old, at(NOW)).is_ok());
    }

    #[test]
    fn base64url_is_rfc_4648() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg"),
            ("fo", "Zm8"),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg"),
            ("\u{3ff}", "z78"),
        ] {
            assert_eq!(base64url(bytes.as_bytes()), text);
        }
    }
}
