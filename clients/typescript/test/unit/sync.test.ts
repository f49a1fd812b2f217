// The CRDTs, held to the vectors that the server computes too (src/systems/devices/domain/crdt/tests.rs).

import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test } from 'node:test';

import { fileStore } from '../../src/sync/file.js';
import { compareTimes, Replica, tick, toDate, toTime, type Change, type Kept } from '../../src/sync/index.js';

type Step = { forget: number } | { device: string; at: number; operation: Change & { timestamp: string } };
interface Vectors {
  replicas: { steps: Step[]; replica: object }[];
  ticks: [string, string, string][];
}

// From dist/test/unit.
const path = new URL('../../../test/sync-vectors.json', import.meta.url);

describe('what devices share', async () => {
  const vectors = JSON.parse(await readFile(path, 'utf8')) as Vectors;

  test('adds up to what it does on the server', () => {
    assert.ok(vectors.replicas.length >= 40);
    for (const { steps, replica: expected } of vectors.replicas) {
      const replica = new Replica();
      for (const step of steps) {
        if ('forget' in step) replica.forgetRemoved(step.forget);
        else replica.apply(step.device, step.operation, step.at);
      }
      assert.deepEqual(replica.toJSON(), expected);
      assert.deepEqual(Replica.from(replica.toJSON()).toJSON(), expected);
    }
  });

  test('is the same in any order, and twice', () => {
    for (const { steps } of vectors.replicas) {
      const written = steps.flatMap((step) => ('forget' in step ? [] : [step]));
      const [forth, back] = [new Replica(), new Replica()];
      for (const { device, operation, at } of written) forth.apply(device, operation, at);
      for (const { device, operation, at } of [...written, ...written].reverse()) back.apply(device, operation, at);
      assert.deepEqual(back.toJSON(), forth.toJSON());
    }
  });

  test('times tick as on the server', () => {
    for (const [last, now, next] of vectors.ticks) assert.equal(tick(last, now), next);
    assert.equal(toTime(1_000), String(2n ** 32n));
    assert.equal(toDate(toTime(1_768_204_800_250)).toISOString(), '2026-01-12T08:00:00.250Z');
    assert.ok(compareTimes('9', '10') < 0 && compareTimes('10', '9') > 0 && compareTimes('9', '9') === 0);
  });

  test('a file keeps it', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'proxie-device-'));
    const store = fileStore(join(folder, 'device.json'));
    assert.equal(await store.load(), undefined);
    const kept: Kept = {
      id: 'dev_1',
      sequence: 1,
      clock: '5',
      queue: [],
      confirmed: new Replica().toJSON(),
      position: { epoch: 'e', offset: 2 },
    };
    await store.save(kept);
    assert.deepEqual(await store.load(), kept);
    await rm(folder, { recursive: true });
  });
});
