//! `proxie entity`: entities as operators see them.

use anyhow::bail;
use clap::Subcommand;
use serde_json::Value;
use sqlx::postgres::PgPool;

use crate::kernel::ids::slot_of;
use crate::persistence::letters::PAGE;
use crate::persistence::{entities, outbox};
use crate::systems;

#[derive(Subcommand)]
pub enum EntityCommand {
    /// State, version and owner node of an entity
    Show {
        kind: String,
        key: String,
        /// Show the journal too
        #[arg(long)]
        events: bool,
    },
    /// Entities that failed on every start
    Parked,
    /// Let a parked entity start again
    Retry { kind: String, key: String },
}

/// The state that a journal leads to.
fn replay(kind: &str, journal: &mut [entities::JournalEntry]) -> anyhow::Result<serde_json::Value> {
    let kinds = || systems::ALL.iter().flat_map(|system| system.entities);
    let Some(known) = kinds().find(|known| known.name == kind) else {
        let kinds: Vec<_> = kinds().map(|known| known.name).collect();
        bail!("there is no kind {kind}; there are {}", kinds.join(", "));
    };
    (known.replay)(journal)
}

pub async fn run(pool: &PgPool, command: EntityCommand) -> anyhow::Result<()> {
    match command {
        EntityCommand::Show { kind, key, events } => {
            let mut journal = entities::journal(pool, &kind, &key, i64::MAX).await?;
            let Some(shown) = entities::show(pool, &kind, &key, slot_of(&kind, &key)).await? else {
                bail!("there is no {kind} {key}");
            };
            let state = replay(&kind, &mut journal)?;
            let mut shown = serde_json::to_value(shown)?;
            shown["state"] = state;
            if events {
                shown["events"] = serde_json::to_value(journal)?;
            }
            hide_secrets(&mut shown);
            println!("{shown:#}");
        }
        EntityCommand::Parked => {
            let mut after = (String::new(), String::new());
            loop {
                let page = outbox::parked(pool, (&after.0, &after.1), PAGE).await?;
                let Some(last) = page.last() else { break };
                after = (last.kind.clone(), last.key.clone());
                for parked in page {
                    println!("{}", serde_json::to_string(&parked)?);
                }
            }
        }
        EntityCommand::Retry { kind, key } => {
            if !outbox::unpark(pool, &kind, &key).await? {
                bail!("{kind} {key} is not parked");
            }
            println!("{kind} {key} may start again, and what was given up for it is tried again");
        }
    }
    Ok(())
}

/// Hides the secrets in a journal's data.
pub fn hide_secrets(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                if name == "push_token" && !field.is_null() {
                    *field = "(hidden)".into();
                }
                hide_secrets(field);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(hide_secrets),
        _ => {}
    }
}
