import assert from 'node:assert/strict';
import { test } from 'node:test';

import { ulids } from '../../src/ulid.js';

test('ids have the form of a ULID and tell their time', () => {
  const id = ulids(() => 1_469_918_176_385)();
  assert.match(id, /^01ARYZ6S41[0-9A-HJKMNP-TV-Z]{16}$/);
  assert.match(ulids()(), /^[0-9A-HJKMNP-TV-Z]{26}$/);
});

test('ids grow within a millisecond, and when the clock goes back', () => {
  const times = [5, 5, 5, 4, 3, 6, 6];
  let at = 0;
  const next = ulids(() => times[Math.min(at++, times.length - 1)]!);
  const made = Array.from({ length: 10_000 }, next);
  assert.deepEqual(made, [...made].sort());
  assert.equal(new Set(made).size, made.length);
});

test('when the random part is used up, the next millisecond is borrowed', { skip: !('crypto' in globalThis) && 'no crypto' }, (t) => {
  t.mock.method(crypto, 'getRandomValues', (array: Uint8Array) => array.fill(255));
  const next = ulids(() => 32);
  assert.equal(next(), '0000000010ZZZZZZZZZZZZZZZZ');
  assert.equal(next(), '0000000011ZZZZZZZZZZZZZZZZ');
});
