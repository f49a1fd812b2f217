//! A provider's profile: its fields, its checks and its views.

use std::collections::BTreeSet;

use jiff::Timestamp;
use jiff::civil::Date;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::kernel::view::{Listed, View};
use crate::systems::marketplace::domain::pricing::Offering;
use crate::systems::marketplace::domain::rejection::Check;
use crate::systems::marketplace::domain::schedule::{Calendar, Span, Weekly};
use crate::systems::marketplace::domain::service::Service;
use crate::systems::marketplace::domain::zones;

/// The place from which a provider travels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Base {
    pub city: String,
    pub country: String,
    pub latitude: f64,
    pub longitude: f64,
    pub time_zone: String,
}

/// Who answers the leads of a provider.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LeadAnswerer {
    /// The policy of the profile, at once.
    #[default]
    Policy,
    /// An agent that thinks with a model, within the limits of the profile; the policy where there is none.
    Agent,
    /// The owner, or their own agent: the policy, unless they answer within half an hour.
    Owner,
}

/// The fields of a provider's profile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Profile {
    pub name: String,
    pub bio: String,
    /// BCP 47 tags, the preferred one first.
    pub languages: Vec<String>,
    /// The speciality first.
    pub services: Vec<Offering>,
    pub base: Base,
    pub radius_km: f64,
    /// By weekday; a day that is missing is closed.
    pub weekly: Weekly,
    pub days_off: BTreeSet<Date>,
    pub minimum_notice_minutes: u32,
    pub max_discount_percent: u8,
    #[serde(default)]
    pub answers_leads: LeadAnswerer,
}

/// The fields to change; a list replaces the whole list.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProfilePatch {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bio: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub languages: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<Vec<Offering>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Base>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub radius_km: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weekly: Option<Weekly>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub days_off: Option<BTreeSet<Date>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_notice_minutes: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_discount_percent: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers_leads: Option<LeadAnswerer>,
}

impl ProfilePatch {
    pub fn apply(self, profile: &Profile) -> Profile {
        let old = profile.clone();
        Profile {
            name: self.name.unwrap_or(old.name),
            bio: self.bio.unwrap_or(old.bio),
            languages: self.languages.unwrap_or(old.languages),
            services: self.services.unwrap_or(old.services),
            base: self.base.unwrap_or(old.base),
            radius_km: self.radius_km.unwrap_or(old.radius_km),
            weekly: self.weekly.unwrap_or(old.weekly),
            days_off: self.days_off.unwrap_or(old.days_off),
            minimum_notice_minutes: self
                .minimum_notice_minutes
                .unwrap_or(old.minimum_notice_minutes),
            max_discount_percent: self.max_discount_percent.unwrap_or(old.max_discount_percent),
            answers_leads: self.answers_leads.unwrap_or(old.answers_leads),
        }
    }
}

impl Profile {
    pub fn offering(&self, service: Service) -> Option<&Offering> {
        self.services.iter().find(|offering| offering.service == service)
    }

    pub fn calendar<'a>(&'a self, busy: &'a [Span]) -> Calendar<'a> {
        Calendar {
            time_zone: &self.base.time_zone,
            weekly: &self.weekly,
            days_off: &self.days_off,
            minimum_notice_minutes: self.minimum_notice_minutes,
            busy,
        }
    }

    /// Checks every rule of a profile; pointers are relative to the profile.
    pub fn check(&self, check: &mut Check) {
        check.name(&self.name, 1, 80, "/name");
        check.text(&self.bio, 2_000, "/bio");
        check.that(self.languages.len() <= 10, "/languages", "at most 10");
        for (n, language) in self.languages.iter().enumerate() {
            check.name(language, 2, 35, &format!("/languages/{n}"));
        }
        self.check_services(check);
        let base = &self.base;
        check.name(&base.city, 1, 120, "/base/city");
        check.name(&base.country, 2, 60, "/base/country");
        check.coordinates(base.latitude, base.longitude, "/base");
        check.zone(&base.time_zone, "/base/time_zone");
        check.that((0.5..=200.0).contains(&self.radius_km), "/radius_km", "must be 0.5 to 200");
        self.check_weekly(check);
        check.that(self.days_off.len() <= 366, "/days_off", "at most 366");
        check.that(
            self.minimum_notice_minutes <= 14 * 1440,
            "/minimum_notice_minutes",
            "at most 14 days",
        );
        check.that(self.max_discount_percent <= 80, "/max_discount_percent", "at most 80");
    }

