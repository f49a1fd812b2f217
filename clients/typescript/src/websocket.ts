import { ProxieError, wireError } from './error.js';
import type { ErrorCode, Position } from './events.js';
import { ORIGIN_NOT_ALLOWED, type Http } from './http.js';
import {
  closed,
  limits,
  number,
  outcomes,
  parsed,
  record,
  type Closed,
  type Handlers,
  type Incoming,
  type Outgoing,
  type Transport,
} from './transport.js';

/** The part of a WebSocket that is used: the browser's, or that of the package `ws`. */
export interface WebSocketLike {
  /* eslint-disable @typescript-eslint/no-explicit-any -- the event classes of browsers and of `ws` differ */
  onopen: ((event: any) => void) | null;
  onmessage: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  /* eslint-enable */
  send(data: string): void;
  close(code?: number, reason?: string): void;
}

export type WebSocketConstructor = new (url: string, protocols: string[]) => WebSocketLike;

export interface WebSocketTransportOptions {
  http: Http;
  WebSocket: WebSocketConstructor;
  positions: Record<string, Position>;
  nextId: () => string;
  connectTimeoutMs: number;
  /** The silence that is accepted beyond the server's `ping_ms`; also the time a `ping` may take. */
  graceMs: number;
}

/** The close code for a refused `auth` that would be refused again, as if the server had closed with it. */
const FINAL: Partial<Record<ErrorCode, number>> = {
  unauthenticated: 3501,
  forbidden: 3503,
  bad_request: 3500,
  rejected: 3500,
  too_large: 3504,
};

export class WebSocketTransport implements Transport {
  readonly kind = 'websocket';
  attempted = false;
  opened = false;
  readonly #options: WebSocketTransportOptions;
  readonly #handlers: Handlers;
  /** Frames of the transport itself, by id: auth, auth:refresh, ping. */
  readonly #own = new Map<string, (reply: Incoming) => void>();
  #socket: WebSocketLike | undefined;
  #timer: ReturnType<typeof setTimeout>;
  #pingMs = 25_000;
  #ready = false;
  #done = false;

  constructor(options: WebSocketTransportOptions, handlers: Handlers) {
    this.#options = options;
    this.#handlers = handlers;
    this.#timer = setTimeout(() => this.#finish(closed(undefined, { code: 'connect_timeout' })), options.connectTimeoutMs);
    void this.#connect();
  }

  send(frame: Outgoing): void {
    this.#write(frame.text);
  }

  async refresh(): Promise<void> {
    const token = await this.#options.http.token();
    if (this.#done) return;
    await new Promise<void>((resolve, reject) => {
      this.#ask('auth:refresh', { token }, (reply) => {
        if (reply.ok === true) resolve();
        else reject(new ProxieError(wireError(reply.error)));
      });
    });
  }

  probe(): void {
    if (!this.#ready || this.#done) return;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(
      () => this.#finish(closed(undefined, { code: 'heartbeat_timeout' })),
      this.#options.graceMs,
    );
    this.#ask('ping', {}, () => {});
  }

  close(): void {
    this.#finish(undefined);
  }

  async #connect(): Promise<void> {
    let token: string;
    try {
      token = await this.#options.http.token();
    } catch (error) {
      return this.#finish({ ...closed(undefined, { code: 'no_token' }), error });
    }
    if (this.#done) return;
    this.attempted = true;
    let socket: WebSocketLike;
    try {
      socket = new this.#options.WebSocket(`${this.#options.http.base.replace(/^http/, 'ws')}/v1/ws`, ['proxie.v1']);
    } catch (error) {
      return this.#finish({ ...closed(undefined, { code: 'no_websocket' }), error });
    }
    this.#socket = socket;
    socket.onopen = () => {
      this.opened = true;
      this.#authenticate(token);
    };
    socket.onmessage = (event: { data: unknown }) => {
      if (typeof event.data === 'string') this.#received(event.data);
    };
    // The close that follows has the reason.
    socket.onerror = () => {};
    socket.onclose = (event: { code: number; reason: string }) => {
      const why = closed(event.code, parsed(event.reason));
      if (this.opened) this.#finish(why);
      else void this.#unopened(why);
    };
  }

  /** A refused upgrade looks like a lost network. The time to connect runs on meanwhile. */
  async #unopened(why: Closed): Promise<void> {
    const refused = await this.#options.http.refusal();
    if (refused?.reason === ORIGIN_NOT_ALLOWED) {
      return this.#finish({ ...closed(FINAL.forbidden, { code: refused.reason }), error: new ProxieError(refused) });
    }
    if (refused) this.#finish({ ...why, reason: refused.code, retryAfterMs: refused.retry_after_ms });
    else this.#finish({ ...why, reason: 'not_opened' });
  }

  #authenticate(token: string): void {
    const { positions } = this.#options;
    this.#ask('auth', { token, positions }, (reply) => {
      if (reply.ok !== true) {
        const error = new ProxieError(wireError(reply.error));
        return this.#finish({ code: FINAL[error.code], reason: error.code, retryAfterMs: error.retryAfterMs, error });
      }
      const data = record(reply.data);
      this.#pingMs = number(data.ping_ms, this.#pingMs);
      this.#ready = true;
      this.#heard();
      this.#handlers.ready({
        userId: String(data.user_id),
        limits: limits(data.limits),
        topics: outcomes(data.topics),
        covered: new Set(Object.keys(positions)),
      });
    });
  }

  #received(text: string): void {
    if (this.#ready) this.#heard();
    const frame = record(parsed(text));
    const own = typeof frame.id === 'string' ? this.#own.get(frame.id) : undefined;
    if (own === undefined) return this.#handlers.frame(frame);
    this.#own.delete(frame.id as string);
    own(frame);
  }

  /** Browsers do not show the server's pings, so silence has to be ended by a ping of our own. */
  #heard(): void {
    if (this.#done) return;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.probe(), this.#pingMs + this.#options.graceMs);
  }

  #ask(event: string, data: Record<string, unknown>, answered: (reply: Incoming) => void): void {
    const id = this.#options.nextId();
    this.#own.set(id, answered);
    this.#write(JSON.stringify({ id, event, data }));
  }

  #write(text: string): void {
    try {
      this.#socket?.send(text);
    } catch (error) {
      this.#finish({ ...closed(undefined, { code: 'send_failed' }), error });
    }
  }

  #finish(why: Closed | undefined): void {
    if (this.#done) return;
    this.#done = true;
    clearTimeout(this.#timer);
    const socket = this.#socket;
    if (socket) {
      // A dead peer answers no close, so nobody waits for it. `onerror` stays: `ws` throws what nobody listens to.
      socket.onopen = socket.onmessage = socket.onclose = null;
      try {
        socket.close(1000);
      } catch {
        // It was closed already.
      }
    }
    const reply = { ok: false, error: { code: 'unavailable', message: 'the connection ended', retryable: true } };
    for (const answered of this.#own.values()) if (this.#ready) answered(reply);
    this.#own.clear();
    if (why) this.#handlers.closed(why);
  }
}
