//! A system: everything one folder below `systems/` declares.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::agent::AgentKind;
use super::assistant::Assistant;
use super::call::{Call, Services};
use super::operation::Declared;
use super::problem::Outcome;
use super::prompt::AgentPrompt;
use super::runner::RunnerKind;
use super::section::SectionKind;
use super::topic::{Announced, TopicKind};
use crate::actors::EntityKind;
use crate::cluster::Entities;
use crate::persistence::store::Migration;
use crate::persistence::views::{ViewTable, Views};

pub struct System {
    /// The folder's name.
    pub name: &'static str,
    pub entities: &'static [EntityKind],
    pub operations: &'static [Declared],
    /// The beginnings of conversations that it offers to agents.
    pub prompts: &'static [AgentPrompt],
    /// The agents that agents of others talk to.
    pub agents: &'static [AgentKind],
    /// The agents of our own that people start runs of.
    pub assistants: &'static [Assistant],
    pub topics: &'static [TopicKind],
    /// What a token can be limited to beside the scopes of its operations and topics.
    pub scopes: &'static [&'static str],
    /// The events that clients hear on topics.
    pub announcements: &'static [Announced],
    /// The tables of its read models, made where they are missing.
    pub views: &'static [fn() -> ViewTable],
    /// Migrations for what its tables need beyond that. The numbers are unique among all systems.
    pub migrations: &'static [Migration],
    /// Its sections of the configuration.
    pub sections: &'static [SectionKind],
    /// Work outside of its entities.
    pub runners: &'static [RunnerKind],
    /// Work of each node beside what it is asked, for as long as it serves.
    pub tasks: &'static [NodeTask],
    /// Demonstration data for a fresh store. Begun again, it goes on where it was cut off.
    pub seed: Option<Seed>,
    /// Whether the caller has something open with another user, which lets them see whether that user is online.
    pub have_dealings: Option<HaveDealings>,
}

pub type NodeTask = fn(Arc<Services>) -> BoxFuture<'static, ()>;
/// The systems of a node, among the settings of its services.
pub struct Installed(pub &'static [&'static System]);

pub type Seed = for<'a> fn(&'a Entities, &'a Views) -> BoxFuture<'a, Result<(), String>>;
pub type HaveDealings = for<'a> fn(&'a Call, &'a str) -> BoxFuture<'a, Outcome<bool>>;

impl System {
    /// A system that declares nothing yet.
    pub const fn new(name: &'static str) -> Self {
        Self {
            name,
            entities: &[],
            operations: &[],
            prompts: &[],
            agents: &[],
            assistants: &[],
            topics: &[],
            scopes: &[],
            announcements: &[],
            views: &[],
            migrations: &[],
            sections: &[],
            runners: &[],
            tasks: &[],
            seed: None,
            have_dealings: None,
        }
    }
}
