import type { Events, Listener, Meta, Proxie, SendOptions } from './client.js';

type SessionEvent = 'chat:message' | 'chat:stream' | 'chat:response' | 'chat:typing' | 'session:ended';

/** A conversation. Its topic stays subscribed to over every reconnect. */
export class Session {
  readonly id: string;
  readonly topic: string;
  readonly #client: Proxie;

  constructor(client: Proxie, id: string) {
    this.#client = client;
    this.id = id;
    this.topic = `session:${id}`;
  }

  /** Sends a message, which is durable when this resolves; the answer comes as `chat:stream` and `chat:response`. */
  say(content: string, options: SendOptions & { media?: string[] } = {}): Promise<{ message_id: string }> {
    const { media = [], ...rest } = options;
    return this.#client.send('chat:message', { session_id: this.id, content, media }, rest);
  }

  async typing(isTyping: boolean): Promise<void> {
    await this.#client.send('chat:typing', { session_id: this.id, is_typing: isTyping });
  }

  /** Listens to the client's events of this session only. */
  on<E extends SessionEvent>(event: E, listener: Listener<Events[E]>): () => void {
    const own = (data: Events[E], meta: Meta) => {
      if (meta.topic === this.topic) listener(data, meta);
    };
    return this.#client.on(event, own);
  }

  /** Stops listening; the session stays open. */
  async leave(): Promise<void> {
    await this.#client.send('session:close', { session_id: this.id });
  }

  /** Ends the session for all devices. This one stays subscribed and hears `session:ended`. */
  async end(): Promise<void> {
    await this.#client.send('session:close', { session_id: this.id, end: true });
  }
}
