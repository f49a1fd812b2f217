//! What can be asked of the marketplace.

pub mod bookings;
pub mod leads;
pub mod negotiating;
pub mod offers;
pub mod photos;
pub mod providers;
pub mod requests;
pub mod sessions;

mod asking;
