export { connect, Proxie } from './client.js';
export type {
  Asked,
  Command,
  Events,
  Failure,
  Gap,
  Listener,
  Meta,
  Options,
  ReadOptions,
  SendOptions,
  State,
  StateChange,
} from './client.js';
export type { BackoffOptions } from './backoff.js';
export { ProxieError } from './error.js';
export { CLOSE_CODES, ERROR_CODES, SERVER_EVENTS } from './events.js';
export type * from './events.js';
export type * from './reads.js';
export { Session } from './session.js';
export type { WebSocketConstructor, WebSocketLike } from './websocket.js';
