//! Photos that people show to providers and to models: stored once, sealed, and shown by their id.

pub mod api;
pub mod operations;
pub mod settings;
pub mod sweeping;
pub mod views;

use crate::contract::System;
use crate::contract::declare::{operation, section};

pub const SYSTEM: System = System {
    operations: &[
        operation::<operations::Upload>(),
        operation::<operations::List>(),
        operation::<operations::Get>(),
        operation::<operations::Content>(),
        operation::<operations::Delete>(),
    ],
    migrations: &[(20, "photos", include_str!("migrations/0020_photos.sql"))],
    sections: &[section::<settings::PhotoSettings>()],
    tasks: &[sweeping::keep_clean],
    ..System::new("photos")
};
