import assert from 'node:assert/strict';
import { test } from 'node:test';

import { SseParser, type SseMessage } from '../../src/sse.js';

function parse(text: string | Uint8Array, size = Number.MAX_SAFE_INTEGER): SseMessage[] {
  const bytes = typeof text === 'string' ? new TextEncoder().encode(text) : text;
  const parser = new SseParser();
  const messages: SseMessage[] = [];
  for (let at = 0; at < bytes.length; at += size) messages.push(...parser.push(bytes.subarray(at, at + size)));
  return messages;
}

const STREAM =
  '\uFEFF: hello\nid: 1\nevent: ready\ndata: {"a":\ndata: "é😀"}\n\n' +
  'event:quiet\r\n\r\ndata:no space\rid:2\r\r:\n\ndata\n\nid\ndata:  two\n\nunknown: 1\nretry: 5\ndata: cut off';

const EXPECTED: SseMessage[] = [
  { event: 'ready', data: '{"a":\n"é😀"}', id: '1' },
  { event: 'message', data: 'no space', id: '2' },
  { event: 'message', data: '', id: '2' },
  { event: 'message', data: ' two', id: '' },
];

test('a stream is the same however it is cut', () => {
  const length = new TextEncoder().encode(STREAM).length;
  for (let size = 1; size <= length; size += 1) assert.deepEqual(parse(STREAM, size), EXPECTED, `chunks of ${size}`);
});

test('CRLF over two chunks is one line end', () => {
  const parser = new SseParser();
  const push = (text: string) => parser.push(new TextEncoder().encode(text));
  assert.deepEqual(push('data: a\r'), []);
  assert.deepEqual(push('\n'), []);
  assert.deepEqual(push('data: b\r'), []);
  assert.deepEqual(push('\n\r'), [{ event: 'message', data: 'a\nb', id: undefined }]);
  assert.deepEqual(push('\ndata: c\n\n'), [{ event: 'message', data: 'c', id: undefined }]);
});

test('an id with U+0000 is ignored', () => {
  assert.deepEqual(parse('id: 1\nid: 2\0\ndata: x\n\n'), [{ event: 'message', data: 'x', id: '1' }]);
});

test('what never ends is refused', () => {
  const bytes = (text: string) => new TextEncoder().encode(text);
  const line = new SseParser(100);
  line.push(bytes('data: '));
  assert.throws(() => line.push(bytes('x'.repeat(101))), RangeError);
  const lines = new SseParser(100);
  assert.throws(() => {
    for (;;) lines.push(bytes('data: 1234567890\n'));
  }, RangeError);
  const fields = new SseParser(100);
  assert.throws(() => fields.push(bytes(`event: ${'x'.repeat(200)}\n`)), RangeError);
});
