import { backoff, patience, type BackoffOptions } from './backoff.js';
import { ProxieError, RETRYABLE, wireError } from './error.js';
import { EventStreamTransport, type Cursor } from './event-stream.js';
import {
  CLOSE_CODES,
  REPEATABLE,
  type ClientEvent,
  type ClientEvents,
  type ErrorCode,
  type Position,
  type ServerEvents,
  type WireError,
} from './events.js';
import { Http } from './http.js';
import type { Reads } from './reads.js';
import { Session } from './session.js';
import {
  limits,
  position,
  record,
  type Closed,
  type Incoming,
  type Limits,
  type Outgoing,
  type Ready,
  type TopicOutcome,
  type Transport,
} from './transport.js';
import { ulids } from './ulid.js';
import { WebSocketTransport, type WebSocketConstructor } from './websocket.js';

export interface Options {
  /** The address of the node: `https://…` or `wss://…`. */
  url: string | URL;
  /** The token, or a function that is called at every connect and before the token expires. */
  token: string | (() => string | Promise<string>);
  /** Default `auto`: Server-Sent Events and HTTP where no WebSocket gets through. */
  transport?: 'auto' | 'websocket' | 'sse';
  /** Default: the global one. Node before 22 has none: pass that of the package `ws`. */
  WebSocket?: WebSocketConstructor;
  fetch?: typeof fetch;
  /** The `positions` of an earlier client: its topics are subscribed to again from there, and nothing is missed. */
  positions?: Record<string, Position>;
  backoff?: BackoffOptions;
  /** The time limit for the token, the socket and the answer to `auth`. Default: 10 s. */
  connectTimeoutMs?: number;
  /** The time limit of a command, waiting and retries included. Default: 30 s. */
  timeoutMs?: number;
  /** The silence that is accepted beyond the server's `ping_ms`. Default: 5 s. */
  graceMs?: number;
  /** The number of WebSockets in a row that fail to open before `auto` falls back. Default: 3. */
  fallbackAfter?: number;
  /** The most commands that wait for their answers. Default: 1000. */
  maxPending?: number;
  /** The most bytes of those commands. Default: 4 MiB. */
  maxQueueBytes?: number;
  now?: () => number;
  random?: () => number;
}

export type Command = Exclude<ClientEvent, 'auth' | 'auth:refresh'>;

export interface SendOptions {
  /** The command's id, 1 to 64 visible ASCII characters. Default: a fresh ULID. */
  id?: string;
  timeoutMs?: number;
  signal?: AbortSignal;
}

export interface ReadOptions {
  timeoutMs?: number;
  signal?: AbortSignal;
}

/** The arguments of `get` besides the path: none where no parameter is required. */
export type Asked<P extends keyof Reads> =
  object extends Reads[P]['query']
    ? [query?: Reads[P]['query'], options?: ReadOptions]
    : [query: Reads[P]['query'], options?: ReadOptions];

export type State = 'connecting' | 'open' | 'waiting' | 'closed';

export interface StateChange {
  state: State;
  transport: 'websocket' | 'sse' | undefined;
  /** The reason why the connection ended: the code of the server's reason, or the client's own. */
  reason?: string;
  code?: number;
  /** When a `waiting` client tries again, in the milliseconds of `now`. */
  nextAttemptAt?: number;
}

/** Publications of this topic were missed and cannot be replayed: fetch what you show again. */
export interface Gap {
  topic: string;
  position: Position;
}

export interface Failure {
  error: unknown;
  /** The subscription that ended with it. */
  topic?: string;
}

/** The metadata of an event. */
export interface Meta {
  event: string;
  topic: string | undefined;
  /** Durable events have one. */
  offset: number | undefined;
  /** The publisher, on application topics. */
  from: string | undefined;
}

export interface ClientOwnEvents {
  state: StateChange;
  gap: Gap;
  error: Failure;
}

export type Events = ServerEvents & ClientOwnEvents & Record<`app:${string}`, unknown>;
export type Listener<T> = (data: T, meta: Meta) => void;

