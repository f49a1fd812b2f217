//! The terms of a new request, from its fields or from its sentence.

use super::requests::{CreateRequest, PlaceBody};
use crate::contract::{Call, FieldError, Outcome, Problem};
use crate::kernel::text::cleaned;
use crate::systems::marketplace::domain::language::{self, Home, Intent};
use crate::systems::marketplace::domain::messages::Asked;
use crate::systems::marketplace::domain::places::Place;
use crate::systems::marketplace::domain::schedule::When;
use crate::systems::marketplace::domain::{schedule, session};

/// The pointer into the input for a pointer into the command, which nests times in `/when`.
pub fn request_pointer(at: &str, body: &CreateRequest) -> String {
    match at {
        "/when/earliest" | "/when/latest" if body.starts_at.is_some() => "/starts_at".into(),
        other => other.strip_prefix("/when").unwrap_or(other).into(),
    }
}

pub fn asked_by_sentence(call: &Call, text: &str, time_zone: Option<&str>) -> Outcome<Asked> {
    if text.trim().is_empty() || text.len() > session::MAX_CONTENT_BYTES {
        return Err(Problem::field(
            "/text",
            format!("must have 1 to {} bytes", session::MAX_CONTENT_BYTES),
        ));
    }
    let tz = schedule::zone(time_zone.unwrap_or("UTC")).ok_or_else(|| {
        Problem::field("/time_zone", "must be an IANA time zone such as Europe/Berlin")
    })?;
    let heard = language::understand(text, call.now(), &Home::of(&tz));
    if heard.intent != Intent::Request {
        let errors = vec![FieldError::new("/text", "asks for no service")];
        let detail = "the sentence does not ask for a service";
        return Err(Problem { errors, ..Problem::rejected("incomplete", detail) });
    }
    let missing = language::missing(&heard);
    let (Some(service), Some(place), Some(when), true) =
        (heard.service, heard.place.clone(), heard.when, missing.is_empty())
    else {
        let unread = heard.unread.iter().map(|unread| {
            FieldError::new("/text", format!("was not understood: {}", unread.words))
        });
        let errors = missing
            .iter()
            .map(|what| FieldError::new("/text", format!("does not say the {what}")))
            .chain(unread)
            .collect();
        return Err(Problem {
            errors,
            ..Problem::rejected("incomplete", language::question(&heard))
        });
    };
    Ok(Asked {
        consumer_id: call.user_id.to_string(),
        session_id: call.session.as_deref().map(str::to_owned),
        service,
        details: cleaned(&heard.details).chars().take(2_000).collect(),
        time_zone: place.time_zone.clone(),
        place,
        when,
        budget: heard.budget,
    })
}

pub fn asked_by_fields(call: &Call, body: &CreateRequest) -> Outcome<Asked> {
    let mut errors = Vec::new();
    let mut need = |given: bool, pointer: &str, message: &str| {
        if !given {
            errors.push(FieldError::new(pointer, message));
        }
    };
    need(body.service.is_some(), "/service", "is required, or `text`");
    need(body.place.is_some(), "/place", "is required, or `text`");
    let when = match (body.starts_at, body.earliest, body.latest) {
        (Some(at), _, _) => Some(When { earliest: at, latest: at, exact: true }),
        (None, Some(earliest), Some(latest)) => {
            Some(When { earliest, latest, exact: earliest == latest })
        }
        (None, earliest, _) => {
            need(earliest.is_some(), "/earliest", "is required with `latest`, or `starts_at`");
            need(body.latest.is_some(), "/latest", "is required with `earliest`, or `starts_at`");
            None
        }
    };
    let place = body.place.as_ref().map(|place| find_place(place, body.time_zone.as_deref()));
    if let Some(Err(error)) = &place {
        errors.push(error.clone());
    }
    match (body.service, place, when, errors.is_empty()) {
        (Some(service), Some(Ok(place)), Some(when), true) => Ok(Asked {
            consumer_id: call.user_id.to_string(),
            session_id: call.session.as_deref().map(str::to_owned),
            service,
            details: body.details.clone().unwrap_or_else(|| service.title().into()),
            time_zone: body.time_zone.clone().unwrap_or_else(|| place.time_zone.clone()),
            place,
            when,
            budget: body.budget.clone(),
        }),
        _ => Err(Problem::fields(errors)),
    }
}

fn find_place(place: &PlaceBody, time_zone: Option<&str>) -> Result<Place, FieldError> {
    match place {
        PlaceBody::Point(point) => Ok(Place {
            name: point
                .name
                .clone()
                .unwrap_or_else(|| format!("{:.4}, {:.4}", point.latitude, point.longitude)),
            city: point.city.clone().unwrap_or_default(),
            country: point.country.clone().unwrap_or_default(),
            latitude: point.latitude,
            longitude: point.longitude,
            time_zone: point.time_zone.as_deref().or(time_zone).unwrap_or("UTC").into(),
        }),
        PlaceBody::Name(name) => {
            // The parser of sentences knows the gazetteer. The time does not matter for a place.
            let heard = language::understand(
                &format!("near {name}"),
                jiff::Timestamp::UNIX_EPOCH,
                &Home::of(&jiff::tz::TimeZone::UTC),
            );
            heard.place.ok_or_else(|| {
                FieldError::new("/place", "is not in the gazetteer: give latitude and longitude")
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_name_the_fields_of_the_api() {
        let mut body = CreateRequest::default();
        assert_eq!(request_pointer("/when/latest", &body), "/latest");
        assert_eq!(request_pointer("/place/latitude", &body), "/place/latitude");
        body.starts_at = Some(jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(request_pointer("/when/latest", &body), "/starts_at");
    }
}
