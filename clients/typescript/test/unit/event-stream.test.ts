// The fallback, against a small server that speaks the wire of GET /v1/events and of the HTTP API.

import assert from 'node:assert/strict';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, beforeEach, describe, test } from 'node:test';
import WebSocket from 'ws';

import { connect, ProxieError, type Options, type Proxie, type StateChange } from '../../src/index.js';
import { reached, Recorder } from '../support.js';

interface Post {
  path: string;
  key: string | undefined;
  token: string | undefined;
  body: Record<string, unknown>;
}

interface Stream {
  topics: string[];
  cursor: string | undefined;
  token: string | undefined;
  response: ServerResponse;
}

class FakeApi {
  readonly #server: Server = createServer((request, response) => void this.#serve(request, response));
  readonly streams: Stream[] = [];
  readonly posts: Post[] = [];
  readonly publications: { topic: string; event: string; offset: number; data: unknown }[] = [];
  upgrades = 0;
  /** What `POST /v1/ws` says: why an upgrade is refused. */
  refusal: [number, unknown, Record<string, string>?] = [400, { code: 'bad_request' }];
  reads: { path: string; token: string | undefined }[] = [];
  pingMs = 25_000;
  /** The answer to a command: status, body, headers. */
  answer: (post: Post) => [number, unknown, Record<string, string>?] = () => [200, {}];
  refuseStream: ((stream: Stream) => [number, unknown, Record<string, string>?] | undefined) | undefined;
  topicErrors: Record<string, unknown> = {};
  #waiting: (() => void)[] = [];

