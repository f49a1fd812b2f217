//! The vault's tables: keys, the master key that wraps them, and erasures.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::{PgConnection, PgPool};
use tokio::sync::mpsc;

use super::sealing::{self, Sealing};
use super::{BATCH, Inner, Key, Known, LOOK, Master, Masters, VaultError, Wanted};
use crate::persistence::patience::{PATIENCE, within};

/// Erasures that are read at once.
const ERASURES: i64 = 1_000;
/// Keys that are wrapped anew in one transaction.
const ROTATED: i64 = 1_000;

/// The fingerprint of the master key that the database's keys are wrapped with. `None`: it has none that matters.
pub async fn master_of(pool: &PgPool) -> Result<Option<String>, sqlx::Error> {
    within(pool, "say which master key is its", PATIENCE, async |connection| {
        let sql = "select master from vault where exists (select from vault_keys)";
        sqlx::query_scalar(sql).fetch_optional(connection).await
    })
    .await
}

/// The master key that the database keeps, since none was configured.
pub(super) async fn kept_master(pool: &PgPool) -> Result<Option<Master>, VaultError> {
    let kept: Option<Option<String>> =
        sqlx::query_scalar("select kept from vault").fetch_optional(pool).await?;
    kept.flatten().map(|key| Master::parse(&key).map_err(VaultError::NoMaster)).transpose()
}

/// The same, which is made where there is none.
pub(super) async fn keep_master(pool: &PgPool) -> Result<Master, VaultError> {
    let (made, text) = Master::random();
    sqlx::query(
        "insert into vault (master, kept) values ($1, $2)
         on conflict (one) do update set master = excluded.master, kept = excluded.kept
         where vault.kept is null and not exists (select from vault_keys)",
    )
    .bind(made.id())
    .bind(text.reveal())
    .execute(pool)
    .await?;
    kept_master(pool).await?.ok_or_else(|| {
        let why = "this database's keys are wrapped with a master key that was configured: set vault.key or vault.key_file";
        VaultError::NoMaster(why.into())
    })
}

/// As long as nothing was wrapped, the master key of whoever starts is the one.
pub(super) async fn adopt_master(pool: &PgPool, masters: &Masters) -> Result<(), VaultError> {
    sqlx::query(
        "insert into vault (master) values ($1) on conflict (one) do update set master = excluded.master, kept = null
         where vault.master <> excluded.master and not exists (select from vault_keys)",
    )
    .bind(masters.current.id())
    .execute(pool)
    .await?;
    let expected: String = sqlx::query_scalar("select master from vault").fetch_one(pool).await?;
    if masters.of(&expected).is_none() {
        let found = masters.current.id().to_owned();
        return Err(VaultError::OtherMaster { found, expected });
    }
    Ok(())
}

/// Reads keys for as long as the vault lives: what is asked for while one batch is read is the next one.
pub(super) async fn read_all(
    pool: PgPool,
    masters: Arc<Masters>,
    vault: Weak<Inner>,
    mut queue: mpsc::Receiver<Wanted>,
) {
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, BATCH).await > 0 {
        let Some(vault) = vault.upgrade() else { return };
        let done = read(&pool, &masters, &vault, &batch).await;
        for wanted in batch.drain(..) {
            let _ = wanted.done.send(done.clone());
        }
    }
}

async fn read(
    pool: &PgPool,
    masters: &Masters,
    vault: &Inner,
    batch: &[Wanted],
) -> Result<(), String> {
    // Who wants a key to seal with wants one that is there.
    let mut wanted: HashMap<&Arc<str>, (bool, i64)> = HashMap::new();
    for Wanted { need, .. } in batch {
        let (makes, number) = wanted.entry(&need.person).or_default();
        *makes |= need.key.is_none();
        *number = need.key.unwrap_or(0).max(*number);
    }
    loop {
        let erasures = vault.erasures.load(Ordering::Acquire);
        let rows = within(pool, "read keys of people", PATIENCE, async |connection| {
            keys(connection, masters, &wanted).await
        });
        let rows = rows.await.map_err(|e| e.to_string())?;
        for (person, (_, number)) in &wanted {
            let row = rows.iter().find(|(whose, ..)| **whose == ***person);
            let key = row.map(|(_, number, master, wrapped)| {
                let key = masters
                    .of(master)
                    .and_then(|master| master.unwrap(person, wrapped.clone()))
                    .ok_or_else(|| {
                        format!("no master key of this node unwraps the key of {person}")
                    })?;
                Ok::<_, String>(Arc::new(Key::new(*number, key.reveal())))
            });
            let key = key.transpose()?;
            let up_to = key.as_ref().map_or(0, |key| key.number).max(*number);
            vault.known.insert((*person).clone(), Known { key, up_to });
        }
        // Somebody may have been erased between the read and now.
        if vault.erasures.load(Ordering::Acquire) == erasures {
            return Ok(());
        }
        wanted.keys().for_each(|person| vault.forget(person));
    }
}

