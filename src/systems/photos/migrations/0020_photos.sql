-- Photos: what is known of each. Their bytes are objects, sealed under their owner's key.

-- A photo hangs on the key that it is sealed under, as a memory does: it is deleted with it, in the same transaction.
create table photos (
    id          text collate "C" primary key,
    owner_id    text collate "C" not null,
    key         bigint not null,
    -- The name of its bytes. Each attempt to store a photo has its own.
    object      text not null unique,
    media_type  text not null,
    width       integer not null,
    height      integer not null,
    bytes       bigint not null,
    digest      bytea not null,          -- of the bytes, under the owner's key: to tell a retry
    created_at  timestamptz not null,
    -- Empty: its bytes are on their way, or were lost on it.
    stored_at   timestamptz,
    foreign key (owner_id, key) references vault_keys (person, key) on delete cascade
);
create index photos_owner_id_created_at on photos (owner_id, created_at, id);
create index photos_owner_id_key on photos (owner_id, key);
create index photos_pending on photos (created_at) where stored_at is null;

-- Objects whose photo is gone, in whatever way. They are deleted at once, and once more when nobody can be storing them
-- any more.
create table photo_leftovers (
    object      text primary key,
    gone_at     timestamptz not null default clock_timestamp(),
    due         timestamptz not null default clock_timestamp()
);
create index photo_leftovers_due on photo_leftovers (due);

create function photos_gone() returns trigger language plpgsql as $$
begin
    insert into photo_leftovers (object) select object from gone order by object on conflict do nothing;
    return null;
end $$;
create trigger photos_gone after delete on photos referencing old table as gone
    for each statement execute function photos_gone();
