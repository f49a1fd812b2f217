//! The marketplace: a sentence becomes a request, agents answer with offers, an offer becomes a booking.

pub mod domain;
pub mod views;
