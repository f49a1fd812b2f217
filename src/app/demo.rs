//! `proxie demo`: the main job, played over the real edges against a real node that is killed in the middle.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::app::client::Client;
use crate::config::Config;

const SENTENCE: &str =
    "I need a haircut tomorrow at 5 pm near Alexanderplatz in Berlin, up to 60 euros";

/// Until there is an offer, also where a model thinks for a while.
const OFFERS: Duration = Duration::from_secs(90);

/// Runs the demonstration on a temporary store, with a node that is killed in the middle.
pub async fn run(config: &Config, keep: bool) -> anyhow::Result<()> {
    let started = Instant::now();
    let folder = Folder::new()?;
    let term = Terminal::new();
    term.title("Proxie: from one sentence to a booking that survives kill -9");

    term.step("A node starts on a temporary embedded PostgreSQL, with demonstration providers.");
    let mut node = NodeProcess::start(&folder, config)?;
    term.fact(&format!("ready on {} after {}", node.url, ms(node.took)));
    let token = folder.token()?;
    let (clara, booked) = book(&term, &node.url, &token).await?;

    term.step("The node is killed without warning (SIGKILL).");
    let killed = Instant::now();
    node.kill();
    drop(clara);
    term.fact("gone: no shutdown, no flush, the WebSocket is cut");

    term.step("It is started again, on the same data.");
    let mut node = NodeProcess::start(&folder, config)?;
    booked.find_again(&term, &node.url, &token).await?;
    let recovered = killed.elapsed();

    booked.figures(&term);
    term.row("SIGKILL → booking shown again", recovered);
    term.row("the whole demonstration", started.elapsed());
    if keep {
        println!("\nThe node stays up: {}  (Ctrl-C ends it)", node.url);
        println!("A token for Clara:  {token}");
        let _ = tokio::signal::ctrl_c().await;
    }
    node.stop();
    Ok(())
}

/// Runs the demonstration against running nodes: connects to the first, and reconnects to the last.
pub async fn run_at(nodes: &[String], token: String) -> anyhow::Result<()> {
    let (Some(first), Some(last)) = (nodes.first(), nodes.last()) else { bail!("name a node") };
    let started = Instant::now();
    let term = Terminal::new();
    term.title(&format!("Proxie: from one sentence to a booking, on {first}"));
    let (clara, booked) = book(&term, first, &token).await?;
    drop(clara);

    term.step(&format!("The connection is cut. Clara comes back over {last}."));
    let cut = Instant::now();
    booked.find_again(&term, last, &token).await?;
    let recovered = cut.elapsed();

    booked.figures(&term);
    term.row("cut → booking shown again", recovered);
    term.row("the whole demonstration", started.elapsed());
    Ok(())
}

/// The booking that Clara ends up with, and the figures of the run.
struct Booked {
    booking_id: String,
    confirmed: Value,
    seen: i64,
    epoch: Value,
    offers_took: Duration,
    accept_took: Duration,
}

const USER_TOPIC: &str = "user:clara";

