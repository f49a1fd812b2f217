-- The vault: a key a person, under which what concerns them is sealed. Without their row it cannot be read again, by
-- anybody. Keys are wrapped with a master key.

-- Which master key that is: every node must have the same.
create table vault (
    one         boolean primary key default true check (one),
    master      text not null,             -- a fingerprint of the master key
    -- The master key itself, where none is configured: a backup then has both. Null: it is somewhere else.
    kept        text
);

create table vault_keys (
    person      text collate "C" primary key,
    -- It only grows: what was sealed under a smaller number than that of a person's key was erased with it.
    key         bigint not null generated always as identity,
    master      text not null,             -- what `wrapped` was wrapped with
    wrapped     bytea not null,
    created_at  timestamptz not null default now()
);
create index vault_keys_master on vault_keys (master);

-- Whose keys were deleted, for the nodes that hold them in memory, and to erase again what a restored backup brings back.
create table erasures (
    -- In the order of their commits, which one lock sees to.
    n           bigint primary key generated always as identity,
    person      text not null,
    key         bigint not null,
    at          timestamptz not null default now()
);
