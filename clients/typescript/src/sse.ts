export interface SseMessage {
  event: string;
  data: string;
  /** The last id that the stream has named. */
  id: string | undefined;
}

/**
 * Parses `text/event-stream` as it arrives: lines end with CR, LF or CRLF, and a chunk may end anywhere, also within
 * a character. Throws a RangeError when a message is larger than `maxLength` characters.
 */
export class SseParser {
  // Strips a byte order mark, as the format wants it.
  readonly #decoder = new TextDecoder();
  readonly #maxLength: number;
  #buffer = '';
  /** The last chunk ended with CR: an LF at the start of the next belongs to it. */
  #afterCr = false;
  #event = '';
  #data: string[] = [];
  #length = 0;
  #id: string | undefined;

  constructor(maxLength = 1_048_576) {
    this.#maxLength = maxLength;
  }

  push(chunk: Uint8Array): SseMessage[] {
    let text = this.#decoder.decode(chunk, { stream: true });
    if (text === '') return [];
    if (this.#afterCr && text.startsWith('\n')) text = text.slice(1);
    this.#afterCr = text === '' ? false : text.endsWith('\r');
    const messages: SseMessage[] = [];
    // What was there before has no line end, so only the new text is searched.
    const ends = /\r\n|\n|\r/g;
    let from = 0;
    for (let end = ends.exec(text); end !== null; end = ends.exec(text)) {
      this.#line(this.#buffer + text.slice(from, end.index), messages);
      this.#buffer = '';
      from = ends.lastIndex;
    }
    this.#buffer += text.slice(from);
    this.#check(this.#buffer.length);
    return messages;
  }

  #check(more: number): void {
    if (this.#length + more > this.#maxLength) throw new RangeError('a message of the event stream is too large');
  }

  #line(line: string, messages: SseMessage[]): void {
    if (line === '') {
      if (this.#data.length > 0) {
        messages.push({ event: this.#event || 'message', data: this.#data.join('\n'), id: this.#id });
      }
      this.#event = '';
      this.#data = [];
      this.#length = 0;
      return;
    }
    this.#check(line.length);
    const colon = line.indexOf(':');
    if (colon === 0) return;
    const field = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? '' : line.slice(colon + 1);
    if (value.startsWith(' ')) value = value.slice(1);
    if (field === 'data') {
      this.#length += value.length + 1;
      this.#data.push(value);
    } else if (field === 'event') {
      this.#event = value;
    } else if (field === 'id' && !value.includes('\0')) {
      this.#id = value;
    }
  }
}
