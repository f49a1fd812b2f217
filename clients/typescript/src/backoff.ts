export interface BackoffOptions {
  /** The most that the first wait can be. Default: 250 ms. */
  baseMs?: number;
  /** The most that any wait can be. Default: 15 s. */
  maxMs?: number;
  /** A connection that lived this long was good: the next wait is short again. Default: 5 s. */
  stableMs?: number;
}

/** The longest delay that a server may ask for: not for ever, and a timer beyond 2^31 ms would fire at once. */
const MAX_RETRY_AFTER_MS = 300_000;

export const patience = (retryAfterMs = 0): number => Math.min(Math.max(retryAfterMs, 0), MAX_RETRY_AFTER_MS);

/**
 * Exponential backoff with full jitter: clients that lost the same node do not come back at the same moment.
 * The delay that the server asked for is added to it, for the same reason.
 */
export function backoff(
  attempt: number,
  options: Required<BackoffOptions>,
  random: () => number,
  retryAfterMs = 0,
): number {
  const ceiling = Math.min(options.maxMs, options.baseMs * 2 ** Math.min(attempt, 30));
  return patience(retryAfterMs) + random() * ceiling;
}
