//! The cluster's signing keys and the list of revoked tokens. They are kept in the store, so that every node accepts
//! every token.

use sqlx::Row;
use sqlx::postgres::{PgConnection, PgPool};

use crate::kernel::secret::Secret;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SigningKey {
    pub kid: String,
    /// An Ed25519 seed.
    pub secret: Secret<[u8; 32]>,
}

/// Time until all nodes know a new key: they read the keys about once a second, and a key must not sign before.
const KNOWN_AFTER_S: i64 = 5;

/// The verifying keys, the signing one first. If there is no key yet, `fresh` becomes it; if several nodes ask at once,
/// one key results. `token_s` is the lifetime of the caller's tokens.
pub async fn signing_keys(
    pool: &PgPool,
    fresh: SigningKey,
    token_s: i64,
) -> Result<Vec<SigningKey>, sqlx::Error> {
    let mut tx = pool.begin().await?;
    sqlx::query("select pg_advisory_xact_lock(hashtext('proxie:signing_key'))")
        .execute(&mut *tx)
        .await?;
    sqlx::query(
        "insert into signing_keys (kid, secret, created_at, token_s) select $1, $2, now() - $3 * interval '1 second', $4
          where not exists (select from signing_keys where retired_at is null)",
    )
    .bind(&fresh.kid)
    .bind(&fresh.secret.reveal()[..])
    .bind(KNOWN_AFTER_S)
    .bind(token_s)
    .execute(&mut *tx)
    .await?;
    // A key signs tokens until it retires, so it must verify for the longest lifetime of any token it signed.
    sqlx::query("update signing_keys set token_s = $1 where token_s < $1 and (retired_at is null or retired_at > now())")
        .bind(token_s)
        .execute(&mut *tx)
        .await?;
    let keys = verifying(&mut tx).await?;
    tx.commit().await?;
    Ok(keys)
}

/// The verifying keys, the signing one first.
pub async fn verifying(connection: &mut PgConnection) -> Result<Vec<SigningKey>, sqlx::Error> {
    let rows = sqlx::query(
        "select kid, secret from signing_keys
          where retired_at is null or retired_at + token_s * interval '1 second' > now()
          order by (created_at <= now() - $1 * interval '1 second') desc,
                   (retired_at is null or retired_at > now()) desc, created_at desc",
    )
    .bind(KNOWN_AFTER_S)
    .fetch_all(connection)
    .await?;
    let key = |row: &sqlx::postgres::PgRow| {
        let secret: &[u8] = row.get(1);
        let secret = <[u8; 32]>::try_from(secret)
            .map(Secret::new)
            .map_err(|_| sqlx::Error::Decode("a signing key must have 32 bytes".into()))?;
        Ok(SigningKey { kid: row.get(0), secret })
    };
    rows.iter().map(key).collect()
}

/// Makes `fresh` the signing key in a few seconds, when all nodes know it. Tokens of earlier keys stay valid until they
/// expire.
pub async fn rotate(pool: &PgPool, fresh: SigningKey) -> Result<(), sqlx::Error> {
    let mut tx = pool.begin().await?;
    sqlx::query("select pg_advisory_xact_lock(hashtext('proxie:signing_key'))")
        .execute(&mut *tx)
        .await?;
    sqlx::query(
        "update signing_keys set retired_at = now() + $1 * interval '1 second' where retired_at is null",
    )
    .bind(KNOWN_AFTER_S)
    .execute(&mut *tx)
    .await?;
    sqlx::query(
        "insert into signing_keys (kid, secret, token_s)
         select $1, $2, coalesce((select max(token_s) from signing_keys), 86400)",
    )
    .bind(&fresh.kid)
    .bind(&fresh.secret.reveal()[..])
    .execute(&mut *tx)
    .await?;
    tx.commit().await
}

/// Revokes all tokens of a user issued until now, or one token. The revocation lasts until the last token that any key
/// has signed has expired, even if the lifetime of tokens is shortened meanwhile.
pub async fn revoke(pool: &PgPool, subject: &str) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into revocations (subject, until)
         select $1, now() + (coalesce(max(token_s), 86400) + 60) * interval '1 second' from signing_keys
         on conflict (subject) do update set at = now(), until = greatest(revocations.until, excluded.until)",
    )
    .bind(subject)
    .execute(pool)
    .await?;
    Ok(())
}

/// All revocations that may still apply to a token, with their time in seconds since the epoch.
pub async fn revocations(connection: &mut PgConnection) -> Result<Vec<(String, i64)>, sqlx::Error> {
    let rows = sqlx::query(
        "select subject, extract(epoch from at)::bigint from revocations where until > now()",
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}