type Row4 = (String, i64, String, Vec<u8>);

async fn keys(
    connection: &mut PgConnection,
    masters: &Masters,
    wanted: &HashMap<&Arc<str>, (bool, i64)>,
) -> Result<Vec<Row4>, sqlx::Error> {
    let people: Vec<&str> = wanted.keys().map(|person| &***person).collect();
    let mut rows = select(connection, &people).await?;
    let there = |rows: &[Row4], person: &str| rows.iter().any(|(whose, ..)| whose == person);
    let makes = wanted.iter().filter(|(_, (makes, _))| *makes).map(|(person, _)| &***person);
    let mut missing: Vec<&str> = makes.filter(|person| !there(&rows, person)).collect();
    if missing.is_empty() {
        return Ok(rows);
    }
    // In one order, so that two nodes wait for each other and do not deadlock.
    missing.sort_unstable();
    for master in [Some(&masters.current), masters.previous.as_ref()].into_iter().flatten() {
        make(connection, master, &missing).await?;
        rows.extend(select(connection, &missing).await?);
        if missing.iter().all(|person| there(&rows, person)) {
            return Ok(rows);
        }
        // It is not the database's master key, not yet or no longer.
    }
    Err(sqlx::Error::Decode("the master key of the database is none of this node's".into()))
}

async fn select(connection: &mut PgConnection, people: &[&str]) -> Result<Vec<Row4>, sqlx::Error> {
    let sql = "select person, key, master, wrapped from vault_keys where person = any($1)";
    let rows = sqlx::query(sql).bind(people).fetch_all(connection).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))).collect())
}

async fn make(
    connection: &mut PgConnection,
    master: &Master,
    people: &[&str],
) -> Result<(), sqlx::Error> {
    let wrapped: Vec<Vec<u8>> =
        people.iter().map(|person| master.wrap(person, &rand::random())).collect();
    // A rotation, which changes the row of `vault`, waits for this, or this for it.
    sqlx::query(
        "with held as materialized (select master from vault where master = $1 for share)
         insert into vault_keys (person, master, wrapped)
         select u.person, held.master, u.wrapped from held, unnest($2::text[], $3::bytea[]) u(person, wrapped)
         on conflict (person) do nothing",
    )
    .bind(master.id())
    .bind(people)
    .bind(wrapped)
    .execute(connection)
    .await
    .map(drop)
}

pub(super) async fn last_erasure(pool: &PgPool) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("select coalesce(max(n), 0) from erasures").fetch_one(pool).await
}

/// What a node looks for in the store again and again: who was erased, and whether to seal.
pub(super) struct Looks {
    pub pool: PgPool,
    pub vault: Weak<Inner>,
    pub seal_after: Option<Duration>,
    /// The number of the last erasure that is known.
    pub erased: i64,
}

impl Looks {
    /// The first is made before anything is written.
    pub async fn start(self, vault: &Inner) -> Result<(), sqlx::Error> {
        let sealing = self.sealing().await?;
        tracing::info!("{sealing}");
        vault.seals.store(sealing.is_on(), Ordering::Release);
        tokio::spawn(self.go_on(sealing));
        Ok(())
    }

    async fn go_on(mut self, mut sealing: Sealing) {
        let mut tick = tokio::time::interval(LOOK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let Some(vault) = self.vault.upgrade() else { return };
            // A failure is in the log; the next look has it all.
            if let Ok(now) = self.sealing().await {
                vault.seals.store(now.is_on(), Ordering::Release);
                match (sealing.is_on(), now.is_on()) {
                    (true, false) => tracing::warn!("{now}"),
                    _ if sealing != now => tracing::info!("{now}"),
                    _ => {}
                }
                sealing = now;
            }
            if self.erasures(&vault).await.is_ok_and(|all| !all) {
                tick.reset_immediately();
            }
        }
    }

