//! Sections of `config.toml` that belong to systems.

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::call::Settings;

/// A section of the configuration: the keys that a person may set, and their defaults.
pub trait Section:
    Clone + Debug + Default + PartialEq + DeserializeOwned + Send + Sync + 'static
{
    /// Its path: `playback`, or `topics.grants` for a key of a section that others share.
    const NAME: &'static str;
    /// The prepared settings that operations get from [`Call::settings`](super::Call::settings).
    type Ready: Send + Sync + 'static;

    /// Checks and prepares the section. The error is for the person who wrote it.
    fn prepare(&self) -> Result<Self::Ready, String>;
}

/// A section in the list of its system.
#[derive(Clone, Copy)]
pub struct SectionKind {
    pub name: &'static str,
    default: fn() -> Arc<dyn AnySection>,
    read: fn(&config::Config) -> Result<Arc<dyn AnySection>, config::ConfigError>,
}

/// A section in the list of its system.
pub const fn section<S: Section>() -> SectionKind {
    SectionKind {
        name: S::NAME,
        default: || Arc::new(S::default()),
        read: |config| match config.get::<S>(S::NAME) {
            Ok(section) => Ok(Arc::new(section)),
            Err(config::ConfigError::NotFound(_)) => Ok(Arc::new(S::default())),
            Err(error) => Err(error),
        },
    }
}

trait AnySection: Debug + Send + Sync {
    fn as_any(&self) -> &dyn Any;
    fn is(&self, other: &dyn AnySection) -> bool;
    fn prepare_into(&self, settings: Settings) -> Result<Settings, String>;
}

impl<S: Section> AnySection for S {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn is(&self, other: &dyn AnySection) -> bool {
        other.as_any().downcast_ref::<S>() == Some(self)
    }

    fn prepare_into(&self, settings: Settings) -> Result<Settings, String> {
        Ok(settings.with(self.prepare()?))
    }
}

/// The sections of several systems, as they were written.
#[derive(Clone, Debug, Default)]
pub struct Sections(Vec<Arc<dyn AnySection>>);

impl PartialEq for Sections {
    fn eq(&self, other: &Self) -> bool {
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(|(a, b)| a.is(&**b))
    }
}

impl Sections {
    pub fn defaults(kinds: impl Iterator<Item = SectionKind>) -> Self {
        Self(kinds.map(|kind| (kind.default)()).collect())
    }

    pub fn read(
        kinds: impl Iterator<Item = SectionKind>,
        config: &config::Config,
    ) -> Result<Self, config::ConfigError> {
        Ok(Self(kinds.map(|kind| (kind.read)(config)).collect::<Result<_, _>>()?))
    }

    /// The section, or `None` if no system here has it.
    pub fn get<S: Section>(&self) -> Option<&S> {
        self.0.iter().find_map(|section| section.as_any().downcast_ref())
    }

    /// Replaces the section that was read.
    pub fn set<S: Section>(&mut self, section: S) {
        self.0.retain(|other| !other.as_any().is::<S>());
        self.0.push(Arc::new(section));
    }

    pub fn prepare(&self) -> Result<Settings, String> {
        let none = Settings::default();
        self.0.iter().try_fold(none, |settings, section| section.prepare_into(settings))
    }
}
