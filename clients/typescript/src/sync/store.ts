import type { Time } from './clock.js';
import type { Operation, ReplicaData } from './replica.js';

export interface Queued {
  operation: Operation;
  /** The position up to which the device had seen the log when it wrote this. */
  seen: number;
}

/** The data that a device has to store. */
export interface Kept {
  id: string;
  /** Of its newest operation. */
  sequence: number;
  clock: Time;
  queue: Queued[];
  confirmed: ReplicaData;
  position: { epoch: string; offset: number } | null;
}

/** The store of a device's data. One device, one store: never copy it. */
export interface Store {
  load(): Promise<Kept | undefined>;
  /** Replaces the saved data, whole or not at all. */
  save(kept: Kept): Promise<void>;
}

/** A store in memory, for tests and for devices that may lose their data. */
export function memoryStore(): Store {
  let saved: string | undefined;
  return {
    load: async () => (saved === undefined ? undefined : (JSON.parse(saved) as Kept)),
    save: async (kept) => {
      saved = JSON.stringify(kept);
    },
  };
}

/** A store in IndexedDB, for browsers. */
export function indexedDbStore(name = 'proxie-device'): Store {
  const opening = new Promise<IDBDatabase>((resolve, reject) => {
    const request = indexedDB.open(name, 1);
    request.onupgradeneeded = () => request.result.createObjectStore('kept');
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error ?? new Error(`IndexedDB ${name} cannot be opened`));
  });
  // Whoever never loads or saves need not hear of it.
  opening.catch(() => undefined);
  return {
    async load() {
      const database = await opening;
      return new Promise((resolve, reject) => {
        const request = database.transaction('kept').objectStore('kept').get('device');
        request.onsuccess = () => resolve(request.result as Kept | undefined);
        request.onerror = () => reject(request.error ?? new Error('IndexedDB cannot be read'));
      });
    },
    async save(kept) {
      const database = await opening;
      return new Promise((resolve, reject) => {
        const transaction = database.transaction('kept', 'readwrite', { durability: 'strict' });
        transaction.objectStore('kept').put(kept, 'device');
        transaction.oncomplete = () => resolve();
        transaction.onabort = () => reject(transaction.error ?? new Error('IndexedDB cannot be written'));
      });
    },
  };
}
