-- When what concerns people is sealed: nodes of releases without a vault cannot read it, so it begins when the last of
-- them has been gone for as long as somebody may want to go back to them, and ends when one comes.

-- The node reads what is sealed, and lets it be written. False where it does not say, as the releases before this one.
alter table nodes add column seals boolean not null default false;

create table sealing (
    one         boolean primary key default true check (one),
    -- Since when every living node does. -infinity: ever since there are nodes, or an operator says so. Null: one did not
    -- when it came, and no node has looked since.
    since       timestamptz,
    -- Everything that was written since is sealed. -infinity: everything that ever was. Null: it is not sealed now.
    began       timestamptz
);
-- What is sealed already stays so. A store that was never used has nothing in the plain.
insert into sealing (since, began)
select case when known.fresh or known.sealed then '-infinity'::timestamptz end,
       case when known.fresh then '-infinity'::timestamptz when known.sealed then now() end
  from (select not is_called as fresh, exists (select from vault_keys) as sealed from incarnations) known;

-- In the transaction in which the node comes: also one that nobody has seen before it left starts the time anew.
create function stop_sealing() returns trigger language plpgsql as $$
begin
    update sealing set since = null, began = null;
    return null;
end $$;
create trigger nodes_stop_sealing after insert on nodes for each row when (not new.seals) execute function stop_sealing();
