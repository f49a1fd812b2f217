import {
  connect,
  ProxieError,
  type Booking,
  type Offer,
  type Proxie,
  type Session,
  type StateChange,
} from '../../typescript/src/index.js';
import { Api } from './api.js';
import { bookingCard, Cards, element, Log, money, offerCard, percent } from './view.js';

const TOKEN = 'proxie-token';
/** While somebody goes on typing, the others are told so often. */
const TYPING_MS = 3_000;

const messages = new Log(element('messages'));
const offers = new Cards<Placed>('offers', (offer) => offerCard(offer, offer.zone, { accept, decline }), byRank);
const bookings = new Cards<Booking>('bookings', bookingCard, (a, b) => (a.created_at < b.created_at ? 1 : -1));
/** Tells this browser's other tabs which conversation is the present one. */
const tabs = 'BroadcastChannel' in globalThis ? new BroadcastChannel('proxie') : undefined;

/** An offer, and the time zone of its place. */
type Placed = Offer & { zone: string | undefined };

let proxie: Proxie | undefined;
let api: Api | undefined;
let session: Session | undefined;
/** The conversation that is being found. */
let opening: Promise<void> | undefined;
let typedAt = 0;
/** What happens in a conversation while its beginning is loaded, so that it comes after that. */
let held: (() => void)[] | undefined;

/** What can be accepted comes first, and of that the best. */
function byRank(a: Offer, b: Offer): number {
  const open = Number(b.status === 'open') - Number(a.status === 'open');
  return open || b.score.total - a.score.total || (a.id < b.id ? -1 : 1);
}

const here = () => ({
  time_zone: Intl.DateTimeFormat().resolvedOptions().timeZone,
  locale: navigator.language,
});

function said(error: unknown): string {
  if (error instanceof ProxieError && error.code === 'unavailable') {
    return 'The node cannot be reached at the moment. Try again in a few seconds.';
  }
  return error instanceof Error ? error.message : String(error);
}

// ---- Signing in and out -------------------------------------------------------------------------------------------

function signIn(token: string): void {
  sessionStorage.setItem(TOKEN, token);
  element('sign-in-error').textContent = '';
  const client = connect({ url: location.origin, token });
  proxie = client;
  api = new Api(client);
  client.on('state', (change) => connection(change));
  client.on('error', ({ error, topic }) => console.warn('proxie', topic ?? '', error));
  client.on('gap', ({ topic }) => void (topic === session?.topic ? converse(session.id) : load()));
  client.on('chat:message', ({ message_id, role, content }, { topic }) => {
    inSession(topic, () => messages.show(message_id, role, content));
  });
  client.on('chat:stream', ({ message_id, index, token: piece }, { topic }) => {
    inSession(topic, () => messages.piece(message_id, index, piece));
  });
  client.on('chat:response', ({ message_id, content }, { topic }) => {
    inSession(topic, () => messages.show(message_id, 'agent', content));
  });
  client.on('chat:typing', ({ is_typing }, { topic }) => {
    const elsewhere = topic === session?.topic && is_typing && Date.now() - typedAt > 2 * TYPING_MS;
    element('typing').textContent = elsewhere ? 'Somebody types on another device…' : '';
  });
  client.on('session:ended', ({ session_id }) => {
    if (session_id === session?.id) void converse();
  });
  client.on('offer:new', ({ offer }) => void showOffer(offer));
  client.on('offer:updated', ({ offer }) => void showOffer(offer));
  client.on('booking:confirmed', ({ booking }) => showBooking(booking));
  client.on('booking:updated', ({ booking }) => showBooking(booking));
}

function inSession(topic: string | undefined, happens: () => void): void {
  if (topic !== session?.topic) return;
  if (held) held.push(happens);
  else happens();
}

function signOut(reason = ''): void {
  sessionStorage.removeItem(TOKEN);
  proxie?.close();
  proxie = api = session = held = undefined;
  messages.clear();
  offers.replaceAll([]);
  bookings.replaceAll([]);
  shows('signed-out');
  element('sign-in-error').textContent = reason;
  element('token').focus();
}

function shows(view: 'signed-in' | 'signed-out'): void {
  element('signed-in').hidden = view !== 'signed-in';
  element('signed-out').hidden = view !== 'signed-out';
  element('sign-out').hidden = view !== 'signed-in';
}

function connection({ state, reason, transport }: StateChange): void {
  const shown = element('connection');
  shown.dataset.state = state;
  shown.textContent = {
    connecting: 'Connecting…',
    open: transport === 'sse' ? 'Connected, by event stream' : 'Connected',
    waiting: 'Connection lost. Trying again…',
    closed: 'Not connected',
  }[state];
  if (state === 'open' && element('signed-in').hidden) {
    shows('signed-in');
    element('say').focus();
    void begin();
  }
  if (state === 'closed' && proxie && reason !== 'closed') {
    const why: Record<string, string> = {
      token_expired: 'The token has ended.',
      origin_not_allowed: 'The node does not allow this page: see gateway.allowed_origins.',
    };
    signOut(why[reason ?? ''] ?? 'This token is not accepted.');
  }
}

