import { ProxieError } from './error.js';
import { PATHS, type ErrorCode, type Position, type WireError } from './events.js';
import { ORIGIN_NOT_ALLOWED, problem, segment, type Http } from './http.js';
import { SseParser, type SseMessage } from './sse.js';
import {
  closed,
  limits,
  number,
  outcomes,
  parsed,
  position,
  record,
  type Closed,
  type Handlers,
  type Outgoing,
  type TopicOutcome,
  type Transport,
} from './transport.js';

/** The id up to which a stream was read, and the topics that the id covers. */
export interface Cursor {
  id: string;
  topics: ReadonlySet<string>;
}

export interface EventStreamOptions {
  http: Http;
  /** The topics, without `user:<self>`, which is always included. */
  topics: readonly string[];
  cursor: Cursor | undefined;
  moved: (cursor: Cursor | undefined) => void;
  connectTimeoutMs: number;
  graceMs: number;
}

/** The most topics of a stream, `user:<self>` included: its cursor names them all. */
const MAX_TOPICS = 32;

/** Topics without offsets are not stored, so nobody can tell what a stream missed before it began. */
const mayBeLossy = (topic: string, { offset }: Position): boolean => offset === 0 && /^(app|presence):/.test(topic);

/** The close code for a stream that would be refused again, as if the server had closed with it. */
const FINAL: Partial<Record<ErrorCode, number>> = { unauthenticated: 3501, forbidden: 3503, bad_request: 3500 };

/** A transport for networks that let no WebSocket through: events by `GET /v1/events`, commands by the HTTP API. */
export class EventStreamTransport implements Transport {
  readonly kind = 'sse';
  attempted = false;
  opened = false;
  readonly #options: EventStreamOptions;
  readonly #handlers: Handlers;
  readonly #topics: Set<string>;
  /** Subscriptions that the next `ready` answers, by topic. */
  readonly #waiting = new Map<string, { frame: Outgoing; sessionId: string | undefined }[]>();
  readonly #commands = new AbortController();
  #cursor: Cursor | undefined;
  #stream = new AbortController();
  #reopening = false;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #pingMs = 25_000;
  #done = false;

  constructor(options: EventStreamOptions, handlers: Handlers) {
    this.#options = options;
    this.#handlers = handlers;
    this.#topics = new Set([...options.topics].slice(0, MAX_TOPICS - 1));
    this.#cursor = options.cursor;
    this.#reopen();
  }

  send(frame: Outgoing): void {
    const { event, data } = frame;
    if (event === 'topic:subscribe') this.#subscribe(frame, String(data.topic));
    else if (event === 'session:resume') this.#subscribe(frame, `session:${String(data.session_id)}`);
    else if (event === 'topic:unsubscribe') this.#unsubscribe(frame, String(data.topic));
    else if (event === 'session:close' && data.end !== true) {
      this.#unsubscribe(frame, `session:${String(data.session_id)}`);
    } else void this.#command(frame);
  }

  /** A stream ends with the token that opened it, so a new token needs a new stream. */
  async refresh(): Promise<void> {
    this.#reopen();
  }

  probe(): void {
    // A stream cannot be asked; it is given up when its heartbeats stop.
  }

  close(): void {
    this.#finish(undefined);
  }

  #subscribe(frame: Outgoing, topic: string, sessionId?: string): void {
    if (!this.#topics.has(topic) && this.#topics.size >= MAX_TOPICS - 1) return this.#refuse(frame, TOO_MANY);
    const frames = this.#waiting.get(topic) ?? [];
    frames.push({ frame, sessionId });
    this.#waiting.set(topic, frames);
    if (!topic.startsWith('user:')) this.#topics.add(topic);
    this.#reopen();
  }

  #unsubscribe(frame: Outgoing, topic: string): void {
    if (this.#topics.delete(topic)) this.#reopen();
    this.#answer(frame, {});
  }

