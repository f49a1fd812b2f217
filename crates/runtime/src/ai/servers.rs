//! Tools of outside servers that speak MCP, for agents of this node: which ones a role may use, and what has become of a
//! call.
//!
//! What such a server answers is data, and bounded. A call is sent once: again only where it cannot have been received, or
//! where the configuration says that it may be repeated.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{HeaderName, HeaderValue};
use rmcp::RoleClient;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ClientCapabilities, ClientConfig,
    ContentBlock, Implementation, ProtocolVersion, RequestMetaObject, ResourceContents, Tool,
};
use rmcp::service::{ClientLifecycleMode, ClientServiceExt, Peer, RunningService, ServiceError};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::async_rw::AsyncRwTransport;
use rmcp::transport::common::client_side_sse::NeverRetry;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use serde_json::{Map, Value};
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::options::ServerOptions;
use crate::kernel::chat::ToolSpec;
use crate::kernel::outward::Guarantee;

mod failure;

pub use failure::{OutsideFailure, OutsideFailureKind};

use failure::{away, failure};

/// How long a server's list of tools is taken to be what it was.
const LISTED_FOR: Duration = Duration::from_secs(300);
/// Most tools of one server that are looked at.
const MAX_TOOLS: usize = 256;
/// The longest schema of a tool, and its longest description, which are cut.
const MAX_SCHEMA: usize = 16 * 1_024;
const MAX_DESCRIPTION: usize = 1_024;
/// The longest name that models take.
const MAX_NAME: usize = 64;
/// Between a server's name and its tool's.
const BETWEEN: &str = "__";
/// A server that was away is not asked for its tools again for so long, by those who can do without.
const LEFT_ALONE: Duration = Duration::from_secs(10);
/// The longest that an operator may let a call take.
pub const LONGEST_CALL: Duration = Duration::from_secs(300);
/// The most that an operator may let an agent read of a result.
pub const MOST_OF_A_RESULT: usize = 64 * 1_024;
/// By this a server may recognise a call that comes again: those of this project do.
const IDEMPOTENCY_KEY: &str = "proxie/idempotency-key";

/// What an outside tool has answered.
#[derive(Clone, Debug, PartialEq)]
pub struct OutsideResult {
    /// Text, or JSON where the tool has structured content. It is cut where it is too long.
    pub content: String,
    /// Whether the tool says that it could not do it.
    pub is_error: bool,
}

/// The tools that a role may use now.
#[derive(Clone, Debug, Default)]
pub struct OutsideList {
    pub tools: Vec<ToolSpec>,
    /// Servers whose tools are not among them, since they cannot be reached, and why.
    pub away: BTreeMap<String, String>,
}

/// The outside servers of this node.
pub struct OutsideTools(BTreeMap<String, OutsideServer>);

struct OutsideServer {
    options: ServerOptions,
    place: Place,
    places: Semaphore,
    /// Opened by the first who needs it, and again by the next after it was lost.
    link: Mutex<Option<Link>>,
    seen: parking_lot::Mutex<Seen>,
}

/// A server as it was when it was last asked for its tools.
#[derive(Default)]
struct Seen {
    tools: Option<Arc<BTreeMap<String, Tool>>>,
    failed: Option<(Instant, OutsideFailure)>,
}

/// Where a server is.
enum Place {
    Url { url: String, headers: HashMap<HeaderName, HeaderValue>, web: reqwest::Client },
    Command(Vec<String>),
}

struct Link {
    service: RunningService<RoleClient, ClientConfig>,
    /// The process of a server that is spoken to over its standard input. It ends with the link.
    _child: Option<Child>,
    listed: Option<(Instant, Arc<BTreeMap<String, Tool>>)>,
}

