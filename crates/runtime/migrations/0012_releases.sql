-- What nodes of two releases have to know of each other. A release before leaves both columns empty.

-- The kinds of entities that a node knows. Null: it does not say, as the releases before this one.
alter table nodes add column kinds text[];

-- How the release that parked the entity knew its kind: for one that knows it otherwise the row means nothing.
alter table parked add column known_as text;
