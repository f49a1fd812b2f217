-- The runtime's own tables and the one function through which every entity commits.

create extension if not exists vector;
create extension if not exists btree_gist;

-- Times travel as microseconds since the epoch.
create function micros(t bigint) returns timestamptz language sql immutable strict parallel safe
    return timestamptz 'epoch' + t * interval '1 microsecond';
create function micros(t timestamptz) returns bigint language sql immutable strict parallel safe
    return (extract(epoch from t) * 1000000)::bigint;
create function micros(t bigint[]) returns timestamptz[] language sql immutable strict parallel safe
    return (select coalesce(array_agg(micros(u.t) order by u.n), '{}') from unnest(t) with ordinality u(t, n));

-- One row: what this store is. The epoch names the history that topic offsets belong to; it changes when the store
-- is another one than before (restored backup, promoted replica), so that no client trusts an old position.
create table store (
    one         boolean primary key default true check (one),
    epoch       text not null,
    system_id   text not null,
    timeline    int not null,
    created_at  timestamptz not null default now()
);

-- Membership. An incarnation is one life of one node; dead is for ever.
create sequence incarnations;
create table nodes (
    incarnation bigint primary key,
    name        text not null,
    address     text not null,          -- where clients reach it
    peer_address text not null default '',  -- where other nodes reach it
    weight      int not null default 1,  -- its share of the slots, relative to the others
    version     text not null,
    state       text not null check (state in ('joining', 'active', 'draining', 'dead')),
    host        text not null,   -- boot id, host name and pid namespace: where `pid` means something
    pid         int not null,
    live        jsonb not null default '{}',   -- counters the node reports with each renewal
    started_at  timestamptz not null default now(),
    ended_at    timestamptz
);
create table leases (
    incarnation bigint primary key references nodes,
    lease_until timestamptz not null
) with (fillfactor = 50);

-- One row a writer lane. `batch` numbers the commits of a lane; `live = false` is how a successor fences it.
-- `result` keeps what the last batch did not do, for a writer whose connection died before it heard.
create table lanes (
    incarnation bigint not null,
    lane        int not null,
    batch       bigint not null default 0,
    live        boolean not null default true,
    result      jsonb,
    primary key (incarnation, lane)
) with (fillfactor = 50);

-- Raised with every change of members or slots: nodes read the tables again when it differs from what they know.
create table cluster (
    one         boolean primary key default true check (one),
    version     bigint not null
);
insert into cluster (version) values (1);

-- A silent node is declared dead when enough others say so.
create table suspicions (
    suspect     bigint not null references nodes,
    by          bigint not null references nodes,
    at          timestamptz not null default now(),
    primary key (suspect, by)
);

create table slots (
    slot        int primary key,
    incarnation bigint,
    epoch       bigint not null default 0,
    -- Taken after its owner's death, not handed over: the new owner waits until the old one has stopped to answer reads.
    claimed     boolean not null default false
) with (fillfactor = 50);
insert into slots (slot) select generate_series(0, 4095);

-- Every event for ever: the truth and the audit trail. `topic_head` is the offset of the entity's topic after the event.
create table journal (
    kind        text collate "C" not null,
    key         text collate "C" not null,
    seq         bigint not null,
    version     smallint not null,
    topic_head  bigint not null,
    event       jsonb not null,
    caller      text not null,
    command_id  text,
    at          timestamptz not null,
    primary key (kind, key, seq)
);

create table snapshots (
    kind        text collate "C" not null,
    key         text collate "C" not null,
    seq         bigint not null,
    topic_head  bigint not null,
    data        bytea not null,
    primary key (kind, key)
);

-- The first outcome of every command, for as long as a retry may come.
create table dedupe (
    user_id     text collate "C" not null,
    id          text collate "C" not null,
    fingerprint bigint not null,
    outcome     text not null,
    at          timestamptz not null,
    primary key (user_id, id)
);
create index dedupe_at on dedupe using brin (at);

-- Sends to other entities and runs of outside work, until the receiver has them. Dead letters stay here.
create table outbox (
    id           text collate "C" primary key,
    slot         int not null,
    sender_kind  text collate "C" not null,
    sender_key   text collate "C" not null,
    position     bigint not null,      -- order among the rows of one sender
    target_kind  text collate "C" not null,   -- 'run' for outside work
    target_key   text collate "C" not null,   -- the runner's name for 'run'
    body         text not null,
    attempts     int not null default 0,
    due_at       timestamptz not null,
    last_error   text,
    dead_at      timestamptz
);
create index outbox_sender on outbox (sender_kind, sender_key);
create index outbox_due on outbox (due_at) where dead_at is null;
create index outbox_dead on outbox (dead_at) where dead_at is not null;

