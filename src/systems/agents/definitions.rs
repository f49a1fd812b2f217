//! The agents of this node: what systems declare and the configuration says, made into definitions.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use serde::Deserialize;

use crate::cluster::CommandMeta;
use crate::contract::operation::ToolEffect;
use crate::contract::section::Section;
use crate::contract::system::Installed;
use crate::contract::{Declared, Services, System};
use crate::kernel::agent::{AgentDefinition, AgentTool, MessagePolicy, RunTerms, ToolPlace};
use crate::kernel::chat::Cost;
use crate::kernel::entity::Scopes;
use crate::kernel::error::AskError;
use crate::systems::agents::domain::version::{AgentVersion, Command};
use crate::systems::agents::outside::{self, OutsideWish};
use crate::systems::agents::settings::Models;

/// Versions that this node knows to be stored.
const MAX_KNOWN: usize = 10_000;

/// The section `[agents.NAME]`: an agent, or what is to be different about a declared one.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentOptions {
    pub summary: Option<String>,
    pub instructions: Option<String>,
    pub route: Option<String>,
    pub tools: Option<Vec<String>>,
    pub without_asking: Option<Vec<String>>,
    pub hands_over_to: Option<Vec<String>>,
    pub on_message: Option<MessagePolicy>,
    pub temperature: Option<f64>,
    pub max_tokens: Option<u32>,
    pub max_turns: Option<u32>,
    /// In US dollars, of one run.
    pub max_cost: Option<String>,
    pub max_seconds: Option<u32>,
    pub approval_hours: Option<u32>,
    pub context_tokens: Option<u32>,
}

/// The section `[agents]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct AgentSection(pub BTreeMap<String, AgentOptions>);

/// The agents of this node.
pub struct Agents {
    options: AgentSection,
    /// Made once the node's operations are known.
    defined: OnceLock<Result<BTreeMap<String, DefinedAgent>, String>>,
    /// Versions that are stored.
    known: Mutex<HashSet<String>>,
}

#[must_use = "a run is of the version that was stored"]
#[derive(Clone, Debug)]
pub struct DefinedAgent {
    pub summary: String,
    pub version: String,
    pub definition: Arc<AgentDefinition>,
    /// Tools of outside servers, which say themselves what these are.
    pub outside: Vec<OutsideWish>,
}

impl Section for AgentSection {
    const NAME: &'static str = "agents";
    type Ready = Agents;

    fn prepare(&self) -> Result<Agents, String> {
        for (name, options) in &self.0 {
            terms(options, MessagePolicy::default())
                .map_err(|why| format!("agents.{name}.{why}"))?;
        }
        Ok(Agents { options: self.clone(), defined: OnceLock::new(), known: Mutex::default() })
    }
}

impl Agents {
    /// All of them by name. `Err`: what is wrong with the configuration.
    pub fn all(&self, services: &Services) -> Result<&BTreeMap<String, DefinedAgent>, &str> {
        let defined = self.defined.get_or_init(|| define_all(services, &self.options));
        defined.as_ref().map_err(String::as_str)
    }

    /// The agent with its outside tools as they are now. Its version is stored, so that runs of it go on where another
    /// release runs.
    pub async fn store(
        &self,
        services: &Services,
        agent: &DefinedAgent,
    ) -> Result<DefinedAgent, AskError> {
        let agent = outside::complete(services, agent).await;
        let DefinedAgent { version, definition, .. } = &agent;
        if self.known.lock().contains(version) {
            return Ok(agent);
        }
        let define = Command::Define(Box::new((**definition).clone()));
        let stored = services.entities.of::<AgentVersion>(version.as_str());
        if let Err(rejection) = stored.ask(define, CommandMeta::runtime()).await? {
            tracing::error!(%rejection, version, "a version of an agent is not taken");
            return Err(AskError::Internal);
        }
        let mut known = self.known.lock();
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(version.clone());
        drop(known);
        Ok(agent)
    }
}

/// A tool of any system, by its name.
pub fn tool_named(services: &Services, name: &str) -> Option<&'static Declared> {
    find_tool(installed(services), name)
}

fn installed(services: &Services) -> &'static [&'static System] {
    services.settings.get::<Installed>().map_or(&[], |installed| installed.0)
}

fn find_tool(systems: &'static [&'static System], name: &str) -> Option<&'static Declared> {
    let mut operations = systems.iter().flat_map(|system| system.operations);
    operations.find(|operation| operation.meta.tool.is_some_and(|tool| tool.name == name))
}

fn define_all(
    services: &Services,
    section: &AgentSection,
) -> Result<BTreeMap<String, DefinedAgent>, String> {
    let systems = installed(services);
    let declared = systems.iter().flat_map(|system| system.assistants);
    let mut all = BTreeMap::new();
    for one in declared.clone() {
        let words = |words: &[&str]| Some(words.iter().map(|&word| word.to_owned()).collect());
        let given = section.0.get(one.name).cloned().unwrap_or_default();
        let options = AgentOptions {
            summary: given.summary.or_else(|| Some(one.summary.into())),
            instructions: given.instructions.or_else(|| Some(one.instructions.into())),
            tools: given.tools.or_else(|| words(one.tools)),
            without_asking: given.without_asking.or_else(|| words(one.without_asking)),
            hands_over_to: given.hands_over_to.or_else(|| words(one.hands_over_to)),
            on_message: given.on_message.or(Some(one.on_message)),
            max_seconds: given.max_seconds.or(one.max_seconds),
            ..given
        };
        all.insert(one.name.to_owned(), options);
    }
    for (name, options) in &section.0 {
        all.entry(name.clone()).or_insert_with(|| options.clone());
    }
    let names: Vec<_> = all.keys().cloned().collect();
    let defined = all.into_iter().map(|(name, options)| {
        let defined = define(services, &name, options, &names);
        Ok((name.clone(), defined.map_err(|why| format!("agents.{name}.{why}"))?))
    });
    defined.collect()
}

