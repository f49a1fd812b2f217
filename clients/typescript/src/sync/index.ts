export { Device } from './device.js';
export type { DeviceOptions, PlaybackStart, RemoteCommand } from './device.js';
export { Replica } from './replica.js';
export type { Change, Operation, Playback, ReplicaData } from './replica.js';
export { compareTimes, tick, toDate, toTime } from './clock.js';
export type { Stamp, Time } from './clock.js';
export { indexedDbStore, memoryStore } from './store.js';
export type { Kept, Store } from './store.js';
