-- Answers of models by the meaning of what was asked. All of it can be lost, and is asked again.

create table similar_answers (
    id          bigint primary key generated always as identity,
    owner_id    text collate "C" not null,
    key         bigint not null,
    -- Everything but what was said last, and what makes the vectors: a hash under the owner's key.
    scope       bytea not null,
    vector      halfvec not null,        -- turned by the owner's key
    answer      text not null,           -- sealed
    expires_at  timestamptz not null,
    -- Deleted with the owner's key, as memories are.
    foreign key (owner_id, key) references vault_keys (person, key) on delete cascade
);
alter table similar_answers alter column vector set storage main;
create index similar_answers_owner_id_scope on similar_answers (owner_id, scope);
create index similar_answers_owner_id_id on similar_answers (owner_id, id);
create index similar_answers_owner_id_key on similar_answers (owner_id, key);
create index similar_answers_expires_at on similar_answers (expires_at);
