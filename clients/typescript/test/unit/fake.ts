// A node that does as it is told: the protocol's frames over WebSocket, without anything behind them.

import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { WebSocketServer, type WebSocket } from 'ws';

export interface Frame {
  id: string;
  event: string;
  data: Record<string, unknown>;
}

interface Publication {
  event: string;
  offset: number;
  data: unknown;
}

type Answer = { data: unknown } | { error: Record<string, unknown> } | undefined;

export class Connection {
  readonly frames: Frame[] = [];
  readonly topics = new Set<string>();
  constructor(readonly socket: WebSocket) {}

  send(frame: unknown): void {
    this.socket.send(JSON.stringify(frame));
  }

  reply(id: string, answer: Answer): void {
    if (answer) this.send({ id, ok: 'data' in answer, ...answer });
  }
}

export class FakeNode {
  readonly #server: Server = createServer((_, response) => response.writeHead(404).end());
  readonly #sockets = new WebSocketServer({ server: this.#server });
  readonly connections: Connection[] = [];
  readonly frames: Frame[] = [];
  readonly topics = new Map<string, Publication[]>();
  epoch = 'ep1';
  userId = 'clara';
  pingMs = 25_000;
  limits: Record<string, number> = {};
  /** `undefined`: no reply. `null` from the hook: the usual one. */
  answer: (frame: Frame, connection: Connection) => Answer | null = () => null;
  #waiting: (() => void)[] = [];

  constructor() {
    this.#sockets.on('connection', (socket) => {
      const connection = new Connection(socket);
      this.connections.push(connection);
      this.#changed();
      socket.on('message', (text: Buffer) => {
        const frame = JSON.parse(text.toString()) as Frame;
        connection.frames.push(frame);
        this.frames.push(frame);
        const told = this.answer(frame, connection);
        if (told === null) this.#usual(frame, connection);
        else connection.reply(frame.id, told);
        this.#changed();
      });
    });
  }

  async listen(): Promise<string> {
    await new Promise<void>((resolve) => this.#server.listen(0, '127.0.0.1', resolve));
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async stop(): Promise<void> {
    for (const socket of this.#sockets.clients) socket.terminate();
    this.#sockets.close();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  get last(): Connection {
    return this.connections.at(-1)!;
  }

  of(event: string): Frame[] {
    return this.frames.filter((frame) => frame.event === event);
  }

  async until(enough: () => boolean): Promise<void> {
    while (!enough()) await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  publish(topic: string, event: string, data: unknown): void {
    const publications = this.topics.get(topic) ?? [];
    const publication = { event, offset: publications.length + 1, data };
    publications.push(publication);
    this.topics.set(topic, publications);
    for (const connection of this.connections) {
      if (connection.topics.has(topic)) connection.send({ topic, ...publication });
    }
  }

  subscribe(connection: Connection, topic: string, from: unknown): { shown: unknown; missed: Publication[] } {
    connection.topics.add(topic);
    const publications = this.topics.get(topic) ?? [];
    const position = { epoch: this.epoch, offset: publications.length };
    const { epoch, offset } = (from ?? position) as { epoch: string; offset: number };
    const recovered = epoch === this.epoch && offset <= publications.length;
    return { shown: { recovered, position }, missed: recovered ? publications.slice(offset) : [] };
  }

  #usual({ id, event, data }: Frame, connection: Connection): void {
    const replay = (topic: string, missed: Publication[]) =>
      missed.forEach((publication) => connection.send({ topic, ...publication }));
    const topic = event === 'session:resume' ? `session:${String(data.session_id)}` : String(data.topic);
    switch (event) {
      case 'auth':
      case 'auth:refresh': {
        const wanted = { [`user:${this.userId}`]: undefined, ...(data.positions as object) };
        const begun = Object.entries(wanted).map(([name, from]) => [name, this.subscribe(connection, name, from)] as const);
        connection.reply(id, {
          data: {
            user_id: this.userId,
            ping_ms: this.pingMs,
            limits: this.limits,
            topics: Object.fromEntries(begun.map(([name, { shown }]) => [name, shown])),
          },
        });
        return begun.forEach(([name, { missed }]) => replay(name, missed));
      }
      case 'topic:subscribe':
      case 'session:resume': {
        const { shown, missed } = this.subscribe(connection, topic, data.position);
        connection.reply(id, { data: shown });
        return replay(topic, missed);
      }
      case 'session:open': {
        const session = String(data.session_id ?? 'ses_1');
        const { shown } = this.subscribe(connection, `session:${session}`, undefined);
        return connection.reply(id, { data: { session_id: session, position: (shown as { position: unknown }).position } });
      }
      case 'topic:unsubscribe':
        connection.topics.delete(topic);
        return connection.reply(id, { data: {} });
      case 'chat:message':
        return connection.reply(id, { data: { message_id: `msg_${id}` } });
      default:
        return connection.reply(id, { data: {} });
    }
  }

  #changed(): void {
    for (const check of this.#waiting.splice(0)) check();
  }
}