    async fn sealing(&self) -> Result<Sealing, sqlx::Error> {
        let Some(after) = self.seal_after else { return Ok(Sealing::Never) };
        within(
            &self.pool,
            "say whether all nodes read what is sealed",
            PATIENCE,
            async |connection| sealing::look(connection, after).await,
        )
        .await
    }

    /// Forgets the keys of those who were erased. False: there are more.
    async fn erasures(&mut self, vault: &Inner) -> Result<bool, sqlx::Error> {
        let last = self.erased;
        let rows = within(&self.pool, "say who was erased", PATIENCE, async |connection| {
            sqlx::query("select n, person from erasures where n > $1 order by n limit $2")
                .bind(last)
                .bind(ERASURES)
                .fetch_all(connection)
                .await
        })
        .await?;
        for row in &rows {
            self.erased = row.get(0);
            vault.forget(row.get(1));
        }
        if !rows.is_empty() {
            vault.erasures.fetch_add(rows.len() as u64, Ordering::AcqRel);
            // What was fetched in between was read before this.
            rows.iter().for_each(|row| vault.forget(row.get(1)));
        }
        Ok((rows.len() as i64) < ERASURES)
    }
}

/// What an erasure has found.
#[derive(Debug, PartialEq, Eq)]
pub enum Erased {
    Key,
    /// Nothing was ever sealed for them, or it was erased before.
    Nothing,
}

/// Deletes the person's key: nothing that was sealed under it can be read again.
pub async fn erase(pool: &PgPool, person: &str) -> Result<Erased, sqlx::Error> {
    let mut tx = pool.begin().await?;
    // Their numbers are in the order of the commits.
    sqlx::query("select pg_advisory_xact_lock(hashtext('proxie:erasures'))")
        .execute(&mut *tx)
        .await?;
    let erased = sqlx::query(
        "with gone as (delete from vault_keys where person = $1 returning person, key)
         insert into erasures (person, key) select person, key from gone",
    )
    .bind(person)
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(if erased.rows_affected() == 0 { Erased::Nothing } else { Erased::Key })
}

/// Wraps every key with the current master key instead of the previous one. Nodes that have both go on meanwhile.
/// Returns how many were wrapped anew.
pub async fn rotate(pool: &PgPool, masters: &Masters) -> Result<u64, String> {
    let failed = |e: sqlx::Error| e.to_string();
    let kept = kept_master(pool).await.map_err(|e| e.to_string())?;
    let masters = &masters.clone().or_before(kept);
    let known = master_of(pool).await.map_err(failed)?;
    if let Some(unknown) = known.filter(|id| masters.of(id).is_none()) {
        return Err(format!(
            "the database's keys are wrapped with the master key {unknown}, which is neither this configuration's nor \
             the previous one: set vault.previous_key_file"
        ));
    }
    // From here on new keys are wrapped with the current one.
    sqlx::query("update vault set master = $1")
        .bind(masters.current.id())
        .execute(pool)
        .await
        .map_err(failed)?;
    let mut count = 0;
    loop {
        let mut tx = pool.begin().await.map_err(failed)?;
        let rows = sqlx::query(
            "select person, master, wrapped from vault_keys where master <> $1 order by person limit $2 for update",
        )
        .bind(masters.current.id())
        .bind(ROTATED)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        if rows.is_empty() {
            sqlx::query("update vault set kept = null").execute(&mut *tx).await.map_err(failed)?;
            tx.commit().await.map_err(failed)?;
            return Ok(count);
        }
        for row in &rows {
            let (person, master): (&str, &str) = (row.get(0), row.get(1));
            let key = masters.of(master).and_then(|master| master.unwrap(person, row.get(2)));
            let key = key.ok_or_else(|| {
                format!("the key of {person} was wrapped with {master}, which is neither the current master key nor the previous one")
            })?;
            sqlx::query("update vault_keys set master = $2, wrapped = $3 where person = $1")
                .bind(person)
                .bind(masters.current.id())
                .bind(masters.current.wrap(person, key.reveal()))
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
            count += 1;
        }
        tx.commit().await.map_err(failed)?;
    }
}
