-- The marketplace's read models. Each row is written by one entity only, in the commit of the events it follows from,
-- through the function `view_<name>(rows)`; rows of one call may repeat a key, the last one counts.

create table sessions (
    id              text primary key,
    user_id         text not null,
    time_zone       text not null,
    locale          text not null,
    created_at      timestamptz not null,
    last_active_at  timestamptz not null,
    ended           boolean not null default false
);
create index sessions_user on sessions (user_id, id);

create table messages (
    id          text primary key,
    session_id  text not null,
    role        text not null,
    content     text not null,
    media       jsonb not null default '[]',
    data        jsonb,
    created_at  timestamptz not null
);
create index messages_session on messages (session_id, id);

create table requests (
    id            text primary key,
    consumer_id   text not null,
    session_id    text,
    service       text not null,
    status        text not null,
    reason        text,
    details       text not null,
    place         jsonb not null,
    earliest      timestamptz not null,
    latest        timestamptz not null,
    exact         boolean not null,
    time_zone     text not null,
    budget        jsonb,
    created_at    timestamptz not null,
    updated_at    timestamptz not null,
    offers_count  int not null default 0,
    booking_id    text
);
create index requests_consumer on requests (consumer_id, id);

create table offers (
    id           text primary key,
    request_id   text not null,
    consumer_id  text not null,
    provider_id  text not null,
    provider     jsonb,
    status       text not null,
    price        jsonb not null,
    starts_at    timestamptz not null,
    ends_at      timestamptz not null,
    message      text,
    score        jsonb,
    created_at   timestamptz not null,
    expires_at   timestamptz,
    booking_id   text
);
create index offers_request on offers (request_id, id);

create table providers (
    id             text primary key,
    owner_id       text not null,
    name           text not null,
    city           text not null,
    country        text not null,
    latitude       double precision not null,
    longitude      double precision not null,
    radius_km      double precision not null,
    services       text[] not null,
    profile        jsonb not null,
    rating         double precision,
    reviews        int not null default 0,
    response_rate  double precision,
    version        bigint not null,
    updated_at     timestamptz not null
);
create index providers_owner on providers (owner_id, id);
-- Candidates for a request: by service, inside a box around the place.
create index providers_services on providers using gin (services);
create index providers_place on providers (latitude, longitude);

create table bookings (
    id                 text primary key,
    request_id         text not null,
    offer_id           text not null,
    consumer_id        text not null,
    provider_id        text not null,
    provider_owner_id  text not null,
    service            text not null,
    status             text not null,
    price              jsonb not null,
    starts_at          timestamptz not null,
    ends_at            timestamptz not null,
    place              jsonb not null,
    detail             jsonb not null default '{}',
    created_at         timestamptz not null,
    updated_at         timestamptz not null
);
create index bookings_consumer on bookings (consumer_id, id);
create index bookings_owner on bookings (provider_owner_id, id);

-- The provider's actor decides who gets a slot; this constraint stands behind it.
create table calendar (
    booking_id   text primary key,
    provider_id  text not null,
    during       tstzrange not null,
    exclude using gist (provider_id with =, during with &&)
);

create function view_calendar(rows jsonb) returns void language plpgsql as $$
begin
    delete from calendar c using jsonb_array_elements(rows) r
     where c.booking_id = r ->> 'booking_id';
    insert into calendar (booking_id, provider_id, during)
    select l.row ->> 'booking_id', l.row ->> 'provider_id',
           tstzrange((l.row ->> 'starts_at')::timestamptz, (l.row ->> 'ends_at')::timestamptz)
      from (select distinct on (r ->> 'booking_id') r as row
              from jsonb_array_elements(rows) with ordinality e(r, n)
             order by r ->> 'booking_id', n desc) l
     where not coalesce((l.row ->> 'deleted')::boolean, false);
end $$;

-- The other views are plain upserts by id. The functions are generated, so that a table and its function cannot differ.
do $do$
declare
    view text;
    columns text;
    assignments text;
begin
    foreach view in array array['sessions', 'messages', 'requests', 'offers', 'providers', 'bookings'] loop
        select string_agg(format('%I', column_name), ', ' order by ordinal_position),
               string_agg(format('%1$I = excluded.%1$I', column_name), ', ' order by ordinal_position)
          into columns, assignments
          from information_schema.columns where table_schema = current_schema and table_name = view;
        execute format($f$
            create function %1$I(rows jsonb) returns void language sql as $body$
                insert into %2$I (%3$s)
                select %3$s from (
                    select distinct on (t.id) t.*
                      from jsonb_array_elements(rows) with ordinality e(r, n),
                           lateral jsonb_populate_record(null::%2$I, e.r) t
                     order by t.id, e.n desc) x
                on conflict (id) do update set %4$s
            $body$
        $f$, 'view_' || view, view, columns, assignments);
    end loop;
end $do$;