interface Pending {
  readonly id: string;
  readonly event: Command;
  readonly data: Record<string, unknown>;
  readonly text: string;
  readonly deadline: number;
  /** `later`: the server asked to wait. */
  phase: 'waiting' | 'sent' | 'later';
  /** Whether it has been sent, on whatever connection. */
  written: boolean;
  attempts: number;
  /** The server was told a position of the topic that this subscribes to. */
  covered: boolean;
  readonly timers: Set<ReturnType<typeof setTimeout>>;
  /** Restores a subscription by itself; the next connection does that anew. */
  readonly internal: boolean;
  readonly settle: (outcome: { data: Record<string, unknown> } | { error: unknown }) => void;
}

/** `epoch` is not known while a publication was faster than the answer to its subscription. */
interface Topic {
  epoch: string | undefined;
  offset: number;
}

/** Positions of one `auth`: far below the 64 KiB a frame may have. The others are subscribed to one by one. */
const AUTH_POSITION_BYTES = 32_768;
/** The shortest time between two tokens: one that expires at once must not make the client ask in a loop. */
const REFRESH_PAUSE_MS = 5_000;
/** The time after which a WebSocket is tried again: the network may have changed. */
const WEBSOCKET_AGAIN_MS = 600_000;
/** A reserve for what the server counts and the client does not see: pings, replays. */
const IN_FLIGHT_RESERVE = 8;

const encoder = new TextEncoder();

export class Proxie {
  readonly #options: Options;
  readonly #http: Http;
  readonly #backoff: Required<BackoffOptions>;
  readonly #now: () => number;
  readonly #random: () => number;
  readonly #nextId: () => string;
  readonly #listeners = new Map<string, Set<Listener<never>>>();
  /** In the order of `send`; a Map keeps it. */
  readonly #pending = new Map<string, Pending>();
  #waiting: Pending[] = [];
  #inFlight = 0;
  #pendingBytes = 0;
  readonly #topics = new Map<string, Topic>();
  #limits: Limits = limits(undefined);
  /** Frames that may be sent now: the server closes on clients that send faster than this. */
  #tokens = 0;
  #tokensAt = 0;
  #flushTimer: ReturnType<typeof setTimeout> | undefined;

  #state: State = 'closed';
  #transport: Transport | undefined;
  #cursor: Cursor | undefined;
  #userId: string | undefined;
  #attempt = 0;
  #openedAt = 0;
  #retryTimer: ReturnType<typeof setTimeout> | undefined;
  /** Before that even a user who comes back online has to wait. */
  #notBefore = 0;
  #refreshTimer: ReturnType<typeof setTimeout> | undefined;
  #refreshedAt = Number.NEGATIVE_INFINITY;
  #unopened = 0;
  /** The reason why the last connection ended. */
  #lostBy = 'connecting';
  #webSocketTriedAt = 0;

  constructor(options: Options) {
    const url = new URL(options.url);
    const secure = { 'http:': false, 'ws:': false, 'https:': true, 'wss:': true }[url.protocol];
    if (secure === undefined) throw new TypeError(`${url.protocol} is no address of a node: use https: or wss:`);
    const base = new URL(`${secure ? 'https' : 'http'}://${url.host}${url.pathname.replace(/\/(v1\/ws)?$/, '')}`);
    this.#http = new Http(`${base.origin}${base.pathname.replace(/\/$/, '')}`, options.fetch, this.#getToken);
    if (options.transport === 'websocket' && !options.WebSocket && !globalThis.WebSocket) {
      throw new TypeError('there is no WebSocket here: pass one, such as that of the package ws');
    }
    this.#options = options;
    this.#backoff = { baseMs: 250, maxMs: 15_000, stableMs: 5_000, ...options.backoff };
    this.#now = options.now ?? Date.now;
    this.#random = options.random ?? Math.random;
    this.#nextId = ulids(this.#now);
    for (const [topic, { epoch, offset }] of Object.entries(options.positions ?? {})) {
      this.#topics.set(topic, { epoch, offset });
    }
  }

  get state(): State {
    return this.#state;
  }