/// Plays the part from the sentence to the confirmation.
async fn book(term: &Terminal, url: &str, token: &str) -> anyhow::Result<(Client, Booked)> {
    term.step("Clara connects over a WebSocket and says what she needs.");
    let mut clara = Client::connect(url, token).await?;
    let welcome = clara.ask("auth", json!({})).await?;
    let session = clara
        .ask(
            "session:open",
            json!({ "session_id": null, "time_zone": "Europe/Berlin", "locale": "en" }),
        )
        .await?;
    let session_id = text(&session, "session_id")?;
    term.says("Clara", SENTENCE);
    let asked = Instant::now();
    clara
        .ask("chat:message", json!({ "session_id": session_id, "content": SENTENCE, "media": [] }))
        .await?;
    term.actor(&format!(
        "session {session_id}: her message is in the journal ({})",
        ms(asked.elapsed())
    ));

    // The agent's words arrive token by token, offers as providers' agents make them.
    let mut offers: Vec<Value> = Vec::new();
    let mut models: Vec<String> = Vec::new();
    let mut answered = false;
    let deadline = Instant::now() + OFFERS;
    while !(answered && !offers.is_empty() && clara.is_quiet(Duration::from_millis(400)).await?) {
        ensure!(Instant::now() < deadline, "no offer within {} s", OFFERS.as_secs());
        let Some(event) = clara.next_event(Duration::from_millis(400)).await? else { continue };
        match event["event"].as_str() {
            Some("chat:response") => {
                let data = &event["data"];
                let model = data["model"].as_str().unwrap_or("?");
                let away = data["fell_back"].as_str();
                let away =
                    away.map_or(String::new(), |why| format!(", since the model is away: {why}"));
                let content = data["content"].as_str().unwrap_or_default();
                term.says(&format!("Agent (thought by {model}{away})"), content);
                if !models.contains(&model.to_owned()) {
                    models.push(model.to_owned());
                }
                answered = true;
            }
            Some("offer:new") => {
                let offer = &event["data"]["offer"];
                term.actor(&format!(
                    "provider agent {}: {}",
                    offer["provider"]["name"].as_str().unwrap_or("?"),
                    describe(offer)
                ));
                offers.push(offer.clone());
            }
            _ => {}
        }
    }
    let offers_took = asked.elapsed();
    term.fact(&format!("thought by: {}", models.join(", ")));

    let best =
        offers.iter().max_by(|a, b| score(a).total_cmp(&score(b))).expect("there is an offer");
    term.step(&format!(
        "Clara accepts the best of {} offers: {}.",
        offers.len(),
        best["provider"]["name"].as_str().unwrap_or("?")
    ));
    term.fact(&format!("score {:.2} = {}", score(best), parts(best)));
    let accepting = Instant::now();
    let accepted = clara.ask("offer:accept", json!({ "offer_id": best["id"] })).await?;
    let booking_id = text(&accepted, "booking_id")?;
    let accept_took = accepting.elapsed();
    let confirmed = clara.wait_for("booking:confirmed").await?;
    term.actor(&format!(
        "request → provider holds the slot → booking {booking_id} ({})",
        ms(accept_took)
    ));
    ensure!(
        confirmed["data"]["booking"]["id"] == accepted["booking_id"],
        "another booking was confirmed"
    );
    let seen = confirmed["offset"].as_i64().context("a confirmation has an offset")?;
    let epoch = welcome["topics"][USER_TOPIC]["position"]["epoch"].clone();
    Ok((clara, Booked { booking_id, confirmed, seen, epoch, offers_took, accept_took }))
}

impl Booked {
    /// Finds the booking over a new connection, from the position before the confirmation.
    async fn find_again(&self, term: &Terminal, url: &str, token: &str) -> anyhow::Result<()> {
        let Self { booking_id, confirmed, seen, epoch, .. } = self;
        let mut clara = Client::connect(url, token).await?;
        let positions = json!({ USER_TOPIC: { "epoch": epoch, "offset": seen - 1 } });
        let back = clara.ask("auth", json!({ "positions": positions })).await?;
        ensure!(
            back["topics"][USER_TOPIC]["recovered"] == true,
            "the topic's history was not recovered: {back}"
        );
        let again = clara.wait_for("booking:confirmed").await?;
        ensure!(
            again["offset"].as_i64() == Some(*seen) && again["data"] == confirmed["data"],
            "the confirmation came back changed"
        );
        let booking = clara.get(url, token, &format!("/v1/bookings/{booking_id}")).await?;
        ensure!(
            booking["id"] == booking_id.as_str() && booking["status"] == "confirmed",
            "the booking is not there: {booking}"
        );
        term.actor(&format!(
            "Clara reconnects with her last position and gets offset {seen} again, in the same epoch"
        ));
        term.fact(&format!(
            "the booking is there: {} with {}, {}, {}",
            booking["service"].as_str().unwrap_or("?"),
            booking["provider"]["name"].as_str().unwrap_or("?"),
            booking["starts_at"].as_str().unwrap_or("?"),
            price(&booking["price"])
        ));
        Ok(())
    }

    fn figures(&self, term: &Terminal) {
        term.title("Figures of this run");
        term.row("sentence → all offers", self.offers_took);
        term.row("accept → booked, durably", self.accept_took);
    }
}

fn ms(took: Duration) -> String {
    format!("{} ms", took.as_millis())
}

fn text(value: &Value, field: &str) -> anyhow::Result<String> {
    Ok(value[field].as_str().with_context(|| format!("{field} is missing in {value}"))?.to_owned())
}

fn score(offer: &Value) -> f64 {
    offer["score"]["total"].as_f64().unwrap_or(0.0)
}

fn parts(offer: &Value) -> String {
    ["skill", "location", "availability", "price", "rating", "response"]
        .map(|part| format!("{part} {:.2}", offer["score"]["parts"][part].as_f64().unwrap_or(0.0)))
        .join(", ")
}

