//! The operations on a person's devices, on what they share, and on what they play.

pub mod content;
pub mod devices;
pub mod playback;
pub mod sync;