impl OutsideTools {
    pub fn new(servers: &BTreeMap<String, ServerOptions>) -> Result<Self, String> {
        let made = servers.iter().map(|(name, options)| {
            let server = OutsideServer::new(name, options);
            Ok((name.clone(), server.map_err(|why| format!("ai.servers.{name}: {why}"))?))
        });
        made.collect::<Result<_, String>>().map(Self)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The promise of a tool that this role may use, as the configuration has it. `Err`: why it may not.
    pub fn promise(&self, role: &str, tool: &str) -> Result<Guarantee, String> {
        let (server, tool) = tool.split_once(BETWEEN).ok_or("it is no outside tool")?;
        let no_server = || format!("there is no ai.servers.{server}");
        let server_of = self.0.get(server).ok_or_else(no_server)?;
        if !server_of.allowed(role).contains(tool) {
            return Err(format!("ai.servers.{server}.roles.{role} does not have it"));
        }
        let is_repeatable = server_of.options.repeatable.iter().any(|name| name == tool);
        Ok(if is_repeatable { Guarantee::Keyed } else { Guarantee::AtMostOnce })
    }

    /// The tools that this role may use, by the names by which they are called here. Of a server that is away they are those
    /// that it had when it was last seen.
    pub async fn list(&self, role: &str, within: Duration) -> OutsideList {
        let mut list = OutsideList::default();
        let end = Instant::now() + within;
        for (name, server) in &self.0 {
            let allowed = server.allowed(role);
            if allowed.is_empty() {
                continue;
            }
            match server.last_tools(end).await {
                Ok(tools) => {
                    let shown = tools.values().filter(|tool| allowed.contains(&*tool.name));
                    list.tools.extend(shown.map(|tool| spec(name, tool)));
                }
                Err(failure) => drop(list.away.insert(name.clone(), failure.detail)),
            }
        }
        list
    }

    /// Calls a tool by its name here. `key` is the same for a repetition.
    pub async fn call(
        &self,
        role: &str,
        tool: &str,
        arguments: &Value,
        key: &str,
    ) -> Result<OutsideResult, OutsideFailure> {
        use OutsideFailureKind::{NotAllowed, WrongArguments};
        let not_allowed = || OutsideFailure::new(NotAllowed, "this agent may not use it");
        let (server, tool) = tool.split_once(BETWEEN).ok_or_else(not_allowed)?;
        let server = self.0.get(server).ok_or_else(not_allowed)?;
        if !server.allowed(role).contains(tool) {
            return Err(not_allowed());
        }
        let Value::Object(arguments) = arguments else {
            return Err(OutsideFailure::new(WrongArguments, "the arguments are no object"));
        };
        let end = Instant::now() + server.options.timeout(tool);
        let tools = server.tools(end).await?;
        let gone = || OutsideFailure::new(NotAllowed, "its server does not have it any more");
        check(&tools.get(tool).ok_or_else(gone)?.input_schema, arguments)?;
        server.call(tool, arguments, key, end).await
    }
}

impl OutsideServer {
    fn new(name: &str, options: &ServerOptions) -> Result<Self, String> {
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if name.is_empty() || name.len() > 24 || !name.bytes().all(is_word) {
            return Err("its name must have 1 to 24 letters, digits and hyphens".into());
        }
        let place = match (options.url.as_str(), options.command.as_slice()) {
            (url, []) if url.starts_with("https://") || url.starts_with("http://") => {
                let headers = options.headers.iter().map(|(name, value)| {
                    let wrong = |_| format!("headers.{name} is no header");
                    let mut value = HeaderValue::from_str(value.reveal())
                        .map_err(|_| format!("headers.{name} is no header"))?;
                    value.set_sensitive(true);
                    Ok((HeaderName::from_bytes(name.as_bytes()).map_err(wrong)?, value))
                });
                let headers = headers.collect::<Result<_, String>>()?;
                Place::Url { url: url.to_owned(), headers, web: web(options)? }
            }
            ("", [_, ..]) => Place::Command(options.command.clone()),
            _ => return Err("it takes either a url, http:// or https://, or a command".into()),
        };
        if options.concurrency == 0 {
            return Err("concurrency must not be 0".into());
        }
        let mut times = options.timeouts_ms.values().chain([&options.timeout_ms]);
        if times.any(|&ms| ms == 0) || options.longest() > LONGEST_CALL {
            return Err(format!(
                "timeout_ms and timeouts_ms must be 1 to {}",
                LONGEST_CALL.as_millis()
            ));
        }
        if !(1..=MOST_OF_A_RESULT).contains(&options.max_result_bytes) {
            return Err(format!("max_result_bytes must be 1 to {MOST_OF_A_RESULT}"));
        }
        Ok(Self {
            options: options.clone(),
            place,
            places: Semaphore::new(options.concurrency),
            link: Mutex::default(),
            seen: parking_lot::Mutex::default(),
        })
    }

    fn allowed(&self, role: &str) -> BTreeSet<&str> {
        self.options.roles.get(role).into_iter().flatten().map(String::as_str).collect()
    }

