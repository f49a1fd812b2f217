import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, test } from 'node:test';
import WebSocket from 'ws';

import { connect, Proxie, ProxieError, type Options, type StateChange, type WebSocketConstructor } from '../../src/index.js';
import { reached, Recorder } from '../support.js';
import { FakeNode } from './fake.js';

const TIMEOUT = { timeout: 60_000 };

describe('over a WebSocket', TIMEOUT, () => {
  let node: FakeNode;
  let url: string;
  let clients: Proxie[];

  beforeEach(async () => {
    node = new FakeNode();
    url = await node.listen();
    clients = [];
  });
  afterEach(async () => {
    for (const client of clients) client.close();
    await node.stop();
  });

  function client(options: Partial<Options> = {}): Proxie {
    const made = connect({
      url,
      token: 'secret',
      transport: 'websocket',
      WebSocket,
      backoff: { baseMs: 1, maxMs: 5 },
      ...options,
    });
    clients.push(made);
    return made;
  }

  test('a listener that fails later is told as an error', async () => {
    const proxie = client();
    const errors = new Recorder(proxie, 'error');
    const wrong = new Error('wrong');
    proxie.on('offer:new', async () => Promise.reject(wrong));
    await reached(proxie, 'open');
    node.publish('user:clara', 'offer:new', {});
    assert.equal((await errors.one()).data.error, wrong);
  });

  test('a command that never got out says what is the matter', async () => {
    const proxie = client({ url: 'http://127.0.0.1:1', timeoutMs: 200 });
    const message = /^no reply to ping within 200 ms, http:\/\/127\.0\.0\.1:1 is not reached \(\w+\)$/;
    await assert.rejects(proxie.send('ping', {}), { code: 'deadline_exceeded', message });
  });

  test('the token is in the first frame and not in the address', async () => {
    let asked = '';
    class Spy extends WebSocket {
      constructor(address: string, protocols: string[]) {
        super(address, protocols);
        asked = address;
      }
    }
    const proxie = client({ url: `${url}/?token=secret`, WebSocket: Spy as unknown as WebSocketConstructor });
    await reached(proxie, 'open');
    assert.equal(asked, `${url.replace('http', 'ws')}/v1/ws`);
    assert.equal(node.frames[0]?.event, 'auth');
    assert.equal(node.frames[0]?.data.token, 'secret');
    assert.equal(proxie.userId, 'clara');
  });

  test('the token function is asked at every connect', async () => {
    let count = 0;
    const proxie = client({ token: async () => `token-${(count += 1)}` });
    await reached(proxie, 'open');
    node.last.socket.terminate();
    await node.until(() => node.of('auth').length === 2);
    assert.deepEqual(node.of('auth').map(({ data }) => data.token), ['token-1', 'token-2']);
  });

  test('durable events come once and in order over reconnects', async () => {
    const proxie = client();
    const offers = new Recorder(proxie, 'offer:new');
    await reached(proxie, 'open');
    for (let i = 1; i <= 20; i += 1) {
      if (i % 5 === 0) node.last.socket.terminate();
      node.publish('user:clara', 'offer:new', { request_id: String(i) });
      // A server that sends twice what it sent before.
      if (i % 3 === 0) {
        const again = node.topics.get('user:clara')!.at(-1)!;
        node.last.send({ topic: 'user:clara', ...again });
      }
    }
    await offers.one(({ request_id }) => request_id === '20');
    assert.deepEqual(offers.heard.map(({ data }) => data.request_id), Array.from({ length: 20 }, (_, i) => String(i + 1)));
    assert.deepEqual(proxie.positions, { 'user:clara': { epoch: 'ep1', offset: 20 } });
  });

  test('every subscription is restored, with its position', async () => {
    const proxie = client();
    const messages = new Recorder(proxie, 'chat:message');
    const session = await proxie.openSession();
    await proxie.subscribe('booking:b');
    await proxie.subscribe('booking:gone');
    await proxie.unsubscribe('booking:gone');
    node.last.socket.terminate();
    node.publish(session.topic, 'chat:message', { message_id: 'missed' });
    await messages.one(({ message_id }) => message_id === 'missed');
    assert.deepEqual(node.of('auth')[1]?.data.positions, {
      'user:clara': { epoch: 'ep1', offset: 0 },
      'session:ses_1': { epoch: 'ep1', offset: 0 },
      'booking:b': { epoch: 'ep1', offset: 0 },
    });
  });

  test('more topics than fit into auth are restored too', async () => {
    const proxie = client({ url });
    const topics = Array.from({ length: 400 }, (_, i) => `booking:${'x'.repeat(100)}${i}`);
    await Promise.all(topics.map((topic) => proxie.subscribe(topic)));
    const before = node.of('topic:subscribe').length;
    node.last.socket.terminate();
    await node.until(() => node.connections.length === 2 && topics.every((topic) => node.last.topics.has(topic)));
    const named = Object.keys(node.of('auth')[1]?.data.positions as object).length;
    assert.ok(named > 0 && JSON.stringify(node.of('auth')[1]).length < 65_536);
    assert.equal(named + node.of('topic:subscribe').length - before, topics.length + 1);
  });

  test('what cannot be recovered is a gap', async () => {
    const proxie = client();
    const gaps = new Recorder(proxie, 'gap');
    await proxie.subscribe('booking:b');
    node.epoch = 'ep2';
    node.last.socket.terminate();
    await gaps.until((all) => all.length === 2);
    assert.deepEqual(gaps.heard.map(({ data }) => data.topic).sort(), ['booking:b', 'user:clara']);
    assert.deepEqual(proxie.positions['booking:b'], { epoch: 'ep2', offset: 0 });
  });

  test('a subscription that is taken away ends, and says so', async () => {
    const proxie = client();
    const errors = new Recorder(proxie, 'error');
    await proxie.subscribe('booking:b');
    node.answer = (frame) => {
      if (frame.event !== 'auth') return null;
      const error = { code: 'not_found', message: 'there is no such booking', retryable: false };
      const topics = { 'user:clara': { recovered: true, position: { epoch: 'ep1', offset: 0 } }, 'booking:b': { error } };
      return { data: { user_id: 'clara', topics } };
    };
    node.last.socket.terminate();
    const { data } = await errors.one();
    assert.equal(data.topic, 'booking:b');
    assert.deepEqual(Object.keys(proxie.positions), ['user:clara']);
  });

  test('a topic that cannot be read right now is subscribed to again', async () => {
    const proxie = client();
    const messages = new Recorder(proxie, 'booking:updated');
    await proxie.subscribe('booking:b');
    node.answer = (frame) => {
      if (frame.event !== 'auth') return null;
      const error = { code: 'unavailable', message: 'the store is away', retryable: true, retry_after_ms: 1 };
      const topics = { 'user:clara': { recovered: true, position: { epoch: 'ep1', offset: 0 } }, 'booking:b': { error } };
      return { data: { user_id: 'clara', topics } };
    };
    node.last.socket.terminate();
    node.publish('booking:b', 'booking:updated', { booking: {} });
    assert.equal((await messages.one()).meta.offset, 1);
  });

  test('an unanswered command is repeated with its id', async () => {
    const proxie = client();
    node.answer = (frame, connection) => {
      if (frame.event !== 'chat:message' || node.of('chat:message').length > 2) return null;
      connection.socket.terminate();
      return undefined;
    };
    const { message_id } = await proxie.send('chat:message', { session_id: 's', content: 'hello' });
    const ids = new Set(node.of('chat:message').map(({ id }) => id));
    assert.equal(node.of('chat:message').length, 3);
    assert.deepEqual([...ids], [message_id.slice('msg_'.length)]);
  });

  test('a publication is not repeated, and waits when it was never sent', async () => {
    const proxie = client();
    const early = proxie.publish('app:room', 'app:wave', 1);
    await early;
    node.answer = (frame, connection) => {
      if (frame.event !== 'topic:publish') return null;
      connection.socket.terminate();
      return undefined;
    };
    await assert.rejects(proxie.publish('app:room', 'app:wave', 2), { code: 'unavailable' });
    assert.equal(node.of('topic:publish').length, 2);
  });

  test('a refusal that passes is tried again, within its time', async () => {
    const proxie = client();
    const error = { code: 'overloaded', message: 'later', retryable: true, retry_after_ms: 1 };
    node.answer = (frame) => (frame.event === 'offer:accept' && node.of('offer:accept').length < 3 ? { error } : null);
    await proxie.send('offer:accept', { offer_id: 'o' }, { id: 'accept-1' });
    assert.deepEqual(node.of('offer:accept').map(({ id }) => id), ['accept-1', 'accept-1', 'accept-1']);

    node.answer = (frame) => (frame.event === 'offer:accept' ? { error: { ...error, retry_after_ms: 60_000 } } : null);
    await assert.rejects(proxie.send('offer:accept', { offer_id: 'o' }), (refused) => {
      assert.ok(refused instanceof ProxieError);
      assert.equal(refused.code, 'overloaded');
      assert.equal(refused.retryAfterMs, 60_000);
      return true;
    });
  });

  test('errors have everything the server said', async () => {
    const proxie = client();
    const errors = [{ pointer: '/rating', message: 'must be 1 to 5' }];
    node.answer = (frame) =>
      frame.event === 'booking:review'
        ? { error: { code: 'rejected', message: 'no', retryable: false, reason: 'invalid', errors } }
        : null;
    await assert.rejects(proxie.send('booking:review', { booking_id: 'b', rating: 9 }), {
      name: 'ProxieError',
      code: 'rejected',
      message: 'no',
      retryable: false,
      reason: 'invalid',
      errors,
    });
  });

  test('a command that takes too long, or is given up, is rejected', async () => {
    const proxie = client();
    node.answer = (frame) => (frame.event === 'ping' ? undefined : null);
    await assert.rejects(proxie.send('ping', {}, { timeoutMs: 20 }), { code: 'deadline_exceeded' });
    const controller = new AbortController();
    const aborted = assert.rejects(proxie.send('ping', {}, { signal: controller.signal }), { name: 'AbortError' });
    controller.abort();
    await aborted;
    await assert.rejects(proxie.send('ping', {}, { signal: controller.signal }), { name: 'AbortError' });
  });

  test('the queue is bounded in commands and in bytes', async () => {
    const proxie = client({ maxPending: 2, maxQueueBytes: 1_000, token: () => new Promise(() => {}) });
    const waiting = [proxie.send('ping', {}), proxie.send('ping', {})];
    await assert.rejects(proxie.send('ping', {}), { code: 'overloaded', retryable: true });
    const other = client({ maxQueueBytes: 1_000, token: () => new Promise(() => {}) });
    await assert.rejects(other.send('ping', { blob: 'x'.repeat(1_000) }), { code: 'overloaded' });
    proxie.close();
    for (const command of waiting) await assert.rejects(command, { code: 'unavailable', reason: 'closed' });
  });

  test('not more is in flight than the server takes', async () => {
    node.limits = { in_flight: 10 };
    const proxie = client();
    const held: (() => void)[] = [];
    let most = 0;
    node.answer = (frame, connection) => {
      if (frame.event !== 'ping') return null;
      held.push(() => connection.reply(frame.id, { data: {} }));
      most = Math.max(most, held.length);
      // Let the client send what it is going to send before anything is answered.
      setImmediate(() => held.shift()?.());
      return undefined;
    };
    await Promise.all(Array.from({ length: 50 }, () => proxie.send('ping', {})));
    assert.equal(node.of('ping').length, 50);
    assert.ok(most <= 2, `${most} were in flight`);
  });

  test('a client does not send faster than the server takes', async () => {
    node.limits = { frames_per_s: 1_000, frame_burst: 10 };
    let now = 1_000;
    const proxie = client({ now: () => now });
    await reached(proxie, 'open');
    const all = Promise.all(Array.from({ length: 20 }, () => proxie.send('ping', {})));
    await node.until(() => node.of('ping').length === 8);
    // The bucket is empty until the clock moves.
    await proxie.send('ping', {}, { timeoutMs: 50 }).catch(() => {});
    assert.equal(node.of('ping').length, 8);
    now += 1_000;
    const moving = setInterval(() => (now += 1_000), 5);
    await all;
    clearInterval(moving);
    assert.equal(node.of('ping').length, 20);
  });

  test('frames that would close the connection are not sent', async () => {
    node.limits = { frame_bytes: 200 };
    const proxie = client();
    await assert.rejects(proxie.send('ping', { blob: 'é'.repeat(100) }), { code: 'too_large' });
    await assert.rejects(proxie.send('ping', {}, { id: 'with space' }), { code: 'bad_request' });
    await proxie.send('ping', {});
    assert.equal(node.connections.length, 1);
  });

  for (const code of [3500, 3501, 3503, 3504]) {
    test(`${code} is final`, async () => {
      const proxie = client({ token: () => 'secret' });
      await reached(proxie, 'open');
      const states: StateChange[] = [];
      proxie.on('state', (change) => states.push(change));
      node.last.socket.close(code, JSON.stringify({ code: 'why' }));
      await reached(proxie, 'closed');
      assert.deepEqual(states, [{ state: 'closed', transport: undefined, reason: 'why', code }]);
      await assert.rejects(proxie.send('ping', {}), { code: 'unavailable' });
      proxie.connect();
      await reached(proxie, 'open');
    });
  }

  test('3502 asks for a fresh token, and is final where there is none', async () => {
    let count = 0;
    const proxie = client({ token: () => `token-${(count += 1)}` });
    await reached(proxie, 'open');
    node.last.socket.close(3502, '{"code":"token_expired"}');
    await node.until(() => node.of('auth').length === 2);
    assert.equal(node.of('auth')[1]?.data.token, 'token-2');

    const fixed = client();
    await reached(fixed, 'open');
    node.last.socket.close(3502, '{"code":"token_expired"}');
    await reached(fixed, 'closed');
  });

  test('a refused auth is final only if it would be refused again', async () => {
    const refusals = ['unavailable', 'unauthenticated'];
    node.answer = (frame) => {
      if (frame.event !== 'auth') return null;
      return { error: { code: refusals.shift(), message: 'no', retryable: false, retry_after_ms: 1 } };
    };
    const proxie = client();
    const errors = new Recorder(proxie, 'error');
    await reached(proxie, 'closed');
    assert.deepEqual(errors.heard.map(({ data }) => (data.error as ProxieError).code), ['unavailable', 'unauthenticated']);
  });

  test('retry_after_ms of the close is waited for, with jitter on top', async () => {
    const now = 1_000_000;
    const proxie = client({ now: () => now, random: () => 0.5, backoff: { baseMs: 1_000, maxMs: 10_000 } });
    await reached(proxie, 'open');
    const states: StateChange[] = [];
    proxie.on('state', (change) => states.push(change));
    node.last.socket.close(3000, JSON.stringify({ code: 'draining', retry_after_ms: 70_000 }));
    await reached(proxie, 'waiting');
    assert.deepEqual(states, [
      { state: 'waiting', transport: undefined, reason: 'draining', code: 3000, nextAttemptAt: now + 70_500 },
    ]);
  });

  test('the backoff grows until a connection was good for a while', async () => {
    let now = 0;
    const waits: number[] = [];
    const proxie = client({ now: () => now, random: () => 1, backoff: { baseMs: 1, maxMs: 64, stableMs: 5_000 } });
    proxie.on('state', (change) => {
      if (change.nextAttemptAt !== undefined) waits.push(change.nextAttemptAt - now);
      if (change.state !== 'open') return;
      // The fourth connection is a good one.
      if (node.connections.length === 4) now += 5_000;
      if (node.connections.length <= 4) node.last.socket.terminate();
    });
    await node.until(() => node.connections.length === 5);
    assert.deepEqual(waits, [1, 2, 4, 1]);
  });

  test('a connect that takes too long is given up', async () => {
    const proxie = client({ connectTimeoutMs: 20 });
    node.answer = (frame) => (frame.event === 'auth' ? undefined : null);
    const states = new Recorder(proxie, 'state');
    await states.one(({ reason }) => reason === 'connect_timeout');
    node.answer = () => null;
    await reached(proxie, 'open');
  });

  test('token:expiring refreshes the token', async () => {
    let count = 0;
    const proxie = client({ token: () => `token-${(count += 1)}` });
    await reached(proxie, 'open');
    node.last.send({ event: 'token:expiring', data: { expires_at: 'soon' } });
    await node.until(() => node.of('auth:refresh').length === 1);
    assert.equal(node.of('auth:refresh')[0]?.data.token, 'token-2');
    assert.equal(node.connections.length, 1);
  });

  test('a silent connection is asked, and given up when it stays silent', async () => {
    node.pingMs = 10;
    const proxie = client({ graceMs: 10 });
    await node.until(() => node.of('ping').length >= 2);
    assert.equal(node.connections.length, 1);
    const states = new Recorder(proxie, 'state');
    node.answer = (frame) => (frame.event === 'ping' ? undefined : null);
    await states.one(({ reason }) => reason === 'heartbeat_timeout');
    await node.until(() => node.connections.length >= 2);
  });

  test("another user's token ends the client", async () => {
    const proxie = client();
    await reached(proxie, 'open');
    node.userId = 'mallory';
    node.answer = (frame) => (frame.event === 'chat:message' ? undefined : null);
    const held = assert.rejects(proxie.send('chat:message', { session_id: 's', content: 'x' }), { code: 'forbidden' });
    await node.until(() => node.of('chat:message').length === 1);
    node.last.socket.terminate();
    await reached(proxie, 'closed');
    await held;
    assert.equal(node.of('chat:message').length, 1);
  });

  test('coming back online tries at once, but not before the server allowed', async (t) => {
    // Node has no such event; a browser has it on the global object.
    const browser = new EventTarget();
    const names = ['addEventListener', 'removeEventListener'] as const;
    for (const name of names) Object.assign(globalThis, { [name]: browser[name].bind(browser) });
    t.after(() => names.forEach((name) => delete (globalThis as Record<string, unknown>)[name]));

    let now = 0;
    const options = { baseMs: 3_600_000, maxMs: 3_600_000 };
    const proxie = client({ backoff: options, now: () => now, random: () => 1 });
    await reached(proxie, 'open');
    node.last.socket.terminate();
    await reached(proxie, 'waiting');
    browser.dispatchEvent(new Event('online'));
    await reached(proxie, 'open');

    node.last.socket.close(3009, JSON.stringify({ code: 'too_many_frames', retry_after_ms: 200_000 }));
    await reached(proxie, 'waiting');
    browser.dispatchEvent(new Event('online'));
    assert.equal(proxie.state, 'waiting');
    now += 200_000;
    browser.dispatchEvent(new Event('online'));
    await reached(proxie, 'open');
    // An open connection is asked whether it still lives.
    browser.dispatchEvent(new Event('online'));
    await node.until(() => node.of('ping').length === 1);
  });

  test("one listener's mistake is not the others'", async () => {
    const proxie = client();
    const errors = new Recorder(proxie, 'error');
    proxie.on('offer:new', () => {
      throw new Error('mine');
    });
    const offers = new Recorder(proxie, 'offer:new');
    await reached(proxie, 'open');
    node.publish('user:clara', 'offer:new', { request_id: 'r' });
    await offers.one();
    assert.equal(((await errors.one()).data.error as Error).message, 'mine');
  });

  test('a listener can go', async () => {
    const proxie = client();
    let count = 0;
    const off = proxie.on('offer:new', () => {
      count += 1;
      off();
    });
    const offers = new Recorder(proxie, 'offer:new');
    await reached(proxie, 'open');
    node.publish('user:clara', 'offer:new', {});
    node.publish('user:clara', 'offer:new', {});
    await offers.until((all) => all.length === 2);
    assert.equal(count, 1);
  });
});

test('an address must be one of a node', () => {
  assert.throws(() => new Proxie({ url: 'ftp://example.org', token: '' }), TypeError);
});
