//! Everything that touches Postgres, Redis or an object store: the journal, snapshots, the group-commit writer actors, outbox, timers,
//! read models, caches, and the embedded server.
//!
//! **Architecture invariant:** `sqlx`, `redis` and `object_store` are named nowhere else (but `app`, which opens the pool). Nothing here
//! knows a domain's commands, HTTP or WebSockets.

pub mod codec;
pub mod commit;
pub mod embedded;
pub mod entities;
pub mod keys;
pub mod letters;
pub mod limits;
pub mod loader;
pub mod members;
pub mod membership;
pub mod objects;
pub mod outbox;
pub mod patience;
pub mod publications;
pub mod session;
pub mod shape;
pub mod shared;
pub mod store;
pub mod sweep;
pub mod tasks;
pub mod timers;
pub mod vault;
pub mod views;
pub mod writer;
