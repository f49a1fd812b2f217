import type { Booking, Message, Offer, Proxie } from '../../typescript/src/index.js';

/** Requests whose offers can still be accepted. */
const OPEN = new Set(['matching', 'open', 'accepting']);
/** Whose offers are looked at. */
const REQUESTS = 20;

/** What was there before the events that come from now on. */
export class Api {
  readonly #proxie: Proxie;
  /** Of the places of requests: an appointment is at the hour that it is there. */
  readonly #zones = new Map<string, Promise<string | undefined>>();

  constructor(proxie: Proxie) {
    this.#proxie = proxie;
  }

  /** The session that was spoken in last, and has not ended. */
  async lastSession(): Promise<string | undefined> {
    const { items } = await this.#proxie.get('/v1/sessions', { limit: 1 });
    return items.find((session) => !session.ended)?.id;
  }

  /** The newest ones, as they were said. */
  async messages(id: string): Promise<Message[]> {
    return (await this.#proxie.get('/v1/sessions/{id}/messages', { id, order: 'desc', limit: 100 })).items.reverse();
  }

  async offers(): Promise<Offer[]> {
    const { items } = await this.#proxie.get('/v1/requests', { limit: REQUESTS });
    for (const { id, place } of items) this.#zones.set(id, Promise.resolve(place.time_zone));
    const open = items.filter((request) => OPEN.has(request.status));
    const offers = await Promise.all(open.map((request) => this.offersOf(request.id)));
    return offers.flat();
  }

  timeZone(id: string): Promise<string | undefined> {
    let zone = this.#zones.get(id);
    if (!zone) {
      zone = this.#proxie.get('/v1/requests/{id}', { id }).then(({ place }) => place.time_zone, () => undefined);
      this.#zones.set(id, zone);
    }
    return zone;
  }

  async offersOf(id: string): Promise<Offer[]> {
    return (await this.#proxie.get('/v1/requests/{id}/offers', { id, limit: 100 })).items;
  }

  async bookings(): Promise<Booking[]> {
    return (await this.#proxie.get('/v1/bookings', { limit: 50 })).items;
  }
}
