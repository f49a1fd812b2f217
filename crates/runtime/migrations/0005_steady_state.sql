-- What a store needs when it is older and larger than on its first day.

-- The newest migration that a release must know to use these tables. A migration that takes away what older releases
-- use (a contraction) raises it to its own number; releases that do not know that number refuse to start.
create table schema_floor (
    one        boolean primary key default true check (one),
    migration  bigint not null
);
insert into schema_floor (migration) values (0);

-- Sweeping goes by age. Summaries of block ranges (BRIN) only widen: once deleted space is used again every range
-- seems to hold an old row, and each step reads the table from its beginning. Users' commands and deliveries are kept
-- for different times, so each has an index of its own.
drop index dedupe_at;
create index dedupe_users_at on dedupe (at) where user_id <> '@outbox';
create index dedupe_deliveries_at on dedupe (at) where user_id = '@outbox';
drop index publications_at;
create index publications_at on publications (at);
create index nodes_ended_at on nodes (ended_at) where ended_at is not null;
-- A list of who lives reads nothing of those who do not.
create index nodes_living on nodes (incarnation) where state <> 'dead';

-- A key that is retired verifies until the last token it has signed ends: `token_s` is the longest life it has given.
alter table signing_keys add column token_s bigint not null default 86400;
-- A revocation is kept until the last token that it concerns ends. The default is for releases that do not say it.
alter table revocations add column until timestamptz not null default now() + interval '400 days';
create index revocations_until on revocations (until);

-- Every list goes through an index in its own order.
drop index sessions_user;
create index sessions_user on sessions (user_id, created_at, id collate "C");
drop index messages_session;
create index messages_session on messages (session_id, created_at, id collate "C");
drop index requests_consumer;
create index requests_consumer on requests (consumer_id, created_at, id collate "C");
drop index offers_request;
create index offers_request on offers (request_id, created_at, id collate "C");
drop index bookings_consumer;
create index bookings_consumer on bookings (consumer_id, created_at, id collate "C");
drop index bookings_owner;
create index bookings_owner on bookings (provider_owner_id, created_at, id collate "C");
drop index providers_owner;
create index providers_owner on providers (owner_id, id collate "C");
create index providers_directory on providers (id collate "C");
create index providers_city on providers (lower(city), id collate "C");

-- Who has something open with whom.
create index bookings_open on bookings (consumer_id, provider_owner_id)
    where status in ('pending', 'confirmed', 'in_progress');
create index requests_open on requests (consumer_id) where status in ('matching', 'open', 'accepting');

-- A provider by each of its services: the directory by service, and the nearest of them to a place. An index over the
-- array of services has no order, so a page of a common service would read all who have it.
drop index providers_services;
drop index providers_place;
create table provider_services (
    service      text collate "C" not null,
    provider_id  text collate "C" not null,
    city         text collate "C" not null,   -- lower case
    place        point not null,              -- latitude, longitude
    primary key (service, provider_id)
);
create index provider_services_provider on provider_services (provider_id);
-- One key of both: a plan that was made while the table was small would go by service and filter by city.
create index provider_services_city on provider_services ((service || chr(31) || city), provider_id);
create index provider_services_place on provider_services using gist (service, place);

create function list_services(ids text[]) returns void language sql as $$
    delete from provider_services s using providers p
     where s.provider_id = any(ids) and p.id = s.provider_id collate "default" and not s.service = any(p.services);
    insert into provider_services (service, provider_id, city, place)
    select u.service, p.id, lower(p.city), point(p.latitude, p.longitude)
      from providers p, lateral (select distinct unnest(p.services)) u(service) where p.id = any(ids)
    on conflict (service, provider_id) do update set city = excluded.city, place = excluded.place
     where provider_services.city <> excluded.city or not provider_services.place ~= excluded.place;
$$;

alter function view_providers(jsonb) rename to upsert_providers;
create function view_providers(rows jsonb) returns void language plpgsql as $$
begin
    perform upsert_providers(rows);
    perform list_services(array(select r ->> 'id' from jsonb_array_elements(rows) r));
end $$;

select list_services(array(select id from providers));
