import WebSocket from 'ws';

import type { Events, Meta, Proxie, State, WebSocketConstructor } from '../src/index.js';

export interface Heard<T> {
  data: T;
  meta: Meta;
}

/** Everything that comes, and a promise for what is waited for. */
export class Recorder<E extends keyof Events & string> {
  readonly heard: Heard<Events[E]>[] = [];
  #waiting: (() => void)[] = [];

  constructor(client: { on(event: never, listener: never): unknown }, ...events: E[]) {
    for (const event of events) {
      const listener = (data: Events[E], meta: Meta) => {
        this.heard.push({ data, meta });
        for (const check of this.#waiting.splice(0)) check();
      };
      client.on(event as never, listener as never);
    }
  }

  async until(enough: (heard: Heard<Events[E]>[]) => boolean): Promise<Heard<Events[E]>[]> {
    while (!enough(this.heard)) await new Promise<void>((resolve) => this.#waiting.push(resolve));
    return this.heard;
  }

  async one(wanted: (data: Events[E], meta: Meta) => boolean = () => true): Promise<Heard<Events[E]>> {
    const fits = ({ data, meta }: Heard<Events[E]>) => wanted(data, meta);
    await this.until((heard) => heard.some(fits));
    return this.heard.find(fits) as Heard<Events[E]>;
  }
}

export async function reached(client: Proxie, state: State): Promise<void> {
  if (client.state === state) return;
  await new Promise<void>((resolve) => {
    const off = client.on('state', (change) => {
      if (change.state !== state) return;
      off();
      resolve();
    });
  });
}

/** A WebSocket class whose connections can be cut as a network would cut them. */
export function cuttable(): { WebSocket: WebSocketConstructor; opened: WebSocket[]; cut: () => void } {
  const opened: WebSocket[] = [];
  class Cuttable extends WebSocket {
    constructor(url: string, protocols: string[]) {
      super(url, protocols);
      opened.push(this);
    }
  }
  return { WebSocket: Cuttable as WebSocketConstructor, opened, cut: () => opened.at(-1)?.terminate() };
}

/** A `fetch` whose event streams break as a network would break them. */
export function cuttableFetch(): { fetch: typeof fetch; streams: () => number; cut: () => void } {
  let streams = 0;
  let cut = () => {};
  return {
    streams: () => streams,
    cut: () => cut(),
    async fetch(input, init) {
      const response = await fetch(input, init);
      if (!response.headers.get('content-type')?.startsWith('text/event-stream') || !response.body) return response;
      streams += 1;
      const broken = new TransformStream<Uint8Array, Uint8Array>({
        start(controller) {
          cut = () => controller.error(new TypeError('cut'));
        },
      });
      return new Response(response.body.pipeThrough(broken), response);
    },
  };
}