fn price(price: &Value) -> String {
    format!(
        "{:.2} {}",
        price["amount_minor"].as_f64().unwrap_or(0.0) / 100.0,
        price["currency"].as_str().unwrap_or("")
    )
}

fn describe(offer: &Value) -> String {
    format!(
        "{} at {}, rated {}",
        price(&offer["price"]),
        offer["starts_at"].as_str().unwrap_or("?"),
        offer["provider"]["rating"]
    )
}

/// The demonstration's own data folder, deleted when the demonstration ends.
struct Folder(PathBuf);

impl Folder {
    fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("proxie-demo-{}", std::process::id()));
        std::fs::create_dir_all(&path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }

    /// A command that runs this binary on the demonstration's store. It inherits neither the caller's database nor its
    /// port.
    fn command(&self) -> anyhow::Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .env_remove("DATABASE_URL")
            .env_remove("REDIS_URL")
            .env("PROXIE__PERSISTENCE__DATABASE_URL", "")
            .env("PROXIE__CLUSTER__ENABLED", "false")
            .env("PROXIE__AUTH__DEV_TOKENS", "true")
            .env("PROXIE__NODE__DATA_DIR", self.0.join("data"))
            .stdin(Stdio::null());
        Ok(command)
    }

    fn token(&self) -> anyhow::Result<String> {
        let output =
            self.command()?.args(["token", "--user", "clara", "--role", "consumer"]).output()?;
        let token =
            String::from_utf8_lossy(&output.stdout).lines().last().unwrap_or_default().to_owned();
        ensure!(
            output.status.success() && !token.is_empty(),
            "no token: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(token)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Ok(elsewhere) = std::fs::read_to_string(self.0.join("data/postgres.location"))
            && elsewhere.trim().starts_with("/var/lib/proxie/")
        {
            let _ = std::fs::remove_dir_all(elsewhere.trim());
        }
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct NodeProcess {
    child: Child,
    url: String,
    took: Duration,
}

impl NodeProcess {
    fn start(folder: &Folder, config: &Config) -> anyhow::Result<Self> {
        let started = Instant::now();
        let log = std::fs::File::create(folder.0.join("node.log"))?;
        let mut child = folder
            .command()?
            .arg("serve")
            .env("PROXIE__GATEWAY__LISTEN", "127.0.0.1:0")
            .env("PROXIE__GATEWAY__DRAIN_MS", "0")
            .env("PROXIE__LOG__LEVEL", &config.log.level)
            .env("PROXIE__LOG__FORMAT", "json")
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        while let Ok(1..) = stdout.read_line(&mut line) {
            if let Some(url) = line.trim().strip_prefix("proxie ready on ") {
                return Ok(Self { child, url: url.to_owned(), took: started.elapsed() });
            }
            line.clear();
        }
        let _ = child.wait();
        let log = std::fs::read_to_string(folder.0.join("node.log")).unwrap_or_default();
        bail!("the node did not start: {}", log.lines().last().unwrap_or("it said nothing"))
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn stop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        // Also after a failed demonstration. Its PostgreSQL ends with it.
        self.kill();
    }
}

/// Output in plain text, with colour on a terminal.
struct Terminal {
    colour: bool,
    started: Instant,
}

impl Terminal {
    fn new() -> Self {
        let colour = std::io::IsTerminal::is_terminal(&std::io::stdout())
            && std::env::var_os("NO_COLOR").is_none();
        Self { colour, started: Instant::now() }
    }

    fn print(&self, style: &str, line: &str) {
        let mut out = std::io::stdout().lock();
        let _ = if self.colour {
            writeln!(out, "\x1b[{style}m{line}\x1b[0m")
        } else {
            writeln!(out, "{line}")
        };
    }

    fn title(&self, line: &str) {
        self.print("1", &format!("\n{line}"));
    }

    fn step(&self, line: &str) {
        self.print("1;34", &format!("\n[{:5.1} s] {line}", self.started.elapsed().as_secs_f64()));
    }

    fn says(&self, who: &str, what: &str) {
        self.print("0", &format!("    {who}: \u{201c}{what}\u{201d}"));
    }

    fn actor(&self, line: &str) {
        self.print("36", &format!("    · {line}"));
    }

    fn fact(&self, line: &str) {
        self.print("32", &format!("    ✓ {line}"));
    }

    fn row(&self, what: &str, took: Duration) {
        self.print("0", &format!("    {what:<34} {:>8}", ms(took)));
    }
}
