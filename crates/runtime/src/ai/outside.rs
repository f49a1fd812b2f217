//! Tools of outside servers that speak MCP, for agents of this node: which ones a role may use, and what has become of a
//! call.
//!
//! What such a server answers is data, and bounded. A call is sent once: again only where it cannot have been received, or
//! where the configuration says that it may be repeated.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::error::Error;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{HeaderName, HeaderValue};
use rmcp::RoleClient;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ClientCapabilities, ClientConfig,
    ContentBlock, Implementation, ProtocolVersion, ResourceContents, Tool,
};
use rmcp::service::{ClientLifecycleMode, ClientServiceExt, Peer, RunningService, ServiceError};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::async_rw::AsyncRwTransport;
use rmcp::transport::common::client_side_sse::NeverRetry;
use rmcp::transport::streamable_http_client::{
    StreamableHttpClientTransportConfig, StreamableHttpError,
};
use serde_json::{Map, Value};
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::options::ServerOptions;
use crate::kernel::chat::ToolSpec;

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

/// What an outside tool has answered.
#[derive(Clone, Debug, PartialEq)]
pub struct OutsideResult {
    /// Text, or JSON where the tool has structured content. It is cut where it is too long.
    pub content: String,
    /// Whether the tool says that it could not do it.
    pub is_error: bool,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutsideFailureKind {
    /// The role may not use it, or there is no such tool.
    NotAllowed,
    /// The arguments are none of the tool's.
    WrongArguments,
    /// The server has not received it.
    NotSent,
    /// The server has received it and refuses it.
    Refused,
    /// It may have been done: the answer did not come, was too long, or cannot be read.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct OutsideFailure {
    pub kind: OutsideFailureKind,
    /// In our words: those of a server are not passed on.
    pub detail: String,
}

impl OutsideFailure {
    fn new(kind: OutsideFailureKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into() }
    }

    pub fn may_have_happened(&self) -> bool {
        self.kind == OutsideFailureKind::Unknown
    }
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

    /// The tools that this role may use, by the names by which they are called here.
    pub async fn list(&self, role: &str, within: Duration) -> OutsideList {
        let mut list = OutsideList::default();
        let end = Instant::now() + within;
        for (name, server) in &self.0 {
            let allowed = server.allowed(role);
            if allowed.is_empty() {
                continue;
            }
            match server.tools(end).await {
                Ok(tools) => {
                    let shown = tools.values().filter(|tool| allowed.contains(&*tool.name));
                    list.tools.extend(shown.map(|tool| spec(name, tool)));
                }
                Err(failure) => drop(list.away.insert(name.clone(), failure.detail)),
            }
        }
        list
    }

    /// Calls a tool by its name here.
    pub async fn call(
        &self,
        role: &str,
        tool: &str,
        arguments: &Value,
        within: Duration,
    ) -> Result<OutsideResult, OutsideFailure> {
        use OutsideFailureKind::{NotAllowed, WrongArguments};
        let unknown = || OutsideFailure::new(NotAllowed, "there is no such tool");
        let (server, tool) = tool.split_once(BETWEEN).ok_or_else(unknown)?;
        let server = self.0.get(server).ok_or_else(unknown)?;
        if !server.allowed(role).contains(tool) {
            return Err(unknown());
        }
        let Value::Object(arguments) = arguments else {
            return Err(OutsideFailure::new(WrongArguments, "the arguments are no object"));
        };
        let end = Instant::now() + within.min(server.options.timeout());
        let tools = server.tools(end).await?;
        let declared = tools.get(tool).ok_or_else(unknown)?;
        check(&declared.input_schema, arguments)?;
        server.call(tool, arguments, end).await
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
        if options.concurrency == 0 || options.timeout_ms == 0 || options.max_result_bytes == 0 {
            return Err("concurrency, timeout_ms and max_result_bytes must not be 0".into());
        }
        Ok(Self {
            options: options.clone(),
            place,
            places: Semaphore::new(options.concurrency),
            link: Mutex::default(),
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

    async fn call(
        &self,
        tool: &str,
        arguments: &Map<String, Value>,
        end: Instant,
    ) -> Result<OutsideResult, OutsideFailure> {
        use OutsideFailureKind::{NotSent, Unknown};
        let place = timeout_at(end, self.places.acquire()).await;
        let _place =
            place.ok().and_then(Result::ok).ok_or_else(|| away("too many calls wait for it"))?;
        let may_repeat = self.options.repeatable.iter().any(|name| name == tool);
        let mut failed = match self.try_call(tool, arguments, end).await {
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
            failed = match self.try_call(tool, arguments, end).await {
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
        end: Instant,
    ) -> Result<CallToolResult, OutsideFailure> {
        use OutsideFailureKind::{Refused, Unknown};
        let peer = self.peer(end).await?;
        let params = CallToolRequestParams::new(tool.to_owned()).with_arguments(arguments.clone());
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
        .read_timeout(options.timeout())
        .pool_idle_timeout(Duration::from_secs(60))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
        .map_err(|error| format!("no client for it: {error}"))
}

fn away(detail: &str) -> OutsideFailure {
    OutsideFailure::new(OutsideFailureKind::NotSent, detail)
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

/// What a failed call means. Where nothing is certain, it may have been done.
fn failure(error: &ServiceError) -> OutsideFailure {
    use OutsideFailureKind::{NotSent, Refused, Unknown};
    tracing::debug!(%error, "a call of an outside tool has failed");
    let (kind, detail) = match error {
        ServiceError::McpError(_) => (Refused, "the server refuses the call"),
        ServiceError::TransportSend(error) => sending(error.error.as_ref()),
        ServiceError::UnexpectedResponse => (Unknown, "the answer cannot be read"),
        _ => (Unknown, "the connection has ended before the answer"),
    };
    match (kind, detail) {
        (NotSent, detail) => away(detail),
        (kind, detail) => OutsideFailure::new(kind, detail),
    }
}

fn sending(error: &(dyn Error + 'static)) -> (OutsideFailureKind, &'static str) {
    use OutsideFailureKind::{NotSent, Refused, Unknown};
    type Http = StreamableHttpError<reqwest::Error>;
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<Http>() {
            match error {
                Http::Client(error) if error.is_connect() => {
                    return (NotSent, "it cannot be reached");
                }
                Http::AuthRequired(_) | Http::InsufficientScope(_) => {
                    return (Refused, "the server does not let us in");
                }
                // Refused before the call was looked at.
                Http::HttpStatus(status) if status.status == 429 => {
                    return (Refused, "the server takes no more calls now");
                }
                Http::SessionExpired | Http::ReinitializationFailed(_) => {
                    // Once it was opened anew.
                    return (Refused, "the server has lost its session again");
                }
                Http::ResponseBodyTooLarge { .. } => return (Unknown, "the answer is too long"),
                _ => {}
            }
        }
        cause = error.source();
    }
    (Unknown, "the connection has ended before the answer")
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
