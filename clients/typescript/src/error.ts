import { ERROR_CODES, type ErrorCode, type WireError } from './events.js';

/** Why a command was not done. `code` is one of the protocol's, also where the client itself gave up. */
export class ProxieError extends Error {
  readonly code: ErrorCode;
  readonly retryable: boolean;
  readonly retryAfterMs: number | undefined;
  /** A stable word where the code is not enough: `slot_taken`. */
  readonly reason: string | undefined;
  /** The wrong fields, by JSON pointer. */
  readonly errors: readonly { pointer: string; message: string }[] | undefined;

  constructor(error: WireError, options?: ErrorOptions) {
    super(error.message, options);
    this.name = 'ProxieError';
    this.code = error.code;
    this.retryable = error.retryable;
    this.retryAfterMs = error.retry_after_ms;
    this.reason = error.reason;
    this.errors = error.errors;
  }
}

/** What comes from outside is checked once, here. A code from a newer server counts as `internal`. */
export function wireError(value: unknown): WireError {
  const given = (typeof value === 'object' && value !== null ? value : {}) as Record<string, unknown>;
  const code = ERROR_CODES.find((known) => known === given.code) ?? 'internal';
  const error: WireError = {
    code,
    message: typeof given.message === 'string' ? given.message : code,
    retryable: typeof given.retryable === 'boolean' ? given.retryable : RETRYABLE.has(code),
  };
  if (typeof given.retry_after_ms === 'number') error.retry_after_ms = given.retry_after_ms;
  if (typeof given.reason === 'string') error.reason = given.reason;
  if (Array.isArray(given.errors)) error.errors = given.errors as NonNullable<WireError['errors']>;
  return error;
}

/** Worth another try with the same id. */
export const RETRYABLE: ReadonlySet<ErrorCode> = new Set([
  'rate_limited',
  'overloaded',
  'unavailable',
  'deadline_exceeded',
]);