  #answer(frame: Outgoing, data: unknown): void {
    if (!this.#done) this.#handlers.frame({ id: frame.id, ok: true, data });
  }

  #refuse(frame: Outgoing, error: WireError): void {
    if (!this.#done) this.#handlers.frame({ id: frame.id, ok: false, error });
  }

  /** The topics are in the address, so another set of topics is another stream. Several changes are one. */
  #reopen(): void {
    if (this.#reopening || this.#done) return;
    this.#reopening = true;
    queueMicrotask(() => {
      this.#reopening = false;
      if (this.#done) return;
      this.#stream.abort();
      this.#stream = new AbortController();
      void this.#read(this.#stream.signal);
    });
  }

  async #read(signal: AbortSignal): Promise<void> {
    const { http, connectTimeoutMs } = this.#options;
    this.#expect(connectTimeoutMs, 'connect_timeout');
    let token: string;
    try {
      token = await http.token();
    } catch (error) {
      if (!signal.aborted) this.#finish({ ...closed(undefined, { code: 'no_token' }), error });
      return;
    }
    if (signal.aborted) return;
    this.attempted = true;
    const asked = new Set(this.#topics);
    const query = [...asked].map((topic) => `topic=${segment(topic)}`).join('&');
    const headers: Record<string, string> = { Accept: 'text/event-stream', Authorization: `Bearer ${token}` };
    if (this.#cursor) headers['Last-Event-ID'] = this.#cursor.id;
    try {
      const response = await http.fetch(`/v1/events${query && `?${query}`}`, { headers, signal });
      if (!response.ok || !response.headers.get('content-type')?.startsWith('text/event-stream') || !response.body) {
        const error = await problem(response);
        if (signal.aborted) return;
        // Another release may not know this cursor. Without it, positions tell whether something was missed.
        const stale = error.code === 'bad_request' && this.#cursor !== undefined;
        if (stale) this.#options.moved(undefined);
        const code = stale ? undefined : FINAL[error.code];
        return this.#finish({
          code,
          reason: error.code,
          retryAfterMs: error.retry_after_ms,
          error: new ProxieError(error),
        });
      }
      const parser = new SseParser();
      const reader = response.body.getReader();
      for (;;) {
        const { done, value } = await reader.read();
        if (signal.aborted) return;
        if (done) return this.#finish(closed(undefined, { code: 'stream_ended' }));
        // Heartbeats are comments: any bytes are a sign of life.
        if (this.opened) this.#expect(this.#pingMs + this.#options.graceMs, 'heartbeat_timeout');
        for (const message of parser.push(value)) {
          this.#message(message, asked);
          if (signal.aborted) return;
        }
      }
    } catch (error) {
      const refused = this.opened || signal.aborted ? undefined : await http.refusal();
      if (refused?.reason === ORIGIN_NOT_ALLOWED && !signal.aborted) {
        return this.#finish({ ...closed(FINAL.forbidden, { code: refused.reason }), error: new ProxieError(refused) });
      }
      // A lost network is nothing to report beyond the state; a message that is too large is.
      const why = closed(undefined, { code: error instanceof RangeError ? 'too_large' : 'network' });
      if (!signal.aborted) this.#finish(error instanceof RangeError ? { ...why, error } : why);
    }
  }

