//! The topics that the parties of the marketplace listen to.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::operations::{bookings, sessions};
use super::views;
use crate::contract::topic::{Topic, only_their_own};
use crate::contract::{Call, Outcome};

/// A person's inbox, to which every connection of theirs listens by itself.
pub struct UserInbox;

impl Topic for UserInbox {
    const KIND: &'static str = "user";
    const SUMMARY: &'static str = "Notifications for a person";

    async fn may_listen(call: &Call, key: &str) -> Outcome<()> {
        only_their_own(call, key)
    }
}

/// The topic of a conversation of the listener.
pub struct Conversation;

impl Topic for Conversation {
    const KIND: &'static str = "session";
    const SUMMARY: &'static str = "A conversation";

    async fn may_listen(call: &Call, key: &str) -> Outcome<()> {
        sessions::shown(call, key).await.map(drop)
    }
}

/// The topic of a booking of which the listener is a party.
pub struct Appointment;

impl Topic for Appointment {
    const KIND: &'static str = "booking";
    const SUMMARY: &'static str = "A booking, for its parties";

    async fn may_listen(call: &Call, key: &str) -> Outcome<()> {
        bookings::shown(call, key).await.map(drop)
    }
}

/// Whether the caller and another user have something open with each other.
pub fn have_dealings<'a>(call: &'a Call, other: &'a str) -> BoxFuture<'a, Outcome<bool>> {
    let dealings =
        async move { Ok(views::have_dealings(call.views()?, &call.user_id, other).await?) };
    dealings.boxed()
}
