import assert from 'node:assert/strict';
import { test } from 'node:test';

import { backoff } from '../../src/backoff.js';

const options = { baseMs: 250, maxMs: 15_000, stableMs: 5_000 };

test('the ceiling doubles up to the maximum', () => {
  const ceilings = [0, 1, 2, 5, 6, 7, 1_000_000].map((attempt) => backoff(attempt, options, () => 1));
  assert.deepEqual(ceilings, [250, 500, 1_000, 8_000, 15_000, 15_000, 15_000]);
});

test('the jitter is full, on top of what the server asked for', () => {
  assert.equal(backoff(3, options, () => 0), 0);
  assert.equal(backoff(0, options, () => 0.5, 2_000), 2_125);
});

test('a server cannot send a client away for ever', () => {
  assert.equal(backoff(0, options, () => 0, Number.MAX_SAFE_INTEGER), 300_000);
  assert.equal(backoff(0, options, () => 0, -1), 0);
});
