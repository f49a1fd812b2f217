//! `proxie person erase` and `proxie vault`.

use anyhow::{Context, bail};
use clap::Subcommand;
use sqlx::postgres::PgPool;

use crate::app::settings;
use crate::config::Config;
use crate::kernel::ids::is_valid_id;
use crate::persistence::vault::{self, Erased, Sealing};

#[derive(Subcommand)]
pub enum Person {
    /// Delete a person's key: what was sealed for them cannot be read again, by anybody
    Erase {
        #[arg(value_name = "ID")]
        id: String,
    },
}

#[derive(Subcommand)]
pub enum VaultCommand {
    /// Say whether what concerns people is sealed, and since when
    Status,
    /// Seal from now on, without waiting for vault.seal_after_s: nobody goes back to a release without a vault
    Seal,
    /// Wrap all keys with the master key of this configuration, instead of the one in vault.previous_key_file or in the database
    Rotate,
}

pub async fn person(config: &Config, pool: &PgPool, command: Person) -> anyhow::Result<()> {
    let Person::Erase { id } = command;
    if !is_valid_id(&id) {
        bail!("a user id is 1 to 64 letters, digits, - or _");
    }
    let sealing = vault::sealing(pool, settings::seal_after(config)).await?;
    match vault::erase(pool, &id).await? {
        Erased::Key => println!(
            "{id} is erased: their messages, what their sessions have answered, their notifications, photos, memories and \
             the push tokens of their devices cannot be read any more. Nodes forget the key within 2 s. Names, places, requests and bookings \
             are not sealed and stay; a backup from before still has the key"
        ),
        Erased::Nothing => println!("nothing is sealed for {id}"),
    }
    match sealing {
        Sealing::On(None) => Ok(()),
        Sealing::On(Some(began)) => {
            println!(
                "What was written of {id} before {began:.0} may be in the plain: that stays and can be read"
            );
            Ok(())
        }
        not_yet => bail!("what is written of {id} in the plain stays and can be read: {not_yet}"),
    }
}

pub async fn vault(config: &Config, pool: &PgPool, command: VaultCommand) -> anyhow::Result<()> {
    match command {
        VaultCommand::Status => {
            println!("{}", vault::sealing(pool, settings::seal_after(config)).await?)
        }
        VaultCommand::Seal => {
            if !vault::seal_now(pool).await? {
                bail!("{}", vault::sealing(pool, settings::seal_after(config)).await?);
            }
            println!(
                "the nodes seal what concerns people within 2 s; a release without a vault cannot read it"
            );
        }
        VaultCommand::Rotate => rotate(config, pool).await?,
    }
    Ok(())
}

async fn rotate(config: &Config, pool: &PgPool) -> anyhow::Result<()> {
    let masters = settings::masters(config, false).map_err(anyhow::Error::msg).context("vault")?;
    let masters = masters.context("set vault.key or vault.key_file to the new master key first")?;
    let count = vault::rotate(pool, &masters).await.map_err(anyhow::Error::msg)?;
    println!(
        "{count} keys were wrapped anew, with the master key {}. Once no node has another vault.key, \
         vault.previous_key_file can go",
        masters.current.id()
    );
    Ok(())
}
