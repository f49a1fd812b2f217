//! The protocol's own SDK for Python.

use std::path::Path;
use std::process::Command;

use proxie::ai::peers::options::Options;
use proxie::systems::agents::settings::OutsideSection;

use super::of_provider;
use crate::clients::{must, pip};
use crate::edges::TestNode;
use crate::process::Folder;

#[tokio::test(flavor = "multi_thread")]
async fn the_python_sdk_lists_and_calls_everything() {
    let options = Options { push_to_loopback: true, ..Options::default() };
    let node = TestNode::with(|config| config.systems.set(OutsideSection(options))).await;
    let salon = node.hairdresser().await;
    let folder = Folder::new("a2a-python");
    let packages = pip(&folder.0, &["a2a-sdk==1.3.0"]);
    let client = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suites/a2a-client.py");
    let token = node.user("anna").token.unwrap();
    let mut days = 2;
    for agent in ["/a2a".to_owned(), of_provider(&salon)] {
        for binding in ["JSONRPC", "HTTP+JSON"] {
            days += 2;
            let mut python = Command::new("python3");
            python
                .arg(&client)
                .args([
                    format!("http://{}{agent}", node.node.address),
                    binding.into(),
                    days.to_string(),
                ])
                .env("PYTHONPATH", &packages)
                .env("PROXIE_TOKEN", &token);
            let said = tokio::task::spawn_blocking(move || must(python)).await.unwrap();
            assert!(said.contains("a2a-sdk 1.3.0") && said.contains(binding), "{said}");
        }
    }
}
