//! Bookings: appointments that a consumer and a provider agreed on.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::contract::call::known_id;
use crate::contract::list::{ListOf, Page, Paging};
use crate::contract::operation::ToolEffect;
use crate::contract::{Call, Meta, Operation, Outcome, Problem};
use crate::systems::marketplace::domain::booking::{self, Booking, BookingView};
use crate::systems::marketplace::domain::messages::BookingCancellation;
use crate::systems::marketplace::views;

/// Lists the bookings of which the caller is a party.
pub struct List;

impl Operation for List {
    const META: Meta =
        Meta::query("booking.list", "List your bookings as consumer or provider, newest first")
            .get("/v1/bookings")
            .tool("list_bookings", ToolEffect::ReadOnly)
            .resource("proxie://bookings");
    type Input = Paging;
    type Answer = Page<BookingView>;

    async fn run(call: &Call, Paging { limit, cursor }: Paging) -> Outcome<Page<BookingView>> {
        let list = ListOf::new(&[Self::META.name]);
        let (from, limit) = (list.down(cursor)?, limit.unwrap_or_default().0);
        let page = views::bookings_of(call.views()?, &call.user_id, from, limit);
        Ok(list.page(page.await?))
    }
}

/// A booking of which the caller is a party, else `not_found`.
pub async fn shown(call: &Call, id: &str) -> Outcome<BookingView> {
    let id = known_id(id, "booking")?;
    let booking = views::booking_of(call.views()?, &call.user_id, id).await?;
    booking.ok_or_else(|| Problem::not_found("booking"))
}

async fn ask(call: &Call, id: &str, command: booking::Command) -> Outcome<BookingView> {
    shown(call, id).await?;
    match call.ask::<Booking>(id, command, call.meta()).await? {
        booking::Reply::Booking(booking) => Ok(*booking),
        booking::Reply::Done => shown(call, id).await,
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "BookingId")]
pub struct BookingById {
    booking_id: String,
}

/// Returns a booking of which the caller is a party.
pub struct Get;

impl Operation for Get {
    const META: Meta = Meta::query("booking.get", "Get a booking")
        .get("/v1/bookings/{booking_id}")
        .tool("get_booking", ToolEffect::ReadOnly)
        .resource("proxie://bookings/{booking_id}")
        .changes_with("booking:{booking_id}");
    type Input = BookingById;
    type Answer = BookingView;

    async fn run(call: &Call, BookingById { booking_id }: BookingById) -> Outcome<BookingView> {
        shown(call, &booking_id).await
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct CancelBooking {
    booking_id: String,
    #[schemars(length(max = 500))]
    reason: Option<String>,
}

/// Cancels a booking, which frees the provider's time.
pub struct Cancel;

impl Operation for Cancel {
    const META: Meta = Meta::command("booking.cancel", "Cancel a booking before it starts")
        .post("/v1/bookings/{booking_id}/cancel")
        .tool("cancel_booking", ToolEffect::Destructive);
    type Input = CancelBooking;
    type Answer = BookingView;

    async fn run(call: &Call, input: CancelBooking) -> Outcome<BookingView> {
        let CancelBooking { booking_id, reason } = input;
        ask(call, &booking_id, booking::Command::Cancel(BookingCancellation { reason })).await
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct ReviewBooking {
    booking_id: String,
    /// The number of stars, 1 to 5.
    #[schemars(range(min = 1, max = 5))]
    rating: u8,
    #[schemars(length(max = 2_000))]
    comment: Option<String>,
}

/// Reviews a completed booking, as its consumer.
pub struct Review;

impl Operation for Review {
    const META: Meta =
        Meta::command("booking.review", "Review a completed booking, as its consumer")
            .post("/v1/bookings/{booking_id}/review")
            .tool("submit_review", ToolEffect::Destructive);
    type Input = ReviewBooking;
    type Answer = BookingView;

    async fn run(call: &Call, input: ReviewBooking) -> Outcome<BookingView> {
        let ReviewBooking { booking_id, rating, comment } = input;
        ask(call, &booking_id, booking::Command::Review { rating, comment }).await
    }
}

/// Reports that the consumer did not come, as the provider.
pub struct MarkNoShow;

impl Operation for MarkNoShow {
    const META: Meta =
        Meta::command("booking.no_show", "Report that the consumer did not come, as the provider")
            .post("/v1/bookings/{booking_id}/no-show");
    type Input = BookingById;
    type Answer = BookingView;

    async fn run(call: &Call, BookingById { booking_id }: BookingById) -> Outcome<BookingView> {
        ask(call, &booking_id, booking::Command::MarkNoShow).await
    }
}
