//! The policy of a provider's agent: its answers to leads, around the clock, within the limits that the provider set.

use jiff::Timestamp;

use crate::systems::marketplace::domain::money::Money;
use crate::systems::marketplace::domain::offer::{Decline, DeclineReason, Lead};
use crate::systems::marketplace::domain::places::distance_km;
use crate::systems::marketplace::domain::pricing::{NoQuote, Offering};
use crate::systems::marketplace::domain::profile::Profile;
use crate::systems::marketplace::domain::schedule::{Span, later};
use crate::systems::marketplace::domain::service::Service;

/// How long an offer is valid, unless its slot starts sooner.
pub const OFFER_TTL_MINUTES: i64 = 30;

#[derive(Clone, Debug, PartialEq)]
pub struct Terms {
    pub price: Money,
    pub slot: Span,
    pub expires_at: Timestamp,
    pub message: String,
}

/// The part of an offer that depends on the provider's profile.
#[derive(Debug)]
pub struct Promise<'a> {
    pub service: Service,
    /// Latitude and longitude.
    pub at: (f64, f64),
    pub price: &'a Money,
    pub slot: Span,
    pub expires_at: Timestamp,
}

impl Promise<'_> {
    /// Whether the agent could still make this offer: the provider may have changed hours, days off, services, prices,
    /// notice or area since. Bookings are not checked here.
    pub fn stands(&self, profile: &Profile) -> bool {
        let Some(offering) = profile.offering(self.service) else { return false };
        let floor = offering.floor_price(profile.max_discount_percent);
        let asked = self.price;
        let base = (profile.base.latitude, profile.base.longitude);
        // An offer that expires at its start was made at short notice, so its own lifetime of half an hour is allowed
        // for.
        let notice = i64::from(profile.minimum_notice_minutes);
        self.slot == Span::new(self.slot.starts_at, offering.duration_minutes.into())
            && asked.currency == floor.currency
            && (floor.amount_minor..=offering.list_price().amount_minor)
                .contains(&asked.amount_minor)
            && distance_km(base, self.at) <= profile.radius_km
            && self.slot.starts_at >= later(self.expires_at, notice - OFFER_TTL_MINUTES)
            && profile.calendar(&[]).is_open(&self.slot)
    }
}

/// The agent's answer: the first free slot in the requested window, with only the discount that the budget needs, or
/// the first reason to decline.
pub fn consider(
    profile: &Profile,
    busy: &[Span],
    lead: &Lead,
    now: Timestamp,
) -> Result<Terms, Decline> {
    let no = |reason| Decline { reason, lowest_price: None };
    let offering = profile.offering(lead.service).ok_or(no(DeclineReason::NoSkill))?;
    let here = (profile.base.latitude, profile.base.longitude);
    let there = (lead.place.latitude, lead.place.longitude);
    if distance_km(here, there) > profile.radius_km {
        return Err(no(DeclineReason::OutOfArea));
    }
    let price =
        offering.quote(lead.budget.as_ref(), profile.max_discount_percent).map_err(|no_quote| {
            match no_quote {
                NoQuote::OverBudget(lowest) => {
                    Decline { reason: DeclineReason::OverBudget, lowest_price: Some(lowest) }
                }
                NoQuote::OtherCurrency => no(DeclineReason::OtherCurrency),
            }
        })?;
    let slot = profile
        .calendar(busy)
        .first_free(&lead.when, i64::from(offering.duration_minutes), now)
        .ok_or(no(DeclineReason::NotAvailable))?;
    let message = message(profile, offering, &price);
    Ok(Terms { price, slot, expires_at: expires_at(now, &slot), message })
}

/// Until when an offer that is made now is valid.
pub fn expires_at(now: Timestamp, slot: &Span) -> Timestamp {
    later(now, OFFER_TTL_MINUTES).min(slot.starts_at)
}

/// What is said with an offer.
pub fn message(profile: &Profile, offering: &Offering, price: &Money) -> String {
    let discounted = price.amount_minor < offering.list_price().amount_minor;
    format!(
        "{} can do your {} in {} minutes{}.",
        profile.name,
        offering.service.title(),
        offering.duration_minutes,
        if discounted { ", at a price that meets your budget" } else { "" },
    )
}
