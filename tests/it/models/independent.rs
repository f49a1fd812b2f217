//! The router before providers as somebody else understands them (`aimock`, in `tests/it/models/aimock`), of which every
//! fifth call fails: lost, garbled, cut off, or refused.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use proxie::ai::{FailureKind, ModelAsk, Options};
use proxie::kernel::chat::{Prompt, PromptMessage};
use serde_json::Value;

use super::routing::{Asking, WIRES, model, provider};
use crate::clients::installed;
use crate::cluster::free_address;
use crate::support::eventually;

struct Aimock(Child);

impl Drop for Aimock {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn get(url: &str) -> Option<Value> {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let text = client.get(url).send().await.ok()?.text().await.ok()?;
    serde_json::from_str(&text).ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_stuck_or_paid_twice_and_the_ledger_is_the_providers_journal() {
    let folder = installed("tests/it/models/aimock");
    let address = free_address();
    let port = address.rsplit(':').next().unwrap();
    let mut command = Command::new("node");
    command.current_dir(&folder).arg("node_modules/.bin/llmock");
    command.args(["--port", port, "--fixtures", "hello.json", "--journal-max", "0"]);
    for fault in ["drop", "malformed", "disconnect", "ratelimit"] {
        command.args([&format!("--chaos-{fault}"), "0.05"]);
    }
    let child = command.args(["--log-level", "silent"]).stdout(Stdio::null()).spawn().unwrap();
    let _aimock = Aimock(child);
    let mut options = Options { max_calls: 3, deadline_ms: 20_000, ..Options::default() };
    for (name, wire, path) in WIRES {
        let url = format!("http://127.0.0.1:{port}/{path}");
        options.providers.insert(name.into(), provider(wire, url));
        options.models.insert(name.into(), model(name));
    }
    options.route = "gpt".into();
    let asking = Asking::new(&options);
    let journal = format!("http://127.0.0.1:{port}/__aimock/journal?method=POST");
    eventually("it is up", async || get(&journal).await.is_some()).await;

    let asked = stream::iter(0..500).map(|n: usize| {
        let (asking, route) = (&asking, WIRES[n % 3].0);
        async move {
            let prompt = Prompt {
                messages: vec![PromptMessage::user(format!("hello {n}"))],
                ..Prompt::default()
            };
            // A model that wants to be left alone is: its circuit opens, and nobody is asked.
            loop {
                let ask = ModelAsk { route: Some(route), ..ModelAsk::new(&prompt) };
                match asking.ask(ask).await {
                    Err(failed) if failed.calls_made == 0 => {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    answer => return answer,
                }
            }
        }
    });
    let asked = tokio::time::timeout(
        Duration::from_secs(240),
        asked.buffer_unordered(8).collect::<Vec<_>>(),
    );
    let answers = asked.await.expect("nothing is stuck");
    assert_eq!(answers.len(), 500);
    let mut calls = 0;
    let (mut whole, mut doubtful) = (0, 0);
    for answer in &answers {
        match answer {
            Ok(answer) => {
                whole += 1;
                calls += answer.calls_made as usize;
                assert_eq!(answer.text, "hello there, how are you today my friend");
            }
            Err(failed) => {
                doubtful += usize::from(failed.failure.kind == FailureKind::Uncertain);
                calls += failed.calls_made as usize;
            }
        }
    }
    let journal = get(&journal).await.unwrap();
    let journal = journal.as_array().unwrap();
    let bills = asking.bills();
    assert_eq!((journal.len(), bills.len()), (calls, calls), "each call has its bill");
    // What an answer was paid for, it came.
    let paid = bills.iter().filter(|bill| bill.failure.is_none()).count();
    assert_eq!(paid, whole, "no answer is paid for twice");
    assert!(whole > 350 && doubtful > 0, "{whole} whole, {doubtful} in doubt");
}