    /// Checks a new base's time zone. A base that was once accepted stays valid.
    pub fn check_zone(&self, now: Timestamp, check: &mut Check) {
        let Base { latitude, longitude, time_zone, .. } = &self.base;
        check.that(
            zones::fits(time_zone, (*latitude, *longitude), now),
            "/base/time_zone",
            format!("{time_zone} is not the time at this latitude and longitude"),
        );
    }

    fn check_services(&self, check: &mut Check) {
        check.that((1..=8).contains(&self.services.len()), "/services", "must have 1 to 8");
        let mut seen = BTreeSet::new();
        for (n, offering) in self.services.iter().enumerate() {
            let at = format!("/services/{n}");
            check.that(seen.insert(offering.service), &format!("{at}/service"), "is listed twice");
            check.money(&offering.price, &format!("{at}/price"));
            check.that(
                (15..=720).contains(&offering.duration_minutes),
                &format!("{at}/duration_minutes"),
                "must be 15 to 720",
            );
        }
    }

    fn check_weekly(&self, check: &mut Check) {
        for (day, hours) in &self.weekly {
            let at = format!("/weekly/{}", json!(day).as_str().unwrap_or_default());
            check.that(hours.len() <= 6, &at, "at most 6 spans a day");
            let mut open_until = 0;
            for span in hours {
                check.that(
                    span.from_minute < span.to_minute
                        && span.to_minute <= 1440
                        && open_until <= span.from_minute,
                    &at,
                    "spans must be in order, apart, and within the day's 1440 minutes",
                );
                open_until = span.to_minute;
            }
        }
    }
}

/// The reputation of a provider.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reputation {
    /// The mean of all reviews, 1 to 5; 0 without any.
    pub rating: f64,
    pub reviews: u32,
    pub leads_received: u32,
    pub leads_answered: u32,
}

impl Reputation {
    pub fn with_review(self, stars: u8) -> Self {
        let sum = self.rating * f64::from(self.reviews) + f64::from(stars);
        let reviews = self.reviews.saturating_add(1);
        Self { rating: sum / f64::from(reviews), reviews, ..self }
    }

    /// The share of received leads that were answered, as if nine of ten earlier leads had been: a newcomer starts at
    /// 0.9.
    pub fn response_rate(&self) -> f64 {
        (f64::from(self.leads_answered) + 9.0) / (f64::from(self.leads_received) + 10.0)
    }
}

/// The provider in an offer or a booking.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProviderCard {
    pub id: String,
    pub name: String,
    pub city: String,
    /// Rounded to a tenth.
    pub rating: f64,
    pub reviews: u32,
}

impl ProviderCard {
    pub fn new(id: &str, profile: &Profile, standing: &Reputation) -> Self {
        Self {
            id: id.into(),
            name: profile.name.clone(),
            city: profile.base.city.clone(),
            rating: round(standing.rating, 10.0),
            reviews: standing.reviews,
        }
    }
}

/// The provider as the API and the read model show it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Provider")]
pub struct ProviderView {
    pub id: String,
    /// Only for the owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner_id: Option<String>,
    pub name: String,
    pub city: String,
    pub country: String,
    pub latitude: f64,
    pub longitude: f64,
    pub radius_km: f64,
    pub services: Vec<Service>,
    pub profile: Profile,
    /// Rounded to a hundredth.
    pub rating: f64,
    pub reviews: u32,
    pub response_rate: f64,
    /// Counts the changes of the profile: the ETag.
    pub version: u64,
    pub updated_at: Timestamp,
}

impl View for ProviderView {
    const NAME: &'static str = "providers";
    const LISTED: Option<Listed> = None;
}

impl ProviderView {
    pub fn new(
        id: &str,
        owner_id: &str,
        profile: &Profile,
        standing: &Reputation,
        version: u64,
        updated_at: Timestamp,
    ) -> Self {
        Self {
            id: id.into(),
            owner_id: Some(owner_id.into()),
            name: profile.name.clone(),
            city: profile.base.city.clone(),
            country: profile.base.country.clone(),
            latitude: profile.base.latitude,
            longitude: profile.base.longitude,
            radius_km: profile.radius_km,
            services: profile.services.iter().map(|offering| offering.service).collect(),
            profile: profile.clone(),
            rating: round(standing.rating, 100.0),
            reviews: standing.reviews,
            response_rate: round(standing.response_rate(), 1000.0),
            version,
            updated_at,
        }
    }

    /// The view for this user: only the owner sees the account behind the provider.
    pub fn for_user(mut self, user_id: &str) -> Self {
        self.owner_id = self.owner_id.filter(|owner| owner == user_id);
        self
    }
}

fn round(value: f64, steps: f64) -> f64 {
    (value * steps).round() / steps
}