  #message({ event, data, id }: SseMessage, asked: ReadonlySet<string>): void {
    const content = record(parsed(data));
    if (event === 'close') {
      return this.#finish(closed(typeof content.code === 'number' ? content.code : undefined, content.reason));
    }
    if (event === 'ready') this.#started(content, asked);
    else this.#handlers.frame(content);
    // Only now: what was not handed on may be sent again.
    if (id !== undefined && !this.#done) {
      this.#cursor = { id, topics: asked };
      this.#options.moved(this.#cursor);
    }
  }

  #started(data: Record<string, unknown>, asked: ReadonlySet<string>): void {
    const topics = outcomes(data.topics);
    const covered = new Set<string>(this.#cursor?.topics ?? []);
    const userId = String(data.user_id);
    if (this.#cursor) covered.add(`user:${userId}`);
    for (const [topic, outcome] of topics) {
      if (!('error' in outcome)) outcome.recovered &&= !(covered.has(topic) && mayBeLossy(topic, outcome.position));
      else if (!outcome.error.retryable) this.#topics.delete(topic);
    }
    for (const topic of this.#options.topics) if (!asked.has(topic) && !this.opened) topics.set(topic, { error: TOO_MANY });
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    const first = !this.opened;
    this.opened = true;
    this.#pingMs = number(data.ping_ms, this.#pingMs);
    this.#expect(this.#pingMs + this.#options.graceMs, 'heartbeat_timeout');
    for (const [topic, frames] of waiting) {
      const outcome = topics.get(topic);
      // The set was changed again meanwhile: the stream after this one answers.
      if (outcome === undefined && this.#reopening) this.#waiting.set(topic, frames);
      else for (const { frame, sessionId } of frames) this.#subscribed(frame, sessionId, outcome);
      // The reply has told it.
      topics.delete(topic);
    }
    if (first) this.#handlers.ready({ userId, limits: limits(undefined), topics, covered });
    else this.#handlers.topics(topics, covered);
  }

  #subscribed(frame: Outgoing, sessionId: string | undefined, outcome: TopicOutcome | undefined): void {
    if (outcome === undefined) return this.#refuse(frame, unavailable('the stream does not have this topic'));
    if ('error' in outcome) return this.#refuse(frame, outcome.error);
    if (sessionId !== undefined) return this.#answer(frame, { session_id: sessionId, position: outcome.position });
    // A stream begins at its cursor or now, so another position is only kept where nothing has happened since.
    const wanted = position(frame.data.position);
    const kept = !wanted || (wanted.epoch === outcome.position.epoch && wanted.offset === outcome.position.offset);
    this.#answer(frame, { recovered: outcome.recovered && kept, position: outcome.position });
  }

  async #command(frame: Outgoing): Promise<void> {
    const path = PATHS[frame.event]?.replace(/\{(\w+)\}/g, (_, name: string) => segment(frame.data[name]));
    if (path === undefined) {
      const error = unavailable(`${frame.event} needs a WebSocket`);
      return this.#refuse(frame, { ...error, retryable: false, reason: 'needs_websocket' });
    }
    let outcome: Record<string, unknown> | { refused: WireError };
    try {
      const response = await this.#post(path, frame);
      outcome = response.ok ? record(await response.json()) : { refused: await problem(response) };
    } catch (error) {
      outcome = { refused: unavailable(error instanceof Error ? error.message : 'the request failed') };
    }
    if ('refused' in outcome) return this.#refuse(frame, outcome.refused as WireError);
    if (frame.event !== 'session:open') return this.#answer(frame, outcome);
    const sessionId = String(outcome.id);
    if (!this.#done) this.#subscribe(frame, `session:${sessionId}`, sessionId);
  }

  #post(path: string, frame: Outgoing): Promise<Response> {
    return this.#options.http.call(path, {
      method: 'POST',
      headers: { Accept: 'application/json', 'Content-Type': 'application/json', 'Idempotency-Key': frame.id },
      body: JSON.stringify(frame.data),
      signal: this.#commands.signal,
    });
  }

  #expect(ms: number, otherwise: string): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#finish(closed(undefined, { code: otherwise })), ms);
  }

  #finish(why: Closed | undefined): void {
    if (this.#done) return;
    this.#done = true;
    clearTimeout(this.#timer);
    this.#stream.abort();
    this.#commands.abort();
    if (why) this.#handlers.closed(why);
  }
}

const TOO_MANY: WireError = {
  code: 'rejected',
  message: `a stream may have ${MAX_TOPICS} topics`,
  retryable: false,
  reason: 'too_many_subscriptions',
};

function unavailable(message: string): WireError {
  return { code: 'unavailable', message, retryable: true };
}
