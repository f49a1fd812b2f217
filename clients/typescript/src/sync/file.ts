import { open, readFile, rename } from 'node:fs/promises';
import { dirname } from 'node:path';

import type { Kept, Store } from './store.js';

/** A store in a file, for Node. It is written beside the old one, flushed to disk, and renamed. */
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
      // The new name, too, is not forgotten. Windows opens no folders, and needs none of it.
      if (process.platform === 'win32') return;
      const folder = await open(dirname(path), 'r');
      try {
        await folder.sync();
      } finally {
        await folder.close();
      }
    },
  };
}
