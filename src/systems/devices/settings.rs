//! The configuration of devices: synchronisation, playback and plans.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::domain::platforms::Platforms;
use super::domain::shared::SyncLimits;
use crate::contract::section::Section;

impl Section for SyncLimits {
    const NAME: &'static str = "sync";
    type Ready = Self;

    fn prepare(&self) -> Result<Self, String> {
        Ok(*self)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlaybackSettings {
    /// The time without a report after which a session ends.
    pub idle_s: u32,
    /// The file with a table of platforms that replaces the built-in one.
    pub platforms: PathBuf,
}

impl Default for PlaybackSettings {
    fn default() -> Self {
        Self { idle_s: 14_400, platforms: PathBuf::new() }
    }
}

/// The prepared [`PlaybackSettings`], with the table of platforms read.
#[derive(Debug)]
pub struct ResolvedPlayback {
    pub idle_s: u32,
    pub platforms: Platforms,
}

impl Section for PlaybackSettings {
    const NAME: &'static str = "playback";
    type Ready = ResolvedPlayback;

    fn prepare(&self) -> Result<ResolvedPlayback, String> {
        let Self { idle_s, platforms } = self;
        if *idle_s < 60 {
            return Err("playback.idle_s must be at least 60".into());
        }
        let wrong = |why: String| format!("playback.platforms: {}: {why}", platforms.display());
        let platforms = match platforms.as_os_str().is_empty() {
            true => Platforms::default(),
            false => std::fs::read_to_string(platforms)
                .map_err(|error| wrong(error.to_string()))
                .and_then(|table| Platforms::parse(&table).map_err(wrong))?,
        };
        Ok(ResolvedPlayback { idle_s: *idle_s, platforms })
    }
}

/// The limits that one plan sets for one person.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tier {
    pub devices: usize,
    /// The most playback sessions at the same time.
    pub streams: usize,
}

impl Default for Tier {
    fn default() -> Self {
        Self { devices: 5, streams: 1 }
    }
}

/// The plans by name; `free` applies to tokens that name none.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Tiers(pub BTreeMap<String, Tier>);

impl Default for Tiers {
    fn default() -> Self {
        let premium = Tier { devices: 20, streams: 4 };
        Self([("free".into(), Tier::default()), ("premium".into(), premium)].into())
    }
}

impl Tiers {
    /// The limits of a plan. An unknown plan gets the smallest ones.
    pub fn of(&self, plan: Option<&str>) -> Tier {
        self.0.get(plan.unwrap_or("free")).copied().unwrap_or_default()
    }
}

impl Section for Tiers {
    const NAME: &'static str = "tiers";
    type Ready = Self;

    fn prepare(&self) -> Result<Self, String> {
        Ok(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_read_from_a_file() {
        let path = std::env::temp_dir().join(format!("proxie-platforms-{}", std::process::id()));
        let options = |table: &str| {
            std::fs::write(&path, table).unwrap();
            PlaybackSettings { platforms: path.clone(), ..PlaybackSettings::default() }.prepare()
        };
        let table =
            r#"{"cinema": {"name": "Cinema", "links": {"web": "https://cinema.example/{id}"}}}"#;
        let read = options(table).unwrap();
        assert_eq!(
            read.platforms.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(),
            ["cinema"]
        );
        let wrong = format!("{:#}", options("{}}").unwrap_err());
        assert!(wrong.starts_with("playback.platforms: "), "{wrong}");
        std::fs::remove_file(&path).unwrap();
        assert!(
            PlaybackSettings { platforms: path, ..PlaybackSettings::default() }.prepare().is_err()
        );
    }
}
