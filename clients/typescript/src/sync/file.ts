import { open, readFile, rename } from 'node:fs/promises';

import type { Kept, Store } from './store.js';

/** In Node: written beside, brought to disk, and put in its place. */
export function fileStore(path: string): Store {
  return {
    async load() {
      try {
        return JSON.parse(await readFile(path, 'utf8')) as Kept;
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
        throw error;
      }
    },
    async save(kept) {
      const file = await open(`${path}.new`, 'w', 0o600);
      try {
        await file.writeFile(JSON.stringify(kept));
        await file.sync();
      } finally {
        await file.close();
      }
      await rename(`${path}.new`, path);
    },
  };
}
