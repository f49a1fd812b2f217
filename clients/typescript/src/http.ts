import { ProxieError, RETRYABLE, wireError } from './error.js';
import type { ErrorCode, WireError } from './events.js';
import { parsed, record } from './transport.js';

/** The reason of a node that lets no page of this origin connect. Trying again does not help. */
export const ORIGIN_NOT_ALLOWED = 'origin_not_allowed';

const CODES: Record<number, ErrorCode> = {
  400: 'bad_request',
  401: 'unauthenticated',
  403: 'forbidden',
  404: 'not_found',
  409: 'conflict',
  413: 'too_large',
  422: 'rejected',
  429: 'rate_limited',
  502: 'unavailable',
  503: 'unavailable',
  504: 'deadline_exceeded',
};

/** RFC 9457, or what a proxy in between answered. */
export async function problem(response: Response): Promise<WireError> {
  const body = record(parsed(await response.text().catch(() => '')));
  const error = wireError({
    ...body,
    code: body.code ?? CODES[response.status] ?? (response.ok ? 'unavailable' : 'internal'),
    message: body.detail ?? `HTTP ${response.status}`,
  });
  error.retryable = RETRYABLE.has(error.code) || error.code === 'internal';
  const seconds = Number(response.headers.get('retry-after') ?? Number.NaN);
  if (seconds >= 0) error.retry_after_ms = seconds * 1_000;
  return error;
}

export const segment = (value: unknown): string => encodeURIComponent(String(value));

/** The settings that all calls share. */
const CALL = { cache: 'no-store', credentials: 'omit' } as const;

/** The time that finding out the reason may take. */
const REFUSAL_MS = 3_000;

/** The node's HTTP API. */
export class Http {
  readonly base: string;
  readonly #fetch: typeof fetch;
  readonly #getToken: () => Promise<string>;
  #token: string | undefined;

  constructor(base: string, fetcher: typeof fetch | undefined, token: () => Promise<string>) {
    this.base = base;
    // Called by itself: browsers refuse a `fetch` that belongs to another object.
    this.#fetch = (input, init) => (fetcher ?? globalThis.fetch)(input, init);
    this.#getToken = token;
  }

  /** A fresh token, for connections that are authenticated once. */
  async token(): Promise<string> {
    this.#token = await this.#getToken();
    return this.#token;
  }

  /** Calls with a token, and once more with a fresh one where the first has expired. */
  async call(path: string, init: RequestInit): Promise<Response> {
    const send = async (token: string) =>
      this.fetch(path, { ...init, headers: { ...(init.headers as object), Authorization: `Bearer ${token}` } });
    const response = await send(this.#token ?? (await this.token()));
    if (response.status !== 401) return response;
    const used = this.#token;
    // A token that cannot change is refused again.
    return (await this.token()) === used ? response : send(this.#token as string);
  }

  fetch(path: string, init: RequestInit): Promise<Response> {
    return this.#fetch(`${this.base}${path}`, { ...CALL, ...init });
  }

  /**
   * The reason why nothing gets through to the node, where the node gives one: a browser hides why a WebSocket was refused,
   * and answers to pages of other origins. This answer every page may read.
   */
  async refusal(): Promise<WireError | undefined> {
    const ended = new AbortController();
    const timer = setTimeout(() => ended.abort(), REFUSAL_MS);
    try {
      // A page's own node is told the origin with a POST only.
      const response = await this.fetch('/v1/ws', { method: 'POST', signal: ended.signal });
      const error = await problem(response);
      // A node that takes WebSockets says that this is none.
      return error.reason === ORIGIN_NOT_ALLOWED || RETRYABLE.has(error.code) ? error : undefined;
    } catch {
      return undefined;
    } finally {
      clearTimeout(timer);
    }
  }

  /** `{id}` of the path and the query, from the same object. */
  async get(path: string, asked: Record<string, unknown>, timeoutMs: number, signal?: AbortSignal): Promise<unknown> {
    const rest = new URLSearchParams();
    for (const [name, value] of Object.entries(asked)) {
      if (value !== undefined && value !== null && !path.includes(`{${name}}`)) rest.set(name, String(value));
    }
    const query = rest.toString();
    const filled = path.replace(/\{(\w+)\}/g, (_, name: string) => segment(asked[name]));
    const ended = new AbortController();
    const abort = () => ended.abort();
    signal?.addEventListener('abort', abort, { once: true });
    if (signal?.aborted) abort();
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      abort();
    }, timeoutMs);
    try {
      const headers = { Accept: 'application/json' };
      const response = await this.call(`${filled}${query && `?${query}`}`, { headers, signal: ended.signal });
      if (!response.ok) throw new ProxieError(await problem(response));
      return await response.json();
    } catch (error) {
      if (signal?.aborted) throw signal.reason;
      if (error instanceof ProxieError) throw error;
      if (late) {
        const message = `no answer to ${path} within ${timeoutMs} ms`;
        throw new ProxieError({ code: 'deadline_exceeded', message, retryable: true }, { cause: error });
      }
      const refused = await this.refusal();
      const message = `${path} could not be read: ${error instanceof Error ? error.message : String(error)}`;
      throw new ProxieError(refused ?? { code: 'unavailable', message, retryable: true }, { cause: error });
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener('abort', abort);
    }
  }
}
