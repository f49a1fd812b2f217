//! Invented providers in real cities, to try out a fresh node.
//!
//! Around Alexanderplatz in Berlin, haircuts are offered on every day of the week, so the example sentence "I need a
//! haircut tomorrow at 5 pm near Alexanderplatz in Berlin, up to 60 euros" always gets offers.

use std::collections::BTreeSet;

use crate::kernel::clock::Timestamp;
use crate::kernel::ids::IdSource;
use crate::systems::marketplace::domain::money::Money;
use crate::systems::marketplace::domain::pricing::{Offering, Per};
use crate::systems::marketplace::domain::profile::{Base, LeadAnswerer, Profile, Reputation};
use crate::systems::marketplace::domain::provider::Command;
use crate::systems::marketplace::domain::schedule::{Hours, Weekday, Weekly};
use crate::systems::marketplace::domain::service::Service;

const TABLE: &str = include_str!("demo_providers.tsv");

/// The key and the enrolment of each provider. Keys are the same in every process: enrolling again changes nothing.
pub fn demo_providers() -> Vec<(String, Command)> {
    TABLE
        .lines()
        .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
        .enumerate()
        .map(|(n, line)| {
            let key = IdSource::new(Timestamp::UNIX_EPOCH, n as u128 + 1).mint("prv");
            let command = enrolment(n, line)
                .unwrap_or_else(|| panic!("provider {} of the demo table is malformed", n + 1));
            (key, command)
        })
        .collect()
}

fn enrolment(n: usize, line: &str) -> Option<Command> {
    let columns: Vec<&str> = line.split('\t').collect();
    let [
        name,
        languages,
        services,
        currency,
        city,
        country,
        time_zone,
        latitude,
        longitude,
        radius,
        hours,
        notice,
        discount,
        rating,
        reviews,
        received,
        answered,
        bio,
    ] = columns[..]
    else {
        return None;
    };
    let profile = Profile {
        name: name.into(),
        bio: bio.into(),
        languages: languages.split(',').map(Into::into).collect(),
        services: services.split(", ").map(|s| offering(s, currency)).collect::<Option<_>>()?,
        base: Base {
            city: city.into(),
            country: country.into(),
            latitude: latitude.parse().ok()?,
            longitude: longitude.parse().ok()?,
            time_zone: time_zone.into(),
        },
        radius_km: radius.parse().ok()?,
        weekly: weekly(hours)?,
        days_off: BTreeSet::new(),
        minimum_notice_minutes: notice.parse().ok()?,
        max_discount_percent: discount.parse().ok()?,
        answers_leads: LeadAnswerer::Policy,
    };
    let standing = Reputation {
        rating: rating.parse().ok()?,
        reviews: reviews.parse().ok()?,
        leads_received: received.parse().ok()?,
        leads_answered: answered.parse().ok()?,
    };
    let owner_id = format!("demo-provider-{:03}", n + 1);
    Some(Command::Enroll { owner_id, profile, standing: Some(standing) })
}

/// "haircut 4500 service 45"
fn offering(text: &str, currency: &str) -> Option<Offering> {
    let mut words = text.split(' ');
    let service = match words.next()? {
        "haircut" => Service::Haircut,
        "cleaning" => Service::Cleaning,
        "plumbing" => Service::Plumbing,
        "photography" => Service::Photography,
        _ => return None,
    };
    let amount_minor = words.next()?.parse().ok()?;
    let per = match words.next()? {
        "service" => Per::Service,
        "hour" => Per::Hour,
        _ => return None,
    };
    let duration_minutes = words.next()?.parse().ok()?;
    let price = Money { amount_minor, currency: currency.into() };
    Some(Offering { service, price, per, duration_minutes })
}

/// "Mon-Fri 09:00-18:00; Sat 10:00-16:00". A range may cross the end of the week.
fn weekly(text: &str) -> Option<Weekly> {
    let mut weekly = Weekly::new();
    for part in text.split("; ") {
        let (days, hours) = part.split_once(' ')?;
        let (from, to) = hours.split_once('-')?;
        let span = Hours { from_minute: minute(from)?, to_minute: minute(to)? };
        let (first, last) = days.split_once('-').unwrap_or((days, days));
        let (first, last) = (day(first)?, day(last)?);
        for n in 0..=(last + 7 - first) % 7 {
            weekly.entry(Weekday::ALL[(first + n) % 7]).or_default().push(span);
        }
    }
    Some(weekly)
}

fn day(name: &str) -> Option<usize> {
    ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"].iter().position(|day| *day == name)
}

