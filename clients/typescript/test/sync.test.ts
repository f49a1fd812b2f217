// Devices of one person against a real node: PROXIE_URL is its address, PROXIE_TOKEN_CONSUMER a consumer's token.

import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import WebSocket from 'ws';

import { connect, type DeviceType, type Proxie } from '../src/index.js';
import { fileStore } from '../src/sync/file.js';
import { Device, memoryStore, type Store } from '../src/sync/index.js';

const url = process.env.PROXIE_URL;
const token = process.env.PROXIE_TOKEN_CONSUMER;
const missing = !url || !token;
const skip = missing && process.env.PROXIE_REQUIRED !== '1' && 'PROXIE_URL and PROXIE_TOKEN_CONSUMER name no node';

describe('devices on a real node', { skip, timeout: 120_000 }, () => {
  const ends: (() => Promise<void> | void)[] = [];
  after(async () => {
    for (const end of ends.reverse()) await end();
  });

  function client(): Proxie {
    assert.ok(url && token, 'PROXIE_URL and PROXIE_TOKEN_CONSUMER are required');
    const made = connect({
      url,
      token: () => token,
      transport: 'websocket',
      WebSocket,
      backoff: { baseMs: 50, maxMs: 500 },
    });
    ends.push(() => made.close());
    return made;
  }

  async function device(proxie: Proxie, type: DeviceType, store: Store = memoryStore()): Promise<Device> {
    const made = await Device.open(proxie, { name: type, type, capabilities: { remote_control: true }, store });
    made.on('error', (error) => assert.fail(String(error)));
    ends.push(() => made.close());
    return made;
  }

  async function until(what: string, reached: () => boolean): Promise<void> {
    const deadline = Date.now() + 30_000;
    while (!reached()) {
      assert.ok(Date.now() < deadline, what);
      await sleep(20);
    }
  }

  // Other runs of this user may have left something.
  const name = `sync-${Date.now()}`;
  const item = (n: number) => `${name}-${n}`;
  const own = (of: Device) => of.watchlist.filter((id) => id.startsWith(name));

  test('offline edits meet, over a file and a new start', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'proxie-sync-'));
    ends.push(() => rm(folder, { recursive: true }));
    const path = join(folder, 'phone.json');
    const [atHome, abroad] = [client(), client()];
    const tv = await device(atHome, 'android_tv');
    let phone = await device(abroad, 'ios', fileStore(path));
    await tv.add(item(1));
    await tv.add(item(2));
    await until('the phone hears the TV', () => own(phone).length === 2);

    abroad.close();
    await phone.remove(item(1));
    await phone.add(item(3));
    await phone.play(item(2), 60_000, 100_000);
    await phone.increment(item(2));
    await phone.increment(item(2));
    assert.deepEqual(own(phone), [item(2), item(3)]);
    assert.equal(phone.pending, 5);
    await phone.close();
    // Meanwhile: what the phone removed is added again, which it cannot have seen.
    await tv.add(item(1));
    await tv.increment(item(2), 3);
    await tv.flushed();

    // Another start of the same phone.
    phone = await device(abroad, 'ios', fileStore(path));
    assert.equal(phone.pending, 5);
    assert.deepEqual(own(phone), [item(2), item(3)]);
    abroad.connect();
    await phone.flushed();
    for (const one of [phone, tv]) {
      await until('both show the same', () => own(one).length === 3 && one.count(item(2)) === 5);
      assert.deepEqual(own(one), [item(1), item(2), item(3)]);
      assert.equal(one.position(item(2))?.position_ms, 60_000);
      assert.equal(one.position(item(2))?.device, phone.id);
    }
  });

  test('a long queue goes out, and a newcomer reads it all', async () => {
    const proxie = client();
    const tablet = await device(proxie, 'android');
    await until('it is connected', () => proxie.state === 'open');
    proxie.close();
    const writes = [];
    for (let n = 100; n < 1_300; n += 1) writes.push(tablet.add(item(n)));
    await Promise.all(writes);
    assert.equal(tablet.pending, 1_200);
    proxie.connect();
    await tablet.flushed();
    const newcomer = await device(client(), 'web');
    await until('the newcomer has it', () => own(newcomer).length === own(tablet).length && own(tablet).length >= 1_200);
    assert.deepEqual(own(newcomer), own(tablet));
  });

  test('a clock of the future is corrected', async () => {
    const [ahead, right] = [client(), client()];
    const wrong = await Device.open(ahead, { name: 'w', type: 'web', now: () => Date.now() + 3_600_000 });
    ends.push(() => wrong.close());
    const tv = await device(right, 'lg_tv');
    await wrong.play(item(9), 1);
    await wrong.flushed();
    await until('the TV hears it', () => tv.position(item(9))?.position_ms === 1);
    await tv.play(item(9), 2);
    await tv.flushed();
    await until('the later write wins', () => wrong.position(item(9))?.position_ms === 2);
  });

  test('one device tells another what to do', async () => {
    const [here, there] = [client(), client()];
    const tv = await device(there, 'fire_tv');
    const heard: string[] = [];
    tv.on('command', ({ action }) => heard.push(action));
    await until('it is there', () => there.positions[`device:${tv.id}`] !== undefined);
    const deadline = Date.now() + 10_000;
    for (;;) {
      try {
        await here.send('device:command', { device_id: tv.id, action: 'pause' });
        break;
      } catch (error) {
        // Not yet online.
        assert.ok(Date.now() < deadline, String(error));
        await sleep(50);
      }
    }
    await until('it hears', () => heard.includes('pause'));
  });
});
