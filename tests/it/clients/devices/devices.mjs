// One person's phone (our client in Node.js), laptop (our client in a browser) and tablet (Python, with CRDTs of its own)
// write while they are offline, meet again while a node dies under them, and show the same.
//
//   node devices.mjs URL, the token of `clara` in PROXIE_TOKEN
//
// It prints "kill" when the node that they talk to is to die, and goes on when a line comes back.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

import { connect } from '../../../../clients/typescript/dist/src/index.js';
import { fileStore } from '../../../../clients/typescript/dist/src/sync/file.js';
import { Device } from '../../../../clients/typescript/dist/src/sync/index.js';

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const ofConsole = createRequire(here('../../../../clients/console/package.json'));
const { chromium } = ofConsole('playwright-core');
const esbuild = ofConsole('esbuild');
const WebSocket = createRequire(here('../../../../clients/typescript/package.json'))('ws');

const url = process.argv[2];
const token = process.env.PROXIE_TOKEN;
const answers = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const folder = await mkdtemp(join(tmpdir(), 'proxie-devices-'));
const ends = [() => rm(folder, { recursive: true })];

// ---- The phone

const proxie = connect({ url, token: () => token, transport: 'websocket', WebSocket, backoff: { baseMs: 50, maxMs: 500 } });
ends.push(() => proxie.close());
const openPhone = async () => {
  const device = await Device.open(proxie, { name: 'Phone', type: 'ios', store: fileStore(join(folder, 'phone.json')) });
  device.on('error', (error) => assert.fail(String(error)));
  return device;
};
let phone = await openPhone();

// ---- The laptop: the client as a bundler makes it, run in pages of the node

const bundle = await esbuild.build({
  stdin: {
    contents: `export { connect } from './index.js'; export { Device, indexedDbStore } from './sync/index.js';`,
    resolveDir: here('../../../../clients/typescript/dist/src'),
  },
  bundle: true, format: 'iife', globalName: 'proxie', write: false,
});
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  // Tests may run as root, where Chromium has no sandbox.
  args: ['--no-sandbox'],
});
ends.push(() => browser.close());
const context = await browser.newContext();
/** Reads the device from IndexedDB, and waits to be told to connect. */
async function openLaptop() {
  const page = await context.newPage();
  page.on('pageerror', (error) => assert.fail(String(error)));
  // Whose policy lets scripts connect to the node.
  await page.goto(url);
  await page.evaluate(`${bundle.outputFiles[0].text}; globalThis.proxie = proxie`);
  const pending = await page.evaluate(async (token) => {
    const { connect, Device, indexedDbStore } = globalThis.proxie;
    const client = connect({ url: location.origin, token: () => token, transport: 'websocket', backoff: { baseMs: 50, maxMs: 500 } });
    client.close();
    const device = await Device.open(client, { name: 'Laptop', type: 'web', store: indexedDbStore() });
    Object.assign(globalThis, { client, device, errors: [] });
    device.on('error', (error) => globalThis.errors.push(String(error)));
    return device.pending;
  }, token);
  return { page, pending };
}
let laptop = (await openLaptop()).page;
const onLaptop = (what, ...with_) => laptop.evaluate(([what, with_]) => globalThis.device[what](...with_), [what, with_]);

// ---- The tablet

const python = spawn('python3', [here('tablet.py'), `${url.replace('http', 'ws')}/sync/ws`], { stdio: ['pipe', 'pipe', 'inherit'] });
ends.push(() => python.kill());
const told = createInterface({ input: python.stdout })[Symbol.asyncIterator]();
async function tablet(command, fields = {}) {
  python.stdin.write(`${JSON.stringify({ do: command, ...fields })}\n`);
  const { value, done } = await told.next();
  assert.ok(!done, 'the tablet has ended');
  return JSON.parse(value);
}

// ---- All of them

const CONTENTS = ['both', 'kept', 'gone', 'readded', ...Array.from({ length: 300 }, (_, n) => `film-${n}`)];

/** In the browser, and here. */
function shown(device, contents) {
  const of = (value) => Object.fromEntries(contents.map((id) => [id, value(id)]).filter(([, value]) => value));
  return {
    pending: device.pending,
    watchlist: [...device.watchlist].sort(),
    positions: of((id) => device.position(id)?.position_ms),
    counts: of((id) => device.count(id)),
  };
}

async function states() {
  const onLaptop = `(${shown})(globalThis.device, ${JSON.stringify(CONTENTS)})`;
  const { id: _, ...onTablet } = await tablet('state');
  assert.deepEqual(await laptop.evaluate('globalThis.errors'), []);
  return [shown(phone, CONTENTS), await laptop.evaluate(onLaptop), onTablet];
}

/** All have sent all, and show this. */
async function agree(expected) {
  const wanted = { pending: 0, ...expected };
  for (let tries = 0; ; tries += 1) {
    const all = await states();
    try {
      for (const state of all) assert.deepEqual(state, wanted);
      return;
    } catch (error) {
      if (tries === 300) throw error;
      await sleep(100);
    }
  }
}

try {
  await tablet('connect');
  await laptop.evaluate('globalThis.client.connect()');
  await phone.add('gone');
  await onLaptop('add', 'readded');
  await tablet('add', { content: 'kept' });
  await onLaptop('increment', 'both', 2);
  await agree({ watchlist: ['gone', 'kept', 'readded'], positions: {}, counts: { both: 2 } });

  // Offline, each for itself.
  proxie.close();
  await context.setOffline(true);
  await laptop.evaluate('globalThis.client.close()');
  await tablet('close');
  await phone.remove('gone');
  await phone.remove('readded');
  await phone.play('both', 1_000);
  await phone.increment('both', 3);
  await Promise.all(CONTENTS.slice(4).map((content) => phone.add(content)));
  await tablet('remove', { content: 'gone' });
  await tablet('play', { content: 'both', at: 2_000 });
  await tablet('count', { content: 'both', by: 10 });
  // It did not know that the phone removed it: the addition wins. The last to have watched it, too.
  await onLaptop('add', 'readded');
  await onLaptop('remove', 'gone');
  await onLaptop('play', 'both', 3_000);
  await onLaptop('increment', 'both', 100);

  // The phone's app is started again, and the laptop's page is closed and opened: what they wrote is on their disks.
  const written = phone.pending;
  assert.equal(written, 304);
  await phone.close();
  phone = await openPhone();
  assert.equal(phone.pending, written);
  await laptop.close();
  await context.setOffline(false);
  const opened = await openLaptop();
  laptop = opened.page;
  assert.equal(opened.pending, 4);
  assert.equal((await tablet('state')).pending, 3);

  // They come back, and the node dies in the middle of it.
  proxie.connect();
  await tablet('connect');
  console.log('kill');
  await laptop.evaluate('globalThis.client.connect()');
  await answers.next();
  const watchlist = ['kept', 'readded', ...CONTENTS.slice(4)].sort();
  await agree({ watchlist, positions: { both: 3_000 }, counts: { both: 115 } });

  // So does the server, and a newcomer who only reads.
  const answer = await fetch(`${url}/v1/sync/state/me`, { headers: { authorization: `Bearer ${token}` } });
  const state = await answer.json();
  assert.deepEqual(state.watchlist.map((item) => item.content_id).sort(), watchlist);
  assert.equal(state.playback_positions.both.position_ms, 3_000);
  assert.equal(state.counters.both.value, 115);
  console.log('ok');
} finally {
  for (const end of ends.reverse()) await end();
}
process.exit(0);