  async listen(): Promise<string> {
    this.#server.on('upgrade', (_, socket) => {
      this.upgrades += 1;
      socket.end('HTTP/1.1 403 Forbidden\r\nConnection: close\r\n\r\n');
    });
    await new Promise<void>((resolve) => this.#server.listen(0, '127.0.0.1', resolve));
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async stop(): Promise<void> {
    const stopped = new Promise((resolve) => this.#server.close(resolve));
    this.#server.closeAllConnections();
    await stopped;
  }

  get last(): Stream {
    return this.streams.at(-1)!;
  }

  async until(enough: () => boolean): Promise<void> {
    while (!enough()) await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  /** The cursor is the number of all publications, whatever their topic. */
  publish(topic: string, event: string, data: unknown): void {
    const offset = this.#head(topic) + 1;
    this.publications.push({ topic, event, offset, data });
    for (const stream of this.streams) {
      if (stream.topics.includes(topic) && !stream.response.destroyed) this.#send(stream, this.publications.length);
    }
  }

  write(text: string | Uint8Array): void {
    this.last.response.write(text);
  }

  #head(topic: string): number {
    return this.publications.filter((publication) => publication.topic === topic).length;
  }

  #send(stream: Stream, count: number): void {
    const publication = this.publications[count - 1]!;
    const data = JSON.stringify({ ...publication });
    stream.response.write(`event: ${publication.event}\nid: ${count}\ndata: ${data}\n\n`);
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(request.url ?? '', 'http://node');
    const token = request.headers.authorization?.replace('Bearer ', '');
    if (url.pathname === '/v1/events') this.#stream(url, token, request, response);
    else if (url.pathname === '/v1/ws') this.#respond(response, ...this.refusal);
    else if (request.method === 'GET') {
      this.reads.push({ path: request.url ?? '', token });
      this.#respond(response, ...this.answer({ path: url.pathname, key: undefined, token, body: {} }));
    }
    else {
      const chunks: Buffer[] = [];
      for await (const chunk of request) chunks.push(chunk as Buffer);
      const key = request.headers['idempotency-key'] as string | undefined;
      const body = JSON.parse(Buffer.concat(chunks).toString()) as Record<string, unknown>;
      const post = { path: url.pathname, key, token, body };
      this.posts.push(post);
      this.#respond(response, ...this.answer(post));
    }
    for (const check of this.#waiting.splice(0)) check();
  }

  #respond(response: ServerResponse, status: number, body: unknown, headers: Record<string, string> = {}): void {
    if (status === 0) return void response.destroy();
    const type = status < 300 ? 'application/json' : 'application/problem+json';
    response.writeHead(status, { 'Content-Type': type, ...headers });
    response.end(typeof body === 'string' ? body : JSON.stringify(body));
  }

  #stream(url: URL, token: string | undefined, request: IncomingMessage, response: ServerResponse): void {
    assert.equal(request.headers.accept, 'text/event-stream');
    const cursor = request.headers['last-event-id'] as string | undefined;
    const stream = { topics: ['user:clara', ...url.searchParams.getAll('topic')], cursor, token, response };
    const refused = this.refuseStream?.(stream);
    if (refused) return this.#respond(response, ...refused);
    this.streams.push(stream);
    response.writeHead(200, { 'Content-Type': 'text/event-stream' });
    const topics = Object.fromEntries(
      stream.topics.map((topic) => [
        topic,
        this.topicErrors[topic] ?? { recovered: true, position: { epoch: 'ep1', offset: this.#head(topic) } },
      ]),
    );
    const data = JSON.stringify({ user_id: 'clara', ping_ms: this.pingMs, topics });
    const from = cursor === undefined ? this.publications.length : Number(cursor);
    response.write(`event: ready\nid: ${from}\ndata: ${data}\n\n`);
    this.publications.forEach(({ topic }, i) => {
      if (i >= from && stream.topics.includes(topic)) this.#send(stream, i + 1);
    });
  }
}

describe('over Server-Sent Events', { timeout: 60_000 }, () => {
  let api: FakeApi;
  let url: string;
  let clients: Proxie[];

  beforeEach(async () => {
    api = new FakeApi();
    url = await api.listen();
    clients = [];
  });
  afterEach(async () => {
    for (const client of clients) client.close();
    await api.stop();
  });

  function client(options: Partial<Options> = {}): Proxie {
    const made = connect({ url, token: 'secret', transport: 'sse', backoff: { baseMs: 1, maxMs: 5 }, ...options });
    clients.push(made);
    return made;
  }

  test('a whole conversation', async () => {
    const proxie = client();
    const messages = new Recorder(proxie, 'chat:message');
    api.answer = ({ path }) => (path === '/v1/sessions' ? [201, { id: 'ses_1' }] : [201, { message_id: 'msg_1' }]);
    const session = await proxie.openSession({ locale: 'en' });
    assert.equal(session.id, 'ses_1');
    assert.deepEqual(api.last.topics, ['user:clara', 'session:ses_1']);
    assert.deepEqual(await session.say('hello', { id: 'say-1' }), { message_id: 'msg_1' });
    const { path, key, token, body } = api.posts.at(-1)!;
    assert.deepEqual([path, key, token], ['/v1/sessions/ses_1/messages', 'say-1', 'secret']);
    assert.equal(body.content, 'hello');
    api.publish('session:ses_1', 'chat:message', { content: 'é😀', session_id: 'ses_1' });
    const { data, meta } = await messages.one();
    assert.equal(data.content, 'é😀');
    assert.deepEqual([meta.topic, meta.offset], ['session:ses_1', 1]);
    await session.leave();
    await api.until(() => api.last.topics.length === 1);
    assert.deepEqual(Object.keys(proxie.positions), ['user:clara']);
  });

  test('every command has its path', async () => {
    const proxie = client();
    await reached(proxie, 'open');
    await proxie.send('request:create', { text: 'a haircut' });
    await proxie.send('request:cancel', { request_id: 'r/1' });
    await proxie.send('offer:accept', { offer_id: 'o' });
    await proxie.send('offer:decline', { offer_id: 'o' });
    await proxie.send('booking:cancel', { booking_id: 'b' });
    await proxie.send('booking:review', { booking_id: 'b', rating: 5 });
    await proxie.send('booking:no_show', { booking_id: 'b' });
    assert.deepEqual(
      api.posts.map(({ path }) => path),
      [
        '/v1/requests',
        '/v1/requests/r%2F1/cancel',
        '/v1/offers/o/accept',
        '/v1/offers/o/decline',
        '/v1/bookings/b/cancel',
        '/v1/bookings/b/review',
        '/v1/bookings/b/no-show',
      ],
    );
    for (const refused of [
      proxie.publish('app:room', 'app:wave', 1),
      proxie.send('chat:typing', { session_id: 's', is_typing: true }),
      proxie.send('session:close', { session_id: 's', end: true }),
    ]) {
      await assert.rejects(refused, { code: 'unavailable', reason: 'needs_websocket', retryable: false });
    }
  });

  test('what is cut is neither missed nor told twice', async () => {
    const proxie = client();
    const offers = new Recorder(proxie, 'offer:new');
    const gaps = new Recorder(proxie, 'gap');
    await reached(proxie, 'open');
    for (let i = 1; i <= 12; i += 1) {
      if (i % 4 === 0) api.last.response.destroy();
      api.publish('user:clara', 'offer:new', { request_id: String(i) });
      if (i % 3 === 0) await offers.one(({ request_id }) => request_id === String(i));
    }
    assert.deepEqual(offers.heard.map(({ data }) => data.request_id), Array.from({ length: 12 }, (_, i) => String(i + 1)));
    assert.ok(api.streams.length > 1);
    assert.ok(api.last.cursor !== undefined);
    assert.deepEqual(gaps.heard, []);
  });

  test('a new subscription reopens the stream where it was', async () => {
    const proxie = client();
    const offers = new Recorder(proxie, 'offer:new');
    await reached(proxie, 'open');
    api.publish('user:clara', 'offer:new', { request_id: '1' });
    await offers.one();
    const both = [proxie.subscribe('booking:a'), proxie.subscribe('booking:b')];
    api.publish('user:clara', 'offer:new', { request_id: '2' });
    for (const reply of both) assert.equal((await reply).recovered, true);
    await offers.until((all) => all.length === 2);
    assert.deepEqual(offers.heard.map(({ data }) => data.request_id), ['1', '2']);
    assert.deepEqual(api.last.topics, ['user:clara', 'booking:a', 'booking:b']);
    assert.equal(proxie.state, 'open');
  });

  test('a topic that is refused', async () => {
    const proxie = client();
    api.topicErrors = { 'booking:b': { error: { code: 'not_found', message: 'no', retryable: false } } };
    await assert.rejects(proxie.subscribe('booking:b'), { code: 'not_found' });
    await proxie.subscribe('booking:c');
    assert.deepEqual(api.last.topics, ['user:clara', 'booking:c']);
  });

  test('positions without a cursor: nothing happened, or a gap', async () => {
    api.publish('user:clara', 'offer:new', {});
    api.publish('booking:b', 'booking:updated', {});
    const at = (offset: number) => ({ epoch: 'ep1', offset });
    const proxie = client({ positions: { 'user:clara': at(0), 'booking:b': at(1) } });
    const gaps = new Recorder(proxie, 'gap');
    await reached(proxie, 'open');
    assert.deepEqual(gaps.heard.map(({ data }) => data), [{ topic: 'user:clara', position: at(1) }]);
    assert.deepEqual(proxie.positions, { 'user:clara': at(1), 'booking:b': at(1) });
  });

  test('a cursor that is refused is given up, and nothing is missed unseen', async () => {
    const proxie = client();
    const gaps = new Recorder(proxie, 'gap');
    proxie.on('error', () => {});
    await reached(proxie, 'open');
    api.refuseStream = ({ cursor }) => (cursor === undefined ? undefined : [400, { code: 'bad_request' }]);
    api.last.response.destroy();
    api.publish('user:clara', 'offer:new', {});
    await gaps.one(({ topic }) => topic === 'user:clara');
    assert.equal(api.last.cursor, undefined);
  });

  test('a stream has not more topics than the server takes', async () => {
    const at = { epoch: 'ep1', offset: 0 };
    const positions = Object.fromEntries(Array.from({ length: 33 }, (_, i) => [`booking:${i}`, at]));
    const proxie = client({ positions });
    const errors = new Recorder(proxie, 'error');
    await reached(proxie, 'open');
    assert.equal(api.last.topics.length, 32);
    assert.deepEqual(errors.heard.map(({ data }) => data.topic), ['booking:31', 'booking:32']);
    await assert.rejects(proxie.subscribe('booking:x'), { code: 'rejected', reason: 'too_many_subscriptions' });
    assert.equal(Object.keys(proxie.positions).length, 32);
  });

  test('a command is repeated with its id until it is answered', async () => {
    const proxie = client();
    const answers: [number, unknown, Record<string, string>?][] = [
      [0, ''],
      [502, '<html>'],
      [503, { code: 'overloaded', detail: 'later' }],
      [201, { message_id: 'msg_1' }],
    ];
    api.answer = () => answers.shift()!;
    await proxie.send('chat:message', { session_id: 's', content: 'x' }, { id: 'say-1' });
    assert.deepEqual(api.posts.map(({ key }) => key), ['say-1', 'say-1', 'say-1', 'say-1']);
  });

  test('problems are typed', async () => {
    const proxie = client();
    const errors = [{ pointer: '/text', message: 'is empty' }];
    api.answer = () => [422, { code: 'rejected', detail: 'no', reason: 'invalid', errors, status: 422 }];
    await assert.rejects(proxie.send('request:create', { text: '' }), {
      code: 'rejected',
      message: 'no',
      reason: 'invalid',
      errors,
      retryable: false,
    });
    api.answer = () => [429, { code: 'rate_limited', detail: 'slow down' }, { 'Retry-After': '900' }];
    await assert.rejects(proxie.send('request:create', { text: '' }), { code: 'rate_limited', retryAfterMs: 900_000 });
  });

  test('a token that ended meanwhile is replaced', async () => {
    let count = 0;
    const proxie = client({ token: () => `token-${(count += 1)}` });
    await reached(proxie, 'open');
    api.answer = ({ token }) => (token === 'token-1' ? [401, { code: 'unauthenticated' }] : [200, { id: 'r' }]);
    await proxie.send('request:create', { text: 'x' });
    api.write('event: token:expiring\ndata: {"event":"token:expiring","data":{"expires_at":"soon"}}\n\n');
    await api.until(() => api.streams.length === 2);
    assert.equal(api.last.token, 'token-3');
  });

  test('the close event has the codes of the WebSocket', async () => {
    const proxie = client({ backoff: { baseMs: 1_000, maxMs: 1_000 }, random: () => 0, now: () => 0 });
    await reached(proxie, 'open');
    const states: StateChange[] = [];
    proxie.on('state', (change) => states.push(change));
    api.write('event: close\ndata: {"code":3000,"reason":{"code":"draining","retry_after_ms":1}}\n\n');
    await reached(proxie, 'waiting');
    assert.deepEqual(states[0], { state: 'waiting', transport: undefined, reason: 'draining', code: 3000, nextAttemptAt: 1 });
    await reached(proxie, 'open');
    api.write('event: close\ndata: {"code":3501,"reason":{"code":"revoked"}}\n\n');
    await reached(proxie, 'closed');
    assert.equal(states.at(-1)?.code, 3501);
  });

  test('a refused stream: a bad token is final, a full node is not', async () => {
    const refusals: [number, unknown, Record<string, string>?][] = [
      [503, { code: 'unavailable', detail: 'draining' }, { 'Retry-After': '0' }],
      [200, 'a login page', { 'Content-Type': 'text/html' }],
      [401, { code: 'unauthenticated', detail: 'the token has ended' }],
    ];
    api.refuseStream = () => refusals.shift();
    const proxie = client();
    const errors = new Recorder(proxie, 'error');
    const states = new Recorder(proxie, 'state');
    await reached(proxie, 'closed');
    assert.equal(errors.heard.length, 3);
    assert.deepEqual(
      states.heard.flatMap(({ data }) => (data.state === 'connecting' ? [] : [[data.state, data.reason]])),
      [['waiting', 'unavailable'], ['waiting', 'unavailable'], ['closed', 'unauthenticated']],
    );
  });

  test('a stream without heartbeats is given up', async () => {
    api.pingMs = 10;
    const proxie = client({ graceMs: 10 });
    const states = new Recorder(proxie, 'state');
    await states.one(({ reason }) => reason === 'heartbeat_timeout');
    await api.until(() => api.streams.length >= 2);
  });

  test('auto falls back when no WebSocket ever opens', async () => {
    const proxie = client({
      transport: 'auto',
      fallbackAfter: 2,
      WebSocket,
    });
    const states = new Recorder(proxie, 'state');
    await states.one(({ state }) => state === 'open');
    assert.equal(api.upgrades, 2);
    assert.equal(states.heard.at(-1)?.data.transport, 'sse');
    assert.deepEqual(
      states.heard.flatMap(({ data }) => (data.state === 'waiting' ? [data.reason] : [])),
      ['not_opened', 'not_opened'],
    );
    // While the fallback works it is kept.
    api.last.response.destroy();
    await api.until(() => api.streams.length === 2);
    assert.equal(api.upgrades, 2);
    // When it does not get through either, the two take turns.
    api.refuseStream = () => (api.upgrades > 2 ? undefined : [404, {}]);
    api.last.response.destroy();
    await api.until(() => api.streams.length === 3);
    assert.equal(api.upgrades, 3);
  });

  test('a durable application topic goes on where it was; a lossy one has a gap', async () => {
    api.topicErrors = { 'app:room': { recovered: true, position: { epoch: 'memory', offset: 0 } } };
    const proxie = client();
    const said = new Recorder(proxie, 'app:said');
    const gaps = new Recorder(proxie, 'gap');
    await Promise.all([proxie.subscribe('app:log'), proxie.subscribe('app:room')]);
    api.publish('app:log', 'app:said', 1);
    await said.one();
    api.last.response.destroy();
    api.publish('app:log', 'app:said', 2);
    api.publish('app:log', 'app:said', 3);
    await said.until((all) => all.length >= 3);
    assert.deepEqual(said.heard.map(({ data, meta }) => [data, meta.offset]), [[1, 1], [2, 2], [3, 3]]);
    assert.deepEqual(gaps.heard.map(({ data }) => data.topic), ['app:room']);
    assert.deepEqual(proxie.positions['app:log'], { epoch: 'ep1', offset: 3 });
  });

  test('reads have the token, their path and their query', async () => {
    let count = 0;
    const proxie = client({ token: () => `token-${(count += 1)}` });
    await reached(proxie, 'open');
    api.answer = ({ token }) => (token === 'token-1' ? [401, { code: 'unauthenticated' }] : [200, { items: [], next_cursor: null }]);
    const { items, next_cursor } = await proxie.get('/v1/requests/{id}/offers', { id: 'r/1', limit: 5, cursor: undefined });
    assert.deepEqual([items, next_cursor], [[], null]);
    await proxie.get('/v1/bookings');
    assert.deepEqual(api.reads, [
      { path: '/v1/requests/r%2F1/offers?limit=5', token: 'token-1' },
      { path: '/v1/requests/r%2F1/offers?limit=5', token: 'token-2' },
      { path: '/v1/bookings', token: 'token-2' },
    ]);
  });

  test('a read that fails says why', async () => {
    const proxie = client();
    api.answer = () => [404, { code: 'not_found', detail: 'there is no such booking' }];
    await assert.rejects(proxie.get('/v1/bookings/{id}', { id: 'b' }), { code: 'not_found', message: 'there is no such booking' });
    api.answer = () => [401, { code: 'unauthenticated', detail: 'the token has ended' }];
    await assert.rejects(proxie.get('/v1/bookings'), { code: 'unauthenticated', retryable: false });
    assert.equal(api.reads.length, 2, 'a token that cannot change is not tried again');
    api.answer = () => [0, ''];
    await assert.rejects(proxie.get('/v1/bookings'), { code: 'unavailable', retryable: true });
    const ended = AbortSignal.abort(new Error('enough'));
    await assert.rejects(proxie.get('/v1/bookings', {}, { signal: ended }), { message: 'enough' });
    const silent = client({ fetch: (_, init) => new Promise((_, reject) => init!.signal!.addEventListener('abort', () => reject(new Error('aborted')))) });
    await assert.rejects(silent.get('/v1/bookings', {}, { timeoutMs: 1 }), { code: 'deadline_exceeded' });
  });

  for (const transport of ['websocket', 'auto', 'sse'] as const) {
    test(`a page of an origin that is not allowed is told so: ${transport}`, async () => {
      api.refusal = [403, { code: 'forbidden', reason: 'origin_not_allowed', detail: 'pages of this origin may not connect' }];
      // What a page sees of an answer that it may not read.
      api.refuseStream = () => [0, ''];
      api.answer = () => [0, ''];
      const proxie = client({ transport, WebSocket });
      const errors = new Recorder(proxie, 'error');
      const states = new Recorder(proxie, 'state');
      const refused = { code: 'forbidden', reason: 'origin_not_allowed', message: 'pages of this origin may not connect' };
      await Promise.all([
        assert.rejects(proxie.send('ping', {}), refused),
        assert.rejects(proxie.get('/v1/bookings'), refused),
      ]);
      assert.equal(proxie.state, 'closed');
      assert.equal(states.heard.at(-1)?.data.reason, 'origin_not_allowed');
      const { error } = (await errors.one()).data;
      assert.ok(error instanceof ProxieError);
      assert.equal(error.reason, 'origin_not_allowed');
      assert.ok(api.upgrades <= 1);
    });
  }

  test('a node that drains says when to come back', async () => {
    api.refusal = [503, { code: 'unavailable', detail: 'draining' }, { 'Retry-After': '7' }];
    const proxie = client({ transport: 'websocket', WebSocket, now: () => 0, random: () => 0, backoff: { baseMs: 1 } });
    const states = new Recorder(proxie, 'state');
    const { data } = await states.one(({ state }) => state === 'waiting');
    assert.deepEqual([data.reason, data.nextAttemptAt], ['unavailable', 7_000]);
  });
});
