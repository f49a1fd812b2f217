-- What an entity owes is read in pages, in its order, and without its dead letters; the list of all dead letters begins
-- with the oldest.

drop index outbox_sender;
create index outbox_owed on outbox (sender_kind, sender_key, position) where dead_at is null;
create index outbox_dead_sender on outbox (sender_kind, sender_key) where dead_at is not null;

drop index outbox_dead;
create index outbox_dead on outbox (dead_at, id) where dead_at is not null;
drop index timers_dead;
create index timers_dead on timers (dead_at, id) where dead_at is not null;
