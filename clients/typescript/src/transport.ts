import { wireError } from './error.js';
import type { Position, WireError } from './events.js';

/** A frame of the client. `text` is its form on a WebSocket. */
export interface Outgoing {
  readonly id: string;
  readonly event: string;
  readonly data: Record<string, unknown>;
  readonly text: string;
}

/** A frame of the server: a reply if it has an `id`, else an event. */
export type Incoming = Record<string, unknown>;

export type TopicOutcome = { recovered: boolean; position: Position } | { error: WireError };

export interface Limits {
  frameBytes: number;
  framesPerSecond: number;
  frameBurst: number;
  subscriptions: number;
  inFlight: number;
}

export interface Ready {
  userId: string;
  limits: Limits;
  topics: Map<string, TopicOutcome>;
  /** The topics for which the server was told a position. */
  covered: ReadonlySet<string>;
}

export interface Closed {
  code: number | undefined;
  reason: string;
  retryAfterMs: number | undefined;
  error?: unknown;
}

/** The callbacks of a transport. None is called after `closed`. */
export interface Handlers {
  ready(ready: Ready): void;
  /** Outcomes of subscriptions on a connection that was ready before. */
  topics(topics: Map<string, TopicOutcome>, covered: ReadonlySet<string>): void;
  frame(frame: Incoming): void;
  closed(closed: Closed): void;
}

/** One connection, which the constructor opens and which ends once. */
export interface Transport {
  readonly kind: 'websocket' | 'sse';
  /** Somebody tried to reach the server: no token is not the network's fault. */
  readonly attempted: boolean;
  /** The server was reached. */
  readonly opened: boolean;
  send(frame: Outgoing): void;
  /** A fresh token for the connection. */
  refresh(): Promise<void>;
  /** Finds out soon whether the connection still lives. */
  probe(): void;
  close(): void;
}

export const record = (value: unknown): Record<string, unknown> =>
  typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};

export const number = (value: unknown, otherwise: number): number =>
  typeof value === 'number' && value >= 0 ? value : otherwise;

export function position(value: unknown): Position | undefined {
  const { epoch, offset } = record(value);
  return typeof epoch === 'string' && typeof offset === 'number' ? { epoch, offset } : undefined;
}

export function outcomes(value: unknown): Map<string, TopicOutcome> {
  const found = new Map<string, TopicOutcome>();
  for (const [topic, shown] of Object.entries(record(value))) {
    const { error, recovered, position: at } = record(shown);
    const known = position(at);
    if (error !== undefined) found.set(topic, { error: wireError(error) });
    else if (known) found.set(topic, { recovered: recovered === true, position: known });
  }
  return found;
}

/** The limits to assume where the server names none: the contract's minima. */
export function limits(value: unknown): Limits {
  const given = record(value);
  return {
    frameBytes: number(given.frame_bytes, 65_536),
    framesPerSecond: number(given.frames_per_s, 100),
    frameBurst: number(given.frame_burst, 500),
    subscriptions: number(given.subscriptions, 512),
    inFlight: number(given.in_flight, 64),
  };
}

/** The reason of a close frame: `{"code","retry_after_ms"?}`. */
export function closed(code: number | undefined, reason: unknown): Closed {
  const { code: word, retry_after_ms } = record(reason);
  return {
    code,
    reason: typeof word === 'string' ? word : 'closed',
    retryAfterMs: typeof retry_after_ms === 'number' ? retry_after_ms : undefined,
  };
}

export function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
