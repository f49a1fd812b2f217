-- When the process of a node was started, in ticks since its host did: with it a pid that is another process's by now is
-- told from the node's own. 0: not known.
alter table nodes add column process_start bigint not null default 0;
-- It left in order, and was not declared dead: `proxie cluster status` shows it for a while.
alter table nodes add column drained boolean not null default false;
