-- Where contents can be watched, and what people watch. Plain upserts by id, like those of 0002.

create table contents (
    id            text primary key,
    availability  jsonb not null,
    updated_at    timestamptz not null,
    version       bigint not null
);

create table playback_sessions (
    id                  text primary key,
    user_id             text not null,
    content_id          text not null,
    device_id           text not null,
    platform            text not null,
    access              text not null,
    quality             text not null,
    deep_link           text not null,
    web_fallback        text not null,
    resume_position_ms  bigint,
    status              text not null,
    position_ms         bigint,
    duration_ms         bigint,
    started_at          timestamptz not null,
    updated_at          timestamptz not null,
    ended_at            timestamptz,
    end_reason          text
);
create index playback_sessions_user on playback_sessions (user_id, started_at, id collate "C");

-- Makes the function of a view that is a plain upsert, so that a table and its function cannot differ.
create procedure make_view(view text) language plpgsql as $do$
declare
    columns text;
    assignments text;
begin
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
end $do$;

call make_view('contents');
call make_view('playback_sessions');
