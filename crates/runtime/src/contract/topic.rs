//! Topics as clients see them: who may listen, and how publications are delivered.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use super::call::{Call, Settings};
use super::problem::{Outcome, Problem};
use crate::kernel::entity::Announcement;
use crate::kernel::ids::is_valid_id;

/// A client's position in a topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Position {
    pub epoch: String,
    pub offset: i64,
}

/// A kind of topic: who may listen to it, and how its publications are delivered.
pub trait Topic: 'static {
    /// The word before the colon, which is the kind of the entity that owns it.
    const KIND: &'static str;
    /// One line for the documents.
    const SUMMARY: &'static str;
    /// What a token that names scopes must name to listen.
    const SCOPE: &'static str = Self::KIND;

    /// Whether the caller, whose token has the scope, may listen to the topic of this key.
    fn may_listen<'a>(
        call: &'a Call,
        key: &'a str,
    ) -> impl Future<Output = Outcome<()>> + Send + 'a;

    fn carriage(_settings: &Settings, _topic: &str) -> TopicDelivery {
        TopicDelivery::Durable
    }
}

/// The delivery of a topic's publications to a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopicDelivery {
    /// Durable: commits of the topic's entity assign offsets, and missed publications are replayed.
    Durable,
    /// Lossy: nothing is stored. With `latest_only` a slow listener gets only the latest of the publications that wait for it.
    Lossy { latest_only: bool },
}

type MayListen = for<'a> fn(&'a Call, &'a str) -> BoxFuture<'a, Outcome<()>>;

/// A kind of topic as the doors see it.
#[derive(Clone, Copy)]
pub struct TopicKind {
    pub kind: &'static str,
    pub summary: &'static str,
    pub scope: &'static str,
    may_listen: MayListen,
    pub carriage: fn(&Settings, &str) -> TopicDelivery,
}

impl TopicKind {
    /// Whether the caller may listen, by the scopes of their token and by the topic's own rule.
    pub async fn may_listen(&self, call: &Call, key: &str) -> Outcome<()> {
        call.may(self.scope)?;
        (self.may_listen)(call, key).await
    }
}

/// A topic in the list of its system.
pub const fn topic<T: Topic>() -> TopicKind {
    TopicKind {
        kind: T::KIND,
        summary: T::SUMMARY,
        scope: T::SCOPE,
        may_listen: |call, key| T::may_listen(call, key).boxed(),
        carriage: T::carriage,
    }
}

/// The rule for topics whose key is a user: nobody else may listen.
pub fn only_their_own(call: &Call, key: &str) -> Outcome<()> {
    let own = key == &*call.user_id;
    own.then_some(()).ok_or_else(|| Problem::forbidden("this topic belongs to another user"))
}

/// An announcement as the documents show it.
#[derive(Clone, Copy)]
pub struct Announced {
    pub event: &'static str,
    pub summary: &'static str,
    pub topics: &'static [&'static str],
    pub is_durable: bool,
    pub data: fn(&mut SchemaGenerator) -> Schema,
}

/// An announcement in the list of its system.
pub const fn announcement<A: Announcement>() -> Announced {
    Announced {
        event: A::EVENT,
        summary: A::SUMMARY,
        topics: A::TOPICS,
        is_durable: A::DURABLE,
        data: |generator| generator.subschema_for::<A>(),
    }
}

/// Splits `kind:key`. Application topics keep their whole name as the key.
pub fn split_topic(topic: &str) -> Outcome<(&str, &str)> {
    let wrong = || Problem::field("/topic", "must look like session:ses_…");
    if topic.len() > 200 || topic.bytes().any(|b| !b.is_ascii_graphic()) {
        return Err(wrong());
    }
    let (kind, key) = topic.split_once(':').ok_or_else(wrong)?;
    let valid = if kind == "app" { !key.is_empty() } else { is_valid_id(key) };
    if valid { Ok((kind, key)) } else { Err(wrong()) }
}
