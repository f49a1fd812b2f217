//! The marketplace: a sentence becomes a request, agents answer with offers, an offer becomes a booking.

pub mod assistants;
pub mod domain;
pub mod operations;
pub mod prompts;
pub mod runners;
pub mod seed;
pub mod topics;
pub mod views;

use crate::contract::System;
use crate::contract::declare::{agent, announcement, entity, operation, runner, topic, view};
use crate::kernel::task::TaskRow;
use domain::{booking, request, session, task};
use operations::{bookings, leads, negotiating, offers, photos, providers, requests, sessions};

pub const SYSTEM: System = System {
    prompts: &[prompts::DISCOVERY_ASSISTANT],
    agents: &[
        agent::<negotiating::Marketplace>("/a2a"),
        agent::<negotiating::Marketplace>("/a2a/providers/{agent_id}"),
    ],
    entities: &[
        entity::<domain::user::User>(),
        entity::<session::Session>(),
        entity::<request::Request>(),
        entity::<domain::provider::Provider>(),
        entity::<booking::Booking>(),
        entity::<task::Task>(),
    ],
    operations: &[
        operation::<requests::Create>(),
        operation::<requests::List>(),
        operation::<requests::Get>(),
        operation::<requests::Cancel>(),
        operation::<photos::Show>(),
        operation::<offers::List>(),
        operation::<offers::Get>(),
        operation::<offers::Accept>(),
        operation::<offers::Decline>(),
        operation::<bookings::List>(),
        operation::<bookings::Get>(),
        operation::<bookings::Cancel>(),
        operation::<bookings::Review>(),
        operation::<bookings::MarkNoShow>(),
        operation::<providers::List>(),
        operation::<providers::Enroll>(),
        operation::<providers::Get>(),
        operation::<providers::Update>(),
        operation::<leads::List>(),
        operation::<leads::Get>(),
        operation::<leads::Suggest>(),
        operation::<leads::Offer>(),
        operation::<leads::Decline>(),
        operation::<sessions::List>(),
        operation::<sessions::Create>(),
        operation::<sessions::Open>(),
        operation::<sessions::Resume>(),
        operation::<sessions::Close>(),
        operation::<sessions::Get>(),
        operation::<sessions::Messages>(),
        operation::<sessions::SendMessage>(),
        operation::<sessions::Typing>(),
    ],
    assistants: assistants::ALL,
    topics: &[
        topic::<topics::UserInbox>(),
        topic::<topics::Conversation>(),
        topic::<topics::Appointment>(),
    ],
    announcements: &[
        announcement::<session::ChatMessage>(),
        announcement::<session::ChatToken<'static>>(),
        announcement::<session::ChatResponse>(),
        announcement::<session::ChatTyping>(),
        announcement::<session::SessionEnded>(),
        announcement::<request::RequestView>(),
        announcement::<request::OfferMade>(),
        announcement::<request::OfferChanged>(),
        announcement::<booking::AppointmentAgreed>(),
        announcement::<booking::BookingChanged>(),
    ],
    views: &[
        view::<session::SessionView>(),
        view::<session::MessageRow>(),
        view::<request::RequestView>(),
        view::<request::OfferRow>(),
        view::<domain::profile::ProviderView>(),
        view::<booking::BookingRow>(),
        view::<TaskRow>(),
    ],
    migrations: &[(2, "marketplace", include_str!("migrations/0002_marketplace.sql"))],
    runners: &[runner::<runners::Matcher>(), runner::<runners::Notifier>()],
    seed: Some(seed::seed),
    have_dealings: Some(topics::have_dealings),
    ..System::new("marketplace")
};