// ---- What is shown ------------------------------------------------------------------------------------------------

async function begin(): Promise<void> {
  // The events of the user's own topic are coming already: nothing falls between them and what is loaded.
  await Promise.all([converse(), load()]);
}

/** Goes on with the conversation that was the last one, or begins another. */
function converse(wanted?: string): Promise<void> {
  opening = open(wanted);
  return opening;
}

async function open(wanted?: string): Promise<void> {
  const client = proxie;
  if (!client || !api) return;
  try {
    const last = wanted ?? (await api.lastSession());
    const opened = last === undefined ? await client.openSession(here()) : await client.session(last);
    if (client !== proxie) return;
    const later: (() => void)[] = [];
    session = opened;
    held = later;
    messages.clear();
    element('chat-error').textContent = '';
    const before = await api.messages(opened.id);
    // Another conversation may have been chosen meanwhile.
    if (held !== later) return;
    for (const { id, role, content } of before) messages.show(id, role, content);
    for (const happens of later) happens();
  } catch (error) {
    element('chat-error').textContent = said(error);
  }
  held = undefined;
}

async function load(): Promise<void> {
  const from = api;
  if (!from) return;
  try {
    const [someOffers, someBookings] = await Promise.all([from.offers(), from.bookings()]);
    if (from !== api) return;
    offers.replaceAll(await Promise.all(someOffers.map((offer) => placed(from, offer))));
    bookings.replaceAll(someBookings);
  } catch (error) {
    element('chat-error').textContent = said(error);
  }
}

async function placed(from: Api, offer: Offer): Promise<Placed> {
  return { ...offer, zone: await from.timeZone(offer.request_id) };
}

/** Offers of one request wait for the same answer, so they stay in order. */
async function showOffer(offer: Offer): Promise<void> {
  const from = api;
  if (!from) return;
  const shown = await placed(from, offer);
  if (from !== api || !offers.show(shown)) return;
  const { provider, price, score } = offer;
  element('offers-news').textContent =
    `New offer of ${provider.name} for ${money(price)}, score ${percent(score.total)}`;
}

function showBooking(booking: Booking): void {
  bookings.show(booking);
  element('bookings-news').textContent = `Booking with ${booking.provider.name}: ${booking.status.replace('_', ' ')}`;
}

// ---- What is done -------------------------------------------------------------------------------------------------

function accept(offer: Offer, button: HTMLButtonElement): void {
  act(button, proxie?.send('offer:accept', { offer_id: offer.id }));
}

function decline(offer: Offer, button: HTMLButtonElement): void {
  act(button, proxie?.send('offer:decline', { offer_id: offer.id }));
}

/** The outcome comes as an event, like for every other device. */
function act(button: HTMLButtonElement, sent: Promise<unknown> | undefined): void {
  const card = button.closest('.card');
  for (const one of card?.querySelectorAll('button') ?? []) one.disabled = true;
  sent?.catch((error: unknown) => {
    for (const one of card?.querySelectorAll('button') ?? []) one.disabled = false;
    const shown = card?.querySelector('[role="alert"]');
    if (shown) shown.textContent = said(error);
  });
}

async function say(content: string): Promise<void> {
  if (content.trim() === '') return;
  await opening;
  const present = session;
  if (!present) {
    field.value ||= content;
    return;
  }
  const pending = messages.sending(content);
  element('chat-error').textContent = '';
  try {
    pending.sent((await present.say(content)).message_id);
  } catch (error) {
    pending.failed();
    element('chat-error').textContent = said(error);
  }
}

element<HTMLFormElement>('sign-in').addEventListener('submit', (event) => {
  event.preventDefault();
  const field = element<HTMLInputElement>('token');
  const token = field.value.trim();
  field.value = '';
  if (token) signIn(token);
});
element('sign-out').addEventListener('click', () => signOut());
element('new-session').addEventListener('click', () => {
  proxie
    ?.openSession(here())
    .then(({ id }) => {
      tabs?.postMessage(id);
      return converse(id);
    })
    .catch((error: unknown) => {
      element('chat-error').textContent = said(error);
    });
  element('say').focus();
});
tabs?.addEventListener('message', ({ data }: MessageEvent<unknown>) => {
  if (typeof data === 'string' && data !== session?.id) void converse(data);
});

const field = element<HTMLTextAreaElement>('say');
element<HTMLFormElement>('chat').addEventListener('submit', (event) => {
  event.preventDefault();
  void say(field.value);
  field.value = '';
  typedAt = 0;
});
field.addEventListener('keydown', (event) => {
  // While a word is being composed, Enter is part of it.
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  field.form?.requestSubmit();
});
field.addEventListener('input', () => {
  if (Date.now() - typedAt < TYPING_MS) return;
  typedAt = Date.now();
  // Lossy, and not worth a word where it fails.
  session?.typing(true).catch(() => {});
});

const token = sessionStorage.getItem(TOKEN);
if (token) signIn(token);
else element('token').focus();
