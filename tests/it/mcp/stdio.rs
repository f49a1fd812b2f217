//! `proxie mcp`, as a host starts it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use super::WISH;
use crate::process::{Folder, Served, command};

struct Host {
    child: Child,
    said: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Host {
    fn start(folder: &Folder, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut child = command(folder, &[&["mcp"], arguments].concat(), environment)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, said }
    }

    fn say(&mut self, message: &Value) {
        let input = self.child.stdin.as_mut().unwrap();
        input.write_all(format!("{message}\n").as_bytes()).unwrap();
    }

    fn hear(&mut self) -> Value {
        serde_json::from_str(&self.said.next().expect("an answer").unwrap()).unwrap()
    }

    fn ask(&mut self, id: u32, method: &str, params: Value) -> Value {
        self.say(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}));
        let answer = self.hear();
        assert_eq!(answer["id"], id, "{answer}");
        answer
    }

    /// Ends the input; whatever is still due is answered before it ends.
    fn end(mut self) -> Vec<String> {
        drop(self.child.stdin.take());
        let rest = self.said.by_ref().map_while(Result::ok).collect();
        assert!(self.child.wait().unwrap().success());
        rest
    }
}

#[test]
fn a_host_speaks_with_a_node_through_a_pipe() {
    let folder = Folder::new("mcp-stdio");
    let node = Served::start(&folder, &[("PROXIE__GATEWAY__LISTEN", "127.0.0.1:0")]);
    let at = format!("http://{}", node.address);
    let mut host = Host::start(&folder, &["--at", &at, "--user", "anna"], &[]);
    let hello = json!({
        "protocolVersion": "2025-11-25", "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    });
    let welcome = host.ask(1, "initialize", hello);
    assert_eq!(welcome["result"]["serverInfo"]["name"], "proxie", "{welcome}");
    host.say(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}));
    let listed = host.ask(2, "tools/list", json!({}));
    assert!(listed["result"]["tools"].as_array().unwrap().len() >= 20, "{listed}");
    let call = json!({"name": "create_service_request", "arguments": {"text": WISH}});
    let created = host.ask(3, "tools/call", call.clone());
    assert_eq!(created["result"]["isError"], false, "{created}");
    // The newest revision says everything in each request.
    let mut call = json!({"name": "list_requests", "arguments": {}});
    call["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let newest = host.ask(4, "tools/call", call);
    assert_eq!(newest["result"]["resultType"], "complete", "{newest}");
    host.say(&json!("no message"));
    host.child.stdin.as_mut().unwrap().write_all(b"no json\n").unwrap();
    assert_eq!(host.hear()["error"]["code"], -32_700);
    host.say(&json!({"jsonrpc": "2.0", "id": 5, "method": "tools/list"}));
    let rest = host.end();
    assert!(rest.len() == 1 && rest[0].contains("\"id\":5"), "{rest:?}");
    // A token that nobody has signed, and a node that is not there.
    let mut host = Host::start(&folder, &["--at", &at], &[("PROXIE_TOKEN", "a.b.c")]);
    let refused = host.ask(1, "tools/list", json!({}));
    assert_eq!(refused["error"]["data"]["code"], "unauthenticated", "{refused}");
    host.end();
    let mut host =
        Host::start(&folder, &["--at", "http://127.0.0.1:9"], &[("PROXIE_TOKEN", "a.b.c")]);
    let refused = host.ask(1, "tools/list", json!({}));
    assert!(
        refused["error"]["message"].as_str().unwrap().contains("cannot be reached"),
        "{refused}"
    );
    host.end();
}
