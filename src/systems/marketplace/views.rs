//! The marketplace's queries of its read models that need SQL of their own.

use serde_json::Value;
use sqlx::Row;

use super::domain::booking::{BookingRow, BookingView};
use super::domain::matching::Candidate;
use super::domain::profile::ProviderView;
use super::domain::schedule::Span;
use crate::kernel::clock::Timestamp;
use crate::persistence::store::{from_micros, micros};
use crate::persistence::views::{Cursor, RowPage, ViewError, Views, typed};

/// The search of matching: a service, a place and a time.
#[derive(Clone, Debug)]
pub struct Window {
    pub service: String,
    pub south: f64,
    pub north: f64,
    pub west: f64,
    pub east: f64,
    pub earliest: Timestamp,
    pub latest: Timestamp,
}

/// The most candidates of one search: enough for any box around a place, and ranking keeps far fewer.
const MAX_CANDIDATES: i64 = 500;

/// Whether these two have something open with each other: a booking, or an offer to a request.
pub async fn have_dealings(views: &Views, one: &str, other: &str) -> Result<bool, ViewError> {
    let open = "select exists (
            select from bookings where status in ('pending', 'confirmed', 'in_progress')
               and consumer_id = $1 and provider_owner_id = $2)
         or exists (
            select from requests r join offers o on o.request_id = r.id join providers p on p.id = o.provider_id
             where r.status in ('matching', 'open', 'accepting') and r.consumer_id = $1 and p.owner_id = $2)";
    let dealings = views.read(async |connection| {
        let there: bool =
            sqlx::query_scalar(open).bind(one).bind(other).fetch_one(&mut *connection).await?;
        Ok(there || sqlx::query_scalar(open).bind(other).bind(one).fetch_one(connection).await?)
    });
    dealings.await
}

/// A booking, if this user is a party of it.
pub async fn booking_of(
    views: &Views,
    user_id: &str,
    id: &str,
) -> Result<Option<BookingView>, ViewError> {
    let row = views.get::<BookingRow>(id).await?;
    let own = row.filter(|row| row.consumer_id == user_id || row.provider_owner_id == user_id);
    Ok(own.map(|row| row.detail))
}

/// The bookings of a user, as consumer or as provider, newest first.
pub async fn bookings_of(
    views: &Views,
    user_id: &str,
    from: Cursor,
    limit: usize,
) -> Result<RowPage<BookingView>, ViewError> {
    // A page of each role, since each has an index in its own order.
    let sql = "select detail::text, micros(created_at), id from (
            (select detail, created_at, id from bookings
              where consumer_id = $1 and (created_at, id collate \"C\") < (micros($2::bigint), $3)
              order by created_at desc, id collate \"C\" desc limit $4)
            union all
            (select detail, created_at, id from bookings
              where provider_owner_id = $1 and consumer_id <> $1
                and (created_at, id collate \"C\") < (micros($2::bigint), $3)
              order by created_at desc, id collate \"C\" desc limit $4)) b
         order by created_at desc, id collate \"C\" desc limit $4";
    views.rows(sql, user_id, from, limit).await
}

/// The directory of providers in order of id. Each filter is optional; the city is compared without regard to case.
pub async fn providers(
    views: &Views,
    service: Option<&str>,
    city: Option<&str>,
    owner_id: Option<&str>,
    from: Cursor,
    limit: usize,
) -> Result<RowPage<ProviderView>, ViewError> {
    let sql = match (owner_id, service, city) {
        // One person owns few providers.
        (Some(_), ..) => {
            "select to_jsonb(p)::text, 0::bigint, id from providers p
              where owner_id = $1 and id collate \"C\" > $4
                and ($2::text is null or services @> array[$2::text])
                and ($3::text is null or lower(city) = lower($3::text))
              order by id collate \"C\" limit $5"
        }
        (None, Some(_), Some(_)) => {
            "select to_jsonb(p)::text, 0::bigint, id from provider_services s
               join providers p on p.id = s.provider_id collate \"default\"
              where s.service || chr(31) || s.city = $2 || chr(31) || lower($3::text) and s.provider_id > $4 and $1::text is null
              order by s.provider_id limit $5"
        }
        (None, Some(_), None) => {
            "select to_jsonb(p)::text, 0::bigint, id from provider_services s
               join providers p on p.id = s.provider_id collate \"default\"
              where s.service = $2 and s.provider_id > $4 and $1::text is null and $3::text is null
              order by s.provider_id limit $5"
        }
        (None, None, Some(_)) => {
            "select to_jsonb(p)::text, 0::bigint, id from providers p
              where lower(city) = lower($3::text) and id collate \"C\" > $4 and $1::text is null and $2::text is null
              order by id collate \"C\" limit $5"
        }
        (None, None, None) => {
            "select to_jsonb(p)::text, 0::bigint, id from providers p
              where id collate \"C\" > $4 and $1::text is null and $2::text is null and $3::text is null
              order by id collate \"C\" limit $5"
        }
    };
    let rows = views.read(async |connection| {
        sqlx::query(sql)
            .bind(owner_id)
            .bind(service)
            .bind(city)
            .bind(&from.id)
            .bind(limit as i64 + 1)
            .fetch_all(connection)
            .await
    });
    RowPage::of(&rows.await?, limit)
}

/// Providers of a service inside a box, nearest to its middle first, each with the busy times that touch the
/// asked window.
pub async fn candidates(views: &Views, window: &Window) -> Result<Vec<Candidate>, ViewError> {
    let sql = "select to_jsonb(p)::text,
                coalesce((select array_agg(micros(lower(c.during)) order by c.during) from calendar c
                           where c.provider_id = p.id and c.during && w.during), '{}'),
                coalesce((select array_agg(micros(upper(c.during)) order by c.during) from calendar c
                           where c.provider_id = p.id and c.during && w.during), '{}')
         from (select s.provider_id, s.place <-> point(($2 + $3) / 2, ($4 + $5) / 2) as distance
                 from provider_services s
                where s.service = $1 and s.place <@ box(point($2, $4), point($3, $5))
                order by s.place <-> point(($2 + $3) / 2, ($4 + $5) / 2) limit $8) s
         join providers p on p.id = s.provider_id collate \"default\",
              (select tstzrange(micros($6::bigint) - interval '1 day', micros($7::bigint) + interval '1 day')) w(during)
         order by s.distance, s.provider_id";
    let rows = views
        .read(async |connection| {
            sqlx::query(sql)
                .bind(&window.service)
                .bind(window.south)
                .bind(window.north)
                .bind(window.west)
                .bind(window.east)
                .bind(micros(window.earliest))
                .bind(micros(window.latest))
                .bind(MAX_CANDIDATES)
                .fetch_all(connection)
                .await
        })
        .await?;
    let mut candidates = Vec::with_capacity(rows.len());
    for row in &rows {
        let (provider, starts, ends): (Value, Vec<i64>, Vec<i64>) =
            (typed(row, 0)?, row.try_get(1)?, row.try_get(2)?);
        let busy = starts.into_iter().zip(ends).map(|(starts_at, ends_at)| Span {
            starts_at: from_micros(starts_at),
            ends_at: from_micros(ends_at),
        });
        // A row of another shape is of a release that this one does not know; the other rows are matched all the same.
        candidates.extend(Candidate::from_row(&provider, busy.collect()));
    }
    Ok(candidates)
}
