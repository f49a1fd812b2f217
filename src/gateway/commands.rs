//! What users can do, once for all edges: HTTP handlers and WebSocket events call these with the same ids, so that a
//! retry over the other edge is still the same command.

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::cluster::Meta;
use crate::contract::problem::{Outcome, Problem};
use crate::gateway::auth::Claims;
use crate::gateway::{Gateway, Tier};
use crate::kernel::entity::{Caller, Entity, Role};
use crate::kernel::ids::is_valid_id;
use crate::systems::app_topics::domain::app_topic::{self, AppTopic};

/// Who asks, and under which command id.
#[derive(Clone)]
pub struct Call<'a> {
    pub gateway: &'a Gateway,
    pub user_id: &'a str,
    pub role: Role,
    /// What the user's plan allows.
    pub tier: Tier,
    pub id: &'a str,
}

impl<'a> Call<'a> {
    pub fn of(gateway: &'a Gateway, claims: &'a Claims, id: &'a str) -> Self {
        let tier = gateway.options.tier(claims.tier.as_deref());
        Self { gateway, user_id: &claims.sub, role: claims.role, tier, id }
    }
}

impl Call<'_> {
    fn caller(&self) -> Caller {
        Caller::User { id: self.user_id.into(), role: self.role }
    }

    pub fn meta(&self) -> Meta {
        Meta::new(self.caller()).id(self.id)
    }

    /// For queries and for what always runs.
    pub fn undeduplicated(&self) -> Meta {
        Meta::new(self.caller())
    }

    pub async fn ask<E: Entity>(
        &self,
        key: &str,
        command: E::Command,
        meta: Meta,
    ) -> Outcome<E::Reply> {
        match self.gateway.entities.of::<E>(key).ask(command, meta).await? {
            Ok(reply) => Ok(reply),
            Err(rejection) => Err(Problem::rejection(&rejection)),
        }
    }

    /// A body that names a user names the caller.
    pub fn check_user(&self, body: &Value) -> Outcome<()> {
        match body.get("user_id") {
            None | Some(Value::Null) => Ok(()),
            Some(id) if id.as_str() == Some(self.user_id) => Ok(()),
            Some(_) => Err(Problem::forbidden("user_id must be the token's")),
        }
    }
}

/// The id of what a command creates: the same for its retry, whatever node it reaches.
pub fn derived_id(prefix: &str, parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finalize()[..16]);
    format!("{prefix}_{}", ulid::Ulid::from(u128::from_be_bytes(bytes)))
}

pub fn known_id<'a>(id: &'a str, what: &str) -> Outcome<&'a str> {
    if is_valid_id(id) { Ok(id) } else { Err(Problem::not_found(what)) }
}

/// `topic:publish` to a durable application topic. The offset, once it is committed.
pub async fn publish(call: &Call<'_>, key: &str, event: &str, data: Value) -> Outcome<i64> {
    let command = app_topic::Command::Publish { event: event.into(), data };
    let app_topic::Reply::Published { offset } =
        call.ask::<AppTopic>(key, command, call.meta()).await?;
    Ok(offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_ids_repeat_and_differ() {
        let id = derived_id("req", &["alice", "1"]);
        assert_eq!(id, derived_id("req", &["alice", "1"]));
        assert_ne!(id, derived_id("req", &["alic", "e1"]));
        assert!(is_valid_id(&id) && id.starts_with("req_") && id.len() == 30, "{id}");
    }
}