    /// The most that one message of the server may have.
    fn wire_limit(&self) -> usize {
        (4 * self.options.max_result_bytes).max(1 << 20)
    }

    /// A link that was not lost, as far as one can see.
    async fn peer(&self, end: Instant) -> Result<Peer<RoleClient>, OutsideFailure> {
        let mut link = self.held(end).await?;
        Ok(self.opened(&mut link, end).await?.service.peer().clone())
    }

    async fn held(
        &self,
        end: Instant,
    ) -> Result<tokio::sync::MutexGuard<'_, Option<Link>>, OutsideFailure> {
        timeout_at(end, self.link.lock()).await.map_err(|_| away("it is not reached in time"))
    }

    async fn opened<'a>(
        &self,
        link: &'a mut Option<Link>,
        end: Instant,
    ) -> Result<&'a mut Link, OutsideFailure> {
        let is_lost = link.as_ref().is_none_or(|link| link.service.peer().is_transport_closed());
        if is_lost {
            *link = None;
            let opened = timeout_at(end, self.open()).await;
            let opened = opened.map_err(|_| away("it is not reached in time"))?;
            *link = Some(opened.map_err(|why| {
                tracing::debug!(%why, "an outside server cannot be reached");
                away("it cannot be reached, or speaks no revision that is known here")
            })?);
        }
        Ok(link.as_mut().expect("it was just opened"))
    }

    async fn open(&self) -> Result<Link, String> {
        let client = ClientConfig::new(
            // Nobody here answers the questions of outside servers.
            ClientCapabilities::default(),
            Implementation::new("proxie", env!("CARGO_PKG_VERSION")),
        );
        let lifecycle = ClientLifecycleMode::Auto {
            preferred_versions: vec![ProtocolVersion::V_2026_07_28],
            legacy_version: Some(ProtocolVersion::V_2025_11_25),
        };
        match &self.place {
            Place::Url { url, headers, web } => {
                let mut config = StreamableHttpClientTransportConfig::with_uri(url.as_str());
                config.custom_headers = headers.clone();
                config.max_json_response_size = self.wire_limit();
                config.max_sse_event_size = self.wire_limit();
                // A session that the server has lost is opened again once; a call that it has not taken goes with it. A
                // stream that ends is not asked for again: what came of its call is then unknown.
                config.reinit_on_expired_session = true;
                config.retry_config = Arc::new(NeverRetry::default());
                let transport = StreamableHttpClientTransport::with_client(web.clone(), config);
                let service = client.serve_with_lifecycle(transport, lifecycle).await;
                let service = service.map_err(|error| error.to_string())?;
                Ok(Link { service, _child: None, listed: None })
            }
            Place::Command(command) => {
                let mut child = self.start(command).map_err(|error| error.to_string())?;
                let pipes = child.stdout.take().zip(child.stdin.take());
                let (output, input) = pipes.ok_or("it has no pipes")?;
                let transport =
                    AsyncRwTransport::new(output, input).with_max_line_length(self.wire_limit());
                let service = client.serve_with_lifecycle(transport, lifecycle).await;
                let service = service.map_err(|error| error.to_string())?;
                Ok(Link { service, _child: Some(child), listed: None })
            }
        }
    }

    /// The server's process, which sees nothing of this one's environment but where programs are.
    fn start(&self, command: &[String]) -> std::io::Result<Child> {
        let kept = ["PATH", "HOME", "LANG", "TMPDIR"];
        let kept = kept.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
        let given = &self.options.environment;
        Command::new(&command[0])
            .args(&command[1..])
            .env_clear()
            .envs(kept)
            .envs(given.iter().map(|(name, value)| (name, value.reveal())))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
    }

    /// The server's tools by their names, those that can be used.
    async fn tools(&self, end: Instant) -> Result<Arc<BTreeMap<String, Tool>>, OutsideFailure> {
        let mut held = self.held(end).await?;
        for attempt in 0..2 {
            let link = self.opened(&mut held, end).await?;
            if let Some((at, tools)) = &link.listed
                && at.elapsed() < LISTED_FOR
            {
                return Ok(tools.clone());
            }
            // A list may be asked for again.
            match timeout_at(end, listed(link.service.peer())).await {
                Ok(Ok(tools)) => {
                    let tools = Arc::new(tools);
                    link.listed = Some((Instant::now(), tools.clone()));
                    return Ok(tools);
                }
                Ok(Err(error)) => {
                    tracing::debug!(%error, attempt, "an outside server's tools cannot be listed");
                    *held = None;
                }
                Err(_) => return Err(away("its tools are not listed in time")),
            }
        }
        Err(away("its tools cannot be listed"))
    }

    /// Its tools, or where it is away those that it had before.
    async fn last_tools(
        &self,
        end: Instant,
    ) -> Result<Arc<BTreeMap<String, Tool>>, OutsideFailure> {
        let failed = self.seen.lock().failed.clone();
        let failed = failed.filter(|(at, _)| at.elapsed() < LEFT_ALONE);
        let asked = match failed {
            Some((_, failure)) => Err(failure),
            None => self.tools(end).await,
        };
        let mut seen = self.seen.lock();
        match asked {
            Ok(tools) => {
                *seen = Seen { tools: Some(tools.clone()), failed: None };
                Ok(tools)
            }
            Err(failure) => {
                let is_old = |(at, _): &(Instant, _)| at.elapsed() >= LEFT_ALONE;
                if seen.failed.as_ref().is_none_or(is_old) {
                    seen.failed = Some((Instant::now(), failure.clone()));
                }
                seen.tools.clone().ok_or(failure)
            }
        }
    }

    async fn call(
        &self,
        tool: &str,
        arguments: &Map<String, Value>,
        key: &str,
        end: Instant,
    ) -> Result<OutsideResult, OutsideFailure> {
        use OutsideFailureKind::{NotSent, Unknown};
        let place = timeout_at(end, self.places.acquire()).await;
        let _place =
            place.ok().and_then(Result::ok).ok_or_else(|| away("too many calls wait for it"))?;
        let may_repeat = self.options.repeatable.iter().any(|name| name == tool);
        let mut failed = match self.try_call(tool, arguments, key, end).await {
            Ok(result) => return self.shown(result),
            Err(failed) => failed,
        };
        let again = match failed.kind {
            NotSent => true,
            Unknown => may_repeat,
            _ => false,
        };
        if again && Instant::now() < end {
            self.held(end).await?.take();
            failed = match self.try_call(tool, arguments, key, end).await {
                Ok(result) => return self.shown(result),
                Err(failed) => failed,
            };
        }
        Err(failed)
    }

    async fn try_call(
        &self,
        tool: &str,
        arguments: &Map<String, Value>,
        key: &str,
        end: Instant,
    ) -> Result<CallToolResult, OutsideFailure> {
        use OutsideFailureKind::{Refused, Unknown};
        let peer = self.peer(end).await?;
        let mut params =
            CallToolRequestParams::new(tool.to_owned()).with_arguments(arguments.clone());
        let mut meta = RequestMetaObject::new();
        meta.insert(IDEMPOTENCY_KEY.into(), key.into());
        params.meta = Some(meta);
        // Dropping the call tells the server that it is no longer waited for.
        let answered = timeout_at(end, peer.call_tool_once(params)).await;
        let answered =
            answered.map_err(|_| OutsideFailure::new(Unknown, "it has not answered in time"))?;
        match answered {
            Ok(CallToolResponse::Complete(result)) => Ok(result),
            Ok(_) => {
                let detail = "it asks something back, which nobody here answers";
                Err(OutsideFailure::new(Refused, detail))
            }
            Err(error) => Err(failure(&error)),
        }
    }

    fn shown(&self, result: CallToolResult) -> Result<OutsideResult, OutsideFailure> {
        let is_error = result.is_error.unwrap_or_default();
        let content = match &result.structured_content {
            Some(structured) => structured.to_string(),
            None => result.content.iter().map(text).collect::<Vec<_>>().join("\n"),
        };
        Ok(OutsideResult { content: cut(content, self.options.max_result_bytes), is_error })
    }
}

