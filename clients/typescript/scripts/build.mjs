#!/usr/bin/env node
// Builds what the package ships: dist/src for `import`, dist/cjs for `require`, both with types.
//
// npm runs it as `prepare` when the package is installed from its folder. It does not install the folder's own packages
// then, so TypeScript is fetched here where it is missing.

import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const folder = fileURLToPath(new URL('..', import.meta.url));
const tsc = join(folder, 'node_modules', 'typescript', 'bin', 'tsc');

function run(command, args, options = {}) {
  // Standard output belongs to npm: `npm pack --json` answers there.
  const { status, error } = spawnSync(command, args, { cwd: folder, stdio: ['ignore', 2, 2], ...options });
  if (status === 0) return;
  console.error(`@proxie/client could not be built: ${command} ${args.join(' ')}: ${error?.message ?? `exit code ${status}`}`);
  process.exit(1);
}

if (!existsSync(tsc)) {
  // What the outer npm was told (its folder, `--global`, `--omit=dev`) is not meant for this folder.
  const own = /^npm_config_(prefix|local_prefix|global|location|omit|include|production|only|workspaces?|dry_run|json|save.*|package_lock.*)$/i;
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !own.test(name) && name !== 'NODE_ENV'));
  const flags = ['ci', '--include=dev', '--ignore-scripts', '--no-audit', '--no-fund', '--loglevel=error'];
  // On Windows npm is a script, which needs a shell.
  run('npm', flags, { env, shell: process.platform === 'win32' });
}
// What was built from other sources is not shipped.
for (const built of ['src', 'cjs']) await rm(join(folder, 'dist', built), { recursive: true, force: true });
for (const project of ['tsconfig.build.json', 'tsconfig.cjs.json']) run(process.execPath, [tsc, '-p', project]);
await writeFile(join(folder, 'dist', 'cjs', 'package.json'), '{ "type": "commonjs" }\n');
