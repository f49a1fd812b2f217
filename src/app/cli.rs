//! The command line. Answers go to standard output, everything else to standard error; exit codes: 0 done, 1 failed,
//! 2 usage or configuration.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand, ValueEnum};
use sqlx::postgres::PgPool;

use crate::app::client::Client;
use crate::app::{call, certificates, demo, node, serve, settings};
use crate::config::Config;
use crate::gateway::auth::{Auth, fresh_key};
use crate::gateway::operations::scopes;
use crate::kernel::clock::Clock;
use crate::kernel::entity::Role;
use crate::kernel::ids::is_valid_id;
use crate::persistence::members::{self, Evidence, MemberState};
use crate::persistence::{embedded, keys, membership, store};
use crate::systems;
use crate::systems::devices::settings::Tiers;

mod entity;
mod letters;
mod mcp;
mod vault;

#[derive(Parser)]
#[command(name = "proxie", version, about = "An agent-native realtime backend")]
struct Cli {
    /// The configuration file (default: config.toml, if it exists)
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run a node (the default)
    Serve,
    /// Show the main job: from a sentence to a booking that survives a kill -9
    Demo {
        /// Stay up afterwards
        #[arg(long)]
        keep: bool,
        /// Play it against running nodes instead: connect to the first, reconnect to the last
        #[arg(long, value_name = "URL", conflicts_with = "keep")]
        at: Vec<String>,
    },
    /// Call an operation of a running node, or list them
    #[command(disable_help_flag = true)]
    Call(CallArgs),
    /// Serve agents over standard input and output (MCP), as a client of a running node
    Mcp(Speaker),
    /// Apply the database migrations
    Migrate,
    /// Check the configuration and exit
    CheckConfig,
    /// Print the OpenAPI document
    Openapi,
    /// Print the AsyncAPI document
    Asyncapi,
    /// Mint a development token, or revoke tokens
    Token(TokenArgs),
    /// See and steer the cluster
    Cluster {
        #[command(subcommand)]
        command: ClusterCommand,
    },
    /// Look at entities
    Entity {
        #[command(subcommand)]
        command: entity::EntityCommand,
    },
    /// What is kept of a person
    Person {
        #[command(subcommand)]
        command: vault::Person,
    },
    /// The keys of people
    Vault {
        #[command(subcommand)]
        command: vault::VaultCommand,
    },
    /// Deliveries, runs and timers that were given up
    DeadLetter {
        #[command(subcommand)]
        command: letters::LetterCommand,
    },
}

/// Whom a command speaks to, and for whom.
#[derive(clap::Args)]
struct Speaker {
    /// The node (default: the one in this configuration)
    #[arg(long, value_name = "URL")]
    at: Option<String>,
    /// The user to mint a development token for; PROXIE_TOKEN is used instead if it is set
    #[arg(long, default_value = "clara")]
    user: String,
    #[arg(long, default_value = "consumer")]
    role: RoleArg,
}

impl Speaker {
    fn address(&self, config: &Config) -> String {
        self.at.clone().unwrap_or_else(|| format!("http://{}", config.gateway.listen))
    }

    async fn mint(&self, config: &Config) -> anyhow::Result<String> {
        mint(config, &self.user, self.role.into(), None, None).await
    }
}

#[derive(clap::Args)]
struct CallArgs {
    #[command(flatten)]
    speaker: Speaker,
    /// The operation: `playback.report`
    name: Option<String>,
    /// Its fields: `--session-id plb_1 --status paused`, or `--json '{…}'`; `--help` shows them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    fields: Vec<String>,
}

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
struct TokenArgs {
    #[command(subcommand)]
    command: Option<TokenCommand>,
    #[arg(long, required = true)]
    user: Option<String>,
    #[arg(long, default_value = "consumer")]
    role: RoleArg,
    /// The user's plan: a name of `tiers` in the configuration
    #[arg(long)]
    tier: Option<String>,
    /// What it may do, as `--scope "playback device"`; without, all that the role may
    #[arg(long)]
    scope: Option<String>,
}

