//! A person's devices: registration and remote control, what they share, and what is watched on them.

pub mod domain;