  /** Known once a connection was open. */
  get userId(): string | undefined {
    return this.#userId;
  }

  /** This client's positions in its topics: store them to continue from here with another client. */
  get positions(): Record<string, Position> {
    return Object.fromEntries(this.#known());
  }

  /** Starts connecting, also after the client was closed. */
  connect(): void {
    if (this.#state !== 'closed') return;
    globalThis.addEventListener?.('online', this.#wake);
    globalThis.document?.addEventListener('visibilitychange', this.#wake);
    this.#attempt = 0;
    this.#unopened = 0;
    this.#open();
  }

  /** Ends the connection. Commands that are not answered are rejected; some may have been done. */
  close(): void {
    if (this.#state === 'closed') return;
    this.#end({ state: 'closed', transport: undefined, reason: 'closed' }, 'unavailable', 'the client was closed');
  }

  on<E extends keyof Events & string>(event: E, listener: Listener<Events[E]>): () => void {
    const listeners = this.#listeners.get(event) ?? new Set();
    this.#listeners.set(event, listeners);
    // A listener that is added twice is called twice, and each has its own end.
    const added: Listener<never> = (data, meta) => listener(data, meta);
    listeners.add(added);
    return () => {
      listeners.delete(added);
      if (listeners.size === 0 && this.#listeners.get(event) === listeners) this.#listeners.delete(event);
    };
  }

  /** Sends a command, now or when there is a connection, and resolves with the data of its reply. */
  send<E extends Command>(
    event: E,
    data: ClientEvents[E]['data'],
    options: SendOptions = {},
  ): Promise<ClientEvents[E]['reply']> {
    return new Promise((resolve, reject) => {
      this.#send(event, data, options, (outcome) => {
        if ('error' in outcome) reject(outcome.error);
        else resolve(outcome.data as ClientEvents[E]['reply']);
      });
    });
  }

  /** Opens a new session, or with `session_id` an old one, and subscribes to it. */
  async openSession(data: ClientEvents['session:open']['data'] = {}, options?: SendOptions): Promise<Session> {
    const { session_id } = await this.send('session:open', data, options);
    return new Session(this, session_id);
  }

  /** Subscribes to a session that exists, from a position or from now; where it stands if it is subscribed to. */
  async session(id: string, from?: Position, options?: SendOptions): Promise<Session> {
    await this.send('session:resume', from ? { session_id: id, position: from } : { session_id: id }, options);
    return new Session(this, id);
  }

  /** `recovered: false`: what was missed since the position cannot be had; `gap` is told too. */
  subscribe(
    topic: string,
    from?: Position,
    options?: SendOptions,
  ): Promise<ClientEvents['topic:subscribe']['reply']> {
    return this.send('topic:subscribe', from ? { topic, position: from } : { topic }, options);
  }

  async unsubscribe(topic: string, options?: SendOptions): Promise<void> {
    await this.send('topic:unsubscribe', { topic }, options);
  }

  /** Publishes to an application topic, and resolves with the offset if that is durable. It is never retried, since others
   * could not tell a repetition. */
  publish(
    topic: string,
    event: `app:${string}`,
    data: unknown,
    options?: SendOptions,
  ): Promise<ClientEvents['topic:publish']['reply']> {
    return this.send('topic:publish', { topic, event, data }, options);
  }

  /**
   * Reads over HTTP, also without a connection: `get('/v1/requests/{id}/offers', { id, limit: 100 })`. It is tried once,
   * and rejects with a `ProxieError`.
   */
  async get<P extends keyof Reads>(path: P, ...[query, options]: Asked<P>): Promise<Reads[P]['answer']> {
    const { timeoutMs = this.#options.timeoutMs ?? 30_000, signal } = options ?? {};
    return (await this.#http.get(path, { ...query }, timeoutMs, signal)) as Reads[P]['answer'];
  }

  // ---- Commands -------------------------------------------------------------------------------------------------

  #send(event: Command, data: object, options: SendOptions, settle: Pending['settle'], internal = false): void {
    const refuse = (code: ErrorCode, message: string, retryable = false) =>
      settle({ error: new ProxieError({ code, message, retryable }) });
    const { id = this.#nextId(), timeoutMs = this.#options.timeoutMs ?? 30_000, signal } = options;
    if (signal?.aborted) return settle({ error: signal.reason });
    if (this.#state === 'closed') return refuse('unavailable', 'the client is closed: call connect');
    // The server could not answer such a frame and would close the connection.
    if (!/^[\x21-\x7e]{1,64}$/.test(id)) return refuse('bad_request', 'an id has 1 to 64 visible ASCII characters');
    if (this.#pending.has(id)) return refuse('id_reused', 'a command with this id is under way');
    let text: string;
    try {
      text = JSON.stringify({ id, event, data });
    } catch (error) {
      return settle({ error });
    }
    const { maxPending = 1_000, maxQueueBytes = 4_194_304 } = this.#options;
    const full = this.#pending.size >= maxPending || this.#pendingBytes + text.length > maxQueueBytes;
    // Subscriptions that are restored are as many as there are topics.
    if (full && !internal) return refuse('overloaded', 'too many commands are waiting for their replies', true);

    const timers: Pending['timers'] = new Set();
    const command: Pending = {
      id,
      event,
      data: data as Record<string, unknown>,
      text,
      deadline: this.#now() + timeoutMs,
      phase: 'waiting',
      written: false,
      attempts: 0,
      covered: false,
      timers,
      internal,
      settle: (outcome) => {
        signal?.removeEventListener('abort', abort);
        settle(outcome);
      },
    };
    const abort = () => this.#settle(command, { error: signal?.reason });
    signal?.addEventListener('abort', abort, { once: true });
    const expire = () => {
      const unreached = this.#state === 'open' ? '' : `, ${this.#http.base} is not reached (${this.#lostBy})`;
      const done = command.written ? '; it may have been done' : '';
      const message = `no reply to ${event} within ${timeoutMs} ms${unreached}${done}`;
      this.#fail(command, { code: 'deadline_exceeded', message, retryable: true });
    };
    timers.add(setTimeout(expire, timeoutMs));
    this.#pending.set(id, command);
    this.#pendingBytes += text.length;
    this.#waiting.push(command);
    this.#flush();
  }

  #settle(command: Pending, outcome: Parameters<Pending['settle']>[0]): void {
    if (!this.#pending.delete(command.id)) return;
    this.#pendingBytes -= command.text.length;
    if (command.phase === 'sent') this.#inFlight -= 1;
    else if (command.phase === 'waiting') this.#waiting = this.#waiting.filter((other) => other !== command);
    for (const timer of command.timers) clearTimeout(timer);
    command.settle(outcome);
    this.#flush();
  }

  #fail(command: Pending, error: WireError): void {
    this.#settle(command, { error: new ProxieError(error) });
  }

  #flush(): void {
    const transport = this.#transport;
    if (this.#state !== 'open' || !transport) return;
    const window = Math.max(1, this.#limits.inFlight - IN_FLIGHT_RESERVE);
    while (this.#state === 'open' && this.#transport === transport && this.#inFlight < window) {
      const command = this.#waiting[0];
      if (command === undefined || !this.#mayWrite()) return;
      const frame = this.#frame(command);
      this.#waiting.shift();
      command.phase = 'sent';
      this.#inFlight += 1;
      // The server closes on larger frames, and would do so again and again.
      if (encoder.encode(frame.text).length > this.#limits.frameBytes) {
        const message = `a frame may have ${this.#limits.frameBytes} bytes`;
        this.#fail(command, { code: 'too_large', message, retryable: false });
      } else {
        command.written = true;
        transport.send(frame);
      }
    }
  }

  /** A subscription to a topic that is known goes on where we stand, not where we stood when it was called. */
  #frame(command: Pending): Outgoing {
    const { id, event, data, text } = command;
    const topic = this.#topicOf(event, data);
    const known = topic === undefined ? undefined : this.#topics.get(topic);
    command.covered = known?.epoch !== undefined || position(data.position) !== undefined;
    if (known?.epoch === undefined) return { id, event, data, text };
    const from = { ...data, position: { epoch: known.epoch, offset: known.offset } };
    return { id, event, data: from, text: JSON.stringify({ id, event, data: from }) };
  }

  #topicOf(event: string, data: Record<string, unknown>): string | undefined {
    if (event === 'topic:subscribe') return String(data.topic);
    if (event === 'session:resume') return `session:${String(data.session_id)}`;
    return undefined;
  }

  /** A bucket like the server's, a little smaller. */
  #mayWrite(): boolean {
    const now = this.#now();
    const rate = this.#limits.framesPerSecond * 0.8;
    const burst = Math.max(1, this.#limits.frameBurst * 0.8);
    this.#tokens = Math.min(burst, this.#tokens + (Math.max(0, now - this.#tokensAt) * rate) / 1_000);
    this.#tokensAt = now;
    if (this.#tokens >= 1) {
      this.#tokens -= 1;
      return true;
    }
    this.#flushTimer ??= setTimeout(() => {
      this.#flushTimer = undefined;
      this.#flush();
    }, Math.ceil(1_000 / Math.max(rate, 1)));
    return false;
  }

  #replied(frame: Incoming): void {
    const command = this.#pending.get(String(frame.id));
    // An answer to a command that was given up, or that waits for its next try.
    if (command?.phase !== 'sent') return;
    if (frame.ok === true) {
      const data = record(frame.data);
      this.#done(command, data);
      return this.#settle(command, { data });
    }
    const error = wireError(frame.error);
    const again = error.retryable && RETRYABLE.has(error.code) && REPEATABLE[command.event];
    // `retry_after_ms` and some more, so that those who were refused together do not come back together.
    const delay = backoff(command.attempts, this.#backoff, this.#random, error.retry_after_ms);
    if (!again || this.#now() + delay >= command.deadline) return this.#fail(command, error);
    command.attempts += 1;
    command.phase = 'later';
    this.#inFlight -= 1;
    const timer = setTimeout(() => {
      command.timers.delete(timer);
      if (command.phase !== 'later') return;
      command.phase = 'waiting';
      this.#waiting.push(command);
      this.#flush();
    }, delay);
    command.timers.add(timer);
    this.#flush();
  }

  /** Handles what a reply says about topics. */
  #done({ event, data, covered }: Pending, reply: Record<string, unknown>): void {
    const at = position(reply.position);
    const topic = this.#topicOf(event, data);
    if (topic !== undefined && at) {
      const from = this.#topics.get(topic)?.epoch === undefined ? position(data.position) : undefined;
      this.#subscribed(topic, { recovered: reply.recovered === true, position: at }, covered, from);
    } else if (event === 'session:open' && at) {
      this.#subscribed(`session:${String(reply.session_id)}`, { recovered: true, position: at }, false);
    } else if (event === 'topic:unsubscribe') {
      this.#topics.delete(String(data.topic));
    } else if (event === 'session:close' && data.end !== true) {
      this.#topics.delete(`session:${String(data.session_id)}`);
    }
  }

  // ---- Topics ---------------------------------------------------------------------------------------------------

  *#known(): Iterable<[string, Position]> {
    for (const [topic, { epoch, offset }] of this.#topics) {
      if (epoch !== undefined) yield [topic, { epoch, offset }];
    }
  }

  /**
   * A subscription has begun. `covered`: the server knew our position, if we have one; else it began from now.
   * `from`: the position that the application named.
   */
  #subscribed(topic: string, outcome: TopicOutcome, covered: boolean, from?: Position): void {
    if ('error' in outcome) {
      const { error } = outcome;
      if (error.retryable) return this.#resubscribe(topic, error.retry_after_ms ?? 1_000);
      this.#topics.delete(topic);
      return this.#emit('error', { error: new ProxieError(error), topic });
    }
    const { recovered, position: at } = outcome;
    const known = this.#topics.get(topic);
    if (known?.epoch === undefined) {
      // What is missed between `from` and the head follows; without `from` the live publications do.
      const start = recovered && from ? from : at;
      this.#topics.set(topic, { epoch: start.epoch, offset: Math.max(start.offset, known?.offset ?? 0) });
      if (!recovered) this.#emit('gap', { topic, position: at });
      return;
    }
    if (recovered && (covered || (known.epoch === at.epoch && known.offset >= at.offset))) return;
    if (recovered && !covered && known.epoch === at.epoch && this.#transport?.kind === 'websocket') {
      return this.#resubscribe(topic, 0);
    }
    this.#topics.set(topic, { ...at });
    this.#emit('gap', { topic, position: at });
  }

  #resubscribe(topic: string, delayMs: number): void {
    const transport = this.#transport;
    const settle: Pending['settle'] = (outcome) => {
      // The next connection restores it anyway.
      if (!('error' in outcome) || this.#transport !== transport || this.#state !== 'open') return;
      const { error } = outcome;
      if (error instanceof ProxieError && error.retryable) this.#resubscribe(topic, error.retryAfterMs ?? 1_000);
      else {
        this.#topics.delete(topic);
        this.#emit('error', { error, topic });
      }
    };
    if (delayMs <= 0) return this.#send('topic:subscribe', { topic }, {}, settle, true);
    setTimeout(() => {
      const wanted = this.#transport === transport && this.#state === 'open' && this.#topics.has(topic);
      if (wanted) this.#send('topic:subscribe', { topic }, {}, settle, true);
    }, delayMs * (1 + this.#random() / 2));
  }

  #received(frame: Incoming): void {
    if (typeof frame.id === 'string') return this.#replied(frame);
    if (typeof frame.event !== 'string') return;
    const meta: Meta = {
      event: frame.event,
      topic: typeof frame.topic === 'string' ? frame.topic : undefined,
      offset: typeof frame.offset === 'number' ? frame.offset : undefined,
      from: typeof frame.from === 'string' ? frame.from : undefined,
    };
    if (meta.topic !== undefined && meta.offset !== undefined && !this.#advance(meta.topic, meta.offset)) return;
    if (frame.event === 'token:expiring') this.#refresh();
    this.#emit(frame.event, frame.data, meta);
  }

  /** Whether this publication is new; false for a repeated one. */
  #advance(topic: string, offset: number): boolean {
    const known = this.#topics.get(topic);
    if (known === undefined) {
      // Replies and publications may overtake each other. The subscription's reply brings the epoch.
      if (this.#topics.size < this.#limits.subscriptions) this.#topics.set(topic, { epoch: undefined, offset });
      return true;
    }
    if (offset <= known.offset) return false;
    const hole = known.epoch !== undefined && offset > known.offset + 1;
    known.offset = offset;
    // The server promises that there is none; if there is, it must not go unseen.
    if (hole) this.#emit('gap', { topic, position: { epoch: known.epoch as string, offset } });
    return true;
  }

  #emit(event: string, data: unknown, meta?: Meta): void {
    const listeners = this.#listeners.get(event);
    if (event === 'error' && !listeners?.size) return console.error('proxie:', (data as Failure).error);
    const about = meta ?? { event, topic: undefined, offset: undefined, from: undefined };
    for (const listener of [...(listeners ?? [])]) {
      // An error of one listener must not affect the others.
      const failed = (error: unknown) => {
        if (event === 'error') console.error('proxie:', error);
        else this.#emit('error', { error });
      };
      try {
        const done: unknown = listener(data as never, about);
        if (done instanceof Promise) done.catch(failed);
      } catch (error) {
        failed(error);
      }
    }
  }

  // ---- The connection -------------------------------------------------------------------------------------------

  #enter(change: StateChange): void {
    this.#state = change.state;
    this.#emit('state', change);
  }

  readonly #getToken = async (): Promise<string> => {
    const { token } = this.#options;
    return typeof token === 'string' ? token : token();
  };

  #kind(): 'websocket' | 'sse' {
    const { transport = 'auto', fallbackAfter = 3, WebSocket } = this.#options;
    if (transport !== 'auto') return transport;
    if (!WebSocket && !globalThis.WebSocket) return 'sse';
    const again = this.#now() - this.#webSocketTriedAt >= WEBSOCKET_AGAIN_MS;
    return this.#unopened < fallbackAfter || again ? 'websocket' : 'sse';
  }

  #open(): void {
    clearTimeout(this.#retryTimer);
    const kind = this.#kind();
    // Callbacks of a transport that was given up are not ours any more. None comes before the constructor is left.
    let transport: Transport;
    const current = () => this.#transport === transport;
    const handlers = {
      ready: (ready: Ready) => current() && this.#ready(ready),
      topics: (topics: Map<string, TopicOutcome>, covered: ReadonlySet<string>) => {
        if (current()) for (const [topic, outcome] of topics) this.#subscribed(topic, outcome, covered.has(topic));
      },
      frame: (frame: Incoming) => current() && this.#received(frame),
      closed: (closed: Closed) => current() && this.#closed(closed),
    };
    const { connectTimeoutMs = 10_000, graceMs = 5_000 } = this.#options;
    if (kind === 'websocket') {
      this.#webSocketTriedAt = this.#now();
      transport = new WebSocketTransport(
        {
          http: this.#http,
          WebSocket: this.#options.WebSocket ?? (globalThis.WebSocket as WebSocketConstructor),
          positions: this.#positionsForAuth(),
          nextId: this.#nextId,
          connectTimeoutMs,
          graceMs,
        },
        handlers,
      );
    } else {
      transport = new EventStreamTransport(
        {
          http: this.#http,
          topics: [...this.#known()].map(([topic]) => topic).filter((topic) => !topic.startsWith('user:')),
          cursor: this.#cursor,
          moved: (cursor) => {
            this.#cursor = cursor;
          },
          connectTimeoutMs,
          graceMs,
        },
        handlers,
      );
    }
    this.#transport = transport;
    this.#enter({ state: 'connecting', transport: kind });
  }

  #positionsForAuth(): Record<string, Position> {
    const positions: Record<string, Position> = {};
    let bytes = 0;
    for (const [topic, at] of this.#known()) {
      bytes += topic.length + at.epoch.length + 48;
      if (bytes > AUTH_POSITION_BYTES) break;
      positions[topic] = at;
    }
    return positions;
  }

  #ready({ userId, limits: given, topics, covered }: Ready): void {
    if (this.#userId !== undefined && this.#userId !== userId) {
      // What waits here are the first user's commands.
      const message = "the token is another user's: make another client";
      return this.#end({ state: 'closed', transport: undefined, reason: 'forbidden' }, 'forbidden', message);
    }
    this.#userId = userId;
    this.#limits = given;
    this.#tokens = given.frameBurst * 0.8;
    this.#tokensAt = this.#openedAt = this.#now();
    const kind = this.#transport?.kind;
    if (kind === 'websocket') {
      this.#unopened = 0;
      this.#cursor = undefined;
    }
    const unnamed = [...this.#known()].filter(([topic]) => !topics.has(topic));
    this.#state = 'open';
    for (const [topic, outcome] of topics) this.#subscribed(topic, outcome, covered.has(topic));
    // A listener may have closed us.
    if (this.state !== 'open') return;
    if (kind === 'websocket') for (const [topic] of unnamed) this.#resubscribe(topic, 0);
    this.#enter({ state: 'open', transport: kind });
    this.#flush();
  }

  #refresh(): void {
    // A token that cannot change ends when it ends.
    if (typeof this.#options.token === 'string' || this.#refreshTimer !== undefined) return;
    const transport = this.#transport;
    const pause = Math.max(0, this.#refreshedAt + REFRESH_PAUSE_MS - this.#now());
    this.#refreshTimer = setTimeout(() => {
      this.#refreshTimer = undefined;
      if (this.#transport !== transport || this.#state !== 'open' || !transport) return;
      this.#refreshedAt = this.#now();
      transport.refresh().catch((error: unknown) => {
        if (this.#transport !== transport || this.#state !== 'open') return;
        this.#emit('error', { error });
        this.#refresh();
      });
    }, pause);
  }

  #closed({ code, reason, retryAfterMs, error }: Closed): void {
    const transport = this.#transport as Transport;
    const wasOpen = this.#state === 'open';
    this.#lostBy = reason;
    this.#leave();
    if (error !== undefined) this.#emit('error', { error });
    // A listener may have closed us.
    if (this.#state === 'closed') return;
    const known = code === undefined ? undefined : CLOSE_CODES[code];
    // A token that has ended is the one case that a fresh token mends.
    const fresh = code === 3502 && typeof this.#options.token === 'function';
    if (known && !known.reconnect && !fresh) {
      const change: StateChange = { state: 'closed', transport: undefined, reason, code: code as number };
      if (error instanceof ProxieError) return this.#end(change, error.code, error.message, error.reason);
      const word = code === 3502 ? 'unauthenticated' : (known.reason as ErrorCode);
      return this.#end(change, word, `the server closed the connection: ${reason}`);
    }
    this.#count(transport);
    if (wasOpen && this.#now() - this.#openedAt >= this.#backoff.stableMs) this.#attempt = 0;
    const delay = backoff(this.#attempt, this.#backoff, this.#random, retryAfterMs);
    this.#attempt += 1;
    this.#notBefore = this.#now() + patience(retryAfterMs);
    this.#retryTimer = setTimeout(() => this.#open(), delay);
    const change: StateChange = {
      state: 'waiting',
      transport: undefined,
      reason,
      nextAttemptAt: this.#now() + delay,
    };
    if (code !== undefined) change.code = code;
    this.#enter(change);
  }

  /** For `auto`. When the fallback does not get through either, the two take turns. */
  #count(transport: Transport): void {
    if (!transport.attempted || transport.opened) return;
    if (transport.kind === 'websocket') this.#unopened += 1;
    else this.#unopened = Math.max(0, (this.#options.fallbackAfter ?? 3) - 1);
  }

  /** The transport has ended: commands that may be repeated wait for the next one. */
  #leave(): void {
    this.#transport = undefined;
    clearTimeout(this.#flushTimer);
    clearTimeout(this.#refreshTimer);
    this.#flushTimer = this.#refreshTimer = undefined;
    if (this.#state === 'open') this.#state = 'waiting';
    const sent = [...this.#pending.values()].filter((command) => command.phase === 'sent');
    this.#inFlight = 0;
    for (const command of sent) command.phase = 'waiting';
    this.#waiting = [...this.#pending.values()].filter((command) => command.phase === 'waiting');
    // Subscriptions without a reply from their server say nothing.
    for (const [topic, { epoch }] of this.#topics) if (epoch === undefined) this.#topics.delete(topic);
    for (const command of [...this.#pending.values()]) {
      if (command.internal || (sent.includes(command) && !REPEATABLE[command.event])) {
        const message = 'the connection ended before the reply; it may have been done';
        this.#fail(command, { code: 'unavailable', message, retryable: true });
      }
    }
  }

  /** Ends for good, until `connect` is called. */
  #end(change: StateChange, code: ErrorCode, message: string, reason = 'closed'): void {
    this.#transport?.close();
    this.#leave();
    clearTimeout(this.#retryTimer);
    globalThis.removeEventListener?.('online', this.#wake);
    globalThis.document?.removeEventListener('visibilitychange', this.#wake);
    this.#state = 'closed';
    for (const command of [...this.#pending.values()]) {
      this.#fail(command, { code, message, retryable: false, reason });
    }
    this.#enter(change);
  }

  readonly #wake = (): void => {
    if (globalThis.document?.visibilityState === 'hidden') return;
    // After a sleep or a change of network a socket may be dead and not know it.
    if (this.#state === 'open') this.#transport?.probe();
    if (this.#state !== 'waiting') return;
    clearTimeout(this.#retryTimer);
    this.#retryTimer = setTimeout(() => this.#open(), Math.max(0, this.#notBefore - this.#now()));
  };
}

/** A client that connects at once. */
export function connect(options: Options): Proxie {
  const client = new Proxie(options);
  client.connect();
  return client;
}
