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
//! Each arrow is a durable `send`. The client hears of it on its `user:`, `session:` and `booking:` topics.
//!
//! **Architecture invariants:** states are bounded (each file says by what). Commands that only other entities may
//! send refuse users with `internal_only`. What is not yours is `not_found`. What clients, events and read
//! models show of an object is one type (`RequestView`, `OfferView`, `ProviderView`, `BookingView`, `SessionView`, `MessageView`).

// Values.
pub mod language;
pub mod money;
pub mod places;
pub mod service;
pub mod zones;

// What a provider offers, when it is free, what it asks for, and how well that fits.
pub mod matching;
pub mod offer;
pub mod policy;
pub mod pricing;
pub mod profile;
pub mod schedule;

// What clients hear.
pub mod announcements;

// Entities.
pub mod booking;
pub mod provider;
pub mod request;
pub mod session;
pub mod user;

pub mod demo_providers;
pub mod rejection;

#[cfg(test)]
pub mod fixtures;
#[cfg(test)]
mod snapshot_tests;
#[cfg(test)]
mod story_tests;
