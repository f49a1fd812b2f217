//! The shapes of answers, for the OpenAPI document. The values themselves come from the entities and read models.
#![allow(dead_code, reason = "these types are only described, never built")]

use serde_json::Value;
use utoipa::{OpenApi, ToSchema};

use crate::contract::problem::FieldError;
use crate::gateway::bodies;

#[derive(ToSchema)]
pub struct Money {
    /// In the currency's smallest unit: 4500 EUR is 45 euros.
    #[schema(example = 4500)]
    pub amount_minor: i64,
    /// ISO 4217.
    #[schema(example = "EUR")]
    pub currency: String,
}

#[derive(ToSchema)]
struct Place {
    name: String,
    city: String,
    country: String,
    latitude: f64,
    longitude: f64,
    time_zone: String,
}

#[derive(ToSchema)]
struct Request {
    id: String,
    consumer_id: String,
    session_id: Option<String>,
    service: String,
    /// matching, open, accepting, booked, cancelled, expired or unmatched
    status: String,
    reason: Option<String>,
    details: String,
    place: Place,
    #[schema(format = DateTime)]
    earliest: String,
    #[schema(format = DateTime)]
    latest: String,
    exact: Option<bool>,
    time_zone: Option<String>,
    budget: Option<Money>,
    offers_count: u32,
    booking_id: Option<String>,
    #[schema(format = DateTime)]
    created_at: String,
    #[schema(format = DateTime)]
    updated_at: String,
}

#[derive(ToSchema)]
struct ProviderCard {
    id: String,
    name: String,
    city: String,
    rating: f64,
    reviews: u32,
}

#[derive(ToSchema)]
struct Score {
    /// 0 to 1: skill .30, location .25, availability .20, price .10, rating .10, response .05
    total: f64,
    parts: ScoreParts,
}

#[derive(ToSchema)]
struct ScoreParts {
    skill: f64,
    location: f64,
    availability: f64,
    price: f64,
    rating: f64,
    response: f64,
}

#[derive(ToSchema)]
struct Offer {
    id: String,
    request_id: String,
    provider: ProviderCard,
    price: Money,
    #[schema(format = DateTime)]
    starts_at: String,
    #[schema(format = DateTime)]
    ends_at: String,
    message: String,
    score: Score,
    /// open, accepted, declined, withdrawn, expired or unavailable
    status: String,
    #[schema(format = DateTime)]
    created_at: String,
    #[schema(format = DateTime)]
    expires_at: String,
    booking_id: Option<String>,
}

#[derive(ToSchema)]
struct Accepted {
    booking_id: String,
}

#[derive(ToSchema)]
struct Declined {
    offer_id: String,
    request_id: String,
    status: String,
}

#[derive(ToSchema)]
struct Booking {
    id: String,
    request_id: String,
    offer_id: String,
    consumer_id: String,
    provider: ProviderCard,
    service: String,
    details: String,
    price: Money,
    #[schema(format = DateTime)]
    starts_at: String,
    #[schema(format = DateTime)]
    ends_at: String,
    place: Place,
    /// pending, confirmed, in_progress, completed, reviewed, cancelled or no_show
    status: String,
    review: Option<BookingReview>,
    cancellation: Option<Cancellation>,
    #[schema(format = DateTime)]
    created_at: String,
    #[schema(format = DateTime)]
    updated_at: String,
}

#[derive(ToSchema)]
struct BookingReview {
    rating: u8,
    comment: Option<String>,
}

#[derive(ToSchema)]
struct Cancellation {
    /// consumer, provider or system
    by: String,
    reason: Option<String>,
}

#[derive(ToSchema)]
struct Base {
    city: String,
    country: String,
    latitude: f64,
    longitude: f64,
    time_zone: String,
}

#[derive(ToSchema)]
struct Offering {
    service: String,
    price: Money,
    /// service or hour
    per: String,
    duration_minutes: u16,
}

#[derive(ToSchema)]
struct Hours {
    /// Minutes after local midnight.
    from_minute: u16,
    to_minute: u16,
}

/// A new profile needs `name`, `services` and `base`; a change names what changes, and a list replaces the whole list.
#[derive(ToSchema)]
struct Profile {
    name: Option<String>,
    bio: Option<String>,
    languages: Option<Vec<String>>,
    services: Option<Vec<Offering>>,
    base: Option<Base>,
    radius_km: Option<f64>,
    /// By weekday (`monday`…); a day that is missing is closed.
    weekly: Option<std::collections::BTreeMap<String, Vec<Hours>>>,
    #[schema(value_type = Option<Vec<String>>)]
    days_off: Option<Vec<String>>,
    minimum_notice_minutes: Option<u32>,
    max_discount_percent: Option<u8>,
}

#[derive(ToSchema)]
struct Provider {
    id: String,
    /// Only for the owner.
    owner_id: Option<String>,
    name: String,
    city: String,
    country: String,
    latitude: f64,
    longitude: f64,
    radius_km: f64,
    services: Vec<String>,
    profile: Profile,
    rating: Option<f64>,
    reviews: u32,
    response_rate: Option<f64>,
    version: u64,
    #[schema(format = DateTime)]
    updated_at: String,
}

#[derive(ToSchema)]
struct Session {
    id: String,
    user_id: String,
    time_zone: String,
    locale: String,
    #[schema(format = DateTime)]
    created_at: String,
    #[schema(format = DateTime)]
    last_active_at: String,
    ended: bool,
}

#[derive(ToSchema)]
struct Message {
    id: String,
    session_id: String,
    /// user or agent
    role: String,
    content: String,
    media: Vec<String>,
    #[schema(value_type = Option<Object>)]
    data: Option<Value>,
    #[schema(format = DateTime)]
    created_at: String,
}

#[derive(ToSchema)]
struct Sent {
    message_id: String,
}

/// RFC 9457.
#[derive(ToSchema)]
struct ProblemDetails {
    r#type: String,
    title: String,
    status: u16,
    detail: String,
    /// bad_request, unauthenticated, forbidden, not_found, conflict, rejected, id_reused, rate_limited, overloaded,
    /// unavailable, deadline_exceeded, too_large or internal
    code: String,
    /// A stable word where the code is not enough: slot_taken.
    reason: Option<String>,
    errors: Option<Vec<FieldError>>,
    request_id: String,
}

#[derive(OpenApi)]
#[openapi(components(schemas(
    Money,
    Place,
    Request,
    ProviderCard,
    Score,
    ScoreParts,
    Offer,
    Accepted,
    Declined,
    Booking,
    BookingReview,
    Cancellation,
    Base,
    Offering,
    Hours,
    Profile,
    Provider,
    Session,
    Message,
    Sent,
    ProblemDetails,
    FieldError,
    bodies::CreateRequest,
    bodies::PlaceBody,
    bodies::PointBody,
    bodies::Cancel,
    bodies::Review,
    bodies::OpenSession,
    bodies::SendMessage,
)))]
pub struct Schemas;
