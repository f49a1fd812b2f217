import { compareStamps, type Stamp, type Time } from './clock.js';

export type Change =
  | { operation_type: 'WatchlistAdd'; payload: { content_id: string; tag: string } }
  | { operation_type: 'WatchlistRemove'; payload: { content_id: string; tags: string[] } }
  | { operation_type: 'PlaybackUpdate'; payload: { content_id: string } & Playback }
  | { operation_type: 'CounterUpdate'; payload: { content_id: string; count: number } }
  | { operation_type: 'Nothing'; payload: Record<string, never> };

export type Operation = Change & { sequence: number; timestamp: Time; operation_id?: string };

export interface Playback {
  position_ms: number;
  duration_ms: number | null;
}

interface Written {
  stamp: Stamp;
  value: Playback;
}

interface Register {
  wins: Written;
  beaten: Written | null;
}

interface Added {
  tag: string;
  stamp: Stamp;
}

interface Removed {
  at: number;
  stamp: Stamp;
}

/** The form in which replicas are kept, and compared with the server's. */
export interface ReplicaData {
  watchlist: { live: Record<string, Added[]>; additions: number; removed: Record<string, Record<string, Removed>> };
  positions: Record<string, Register>;
  counters: Record<string, { shares: Record<string, number> }>;
  shares: number;
}

const compareText = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);

function compareWritten(a: Written, b: Written): number {
  return (
    compareStamps(a.stamp, b.stamp) ||
    a.value.position_ms - b.value.position_ms ||
    (a.value.duration_ms ?? -1) - (b.value.duration_ms ?? -1)
  );
}

/**
 * The state that operations add up to: the same in whatever order they come, and however often. It mirrors the server's
 * (`src/systems/devices/domain/replica.rs`), and both are tested with `test/sync-vectors.json`.
 */
export class Replica {
  readonly #live = new Map<string, Added[]>();
  readonly #removed = new Map<string, Map<string, Removed>>();
  readonly #positions = new Map<string, Register>();
  readonly #counters = new Map<string, Map<string, number>>();

  /** `at`: where the operation is in the log. */
  apply(device: string, operation: Change & { timestamp: Time }, at: number): void {
    const stamp = { time: operation.timestamp, device };
    switch (operation.operation_type) {
      case 'WatchlistAdd':
        return this.#add(operation.payload.content_id, { tag: operation.payload.tag, stamp });
      case 'WatchlistRemove':
        for (const tag of operation.payload.tags) this.#remove(operation.payload.content_id, tag, { at, stamp });
        return;
      case 'PlaybackUpdate': {
        const { content_id, position_ms, duration_ms } = operation.payload;
        return this.#write(content_id, { stamp, value: { position_ms, duration_ms: duration_ms ?? null } });
      }
      case 'CounterUpdate': {
        const { content_id, count } = operation.payload;
        const shares = this.#counters.get(content_id) ?? new Map<string, number>();
        this.#counters.set(content_id, shares);
        shares.set(device, Math.max(count, shares.get(device) ?? 0));
      }
    }
  }

  #add(item: string, added: Added): void {
    if (this.#removed.get(item)?.has(added.tag)) return;
    const live = this.#live.get(item) ?? [];
    this.#live.set(item, live);
    const known = live.find(({ tag }) => tag === added.tag);
    if (!known) {
      live.push(added);
      live.sort((a, b) => compareText(a.tag, b.tag));
    } else if (compareStamps(known.stamp, added.stamp) < 0) {
      known.stamp = added.stamp;
    }
  }

  #remove(item: string, tag: string, removed: Removed): void {
    const live = this.#live.get(item)?.filter((added) => added.tag !== tag);
    if (live?.length) this.#live.set(item, live);
    else this.#live.delete(item);
    const tags = this.#removed.get(item) ?? new Map<string, Removed>();
    this.#removed.set(item, tags);
    const known = tags.get(tag);
    const later = !known || removed.at - known.at || compareStamps(removed.stamp, known.stamp);
    if (later === true || later > 0) tags.set(tag, removed);
  }

  #write(item: string, written: Written): void {
    const register = this.#positions.get(item);
    if (!register) {
      this.#positions.set(item, { wins: written, beaten: null });
    } else if (compareWritten(written, register.wins) > 0) {
      [register.beaten, register.wins] = [register.wins, written];
    } else if (
      compareWritten(written, register.wins) < 0 &&
      (!register.beaten || compareWritten(written, register.beaten) > 0)
    ) {
      register.beaten = written;
    }
  }

  /** No addition can come any more that was removed up to here. */
  forgetRemoved(through: number): void {
    for (const [item, tags] of this.#removed) {
      for (const [tag, { at }] of tags) if (at <= through) tags.delete(tag);
      if (tags.size === 0) this.#removed.delete(item);
    }
  }

  get watchlist(): string[] {
    return [...this.#live.keys()].sort(compareText);
  }

  tags(item: string): string[] {
    return (this.#live.get(item) ?? []).map(({ tag }) => tag);
  }

  position(item: string): (Playback & Stamp) | undefined {
    const wins = this.#positions.get(item)?.wins;
    return wins && { ...wins.value, ...wins.stamp };
  }

  count(item: string): number {
    return [...(this.#counters.get(item)?.values() ?? [])].reduce((sum, share) => sum + share, 0);
  }

  share(item: string, device: string): number {
    return this.#counters.get(item)?.get(device) ?? 0;
  }

  toJSON(): ReplicaData {
    const sorted = <T, U>(map: Map<string, T>, form: (value: T) => U): Record<string, U> =>
      Object.fromEntries([...map].sort(([a], [b]) => compareText(a, b)).map(([key, value]) => [key, form(value)]));
    const same = <T>(value: T): T => structuredClone(value);
    return {
      watchlist: {
        live: sorted(this.#live, same),
        additions: [...this.#live.values()].reduce((sum, live) => sum + live.length, 0),
        removed: sorted(this.#removed, (tags) => sorted(tags, same)),
      },
      positions: sorted(this.#positions, same),
      counters: sorted(this.#counters, (shares) => ({ shares: sorted(shares, same) })),
      shares: [...this.#counters.values()].reduce((sum, shares) => sum + shares.size, 0),
    };
  }

  static from(data: ReplicaData): Replica {
    const replica = new Replica();
    const { watchlist, positions, counters } = structuredClone(data);
    for (const [item, live] of Object.entries(watchlist.live)) replica.#live.set(item, live);
    for (const [item, tags] of Object.entries(watchlist.removed)) replica.#removed.set(item, new Map(Object.entries(tags)));
    for (const [item, register] of Object.entries(positions)) replica.#positions.set(item, register);
    for (const [item, { shares }] of Object.entries(counters)) {
      replica.#counters.set(item, new Map(Object.entries(shares)));
    }
    return replica;
  }
}
