//! What can be asked of a person's devices.

pub mod content;
pub mod devices;
pub mod playback;
pub mod sync;
