//! A person's devices: registration and remote control, what they share, and what is watched on them.

pub mod domain;

use crate::contract::System;

pub const SYSTEM: System = System { name: "devices", operations: &[] };
