import type { Booking, Money, Offer, ScoreParts } from '../../typescript/src/index.js';

export function element<T extends HTMLElement = HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found as T;
}

/** Children are text or elements, never markup: what people and agents say is shown as it is. */
function make<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Record<string, string>,
  ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export function money({ amount_minor, currency }: Money): string {
  try {
    const format = new Intl.NumberFormat(undefined, { style: 'currency', currency });
    return format.format(amount_minor / 10 ** (format.resolvedOptions().maximumFractionDigits ?? 2));
  } catch {
    return `${amount_minor} ${currency}`;
  }
}

export function time(at: string, timeZone?: string): string {
  const options: Intl.DateTimeFormatOptions = {
    weekday: 'short',
    day: 'numeric',
    month: 'short',
    hour: 'numeric',
    minute: '2-digit',
    timeZoneName: 'short',
  };
  try {
    return new Intl.DateTimeFormat(undefined, { ...options, ...(timeZone ? { timeZone } : {}) }).format(new Date(at));
  } catch {
    return at;
  }
}

const PARTS: [keyof ScoreParts, string][] = [
  ['skill', 'Skill'],
  ['location', 'Location'],
  ['availability', 'Availability'],
  ['price', 'Price'],
  ['rating', 'Rating'],
  ['response', 'Response'],
];

export const percent = (share: number): string => `${Math.round(share * 100)} %`;

export interface OfferActions {
  accept: (offer: Offer, button: HTMLButtonElement) => void;
  decline: (offer: Offer, button: HTMLButtonElement) => void;
}

export function offerCard(offer: Offer, timeZone: string | undefined, actions: OfferActions): HTMLLIElement {
  const { provider, score } = offer;
  const parts = make('dl', { class: 'score', 'aria-label': `Why ${provider.name} fits` });
  for (const [part, label] of PARTS) {
    const value = score.parts[part];
    const meter = make('meter', { min: '0', max: '1', value: String(value), 'aria-label': label }, percent(value));
    parts.append(make('dt', {}, label), make('dd', {}, meter, make('span', {}, percent(value))));
  }
  const reviews = provider.reviews === 1 ? '1 review' : `${provider.reviews} reviews`;
  const card = make(
    'li',
    { class: 'card', 'data-offer': offer.id, 'data-status': offer.status },
    make(
      'div',
      { class: 'bar' },
      make('h3', {}, provider.name),
      make('span', { class: 'price' }, money(offer.price)),
    ),
    make('p', { class: 'soft' }, `${provider.rating.toFixed(1)} of 5, ${reviews} · ${provider.city}`),
    make('p', {}, make('time', { datetime: offer.starts_at }, time(offer.starts_at, timeZone))),
  );
  if (offer.message) card.append(make('p', {}, offer.message));
  const total = make('summary', {}, `Score ${percent(score.total)}`);
  card.append(make('details', offer.status === 'open' ? { open: '' } : {}, total, parts));
  if (offer.status !== 'open') {
    card.append(make('p', { class: 'soft' }, offer.status === 'accepted' ? 'Accepted' : `Not available: ${offer.status}`));
    return card;
  }
  const accept = make('button', { type: 'button', class: 'main' }, 'Accept');
  accept.append(make('span', { class: 'visually-hidden' }, ` the offer of ${provider.name}`));
  accept.addEventListener('click', () => actions.accept(offer, accept));
  const decline = make('button', { type: 'button' }, 'Decline');
  decline.append(make('span', { class: 'visually-hidden' }, ` the offer of ${provider.name}`));
  decline.addEventListener('click', () => actions.decline(offer, decline));
  card.append(make('div', { class: 'actions' }, accept, decline));
  card.append(make('p', { class: 'error', role: 'alert' }));
  return card;
}

export function bookingCard(booking: Booking): HTMLLIElement {
  const { place, provider } = booking;
  const status = booking.status.replace('_', ' ');
  return make(
    'li',
    { class: 'card', 'data-booking': booking.id, 'data-status': booking.status },
    make(
      'div',
      { class: 'bar' },
      make('h3', {}, `${booking.service}, ${provider.name}`),
      make('span', { class: 'price' }, money(booking.price)),
    ),
    make('p', {}, make('time', { datetime: booking.starts_at }, time(booking.starts_at, place.time_zone))),
    make('p', { class: 'soft' }, `${place.name}, ${place.city} · ${status}`),
  );
}

