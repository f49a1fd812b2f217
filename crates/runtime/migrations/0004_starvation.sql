-- What cannot be handled is counted, tried less and less often, and set aside, so that it keeps out nothing else.

-- Rows of an outbox are given up by their age: the receiver, or what a run calls, may be away for hours.
alter table outbox
    -- When it was written, or put back by an operator.
    add column since timestamptz not null default now(),
    -- Times that a run's outside call was begun, noted before the call. Those beyond `attempts` never ended in order:
    -- the node died, or what came of them could not be taken.
    add column begun int not null default 0,
    -- Times that the recovery scan found it, and when it looks again. `due_at` stays the sender's own plan.
    add column found int not null default 0,
    add column look_at timestamptz not null default now();
create index outbox_look on outbox (look_at) where dead_at is null;
drop index outbox_due;
create index outbox_dead_target on outbox (target_kind, target_key) where dead_at is not null;

-- A timer is claimed before it is fired: `due_at` moves to when it is fired again, and the commit that handles it deletes
-- the row. One that is set aside is due at `infinity`. These columns speak of the scheduling `tried_id`; where `id` is
-- another, the timer was set anew and has not been tried.
alter table timers
    add column tried_id text collate "C",
    add column attempts int not null default 0,
    add column tried_since timestamptz,
    add column last_error text,
    add column dead_at timestamptz;
create index timers_dead on timers (dead_at) where dead_at is not null;
