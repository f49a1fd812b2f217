//! The marketplace: a sentence becomes a request, agents answer with offers, an offer becomes a booking.

pub mod domain;
pub mod operations;
pub mod views;

use crate::contract::System;
use operations::{bookings, offers, providers, requests, sessions};

pub const SYSTEM: System = System {
    name: "marketplace",
    operations: crate::contract::operations![
        requests::Create,
        requests::List,
        requests::Get,
        requests::Cancel,
        offers::List,
        offers::Get,
        offers::Accept,
        offers::Decline,
        bookings::List,
        bookings::Get,
        bookings::Cancel,
        bookings::Review,
        bookings::MarkNoShow,
        providers::List,
        providers::Enroll,
        providers::Get,
        providers::Update,
        sessions::List,
        sessions::Create,
        sessions::Get,
        sessions::Messages,
        sessions::SendMessage,
        sessions::Typing,
    ],
    announcements: &[],
};
