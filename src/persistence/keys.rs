//! The cluster's signing key and the list of revoked tokens. Kept in the store, so that every node takes every token.

use sqlx::Row;
use sqlx::postgres::PgPool;

pub struct SigningKey {
    pub kid: String,
    /// An Ed25519 seed.
    pub secret: [u8; 32],
}

/// The current key; `fresh` becomes it where there is none yet. Several nodes may ask at once: one key results.
pub async fn signing_key(pool: &PgPool, fresh: SigningKey) -> Result<SigningKey, sqlx::Error> {
    let mut tx = pool.begin().await?;
    sqlx::query("select pg_advisory_xact_lock(hashtext('proxie:signing_key'))")
        .execute(&mut *tx)
        .await?;
    sqlx::query(
        "insert into signing_keys (kid, secret) select $1, $2 where not exists (select from signing_keys where retired_at is null)",
    )
    .bind(&fresh.kid)
    .bind(&fresh.secret[..])
    .execute(&mut *tx)
    .await?;
    let row = sqlx::query(
        "select kid, secret from signing_keys where retired_at is null order by created_at limit 1",
    )
    .fetch_one(&mut *tx)
    .await?;
    tx.commit().await?;
    let secret: Vec<u8> = row.get(1);
    let secret = secret
        .try_into()
        .map_err(|_| sqlx::Error::Decode("a signing key must have 32 bytes".into()))?;
    Ok(SigningKey { kid: row.get(0), secret })
}

/// Revokes all tokens of a user issued until now, or one token.
pub async fn revoke(pool: &PgPool, subject: &str) -> Result<(), sqlx::Error> {
    sqlx::query("insert into revocations (subject) values ($1) on conflict (subject) do update set at = now()")
        .bind(subject)
        .execute(pool)
        .await?;
    Ok(())
}

/// All revocations younger than the longest life of a token, with their time in seconds since the epoch.
pub async fn revocations(pool: &PgPool, max_age_s: i64) -> Result<Vec<(String, i64)>, sqlx::Error> {
    let rows = sqlx::query(
        "select subject, extract(epoch from at)::bigint from revocations where at > now() - $1 * interval '1 second'",
    )
    .bind(max_age_s)
    .fetch_all(pool)
    .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}