#[derive(Subcommand)]
enum TokenCommand {
    /// Refuse a user's tokens issued until now, or a single token, everywhere within 2 s
    Revoke {
        #[arg(long, required_unless_present = "jti")]
        user: Option<String>,
        #[arg(long, conflicts_with = "user")]
        jti: Option<String>,
    },
    /// Sign with a new key. Tokens of the previous one stay valid until they expire
    RotateKey,
}

#[derive(Clone, Copy, ValueEnum)]
enum RoleArg {
    Consumer,
    Provider,
    Operator,
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Consumer => Self::Consumer,
            RoleArg::Provider => Self::Provider,
            RoleArg::Operator => Self::Operator,
        }
    }
}

#[derive(Subcommand)]
enum ClusterCommand {
    /// Nodes and slot ownership
    Status {
        #[arg(long)]
        json: bool,
    },
    /// Let a node hand its entities over, send its clients to the others, and end
    Drain { node: String },
    /// Declare a node dead. A live one comes back by itself, as a new incarnation
    Evict { node: String },
    /// Make certificates for the links between nodes, and an authority that signs them
    Certificates {
        #[arg(long, value_name = "DIR")]
        folder: PathBuf,
        /// The name of each node
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            // `--help` and `--version` are not errors.
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let command = cli.command.unwrap_or(Command::Serve);
    let config = Config::load(cli.config.as_deref()).and_then(|config| match command {
        Command::Serve | Command::CheckConfig => {
            settings::check(&config).map_err(|error| one_line(&error)).map(|()| config)
        }
        _ => Ok(config),
    });
    let config = match config {
        Ok(config) => config,
        Err(error) => {
            eprintln!("proxie: {error}");
            return ExitCode::from(2);
        }
    };
    // With one core, work stealing is useless: without it a publication to many listeners costs less, and the last of
    // them waits a tenth as long.
    let mut runtime = match std::thread::available_parallelism() {
        Ok(cores) if cores.get() == 1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime.enable_all().build().expect("the runtime starts");
    let done = runtime.block_on(run(command, config));
    // Tasks that still run hold nothing important: `run` has stopped and flushed everything.
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("proxie: {}", one_line(&error));
            ExitCode::from(1)
        }
    }
}

fn one_line(error: &anyhow::Error) -> String {
    // Many errors already contain the text of their cause.
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            let colon = if text.is_empty() { "" } else { ": " };
            text = text + colon + &cause;
        }
    }
    text.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

async fn run(command: Command, config: Config) -> anyhow::Result<()> {
    match command {
        Command::Serve => serve::run(&config).await,
        Command::Demo { keep, at } if at.is_empty() => demo::run(&config, keep).await,
        Command::Demo { at, .. } => {
            let token = mint(&config, "clara", Role::Consumer, None, None).await?;
            demo::run_at(&at, token).await
        }
        Command::Call(args) => call(&config, args).await,
        Command::Mcp(args) => mcp::run(&config, args).await,
        Command::CheckConfig => {
            println!("the configuration is valid");
            Ok(())
        }
        Command::Openapi => {
            println!("{:#}", crate::gateway::http::openapi::document(crate::systems::ALL));
            Ok(())
        }
        Command::Asyncapi => {
            println!("{:#}", crate::gateway::http::asyncapi::document(crate::systems::ALL));
            Ok(())
        }
        Command::Migrate => {
            let pool = open(&config, true).await?;
            crate::app::core::migrate(&pool.pool, systems::ALL).await?;
            println!("the database is up to date");
            pool.close().await;
            Ok(())
        }
        Command::Token(args) => token(&config, args).await,
        Command::Cluster { command } => cluster(&config, command).await,
        Command::Entity { command } => entity(&config, command).await,
        Command::Person { command } => {
            let store = open(&config, false).await?;
            let done = vault::person(&config, &store.pool, command).await;
            store.close().await;
            done
        }
        Command::Vault { command } => {
            let store = open(&config, false).await?;
            let done = vault::vault(&config, &store.pool, command).await;
            store.close().await;
            done
        }
        Command::DeadLetter { command } => {
            let store = open(&config, false).await?;
            let done = letters::run(&store.pool, command).await;
            store.close().await;
            done
        }
    }
}