create table timers (
    kind        text collate "C" not null,
    key         text collate "C" not null,
    name        text collate "C" not null,
    id          text collate "C" not null,    -- of this scheduling: a replaced timer's fire finds no row
    slot        int not null,
    due_at      timestamptz not null,
    command     text not null,
    primary key (kind, key, name)
);
create index timers_due on timers (due_at);

-- The bounded history of durable topics. A topic's row set is written by the entity that owns the topic.
create table publications (
    topic       text collate "C" not null,
    "offset"    bigint not null,
    event       text not null,
    "from"      text,                  -- the user who said it, where clients may publish
    data        text not null,
    at          timestamptz not null,
    primary key (topic, "offset")
);
create index publications_at on publications using brin (at);

-- Entities that fail on every start, until an operator lets them try again (by deleting the row).
create table parked (
    kind        text collate "C" not null,
    key         text collate "C" not null,
    reason      text not null,
    failures    int not null,
    at          timestamptz not null default now(),
    primary key (kind, key)
);

create table signing_keys (
    kid         text primary key,
    secret      bytea not null,        -- Ed25519 seed
    created_at  timestamptz not null default now(),
    retired_at  timestamptz
);

create table revocations (
    subject     text primary key,      -- 'user:…' (tokens issued before `at`) or 'jti:…'
    at          timestamptz not null default now()
);

