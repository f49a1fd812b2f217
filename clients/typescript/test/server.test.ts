// Against a real node: PROXIE_URL is its address, PROXIE_TOKEN_CONSUMER a consumer's token.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { after, describe, test } from 'node:test';
import WebSocket from 'ws';

import { connect, ProxieError, type Options, type Proxie } from '../src/index.js';
import { cuttable, cuttableFetch, reached, Recorder } from './support.js';

const url = process.env.PROXIE_URL;
const token = process.env.PROXIE_TOKEN_CONSUMER;
const missing = !url || !token;
const skip = missing && process.env.PROXIE_REQUIRED !== '1' && 'PROXIE_URL and PROXIE_TOKEN_CONSUMER name no node';

const SENTENCE = 'I need a haircut tomorrow at 5 pm near Alexanderplatz in Berlin, up to 60 euros';

describe('a real node', { skip, timeout: 120_000 }, () => {
  const clients: Proxie[] = [];
  after(() => clients.forEach((client) => client.close()));

  function client(options: Partial<Options> = {}): Proxie {
    assert.ok(url && token, 'PROXIE_URL and PROXIE_TOKEN_CONSUMER are required');
    const made = connect({
      url,
      token: () => token,
      transport: 'websocket',
      WebSocket,
      timeoutMs: 60_000,
      backoff: { baseMs: 50, maxMs: 500 },
      ...options,
    });
    clients.push(made);
    return made;
  }

  test('from one sentence to a booking', async () => {
    const proxie = client();
    const offers = new Recorder(proxie, 'offer:new');
    const bookings = new Recorder(proxie, 'booking:confirmed');
    const session = await proxie.openSession({ time_zone: 'Europe/Berlin', locale: 'en' });
    const tokens = new Recorder(session, 'chat:stream');
    const responses = new Recorder(session, 'chat:response');

    const { message_id } = await session.say(SENTENCE);
    assert.match(message_id, /^msg_/);
    const { data: response } = await responses.one();
    assert.equal(response.session_id, session.id);
    assert.ok(response.content.length > 0);
    const { data: word } = await tokens.one();
    assert.equal(word.session_id, session.id);

    const { data: made } = await offers.one();
    const offerId = String(made.offer.id);
    const { booking_id } = await proxie.send('offer:accept', { offer_id: offerId });
    await bookings.one(({ booking }) => booking.id === booking_id);
  });

  test('two clients in one session', async () => {
    const [first, second] = [client(), client()];
    const session = await first.openSession({ time_zone: 'Europe/Berlin' });
    const same = await second.session(session.id);
    const [atFirst, atSecond] = [session, same].map((s) => new Recorder(s, 'chat:message'));
    const typing = new Recorder(same, 'chat:typing');

    await session.typing(true);
    assert.equal((await typing.one()).data.is_typing, true);
    const { message_id } = await session.say('hello');
    for (const recorder of [atFirst, atSecond]) {
      const { data } = await recorder!.one();
      assert.equal(data.message_id, message_id);
      assert.equal(data.content, 'hello');
    }

    const ended = new Recorder(same, 'session:ended');
    await session.end();
    await ended.one();
  });

  test('what is cut in the middle is neither missed nor told twice', async () => {
    const network = cuttable();
    const listener = client({ WebSocket: network.WebSocket });
    const speaker = client();
    const session = await speaker.openSession({ time_zone: 'Europe/Berlin' });
    const same = await listener.session(session.id);
    const gaps = new Recorder(listener, 'gap');
    const heard = new Recorder(listener, 'chat:message', 'chat:response');

    const rounds = 6;
    for (let round = 0; round < rounds; round += 1) {
      const said = session.say(`hello ${round}`);
      if (round % 2 === 0) network.cut();
      await said;
      if (round % 2 === 1) network.cut();
    }
    await heard.until((all) => all.length >= 2 * rounds);
    // Whatever is said after all of it comes after all of it.
    const last = await same.say('the last');
    await heard.until((all) => all.some(({ data }) => 'role' in data && data.message_id === last.message_id));

    const offsets = heard.heard.map(({ meta }) => meta.offset as number);
    assert.deepEqual(offsets, offsets.map((_, i) => (offsets[0] as number) + i));
    const contents = heard.heard.flatMap(({ data }) => ('role' in data ? [data.content] : []));
    assert.deepEqual(contents, [...Array.from({ length: rounds }, (_, i) => `hello ${i}`), 'the last']);
    assert.ok(network.opened.length > 1, 'nothing was cut');
    assert.deepEqual(gaps.heard, []);
  });

  test('a command whose reply is lost is done once', async () => {
    const network = cuttable();
    const proxie = client({ WebSocket: network.WebSocket });
    const session = await proxie.openSession();
    const messages = new Recorder(session, 'chat:message');
    const said = session.say('only once');
    // The frame is written; nobody hears the reply.
    network.cut();
    const { message_id } = await said;
    const after = await session.say('after it');
    await messages.one((data) => data.message_id === after.message_id);
    assert.deepEqual(messages.heard.map(({ data }) => data.message_id), [message_id, after.message_id]);
  });

  test('a client goes on where an earlier one stood', async () => {
    const earlier = client();
    const session = await earlier.openSession();
    const answered = new Recorder(session, 'chat:response');
    await session.say('the first');
    await answered.one();
    const { positions } = earlier;
    earlier.close();

    const speaker = client();
    await speaker.session(session.id);
    await speaker.send('chat:message', { session_id: session.id, content: 'while nobody was there' });
    const later = client({ positions });
    const messages = new Recorder(later, 'chat:message');
    const { data } = await messages.one();
    assert.equal(data.content, 'while nobody was there');
  });

  test('from one sentence to a booking over Server-Sent Events', async () => {
    const proxie = client({ transport: 'sse' });
    const offers = new Recorder(proxie, 'offer:new');
    const bookings = new Recorder(proxie, 'booking:confirmed');
    const responses = new Recorder(proxie, 'chat:response');
    const session = await proxie.openSession({ time_zone: 'Europe/Berlin', locale: 'en' });
    await session.say(SENTENCE);
    await responses.one(({ session_id }) => session_id === session.id);
    const { data: made } = await offers.one();
    const { booking_id } = await proxie.send('offer:accept', { offer_id: String(made.offer.id) });
    await bookings.one(({ booking }) => booking.id === booking_id);
  });

  test('a stream that is cut goes on where it was', async () => {
    const network = cuttableFetch();
    const listener = client({ transport: 'sse', fetch: network.fetch });
    const speaker = client();
    const session = await speaker.openSession();
    await listener.session(session.id);
    const gaps = new Recorder(listener, 'gap');
    const heard = new Recorder(listener, 'chat:message', 'chat:response');
    for (let round = 0; round < 6; round += 1) {
      const said = session.say(`hello ${round}`);
      if (round % 2 === 0) network.cut();
      await said;
      if (round % 2 === 1) network.cut();
    }
    await heard.until((all) => all.length >= 12);
    const offsets = heard.heard.map(({ meta }) => meta.offset as number);
    assert.deepEqual(offsets, offsets.map((_, i) => (offsets[0] as number) + i));
    assert.ok(network.streams() > 2, 'nothing was cut');
    assert.deepEqual(gaps.heard, []);
  });

  test('what there is can be read, with types', async () => {
    const proxie = client();
    const { items } = await proxie.get('/v1/bookings', { limit: 1 });
    const [booking] = items;
    assert.ok(booking, 'an earlier test has booked');
    assert.deepEqual(await proxie.get('/v1/bookings/{id}', { id: booking.id }), booking);
    const request = await proxie.get('/v1/requests/{id}', { id: booking.request_id });
    assert.deepEqual([request.status, request.booking_id], ['booked', booking.id]);
    const offers = await proxie.get('/v1/requests/{id}/offers', { id: request.id, limit: 100 });
    const accepted = offers.items.find(({ id }) => id === booking.offer_id);
    assert.deepEqual(await proxie.get('/v1/offers/{id}', { id: booking.offer_id }), accepted);
    const provider = await proxie.get('/v1/providers/{id}', { id: booking.provider.id });
    assert.equal(provider.name, booking.provider.name);
    const sessions = await proxie.get('/v1/sessions', { limit: 2 });
    assert.ok(sessions.next_cursor, 'there are more');
    const more = await proxie.get('/v1/sessions', { limit: 2, cursor: sessions.next_cursor });
    assert.ok(sessions.items.every(({ id }) => more.items.every((other) => other.id !== id)));
    const { items: messages } = await proxie.get('/v1/sessions/{id}/messages', { id: String(request.session_id) });
    assert.equal(messages[0]?.content, SENTENCE);
    assert.equal((await proxie.get('/v1/sync/state/{id}', { id: 'me' })).user_id, proxie.userId ?? 'clara');
    for (const path of ['/v1/devices', '/v1/playback/session', '/v1/playback/platforms', '/v1/providers'] as const) {
      assert.ok(Array.isArray((await proxie.get(path)).items), path);
    }
    await assert.rejects(proxie.get('/v1/bookings/{id}', { id: 'bkg_nobody' }), { code: 'not_found' });
    const stranger = client({ token: 'not-a-token' });
    stranger.on('error', () => {});
    await assert.rejects(stranger.get('/v1/bookings'), { code: 'unauthenticated' });
  });

  test('errors are typed', async () => {
    const proxie = client();
    await assert.rejects(proxie.send('offer:accept', { offer_id: 'off_01ARZ3NDEKTSV4RRFFQ69G5FAV' }), (error) => {
      assert.ok(error instanceof ProxieError);
      assert.equal(error.code, 'not_found');
      assert.equal(error.retryable, false);
      return true;
    });
    await assert.rejects(proxie.send('request:create', { service: 'flying' as never }), (error) => {
      assert.ok(error instanceof ProxieError);
      assert.equal(error.code, 'bad_request');
      assert.ok(error.errors?.some(({ pointer }) => pointer === '/service'));
      return true;
    });
    await assert.rejects(proxie.subscribe('user:somebody-else'), { code: 'forbidden' });
    await assert.rejects(proxie.send('ping', { blob: 'x'.repeat(70_000) }), { code: 'too_large' });
    const { now } = await proxie.send('ping', {});
    assert.ok(Number.isFinite(Date.parse(now)));
  });

  test('the same id is the same command', async () => {
    const proxie = client();
    const session = await proxie.openSession();
    const id = `same-${Date.now()}`;
    const first = await session.say('hello', { id });
    assert.deepEqual(await session.say('hello', { id }), first);
    await assert.rejects(session.say('something else', { id }), { code: 'id_reused' });
  });

  test('a bad token is final', async () => {
    const proxie = client({ token: 'not-a-token' });
    proxie.on('error', () => {});
    const refused = assert.rejects(proxie.send('ping', {}), { code: 'unauthenticated' });
    await reached(proxie, 'closed');
    await refused;
  });

  test('the types are those of the schema', async () => {
    assert.ok(url);
    const generator = fileURLToPath(new URL('../../scripts/generate.mjs', import.meta.url));
    await promisify(execFile)(process.execPath, [generator, url, '--check']);
  });
});