fn web(options: &ServerOptions) -> Result<reqwest::Client, String> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .connect_timeout(Duration::from_secs(5))
        .read_timeout(options.longest())
        .pool_idle_timeout(Duration::from_secs(60))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
        .map_err(|error| format!("no client for it: {error}"))
}

/// The tools of a server that can be used: those whose names models take, with schemas that are objects.
async fn listed(peer: &Peer<RoleClient>) -> Result<BTreeMap<String, Tool>, ServiceError> {
    let mut tools = BTreeMap::new();
    let mut cursor = None;
    loop {
        let mut request = rmcp::model::PaginatedRequestParams::default();
        request.cursor = cursor;
        let page = peer.list_tools(Some(request)).await?;
        let room = MAX_TOOLS.saturating_sub(tools.len());
        for tool in page.tools.into_iter().take(room) {
            if is_usable(&tool) {
                tools.insert(tool.name.to_string(), tool);
            } else {
                let name: String = tool.name.chars().take(MAX_NAME).collect();
                tracing::warn!(tool = name, "an outside tool cannot be used: its name or schema");
            }
        }
        cursor = page.next_cursor.filter(|cursor| cursor.len() <= MAX_SCHEMA);
        if cursor.is_none() || tools.len() >= MAX_TOOLS {
            return Ok(tools);
        }
    }
}

