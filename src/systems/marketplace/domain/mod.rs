//! The marketplace: a sentence becomes a request, providers' agents answer with offers, an accepted offer becomes
//! a booking.
//!
//! ```text
//! Session ──Create──▶ Request ──ConsiderLead──▶ Provider      (the agent quotes, or declines with a reason)
//!                     Request ◀──ReceiveOffer── Provider
//!  AcceptOffer ─────▶ Request ──HoldSlot──────▶ Provider      (the only owner of its calendar: no double booking)
//!                                               Provider ──Confirm──▶ Booking
//!                     Request ◀──────────BookingConfirmed──────────── Booking
//! ```
//! Each arrow is a durable `send`. Clients follow the progress on their `user:`, `session:` and `booking:` topics.
//!
//! **Architecture invariants:** states are bounded (each file says by what). Commands that only other entities may
//! send are taken from those alone, by kind and key, and refuse users with `internal_only`. What is not yours is `not_found`. What clients, events and read
//! models show of an object is one type (`RequestView`, `OfferView`, `ProviderView`, `BookingView`, `SessionView`, `MessageView`).

// Values.
pub mod language;
pub mod money;
pub mod places;
pub mod service;
mod token;
pub mod zones;

// Providers: their services, free times, prices, and fit to a request.
pub mod matching;
pub mod offer;
pub mod policy;
pub mod pricing;
pub mod profile;
pub mod schedule;

// Entities, and the messages between them.
pub mod booking;
pub mod messages;
pub mod provider;
pub mod request;
pub mod session;
pub mod task;
pub mod user;

pub mod demo_providers;
pub mod rejection;

#[cfg(test)]
pub mod fixtures;
#[cfg(test)]
mod message_tests;
#[cfg(test)]
mod snapshot_tests;
#[cfg(test)]
mod story_tests;
