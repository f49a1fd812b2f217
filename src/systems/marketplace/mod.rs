//! The marketplace: a sentence becomes a request, agents answer with offers, an offer becomes a booking.

pub mod domain;
pub mod operations;
pub mod topics;
pub mod views;

use crate::contract::System;
use domain::announcements;
use operations::{bookings, offers, providers, requests, sessions};

pub const SYSTEM: System = System {
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
        sessions::Open,
        sessions::Resume,
        sessions::Close,
        sessions::Get,
        sessions::Messages,
        sessions::SendMessage,
        sessions::Typing,
    ],
    topics: crate::contract::topic::topics![
        topics::Inbox,
        topics::Conversation,
        topics::Appointment
    ],
    announcements: crate::contract::topic::announcements![
        announcements::ChatMessage,
        announcements::ChatToken<'static>,
        announcements::ChatResponse,
        announcements::ChatTyping,
        announcements::SessionEnded,
        domain::request::RequestView,
        announcements::OfferMade,
        announcements::OfferChanged,
        announcements::AppointmentAgreed,
        announcements::BookingChanged,
    ],
    have_dealings: Some(topics::have_dealings),
    ..System::new("marketplace")
};