/// The store for commands other than `serve`: a running node's server, or one started temporarily.
struct Opened {
    pool: PgPool,
    server: Option<embedded::Embedded>,
}

impl Opened {
    async fn close(self) {
        self.pool.close().await;
        if let Some(server) = self.server {
            let _ = server.stop().await;
        }
    }
}

async fn open(config: &Config, create: bool) -> anyhow::Result<Opened> {
    let (options, server) = if !config.embedded() {
        (settings::database(config)?, None)
    } else if let Some(options) = embedded::connect_running(&config.node.data_dir)? {
        (options, None)
    } else {
        if !create
            && !config.node.data_dir.join("postgres").exists()
            && !config.node.data_dir.join("postgres.location").exists()
        {
            bail!(
                "there is no store under {} yet: run `proxie serve` first, or name the node's: DATABASE_URL, node.data_dir",
                config.node.data_dir.display()
            );
        }
        let (options, server) = node::open_store(config).await?;
        (options, server)
    };
    let limits = store::Options { max_connections: 4, ..settings::store(config) };
    let pool = store::connect(options, &limits).await?;
    Ok(Opened { pool, server })
}

async fn token(config: &Config, args: TokenArgs) -> anyhow::Result<()> {
    if let Some(command) = args.command {
        let store = open(config, false).await?;
        match command {
            TokenCommand::RotateKey => {
                keys::rotate(&store.pool, fresh_key()).await?;
                println!("a new key signs in a few seconds");
            }
            TokenCommand::Revoke { user, jti } => {
                let subject = match (user, jti) {
                    (Some(user), _) => format!("user:{user}"),
                    (None, jti) => format!("jti:{}", jti.context("name a --user or a --jti")?),
                };
                keys::revoke(&store.pool, &subject).await?;
                println!("revoked {subject}");
            }
        }
        store.close().await;
        return Ok(());
    }
    let (user, role) = (args.user.unwrap_or_default(), args.role.into());
    println!("{}", mint(config, &user, role, args.tier.as_deref(), args.scope.as_deref()).await?);
    Ok(())
}

/// A development token.
async fn call(config: &Config, args: CallArgs) -> anyhow::Result<()> {
    let Some(name) = args.name.filter(|name| name != "--help" && name != "-h") else {
        println!("{}", call::list(systems::ALL));
        return Ok(());
    };
    let operation = call::find(systems::ALL, &name).map_err(anyhow::Error::msg)?;
    if args.fields.iter().any(|flag| flag == "--help" || flag == "-h") {
        println!("{}", call::help(operation));
        return Ok(());
    }
    let input = call::input(operation, &args.fields).map_err(anyhow::Error::msg)?;
    let token = match std::env::var("PROXIE_TOKEN") {
        Ok(token) => token,
        Err(_) => args.speaker.mint(config).await?,
    };
    let mut client = Client::connect(&args.speaker.address(config), &token).await?;
    println!("{:#}", client.ask(&operation.meta.event(), input).await?);
    Ok(())
}

async fn mint(
    config: &Config,
    user: &str,
    role: Role,
    tier: Option<&str>,
    scope: Option<&str>,
) -> anyhow::Result<String> {
    if !config.dev_tokens() {
        bail!(
            "development tokens are off (auth.dev_tokens = false): they are handed out without asking who you are"
        );
    }
    if !is_valid_id(user) {
        bail!("a user id is 1 to 64 letters, digits, - or _");
    }
    let Tiers(tiers) = config.systems.get().context("nobody knows tiers")?;
    if let Some(tier) = tier.filter(|tier| !tiers.contains_key(*tier)) {
        let tiers: Vec<&str> = tiers.keys().map(String::as_str).collect();
        bail!("there is no tier {tier:?}: the configuration has {}", tiers.join(", "));
    }
    let scopes = scopes(systems::ALL);
    let unknown = |word: &&str| !scopes.contains(word);
    if let Some(word) = scope.and_then(|scope| scope.split_ascii_whitespace().find(unknown)) {
        let scopes: Vec<_> = scopes.into_iter().collect();
        bail!("there is no scope {word:?}: there are {}", scopes.join(", "));
    }
    let store = open(config, false).await?;
    if !store::is_migrated(&store.pool).await? {
        bail!("the database has no tables of this release: run `proxie migrate` first");
    }
    let keys = keys::signing_keys(&store.pool, fresh_key(), config.auth.token_s).await?;
    let auth = Auth::new(keys.first().context("the store has no signing key")?);
    let token = auth.mint_for(user, role, tier, scope, Clock::System.now(), config.auth.token_s);
    store.close().await;
    Ok(token)
}

