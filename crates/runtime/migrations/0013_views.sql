-- A view's function touches only the columns that a row gives. Rows of an older release lack the columns that a newer one
-- has added: what those hold stays, and where there is no row yet they take the table's defaults.

-- Makes the function of a view that is a plain upsert, so that a table and its function cannot differ. Called again after
-- a column was added, it makes it anew. Where another function stands before it (`view_providers`), it is `upsert_…`.
create or replace procedure make_view(view text) language plpgsql as $do$
declare
    key record;
    columns text;
    assignments text;
    defaults text;
begin
    select a.attname as name, format_type(a.atttypid, a.atttypmod) as type into strict key
      from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
     where i.indrelid = view::regclass and i.indisprimary;
    select string_agg(format('%I', a.attname), ', ' order by a.attnum),
           string_agg(format('%1$I = excluded.%1$I', a.attname), ', ' order by a.attnum),
           string_agg(coalesce(pg_get_expr(d.adbin, d.adrelid), 'null'), ', ' order by a.attnum)
      into columns, assignments, defaults
      from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
     where a.attrelid = view::regclass and a.attnum > 0 and not a.attisdropped;
    execute format($f$
        create or replace function %1$I(rows jsonb) returns void language sql as $body$
            insert into %2$I (%3$s)
            select %3$s
              from (select g.n, jsonb_populate_record(coalesce(old, row(%5$s)::%2$I), g.given) as new
                      -- What several rows of one batch give to the same row of the table.
                      from (select (e.r ->> %6$L)::%7$s as key, min(e.n) as n,
                                   case count(*) when 1 then (array_agg(e.r))[1]
                                        else (select jsonb_object_agg(f.key, f.value order by u.n)
                                                from unnest(array_agg(e.r order by e.n)) with ordinality u(r, n), jsonb_each(u.r) f)
                                   end as given
                              from jsonb_array_elements(rows) with ordinality e(r, n)
                             group by 1) g
                      left join %2$I old on old.%8$I = g.key
                     offset 0) x, lateral (select (x.new).*) t
             order by x.n
            on conflict (%8$I) do update set %4$s
        $body$
    $f$, case when to_regproc('upsert_' || view) is null then 'view_' else 'upsert_' end || view,
        view, columns, assignments, defaults, key.name, key.type, key.name);
end $do$;

do $$
declare
    view text;
begin
    foreach view in array array['sessions', 'messages', 'requests', 'offers', 'providers', 'bookings', 'contents',
                                'playback_sessions'] loop
        if to_regclass(view) is not null then
            call make_view(view);
        end if;
    end loop;
end $$;