fn terms(options: &AgentOptions, on_message: MessagePolicy) -> Result<RunTerms, String> {
    let usual = RunTerms::default();
    let max_cost = match options.max_cost.as_deref() {
        None => usual.max_cost,
        Some(text) => {
            let wrong = || format!("max_cost: {text:?} is no amount; \"0.50\" would be one");
            Cost::parse(text).ok_or_else(wrong)?
        }
    };
    let approval_seconds = match options.approval_hours {
        None => usual.approval_seconds,
        Some(hours) => hours.clamp(1, 24 * 365) * 3_600,
    };
    Ok(RunTerms {
        on_message: options.on_message.unwrap_or(on_message),
        max_turns: options.max_turns.unwrap_or(usual.max_turns).clamp(1, 10_000),
        max_cost,
        max_seconds: options.max_seconds.unwrap_or(usual.max_seconds).clamp(1, 7 * 24 * 3_600),
        approval_seconds,
        max_same_calls: usual.max_same_calls,
        context_tokens: options.context_tokens.unwrap_or(usual.context_tokens).max(500),
    })
}

fn define(
    services: &Services,
    name: &str,
    options: AgentOptions,
    names: &[String],
) -> Result<DefinedAgent, String> {
    let without_asking = options.without_asking.clone().unwrap_or_default();
    let mut tools = Vec::new();
    let mut scopes = Vec::new();
    let mut wishes = Vec::new();
    let reads_outside = options.tools.iter().flatten().any(|tool| {
        let is_ours = find_tool(installed(services), tool).is_some();
        outside::is_outside(tool) || !is_ours && outside::peer_of(tool).is_some()
    });
    for tool in options.tools.iter().flatten() {
        if outside::is_outside(tool) {
            let models = services.settings.get::<Models>();
            let models = models.ok_or("tools: this node has no outside servers")?;
            let promise = models.outside.promise(name, tool);
            let guarantee = promise.map_err(|why| format!("tools: {tool:?}: {why}"))?;
            let asks_first = !without_asking.contains(tool);
            wishes.push(OutsideWish { name: tool.clone(), guarantee, asks_first });
            scopes.push(outside::SCOPE);
            continue;
        }
        let unknown = || format!("tools: there is no tool {tool:?}");
        let operation = match find_tool(installed(services), tool) {
            Some(operation) => operation,
            None if outside::peer_of(tool).is_some() => {
                let asks_first = !without_asking.contains(tool);
                let peer = outside::peer_tool(services, name, tool, asks_first);
                tools.push(peer.map_err(|why| format!("tools: {why}"))?);
                scopes.push(outside::SCOPE);
                continue;
            }
            None => return Err(unknown()),
        };
        let declared = operation.meta.tool.ok_or_else(unknown)?;
        let changes = declared.effect != ToolEffect::ReadOnly;
        tools.push(AgentTool {
            spec: operation.tool_spec().ok_or_else(unknown)?,
            guarantee: operation.guarantee(),
            // What is read outside may talk a model into anything.
            asks_first: (declared.asks_first() || changes && reads_outside)
                && !without_asking.contains(tool),
            place: ToolPlace::Here,
        });
        scopes.push(operation.meta.takes_scope());
    }
    let has = tools.iter().map(|tool| &tool.spec.name).chain(wishes.iter().map(|one| &one.name));
    if let Some(other) = without_asking.iter().find(|name| !has.clone().any(|one| one == *name)) {
        return Err(format!("without_asking: {other:?} is none of its tools"));
    }
    let hands_over_to = options.hands_over_to.clone().unwrap_or_default();
    if let Some(other) = hands_over_to.iter().find(|other| !names.contains(other)) {
        return Err(format!("hands_over_to: there is no agent {other:?}"));
    }
    scopes.sort_unstable();
    scopes.dedup();
    let instructions = options.instructions.clone().filter(|words| !words.trim().is_empty());
    let mut instructions = instructions.ok_or("instructions: an agent has some")?;
    if reads_outside {
        instructions = format!("{instructions}\n\n{}", outside::OUTSIDE_IS_DATA);
    }
    let definition = AgentDefinition {
        name: name.into(),
        instructions,
        route: options.route.clone(),
        tools,
        away: Vec::new(),
        scopes: Scopes::parse(&scopes.join(" ")),
        hands_over_to,
        terms: terms(&options, MessagePolicy::default())?,
        max_tokens: options.max_tokens.unwrap_or(1_024).clamp(1, 65_536),
        temperature: options.temperature,
    };
    let version = definition.version();
    let summary = options.summary.unwrap_or_default();
    let definition = Arc::new(definition);
    Ok(DefinedAgent { summary, version, definition, outside: wishes })
}