fn is_usable(tool: &Tool) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let schema = &tool.input_schema;
    !tool.name.is_empty()
        && tool.name.len() <= MAX_NAME - 26
        && tool.name.bytes().all(is_word)
        && schema.get("type").is_some_and(|kind| kind == "object")
        && schema.get("properties").is_none_or(Value::is_object)
        && schema.get("required").is_none_or(Value::is_array)
        && Value::Object((**schema).clone()).to_string().len() <= MAX_SCHEMA
}

/// A tool as models see it. Its words are the server's, and so no instructions.
fn spec(server: &str, tool: &Tool) -> ToolSpec {
    let description = tool.description.as_deref().unwrap_or_default();
    ToolSpec {
        name: format!("{server}{BETWEEN}{}", tool.name),
        description: cut(description.to_owned(), MAX_DESCRIPTION),
        parameters: Value::Object((*tool.input_schema).clone()),
    }
}

/// Whether arguments are what a tool's schema asks for, as far as it is looked at here.
pub fn check_arguments(schema: &Value, arguments: &Value) -> Result<(), OutsideFailure> {
    match (schema, arguments) {
        (Value::Object(schema), Value::Object(arguments)) => check(schema, arguments),
        _ => {
            let detail = "the arguments are no object";
            Err(OutsideFailure::new(OutsideFailureKind::WrongArguments, detail))
        }
    }
}

/// Whether arguments have what is required, and nothing of another kind than is declared.
fn check(
    schema: &Map<String, Value>,
    arguments: &Map<String, Value>,
) -> Result<(), OutsideFailure> {
    let wrong = |detail: String| OutsideFailure::new(OutsideFailureKind::WrongArguments, detail);
    let mut required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
    if let Some(name) =
        required.find_map(|name| name.as_str().filter(|name| !arguments.contains_key(*name)))
    {
        return Err(wrong(format!("{name} is required")));
    }
    for (name, value) in arguments {
        let kind = schema.get("properties").and_then(|all| all[name]["type"].as_str());
        let fits = match kind {
            Some("string") => value.is_string(),
            Some("boolean") => value.is_boolean(),
            Some("integer") => value.as_f64().is_some_and(|number| number.fract() == 0.0),
            Some("number") => value.is_number(),
            Some("array") => value.is_array(),
            Some("object") => value.is_object(),
            _ => true,
        };
        if !fits {
            return Err(wrong(format!("{name} must be of type {}", kind.unwrap_or_default())));
        }
    }
    Ok(())
}

/// A piece of content as text. Pictures and sound are named, and not shown.
fn text(block: &ContentBlock) -> String {
    match block {
        ContentBlock::Text(text) => text.text.clone(),
        ContentBlock::Image(image) => format!("[a picture, {}]", cut(image.mime_type.clone(), 64)),
        ContentBlock::Audio(audio) => format!("[sound, {}]", cut(audio.mime_type.clone(), 64)),
        ContentBlock::Resource(resource) => match &resource.resource {
            ResourceContents::TextResourceContents { text, .. } => text.clone(),
            _ => "[a file]".into(),
        },
        ContentBlock::ResourceLink(link) => cut(link.uri.clone(), MAX_DESCRIPTION),
        _ => "[something else]".into(),
    }
}

fn cut(mut text: String, limit: usize) -> String {
    if text.len() > limit {
        let bytes = text.len();
        text.truncate(text.floor_char_boundary(limit));
        text.push_str(&format!(" … (cut: it has {bytes} bytes)"));
    }
    text
}
