//! `proxie dead-letter`: lists what was given up, retries it or deletes it.

use anyhow::bail;
use clap::Subcommand;
use sqlx::postgres::PgPool;

use super::entity::hide_secrets;
use crate::persistence::letters::{self, LetterCursor, LetterFilter, PAGE};

#[derive(Subcommand)]
pub enum LetterCommand {
    /// List the letters, the oldest first, one per line
    List {
        #[command(flatten)]
        which: Letters,
    },
    /// Try letters again
    Retry(Chosen),
    /// Delete letters for good
    Discard(Chosen),
}

#[derive(clap::Args)]
pub struct Letters {
    /// Only letters to entities of this kind; `run` for runs
    #[arg(long)]
    kind: Option<String>,
    /// Only letters to the entity with this key; for runs, the runner's name
    #[arg(long, requires = "kind")]
    key: Option<String>,
    /// Only letters whose last error contains this text
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("letters").required(true).multiple(true).args(["id", "all", "kind", "reason"]))]
pub struct Chosen {
    /// The id of one letter
    #[arg(conflicts_with_all = ["all", "kind", "reason"])]
    id: Option<String>,
    /// All letters
    #[arg(long, conflicts_with_all = ["kind", "reason"])]
    all: bool,
    #[command(flatten)]
    which: Letters,
}

impl Chosen {
    fn which(self) -> LetterFilter {
        LetterFilter { id: self.id, ..self.which.into() }
    }
}

impl From<Letters> for LetterFilter {
    fn from(Letters { kind, key, reason }: Letters) -> Self {
        Self { id: None, kind, key, reason }
    }
}

pub async fn run(pool: &PgPool, command: LetterCommand) -> anyhow::Result<()> {
    match command {
        LetterCommand::List { which } => list(pool, &which.into()).await,
        LetterCommand::Retry(chosen) => {
            let which = chosen.which();
            let count = in_steps(&which, async |which| letters::retry(pool, which).await).await?;
            println!("{count} will be tried again");
            Ok(())
        }
        LetterCommand::Discard(chosen) => {
            let which = chosen.which();
            let count = in_steps(&which, async |which| letters::discard(pool, which).await).await?;
            println!("{count} deleted");
            Ok(())
        }
    }
}

async fn list(pool: &PgPool, which: &LetterFilter) -> anyhow::Result<()> {
    let mut after = LetterCursor::default();
    loop {
        let page = letters::list(pool, which, &after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = last.cursor.clone();
        for letter in page {
            let mut letter = serde_json::to_value(letter)?;
            hide_secrets(&mut letter);
            println!("{letter}");
        }
    }
}

/// Repeats a bounded step until no letter is left.
async fn in_steps(
    which: &LetterFilter,
    step: impl AsyncFn(&LetterFilter) -> Result<u64, sqlx::Error>,
) -> anyhow::Result<u64> {
    let mut count = 0;
    loop {
        match step(which).await? {
            0 => break,
            more => count += more,
        }
    }
    match &which.id {
        Some(id) if count == 0 => bail!("there is no dead letter {id}"),
        _ => Ok(count),
    }
}