fn minute(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    Some(hours.parse::<u16>().ok()? * 60 + minutes.parse::<u16>().ok()?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::ToSpan;
    use jiff::civil::date;

    use super::*;
    use crate::kernel::entity::spec::{Given, given};
    use crate::kernel::ids::is_valid_id;
    use crate::systems::marketplace::domain::matching::{Criteria, MAX_RANKED, candidate, rank};
    use crate::systems::marketplace::domain::messages::ConsiderLead;
    use crate::systems::marketplace::domain::places::{Place, distance_km};
    use crate::systems::marketplace::domain::provider::{Event, Provider};
    use crate::systems::marketplace::domain::request::MAX_LEADS;
    use crate::systems::marketplace::domain::schedule::When;
    use crate::systems::marketplace::domain::schedule::zone;

    const ALEXANDERPLATZ: (f64, f64) = (52.522, 13.413);

    fn enrolled() -> Vec<(Given<Provider>, Profile, Reputation)> {
        demo_providers()
            .into_iter()
            .map(|(key, command)| {
                let mut provider = given::<Provider>([]).key(&key);
                provider.when(command.clone()).decision();
                let Command::Enroll { profile, standing, .. } = command else { unreachable!() };
                (provider, profile, standing.unwrap())
            })
            .collect()
    }

    #[test]
    fn all_can_be_enrolled_and_are_distinct() {
        let all = enrolled();
        assert!(all.len() >= 200, "{}", all.len());
        let keys: BTreeSet<_> = all.iter().map(|(provider, ..)| provider.key.clone()).collect();
        let names: BTreeSet<_> = all.iter().map(|(_, profile, _)| &profile.name).collect();
        assert_eq!((keys.len(), names.len()), (all.len(), all.len()));
        assert!(keys.iter().all(|key| key.starts_with("prv_") && is_valid_id(key)));
        let mut cities = BTreeMap::<&str, BTreeSet<Service>>::new();
        for (_, profile, _) in &all {
            let services = profile.services.iter().map(|offering| offering.service);
            cities.entry(&profile.base.city).or_default().extend(services);
        }
        assert!(cities.len() >= 12);
        assert!(
            cities.values().all(|services| services.len() == 4),
            "every city has every service"
        );
    }

    fn tomorrow_at_5_pm(now: Timestamp) -> When {
        let tz = zone("Europe/Berlin").unwrap();
        let day = now.to_zoned(tz.clone()).date().tomorrow().unwrap();
        let at = day.at(17, 0, 0, 0).to_zoned(tz).unwrap().timestamp();
        When { earliest: at, latest: at, exact: true }
    }

    /// Through the real matching and the real agents, as the request entity does it.
    #[test]
    fn the_example_sentence_gets_offers_on_every_day() {
        let place = Place {
            name: "Alexanderplatz".into(),
            city: "Berlin".into(),
            country: "DE".into(),
            latitude: ALEXANDERPLATZ.0,
            longitude: ALEXANDERPLATZ.1,
            time_zone: "Europe/Berlin".into(),
        };
        let budget = Money { amount_minor: 6_000, currency: "EUR".into() };
        let tz = zone("Europe/Berlin").unwrap();
        for offset in 0..14 {
            // Over the day on which the clocks change, and as late in the evening as possible.
            let today = date(2026, 10, 19).checked_add(offset.days()).unwrap();
            let now = today.at(23, 59, 0, 0).to_zoned(tz.clone()).unwrap().timestamp();
            let criteria = Criteria {
                consumer_id: None,
                service: Service::Haircut,
                place: place.clone(),
                when: tomorrow_at_5_pm(now),
                budget: Some(budget.clone()),
            };
            let mut all = enrolled();
            let candidates = all
                .iter()
                .map(|(p, profile, standing)| {
                    candidate((&p.key, "demo"), profile, standing, vec![])
                })
                .collect();
            let ranked = rank(&criteria, candidates, now);
            assert!(ranked.len() <= MAX_RANKED);
            let mut offers = 0;
            for scored in ranked.into_iter().take(MAX_LEADS) {
                let (provider, profile, _) =
                    all.iter_mut().find(|(p, ..)| p.key == scored.provider_id).unwrap();
                provider.now = now;
                let lead = crate::systems::marketplace::domain::offer::Lead {
                    request_id: "req_1".into(),
                    service: criteria.service,
                    details: String::new(),
                    place: place.clone(),
                    when: criteria.when,
                    budget: criteria.budget.clone(),
                    score: scored.score,
                };
                let decision =
                    provider.when(Command::ConsiderLead(ConsiderLead { lead })).decision();
                for event in &decision.events {
                    if let Event::OfferMade { offer, .. } = event {
                        offers += 1;
                        assert!(offer.price.amount_minor <= 6_000);
                        assert_eq!(offer.slot.starts_at, criteria.when.earliest);
                        let here = (profile.base.latitude, profile.base.longitude);
                        assert!(distance_km(here, ALEXANDERPLATZ) <= 5.0, "{}", profile.name);
                    }
                }
            }
            assert!(offers >= 3, "only {offers} offers for the day after {today}");
        }
    }

    #[test]
    fn at_least_three_haircuts_near_alexanderplatz_are_free_from_four_to_seven_every_day() {
        let near: Vec<_> = enrolled()
            .into_iter()
            .map(|(_, profile, _)| profile)
            .filter(|p| p.offering(Service::Haircut).is_some())
            .filter(|p| {
                distance_km((p.base.latitude, p.base.longitude), ALEXANDERPLATZ)
                    <= 5.0_f64.min(p.radius_km)
            })
            .filter(|p| p.minimum_notice_minutes <= 360)
            .filter(|p| {
                let floor = p.services[0].floor_price(p.max_discount_percent);
                floor.amount_minor <= 6_000
            })
            .collect();
        for day in Weekday::ALL {
            let open = near.iter().filter(|p| {
                let hours = p.weekly.get(&day).map_or(&[][..], Vec::as_slice);
                hours.iter().any(|h| h.from_minute <= 16 * 60 && h.to_minute >= 19 * 60)
            });
            assert!(open.count() >= 3, "{day:?}");
        }
    }

    #[test]
    fn open_hours_are_read() {
        let read = weekly("Sat-Mon 09:00-18:30; Wed 10:00-24:00").unwrap();
        let span = |from_minute, to_minute| vec![Hours { from_minute, to_minute }];
        let expected = [
            (Weekday::Saturday, span(540, 1110)),
            (Weekday::Sunday, span(540, 1110)),
            (Weekday::Monday, span(540, 1110)),
            (Weekday::Wednesday, span(600, 1440)),
        ];
        assert_eq!(read, expected.into());
    }
}
