//! A person's devices: registration, remote control, shared data, and playback.

pub mod domain;
pub mod operations;
pub mod prompts;
pub mod settings;
pub mod topics;
pub mod views;

use crate::contract::System;
use crate::contract::declare::{announcement, entity, operation, section, topic, view};
use operations::{content, devices, playback, sync};

pub const SYSTEM: System = System {
    prompts: &[prompts::RECOMMENDATION_GUIDE],
    entities: &[
        entity::<domain::shared::SyncLog>(),
        entity::<domain::device::Device>(),
        entity::<domain::playback::PlaybackSessions>(),
        entity::<domain::content::Content>(),
    ],
    operations: &[
        operation::<devices::Register>(),
        operation::<devices::List>(),
        operation::<devices::Get>(),
        operation::<devices::Remove>(),
        operation::<devices::Connect>(),
        operation::<devices::Control>(),
        operation::<playback::Initiate>(),
        operation::<playback::Control>(),
        operation::<playback::Report>(),
        operation::<playback::List>(),
        operation::<playback::Get>(),
        operation::<playback::Platforms>(),
        operation::<content::Get>(),
        operation::<content::SetAvailability>(),
        operation::<sync::Update>(),
        operation::<sync::Standing>(),
        operation::<sync::Read>(),
        operation::<sync::GetState>(),
        operation::<sync::Merge>(),
        operation::<sync::Explain>(),
    ],
    topics: &[topic::<topics::Log>(), topic::<topics::OneDevice>()],
    announcements: &[
        announcement::<domain::device::DeviceChanged>(),
        announcement::<domain::device::RemoteCommand>(),
        announcement::<domain::device::StartPlayback>(),
        announcement::<domain::playback::PlaybackSessionView>(),
        announcement::<domain::shared::Delta<'static>>(),
    ],
    views: &[
        view::<domain::content::ContentView>(),
        view::<domain::playback::PlaybackSessionView>(),
    ],
    sections: &[
        section::<domain::shared::SyncLimits>(),
        section::<settings::PlaybackSettings>(),
        section::<settings::Tiers>(),
    ],
    migrations: &[(3, "playback", include_str!("migrations/0003_playback.sql"))],
    ..System::new("devices")
};
