//! Whether what is written is sealed. Releases without a vault cannot read it: it begins when the last of their nodes
//! has been gone for a while, in which people may go back to them, and ends when one comes.

use std::fmt::{self, Display};
use std::time::Duration;

use jiff::Timestamp;
use sqlx::Row;
use sqlx::postgres::{PgConnection, PgPool};

use crate::persistence::store::from_micros;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sealing {
    /// All that was written since then is sealed. `None`: all that ever was.
    On(Option<Timestamp>),
    /// It begins then. `None`: when a node that can read it has looked, and the time after that has passed.
    Waits(Option<Timestamp>),
    /// These nodes live, and do not read it, or are not to seal.
    Hindered(String),
    /// This node is configured to seal nothing.
    Never,
}

impl Sealing {
    pub fn is_on(&self) -> bool {
        matches!(self, Self::On(_))
    }
}

impl Display for Sealing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::On(None) => {
                write!(f, "what concerns people is sealed, ever since this store was made")
            }
            Self::On(Some(began)) => write!(
                f,
                "what concerns people is sealed since {began:.0}; what was written before is not"
            ),
            Self::Waits(Some(at)) => write!(
                f,
                "what concerns people is not sealed yet: it begins at {at:.0}, unless a node comes that cannot read it"
            ),
            Self::Waits(None) => write!(
                f,
                "what concerns people is not sealed: it begins vault.seal_after_s after nodes that can read it are alone"
            ),
            Self::Hindered(nodes) => write!(
                f,
                "what concerns people is not sealed while a node is there that cannot read it, or has vault.seal = false: {nodes}"
            ),
            Self::Never => write!(f, "what concerns people is not sealed: vault.seal = false"),
        }
    }
}

/// What to note in the store, where something else is there than was noted.
const HINDERED: &str = "update sealing set since = null, began = null";
const ALONE: &str = "update sealing set since = now()
    where since is null and not exists (select from nodes where state <> 'dead' and not seals)";
const BEGUN: &str = "update sealing set began = now() where began is null";

/// Reads how it is; also what is to be noted.
async fn read(
    connection: &mut PgConnection,
    after: Duration,
) -> Result<(Sealing, Option<&'static str>), sqlx::Error> {
    let row = sqlx::query(
        "select (select string_agg(name || ' (' || version || ')', ', ' order by incarnation)
                   from nodes where state <> 'dead' and not seals),
                since is null, began is null,
                coalesce(since <= now() - $1 * interval '1 second', false),
                micros(nullif(since, '-infinity') + $1 * interval '1 second'), micros(nullif(began, '-infinity'))
           from sealing",
    )
    .bind(after.as_secs_f64())
    .fetch_one(connection)
    .await?;
    let (since, began): (bool, bool) = (!row.get::<bool, _>(1), !row.get::<bool, _>(2));
    if let Some(nodes) = row.get(0) {
        return Ok((Sealing::Hindered(nodes), (since || began).then_some(HINDERED)));
    }
    if !row.get::<bool, _>(3) {
        let at = row.get::<Option<i64>, _>(4).map(from_micros);
        return Ok((Sealing::Waits(at), (!since).then_some(ALONE)));
    }
    let at = row.get::<Option<i64>, _>(5).map(from_micros);
    Ok((Sealing::On(at), (!began).then_some(BEGUN)))
}

/// How it is, as a node that is to seal finds it, and notes it.
pub(super) async fn look(
    connection: &mut PgConnection,
    after: Duration,
) -> Result<Sealing, sqlx::Error> {
    // Alone since this moment, begun at this moment, and how it is then.
    for _ in 0..2 {
        let (_, Some(note)) = read(connection, after).await? else { break };
        sqlx::query(note).execute(&mut *connection).await?;
    }
    read(connection, after).await.map(|(sealing, _)| sealing)
}

/// How it is, for operators.
pub async fn sealing(pool: &PgPool, after: Duration) -> Result<Sealing, sqlx::Error> {
    let (sealing, _) = read(&mut *pool.acquire().await?, after).await?;
    Ok(sealing)
}

/// Begins now, since an operator says that nobody goes back. False: a node is there that cannot read it.
pub async fn seal_now(pool: &PgPool) -> Result<bool, sqlx::Error> {
    let done = sqlx::query(
        "update sealing set since = '-infinity' where not exists (select from nodes where state <> 'dead' and not seals)",
    );
    Ok(done.execute(pool).await?.rows_affected() == 1)
}
