import type { Proxie } from '../client.js';
import { ProxieError } from '../error.js';
import type { Capabilities, DeviceType, Position, ServerEvents, SyncOperation } from '../events.js';
import { ulids } from '../ulid.js';
import { later, tick, toTime, type Stamp } from './clock.js';
import { Replica, type Change, type Operation, type Playback } from './replica.js';
import { memoryStore, type Kept, type Store } from './store.js';

export interface DeviceOptions {
  name: string;
  type: DeviceType;
  capabilities?: Capabilities;
  pushToken?: string;
  store?: Store;
  /** Milliseconds since 1970. */
  now?: () => number;
}

/** A remote command from another device of the same person. */
export interface RemoteCommand {
  action: string;
  position_ms?: number;
  command_id: string;
  from_device_id?: string | null;
  /** What the device was playing then. */
  playback_session_id?: string | null;
}

/** A link to open: playback was started on this device. */
export type PlaybackStart = ServerEvents['playback:start'];

interface Delta {
  device_id: string;
  operations: Operation[];
  stable: number;
}

interface Standing {
  sequence: number;
  position: Position;
  stable: number;
  must_resync: boolean;
  restamped?: { sequence: number; time: string }[];
  refused?: { sequence: number; reason: string }[];
}

interface Listeners {
  change: () => void;
  command: (command: RemoteCommand) => void;
  start: (start: PlaybackStart) => void;
  /** An error that retrying cannot fix: the device was removed, or there is no room. */
  error: (error: unknown) => void;
}

interface Waiting {
  operation: Operation;
  seen: number;
  /** On this device's disk: only then it may be sent, as a number that was sent is never given again. */
  saved: boolean;
  /** It is in the log, up to here. */
  acknowledged?: number;
}

const MAX_OPERATIONS = 500;
/** A frame has 64 KiB. */
const MAX_BYTES = 48_000;
/** Of one removal. */
const MAX_TAGS = 64;
const SEEN_MS = 10_000;
const RETRY_MS = 1_000;

/** Throws for operations that the server would refuse: they must not get into the queue. */
function checked(change: Change): Change {
  const { payload } = change;
  if ('content_id' in payload && !/^[!-~]{1,128}$/.test(payload.content_id)) {
    throw new RangeError('a content id has 1 to 128 visible ASCII characters');
  }
  const numbers = 'position_ms' in payload ? [payload.position_ms, payload.duration_ms ?? 0] : 'count' in payload ? [payload.count] : [];
  if (!numbers.every((number) => Number.isSafeInteger(number) && number >= 0)) {
    throw new RangeError('positions, durations and counts are whole, and 0 or more');
  }
  return change;
}

/** Which operations of a batch cannot be read. */
function unreadable(error: unknown): number[] {
  if (!(error instanceof ProxieError) || error.code !== 'bad_request') return [];
  const places = (error.errors ?? []).map(({ pointer }) => /^\/operations\/(\d+)/.exec(pointer)?.[1]);
  return places.filter((place) => place !== undefined).map(Number);
}

/**
 * This device among those of its person. It reads and writes at once, also without a connection: an operation is on disk
 * first, then sent, and kept until it has come back through the log. See docs/sync.md.
 */