/** The list of what is said, following its end unless somebody has scrolled up. */
export class Log {
  readonly #list: HTMLElement;
  readonly #byId = new Map<string, HTMLElement>();
  /** What was sent from here and has no id yet. */
  readonly #sending: HTMLElement[] = [];
  /** Pieces that have come, by message. */
  readonly #pieces = new Map<string, number>();

  constructor(list: HTMLElement) {
    this.#list = list;
  }

  clear(): void {
    this.#list.replaceChildren();
    this.#byId.clear();
    this.#pieces.clear();
    this.#sending.length = 0;
  }

  /** A message that is whole, instead of whatever was there of it. */
  show(id: string, role: string, content: string): void {
    let item = this.#byId.get(id);
    if (!item && role === 'user') {
      const mine = this.#sending.findIndex((sending) => sending.textContent === content);
      if (mine >= 0) item = this.#sending.splice(mine, 1)[0];
    }
    item ??= this.#append(role, '');
    item.textContent = content;
    item.removeAttribute('data-state');
    item.removeAttribute('aria-busy');
    this.#byId.set(id, item);
    this.#pieces.delete(id);
    this.#follow();
  }

  /** A piece of an answer that is still being made. Pieces may be lost: the whole comes at the end. */
  piece(id: string, index: number, token: string): void {
    const expected = this.#pieces.get(id);
    if (expected === undefined && this.#byId.has(id)) return;
    if (index !== (expected ?? 0)) return;
    const item = this.#byId.get(id) ?? this.#append('agent', '');
    item.setAttribute('aria-busy', 'true');
    item.textContent += token;
    this.#byId.set(id, item);
    this.#pieces.set(id, index + 1);
    this.#follow();
  }

  sending(content: string): { sent: (id: string) => void; failed: () => void } {
    const item = this.#append('user', content);
    item.dataset.state = 'sending';
    this.#sending.push(item);
    const done = () => {
      const at = this.#sending.indexOf(item);
      if (at >= 0) this.#sending.splice(at, 1);
      return at >= 0;
    };
    return {
      sent: (id) => {
        // The event may have been faster than the reply.
        if (!done()) return;
        if (this.#byId.has(id)) return item.remove();
        item.removeAttribute('data-state');
        this.#byId.set(id, item);
      },
      failed: () => {
        if (done()) item.dataset.state = 'failed';
      },
    };
  }

  #append(role: string, content: string): HTMLElement {
    const item = make('p', { 'data-role': role }, content);
    this.#list.append(item);
    this.#follow();
    return item;
  }

  #follow(): void {
    const { scrollHeight, scrollTop, clientHeight } = this.#list;
    if (scrollHeight - scrollTop - clientHeight < 160) this.#list.scrollTop = scrollHeight;
  }
}

/** Cards by id, in an order; one that changes keeps its place in the tree, so that focus is not lost to its neighbours. */
export class Cards<T extends { id: string }> {
  readonly #list: HTMLElement;
  readonly #none: HTMLElement;
  readonly #count: HTMLElement;
  readonly #card: (item: T) => HTMLLIElement;
  readonly #before: (a: T, b: T) => number;
  readonly #items = new Map<string, { item: T; card: HTMLLIElement }>();

  constructor(name: string, card: (item: T) => HTMLLIElement, before: (a: T, b: T) => number) {
    this.#list = element(name);
    this.#none = element(`${name}-none`);
    this.#count = element(`${name}-count`);
    this.#card = card;
    this.#before = before;
  }

  /** True: it was not there before. */
  show(item: T): boolean {
    const known = this.#items.get(item.id);
    const card = this.#card(item);
    if (known) {
      const focused = known.card.contains(document.activeElement);
      known.card.replaceWith(card);
      if (focused) card.querySelector('button')?.focus();
    }
    this.#items.set(item.id, { item, card });
    this.#arrange();
    return !known;
  }

  replaceAll(items: T[]): void {
    this.#items.clear();
    for (const item of items) this.#items.set(item.id, { item, card: this.#card(item) });
    this.#list.replaceChildren();
    this.#arrange();
  }

  #arrange(): void {
    const sorted = [...this.#items.values()].sort((a, b) => this.#before(a.item, b.item));
    let next = this.#list.firstElementChild;
    for (const { card } of sorted) {
      if (next === card) next = next.nextElementSibling;
      else this.#list.insertBefore(card, next);
    }
    this.#none.hidden = sorted.length > 0;
    this.#count.textContent = String(sorted.length);
  }
}
