//! A person's devices: registration and remote control, what they share, and what is watched on them.

pub mod domain;
pub mod operations;
pub mod settings;
pub mod topics;
pub mod views;

use crate::contract::System;
use operations::{content, devices, playback, sync};

pub const SYSTEM: System = System {
    operations: crate::contract::operations![
        devices::Register,
        devices::List,
        devices::Get,
        devices::Remove,
        devices::Connect,
        devices::Control,
        playback::Initiate,
        playback::Control,
        playback::Report,
        playback::List,
        playback::Get,
        playback::Platforms,
        content::Get,
        content::SetAvailability,
        sync::Update,
        sync::Standing,
        sync::Read,
        sync::GetState,
        sync::Merge,
        sync::Explain,
    ],
    topics: crate::contract::topic::topics![topics::Log, topics::OneDevice],
    announcements: crate::contract::topic::announcements![
        domain::device::DeviceChanged,
        domain::device::RemoteCommand,
        domain::device::StartPlayback,
        domain::playback::SessionView,
        domain::shared::Delta<'static>,
    ],
    ..System::new("devices")
};
