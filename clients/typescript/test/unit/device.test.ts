// A device against a server that is a few lines here: what it does with its disk and with what it is told.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import { ProxieError, type Proxie } from '../../src/index.js';
import { Device, memoryStore, type Kept, type Operation, type Store } from '../../src/sync/index.js';

/** Takes what is in order, and remembers it. */
class Server {
  state = 'open';
  userId = 'alice';
  positions: Record<string, unknown> = {};
  taken: Operation[] = [];
  /** What it already has of the device. */
  sequence = 0;
  refuse: (operation: Operation) => object | undefined = () => undefined;
  listeners = new Map<string, (data: unknown, meta: unknown) => void>();

  on(event: string, listener: (data: unknown, meta: unknown) => void): () => void {
    this.listeners.set(event, listener);
    return () => this.listeners.delete(event);
  }

  standing(more: object = {}): Record<string, unknown> {
    const position = { epoch: 'e', offset: this.taken.length };
    return { sequence: this.sequence, position, stable: 0, must_resync: false, ...more };
  }

  async subscribe(): Promise<object> {
    return { recovered: true };
  }

  async unsubscribe(): Promise<void> {}

  async send(event: string, data: { operations?: Operation[] }): Promise<object> {
    await sleep(1);
    if (event === 'device:register') return { sync: this.standing() };
    if (event === 'sync:read') return { operations: [], next: null, position: { epoch: 'e', offset: 0 } };
    if (event !== 'sync:update') return {};
    const errors = (data.operations ?? []).flatMap((operation, n) => {
      const refused = this.refuse(operation);
      return refused ? [{ pointer: `/operations/${n}/payload`, ...refused, message: 'is wrong' }] : [];
    });
    if (errors.length > 0) throw new ProxieError({ code: 'bad_request', message: 'wrong', retryable: false, errors });
    for (const operation of data.operations ?? []) {
      if (operation.sequence !== this.sequence + 1) continue;
      this.sequence += 1;
      this.taken.push(operation);
    }
    return this.standing();
  }
}

const open = (server: Server, store?: Store): Promise<Device> =>
  Device.open(server as unknown as Proxie, { name: 'x', type: 'web', ...(store && { store }) });

const contents = (server: Server) => server.taken.map(({ payload }) => ('content_id' in payload ? payload.content_id : null));

describe('a device', () => {
  test('sends nothing that is not on its disk', async () => {
    const server = new Server();
    const disk = memoryStore();
    let broken = false;
    const store: Store = { load: () => disk.load(), save: (kept: Kept) => (broken ? Promise.reject(new Error('full')) : disk.save(kept)) };
    const device = await open(server, store);
    const told: unknown[] = [];
    device.on('error', (error) => told.push(error));
    await device.add('kept');
    await device.flushed();
    broken = true;
    await assert.rejects(device.add('not-kept'), /full/);
    await sleep(30);
    assert.deepEqual(contents(server), ['kept']);
    assert.ok(told.length > 0);
    broken = false;
    // With the next one it gets there, and both go out.
    await device.add('later');
    await device.flushed();
    assert.deepEqual(contents(server), ['kept', 'not-kept', 'later']);
    await device.close();
  });

  test('takes other numbers when its disk has forgotten some', async () => {
    const server = new Server();
    server.state = 'closed';
    server.sequence = 2;
    const device = await open(server);
    await device.add('written-after-that');
    server.state = 'open';
    server.listeners.get('state')?.({ state: 'open' }, {});
    await device.flushed();
    assert.deepEqual(server.taken.map(({ sequence }) => sequence), [3]);
    assert.deepEqual(contents(server), ['written-after-that']);
    await device.close();
  });

  test('lets nothing into its queue that the server could not read', async () => {
    const server = new Server();
    const device = await open(server);
    for (const wrong of [device.add(''), device.add('two words'), device.play('x', Number.NaN), device.play('x', -1), device.increment('x', 0.5)]) {
      await assert.rejects(wrong, RangeError);
    }
    await device.play('x', 1.4, 5_421_333.3);
    await device.flushed();
    assert.deepEqual(server.taken[0]?.payload, { content_id: 'x', position_ms: 1, duration_ms: 5_421_333 });
    await device.close();
  });

  test('goes on behind what the server cannot read all the same', async () => {
    const server = new Server();
    server.refuse = ({ payload }) => ('content_id' in payload && payload.content_id === 'wrong' ? {} : undefined);
    const device = await open(server);
    const told: unknown[] = [];
    device.on('error', (error) => told.push(error));
    await Promise.all([device.add('a'), device.add('wrong'), device.add('b')]);
    await device.flushed();
    assert.deepEqual(contents(server), ['a', null, 'b']);
    assert.equal(told.length, 1);
    await device.close();
  });

  test('begins what it is told to play, and not last night', async () => {
    const server = new Server();
    const device = await open(server);
    const started: string[] = [];
    device.on('start', ({ session_id }) => started.push(session_id));
    const start = (session_id: string, seconds: number) =>
      server.listeners.get('playback:start')?.(
        { session_id, expires_at: new Date(Date.now() + seconds * 1_000).toISOString() },
        { topic: `device:${device.id}` },
      );
    start('old', -3_600);
    start('new', 60);
    assert.deepEqual(started, ['new']);
    await device.close();
  });
});
