//! What configuration says of photos.

use std::sync::Arc;

use serde::Deserialize;
use tokio::sync::Semaphore;

use crate::contract::section::Section;

/// The section `[photos]`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PhotoSettings {
    /// Of one photo.
    pub max_bytes: usize,
    /// The longest side, in pixels.
    pub max_side: u32,
    /// Photos of a person.
    pub max: i64,
    /// Bytes of all photos of a person.
    pub max_total_bytes: i64,
    /// Photos that a node holds in memory at the same time.
    pub memory_bytes: usize,
}

impl Default for PhotoSettings {
    fn default() -> Self {
        Self {
            // What Anthropic takes, which is the least of the three.
            max_bytes: 5 << 20,
            max_side: 8_000,
            max: 500,
            max_total_bytes: 512 << 20,
            memory_bytes: 256 << 20,
        }
    }
}

/// The settings, and the room for photos in memory.
pub struct PhotoLimits {
    pub settings: PhotoSettings,
    /// In kilobytes.
    pub room: Arc<Semaphore>,
}

/// The most that a model is shown at once: what Gemini takes in one request, of 20 MB in base64, and something for words.
pub const MAX_SHOWN_BYTES: usize = 12 << 20;

impl Section for PhotoSettings {
    const NAME: &'static str = "photos";
    type Ready = PhotoLimits;

    fn prepare(&self) -> Result<PhotoLimits, String> {
        if !(1..=MAX_SHOWN_BYTES).contains(&self.max_bytes) {
            return Err(format!("photos.max_bytes: must be 1 to {MAX_SHOWN_BYTES}"));
        }
        if self.max_side == 0 || self.max < 0 || self.max_total_bytes < 0 {
            return Err("photos: max_side must be more than 0, and no limit less than it".into());
        }
        // An upload is there twice while it is sealed, and what a model is shown more than twice.
        let least = 3 * MAX_SHOWN_BYTES;
        if !(least..=1 << 40).contains(&self.memory_bytes) {
            return Err(format!("photos.memory_bytes: must be at least {least}"));
        }
        let room = Arc::new(Semaphore::new(self.memory_bytes >> 10));
        Ok(PhotoLimits { settings: self.clone(), room })
    }
}