async fn cluster(config: &Config, command: ClusterCommand) -> anyhow::Result<()> {
    if let ClusterCommand::Certificates { folder, names } = command {
        return certificates::create(&folder, &names);
    }
    let store = open(config, false).await?;
    let done = match command {
        ClusterCommand::Status { json } => status(&store.pool, json).await,
        ClusterCommand::Drain { node } => drain(&store.pool, &node).await,
        ClusterCommand::Evict { node } => evict(&store.pool, &node).await,
        ClusterCommand::Certificates { .. } => Ok(()),
    };
    store.close().await;
    done
}

async fn living(pool: &PgPool, node: &str) -> anyhow::Result<i64> {
    let incarnation = members::living(pool, node).await?;
    incarnation.with_context(|| {
        format!("there is no living node {node} in a cluster: see `proxie cluster status`")
    })
}

async fn drain(pool: &PgPool, node: &str) -> anyhow::Result<()> {
    let incarnation = living(pool, node).await?;
    if !members::set_state(pool, incarnation, MemberState::Draining).await? {
        bail!("{node} is still joining: try again when it is active");
    }
    loop {
        let nodes = membership::nodes(pool).await?;
        let left = nodes.iter().find(|node| node.incarnation == incarnation);
        let Some(left) = left.filter(|node| node.state != "drained") else { break };
        eprint!("\r{node} has {} slots and {} connections left ", left.slots, left.connections);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    eprintln!();
    println!("{node} has left");
    Ok(())
}

async fn evict(pool: &PgPool, node: &str) -> anyhow::Result<()> {
    let incarnation = living(pool, node).await?;
    if !members::evict(pool, None, incarnation, Evidence::Operator).await? {
        bail!("{node} has just been declared dead by another node or operator");
    }
    println!(
        "{node} (incarnation {incarnation}) is dead; if its process lives, it comes back as a new one"
    );
    Ok(())
}

async fn status(pool: &PgPool, json: bool) -> anyhow::Result<()> {
    let nodes = membership::nodes(pool).await?;
    let unowned =
        i64::from(crate::kernel::ids::SLOTS) - nodes.iter().map(|node| node.slots).sum::<i64>();
    if json {
        println!(
            "{:#}",
            serde_json::json!({ "nodes": nodes, "slots": crate::kernel::ids::SLOTS, "unowned_slots": unowned })
        );
    } else {
        println!(
            "{:<16} {:>11} {:<22} {:<8} {:<9} {:>6} {:>9} {:>12}",
            "NODE",
            "INCARNATION",
            "ADDRESS",
            "VERSION",
            "STATE",
            "SLOTS",
            "ENTITIES",
            "CONNECTIONS"
        );
        for node in &nodes {
            let state = match node.state.as_str() {
                "drained" => "drained",
                state if node.lease_left_ms > 0 => state,
                _ => "silent",
            };
            println!(
                "{:<16} {:>11} {:<22} {:<8} {:<9} {:>6} {:>9} {:>12}",
                node.id,
                node.incarnation,
                node.address,
                node.version,
                state,
                node.slots,
                node.entities,
                node.connections
            );
        }
        println!("{unowned} of {} slots have no owner", crate::kernel::ids::SLOTS);
    }
    Ok(())
}

async fn entity(config: &Config, command: entity::EntityCommand) -> anyhow::Result<()> {
    let store = open(config, false).await?;
    let done = entity::run(&store.pool, command).await;
    store.close().await;
    done
}
