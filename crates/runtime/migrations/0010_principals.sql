-- A send and a run carry for whom their entity acts: `{"user_id": …, "scopes": null | […]}`. Null: it spoke in its own
-- right, as all did in the releases before, whose nodes may still write rows.

alter table outbox add column principal text;

-- `commit_batch` with one more parameter. It is the one of 0001 but for two lines, and stands beside it: nodes of the
-- release before call that.
do $$
declare
    old text := pg_get_functiondef('commit_batch'::regproc);
    new text;
begin
    new := replace(old, 'o_body text[], ', 'o_body text[], o_principal text[], ');
    if new = old then
        raise exception 'commit_batch has no parameter o_body';
    end if;
    old := new;
    new := replace(old, 'position, target_kind, target_key, body, due_at)', 'position, target_kind, target_key, body, principal, due_at)');
    new := replace(new, 'u.target_key, u.body, p_at', 'u.target_key, u.body, u.principal, p_at');
    new := replace(new,
        'unnest(o_item, o_id, o_position, o_target_kind, o_target_key, o_body) u(item, id, position, target_kind, target_key, body)',
        'unnest(o_item, o_id, o_position, o_target_kind, o_target_key, o_body, o_principal) u(item, id, position, target_kind, target_key, body, principal)');
    if length(new) - length(old) <> length(', principal') + length(', u.principal') + length(', o_principal') + length(', principal') then
        raise exception 'commit_batch does not write the outbox as expected';
    end if;
    execute new;
end $$;
