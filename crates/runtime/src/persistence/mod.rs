//! Everything that touches Postgres or Redis: the journal, snapshots, the group-commit writer actors, outbox, timers,
//! read models, caches, and the embedded server.
//!
//! **Architecture invariant:** `sqlx` and `redis` are named nowhere else (but `app`, which opens the pool). Nothing here
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
