import { ProxieError, type Booking, type ErrorCode, type Offer } from '../../typescript/src/index.js';

export interface Message {
  id: string;
  role: string;
  content: string;
}

interface Request {
  id: string;
  status: string;
  place?: { time_zone: string };
}

interface Session {
  id: string;
  ended: boolean;
}

/** Requests whose offers can still be accepted. */
const OPEN = new Set(['matching', 'open', 'accepting']);
/** Whose offers are looked at. */
const REQUESTS = 20;

/** What was there before the events that come from now on. */
export class Api {
  readonly #token: string;
  /** Of the places of requests: an appointment is at the hour that it is there. */
  readonly #zones = new Map<string, Promise<string | undefined>>();

  constructor(token: string) {
    this.#token = token;
  }

  /** The session that was spoken in last, and has not ended. */
  async lastSession(): Promise<string | undefined> {
    const { items } = await this.#get<{ items: Session[] }>('/v1/sessions?limit=1');
    return items.find((session) => !session.ended)?.id;
  }

  /** The newest ones, as they were said. */
  async messages(sessionId: string): Promise<Message[]> {
    const path = `/v1/sessions/${encodeURIComponent(sessionId)}/messages?order=desc&limit=100`;
    return (await this.#get<{ items: Message[] }>(path)).items.reverse();
  }

  async offers(): Promise<Offer[]> {
    const { items } = await this.#get<{ items: Request[] }>(`/v1/requests?limit=${REQUESTS}`);
    for (const { id, place } of items) this.#zones.set(id, Promise.resolve(place?.time_zone));
    const open = items.filter((request) => OPEN.has(request.status));
    const offers = await Promise.all(open.map((request) => this.offersOf(request.id)));
    return offers.flat();
  }

  timeZone(requestId: string): Promise<string | undefined> {
    let zone = this.#zones.get(requestId);
    if (!zone) {
      const path = `/v1/requests/${encodeURIComponent(requestId)}`;
      zone = this.#get<Request>(path).then(({ place }) => place?.time_zone, () => undefined);
      this.#zones.set(requestId, zone);
    }
    return zone;
  }

  async offersOf(requestId: string): Promise<Offer[]> {
    const path = `/v1/requests/${encodeURIComponent(requestId)}/offers?limit=100`;
    return (await this.#get<{ items: Offer[] }>(path)).items;
  }

  async bookings(): Promise<Booking[]> {
    return (await this.#get<{ items: Booking[] }>('/v1/bookings?limit=50')).items;
  }

  async #get<T>(path: string): Promise<T> {
    const response = await fetch(path, {
      headers: { Accept: 'application/json', Authorization: `Bearer ${this.#token}` },
      cache: 'no-store',
    });
    if (response.ok) return (await response.json()) as T;
    const problem = (await response.json().catch(() => ({}))) as { code?: ErrorCode; detail?: string };
    const message = problem.detail ?? `the node answered ${response.status}`;
    throw new ProxieError({ code: problem.code ?? 'unavailable', message, retryable: response.status >= 500 });
  }
}