export class Device {
  readonly id: string;
  readonly #proxie: Proxie;
  readonly #options: DeviceOptions;
  readonly #store: Store;
  readonly #mint = ulids();
  readonly #ends: (() => void)[] = [];
  readonly #listeners: { [E in keyof Listeners]: Set<Listeners[E]> } = {
    change: new Set(),
    command: new Set(),
    start: new Set(),
    error: new Set(),
  };
  #sequence: number;
  #clock: string;
  #queue: Waiting[];
  #confirmed: Replica;
  #position: Position | undefined;
  #shown: Replica | undefined;
  #user: string | undefined;
  #working: Promise<void> | undefined;
  #again = false;
  #listening = false;
  #subscribed = false;
  #behind = false;
  #told = 0;
  #saving: Promise<void> = Promise.resolve();
  #dirty = false;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #closed = false;

  private constructor(proxie: Proxie, options: DeviceOptions, store: Store, kept: Kept) {
    this.#proxie = proxie;
    this.#options = options;
    this.#store = store;
    this.id = kept.id;
    this.#sequence = kept.sequence;
    this.#clock = kept.clock;
    this.#queue = kept.queue.map(({ operation, seen }) => ({ operation, seen, saved: true }));
    this.#confirmed = Replica.from(kept.confirmed);
    this.#position = kept.position ?? undefined;
    this.#ends.push(
      proxie.on('sync:delta', (data, { topic, offset }) => {
        if (topic === `sync:${this.#user}`) this.#heard(offset ?? 0, data as unknown as Delta);
      }),
      proxie.on('device:command', (data, { topic }) => {
        if (topic === `device:${this.id}` && !this.#isOver(data.expires_at)) this.#tell('command', data as RemoteCommand);
      }),
      proxie.on('playback:start', (data, { topic }) => {
        if (topic === `device:${this.id}` && !this.#isOver(data.expires_at)) this.#tell('start', data);
      }),
      proxie.on('gap', ({ topic }) => {
        if (topic !== `sync:${this.#user}`) return;
        this.#behind = true;
        this.#work();
      }),
      proxie.on('state', ({ state }) => {
        if (state === 'open') this.#work();
        // Whoever comes back has to say again who speaks.
        else this.#listening = false;
      }),
    );
    this.#work();
  }

  /** Opens the device from its store, or starts with an empty one. Needs no connection. */
  static async open(proxie: Proxie, options: DeviceOptions): Promise<Device> {
    const store = options.store ?? memoryStore();
    let kept = await store.load();
    if (!kept) {
      kept = { id: `dev_${ulids()()}`, sequence: 0, clock: '0', queue: [], confirmed: new Replica().toJSON(), position: null };
      await store.save(kept);
    }
    return new Device(proxie, options, store, kept);
  }

  on<E extends keyof Listeners>(event: E, listener: Listeners[E]): () => void {
    this.#listeners[event].add(listener);
    return () => this.#listeners[event].delete(listener);
  }

  #tell<E extends keyof Listeners>(event: E, ...data: Parameters<Listeners[E]>): void {
    for (const listener of [...this.#listeners[event]]) (listener as (...data: Parameters<Listeners[E]>) => void)(...data);
  }

  #isOver(expiresAt: string): boolean {
    return Date.parse(expiresAt) < (this.#options.now ?? Date.now)();
  }

  // ---- What it shows --------------------------------------------------------------------------------------------

  /** The state of the log as heard, with the device's own newer operations applied. */
  get #state(): Replica {
    if (!this.#shown) {
      this.#shown = Replica.from(this.#confirmed.toJSON());
      for (const { operation } of this.#queue) this.#shown.apply(this.id, operation, Number.MAX_SAFE_INTEGER);
    }
    return this.#shown;
  }

  get watchlist(): string[] {
    return this.#state.watchlist;
  }

  position(contentId: string): (Playback & Stamp) | undefined {
    return this.#state.position(contentId);
  }

  count(contentId: string): number {
    return this.#state.count(contentId);
  }

  /** Operations that the server has not acknowledged. */
  get pending(): number {
    return this.#queue.filter(({ acknowledged }) => acknowledged === undefined).length;
  }

  // ---- What it writes -------------------------------------------------------------------------------------------

  add(contentId: string): Promise<void> {
    return this.#write({ operation_type: 'WatchlistAdd', payload: { content_id: contentId, tag: this.#mint() } });
  }

  /** Removes the additions that this device knows of; one that it has not heard of stays. */
  async remove(contentId: string): Promise<void> {
    for (;;) {
      const tags = this.#state.tags(contentId).slice(0, MAX_TAGS);
      if (tags.length === 0) return;
      await this.#write({ operation_type: 'WatchlistRemove', payload: { content_id: contentId, tags } });
    }
  }

  play(contentId: string, positionMs: number, durationMs: number | null = null): Promise<void> {
    const payload = {
      content_id: contentId,
      position_ms: Math.round(positionMs),
      duration_ms: durationMs === null ? null : Math.round(durationMs),
    };
    return this.#write({ operation_type: 'PlaybackUpdate', payload });
  }

  increment(contentId: string, by = 1): Promise<void> {
    const count = this.#state.share(contentId, this.id) + by;
    return this.#write({ operation_type: 'CounterUpdate', payload: { content_id: contentId, count } });
  }

  /** Resolves when the operation is on this device's disk. */
  async #write(change: Change): Promise<void> {
    if (this.#closed) throw new Error('the device is closed');
    checked(change);
    this.#clock = tick(this.#clock, toTime((this.#options.now ?? Date.now)()));
    this.#sequence += 1;
    const operation: Operation = { sequence: this.#sequence, timestamp: this.#clock, ...change };
    this.#queue.push({ operation, seen: this.#position?.offset ?? 0, saved: false });
    this.#shown?.apply(this.id, operation, Number.MAX_SAFE_INTEGER);
    const saved = this.#save();
    this.#tell('change');
    await saved;
    this.#work();
  }

  /** Resolves when everything written so far is acknowledged; rejects when the device is closed before. */
  flushed(): Promise<void> {
    return new Promise((resolve, reject) => {
      const look = () => {
        if (this.pending === 0) resolve();
        else if (this.#closed) reject(new Error('the device is closed'));
        else return;
        ends.forEach((end) => end());
      };
      const ends = [this.on('change', look)];
      look();
    });
  }

  /** Stops listening and sending; the next `open` continues from the store. */
  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#ends.forEach((end) => end());
    this.#tell('change');
    await this.#save();
  }

  // ---- What it hears --------------------------------------------------------------------------------------------

  #heard(offset: number, delta: Delta): void {
    if (!this.#position || offset <= this.#position.offset) return;
    if (offset > this.#position.offset + 1) {
      this.#behind = true;
      return this.#work();
    }
    for (const operation of delta.operations) {
      this.#confirmed.apply(delta.device_id, operation, offset);
      this.#clock = later(this.#clock, operation.timestamp);
    }
    this.#position = { ...this.#position, offset };
    this.#confirmed.forgetRemoved(delta.stable);
    const last = delta.device_id === this.id ? delta.operations.at(-1)?.sequence : undefined;
    for (const waiting of this.#queue) if (waiting.operation.sequence <= (last ?? 0)) waiting.acknowledged ??= offset;
    this.#settle();
    this.#later(SEEN_MS);
  }

  /** What is in the log up to where this device has heard it need not be kept besides. */
  #settle(): void {
    const heard = this.#position?.offset ?? 0;
    this.#queue = this.#queue.filter(({ acknowledged }) => acknowledged === undefined || acknowledged > heard);
    this.#shown = undefined;
    void this.#save();
    this.#tell('change');
  }

  #later(ms: number): void {
    if (this.#timer !== undefined || this.#closed) return;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#work();
    }, ms);
    (this.#timer as { unref?: () => void }).unref?.();
  }

  #save(): Promise<void> {
    if (this.#dirty) return this.#saving;
    this.#dirty = true;
    const saving = this.#saving
      .catch(() => undefined)
      .then(() => {
        this.#dirty = false;
        const queue = [...this.#queue];
        const saved = this.#store.save({
          id: this.id,
          sequence: this.#sequence,
          clock: this.#clock,
          queue: queue.map(({ operation, seen }) => ({ operation, seen })),
          confirmed: this.#confirmed.toJSON(),
          position: this.#position ?? null,
        });
        return saved.then(() => queue.forEach((waiting) => (waiting.saved = true)));
      });
    this.#saving = saving;
    saving.catch((error: unknown) => this.#tell('error', error));
    return saving;
  }

  // ---- The conversation -----------------------------------------------------------------------------------------

  /** Runs one step after the other; requests that come meanwhile are handled at the end. */
  #work(): void {
    if (this.#working) {
      this.#again = true;
      return;
    }
    this.#again = false;
    if (this.#closed || this.#proxie.state !== 'open') return;
    this.#working = this.#converse()
      .catch((error: unknown) => {
        // The next connection begins anew.
        if (this.#closed || this.#proxie.state !== 'open') return;
        const retryable = !(error instanceof ProxieError) || error.retryable;
        if (!retryable) this.#tell('error', error);
        this.#later(retryable ? RETRY_MS : SEEN_MS);
      })
      .finally(() => {
        this.#working = undefined;
        if (this.#again) this.#work();
      });
  }

  async #converse(): Promise<void> {
    if (!this.#listening) await this.#listen();
    if (this.#behind) await this.#read();
    for (;;) {
      const batch: Operation[] = [];
      let bytes = 0;
      const waiting = this.#queue.filter(({ acknowledged }) => acknowledged === undefined);
      for (const { operation, saved } of waiting) {
        if (!saved) break;
        bytes += JSON.stringify(operation).length + 1;
        if (batch.length === MAX_OPERATIONS || (batch.length > 0 && bytes > MAX_BYTES)) break;
        batch.push(operation);
      }
      const seen = waiting[batch.length]?.seen ?? this.#position?.offset ?? 0;
      const position = this.#position && { ...this.#position, offset: seen };
      if (this.#closed || (batch.length === 0 && (seen <= this.#told || !position))) return;
      const data = { device_id: this.id, operations: batch as unknown as SyncOperation[], ...(position && { position }) };
      try {
        this.#stands(await this.#proxie.send('sync:update', data));
      } catch (error) {
        // What can never be sent must not be in the way of what comes after it: its number is used up.
        const wrong = unreadable(error).flatMap((place) => waiting[place] ?? []);
        if (wrong.length === 0) throw error;
        for (const each of wrong) {
          const { sequence, timestamp } = each.operation;
          each.operation = { sequence, timestamp, operation_type: 'Nothing', payload: {} };
        }
        this.#tell('error', error);
        this.#shown = undefined;
        await this.#save();
        continue;
      }
      this.#told = Math.max(this.#told, seen);
      if (this.#behind) await this.#read();
    }
  }

  /** Asks the server which of this device's operations it has. */
  #stands(standing: Standing): void {
    if (standing.sequence > this.#sequence) {
      // This disk has forgotten what was sent from it. What is on it now was written after that, and needs other numbers.
      this.#sequence = standing.sequence;
      for (const waiting of this.#queue.filter(({ acknowledged }) => acknowledged === undefined)) {
        this.#sequence += 1;
        waiting.operation = { ...waiting.operation, sequence: this.#sequence };
        waiting.saved = false;
      }
      void this.#save().then(() => this.#work(), () => undefined);
    }
    for (const waiting of this.#queue) {
      if (waiting.operation.sequence <= standing.sequence) waiting.acknowledged ??= standing.position.offset;
    }
    for (const { sequence, reason } of standing.refused ?? []) {
      this.#tell('error', new ProxieError({ code: 'rejected', message: `operation ${sequence} was refused`, reason, retryable: false }));
    }
    const restamped = standing.restamped?.at(-1)?.time;
    // The clock is ahead, and not believed; what was heard is.
    if (restamped !== undefined) this.#clock = restamped;
    this.#confirmed.forgetRemoved(Math.min(standing.stable, this.#position?.offset ?? 0));
    this.#behind ||= standing.must_resync;
    this.#settle();
  }

  async #listen(): Promise<void> {
    const { name, type, capabilities, pushToken } = this.#options;
    const device = await this.#proxie.send('device:register', {
      device_id: this.id,
      name,
      device_type: type,
      ...(capabilities && { capabilities }),
      ...(pushToken !== undefined && { push_token: pushToken }),
    });
    const standing = device.sync as unknown as Standing;
    this.#user = this.#proxie.userId;
    await this.#proxie.subscribe(`device:${this.id}`);
    await this.#proxie.send('device:connect', { device_id: this.id });
    if (!this.#position) {
      await this.#read();
    } else if (!this.#subscribed) {
      await this.#subscribe(this.#position);
    }
    this.#stands(standing);
    this.#listening = true;
  }

  /** Reads the whole state, and continues from the position of its first page. */
  async #read(): Promise<void> {
    const replica = new Replica();
    let position: Position | undefined;
    let after: Record<string, unknown> | null = null;
    do {
      const page = (await this.#proxie.send('sync:read', after ? { after } : {})) as unknown as {
        operations: (Change & { timestamp: string; device_id: string })[];
        next: Record<string, unknown> | null;
        position: Position;
      };
      position ??= page.position;
      for (const operation of page.operations) {
        replica.apply(operation.device_id, operation, position.offset);
        this.#clock = later(this.#clock, operation.timestamp);
      }
      after = page.next;
    } while (after);
    [this.#confirmed, this.#position] = [replica, position];
    this.#behind = false;
    this.#settle();
    await this.#subscribe(position);
  }

  /** From then on the client itself keeps the subscription, over every reconnect. */
  async #subscribe(position: Position): Promise<void> {
    const topic = `sync:${this.#user}`;
    // An earlier device of this client may have been further, or not as far.
    if (this.#proxie.positions[topic]) await this.#proxie.unsubscribe(topic);
    const { recovered } = await this.#proxie.subscribe(topic, position);
    this.#subscribed = true;
    this.#behind ||= !recovered;
  }
}