-- The commit. One call is one transaction (autocommit, READ COMMITTED) and one batch of a lane.
--
-- 1. The fence: only the next batch of a live lane gets past the UPDATE, and the row lock makes a takeover wait.
-- 2. Items that must not be written (moved slot, stale head, id already used, timer or outbox row gone) are found,
--    and with them all later items of the same entity, which were decided on a state that is not true.
-- 3. Everything else is written with one statement a table.
--
-- Items name their entity and rows their item by place, from 1. Returns only the items that were not written: `status`
-- is moved | stale | dup | gone | after. Where there is a row an item, arrays are unnested in the select list: in FROM
-- each of them would be stored and read again.
create function commit_batch(
    p_incarnation bigint, p_lane int, p_batch bigint, p_at timestamptz,
    -- false: every id is taken to be new, and one that is not fails the call (23505); true: they are looked up
    p_careful boolean,
    -- each entity once, with the head that its first item expects
    e_slot int[], e_epoch bigint[], e_kind text[], e_key text[], e_head bigint[],
    i_entity int[],
    j_item int[], j_seq bigint[], j_version smallint[], j_topic_head bigint[], j_event text[], j_caller text[], j_command text[],
    d_item int[], d_user text[], d_id text[], d_fingerprint bigint[], d_outcome text[],
    s_item int[], s_seq bigint[], s_topic_head bigint[], s_data bytea[],
    o_item int[], o_id text[], o_position bigint[], o_target_kind text[], o_target_key text[], o_body text[],
    -- outbox rows to change: op done (deliver finished) | take (a run's outcome: must still be there) | retry | dead
    c_item int[], c_op text[], c_id text[], c_attempts int[], c_due timestamptz[], c_error text[],
    -- timers: op set | cancel | fire (must still be there)
    t_item int[], t_op text[], t_name text[], t_id text[], t_due timestamptz[], t_command text[],
    p_item int[], p_offset bigint[], p_event text[], p_from text[], p_data text[],
    v_item int[], v_view text[], v_row text[],
    p_keep int, p_keep_bytes bigint
) returns table (item int, status text, fingerprint bigint, outcome text)
language plpgsql volatile as $$
#variable_conflict use_column
declare
    bad int[] := '{}';
    statuses text[] := '{}';
    fingerprints bigint[] := '{}';
    outcomes text[] := '{}';
    found_rows int;
    r record;
begin
    update lanes l set batch = p_batch, result = null
     where l.incarnation = p_incarnation and l.lane = p_lane and l.batch = p_batch - 1 and l.live;
    if not found then
        raise exception 'lane fenced' using errcode = 'PX001';
    end if;

    -- The owner of a slot cannot change while this holds the lane row: a release locks it first.
    for r in
        select i.n, e.status
          from (select e.n, case when s.slot is null then 'moved' else 'stale' end as status
                  from unnest(e_slot, e_epoch, e_kind, e_key, e_head) with ordinality e(slot, epoch, kind, key, head, n)
                  left join slots s on s.slot = e.slot and s.incarnation = p_incarnation and s.epoch = e.epoch
                 where s.slot is null or e.head <> coalesce((
                     select j.seq from journal j where j.kind = e.kind and j.key = e.key order by j.seq desc limit 1), 0)
               ) e, unnest(i_entity) with ordinality i(entity, n)
         where i.entity = e.n
    loop
        bad := bad || r.n::int; statuses := statuses || r.status;
        fingerprints := fingerprints || null::bigint; outcomes := outcomes || null::text;
    end loop;

    -- The ids come in key order, so that two lanes with the same ids wait for each other and do not deadlock.
    if not p_careful then
        insert into dedupe (user_id, id, fingerprint, outcome, at)
        select unnest(d_user), unnest(d_id), unnest(d_fingerprint), unnest(d_outcome), p_at;
    else
        insert into dedupe (user_id, id, fingerprint, outcome, at)
        select unnest(d_user), unnest(d_id), unnest(d_fingerprint), unnest(d_outcome), p_at
        on conflict do nothing;
        get diagnostics found_rows = row_count;
        if found_rows < cardinality(d_item) then
            -- A row is ours if it carries this transaction and no earlier item named the id.
            for r in
                select u.item, d.fingerprint, d.outcome
                from unnest(d_item, d_user, d_id) u(item, user_id, id)
                join dedupe d on d.user_id = u.user_id and d.id = u.id
                where d.xmin <> pg_current_xact_id()::xid
                   or exists (select from unnest(d_item, d_user, d_id) e(item, user_id, id)
                              where e.user_id = u.user_id and e.id = u.id and e.item < u.item)
            loop
                bad := bad || r.item; statuses := statuses || 'dup'::text;
                fingerprints := fingerprints || r.fingerprint; outcomes := outcomes || r.outcome;
            end loop;
        end if;
    end if;

    if 'fire' = any(t_op) then
        for r in
            select u.item from unnest(t_item, t_op, t_name, t_id) u(item, op, name, id)
            where u.op = 'fire' and not exists (
                select from timers t where t.kind = e_kind[i_entity[u.item]] and t.key = e_key[i_entity[u.item]] and t.name = u.name and t.id = u.id)
        loop
            bad := bad || r.item; statuses := statuses || 'gone'::text;
            fingerprints := fingerprints || null::bigint; outcomes := outcomes || null::text;
        end loop;
    end if;
    if 'take' = any(c_op) then
        for r in
            select u.item from unnest(c_item, c_op, c_id) u(item, op, id)
            where u.op = 'take' and not exists (select from outbox o where o.id = u.id)
        loop
            bad := bad || r.item; statuses := statuses || 'gone'::text;
            fingerprints := fingerprints || null::bigint; outcomes := outcomes || null::text;
        end loop;
    end if;

    if cardinality(bad) > 0 then
        for r in
            select u.n from unnest(i_entity) with ordinality u(entity, n)
            where not (u.n = any(bad)) and exists (
                select from unnest(bad) b(n) where b.n < u.n and i_entity[b.n] = u.entity)
        loop
            bad := bad || r.n::int; statuses := statuses || 'after'::text;
            fingerprints := fingerprints || null::bigint; outcomes := outcomes || null::text;
        end loop;
        -- What the refused items claimed goes away again; rows that were there before stay.
        delete from dedupe d using unnest(d_item, d_user, d_id) u(item, user_id, id)
         where d.user_id = u.user_id and d.id = u.id and u.item = any(bad)
           and d.xmin = pg_current_xact_id()::xid
           -- the row of an id that two items name belongs to the first of them
           and not exists (select from unnest(bad, statuses) b(n, status) where b.n = u.item and b.status = 'dup');
    end if;

    insert into journal (kind, key, seq, version, topic_head, event, caller, command_id, at)
    select e_kind[i_entity[u.item]], e_key[i_entity[u.item]], u.seq, u.version, u.topic_head, u.event::jsonb, u.caller, u.command, p_at
      from (select unnest(j_item) as item, unnest(j_seq) as seq, unnest(j_version) as version, unnest(j_topic_head) as topic_head,
                   unnest(j_event) as event, unnest(j_caller) as caller, unnest(j_command) as command) u
     where not (u.item = any(bad));

    if cardinality(s_item) > 0 then
        insert into snapshots (kind, key, seq, topic_head, data)
        select distinct on (e_kind[i_entity[u.item]], e_key[i_entity[u.item]])
               e_kind[i_entity[u.item]], e_key[i_entity[u.item]], u.seq, u.topic_head, u.data
          from unnest(s_item, s_seq, s_topic_head, s_data) u(item, seq, topic_head, data)
         where not (u.item = any(bad))
         order by e_kind[i_entity[u.item]], e_key[i_entity[u.item]], u.seq desc
        on conflict (kind, key) do update set seq = excluded.seq, topic_head = excluded.topic_head, data = excluded.data;
    end if;

    if cardinality(o_item) > 0 then
        insert into outbox (id, slot, sender_kind, sender_key, position, target_kind, target_key, body, due_at)
        select u.id, e_slot[i_entity[u.item]], e_kind[i_entity[u.item]], e_key[i_entity[u.item]], u.position, u.target_kind, u.target_key, u.body, p_at
          from unnest(o_item, o_id, o_position, o_target_kind, o_target_key, o_body) u(item, id, position, target_kind, target_key, body)
         where not (u.item = any(bad));
    end if;
    if cardinality(c_item) > 0 then
        delete from outbox o using unnest(c_item, c_op, c_id) u(item, op, id)
         where o.id = u.id and u.op in ('done', 'take') and not (u.item = any(bad));
        update outbox o set attempts = u.attempts, due_at = u.due, last_error = u.error,
               dead_at = case when u.op = 'dead' then p_at end
          from unnest(c_item, c_op, c_id, c_attempts, c_due, c_error) u(item, op, id, attempts, due, error)
         where o.id = u.id and u.op in ('retry', 'dead') and not (u.item = any(bad));
    end if;

    if cardinality(t_item) > 0 then
        delete from timers t using unnest(t_item, t_op, t_name, t_id) u(item, op, name, id)
         where t.kind = e_kind[i_entity[u.item]] and t.key = e_key[i_entity[u.item]] and t.name = u.name
           and (u.op = 'cancel' or (u.op = 'fire' and t.id = u.id)) and not (u.item = any(bad));
        insert into timers (kind, key, name, id, slot, due_at, command)
        select distinct on (e_kind[i_entity[u.item]], e_key[i_entity[u.item]], u.name)
               e_kind[i_entity[u.item]], e_key[i_entity[u.item]], u.name, u.id, e_slot[i_entity[u.item]], u.due, u.command
          from unnest(t_item, t_op, t_name, t_id, t_due, t_command) with ordinality u(item, op, name, id, due, command, n)
         where u.op = 'set' and not (u.item = any(bad))
           -- a later cancel of the same batch wins
           and not exists (select from unnest(t_item, t_op, t_name) with ordinality x(item, op, name, n)
                           where x.op = 'cancel' and x.name = u.name and x.n > u.n and not (x.item = any(bad))
                             and e_kind[i_entity[x.item]] = e_kind[i_entity[u.item]] and e_key[i_entity[x.item]] = e_key[i_entity[u.item]])
         order by e_kind[i_entity[u.item]], e_key[i_entity[u.item]], u.name, u.n desc
        on conflict (kind, key, name) do update
           set id = excluded.id, slot = excluded.slot, due_at = excluded.due_at, command = excluded.command;
    end if;

    if cardinality(p_item) > 0 then
        insert into publications (topic, "offset", event, "from", data, at)
        select e_kind[i_entity[u.item]] || ':' || e_key[i_entity[u.item]], u."offset", u.event, u."from", u.data, p_at
          from unnest(p_item, p_offset, p_event, p_from, p_data) u(item, "offset", event, "from", data)
         where not (u.item = any(bad));
        -- Bounded by count and bytes: trimmed in steps of 64, so that most commits do not pay for it.
        for r in
            select e_kind[i_entity[u.item]] || ':' || e_key[i_entity[u.item]] as topic, max(u."offset") as head
              from unnest(p_item, p_offset) u(item, "offset") where u."offset" % 64 = 0 group by 1
        loop
            delete from publications p where p.topic = r.topic and p."offset" <= greatest(
                r.head - p_keep,
                (select max(w."offset")
                   from (select q."offset", sum(octet_length(q.data)) over (order by q."offset" desc) as bytes
                           from publications q where q.topic = r.topic) w
                  where w.bytes > p_keep_bytes));
        end loop;
    end if;

    if cardinality(v_item) > 0 then
        for r in
            select u.view, jsonb_agg(u.row::jsonb order by u.n) as rows
              from unnest(v_item, v_view, v_row) with ordinality u(item, view, row, n)
             where not (u.item = any(bad)) group by u.view order by u.view
        loop
            execute format('select %I($1)', 'view_' || r.view) using r.rows;
        end loop;
    end if;

    if cardinality(bad) > 0 then
        update lanes l set result = (
            select jsonb_agg(jsonb_build_array(b.n, b.status, b.fingerprint, b.outcome))
              from unnest(bad, statuses, fingerprints, outcomes) b(n, status, fingerprint, outcome))
         where l.incarnation = p_incarnation and l.lane = p_lane;
        return query select b.n, b.status, b.fingerprint, b.outcome
                       from unnest(bad, statuses, fingerprints, outcomes) b(n, status, fingerprint, outcome);
    end if;
end $$;
